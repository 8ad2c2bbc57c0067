"""The database of a served instance lies on a disk that is really full."""

from __future__ import annotations

import os
import signal
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.content import MIB, same_content, write_image
from tests.integration.service import Client, Service
from tests.integration.traps import Traps
from tests.servers.ports import free_port

pytestmark = pytest.mark.root

SEGMENT = 4 * MIB
READY = {"healthcheck": 200, "live": 200, "ready": 200}
NOT_READY = {"healthcheck": 503, "live": 200, "ready": 503}


class SmallDisk:
    """A disk of 8 MiB that can be filled up."""

    def __init__(self, point: Path) -> None:
        self.point = point
        self._ballast = point / "ballast"

    def fill(self) -> None:
        """Leave not one page; nobody else may write meanwhile."""
        free = os.statvfs(self.point)
        self._ballast.write_bytes(bytes(free.f_bavail * free.f_frsize))
        assert os.statvfs(self.point).f_bavail == 0

    def make_room(self) -> None:
        self._ballast.unlink()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    point = tmp_path / "state"
    point.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(point)], check=True)
    try:
        yield SmallDisk(point)
    finally:
        subprocess.run(["umount", "-l", str(point)], check=True)


class Instance:
    """An instance of which nothing but the database is on the small disk.

    :ivar traps: tell the process at which point of a task to stand still.
    """

    def __init__(self, disk: SmallDisk, folder: Path) -> None:
        for name in ("store", "volumes"):
            (folder / name).mkdir()
        self.traps = Traps(folder / "crash-points")
        self._monitor = f"http://127.0.0.1:{(port := free_port())}"
        options = {
            "backup": {"segment_size": SEGMENT, "pack_size": MIB, "lease_seconds": 4, "poll_seconds": 1},
            "store:main": {"path": folder / "store"},
            "volumes:local": {"volumes_dir": folder / "volumes"},
            "metrics": {"port": port},
        }
        self.service = Service(disk.point, options, environment=self.traps.environment)

    def health(self) -> dict[str, int]:
        """What the load balancer and whoever restarts the process are answered."""
        urls = [f"http://127.0.0.1:{self.service.port}/healthcheck"]
        urls += [f"{self._monitor}/{path}" for path in ("live", "ready")]
        return {url.rpartition("/")[2]: _status(url) for url in urls}


def _status(url: str) -> int:
    try:
        with urllib.request.urlopen(url, timeout=30) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        with error:
            return error.code


@pytest.fixture
def instance(disk: SmallDisk, tmp_path: Path) -> Iterator[Instance]:
    made = Instance(disk, tmp_path)
    made.service.start()
    try:
        yield made
    finally:
        made.service.stop()


def assert_answers(client: Client, backup: str, other_volume: str) -> None:
    """Reads are answered as ever; what would write is refused, and may be asked again."""
    for path in (f"/backups/{backup}", "/backups/detail", f"/backups/{backup}/export_record", "/volumes"):
        client.expect(200, "GET", path)
    for method, path, body in (
        ("POST", "/backups", {"backup": {"volume_id": other_volume}}),
        ("POST", f"/backups/{backup}/restore", {"restore": {}}),
        ("DELETE", f"/backups/{backup}", None),
        ("POST", "/volumes", {"volume": {"size": 1}}),
    ):
        answer = client.expect(503, method, path, body)
        assert "full" in answer["serviceUnavailable"]["message"]
    assert client.status("backup", backup) == "available"


def test_the_disk_of_the_database_is_full(instance: Instance, disk: SmallDisk, tmp_path: Path) -> None:
    """In the middle of a backup, which waits for room and then goes on."""
    service = instance.service
    client = service.client()
    image, other_image = tmp_path / "image.raw", tmp_path / "other.raw"
    write_image(image, 3 * SEGMENT)
    write_image(other_image, MIB)
    volume, other = client.adopt(image), client.adopt(other_image)
    earlier = client.backup(volume)
    assert instance.health() == READY

    instance.traps.set("backup.recorded", signal.SIGSTOP)
    waiting = client.backup(volume, wait=False)
    client.wait("the first segment", lambda: instance.traps.sprung("backup.recorded"))
    disk.fill()
    os.kill(service.pid, signal.SIGCONT)
    client.wait("the attempt's end", lambda: "could not be recorded" in service.log_tail(10_000))
    assert_answers(client, earlier, other)
    assert instance.health() == NOT_READY
    # Its lease runs out, and nobody can take it over.
    client.wait("the audit", lambda: "ran out" in service.command("audit", check=False).stdout)
    assert client.status("backup", waiting) == "creating"
    assert_answers(client, earlier, other)
    assert instance.health() == NOT_READY

    disk.make_room()
    client.wait("readiness", lambda: instance.health() == READY)
    client.wait_status("backup", waiting, "available")
    client.backup(other)
    for backup in (earlier, waiting):
        assert same_content(image, client.volume_path(client.restore(backup)), 3 * SEGMENT)
    assert service.command("audit").stdout.splitlines() == ["nothing wrong"]
    assert " 0 orphans " in service.command("sweep", "--dry-run").stdout

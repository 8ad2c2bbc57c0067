"""kill -9 of a worker at every crash point: another one goes on, and nothing is lost or left."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from backupfw import crash_points
from tests.integration.content import MIB, change_image, same_content, write_image
from tests.integration.faults.world import SECRET, Installation
from tests.integration.service import Client

pytestmark = pytest.mark.server

SEGMENTS = 8
STREAMS = 2


def at(task: str) -> list[str]:
    found = [name for name in crash_points.NAMES if name.startswith(f"{task}.")]
    assert found
    return found


class Killing:
    """Two workers; one that is killed comes back while the other takes over."""

    def __init__(self, installed: Installation) -> None:
        self.installed = installed
        for name in ("w1", "w2"):
            installed.start_worker(name, wait=False)
        for worker in installed.workers.values():
            worker.wait_ready()

    def arm(self, point: str) -> None:
        self.installed.traps.forget_reached()
        self.installed.traps.set(point)

    def died(self, point: str) -> None:
        """Wait for the kill, end what is left of that worker's host, and start it again."""
        dead = self.installed.wait_struck(point)
        dead.kill()
        (name,) = [name for name, worker in self.installed.workers.items() if worker is dead]
        self.installed.start_worker(name)


@pytest.fixture
def killing(installed: Installation) -> Killing:
    return Killing(installed)


def volume_of(client: Client, tmp_path: Path, seed: int) -> tuple[Path, str]:
    image = tmp_path / f"image{seed}.raw"
    write_image(image, SEGMENTS * MIB, seed)
    return image, client.adopt(image)


def test_backup(killing: Killing, tmp_path: Path) -> None:
    client = killing.installed.client()
    image, volume = volume_of(client, tmp_path, 1)
    previous = client.backup(volume)
    for number, point in enumerate(at("backup")):
        change_image(image, number)
        killing.arm(point)
        made = client.backup(volume, wait=False, incremental=bool(number % 2))
        killing.died(point)
        client.wait_status("backup", made, "available")
        assert client.status("volume", volume) == "available", point
        # A segment whose map was recorded is not put again: at most the one each stream was at when an
        # attempt ended.  That is one attempt, unless the machine stood still for longer than a lease.
        ended = killing.installed.traps.attempts("backup") - 1
        maps = Counter(
            line.split(" ")[2]
            for line in killing.installed.traps.reached()
            if line.startswith("backup.map-put ")
        )
        assert sum(maps.values()) - len(maps) <= STREAMS * ended, (point, maps)
        client.delete_backup(previous)
        previous = made
        target = client.restore(made)
        assert same_content(image, killing.installed.path_of(target), SEGMENTS * MIB), point
        client.expect(202, "DELETE", f"/volumes/{target}")
    killing.installed.audit()


def test_restore(killing: Killing, tmp_path: Path) -> None:
    client = killing.installed.client(SECRET)
    image, volume = volume_of(client, tmp_path, 1)
    dirty, target = volume_of(client, tmp_path, 2)
    backup = client.backup(volume)
    for number, point in enumerate(at("restore")):
        write_image(dirty, SEGMENTS * MIB, 100 + number)
        killing.arm(point)
        place = client.restore(backup, target if number % 2 else None, wait=False)
        killing.died(point)
        client.wait_status("backup", backup, "available")
        client.wait_status("volume", place, "available")
        assert same_content(image, killing.installed.path_of(place), SEGMENTS * MIB), point
        if place != target:
            client.expect(202, "DELETE", f"/volumes/{place}")
    killing.installed.audit()


def test_keys(killing: Killing, tmp_path: Path) -> None:
    """A worker is killed while it makes a data key, and the project's first key."""
    client = killing.installed.client(SECRET)
    for number, point in enumerate(at("key")):
        image, volume = volume_of(client, tmp_path, number)
        killing.arm(point)
        made = client.backup(volume, wait=False)
        killing.died(point)
        client.wait_status("backup", made, "available")
        change_image(image, number)
        later = client.backup(volume, incremental=True)
        client.delete_backup(made)
        assert same_content(image, killing.installed.path_of(client.restore(later)), SEGMENTS * MIB), point
        [(data_keys,)] = killing.installed.rows(
            "SELECT count(DISTINCT key_id) FROM manifests WHERE volume_id = :volume", volume=volume
        )
        assert data_keys == 1, point
    killing.installed.audit()


def test_the_last_encrypted_backup_of_a_volume(killing: Killing, tmp_path: Path) -> None:
    """A worker is killed between the rows of its data keys and the objects."""
    client = killing.installed.client(SECRET)
    _, volume = volume_of(client, tmp_path, 1)
    for point in at("keys"):
        doomed = client.backup(volume)
        killing.arm(point)
        client.expect(202, "DELETE", f"/backups/{doomed}")
        killing.died(point)
        client.wait_status("backup", doomed, None)
    # Nothing is left, data keys neither.
    killing.installed.audit()


def test_delete(killing: Killing, tmp_path: Path) -> None:
    client = killing.installed.client(SECRET)
    image, volume = volume_of(client, tmp_path, 1)
    client.backup(volume)
    for number, point in enumerate(at("delete")):
        change_image(image, number)
        doomed = client.backup(volume, incremental=True)
        change_image(image, number + 50)
        kept = client.backup(volume, incremental=True)
        killing.arm(point)
        client.expect(202, "DELETE", f"/backups/{doomed}")
        killing.died(point)
        client.wait_status("backup", doomed, None)
    assert same_content(image, killing.installed.path_of(client.restore(kept)), SEGMENTS * MIB)
    killing.installed.audit()


@pytest.mark.parametrize("database_server", ["mariadb"], indirect=True)
def test_some_crash_points_on_mariadb(killing: Killing, tmp_path: Path) -> None:
    """What follows a kill is the database's matter: the crash points at which its rows say most."""
    client = killing.installed.client()
    image, volume = volume_of(client, tmp_path, 1)
    client.backup(volume)
    for number, point in enumerate(("backup.recorded", "backup.manifest-put", "backup.committed")):
        change_image(image, number)
        killing.arm(point)
        made = client.backup(volume, wait=False, incremental=True)
        killing.died(point)
        client.wait_status("backup", made, "available")
    killing.arm("restore.checkpointed")
    target = client.restore(made, wait=False)
    killing.died("restore.checkpointed")
    client.wait_status("volume", target, "available")
    assert same_content(image, killing.installed.path_of(target), SEGMENTS * MIB)
    killing.arm("delete.removed")
    client.expect(202, "DELETE", f"/backups/{made}")
    killing.died("delete.removed")
    client.wait_status("backup", made, None)
    killing.installed.audit()


def test_import(killing: Killing, tmp_path: Path) -> None:
    client = killing.installed.client()
    _, volume = volume_of(client, tmp_path, 1)
    for point in at("import"):
        backup = client.backup(volume)
        record = client.expect(200, "GET", f"/backups/{backup}/export_record")["backup-record"]
        # As if the database had never known it: its record goes, its data stays.
        killing.installed.execute("DELETE FROM backups WHERE id = :id", id=backup)
        killing.installed.execute("DELETE FROM manifests WHERE backup_id = :id", id=backup)
        killing.arm(point)
        client.expect(201, "POST", "/backups/import_record", {"backup-record": record})
        killing.died(point)
        client.wait_status("backup", backup, "available")
        client.delete_backup(backup)
    killing.installed.audit()

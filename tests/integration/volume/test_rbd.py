"""The whole service with volumes in Ceph: what changed, what stays in the pool, and what others do to it."""

from __future__ import annotations

import json
import os
import random
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from backupfw_rbd.cluster import bindings
from backupfw_rbd.places import Place

from backupfw import crash_points
from tests.integration.service import Client, Service, running
from tests.integration.traps import Traps
from tests.servers import rbd_images
from tests.servers.ceph import Ceph

pytestmark = pytest.mark.server

MIB = 1 << 20
LENGTH = 64 * MIB
#: The objects of these images.
OBJECT = MIB
#: What a restart after a kill takes over at once.
HASTE = {"backup": {"lease_seconds": 2, "poll_seconds": 0.1, "verify_unchanged": 0}}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Ceph]:
    with rbd_images.running_cluster() as started:
        yield started


@pytest.fixture
def service(cluster: Ceph, tmp_path: Path, traps: Traps) -> Iterator[Service]:
    rbd = rbd_images.options(cluster, fence_wait=5, timeout=8, pools=rbd_images.POOL)
    options: dict[str, dict[str, Any]] = {
        "volumes": {"enabled": "rbd", "shared": True},
        "volumes:rbd": {"driver": "rbd", **rbd},
        **HASTE,
    }
    before = set(rbd_images.names(cluster))
    with running(tmp_path / "state", options, environment=traps.environment) as started:
        yield started
    for name in set(rbd_images.names(cluster)) - before:
        if "@" not in name and " " not in name:
            rbd_images.remove_image(cluster, Place.parse(name))


class Image:
    """An image of another program, with its bytes, and the volume that it is."""

    def __init__(self, cluster: Ceph, client: Client, *words: str, seed: int = 1, **how: Any) -> None:
        self.cluster = cluster
        self.client = client
        how.setdefault("order", 20)
        self.place = rbd_images.make_image(cluster, LENGTH, **how)
        self.bytes = bytearray(LENGTH)
        noise = random.Random(seed)
        with rbd_images.image(cluster, self.place) as image:
            for number in range(0, 64, 2):
                self.write(image, number * OBJECT, noise.randbytes(OBJECT))
        done = client.service.command("volume", "adopt", *words, str(self.place))
        self.volume = done.stdout.strip()

    def write(self, image: Any, offset: int, data: bytes) -> None:
        image.write(data, offset)
        self.bytes[offset : offset + len(data)] = data

    def change(self, seed: int) -> None:
        """Change two objects, and free one."""
        noise = random.Random(seed)
        with rbd_images.image(self.cluster, self.place) as image:
            for number in noise.sample(range(64), 2):
                self.write(image, number * OBJECT + 5, noise.randbytes(70_000))
            gone = noise.randrange(64) * OBJECT
            image.discard(gone, OBJECT)
            self.bytes[gone : gone + OBJECT] = bytes(OBJECT)

    def check(self, volume: str | None = None) -> None:
        """Fail unless a volume (this one) has these bytes."""
        path = self.client.service.command("volume", "path", volume or self.volume).stdout.strip()
        with rbd_images.image(self.cluster, path, write=False) as image:
            found = image.read(0, LENGTH)
        assert found == self.bytes

    def keeps(self, *backups: str) -> None:
        """Wait until there is nothing beside the image but a snapshot for each of these backups."""

        def settled() -> bool:
            left = {name for name in rbd_images.names(self.cluster) if name.startswith(str(self.place))}
            left.remove(str(self.place))
            return len(left) == len(backups) and all(
                any(f"@backup.{backup}.snap." in name for name in left) for backup in backups
            )

        self.client.wait(f"what is kept of {self.place} to be {backups}", settled)


def shown(service: Service, backup: str) -> dict[str, Any]:
    done = service.command("backup", "show", backup, "--format", "json")
    return dict(json.loads(done.stdout))


def test_a_chain_of_changes(cluster: Ceph, service: Service) -> None:
    client = service.client()
    image = Image(cluster, client)
    first = client.backup(image.volume)
    assert shown(service, first)["read_bytes"] == 32 * OBJECT
    image.change(1)
    second = client.backup(image.volume, incremental=True)
    told = shown(service, second)
    assert told["comparison"] == "changed blocks by token"
    # Blocks of 64 KiB that were touched, of the objects that changed.
    assert told["read_bytes"] <= 2 * OBJECT
    third = client.backup(image.volume, incremental=True)
    assert shown(service, third)["read_bytes"] == 0
    image.keeps(third)
    client.delete_backup(first)
    image.check(client.restore(third))
    # Over an existing volume, whose next backup sees what the restore wrote.
    kept = bytes(image.bytes)
    image.change(2)
    assert bytes(image.bytes) != kept
    client.restore(third, image.volume)
    image.bytes = bytearray(kept)
    image.check()
    fourth = client.backup(image.volume, incremental=True)
    assert shown(service, fourth)["comparison"] == "changed blocks by token"
    image.check(client.restore(fourth))
    listed = json.loads(service.command("volume", "adoptable", "rbd", "--format", "json").stdout)
    assert {row["path"]: row["volume"] for row in listed}[str(image.place)] == image.volume
    for backup in (second, third, fourth):
        client.delete_backup(backup)
    image.keeps()
    assert service.command("audit").stdout.strip() == "nothing wrong"


def test_a_writer_that_goes_on(cluster: Ceph, service: Service) -> None:
    """Two counters, the second one written after the first, are of one moment in every backup."""
    client = service.client()
    image = Image(cluster, client, "--in-use")
    stop = threading.Event()

    def count() -> None:
        with rbd_images.image(cluster, image.place) as found:
            number = 0
            while not stop.is_set():
                number += 1
                found.write(number.to_bytes(8, "big"), 0)
                found.write(number.to_bytes(8, "big"), LENGTH - 8)

    writer = threading.Thread(target=count)
    writer.start()
    try:
        backups = [client.backup(image.volume, force=True, incremental=bool(turn)) for turn in range(3)]
        # A restore cannot push the writer out.
        answer = client.request(
            "POST", f"/backups/{backups[0]}/restore", {"restore": {"volume_id": image.volume}}
        )
        assert answer[0] == 400
    finally:
        stop.set()
        writer.join()
    for backup in backups:
        path = service.command("volume", "path", client.restore(backup)).stdout.strip()
        with rbd_images.image(cluster, path, write=False) as found:
            first, second = (int.from_bytes(found.read(at, 8), "big") for at in (0, LENGTH - 8))
        assert second <= first <= second + 1


def test_without_an_object_map(cluster: Ceph, service: Service) -> None:
    client = service.client()
    image = Image(cluster, client)
    client.backup(image.volume)
    with rbd_images.image(cluster, image.place) as found:
        # As an older client does that does not know the object map.
        _, rbd = bindings()
        found.update_features(rbd.RBD_FEATURE_FAST_DIFF | rbd.RBD_FEATURE_OBJECT_MAP, False)
        image.write(found, 2 * OBJECT, b"changed")
    second = client.backup(image.volume, incremental=True)
    assert shown(service, second)["read_bytes"] <= OBJECT
    assert "no valid object map" in service.log_tail(400)
    image.check(client.restore(second))


def test_a_removed_base_is_told(cluster: Ceph, service: Service) -> None:
    client = service.client()
    image = Image(cluster, client)
    client.backup(image.volume)
    with rbd_images.image(cluster, image.place) as found:
        for snapshot in list(found.list_snaps()):
            found.remove_snap(snapshot["name"])
    image.change(1)
    second = client.backup(image.volume, incremental=True)
    told = shown(service, second)["comparison"]
    assert told == "whole comparison: the token no longer holds, its snapshot was removed"
    image.check(client.restore(second))


def service_signal(service: Service, number: signal.Signals) -> None:
    os.kill(service.pid, number)


def test_the_snapshot_that_is_read_is_removed(cluster: Ceph, service: Service, traps: Traps) -> None:
    """The bytes that were read count for nothing, and another snapshot is taken."""
    client = service.client()
    image = Image(cluster, client)
    traps.set("backup.map-put", signal.SIGSTOP)
    begun = threading.Thread(target=lambda: made.append(client.backup(image.volume)))
    made: list[str] = []
    begun.start()
    client.wait("the crash point", lambda: traps.sprung("backup.map-put"))
    with rbd_images.image(cluster, image.place) as found:
        for snapshot in list(found.list_snaps()):
            found.remove_snap(snapshot["name"])
        for number in range(0, 64, 2):
            image.write(found, number * OBJECT, b"other bytes")
    service_signal(service, signal.SIGCONT)
    begun.join()
    image.check(client.restore(made[0]))


def test_the_image_is_deleted_in_the_middle(cluster: Ceph, service: Service, traps: Traps) -> None:
    client = service.client()
    image = Image(cluster, client)
    # Later points may come when all of it has been read.
    traps.set("backup.opened", signal.SIGSTOP)
    made: list[str] = []
    body = {"backup": {"volume_id": image.volume}}
    begun = threading.Thread(
        target=lambda: made.append(client.expect(202, "POST", "/backups", body)["backup"]["id"])
    )
    begun.start()
    client.wait("the crash point", lambda: traps.sprung("backup.opened"))
    rbd_images.remove_image(cluster, image.place)
    service_signal(service, signal.SIGCONT)
    begun.join()
    client.wait_status("backup", made[0], "error")
    reason = shown(service, made[0])["fail_reason"]
    assert "is gone" in reason
    assert rbd_images.POOL not in reason


def test_the_cluster_is_away_for_a_while(cluster: Ceph, service: Service) -> None:
    client = service.client()
    image = Image(cluster, client)
    first = client.backup(image.volume)
    image.change(1)
    cluster.osd.send_signal(signal.SIGSTOP)
    try:
        second = client.backup(image.volume, wait=False, incremental=True)
        time.sleep(10)
        assert client.status("backup", second) == "creating"
    finally:
        cluster.osd.send_signal(signal.SIGCONT)
    client.wait_status("backup", second, "available")
    client.delete_backup(first)
    image.check(client.restore(second))


POINTS = [name for name in crash_points.NAMES if name.startswith(("backup.", "restore."))]
#: Those at which most is at stake; all others are tried by make soak.
QUICK = ("backup.opened", "backup.manifest-put", "backup.committed", "restore.made", "restore.flushed")


@pytest.mark.parametrize(
    "points", [QUICK, pytest.param([name for name in POINTS if name not in QUICK], marks=pytest.mark.soak)]
)
def test_kill_at_every_step(cluster: Ceph, service: Service, traps: Traps, points: list[str]) -> None:
    client = service.client()
    image = Image(cluster, client)
    target = Image(cluster, client, seed=2)
    last = client.backup(image.volume)
    for number, point in enumerate(points):
        image.change(number)
        traps.set(point)
        is_backup = point.startswith("backup.")
        try:
            if is_backup:
                last = client.backup(image.volume, wait=False, incremental=True)
            else:
                last = client.backup(image.volume, incremental=True)
                place = client.restore(last, target.volume if number % 2 else None, wait=False)
        except (OSError, AssertionError):
            pytest.fail(f"no answer at {point}")
        client.wait(f"crash point {point}", lambda point=point: traps.sprung(point))
        service.kill()
        service.start()
        if not is_backup:
            client.wait_status("backup", last, "available")
            client.wait_status("volume", place, "available")
            image.check(place)
        client.wait_status("backup", last, "available")
        assert client.status("volume", image.volume) == "available"
    image.check(client.restore(last))
    image.keeps(last)
    client.delete_backup(last)
    image.keeps()
    target.keeps()

"""The whole service with disks of running machines: what changed, what stays in QEMU, restores to images."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from backupfw import crash_points
from tests.integration.service import Client, Service, running
from tests.integration.traps import Traps
from tests.servers.qemu import Machine, machine, qemu_missing, run

pytestmark = pytest.mark.server

MIB = 1 << 20
LENGTH = 64 * MIB
GRAIN = 64 << 10
#: What a restart after a kill takes over at once.
HASTE = {"backup": {"lease_seconds": 2, "poll_seconds": 0.1, "verify_unchanged": 0}}


@pytest.fixture(scope="module")
def vm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    if missing := qemu_missing():
        pytest.skip(missing)
    with machine(tmp_path_factory.mktemp("vm")) as started:
        yield started


@pytest.fixture
def service(vm: Machine, tmp_path: Path, traps: Traps) -> Iterator[Service]:
    options: dict[str, dict[str, Any]] = {
        "volumes": {"enabled": "local, machines"},
        "volumes:machines": {"driver": "qemu", "scratch_dir": str(vm.scratch), "timeout": 20},
        **HASTE,
    }
    with running(tmp_path / "state", options, environment=traps.environment) as started:
        yield started


class Disk:
    """A disk of the machine, with its bytes, and the volume that it is."""

    def __init__(self, vm: Machine, client: Client, seed: int = 1) -> None:
        self.vm = vm
        self.client = client
        self.node = vm.add_disk(LENGTH)
        self.bytes = bytearray(LENGTH)
        noise = random.Random(seed)
        for number in range(0, 64, 4):
            self.write(number * MIB, noise.randbytes(MIB))
        words = ("volume", "adopt", "--backend", "machines", vm.location(self.node))
        self.volume = client.service.command(*words).stdout.strip()

    def write(self, offset: int, data: bytes) -> None:
        self.vm.write(self.node, offset, data)
        self.bytes[offset : offset + len(data)] = data

    def change(self, seed: int, count: int = 5) -> None:
        """Change ``count`` ranges, and discard one."""
        noise = random.Random(seed)
        for number in noise.sample(range(LENGTH // GRAIN), count):
            self.write(number * GRAIN, noise.randbytes(GRAIN))
        gone = noise.randrange(64) * MIB
        self.vm.io(self.node, f"write -q -z -u {gone} {MIB}")
        self.bytes[gone : gone + MIB] = bytes(MIB)

    def keeps(self, *backups: str) -> None:
        """Wait until there is nothing of ours in QEMU but a bitmap for each of these backups."""

        def settled() -> bool:
            left = [name for name in self.vm.names() if "backupfw-" in name]
            return len(left) == len(backups) and all(
                any(name.startswith(f"bitmap backupfw-{backup}-") for name in left) for backup in backups
            )

        self.client.wait(f"what is kept to be {backups}", settled)


@pytest.fixture
def disk(vm: Machine, service: Service) -> Iterator[Disk]:
    made = Disk(vm, service.client())
    yield made
    vm.remove_disk(made.node)


def shown(service: Service, backup: str) -> dict[str, Any]:
    return dict(json.loads(service.command("backup", "show", backup, "--format", "json").stdout))


def restored(service: Service, backup: str, place: Path) -> bytes:
    """Restore to a qcow2 image, and return the disk in it."""
    place.unlink(missing_ok=True)
    service.command("backup", "restore", backup, "--to", str(place))
    raw = place.with_suffix(".raw")
    run("qemu-img", "convert", "-f", "qcow2", "-O", "raw", place, raw)
    return raw.read_bytes()


def test_a_chain_of_changes(vm: Machine, service: Service, disk: Disk, tmp_path: Path) -> None:
    client = disk.client
    first = client.backup(disk.volume)
    assert shown(service, first)["read_bytes"] == 16 * MIB
    disk.keeps(first)
    disk.change(1)
    second = client.backup(disk.volume, incremental=True)
    told = shown(service, second)
    assert told["comparison"] == "changed blocks by token"
    assert told["read_bytes"] <= 1.1 * 5 * GRAIN
    disk.keeps(second)
    as_of_second = bytes(disk.bytes)
    # The machine is switched off and on again: bitmaps of qcow2 disks stay.
    vm.stop()
    vm.start()
    disk.change(2)
    third = client.backup(disk.volume, incremental=True)
    assert shown(service, third)["comparison"] == "changed blocks by token"
    client.delete_backup(first)
    assert restored(service, second, tmp_path / "second.qcow2") == as_of_second
    assert restored(service, third, tmp_path / "third.qcow2") == disk.bytes
    # Into the image of a machine that is off, and to a new volume.
    run("qemu-img", "create", "-q", "-f", "qcow2", tmp_path / "off.qcow2", LENGTH)
    target = client.service.command("volume", "adopt", "--backend", "local", str(tmp_path / "off.qcow2"))
    client.service.command("backup", "restore", third, "--volume", target.stdout.strip())
    run("qemu-img", "convert", "-f", "qcow2", "-O", "raw", tmp_path / "off.qcow2", tmp_path / "off.raw")
    assert (tmp_path / "off.raw").read_bytes() == disk.bytes
    disk.keeps(third)


def test_a_machine_that_crashed_is_read_as_a_whole(
    vm: Machine, service: Service, disk: Disk, tmp_path: Path
) -> None:
    disk.client.backup(disk.volume)
    disk.change(1)
    vm.io(disk.node, "flush")
    vm.stop(kill=True)
    vm.start()
    disk.change(2)
    second = disk.client.backup(disk.volume, incremental=True)
    assert shown(service, second)["comparison"].startswith("whole comparison: the token no longer holds")
    assert restored(service, second, tmp_path / "second.qcow2") == disk.bytes
    disk.keeps(second)


def test_what_is_left_in_a_machine_that_is_off_goes_when_it_runs_again(
    vm: Machine, service: Service, disk: Disk
) -> None:
    backup = disk.client.backup(disk.volume)
    disk.keeps(backup)
    vm.stop()
    disk.client.delete_backup(backup)
    # It was looked for there, in vain.
    disk.client.wait("the removal to fail", lambda: " failed, trying again" in service.log_tail(1000))
    vm.start()
    disk.keeps()


def test_a_killed_worker_leaves_nothing_and_loses_nothing(
    vm: Machine, service: Service, disk: Disk, traps: Traps, tmp_path: Path
) -> None:
    last = disk.client.backup(disk.volume)
    for number, name in enumerate(name for name in crash_points.NAMES if name.startswith("backup.")):
        disk.change(2 * number)
        before = bytes(disk.bytes)
        traps.set(name)
        backup = disk.client.backup(disk.volume, wait=False, incremental=True)
        disk.client.wait(f"{name} to be reached", lambda name=name: traps.sprung(name))
        service.kill()
        disk.change(2 * number + 1)
        if name in ("backup.begun", "backup.planned"):
            # There was no point yet, else it is of the moment before.
            before = bytes(disk.bytes)
        service.start()
        disk.client.wait_status("backup", backup, "available")
        assert restored(service, backup, tmp_path / "backup.qcow2") == before, name
        disk.keeps(backup)
        disk.client.delete_backup(last)
        last = backup
    last = disk.client.backup(disk.volume, incremental=True)
    assert shown(service, last)["comparison"] == "changed blocks by token"
    assert restored(service, last, tmp_path / "last.qcow2") == disk.bytes


def test_a_backup_that_fails_loses_no_change(
    vm: Machine, service: Service, disk: Disk, tmp_path: Path
) -> None:
    disk.client.backup(disk.volume)
    disk.change(1)
    second = disk.client.backup(disk.volume, wait=False, incremental=True)
    disk.client.request("POST", f"/backups/{second}/action", {"os-force_delete": {}})
    disk.client.wait_status("backup", second, None)
    disk.change(2)
    third = disk.client.backup(disk.volume, incremental=True)
    assert restored(service, third, tmp_path / "third.qcow2") == disk.bytes
    disk.keeps(third)

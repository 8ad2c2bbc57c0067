"""How devices are known again, on directories that look like the kernel's."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from backupfw.volume.local import storage_id
from backupfw.volume.local.storage_id import StorageId

DISK, PARTITION = os.makedev(8, 0), os.makedev(8, 1)


class Kernel:
    """What the kernel shows of one disk with one partition."""

    def __init__(self, root: Path) -> None:
        self.devices, self.boot = root / "dev", root / "boot_id"
        self.disk = root / "sda"
        self.partition = self.disk / "sda1"
        self.partition.mkdir(parents=True)
        self.devices.mkdir()
        (self.devices / "8:0").symlink_to(self.disk)
        (self.devices / "8:1").symlink_to(self.partition)
        self.show("sda/sda1/partition", "1\n")
        self.show("sda/sda1/start", "2048\n")
        self.boot.write_text("11111111-2222\n")

    def show(self, name: str, text: str) -> None:
        path = self.disk.parent / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


@pytest.fixture
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Kernel:
    kernel = Kernel(tmp_path)
    monkeypatch.setattr(storage_id, "_DEVICES", str(kernel.devices))
    monkeypatch.setattr(storage_id, "_BOOT", str(kernel.boot))
    return kernel


@pytest.mark.parametrize(
    ("path", "text", "name"),
    [
        ("dm/uuid", "LVM-abc\n", "LVM-abc"),
        ("wwid", "naa.5000  c5\n", "naa.5000_c5"),
        ("device/wwid", "t10.ATA\n", "t10.ATA"),
        ("md/uuid", "a:b:c\n", "md:a:b:c"),
        ("device/cid", "1501\n", "cid:1501"),
        ("serial", "disk-1\n", "serial:disk-1"),
        ("device/serial", "S1\n", "serial:S1"),
        ("loop/backing_file", "/images/a disk.raw\n", "loop:/images/a_disk.raw"),
    ],
)
def test_a_device_with_a_name_is_that_name_wherever_it_is(
    kernel: Kernel, path: str, text: str, name: str
) -> None:
    kernel.show(f"sda/{path}", text)
    found = StorageId.of_device(DISK)
    assert found.name == name
    assert StorageId.of_device(PARTITION).name == f"{name}-part1@2048"
    (kernel.devices / "65:16").symlink_to(kernel.disk)
    kernel.boot.write_text("33333333-4444\n")
    moved = StorageId.of_device(os.makedev(65, 16))
    assert moved.is_same(found)
    assert StorageId.parse(str(moved)) == moved
    kernel.show(f"sda/{path}", "another\n")
    assert StorageId.of_device(DISK).is_another(found)


def test_a_partition_that_begins_elsewhere_is_another_one(kernel: Kernel) -> None:
    kernel.show("sda/wwid", "naa.1")
    found = StorageId.of_device(PARTITION)
    kernel.show("sda/sda1/start", "4096\n")
    assert StorageId.of_device(PARTITION).is_another(found)


def test_names_of_any_length_fit_and_differ(kernel: Kernel) -> None:
    found = []
    for end in "ab":
        kernel.show("sda/loop/backing_file", "/x" * 2000 + end)
        kernel.show("sda/loop/offset", "1048576")
        found.append(StorageId.of_device(DISK))
        assert len(str(found[-1])) <= 255
    assert found[0].is_another(found[1])


def test_a_device_without_a_name_is_certain_only_until_the_next_start(kernel: Kernel) -> None:
    found = StorageId.of_device(DISK)
    assert StorageId.of_device(DISK).is_same(found)
    for other in (StorageId.of_device(PARTITION), StorageId("device", "-", "naa.1", "8:0")):
        assert not other.is_same(found)
        assert not other.is_another(found), "it may be, under another number"
    kernel.boot.write_text("33333333-4444\n")
    again = StorageId.of_device(DISK)
    assert not again.is_same(found)
    assert not again.is_another(found)
    # As an earlier release recorded it.
    assert not again.is_same(StorageId("device", "-", "-", "8:0"))


@pytest.mark.parametrize("device", [DISK, PARTITION])
def test_a_device_without_a_name_is_not_the_next_one_with_its_number(kernel: Kernel, device: int) -> None:
    """Ceph's images, for one, have no name, and the next that is mapped gets the number of the last."""
    kernel.show("sda/diskseq", "17\n")
    found = StorageId.of_device(device)
    assert StorageId.parse(str(found)) == found
    assert StorageId.of_device(device).is_same(found)
    kernel.show("sda/diskseq", "18\n")
    mapped_again = StorageId.of_device(device)
    assert not mapped_again.is_same(found)
    assert not mapped_again.is_another(found), "it may be the same image"


def test_a_file_is_never_a_device(kernel: Kernel, tmp_path: Path) -> None:
    with open(tmp_path / "file", "wb") as file:
        assert StorageId.of(file.fileno()).is_another(StorageId.of_device(DISK))

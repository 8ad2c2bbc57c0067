"""Block devices as volumes, on loop devices."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from unittest import mock

import pytest
from hypothesis import given, settings

from backupfw.errors import (
    InvalidInput,
    OperationNotSupported,
    SourceMoved,
    StorageChanged,
    TargetError,
    TaskLost,
)
from backupfw.volume.base import SnapshotRef, VolumeRef
from backupfw.volume.local import linux
from backupfw.volume.local.opening import open_storage
from backupfw.volume.local.provider import LocalProvider
from backupfw.volume.local.storage_id import StorageId
from tests.integration.volume.mounts import loop_device, need, run
from tests.unit.volume.fence_helpers import freeze, writer_process
from tests.unit.volume.helpers import (
    Step,
    data_of,
    make_provider,
    play_on_target,
    read_all,
    steps,
    take_snapshot,
)

pytestmark = pytest.mark.root

LENGTH = 1 << 20


@pytest.fixture(scope="module")
def device(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    need()
    backing = tmp_path_factory.mktemp("device") / "backing"
    backing.write_bytes(bytes(LENGTH))
    with loop_device(backing) as name:
        yield name


@pytest.fixture
def provider(tmp_path: Path) -> LocalProvider:
    return make_provider(tmp_path)


@pytest.fixture
def volume(provider: LocalProvider, device: str) -> VolumeRef:
    found = provider.adopt(device)
    assert (found.location, found.length) == (device, LENGTH)
    return VolumeRef("v", LENGTH, device, True, found.storage_id)


def fill(device: str, content: bytes | bytearray) -> None:
    with open(device, "r+b") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def on_the_device(device: str) -> bytes:
    """Read past the page cache of the device."""
    run("blockdev", "--flushbufs", device)
    with open(device, "rb") as file:
        return file.read()


@pytest.mark.parametrize("methods", ["punch", "zeroout", "write"])
@settings(max_examples=25, deadline=None)
@given(history=steps(LENGTH, ("write", "zero", "zero"), longest=200_000))
def test_writes_and_zeros_land_where_they_should(
    device: str, tmp_path_factory: pytest.TempPathFactory, methods: str, history: list[Step]
) -> None:
    provider = make_provider(tmp_path_factory.mktemp("v"))
    refuse = mock.Mock(side_effect=OSError(95, "no"))
    volume = VolumeRef("v", LENGTH, device, adopted=True)
    model = bytearray(os.urandom(LENGTH))
    fill(device, model)
    with (
        mock.patch.object(linux, "punch_hole", linux.punch_hole if methods == "punch" else refuse),
        mock.patch.object(linux, "zero_device", refuse if methods == "write" else linux.zero_device),
        provider.open_target(volume, 1) as target,
    ):
        assert not target.reads_zero
        play_on_target(target, model, history)
        # As others see it meanwhile: a source would want the device for itself.
        with open(device, "rb") as file:
            assert file.read() == model
        target.flush()
    assert on_the_device(device) == model


def test_a_zeroed_range_is_given_back_to_thin_storage(provider: LocalProvider, tmp_path: Path) -> None:
    need()
    backing = tmp_path / "backing"
    backing.write_bytes(os.urandom(LENGTH))
    with (
        loop_device(backing) as name,
        provider.open_target(VolumeRef("v", LENGTH, name, adopted=True), 1) as target,
    ):
        target.zero(1000, LENGTH - 2000)
        target.flush()
    assert os.stat(backing).st_blocks * 512 <= LENGTH // 8


def test_sectors_of_4096_bytes(provider: LocalProvider, tmp_path: Path) -> None:
    need()
    backing = tmp_path / "backing"
    model = bytearray(os.urandom(LENGTH))
    backing.write_bytes(model)
    with loop_device(backing, "-b", "4096") as name:
        volume = VolumeRef("v", LENGTH, name, adopted=True)
        with provider.open_target(volume, 1) as target:
            play_on_target(target, model, [("zero", 513, 70_001, 0), ("write", 4095, 2, 7)])
            target.flush()
        assert on_the_device(name) == model
        assert read_all(provider, take_snapshot(provider, volume, "s", in_use=True)) == model


def test_a_device_has_all_of_its_range_as_data(provider: LocalProvider, volume: VolumeRef) -> None:
    with provider.open_point(volume, "p") as source:
        assert data_of(source, 0, LENGTH) == [(0, LENGTH)]
        assert data_of(source, 5, 4097) == [(5, 4092)]


def test_a_device_is_distrusted_by_the_next_run(
    provider: LocalProvider, volume: VolumeRef, tmp_path: Path
) -> None:
    def identity(of: LocalProvider) -> str:
        with of.open_point(volume, "p") as source:
            return source.identity

    assert identity(provider) == identity(provider)
    assert identity(make_provider(tmp_path)) != identity(provider)


@pytest.mark.parametrize("in_use", [False, True])
def test_a_snapshot_of_a_device_is_a_sparse_copy(
    provider: LocalProvider, volume: VolumeRef, device: str, in_use: bool
) -> None:
    content = os.urandom(70_000) + bytes(LENGTH - 70_000)
    fill(device, content)
    snapshot = take_snapshot(provider, volume, "s", in_use)
    fill(device, bytes(LENGTH))
    assert read_all(provider, snapshot) == content
    assert os.stat(provider.where(snapshot)).st_blocks * 512 <= 3 << 16


def test_a_device_that_is_written_is_refused_or_still(
    provider: LocalProvider, volume: VolumeRef, device: str
) -> None:
    fd = os.open(device, os.O_RDWR)
    numbers = itertools.count(1)
    ref = SnapshotRef("s", volume, LENGTH)

    def write() -> None:
        os.pwrite(fd, next(numbers).to_bytes(8, "big"), 0)

    with pytest.raises(SourceMoved):
        provider.create_snapshot(ref, True, write)
    left = [2]

    def write_twice() -> None:
        if left[0]:
            left[0] -= 1
            write()

    provider.create_snapshot(ref, True, write_twice)
    assert Path(provider.where(ref)).read_bytes() == on_the_device(device)
    os.close(fd)


def test_adopting_devices(
    provider: LocalProvider, device: str, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    link = tmp_path / "link"
    link.symlink_to(device)
    # A link that anybody can turn is followed once; one below /dev is the lasting name of the disk.
    assert provider.adopt(str(link)).location == device
    lasting = Path("/dev") / f"backupfw-test-{os.getpid()}"
    lasting.symlink_to(device)
    try:
        found = provider.adopt(str(lasting))
        assert (found.location, found.length) == (str(lasting), LENGTH)
        with provider.open_target(VolumeRef("v", LENGTH, str(lasting), adopted=True), 1) as target:
            target.write(0, [b"x"])
    finally:
        lasting.unlink()
    with pytest.raises(InvalidInput, match="allow_devices"):
        make_provider(tmp_path, allow_devices=False).adopt(device)
    backing = tmp_path / "ro"
    backing.write_bytes(b"x" * LENGTH)
    with loop_device(backing, "-r") as name, pytest.raises(InvalidInput, match=r"read-only|read and written"):
        provider.adopt(name)
    backing.write_bytes(b"QFI\xfb" + bytes(LENGTH - 4))
    with loop_device(backing) as name, pytest.raises(InvalidInput, match="qcow2"):
        provider.adopt(name)


def test_a_device_grows_only_outside(provider: LocalProvider, tmp_path: Path) -> None:
    need()
    backing = tmp_path / "backing"
    backing.write_bytes(b"x" * LENGTH)
    with loop_device(backing) as name:
        volume = VolumeRef("v", LENGTH, name, adopted=True)
        with pytest.raises(OperationNotSupported, match="extend the device first"):
            provider.extend(volume, 2 * LENGTH)
        with pytest.raises(StorageChanged, match="shorter"):
            provider.open_target(VolumeRef("v", 2 * LENGTH, name, adopted=True), 1)
        os.truncate(backing, 2 * LENGTH)
        run("losetup", "-c", name)
        provider.extend(volume, 2 * LENGTH)
        grown = VolumeRef("v", 2 * LENGTH, name, adopted=True)
        assert read_all(provider, grown) == b"x" * LENGTH + bytes(LENGTH)
        # Made from a device, with a tail of its own.
        copy = VolumeRef("w", 2 * LENGTH + 5)
        provider.create(copy, grown)
        assert read_all(provider, copy) == b"x" * LENGTH + bytes(LENGTH + 5)


def test_a_frozen_writer_of_a_device_is_killed(
    provider: LocalProvider, volume: VolumeRef, tmp_path: Path
) -> None:
    with writer_process(tmp_path, volume, attempt=1) as process:
        freeze(process)
        with pytest.raises(TargetError):
            make_provider(tmp_path, fence_kill=False).open_target(volume, 2)
        with provider.open_target(volume, 2) as target:
            assert process.wait(10) == -9
            target.write(0, [b"mine"])
            with pytest.raises(TargetError):
                provider.open_target(volume, 2)
            with provider.open_target(volume, 3), pytest.raises(TaskLost):
                target.write(0, [b"stale"])
    with open(provider.where(volume), "rb") as file:
        assert file.read(4) == b"mine"


def test_a_device_that_somebody_else_uses_is_refused(provider: LocalProvider, volume: VolumeRef) -> None:
    code = "import os, sys; os.open(sys.argv[1], os.O_RDWR | os.O_EXCL); print(flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", code, provider.where(volume)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        with pytest.raises(TargetError, match="in use"):
            provider.open_target(volume, 9)
        process.communicate(b"\n")
    with provider.open_target(volume, 1):
        pass


def test_a_device_that_is_mounted_is_one_in_use(tmp_path: Path) -> None:
    need("mkfs.ext4")
    backing = tmp_path / "backing"
    with open(backing, "wb") as file:
        file.truncate(16 << 20)
    run("mkfs.ext4", "-q", "-F", str(backing))
    point = tmp_path / "point"
    point.mkdir()
    provider = make_provider(tmp_path)
    with loop_device(backing) as name:
        run("mount", "-o", "ro,noload", name, str(point))
        try:
            for to_copy in (False, True):
                with pytest.raises(InvalidInput, match=r"is mounted or held by another program.*--in-use"):
                    provider.adopt(name, to_copy=to_copy)
            found = provider.adopt(name, in_use=True)
            volume = VolumeRef("v", found.length, name, True, found.storage_id)
            for attempt in (
                lambda: provider.open_point(volume, "p"),
                lambda: provider.create(VolumeRef("w", found.length), volume),
            ):
                with pytest.raises(SourceMoved, match="mounted"):
                    attempt()
            # Nobody writes just now: a copy can be proven still, also where nobody said that it is in use.
            for in_use in (True, False):
                snapshot = take_snapshot(provider, volume, f"s-{in_use}".lower(), in_use)
                assert read_all(provider, snapshot) == on_the_device(name)
        finally:
            run("umount", str(point))
        with provider.open_point(volume, "p"):
            # It cannot be mounted while it is read as one that is not in use.
            assert subprocess.run(["mount", name, str(point)], capture_output=True).returncode != 0


@pytest.mark.parametrize("inode_size", ["128", "256"], ids=["without-births", "with-births"])
def test_a_file_is_known_again_when_its_disk_got_another_number(tmp_path: Path, inode_size: str) -> None:
    need("mkfs.ext4")
    backing, point = tmp_path / "backing", tmp_path / "point"
    point.mkdir()
    backing.write_bytes(b"")
    os.truncate(backing, 16 << 20)
    run("mkfs.ext4", "-q", "-F", "-I", inode_size, str(backing))
    image = point / "image.raw"

    def mounted_look(device: str, content: bytes | None = None) -> StorageId:
        run("mount", device, str(point))
        try:
            if content is not None:
                image.write_bytes(content)
            opened = open_storage(str(image))
            os.close(opened.fd)
            return opened.storage_id
        finally:
            run("umount", str(point))

    with loop_device(backing) as device, loop_device(backing) as other:
        before = mounted_look(device, b"x")
        assert os.stat(device).st_rdev != os.stat(other).st_rdev
        assert mounted_look(other).is_same(before)


def test_a_device_that_nothing_distinguishes_from_another_is_read_and_not_written(
    provider: LocalProvider, volume: VolumeRef
) -> None:
    before_the_start = replace(volume, storage_id="device - - 7:0@00000000")
    with provider.open_point(before_the_start, "p"):
        pass
    with pytest.raises(StorageChanged, match="without a name of its own"):
        provider.open_target(before_the_start, 1)
    with provider.open_target(volume, 1):
        pass


def test_of_links_to_a_device_the_first_name_below_dev_is_kept(
    provider: LocalProvider, device: str, tmp_path: Path
) -> None:
    lasting = Path(f"/dev/backupfw-test-{os.getpid()}")
    inner, outer = tmp_path / "inner", tmp_path / "outer"
    lasting.symlink_to(os.path.basename(device))
    try:
        inner.symlink_to(lasting)
        outer.symlink_to("inner")
        assert provider.adopt(str(outer)).location == str(lasting)
    finally:
        lasting.unlink()

"""Snapshots of images that another process writes without a pause."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from backupfw.errors import InvalidInput, SourceMoved
from backupfw.volume.base import SnapshotRef, VolumeRef
from backupfw.volume.local import linux
from backupfw.volume.local.provider import LocalProvider
from tests.integration.volume.mounts import mounted, need, run
from tests.unit.volume.helpers import make_provider, new_volume, read_all, take_snapshot

pytestmark = pytest.mark.root

LENGTH = 24 << 20
SECOND = LENGTH - 8
ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def xfs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    need("mkfs.xfs")
    with mounted(tmp_path_factory.mktemp("xfs"), "mkfs.xfs", "-q", "-m", "reflink=1") as point:
        yield point


@pytest.fixture(scope="module")
def ext4(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    need("mkfs.ext4")
    with mounted(tmp_path_factory.mktemp("ext4"), "mkfs.ext4", "-q", "-F") as point:
        yield point


@contextlib.contextmanager
def writing(path: str, how: str) -> Iterator[subprocess.Popen[bytes]]:
    """Let another process write."""
    arguments = [path, "0", str(SECOND), how]
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.integration.volume.counter_writer", *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        yield process
    finally:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


def counters(provider: LocalProvider, ref: SnapshotRef) -> tuple[int, int]:
    with provider.open_point(ref, "p") as source:
        buffer = bytearray(16)
        source.read_into(0, memoryview(buffer)[:8])
        source.read_into(SECOND, memoryview(buffer)[8:])
    return int.from_bytes(buffer[:8], "big"), int.from_bytes(buffer[8:], "big")


def blocks(provider: LocalProvider, ref: VolumeRef | SnapshotRef) -> int:
    return os.stat(provider.where(ref)).st_blocks


@pytest.mark.parametrize("how", ["pwrite", "mmap"])
def test_a_reflink_snapshot_is_of_one_moment(xfs: Path, how: str) -> None:
    provider = make_provider(xfs)
    volume = new_volume(provider, f"v-{how}", os.urandom(LENGTH - 8) + bytes(8))
    with open(provider.where(volume), "r+b") as file:
        file.write(bytes(8))
    seen = []
    with writing(provider.where(volume), how):
        for number in range(40):
            snapshot = take_snapshot(provider, volume, f"s-{how}-{number}", in_use=True)
            first, second = counters(provider, snapshot)
            seen.append(first)
            # The second place is never ahead of the first, nor more than one behind.
            assert second <= first <= second + 1
            provider.delete_snapshot(snapshot)
    assert seen == sorted(seen)
    assert len(set(seen)) > 10
    provider.delete(volume)


def test_a_reflink_snapshot_and_volume_take_no_space(xfs: Path) -> None:
    provider = make_provider(xfs)
    content = os.urandom(LENGTH)
    volume = new_volume(provider, "v", content)
    os.sync()
    free = os.statvfs(xfs).f_bfree
    snapshot = take_snapshot(provider, volume, "s", in_use=False)
    location = provider.create(VolumeRef("w", LENGTH + 4097), snapshot)
    os.sync()
    assert (free - os.statvfs(xfs).f_bfree) * os.statvfs(xfs).f_frsize < LENGTH // 4
    assert read_all(provider, VolumeRef("w", LENGTH + 4097, location)) == content + bytes(4097)
    for ref in (volume, VolumeRef("w", 1, location)):
        provider.delete(ref)
    assert read_all(provider, snapshot) == content
    provider.delete_snapshot(snapshot)


@pytest.mark.parametrize("how", ["pwrite", "mmap"])
@pytest.mark.parametrize("place", ["ext4", "memory", "xfs-image"])
def test_without_reflinks_a_copy_is_still_or_refused(
    request: pytest.FixtureRequest, tmp_path: Path, place: str, how: str
) -> None:
    if place == "xfs-image":
        # An adopted image on another file system than ours.
        directory = tmp_path
        image = request.getfixturevalue("xfs") / "disk.raw"
    else:
        directory = Path("/dev/shm") / tmp_path.name if place == "memory" else request.getfixturevalue("ext4")
        directory.mkdir(exist_ok=True)
        image = directory / "disk.raw"
    provider = make_provider(directory, snapshot_tries=2)
    image.write_bytes(bytes(8) + os.urandom(LENGTH - 16) + bytes(8))
    found = provider.adopt(str(image))
    location, length = found.location, found.length
    volume = VolumeRef("v", length, location, adopted=True)
    try:
        with writing(location, how) as process:
            with pytest.raises(SourceMoved):
                take_snapshot(provider, volume, "s", in_use=True)
            assert [name for name in os.listdir(directory / "volumes") if "snapshot" in name] == []
            # The writer stops, holding the image open and mapped: a moment's state is there to be had.
            os.kill(process.pid, signal.SIGSTOP)
            os.waitpid(process.pid, os.WUNTRACED)
            snapshot = take_snapshot(provider, volume, "s", in_use=True)
            first, second = counters(provider, snapshot)
            assert 0 < second <= first <= second + 1
            assert read_all(provider, snapshot) == image.read_bytes()
        provider.delete_snapshot(snapshot)
    finally:
        image.unlink()


def test_an_adopted_image_gets_its_snapshot_where_reflinks_work(xfs: Path, tmp_path: Path) -> None:
    beside = xfs / "snapshots"
    beside.mkdir()
    provider = make_provider(tmp_path, snapshot_dirs=[str(beside)])
    image = xfs / "adopted.raw"
    image.write_bytes(bytes(8) + os.urandom(LENGTH - 16) + bytes(8))
    found = provider.adopt(str(image))
    location, length = found.location, found.length
    volume = VolumeRef("v", length, location, adopted=True)
    with writing(location, "pwrite"):
        snapshot = take_snapshot(provider, volume, "s", in_use=True)
    assert Path(provider.where(snapshot)).parent == beside
    first, second = counters(provider, snapshot)
    assert second <= first <= second + 1
    # A task that is resumed finds it there, and removes it from there without knowing where it is.
    assert provider.create_snapshot(snapshot, True) == snapshot.location
    provider.delete_snapshot(SnapshotRef("s", volume, length))
    assert os.listdir(beside) == []
    image.unlink()


def test_what_is_on_a_read_only_file_system_is_refused(tmp_path: Path) -> None:
    provider = make_provider(tmp_path)
    with mounted(tmp_path, "mkfs.ext4", "-q", "-F", size=16 << 20) as point:
        (point / "disk.raw").write_bytes(b"x" * 1000)
        run("mount", "-o", "remount,ro", str(point))
        with pytest.raises(InvalidInput, match="read-only file system"):
            provider.adopt(str(point / "disk.raw"))


def test_a_full_file_system_is_named_and_leaves_nothing(tmp_path: Path) -> None:
    with mounted(tmp_path, "mkfs.ext4", "-q", "-F", size=16 << 20) as point:
        provider = make_provider(point)
        image = tmp_path / "disk.raw"
        image.write_bytes(os.urandom(32 << 20))
        volume = VolumeRef("v", 32 << 20, str(image), adopted=True)
        with pytest.raises(OSError, match="No space left") as caught:
            take_snapshot(provider, volume, "s", in_use=True)
        assert caught.value.errno == errno.ENOSPC
        assert os.listdir(point / "volumes") == []
        free = os.statvfs(point).f_bfree * os.statvfs(point).f_frsize
        assert free > 8 << 20


def test_reflink_support_is_what_these_tests_think(xfs: Path, ext4: Path) -> None:
    for place, works in ((xfs, True), (ext4, False)):
        source = os.open(place / "one", os.O_RDWR | os.O_CREAT)
        target = os.open(place / "two", os.O_RDWR | os.O_CREAT)
        os.write(source, b"x" * 4096)
        if works:
            linux.clone_file(target, source)
        else:
            with pytest.raises(OSError) as caught:
                linux.clone_file(target, source)
            assert caught.value.errno in linux.NOT_SUPPORTED
        os.close(source)
        os.close(target)

"""The local provider: making, growing, deleting, snapshots, identities."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from backupfw.errors import ConfigError, InvalidInput, InvalidVolume, StorageChanged, TaskCancelled
from backupfw.volume.base import SnapshotRef, VolumeRef
from backupfw.volume.local.provider import LocalProvider
from tests.unit.volume.helpers import data_of, make_provider, new_volume, read_all, take_snapshot

CONTENT = os.urandom(70_000) + bytes(200_000) + os.urandom(12_345)


def identity(provider: LocalProvider, ref: VolumeRef | SnapshotRef) -> str:
    with provider.open_point(ref, "p") as source:
        return source.identity


@pytest.mark.parametrize("length", [1, 4095, 1 << 20, 1 << 40])
def test_a_new_volume_is_sparse_and_has_its_full_length(provider: LocalProvider, length: int) -> None:
    volume = new_volume(provider, "v", length)
    status = os.stat(provider.where(volume))
    assert (status.st_size, status.st_blocks) == (length, 0)
    assert status.st_mode & 0o777 == 0o600
    with provider.open_point(volume, "p") as source:
        assert data_of(source, 0, length) == []
    with provider.open_target(volume, 1) as target:
        assert target.reads_zero
        target.zero(0, length)
        target.flush()
    assert os.stat(provider.where(volume)).st_blocks == 0


def test_making_it_again_keeps_what_was_finished(provider: LocalProvider) -> None:
    volume = new_volume(provider, "v", CONTENT)
    left = f"{provider.where(volume)}.0123456789abcdef.part"
    assert provider.create(VolumeRef("v", len(CONTENT)), None) == volume.location
    assert read_all(provider, volume) == CONTENT
    provider.delete(volume)
    Path(left).write_bytes(b"half made by a killed call")
    assert provider.create(VolumeRef("v", 1000), None) == volume.location
    assert not Path(left).exists()
    assert read_all(provider, VolumeRef("v", 1000)) == bytes(1000)


@pytest.mark.parametrize("extra", [0, 1, 100_000])
@pytest.mark.parametrize("from_snapshot", [False, True])
def test_a_volume_is_made_from_another(provider: LocalProvider, extra: int, from_snapshot: bool) -> None:
    volume = new_volume(provider, "v", CONTENT)
    source = take_snapshot(provider, volume, "s", in_use=False) if from_snapshot else volume
    length = len(CONTENT) + extra
    copy = VolumeRef("w", length, provider.create(VolumeRef("w", length), source))
    assert read_all(provider, copy) == CONTENT + bytes(extra)
    with provider.open_target(copy, 1) as target:
        assert not target.reads_zero
        target.write(0, [b"changed"])
    assert read_all(provider, volume) == CONTENT
    assert read_all(provider, source) == CONTENT


def test_a_smaller_volume_is_not_made_from_a_larger_one(provider: LocalProvider) -> None:
    volume = new_volume(provider, "v", CONTENT)
    with pytest.raises(InvalidVolume):
        provider.create(VolumeRef("w", len(CONTENT) - 1), volume)


def test_a_volume_that_grew_is_copied_whole_or_not_at_all(provider: LocalProvider) -> None:
    volume = new_volume(provider, "v", CONTENT)
    before = VolumeRef("v", 50_000, volume.location)
    assert provider.look(before).length == len(CONTENT)
    assert read_all(provider, before) == CONTENT
    copy = VolumeRef("w", len(CONTENT) + 10_000)
    provider.create(copy, before)
    assert read_all(provider, copy) == CONTENT + bytes(10_000)
    with pytest.raises(InvalidVolume, match="smaller"):
        provider.create(VolumeRef("x", 60_000), before)
    # A snapshot has the length that was asked for: whoever asks looks first.
    assert read_all(provider, take_snapshot(provider, before, "s", in_use=True)) == CONTENT[:50_000]


@pytest.mark.parametrize("in_use", [False, True])
def test_a_source_that_lost_its_end_is_not_completed_with_zeros(
    provider: LocalProvider, in_use: bool
) -> None:
    volume = new_volume(provider, "v", CONTENT)
    os.truncate(provider.where(volume), 1000)
    with pytest.raises(StorageChanged, match="shorter"):
        take_snapshot(provider, volume, "s", in_use)
    with pytest.raises(StorageChanged, match="shorter"):
        provider.create(VolumeRef("w", len(CONTENT)), volume)
    assert sorted(os.listdir(os.path.dirname(provider.where(volume)))) == ["volume-v.img"]


def test_deleting_removes_what_is_ours_and_twice_is_fine(provider: LocalProvider) -> None:
    volume = new_volume(provider, "v", CONTENT)
    snapshot = take_snapshot(provider, volume, "s", in_use=False)
    directory = Path(provider.where(volume)).parent
    (directory / "volume-v.img.00.part").touch()
    (directory / "snapshot-s.img.00.part").touch()
    for _ in range(2):
        provider.delete(volume)
        provider.delete_snapshot(snapshot)
        # As a task that was killed before it recorded the location.
        provider.delete(VolumeRef("v", 1))
        provider.delete_snapshot(SnapshotRef("s", volume, 1))
    assert os.listdir(directory) == []


def test_a_location_that_is_not_ours_is_never_removed(provider: LocalProvider, directory: Path) -> None:
    other = directory / "precious"
    other.write_bytes(b"x")
    provider.delete(VolumeRef("v", 1, str(other)))
    provider.delete_snapshot(SnapshotRef("s", VolumeRef("v", 1), 1, str(other)))
    assert other.exists()
    with pytest.raises(InvalidInput):
        provider.delete(VolumeRef("../precious", 1))


def test_deleting_in_a_copy_leaves_what_was_copied(tmp_path: Path) -> None:
    first = make_provider(tmp_path / "first")
    volume = new_volume(first, "v", CONTENT)
    snapshot = take_snapshot(first, volume, "s", in_use=False)
    # As an earlier release recorded them.
    volume = replace(volume, location=first.where(volume))
    snapshot = replace(snapshot, volume=volume, location=first.where(snapshot))
    shutil.copytree(tmp_path / "first", tmp_path / "copy")

    copy = make_provider(tmp_path / "copy")
    copy.delete_snapshot(snapshot)
    copy.delete(volume)

    assert read_all(first, snapshot) == read_all(first, volume) == CONTENT
    assert not [path for path in (tmp_path / "copy").rglob("*") if path.is_file()]


def test_a_copy_that_lacks_the_images_does_not_use_those_of_the_original(tmp_path: Path) -> None:
    first, copy = make_provider(tmp_path / "first"), make_provider(tmp_path / "copy")
    volume = new_volume(first, "v", CONTENT)
    snapshot = take_snapshot(first, volume, "s", in_use=False)
    # As an earlier release recorded them.
    volume = replace(volume, location=first.where(volume))
    snapshot = replace(snapshot, volume=volume, location=first.where(snapshot))
    uses: list[Callable[[], object]] = [
        lambda: copy.look(volume),
        lambda: copy.open_point(volume, "p"),
        lambda: copy.open_point(snapshot, "p"),
        lambda: copy.open_target(volume, 1),
        lambda: copy.extend(volume, len(CONTENT) + 1),
        lambda: copy.create(VolumeRef("w", len(CONTENT)), volume),
        lambda: copy.create(VolumeRef("w", len(CONTENT)), snapshot),
        lambda: take_snapshot(copy, volume, "t", in_use=True),
    ]
    for use in uses:
        with pytest.raises(StorageChanged, match="is gone"):
            use()
    copy.delete_snapshot(snapshot)
    copy.delete(volume)
    assert read_all(first, snapshot) == read_all(first, volume) == CONTENT


def test_growing_reads_as_zeros_and_never_shrinks(provider: LocalProvider) -> None:
    volume = new_volume(provider, "v", CONTENT)
    for _ in range(2):
        provider.extend(volume, len(CONTENT) + 5000)
    grown = VolumeRef("v", len(CONTENT) + 5000, volume.location)
    assert read_all(provider, grown) == CONTENT + bytes(5000)
    provider.extend(volume, 1)
    assert read_all(provider, grown) == CONTENT + bytes(5000)


@pytest.mark.parametrize("in_use", [False, True])
def test_a_snapshot_stays_when_the_volume_changes(provider: LocalProvider, in_use: bool) -> None:
    volume = new_volume(provider, "v", CONTENT)
    snapshot = take_snapshot(provider, volume, "s", in_use)
    before = identity(provider, snapshot)
    with provider.open_target(volume, 1) as target:
        target.write(0, [b"changed"])
    assert read_all(provider, snapshot) == CONTENT
    # Asked for once more by a task that is resumed.
    assert provider.create_snapshot(snapshot, in_use) == snapshot.location
    assert identity(provider, snapshot) == before
    assert os.stat(provider.where(snapshot)).st_mode & 0o777 == 0o400


def test_a_volume_not_in_use_that_is_written_all_the_same_is_not_mixed(
    provider: LocalProvider, directory: Path
) -> None:
    volume = new_volume(provider, "v", os.urandom(3 << 20))
    copying: list[int] = []

    def write_once() -> None:
        copying.append(1)
        if len(copying) == 3:
            fd = os.open(provider.where(volume), os.O_RDWR)
            os.pwrite(fd, b"at both", 0)
            os.pwrite(fd, b"ends", (3 << 20) - 4)
            os.close(fd)

    ref = SnapshotRef("s", volume, volume.length)
    provider.create_snapshot(ref, False, write_once)
    content = Path(provider.where(ref)).read_bytes()
    assert (content[:7] == b"at both") == (content[-4:] == b"ends")


def test_a_cancelled_call_leaves_nothing(provider: LocalProvider) -> None:
    volume = new_volume(provider, "v", CONTENT)

    def cancel() -> None:
        raise TaskCancelled("stop")

    with pytest.raises(TaskCancelled):
        provider.create_snapshot(SnapshotRef("s", volume, volume.length), True, cancel)
    with pytest.raises(TaskCancelled):
        provider.create(VolumeRef("w", len(CONTENT)), volume, cancel)
    assert os.listdir(os.path.dirname(provider.where(volume))) == ["volume-v.img"]


def test_the_same_state_has_the_same_identity(provider: LocalProvider, directory: Path) -> None:
    volume = new_volume(provider, "v", CONTENT)
    snapshot = take_snapshot(provider, volume, "s", in_use=False)
    seen = [identity(provider, volume), identity(provider, snapshot)]
    # As after a restart.
    again = make_provider(directory)
    assert [identity(again, volume), identity(again, snapshot)] == seen
    assert len(set(seen)) == 2


def test_another_state_has_another_identity(provider: LocalProvider) -> None:
    volume = new_volume(provider, "v", CONTENT)
    snapshot = take_snapshot(provider, volume, "s", in_use=False)
    seen = {identity(provider, volume), identity(provider, snapshot)}
    with provider.open_target(volume, 1) as target:
        # A clock tick later at the latest.
        while identity(provider, volume) in seen:
            target.write(0, [CONTENT[:1]])
    seen.add(identity(provider, volume))
    provider.extend(volume, len(CONTENT) + 1)
    grown = VolumeRef("v", len(CONTENT) + 1, volume.location)
    seen.add(identity(provider, grown))
    provider.delete_snapshot(snapshot)
    anew = take_snapshot(provider, volume, "s", in_use=False)
    seen.add(identity(provider, anew))
    assert len(seen) == 5


def test_a_missing_source_is_an_error(provider: LocalProvider) -> None:
    with pytest.raises(StorageChanged, match="gone"):
        provider.open_point(VolumeRef("v", 1), "p")


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"volumes_dir": None}, "volumes_dir: a directory is needed"),
        ({"volumes_dir": "relative"}, "volumes_dir: 'relative' is not an absolute path"),
        ({"volumes_dir": "/dev/null/x"}, "volumes_dir: .* cannot be made"),
        ({"volumes_dir": "/dev/null"}, "volumes_dir: "),
        ({"snapshot_dirs": ["/no/such/place"]}, "snapshot_dirs: .* is not a directory"),
        ({"snapshot_dirs": ["here"]}, "snapshot_dirs: .* is not an absolute path"),
    ],
)
def test_wrong_directories_are_named(
    provider_with: Callable[..., LocalProvider], options: dict[str, object], text: str
) -> None:
    with pytest.raises(ConfigError, match=rf"option {text}"):
        provider_with(**options)


def test_every_option_has_a_help_text() -> None:
    assert all(opt.help for opt in LocalProvider.options())

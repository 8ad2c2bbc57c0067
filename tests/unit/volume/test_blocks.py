"""Sources and targets on image files, against a model of the bytes."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import pytest
from hypothesis import given, settings

from backupfw.errors import SourceMoved, StorageChanged
from backupfw.volume.base import VolumeRef
from backupfw.volume.local import linux
from backupfw.volume.local.holes import data_extents
from backupfw.volume.local.point import LocalPoint
from backupfw.volume.local.provider import LocalProvider
from tests.unit.volume.helpers import (
    Step,
    data_of,
    make_provider,
    new_volume,
    play_on_file,
    play_on_target,
    read_all,
    steps,
)

LENGTH = 300_000
# More than any file system's block.
CELL = 1 << 16
SPARSE_LENGTH = 64 * CELL
DIRECTORIES = ("/tmp", "/dev/shm")


@pytest.mark.parametrize("place", DIRECTORIES)
@settings(max_examples=40, deadline=None)
@given(history=steps(SPARSE_LENGTH, ("write", "write", "punch"), longest=2 * CELL))
def test_extents_cover_all_data_and_leave_holes_out(place: str, history: list[Step]) -> None:
    with tempfile.TemporaryFile(dir=place) as file:
        fd = file.fileno()
        file.truncate(SPARSE_LENGTH)
        model = bytearray(SPARSE_LENGTH)
        play_on_file(fd, model, history)
        source = LocalPoint(os.dup(fd), SPARSE_LENGTH, "x")
        extents = data_of(source, 0, SPARSE_LENGTH)
        seen = bytearray(SPARSE_LENGTH)
        position = 0
        for offset, length in extents:
            assert offset >= position
            assert length > 0
            position = offset + length
            source.read_into(offset, memoryview(seen)[offset:position])
        assert position <= SPARSE_LENGTH
        assert seen == model
        written = {
            cell
            for kind, start, size, _ in history
            if kind == "write" and size
            for cell in range(start // CELL, (start + size - 1) // CELL + 1)
        }
        reported = {
            cell for start, size in extents for cell in range(start // CELL, (start + size - 1) // CELL + 1)
        }
        assert reported <= written
        # A part of the range gives the same extents, cut.
        start, end = 3 * CELL + 5, 40 * CELL - 7
        cut = [
            (max(offset, start), min(offset + length, end) - max(offset, start))
            for offset, length in extents
            if offset < end and offset + length > start
        ]
        assert data_of(source, start, end) == cut
        source.close()


def test_a_file_system_without_seek_reports_everything() -> None:
    read, write = os.pipe()
    os.close(write)
    with mock.patch("os.lseek", side_effect=OSError(22, "Invalid argument")):
        assert list(data_extents(read, 10, 50)) == [(10, 40)]
    os.close(read)


@pytest.mark.parametrize("punches", [True, False])
@pytest.mark.parametrize("place", DIRECTORIES)
@settings(max_examples=40, deadline=None)
@given(history=steps(LENGTH, ("write", "zero")))
def test_writes_and_zeros_land_where_they_should(place: str, punches: bool, history: list[Step]) -> None:
    with (
        tempfile.TemporaryDirectory(dir=place) as name,
        mock.patch.object(
            linux, "punch_hole", linux.punch_hole if punches else mock.Mock(side_effect=OSError(95, "no"))
        ),
    ):
        provider = make_provider(Path(name))
        model = bytearray(os.urandom(LENGTH))
        volume = new_volume(provider, "v", bytes(model))
        with provider.open_target(volume, 1) as opened:
            play_on_target(opened, model, history)
            opened.flush()
        assert read_all(provider, volume) == model
        assert os.stat(provider.where(volume)).st_size == LENGTH


def test_many_buffers_and_short_writes(provider: LocalProvider, monkeypatch: pytest.MonkeyPatch) -> None:
    volume = new_volume(provider, "v", 100_000)
    buffers = [bytes([index % 251 + 1]) * (index % 37) for index in range(3000)]
    whole = b"".join(buffers)
    real = os.pwritev

    def short(fd: int, views: list[memoryview], offset: int) -> int:
        assert len(views) <= 1024
        return (
            real(fd, [views[0][:10], *views[1:3]], offset)
            if len(views[0]) < 10
            else real(fd, views[:1], offset)
        )

    monkeypatch.setattr(os, "pwritev", short)
    with provider.open_target(volume, 1) as opened:
        opened.write(11, buffers)
        opened.write(0, [])
        opened.write(5, [b""])
    assert read_all(provider, volume) == bytes(11) + whole + bytes(100_000 - 11 - len(whole))


def test_nothing_is_read_or_written_outside(provider: LocalProvider) -> None:
    volume = new_volume(provider, "v", 1000)
    with provider.open_target(volume, 1) as opened:
        for offset, data in [(999, b"ab"), (1000, b"a"), (-1, b"a")]:
            with pytest.raises(ValueError, match="not within"):
                opened.write(offset, [data])
            with pytest.raises(ValueError, match="not within"):
                opened.zero(offset, len(data))
    assert os.stat(provider.where(volume)).st_size == 1000
    with provider.open_point(volume, "p") as source, pytest.raises(ValueError, match="not within"):
        source.read_into(999, memoryview(bytearray(2)))


def test_a_source_that_shrinks_is_an_error(provider: LocalProvider) -> None:
    volume = new_volume(provider, "v", b"x" * 10_000)
    with provider.open_point(volume, "p") as source:
        os.truncate(provider.where(volume), 5000)
        with pytest.raises(SourceMoved, match="shorter"):
            source.read_into(4000, memoryview(bytearray(2000)))
    with pytest.raises(
        StorageChanged, match="volume v is shorter than it should be: it has 5000 of 10000 bytes"
    ):
        provider.open_point(volume, "p")


def test_a_closed_target_and_source_refuse_work(provider: LocalProvider) -> None:
    volume = new_volume(provider, "v", 1000)
    with provider.open_target(volume, 1) as opened:
        opened.write(0, [b"x"])
    actions: list[Callable[[], object]] = [
        lambda: opened.write(0, [b"y"]),
        lambda: opened.zero(0, 10),
        opened.flush,
        lambda: opened.release_cache(0, 10),
    ]
    for action in actions:
        with pytest.raises(OSError, match="closed"):
            action()
    opened.close()
    with provider.open_point(volume, "p") as source:
        pass
    with pytest.raises(OSError, match="closed"):
        source.read_into(0, memoryview(bytearray(1)))
    assert read_all(provider, volume) == b"x" + bytes(999)


def test_a_failed_flush_is_never_forgotten(provider: LocalProvider, monkeypatch: pytest.MonkeyPatch) -> None:
    volume = new_volume(provider, "v", 1000)
    with provider.open_target(volume, 1) as opened:
        opened.write(0, [b"x"])
        with monkeypatch.context() as patch:
            patch.setattr(os, "fdatasync", mock.Mock(side_effect=OSError(5, "lost")))
            with pytest.raises(OSError, match="lost"):
                opened.flush()
        # The kernel would say yes now, although what was lost is still lost.
        with pytest.raises(OSError, match="lost"):
            opened.flush()


def test_restoring_to_a_short_file_gives_the_full_length(provider: LocalProvider) -> None:
    volume = new_volume(provider, "v", b"x" * 10_000)
    os.truncate(provider.where(volume), 100)
    with provider.open_target(volume, 1) as opened:
        assert not opened.reads_zero
        opened.zero(0, 10_000)
    assert read_all(provider, volume) == bytes(10_000)


def test_reads_zero_only_while_nobody_wrote(provider: LocalProvider, directory: Path) -> None:
    volume = new_volume(provider, "v", 1 << 20)
    with provider.open_target(volume, 1) as opened:
        assert opened.reads_zero
    with provider.open_target(volume, 2) as opened:
        assert opened.reads_zero
        opened.write(4096, [b"x"])
    with provider.open_target(volume, 3) as opened:
        assert not opened.reads_zero
    sparse = directory / "adopted"
    sparse.touch()
    os.truncate(sparse, 1 << 20)
    with provider.open_target(VolumeRef("a", 1 << 20, str(sparse), adopted=True), 1) as opened:
        assert not opened.reads_zero


def test_a_target_that_is_gone_is_not_made_again(provider: LocalProvider) -> None:
    volume = new_volume(provider, "v", 1000)
    provider.delete(volume)
    with pytest.raises(StorageChanged, match="volume v is gone"):
        provider.open_target(volume, 1)
    assert not Path(provider.where(volume)).exists()


def test_releasing_the_cache_keeps_what_somebody_else_holds_there(tmp_path: Path) -> None:
    provider = make_provider(tmp_path)
    volume = new_volume(provider, "v", os.urandom(8 << 20))
    fd = os.open(provider.where(volume), os.O_RDWR)
    os.fsync(fd)
    cached = linux.cached_bytes(fd)
    if cached is None or cached < 8 << 20:
        pytest.skip("this kernel or file system does not tell what is cached")
    with provider.open_point(volume, "p") as source:
        source.release_cache(0, 8 << 20)
    assert linux.cached_bytes(fd) == 8 << 20
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    if linux.cached_bytes(fd):
        pytest.skip("this file system keeps its pages")
    with provider.open_point(volume, "p") as source:
        buffer = memoryview(bytearray(1 << 20))
        for offset in range(0, 8 << 20, 1 << 20):
            source.read_into(offset, buffer)
        source.release_cache(0, 4 << 20)
    assert linux.cached_bytes(fd) == 4 << 20
    os.close(fd)

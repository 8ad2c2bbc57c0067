"""Copies of files that somebody writes: proven still, or refused.

The writer is the ``tick`` that the copy calls between two pieces, so every run writes at the same places.
"""

from __future__ import annotations

import mmap
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings

from backupfw.errors import SourceMoved, TaskCancelled
from backupfw.volume.base import no_tick
from backupfw.volume.local import still_copy as module
from backupfw.volume.local.mirror import PIECE, mirror
from backupfw.volume.local.still_copy import still_copy, times_prove
from tests.unit.volume.helpers import Step, play_on_file, steps

PIECES = 6
LENGTH = PIECES * PIECE
SETTLE = 0.05


class Writer:
    """A tick that runs an action once the copy has begun, at most ``times`` times."""

    def __init__(self, target: int, action: Callable[[], None], times: int = 1 << 30) -> None:
        self.target = target
        self.action = action
        self.left = times

    def __call__(self) -> None:
        # Before that the file's times are watched, which is tested below.
        if self.left and os.fstat(self.target).st_blocks:
            self.left -= 1
            self.action()


@pytest.fixture
def image(directory: Path) -> Path:
    path = directory / "image"
    path.write_bytes(os.urandom(LENGTH))
    return path


@pytest.fixture
def copy(directory: Path) -> Iterator[int]:
    fd = os.open(directory / "copy", os.O_RDWR | os.O_CREAT)
    os.ftruncate(fd, LENGTH)
    yield fd
    os.close(fd)


def overwrite(path: Path, offset: int) -> Callable[[], None]:
    def action() -> None:
        fd = os.open(path, os.O_RDWR)
        os.pwrite(fd, os.urandom(16), offset)
        os.close(fd)

    return action


def content(fd: int) -> bytes:
    return os.pread(fd, LENGTH + 1, 0)


def copied(path: Path, *arguments: Any) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        still_copy(fd, *arguments)
    finally:
        os.close(fd)


def test_a_file_at_rest_is_copied(image: Path, copy: int) -> None:
    copied(image, copy, LENGTH, 1, SETTLE, no_tick)
    assert content(copy) == image.read_bytes()


@pytest.mark.parametrize("offset", [0, LENGTH - 16])
def test_one_write_while_copying_is_noticed_and_made_good(image: Path, copy: int, offset: int) -> None:
    writer = Writer(copy, overwrite(image, offset), times=1)
    copied(image, copy, LENGTH, 3, SETTLE, writer)
    assert writer.left == 0
    assert content(copy) == image.read_bytes()


def test_a_file_that_moves_on_every_try_is_refused(image: Path, copy: int) -> None:
    writer = Writer(copy, overwrite(image, 0))
    with pytest.raises(SourceMoved):
        copied(image, copy, LENGTH, 2, SETTLE, writer)


def test_stores_to_mapped_memory_are_noticed(image: Path, copy: int) -> None:
    with open(image, "r+b") as file, mmap.mmap(file.fileno(), LENGTH) as mapped:
        # The page is dirty before the copy begins: storing to it again would leave no trace by itself.
        mapped[LENGTH - 1] = 1
        state = {"next": 2}

        def store() -> None:
            mapped[LENGTH - 1] = state["next"] % 256
            mapped[0] = state["next"] % 256
            state["next"] += 1

        once = Writer(copy, store, times=1)
        copied(image, copy, LENGTH, 3, SETTLE, once)
        assert once.left == 0
        assert content(copy) == image.read_bytes()
        os.ftruncate(copy, 0)
        os.ftruncate(copy, LENGTH)
        with pytest.raises(SourceMoved):
            copied(image, copy, LENGTH, 2, SETTLE, Writer(copy, store))


def test_times_prove_nothing_before_they_rested(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = tmp_path / "image"
    image.write_bytes(os.urandom(PIECE))
    fd = os.open(image, os.O_RDWR)
    if not times_prove(fd):
        pytest.skip("the temporary directory's file system has no times that prove anything")
    waiting: list[int] = []

    def write_while_waiting() -> None:
        if not waiting:
            waiting.append(os.pwrite(fd, b"x", 0))

    assert module._rested(fd, 0.3, write_while_waiting) is None
    assert module._rested(fd, 0.3, write_while_waiting) is not None
    os.close(fd)


def test_only_times_that_show_every_write_prove(tmp_path: Path) -> None:
    with tempfile.TemporaryFile(dir="/dev/shm") as file:
        assert not times_prove(file.fileno())
    read, write = os.pipe()
    assert not times_prove(read)
    os.close(read)
    os.close(write)


def test_a_write_of_equal_bytes_is_proven_by_the_second_read(image: Path, copy: int) -> None:
    def touch() -> None:
        fd = os.open(image, os.O_RDWR)
        os.pwrite(fd, os.pread(fd, 16, 0), 0)
        os.close(fd)

    copied(image, copy, LENGTH, 1, SETTLE, Writer(copy, touch))
    assert content(copy) == image.read_bytes()


def test_a_cancelled_task_ends_the_copy(image: Path, copy: int) -> None:
    def cancel() -> None:
        raise TaskCancelled("stop")

    with pytest.raises(TaskCancelled):
        copied(image, copy, LENGTH, 1, 30, cancel)
    with pytest.raises(TaskCancelled):
        copied(image, copy, LENGTH, 1, SETTLE, Writer(copy, cancel))


@pytest.mark.parametrize("place", ["/tmp", "/dev/shm"])
@settings(max_examples=25, deadline=None)
@given(
    first=steps(40 * 65536 + 777, ("write", "write", "punch"), longest=3 << 16),
    then=steps(40 * 65536 + 777, ("write", "punch", "punch"), longest=3 << 16),
)
def test_mirroring_follows_any_change_and_stays_sparse(
    place: str, first: list[Step], then: list[Step]
) -> None:
    length = 40 * 65536 + 777
    with tempfile.TemporaryFile(dir=place) as one, tempfile.TemporaryFile(dir=place) as two:
        source, target = one.fileno(), two.fileno()
        one.truncate(length)
        two.truncate(length)
        model = bytearray(length)
        play_on_file(source, model, first)
        changed = mirror(source, target, length, no_tick, fresh=True)
        assert os.pread(target, length + 1, 0) == model
        assert (changed == 0) <= (model == bytes(length))
        assert mirror(source, target, length, no_tick, fresh=False) == 0
        before = bytes(model)
        play_on_file(source, model, then)
        changed = mirror(source, target, length, no_tick, fresh=False)
        assert os.pread(target, length + 1, 0) == model
        assert (changed == 0) == (before == model)
        used = sum(any(model[start : start + 65536]) for start in range(0, length, 65536))
        assert os.fstat(target).st_blocks * 512 <= (used + 1) * 65536


def test_a_sparse_terabyte_is_copied_at_once(directory: Path) -> None:
    path = directory / "big"
    path.touch()
    os.truncate(path, 1 << 40)
    fd = os.open(path, os.O_RDWR)
    os.pwrite(fd, b"here", 777 << 30)
    target = os.open(directory / "copy", os.O_RDWR | os.O_CREAT)
    os.ftruncate(target, 1 << 40)
    ticks: list[int] = []
    copied(path, target, 1 << 40, 1, SETTLE, lambda: ticks.append(1))
    assert len(ticks) < 20
    assert os.pread(target, 4, 777 << 30) == b"here"
    assert os.fstat(target).st_blocks * 512 <= 1 << 17
    os.close(fd)
    os.close(target)

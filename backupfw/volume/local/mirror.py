"""Makes one file equal to another file or device, keeping it sparse."""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
from collections.abc import Iterator

from backupfw.volume.base import Tick
from backupfw.volume.local import linux
from backupfw.volume.local.cache import CacheManners
from backupfw.volume.local.holes import data_extents

#: Bytes read, compared and written at a time, and between two ticks.
PIECE = 1 << 20
# Granularity of zero detection: a grain of zeros is a hole in the copy.
_GRAIN = 64 << 10
_ZERO_GRAIN = bytes(_GRAIN)
# Direct reads begin and end on this; a multiple of every device's logical block size.
_ALIGNMENT = 4096
# After so many bytes, written data is made durable and dropped from the page cache.
_SETTLE = 64 << 20


class _Reader:
    """Reads pieces of one file into a buffer of its own; not thread-safe."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        # Anonymous memory begins on a page, as direct reads ask for.
        self._buffer = memoryview(mmap.mmap(-1, PIECE))

    def read(self, offset: int, length: int) -> memoryview:
        """Return ``length`` bytes; valid until the next call."""
        done = 0
        while done < length:
            # Ask for a whole number of blocks, as direct reads must; at the end of a file less comes.
            wanted = -(-(length - done) // _ALIGNMENT) * _ALIGNMENT
            try:
                count = os.preadv(self._fd, [self._buffer[done : done + wanted]], offset + done)
            except OSError as error:
                if error.errno != errno.EINVAL or not self._give_up_direct():
                    raise
                continue
            if count == 0:
                raise OSError(errno.EIO, "the source is shorter than it was")
            done += count
        return self._buffer[:length]

    def _give_up_direct(self) -> bool:
        """Read through the page cache from now on; False if it does already."""
        flags = fcntl.fcntl(self._fd, fcntl.F_GETFL)
        fcntl.fcntl(self._fd, fcntl.F_SETFL, flags & ~os.O_DIRECT)
        return bool(flags & os.O_DIRECT)


def mirror(source: int, target: int, length: int, tick: Tick, fresh: bool) -> int:
    """Make the first ``length`` bytes of ``target`` equal to those of ``source``.

    The system's own server-side and in-kernel copies are not used, because they neither compare nor skip
    zeros.

    :param source: open for reading; with O_DIRECT if reads must bypass the page cache.
    :param target: a regular file open for reading and writing, ``length`` bytes long.
    :param fresh: ``target`` has only a hole yet.
    :return: how many pieces differed; 0 means that ``target`` was equal already, each piece at the
        moment when it was read.
    :raises OSError: the source is too short, or reading or writing failed.
    """
    reader, comparer = _Reader(source), _Reader(target)
    manners = CacheManners(source, length)
    changed = settled = position = 0
    for offset, size in _pieces(source, length):
        tick()
        if not fresh:
            changed += _clear(comparer, target, position, offset, tick)
        position = offset + size
        new = reader.read(offset, size)
        if fresh or not _equal(comparer.read(offset, size), new):
            changed += 1
            _write(target, offset, new, fresh)
        if position - settled >= _SETTLE:
            _settle(source, target, settled, position, manners)
            settled = position
    if not fresh:
        changed += _clear(comparer, target, position, length, tick)
    _settle(source, target, settled, length, manners)
    return changed


def _pieces(fd: int, length: int) -> Iterator[tuple[int, int]]:
    """Yield the data of a file in aligned pieces, ascending, none twice."""
    position = 0
    for start, size in data_extents(fd, 0, length):
        position = max(position, start // _ALIGNMENT * _ALIGNMENT)
        end = min(-(-(start + size) // _ALIGNMENT) * _ALIGNMENT, length)
        while position < end:
            piece = min(PIECE, end - position)
            yield position, piece
            position += piece


def _clear(comparer: _Reader, target: int, start: int, end: int, tick: Tick) -> int:
    """Make the target read as zeros where the source has a hole; return the pieces that did not."""
    changed = 0
    for extent, size in data_extents(target, start, end):
        for offset in range(extent, extent + size, PIECE):
            tick()
            piece = min(PIECE, extent + size - offset)
            if any(_grains(comparer.read(offset, piece), zero=False)):
                changed += 1
                _zero(target, offset, piece)
    return changed


def _write(target: int, offset: int, data: memoryview, fresh: bool) -> None:
    for start, size in _grains(data, zero=False):
        done = 0
        while done < size:
            done += os.pwrite(target, data[start + done : start + size], offset + start + done)
    if not fresh:
        for start, size in _grains(data, zero=True):
            _zero(target, offset + start, size)


def _zero(target: int, offset: int, length: int) -> None:
    try:
        linux.punch_hole(target, offset, length)
    except OSError as error:
        if error.errno not in linux.NOT_SUPPORTED:
            raise
        end = offset + length
        while offset < end:
            offset += os.pwrite(target, _ZERO_GRAIN[: end - offset], offset)


def _grains(data: memoryview, zero: bool) -> Iterator[tuple[int, int]]:
    """Yield ``(start, size)`` of the runs of grains that are all zero, or of those that are not."""
    begin = None
    for start in range(0, len(data), _GRAIN):
        grain = data[start : start + _GRAIN]
        if _equal(grain, _ZERO_GRAIN[: len(grain)]) == zero:
            begin = start if begin is None else begin
        elif begin is not None:
            yield begin, start - begin
            begin = None
    if begin is not None:
        yield begin, len(data) - begin


def _equal(one: memoryview, other: memoryview | bytes) -> bool:
    # Views are compared item by item, bytes with one memcmp: much faster, in spite of the copies.
    return bytes(one) == bytes(other)


def _settle(source: int, target: int, start: int, end: int, manners: CacheManners) -> None:
    # Limits the copy's dirty memory and its part of the host's page cache.
    os.fdatasync(target)
    os.posix_fadvise(target, start, end - start, os.POSIX_FADV_DONTNEED)
    manners.release(source, start, end - start)

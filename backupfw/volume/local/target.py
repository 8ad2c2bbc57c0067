"""Writes an image file or a block device."""

from __future__ import annotations

import errno
import itertools
import mmap
import os
from collections.abc import Callable, Iterator, Sequence

from backupfw.volume.base import BlockTarget
from backupfw.volume.local import linux
from backupfw.volume.local.cache import CacheManners
from backupfw.volume.local.descriptor import Descriptor

# pwritev takes at most this many buffers (IOV_MAX).
_MAX_BUFFERS = 1024
_ZEROS = memoryview(bytes(1 << 20))
# One piece of a zeroed range: between two pieces a later attempt can take the volume away.
_ZERO_PIECE = 64 << 20
_PAGE = mmap.PAGESIZE


class LocalTarget(BlockTarget):
    """An opened image file or block device without another writer.  Thread-safe.

    Every call after :meth:`close` raises OSError; every call after a later attempt took the volume
    raises TaskLost.

    :param descriptor: open for writing and fenced; owned by this object.
    :param length: bytes; the file has at least as many.
    :param reads_zero: see :class:`BlockTarget`.
    :param is_device: whether it is a block device.
    """

    def __init__(
        self,
        descriptor: Descriptor,
        length: int,
        reads_zero: bool,
        is_device: bool,
        *,
        storage_id: str | None = None,
    ) -> None:
        self.length = length
        self.storage_id = storage_id
        self.reads_zero = reads_zero
        self._descriptor = descriptor
        # Methods of zeroing an aligned piece, best first; those that the storage refuses are dropped.
        self._zeroers: tuple[Callable[[int, int, int], None], ...] = (
            (linux.punch_hole, linux.zero_device) if is_device else (linux.punch_hole,)
        )
        # Partial blocks of a device are written through the page cache, so only whole pages are zeroed past
        # it: no page is written both ways.
        self._alignment = _PAGE if is_device else 1
        self._flush_error: OSError | None = None
        with descriptor as fd:
            self._manners = CacheManners(fd, length)

    def write(self, offset: int, buffers: Sequence[bytes | memoryview]) -> None:
        """Write all buffers, one after the other, from ``offset``."""
        self.write_runs(((offset, buffers),))

    def write_runs(self, runs: Sequence[tuple[int, Sequence[bytes | memoryview]]]) -> None:
        """Write several runs; the descriptor is borrowed once for all of them."""
        most = self.length
        with self._descriptor as fd:
            for offset, buffers in runs:
                length = sum(map(len, buffers))
                if offset < 0 or offset + length > most:
                    self._check_range(offset, length)
                if not length or (len(buffers) <= _MAX_BUFFERS and os.pwritev(fd, buffers, offset) == length):
                    continue
                # Too many buffers, or a short write: write all of them again, one after the other.
                _write_all(fd, offset, (memoryview(buffer) for buffer in buffers if buffer))

    def zero(self, offset: int, length: int) -> None:
        """Punch the range; write zeros where the storage cannot."""
        self._check_range(offset, length)
        end = offset + length
        first = min(-(-offset // self._alignment) * self._alignment, end)
        last = max(end // self._alignment * self._alignment, first)
        self._write_zeros(offset, first - offset)
        for start in range(first, last, _ZERO_PIECE):
            self._zero_piece(start, min(_ZERO_PIECE, last - start))
        self._write_zeros(last, end - last)

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill ``buffer`` from ``offset``."""
        with self._descriptor as fd:
            if os.preadv(fd, [buffer], offset) != len(buffer):
                raise OSError(errno.EIO, "the storage ends too early")

    def flush(self) -> None:
        """Return when everything written so far is durable.

        :raises OSError: also if an earlier flush failed, because a later one cannot restore lost writes.
        """
        if self._flush_error is not None:
            raise self._flush_error
        with self._descriptor as fd:
            try:
                os.fdatasync(fd)
            except OSError as error:
                self._flush_error = error
                raise

    def release_cache(self, offset: int, length: int) -> None:
        """Drop the flushed range from the page cache, unless most of the file was in it before."""
        with self._descriptor as fd:
            self._manners.release(fd, offset, length)

    def close(self) -> None:
        """Close the file and give up the fence."""
        self._descriptor.close()

    def _check_range(self, offset: int, length: int) -> None:
        if offset < 0 or length < 0 or offset + length > self.length:
            raise ValueError(f"{length} bytes at {offset} are not within {self.length}")

    def _zero_piece(self, offset: int, length: int) -> None:
        for zeroer in self._zeroers:
            with self._descriptor as fd:
                try:
                    zeroer(fd, offset, length)
                except OSError as error:
                    if error.errno not in linux.NOT_SUPPORTED:
                        raise
                    self._zeroers = tuple(other for other in self._zeroers if other is not zeroer)
                else:
                    return
        self._write_zeros(offset, length)

    def _write_zeros(self, offset: int, length: int) -> None:
        if length > 0:
            with self._descriptor as fd:
                _write_all(fd, offset, _zero_views(length))


def _zero_views(length: int) -> Iterator[memoryview]:
    while length > 0:
        yield _ZEROS[:length]
        length -= len(_ZEROS)


def _write_all(fd: int, offset: int, views: Iterator[memoryview]) -> None:
    while batch := list(itertools.islice(views, _MAX_BUFFERS)):
        while batch:
            count = os.pwritev(fd, batch, offset)
            if count == 0:
                raise OSError(errno.EIO, "nothing could be written")
            offset += count
            while batch and count >= len(batch[0]):
                count -= len(batch.pop(0))
            if count:
                batch[0] = batch[0][count:]

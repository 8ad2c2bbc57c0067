"""Reads an image file or a block device."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator

from backupfw.volume.base import BlockSource
from backupfw.volume.local.cache import CacheManners
from backupfw.volume.local.descriptor import Descriptor
from backupfw.volume.local.holes import next_extent


class LocalSource(BlockSource):
    """An opened image file or block device.  Thread-safe.

    :param fd: open for reading; owned by this object.
    :param length: bytes; the file has at least as many.
    :param identity: see :class:`BlockSource`.
    """

    def __init__(self, fd: int, length: int, identity: str) -> None:
        self.length = length
        self.identity = identity
        self._manners = CacheManners(fd, length)
        self._descriptor = Descriptor(fd)

    def data_extents(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        """Yield what may be non-zero; a block device's whole range."""
        end = min(end, self.length)
        while start < end:
            # Not held over the yield: the caller may take its time.
            with self._descriptor as fd:
                extent = next_extent(fd, start, end)
            if extent is None:
                return
            yield extent
            start = extent[0] + extent[1]

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill ``buffer`` from ``offset``."""
        view = buffer.cast("B")
        if offset < 0 or offset + len(view) > self.length:
            raise ValueError(f"{len(view)} bytes at {offset} are not within {self.length}")
        with self._descriptor as fd:
            while view:
                count = os.preadv(fd, [view], offset)
                if count == 0:
                    raise OSError(errno.EIO, "the volume is shorter than it was")
                offset += count
                view = view[count:]

    def release_cache(self, offset: int, length: int) -> None:
        """Drop the range from the page cache, unless most of the file was in it before we came."""
        with self._descriptor as fd:
            self._manners.release(fd, offset, length)

    def close(self) -> None:
        """Close the file."""
        self._descriptor.close()

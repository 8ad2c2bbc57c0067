"""Reads an image file or a block device."""

from __future__ import annotations

import os
from collections.abc import Iterator

from backupfw.errors import SourceMoved
from backupfw.volume.base import BlockSource
from backupfw.volume.local.cache import CacheManners
from backupfw.volume.local.descriptor import Descriptor
from backupfw.volume.local.holes import next_extent
from backupfw.volume.local.still_copy import Stamp


class LocalSource(BlockSource):
    """An opened image file or block device.  Thread-safe.

    :param fd: open for reading; owned by this object.
    :param length: bytes; the file has at least as many.
    :param identity: see :class:`BlockSource`, as ``storage_id``.
    :param stamp: must stay the same while the file is read; None: it has no writer, or no useful stamp.
    """

    def __init__(
        self,
        fd: int,
        length: int,
        identity: str,
        *,
        storage_id: str | None = None,
        stamp: Stamp | None = None,
    ) -> None:
        self.length = length
        self.identity = identity
        self.storage_id = storage_id
        self._stamp = stamp
        self._manners = CacheManners(fd, length)
        self._descriptor = Descriptor(fd)

    def data_extents(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        """Yield ranges that may be non-zero; for a block device the whole range."""
        end = min(end, self.length)
        while start < end:
            # Not held during the yield, because the caller may take long.
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
                    raise SourceMoved("The volume became shorter while it was read.")
                offset += count
                view = view[count:]

    def check_still(self) -> None:
        """Compare the file's times, length and inode with those at its opening."""
        if self._stamp is None:
            return
        with self._descriptor as fd:
            if Stamp.of(fd) != self._stamp:
                raise SourceMoved("The volume was written while it was read.")

    def release_cache(self, offset: int, length: int) -> None:
        """Drop the range from the page cache, unless most of the file was in it at its opening."""
        with self._descriptor as fd:
            self._manners.release(fd, offset, length)

    def close(self) -> None:
        """Close the file."""
        self._descriptor.close()

"""Reads an image file or a block device."""

from __future__ import annotations

import os
from collections.abc import Iterator

from backupfw.errors import SourceMoved
from backupfw.volume.base import Extent, Kind, Point
from backupfw.volume.local.cache import CacheManners
from backupfw.volume.local.descriptor import Descriptor
from backupfw.volume.local.holes import next_extent
from backupfw.volume.local.still_copy import Stamp


class LocalPoint(Point):
    """An image file or block device, open for reading.  Thread-safe.

    What changed since an earlier point is not known: nothing is kept in the storage.

    :param fd: open for reading; owned by this object.
    :param length: bytes; the file has at least as many.
    :param identity: see :class:`Point`, as ``storage_id``.
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

    def extents(self, start: int, end: int, since: str | None = None) -> Iterator[Extent]:  # noqa: ARG002
        """Say where data and where holes are; a block device is all data."""
        while start < end:
            # Not held during the yield, because the caller may take long.
            with self._descriptor as fd:
                offset, length = next_extent(fd, start, end) or (end, 0)
            if offset > start:
                yield Extent(start, offset - start, Kind.ZERO)
            if length:
                yield Extent(offset, length, Kind.DATA)
            start = offset + length

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

    def close(self, keep: bool = False) -> None:  # noqa: ARG002
        """Close the file."""
        self._descriptor.close()

"""Where a file has data and where it has holes."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator


def next_extent(fd: int, start: int, end: int) -> tuple[int, int] | None:
    """Return ``(offset, length)`` of the first data within ``start … end``, or None if there is none.

    It costs two seeks, whatever the size of the hole before it.  For block devices, and file systems that do
    not report holes, the whole range is data.  The descriptor's position changes.
    """
    while True:
        try:
            data = os.lseek(fd, start, os.SEEK_DATA)
            if data >= end:
                return None
            hole = os.lseek(fd, data, os.SEEK_HOLE)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return None
            if error.errno in (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOTSUP):
                return start, end - start
            raise
        if hole > data:
            return data, min(hole, end) - data
        # The data was punched between the two calls: look again from there.
        start = data


def data_extents(fd: int, start: int, end: int) -> Iterator[tuple[int, int]]:
    """Yield all data within ``start … end`` as ``(offset, length)``, ascending."""
    while start < end:
        extent = next_extent(fd, start, end)
        if extent is None:
            return
        yield extent
        start = extent[0] + extent[1]

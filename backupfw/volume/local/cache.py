"""Keeps the host's page cache free of a backup's pages."""

from __future__ import annotations

import os
import stat

from backupfw.volume.local import linux


class CacheManners:
    """Decides once, when a file is opened, whether its pages are dropped after reads and writes.

    If more than half of a file is in the cache already, another program uses it (a guest that runs on it, or
    a program that has just written it): dropping it would cost more than keeping it.  Any other file is
    dropped range by range.  The limit of this: pages of such a file that another program had in the cache are
    dropped, too.

    :param fd: the open file.
    :param length: bytes of the whole file.
    """

    def __init__(self, fd: int, length: int) -> None:
        status = os.fstat(fd)
        whole = min(length, status.st_blocks * 512) if stat.S_ISREG(status.st_mode) else length
        cached = linux.cached_bytes(fd)
        self.drops = cached is None or cached * 2 <= whole

    def release(self, fd: int, offset: int, length: int) -> None:
        """Let the kernel drop the clean pages that are completely in the range."""
        # Length 0 would mean "to the end of the file".
        if self.drops and length > 0:
            os.posix_fadvise(fd, offset, length, os.POSIX_FADV_DONTNEED)

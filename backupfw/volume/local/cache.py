"""Good manners towards the host's page cache."""

from __future__ import annotations

import os
import stat

from backupfw.volume.local import linux


class CacheManners:
    """Decides once, when a file is opened, whether what is read or written of it is dropped again.

    A file of which more than half is in the cache already is kept there by somebody (a guest that
    runs on it, or it was just written): dropping it would cost them more than keeping it costs.  Any
    other file is dropped range by range.  The bound: of such a file also those pages go that somebody
    else had in the cache.

    :param fd: the open file.
    :param length: bytes that count as the whole.
    """

    def __init__(self, fd: int, length: int) -> None:
        status = os.fstat(fd)
        whole = min(length, status.st_blocks * 512) if stat.S_ISREG(status.st_mode) else length
        cached = linux.cached_bytes(fd)
        self.drops = cached is None or cached * 2 <= whole

    def release(self, fd: int, offset: int, length: int) -> None:
        """Let the kernel drop the clean pages that lie wholly in the range."""
        # Length 0 would mean "to the end of the file".
        if self.drops and length > 0:
            os.posix_fadvise(fd, offset, length, os.POSIX_FADV_DONTNEED)

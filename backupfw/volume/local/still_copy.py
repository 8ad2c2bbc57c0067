"""Copies of a file or device that may have a writer: proven consistent, or refused.

Either of two proofs is enough:

*Times.*  On ext4, xfs and btrfs every write changes the file's times before its first byte is written.  Times
are coarse (a clock tick, a second on old inodes), so first the file's times must not change for ``settle``
seconds; from then on a write changes them visibly.  A write to mapped memory changes the times when it first
touches a clean page, so after that wait all pages are written back, which makes them clean.  If the times are
still the same after the copy, nothing was written in between.  The limit of this proof: a single system call
or direct transfer that takes longer than ``settle`` seconds.

*A second read.*  If a second read returns the same bytes as the first one, all of them existed at the moment
between the two.  Devices and other file systems (network ones cache times, memory ones do not change times
for writes to mapped memory) are read directly, past the page cache, if they allow it.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from dataclasses import dataclass

from backupfw.errors import SourceMoved
from backupfw.volume.base import Tick
from backupfw.volume.local import linux
from backupfw.volume.local.mirror import mirror
from backupfw.volume.local.opening import again

_EXT = 0xEF53
_XFS = 0x58465342
_BTRFS = 0x9123683E
#: File systems of this host alone whose times show every write.
_TIMES_PROVE = frozenset({_EXT, _XFS, _BTRFS})
# Seconds between two ticks while waiting.
_NAP = 0.2


@dataclass(frozen=True, slots=True)
class Stamp:
    """Values that every write to a file changes."""

    inode: int
    length: int
    modified: int
    changed: int

    @classmethod
    def of(cls, fd: int) -> Stamp:
        """Take the stamp of an open file."""
        status = os.fstat(fd)
        return cls(status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def still_copy(opened: int, target: int, length: int, tries: int, settle: float, tick: Tick) -> None:
    """Copy ``length`` bytes of an image or device as they were at one moment.

    :param opened: open for reading.
    :param target: an empty file open for reading and writing, ``length`` bytes long.
    :param tries: how often a copy of a changing source is updated before giving up.
    :param settle: seconds for which the file's times must not change before they prove anything.
    :raises SourceMoved: it changed during every try.
    """
    source = _open(opened)
    try:
        by_times = times_prove(source)
        # A second read needs a first one, which does not count as a try.
        for number in range(tries + 1):
            stamp = _rested(source, settle, tick) if by_times else None
            changed = mirror(source, target, length, tick, fresh=number == 0)
            if stamp is not None and Stamp.of(source) == stamp:
                return
            if number > 0 and changed == 0:
                return
    finally:
        os.close(source)
    raise SourceMoved(f"The volume changed during each of {tries} copies.")


def times_prove(fd: int) -> bool:
    """Return whether the file's times show every write to it."""
    return stat.S_ISREG(os.fstat(fd).st_mode) and linux.file_system_magic(fd) in _TIMES_PROVE


def _open(opened: int) -> int:
    """Open it for the copy, past the page cache if times prove nothing and that is possible."""
    if times_prove(opened):
        return os.dup(opened)
    try:
        return again(opened, os.O_RDONLY | os.O_DIRECT)
    except OSError as error:
        if error.errno not in linux.NOT_SUPPORTED:
            raise
        return os.dup(opened)


def _rested(fd: int, settle: float, tick: Tick) -> Stamp | None:
    """Return the file's stamp if it did not change for ``settle`` seconds and all its pages are clean now."""
    stamp = Stamp.of(fd)
    rested = time.monotonic() + settle
    while (left := rested - time.monotonic()) > 0:
        tick()
        time.sleep(min(left, _NAP))
        if Stamp.of(fd) != stamp:
            return None
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno != errno.EROFS:
            raise
    return stamp if Stamp.of(fd) == stamp else None

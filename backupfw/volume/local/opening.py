"""The only way to open an image file or block device: it is checked first, and never opened through a link.

A user who can write to a directory of the path may have put anything there: a link to a file of root, a FIFO
on which an open would wait, another image.  So each part of the path is opened by itself, without following
links.  The result is a descriptor that does nothing (``O_PATH``); its kind is checked, and only an image file
or block device is opened, through that descriptor, so nothing can change in between.  Names below /dev are
links of root and may be followed.
"""

from __future__ import annotations

import errno
import os
import stat
from dataclasses import dataclass

from backupfw.volume.local import linux
from backupfw.volume.local.storage_id import StorageId

_LOOK = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_KINDS = {
    stat.S_IFLNK: "a symbolic link",
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a character device",
}
_GONE = frozenset({errno.ENOENT, errno.ENXIO, errno.ENODEV, errno.ENOMEDIUM})
_BARRED = frozenset({errno.ENOTDIR, errno.ELOOP})
_FORBIDDEN = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})


class Unusable(Exception):
    """The object at the path cannot be used, now or later; the text continues a sentence: ``is gone``."""


class Busy(Exception):
    """The block device is mounted, or held by another program."""


@dataclass(frozen=True, slots=True)
class Opened:
    """An open image file or block device; the owner must close ``fd``.

    :ivar length: bytes.
    """

    fd: int
    is_device: bool
    length: int
    storage_id: StorageId

    @classmethod
    def of(cls, fd: int) -> Opened:
        """Return the data of an open image file or block device."""
        status = os.fstat(fd)
        is_device = stat.S_ISBLK(status.st_mode)
        length = linux.device_length(fd) if is_device else status.st_size
        return cls(fd, is_device, length, StorageId.of(fd))


def open_storage(path: str, *, write: bool = False, exclusive: bool = False) -> Opened:
    """Open an image file or block device.

    :param path: absolute, without links, except a name below /dev.
    :param exclusive: open a block device exclusively; ignored for a file.
    :raises Unusable: it does not exist, or may not be used.
    :raises Busy: the device is not free.
    :raises OSError: another failure; a later try may succeed.
    """
    try:
        held = hold(path)
        try:
            return _open_held(held, write, exclusive)
        finally:
            os.close(held)
    except OSError as error:
        if problem := _problem(error):
            raise Unusable(problem) from error
        raise


def hold(path: str) -> int:
    """Return an ``O_PATH`` descriptor of a path: it never waits, and does not open a device.

    :raises OSError: it does not exist, or a directory of the path is a link or no directory.
    """
    if is_device_name(path):
        return os.open(path, os.O_PATH | os.O_CLOEXEC)
    *parents, name = path.split("/")[1:]
    directory = os.open("/", _LOOK | os.O_DIRECTORY)
    try:
        for part in parents:
            inner = os.open(part, _LOOK | os.O_DIRECTORY, dir_fd=directory)
            os.close(directory)
            directory = inner
        return os.open(name, _LOOK, dir_fd=directory)
    finally:
        os.close(directory)


def is_device_name(path: str) -> bool:
    """Return whether only root can create this name: it is in /dev itself, not in a mount below it."""
    if not path.startswith("/dev/"):
        return False
    try:
        return os.stat(os.path.dirname(path)).st_dev == os.stat("/dev").st_dev
    except OSError:
        return False


def again(fd: int, flags: int) -> int:
    """Open the file of a descriptor again, with other flags."""
    return os.open(f"/proc/self/fd/{fd}", flags | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)


def _open_held(held: int, write: bool, exclusive: bool) -> Opened:
    status = os.fstat(held)
    is_device = stat.S_ISBLK(status.st_mode)
    if not is_device and not stat.S_ISREG(status.st_mode):
        kind = _KINDS.get(stat.S_IFMT(status.st_mode), "something else")
        raise Unusable(f"is {kind}, neither an image file nor a block device")
    flags = os.O_RDWR if write else os.O_RDONLY
    try:
        fd = again(held, flags | (os.O_EXCL if exclusive and is_device else 0))
    except OSError as error:
        if error.errno == errno.EBUSY and is_device:
            raise Busy from error
        raise
    try:
        return Opened.of(fd)
    except BaseException:
        os.close(fd)
        raise


def _problem(error: OSError) -> str | None:
    if error.errno in _GONE:
        return "is gone"
    if error.errno in _BARRED:
        return "cannot be reached: a directory on the way is gone or a symbolic link"
    if error.errno in _FORBIDDEN:
        return f"cannot be opened: {(error.strerror or 'refused').lower()}"
    return None

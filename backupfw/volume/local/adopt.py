"""Judges storage that shall become a volume."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Sequence

from backupfw.errors import InvalidInput
from backupfw.volume.local import linux

#: How image formats begin that are not the disk's bytes themselves.
_FORMATS = {
    b"QFI\xfb": "qcow2",
    b"QED\0": "qed",
    b"KDMV": "vmdk",
    b"COWD": "vmdk",
    b"# Disk Descrip": "vmdk",
    b"vhdxfile": "vhdx",
    b"conectix": "vhd",
    b"<<< ": "vdi",
}


def adopted(path: str, own_directories: Sequence[str], allow_devices: bool) -> tuple[str, int]:
    """Return the location to keep and the length in bytes.

    :param path: absolute; links are followed once, now.  Only a name below /dev is kept as it is,
        because the kernel's own name of a disk may be another disk's after a reboot.
    :param own_directories: where the provider's own files are.
    :raises InvalidInput: it is not a raw image or block device that we can read and write.
    """
    if not os.path.isabs(path) or "\0" in path:
        raise InvalidInput(f"{path!r} is not an absolute path.")
    path = path.rstrip("/")
    real = os.path.realpath(path)
    try:
        # Looked at before it is opened: opening a FIFO or a character device can do things.
        before = os.stat(real)
    except OSError as error:
        raise InvalidInput(f"{path} cannot be used: {error.strerror}.") from error
    is_device = stat.S_ISBLK(before.st_mode)
    if not is_device and not stat.S_ISREG(before.st_mode):
        raise InvalidInput(f"{path} is neither an image file nor a block device.")
    if is_device and not allow_devices:
        raise InvalidInput("Block devices may not become volumes here ([volumes] allow_devices).")
    if not is_device and _is_ours(real, before, own_directories):
        raise InvalidInput(f"{path} belongs to this service's own volumes.")
    try:
        fd = os.open(real, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
            raise InvalidInput(f"{path} cannot be read and written: {error.strerror}.") from error
        raise InvalidInput(f"{path} cannot be opened: {error.strerror}.") from error
    try:
        return _location(path, real, is_device), _length(path, fd, before, is_device)
    finally:
        os.close(fd)


def _length(path: str, fd: int, before: os.stat_result, is_device: bool) -> int:
    now = os.fstat(fd)
    if (now.st_dev, now.st_ino, now.st_rdev) != (before.st_dev, before.st_ino, before.st_rdev):
        raise InvalidInput(f"{path} was replaced while it was looked at.")
    if is_device and linux.device_is_read_only(fd):
        raise InvalidInput(f"{path} is a read-only device.")
    length = linux.device_length(fd) if is_device else now.st_size
    if length == 0:
        raise InvalidInput(f"{path} is empty.")
    start = os.pread(fd, max(map(len, _FORMATS)), 0)
    for magic, name in _FORMATS.items():
        if start.startswith(magic):
            raise InvalidInput(f"{path} is a {name} image; only raw images can be volumes. Convert it first.")
    return length


def _location(path: str, real: str, is_device: bool) -> str:
    # Only root can put a name there, so it cannot be turned to something else.
    parent = os.path.realpath(os.path.dirname(path))
    if is_device and (parent == "/dev" or parent.startswith("/dev/")):
        return os.path.join(parent, os.path.basename(path))
    return real


def _is_ours(real: str, status: os.stat_result, own_directories: Sequence[str]) -> bool:
    for directory in own_directories:
        if os.path.commonpath((real, directory)) == directory:
            return True
        if status.st_nlink > 1:
            # A hard link from elsewhere to one of our files.
            with os.scandir(directory) as entries:
                if any(os.path.samestat(status, entry.stat(follow_symlinks=False)) for entry in entries):
                    return True
    return False

"""The system calls and ioctls that Python's ``os`` does not have (64-bit Linux)."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import struct

_FICLONE = 0x40049409
_BLKGETSIZE64 = 0x80081272
_BLKROGET = 0x125E
_BLKZEROOUT = 0x127F
_FALLOC_KEEP_SIZE = 0x01
_FALLOC_PUNCH_HOLE = 0x02
# One number on all architectures, as for every system call added since 5.1.
_SYS_CACHESTAT = 451

#: The errors of a file system that does not support a call, or not for this kind of file.
NOT_SUPPORTED = frozenset({errno.EOPNOTSUPP, errno.ENOSYS, errno.ENOTTY, errno.EINVAL, errno.ENODEV})

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
_AT_EMPTY_PATH = 0x1000
_STATX_BTIME = 0x800
# Not every C library has it.
_statx = getattr(_libc, "statx", None)
_libc.fstatfs.argtypes = (ctypes.c_int, ctypes.c_void_p)


def _raise_errno() -> None:
    number = ctypes.get_errno()
    raise OSError(number, os.strerror(number))


def clone_file(target: int, source: int) -> None:
    """Make ``target`` share all of ``source``'s blocks, atomically; its length becomes the source's.

    :raises OSError: EXDEV (not one file system) or one of :data:`NOT_SUPPORTED`: it is not supported here.
    """
    fcntl.ioctl(target, _FICLONE, source)


def punch_hole(fd: int, offset: int, length: int) -> None:
    """Deallocate a range, which reads as zeros then; edges within a block are zeroed.

    On a block device the range must be aligned to its logical blocks.

    :raises OSError: one of :data:`NOT_SUPPORTED` where it cannot be done.
    """
    while _libc.fallocate(fd, _FALLOC_PUNCH_HOLE | _FALLOC_KEEP_SIZE, offset, length) != 0:
        if ctypes.get_errno() != errno.EINTR:
            _raise_errno()


def zero_device(fd: int, offset: int, length: int) -> None:
    """Zero an aligned range of a block device in its fastest way; allocated ranges stay allocated."""
    # A bytearray: the interpreter lock is given up while the device works.
    fcntl.ioctl(fd, _BLKZEROOUT, bytearray(struct.pack("=QQ", offset, length)))


def device_length(fd: int) -> int:
    """Return a block device's length in bytes."""
    (length,) = struct.unpack("=Q", fcntl.ioctl(fd, _BLKGETSIZE64, bytes(8)))
    return int(length)


def device_is_read_only(fd: int) -> bool:
    """Return whether a block device is read-only."""
    (flag,) = struct.unpack("=i", fcntl.ioctl(fd, _BLKROGET, bytes(4)))
    return bool(flag)


def birth_time(fd: int) -> int | None:
    """Return the birth time of a file, ns since 1970; None if the file system does not record it."""
    buffer = (ctypes.c_uint8 * 256)()
    if _statx is None or _statx(fd, b"", _AT_EMPTY_PATH, _STATX_BTIME, buffer) != 0:
        return None
    (mask,) = struct.unpack_from("=I", buffer, 0)
    seconds, nanoseconds = struct.unpack_from("=qI", buffer, 80)
    return seconds * 1_000_000_000 + nanoseconds if mask & _STATX_BTIME else None


def file_system_magic(fd: int) -> int:
    """Return the number of the type of a file's file system."""
    buffer = ctypes.create_string_buffer(256)
    if _libc.fstatfs(fd, buffer) != 0:
        _raise_errno()
    return int(ctypes.c_long.from_buffer(buffer).value) & 0xFFFFFFFF


def cached_bytes(fd: int) -> int | None:
    """Return how much of a file is in the page cache, or None if the kernel does not report it."""
    everything = (ctypes.c_uint64 * 2)(0, 0)
    counters = (ctypes.c_uint64 * 5)()
    result = _libc.syscall(
        ctypes.c_long(_SYS_CACHESTAT),
        ctypes.c_uint(fd),
        ctypes.byref(everything),
        ctypes.byref(counters),
        ctypes.c_uint(0),
    )
    return int(counters[0]) * os.sysconf("SC_PAGESIZE") if result == 0 else None

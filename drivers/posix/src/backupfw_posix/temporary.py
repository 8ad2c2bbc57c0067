"""Files being written, and what killed writers left of them.

A file is written in its container's ``.tmp`` directory and moved to its place when it is whole.  Its
writer holds a lock on it (``flock``), which ends with the writer: a file whose lock can be had belongs
to nobody.  So no clock decides what is left over.  On a share whose locks do not reach other hosts, a file
in use may count as left over: its put then fails with a temporary error and is tried again.
"""

from __future__ import annotations

import fcntl
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from backupfw_posix.directories import READ, opened
from backupfw_posix.names import TEMPORARY


@dataclass(slots=True)
class TemporaryFile:
    """A file being written.

    :ivar directory: descriptor of the directory it stands in.
    :ivar name: its name there.
    :ivar descriptor: open for writing, locked.
    """

    directory: int
    name: bytes
    descriptor: int

    def is_there(self) -> bool:
        """Whether it still has its name."""
        return os.fstat(self.descriptor).st_nlink > 0


@contextmanager
def temporary_file(container: int, file_mode: int, directory_mode: int) -> Iterator[TemporaryFile]:
    """Make an empty file for the block; its temporary name is gone afterwards, whatever happened.

    :param container: descriptor of the container's directory.
    :raises OSError: it cannot be made.
    """
    try:
        directory = os.open(TEMPORARY, READ, dir_fd=container)
    except FileNotFoundError:
        with suppress(FileExistsError):
            os.mkdir(TEMPORARY, directory_mode, dir_fd=container)
        directory = os.open(TEMPORARY, READ, dir_fd=container)
    try:
        file = _make(directory, file_mode)
        try:
            yield file
        finally:
            os.close(file.descriptor)
            with suppress(FileNotFoundError):
                os.unlink(file.name, dir_fd=directory)
    finally:
        os.close(directory)


def _make(directory: int, mode: int) -> TemporaryFile:
    while True:
        name = secrets.token_hex(16).encode()
        descriptor = os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, mode, dir_fd=directory)
        file = TemporaryFile(directory, name, descriptor)
        try:
            # Without locks on this file system, no file counts as left over.
            with suppress(OSError):
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            # A clean-up may have removed it before it was locked: then make another one.
            if file.is_there():
                return file
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def remove_leftovers(container: int) -> int:
    """Remove the files of writers that live no more; return how many there were.

    :param container: descriptor of the container's directory.
    """
    removed = 0
    try:
        with opened(TEMPORARY, READ, container) as directory:
            for name in os.listdir(directory):
                removed += _remove_leftover(directory, name)
    except FileNotFoundError:
        pass
    return removed


def _remove_leftover(directory: int, name: str) -> bool:
    try:
        # Writable, because a lock over NFS asks for it.
        with opened(name, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK, directory) as descriptor:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.unlink(name, dir_fd=directory)
    except OSError:
        # Locked, gone, or not ours to judge.
        return False
    return True

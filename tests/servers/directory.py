"""Directories for servers' files: reachable by the servers' own user, and not left behind for ever."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_PREFIX = "backupfw-server-"


@contextmanager
def server_directory(place: str | None = None) -> Iterator[Path]:
    """Make a directory that every user can pass through, and remove it in the end.

    Below pytest's own directories, which are its user's alone, servers that run as somebody else could not
    live.  A test run that is killed removes nothing: the next one does, see :func:`remove_left`.

    :param place: where to make it; None for the system's place for temporary files.
    """
    place = place or tempfile.gettempdir()
    remove_left(place)
    path, lock = _made(place)
    try:
        path.chmod(0o755)
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
        os.close(lock)


def _made(place: str) -> tuple[Path, int]:
    """Return a new directory, and the lock that says that it is used."""
    while True:
        path = tempfile.mkdtemp(prefix=_PREFIX, dir=place)
        lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        fcntl.flock(lock, fcntl.LOCK_EX)
        if os.path.exists(path):
            return Path(path), lock
        # Another run took it for one that was left, before it was locked.
        os.close(lock)


def remove_left(place: str) -> None:
    """Remove what runs that were killed have left: nobody holds its lock.

    Their servers are dead, too: :class:`tests.servers.process.ServerProcess` sees to it.
    """
    for path in Path(place).glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):
            lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(path, ignore_errors=True)
            finally:
                os.close(lock)

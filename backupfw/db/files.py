"""The files of a SQLite database: readable by their owner only, whatever the umask is."""

from __future__ import annotations

import os

#: What SQLite appends to the name of its file: nothing, for the log, for the log's index.
SQLITE_SUFFIXES = ("", "-wal", "-shm")


def make_private(path: str) -> None:
    """Make a database file, unless it is there, before SQLite does; files of an earlier release too.

    SQLite gives its other files the mode of the first.  A file of somebody else's stays as it is.
    """
    try:
        os.close(os.open(path, os.O_CREAT | os.O_RDONLY | os.O_CLOEXEC, 0o600))
    except OSError:
        # SQLite says better what is wrong with it.
        return
    for suffix in SQLITE_SUFFIXES:
        try:
            if os.stat(path + suffix).st_mode & 0o077:
                os.chmod(path + suffix, 0o600)
        except OSError:
            continue

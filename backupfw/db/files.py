"""The files of a SQLite database: readable by their owner only, whatever the umask is."""

from __future__ import annotations

import os

#: Suffixes of SQLite's files: the database, its log, the log's index.
SQLITE_SUFFIXES = ("", "-wal", "-shm")


def make_private(path: str) -> None:
    """Create a database file with its mode before SQLite does, and correct the mode of existing files.

    SQLite gives its other files the mode of the first.  A file of another user stays as it is.
    """
    try:
        os.close(os.open(path, os.O_CREAT | os.O_RDONLY | os.O_CLOEXEC, 0o600))
    except OSError:
        # SQLite reports the error better.
        return
    for suffix in SQLITE_SUFFIXES:
        try:
            if os.stat(path + suffix).st_mode & 0o077:
                os.chmod(path + suffix, 0o600)
        except OSError:
            continue

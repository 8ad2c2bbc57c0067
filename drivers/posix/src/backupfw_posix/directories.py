"""Directories by descriptor, one step at a time.

Every step from the root down is an ``openat`` that follows no symbolic link, so neither a name nor
anything planted inside the root leads out of it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

#: Enough to go on from and to look up names in; needs only search permission.
STEP = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW
#: For reading the names in a directory and for fsync.
READ = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW


@contextmanager
def opened(name: bytes | str, flags: int, parent: int | None = None) -> Iterator[int]:
    """Open and close a descriptor.

    :param parent: descriptor of the directory ``name`` stands in; None for a path of its own.
    :raises OSError: it cannot be opened.
    """
    descriptor = os.open(name, flags, dir_fd=parent)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def descend(start: int, names: Iterable[bytes], last_flags: int = STEP) -> Iterator[int]:
    """Open the directory reached from ``start`` by ``names``.

    :param start: a directory's descriptor, not closed here.
    :param last_flags: how the last one is opened: :data:`STEP` or :data:`READ`.
    :raises FileNotFoundError: a directory is missing.
    :raises NotADirectoryError: a file or symbolic link is in the way.
    """
    names = list(names) or [b"."]
    here = start
    try:
        for index, name in enumerate(names):
            below = os.open(name, last_flags if index == len(names) - 1 else STEP, dir_fd=here)
            if here != start:
                os.close(here)
            here = below
        yield here
    finally:
        if here != start:
            os.close(here)

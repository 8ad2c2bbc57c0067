"""Listing in the order of keys, lazily.

No descriptor is open while the caller works, so an abandoned listing leaks nothing.  Memory holds the names
of one directory per level.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from backupfw.chunkstore.base import ObjectInfo
from backupfw_posix.directories import READ, STEP, descend
from backupfw_posix.names import Kind, Name, directories_of, understand, understand_plain

#: Opens the container's directory for the time of a block.
OpenContainer = Callable[[], AbstractContextManager[int]]

#: Sizes are looked up for this many objects at once.
_RUN = 1000
#: The end of the packed name of every object, and of no other name.
_OBJECT = b"\0" + Kind.OBJECT.value.encode()


@dataclass(slots=True)
class _Level:
    """A directory whose entries are being listed.

    :ivar path: the directory.
    :ivar key: what all keys in it begin with.
    :ivar entries: packed names, the next one last.  A directory may have very many, so they are kept small,
        and parsed when they are needed.
    """

    path: tuple[bytes, ...]
    key: str
    entries: list[bytes]

    def take_objects(self) -> list[Name]:
        """Take the objects that come next, some of them if they are many."""
        taken: list[Name] = []
        while self.entries and len(taken) < _RUN and self.entries[-1].endswith(_OBJECT):
            taken.append(Name.unpack(self.entries.pop()))
        return taken


def walk(
    open_container: OpenContainer, prefix: str, start_after: str, *, plain: bool = False
) -> Iterator[ObjectInfo]:
    """Yield the objects of a container in the order of their keys' UTF-8 bytes.

    Directories and objects that vanish meanwhile are left out.

    :param plain: names on disk are the parts of keys.
    :raises OSError: the container's directory or one below cannot be read.
    """
    complete = prefix.split("/")[:-1]
    if any(part in ("", ".", "..") for part in complete):
        # No key has such a prefix; but a container that is missing is an error.
        with open_container():
            return
    wanted = _Wanted(prefix, start_after, plain)
    above = tuple(directories_of(complete, plain=plain))
    first = _read(open_container, above, prefix[: prefix.rfind("/") + 1], wanted)
    levels = [first]
    while levels:
        level = levels[-1]
        objects = level.take_objects()
        if objects:
            yield from _sized(open_container, level, objects, plain)
        elif level.entries:
            below = Name.unpack(level.entries.pop())
            path = (*level.path, below.raw(plain=plain))
            levels.append(_read(open_container, path, _key(level.key, below), wanted))
        else:
            levels.pop()


@dataclass(frozen=True, slots=True)
class _Wanted:
    """Which keys a listing is to yield, and how names on disk are read."""

    prefix: str
    start_after: str
    plain: bool

    def has(self, known: Name, key: str) -> bool:
        """Say whether a name in the directory of ``key`` is wanted, or may lead to wanted keys."""
        full = _key(key, known)
        prefix, start_after = self.prefix, self.start_after
        if known.kind is Kind.OBJECT:
            return full.startswith(prefix) and full > start_after
        if not full.startswith(prefix) and not prefix.startswith(full):
            return False
        # All keys below begin with ``full``: they come before ``start_after`` unless it is one of them.
        return full > start_after or start_after.startswith(full)


def _read(open_container: OpenContainer, path: tuple[bytes, ...], key: str, wanted: _Wanted) -> _Level:
    """Read the names in one directory that may lead to wanted keys.

    :param key: what all keys in it begin with.
    """
    in_longer = not wanted.plain and bool(path) and path[-1].endswith(Kind.LONGER.value.encode())
    with open_container() as container:
        try:
            with descend(container, path, READ) as directory:
                names: list[Any] = _plain_names(directory) if wanted.plain else os.listdir(directory)
        except (FileNotFoundError, NotADirectoryError):
            names = []
    # Each packed name replaces a name in the same list, so that a large directory is not held twice.
    kept = 0
    for name in names:
        known = name if isinstance(name, Name) else understand(name, in_longer)
        if known is not None and wanted.has(known, key):
            names[kept] = known.pack()
            kept += 1
    del names[kept:]
    # Bytes, so this is the order of the keys' UTF-8.
    names.sort(reverse=True)
    return _Level(path, key, names)


def _plain_names(directory: int) -> list[Any]:
    with os.scandir(directory) as entries:
        found = (understand_plain(entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries)
        return [name for name in found if name is not None]


def _key(key: str, known: Name) -> str:
    """Return the whole key of an object, or what all keys below a directory begin with."""
    return key + known.text + ("/" if known.kind is Kind.DIRECTORY else "")


def _sized(
    open_container: OpenContainer, level: _Level, objects: list[Name], plain: bool
) -> list[ObjectInfo]:
    found = []
    with open_container() as container:
        try:
            with descend(container, level.path, STEP) as directory:
                for known in objects:
                    try:
                        status = os.stat(known.raw(plain=plain), dir_fd=directory, follow_symlinks=False)
                    except FileNotFoundError:
                        continue
                    if stat.S_ISREG(status.st_mode):
                        found.append(ObjectInfo(_key(level.key, known), status.st_size))
        except (FileNotFoundError, NotADirectoryError):
            pass
    return found

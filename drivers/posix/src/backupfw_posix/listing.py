"""Listing in the order of keys, lazily.

No descriptor is held while the caller works, so an abandoned listing leaks nothing, and memory is that
of the names in one directory per level.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass

from backupfw.chunkstore.base import ObjectInfo
from backupfw_posix.directories import READ, STEP, descend
from backupfw_posix.names import Kind, Name, directories_of, understand

#: Opens the container's directory for the time of a block.
OpenContainer = Callable[[], AbstractContextManager[int]]

#: Sizes are looked up for this many objects at once.
_RUN = 1000


@dataclass(slots=True)
class _Entry:
    kind: Kind
    key: str  # whole key of an object, else what all keys below begin with
    name: bytes
    order: str


@dataclass(slots=True)
class _Level:
    """A directory whose entries are being listed; the next one is the last of the list."""

    path: tuple[bytes, ...]
    entries: list[_Entry]

    def take_objects(self) -> list[_Entry]:
        taken: list[_Entry] = []
        while self.entries and len(taken) < _RUN and self.entries[-1].kind is Kind.OBJECT:
            taken.append(self.entries.pop())
        return taken


def walk(open_container: OpenContainer, prefix: str, start_after: str) -> Iterator[ObjectInfo]:
    """Yield the objects of a container in the order of their keys' UTF-8 bytes.

    Directories and objects that vanish meanwhile are left out.

    :raises OSError: the container's directory or one below cannot be read.
    """
    complete = prefix.split("/")[:-1]
    if any(part in ("", ".", "..") for part in complete):
        # Raised here as everywhere, if there is no container.
        with open_container():
            return
    first = _read(
        open_container, tuple(directories_of(complete)), prefix[: prefix.rfind("/") + 1], prefix, start_after
    )
    levels = [first]
    while levels:
        level = levels[-1]
        objects = level.take_objects()
        if objects:
            yield from _sized(open_container, level.path, objects)
        elif level.entries:
            entry = level.entries.pop()
            levels.append(_read(open_container, (*level.path, entry.name), entry.key, prefix, start_after))
        else:
            levels.pop()


def _read(
    open_container: OpenContainer, path: tuple[bytes, ...], key: str, prefix: str, start_after: str
) -> _Level:
    """Read the names in one directory that may lead to wanted keys.

    :param key: what all keys in it begin with.
    """
    with open_container() as container:
        try:
            with descend(container, path, READ) as directory:
                names = os.listdir(directory)
        except (FileNotFoundError, NotADirectoryError):
            names = []
    in_longer = bool(path) and path[-1].endswith(Kind.LONGER.value.encode())
    entries = []
    for name in names:
        known = understand(name, in_longer)
        if known is not None and (entry := _wanted(known, name, key, prefix, start_after)) is not None:
            entries.append(entry)
    # Text sorts by code points, which is the order of UTF-8 bytes.
    entries.sort(key=lambda entry: entry.order, reverse=True)
    return _Level(path, entries)


def _wanted(known: Name, name: str, key: str, prefix: str, start_after: str) -> _Entry | None:
    full = key + known.text
    if known.kind is Kind.OBJECT:
        if not full.startswith(prefix) or full <= start_after:
            return None
    else:
        if known.kind is Kind.DIRECTORY:
            full += "/"
        if not full.startswith(prefix) and not prefix.startswith(full):
            return None
        # All keys below begin with ``full``: they come before ``start_after`` unless it is one of them.
        if full <= start_after and not start_after.startswith(full):
            return None
    return _Entry(known.kind, full, os.fsencode(name), known.order)


def _sized(open_container: OpenContainer, path: tuple[bytes, ...], objects: list[_Entry]) -> list[ObjectInfo]:
    found = []
    with open_container() as container:
        try:
            with descend(container, path, STEP) as directory:
                for entry in objects:
                    try:
                        status = os.stat(entry.name, dir_fd=directory, follow_symlinks=False)
                    except FileNotFoundError:
                        continue
                    if stat.S_ISREG(status.st_mode):
                        found.append(ObjectInfo(entry.key, status.st_size))
        except (FileNotFoundError, NotADirectoryError):
            pass
    return found

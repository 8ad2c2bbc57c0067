"""How keys become paths, and back.  The form must never change: stores in use depend on it.

A key's parts (what ``/`` separates) become nested directories, the last one a file.  Every name on
disk is a part and a suffix that says what it is, so no part needs escaping and ``a`` and ``a/b`` can
both be stored::

    a            a.o
    a/b          a.d/b.o
    xx…x/b       xx….c/…x.d/b.o     (a part of 240 bytes or more, cut after at most 240)

A part is cut between characters, so names stay valid UTF-8, and again and again until less than 240
bytes remain, perhaps none.  Suffixes also keep a part like ``..`` from being a path of its own.

*Plain* names, an option, are the parts themselves: so other programs write a directory, and read it.  With
them a key cannot be both an object and the beginning of others, and no part can have more than 255 bytes.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from enum import Enum

#: A part this long, in UTF-8 bytes, is cut.  File systems allow 255 bytes; the rest is for the suffix.
PART_BYTES = 240
#: Holds the files being written, beside the objects; has none of the suffixes, so it is never listed.
TEMPORARY = b".tmp"


class Kind(Enum):
    """What a name on disk is; the value is its suffix."""

    OBJECT = ".o"
    DIRECTORY = ".d"
    LONGER = ".c"


_KINDS = {kind.value: kind for kind in Kind}


@dataclass(frozen=True, slots=True)
class Name:
    """A name on disk, understood.

    :ivar kind: what it is.
    :ivar text: the part, or the piece of a part.
    :ivar order: sorts as the first of the keys below it does, within one directory.
    """

    kind: Kind
    text: str
    order: str

    def raw(self, *, plain: bool) -> bytes:
        """Return the name on disk."""
        return (self.text if plain else self.text + self.kind.value).encode()

    def pack(self) -> bytes:
        """Return the name as little more than its own bytes, which sort as ``order`` does."""
        # Names hold no NUL, and nothing sorts before it: what follows it does not touch the order.
        return f"{self.order}\0{self.kind.value}".encode()

    @staticmethod
    def unpack(packed: bytes) -> Name:
        """Return the name that :meth:`pack` was called on."""
        order, _, suffix = packed.decode().partition("\0")
        kind = _KINDS[suffix]
        if kind is Kind.OBJECT:
            return Name(kind, order, order)
        if kind is Kind.LONGER and len(order.encode()) == PART_BYTES:
            return Name(kind, order, order)
        return Name(kind, order[:-1], order)


def location(key: str, *, plain: bool = False) -> tuple[tuple[bytes, ...], bytes]:
    """Return the directories of an object, outermost first, and its file's name."""
    if plain:
        *above, name = key.encode().split(b"/")
        return tuple(above), name
    head, _, last = key.rpartition("/")
    directories = directories_of(head.split("/")) if head else []
    rest = _cut(last, directories)
    return tuple(directories), (rest + Kind.OBJECT.value).encode()


def directories_of(parts: list[str], *, plain: bool = False) -> list[bytes]:
    """Return the directories that complete parts of a key become."""
    if plain:
        return [part.encode() for part in parts]
    directories: list[bytes] = []
    for part in parts:
        rest = _cut(part, directories)
        directories.append((rest + Kind.DIRECTORY.value).encode())
    return directories


def _cut(part: str, directories: list[bytes]) -> str:
    """Append the directories of a long part's pieces; return what remains of it."""
    data = part.encode()
    while len(data) >= PART_BYTES:
        # Going back over at most three continuation bytes ends at a character's first byte.
        end = PART_BYTES
        while end < len(data) and data[end] & 0xC0 == 0x80:
            end -= 1
        directories.append(data[:end] + Kind.LONGER.value.encode())
        data = data[end:]
    return data.decode()


def understand(name: str, in_longer: bool) -> Name | None:
    """Say what a name on disk is, or None when this driver never gives such a name.

    :param name: as :func:`os.listdir` returns it.
    :param in_longer: whether it stands in a directory of kind LONGER: only there may a piece be empty.
    """
    kind = _KINDS.get(name[-2:])
    if kind is None:
        return None
    data = os.fsencode(name)[:-2]
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return None
    if kind is Kind.LONGER:
        missing = PART_BYTES - len(data)
        if missing not in _NEXT:
            return None
        return Name(kind, text, text + _NEXT[missing])
    if len(data) >= PART_BYTES or (not in_longer and text in ("", ".", "..")):
        return None
    return Name(kind, text, text + "/" if kind is Kind.DIRECTORY else text)


def understand_plain(name: str, is_directory: bool) -> Name | None:
    """Say what a plain name on disk is, or None when it is no part of a key."""
    try:
        text = os.fsencode(name).decode()
    except UnicodeDecodeError:
        return None
    if text == TEMPORARY.decode():
        return None
    if is_directory:
        return Name(Kind.DIRECTORY, text, text + "/")
    return Name(Kind.OBJECT, text, text)


#: Bytes by which a cut piece is shorter than 240 -> the smallest character that does not fit into them.  In
#: each key of that directory the next character is at least this one: a shorter one would be in the piece.
#: So the directory sorts as the piece followed by this character.
_NEXT = {0: "", 1: "\x80", 2: "\u0800", 3: "\U00010000"}

"""The keys of a link: what may stand behind its prefix."""

from __future__ import annotations

import re

_NUMBERED = re.compile(r"(.*)-([0-9]{5,9})", re.DOTALL)


def metadata_key(prefix: str) -> str:
    """Return the key of the object that completes a link."""
    return f"{prefix}_metadata"


def hashes_key(prefix: str) -> str:
    """Return the key of the list of the hashes of all blocks."""
    return f"{prefix}_sha256file"


def object_key(prefix: str, number: int) -> str:
    """Return the key of a data object."""
    return f"{prefix}-{number:05d}"


def split(name: str) -> tuple[str, int] | None:
    """Undo :func:`object_key`; None: no data object has this name."""
    found = _NUMBERED.fullmatch(name)
    if found is None:
        return None
    number = int(found[2])
    return (found[1], number) if object_key(found[1], number) == name and number else None


def belongs(prefix: str, key: str) -> bool:
    """Return whether a key is one of a link's; other links may have longer prefixes that begin alike."""
    if key in (metadata_key(prefix), hashes_key(prefix)):
        return True
    found = split(key)
    return found is not None and found[0] == prefix

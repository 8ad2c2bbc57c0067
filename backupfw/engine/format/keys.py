"""Keys of the backup format: built and parsed here and nowhere else.

An *origin* is the prefix under which one attempt of one backup puts everything::

    <installation>/<project>/<volume>/<backup>/<epoch>.<attempt>-<16 hex>

Below it lie ``manifest``, ``<segment, 8 hex>/map`` and ``<segment, 8 hex>/p<number, 4 hex>``.  The token
makes an origin unique for ever, so no key has two writers and none is used again after a delete.

Beside the backups of a volume lie its wrapped data keys: ``<installation>/<project>/<volume>/keys/<32 hex>``.

Parsing is the exact inverse of building: a key that this module would not have built parses as None.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from backupfw import naming

Kind = Literal["manifest", "map", "pack"]

#: Segment indexes are written with 8 hexadecimal digits, pack numbers with 4.
MAX_SEGMENTS = 1 << 32
MAX_PACKS = 1 << 16
#: Characters of an origin: what leaves room for the longest tail in the longest key.
MAX_ORIGIN_LENGTH = naming.MAX_KEY_BYTES - len("/00000000/p0000")
#: Most characters of an origin behind its volume's prefix, the part that readers keep in memory.  With a
#: UUID as the backup's id there are at most 75.
MAX_ORIGIN_TAIL = 128

#: Largest epoch and attempt; they are counted from 0 and fit the database's INTEGER.
_MAX_NUMBER = (1 << 31) - 1
_NUMBER = r"(?:0|[1-9][0-9]{0,9})"
_LAST_PART = re.compile(rf"({_NUMBER})\.({_NUMBER})-([0-9a-f]{{16}})")
_MAP = re.compile(r"([0-9a-f]{8})/map")
_PACK = re.compile(r"([0-9a-f]{8})/p([0-9a-f]{4})")
_DATA_KEY = re.compile(r"[^/]+/[^/]+/[^/]+/keys/[0-9a-f]{32}")


@dataclass(frozen=True, slots=True)
class Origin:
    """Who put an object: one attempt of one backup.

    :ivar installation: the installation's id.
    :ivar project: the project's id, as it is (not encoded).
    :ivar volume: the volume's id.
    :ivar backup: the id of the backup that made the data.
    :ivar epoch: counts the fresh starts of the backup, from 0.
    :ivar attempt: the task's attempt number.
    :ivar token: 64 random bits as 16 hexadecimal digits, drawn for the attempt.
    """

    installation: str
    project: str
    volume: str
    backup: str
    epoch: int
    attempt: int
    token: str

    def __str__(self) -> str:
        """Return the origin as a key prefix, without a slash at the end."""
        prefix = backup_prefix(self.installation, self.project, self.volume, self.backup)
        return f"{prefix}{self.epoch}.{self.attempt}-{self.token}"


@dataclass(frozen=True, slots=True)
class ParsedKey:
    """What a key of ours says.

    :ivar origin: the key prefix of the attempt that put the object.
    :ivar kind: ``manifest``, ``map`` or ``pack``.
    :ivar segment: the segment's index; -1 for a manifest.
    :ivar number: the pack's number within segment and origin; -1 for the others.
    """

    origin: str
    kind: Kind
    segment: int = -1
    number: int = -1


def installation_prefix(installation: str) -> str:
    """Return the prefix of every key of an installation, with its slash."""
    return f"{naming.key_part(installation)}/"


def volume_prefix(installation: str, project: str, volume: str) -> str:
    """Return the prefix of every key of a volume's backups, with its slash."""
    part = naming.key_part
    return f"{part(installation)}/{part(project)}/{part(volume)}/"


def volume_prefix_of(key: str) -> str:
    """Return the prefix of the volume that a key, an origin or a backup's prefix lies below."""
    return "/".join(key.split("/", 3)[:3]) + "/"


def backup_prefix(installation: str, project: str, volume: str, backup: str) -> str:
    """Return the prefix of everything a backup puts in all its epochs and attempts, with its slash."""
    return f"{volume_prefix(installation, project, volume)}{naming.key_part(backup)}/"


def epoch_prefix(installation: str, project: str, volume: str, backup: str, epoch: int) -> str:
    """Return the prefix of all attempts of one epoch; ends in a dot, so epoch 1 is no prefix of 10."""
    return f"{backup_prefix(installation, project, volume, backup)}{epoch}."


def origin_of(key: str) -> str:
    """Return the origin that an object's key begins with; the key is one that :func:`parse` takes."""
    return "/".join(key.split("/", 5)[:5])


def manifest_key(origin: str) -> str:
    """Return the key of an origin's manifest."""
    return f"{origin}/manifest"


def map_key(origin: str, segment: int) -> str:
    """Return the key of the map that an origin put for a segment."""
    return f"{origin}/{segment:08x}/map"


def pack_key(origin: str, segment: int, number: int) -> str:
    """Return the key of the pack of that number that an origin put for a segment."""
    return f"{origin}/{segment:08x}/p{number:04x}"


def data_keys_prefix(prefix: str) -> str:
    """Return the prefix of the wrapped data keys of the volume with this prefix."""
    return f"{prefix}keys/"


def data_key_key(prefix: str, key_id: str) -> str:
    """Return the key of a wrapped data key of the volume with this prefix."""
    return f"{data_keys_prefix(prefix)}{key_id}"


def is_data_key(key: str) -> bool:
    """Say whether an object is a wrapped data key, by its key."""
    return _DATA_KEY.fullmatch(key) is not None


def is_of_backups(key: str) -> bool:
    """Say whether an object belongs to backups, of any installation, by its key."""
    return parse(key) is not None or is_data_key(key)


def parse_origin(text: str) -> Origin | None:
    """Take an origin apart; None when it is not exactly what :class:`Origin` writes."""
    parts = text.split("/")
    if len(parts) != 5 or len(text) > MAX_ORIGIN_LENGTH or not text.isascii():
        return None
    last = _LAST_PART.fullmatch(parts[4])
    if last is None or max(int(last[1]), int(last[2])) > _MAX_NUMBER:
        return None
    if len(parts[3]) + 1 + len(parts[4]) > MAX_ORIGIN_TAIL:
        return None
    try:
        installation, project, volume, backup = (naming.key_part_text(part) for part in parts[:4])
        origin = Origin(installation, project, volume, backup, int(last[1]), int(last[2]), last[3])
        # One spelling only: another one would let two texts name the same attempt.
        return origin if str(origin) == text else None
    except (UnicodeError, ValueError):
        return None


def parse(key: str) -> ParsedKey | None:
    """Take a key apart; None when it is not exactly one that this format builds."""
    parts = key.split("/", 5)
    if len(parts) != 6:
        return None
    tail = parts[5]
    origin = key[: -len(tail) - 1]
    if parse_origin(origin) is None:
        return None
    if tail == "manifest":
        return ParsedKey(origin, "manifest")
    if match := _MAP.fullmatch(tail):
        return ParsedKey(origin, "map", int(match[1], 16))
    if match := _PACK.fullmatch(tail):
        return ParsedKey(origin, "pack", int(match[1], 16), int(match[2], 16))
    return None

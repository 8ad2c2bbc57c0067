"""What a manifest says of one segment, and the bytes of such entries.

A block of entries has its own table of origins, so it can be read alone.  A page of a manifest is such a
block, and so is the journal's record of a finished segment.

::

    u16 origins, then each: u16 length, ASCII text
    u32 entries, then each:
        u32 segment   u16 map origin   u32 map length   32 map digest
        u64 data bytes   u64 used bytes   u16 packs, then each: u16 origin   u16 number   u32 size
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from backupfw.engine.format import keys
from backupfw.engine.format.binary import DIGEST_BYTES, BadBytes, Cursor

_U16 = struct.Struct("<H")
_U32 = struct.Struct("<I")
_ENTRY = struct.Struct("<IHI32sQQH")
_PACK = struct.Struct("<HHI")

#: Most bytes a segment map and a pack may have: what a reader's memory is bounded by.
MAX_MAP_BYTES = 64 << 20
MAX_PACK_BYTES = 256 << 20


@dataclass(frozen=True, slots=True)
class MapRef:
    """A segment map: the origin that put it, its BLAKE3 digest (32 bytes) and its length in bytes."""

    origin: str
    digest: bytes
    length: int


@dataclass(frozen=True, slots=True)
class PackRef:
    """A pack: the origin that put it, its number there, its size in bytes (header and footer included)."""

    origin: str
    number: int
    size: int


@dataclass(frozen=True, slots=True)
class SegmentEntry:
    """One segment that is not all zero.

    :ivar index: the segment's index in the volume.
    :ivar map: its map.
    :ivar data_bytes: bytes of its blocks that are not zero.
    :ivar used_bytes: bytes those blocks take in the packs, compressed.
    :ivar packs: every pack that the map points into, in the order of the map's pack table.
    """

    index: int
    map: MapRef
    data_bytes: int
    used_bytes: int
    packs: tuple[PackRef, ...]

    @property
    def map_key(self) -> str:
        """The map's key."""
        return keys.map_key(self.map.origin, self.index)

    def pack_keys(self) -> list[str]:
        """Return the keys of the packs, in the order of :attr:`packs`."""
        return [keys.pack_key(pack.origin, self.index, pack.number) for pack in self.packs]

    def object_keys(self) -> list[str]:
        """Return the keys of everything stored for the segment: its map, then its packs."""
        return [self.map_key, *self.pack_keys()]

    def origins(self) -> set[str]:
        """Return the origins that the entry names."""
        return {self.map.origin, *(pack.origin for pack in self.packs)}


def encode_entries(entries: Sequence[SegmentEntry]) -> bytes:
    """Return the bytes of a block of entries."""
    table: dict[str, int] = {}
    body = bytearray(_U32.pack(len(entries)))
    for entry in entries:
        origin = table.setdefault(entry.map.origin, len(table))
        body += _ENTRY.pack(
            entry.index,
            origin,
            entry.map.length,
            entry.map.digest,
            entry.data_bytes,
            entry.used_bytes,
            len(entry.packs),
        )
        for pack in entry.packs:
            body += _PACK.pack(table.setdefault(pack.origin, len(table)), pack.number, pack.size)
    return encode_origins(list(table)) + bytes(body)


def encode_origins(origins: Sequence[str]) -> bytes:
    """Return the bytes of a table of origins."""
    table = bytearray(_U16.pack(len(origins)))
    for origin in origins:
        text = origin.encode("ascii")
        table += _U16.pack(len(text)) + text
    return bytes(table)


def decode_origins(cursor: Cursor, volume_prefix: str) -> list[str]:
    """Read a table of origins.

    Every object's key that is read from stored bytes begins with an origin read here, so this is the one
    place that keeps a manifest to its own volume.

    :param volume_prefix: what each has to begin with: the prefix of the volume that the bytes belong to.
    :raises BadBytes: it is no table of origins, or one of them is not below the volume's prefix.
    """
    (count,) = cursor.unpack(_U16)
    origins = []
    for _ in range(count):
        (length,) = cursor.unpack(_U16)
        origin = cursor.text(length)
        if not origin.startswith(volume_prefix):
            raise BadBytes("it names objects that are not its volume's")
        if keys.parse_origin(origin) is None:
            raise BadBytes("an origin is not one of this format")
        origins.append(origin)
    return origins


def decode_entries(data: bytes | memoryview, volume_prefix: str) -> Iterator[SegmentEntry]:
    """Read a block of entries, one after the other: memory is that of the origins and one entry.

    :param volume_prefix: as :func:`decode_origins` has it.
    :raises BadBytes: it is no block of entries, or they do not ascend by segment; the entries before the
        fault were yielded.
    """
    cursor = Cursor(data)
    origins = decode_origins(cursor, volume_prefix)
    (count,) = cursor.unpack(_U32)
    last = -1
    used: set[str] = set()
    try:
        for _ in range(count):
            index, origin, length, digest, data_bytes, stored, packs = cursor.unpack(_ENTRY)
            if index <= last:
                raise BadBytes("entries are not in the order of segments")
            last = index
            if length > MAX_MAP_BYTES:
                raise BadBytes("a map is longer than any map")
            refs = tuple(
                PackRef(origins[pack_origin], number, size)
                for pack_origin, number, size in _PACK.iter_unpack(cursor.take(packs * _PACK.size))
            )
            if any(ref.size > MAX_PACK_BYTES for ref in refs):
                raise BadBytes("a pack is longer than any pack")
            if len({(ref.origin, ref.number) for ref in refs}) != packs:
                raise BadBytes("an entry names a pack twice")
            entry = SegmentEntry(index, MapRef(origins[origin], digest, length), data_bytes, stored, refs)
            used |= entry.origins()
            yield entry
    except IndexError as error:
        raise BadBytes("an entry names no origin of its table") from error
    # Otherwise reading a small page could take long: a table of 60 000 origins compresses to 4 KiB.
    if len(used) != len(origins):
        raise BadBytes("a table has origins that no entry names")
    cursor.end()


def encode_entry(entry: SegmentEntry | None) -> bytes:
    """Return the journal's bytes for one finished segment; None (all zero) becomes no bytes."""
    return b"" if entry is None else encode_entries([entry])


def decode_entry(data: bytes, volume_prefix: str) -> SegmentEntry | None:
    """Undo :func:`encode_entry`.

    :param volume_prefix: as :func:`decode_origins` has it.
    :raises BadBytes: these are not the bytes of one entry.
    """
    if not data:
        return None
    entries = list(decode_entries(data, volume_prefix))
    if len(entries) != 1:
        raise BadBytes("not exactly one entry")
    return entries[0]


assert _ENTRY.size == 4 + 2 + 4 + DIGEST_BYTES + 8 + 8 + 2

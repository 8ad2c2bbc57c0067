"""Which blocks of a volume differ between two of its backups: by manifests and maps, without reading data."""

from __future__ import annotations

from collections.abc import Iterator

from backupfw.engine.format.binary import DIGEST_BYTES
from backupfw.engine.format.entries import SegmentEntry
from backupfw.engine.format.manifest import ManifestReader
from backupfw.engine.format.pack import ZERO
from backupfw.engine.format.segment_map import SegmentMap, read_map
from backupfw.engine.ports import Control


def changed(older: ManifestReader, newer: ManifestReader, control: Control) -> Iterator[tuple[int, int]]:
    """Yield the ranges of a newer backup in which an older one has other bytes, or none; ascending.

    They begin and end with blocks, and are as long as they can be within a segment.  All of it differs if the
    two cannot be compared: their blocks have other sizes, or their digests are made with other keys.

    :param older: opened with its keys if it is encrypted, as ``newer``.
    :raises Damaged, DataKeyMissing, UnsupportedFormat, ChunkStoreError: a manifest or map cannot be read.
    :raises TaskStopped: the control said so.
    """
    geometry = newer.head.geometry
    comparable = _terms(older) == _terms(newer)
    before, after = _Entries(older), _Entries(newer)
    for index in range(geometry.segments):
        control.check()
        length = geometry.segment_length(index)
        if not comparable:
            yield index * geometry.segment_size, index * geometry.segment_size + length
            continue
        one, other = before.at(index), after.at(index)
        as_long = _length(older, index) == length
        if as_long and (one is None if other is None else one is not None and one.map == other.map):
            continue
        differs = _differing(_map(older, index, one), _map(newer, index, other))
        first = differs.find(1)
        while first >= 0:
            last = differs.find(0, first)
            last = len(differs) if last < 0 else last
            start = index * geometry.segment_size
            yield (
                start + first * geometry.block_size,
                start + min(last * geometry.block_size, length),
            )
            first = differs.find(1, last)


def _terms(reader: ManifestReader) -> tuple[int, int, str | None]:
    head = reader.head
    return head.geometry.block_size, head.geometry.segment_size, head.mac_id


class _Entries:
    """A manifest's entries, asked for by ascending indexes."""

    def __init__(self, reader: ManifestReader) -> None:
        self._entries = reader.segments()
        self._next = next(self._entries, None)

    def at(self, index: int) -> SegmentEntry | None:
        """Return the entry of a segment; None: it is all zero, or behind the end."""
        while self._next is not None and self._next.index < index:
            self._next = next(self._entries, None)
        return self._next if self._next is not None and self._next.index == index else None


def _map(reader: ManifestReader, index: int, entry: SegmentEntry | None) -> SegmentMap:
    geometry = reader.head.geometry
    if entry is not None:
        return read_map(reader.container, entry, geometry, reader.sealing)
    return SegmentMap(index, geometry.block_size, _length(reader, index))


def _length(reader: ManifestReader, index: int) -> int:
    """Return the bytes that a backup has of a segment; none behind its end."""
    geometry = reader.head.geometry
    return min(max(0, geometry.length - index * geometry.segment_size), geometry.segment_size)


def _differing(older: SegmentMap, newer: SegmentMap) -> bytearray:
    """Return for each block of a map whether the other one has another block, or none."""
    found = bytearray(newer.blocks)
    for block in range(newer.blocks):
        at = block * DIGEST_BYTES
        end = at + DIGEST_BYTES
        found[block] = (
            block >= older.blocks
            or older.block_length(block) != newer.block_length(block)
            or (older.codecs[block] == ZERO) != (newer.codecs[block] == ZERO)
            or (newer.codecs[block] != ZERO and older.digests[at:end] != newer.digests[at:end])
        )
    return found

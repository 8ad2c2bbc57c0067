"""Scrubbing: all manifests of one volume in one container are verified together, each object once.

Backups of a volume share most of their objects, so one verification after the other would read these again
and again.  But each object belongs to one segment.  So first all manifests are read, and the different
entries of each segment are kept in a temporary file; then segment by segment each map and each pack is read,
for all manifests that name it.  What has been done is therefore one number: the segment up to which
everything is verified.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby, islice
from operator import itemgetter

from backupfw.chunkstore.container import Container
from backupfw.engine.format import keys
from backupfw.engine.format.entries import decode_entry, encode_entry
from backupfw.engine.format.geometry import Geometry
from backupfw.engine.format.manifest import ManifestReader
from backupfw.engine.format.sealing import FindKey, Sealing
from backupfw.engine.pool import Halt, Meter, Streams
from backupfw.engine.ports import Control, VerifyReport
from backupfw.engine.verify import DamagedCount, Found, NamedSegment, OnDamaged, SegmentVerifier
from backupfw.errors import Damaged, DataKeyMissing, EngineError, UnsupportedFormat

_CACHE_BYTES = 8 << 20
_SCHEMA = """
CREATE TABLE entries (
    segment INTEGER, length INTEGER, block_size INTEGER, mac_id TEXT, entry BLOB, way INTEGER,
    PRIMARY KEY (segment, length, block_size, mac_id, entry)
) WITHOUT ROWID;
"""
#: Entries that are written at a time.
_AT_ONCE = 256


def run(
    manifests: Mapping[str, bool],
    container: Container,
    control: Control,
    on_damaged: OnDamaged,
    *,
    find_key: FindKey,
    start: int = 0,
    save: Callable[[int], None] = lambda _segment: None,
    leave_out: Callable[[str, EngineError], None] = lambda _key, _error: None,
    streams: int = 2,
) -> VerifyReport:
    """Verify everything that the manifests of one volume name.

    :param manifests: their keys, each with whether it is known to be encrypted; the same at each run that
        continues a scrub, but for those that were deleted meanwhile.
    :param on_damaged: called once per damaged object, as of :func:`backupfw.engine.verify.run`.
    :param find_key: finds the volume's data keys.
    :param start: segments below this one are verified already.
    :param save: called with the segment up to which everything is verified; what was found there was
        reported before.
    :param leave_out: called, before anything is saved, with the key of a manifest that cannot be read, and
        the reason: it is damaged, which was reported too, or this release or its keys do not suffice.  Of
        what only it names nothing is verified, and a run that continues must not have it.
    :param streams: segments looked at at the same time; each takes about the size of a pack.
    :returns: counts; of segments only what this run looked at.
    :raises TaskStopped: the control said so.
    :raises ChunkStoreError: the store could not be read; errors of the key store pass through, too.
    """
    with contextlib.closing(_Entries(container, control, find_key)) as entries:
        found = Found()
        damaged = DamagedCount(on_damaged)
        for key, encrypted in manifests.items():
            found.objects += 1
            try:
                found.bytes += entries.add(key, encrypted=encrypted)
            except (Damaged, UnsupportedFormat, DataKeyMissing) as error:
                if isinstance(error, Damaged):
                    damaged.report(error.key, error.reason)
                leave_out(key, error)
        halt = Halt(control)
        total, left = entries.bytes_from(0), entries.bytes_from(start)
        meter = Meter(control, total)
        meter.add(total - left)
        pool = Streams(lambda: _Stream(container, halt, damaged.report), streams, halt)
        order = _Order(start)
        with contextlib.closing(pool.run(order.watch(entries.pieces(start)))) as results:
            for piece, seen in results:
                control.check()
                meter.add(piece.length)
                found.add(seen)
                save(order.finished(piece.segment))
        meter.finish()
        return VerifyReport(found.objects, found.blocks, found.bytes, damaged.count)


@dataclass(frozen=True, slots=True)
class _Piece:
    """A segment, as the manifests name it, and its bytes."""

    segment: int
    length: int
    named: list[NamedSegment]


class _Stream:
    """One stream.  Not thread-safe."""

    def __init__(self, container: Container, halt: Halt, on_damaged: OnDamaged) -> None:
        # Progress is counted by whole pieces.
        self._verifier = SegmentVerifier(container, halt, lambda _bytes: None, on_damaged)
        self.close = self._verifier.close

    def work(self, piece: _Piece) -> tuple[_Piece, Found]:
        """Look at a piece; return it, and the counts."""
        return piece, self._verifier.work(piece.named)


class _Order:
    """Knows up to which segment everything is done.  Pieces are begun in order, and end in any."""

    def __init__(self, start: int) -> None:
        self._open: list[int] = []
        self._next = start

    def watch(self, pieces: Iterator[_Piece]) -> Iterator[_Piece]:
        """Pass the pieces on, noting that they are under way."""
        for piece in pieces:
            self._open.append(piece.segment)
            self._next = piece.segment + 1
            yield piece

    def finished(self, segment: int) -> int:
        """Note that a segment is done; return the first one that is not."""
        self._open.remove(segment)
        return self._open[0] if self._open else self._next


class _Entries:
    """The different entries of all manifests, by segment, in a temporary file.  Of one thread."""

    def __init__(self, container: Container, control: Control, find_key: FindKey) -> None:
        self._container = container
        self._control = control
        self._find_key = find_key
        #: How an entry's map is to be read: the same for all manifests with the same cut and digests.
        self._ways: list[tuple[Geometry, Sealing]] = []
        self._prefix = ""
        # A database without a name: a temporary file, deleted when the connection is closed.
        self._scratch = sqlite3.connect("", isolation_level=None)
        self._scratch.execute(f"PRAGMA cache_size = -{_CACHE_BYTES >> 10}")
        self._scratch.executescript(_SCHEMA)

    def close(self) -> None:
        """Give up the temporary file."""
        self._scratch.close()

    def add(self, key: str, *, encrypted: bool) -> int:
        """Read a manifest to its end; return its bytes.

        :raises Damaged: it is, or is missing; nothing of it is kept.
        :raises UnsupportedFormat, DataKeyMissing: likewise.
        """
        self._control.check()
        self._prefix = keys.volume_prefix_of(key)
        self._scratch.execute("BEGIN")
        try:
            reader = ManifestReader(self._container, key, self._find_key, encrypted=encrypted)
            self._ways.append((reader.head.geometry, reader.sealing))
            rows = self._rows(reader)
            while some := list(islice(rows, _AT_ONCE)):
                self._control.check()
                self._scratch.executemany("INSERT OR IGNORE INTO entries VALUES (?, ?, ?, ?, ?, ?)", some)
        except BaseException:
            self._scratch.execute("ROLLBACK")
            raise
        self._scratch.execute("COMMIT")
        return reader.totals.manifest_bytes

    def _rows(self, reader: ManifestReader) -> Iterator[tuple[int, int, int, str, bytes, int]]:
        geometry, mac_id = reader.head.geometry, reader.head.mac_id or ""
        way = len(self._ways) - 1
        for entry in reader.segments():
            length = geometry.segment_length(entry.index)
            yield entry.index, length, geometry.block_size, mac_id, encode_entry(entry), way

    def bytes_from(self, start: int) -> int:
        """Return the bytes of the segments from ``start`` on that are not all zero."""
        longest = "SELECT max(length) AS most FROM entries WHERE segment >= ? GROUP BY segment"
        (size,) = self._scratch.execute(f"SELECT sum(most) FROM ({longest})", (start,)).fetchone()  # noqa: S608
        return size or 0

    def pieces(self, start: int) -> Iterator[_Piece]:
        """Yield the segments from ``start`` on, in order; maps of earlier backups come first in each."""
        query = "SELECT segment, length, entry, way FROM entries WHERE segment >= ? ORDER BY segment, way"
        rows = self._scratch.execute(query, (start,))
        for segment, of_segment in groupby(rows, key=itemgetter(0)):
            named, longest = [], 0
            for _, length, data, way in of_segment:
                longest = max(longest, length)
                entry = decode_entry(data, self._prefix)
                assert entry is not None
                named.append(NamedSegment(entry, *self._ways[way]))
            yield _Piece(segment, longest, named)

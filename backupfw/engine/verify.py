"""Verifying: everything that a manifest names is read, every block checked, each damaged object reported.

Unlike a restore, it goes on after a damaged object, so that one pass finds all of them.  The next backup does
not share the damaged objects.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from backupfw.chunkstore.container import Container
from backupfw.engine import objects
from backupfw.engine.format import keys
from backupfw.engine.format.binary import DIGEST_BYTES, BadBytes
from backupfw.engine.format.entries import SegmentEntry
from backupfw.engine.format.geometry import Geometry
from backupfw.engine.format.manifest import ManifestHead, ManifestReader
from backupfw.engine.format.pack import TAIL_BYTES, Pack, check_tail
from backupfw.engine.format.sealing import FindKey, Sealing, no_keys
from backupfw.engine.format.segment_map import PackInfo, SegmentMap, read_map
from backupfw.engine.pool import Halt, Meter, Streams
from backupfw.engine.ports import Control, VerifyReport
from backupfw.engine.ranges import by_pack
from backupfw.engine.segment_restore import BlockDecoder
from backupfw.errors import Damaged

#: Called with the key of a damaged object and what is wrong with it; by several threads, one at a time.
OnDamaged = Callable[[str, str], None]

#: Maps of one segment that are in memory at a time, about 200 KiB each, and blocks that they have, about 150
#: bytes each.
MAPS_AT_ONCE, ROWS_AT_ONCE = 512, 400_000


def run(
    manifest_key: str,
    container: Container,
    control: Control,
    on_damaged: OnDamaged,
    *,
    quick: bool = False,
    streams: int = 2,
    find_key: FindKey = no_keys,
    encrypted: bool = False,
) -> VerifyReport:
    """Look at everything a manifest names.

    Memory does not grow with the number of damaged objects: each is reported when it is found.

    :param on_damaged: called once per damaged object while the work goes on; what it raises ends the work.
    :param quick: maps are read and checked whole; of each pack only its end, which shows that it is
        there and has the promised size.  For imports.
    :param streams: segments looked at at the same time; each takes about the size of a pack.
    :param find_key: finds the data keys of a backup that is encrypted.
    :param encrypted: it is known to be encrypted: a manifest that is not counts as damaged.
    :returns: counts; ``ok`` says whether all is well.
    :raises TaskStopped: the control said so.
    :raises UnsupportedFormat: the backup needs something this release does not know.
    :raises DataKeyMissing: a data key cannot be found; errors of the key store pass through, too.
    :raises ChunkStoreError: the store could not be read; says nothing about damage.
    """
    damaged = DamagedCount(on_damaged)
    try:
        reader = ManifestReader(container, manifest_key, find_key, encrypted=encrypted)
    except Damaged as error:
        damaged.report(error.key, error.reason)
        return VerifyReport(objects=1, damaged=damaged.count)
    halt = Halt(control)
    meter = Meter(control, reader.totals.data_bytes)
    geometry = reader.head.geometry
    pool = Streams(
        lambda: SegmentVerifier(container, halt, meter.add, damaged.report, quick=quick), streams, halt
    )
    segments = ([NamedSegment(entry, geometry, reader.sealing)] for entry in reader.segments())
    seen = Found(objects=1, bytes=reader.totals.manifest_bytes)
    try:
        with contextlib.closing(pool.run(segments)) as results:
            for found in results:
                control.check()
                seen.add(found)
    except Damaged as error:
        # Damaged objects of segments are reported where they are read; here the manifest itself is damaged.
        damaged.report(error.key, error.reason)
    meter.finish()
    return VerifyReport(seen.objects, seen.blocks, seen.bytes, damaged.count)


def named(manifest_key: str, wanted: Collection[str], container: Container, control: Control) -> set[str]:
    """Return those of the wanted objects that a manifest names, itself among them.

    A manifest whose backup made nothing of what is wanted, and shares with none that did, is not read whole.

    :param wanted: keys of objects.
    :raises Damaged: the manifest is missing or damaged.
    :raises UnsupportedFormat: it is of a version not known here.
    :raises ChunkStoreError: the store could not be read.
    :raises TaskStopped: the control said so.
    """
    if not wanted:
        return set()
    control.check()
    reader = ManifestReader(container, manifest_key)
    found = {manifest_key}.intersection(wanted)
    parsed = (keys.parse(key) for key in wanted)
    if {one.origin for one in parsed if one is not None}.isdisjoint(reader.origins()):
        return found
    for number, entry in enumerate(reader.segments()):
        if number % 256 == 0:
            control.check()
        found.update(key for key in entry.object_keys() if key in wanted)
    return found


@dataclass(frozen=True, slots=True)
class Look:
    """What a manifest holds: the facts for the row of its backup.

    :ivar head: its head.
    :ivar object_count: objects that its backup put and it names, itself included.
    :ivar stored_bytes: their sizes.
    :ivar referenced_bytes: sizes of everything it names, and its own.
    :ivar damaged: how many of all these objects are missing or damaged, as a quick verification finds them.
    :ivar known_damaged: which of them were on the list of damaged ones.
    """

    head: ManifestHead
    object_count: int
    stored_bytes: int
    referenced_bytes: int
    damaged: int
    known_damaged: frozenset[str]


def look(
    manifest_key: str,
    listed: Collection[str],
    container: Container,
    control: Control,
    on_damaged: OnDamaged = lambda _key, _reason: None,
    find_key: FindKey = no_keys,
) -> Look:
    """Read a manifest to its end, and look after everything that it names.

    :param listed: keys of objects that are known to be damaged.
    :param on_damaged: as of :func:`run`; so is ``find_key``.
    :raises Damaged: the manifest itself is missing or damaged.
    :raises UnsupportedFormat: as :func:`run`; so are DataKeyMissing, ChunkStoreError and TaskStopped.
    """
    reader = ManifestReader(container, manifest_key, find_key)
    origin = reader.head.origin
    own = keys.backup_prefix(origin.installation, origin.project, origin.volume, origin.backup)
    known = {manifest_key}.intersection(listed)
    count, stored = 1, reader.totals.manifest_bytes
    for entry in reader.segments():
        control.check()
        sizes = (entry.map.length, *(pack.size for pack in entry.packs))
        for key, size in zip(entry.object_keys(), sizes, strict=True):
            if key in listed:
                known.add(key)
            if key.startswith(own):
                count += 1
                stored += size
    report = run(manifest_key, container, control, on_damaged, quick=True, find_key=find_key)
    referenced = reader.totals.referenced_bytes + reader.totals.manifest_bytes
    return Look(reader.head, count, stored, referenced, report.damaged, frozenset(known))


class DamagedCount:
    """Reports and counts damaged objects.  Thread-safe."""

    def __init__(self, on_damaged: OnDamaged) -> None:
        self.count = 0
        self._on_damaged = on_damaged
        self._lock = threading.Lock()

    def report(self, key: str, reason: str) -> None:
        with self._lock:
            self.count += 1
            self._on_damaged(key, reason)


@dataclass(slots=True)
class Found:
    """What was looked at: objects, blocks that were verified, bytes that were read."""

    objects: int = 0
    blocks: int = 0
    bytes: int = 0

    def add(self, other: Found) -> None:
        """Add other counts."""
        self.objects += other.objects
        self.blocks += other.blocks
        self.bytes += other.bytes


@dataclass(frozen=True, slots=True)
class NamedSegment:
    """A segment as manifests name it.

    :ivar entry: what they say of it.
    :ivar geometry: theirs.
    :ivar sealing: how they are encrypted.
    """

    entry: SegmentEntry
    geometry: Geometry
    sealing: Sealing


class _Packs:
    """The packs of some maps of one segment, each with the blocks that the maps have in it, each block once.

    What the maps of later backups have in common with those of earlier ones is verified with these.
    """

    def __init__(self) -> None:
        self.maps = self.rows = 0
        #: For each pack its new blocks, by map.
        self.blocks: dict[PackInfo, list[tuple[SegmentMap, Sealing, list[int]]]] = {}
        self._known: dict[PackInfo, dict[int, tuple[SegmentMap, int]]] = {}

    @property
    def full(self) -> bool:
        """Whether there is so much that it is to be looked at before the next map is read."""
        return self.maps >= MAPS_AT_ONCE or self.rows >= ROWS_AT_ONCE

    def add(self, table: SegmentMap, sealing: Sealing) -> None:
        """Take a map's blocks."""
        counts = False
        for info, blocks in zip(table.packs, by_pack(table), strict=True):
            known = self._known.setdefault(info, {})
            new = []
            for block in blocks:
                seen = known.get(table.offset[block])
                if seen is None:
                    known[table.offset[block]] = (table, block)
                    new.append(block)
                elif not _are_same(*seen, table, block):
                    # At most one of the two can be right.
                    new.append(block)
            pack = self.blocks.setdefault(info, [])
            if new:
                pack.append((table, sealing, new))
                self.rows += len(new)
                counts = True
        self.maps += counts


def _are_same(one: SegmentMap, block: int, other: SegmentMap, its: int) -> bool:
    """Return whether two maps say the same of a block that lies at one place of a pack."""
    begin, end = block * DIGEST_BYTES, (block + 1) * DIGEST_BYTES
    return (
        block == its
        and one.stored[block] == other.stored[its]
        and one.codecs[block] == other.codecs[its]
        and one.block_length(block) == other.block_length(its)
        and one.digests[begin:end] == other.digests[begin:end]
    )


class SegmentVerifier:
    """One stream.  Not thread-safe.

    :param halt: what to ask before reading.
    :param advance: called with the bytes of a segment's data when it is done.
    :param on_damaged: called once per damaged object of a segment.
    :param quick: see :func:`run`.
    """

    def __init__(
        self,
        container: Container,
        halt: Halt,
        advance: Callable[[int], None],
        on_damaged: OnDamaged,
        *,
        quick: bool = False,
    ) -> None:
        self._container = container
        self._halt = halt
        self._advance = advance
        self._on_damaged = on_damaged
        self._quick = quick
        self._decoders: dict[str | None, BlockDecoder] = {}
        #: Packs of the segment that are known to be damaged.
        self._bad: set[str] = set()

    def close(self) -> None:
        """Nothing to give up."""

    def work(self, named: Sequence[NamedSegment]) -> Found:
        """Look at the maps and packs of one segment, as one or more manifests name them.

        Each map is read once.  So is each pack, unless there are more maps than :data:`MAPS_AT_ONCE` or
        blocks than :data:`ROWS_AT_ONCE`: then it is once for each such part of them.
        """
        found = Found()
        packs = _Packs()
        self._bad.clear()
        read: set[str] = set()
        # Packs of maps that cannot be read, or need not be read whole: key to size.
        ends: dict[str, int] = {}
        for one in named:
            self._halt.check()
            table = self._map(one, found)
            if table is None or self._quick:
                sizes = (ref.size for ref in one.entry.packs)
                ends.update(zip(one.entry.pack_keys(), sizes, strict=True))
                continue
            packs.add(table, one.sealing)
            if packs.full:
                self._read(packs, read, found)
                packs = _Packs()
        self._read(packs, read, found)
        for key, size in ends.items():
            if key not in read:
                self._look(key, found, lambda key=key, size=size: self._tail(key, size, found))  # type: ignore[misc]
        self._advance(max(one.entry.data_bytes for one in named))
        return found

    def _read(self, packs: _Packs, read: set[str], found: Found) -> None:
        for info, maps in packs.blocks.items():
            if info.key in self._bad:
                continue
            self._look(info.key, found, lambda info=info, maps=maps: self._pack(info, maps, found))  # type: ignore[misc]
            read.add(info.key)

    def _look(self, key: str, found: Found, read: Callable[[], None]) -> None:
        self._halt.check()
        found.objects += 1
        try:
            read()
        except BadBytes as error:
            self._bad.add(key)
            self._on_damaged(key, str(error))
        except Damaged as error:
            self._bad.add(key)
            self._on_damaged(error.key, error.reason)

    def _map(self, one: NamedSegment, found: Found) -> SegmentMap | None:
        found.objects += 1
        entry = one.entry
        try:
            table = read_map(self._container, entry, one.geometry, one.sealing)
        except Damaged as error:
            self._on_damaged(error.key, error.reason)
            return None
        found.bytes += entry.map.length
        if problem := table.problem():
            self._on_damaged(entry.map_key, problem)
            return None
        return table

    def _tail(self, key: str, size: int, found: Found) -> None:
        """Read a pack's end only: it tells whether the pack is there as a whole."""

        def check(tail: bytes) -> None:
            found.bytes += len(tail)
            check_tail(tail)

        objects.read_checked(self._container, key, max(0, size - TAIL_BYTES), TAIL_BYTES, check)

    def _pack(self, info: PackInfo, maps: list[tuple[SegmentMap, Sealing, list[int]]], found: Found) -> None:
        """Read a pack as a whole; check its footer against the maps, and every block they have in it."""

        def check(data: bytes) -> None:
            found.bytes += len(data)
            for table, sealing, blocks in maps:
                check_pack(table, info, blocks, data, sealing, self._decoder(sealing))

        # A range, so that the entry bounds the memory whatever the object has become.
        objects.read_checked(self._container, info.key, 0, max(1, info.size), check)
        found.blocks += sum(len(blocks) for *_, blocks in maps)

    def _decoder(self, sealing: Sealing) -> BlockDecoder:
        if sealing.mac_id not in self._decoders:
            self._decoders[sealing.mac_id] = BlockDecoder(sealing)
        return self._decoders[sealing.mac_id]


def check_pack(
    table: SegmentMap,
    info: PackInfo,
    blocks: list[int],
    data: bytes,
    sealing: Sealing,
    decoder: BlockDecoder,
) -> None:
    """Check a whole pack: its footer against a map that names it, and every block that the map has in it.

    :param blocks: those blocks.
    :param decoder: of the calling thread.
    :raises BadBytes: something is wrong.
    """
    parsed = keys.parse(info.key)
    number = -1 if parsed is None else parsed.number
    pack = Pack.parse(data, table.index, number, table.block_size)
    if pack.seal != info.seal:
        raise BadBytes("it is not encrypted as its map says")
    cipher = sealing.open(pack.seal, info.key)
    rows = {row.offset: row for row in pack.rows(cipher)}
    view = memoryview(data)
    for block in blocks:
        begin, stored = table.offset[block], table.stored[block]
        decoder.decode(table, block, view[begin : begin + stored], cipher)
        row = rows.get(begin)
        if row is None or (row.index, row.length, row.codec) != (block, stored, table.codecs[block]):
            raise BadBytes(f"its footer does not name block {block}")

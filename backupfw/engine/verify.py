"""Verifying: everything that a manifest names is read, every block checked, each damaged object reported.

Unlike a restore, it goes on after a damaged object, so that one pass finds all of them.  The next backup does
not share the damaged objects.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Collection
from dataclasses import dataclass

from backupfw.chunkstore.container import Container
from backupfw.engine import objects
from backupfw.engine.format import keys
from backupfw.engine.format.binary import BadBytes
from backupfw.engine.format.entries import SegmentEntry
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
    damaged = _DamagedObjects(on_damaged)
    try:
        reader = ManifestReader(container, manifest_key, find_key, encrypted=encrypted)
    except Damaged as error:
        damaged.report(error.key, error.reason)
        return VerifyReport(objects=1, damaged=damaged.count)
    halt = Halt(control)
    meter = Meter(control, reader.totals.data_bytes)
    pool = Streams(
        lambda: _SegmentVerifier(reader, halt, meter.add, damaged.report, quick),
        streams,
        halt,
    )
    seen, blocks, size = 1, 0, reader.totals.manifest_bytes
    try:
        with contextlib.closing(pool.run(reader.segments())) as results:
            for found in results:
                control.check()
                seen += found.objects
                blocks += found.blocks
                size += found.bytes
    except Damaged as error:
        # Damaged objects of segments are reported where they are read; here the manifest itself is damaged.
        damaged.report(error.key, error.reason)
    meter.finish()
    return VerifyReport(objects=seen, blocks=blocks, bytes=size, damaged=damaged.count)


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


class _DamagedObjects:
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
class _Found:
    objects: int = 0
    blocks: int = 0
    bytes: int = 0


class _SegmentVerifier:
    """One stream.  Not thread-safe."""

    def __init__(
        self,
        reader: ManifestReader,
        halt: Halt,
        advance: Callable[[int], None],
        on_damaged: OnDamaged,
        quick: bool,
    ) -> None:
        self._geometry = reader.head.geometry
        self._sealing = reader.sealing
        self._container = reader.container
        self._halt = halt
        self._advance = advance
        self._on_damaged = on_damaged
        self._quick = quick
        self._decoder = BlockDecoder(reader.sealing)

    def close(self) -> None:
        """Nothing to give up."""

    def work(self, entry: SegmentEntry) -> _Found:
        """Look at one segment's map and packs."""
        found = _Found()
        self._halt.check()
        table = self._map(entry, found)
        groups = None if table is None or self._quick else by_pack(table)
        for place, ref in enumerate(entry.packs):
            self._halt.check()
            key = keys.pack_key(ref.origin, entry.index, ref.number)
            found.objects += 1
            try:
                if table is None or groups is None:
                    self._tail(key, ref.size, found)
                else:
                    self._pack(table, table.packs[place], groups[place], found)
            except BadBytes as error:
                self._on_damaged(key, str(error))
            except Damaged as error:
                self._on_damaged(error.key, error.reason)
        self._advance(entry.data_bytes)
        return found

    def _map(self, entry: SegmentEntry, found: _Found) -> SegmentMap | None:
        found.objects += 1
        try:
            table = read_map(self._container, entry, self._geometry, self._sealing)
        except Damaged as error:
            self._on_damaged(error.key, error.reason)
            return None
        found.bytes += entry.map.length
        if problem := table.problem():
            self._on_damaged(entry.map_key, problem)
            return None
        return table

    def _tail(self, key: str, size: int, found: _Found) -> None:
        """Read a pack's end only: it tells whether the pack is there as a whole."""

        def check(tail: bytes) -> None:
            found.bytes += len(tail)
            check_tail(tail)

        objects.read_checked(self._container, key, max(0, size - TAIL_BYTES), TAIL_BYTES, check)

    def _pack(self, table: SegmentMap, info: PackInfo, blocks: list[int], found: _Found) -> None:
        """Read a pack as a whole; check its footer against the map, and every block the map has in it."""

        def check(data: bytes) -> None:
            found.bytes += len(data)
            check_pack(table, info, blocks, data, self._sealing, self._decoder)

        # A range, so that the entry bounds the memory whatever the object has become.
        objects.read_checked(self._container, info.key, 0, max(1, info.size), check)
        found.blocks += len(blocks)


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

"""Copying: puts a backup into another container, object by object, under the same keys.

No object's key is ever used for other bytes, so a copy is the same objects, and the backups of a volume
share in each container what they share in the first.  Nothing is decrypted, and no key is needed.  What is
put was verified on its way as far as the format allows it without keys: maps by the digests in the manifest,
packs by their checksums and, if they are not encrypted, block by block.  So a damaged object is never copied.

The order makes it safe to end anywhere and to begin again: objects, then the manifest.  An object that is in
the container already, with the right size, is not put again: other manifests there name it, or an earlier
attempt put it.  After the last put everything is looked for once more, because a sweep that began before the
copy may have deleted what it found there.
"""

from __future__ import annotations

import contextlib
import secrets
import tempfile
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from datetime import datetime
from itertools import groupby

import zstandard

from backupfw import crash_points
from backupfw.chunkstore.base import Body
from backupfw.chunkstore.container import Container
from backupfw.engine import locking, objects, removal
from backupfw.engine.candidates import Candidate, in_order, of_entry
from backupfw.engine.format import keys
from backupfw.engine.format.binary import BadBytes, digest
from backupfw.engine.format.entries import SegmentEntry
from backupfw.engine.format.geometry import MIB
from backupfw.engine.format.manifest import ManifestReader
from backupfw.engine.format.pack import RAW, Pack, open_block
from backupfw.engine.format.sealing import CLEAR, FindKey
from backupfw.engine.format.segment_map import SegmentMap, read_map
from backupfw.engine.listing import own_objects
from backupfw.engine.pool import Halt, Meter, Streams
from backupfw.engine.ports import Control, LockPlan
from backupfw.engine.ranges import by_pack
from backupfw.engine.segment_restore import BlockDecoder
from backupfw.engine.verify import check_pack
from backupfw.errors import Damaged, ListingBehind

#: How often what is missing is put; then something else keeps deleting it.
_MOST_PASSES = 4


@dataclass(frozen=True, slots=True)
class Place:
    """A copy's place in the lineage of its container.

    :ivar base: key of the manifest there whose objects it shares; None: it shares none.
    :ivar detached: its neighbours are not known.
    """

    base: str | None
    detached: bool


@dataclass(frozen=True, slots=True)
class CopyResult:
    """What a copy put.

    :ivar objects: objects that this attempt put, the manifest included.
    :ivar bytes: their sizes.
    :ivar locked_until: until when all that the manifest names is locked at least; None: it is not known.
    """

    objects: int
    bytes: int
    locked_until: datetime | None = None


def are_one_place(manifest_key: str, source: Container, target: Container) -> bool:
    """Return whether two containers are one place, which the configuration has under two names.

    Asked before anything is put: the removal of such a copy would remove the backup.  Nothing is put for the
    question if the target does not have the manifest; it has it, too, if the database forgot an earlier copy.

    :raises ChunkStoreError: a store does not answer.
    """
    if objects.is_missing(target, manifest_key):
        return False
    # Beside what belongs to backups, as the holder object: nothing lists it.
    probe = f"{manifest_key.split('/', 1)[0]}.probe-{secrets.token_hex(8)}"
    target.put(probe, Body.from_bytes(b"backupfw probe\n"))
    try:
        return not objects.is_missing(source, probe)
    finally:
        target.delete([probe])


def find_place(manifest_key: str, source: Container, target: Container, control: Control) -> Place:
    """Find out which manifest in the target is the neighbour of a copy; before anything is put for it.

    As in a recovery, the base is the neighbour if it is there and names all origins that the manifest names,
    but for those of its own backup.  Besides, nothing of its own backup may be there: otherwise it was
    copied before, or backups that share with it were, which are its neighbours then.

    :raises Damaged: the manifest is missing or damaged.
    :raises UnsupportedFormat: it is of a version not known here.
    :raises ChunkStoreError: a store does not answer.
    """
    reader = ManifestReader(source, manifest_key)
    origin = reader.head.origin
    own = keys.backup_prefix(origin.installation, origin.project, origin.volume, origin.backup)
    try:
        removal.check_settled(target)
    except ListingBehind:
        return Place(None, detached=True)
    if next(own_objects(target, own, control, manifests=True), None) is not None:
        return Place(None, detached=True)
    others = {one for one in reader.origins() if not one.startswith(own)}
    base = reader.head.base
    if base is None:
        return Place(None, detached=bool(others))
    if target.store.name == source.store.name or keys.parse(base) is None:
        return Place(None, detached=True)
    try:
        is_neighbour = others.issubset(ManifestReader(target, base).origins())
    except Damaged:
        is_neighbour = False
    return Place(base, detached=False) if is_neighbour else Place(None, detached=True)


def run(
    manifest_key: str,
    source: Container,
    target: Container,
    control: Control,
    *,
    damaged: Collection[str] = (),
    only: Collection[str] | None = None,
    streams: int = 2,
    find_key: FindKey | None = None,
    done: Callable[[int], None] = lambda _objects: None,
    lock: LockPlan | None = None,
    manifest_until: datetime | None = None,
) -> CopyResult:
    """Put everything that a manifest names into the target, then the manifest.

    Idempotent; at most one run of a manifest at a time, and no release in the same container meanwhile.
    Memory does not depend on the backup's size.

    :param damaged: keys of objects in the target that are known to be damaged: they are put again.
    :param only: put only these, whether the target has them or not; None: all that it lacks.
    :param streams: segments worked on at the same time; each takes about the size of a pack.
    :param find_key: finds data keys, so that encrypted blocks are verified, too; without it no key is needed.
    :param done: called now and then with the number of objects that were put.
    :param lock: which locks are made in the target; None: only those of what is put, if the target locks.
    :param manifest_until: the manifest's own lock if there is no such plan.
    :raises Damaged: an object in the source is missing or damaged; the error names it, and it was not put.
    :raises UnsupportedFormat: the backup needs something this release does not know.
    :raises ChunkStoreError: a store does not answer; to be run again.
    :raises TaskStopped: the task must end; to be run again.
    """
    halt = Halt(control)
    reader = ManifestReader(source, manifest_key, find_key)
    lists = not target.capabilities.listing_lag
    if lock is not None:
        target = target.locking(lock.until)
    count = size = 0
    for number in range(_MOST_PASSES):
        meter = Meter(control, reader.totals.referenced_bytes)
        put = 0
        if only is None:
            wanted = _missing(reader, target, control, damaged if number == 0 else (), meter)
        else:
            wanted = _chosen(reader, only, control)
        pool: Streams[_Wanted, int] = Streams(lambda: _Copier(reader, target, halt), streams, halt)
        with contextlib.closing(pool.run(wanted)) as results:
            for some in results:
                control.check()
                meter.add(some)
                size += some
                put += 1
                done(count + put)
        count += put
        meter.finish()
        # A listing that lags proves nothing; there each object was asked for.
        if not put or not lists or only is not None:
            break
    crash_points.reach("copy.objects-put")
    if only is not None and manifest_key not in only:
        return CopyResult(count, size)
    if lock is not None:
        if target.rule is not None and not target.rule.is_enough(lock.until):
            # The attempt took longer than the rule's slack: what it put itself is renewed, too.
            lock = lock.later(target.rule.new())
        _renew(reader, target, lock, control)
        manifest_until = lock.until
    length = _put_manifest(reader, source, target.locking(manifest_until), control)
    return CopyResult(count + 1, size + length, None if lock is None else lock.until)


@dataclass(frozen=True, slots=True)
class _Wanted:
    """Objects of one segment that the target lacks."""

    entry: SegmentEntry
    keys: frozenset[str]


def _chosen(reader: ManifestReader, only: Collection[str], control: Control) -> Iterator[_Wanted]:
    """Yield the chosen objects, segment by segment; the manifest is proven to be whole at the end."""
    for entry in reader.segments():
        control.check()
        chosen = frozenset(key for key in entry.object_keys() if key in only)
        if chosen:
            yield _Wanted(entry, chosen)


def _missing(
    reader: ManifestReader,
    target: Container,
    control: Control,
    damaged: Collection[str],
    meter: Meter,
) -> Iterator[_Wanted]:
    """Yield what the target lacks, segment by segment; the manifest is proven to be whole at the end."""
    if target.capabilities.listing_lag:
        for entry in reader.segments():
            control.check()
            named = of_entry(entry)
            lacks = [one for one in named if one.key in damaged or objects.is_missing(target, one.key)]
            yield from _lacking(entry, named, lacks, meter)
        return
    with in_order(own_objects(target, reader.volume_prefix, control)) as present:
        segments = groupby(present, key=lambda one: one.segment)
        here: dict[str, int] = {}
        at = -1
        for entry in reader.segments():
            control.check()
            while at < entry.index:
                at, some = next(segments, (entry.index, iter(())))
                here = {one.key: one.size for one in some} if at == entry.index else {}
            known = here if at == entry.index else {}
            named = of_entry(entry)
            lacks = [one for one in named if one.key in damaged or known.get(one.key) != one.size]
            yield from _lacking(entry, named, lacks, meter)


def _lacking(
    entry: SegmentEntry, named: list[Candidate], lacks: list[Candidate], meter: Meter
) -> Iterator[_Wanted]:
    meter.add(sum(one.size for one in named) - sum(one.size for one in lacks))
    if lacks:
        yield _Wanted(entry, frozenset(one.key for one in lacks))


class _Copier:
    """One stream.  Not thread-safe."""

    def __init__(self, reader: ManifestReader, target: Container, halt: Halt) -> None:
        self._reader = reader
        self._source = reader.container
        self._target = target
        self._halt = halt
        # Without the key nothing but checksums can be looked at.
        self._opaque = reader.head.seal is not None and reader.sealing is CLEAR
        self._decoder = BlockDecoder(reader.sealing)
        self._decompress = zstandard.ZstdDecompressor().decompress

    def close(self) -> None:
        """Nothing to give up."""

    def work(self, wanted: _Wanted) -> int:
        """Copy objects of one segment: packs, then the map; returns their bytes."""
        entry = wanted.entry
        total = 0
        table = groups = None
        if not self._opaque:
            table = read_map(self._source, entry, self._reader.head.geometry, self._reader.sealing)
            if problem := table.problem():
                raise objects.damaged(self._source, entry.map_key, problem)
            groups = by_pack(table)
        for place, ref in enumerate(entry.packs):
            key = keys.pack_key(ref.origin, entry.index, ref.number)
            if key in wanted.keys:
                blocks = [] if groups is None else groups[place]
                total += self._copy(key, ref.size, self._pack_check(entry, table, place, blocks))
                crash_points.reach("copy.pack-put", entry.index)
        if entry.map_key in wanted.keys:
            total += self._copy(entry.map_key, entry.map.length, self._map_check(entry))
            crash_points.reach("copy.map-put", entry.index)
        return total

    def _copy(self, key: str, size: int, check: Callable[[bytes], None]) -> int:
        self._halt.check()

        def checked(data: bytes) -> bytes:
            check(data)
            return data

        try:
            data = objects.read_checked(self._source, key, 0, max(1, size), checked)
        except BadBytes as error:
            raise objects.damaged(self._source, key, str(error)) from error
        self._halt.check()
        self._target.put(key, Body.from_bytes(data))
        return len(data)

    @staticmethod
    def _map_check(entry: SegmentEntry) -> Callable[[bytes], None]:
        def check(data: bytes) -> None:
            if digest(data) != entry.map.digest:
                raise BadBytes("its bytes have changed")

        return check

    def _pack_check(
        self, entry: SegmentEntry, table: SegmentMap | None, place: int, blocks: list[int]
    ) -> Callable[[bytes], None]:
        def check(data: bytes) -> None:
            if table is not None:
                check_pack(table, table.packs[place], blocks, data, self._reader.sealing, self._decoder)
                self._check_others(table, place, blocks, data)
                return
            number = entry.packs[place].number
            if Pack.parse(data, entry.index, number, self._reader.head.geometry.block_size).seal is None:
                raise BadBytes("it is not encrypted")

        return check

    def _check_others(self, table: SegmentMap, place: int, blocks: list[int], data: bytes) -> None:
        """Check the blocks of a pack that only other backups use.

        :raises BadBytes: one is wrong.
        """
        info = table.packs[place]
        parsed = keys.parse(info.key)
        pack = Pack.parse(data, table.index, -1 if parsed is None else parsed.number, table.block_size)
        cipher = self._reader.sealing.open(pack.seal, info.key)
        mine = {table.offset[block] for block in blocks}
        view = memoryview(data)
        for row in pack.rows(cipher):
            if row.offset in mine:
                continue
            block: bytes | memoryview = view[row.offset : row.offset + row.length]
            if cipher is not None:
                if row.index >= table.blocks - 1:
                    # The last block of a volume that had another length: how long it was is not known here.
                    continue
                block = open_block(cipher, row.offset, row.index, table.block_size, row.codec, block)
            try:
                if row.codec != RAW:
                    if not 0 < zstandard.frame_content_size(block) <= table.block_size:
                        raise BadBytes(f"block {row.index} has an impossible length")
                    block = self._decompress(block)
            except zstandard.ZstdError as error:
                raise BadBytes(f"block {row.index} cannot be decompressed") from error
            if self._reader.sealing.digest(block) != row.digest:
                raise BadBytes(f"block {row.index} does not match its digest")


def _renew(reader: ManifestReader, target: Container, plan: LockPlan, control: Control) -> None:
    """Lock what the manifest names in the target, where it may be locked too short."""
    origin = reader.head.origin
    own = keys.backup_prefix(origin.installation, origin.project, origin.volume, origin.backup)
    with locking.renewing(target, plan.until, control) as lock:
        for entry in reader.segments():
            for key in entry.object_keys():
                if plan.needs(key, own):
                    lock(key)
        if reader.head.key_id is not None:
            for key in locking.data_keys(target, reader.volume_prefix):
                lock(key)


def _put_manifest(reader: ManifestReader, source: Container, target: Container, control: Control) -> int:
    """Copy the manifest, and read it to its end where it was put; returns its bytes."""
    length = reader.totals.manifest_bytes
    for last in (False, True):
        with tempfile.TemporaryFile() as file:
            for start in range(0, length, MIB):
                control.check()
                file.write(objects.read(source, reader.key, start, min(MIB, length - start)))
            file.flush()
            target.put(reader.key, Body.from_file(file))
        crash_points.reach("copy.manifest-put")
        try:
            found = ManifestReader(target, reader.key)
            for entry in found.segments():
                if entry.index % 1024 == 0:
                    control.check()
            return found.totals.manifest_bytes
        except Damaged:
            # A bit that changed on the way from the source.
            if last:
                raise
    raise AssertionError

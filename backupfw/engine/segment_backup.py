"""Backing up one segment: the work of one stream.

Blocks are read a MiB at a time, compared with zeros and hashed.  Each is then either shared with the base's
map or compressed into the stream's pack.  What the point says is the same as in the base is not read, but
for a sample.  At the end, the fragmentation rule may store more blocks.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import zstandard

from backupfw import crash_points
from backupfw.chunkstore.base import Body
from backupfw.chunkstore.container import Container
from backupfw.engine import fragmentation
from backupfw.engine.extents import block_extents
from backupfw.engine.format import keys
from backupfw.engine.format.binary import DIGEST_BYTES, BadBytes, digest
from backupfw.engine.format.entries import MapRef, SegmentEntry, decode_entry, encode_entry
from backupfw.engine.format.geometry import Geometry
from backupfw.engine.format.pack import RAW, ZERO, ZSTD, PackBuffer
from backupfw.engine.format.segment_map import PackInfo, SegmentMap, read_map
from backupfw.engine.ports import BackupJob
from backupfw.errors import (
    ChangeMissed,
    Damaged,
    DataKeyMissing,
    SourceMoved,
    SourceUnreadable,
    UnsupportedFormat,
)
from backupfw.volume.base import Extent, Kind, Point

#: Bytes read at once: enough to make the call's cost small, little enough to stay in a core's cache
#: between reading and hashing.
READ_BYTES = 1 << 20
#: A block is stored compressed only if that saves at least this part of it; raw is faster to restore.
LEAST_SAVING = 16


@dataclass(frozen=True, slots=True)
class SegmentTask:
    """One segment to do.

    :ivar index: the segment's index.
    :ivar extents: what the point says about it, by whole blocks; none if it is all zero.
    :ivar base: the base's entry for it, if there is one to share with.
    :ivar recorded: what the journal has of it.
    :ivar sample: what is read although it is said to be the same, or zero.
    """

    index: int
    extents: tuple[Extent, ...]
    base: SegmentEntry | None
    recorded: bytes | None
    sample: tuple[Extent, ...] = ()


@dataclass(slots=True)
class SegmentDone:
    """One segment that is done.

    :ivar index: the segment's index.
    :ivar entry: what the manifest will say of it; None if it is all zero.
    :ivar recorded: the journal has it already.
    :ivar changed: a new map was put.
    :ivar read_bytes: bytes read from the source.
    :ivar sampled_bytes: those of them that were read only to check what the point said.
    :ivar raw_bytes: plain bytes of the blocks stored, and of the map.
    :ivar repacked_bytes: plain bytes of those blocks that had not changed.
    """

    index: int
    entry: SegmentEntry | None = None
    recorded: bool = False
    changed: bool = False
    read_bytes: int = 0
    sampled_bytes: int = 0
    raw_bytes: int = 0
    repacked_bytes: int = 0


class SegmentWriter:
    """One stream of a backup: its buffers, and the segment that it works on.  Not thread-safe.

    :param job: what is backed up.
    :param base_geometry: geometry of the base, None without one.
    :param point: where blocks come from.
    :param container: where they go to.
    :param record: records a segment that something was put for, before the stream begins another one.
    :param check: raises when the work must end.
    :param advance: called with a number of bytes that were visited.
    """

    def __init__(
        self,
        job: BackupJob,
        base_geometry: Geometry | None,
        point: Point,
        container: Container,
        record: Callable[[SegmentDone], None],
        check: Callable[[], None],
        advance: Callable[[int], None],
    ) -> None:
        geometry = job.geometry
        block = geometry.block_size
        self._job = job
        self._origin = str(job.origin)
        self._base_geometry = base_geometry
        self._point = point
        self._container = container
        self._record = record
        self._check = check
        self._advance = advance
        # No more than a segment is read at once.
        self._read_bytes = min(max(READ_BYTES, block), geometry.segment_size)
        self._buffer = memoryview(bytearray(self._read_bytes))
        self._blocks = [self._buffer[at : at + block] for at in range(0, self._read_bytes, block)]
        # bytearray == memoryview is one memcmp; memoryview == memoryview goes element by element.
        self._zeros = bytearray(self._read_bytes)
        self._zero_block = bytearray(block)
        self._digest = job.sealing.digest
        self._compress = zstandard.ZstdCompressor(level=job.compression_level).compress
        self._pack = PackBuffer(job.pack_size, block, geometry.segment_size // block)

    def close(self) -> None:
        """Give up the pack's buffer."""
        self._pack.close()

    def work(self, task: SegmentTask) -> SegmentDone:
        """Do one segment; returns when its packs and its map are in the store, and it is recorded.

        :raises SourceMoved: the source changed while it was read.
        :raises SourceUnreadable: the source could not be read.
        :raises ChangeMissed: a range that is said to be the same is not.
        """
        geometry = self._job.geometry
        start = task.index * geometry.segment_size
        length = geometry.segment_length(task.index)
        done = SegmentDone(task.index)
        if self._is_same(task):
            done.entry = task.base
            done.recorded = task.recorded == (None if task.base is None else encode_entry(task.base))
            return done
        if task.recorded is not None and self._take_over(task, task.recorded, done):
            self._advance(sum(extent.length for extent in task.extents if extent.kind is Kind.DATA))
            return done
        self._begin(task, done)
        for part in task.sample:
            if part.kind is Kind.ZERO:
                self._check_zero(part)
            else:
                self._check_same(part.offset, part.end)
        for extent in task.extents:
            if extent.kind is Kind.DATA:
                self._visit(self._read(extent.offset, extent.end, self._advance))
            elif extent.kind is Kind.SAME:
                self._trust(extent)
        self._finish()
        self._point.release_cache(start, length)
        if done.changed:
            self._record(done)
            done.recorded = True
        else:
            # A segment of zeros needs no journal entry, unless a wrong one is to be replaced.
            done.recorded = done.entry is None and task.recorded is None
        return done

    def _is_same(self, task: SegmentTask) -> bool:
        """Whether the base's entry is right for the whole segment, and nothing of it is to be looked at."""
        if task.sample or not task.extents or task.extents[0].kind is not Kind.SAME or len(task.extents) > 1:
            return False
        base = self._base_geometry
        if base is None or base.segment_length(task.index) != self._job.geometry.segment_length(task.index):
            return False
        return task.base is None or not self._is_damaged(task.base)

    def _is_damaged(self, entry: SegmentEntry) -> bool:
        return any(key in self._job.damaged for key in entry.object_keys())

    def _take_over(self, task: SegmentTask, recorded: bytes, done: SegmentDone) -> bool:
        """Use what an earlier attempt finished, if its map is there and right.

        A map proves something about this source only if it is of this segment, and if it was put in this
        epoch or is the base's own.
        """
        try:
            entry = decode_entry(recorded, keys.volume_prefix_of(self._job.prefix))
            # An all-zero segment has no map that proves it, so it is read again.
            if entry is None or entry.index != task.index:
                return False
            if not entry.map.origin.startswith(self._job.epoch_prefix) and entry != task.base:
                return False
            if self._is_damaged(entry):
                return False
            read_map(self._container, entry, self._job.geometry, self._job.sealing)
        except (BadBytes, Damaged, UnsupportedFormat, DataKeyMissing):
            return False
        done.entry = entry
        done.recorded = True
        return True

    def _begin(self, task: SegmentTask, done: SegmentDone) -> None:
        """Begin the map of a segment, and find which blocks of the base can be shared."""
        geometry = self._job.geometry
        self._pack.begin(None)
        self._task = task
        self._done = done
        self._start = task.index * geometry.segment_size
        self._map = SegmentMap(task.index, geometry.block_size, geometry.segment_length(task.index))
        self._packs: list[PackInfo] = []
        self._shared: list[int] = []
        # Blocks that were taken over unread.
        self._trusted = bytearray(self._map.blocks)
        self._new_blocks = 0
        self._base = self._open_base()
        self._base_codecs = self._usable_codecs()

    # -- the source -------------------------------------------------------------------------------

    def _read(
        self, start: int, end: int, advance: Callable[[int], None]
    ) -> Iterator[tuple[int, Sequence[memoryview]]]:
        """Yield (offset, blocks) of a run, read; pieces that are all zero are left out."""
        block = self._job.geometry.block_size
        whole, size = self._buffer, self._read_bytes
        while start < end:
            self._check()
            blocks: Sequence[memoryview] = self._blocks
            view = whole
            if end - start < size:
                size = end - start
                view = whole[:size]
                blocks = [view[at : at + block] for at in range(0, size, block)]
            self._fill(start, view)
            if size != len(self._zeros) or self._zeros != view:
                yield start, blocks
            advance(size)
            start += size

    def _fill(self, start: int, view: memoryview) -> None:
        try:
            self._point.read_into(start, view)
        except OSError as error:
            # The error's own text may name a path.
            why = os.strerror(error.errno) if error.errno else "its storage failed"
            raise SourceUnreadable(f"The volume could not be read: {why}.") from error
        self._done.read_bytes += len(view)

    # -- the base ---------------------------------------------------------------------------------

    def _open_base(self) -> SegmentMap | None:
        """Return the base's map of this segment if it can be read; else everything is stored anew."""
        entry, geometry = self._task.base, self._base_geometry
        if entry is None or geometry is None or entry.map_key in self._job.damaged:
            return None
        try:
            return read_map(self._container, entry, geometry, self._job.sealing)
        except (Damaged, UnsupportedFormat, DataKeyMissing):
            return None

    def _usable_codecs(self) -> bytearray:
        """Return the codec of each block that may be shared, ZERO for all others."""
        found = bytearray(self._map.blocks)
        base = self._base
        if base is None:
            return found
        common = min(base.blocks, len(found))
        if common and base.block_length(common - 1) != self._map.block_length(common - 1):
            common -= 1
        found[:common] = base.codecs[:common]
        bad = {index for index, info in enumerate(base.packs) if info.key in self._job.damaged}
        if bad:
            for block in range(common):
                if base.pack[block] in bad:
                    found[block] = ZERO
        return found

    # -- what is said to be the same ----------------------------------------------------------------

    @property
    def _base_is_known(self) -> bool:
        """Whether the base says what this segment was: by its map, or by having no entry for it (zeros)."""
        return self._base is not None or self._task.base is None

    def _trust(self, extent: Extent) -> None:
        """Take blocks over from the base's map unread; read those that the base cannot give."""
        if not self._base_is_known:
            self._visit(self._read(extent.offset, extent.end, self._advance))
            return
        base = self._base
        if base is None:
            return
        usable = self._base_codecs
        for first, last in _alike(self._numbers(extent.offset, extent.end), base.codecs, usable):
            if usable[first:last] == base.codecs[first:last]:
                at, until = first * DIGEST_BYTES, last * DIGEST_BYTES
                self._map.digests[at:until] = base.digests[at:until]
                self._shared.extend(itertools.compress(range(first, last), usable[first:last]))
                self._trusted[first:last] = b"\1" * (last - first)
            else:
                start = self._start + first * self._map.block_size
                end = min(self._start + last * self._map.block_size, extent.end)
                self._visit(self._read(start, end, self._advance))

    def _check_same(self, start: int, end: int) -> None:
        """Compare a stretch that is said to be the same with the base.

        :raises ChangeMissed: it is not.
        """
        if not self._base_is_known:
            return
        block = self._map.block_size
        base = self._base
        for extent in block_extents(self._point, self._job.geometry, start, end):
            first, last = self._numbers(extent.offset, extent.end)
            codecs = bytes(last - first) if base is None else base.codecs[first:last]
            if extent.kind is Kind.ZERO:
                if any(codecs):
                    raise self._differs(extent.offset)
                continue
            for at, view in self._sampled(extent):
                for offset in range(0, len(view), block):
                    index = (at + offset - self._start) // block
                    data = view[offset : offset + block]
                    was = None
                    if base is not None and base.codecs[index]:
                        was = bytes(base.digests[index * DIGEST_BYTES : (index + 1) * DIGEST_BYTES])
                    if was != (None if self._is_zero(data) else self._digest(data)):
                        raise self._differs(at + offset)

    def _check_zero(self, extent: Extent) -> None:
        """Read a stretch that is said to be zeros.

        :raises ChangeMissed: it is not.
        """
        for offset, view in self._sampled(extent):
            if self._zeros[: len(view)] != view:
                raise self._differs(offset, "zero")

    def _sampled(self, extent: Extent) -> Iterator[tuple[int, memoryview]]:
        """Read a stretch to check it: yield (offset, bytes)."""
        for at in range(extent.offset, extent.end, self._read_bytes):
            self._check()
            view = self._buffer[: min(self._read_bytes, extent.end - at)]
            self._fill(at, view)
            self._done.sampled_bytes += len(view)
            self._advance(len(view))
            yield at, view

    def _differs(self, offset: int, said: str = "unchanged") -> ChangeMissed:
        return ChangeMissed(
            f"The storage of volume {self._job.volume} said that the block at {offset} is {said},"
            " and it is not."
        )

    def _numbers(self, start: int, end: int) -> tuple[int, int]:
        """Return the numbers of the first block, and of that behind the last one."""
        block = self._map.block_size
        return (start - self._start) // block, -(-(end - self._start) // block)

    # -- blocks -----------------------------------------------------------------------------------

    def _visit(self, pieces: Iterable[tuple[int, Sequence[memoryview]]]) -> None:
        """Look at every block of the pieces: zero, shared or stored."""
        block_size = self._job.geometry.block_size
        is_zero = self._is_zero
        base_codecs = self._base_codecs
        base_digests = b"" if self._base is None else bytes(self._base.digests)
        digests = self._map.digests
        shared = self._shared.append
        store = self._store
        digest_of = self._digest
        for offset, blocks in pieces:
            index = (offset - self._start) // block_size
            for block in blocks:
                if is_zero(block):
                    index += 1
                    continue
                at = index * DIGEST_BYTES
                found = digest_of(block)
                digests[at : at + DIGEST_BYTES] = found
                if base_codecs[index] and base_digests[at : at + DIGEST_BYTES] == found:
                    shared(index)
                else:
                    store(index, block, found)
                index += 1

    def _is_zero(self, block: memoryview) -> bool:
        return self._zero_block == block or (len(block) < len(self._zero_block) and not any(block))

    def _store(self, index: int, block: memoryview, found: bytes) -> None:
        """Compress a block into the open pack; put the pack when it is full."""
        pack, table = self._pack, self._map
        size = len(block)
        data: bytes | memoryview = self._compress(block)
        codec = ZSTD
        if len(data) >= size - size // LEAST_SAVING:
            data, codec = block, RAW
        if pack.empty:
            pack.begin(self._job.sealing.begin(self._open_pack_key()))
        table.offset[index], table.stored[index] = pack.add(index, found, data, codec, size)
        table.pack[index] = len(self._packs)
        table.codecs[index] = codec
        self._new_blocks += 1
        self._done.raw_bytes += size
        if pack.full:
            self._put_pack()

    def _open_pack_key(self) -> str:
        """Return the key of the open pack; its number is its place among the new ones."""
        return keys.pack_key(self._origin, self._task.index, len(self._packs))

    def _put_pack(self) -> None:
        """Put the open pack."""
        key, data, seal = self._open_pack_key(), self._pack.data_bytes, self._pack.seal
        view = self._pack.finish(self._task.index, len(self._packs))
        self._check()
        self._container.put(key, Body.from_bytes(view))
        crash_points.reach("backup.pack-put", self._task.index)
        self._packs.append(PackInfo(key, len(view), data, seal))

    # -- the end ----------------------------------------------------------------------------------

    def _finish(self) -> None:
        """Put the last pack and the map, or find that nothing has changed."""
        done, base = self._done, self._base
        if not self._shared and not self._new_blocks:
            return
        if not self._new_blocks and base is not None and self._same_as(base):
            done.entry = self._task.base
            return
        kept = self._keep(base) if base is not None else []
        if not self._pack.empty:
            self._put_pack()
        self._put_map(base, kept)

    def _same_as(self, base: SegmentMap) -> bool:
        """Whether the base's map is right for this segment as it is: no block stored, none zeroed."""
        return base.length == self._map.length and len(self._shared) == base.blocks - base.codecs.count(ZERO)

    def _keep(self, base: SegmentMap) -> list[int]:
        """Apply the fragmentation rule; return the blocks that point into older packs."""
        live = [0] * len(base.packs)
        pack, stored = base.pack, base.stored
        for block in self._shared:
            live[pack[block]] += stored[block]
        old = [(used, info.data) for used, info in zip(live, base.packs, strict=True)]
        new = sum(info.data for info in self._packs) + self._pack.data_bytes
        again = fragmentation.choose(old, new, self._job.pack_size)
        if not again:
            return self._shared
        self._store_again([block for block in self._shared if pack[block] in again])
        return [block for block in self._shared if pack[block] not in again]

    def _store_again(self, blocks: list[int]) -> None:
        """Store unchanged blocks again: read them once more, and check that they are the same."""
        block_size = self._job.geometry.block_size
        digests = self._map.digests
        digest_of = self._digest
        left = set(blocks)
        for first, last in _runs(blocks):
            start = self._start + first * block_size
            end = min(self._start + last * block_size, self._start + self._map.length)
            for offset, views in self._read(start, end, _uncounted):
                for index, block in enumerate(views, (offset - self._start) // block_size):
                    found = digest_of(block)
                    if found != digests[index * DIGEST_BYTES : (index + 1) * DIGEST_BYTES]:
                        raise self._changed(index)
                    self._store(index, block, found)
                    self._done.repacked_bytes += len(block)
                    left.discard(index)
        if left:
            # Pieces that read as zeros are left out; none of these blocks was zero before.
            raise self._changed(min(left))

    def _changed(self, index: int) -> SourceMoved | ChangeMissed:
        """Return the error of a block that is not what it was when it was first looked at."""
        if self._trusted[index]:
            return self._differs(self._start + index * self._map.block_size)
        return SourceMoved("The source changed while it was read.")

    def _put_map(self, base: SegmentMap | None, kept: list[int]) -> None:
        table = self._map
        packs = list(self._packs)
        if base is not None and kept:
            place: dict[int, int] = {}
            for block in kept:
                old = base.pack[block]
                if old not in place:
                    place[old] = len(packs)
                    packs.append(base.packs[old])
                table.pack[block] = place[old]
                table.offset[block] = base.offset[block]
                table.stored[block] = base.stored[block]
                table.codecs[block] = base.codecs[block]
        table.packs = packs
        key = keys.map_key(self._origin, self._task.index)
        data = table.encode(self._job.sealing.begin(key))
        self._check()
        self._container.put(key, Body.from_bytes(data))
        crash_points.reach("backup.map-put", self._task.index)
        self._done.changed = True
        self._done.raw_bytes += len(data)
        self._done.entry = SegmentEntry(
            index=self._task.index,
            map=MapRef(self._origin, digest(data), len(data)),
            data_bytes=table.data_bytes(),
            used_bytes=table.used_bytes(),
            packs=tuple(info.ref() for info in packs),
        )


def _runs(blocks: list[int]) -> Iterator[tuple[int, int]]:
    """Yield (first, past the last) of each run of consecutive numbers in an ascending list."""
    first = last = -1
    for block in blocks:
        if block != last:
            if first >= 0:
                yield first, last
            first = block
        last = block + 1
    if first >= 0:
        yield first, last


def _alike(blocks: tuple[int, int], these: bytearray, those: bytearray) -> Iterator[tuple[int, int]]:
    """Yield (first, past the last) of runs of blocks in which two columns are equal, or differ everywhere."""
    first, end = blocks
    if these[first:end] == those[first:end]:
        yield first, end
        return
    for _, run in itertools.groupby(range(first, end), lambda block: these[block] == those[block]):
        numbers = list(run)
        yield numbers[0], numbers[-1] + 1


def _uncounted(_size: int) -> None:
    """Blocks that are read again are no progress."""

"""Restoring one segment: the work of one stream."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import zstandard

from backupfw import crash_points
from backupfw.chunkstore.container import Container
from backupfw.engine import objects, ranges
from backupfw.engine.format.binary import DIGEST_BYTES, BadBytes
from backupfw.engine.format.entries import SegmentEntry
from backupfw.engine.format.geometry import Geometry
from backupfw.engine.format.pack import RAW, ZERO, open_block
from backupfw.engine.format.sealing import ObjectCipher, Sealing
from backupfw.engine.format.segment_map import PackInfo, SegmentMap, read_map
from backupfw.engine.pool import Halt
from backupfw.errors import TargetError
from backupfw.volume.base import BlockTarget

#: Bytes decoded before they are written.
WRITE_BYTES = 1 << 20
#: Bytes zeroed by one call: few enough that also a target that must write zeros ends within the lease.
ZERO_BYTES = 256 << 20


@dataclass(frozen=True, slots=True)
class RestoreTask:
    """Something to do: a segment's entry, or segments ``first`` to before ``end`` that are all zero.

    :ivar only: ranges of the volume, of whole blocks, outside of which nothing is restored; None: all is.
    """

    first: int
    end: int
    entry: SegmentEntry | None = None
    only: Sequence[tuple[int, int]] | None = None


@dataclass(slots=True)
class RestoreDone:
    """What was done for one task; fields as in RestoreResult."""

    task: RestoreTask
    written_bytes: int = 0
    zeroed_bytes: int = 0
    needed_bytes: int = 0
    fetched_bytes: int = 0
    requests: int = 0
    packs: int = 0
    map_bytes: int = 0


class BlockDecoder:
    """Turns stored bytes into verified blocks.  Not thread-safe; one per stream.

    :param sealing: the manifest's.
    """

    def __init__(self, sealing: Sealing) -> None:
        self._digest = sealing.digest
        self._decompress = zstandard.ZstdDecompressor().decompress

    def decode(
        self, found: SegmentMap, block: int, stored: bytes | memoryview, cipher: ObjectCipher | None
    ) -> bytes | memoryview:
        """Return a block's plain bytes, of the right length and with the right digest.

        :param cipher: of its pack; None: it is not encrypted.
        :raises BadBytes: the stored bytes are not those of this block.
        """
        length = found.block_size if block < len(found.codecs) - 1 else found.block_length(block)
        codec = found.codecs[block]
        data: bytes | memoryview = stored
        try:
            if cipher is not None:
                data = open_block(cipher, found.offset[block], block, length, codec, data)
            if codec != RAW:
                # Check the declared size first, so that hostile bytes cannot make this allocate more.
                if zstandard.frame_content_size(data) != length:
                    raise BadBytes(f"block {block} of segment {found.index} has another length")
                data = self._decompress(data)
        except zstandard.ZstdError as error:
            raise BadBytes(f"block {block} of segment {found.index} cannot be decompressed") from error
        at = block * DIGEST_BYTES
        if len(data) != length or self._digest(data) != found.digests[at : at + DIGEST_BYTES]:
            raise BadBytes(f"block {block} of segment {found.index} does not match its digest")
        return data


class SegmentReader:
    """One stream of a restore.  Not thread-safe.

    :param geometry: the backup's.
    :param sealing: how it is encrypted.
    :param container: where blocks come from.
    :param target: where they go to.
    :param dirty: zeros have to be written.
    :param halt: what to ask before reading and writing.
    :param advance: called with a number of bytes that were written.
    """

    def __init__(
        self,
        geometry: Geometry,
        sealing: Sealing,
        container: Container,
        target: BlockTarget,
        dirty: bool,
        halt: Halt,
        advance: Callable[[int], None],
    ) -> None:
        self._geometry = geometry
        self._sealing = sealing
        self._container = container
        self._target = target
        self._dirty = dirty
        self._halt = halt
        self._advance = advance
        self._decoder = BlockDecoder(sealing)
        self._batch = max(1, WRITE_BYTES // geometry.block_size)

    def close(self) -> None:
        """Nothing to give up."""

    def work(self, task: RestoreTask) -> RestoreDone:
        """Do one task; the bytes are written, not yet flushed."""
        done = RestoreDone(task)
        self._halt.check()
        if task.entry is None:
            size = self._geometry.segment_size
            self._zero(task.first * size, min(task.end * size, self._geometry.length), done)
            return done
        entry = task.entry
        found = read_map(self._container, entry, self._geometry, self._sealing)
        if problem := found.problem():
            raise objects.damaged(self._container, entry.map_key, problem)
        done.map_bytes = entry.map.length
        start = task.first * self._geometry.segment_size
        if self._dirty:
            for first, last in zero_runs(found):
                size = self._geometry.block_size
                self._zero(start + first * size, start + min(last * size, found.length), done)
        gap = self._container.capabilities.join_gap
        groups = ranges.by_pack(found)
        if task.only is not None:
            groups = _within(groups, task.only, start, self._geometry.block_size)
        for info, blocks in zip(found.packs, groups, strict=True):
            if not blocks:
                continue
            done.packs += 1
            try:
                cipher = self._sealing.open(info.seal, info.key)
                for part in ranges.plan(found, blocks, info.size, gap):
                    self._halt.check()
                    self._restore_range(found, info, cipher, part, start, done)
            except BadBytes as error:
                raise objects.damaged(self._container, info.key, str(error)) from error
        return done

    def _restore_range(
        self,
        found: SegmentMap,
        info: PackInfo,
        cipher: ObjectCipher | None,
        part: ranges.Range,
        start: int,
        done: RestoreDone,
    ) -> None:
        """Read a range of a pack, then decode, verify and write its blocks, a batch at a time.

        The memory of the range is freed before the next one is read.  If two were held, malloc would return
        memory to the system and fault it in again for every range.
        """
        data = memoryview(objects.read(self._container, info.key, part.offset, part.length))
        done.requests += 1
        done.fetched_bytes += part.length
        offsets, stored, size = found.offset, found.stored, found.block_size
        decode = self._decoder.decode
        for at in range(0, len(part.blocks), self._batch):
            batch = part.blocks[at : at + self._batch]
            joined: list[tuple[int, list[bytes | memoryview]]] = []
            following = -1
            written = 0
            for block in batch:
                begin = offsets[block] - part.offset
                try:
                    plain = decode(found, block, data[begin : begin + stored[block]], cipher)
                except BadBytes as error:
                    plain = self._again(found, info.key, cipher, block, error, done)
                done.needed_bytes += stored[block]
                written += len(plain)
                if block == following:
                    joined[-1][1].append(plain)
                else:
                    joined.append((start + block * size, [plain]))
                following = block + 1
            self._halt.may_write()
            crash_points.reach("restore.writing", start)
            try:
                self._target.write_runs(joined)
            except OSError as error:
                raise target_error(error) from error
            done.written_bytes += written
            self._advance(written)

    def _again(
        self,
        found: SegmentMap,
        key: str,
        cipher: ObjectCipher | None,
        block: int,
        error: BadBytes,
        done: RestoreDone,
    ) -> bytes | memoryview:
        """Read a block that was found wrong once more, by itself: it may have changed on the way."""
        objects.read_again(self._container, key, error)
        stored = found.stored[block]
        data = objects.read(self._container, key, found.offset[block], stored)
        done.requests += 1
        done.fetched_bytes += stored
        return self._decoder.decode(found, block, data, cipher)

    def _zero(self, start: int, end: int, done: RestoreDone) -> None:
        """Zero a range of the target, in pieces."""
        while start < end:
            length = min(ZERO_BYTES, end - start)
            self._halt.check()
            self._halt.may_write()
            try:
                self._target.zero(start, length)
            except OSError as error:
                raise target_error(error) from error
            done.zeroed_bytes += length
            start += length


def _within(
    groups: list[list[int]], only: Sequence[tuple[int, int]], start: int, size: int
) -> list[list[int]]:
    """Leave out blocks of a segment that are not within ranges of the volume.

    :param start: where the segment begins.
    """
    wanted = {
        block for first, end in only for block in range((first - start) // size, -(-(end - start) // size))
    }
    return [[block for block in blocks if block in wanted] for blocks in groups]


def target_error(error: OSError) -> TargetError:
    """Return what is said of a target that refuses a write: no path, only the reason."""
    return TargetError(f"The volume could not be written: {error.strerror or error}.")


def zero_runs(found: SegmentMap) -> Iterator[tuple[int, int]]:
    """Yield (first, past the last) of each run of zero blocks of a map."""
    # Every other codec becomes 1, so that both searches are a memchr.
    codecs = found.codecs.translate(bytes([ZERO]) + b"\1" * 255)
    position = 0
    while (first := codecs.find(ZERO, position)) >= 0:
        last = codecs.find(1, first)
        position = len(codecs) if last < 0 else last
        yield first, position

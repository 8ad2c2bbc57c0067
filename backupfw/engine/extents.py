"""What a point says about its bytes, as the engine needs it: by whole blocks, and by segments."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Iterator
from typing import NamedTuple, Protocol

from backupfw.engine.format.geometry import Geometry
from backupfw.volume.base import Extent, Kind

#: Bytes that are sampled as one, or a block: small, because what a storage gets wrong may be small, too.
SAMPLE_BYTES = 256 << 10


class Says(Protocol):
    """What says something about the bytes of a volume: a point."""

    def extents(self, start: int, end: int, since: str | None = None) -> Iterator[Extent]:
        """See :meth:`Point.extents`."""


class SaysNothing:
    """Stands for a point whose storage is not believed: all of it has to be read."""

    def extents(self, start: int, end: int, since: str | None = None) -> Iterator[Extent]:  # noqa: ARG002
        """Say that all of it may be data."""
        yield Extent(start, end - start, Kind.DATA)


class Checking:
    """Lets a task end between two answers of a point that it asks: a point may have very many, or be slow.

    :param check: raises when the work must end.
    """

    def __init__(self, point: Says, check: Callable[[], None]) -> None:
        self._point = point
        self._check = check

    def extents(self, start: int, end: int, since: str | None = None) -> Iterator[Extent]:
        """Pass on what the point says."""
        for extent in self._point.extents(start, end, since):
            self._check()
            yield extent


def common_length(mine: Geometry, its: Geometry) -> int:
    """Return up to which offset the blocks of two volumes have equal lengths."""
    if mine.length == its.length:
        return mine.length
    shorter = min(mine.length, its.length)
    return shorter - shorter % mine.block_size


def block_extents(
    point: Says, geometry: Geometry, start: int, end: int, since: str | None = None, same_until: int = 0
) -> Iterator[Extent]:
    """Yield what the point says about ``start … end``, by whole blocks, without gaps.

    Neighbours of the same kind are joined.  A block of several kinds is ``DATA``.

    :param start: a block's offset; ``end`` a block's, or the volume's end.
    :param since: see :meth:`Point.extents`.
    :param same_until: no block behind this offset is ``SAME``, whatever the point says.
    :raises ValueError: the point breaks its contract: what it says has gaps, or does not ascend.
    """
    first = start
    kind: Kind | None = None
    for offset, last, found in _blocks(point, geometry, start, end, since):
        pieces: tuple[tuple[int, int, Kind], ...] = ((offset, last, found),)
        if found is Kind.SAME and last > same_until:
            middle = max(offset, same_until)
            pieces = ((offset, middle, found), (middle, last, Kind.DATA))
        for at, until, what in pieces:
            if what is kind or at == until:
                continue
            if kind is not None:
                yield Extent(first, at - first, kind)
            first, kind = at, what
    if kind is not None:
        yield Extent(first, end - first, kind)


def _blocks(
    point: Says, geometry: Geometry, start: int, end: int, since: str | None
) -> Iterator[tuple[int, int, Kind]]:
    """Yield ``(offset, end, kind)`` of pieces that consist of whole blocks."""
    block = geometry.block_size
    position = start
    #: The kind of the part of the block before ``position``; None: a block begins there.
    begun: Kind | None = None
    for offset, length, kind in point.extents(start, end, since):
        if offset != position or length <= 0 or offset + length > end:
            raise ValueError(f"the volume provider's extents have a gap or do not ascend at {offset}")
        position = offset + length
        if begun is not None:
            begun = begun if begun is kind else Kind.DATA
            bound = min(offset - offset % block + block, end)
            if position < bound:
                continue
            yield offset - offset % block, bound, begun
            begun, offset = None, bound
        whole = position if position == end else position - position % block
        if offset < whole:
            yield offset, whole, kind
            offset = whole
        if offset < position:
            begun = kind
    if position != end:
        raise ValueError(f"the volume provider's extents end at {position}, and not at {end}")


class Found(NamedTuple):
    """What a point says about one segment.

    :ivar segment: its index.
    :ivar extents: by whole blocks, without gaps; none if all of it is zeros.
    :ivar sample: parts of them to check, by kind.
    """

    segment: int
    extents: tuple[Extent, ...]
    sample: tuple[Extent, ...]


def segments(
    point: Says, geometry: Geometry, sampler: Sampler, since: str | None = None, same_until: int = 0
) -> Iterator[Found]:
    """Yield each segment that is not wholly ``ZERO``, or of which something is to be checked, ascending.

    Long extents cost nothing; parameters as of :func:`block_extents`.

    :param sampler: chooses what is checked of ``SAME`` and ``ZERO``, if there is a token to compare with.
    """
    if not geometry.length:
        return
    size = geometry.segment_size
    gathered: list[Extent] = []
    sample: list[Extent] = []
    checks = (Kind.SAME, Kind.ZERO) if since is not None else ()
    for extent in block_extents(point, geometry, 0, geometry.length, since, same_until):
        offset = extent.offset
        while offset < extent.end:
            index = offset // size
            bound = min((index + 1) * size, geometry.length)
            if extent.kind is Kind.ZERO and not gathered and extent.end >= bound:
                # Whole segments of zeros, without a step for each.
                end = extent.end if extent.end == geometry.length else extent.end - extent.end % size
                if extent.kind in checks:
                    zeros = sampler.choose(Extent(offset, end - offset, Kind.ZERO), size)
                    for number, parts in itertools.groupby(zeros, lambda part: part.offset // size):
                        yield Found(number, (), tuple(parts))
                offset = end
                continue
            part = Extent(offset, min(extent.end, bound) - offset, extent.kind)
            gathered.append(part)
            if part.kind in checks:
                sample.extend(sampler.choose(part, size))
            offset = part.end
            if offset == bound:
                yield Found(index, tuple(gathered), tuple(sample))
                gathered, sample = [], []


class Sampler:
    """Chooses what is read although it is said to be the same, or zero: a random share of the bytes.

    Each stretch of :data:`SAMPLE_BYTES` is chosen with the same probability, independently of all others.

    :param share: from 0 to 1.
    :param block_size: bytes of a block; a stretch consists of whole blocks.
    :param seed: with the same seed, the same stretches of the same extents are chosen.
    """

    def __init__(self, share: float, block_size: int, seed: str) -> None:
        self._share = share
        self._bytes = max(SAMPLE_BYTES, block_size)
        # Nobody gains by foreseeing it, and the seed holds the random id of a backup.
        self._random = random.Random(seed)  # noqa: S311
        self._skip = self._draw()

    def choose(self, extent: Extent, segment_size: int) -> Iterator[Extent]:
        """Yield the chosen stretches of an extent, ascending, cut at the bounds of segments."""
        if not self._share:
            return
        stretches = -(-extent.length // self._bytes)
        while self._skip < stretches:
            first = extent.offset + self._skip * self._bytes
            end = min(first + self._bytes, extent.end)
            while first < end:
                bound = min(first - first % segment_size + segment_size, end)
                yield Extent(first, bound - first, extent.kind)
                first = bound
            self._skip += 1 + self._draw()
        self._skip -= stretches

    def _draw(self) -> int:
        """Draw how many stretches are left out before the next one."""
        if self._share <= 0 or self._share >= 1:
            return 0
        return int(math.log(1 - self._random.random()) / math.log1p(-self._share))

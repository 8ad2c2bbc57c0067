"""Which ranges of a pack to read for the blocks of a segment."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from backupfw.engine.format.geometry import MIB
from backupfw.engine.format.segment_map import SegmentMap

#: Most gaps of a pack that are left out: more requests cost more than the bytes they save.
MAX_CUTS = 2
#: Bytes of one request: a third of the pack, within these bounds.
LEAST_RANGE_LIMIT = 8 * MIB
MOST_RANGE_LIMIT = 32 * MIB


@dataclass(frozen=True, slots=True)
class Range:
    """One read of a pack.

    :ivar offset: first byte.
    :ivar length: bytes.
    :ivar blocks: the blocks in it, in the order of their bytes.
    """

    offset: int
    length: int
    blocks: Sequence[int]


def by_pack(found: SegmentMap) -> list[list[int]]:
    """Return, for each pack of the map's table, its blocks in the order of their bytes."""
    groups: list[list[int]] = [[] for _ in found.packs]
    pack = found.pack
    for block in found.data_blocks():
        groups[pack[block]].append(block)
    for group in groups:
        group.sort(key=found.offset.__getitem__)
    return groups


def plan(found: SegmentMap, blocks: Sequence[int], pack_bytes: int, join_gap: int) -> list[Range]:
    """Cut the blocks of one pack into ranges to read.

    At most :data:`MAX_CUTS` gaps are left out, the largest that exceed ``join_gap``; so a pack costs
    four requests or fewer, and with the fragmentation rule at most 1 / 0.78 of the needed bytes.

    :param blocks: the blocks, in the order of their bytes.
    :param pack_bytes: bytes of the pack object.
    :param join_gap: bytes below which reading a gap is cheaper than a request.
    """
    offset, stored = found.offset, found.stored
    gaps = []
    end = offset[blocks[0]]
    for place, block in enumerate(blocks):
        if offset[block] - end > join_gap:
            gaps.append((offset[block] - end, place))
        end = max(end, offset[block] + stored[block])
    cuts = {place for _, place in sorted(gaps, reverse=True)[:MAX_CUTS]}
    # Equal parts, so that a pack just above the limit does not cost a request for its last block.
    third = -(-pack_bytes // 3) + found.block_size
    limit = min(max(LEAST_RANGE_LIMIT, third), MOST_RANGE_LIMIT)
    ranges: list[Range] = []
    first, start = 0, offset[blocks[0]]
    end = start
    for place, block in enumerate(blocks):
        block_end = offset[block] + stored[block]
        if place > first and (place in cuts or block_end - start > limit):
            ranges.append(Range(start, end - start, blocks[first:place]))
            first, start, end = place, offset[block], offset[block]
        end = max(end, block_end)
    ranges.append(Range(start, end - start, blocks[first:]))
    return ranges

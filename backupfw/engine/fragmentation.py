"""Decides which unchanged blocks are stored again, so that a restore stays cheap.

After many incrementals a segment's blocks lie scattered over many packs, each of which holds blocks that
no map uses any more.  A restore reads nearly whole packs (joined ranges), so what it fetches is what the
packs hold, not what it needs.  The rule: a segment that gets a new map points into at most
:data:`MAX_PACKS` packs, and uses at least :data:`MIN_USE` of the bytes in them.  ``docs/format.md`` has
the simulation behind the numbers.
"""

from __future__ import annotations

from collections.abc import Sequence

#: Most packs a changed segment points into.  A default segment that does not compress fills 8.
MAX_PACKS = 16
#: If packs are small, a segment may point into this many more packs than a full backup of it needs.
MORE_PACKS = 7
#: Least share of the blocks' bytes in those packs that the segment uses: 1 / 1.3 and a little more.
MIN_USE = 0.78


def choose(old: Sequence[tuple[int, int]], new_bytes: int, pack_size: int) -> set[int]:
    """Say which packs' blocks shall be stored again.

    :param old: for each pack that may be kept: (bytes of blocks still used, bytes of all its blocks).
    :param new_bytes: bytes of blocks that are stored anyway.
    :param pack_size: bytes of a new pack.
    :returns: indexes into ``old``.
    """
    # Ascending by used bytes: the smallest are first.
    kept = sorted((index for index, (live, _) in enumerate(old) if live), key=lambda index: old[index][0])
    chosen: set[int] = set()
    moved = new_bytes
    held = new_bytes + sum(old[index][1] for index in kept)
    used = new_bytes + sum(old[index][0] for index in kept)
    most = max(MAX_PACKS, -(-used // pack_size) + MORE_PACKS)

    def move(index: int) -> None:
        nonlocal moved, held
        live, size = old[index]
        kept.remove(index)
        chosen.add(index)
        moved += live
        held += live - size

    while kept:
        if used < MIN_USE * held:
            move(min(kept, key=lambda index: old[index][0] / old[index][1]))
        elif len(kept) + -(-moved // pack_size) > most:
            # Small packs come from small changes.  Store the smallest again together with the new blocks,
            # then each next pack that is not larger than what is gathered so far.  Like a merge of sorted
            # runs by size, this stores each block only a few times, however many changes follow.
            move(kept[0])
            while kept and (smallest := old[kept[0]][0]) <= moved and moved + smallest <= pack_size:
                move(kept[0])
        else:
            break
    return chosen

"""When blocks that have not changed are stored again, so that a restore stays cheap.

After many incrementals a segment's blocks lie scattered over many packs, each of which holds blocks that
no map uses any more.  A restore reads nearly whole packs (joined ranges), so what it fetches is what the
packs hold, not what it needs.  The rule: a segment that gets a new map points into at most
:data:`MAX_PACKS` packs, and uses at least :data:`MIN_USE` of the bytes in them.  ``docs/format.md`` has
the simulation behind the two numbers.
"""

from __future__ import annotations

from collections.abc import Sequence

#: Most packs a changed segment points into (unless one new backup alone needs more).
MAX_PACKS = 16
#: Least share of the blocks' bytes in those packs that the segment uses: 1 / 1.3 and a little more.
MIN_USE = 0.78


def choose(old: Sequence[tuple[int, int]], new_bytes: int, pack_size: int) -> set[int]:
    """Say which packs' blocks shall be stored again.

    :param old: for each pack that may be kept: (bytes of blocks still used, bytes of all its blocks).
    :param new_bytes: bytes of blocks that are stored anyway.
    :param pack_size: bytes of a new pack.
    :returns: indexes into ``old``.
    """
    kept = {index for index, (live, _) in enumerate(old) if live}
    moved = 0
    total = new_bytes + sum(old[index][1] for index in kept)
    used = new_bytes + sum(old[index][0] for index in kept)
    chosen: set[int] = set()
    while kept:
        new_packs = -(-(new_bytes + moved) // pack_size)
        if used < MIN_USE * total:
            worst = min(kept, key=lambda index: (old[index][0] / old[index][1], old[index][0], index))
        elif len(kept) + new_packs > MAX_PACKS:
            # Small packs come from small changes; moving the smallest joins them at the least cost.
            worst = min(kept, key=lambda index: (old[index][0], index))
            if new_packs >= MAX_PACKS and moved:
                break
        else:
            break
        kept.remove(worst)
        chosen.add(worst)
        live, size = old[worst]
        moved += live
        total += live - size
    return chosen

"""The volumes behind the golden files, made from a seed; only expected digests are stored."""

from __future__ import annotations

import random
from collections.abc import Sequence

BLOCK = 4096
SEGMENT = 16 * BLOCK
PACK = 4 * BLOCK


def full() -> bytearray:
    """Return the volume at the first backup: all kinds of blocks, a zero segment, a short last block."""
    rng = random.Random(20260101)
    data = bytearray(5 * SEGMENT + 3 * BLOCK + 123)
    for at in range(0, len(data), BLOCK):
        size = min(BLOCK, len(data) - at)
        kind = rng.randrange(4)
        if kind == 0 or at // SEGMENT == 3:
            continue
        if kind == 1:
            data[at : at + size] = rng.randbytes(size)
        else:
            data[at : at + size] = (b"block at %d, text-like\n" % at * BLOCK)[:size]
    return data


def incremental() -> bytearray:
    """Return the volume at the second backup: changed, zeroed and grown."""
    rng = random.Random(20260102)
    data = full()
    data[BLOCK + 5 : BLOCK + 15] = b"0123456789"
    data[SEGMENT : 2 * SEGMENT] = bytes(SEGMENT)
    data[3 * SEGMENT + 7 * BLOCK : 3 * SEGMENT + 9 * BLOCK] = rng.randbytes(2 * BLOCK)
    data += rng.randbytes(2 * BLOCK + 1)
    return data


def third() -> bytearray:
    """Return the volume at the third backup: shrunk, and changed in many places."""
    rng = random.Random(20260103)
    data = incremental()[: 5 * SEGMENT + 100]
    for at in range(0, len(data) - BLOCK, 3 * BLOCK):
        data[at : at + 64] = rng.randbytes(64)
    return data


def states() -> Sequence[bytearray]:
    """Return the volume at each backup."""
    return full(), incremental(), third()

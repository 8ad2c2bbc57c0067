"""What numbers of a volume's layout are taken, each at its bounds, and what follows from them."""

from __future__ import annotations

import pytest

from backupfw.engine.format.geometry import (
    MAX_BLOCK_SIZE,
    MAX_BLOCKS_PER_SEGMENT,
    MAX_SEGMENT_SIZE,
    MIN_BLOCK_SIZE,
    Geometry,
)
from backupfw.engine.format.keys import MAX_SEGMENTS

KIB = 1 << 10


@pytest.mark.parametrize(
    ("length", "block", "segment"),
    [
        (0, MIN_BLOCK_SIZE, MIN_BLOCK_SIZE),
        (1, MIN_BLOCK_SIZE, 3 * MIN_BLOCK_SIZE),
        (MAX_SEGMENTS * MAX_SEGMENT_SIZE, MAX_BLOCK_SIZE, MAX_SEGMENT_SIZE),
        (1, MIN_BLOCK_SIZE, MIN_BLOCK_SIZE * MAX_BLOCKS_PER_SEGMENT),
        (MAX_SEGMENTS * MIN_BLOCK_SIZE, MIN_BLOCK_SIZE, MIN_BLOCK_SIZE),
    ],
)
def test_what_is_in_bounds_is_taken(length: int, block: int, segment: int) -> None:
    assert Geometry(length, block, segment).problem() is None


@pytest.mark.parametrize(
    ("length", "block", "segment", "said"),
    [
        (1, MIN_BLOCK_SIZE // 2, MIN_BLOCK_SIZE, "block size"),
        (1, MAX_BLOCK_SIZE * 2, MAX_BLOCK_SIZE * 2, "block size"),
        (1, 0, MIN_BLOCK_SIZE, "block size"),
        (1, 3 * MIN_BLOCK_SIZE, 3 * MIN_BLOCK_SIZE, "block size"),
        (1, MIN_BLOCK_SIZE, 0, "segment size"),
        (1, 2 * MIN_BLOCK_SIZE, MIN_BLOCK_SIZE, "segment size"),
        (1, 2 * MIN_BLOCK_SIZE, 3 * MIN_BLOCK_SIZE, "segment size"),
        (1, MAX_BLOCK_SIZE, MAX_SEGMENT_SIZE + MAX_BLOCK_SIZE, "segment size"),
        (1, MIN_BLOCK_SIZE, MIN_BLOCK_SIZE * (MAX_BLOCKS_PER_SEGMENT + 1), "blocks"),
        (-1, MIN_BLOCK_SIZE, MIN_BLOCK_SIZE, "length"),
        (MAX_SEGMENTS * MAX_SEGMENT_SIZE + 1, MAX_BLOCK_SIZE, MAX_SEGMENT_SIZE, "length"),
        (MAX_SEGMENTS * MIN_BLOCK_SIZE + 1, MIN_BLOCK_SIZE, MIN_BLOCK_SIZE, "length"),
    ],
)
def test_what_is_beyond_them_is_told(length: int, block: int, segment: int, said: str) -> None:
    problem = Geometry(length, block, segment).problem()
    assert problem is not None
    assert said in problem


def test_the_last_segment_and_block_are_as_long_as_the_volume_is() -> None:
    layout = Geometry(25 * KIB + 1, 4 * KIB, 12 * KIB)
    assert layout.segments == 3
    assert [layout.segment_length(index) for index in range(3)] == [12 * KIB, 12 * KIB, KIB + 1]
    assert [layout.blocks(index) for index in range(3)] == [3, 3, 1]
    assert Geometry(24 * KIB, 4 * KIB, 12 * KIB).segments == 2
    assert Geometry(22 * KIB, 4 * KIB, 12 * KIB).blocks(1) == 3
    assert Geometry(0).segments == 0

"""The digest of a volume's content: the same whatever order, parts and threads a restore writes in."""

from __future__ import annotations

import itertools
import random

import pytest
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st

from backupfw.engine import restore
from backupfw.engine.content_digest import PIECE_BYTES, DigestTarget
from tests.unit.engine.fakes import SEGMENT, FakeControl, memory_container
from tests.unit.engine.test_data_path import content, run


def expected(data: bytes) -> str:
    """The definition of ``docs/format.md``, word for word."""
    total = 0
    for number, at in enumerate(range(0, len(data), 32768)):
        piece = data[at : at + 32768]
        if any(piece):
            output = blake3(number.to_bytes(8, "little") + piece).digest(length=512)
            total += int.from_bytes(output, "little")
    total %= 1 << 4096
    return blake3(len(data).to_bytes(8, "little") + total.to_bytes(512, "little")).hexdigest()


def digest_of(data: bytes) -> str:
    target = DigestTarget(len(data))
    target.write(0, [data])
    return target.digest()


@settings(max_examples=60)
@given(st.integers(0, 5 * PIECE_BYTES), st.integers(0, 1 << 16), st.data())
def test_order_parts_and_zeros_left_out_make_no_difference(
    length: int, seed: int, data: st.DataObject
) -> None:
    source = bytearray(random.Random(seed).randbytes(length))
    for _ in range(data.draw(st.integers(0, 3))):
        first = data.draw(st.integers(0, length))
        last = min(length, first + data.draw(st.integers(0, 2 * PIECE_BYTES)))
        source[first:last] = bytes(last - first)
    cuts = sorted({0, length, *data.draw(st.lists(st.integers(0, length), max_size=8))})
    parts = [(first, bytes(source[first:last])) for first, last in itertools.pairwise(cuts)]
    target = DigestTarget(length)
    for first, part in data.draw(st.permutations(parts)):
        if any(part):
            middle = len(part) // 2
            target.write(first, [part[:middle], memoryview(part)[middle:]])
        if data.draw(st.booleans()):
            # The restore says that it is done with that range.
            target.flush()
            target.release_cache(first, len(part))
    assert target.digest() == expected(bytes(source))


def test_each_byte_its_place_and_the_length_count() -> None:
    data = bytearray(content(3 * PIECE_BYTES + 100))
    known = {digest_of(bytes(data))}
    for at in (0, PIECE_BYTES, len(data) - 1):
        data[at] ^= 1
        known.add(digest_of(bytes(data)))
    first, second = bytes(data[:PIECE_BYTES]), bytes(data[PIECE_BYTES : 2 * PIECE_BYTES])
    known.add(digest_of(second + first + bytes(data[2 * PIECE_BYTES :])))
    known.add(digest_of(bytes(data) + b"\0"))
    known |= {digest_of(bytes(length)) for length in (0, 1, PIECE_BYTES, PIECE_BYTES + 1)}
    assert len(known) == 10


def test_an_empty_tib_costs_nothing() -> None:
    target = DigestTarget(1 << 40)
    target.zero(0, 1 << 40)
    target.release_cache(0, 1 << 40)
    total = bytes(512)
    assert target.digest() == blake3((1 << 40).to_bytes(8, "little") + total).hexdigest()


def test_parts_that_are_settled_are_not_kept() -> None:
    target = DigestTarget(8 * PIECE_BYTES)
    for piece in range(8):
        target.write(piece * PIECE_BYTES + 5, [b"x" * 10])
        assert len(target._parts) == 1
        # In two ranges that meet in the middle of the piece.
        middle = piece * PIECE_BYTES + 100
        target.release_cache(piece * PIECE_BYTES, 100)
        target.release_cache(middle, PIECE_BYTES - 100)
        assert not target._parts
    with pytest.raises(OSError, match="past the end"):
        target.write(8 * PIECE_BYTES - 1, [b"xy"])


@pytest.mark.parametrize("length", [3 * SEGMENT, 4 * SEGMENT + 10])
def test_a_restore_of_small_blocks_has_the_digest_of_its_bytes(length: int) -> None:
    box = memory_container()
    data = content(length)
    key = run(box, 0, data).manifest_key
    target = DigestTarget(length)
    restore.run(key, box, target, FakeControl(), streams=3)
    assert not target._parts
    assert target.digest() == expected(bytes(data)) == digest_of(bytes(data))

"""The small rules of the data path: fragmentation, ranges, extents, streams."""

from __future__ import annotations

import itertools
import random
import threading
import time
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backupfw.engine import fragmentation
from backupfw.engine.extents import block_runs, data_segments
from backupfw.engine.format.geometry import Geometry
from backupfw.engine.format.pack import HEADER_BYTES, RAW
from backupfw.engine.format.segment_map import PackInfo, SegmentMap
from backupfw.engine.pool import Halt, Meter, Streams
from backupfw.engine.ranges import MAX_CUTS, by_pack, plan
from backupfw.engine.segment_restore import zero_runs
from backupfw.errors import TaskCancelled
from tests.unit.engine.fakes import FakeControl, MemorySource

MIB = 1 << 20

olds = st.lists(
    st.tuples(st.integers(0, 40 * MIB), st.integers(0, 20 * MIB)).map(lambda pair: (pair[0], sum(pair))),
    max_size=30,
)


@given(olds, st.integers(1, 64 * MIB), st.sampled_from([MIB, 8 * MIB, 32 * MIB]))
def test_the_fragmentation_rule_holds_after_it(old: list[tuple[int, int]], new: int, pack_size: int) -> None:
    chosen = fragmentation.choose(old, new, pack_size)
    kept = [pair for index, pair in enumerate(old) if index not in chosen and pair[0]]
    moved = new + sum(old[index][0] for index in chosen)
    used = moved + sum(live for live, _ in kept)
    held = moved + sum(size for _, size in kept)
    assert used >= fragmentation.MIN_USE * held
    most = max(fragmentation.MAX_PACKS, -(-used // pack_size) + fragmentation.MORE_PACKS)
    assert len(kept) + -(-moved // pack_size) <= most
    assert all(old[index][0] for index in chosen)


def full(*lives: int) -> list[tuple[int, int]]:
    return [(live, live) for live in lives]


@pytest.mark.parametrize(
    ("old", "new", "pack_size", "again"),
    [
        # Too little use: the pack of which the least share is used, neither the smallest nor the first.
        ([(90, 100), (40, 200), (50, 60), (5, 5)], 0, 100, {1}),
        ([(78, 100)], 0, 100, set()),
        # Too many packs: the one with the fewest bytes of use, and no other unless it is no larger than what
        # is stored already ...
        (full(3, 5, *[50] * 14), 1, 100, {0}),
        ([(6, 6), (3, 8), *full(*[50] * 14)], 1, 100, {1}),
        ([(3, 3), (4, 5), *full(*[50] * 14)], 1, 100, {0, 1}),
        (full(3, 5, 9, *[50] * 14), 0, 100, {0, 1}),
        # ... and fits into the same pack, here exactly, and not at all.
        (full(3, *[4] * 15, 10), 1, 8, {0, 1}),
        (full(3, *[4] * 16), 1, 7, {0}),
        # What nothing of is used any more is not stored.
        (full(*[0] * 20), 1, 100, set()),
    ],
)
def test_which_packs_are_stored_again(
    old: list[tuple[int, int]], new: int, pack_size: int, again: set[int]
) -> None:
    assert fragmentation.choose(old, new, pack_size) == again


def test_nothing_is_moved_without_need() -> None:
    full = [(32 * MIB, 32 * MIB)] * 8
    assert fragmentation.choose(full, 64 << 10, 32 * MIB) == set()
    # One percent of the pages of a fresh full backup, uniformly: 15 % of the blocks.
    worn = [(int(27.2 * MIB), 32 * MIB)] * 8
    assert fragmentation.choose(worn, int(38.7 * MIB), 32 * MIB) == set()


def test_lonely_changes_move_few_blocks_however_many_come() -> None:
    block, blocks, rounds = 64 << 10, 4096, 1000
    rng = random.Random(1)
    where = [block_index // 512 for block_index in range(blocks)]
    sizes = dict.fromkeys(range(8), 512)
    moved = 0
    for number in range(8, 8 + rounds):
        changed = rng.randrange(blocks)
        live = dict.fromkeys(sizes, 0)
        for index, holder in enumerate(where):
            if index != changed:
                live[holder] += 1
        order = list(sizes)
        again = fragmentation.choose(
            [(live[holder] * block, sizes[holder] * block) for holder in order], block, 32 * MIB
        )
        names = {order[index] for index in again}
        stored = [index for index in range(blocks) if index == changed or where[index] in names]
        moved += len(stored)
        for index in stored:
            where[index] = number
        sizes[number] = len(stored)
        alive = set(where)
        sizes = {holder: size for holder, size in sizes.items() if holder in alive}
        assert len(sizes) <= fragmentation.MAX_PACKS
    assert moved / rounds < 8


def make_map(layout: list[tuple[int, int, int]], blocks: int, pack_bytes: int) -> SegmentMap:
    found = SegmentMap(0, 4096, blocks * 4096)
    found.packs = [PackInfo("", pack_bytes, pack_bytes)]
    for block, offset, stored in layout:
        found.codecs[block] = RAW
        found.offset[block] = offset
        found.stored[block] = stored
    return found


@given(st.data(), st.sampled_from([0, 100, 4096, 1 << 20]))
def test_ranges_cover_every_block_once_in_few_requests(data: st.DataObject, gap: int) -> None:
    count = data.draw(st.integers(1, 40))
    order = data.draw(st.permutations(range(count)))
    layout, at = [], HEADER_BYTES
    for block in order:
        at += data.draw(st.sampled_from([0, 0, 50, 5000, 200_000]))
        stored = data.draw(st.integers(1, 4096))
        layout.append((block, at, stored))
        at += stored
    found = make_map(layout, count, at)
    blocks = by_pack(found)[0]
    assert blocks == list(order)
    parts = plan(found, blocks, at, gap)
    assert [block for part in parts for block in part.blocks] == blocks
    for part in parts:
        for block in part.blocks:
            assert part.offset <= found.offset[block]
            assert found.offset[block] + found.stored[block] <= part.offset + part.length
    assert len(parts) <= MAX_CUTS + 1
    assert sum(part.length for part in parts) <= at - HEADER_BYTES


def test_a_large_pack_is_read_in_few_bounded_pieces() -> None:
    block, blocks = 64 << 10, 513
    found = SegmentMap(0, block, blocks * block)
    size = HEADER_BYTES + blocks * block
    found.packs = [PackInfo("", size, size)]
    for index in range(blocks):
        found.codecs[index] = RAW
        found.offset[index] = HEADER_BYTES + index * block
        found.stored[index] = block
    parts = plan(found, by_pack(found)[0], size, MIB)
    assert len(parts) <= 4
    assert max(part.length for part in parts) <= 11.5 * MIB
    # However large a hostile map says the pack is, a read stays bounded.
    assert max(part.length for part in plan(found, by_pack(found)[0], 1 << 32, MIB)) <= 32 * MIB


@given(
    st.integers(1, 300_000),
    st.lists(st.tuples(st.integers(0, 300_000), st.integers(1, 50_000)), max_size=8),
)
def test_block_runs_cover_the_extents_and_add_up_over_segments(
    length: int, wanted: list[tuple[int, int]]
) -> None:
    geometry = Geometry(length, 4096, 65536)
    extents, end = [], 0
    for offset, size in sorted(wanted):
        first, last = max(offset, end), min(offset + size, length)
        if first < last:
            extents.append((first, last - first))
            end = last
    source = MemorySource(bytes(length), extents)
    whole = list(block_runs(source, geometry, 0, length))
    covered = {at // 4096 for first, last in whole for at in range(first, last, 4096)}
    assert covered == {at // 4096 for off, size in extents for at in {*range(off, off + size), off}}
    for (_, end_a), (start_b, _) in itertools.pairwise(whole):
        assert end_a < start_b
    parts = 0
    for index in range(geometry.segments):
        start = index * 65536
        runs = list(block_runs(source, geometry, start, start + geometry.segment_length(index)))
        parts += sum(last - first for first, last in runs)
    assert parts == sum(last - first for first, last in whole)
    assert list(data_segments(source, geometry)) == sorted({block // 16 for block in covered})


@given(st.lists(st.sampled_from([0, 1, 2]), min_size=1, max_size=40))
def test_zero_runs_are_exactly_the_zero_blocks(codecs: list[int]) -> None:
    found = SegmentMap(0, 512, 512 * len(codecs))
    found.codecs = bytearray(codecs)
    runs = list(zero_runs(found))
    zeros = [block for first, last in runs for block in range(first, last)]
    assert zeros == [block for block, codec in enumerate(codecs) if codec == 0]
    assert all(end < start for (_, end), (start, _) in itertools.pairwise(runs))


class Worker:
    """A worker whose items say what to do."""

    closed = 0

    def __init__(self, halt: Halt, started: threading.Semaphore) -> None:
        self._halt = halt
        self._started = started

    def work(self, item: str) -> str:
        if item.startswith("fail"):
            raise OSError(item)
        if item == "wait":
            self._started.release()
            while True:
                self._halt.check()
                time.sleep(0.001)
        return item

    def close(self) -> None:
        Worker.closed += 1


def streams(count: int, control: FakeControl | None = None) -> tuple[Streams[str, str], threading.Semaphore]:
    halt = Halt(control or FakeControl())
    started = threading.Semaphore(0)
    return Streams(lambda: Worker(halt, started), count, halt), started


@pytest.mark.parametrize("count", [1, 2, 5])
def test_streams_do_every_item_once(count: int) -> None:
    items = [str(number) for number in range(50)]
    pool, _ = streams(count)
    assert sorted(pool.run(iter(items))) == sorted(items)


def test_streams_draw_few_items_ahead() -> None:
    drawn = 0

    def items() -> Iterator[str]:
        nonlocal drawn
        for number in range(1000):
            drawn += 1
            yield str(number)

    pool, _ = streams(2)
    for done, _ in enumerate(pool.run(items()), 1):
        assert drawn <= done + 4


def test_the_first_error_ends_all_streams_and_is_raised() -> None:
    Worker.closed = 0
    pool, started = streams(3)

    def items() -> Iterator[str]:
        yield "wait"
        yield "wait"
        started.acquire()
        started.acquire()
        yield "fail first"
        yield "fail second"

    before = threading.active_count()
    with pytest.raises(OSError, match="fail first"):
        list(pool.run(items()))
    assert threading.active_count() == before
    assert Worker.closed == 3


def test_an_error_of_the_items_ends_all_streams() -> None:
    pool, started = streams(2)

    def items() -> Iterator[str]:
        yield "wait"
        started.acquire()
        raise ValueError("no more")

    with pytest.raises(ValueError, match="no more"):
        list(pool.run(items()))


def test_a_stopped_task_ends_all_streams() -> None:
    pool, _ = streams(2, FakeControl(stop_after=20))
    with pytest.raises(TaskCancelled):
        list(pool.run(iter(["wait", "wait"])))


def test_progress_never_exceeds_its_total_and_ends_there() -> None:
    control = FakeControl()
    meter = Meter(control, 100, interval=0)
    for _ in range(3):
        meter.add(40)
    meter.finish()
    assert control.reports == [(40, 100), (80, 100), (100, 100), (100, 100)]

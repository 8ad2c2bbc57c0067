"""The small rules of the data path: fragmentation, ranges, extents, streams."""

from __future__ import annotations

import itertools
import random
import threading
import time
from collections.abc import Iterator, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backupfw.engine import fragmentation
from backupfw.engine.extents import Sampler, block_extents, segments
from backupfw.engine.format.geometry import Geometry
from backupfw.engine.format.pack import HEADER_BYTES, RAW
from backupfw.engine.format.segment_map import PackInfo, SegmentMap
from backupfw.engine.pool import Halt, Meter, Streams
from backupfw.engine.ranges import MAX_CUTS, by_pack, plan
from backupfw.engine.segment_restore import zero_runs
from backupfw.errors import TaskCancelled
from backupfw.volume.base import Extent, Kind
from tests.unit.engine.fakes import FakeControl, MemoryPoint

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


class SayingPoint(MemoryPoint):
    """A point that says what a test wants."""

    said: list[Extent]

    def extents(self, start: int, end: int, since: str | None = None) -> Iterator[Extent]:
        for extent in self.said:
            first, last = max(extent.offset, start), min(extent.end, end)
            if first < last:
                yield Extent(first, last - first, extent.kind)


@given(
    st.integers(1, 100_000),
    st.lists(st.tuples(st.integers(1, 40_000), st.sampled_from(Kind)), max_size=12),
    st.integers(0, 120_000),
)
def test_what_a_point_says_by_blocks_and_segments(
    length: int, wanted: list[tuple[int, Kind]], same_until: int
) -> None:
    block, segment = 512, 8192
    geometry = Geometry(length, block, segment)
    said, end = [], 0
    for size, kind in [*wanted, (length, Kind.DATA)]:
        if end < length:
            said.append(Extent(end, min(size, length - end), kind))
            end = said[-1].end
    point = SayingPoint(b"")
    point.said = said
    same_until -= same_until % block
    model = []
    for at in range(0, length, block):
        kinds = {one.kind for one in said if one.offset < at + block and one.end > at}
        kind = kinds.pop() if len(kinds) == 1 else Kind.DATA
        model.append(Kind.DATA if kind is Kind.SAME and at >= same_until else kind)

    def kinds_of(extents: Sequence[Extent], first: int) -> list[Kind]:
        found = []
        for extent in extents:
            assert extent.offset == first + len(found) * block
            found += [extent.kind] * -(-extent.length // block)
        assert all(one.kind is not other.kind for one, other in itertools.pairwise(extents))
        return found

    whole = list(block_extents(point, geometry, 0, length, "token", same_until))
    assert kinds_of(whole, 0) == model
    found = segments(point, geometry, Sampler(0, 4096, "seed"), "token", same_until)
    by_segment = {one.segment: one.extents for one in found}
    for index in range(geometry.segments):
        mine = model[index * segment // block : (index + 1) * segment // block]
        if index in by_segment:
            assert kinds_of(by_segment[index], index * segment) == mine
            assert by_segment[index][-1].end == index * segment + geometry.segment_length(index)
        else:
            assert set(mine) == {Kind.ZERO}
        assert index not in by_segment or set(mine) != {Kind.ZERO}


@pytest.mark.parametrize(
    "said",
    [
        [Extent(0, 10, Kind.DATA), Extent(11, 89, Kind.ZERO)],
        [Extent(0, 60, Kind.SAME), Extent(50, 50, Kind.SAME)],
        [Extent(0, 99, Kind.ZERO)],
        [Extent(1, 99, Kind.ZERO)],
        [Extent(0, 100, Kind.ZERO), Extent(100, 1, Kind.ZERO)],
        [],
    ],
)
def test_a_point_that_leaves_a_gap_is_refused(said: list[Extent]) -> None:
    class Gaps(MemoryPoint):
        def extents(self, start: int, end: int, since: str | None = None) -> Iterator[Extent]:
            yield from said

    with pytest.raises(ValueError, match="provider's extents"):
        list(block_extents(Gaps(bytes(100)), Geometry(100, 512, 512), 0, 100))


def test_a_sample_is_a_share_of_the_bytes_wherever_they_are() -> None:
    mib = 1 << 20
    extents = [Extent(mib, 40 * mib, Kind.SAME), Extent(100 * mib, 300, Kind.SAME)]

    def chosen(share: float) -> int:
        sampler = Sampler(share, 4096, "seed")
        total = 0
        for extent in extents * 50:
            at = extent.offset
            for part in sampler.choose(extent, 64 << 10):
                assert at <= part.offset < part.end <= extent.end
                # It lies in one segment.
                assert part.offset >> 16 == (part.end - 1) >> 16
                at = part.end
                total += part.length
        return total

    everything = sum(extent.length for extent in extents) * 50
    assert chosen(0) == 0
    assert chosen(1) == everything
    # 8000 stretches: far less likely to be outside than a cosmic ray.
    assert 0.05 < chosen(0.1) / everything < 0.2


def test_a_sample_of_long_zeros_costs_a_step_for_each_stretch_only() -> None:
    class Empty(MemoryPoint):
        def extents(self, start: int, end: int, since: str | None = None) -> Iterator[Extent]:
            yield Extent(start, end - start, Kind.ZERO)

    geometry = Geometry(1 << 50, 1 << 16, 1 << 26)
    point = Empty(b"")
    # 2^32 stretches, of which about 400 are chosen.
    found = list(segments(point, geometry, Sampler(1e-7, 1 << 16, "seed"), "token"))
    assert 200 < len(found) < 800
    for one in found:
        assert one.extents == ()
        for part in one.sample:
            assert part.kind is Kind.ZERO
            assert part.offset >> 26 == (part.end - 1) >> 26 == one.segment
    assert [one.segment for one in found] == sorted({one.segment for one in found})
    # Nothing is checked where nothing is compared.
    assert list(segments(point, geometry, Sampler(1.0, 1 << 16, "seed"))) == []


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

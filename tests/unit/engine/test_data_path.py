"""Backup and restore: bytes come back, sharing shares, figures are true."""

from __future__ import annotations

import random
import weakref
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backupfw.chunkstore.container import Container
from backupfw.engine import backup, objects, restore
from backupfw.engine.format import keys
from backupfw.engine.format.geometry import Geometry
from backupfw.engine.format.manifest import ManifestReader
from backupfw.engine.ports import BackupResult, RestoreResult
from backupfw.errors import SourceMoved, SourceUnreadable, TargetError, TaskLost
from tests.unit.engine.fakes import (
    BLOCK,
    KIB,
    SEGMENT,
    CountingTarget,
    FakeControl,
    FaultyContainer,
    GeneratedPoint,
    MemoryJournal,
    MemoryPoint,
    MemoryTarget,
    make_job,
    memory_container,
    objects_of,
)


def content(length: int, seed: int = 1, zero: float = 0.3, text: float = 0.3) -> bytearray:
    """Blocks of zeros, text-like and random bytes."""
    rng = random.Random(seed)
    data = bytearray(length)
    for at in range(0, length, BLOCK):
        size = min(BLOCK, length - at)
        kind = rng.random()
        if kind >= zero + text:
            data[at : at + size] = rng.randbytes(size)
        elif kind >= zero:
            data[at : at + size] = (b"line %d of the text\n" % at * BLOCK)[:size]
    return data


def run(
    box: FaultyContainer,
    number: int,
    data: bytes | bytearray,
    base: str | None = None,
    source: MemoryPoint | None = None,
    **changes: Any,
) -> BackupResult:
    job = make_job(number, len(data), base, **changes)
    return backup.run(job, source or MemoryPoint(data), box, MemoryJournal(), FakeControl())


def check(box: FaultyContainer, key: str, data: bytes | bytearray) -> RestoreResult:
    """Restore to a fresh and to a larger dirty target; both must hold the bytes."""
    fresh = MemoryTarget(len(data))
    result = restore.run(key, box, fresh, FakeControl())
    assert fresh.data == data
    assert not fresh.zeros
    assert fresh.flushed == data
    dirty = MemoryTarget(len(data) + 777, b"\xaa")
    restore.run(key, box, dirty, FakeControl())
    assert dirty.data[: len(data)] == data
    assert dirty.data[len(data) :] == b"\xaa" * 777
    return result


LENGTHS = [1, 100, BLOCK, BLOCK + 1, SEGMENT - 1, SEGMENT, SEGMENT + 1, 3 * SEGMENT + BLOCK + 5]


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("zero", [0.0, 0.5, 1.0])
def test_round_trip_of_every_length(length: int, zero: float) -> None:
    box = memory_container()
    data = content(length, zero=zero, text=0.2)
    result = run(box, 0, data)
    check(box, result.manifest_key, data)
    assert result.data_bytes <= length
    # And again on top of itself: nothing but a manifest.
    again = run(box, 1, data, result.manifest_key)
    assert (again.object_count, again.changed_segments) == (1, 0)
    check(box, again.manifest_key, data)


def test_a_backup_of_an_empty_volume_restores() -> None:
    box = memory_container()
    result = run(box, 0, b"")
    check(box, result.manifest_key, b"")
    assert result.object_count == 1


def test_figures_are_those_of_the_store() -> None:
    box = memory_container()
    data = content(5 * SEGMENT + 99)
    result = run(box, 0, data)
    stored = objects_of(box)
    assert result.object_count == len(stored)
    assert result.stored_bytes == result.referenced_bytes == sum(map(len, stored.values()))
    assert result.read_bytes == len(data)
    blocks = [data[at : at + BLOCK] for at in range(0, len(data), BLOCK)]
    assert result.data_bytes == sum(len(block) for block in blocks if any(block))
    data[SEGMENT + 5] ^= 1
    second = run(box, 1, data, result.manifest_key)
    mine = {key: value for key, value in objects_of(box).items() if "/backup1/" in key}
    assert second.object_count == len(mine) == 3  # pack, map, manifest
    assert second.stored_bytes == sum(map(len, mine.values()))
    named = {
        key for entry in ManifestReader(box, second.manifest_key).segments() for key in entry.object_keys()
    }
    named.add(second.manifest_key)
    assert second.referenced_bytes == sum(len(objects_of(box)[key]) for key in named)
    assert second.stored_raw_bytes < 3 * BLOCK


def test_every_object_is_put_before_what_names_it() -> None:
    box = memory_container()
    result = run(box, 0, content(4 * SEGMENT))
    seen: set[str] = set()
    for key in box.puts:
        parsed = keys.parse(key)
        assert parsed is not None
        if parsed.kind == "map":
            packs = [name for name in objects_of(box) if name.startswith(key[: -len("map")] + "p")]
            assert set(packs) <= seen
        seen.add(key)
    assert box.puts[-1] == result.manifest_key
    assert len(box.puts) == len(seen)


def test_zeroed_data_comes_back_as_zeros_on_both_kinds_of_target() -> None:
    """An incremental that zeroed whole blocks and whole segments, restored to a new and a dirty volume."""
    box = memory_container()
    data = content(4 * SEGMENT, zero=0)
    first = run(box, 0, data)
    data[BLOCK : 3 * BLOCK] = bytes(2 * BLOCK)
    data[2 * SEGMENT : 3 * SEGMENT] = bytes(SEGMENT)
    second = run(box, 1, data, first.manifest_key)
    check(box, second.manifest_key, data)
    assert second.segments == 3


def test_a_backup_needs_no_other_backup() -> None:
    """What the base's manifest was needed for ends with the incremental; only shared objects stay."""
    box = memory_container()
    data = content(4 * SEGMENT)
    first = run(box, 0, data)
    data[7] ^= 1
    second = run(box, 1, data, first.manifest_key)
    named = {
        key for entry in ManifestReader(box, second.manifest_key).segments() for key in entry.object_keys()
    }
    for key in list(objects_of(box)):
        if key not in named and key != second.manifest_key:
            del objects_of(box)[key]
    check(box, second.manifest_key, data)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_chains_of_writes_zeroing_growing_and_shrinking(data: st.DataObject) -> None:
    box = memory_container()
    length = data.draw(st.integers(1, 4 * SEGMENT))
    volume = content(length, seed=data.draw(st.integers(0, 9)))
    base = None
    history = []
    for number in range(data.draw(st.integers(2, 6))):
        result = run(box, number, volume, base)
        assert result.base_problem is None
        history.append((result.manifest_key, bytes(volume)))
        base = data.draw(st.sampled_from(history))[0]
        for _ in range(data.draw(st.integers(0, 4))):
            at = data.draw(st.integers(0, len(volume) - 1))
            size = min(data.draw(st.sampled_from([1, 100, BLOCK, SEGMENT])), len(volume) - at)
            fill = data.draw(st.sampled_from([bytes(size), b"x" * size, random.Random(at).randbytes(size)]))
            volume[at : at + size] = fill
        change = data.draw(st.sampled_from(["same", "grow", "shrink"]))
        if change == "grow":
            volume += bytes(data.draw(st.integers(1, 2 * SEGMENT)))
        elif change == "shrink" and len(volume) > 1:
            del volume[data.draw(st.integers(1, len(volume) - 1)) :]
    for key, expected in history:
        target = MemoryTarget(len(expected), data.draw(st.sampled_from([None, b"\xee"])))
        restore.run(key, box, target, FakeControl())
        assert target.data == expected


def test_a_grown_volume_shares_all_but_its_last_block() -> None:
    box = memory_container()
    data = content(2 * SEGMENT + 5 * BLOCK + 100, zero=0, text=0)
    first = run(box, 0, data)
    data += content(SEGMENT, seed=2, zero=0, text=0)
    second = run(box, 1, data, first.manifest_key)
    check(box, second.manifest_key, data)
    # The short last block, the rest of its segment and the new one; the fragmentation rule needs no more.
    assert second.stored_raw_bytes - second.repacked_bytes < SEGMENT + 3 * BLOCK
    shrunk = data[: SEGMENT + 3 * BLOCK + 50]
    third = run(box, 2, shrunk, second.manifest_key)
    check(box, third.manifest_key, shrunk)
    assert third.stored_raw_bytes < SEGMENT


def test_blocks_are_shared_only_at_equal_length_and_place() -> None:
    """The short last block of the base begins like the longer one of the grown volume."""
    box = memory_container()
    data = content(SEGMENT + BLOCK // 2, zero=0, text=0)
    first = run(box, 0, data)
    grown = data + bytes(BLOCK)
    second = run(box, 1, grown, first.manifest_key)
    check(box, second.manifest_key, grown)
    moved = data[BLOCK:] + data[:BLOCK]
    third = run(box, 2, moved, first.manifest_key)
    check(box, third.manifest_key, moved)


def test_holes_are_not_read() -> None:
    box = memory_container()
    data = bytearray(10 * SEGMENT)
    data[3 * SEGMENT + 5000 : 3 * SEGMENT + 6000] = b"x" * 1000
    data[9 * SEGMENT + 1 : 9 * SEGMENT + 2] = b"y"
    source = MemoryPoint(data, [(3 * SEGMENT + 5000, 1000), (9 * SEGMENT + 1, 1)])
    result = run(box, 0, data, source=source)
    assert sorted(source.reads) == [(3 * SEGMENT + BLOCK, BLOCK), (9 * SEGMENT, BLOCK)]
    assert result.read_bytes == 2 * BLOCK
    assert sorted(source.released) == [(3 * SEGMENT, SEGMENT), (9 * SEGMENT, SEGMENT)]
    check(box, result.manifest_key, data)


@pytest.mark.parametrize(
    "changes",
    [
        {"installation": "other"},
        {"project": "other"},
        {"geometry": Geometry(4 * SEGMENT, BLOCK // 2, SEGMENT)},
        {"geometry": Geometry(4 * SEGMENT, BLOCK, SEGMENT * 2)},
    ],
)
def test_nothing_is_shared_with_a_base_that_differs(changes: dict[str, Any]) -> None:
    box = memory_container()
    data = content(4 * SEGMENT)
    first = run(box, 0, data)
    second = run(box, 1, data, first.manifest_key, **changes)
    assert second.base_problem is not None
    assert second.stored_bytes == second.referenced_bytes
    check(box, second.manifest_key, data)
    assert ManifestReader(box, second.manifest_key).origins() == [second.manifest_key[: -len("/manifest")]]


def test_compression_may_differ_from_the_base() -> None:
    box = memory_container()
    data = content(2 * SEGMENT)
    first = run(box, 0, data)
    data[0] ^= 1
    second = run(box, 1, data, first.manifest_key, compression_level=9)
    assert second.changed_segments == 1
    check(box, second.manifest_key, data)


def test_many_incrementals_keep_reads_and_requests_bounded() -> None:
    box = memory_container()
    length = 8 * SEGMENT
    rng = random.Random(3)
    data = content(length, zero=0, text=0)
    base = None
    for number in range(25):
        result = run(box, number, data, base)
        base = result.manifest_key
        for _ in range(10):
            at = rng.randrange(length - 100)
            data[at : at + 100] = rng.randbytes(100)
    reader = ManifestReader(box, base or "")
    for entry in reader.segments():
        assert len(entry.packs) <= 16
    box.gets.clear()
    target = MemoryTarget(length)
    done = restore.run(base or "", box, target, FakeControl())
    assert done.fetched_bytes <= 1.3 * done.needed_bytes
    assert done.requests <= 4 * done.packs
    packs = [key for key, _, _ in box.gets if "/p" in key[-6:]]
    assert len(packs) == done.requests
    # Each pack is visited once: its reads follow one another within its segment's stream.
    for segment in range(8):
        order = [key for key in packs if f"/{segment:08x}/p" in key]
        assert len([key for place, key in enumerate(order) if order[place - 1 : place] != [key]]) == len(
            set(order)
        )


def test_a_stream_gives_a_range_back_before_it_reads_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    box = memory_container()
    result = run(box, 0, content(4 * SEGMENT, zero=0, text=0.5))
    read = objects.read
    held: list[weakref.ref[Watched]] = []

    class Watched(bytearray):
        """Bytes that a weak reference may follow."""

    def watch(container: Container, key: str, offset: int | None = None, length: int | None = None) -> Any:
        if keys.parse(key).kind != "pack":  # type: ignore[union-attr]
            return read(container, key, offset, length)
        assert not [reference for reference in held if reference() is not None]
        data = Watched(read(container, key, offset, length))
        held.append(weakref.ref(data))
        return data

    monkeypatch.setattr(objects, "read", watch)
    done = restore.run(result.manifest_key, box, MemoryTarget(4 * SEGMENT), FakeControl(), streams=1)
    assert done.requests > 4


def test_a_source_that_moves_under_the_fragmentation_rule_is_noticed() -> None:
    box = memory_container()
    data = content(SEGMENT, zero=0, text=0)
    first = run(box, 0, data)

    class Moving(MemoryPoint):
        """Blocks 8 and 9 read differently the second time; zeros in one case."""

        def __init__(self, fill: bytes) -> None:
            super().__init__(bytes(data[:BLOCK]) + b"n" * (7 * BLOCK) + bytes(data[8 * BLOCK :]))
            self._fill = fill

        def read_into(self, offset: int, buffer: memoryview) -> None:
            super().read_into(offset, buffer)
            if len(self.reads) > 1:
                buffer[:] = (self._fill * len(buffer))[: len(buffer)]

    for number, fill in enumerate((b"\0", b"z"), 1):
        source = Moving(fill)
        with pytest.raises(SourceMoved):
            run(box, number, source.data, first.manifest_key, source=source, pack_size=2 * SEGMENT)
        assert len(source.reads) > 1


def test_a_source_that_cannot_be_read_ends_the_backup() -> None:
    box = memory_container()
    source = MemoryPoint(bytes(SEGMENT))
    source.data = source.data[:-1]
    source.length = SEGMENT

    for error, text in (
        (OSError(5, "no /secret/path", "/secret/path"), "The volume could not be read: Input/output error."),
        (OSError("/secret/path is gone"), "The volume could not be read: its storage failed."),
    ):

        def short(offset: int, buffer: memoryview, error: OSError = error) -> None:
            raise error

        source.read_into = short  # type: ignore[method-assign]
        with pytest.raises(SourceUnreadable) as caught:
            backup.run(make_job(0, SEGMENT), source, box, MemoryJournal(), FakeControl())
        assert str(caught.value) == text
        assert objects_of(box) == {}


def test_a_small_target_is_refused_before_anything_is_written() -> None:
    box = memory_container()
    data = content(SEGMENT)
    key = run(box, 0, data).manifest_key
    target = MemoryTarget(SEGMENT - 1)
    with pytest.raises(TargetError, match="smaller"):
        restore.run(key, box, target, FakeControl())
    assert target.writes == []


def test_a_lost_target_is_not_written_any_more() -> None:
    box = memory_container()
    data = content(6 * SEGMENT, zero=0)
    key = run(box, 0, data).manifest_key
    for fill in (None, b"x"):
        target = MemoryTarget(len(data), fill)
        with pytest.raises(TaskLost):
            restore.run(key, box, target, FakeControl(lose_after=3))
        assert len(target.writes) + len(target.zeros) <= 3 * (SEGMENT // BLOCK)
        assert bytes(data) not in (target.data, target.flushed)


def test_a_write_error_names_no_path() -> None:
    box = memory_container()
    key = run(box, 0, content(SEGMENT, zero=0)).manifest_key

    class Full(MemoryTarget):
        def write(self, offset: int, buffers: Any) -> None:
            raise OSError(28, "No space left on device", "/secret/path")

    with pytest.raises(TargetError) as caught:
        restore.run(key, box, Full(SEGMENT), FakeControl())
    assert "No space left" in str(caught.value)
    assert "secret" not in str(caught.value)


def test_progress_counts_what_is_to_be_visited() -> None:
    box = memory_container()
    data = content(3 * SEGMENT)
    control = FakeControl()
    key = backup.run(make_job(0, len(data)), MemoryPoint(data), box, MemoryJournal(), control).manifest_key
    assert control.reports[-1] == (len(data), len(data))
    assert all(0 <= done <= total == len(data) for done, total in control.reports)
    control = FakeControl()
    target = MemoryTarget(len(data))
    result = restore.run(key, box, target, control)
    assert control.reports[-1] == (result.written_bytes, result.written_bytes)


def test_a_sparse_4_tib_volume_costs_no_call_per_block() -> None:
    box = memory_container()
    length = 4 << 40
    size = 256 << 20
    source = GeneratedPoint(length, segments=[3, 9000, 16000], data_per_segment=64 * KIB)
    job = make_job(0, length, geometry=Geometry(length), pack_size=1 << 20)
    result = backup.run(job, source, box, MemoryJournal(), FakeControl())
    assert result.segments == 3
    assert result.read_bytes == 3 * 64 * KIB
    fresh = CountingTarget(length, reads_zero=True)
    restore.run(result.manifest_key, box, fresh, FakeControl())
    assert (fresh.zeroed, fresh.written, fresh.calls) == (0, 3 * 64 * KIB, 3)
    dirty = CountingTarget(length, reads_zero=False)
    restore.run(result.manifest_key, box, dirty, FakeControl())
    assert (dirty.zeroed, dirty.written) == (length - 3 * 64 * KIB, 3 * 64 * KIB)
    assert dirty.calls <= length // size + 10


@pytest.mark.parametrize(
    "changes",
    [
        {"pack_size": 100},
        {"pack_size": 1 << 30},
        {"geometry": Geometry(SEGMENT, 1000, 64000)},
        {"geometry": Geometry(SEGMENT + 1, BLOCK, SEGMENT)},
    ],
)
def test_a_job_out_of_bounds_is_refused(changes: dict[str, Any]) -> None:
    box = memory_container()
    with pytest.raises(ValueError, match=r"size|pack|bounds|length"):
        run(box, 0, bytes(SEGMENT), **changes)
    assert objects_of(box) == {}

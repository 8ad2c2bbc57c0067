"""Incremental backups by what the storage says changed: what is read, believed and checked."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backupfw.engine import backup
from backupfw.engine.format.manifest import ManifestHead, ManifestReader, PointNote
from backupfw.engine.ports import BackupResult
from backupfw.errors import ChangeMissed, SourceMoved, TaskCancelled, TaskLost
from backupfw.volume.base import Extent
from tests.unit.engine.fakes import (
    BLOCK,
    KIB,
    SEGMENT,
    FakeControl,
    FaultyContainer,
    MemoryJournal,
    MemoryPoint,
    make_job,
    memory_container,
    objects_of,
)
from tests.unit.engine.test_data_path import check, content

GRAIN = 1 * KIB


def first(box: FaultyContainer, data: bytes | bytearray, number: int = 0) -> str:
    """Make a full backup of a point with the token ``t<number>``; return its key."""
    point = MemoryPoint(bytes(data), token=f"t{number}")
    job = make_job(number, len(data))
    return backup.run(job, point, box, MemoryJournal(), FakeControl()).manifest_key


def then(
    box: FaultyContainer,
    number: int,
    data: bytes | bytearray,
    base: str,
    was: bytes | bytearray,
    *,
    journal: MemoryJournal | None = None,
    lies: Sequence[range] = (),
    zero_lies: Sequence[range] = (),
    extents: list[tuple[int, int]] | None = None,
    **changes: Any,
) -> tuple[BackupResult, MemoryPoint]:
    """Make the next backup, by what changed since the point of the one before."""
    since = f"t{number - 1}"
    point = MemoryPoint(
        bytes(data),
        extents,
        token=f"t{number}",
        earlier={since: bytes(was)},
        grain=GRAIN,
        lies=lies,
        zero_lies=zero_lies,
    )
    job = make_job(number, len(data), base, **{"since": since, **changes})
    return backup.run(job, point, box, journal or MemoryJournal(), FakeControl()), point


def changed_bytes(was: bytes | bytearray, data: bytes | bytearray) -> int:
    """How many bytes have the blocks that changed and are not zero now, or are longer than they were."""
    total = 0
    for at in range(0, len(data), BLOCK):
        block = data[at : at + BLOCK]
        total += len(block) if block != was[at : at + BLOCK] else 0
    return total


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 1 << 16),
    lengths=st.tuples(*[st.sampled_from([1, BLOCK, SEGMENT - 1, SEGMENT + 1, 3 * SEGMENT + 777])] * 3),
    share=st.sampled_from([0.0, 0.3, 1.0]),
)
def test_a_chain_by_tokens_restores_and_reads_what_changed(
    seed: int, lengths: tuple[int, int, int], share: float
) -> None:
    rng = random.Random(seed)
    box = memory_container()
    data = content(lengths[0], seed)
    key, was = first(box, data), bytes(data)
    for number, length in enumerate(lengths[1:], 1):
        data = (data + bytearray(max(0, length - len(data))))[:length]
        for _ in range(rng.randint(0, 4)):
            at = rng.randrange(length)
            size = min(rng.randint(1, 2 * BLOCK), length - at)
            data[at : at + size] = rng.choice([bytes(size), rng.randbytes(size)])
        result, point = then(box, number, data, key, was, verify_unchanged=share, pack_size=4 * KIB)
        check(box, result.manifest_key, data)
        assert result.read_bytes == point.read_bytes
        assert result.sampled_bytes == 0 or share
        # What is read is what changed, the sample, and what the fragmentation rule stores again.
        most = changed_bytes(was, data) + result.sampled_bytes + result.repacked_bytes
        assert result.read_bytes <= most
        assert result.sampled_bytes <= len(data)
        head = ManifestReader(box, result.manifest_key).head
        # If all of it was checked, nothing was only believed.
        assert head.point == PointNote(f"t{number}", 0 if share == 1.0 else number)
        key, was = result.manifest_key, bytes(data)


def test_nothing_is_read_of_what_is_the_same_not_even_maps() -> None:
    box = memory_container()
    data = content(5 * SEGMENT + 3)
    key = first(box, data)
    box.gets.clear()
    result, point = then(box, 1, data, key, data)
    assert (point.reads, result.changed_segments, result.object_count) == ([], 0, 1)
    assert {name for name, _, _ in box.gets} == {key}
    check(box, result.manifest_key, data)


@pytest.mark.parametrize("since", [None, "t0"])
def test_a_task_ends_although_the_point_has_very_much_to_say(since: str | None) -> None:
    box = memory_container()
    data = bytes(5 * SEGMENT)
    key = first(box, data)
    point = MemoryPoint(data, [], token="t1", earlier={"t0": data}, grain=1)
    said = 0
    tell = point.extents

    def slowly(start: int, end: int, since: str | None = None) -> Iterator[Extent]:
        nonlocal said
        for extent in tell(start, end, since):
            for at in range(extent.length):
                said += 1
                yield Extent(extent.offset + at, 1, extent.kind)

    point.extents = slowly  # type: ignore[method-assign]
    with pytest.raises(TaskCancelled):
        backup.run(
            make_job(1, len(data), key, since=since), point, box, MemoryJournal(), FakeControl(stop_after=10)
        )
    assert said <= 20


def test_all_that_is_said_to_be_the_same_can_be_sampled() -> None:
    box = memory_container()
    data = content(5 * SEGMENT + 3)
    key = first(box, data)
    result, point = then(box, 1, data, key, data, verify_unchanged=1.0)
    assert result.read_bytes == result.sampled_bytes == point.read_bytes == len(data)
    assert (result.changed_segments, result.object_count) == (0, 1)


def test_known_zeros_of_a_sample_are_not_read() -> None:
    box = memory_container()
    data = bytearray(64 * SEGMENT)
    data[SEGMENT : SEGMENT + BLOCK] = b"x" * BLOCK
    allocated = [(SEGMENT, 2 * BLOCK)]
    key = first(box, data)
    result, _ = then(box, 1, data, key, data, verify_unchanged=1.0, extents=allocated)
    assert result.read_bytes == 2 * BLOCK


def test_a_lie_that_the_sample_meets_ends_the_backup() -> None:
    box = memory_container()
    data = content(4 * SEGMENT, zero=0.0)
    key, was = first(box, data), bytes(data)
    for changed in (b"y" * 10, bytes(BLOCK)):
        new = bytearray(was)
        new[2 * SEGMENT + BLOCK : 2 * SEGMENT + BLOCK + len(changed)] = changed
        with pytest.raises(ChangeMissed, match=f"block at {2 * SEGMENT + BLOCK} is unchanged"):
            then(box, 1, new, key, was, verify_unchanged=1.0, lies=[range(len(new))])


def test_a_source_that_moved_is_no_lie() -> None:
    box = memory_container()
    data = content(SEGMENT, zero=0.0)
    key, new = first(box, data), bytearray(data)
    new[0] ^= 1

    class Moved(MemoryPoint):
        def check_still(self) -> None:
            raise SourceMoved("The source changed while it was read.")

    point = Moved(bytes(new), token="t1", earlier={"t0": bytes(data)}, lies=[range(len(new))])
    job = make_job(1, len(new), key, since="t0", verify_unchanged=1.0)
    journal = MemoryJournal()
    with pytest.raises(SourceMoved):
        backup.run(job, point, box, journal, FakeControl())
    assert journal.missed == []


@pytest.mark.parametrize("error", [OSError("away"), TaskLost("lost")])
def test_a_lie_is_told_although_something_else_failed_first(error: Exception) -> None:
    """And nothing is recorded that must not be used."""
    box = memory_container()
    data = content(4 * SEGMENT, zero=0.0)
    key, new = first(box, data), bytearray(data)
    new[3 * SEGMENT] ^= 1
    reading, failed = threading.Event(), threading.Event()

    class Slow(MemoryPoint):
        def read_into(self, offset: int, buffer: memoryview) -> None:
            if offset >= 3 * SEGMENT:
                reading.set()
                assert failed.wait(60)
            super().read_into(offset, buffer)

        def check_still(self) -> None:
            if not failed.is_set():
                assert reading.wait(60)
                failed.set()
                raise error

    point = Slow(bytes(new), token="t1", earlier={"t0": bytes(data)}, lies=[range(len(new))])
    job = make_job(1, len(new), key, since="t0", verify_unchanged=1.0, streams=4)
    journal = MemoryJournal()
    with pytest.raises(ChangeMissed):
        backup.run(job, point, box, journal, FakeControl())
    assert list(journal.finished()) == []
    assert len(journal.missed) == 1


def test_every_attempt_of_an_epoch_samples_the_same() -> None:
    """So a lie that one found, and could not report any more, is found by the next one."""
    box = memory_container()
    data = content(64 * SEGMENT, zero=0.0)
    key = first(box, data)

    def sampled(**attempt: Any) -> set[tuple[int, int]]:
        return set(then(box, 1, data, key, data, verify_unchanged=0.5, **attempt)[1].reads)

    mine = sampled()
    assert 0 < len(mine) < 64
    assert sampled(attempt=2, token="e" * 16) == mine
    assert sampled(epoch=2, token="f" * 16) != mine


def test_a_lie_about_zeros_is_met_whether_they_were_or_are_zeros() -> None:
    box = memory_container()
    data = bytearray(4 * SEGMENT)
    data[SEGMENT : 2 * SEGMENT] = content(SEGMENT, zero=0.0)
    key, was = first(box, data), bytes(data)
    appeared, went = bytearray(was), bytearray(was)
    appeared[3 * SEGMENT] = 1
    went[SEGMENT : 2 * SEGMENT] = bytes(SEGMENT)
    everywhere = [range(len(data))]
    with pytest.raises(ChangeMissed):
        then(box, 1, appeared, key, was, verify_unchanged=1.0, lies=everywhere)
    # The storage says in the same breath that it is the same, and that it is a hole.
    with pytest.raises(ChangeMissed):
        then(box, 1, went, key, was, verify_unchanged=1.0, lies=everywhere, extents=[])


@pytest.mark.parametrize("lie", [range(SEGMENT, 3 * SEGMENT), range(SEGMENT + BLOCK, SEGMENT + 2 * BLOCK)])
@pytest.mark.parametrize("were", ["data", "zeros"])
def test_a_lie_that_something_is_zero_is_met(lie: range, were: str) -> None:
    box = memory_container()
    data = content(4 * SEGMENT, zero=0.0)
    was = bytearray(data)
    if were == "zeros":
        was[lie.start : lie.stop] = bytes(len(lie))
    key = first(box, was)
    with pytest.raises(ChangeMissed, match="is zero, and it is not"):
        then(box, 1, data, key, was, verify_unchanged=1.0, zero_lies=[lie], streams=1)
    # It says so without a token to compare with, too: then nothing of it is believed.
    result, point = then(box, 1, data, key, was, epoch=1, since=None, zero_lies=[lie], read_all=True)
    check(box, result.manifest_key, data)
    assert point.read_bytes == len(data)


def test_a_share_of_what_is_said_to_be_zero_is_read() -> None:
    box = memory_container()
    data = content(64 * SEGMENT, zero=0.0)
    key = first(box, data)
    empty = bytes(len(data))
    result, point = then(
        box, 1, empty, key, data, verify_unchanged=0.25, zero_lies=[range(len(data))], streams=1
    )
    assert 0 < result.sampled_bytes == point.read_bytes < len(data) // 2
    assert ManifestReader(box, result.manifest_key).totals.segments == 0


def test_the_right_bytes_are_stored_when_everything_is_read_after_a_lie() -> None:
    box = memory_container()
    data = content(4 * SEGMENT)
    key, was = first(box, data), bytes(data)
    data[SEGMENT : SEGMENT + 5] = b"12345"
    journal = MemoryJournal()
    with pytest.raises(ChangeMissed):
        then(box, 1, data, key, was, journal=journal, verify_unchanged=1.0, lies=[range(len(data))])
    # The caller's next epoch has an empty journal, and does not ask the storage.
    result, _ = then(box, 1, data, key, was, epoch=1, since=None)
    check(box, result.manifest_key, data)
    assert ManifestReader(box, result.manifest_key).head.point == PointNote("t1", 0)


def objects_of_segment(box: FaultyContainer, kind: str, segment: int) -> list[str]:
    return [key for key in objects_of(box) if f"/{segment:08x}/{kind}" in key]


@pytest.mark.parametrize("kind", ["map", "p"])
@pytest.mark.parametrize("changed", [False, True])
def test_known_damage_of_the_base_is_never_taken_over(kind: str, changed: bool) -> None:
    box = memory_container()
    data = content(4 * SEGMENT, zero=0.0)
    key, was = first(box, data), bytes(data)
    damaged = objects_of_segment(box, kind, 1)[:1]
    for name in damaged:
        del objects_of(box)[name]
    if changed:
        data[SEGMENT + 5 * BLOCK : SEGMENT + 5 * BLOCK + 3] = b"new"
    result, point = then(box, 1, data, key, was, damaged=frozenset(damaged))
    check(box, result.manifest_key, data)
    # Only that segment was read, and of a lost pack only its own blocks.
    assert all(SEGMENT <= offset < 2 * SEGMENT for offset, _ in point.reads)
    assert 0 < point.read_bytes <= (SEGMENT if kind == "map" else SEGMENT // 2)


def test_a_map_that_is_found_unreadable_makes_its_segment_be_read() -> None:
    box = memory_container()
    data = content(4 * SEGMENT, zero=0.0)
    key, was = first(box, data), bytes(data)
    (lost,) = objects_of_segment(box, "map", 2)
    del objects_of(box)[lost]
    data[2 * SEGMENT : 2 * SEGMENT + 3] = b"new"
    result, point = then(box, 1, data, key, was)
    assert point.read_bytes == SEGMENT
    check(box, result.manifest_key, data)


def test_without_a_base_nothing_is_the_same() -> None:
    box = memory_container()
    data = content(3 * SEGMENT)
    key = first(box, data)
    objects_of(box)[key] = b"not a manifest"
    result, point = then(box, 1, data, key, data)
    assert result.base_problem is not None
    assert point.read_bytes == len(data)
    check(box, result.manifest_key, data)
    assert ManifestReader(box, result.manifest_key).head.point == PointNote("t1", 0)


def test_a_token_of_another_point_than_the_bases_is_refused() -> None:
    box = memory_container()
    data = content(SEGMENT)
    key = first(box, data)
    for base in (key, first(box, data, 5)):
        with pytest.raises(ValueError, match="not that of its base"):
            then(box, 1 if base != key else 2, data, base, data)


def test_what_lies_behind_the_bases_end_is_read_whatever_is_said() -> None:
    box = memory_container()
    data = content(SEGMENT + BLOCK + 100, zero=0.0)
    key, was = first(box, data), bytes(data)
    data += content(2 * SEGMENT, 7, zero=0.0)
    result, point = then(box, 1, data, key, was, lies=[range(len(data))])
    check(box, result.manifest_key, data)
    assert point.read_bytes == len(data) - SEGMENT - BLOCK
    shorter = data[: 2 * SEGMENT + 50]
    again, point = then(box, 2, shorter, result.manifest_key, data)
    check(box, again.manifest_key, shorter)
    assert point.read_bytes == 50


def test_an_attempt_goes_on_where_another_one_was_killed() -> None:
    box = memory_container()
    data = content(6 * SEGMENT, zero=0.0)
    key, was = first(box, data), bytes(data)
    for segment in (1, 4):
        data[segment * SEGMENT : segment * SEGMENT + 9] = b"different"
    for puts in range(5):
        journal, left = MemoryJournal(), iter(range(puts))

        def die(name: str, left: Any = left) -> None:
            if next(left, None) is None:
                raise OSError("killed")

        box.before_put = die
        try:
            with pytest.raises(OSError, match="killed"):
                then(box, 1, data, key, was, journal=journal, streams=1)
        finally:
            box.before_put = lambda _: None
        again, point = then(box, 1, data, key, was, journal=journal, attempt=2, token="f" * 16)
        assert point.read_bytes <= 2 * BLOCK
        check(box, again.manifest_key, data)


def test_blocks_that_are_stored_again_are_checked() -> None:
    """The fragmentation rule reads unchanged blocks: a lie is found there, too, and is no moved source."""
    box = memory_container()
    data = content(SEGMENT, zero=0.0, text=0.0)
    key, was = first(box, data), bytes(data)
    # One of four blocks stays: of each pack of the base a quarter is used.
    kept = [range(at, at + BLOCK) for at in range(0, SEGMENT, 4 * BLOCK)]
    data[:] = content(SEGMENT, 9, zero=0.0, text=0.0)
    for block in kept:
        data[block.start : block.stop] = was[block.start : block.stop]
    right, _ = then(box, 1, data, key, was)
    assert right.repacked_bytes
    for lie in (b"lie", bytes(BLOCK)):
        new = bytearray(data)
        for block in kept:
            new[block.start : block.start + len(lie)] = lie
        with pytest.raises(ChangeMissed):
            then(box, 1, new, key, was, lies=kept)


@pytest.mark.parametrize("point", [None, PointNote("a/b@c", 0), PointNote(None, 3), PointNote("t", 7)])
def test_a_head_keeps_its_point(point: PointNote | None) -> None:
    job = make_job(0, 100)
    head = ManifestHead(job.origin, job.geometry, point=point)
    assert ManifestHead.from_json(head.to_json()) == head
    assert ("point" in head.to_json()) == (point is not None)


def test_a_backup_of_a_point_without_token_notes_nothing() -> None:
    box = memory_container()
    data = content(SEGMENT)
    result = backup.run(make_job(0, len(data)), MemoryPoint(data), box, MemoryJournal(), FakeControl())
    assert ManifestReader(box, result.manifest_key).head.point is None


@pytest.mark.parametrize(
    "said",
    [
        {"token": 5, "trusted": 0},
        {"token": "t"},
        {"token": "t", "trusted": -1},
        {"token": "t", "trusted": 1 << 40},
        {"token": "t" * 5000, "trusted": 0},
        {"token": "\ud800", "trusted": 0},
        "t",
    ],
)
def test_a_head_with_an_impossible_point_has_none(said: Mapping[str, Any]) -> None:
    """The note is only a hint: the backup itself stays readable."""
    head = ManifestHead(make_job(0, 100).origin, make_job(0, 100).geometry)
    assert ManifestHead.from_json({**head.to_json(), "point": said}) == head


@pytest.mark.parametrize("token", ["t" * 1025, "a\0b", "\ud800", b"t", 5])
def test_a_token_that_no_manifest_can_hold_is_none(token: Any) -> None:
    box = memory_container()
    data = content(SEGMENT)
    point = MemoryPoint(data, token=token)
    result = backup.run(make_job(0, len(data)), point, box, MemoryJournal(), FakeControl())
    assert ManifestReader(box, result.manifest_key).head.point is None
    check(box, result.manifest_key, data)

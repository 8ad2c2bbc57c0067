"""Stopped and broken runs: what was finished is kept, what is broken is done anew, no wrong bytes."""

from __future__ import annotations

import contextlib
import itertools
import random
from collections.abc import Iterator, Sequence
from dataclasses import replace

import pytest

from backupfw.chunkstore.errors import Unavailable
from backupfw.engine import backup, cleanup, release, restore, verify
from backupfw.engine.format import keys
from backupfw.engine.format.entries import decode_entry, encode_entry
from backupfw.engine.format.manifest import ManifestReader, ManifestWriter, SourceTotals
from backupfw.engine.ports import Checkpoint, KnownManifests
from backupfw.errors import Damaged, JournalLost, OutcomeUnknown, TaskCancelled, TaskLost
from tests.unit.engine.fakes import (
    SEGMENT,
    FakeControl,
    FaultyContainer,
    MemoryJournal,
    MemoryPoint,
    MemoryTarget,
    make_job,
    memory_container,
    objects_of,
)
from tests.unit.engine.test_data_path import check, content, run


class Crash(Exception):
    """The process is gone."""


def test_a_crash_at_every_put_is_resumed() -> None:
    """After any number of crashes the backup holds the right bytes and names only what it should."""
    data = content(4 * SEGMENT + 10)
    puts = len(objects_of(box_of_full(data)))
    for crash_at in range(puts):
        box = memory_container()
        journal = MemoryJournal()
        count = 0

        def crash(key: str, crash_at: int = crash_at) -> None:
            nonlocal count
            count += 1
            if count > crash_at:
                raise Crash(key)

        box.before_put = crash
        with pytest.raises(Crash):
            backup.run(make_job(0, len(data), streams=1), MemoryPoint(data), box, journal, FakeControl())
        assert not any(key.endswith("/manifest") for key in objects_of(box))
        recorded = set(journal.entries)
        box.before_put = lambda _key: None
        source = MemoryPoint(data)
        job = make_job(0, len(data), attempt=2, token="f" * 16)
        result = backup.run(job, source, box, journal, FakeControl())
        check(box, result.manifest_key, data)
        # What was recorded was not read again.
        assert not any(offset // SEGMENT in recorded for offset, _ in source.reads)
        reader = ManifestReader(box, result.manifest_key)
        named = {key for entry in reader.segments() for key in entry.object_keys()}
        assert result.object_count == len(named) + 1
        assert result.stored_bytes == sum(len(objects_of(box)[key]) for key in {*named, result.manifest_key})


@pytest.mark.parametrize("streams", [1, 3])
def test_a_kill_costs_at_most_one_segment_per_stream(streams: int) -> None:
    """Whenever it comes: the journal's batches hold nothing back that was sent."""

    class Kill(BaseException):
        pass

    data = content(24 * SEGMENT, zero=0, text=0)
    puts = len(objects_of(box_of_full(data)))
    for kill_at in range(1, puts, 7):
        box = memory_container()
        journal = MemoryJournal()
        left = itertools.count(kill_at, -1)

        def kill(key: str, left: Iterator[int] = left) -> None:
            if next(left) <= 0:
                raise Kill(key)

        box.before_put = kill
        with pytest.raises(Kill):
            backup.run(
                make_job(0, len(data), streams=streams), MemoryPoint(data), box, journal, FakeControl()
            )
        box.before_put = lambda _key: None
        job = make_job(0, len(data), attempt=2, token="f" * 16, streams=streams)
        result = backup.run(job, MemoryPoint(data), box, journal, FakeControl())
        check(box, result.manifest_key, data)
        again = sum(map(len, objects_of(box).values())) - result.stored_bytes
        # A segment of random bytes is its packs, their frames, and its map.
        assert again <= streams * (SEGMENT + SEGMENT // 4), (kill_at, again)


def box_of_full(data: bytearray) -> FaultyContainer:
    box = memory_container()
    run(box, 0, data)
    return box


def test_every_attempt_puts_under_its_own_keys() -> None:
    box = memory_container()
    journal = MemoryJournal()
    data = content(6 * SEGMENT)
    for attempt in range(1, 4):
        before = set(objects_of(box))
        job = make_job(0, len(data), attempt=attempt, token=f"{attempt:016x}", streams=1)
        control = FakeControl(stop_after=8) if attempt < 3 else FakeControl()
        with contextlib.suppress(TaskCancelled):
            result = backup.run(job, MemoryPoint(data), box, journal, control)
        for key in set(objects_of(box)) - before:
            assert key.startswith(f"{job.origin}/")
    assert len(ManifestReader(box, result.manifest_key).origins()) > 1
    check(box, result.manifest_key, data)


def test_a_stop_keeps_what_is_finished() -> None:
    box = memory_container()
    journal = MemoryJournal()
    data = content(8 * SEGMENT)
    base = run(box, 0, data).manifest_key
    job = make_job(1, len(data), base=base, streams=1)
    with pytest.raises(TaskCancelled):
        backup.run(job, MemoryPoint(data), box, journal, FakeControl(stop_after=5))
    # Nothing had changed, and the batch was not full yet.
    assert journal.records == 1
    assert journal.entries


@pytest.mark.parametrize(("error", "kept"), [(TaskLost, False), (OutcomeUnknown, True)])
def test_a_journal_that_is_lost_ends_the_backup(error: type[TaskLost], kept: bool) -> None:
    """What was put for a segment that is recorded nowhere goes; what may be recorded stays."""

    class LostJournal(MemoryJournal):
        def record(self, entries: object) -> None:
            raise error("another attempt")

    box = memory_container()
    with pytest.raises(error):
        backup.run(make_job(0, SEGMENT), MemoryPoint(content(SEGMENT)), box, LostJournal(), FakeControl())
    assert bool(objects_of(box)) is kept
    assert not any(key.endswith("/manifest") for key in objects_of(box))


class ForgetfulJournal(MemoryJournal):
    """Does something to one entry after it confirmed it."""

    def __init__(self, harm: str, index: int) -> None:
        super().__init__()
        self._harm, self._index = harm, index

    def record(self, entries: Sequence[tuple[int, bytes]]) -> None:
        super().record(entries)
        index = self._index
        if index not in self.entries:
            return
        if self._harm == "lost":
            del self.entries[index]
        elif self._harm == "zero":
            self.entries[index] = b""
        elif self._harm == "another's":
            other = decode_entry(self.entries[index], "inst/proj/vol/")
            assert other is not None
            self.entries[index] = encode_entry(replace(other, map=replace(other.map, digest=bytes(32))))
        elif self._harm == "misplaced":
            self.entries[index + 100] = self.entries.pop(index)
        else:
            self.entries[index] = self.entries[index][:-1]


@pytest.mark.parametrize("harm", ["lost", "zero", "another's", "misplaced", "cut short"])
@pytest.mark.parametrize("index", [0, 2, 4])
def test_what_the_journal_loses_is_done_again(harm: str, index: int) -> None:
    """A database that crashed may not have what it confirmed; a backup with a hole is worse than none."""
    box = memory_container()
    data = content(5 * SEGMENT, zero=0)
    journal = ForgetfulJournal(harm, index)
    with pytest.raises(JournalLost):
        backup.run(make_job(0, len(data)), MemoryPoint(data), box, journal, FakeControl())
    assert not any(key.endswith("/manifest") for key in objects_of(box))
    sound = MemoryJournal()
    sound.entries = {index: entry for index, entry in journal.entries.items() if index < 100}
    source = MemoryPoint(data)
    job = make_job(0, len(data), attempt=2, token="f" * 16)
    result = backup.run(job, source, box, sound, FakeControl())
    check(box, result.manifest_key, data)
    # Only what is missing.
    assert {offset // SEGMENT for offset, _ in source.reads} == {index}


def test_a_manifest_says_what_the_source_held() -> None:
    """So that one which names less is no whole one, whoever made it."""
    box = memory_container()
    data = content(4 * SEGMENT)
    key = run(box, 0, data).manifest_key
    reader = ManifestReader(box, key)
    assert reader.head.source == SourceTotals(reader.totals.segments, reader.totals.data_bytes)
    entries = list(reader.segments())
    with ManifestWriter(reader.head) as writer:
        for entry in entries[1:]:
            writer.add(entry)
        writer.put(box)
    with pytest.raises(Damaged, match="other segments than the volume had"):
        ManifestReader(box, key)
    found: list[str] = []
    assert not verify.run(key, box, FakeControl(), lambda at, _reason: found.append(at)).ok
    assert found == [key]


@pytest.mark.parametrize("harm", ["missing", "changed", "journal", "pack known damaged"])
def test_a_finished_segment_that_went_bad_is_done_anew(harm: str) -> None:
    box = memory_container()
    journal = MemoryJournal()
    data = content(3 * SEGMENT, zero=0)
    backup.run(make_job(0, len(data)), MemoryPoint(data), box, journal, FakeControl())
    key = next(key for key in objects_of(box) if key.endswith("/00000001/map"))
    damaged: set[str] = set()
    if harm == "missing":
        del objects_of(box)[key]
    elif harm == "changed":
        objects_of(box)[key] = objects_of(box)[key][:-1] + b"\0"
    elif harm == "journal":
        journal.entries[1] = journal.entries[1][:-3]
    else:
        damaged = {key.replace("/map", "/p0000")}
    source = MemoryPoint(data)
    job = make_job(0, len(data), attempt=2, token="f" * 16, damaged=damaged)
    result = backup.run(job, source, box, journal, FakeControl())
    assert {offset // SEGMENT for offset, _ in source.reads} == {1}
    check(box, result.manifest_key, data)


def test_a_recorded_segment_that_is_zero_now_leaves_the_manifest() -> None:
    """The map is lost and the segment, done anew, has no data: the old entry must not win."""
    box = memory_container()
    journal = MemoryJournal()
    data = content(2 * SEGMENT, zero=0)
    backup.run(make_job(0, len(data)), MemoryPoint(data), box, journal, FakeControl())
    for key in [key for key in objects_of(box) if "/00000001/" in key]:
        del objects_of(box)[key]
    data[SEGMENT:] = bytes(SEGMENT)
    job = make_job(0, len(data), attempt=2, token="f" * 16)
    result = backup.run(job, MemoryPoint(data, [(0, SEGMENT)]), box, journal, FakeControl())
    assert result.segments == 1
    check(box, result.manifest_key, data)


def test_a_damaged_base_manifest_means_everything_anew() -> None:
    for harm in ("missing", "changed", "known"):
        box = memory_container()
        data = content(3 * SEGMENT, zero=0)
        base = run(box, 0, data).manifest_key
        damaged = set()
        if harm == "missing":
            del objects_of(box)[base]
        elif harm == "changed":
            # The last page: the entries before it are whole, and still nothing may be shared.
            objects_of(box)[base] = objects_of(box)[base][:-1] + b"\0"
        else:
            damaged = {base}
        result = run(box, 1, data, base, damaged=damaged)
        assert result.base_problem is not None
        assert result.stored_bytes == result.referenced_bytes
        check(box, result.manifest_key, data)


def test_a_damaged_base_map_means_that_segment_anew() -> None:
    for harm in ("missing", "changed", "known"):
        box = memory_container()
        data = content(3 * SEGMENT, zero=0)
        base = run(box, 0, data).manifest_key
        key = next(key for key in objects_of(box) if key.endswith("/00000001/map"))
        damaged = set()
        if harm == "missing":
            del objects_of(box)[key]
        elif harm == "changed":
            objects_of(box)[key] = bytes(reversed(objects_of(box)[key]))
        else:
            damaged = {key}
        result = run(box, 1, data, base, damaged=damaged)
        assert result.base_problem is None
        assert result.changed_segments == 1
        entries = {entry.index: entry for entry in ManifestReader(box, result.manifest_key).segments()}
        assert all("/backup1/" in name for name in entries[1].object_keys())
        assert all("/backup0/" in name for index in (0, 2) for name in entries[index].object_keys())
        check(box, result.manifest_key, data)


def test_blocks_of_a_damaged_pack_are_stored_anew() -> None:
    box = memory_container()
    data = content(3 * SEGMENT, zero=0, text=0)
    base = run(box, 0, data).manifest_key
    bad = next(key for key in objects_of(box) if key.endswith("/00000001/p0001"))
    del objects_of(box)[bad]
    result = run(box, 1, data, base, damaged={bad})
    assert result.changed_segments == 1
    assert result.stored_raw_bytes < SEGMENT // 2
    reader = ManifestReader(box, result.manifest_key)
    assert bad not in {key for entry in reader.segments() for key in entry.object_keys()}
    check(box, result.manifest_key, data)


def test_a_store_that_does_not_answer_is_no_damage() -> None:
    box = memory_container()
    data = content(2 * SEGMENT)
    base = run(box, 0, data).manifest_key

    def silent(key: str, offset: int | None, length: int | None) -> None:
        if key.endswith("/map"):
            raise Unavailable("no answer")

    box.before_get = silent
    with pytest.raises(Unavailable):
        run(box, 1, data, base)
    with pytest.raises(Unavailable):
        restore.run(base, box, MemoryTarget(len(data)), FakeControl())


def test_every_damage_ends_the_restore_and_names_the_object() -> None:
    box = memory_container()
    data = content(3 * SEGMENT + 100)
    first = run(box, 0, data).manifest_key
    data[0] ^= 1
    key = run(box, 1, data, first).manifest_key
    named = {name for entry in ManifestReader(box, key).segments() for name in entry.object_keys()} | {key}
    for name in sorted(named):
        good = objects_of(box)[name]
        del objects_of(box)[name]
        with pytest.raises(Damaged) as caught:
            restore.run(key, box, MemoryTarget(len(data)), FakeControl())
        assert caught.value.key == name
        objects_of(box)[name] = good[: len(good) // 3]
        with pytest.raises(Damaged) as caught:
            restore.run(key, box, MemoryTarget(len(data)), FakeControl())
        assert caught.value.key == name
        objects_of(box)[name] = good
    check(box, key, data)


def test_no_flipped_bit_restores_as_success() -> None:
    box = memory_container()
    data = content(SEGMENT + 300, zero=0.2)
    key = run(box, 0, data, pack_size=2 * SEGMENT).manifest_key
    rng = random.Random(5)
    for name in sorted(objects_of(box)):
        good = objects_of(box)[name]
        harmless = 0
        places = rng.sample(range(len(good)), min(60, len(good)))
        for at in places:
            changed = bytearray(good)
            changed[at] ^= 1 << rng.randrange(8)
            objects_of(box)[name] = bytes(changed)
            target = MemoryTarget(len(data))
            named = None
            try:
                restore.run(key, box, target, FakeControl())
            except Damaged as error:
                named = error.key
            if named is None:
                # A restore does not read a pack's header and footer.
                harmless += 1
                assert target.data == data
            else:
                assert named == name
        parsed = keys.parse(name)
        assert parsed is not None
        assert harmless == 0 or parsed.kind == "pack"
        assert harmless < len(places) // 2
        objects_of(box)[name] = good


def test_swapped_objects_are_found() -> None:
    """Two good packs, or two good maps, in each other's place."""
    box = memory_container()
    data = content(2 * SEGMENT, zero=0, text=0)
    key = run(box, 0, data).manifest_key
    stored = objects_of(box)
    for kind in ("/map", "/p0000"):
        one, two = sorted(name for name in stored if name.endswith(kind))
        stored[one], stored[two] = stored[two], stored[one]
        with pytest.raises(Damaged):
            restore.run(key, box, MemoryTarget(len(data)), FakeControl())
        stored[one], stored[two] = stored[two], stored[one]


@pytest.mark.parametrize("fill", [None, b"\xaa"])
def test_a_restore_goes_on_from_its_checkpoint(fill: bytes | None) -> None:
    box = memory_container()
    data = content(12 * SEGMENT, zero=0.2)
    data[4 * SEGMENT : 6 * SEGMENT] = bytes(2 * SEGMENT)
    key = run(box, 0, data).manifest_key
    for stop_after in range(4, 36, 4):
        target = MemoryTarget(len(data), fill)
        saved = [0]

        def save(segment: int, target: MemoryTarget = target, saved: list[int] = saved) -> None:
            # Below the checkpoint everything is durable already.
            assert target.flushed[: segment * SEGMENT] == data[: segment * SEGMENT]
            assert segment >= saved[-1]
            saved.append(segment)

        with pytest.raises(TaskCancelled):
            restore.run(key, box, target, FakeControl(stop_after=stop_after), Checkpoint(save=save))
        # What was not flushed is lost with the machine.
        target.data[:] = target.flushed
        target.writes.clear()
        restore.run(key, box, target, FakeControl(), Checkpoint(start=saved[-1], save=save))
        assert target.data == data
        assert saved[-1] == 12


def test_a_killed_restore_goes_on_from_its_last_finished_segment() -> None:
    class Kill(BaseException):
        pass

    box = memory_container()
    data = content(12 * SEGMENT, zero=0)
    key = run(box, 0, data).manifest_key
    for number in range(12):
        target = MemoryTarget(len(data))
        saved = [0]

        def kill(key: str, _offset: int | None, _length: int | None, number: int = number) -> None:
            if f"/{number:08x}/p" in key:
                raise Kill(key)

        box.before_get = kill
        with pytest.raises(Kill):
            restore.run(key, box, target, FakeControl(), Checkpoint(save=saved.append), streams=1)
        assert saved[-1] == number
        box.before_get = lambda *_: None


def test_a_resumed_restore_does_not_write_below_its_checkpoint() -> None:
    box = memory_container()
    data = content(6 * SEGMENT, zero=0)
    key = run(box, 0, data).manifest_key
    target = MemoryTarget(len(data), b"\xaa")
    restore.run(key, box, target, FakeControl(), Checkpoint(start=4))
    assert min(offset for offset, _ in target.writes) >= 4 * SEGMENT
    assert target.data[4 * SEGMENT :] == data[4 * SEGMENT :]
    assert target.data[: 4 * SEGMENT] == b"\xaa" * (4 * SEGMENT)


def test_the_page_cache_is_released_only_after_a_flush() -> None:
    class Ordered(MemoryTarget):
        def release_cache(self, offset: int, length: int) -> None:
            assert self.flushed[offset : offset + length] == self.data[offset : offset + length]
            super().release_cache(offset, length)

    box = memory_container()
    data = content(20 * SEGMENT, zero=0)
    key = run(box, 0, data).manifest_key
    target = Ordered(len(data))
    restore.run(key, box, target, FakeControl())
    assert sorted(target.released) == [(index * SEGMENT, SEGMENT) for index in range(20)]


def test_a_lagging_listing_does_not_matter() -> None:
    """Nothing of backup and restore lists at all."""
    box = memory_container()

    def no_listing(prefix: str = "") -> object:
        raise AssertionError("listed")

    box.list = no_listing  # type: ignore[assignment,method-assign]
    data = content(2 * SEGMENT)
    first = run(box, 0, data).manifest_key
    check(box, run(box, 1, data, first).manifest_key, data)


def test_a_missing_container_says_so() -> None:
    box = memory_container()
    box.store.contents.clear()  # type: ignore[attr-defined]
    with pytest.raises(Unavailable):
        run(box, 0, content(SEGMENT))


@pytest.mark.parametrize("seed", range(8))
def test_stored_bytes_are_what_lies_below_the_backups_prefix(seed: int) -> None:
    """Over a random history: increments, kills, new epochs, and bases that were deleted."""
    rng = random.Random(seed)
    box = memory_container()
    data = content(6 * SEGMENT)
    live: dict[str, str] = {}
    base: str | None = None
    for number in range(6):
        journal = MemoryJournal()
        epoch = attempt = 1
        while True:
            job = make_job(
                number, len(data), base, epoch=epoch, attempt=attempt, token=f"{rng.getrandbits(64):016x}"
            )
            left = itertools.count(rng.randrange(1, 12) if attempt < 4 else 1 << 20, -1)

            def crash(key: str, left: Iterator[int] = left) -> None:
                if next(left) <= 0:
                    raise Crash(key)

            box.before_put = crash
            try:
                result = backup.run(job, MemoryPoint(data), box, journal, FakeControl())
                break
            except Crash:
                attempt += 1
                if rng.random() < 0.4:
                    # The source is another now: what was finished of it proves nothing.
                    epoch += 1
                    at = rng.randrange(len(data) - 5000)
                    data[at : at + 5000] = rng.randbytes(5000)
        known = KnownManifests((), [*live, result.manifest_key])
        cleanup.leftovers(job.prefix, result.manifest_key, known, (), box, FakeControl())
        mine = [len(body) for key, body in objects_of(box).items() if key.startswith(job.prefix)]
        assert (result.object_count, result.stored_bytes) == (len(mine), sum(mine))
        live[result.manifest_key] = job.prefix
        if len(live) > 1 and rng.random() < 0.6:
            gone = rng.choice([key for key in live if key != result.manifest_key])
            del live[gone]
            release.run(gone, KnownManifests(tuple(live), [gone]), "inst/", box, FakeControl())
        base = rng.choice([None, *live])
        at = rng.randrange(len(data) - 9000)
        data[at : at + 9000] = rng.randbytes(9000)
    # What bases that were deleted left to the last one counts as its own.
    last = live.popitem()[0]
    for gone in [*live]:
        release.run(gone, KnownManifests((last,), [*live]), "inst/", box, FakeControl())
    found = release.look(last, KnownManifests((), [last]), "inst/", box, FakeControl())
    assert found.own == (len(objects_of(box)), sum(map(len, objects_of(box).values())))

"""What the journal lost, changed or mixed up never becomes a backup of other bytes than the source's."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from backupfw.engine import backup
from backupfw.errors import JournalLost
from backupfw.worker.reasons import may_pass, user_reason
from tests.unit.engine.fakes import (
    SEGMENT,
    FakeControl,
    FaultyContainer,
    MemoryJournal,
    MemoryPoint,
    make_job,
    memory_container,
    objects_of,
)
from tests.unit.engine.test_data_path import check, content, run

Harm = Callable[[dict[int, bytes]], None]


def _lost(entries: dict[int, bytes]) -> None:
    del entries[1]


def _all_lost(entries: dict[int, bytes]) -> None:
    entries.clear()


def _emptied(entries: dict[int, bytes]) -> None:
    entries[1] = b""


def _swapped(entries: dict[int, bytes]) -> None:
    entries[1], entries[2] = entries[2], entries[1]


def _copied(entries: dict[int, bytes]) -> None:
    entries[1] = entries[2]


def _changed(entries: dict[int, bytes]) -> None:
    data = bytearray(entries[1])
    # A byte of the map's digest.
    data[-70] ^= 1
    entries[1] = bytes(data)


def _cut(entries: dict[int, bytes]) -> None:
    entries[1] = entries[1][:-3]


def _beyond(entries: dict[int, bytes]) -> None:
    entries[1000] = entries[1]


HARMS: list[Harm] = [_lost, _all_lost, _emptied, _swapped, _copied, _changed, _cut, _beyond]


class HarmedJournal(MemoryJournal):
    """A journal whose database is harmed once, after the attempt's first pass over it."""

    def __init__(self, harm: Harm) -> None:
        super().__init__()
        self._harm = harm
        self._passes = 0

    def finished(self) -> Iterator[tuple[int, bytes]]:
        self._passes += 1
        if self._passes == 2:
            self._harm(self.entries)
        return iter(sorted(self.entries.items()))


def _manifests(box: FaultyContainer) -> list[str]:
    return [key for key in objects_of(box) if key.endswith("/manifest")]


@pytest.mark.parametrize("harm", HARMS[:-1])
def test_a_journal_that_is_not_what_the_attempt_did_ends_it(harm: Harm) -> None:
    """No manifest is put; the next attempt does what is missing again, and only that."""
    box = memory_container()
    data = content(4 * SEGMENT, zero=0)
    journal = HarmedJournal(harm)
    with pytest.raises(JournalLost) as caught:
        backup.run(make_job(0, len(data)), MemoryPoint(data), box, journal, FakeControl())
    assert not _manifests(box)
    # The task is given back, and its user hears no more than is good for them.
    assert may_pass(caught.value)
    assert "database" in user_reason(caught.value, "req-1")
    source = MemoryPoint(data)
    result = backup.run(
        make_job(0, len(data), attempt=2, token="f" * 16), source, box, journal, FakeControl()
    )
    check(box, result.manifest_key, data)
    again = {offset // SEGMENT for offset, _ in source.reads}
    assert again <= ({0, 1, 2, 3} if harm is _all_lost else {1, 2})


@pytest.mark.parametrize("harm", HARMS)
def test_a_journal_that_is_harmed_between_attempts_is_not_taken_over(harm: Harm) -> None:
    box = memory_container()
    data = content(4 * SEGMENT, zero=0)
    journal = MemoryJournal()
    backup.run(make_job(0, len(data)), MemoryPoint(data), box, journal, FakeControl())
    harm(journal.entries)
    job = make_job(0, len(data), attempt=2, token="f" * 16)
    result = backup.run(job, MemoryPoint(data), box, journal, FakeControl())
    check(box, result.manifest_key, data)


@pytest.mark.parametrize("other", ["backup", "epoch"])
def test_a_row_of_another_backup_or_epoch_is_not_taken_over(other: str) -> None:
    """Its map is whole and of the right segment; its bytes are another source's."""
    box = memory_container()
    mine, its = content(3 * SEGMENT, zero=0), content(3 * SEGMENT, seed=2, zero=0)
    foreign = MemoryJournal()
    job = make_job(7, len(its)) if other == "backup" else make_job(0, len(its), token="e" * 16)
    backup.run(job, MemoryPoint(its), box, foreign, FakeControl())
    journal = MemoryJournal()
    journal.entries[1] = foreign.entries[1]
    result = backup.run(make_job(0, len(mine), epoch=1), MemoryPoint(mine), box, journal, FakeControl())
    check(box, result.manifest_key, mine)


def test_what_is_shared_with_the_base_is_taken_over() -> None:
    """The other way round: a segment that has not changed is not read twice for all that."""
    box = memory_container()
    data = content(3 * SEGMENT, zero=0)
    base = run(box, 0, data).manifest_key
    journal = MemoryJournal()
    backup.run(make_job(1, len(data), base), MemoryPoint(data), box, journal, FakeControl())
    source = MemoryPoint(data)
    job = make_job(1, len(data), base, attempt=2, token="f" * 16)
    result = backup.run(job, source, box, journal, FakeControl())
    assert not source.reads
    check(box, result.manifest_key, data)


def test_a_row_that_comes_twice_ends_the_attempt() -> None:
    class Doubled(MemoryJournal):
        def finished(self) -> Iterator[tuple[int, bytes]]:
            for item in sorted(self.entries.items()):
                yield item
                yield item

    box = memory_container()
    data = content(2 * SEGMENT, zero=0)
    with pytest.raises(JournalLost):
        backup.run(make_job(0, len(data)), MemoryPoint(data), box, Doubled(), FakeControl())
    assert not _manifests(box)

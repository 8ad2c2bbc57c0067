"""The keeper of leases: all at once, in time, and deadlines from before the renewal was sent."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from itertools import pairwise

import pytest

from backupfw.errors import TaskCancelled, TaskLost
from backupfw.manager.rows import Task
from backupfw.outages import Outages
from backupfw.worker.control import TaskControl, boot_time
from backupfw.worker.leases import LeaseKeeper
from tests.waiting import PATIENCE, wait_until


def task(number: int, kind: str = "backup.create") -> Task:
    return Task(number, kind, "b", None, "p", "req", 1)


class Keeper(LeaseKeeper):
    """One whose database is a few methods; ``answer`` is what a renewal returns."""

    def __init__(self, lease_seconds: float) -> None:
        self.asked: list[list[int]] = []
        self.sent_at = 0.0
        self.answer: Callable[[Collection[int]], Mapping[int, bool]] = lambda ids: dict.fromkeys(ids, False)
        self.told = 0
        self.report_seconds = 0.0
        super().__init__(
            self._kept, self._told, lambda: (), lease_seconds, lambda: None, 3600.0, 0.1, Outages()
        )

    def _kept(self, held: Collection[Task], seconds: float) -> Mapping[int, bool]:
        assert seconds == self._lease_seconds
        self.sent_at = boot_time()
        ids = [item.id for item in held]
        self.asked.append(ids)
        return self.answer(ids)

    def _told(self, task: Task, done: int, total: int) -> None:
        del task, done, total
        self.told += 1
        time.sleep(self.report_seconds)


@pytest.fixture
def keeper() -> Iterator[Keeper]:
    made = Keeper(0.3)
    yield made
    made.close()


def test_all_leases_are_renewed_at_once(keeper: Keeper) -> None:
    for number in range(50):
        keeper.hold(task(number), boot_time())
    keeper.start()
    wait_until("three renewals", lambda: len(keeper.asked) >= 3)
    assert keeper.asked[:3] == [list(range(50))] * 3


def test_each_hears_what_became_of_it(keeper: Keeper) -> None:
    kept, cancelled, lost = (keeper.hold(task(number), boot_time() + 3600) for number in (1, 2, 3))
    keeper.answer = lambda ids: {1: False, 2: True}
    keeper.start()

    def ended(control: TaskControl, error: type[Exception]) -> bool:
        try:
            control.check()
        except error:
            return True
        return False

    wait_until("both to end", lambda: ended(cancelled, TaskCancelled) and ended(lost, TaskLost))
    keeper.close()
    # From the clock as it was before the renewal was sent, not as it is when the answer comes.
    assert kept._deadline <= keeper.deadline(keeper.sent_at)


def test_a_slow_answer_moves_no_deadline_on(keeper: Keeper) -> None:
    control = keeper.hold(task(1), boot_time())
    answered = threading.Event()

    def slow(ids: Collection[int]) -> Mapping[int, bool]:
        time.sleep(0.5)
        answered.set()
        return dict.fromkeys(ids, False)

    keeper.answer = slow
    keeper.start()
    assert answered.wait(PATIENCE)
    keeper.close()
    assert control._deadline <= keeper.deadline(keeper.sent_at)
    with pytest.raises(TaskLost):
        control.check()


def test_reporting_the_progress_of_tasks_holds_no_renewal_up(keeper: Keeper) -> None:
    """Each word costs a third of the lease: twenty of them would be more than six leases."""
    keeper.report_seconds = 0.1
    for number in range(20):
        keeper.hold(task(number), boot_time()).progress(1, 2)
    told: list[int] = []

    def renewed(ids: Collection[int]) -> Mapping[int, bool]:
        told.append(keeper.told)
        return dict.fromkeys(ids, False)

    keeper.answer = renewed
    keeper.start()
    wait_until("renewals after reports", lambda: told and told[-1] >= 2)
    # A round that this process slept through reports nothing.
    assert {after - before for before, after in pairwise(told)} <= {0, 1}
    assert told[0] == 0


def test_a_task_whose_progress_cannot_be_reported_keeps_no_other_from_it(
    keeper: Keeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    reported: list[int] = []

    def report(task: Task, done: int, total: int) -> None:
        del done, total
        if task.id == 1:
            raise ValueError
        reported.append(task.id)

    monkeypatch.setattr(keeper, "_report", report)
    for number in (1, 2):
        keeper.hold(task(number), boot_time()).progress(1, 2)
    keeper.start()
    wait_until("a report", lambda: reported)
    assert set(reported) == {2}


def test_a_database_that_fails_leaves_deadlines_alone(keeper: Keeper) -> None:
    control = keeper.hold(task(1), boot_time())
    deadline = control._deadline

    def broken(_ids: Collection[int]) -> Mapping[int, bool]:
        raise OSError

    keeper.answer = broken
    keeper.start()
    wait_until("two renewals", lambda: len(keeper.asked) >= 2)
    assert control._deadline == deadline


def test_an_attempt_that_does_not_end_when_it_is_asked_to_loses_its_lease(keeper: Keeper) -> None:
    hangs, cleans_up, works = (keeper.hold(task(number), boot_time() + 3600) for number in (1, 2, 3))
    # It asks nobody while it works.
    deaf = keeper.hold(task(4, "volume.extend"), boot_time() + 3600)
    for control in (hangs, cleans_up, deaf):
        control.cancel()
    cleans_up.left()
    keeper.start()
    wait_until("the first to be left", lambda: keeper.asked and keeper.asked[-1] == [2, 3, 4])
    asked = len(keeper.asked)
    wait_until("two more renewals", lambda: len(keeper.asked) > asked + 1)
    assert keeper.asked[-1] == [2, 3, 4]
    with pytest.raises(TaskLost):
        hangs.check()
    for control in (cleans_up, deaf):
        with pytest.raises(TaskCancelled):
            control.check()
    works.check()

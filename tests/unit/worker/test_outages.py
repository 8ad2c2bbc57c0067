"""While the database is away, the log has one line when that begins and one when it is over."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
from oslo_db.exception import DBConnectionError

from backupfw.errors import DatabaseUnwritable
from backupfw.manager.policies.runs import PolicyRuns
from backupfw.outages import Outages, Turns
from backupfw.worker.control import boot_time
from backupfw.worker.policies import PolicyLoop
from tests.unit.worker.test_leases import Keeper, task
from tests.unit.worker.world import WorkerWorld
from tests.waiting import wait_until


def away() -> DBConnectionError:
    return DBConnectionError(RuntimeError("could not connect\n to server"))


def full() -> DatabaseUnwritable:
    return DatabaseUnwritable("The service's database cannot be written: its disk is full.")


def lines(caplog: pytest.LogCaptureFixture) -> list[tuple[int, str]]:
    """Return level and text of what operators see; a traceback makes more than one line."""
    shown = [record for record in caplog.records if record.levelno >= logging.WARNING]
    return [(record.levelno, logging.Formatter().format(record)) for record in shown]


def assert_two_lines(caplog: pytest.LogCaptureFixture) -> None:
    (first, began), (second, ended) = lines(caplog)
    assert (first, second) == (logging.ERROR, logging.WARNING)
    assert "trying again; the database failed: " in began
    assert "works again" in ended
    assert "\n" not in began + ended


@pytest.mark.parametrize("trouble", [away, full])
def test_a_workers_outage_has_two_lines_however_many_looks_fail(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    trouble: Callable[[], Exception],
) -> None:
    world = WorkerWorld(tmp_path)
    down = False
    failed: Counter[str] = Counter()

    def failing(name: str, call: Callable[..., object]) -> Callable[..., Any]:
        def act(*args: object, **more: object) -> object:
            if not down:
                return call(*args, **more)
            failed[name] += 1
            raise trouble()

        return act

    monkeypatch.setattr(world.tasks, "claim", failing("claim", world.tasks.claim))
    world.tools = replace(
        world.tools,
        heartbeat=failing("beat", world.tools.heartbeat),
        expire_waiting=failing("expire", world.tools.expire_waiting),
    )
    with world.worker(poll_seconds=0.01, beat_seconds=0.01, expire_seconds=0.01):
        down = True
        world.wait(lambda: len(failed) == 3 and min(failed.values()) > 10, "each look to fail")
        down = False
        world.wait(lambda: len(lines(caplog)) > 1, "the end of the outage")
        backup = world.backups.create(world.ctx(), volume_id=world.filled_volume(bytes(100)))
        world.wait_backup(backup.id, "available")
    world.close()
    assert_two_lines(caplog)


def test_what_is_seldom_done_is_tried_again_at_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Else an outage would last for ten minutes in the log, and so long nothing would be recorded."""
    world = WorkerWorld(tmp_path)
    calls: Counter[str] = Counter()

    def at_first(name: str) -> Callable[[], object]:
        def act() -> None:
            calls[name] += 1
            if calls[name] < 3:
                raise away()

        return act

    world.tools = replace(
        world.tools, record_usage=at_first("record"), queue_scrubs=at_first("scrub"), expire_waiting=bool
    )
    with world.worker(poll_seconds=0.01):
        world.wait(lambda: len(lines(caplog)) > 1, "the end of the outage")
    world.close()
    assert_two_lines(caplog)
    assert calls == {"record": 3, "scrub": 3}


def test_an_activity_has_its_turn_when_its_time_has_come_when_it_failed_and_when_somebody_hurries() -> None:
    outages = Outages()
    turns = Turns(outages)

    def do(error: Exception | None = None) -> bool:
        if not turns.is_due("It failed", 1000.0):
            return False
        with outages.guard("It failed"):
            if error is not None:
                raise error
        return True

    assert [do(), do()] == [True, False]
    turns.hurry("It failed")
    assert [do(away()), do(away()), do(), do()] == [True, True, True, False]


class RunsOfAnother:
    """Runs that another worker does while the database is away for this one."""

    def __init__(self) -> None:
        self.looks: Counter[str] = Counter()

    def rest(self) -> float:
        self.looks["rest"] += 1
        return 0.0 if self.looks["rest"] == 1 else math.inf

    def _fail_first(self, name: str) -> None:
        self.looks[name] += 1
        if self.looks[name] == 1:
            raise away()

    def plan(self) -> int:
        self._fail_first("plan")
        return 0

    def watch(self) -> bool:
        self._fail_first("watch")
        return False

    def begin(self, _stopping: Callable[[], bool]) -> int:
        self._fail_first("begin")
        return 0

    def repair_clock(self) -> None:
        self._fail_first("clock")

    def forget(self) -> None:
        self._fail_first("forget")


def test_a_step_of_policies_that_failed_is_done_again_though_nothing_is_due(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Else the outage would last until the next policy is due."""
    runs = RunsOfAnother()
    loop = PolicyLoop(cast(PolicyRuns, runs), 0.01, Outages())
    loop.start()
    wait_until("a line of the log", lambda: len(lines(caplog)) > 1)
    loop.stop()
    loop.join()
    assert_two_lines(caplog)


def test_leases_that_cannot_be_renewed_have_two_lines(caplog: pytest.LogCaptureFixture) -> None:
    keeper = Keeper(0.03)

    def fail(_ids: object) -> Any:
        raise away()

    answer, keeper.answer = keeper.answer, fail
    keeper.hold(task(1), boot_time() + 3600)
    keeper.start()
    wait_until("ten renewals", lambda: len(keeper.asked) > 10)
    keeper.answer = answer
    wait_until("a line of the log", lambda: len(lines(caplog)) > 1)
    keeper.close()
    assert_two_lines(caplog)


def test_it_is_over_when_all_that_failed_works(caplog: pytest.LogCaptureFixture) -> None:
    outages = Outages()
    for _ in range(3):
        for failure in ("This failed", "That failed"):
            with outages.guard(failure):
                raise away()
    with outages.guard("This failed"):
        pass
    with outages.guard("Something else failed"):
        pass
    assert len(lines(caplog)) == 1
    with outages.guard("That failed"):
        pass
    assert_two_lines(caplog)


def test_a_fault_of_the_program_has_its_traceback_once_for_each_activity(
    caplog: pytest.LogCaptureFixture,
) -> None:
    outages = Outages()
    for _ in range(3):
        for failure in ("This failed", "That failed"):
            with outages.guard(failure):
                raise KeyError("x")
    texts = [text for _, text in lines(caplog)]
    assert [text.splitlines()[0] for text in texts] == [
        "This failed, trying again",
        "That failed, trying again",
    ]
    assert all("KeyError: 'x'" in text for text in texts)

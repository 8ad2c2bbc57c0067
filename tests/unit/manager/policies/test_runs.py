"""Runs from their beginning to their end, and processes that are killed in between."""

from __future__ import annotations

import math
import uuid
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from oslo_config import cfg
from oslo_db.exception import DBConnectionError
from sqlalchemy import event, update

from backupfw.api import enforcer
from backupfw.api.enforcer import FilePolicy
from backupfw.conf import libraries
from backupfw.context import RequestContext
from backupfw.db import models
from backupfw.db import session as db_session
from backupfw.db.session import Database
from backupfw.errors import InvalidBackup, InvalidInput, ServiceUnavailable
from backupfw.manager.lineage import lifecycle
from backupfw.manager.policies import planning
from backupfw.manager.policies import runs as policy_runs
from backupfw.manager.policies.runs import PolicyRuns
from backupfw.manager.queue import tasks
from backupfw.manager.queue.outbox import Outbox
from tests.unit.manager.policies.support import Clock, PolicyWorld
from tests.unit.manager.support import check_audit, check_consistent


class Killed(BaseException):
    """The process is gone: nothing catches it."""


def kill_at(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Let the process that next reaches a crash point die there."""

    def reach(point: str, _detail: object = "") -> None:
        if point == name:
            monkeypatch.undo()
            raise Killed

    monkeypatch.setattr(policy_runs.crash_points, "reach", reach)


def due(world: PolicyWorld, **given: object) -> tuple[str, str]:
    """Make a volume and a policy of which a run can begin now; return their ids."""
    volume = world.volume()
    policy = world.policy(**given)
    world.at("2026-01-02T00:00:01")
    return volume, policy


def test_a_worker_rests_until_something_is_due(world: PolicyWorld) -> None:
    assert world.runs.rest() == math.inf
    world.volume()
    policy = world.policy()
    assert 12 * 3600 - 1 < world.runs.rest() < 12 * 3600
    world.at("2026-01-02T00:00:01")
    assert world.runs.rest() == 0
    world.step()
    # A run is on, then its end is looked after, then the next one waits for its time.
    assert world.runs.rest() == 0
    world.make()
    assert world.runs.rest() == 0
    world.step()
    assert world.runs.rest() > 86_000
    world.policies.pause(world.ctx(), policy)
    assert world.runs.rest() == math.inf


def test_a_run_makes_a_backup_that_says_whose_it_is(world: PolicyWorld) -> None:
    volume, policy = due(world, name="nightly", schedule={"timezone": "Europe/Berlin", "cron": "0 1 * * *"})
    world.step()
    run = world.run(policy)
    assert run.status == "running"
    assert world.volume_status(volume) == "backing-up"
    world.make()
    world.step()
    run = world.run(policy)
    assert (run.status, run.reason, run.ended_at is None) == ("ok", None, False)
    backup = world.backups.get(world.ctx(), run.backup_id or "")
    assert (backup.project_id, backup.user_id, backup.volume_id) == ("p1", "u", volume)
    assert backup.display_name == "nightly 2026-01-02 01:00"
    assert backup.metadata == {"backupfw:policy": policy}
    assert not backup.is_incremental
    world.policies.run(world.ctx(), policy)
    world.night()
    assert [one.is_incremental for one in world.backups_of(policy)] == [False, True]
    check_consistent(world)


def test_one_of_so_many_is_full(world: PolicyWorld) -> None:
    _, policy = due(world, backup={"full_every": 3})
    for _ in range(7):
        world.policies.run(world.ctx(), policy)
        world.night()
    full = [not one.is_incremental for one in world.backups_of(policy)]
    assert full[:7] == [True, False, False, True, False, False, True]


@pytest.mark.parametrize(
    ("found", "why", "reason"),
    [
        (True, None, None),
        (None, None, None),
        (False, "The freezing failed.", "Not quiesced: The freezing failed."),
        # Its worker is of an older release.
        (False, None, "Not quiesced: The volume was not frozen."),
    ],
)
def test_a_run_says_whether_its_volume_was_frozen(
    world: PolicyWorld, found: bool | None, why: str | None, reason: str | None
) -> None:
    world.volume()
    policy = world.policy(backup={"quiesce": "agent"})
    world.policies.run(world.ctx(), policy)
    world.step()
    (task,) = world.rows(models.Task)
    assert task.payload["quiesce"] == "agent"
    (made,) = world.backups_of(policy)
    assert (made.quiesced, made.quiesce_reason) == (False, None)
    with world.db.write() as session:
        row = session.get_one(models.Backup, made.id)
        row.quiesced, row.quiesce_reason = found, why
    world.make()
    world.step()
    run = world.run(policy)
    assert (run.status, run.quiesced, run.reason) == ("ok", found, reason)
    shown = world.policies.runs(world.ctx(), policy).items[0]
    assert shown.quiesced is found


def test_a_policy_of_before_freezes_nothing(world: PolicyWorld) -> None:
    world.volume()
    policy = world.policy()
    with world.db.write() as session:
        row = session.get_one(models.BackupPolicy, policy)
        how = {name: value for name, value in row.settings["backup"].items() if name != "quiesce"}
        row.settings = {**row.settings, "backup": how}
    assert world.policies.get(world.ctx(), policy).settings["backup"]["quiesce"] is None
    world.policies.run(world.ctx(), policy)
    world.night()
    run = world.run(policy)
    assert (run.status, run.quiesced, run.reason) == ("ok", None, None)


def test_commands_that_are_gone_keep_nobody_from_changing_a_policy(world: PolicyWorld) -> None:
    policy = world.policy(backup={"quiesce": "agent"})
    world.conf.quiesce_commands = []
    world.policies.update(world.ctx(), policy, settings={"retention": {"last": 2}})
    with pytest.raises(InvalidInput, match="there are no commands agent; this service has none"):
        world.policies.update(world.ctx(), policy, settings={"backup": {"quiesce": "agent"}})


def test_a_volume_in_use_is_backed_up(world: PolicyWorld) -> None:
    world.volume(status="in-use")
    policy = world.policy()
    world.policies.run(world.ctx(), policy)
    world.night()
    assert world.run(policy).status == "ok"


@pytest.mark.parametrize("point", ["policy.taken", "policy.made", "policy.let-go"])
def test_a_process_that_is_killed_makes_no_second_backup_and_loses_none(
    world: PolicyWorld, monkeypatch: pytest.MonkeyPatch, point: str
) -> None:
    _, policy = due(world, retention={"last": 1})
    other = world.another_process()
    with monkeypatch.context() as patched:
        kill_at(patched, point)
        with pytest.raises(Killed):
            world.night()
    # What it took is left to it for a while.
    other.plan()
    assert other.begin() == 0
    world.later(minutes=3)
    world.runs = other
    world.night()
    world.night()
    assert world.run(policy).status == "ok"
    assert len(world.rows(models.Backup)) == 1
    assert world.run(policy).tidied
    check_consistent(world)
    check_audit(world)


def test_a_killed_process_whose_backup_is_there_has_not_missed_its_window(
    world: PolicyWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, policy = due(world)
    with monkeypatch.context() as patched:
        kill_at(patched, "policy.made")
        with pytest.raises(Killed):
            world.step()
    world.later(hours=2)
    world.night()
    assert world.run(policy).status == "ok"
    assert len(world.backups_of(policy)) == 1


def test_a_process_that_was_frozen_is_too_late(world: PolicyWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    """It took the run, slept, and goes on after another one has begun it."""
    _, policy = due(world)
    world.runs.plan()
    _, (taken,) = world.db.run(world.runs._take)
    world.later(minutes=3)
    world.runs = world.another_process()
    world.night()
    world.runs._begin(taken)
    assert world.run(policy).status == "ok"
    assert len(world.rows(models.Backup)) == 1
    # While the backup is being made, too, when the volume refuses a second one.
    world.policies.run(world.ctx(), policy)
    _, (taken,) = world.db.run(world.runs._take)
    world.later(minutes=3)
    world.step()
    world.runs._begin(taken)
    world.night()
    assert [run.status for run in world.runs_of(policy)] == ["ok", "ok"]
    assert len(world.rows(models.Backup)) == 2


def test_the_last_run_is_still_on(world: PolicyWorld) -> None:
    volume, policy = due(world)
    world.step()
    world.at("2026-01-03T00:00:01")
    world.step()
    first, second = world.runs_of(policy)
    assert (first.status, second.status) == ("running", "skipped")
    assert second.reason == "The last run of this volume is still on."
    assert second.backup_id is None
    world.make()
    world.at("2026-01-04T00:00:01")
    world.night()
    assert [run.status for run in world.runs_of(policy)] == ["ok", "skipped", "ok"]
    assert world.volume_status(volume) == "available"


def test_so_many_at_once(world: PolicyWorld) -> None:
    for _ in range(5):
        world.volume()
    policy = world.policy(max_concurrent=2)
    world.policy("p2")
    world.volume("p2")
    world.at("2026-01-02T00:00:01")
    for expected in (2, 4, 5):
        world.step()
        assert len(world.runs_of(policy, status="running")) <= 2
        world.make()
        world.step()
        assert len([run for run in world.runs_of(policy) if run.status != "waiting"]) >= expected
    world.night()
    assert {run.status for run in world.runs_of(policy)} == {"ok"}


def test_projects_take_turns(world: PolicyWorld) -> None:
    """A project with many volumes does not keep others from beginning."""
    for _ in range(20):
        world.volume("many")
    world.volume("few")
    world.policy("many")
    few = world.policy("few")
    world.at("2026-01-02T00:00:01")
    world.runs.plan()
    world.runs.begin()
    assert world.run(few).status == "running"


def test_a_run_that_a_dead_process_took_is_paused_too(world: PolicyWorld) -> None:
    _, policy = due(world)
    world.runs.plan()
    world.db.run(world.runs._take)
    world.later(minutes=3)
    world.policies.pause(world.ctx(), policy)
    world.night()
    assert (world.run(policy).status, world.run(policy).reason) == ("skipped", "The policy was paused.")
    assert world.backups_of(policy) == []


def test_a_backup_that_fails_after_a_pause_is_not_made_again(world: PolicyWorld) -> None:
    _, policy = due(world)
    world.step()
    world.policies.pause(world.ctx(), policy)
    task = world.claim()
    world.outcomes.creating.start(task)
    world.outcomes.creating.fail(task, "The store is on fire.")
    world.step()
    world.later(minutes=2)
    world.night()
    assert (world.run(policy).status, world.run(policy).reason) == ("skipped", "The policy was paused.")
    # By hand it runs all the same.
    world.policies.run(world.ctx(), policy)
    world.night()
    assert [one.status for one in world.runs_of(policy)] == ["skipped", "ok"]


def test_a_pause_does_not_disown_the_backup_that_a_dead_process_made(
    world: PolicyWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, policy = due(world)
    world.runs.plan()
    kill_at(monkeypatch, "policy.made")
    with pytest.raises(Killed):
        world.runs.begin()
    monkeypatch.setattr(db_session, "datetime", Clock)
    world.later(minutes=3)
    world.policies.pause(world.ctx(), policy)
    world.night()
    world.night()
    assert world.run(policy).status == "ok"
    assert [one.id for one in world.backups_of(policy)] == [world.run(policy).backup_id]


def test_runs_that_are_skipped_do_not_wait_for_the_next_look(
    world: PolicyWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Eight at each look into the database would take hours for a thousand volumes."""
    monkeypatch.setattr(policy_runs, "_AT_ONCE", 2)
    for _ in range(4):
        world.volume()
    policy = world.policy()
    world.at("2026-01-02T00:00:01")
    world.step()
    world.at("2026-01-03T00:00:01")
    world.runs.plan()
    assert [world.runs.begin() for _ in range(3)] == [2, 2, 0]
    assert len(world.runs_of(policy, status="skipped")) == 4


def test_old_runs_of_a_policy_cost_nothing(world: PolicyWorld) -> None:
    """There are those of three months: to count what is on among them for each run took minutes."""
    row = models.PolicyRun

    def work(day: int) -> int:
        with world.db.write() as session:
            session.execute(update(row).where(row.status == "running").values(status="ok"))
        world.at(f"2026-01-{day:02}T00:00:01")
        world.runs.plan()
        steps = 0

        def count() -> int:
            nonlocal steps
            steps += 1
            return 0

        def watch(_connection: Any, cursor: Any, *_more: Any) -> None:
            cursor.connection.set_progress_handler(count, 100)

        event.listen(world.db.engine, "before_cursor_execute", watch)
        world.runs.begin()
        event.remove(world.db.engine, "before_cursor_execute", watch)
        return steps

    volumes = [world.volume() for _ in range(20)]
    policy = world.policy(max_concurrent=1)
    before = work(2)
    old = {"policy_id": policy, "project_id": "p1", "status": "ok", "tries": 0, "tidied": True}
    moments = {name: datetime(2025, 12, 1) for name in ("begin_at", "begin_before", "created_at")}
    with world.db.write() as session:
        session.execute(
            row.__table__.insert(),
            [
                {
                    **old,
                    **moments,
                    "id": str(uuid.uuid4()),
                    "volume_id": volumes[0],
                    "scheduled_at": datetime(2025, 12, 1) + timedelta(seconds=number),
                }
                for number in range(5000)
            ],
        )
    assert before
    assert work(3) < 3 * before


def test_what_is_refused_is_tried_again_with_growing_pauses(world: PolicyWorld) -> None:
    volume, policy = due(world)
    world.conf.quota.backups = 0
    tried = []
    for minute in range(0, 60, 1):
        world.at(f"2026-01-02T00:{minute:02}:05")
        before = world.runs_of(policy)
        world.step()
        if not before or before[0].tries != world.run(policy).tries:
            tried.append(minute)
    run = world.run(policy)
    assert tried == [0, 2, 7, 24]
    assert (run.status, run.backup_id is None) == ("failed", False)
    assert "Maximum number of backups allowed (0) exceeded" in (run.reason or "")
    assert world.volume_status(volume) == "available"
    # The next night there is room again.
    world.conf.quota.backups = 10
    world.at("2026-01-03T00:00:01")
    world.night()
    assert [run.status for run in world.runs_of(policy)] == ["failed", "ok"]


def test_a_second_try_succeeds(world: PolicyWorld) -> None:
    volume, policy = due(world)
    row = models.Volume
    with world.db.write() as session:
        session.execute(update(row).where(row.id == volume).values(status=lifecycle.MAINTENANCE))
    world.step()
    run = world.run(policy)
    assert (run.status, run.tries) == ("waiting", 1)
    assert "the current status is" in (run.reason or "")
    with world.db.write() as session:
        session.execute(update(row).where(row.id == volume).values(status=lifecycle.AVAILABLE))
    world.later(minutes=1)
    world.night()
    assert (world.run(policy).status, world.run(policy).reason) == ("ok", None)


def test_a_try_after_the_window_is_none(world: PolicyWorld) -> None:
    _, policy = due(world, schedule={"start_window": 3})
    world.conf.quota.backups = 0
    world.step()
    world.later(minutes=1, seconds=5)
    world.step()
    # The next pause would end after the window.
    assert world.run(policy).status == "failed"


def test_one_that_could_not_begin_is_missed(world: PolicyWorld) -> None:
    """Its policy may make one backup at a time, and the first one takes longer than the window."""
    volumes = {world.volume(), world.volume()}
    policy = world.policy(max_concurrent=1)
    world.at("2026-01-02T00:00:01")
    world.step()
    world.at("2026-01-02T01:00:01")
    world.step()
    found = world.runs_of(policy)
    assert {run.volume_id for run in found} == volumes
    assert sorted((run.status, run.reason) for run in found) == [
        ("missed", "It could not begin within its start window."),
        ("running", None),
    ]


def test_a_volume_that_is_gone_is_skipped(world: PolicyWorld) -> None:
    volume, policy = due(world)
    world.runs.plan()
    with world.db.write() as session:
        session.get_one(models.Volume, volume).deleted = True
    world.night()
    run = world.run(policy)
    assert (run.status, run.reason) == ("skipped", f"Volume {volume} could not be found.")


def test_a_volume_that_went_to_another_project_is_skipped(world: PolicyWorld) -> None:
    volume, policy = due(world)
    world.runs.plan()
    with world.db.write() as session:
        session.get_one(models.Volume, volume).project_id = "p2"
    world.night()
    assert world.run(policy).status == "skipped"
    assert world.rows(models.Backup) == []


def test_a_disabled_project_rests(world: PolicyWorld) -> None:
    _, policy = due(world)
    world.paused["p1"] = "The project is disabled."
    world.night()
    run = world.run(policy)
    assert (run.status, run.reason) == ("skipped", "The project is disabled.")
    del world.paused["p1"]
    world.at("2026-01-03T00:00:01")
    world.night()
    assert [run.status for run in world.runs_of(policy)] == ["skipped", "ok"]


def test_a_backup_that_fails_is_made_again(world: PolicyWorld) -> None:
    volume, policy = due(world)
    world.step()
    task = world.claim(tasks.BACKUP_CREATE)
    world.outcomes.creating.start(task)
    world.outcomes.creating.fail(task, "The store is on fire.")
    world.step()
    run = world.run(policy)
    assert (run.status, run.tries, run.reason) == ("waiting", 1, "The store is on fire.")
    world.later(minutes=1)
    world.night()
    run = world.run(policy)
    assert run.status == "ok"
    assert [one.status for one in world.backups_of(policy)] == ["error", "available"]
    assert world.status(run.backup_id or "") == "available"
    assert world.volume_status(volume) == "available"
    # What failed is shown for a week.
    for day, left in ((5, 1), (8, 1), (10, 0)):
        world.at(f"2026-01-{day:02}T00:00:01")
        world.night()
        assert [one.status for one in world.backups_of(policy)].count("error") == left


def test_who_cancels_a_backup_means_it(world: PolicyWorld) -> None:
    _, policy = due(world)
    world.step()
    world.backups.cancel(world.ctx(), world.run(policy).backup_id or "")
    world.step()
    run = world.run(policy)
    assert (run.status, run.reason) == ("failed", "The backup was cancelled.")


def test_a_backup_that_is_deleted_while_it_is_made(world: PolicyWorld) -> None:
    _, policy = due(world)
    world.step()
    world.backups.force_delete(world.ctx(), world.run(policy).backup_id or "")
    world.step()
    run = world.run(policy)
    assert (run.status, run.reason) == ("failed", "The backup was deleted before it was complete.")
    world.remove()
    check_consistent(world)


def test_a_backup_that_was_made_and_deleted_is_a_success(world: PolicyWorld) -> None:
    _, policy = due(world)
    world.step()
    (backup,) = world.make()
    world.backups.delete(world.ctx(), backup.id)
    world.remove()
    world.step()
    assert world.run(policy).status == "ok"


def test_the_completion_window(world: PolicyWorld) -> None:
    volume, policy = due(world, schedule={"completion_window": 90})
    world.step()
    world.at("2026-01-02T01:29:00")
    world.step()
    assert world.run(policy).status == "running"
    world.at("2026-01-02T01:30:01")
    world.step()
    run = world.run(policy)
    assert (run.status, run.reason) == ("failed", "It was not complete within its completion window.")
    assert world.status(run.backup_id or "") == "error"
    assert world.volume_status(volume) == "available"


def test_a_policy_that_is_deleted_leaves_what_it_made(world: PolicyWorld) -> None:
    _, policy = due(world, retention={"last": 1})
    world.night()
    world.policies.run(world.ctx(), policy)
    world.step()
    world.policies.delete(world.ctx(), policy)
    assert world.rows(models.PolicyRun) == []
    world.make()
    world.night()
    assert [one.status for one in world.rows(models.Backup)] == ["available", "available"]


def test_a_policy_that_is_deleted_between_the_steps(
    world: PolicyWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume, policy = due(world)
    world.runs.plan()
    _, (taken,) = world.db.run(world.runs._take)
    world.policies.delete(world.ctx(), policy)
    world.runs._begin(taken)
    world.night()
    # The backup of which it had decided is made, and is the user's.
    assert [one.status for one in world.rows(models.Backup)] == ["available"]
    assert world.volume_status(volume) == "available"


def test_a_run_begins_with_what_its_policy_is_set_to_then(world: PolicyWorld) -> None:
    _, policy = due(world)
    world.runs.plan()
    world.policies.update(world.ctx(), policy, settings={"backup": {"store": "offsite"}})
    world.night()
    assert [one.store for one in world.backups_of(policy)] == ["offsite"]


def test_an_outage_of_the_database_loses_no_run(world: PolicyWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    _, policy = due(world)
    real = Database.run
    calls = []

    def away(self: Database, work: object, done: object = None) -> object:
        calls.append(work)
        if len(calls) in (3, 4):
            raise DBConnectionError("away")
        return real(self, work, done)  # type: ignore[arg-type]

    with monkeypatch.context() as patched:
        patched.setattr(Database, "run", away)
        for _ in range(4):
            try:
                world.step()
            except DBConnectionError:
                world.later(minutes=3)
    world.night()
    assert world.run(policy).status == "ok"
    assert world.run(policy).tries == 0
    assert len(world.rows(models.Backup)) == 1


def test_a_catalogue_that_does_not_answer_is_asked_again(
    world: PolicyWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, policy = due(world)

    def silent(*_arguments: object, **_named: object) -> None:
        raise ServiceUnavailable("The Block Storage service does not answer.")

    with monkeypatch.context() as patched:
        patched.setattr(world.backups, "create", silent)
        world.step()
    assert (world.run(policy).status, world.run(policy).tries) == ("waiting", 1)
    world.later(minutes=1)
    world.night()
    assert world.run(policy).status == "ok"


def test_an_error_of_the_service_is_a_failed_try(world: PolicyWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    _, policy = due(world)

    def broken(*_arguments: object, **_named: object) -> None:
        raise ZeroDivisionError("a secret")

    monkeypatch.setattr(world.backups, "create", broken)
    world.step()
    reason = world.run(policy).reason or ""
    assert reason.startswith("An unexpected error; the log has more under req-")
    assert "secret" not in reason


def test_old_runs_are_forgotten_and_their_backups_stay_the_policys(world: PolicyWorld) -> None:
    _, policy = due(world, retention={"last": 1})
    world.night()
    world.later(days=91)
    assert world.runs.forget() == 1
    assert world.runs_of(policy) == []
    world.policies.run(world.ctx(), policy)
    world.night()
    assert len(world.backups_of(policy)) == 1


def test_the_newest_runs_of_a_policy_are_kept(world: PolicyWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in range(2):
        world.volume()
    many, few = world.policy(), world.policy(selection={"metadata": {"a": "b"}})
    volume = world.volume()
    world.policies.update(world.ctx(), few, settings={"selection": {"volume_ids": [volume]}})
    for day in range(2, 8):
        world.at(f"2026-01-{day:02}T00:00:01")
        world.night()
    monkeypatch.setattr(policy_runs, "MOST_KEPT", 7)
    before = len(world.runs_of(few))
    assert world.runs.forget() == 3 * (6 - 3)
    # Those that were planned together stay together.
    assert [one.scheduled_at.day for one in world.runs_of(many)] == [5, 5, 5, 6, 6, 6, 7, 7, 7]
    assert len(world.runs_of(few)) == before
    assert world.runs.forget() == 0


def test_a_policy_is_not_run_by_hand_without_end(world: PolicyWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "MOST_WAITING", 4)
    for _ in range(2):
        world.volume()
    policy = world.policy()
    for _ in range(2):
        world.policies.run(world.ctx(), policy)
    with pytest.raises(InvalidInput, match="wait already"):
        world.policies.run(world.ctx(), policy)
    world.step()
    world.policies.run(world.ctx(), policy)


def test_a_backup_by_hand_says_that_it_needs_a_parent(world: PolicyWorld) -> None:
    """A policy's first one is full without saying so; a user's request is refused as ever."""
    with pytest.raises(InvalidBackup, match="No backups available"):
        world.backups.create(world.ctx(), volume_id=world.volume(), incremental=True)


def test_operators_are_told_of_what_was_missed_or_failed(world: PolicyWorld) -> None:
    outbox = Outbox(world.db, send=lambda *_: None, ways=("mail",))
    volume, policy = due(world)
    world.step()
    for _ in range(2):
        task = world.claim(tasks.BACKUP_CREATE)
        world.outcomes.creating.start(task)
        world.outcomes.creating.fail(task, "The store is on fire.")
        world.step()
        world.later(minutes=58)
        world.step()
        if world.run(policy).status == "failed":
            break
    # After an outage: one is missed.
    world.later(days=1, hours=3)
    world.step()
    told = [
        row for row in world.rows(models.OutboxEvent) if row.event.startswith("policy.") and row.way == "mail"
    ]
    runs = [run for run in world.runs_of(policy) if run.status in ("missed", "failed")]
    assert sorted(row.event for row in told) == sorted(f"policy.run.{run.status}" for run in runs)
    assert {run.status for run in runs} == {"missed", "failed"}
    for row in told:
        assert row.payload["volume_id"] == volume
        assert f"of backup policy {policy} for volume {volume} at 2026-01-0" in row.payload["text"]
    # And on the message bus.
    sent: list[tuple[str, object]] = []
    outbox.deliver(lambda event, payload, _: sent.append((event, payload.get("policy_id"))))
    assert [one for one in sent if one[0].startswith("policy.")] == [(row.event, policy) for row in told]


def test_the_project_is_told_of_a_run_without_a_backup(world: PolicyWorld) -> None:
    """A backup that failed has a message of its own."""
    _, policy = due(world)
    world.forbidden.add("backup:create")
    world.step()
    assert world.run(policy).status == "failed"
    # After an outage, that of two volumes is missed.
    world.volume()
    world.later(days=1, hours=3)
    world.step()
    assert sorted(run.status for run in world.runs_of(policy)) == ["failed", "missed", "missed"]
    found = [(row.resource_uuid, row.event_id) for row in world.rows(models.Message)]
    about = "VOLUME_VOLUME_BACKUP_POLICY_013"
    assert sorted(found) == [(policy, f"{about}_111"), (policy, f"{about}_112")]


def test_what_members_may_do_is_asked_at_each_run(world: PolicyWorld) -> None:
    """An operator may have tightened the rules since the policy was saved."""
    _, policy = due(world, retention={"last": 1})
    world.night()
    world.forbidden.add("backup:delete")
    world.at("2026-01-03T00:00:01")
    world.night()
    *_, run = world.runs_of(policy)
    assert (run.status, run.tidied) == ("ok", True)
    assert "to delete backups (backup:delete)" in (run.reason or "")
    assert len(world.backups_of(policy)) == 2
    world.forbidden.add("backup:create")
    world.at("2026-01-04T00:00:01")
    world.night()
    *_, run = world.runs_of(policy)
    # It is not tried again: that would be no use.
    assert (run.status, run.tries) == ("failed", 0)
    assert "to make backups (backup:create)" in (run.reason or "")
    assert len(world.backups_of(policy)) == 2
    world.forbidden.clear()
    world.at("2026-01-05T00:00:01")
    world.night()
    *_, run = world.runs_of(policy)
    assert (run.status, run.reason) == ("ok", None)
    assert len(world.backups_of(policy)) == 1


def test_rules_that_cannot_be_asked_allow_nothing(
    world: PolicyWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, policy = due(world, retention={"last": 1})
    world.night()

    def broken(_context: RequestContext, rule: str, _project: str) -> bool:
        raise OSError(f"nobody answers {rule}")

    monkeypatch.setattr(world.runs, "_allows", broken)
    world.at("2026-01-03T00:00:01")
    world.night()
    run = world.runs_of(policy)[-1]
    assert (run.status, run.tries) == ("waiting", 1)
    monkeypatch.setattr(world.runs, "_allows", lambda *asked: asked[1] == "backup:create" or broken(*asked))
    world.later(minutes=1)
    world.night()
    assert world.runs_of(policy)[-1].status == "ok"
    assert len(world.backups_of(policy)) == 2


def test_a_changed_policy_file_counts_for_runs(
    world: PolicyWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(enforcer, "LOOK_SECONDS", 0)
    (tmp_path / "policy.yaml").write_text("{}\n")
    (tmp_path / "backupfw.conf").write_text("")
    conf = cfg.ConfigOpts()
    libraries.register_opts(conf)
    conf(args=[], default_config_files=[str(tmp_path / "backupfw.conf")], default_config_dirs=[])
    world.runs = PolicyRuns(world.db, world.backups, allows=FilePolicy(conf).allows)
    _, policy = due(world)
    world.night()
    (tmp_path / "policy.yaml").write_text('"backup:create": "role:operator"\n')
    world.at("2026-01-03T00:00:01")
    world.night()
    assert [run.status for run in world.runs_of(policy)] == ["ok", "failed"]


def test_what_was_missed_and_failed_is_counted_for_ever(
    world: PolicyWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.volume()
    _, policy = due(world, schedule={"cron": "@hourly"})
    world.night()

    def totals() -> tuple[int, int]:
        row = world.row(models.BackupPolicy, policy)
        return row.missed_runs, row.failed_runs

    # Of an outage one is missed for each of two volumes.
    assert totals() == (2, 0)
    world.conf.quota.backups = 0
    world.at("2026-01-02T01:00:01")
    for minutes in (0, 1, 4, 16):
        world.later(minutes=minutes)
        world.night()
    assert totals() == (2, 2)
    world.at("2026-01-02T08:59:59")
    world.night()
    # The run before this one is missed, and this one has no time for another try.
    assert totals() == (4, 4)
    # One waits until its window is over.
    world.at("2026-01-02T09:00:00")
    world.runs.plan()
    world.at("2026-01-02T10:00:01")
    world.watch()
    assert totals() == (6, 4)
    monkeypatch.setattr(policy_runs, "KEPT", timedelta(0))
    assert world.runs.forget()
    assert totals() == (6, 4)

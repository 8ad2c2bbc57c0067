"""When runs are planned, and of which volumes."""

from __future__ import annotations

import uuid
from datetime import datetime, timedelta
from functools import partial
from typing import Any

import pytest

from backupfw.db import models
from backupfw.errors import InvalidInput, QuotaExceeded
from backupfw.manager.policies import planning
from tests.unit.manager.policies.support import Clock, PolicyWorld, count_statements
from tests.unit.manager.support import GIB, check_audit


def states(world: PolicyWorld, policy: str) -> list[tuple[str, str]]:
    return [(f"{run.scheduled_at:%d %H:%M}", run.status) for run in world.runs_of(policy)]


def test_a_due_policy_gets_a_run_for_each_volume_once(world: PolicyWorld) -> None:
    volumes = {world.volume(), world.volume()}
    world.volume("other")
    policy = world.policy()
    assert world.runs.plan() == 0
    world.at("2026-01-02T00:00:01")
    assert world.runs.plan() == 1
    assert world.another_process().plan() == 0
    assert {run.volume_id for run in world.runs_of(policy)} == volumes
    assert {run.status for run in world.runs_of(policy)} == {"waiting"}
    assert world.row(models.BackupPolicy, policy).next_run_at == datetime(2026, 1, 3)


def test_the_jitter_moves_the_beginning_and_not_the_scheduled_time(world: PolicyWorld) -> None:
    for _ in range(8):
        world.volume()
    policy = world.policy(schedule={"jitter": 600})
    world.at("2026-01-02T00:00:01")
    world.runs.plan()
    found = world.runs_of(policy)
    assert {run.scheduled_at for run in found} == {datetime(2026, 1, 2)}
    assert len({run.begin_at for run in found}) > 4
    assert max(run.begin_at for run in found) < datetime(2026, 1, 2, 0, 10)


def test_after_an_outage_one_run_takes_place_and_one_is_missed(world: PolicyWorld) -> None:
    world.volume()
    policy = world.policy(schedule={"cron": "@hourly"})
    world.at("2026-01-02T06:20")
    world.runs.plan()
    assert states(world, policy) == [("02 05:00", "missed"), ("02 06:00", "waiting")]
    assert "the next run takes its place" in (world.runs_of(policy)[0].reason or "")
    assert world.row(models.BackupPolicy, policy).next_run_at == datetime(2026, 1, 2, 7)


def test_a_window_that_has_passed_is_missed(world: PolicyWorld) -> None:
    world.volume()
    policy = world.policy()
    world.at("2026-01-04T01:00:00")
    world.runs.plan()
    assert states(world, policy) == [("04 00:00", "missed")]
    world.step()
    assert world.backups_of(policy) == []
    # The next one is as if nothing had been.
    world.at("2026-01-05T00:00:01")
    world.night()
    assert states(world, policy) == [("04 00:00", "missed"), ("05 00:00", "ok")]


def test_a_clock_that_goes_back_an_hour_repeats_nothing(world: PolicyWorld) -> None:
    world.volume()
    policy = world.policy(schedule={"cron": "*/30 * * * *"})
    world.at("2026-01-02T01:00:01")
    world.night()
    before = states(world, policy)
    for moment in ("2026-01-02T00:00:02", "2026-01-02T00:30:01", "2026-01-02T01:00:02"):
        world.at(moment)
        world.runs.repair_clock()
        world.night()
    assert states(world, policy) == before == [("02 00:30", "missed"), ("02 01:00", "ok")]
    assert len(world.backups_of(policy)) == 1
    world.at("2026-01-02T01:30:01")
    world.night()
    assert states(world, policy)[-1] == ("02 01:30", "ok")


def test_a_clock_that_was_in_the_future_for_a_moment_stops_no_policy(world: PolicyWorld) -> None:
    policy = world.policy()
    world.at("2031-05-05")
    world.runs.plan()
    world.at("2026-01-02T12:00")
    assert world.row(models.BackupPolicy, policy).next_run_at.year == 2031
    assert world.runs.repair_clock() == 1
    assert world.runs.repair_clock() == 0
    assert world.row(models.BackupPolicy, policy).next_run_at == datetime(2026, 1, 3)


def test_volumes_by_metadata_are_those_that_have_all_pairs(world: PolicyWorld) -> None:
    wanted, half, other, foreign = world.volume(), world.volume(), world.volume(), world.volume("p2")
    with world.db.write() as session:
        for volume, pairs in (
            (wanted, {"backup": "daily", "tier": "1", "more": "x"}),
            (half, {"backup": "daily"}),
            (other, {"backup": "weekly", "tier": "1"}),
            (foreign, {"backup": "daily", "tier": "1"}),
        ):
            for key, value in pairs.items():
                session.add(models.VolumeMetadata(volume_id=volume, key=key, value=value))
    policy = world.policy(selection={"metadata": {"backup": "daily", "tier": "1"}})
    assert [run.volume_id for run in world.policies.run(world.ctx(), policy)] == [wanted]


def test_volumes_that_come_or_go_are_left_out_and_named_ones_are_not(world: PolicyWorld) -> None:
    there, coming = world.volume(), world.volume(status="creating")
    world.volume(status="deleting")
    every, named = world.policy(), world.policy(selection={"volume_ids": [coming]})
    assert [run.volume_id for run in world.policies.run(world.ctx(), every)] == [there]
    assert [run.volume_id for run in world.policies.run(world.ctx(), named)] == [coming]


@pytest.mark.parametrize("whose", ["nobody", "p2"])
def test_a_policy_names_volumes_of_its_own_project_only(world: PolicyWorld, whose: str) -> None:
    volume = str(uuid.uuid4()) if whose == "nobody" else world.volume("p2")
    with pytest.raises(InvalidInput, match=r"^selection\.volume_ids: Volume .* could not be found"):
        world.policy(selection={"volume_ids": [volume]})
    # An administrator sees it, and may not use it either.
    settings = {"schedule": {"cron": "@daily"}, "selection": {"volume_ids": [volume]}}
    with pytest.raises(InvalidInput, match=r"^selection\.volume_ids: "):
        world.policies.create(world.ctx(admin=True), settings=settings)


def test_a_store_must_be_there(world: PolicyWorld) -> None:
    with pytest.raises(InvalidInput, match=r"^backup\.store: there is no store attic"):
        world.policy(backup={"store": "attic"})
    world.volume()
    policy = world.policy(backup={"store": "offsite"})
    world.policies.run(world.ctx(), policy)
    world.step()
    assert [backup.store for backup in world.backups_of(policy)] == ["offsite"]


def test_the_quota_of_policies(world: PolicyWorld) -> None:
    world.conf.quota.backup_policies = 1
    world.policy()
    with pytest.raises(QuotaExceeded, match="Maximum number of backup policies allowed"):
        world.policy()
    world.policy("p2")


def test_pause_and_resume(world: PolicyWorld) -> None:
    world.volume()
    policy = world.policy()
    world.at("2026-01-02T00:00:01")
    world.runs.plan()
    paused = world.policies.pause(world.ctx(), policy)
    assert (paused.enabled, paused.next_run_at) == (False, None)
    run = world.run(policy)
    assert (run.status, run.reason) == ("skipped", "The policy was paused.")
    world.at("2026-01-04T00:00:01")
    assert world.runs.plan() == 0
    assert world.policies.resume(world.ctx(), policy).next_run_at == datetime(2026, 1, 5)
    # One that rests can be run by hand.
    world.policies.pause(world.ctx(), policy)
    world.policies.run(world.ctx(), policy)
    world.night()
    assert len(world.backups_of(policy)) == 1


def test_what_is_changed_counts_from_the_next_run_on(world: PolicyWorld) -> None:
    one, two = world.volume(), world.volume()
    policy = world.policy(selection={"volume_ids": [one]})
    changed = world.policies.update(
        world.ctx(),
        policy,
        settings={"schedule": {"cron": "0 3 * * *", "timezone": "Europe/Berlin", "jitter": 0}},
        name="new",
    )
    assert (changed.display_name, changed.next_run_at) == ("new", datetime(2026, 1, 2, 2))
    assert changed.settings["selection"] == {"volume_ids": [one]}
    world.policies.update(world.ctx(), policy, settings={"selection": {"volume_ids": [two]}})
    world.at("2026-01-02T02:00:01")
    world.runs.plan()
    assert [run.volume_id for run in world.runs_of(policy)] == [two]


def test_a_run_that_is_due_stays_when_other_things_are_changed(world: PolicyWorld) -> None:
    """No worker had planned it yet, and it was lost, with no word of it: forms send the schedule, too."""
    world.volume()
    policy = world.policy()
    world.at("2026-01-02T00:00:01")
    known = world.policies.get(world.ctx(), policy)
    world.policies.update(world.ctx(), policy, settings={**known.settings, "retention": {"last": 3}})
    world.night()
    assert [run.status for run in world.runs_of(policy)] == ["ok"]


def test_a_policy_whose_zone_is_gone_keeps_no_other_from_running(world: PolicyWorld) -> None:
    world.volume()
    broken, whole = world.policy(), world.policy()
    with world.db.write() as session:
        row = session.get_one(models.BackupPolicy, broken)
        row.settings = {**row.settings, "schedule": {**row.settings["schedule"], "timezone": "Atlantis"}}
    world.at("2026-01-02T00:00:01")
    assert world.runs.plan() == 2
    assert world.runs_of(broken) == []
    assert len(world.runs_of(whole)) == 1
    assert world.row(models.BackupPolicy, broken).next_run_at > datetime(2026, 1, 2, 1)


def test_thousands_of_policies_need_a_few_statements(world: PolicyWorld) -> None:
    """For each batch, not for each policy: 10 000 take 40 batches.  The benchmark measures the time."""
    number = 2 * planning.BATCH
    settings = world.row(models.BackupPolicy, world.policy()).settings
    moment = datetime(2026, 1, 2)
    with world.db.write() as session:
        session.execute(
            models.BackupPolicy.__table__.insert(),
            [
                {
                    "id": str(uuid.uuid4()),
                    "project_id": f"project {count % 50}",
                    "settings": settings,
                    "next_run_at": moment,
                    "planned_at": moment - timedelta(days=1),
                    "created_at": moment,
                }
                for count in range(number)
            ],
        )
        session.execute(
            models.Volume.__table__.insert(),
            [
                {
                    "id": str(uuid.uuid4()),
                    "project_id": f"project {count}",
                    "status": "available",
                    "size": 1,
                    "length": GIB,
                    "created_at": moment,
                }
                for count in range(50)
            ],
        )
    world.at("2026-01-02T00:00:30")
    statements = count_statements(world)
    assert world.runs.plan() == number + 1
    assert len(statements) < 3 * 24
    assert len(world.rows(models.PolicyRun)) == number


def test_projects_take_turns(world: PolicyWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "BATCH", 4)
    many = [world.policy("many") for _ in range(6)]
    few = world.policy("few")
    world.at("2026-01-02T00:00:01")
    planned = world.db.run(partial(planning.plan, foreign=False))
    assert planned == 4
    assert world.row(models.BackupPolicy, few).next_run_at == datetime(2026, 1, 3)
    assert sum(world.row(models.BackupPolicy, one).next_run_at > datetime(2026, 1, 2) for one in many) == 3
    check_audit(world)


def test_volumes_are_not_read_of_more_policies_than_can_be_planned(
    world: PolicyWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Policies of thousands of volumes: all volumes of all of them were read for each transaction."""
    monkeypatch.setattr(planning, "_READ_AT_ONCE", 2)
    monkeypatch.setattr(planning, "_MOST_RUNS", 2)
    read = []
    volumes_of = planning.volumes_of

    def count(session: Any, policies: Any, **more: Any) -> Any:
        read.extend(policies)
        return volumes_of(session, policies, **more)

    monkeypatch.setattr(planning, "volumes_of", count)
    for number in range(8):
        world.volume(f"p{number}")
        world.volume(f"p{number}")
        world.policy(f"p{number}")
    world.at("2026-01-02T00:00:01")
    assert world.runs.plan() == 8
    assert len(read) == 16 - 1
    assert len(world.rows(models.PolicyRun)) == 16


@pytest.mark.parametrize("jitter", [0, 1800])
def test_of_each_volume_one_run_waits_at_a_time(world: PolicyWorld, jitter: int) -> None:
    """In a window of a week two thousand runs of each volume waited, and everybody's were slow to begin."""
    volumes = [world.volume() for _ in range(3)]
    schedule = {"cron": "*/5 * * * *", "start_window": 7 * 24 * 60, "jitter": jitter}
    policy = world.policy(schedule=schedule, max_concurrent=1)
    for _ in range(24):
        world.later(minutes=5)
        world.step()
    waiting = world.runs_of(policy, status="waiting")
    can_begin = [one.volume_id for one in waiting if one.begin_at <= Clock.moment]
    assert len(can_begin) <= len(volumes)
    assert len(can_begin) == len(set(can_begin))
    (running,) = world.runs_of(policy, status="running")
    missed = [one.volume_id for one in world.runs_of(policy, status="missed")]
    assert set(missed) >= set(volumes) - {running.volume_id}
    # The next one takes place.
    world.make()
    world.step()
    assert len(world.runs_of(policy, status="ok")) == 1
    assert len(world.runs_of(policy, status="running")) == 1


def test_workers_are_woken_by_what_may_be_due_before_they_look(world: PolicyWorld) -> None:
    """Idle ones look a minute apart."""
    policy = world.policy()
    woken = [world.wakes]
    for change in (
        partial(world.policies.update, settings={"schedule": {"cron": "@hourly"}}),
        world.policies.pause,
        world.policies.resume,
        world.policies.run,
    ):
        change(world.ctx(), policy)
        woken.append(world.wakes)
    assert woken == [1, 2, 3, 4, 5]

"""Policies that meet others: in the quota of their project, and on the same volume."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import text

from backupfw.db import models
from backupfw.db.session import now
from backupfw.errors import QuotaExceeded
from backupfw.manager.policies import runs as policy_runs
from tests.unit.manager.policies.support import PolicyWorld
from tests.unit.manager.support import check_audit, check_consistent


def nights(world: PolicyWorld, first: int, last: int) -> None:
    """Let nights pass, each with its tries."""
    for day in range(first, last + 1):
        world.at(f"2026-01-{day:02}T00:00:01")
        for minutes in (0, 1, 4, 16):
            world.later(minutes=minutes)
            world.night()


def statuses(world: PolicyWorld, policy: str) -> list[str]:
    return [run.status for run in world.runs_of(policy)]


@pytest.mark.parametrize("limit", ["backups", "backup_gigabytes"])
def test_a_quota_of_as_many_as_are_kept_is_enough(world: PolicyWorld, limit: str) -> None:
    """The run after the last free place was refused, each night, for ever."""
    world.volume(size=2)
    policy = world.policy(retention={"last": 3})
    setattr(world.conf.quota, limit, 3 if limit == "backups" else 6)
    nights(world, 2, 7)
    assert statuses(world, policy) == ["ok"] * 6
    there = world.backups_of(policy)
    assert [one.created_at.day for one in there] == [5, 6, 7]
    check_consistent(world)
    check_audit(world)


def test_the_newest_good_one_never_makes_room(world: PolicyWorld) -> None:
    world.volume()
    policy = world.policy(retention={"last": 1})
    world.conf.quota.backups = 1
    nights(world, 2, 4)
    assert statuses(world, policy) == ["ok", "failed", "failed"]
    assert "lets nothing go that would make room" in (world.runs_of(policy)[-1].reason or "")
    assert [one.created_at.day for one in world.backups_of(policy)] == [2]


def test_nothing_goes_that_would_not_be_enough(world: PolicyWorld) -> None:
    """Otherwise each night without a backup would let one go by "within", down to the last one."""
    world.volume()
    policy = world.policy(retention={"within": "72h"})
    nights(world, 2, 5)
    before = [one.id for one in world.backups_of(policy)]
    world.conf.quota.backups = 0
    nights(world, 6, 10)
    assert [one.id for one in world.backups_of(policy)] == before


def test_rules_that_were_changed_meanwhile_count(world: PolicyWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run had been taken with the old ones, which let a backup go that the new ones keep."""
    world.volume()
    policy = world.policy(retention={"last": 3})
    world.conf.quota.backups = 3
    nights(world, 2, 4)
    make = world.backups.create

    def slow(*given_: Any, **more: Any) -> Any:
        world.policies.update(world.ctx(), policy, settings={"retention": {"last": 10}})
        return make(*given_, **more)

    monkeypatch.setattr(world.backups, "create", slow)
    nights(world, 5, 5)
    assert [one.created_at.day for one in world.backups_of(policy)] == [2, 3, 4]
    assert statuses(world, policy)[-1] == "failed"


def test_a_slow_deletion_is_waited_for(world: PolicyWorld) -> None:
    """Each try began to delete one more."""
    world.volume()
    policy = world.policy(retention={"last": 6})
    nights(world, 2, 7)
    world.policies.update(world.ctx(), policy, settings={"retention": {"last": 2}})
    world.conf.quota.backups = 6
    world.at("2026-01-08T00:00:01")
    for minutes in (0, 1, 4, 16):
        world.later(minutes=minutes)
        world.step()
        assert [one.created_at.day for one in world.backups_of(policy)] == [3, 4, 5, 6, 7]
        assert "lets nothing go" not in (world.runs_of(policy)[-1].reason or "")
    world.remove()
    nights(world, 9, 9)
    assert [one.created_at.day for one in world.backups_of(policy)] == [7, 9]


def test_others_who_take_the_room_each_night_cost_one_backup(world: PolicyWorld) -> None:
    """By "within" one went each night, down to the last one, and none was made."""
    mine, other = world.volume(), world.volume()
    policy = world.policy(selection={"volume_ids": [mine]}, retention={"within": "72h"})
    nights(world, 2, 5)
    world.conf.quota.backups = 4
    for day in range(6, 10):
        world.at(f"2026-01-{day:02}T00:00:01")
        for minutes in (0, 1, 4, 16):
            world.later(minutes=minutes)
            world.night()
            with suppress(QuotaExceeded):
                world.backups.create(world.ctx(), volume_id=other, force=True)
                world.make()
    assert [one.created_at.day for one in world.backups_of(policy)] == [3, 4, 5]
    assert statuses(world, policy)[-4:] == ["failed"] * 4


def test_what_is_kept_or_forbidden_makes_no_room(world: PolicyWorld) -> None:
    world.volume()
    policy = world.policy(retention={"last": 2})
    world.conf.quota.backups = 2
    nights(world, 2, 3)
    before = [one.id for one in world.backups_of(policy)]
    world.forbidden.add("backup:delete")
    nights(world, 4, 4)
    world.forbidden.clear()
    world.backups.merge_metadata(world.ctx(), before[0], {"backupfw:keep": "true"})
    nights(world, 5, 5)
    assert [one.id for one in world.backups_of(policy)] == before
    assert statuses(world, policy) == ["ok", "ok", "failed", "failed"]


def test_a_deletion_that_fails_is_a_try(world: PolicyWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was looked at again every two minutes, with all that were taken with it, until its window ended."""
    world.volume()
    policy = world.policy(retention={"last": 2})
    world.conf.quota.backups = 2
    nights(world, 2, 3)
    world.at("2026-01-04T00:00:01")

    def broken(*_: Any) -> None:
        raise RuntimeError("a bug")

    with monkeypatch.context() as patched:
        patched.setattr(world.backups, "delete", broken)
        world.step()
    run = world.runs_of(policy)[-1]
    assert (run.status, run.tries) == ("waiting", 1)
    assert "allowed (2) exceeded" in (run.reason or "")


def test_a_failed_backup_makes_room_first(world: PolicyWorld) -> None:
    world.volume()
    policy = world.policy(retention={"last": 5})
    world.conf.quota.backups = 2
    nights(world, 2, 2)
    world.at("2026-01-03T00:00:01")
    world.step()
    task = world.claim()
    world.outcomes.creating.start(task)
    world.outcomes.creating.fail(task, "The store is on fire.")
    for minutes in (1, 4, 16):
        world.later(minutes=minutes)
        world.night()
    assert statuses(world, policy) == ["ok", "ok"]
    assert [one.status for one in world.backups_of(policy)] == ["available", "available"]


@settings(max_examples=5, deadline=None)
@given(
    last=st.integers(1, 4),
    quota=st.integers(1, 5),
    fails=st.sets(st.integers(2, 7), max_size=2),
    full_on=st.integers(2, 7),
)
def test_whatever_the_quota_the_newest_stay_as_the_rules_say(
    last: int, quota: int, fails: set[int], full_on: int
) -> None:
    with pytest.MonkeyPatch.context() as patched:
        world = PolicyWorld(patched)
        world.volume()
        policy = world.policy(retention={"last": last})
        made: list[str] = []
        for day in range(2, 8):
            if day == full_on:
                world.conf.quota.backups = quota
            world.at(f"2026-01-{day:02}T00:00:01")
            for minutes in (0, 1, 4, 16):
                world.later(minutes=minutes)
                world.step()
                while (task := world.tasks.claim("host/w", 60, ["backup.create"])) is not None:
                    plan = world.outcomes.creating.start(task)
                    if day in fails:
                        world.outcomes.creating.fail(task, "no")
                    else:
                        world.outcomes.creating.bind_source(task, "source", "full backup")
                        made.append(world.outcomes.creating.finish(task, world.result(plan)).id)
                world.step()
                world.remove()
            good = [one.id for one in world.backups_of(policy) if one.status == "available"]
            # The newest ones, none missing in between, at most one less than the rules keep.
            assert good == made[len(made) - len(good) :]
            assert len(good) >= min(len(made), max(1, last - 1))
            assert len(good) <= last
        if quota > last > 1 and not fails:
            assert set(statuses(world, policy)) == {"ok"}


def two_policies(world: PolicyWorld, **given_: Any) -> tuple[str, str, str]:
    volume = world.volume()
    return volume, world.policy(name="a"), world.policy(name="b", **given_)


def test_of_two_policies_on_one_volume_the_second_waits_its_turn(world: PolicyWorld) -> None:
    """It used up its tries while a long backup was on, and had failed."""
    _, first, second = two_policies(world)
    world.at("2026-01-02T00:00:01")
    world.step()
    on, waits = sorted((first, second), key=lambda one: statuses(world, one) != ["running"])
    assert statuses(world, waits) == ["waiting"]
    for _ in range(9):
        world.later(minutes=5)
        world.step()
        (run,) = world.runs_of(waits)
        assert (run.status, run.tries, run.reason) == ("waiting", 0, None)
    world.night()
    world.night()
    assert statuses(world, on) == statuses(world, waits) == ["ok"]
    check_consistent(world)


def test_runs_that_wait_are_not_compared_with_all_that_are_on(world: PolicyWorld) -> None:
    """With thousands of both, workers were busy with nothing else."""
    with world.db.read() as session:
        ready = policy_runs._can_be_taken().params(moment=now(session), most=1)
        ready = ready.compile(world.db.engine, compile_kwargs={"literal_binds": True})
        plan = [row[3] for row in session.execute(text(f"EXPLAIN QUERY PLAN {ready}"))]
    assert any(step.startswith("SEARCH") and "LEFT-JOIN" in step for step in plan)
    assert [step for step in plan if step.startswith("SCAN") and "LEFT-JOIN" in step] == []


def test_the_window_ends_the_wait(world: PolicyWorld) -> None:
    _, first, second = two_policies(world)
    world.at("2026-01-02T00:00:01")
    world.step()
    waits = next(one for one in (first, second) if statuses(world, one) == ["waiting"])
    world.later(minutes=61)
    world.step()
    (run,) = world.runs_of(waits)
    assert (run.status, "another operation works on the volume" in (run.reason or "")) == ("missed", True)


def test_two_processes_that_begin_both_at_once(world: PolicyWorld) -> None:
    """Each took one before the other one's backup was there."""
    _, first, second = two_policies(world)
    world.at("2026-01-02T00:00:01")
    world.runs.plan()
    (run,) = world.runs_of(second)
    other = world.another_process()
    make = world.backups.create

    def slow(*given_: Any, **more: Any) -> Any:
        world.backups.create = make  # type: ignore[method-assign]
        other.begin()
        return make(*given_, **more)

    world.backups.create = slow  # type: ignore[method-assign]
    world.runs.begin()
    both = [*world.runs_of(first), *world.runs_of(second)]
    assert sorted((one.status, one.tries) for one in both) == [("running", 0), ("waiting", 0)]
    world.night()
    world.night()
    assert statuses(world, first) == statuses(world, second) == ["ok"]
    assert len(world.rows(models.Backup)) == 2
    assert run.backup_id is None


def test_a_users_restore_is_waited_for(world: PolicyWorld) -> None:
    volume = world.volume()
    backup = world.backups.create(world.ctx(), volume_id=volume)
    world.make()
    policy = world.policy()
    world.at("2026-01-02T00:00:01")
    world.backups.restore(world.ctx(), backup.id, volume_id=volume)
    world.step()
    assert statuses(world, policy) == ["waiting"]
    world.run_restore()
    world.night()
    assert statuses(world, policy) == ["ok"]

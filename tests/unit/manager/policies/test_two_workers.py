"""Several workers at the due time, as real threads on real databases: one run, and the limits hold."""

from __future__ import annotations

from datetime import timedelta

import pytest
from sqlalchemy import update

from backupfw.db import models
from backupfw.db.session import Database, now
from backupfw.manager.policies.manager import PolicyManager
from backupfw.manager.policies.runs import PolicyRuns
from backupfw.manager.queue import tasks
from tests.unit.manager.support import WIRE, World, check_audit, check_consistent
from tests.unit.manager.test_races import together

pytestmark = pytest.mark.check

WORKERS = 4


@pytest.fixture
def world(any_db: Database) -> World:
    return World(database=any_db)


def due(world: World, **more: int) -> tuple[PolicyManager, str]:
    """Make a policy of all volumes whose time came a moment ago."""
    policies = PolicyManager(world.db, world.conf, world.backups)
    settings = {
        "schedule": {"cron": "@daily", "jitter": 0, "start_window": 10000},
        "selection": {"all": True},
        "retention": {"last": 1},
    }
    policy = policies.create(world.ctx(), settings=settings, **more).id
    row = models.BackupPolicy
    with world.db.write() as session:
        moment = now(session).replace(hour=0, minute=0, second=0, microsecond=0) - timedelta(days=1)
        session.execute(update(row).where(row.id == policy).values(next_run_at=moment))
    return policies, policy


def test_workers_at_the_due_time_make_one_backup_of_each_volume(world: World) -> None:
    volumes = {world.volume() for _ in range(12)}
    policies, policy = due(world)
    processes = [PolicyRuns(world.db, world.backups) for _ in range(WORKERS)]

    def work(runs: PolicyRuns) -> int:
        planned = runs.plan()
        while runs.begin():
            runs.watch()
        return planned

    planned = together(*(lambda runs=runs: work(runs) for runs in processes))  # type: ignore[misc]
    assert sum(planned) == 1  # type: ignore[arg-type]
    work(processes[0])
    found = world.rows(models.PolicyRun)
    assert {run.volume_id for run in found} == volumes
    # The day before is missed; the last midnight's is there once.
    running = [run for run in found if run.status == "running"]
    assert sorted(run.volume_id for run in running) == sorted(volumes)
    backups = world.rows(models.Backup)
    assert sorted(one.volume_id for one in backups) == sorted(volumes)
    assert {one.id for one in backups} == {run.backup_id for run in running}
    for _ in volumes:
        world.run_create()
    together(*(runs.watch for runs in processes))
    assert {run.status for run in world.rows(models.PolicyRun)} == {"missed", "ok"}
    check_consistent(world)
    # By hand, twice at once: of each volume one is made, and the other run is skipped.
    together(*(lambda: policies.run(world.ctx(), policy) for _ in range(2)))
    together(*(lambda runs=runs: work(runs) for runs in processes))  # type: ignore[misc]
    work(processes[0])
    for _ in volumes:
        world.run_create()
    together(*(runs.watch for runs in processes))
    assert len([one for one in world.rows(models.Backup) if one.status == "available"]) == len(volumes)
    assert len(world.rows(models.PolicyRun, models.PolicyRun.status == "skipped")) == len(volumes)
    check_audit(world)


def test_so_many_at_once_over_all_workers(world: World) -> None:
    for _ in range(8):
        world.volume()
    due(world, max_concurrent=2)
    processes = [PolicyRuns(world.db, world.backups) for _ in range(WORKERS)]
    processes[0].plan()
    for _ in range(4):
        together(*(runs.begin for runs in processes))
        running = world.rows(models.PolicyRun, models.PolicyRun.status == "running")
        assert len(running) == 2
        for _ in running:
            world.run_create()
        together(*(runs.watch for runs in processes))
    assert len(world.rows(models.PolicyRun, models.PolicyRun.status == "ok")) == 8


def test_totals_are_those_of_all_workers(world: World) -> None:
    """They end runs of the same policies at the same time, in batches, and one by one."""
    for _ in range(6):
        world.volume()
    names = [due(world)[1] for _ in range(3)]
    policies = PolicyManager(world.db, world.conf, world.backups)
    processes = [PolicyRuns(world.db, world.backups, allows=lambda *_: False) for _ in range(WORKERS)]

    def work(runs: PolicyRuns) -> None:
        runs.plan()
        while runs.begin():
            runs.watch()

    def totals() -> set[tuple[int, int]]:
        return {(one.missed_runs, one.failed_runs) for one in world.rows(models.BackupPolicy)}

    together(*(lambda runs=runs: work(runs) for runs in processes))  # type: ignore[misc]
    work(processes[0])
    assert totals() == {(6, 6)}
    by_hand = [run.id for name in names for run in policies.run(world.ctx(), name)]
    row = models.PolicyRun
    with world.db.write() as session:
        over = {"begin_before": now(session) - timedelta(seconds=1)}
        session.execute(update(row).where(row.status == "waiting").values(**over))
    pause = [lambda name=name: policies.pause(world.ctx(), name) for name in names]  # type: ignore[misc]
    together(*(runs.watch for runs in processes), *pause)
    ended = world.rows(row, row.id.in_(by_hand))
    missed = [run.policy_id for run in ended if run.status == "missed"]
    for one in world.rows(models.BackupPolicy):
        assert (one.missed_runs, one.failed_runs) == (6 + missed.count(one.id), 6)
    assert {run.status for run in ended} <= {"missed", "skipped"}
    check_consistent(world)


def test_two_policies_on_the_same_volumes(world: World) -> None:
    volumes = {world.volume() for _ in range(4)}
    for _ in range(2):
        due(world)
    processes = [PolicyRuns(world.db, world.backups) for _ in range(WORKERS)]
    for _ in range(2):
        for runs in processes:
            runs.plan()
        together(*(runs.begin for runs in processes))
        together(*(runs.begin for runs in processes))
        running = world.rows(models.PolicyRun, models.PolicyRun.status == "running")
        assert {run.volume_id for run in running} == volumes
        assert len(running) == len(volumes)
        for _ in running:
            world.run_create()
        together(*(runs.watch for runs in processes))
    ok = world.rows(models.PolicyRun, models.PolicyRun.status == "ok")
    assert len({(run.policy_id, run.volume_id) for run in ok}) == len(ok) == 2 * len(volumes)
    assert {run.tries for run in ok} == {0}
    check_consistent(world)


def test_workers_that_move_backups_to_their_copies_at_once(world: World) -> None:
    """Each leaves its own store once, and nobody loses the place that is left."""
    volumes = [world.volume() for _ in range(4)]
    policies, policy = due(world)
    policies.update(
        world.ctx(),
        policy,
        settings={"copy_to": [{"store": "offsite", "retention": {"last": 2}}]},
    )
    names = dict.fromkeys(("main", "offsite"), WIRE)
    processes = [PolicyRuns(world.db, world.backups, answering=lambda: names) for _ in range(WORKERS)]
    for _ in range(2):
        policies.run(world.ctx(), policy)
        while processes[0].begin():
            pass
        for _ in volumes:
            world.run_create()
        while (task := world.tasks.claim("host/w", 60, [tasks.BACKUP_COPY])) is not None:
            world.outcomes.copying.start(task)
            world.outcomes.copying.place(task, None, detached=False)
            world.outcomes.copying.finish(task)
        together(*(runs.watch for runs in processes))
        while processes[0].watch():
            pass
    copies = {one.backup_id for one in world.rows(models.BackupCopy)}
    there = world.rows(models.Backup, models.Backup.deleted.is_(False))
    assert sorted((one.store, one.id in copies) for one in there) == sorted(
        [("offsite", False), ("main", True)] * len(volumes)
    )
    assert world.run_releases() == len(volumes)
    check_audit(world)

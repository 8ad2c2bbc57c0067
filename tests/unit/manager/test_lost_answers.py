"""Commits whose answers are lost: what was done is not done twice, and is not called refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from oslo_db.exception import DBConnectionError

from backupfw.db import models, session
from backupfw.db.session import Database
from backupfw.errors import OutcomeUnknown, TaskLost
from backupfw.manager.queue import tasks
from backupfw.manager.usecases.snapshots import SnapshotManager
from backupfw.manager.usecases.volumes import VolumeManager
from tests.unit.db.lost_answers import lost_answers
from tests.unit.manager.support import World, check_consistent


@pytest.fixture
def world(any_db: Database) -> World:
    return World(database=any_db)


def _backup(world: World) -> Callable[[], tuple[str, str]]:
    volume = world.volume()
    return lambda: (world.backups.create(world.ctx(), volume_id=volume, metadata={"a": "b"}).id, "creating")


def _last_backup_of_quota(world: World) -> Callable[[], tuple[str, str]]:
    world.conf.quota.backups = 1
    return _backup(world)


def _new_target(world: World) -> Callable[[], tuple[str, str]]:
    backup = world.backup(world.volume())
    return lambda: (world.backups.restore(world.ctx(), backup.id)[1], "restoring-backup")


def _old_target(world: World) -> Callable[[], tuple[str, str]]:
    backup, target = world.backup(world.volume()), world.volume()
    return lambda: (
        world.backups.restore(world.ctx(), backup.id, volume_id=target)[1],
        "restoring-backup",
    )


def _import(world: World) -> Callable[[], tuple[str, str]]:
    backup = world.backup(world.volume())
    service, url = world.backups.export_record(world.ctx(), backup.id)
    world.backups.delete(world.ctx(), backup.id)
    world.run_delete()

    def call() -> tuple[str, str]:
        made = world.backups.import_record(world.ctx(), backup_service=service, backup_url=url)
        return made.id, made.status

    return call


def _volumes(world: World) -> VolumeManager:
    return VolumeManager(world.db, world.conf, lambda: None)


def _volume(world: World) -> Callable[[], tuple[str, str]]:
    return lambda: (_volumes(world).create(world.ctx(), size=1).id, "creating")


def _adopted(world: World) -> Callable[[], tuple[str, str]]:
    return lambda: (_volumes(world).adopt(world.ctx(), location="/a", length=5).id, "available")


def _attached(world: World) -> Callable[[], tuple[str, str]]:
    volume = world.volume()

    def call() -> tuple[str, str]:
        attached = _volumes(world).attachments.attach(world.ctx(), volume)
        assert len(attached.attachments) == 1
        return attached.id, attached.status

    return call


def _snapshot(world: World) -> Callable[[], tuple[str, str]]:
    volume = world.volume()
    snapshots = SnapshotManager(world.db, world.conf, lambda: None)
    return lambda: (snapshots.create(world.ctx(), volume_id=volume).id, "creating")


def test_a_claim_is_the_owners_although_its_answer_was_lost(world: World) -> None:
    first, second = _backup(world)()[0], _backup(world)()[0]
    with lost_answers(world.db) as lost:
        task = world.tasks.claim("host/1", 60)
    assert lost() == 1
    assert task is not None
    assert (task.resource_id, task.attempt) == (first, 1)
    (running,) = world.rows(models.Task, models.Task.state == tasks.RUNNING)
    assert (running.resource_id, running.owner, running.attempt, running.failures) == (first, "host/1", 1, 0)
    assert world.claim(owner="host/1").resource_id == second


def test_a_claim_is_found_by_the_next_one_when_the_database_was_away_for_long(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    backup = _backup(world)()[0]
    with lost_answers(world.db), monkeypatch.context() as patch:
        # As if the last repetition had failed, too.
        patch.setattr(session, "_REPETITIONS", 0)
        with pytest.raises(DBConnectionError):
            world.tasks.claim("host/1", 60)
    # Not anybody's, and not a failed attempt.
    assert world.tasks.claim("host/2", 60) is None
    task = world.claim(owner="host/1")
    assert (task.resource_id, task.attempt, task.failures) == (backup, 1, 0)
    assert world.tasks.claim("host/1", 60) is None
    # Its lease began anew: the worker's clock did.
    world.age(seconds=59)
    assert world.renew(task, "host/1") is False


def test_an_unanswered_claim_that_another_took_over_is_lost(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    _backup(world)()
    with lost_answers(world.db), monkeypatch.context() as patch:
        patch.setattr(session, "_REPETITIONS", 0)
        with pytest.raises(DBConnectionError):
            world.tasks.claim("host/1", 60)
    world.age(seconds=61)
    assert world.claim(owner="host/2").attempt == 2
    assert world.tasks.claim("host/1", 60) is None


@pytest.mark.parametrize(
    ("prepare", "model", "task"),
    [
        (_backup, models.Backup, tasks.BACKUP_CREATE),
        (_last_backup_of_quota, models.Backup, tasks.BACKUP_CREATE),
        (_new_target, models.Volume, tasks.BACKUP_RESTORE),
        (_old_target, models.Volume, tasks.BACKUP_RESTORE),
        (_import, models.Backup, tasks.BACKUP_IMPORT),
        (_volume, models.Volume, tasks.VOLUME_CREATE),
        (_adopted, models.Volume, None),
        (_attached, models.Volume, None),
        (_snapshot, models.Snapshot, tasks.SNAPSHOT_CREATE),
    ],
)
def test_what_was_accepted_is_accepted_once(
    world: World, prepare: Callable[[World], Callable[[], tuple[str, str]]], model: Any, task: str | None
) -> None:
    call = prepare(world)
    before = {row.id for row in world.rows(model)}
    with lost_answers(world.db) as lost:
        made, status = call()
    assert lost() == 1
    assert world.row(model, made).status == status
    assert {row.id for row in world.rows(model)} == before | {made}
    assert [row.kind for row in world.rows(models.Task)] == ([task] if task else [])
    if model is models.Backup:
        check_consistent(world)


def test_what_was_recorded_with_a_lost_answer_may_be_another_attempts_now(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then the objects that it names must stay; after a refusal without a lost answer nobody knows them."""
    _backup(world)()
    task = world.claim(owner="host/1")
    world.outcomes.creating.start(task)
    world.outcomes.creating.bind_source(task, "one", "full backup")

    with lost_answers(world.db), monkeypatch.context() as patch:

        def taken_over_meanwhile(_tried: int) -> None:
            patch.undo()
            world.age(seconds=61)
            assert world.claim(owner="host/2").attempt == 2

        patch.setattr(session, "pause", taken_over_meanwhile)
        with pytest.raises(OutcomeUnknown):
            world.outcomes.creating.record_segments(task, [(0, b"a")])
    assert len(world.rows(models.Segment)) == 1
    with pytest.raises(TaskLost) as refused:
        world.outcomes.creating.record_segments(task, [(1, b"b")])
    assert not isinstance(refused.value, OutcomeUnknown)

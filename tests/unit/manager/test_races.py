"""Real threads on a real file: exactly one of two requests wins, and the last free place is given once."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import timedelta

import pytest
from sqlalchemy import update

from backupfw import errors
from backupfw.db import models
from backupfw.db.session import Database, now
from backupfw.manager.queue import tasks
from tests.unit.manager.support import World, check_consistent

pytestmark = pytest.mark.check


def together(*calls: Callable[[], object]) -> list[object]:
    """Run calls at the same time; returns their results, or their errors."""
    results: list[object] = [None] * len(calls)
    barrier = threading.Barrier(len(calls))

    def run(index: int) -> None:
        barrier.wait()
        try:
            results[index] = calls[index]()
        except errors.BackupfwError as error:
            results[index] = error

    threads = [threading.Thread(target=run, args=(index,)) for index in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


@pytest.fixture
def world(any_db: Database) -> World:
    return World(database=any_db)


def test_of_a_delete_and_a_restore_at_once_one_wins(world: World) -> None:
    backup = world.backup(world.volume())
    target = world.volume()
    for _ in range(50):
        deleted, restored = together(
            lambda: world.backups.delete(world.ctx(), backup.id),
            lambda: world.backups.restore(world.ctx(), backup.id, volume_id=target),
        )
        lost = [isinstance(result, errors.BackupfwError) for result in (deleted, restored)]
        assert sorted(lost) == [False, True], (deleted, restored)
        (task,) = world.rows(models.Task)
        if lost[0]:
            assert (task.kind, world.status(backup.id)) == (tasks.BACKUP_RESTORE, "restoring")
            assert world.volume_status(target) == "restoring-backup"
            world.run_restore()
        else:
            assert (task.kind, world.status(backup.id)) == (tasks.BACKUP_DELETE, "deleting")
            assert world.volume_status(target) == "available"
            world.backups.reset_status(world.ctx(admin=True), backup.id, "available")
    check_consistent(world)


def test_two_restores_to_one_volume_and_two_of_one_backup(world: World) -> None:
    one, two = world.backup(world.volume()), world.backup(world.volume())
    target, other = world.volume(), world.volume()
    for left, right in (((one, target), (two, target)), ((one, target), (one, other))):
        for _ in range(20):
            results = together(
                *(
                    lambda pair=pair: world.backups.restore(  # type: ignore[misc]
                        world.ctx(), pair[0].id, volume_id=pair[1]
                    )
                    for pair in (left, right)
                )
            )
            assert sum(isinstance(result, errors.BackupfwError) for result in results) == 1
            assert world.tasks.pending() == 1
            world.run_restore()
            check_consistent(world)


def test_many_creations_never_exceed_the_quota(world: World) -> None:
    world.conf.quota.backups = 7
    volumes = [world.volume() for _ in range(50)]
    results = together(
        *(lambda volume=volume: world.backups.create(world.ctx(), volume_id=volume) for volume in volumes)  # type: ignore[misc]
    )
    refused = [result for result in results if isinstance(result, errors.QuotaExceeded)]
    assert len(refused) == 43
    assert len(world.rows(models.Backup)) == 7
    assert sum(world.volume_status(volume) == "backing-up" for volume in volumes) == 7
    check_consistent(world)


def test_fifty_at_once_of_two_projects_never_exceed_the_gigabytes(world: World) -> None:
    world.conf.quota.backup_gigabytes = 21
    sizes = {"p1": 2, "p2": 1}
    volumes = [
        (project, world.volume(project, size=size)) for project, size in sizes.items() for _ in range(25)
    ]
    results = together(
        *(
            lambda project=project, volume=volume: world.backups.create(  # type: ignore[misc]
                world.ctx(project), volume_id=volume
            )
            for project, volume in volumes
        )
    )
    refused = [result for result in results if isinstance(result, errors.BackupfwError)]
    assert all(
        isinstance(error, errors.QuotaExceeded) and error.resource == "backup_gigabytes" for error in refused
    )
    made = [row.project_id for row in world.rows(models.Backup)]
    # What fits into 21 GiB in pieces of this size, for each project by itself.
    assert {project: made.count(project) for project in sizes} == {"p1": 10, "p2": 21}
    assert len(refused) == 50 - 31
    check_consistent(world)


def test_many_creations_of_one_volume(world: World) -> None:
    volume = world.volume()
    results = together(*(lambda: world.backups.create(world.ctx(), volume_id=volume) for _ in range(12)))
    assert sum(isinstance(result, errors.InvalidVolume) for result in results) == 11
    check_consistent(world)


def test_a_release_against_a_child_of_the_same_manifest(world: World) -> None:
    for _ in range(20):
        volume = world.volume()
        parent = world.backup(volume)
        child = world.backups.create(world.ctx(), volume_id=volume, incremental=True)
        world.backups.delete(world.ctx(), parent.id)
        create, delete = world.claim(tasks.BACKUP_CREATE), world.claim(tasks.BACKUP_DELETE)
        plan, release = together(
            lambda create=create: world.outcomes.creating.start(create),  # type: ignore[misc]
            lambda delete=delete: world.outcomes.deleting.start(delete),  # type: ignore[misc]
        )
        base = plan.base  # type: ignore[attr-defined]
        # Either the child shares and the data stays, or the data goes and the child stores anew.
        assert (base is None) is (release is not None)
        check_consistent(world)
        world.outcomes.creating.finish(create, world.result(plan))  # type: ignore[arg-type]
        if release is not None:
            world.outcomes.deleting.finish(delete, release)  # type: ignore[arg-type]
        assert world.status(child.id) == "available"
        world.run_releases()
        check_consistent(world)


def test_force_delete_against_the_commit(world: World) -> None:
    for _ in range(20):
        volume = world.volume()
        made = world.backups.create(world.ctx(), volume_id=volume)
        task = world.claim(tasks.BACKUP_CREATE)
        plan = world.outcomes.creating.start(task)
        finished, _ = together(
            lambda task=task, plan=plan: world.outcomes.creating.finish(task, world.result(plan)),  # type: ignore[misc]
            lambda made=made: world.backups.force_delete(world.ctx(admin=True), made.id),  # type: ignore[misc]
        )
        if isinstance(finished, errors.TaskCancelled):
            world.tasks.discard(task)
        assert world.volume_status(volume) == "available"
        check_consistent(world)
        assert world.run_delete()
        assert world.status(made.id) is None
        assert world.tasks.pending() == 0


def test_of_many_looks_for_something_to_scrub_one_queues_it(world: World) -> None:
    backup = world.backup(world.volume())
    world.conf["store:main"].scrub_days = 30
    scrubbing = world.outcomes.scrubbing
    for _ in range(10):
        with world.db.write() as session:
            old = now(session) - timedelta(days=40)
            manifest = models.Manifest
            session.execute(update(manifest).values(created_at=old, fully_verified_at=None, scrub_after=None))
        queued = together(*(lambda: scrubbing.queue_due(["main"]) for _ in range(6)))
        assert sorted(queued) == [0, 0, 0, 0, 0, 1]  # type: ignore[type-var]
        task = world.claim(tasks.MANIFEST_SCRUB)
        assert scrubbing.queue_due(["main"]) == 0
        plan = scrubbing.start(task)
        assert plan is not None
        (scrubbed,) = plan.manifests
        scrubbing.prove(plan, scrubbed.id, ())
        scrubbing.finish(task)
        assert world.row(models.Backup, backup.id).verified_result == "ok"
        assert world.tasks.pending() == 0
        assert scrubbing.queue_due(["main"]) == 0
    check_consistent(world)

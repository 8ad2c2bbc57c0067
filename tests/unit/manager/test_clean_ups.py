"""Clean-ups that will never succeed can be given up, and only they."""

from __future__ import annotations

import pytest

from backupfw.db import models
from backupfw.errors import InvalidInput
from backupfw.manager.lineage import lifecycle
from backupfw.manager.outcomes import clean_ups
from backupfw.manager.queue import tasks
from backupfw.manager.queue.claims import Limits
from tests.unit.manager.support import World, check_audit, check_consistent


@pytest.fixture
def world() -> World:
    return World()


def waiting(world: World) -> list[tuple[int, str]]:
    return [(one.id, one.kind) for one in clean_ups.unfinished(world.db, world.conf, Limits())]


def give_up(world: World) -> clean_ups.Left:
    ((task, _),) = waiting(world)
    return clean_ups.give_up(world.db, world.conf, task)


def test_the_points_of_a_volume(world: World) -> None:
    volume = world.volume(keeps_points=True)
    backup = world.backup(volume).id
    ((task, kind),) = waiting(world)
    assert kind == tasks.VOLUME_TIDY
    left = give_up(world)
    assert (left.backend, left.place, left.backups) == ("local", "/v", (backup,))
    assert waiting(world) == []
    with pytest.raises(InvalidInput, match="no task"):
        clean_ups.give_up(world.db, world.conf, task)
    # The volume is backed up as before.
    world.backup(volume, incremental=True)
    check_consistent(world)


@pytest.mark.parametrize("begun", [False, True])
def test_a_backup_whose_store_is_gone(world: World, begun: bool) -> None:
    volume = world.volume()
    full = world.backup(volume)
    second = world.backup(volume, incremental=True)
    world.backups.delete(world.ctx(), full.id)
    if begun:
        task = world.claim(tasks.BACKUP_DELETE)
        assert world.outcomes.deleting.start(task) is not None
        with pytest.raises(InvalidInput, match="A worker has"):
            give_up(world)
        world.outcomes.deleting.fail(task, "the store is away")
        assert world.status(full.id) == "error_deleting"
    left = give_up(world)
    assert left.manifest is not None
    assert left.manifest.maker[1:] == ("p1", volume, full.id)
    assert world.status(full.id) is None or world.row(models.Backup, full.id).deleted
    assert sorted(row.state for row in world.rows(models.Manifest)) == [lifecycle.GONE, lifecycle.LIVE]
    # Its child is as it was.
    assert world.status(second.id) == "available"
    check_audit(world)
    world.backups.delete(world.ctx(), second.id)
    give_up(world)
    check_audit(world)


def test_the_objects_of_a_backup_that_failed(world: World) -> None:
    world.backups.create(world.ctx(), volume_id=world.volume())
    task = world.claim()
    world.outcomes.creating.start(task)
    world.outcomes.creating.fail(task, "the store is away")
    assert [kind for _, kind in waiting(world)] == [tasks.MANIFEST_RELEASE]
    left = give_up(world)
    assert left.manifest is not None
    assert (left.manifest.store, waiting(world)) == ("main", [])
    check_audit(world)


def test_what_is_no_clean_up_is_not_given_up(world: World) -> None:
    world.backups.create(world.ctx(), volume_id=world.volume())
    with pytest.raises(InvalidInput, match="no clean-up"):
        give_up(world)
    assert [kind for _, kind in waiting(world)] == [tasks.BACKUP_CREATE]

"""Marks of damaged objects, on each database."""

from __future__ import annotations

import pytest

from backupfw.db import models
from backupfw.db.session import Database
from backupfw.manager import damage, tasks
from tests.unit.manager.support import World


@pytest.fixture
def world(any_db: Database) -> World:
    return World(database=any_db)


def two_of_a_volume(world: World) -> tuple[str, str]:
    """The manifests of two backups of one volume."""
    volume = world.volume()
    made = [world.backup(volume), world.backup(volume)]
    manifests = [world.row(models.Backup, one.id).manifest_id for one in made]
    return manifests[0], manifests[1]


def test_an_object_leaves_the_list_with_its_last_mark(world: World) -> None:
    outcomes = world.outcomes
    first, second = two_of_a_volume(world)
    place = (world.row(models.Manifest, first).store, world.row(models.Manifest, first).container)
    keys = [f"key/{number}" for number in range(1201)]
    for key in keys[:3]:
        assert outcomes.record_damage(*place, key, "wrong", first)
    for key in keys[3:]:
        outcomes.record_damage(*place, key, "wrong")
    (sharer,) = outcomes.sharers(first)
    assert (sharer.manifest_id, sharer.marked) == (second, frozenset())
    outcomes.mark_damaged(*place, second, [*keys, "not listed"])
    # Again: nothing is lost or doubled.
    outcomes.mark_damaged(*place, second, keys[:3])
    assert outcomes.sharers(first)[0].marked == set(keys)
    assert len(outcomes.damage_of(second)) == 1201
    outcomes.record_verification(second, damage.QUICK, damage.OK)
    outcomes.record_verification(second, damage.FULL, damage.DAMAGED)
    assert len(outcomes.damage_of(second)) == 1201
    outcomes.record_verification(second, damage.FULL, damage.OK)
    assert outcomes.damage_of(second) == []
    # What the other one is marked for is kept.
    assert outcomes.damaged_keys(*place) == set(keys[:3])
    assert [one.key for one in outcomes.damage_of(first)] == keys[:3]
    outcomes.record_verification(first, damage.FULL, damage.OK)
    assert outcomes.damaged_keys(*place) == frozenset()


def test_a_backup_that_is_gone_has_no_mark(world: World) -> None:
    outcomes = world.outcomes
    volume = world.volume()
    made = world.backup(volume)
    manifest = world.row(models.Backup, made.id).manifest_id
    assert outcomes.record_damage("main", "c", "key", "wrong", manifest)
    world.backups.delete(world.ctx(), made.id)
    task = world.claim(tasks.BACKUP_DELETE)
    plan = outcomes.start_delete(task)
    assert plan is not None
    # Its objects are being deleted, and are no damage.
    assert not outcomes.record_damage("main", "c", "other", "gone", manifest)
    outcomes.mark_damaged("main", "c", manifest, ["key"])
    outcomes.finish_delete(task, plan)
    assert world.rows(models.DamageMark) == []
    assert outcomes.unmarked_keys("main", "c", "k") == {"key"}

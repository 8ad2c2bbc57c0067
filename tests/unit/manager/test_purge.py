"""Rows that may go go, and nothing that something still points to."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import update

from backupfw.db import models
from backupfw.db.session import now
from backupfw.manager import audit, purge, tasks
from tests.unit.manager.support import World


@pytest.fixture
def world() -> World:
    return World()


def delete_long_ago(world: World, model: Any, row_id: str, days: int = 100) -> None:
    with world.db.write() as session:
        moment = now(session) - timedelta(days=days)
        session.execute(
            update(model).where(model.id == row_id).values(deleted=True, deleted_at=moment, status="deleted")
        )


def run(world: World, dry_run: bool = False) -> dict[str, int]:
    with world.db.read() as session:
        before = now(session) - timedelta(days=30)
    return purge.run(world.db, before, dry_run)


def test_what_was_deleted_long_ago_goes(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(purge, "BATCH", 2)
    volume = world.volume()
    made = [world.backup(volume, metadata={"a": "b"}).id for _ in range(5)]
    for backup_id in made[:4]:
        world.backups.delete(world.ctx(), backup_id)
        world.run_delete()
    for backup_id in made[:3]:
        delete_long_ago(world, models.Backup, backup_id)
    old, lately = world.snapshot(volume), world.snapshot(volume)
    delete_long_ago(world, models.Snapshot, old)
    delete_long_ago(world, models.Snapshot, lately, days=1)
    gone = world.volume()
    delete_long_ago(world, models.Snapshot, world.snapshot(gone))
    delete_long_ago(world, models.Volume, gone)
    manifests = {row.id for row in world.rows(models.Manifest)}
    expected = {"backups": 3, "snapshots": 2, "volumes": 1}
    assert run(world, dry_run=True) == expected
    assert len(world.rows(models.Backup)) == 5
    assert run(world) == expected
    assert run(world) == {"backups": 0, "snapshots": 0, "volumes": 0}
    assert {row.id for row in world.rows(models.Backup)} == set(made[3:])
    assert {row.id for row in world.rows(models.Snapshot)} == {lately}
    assert {row.id for row in world.rows(models.Volume)} == {volume}
    # The lineage stays: what was deleted is refused for ever.
    assert {row.id for row in world.rows(models.Manifest)} == manifests
    assert audit.run(world.db, 60) == []


def test_what_something_points_to_stays(world: World) -> None:
    volume = world.volume()
    backup = world.backup(volume).id
    # A backup with data, one with a task, a volume with a snapshot that lives.
    delete_long_ago(world, models.Backup, backup)
    busy = world.backups.create(world.ctx(), volume_id=volume).id
    delete_long_ago(world, models.Backup, busy)
    with_snapshot = world.volume()
    world.snapshot(with_snapshot)
    delete_long_ago(world, models.Volume, with_snapshot)
    occupied = world.volume()
    with world.db.write() as session:
        tasks.add(
            session,
            tasks.VOLUME_DELETE,
            resource_id=occupied,
            source_id=None,
            project_id="p1",
            request_id=None,
        )
    delete_long_ago(world, models.Volume, occupied)
    assert run(world) == {"backups": 0, "snapshots": 0, "volumes": 0}

"""Rows that may go go, and nothing that something still points to."""

from __future__ import annotations

import uuid
from datetime import datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import update

from backupfw.db import models
from backupfw.db.session import now
from backupfw.manager.operators import audit, purge
from backupfw.manager.outcomes.volumes import PointsNeeded, VolumeTasks
from backupfw.manager.queue import tasks
from tests.unit.manager.support import World
from tests.unit.manager.test_backups import _run_import, _with_id


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


#: What a purge looks at.
NOUNS = ("backups", "snapshots", "volumes", "manifests", "damaged objects")


def counts(*numbers: int) -> dict[str, int]:
    return dict(zip(NOUNS, numbers, strict=True))


def go_long_ago(world: World, manifest_id: str, days: int = 100) -> None:
    with world.db.write() as session:
        moment = now(session) - timedelta(days=days)
        session.execute(
            update(models.Manifest).where(models.Manifest.id == manifest_id).values(updated_at=moment)
        )


def deleted(world: World, backup_id: str, days: int = 100) -> str:
    """Delete a backup and its objects; returns the id of the manifest."""
    manifest_id = str(world.row(models.Backup, backup_id).manifest_id)
    world.backups.delete(world.ctx(), backup_id)
    world.run_delete()
    delete_long_ago(world, models.Backup, backup_id, days)
    go_long_ago(world, manifest_id, days)
    return manifest_id


def _set_status(world: World, backup_id: str, status: str) -> None:
    with world.db.write() as session:
        session.execute(update(models.Backup).where(models.Backup.id == backup_id).values(status=status))


def manifests(world: World) -> set[str]:
    return {row.id for row in world.rows(models.Manifest)}


def test_what_was_deleted_long_ago_goes(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(purge, "BATCH", 2)
    volume = world.volume()
    made = [world.backup(volume, metadata={"a": "b"}).id for _ in range(6)]
    for backup_id in made[:4]:
        deleted(world, backup_id)
    lately = deleted(world, made[4], days=1)
    living = str(world.row(models.Backup, made[5]).manifest_id)
    old, young = world.snapshot(volume), world.snapshot(volume)
    delete_long_ago(world, models.Snapshot, old)
    delete_long_ago(world, models.Snapshot, young, days=1)
    gone = world.volume()
    delete_long_ago(world, models.Snapshot, world.snapshot(gone))
    delete_long_ago(world, models.Volume, gone)
    # One manifest of the container stays, whichever it is.
    last = max(manifests(world))
    kept = {lately, living, last}
    expected = counts(4, 2, 1, 6 - len(kept), 0)
    assert run(world, dry_run=True) == expected
    assert len(world.rows(models.Backup)) == 6
    assert run(world) == expected
    assert run(world) == counts(0, 0, 0, 0, 0)
    assert {row.id for row in world.rows(models.Backup)} == set(made[4:])
    assert {row.id for row in world.rows(models.Snapshot)} == {young}
    assert {row.id for row in world.rows(models.Volume)} == {volume}
    assert manifests(world) == kept
    assert audit.run(world.db, 60) == []


def test_manifests_that_a_guard_still_needs_stay(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(purge, "_last_of_containers", lambda _db: frozenset())
    # A fork of the lineage: three that live share through one that is gone.
    volume = world.volume()
    root = world.backup(volume).id
    children = []
    for _ in range(3):
        children.append(world.backup(volume, incremental=True).id)
        _set_status(world, children[-1], "error")
    for child in children:
        _set_status(world, child, "available")
    fork = deleted(world, root)
    # Its maker's row is there: deleted lately.
    other = world.backup(world.volume()).id
    young = deleted(world, other, days=1)
    go_long_ago(world, young)
    # It went lately, though its maker was deleted long ago.
    another = world.backup(world.volume()).id
    late = deleted(world, another)
    go_long_ago(world, late, days=1)
    # In its volume another one is being made, or removed.
    busy = world.volume()
    beside = deleted(world, world.backup(busy).id)
    world.backups.create(world.ctx(), volume_id=busy)
    task = world.claim(tasks.BACKUP_CREATE)
    world.outcomes.creating.start(task)
    removing = world.volume()
    with_release = deleted(world, world.backup(removing).id)
    released = world.backup(removing).id
    world.backups.delete(world.ctx(), released)
    deletion = world.claim(tasks.BACKUP_DELETE)
    world.outcomes.deleting.start(deletion)
    before = manifests(world)
    assert run(world)["manifests"] == 0
    assert manifests(world) == before
    # Each was kept for its reason only.
    world.outcomes.creating.finish(task, world.result(world.outcomes.creating.start(task)))
    plan = world.outcomes.deleting.start(deletion)
    assert plan is not None
    world.outcomes.deleting.finish(deletion, plan)
    assert run(world)["manifests"] == 2
    assert before - manifests(world) == {beside, with_release}
    go_long_ago(world, late)
    delete_long_ago(world, models.Backup, other)
    assert run(world)["manifests"] == 2
    deleted(world, children[0])
    assert run(world)["manifests"] == 2
    assert before - manifests(world) >= {beside, with_release, late, young, fork}
    assert audit.run(world.db, 60) == []


@pytest.mark.parametrize("reason", [{"state": "live"}, {"in_tree": True}, "a backup points to it"])
def test_one_reason_is_enough_for_a_manifest_to_stay(
    world: World, monkeypatch: pytest.MonkeyPatch, reason: Any
) -> None:
    monkeypatch.setattr(purge, "_last_of_containers", lambda _db: frozenset())
    other = world.backup(world.volume()).id
    manifest = deleted(world, world.backup(world.volume()).id)
    own = world.row(models.Backup, other).manifest_id

    def change(model: Any, row_id: str, **values: Any) -> None:
        with world.db.write() as session:
            session.execute(update(model).where(model.id == row_id).values(**values))

    if isinstance(reason, str):
        change(models.Backup, other, manifest_id=manifest)
    else:
        change(models.Manifest, manifest, **reason)
    assert run(world)["manifests"] == 0
    change(models.Backup, other, manifest_id=own)
    change(models.Manifest, manifest, state="gone", in_tree=False)
    assert run(world)["manifests"] == 1
    assert manifests(world) == {own}


def test_a_key_that_was_given_up_is_known_for_ever(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(purge, "_last_of_containers", lambda _db: frozenset())
    made = world.backups.create(world.ctx(), volume_id=world.volume())
    task = world.claim(tasks.BACKUP_CREATE)
    plan = world.outcomes.creating.start(task)
    world.outcomes.creating.announce_manifest(task, "k/lost")
    world.outcomes.creating.give_up_announced(task, ["k/lost"])
    world.outcomes.creating.finish(task, world.result(plan))
    deleted(world, made.id)
    for row_id in manifests(world):
        go_long_ago(world, row_id)
    assert run(world)["manifests"] == 1
    assert [row.key for row in world.rows(models.Manifest)] == ["k/lost"]


def test_a_key_that_an_older_worker_left_open_is_given_up_with_its_backup(world: World) -> None:
    made = world.backups.create(world.ctx(), volume_id=world.volume())
    task = world.claim(tasks.BACKUP_CREATE)
    plan = world.outcomes.creating.start(task)
    world.outcomes.creating.announce_manifest(task, "k/lost")
    world.outcomes.creating.finish(task, world.result(plan))
    run(world)

    def state() -> str:
        (row,) = (row for row in world.rows(models.Manifest) if row.key == "k/lost")
        return row.state

    assert state() == "announced", "its backup is there"
    delete_long_ago(world, models.Backup, made.id)
    assert [one.problem for one in audit.run(world.db, 60) if "announced" in one.problem]
    run(world, dry_run=True)
    assert state() == "announced"
    run(world)
    assert state() == "gone"
    assert not [one for one in audit.run(world.db, 60) if "announced" in one.problem]


def test_a_damaged_object_is_known_while_a_manifest_may_name_it(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(purge, "BATCH", 2)
    volume, other = world.volume(), world.volume()
    first = world.backup(volume).id
    second = world.backup(volume, incremental=True).id
    living = world.backup(other).id
    with world.db.read() as session:
        long_ago = now(session) - timedelta(days=100)
    put = [world.row(models.Backup, one).service_metadata for one in (first, second, living)]

    def mark(number: int, key: str, found_at: datetime, store: str = "main") -> None:
        place = {"store": store, "container": "volumebackups", "key": key, "found_at": found_at}
        with world.db.write() as session:
            session.add(models.DamagedObject(digest=str(number), reason="bad", **place))

    for number, key in enumerate(put):
        mark(number, key.replace("/manifest", "/00000000/map"), long_ago)
    mark(3, put[0], long_ago + timedelta(days=99))
    # There never was a backup of the volume in this store.
    mark(4, put[2], long_ago, "offsite")
    marked = world.row(models.Backup, second).manifest_id
    with world.db.write() as session:
        session.add(models.DamageMark(manifest_id=marked, digest="1"))
    deleted(world, first)
    # What the first one put the second one may name.
    assert run(world, dry_run=True)["damaged objects"] == 1
    assert run(world)["damaged objects"] == 1
    assert {row.digest for row in world.rows(models.DamagedObject)} == {"0", "1", "2", "3"}
    deleted(world, second, days=1)
    assert run(world)["damaged objects"] == 2
    assert {row.digest for row in world.rows(models.DamagedObject)} == {"2", "3"}
    assert world.rows(models.DamageMark) == []


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
    assert run(world) == counts(0, 0, 0, 0, 0)


def test_the_point_of_a_backup_is_known_as_long_as_its_manifest(world: World) -> None:
    """Else what the storage keeps for it would stay for ever when the last duplicate goes."""
    volume = world.volume(keeps_points=True)
    backup, ctx = world.backup(volume), world.ctx(admin=True)
    service, url = world.backups.export_record(ctx, backup.id)
    duplicate = str(uuid.uuid4())
    world.backups.import_record(ctx, backup_service=service, backup_url=_with_id(url, duplicate))
    _run_import(world)
    manifest = str(world.row(models.Backup, backup.id).manifest_id)
    world.backups.delete(ctx, backup.id)
    world.run_delete()
    delete_long_ago(world, models.Backup, backup.id)
    run(world)
    tidy = world.claim(tasks.VOLUME_TIDY)
    volumes = VolumeTasks(world.db)
    # Its row may be purged as soon as that is done.
    assert world.row(models.Backup, backup.id) is not None
    volumes.finish_tidy(tidy)
    assert run(world)["backups"] == 1
    world.backups.delete(ctx, duplicate)
    world.run_delete()
    delete_long_ago(world, models.Backup, duplicate)
    go_long_ago(world, manifest)
    # No backup is left in the container but this one, which keeps its last manifest.
    world.backup(world.volume())
    tidy = world.claim(tasks.VOLUME_TIDY)
    assert run(world)["manifests"] == 0
    assert volumes.needed_points(tidy) == PointsNeeded(
        frozenset(), frozenset(), frozenset({backup.id, duplicate})
    )
    volumes.finish_tidy(tidy)
    assert run(world)["backups"] == 1


def test_a_damaged_object_that_is_marked_meanwhile_stays(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    backup = world.row(models.Backup, world.backup(world.volume()).id)
    key = str(backup.service_metadata)
    with world.db.write() as session:
        place = {"store": "main", "container": "volumebackups", "key": key}
        found_at = now(session) - timedelta(days=100)
        session.add(models.DamagedObject(digest="1", reason="bad", found_at=found_at, **place))

    def unnamed(*_args: Any) -> list[str]:
        """Nothing named it; then a manifest that does is committed."""
        with world.db.write() as session:
            session.merge(models.DamageMark(manifest_id=backup.manifest_id, digest="1"))
        return ["1"]

    monkeypatch.setattr(purge, "_unnamed", unnamed)
    for dry_run in (False, True):
        assert run(world, dry_run)["damaged objects"] == 0, "what stays is not counted"
    assert [row.digest for row in world.rows(models.DamagedObject)] == ["1"]
    assert [row.digest for row in world.rows(models.DamageMark)] == ["1"]

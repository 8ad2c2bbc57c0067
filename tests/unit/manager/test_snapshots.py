"""Use cases of snapshots and their tasks."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from backupfw.db import models
from backupfw.errors import (
    InvalidInput,
    InvalidSnapshot,
    InvalidVolume,
    QuotaExceeded,
    SnapshotNotFound,
    TaskCancelled,
    VolumeNotFound,
)
from backupfw.manager.queue import tasks
from backupfw.manager.rules import volume_rules
from tests.unit.manager.catalogue import ADMIN, ALICE, BOB, Catalogue, make_conf, make_database

STATUSES = ["creating", "available", "backing-up", "deleting", "error", "error_deleting"]
VOLUME_STATUSES = [
    "creating", "available", "in-use", "backing-up", "restoring-backup", "extending", "deleting", "error",
]  # fmt: skip


@pytest.fixture
def world() -> Iterator[Catalogue]:
    db = make_database()
    yield Catalogue(db, make_conf())
    db.close()


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("status", VOLUME_STATUSES)
def test_of_which_volumes_snapshots_can_be_made(world: Catalogue, status: str, force: bool) -> None:
    volume = world.volume(status=status)
    if status == "available" or (status == "in-use" and force):
        made = world.snapshots.create(ALICE, volume_id=volume, force=force)
        assert (made.status, made.volume_id) == ("creating", volume)
        assert world.status(models.Volume, volume) == status
    else:
        with pytest.raises(InvalidVolume, match=f"current status is: {status}"):
            world.snapshots.create(ALICE, volume_id=volume, force=force)
        assert world.kinds() == []


def test_a_snapshot_is_made_by_a_task(world: Catalogue) -> None:
    volume = world.volume(size=2)
    made = world.snapshots.create(ALICE, volume_id=volume, name="n", description="d", metadata={"a": "b"})
    assert (made.size, made.project_id, made.user_id, made.metadata) == (2, "blue", "alice", {"a": "b"})
    assert (made.display_name, made.display_description, made.temporary) == ("n", "d", False)
    # Nobody may start writing while an unattached volume is copied.
    with pytest.raises(InvalidVolume, match="is being copied"):
        world.volumes.attachments.attach(ALICE, volume, host_name="h")
    task = world.must_claim("snapshot.create")
    assert (task.resource_id, task.source_id) == (made.id, volume)
    plan = world.work.start_create_snapshot(task)
    assert (plan.snapshot.id, plan.volume.id, plan.in_use) == (made.id, volume, False)
    world.work.finish_create_snapshot(task, "/s")
    after = world.snapshots.get(ALICE, made.id)
    assert (after.status, after.location) == ("available", "/s")
    world.volumes.attachments.attach(ALICE, volume, host_name="h")


def test_a_worker_knows_that_somebody_may_write(world: Catalogue) -> None:
    volume = world.volume()
    world.volumes.attachments.attach(ALICE, volume, host_name="h")
    world.snapshots.create(ALICE, volume_id=volume, force=True)
    assert world.work.start_create_snapshot(world.must_claim("snapshot.create")).in_use


def test_a_snapshot_that_cannot_be_made_is_in_error(world: Catalogue) -> None:
    made = world.snapshots.create(ALICE, volume_id=world.volume())
    world.work.fail(world.must_claim("snapshot.create"), "moved")
    assert world.status(models.Snapshot, made.id) == "error"
    with pytest.raises(InvalidSnapshot, match="has no storage"):
        world.snapshots.reset_status(ADMIN, made.id, "available")


def test_quota_is_the_volumes_projects(world: Catalogue) -> None:
    volume = world.volume(size=3)
    world.quotas.update("blue", {"gigabytes": 5})
    with pytest.raises(QuotaExceeded, match="Requested 3G, quota is 5G and 3G has been consumed"):
        world.snapshots.create(ADMIN, volume_id=volume)
    world.quotas.update("blue", {"gigabytes": 6})
    assert world.snapshots.create(ADMIN, volume_id=volume).project_id == "blue"
    world.quotas.update("blue", {"gigabytes": -1, "snapshots": 1})
    with pytest.raises(QuotaExceeded, match=r"^Maximum number of snapshots allowed \(1\) exceeded$"):
        world.snapshots.create(ALICE, volume_id=volume)


@pytest.mark.parametrize("status", STATUSES)
def test_which_snapshots_can_be_deleted(world: Catalogue, status: str) -> None:
    snapshot = world.snapshot(world.volume(), status=status)
    if status not in ("available", "error", "error_deleting"):
        with pytest.raises(InvalidSnapshot, match=f'the current status is "{status}"'):
            world.snapshots.delete(ALICE, snapshot)
        return
    world.snapshots.delete(ALICE, snapshot)
    task = world.must_claim("snapshot.delete")
    assert world.work.start_delete_snapshot(task).snapshot.location == f"/snapshots/{snapshot}"
    world.work.finish_delete_snapshot(task)
    with pytest.raises(SnapshotNotFound):
        world.snapshots.get(ALICE, snapshot)


@pytest.mark.parametrize("status", STATUSES)
def test_force_deletes_any_status(world: Catalogue, status: str) -> None:
    snapshot = world.snapshot(world.volume(), status=status)
    world.snapshots.force_delete(ADMIN, snapshot)
    assert world.run_all() == ["snapshot.delete"]
    assert world.status(models.Snapshot, snapshot) == "deleted"


def test_force_delete_during_a_cascade_changes_nothing(world: Catalogue) -> None:
    volume = world.volume()
    snapshot = world.snapshot(volume)
    world.volumes.delete(ALICE, volume, cascade=True)
    running = world.must_claim("snapshot.delete")
    world.snapshots.force_delete(ADMIN, snapshot)
    assert world.claim() is None
    world.work.finish_delete_snapshot(running)
    assert world.run_all() == ["volume.delete"]


def test_force_delete_cancels_the_making(world: Catalogue) -> None:
    made = world.snapshots.create(ALICE, volume_id=world.volume())
    task = world.must_claim("snapshot.create")
    world.snapshots.force_delete(ADMIN, made.id)
    with pytest.raises(TaskCancelled):
        world.work.finish_create_snapshot(task, "/s")
    world.tasks.discard(task)
    assert world.run_all() == ["snapshot.delete"]


@pytest.mark.parametrize("status", ["available", "error", "error_deleting"])
def test_a_reset_gives_a_snapshot_the_status(world: Catalogue, status: str) -> None:
    snapshot = world.snapshot(world.volume(), status="error")
    world.snapshots.reset_status(ADMIN, snapshot, status)
    assert world.status(models.Snapshot, snapshot) == status


@pytest.mark.parametrize("status", ["", "in-use", "backing-up", "deleted"])
def test_what_no_reset_can_set(world: Catalogue, status: str) -> None:
    snapshot = world.snapshot(world.volume())
    with pytest.raises(InvalidInput):
        world.snapshots.reset_status(ADMIN, snapshot, status)


def test_a_reset_ends_the_snapshots_own_task(world: Catalogue) -> None:
    made = world.snapshots.create(ALICE, volume_id=world.volume())
    task = world.must_claim("snapshot.create")
    world.snapshots.reset_status(ADMIN, made.id, "error")
    with pytest.raises(TaskCancelled):
        world.work.finish_create_snapshot(task, "/s")
    assert world.status(models.Snapshot, made.id) == "error"


def test_a_snapshot_that_a_backup_reads_is_not_reset(world: Catalogue) -> None:
    volume = world.volume()
    snapshot = world.snapshot(volume)
    with world.db.write() as session:
        volume_rules.begin_backup(session, volume, ALICE, force=False, snapshot_id=snapshot)
        tasks.add(
            session, tasks.BACKUP_CREATE, resource_id=volume, source_id=snapshot, project_id="blue",
            request_id=None,
        )  # fmt: skip
    with pytest.raises(InvalidSnapshot, match="reset the backup's status instead"):
        world.snapshots.reset_status(ADMIN, snapshot, "available")


def test_other_projects_and_hidden_snapshots_are_not_there(world: Catalogue) -> None:
    volume = world.volume()
    for ctx, snapshot in ((BOB, world.snapshot(volume)), (ADMIN, world.snapshot(volume, temporary=True))):
        calls: list[Callable[[], object]] = [
            lambda ctx=ctx, snapshot=snapshot: world.snapshots.get(ctx, snapshot),
            lambda ctx=ctx, snapshot=snapshot: world.snapshots.update(ctx, snapshot, name="", description=""),
            lambda ctx=ctx, snapshot=snapshot: world.snapshots.delete(ctx, snapshot),
            lambda ctx=ctx, snapshot=snapshot: world.snapshots.force_delete(ctx, snapshot),
            lambda ctx=ctx, snapshot=snapshot: world.snapshots.reset_status(ctx, snapshot, "error"),
            lambda ctx=ctx, snapshot=snapshot: world.snapshots.metadata.get(ctx, snapshot),
            lambda ctx=ctx, snapshot=snapshot: world.snapshots.metadata.set(ctx, snapshot, {"a": "b"}),
        ]
        for call in calls:
            with pytest.raises(SnapshotNotFound):
                call()
    with pytest.raises(VolumeNotFound):
        world.snapshots.create(BOB, volume_id=volume)


def test_a_listing_shows_the_projects_snapshots_and_no_hidden_ones(world: Catalogue) -> None:
    one, two = world.volume(), world.volume(BOB)
    mine = [world.snapshot(one), world.snapshot(one)]
    world.snapshot(one, temporary=True)
    theirs = world.snapshot(two, BOB)
    world.snapshots.metadata.set(ALICE, mine[0], {"a": "b"})

    def ids(ctx: object = ALICE, **values: object) -> list[str]:
        return [item.id for item in world.snapshots.list(ctx, **values).items]  # type: ignore[arg-type]

    assert ids() == mine[::-1]
    assert ids(ADMIN, all_tenants=True) == [theirs, *mine[::-1]]
    assert ids(ADMIN, all_tenants=True, filters={"volume_id": two}) == [theirs]
    assert ids(BOB, all_tenants=True) == [theirs]
    assert ids(filters={"metadata": "{'a': 'b'}"}) == [mine[0]]
    assert ids(limit=1, marker=mine[1]) == [mine[0]]
    assert world.snapshots.list(ALICE, limit=0, with_count=True).total == 2


def test_a_snapshots_texts_and_metadata_can_change(world: Catalogue) -> None:
    snapshot = world.snapshot(world.volume())
    changed = world.snapshots.update(ALICE, snapshot, name="n", description="d", metadata={"a": "b"})
    assert (changed.display_name, changed.display_description, changed.metadata) == ("n", "d", {"a": "b"})
    assert world.snapshots.metadata.set(ALICE, snapshot, {"c": "d"}) == {"a": "b", "c": "d"}
    assert world.snapshots.metadata.replace(ALICE, snapshot, {"e": "f"}) == {"e": "f"}
    world.snapshots.metadata.delete_key(ALICE, snapshot, "e")
    assert world.snapshots.metadata.get(ALICE, snapshot) == {}

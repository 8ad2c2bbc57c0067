"""Use cases of volumes and their tasks."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from backupfw.db import models
from backupfw.errors import (
    AttachmentNotFound,
    BackupfwError,
    BackupNotFound,
    InvalidBackup,
    InvalidInput,
    InvalidSnapshot,
    InvalidVolume,
    KeyNotFound,
    QuotaExceeded,
    SnapshotNotFound,
    TaskCancelled,
    TaskLost,
    VolumeNotFound,
)
from backupfw.manager.lineage import lifecycle
from backupfw.manager.rules.volume_rules import GIB
from backupfw.manager.usecases.backups import BackupManager
from tests.unit.manager.catalogue import ADMIN, ALICE, BOB, Catalogue, make_conf, make_database

STATUSES = [
    "creating", "available", "in-use", "backing-up", "restoring-backup", "extending", "deleting", "error",
    "error_restoring", "error_extending", "error_deleting",
]  # fmt: skip
DELETABLE = {"available", "error", "error_restoring", "error_extending", "error_deleting"}
MISSING = "00000000-0000-4000-8000-000000000000"


@pytest.fixture
def world() -> Iterator[Catalogue]:
    db = make_database()
    yield Catalogue(db, make_conf())
    db.close()


def test_a_volume_is_made_by_a_task(world: Catalogue) -> None:
    world.types.create(ADMIN, name="t")
    volume = world.volumes.create(
        ALICE, size=2, name="n", description="d", metadata={"a": "b"}, volume_type="t"
    )
    assert (volume.status, volume.size, volume.length, volume.location) == ("creating", 2, 2 * GIB, None)
    assert (volume.project_id, volume.user_id, volume.availability_zone) == ("blue", "alice", "nova")
    assert (volume.display_name, volume.display_description, volume.volume_type) == ("n", "d", "t")
    assert volume.metadata == {"a": "b"}
    assert len(world.woken) == 1
    task = world.must_claim("volume.create")
    assert (task.resource_id, task.source_id, task.request_id) == (volume.id, None, ALICE.request_id)
    plan = world.work.start_create(task)
    assert plan.volume == volume
    assert (plan.source_volume, plan.source_snapshot) == (None, None)
    world.work.finish_create(task, "/v")
    made = world.volumes.get(ALICE, volume.id)
    assert (made.status, made.location) == ("available", "/v")
    assert world.kinds() == []


def test_a_volume_that_cannot_be_made_is_in_error(world: Catalogue) -> None:
    volume = world.volumes.create(ALICE, size=1)
    world.work.fail(world.must_claim("volume.create"), "no space")
    assert world.status(models.Volume, volume.id) == "error"
    assert world.kinds() == []


@pytest.mark.parametrize("size", [None, 0, -1, 1 << 31])
def test_a_size_is_needed(world: Catalogue, size: int | None) -> None:
    with pytest.raises(InvalidInput):
        world.volumes.create(ALICE, size=size)
    assert world.volumes.list(ALICE).items == []


def test_a_volume_with_two_sources_is_refused(world: Catalogue) -> None:
    with pytest.raises(InvalidInput, match="one snapshot, volume or backup only"):
        world.volumes.create(ALICE, size=1, snapshot_id=MISSING, source_volid=MISSING)


def test_sources_must_be_there_for_the_caller(world: Catalogue) -> None:
    source = world.volume()
    snapshot, backup = world.snapshot(source), world.backup()
    for wrong, ctx in ((MISSING, ALICE), (source, BOB)):
        with pytest.raises(VolumeNotFound):
            world.volumes.create(ctx, size=1, source_volid=wrong)
    for wrong, ctx in ((MISSING, ALICE), (snapshot, BOB)):
        with pytest.raises(SnapshotNotFound):
            world.volumes.create(ctx, size=1, snapshot_id=wrong)
    for wrong, ctx in ((MISSING, ALICE), (backup, BOB)):
        with pytest.raises(BackupNotFound):
            world.volumes.create(ctx, size=1, backup_id=wrong)


def test_a_volume_from_a_snapshot(world: Catalogue) -> None:
    source = world.volume(size=3)
    snapshot = world.snapshot(source)
    with pytest.raises(InvalidInput, match="2GB cannot be smaller than the snapshot size 3GB"):
        world.volumes.create(ALICE, size=2, snapshot_id=snapshot)
    made = world.volumes.create(ALICE, size=None, snapshot_id=snapshot)
    assert (made.size, made.snapshot_id) == (3, snapshot)
    larger = world.volumes.create(ALICE, size=4, snapshot_id=snapshot)
    assert larger.length == 4 * GIB
    task = world.must_claim("volume.create")
    assert task.source_id == snapshot
    plan = world.work.start_create(task)
    assert plan.source_snapshot is not None
    assert plan.source_volume is not None
    assert (plan.source_snapshot.id, plan.source_volume.id) == (snapshot, source)
    # The other one, and the snapshot's delete, wait.
    world.snapshots.delete(ALICE, snapshot)
    assert world.claim() is None
    world.work.finish_create(task, "/v")
    assert world.run_all() == ["volume.create", "snapshot.delete"]


def test_a_snapshot_must_be_available_to_become_a_volume(world: Catalogue) -> None:
    snapshot = world.snapshot(world.volume(), status="backing-up")
    with pytest.raises(InvalidSnapshot, match='current status is "backing-up"'):
        world.volumes.create(ALICE, size=1, snapshot_id=snapshot)


def test_a_copy_of_a_volume_is_not_disturbed(world: Catalogue) -> None:
    source = world.volume(size=2)
    made = world.volumes.create(ALICE, size=2, source_volid=source)
    assert made.source_volid == source
    with pytest.raises(InvalidVolume, match="is being copied"):
        world.volumes.attachments.attach(ALICE, source, host_name="h")
    world.volumes.extend(ALICE, source, new_size=3)
    task = world.must_claim("volume.create")
    plan = world.work.start_create(task)
    assert plan.source_volume is not None
    assert (plan.source_volume.id, plan.source_volume.length, plan.source_snapshot) == (source, 2 * GIB, None)
    assert world.claim() is None
    world.work.finish_create(task, "/v")
    assert world.run_all() == ["volume.extend"]
    world.volumes.attachments.attach(ALICE, source, host_name="h")
    with pytest.raises(InvalidVolume, match='current status is "in-use"'):
        world.volumes.create(ALICE, size=3, source_volid=source)


def test_a_volume_from_a_backup_stays_creating_until_the_restore_is_done(world: Catalogue) -> None:
    backup = world.backup(size=2, length=2 * GIB)
    with pytest.raises(InvalidInput, match="1GB cannot be smaller than the backup size 2GB"):
        world.volumes.create(ALICE, size=1, backup_id=backup)
    made = world.volumes.create(ALICE, size=3, backup_id=backup, name="n", metadata={"a": "b"})
    assert (made.status, made.display_name, made.length) == ("creating", "n", 3 * GIB)
    assert made.metadata == {"a": "b", "src_backup_id": backup}
    assert world.status(models.Backup, backup) == "restoring"
    task = world.must_claim("backup.restore")
    assert (task.resource_id, task.source_id) == (backup, made.id)
    with pytest.raises(InvalidBackup, match=r"^Backup status must be available$"):
        world.volumes.create(ALICE, size=3, backup_id=backup)
    assert len(world.volumes.list(ALICE).items) == 1


def test_a_volume_beyond_the_quota_is_refused(world: Catalogue) -> None:
    world.quotas.update("blue", {"volumes": 1})
    world.volume()
    with pytest.raises(QuotaExceeded, match=r"^Maximum number of volumes allowed \(1\) exceeded"):
        world.volumes.create(ALICE, size=1)


def test_adopted_storage_is_a_volume_once(world: Catalogue) -> None:
    volume = world.volumes.adopt(ALICE, location="/dev/x", length=GIB + 1, name="n")
    assert (volume.status, volume.size, volume.length, volume.adopted) == ("available", 2, GIB + 1, True)
    assert volume.location == "/dev/x"
    assert world.kinds() == []
    with pytest.raises(InvalidInput, match=f"is volume {volume.id} already"):
        world.volumes.adopt(BOB, location="/dev/x", length=GIB)
    assert world.volumes.adopt(ADMIN, location="/dev/y", length=1, project_id="green").project_id == "green"
    with pytest.raises(InvalidInput):
        world.volumes.adopt(ALICE, location="/dev/z", length=0)
    world.volumes.delete(ALICE, volume.id)
    assert world.run_all() == ["volume.delete"]
    assert world.volumes.adopt(BOB, location="/dev/x", length=GIB).status == "available"


def test_racing_adoptions_of_one_place_make_one_volume(tmp_path: Path) -> None:
    db = make_database(tmp_path)
    world = Catalogue(db, make_conf())
    start = threading.Barrier(6)

    def adopt(number: int) -> bool:
        start.wait()
        try:
            world.volumes.adopt(ALICE if number % 2 else BOB, location="/dev/x", length=GIB)
        except InvalidInput:
            return False
        return True

    with ThreadPoolExecutor(6) as pool:
        assert sum(pool.map(adopt, range(6))) == 1
    db.close()


def test_other_projects_volumes_are_not_there(world: Catalogue) -> None:
    volume = world.volume()
    calls: list[Callable[[], object]] = [
        lambda: world.volumes.get(BOB, volume),
        lambda: world.volumes.update(BOB, volume, name="x", description=None),
        lambda: world.volumes.delete(BOB, volume),
        lambda: world.volumes.force_delete(BOB, volume),
        lambda: world.volumes.extend(BOB, volume, new_size=9),
        lambda: world.volumes.attachments.attach(BOB, volume),
        lambda: world.volumes.attachments.detach(BOB, volume),
        lambda: world.volumes.reset_status(BOB, volume, "error"),
        lambda: world.volumes.metadata.get(BOB, volume),
        lambda: world.volumes.metadata.set(BOB, volume, {}),
        lambda: world.volumes.metadata.replace(BOB, volume, {}),
        lambda: world.volumes.metadata.delete_key(BOB, volume, "a"),
    ]
    for call in calls:
        with pytest.raises(VolumeNotFound, match=f"^Volume {volume} could not be found.$"):
            call()
    assert world.volumes.get(ADMIN, volume).status == "available"
    assert world.kinds() == []


def test_a_listing_shows_the_projects_volumes_that_match(world: Catalogue) -> None:
    mine = [world.volume(size=size) for size in (1, 2, 3)]
    theirs = world.volume(BOB)
    world.volumes.metadata.set(ALICE, mine[0], {"tier": "gold", "x": "y"})
    world.volumes.update(ALICE, mine[1], name="n", description=None)
    volumes = world.volumes

    def ids(ctx: Any = ALICE, **values: Any) -> list[str]:
        return [volume.id for volume in volumes.list(ctx, **values).items]

    assert ids() == mine[::-1]
    assert ids(all_tenants=True) == mine[::-1]
    assert ids(ADMIN) == []
    assert ids(ADMIN, all_tenants=True) == [theirs, *mine[::-1]]
    assert ids(sort=[("size", "asc")], limit=2) == mine[:2]
    assert ids(sort=[("size", "asc")], marker=mine[0]) == mine[1:]
    assert ids(offset=1, limit=1) == [mine[1]]
    assert ids(filters={"name": "n"}) == [mine[1]]
    assert ids(filters={"status": "error"}) == []
    assert ids(filters={"metadata": "{'tier': 'gold'}"}) == [mine[0]]
    assert ids(filters={"metadata": '{"tier": "gold", "x": "z"}'}) == []
    assert ids(filters={"metadata": "{}"}) == mine[::-1]
    page = volumes.list(ALICE, limit=1, with_count=True)
    assert (len(page.items), page.total) == (1, 3)
    assert volumes.list(ALICE, detail=True).items[2].metadata == {"tier": "gold", "x": "y"}


@pytest.mark.parametrize(
    "text", ["", "x", "[1]", "{1: 2}", "{'a': 1}", "__import__('os')", "(" * 4000, "{[]: 1}"]
)
def test_a_metadata_filter_that_is_none_matches_nothing(world: Catalogue, text: str) -> None:
    world.volume()
    assert world.volumes.list(ALICE, filters={"metadata": text}).items == []


@pytest.mark.parametrize("text", [r"{'a': '\ud800'}", r"{'\ud800': 'a'}", r"{'a': 'x\x00'}"])
def test_a_metadata_filter_with_texts_that_no_database_keeps(world: Catalogue, text: str) -> None:
    with pytest.raises(InvalidInput, match=r"^metadata: "):
        world.volumes.list(ALICE, filters={"metadata": text})


def test_a_volumes_texts_can_change(world: Catalogue) -> None:
    volume = world.volume()
    world.volumes.metadata.set(ALICE, volume, {"a": "1"})
    changed = world.volumes.update(ALICE, volume, name="n", description="d")
    assert (changed.display_name, changed.display_description, changed.metadata) == ("n", "d", {"a": "1"})
    assert changed.updated_at is not None
    changed = world.volumes.update(ALICE, volume, name=None, description=None, metadata={"b": "2"})
    assert (changed.display_name, changed.metadata) == (None, {"b": "2"})


def test_metadata_of_one_volume_can_change(world: Catalogue) -> None:
    volume, other = world.volume(), world.volume()
    world.volumes.metadata.set(ALICE, other, {"a": "other"})
    assert world.volumes.metadata.set(ALICE, volume, {"a": "1", "b": "2"}) == {"a": "1", "b": "2"}
    assert world.volumes.metadata.set(ALICE, volume, {"b": "3"}) == {"a": "1", "b": "3"}
    assert world.volumes.metadata.replace(ALICE, volume, {"b": "4", "c": "5"}) == {"b": "4", "c": "5"}
    world.volumes.metadata.delete_key(ALICE, volume, "b")
    with pytest.raises(KeyNotFound):
        world.volumes.metadata.delete_key(ALICE, volume, "b")
    assert world.volumes.metadata.get(ALICE, volume) == {"c": "5"}
    assert world.volumes.metadata.replace(ALICE, volume, {}) == {}
    assert world.volumes.metadata.get(ALICE, other) == {"a": "other"}


def test_racing_changes_of_one_key_take_turns(tmp_path: Path) -> None:
    db = make_database(tmp_path)
    world = Catalogue(db, make_conf())
    volume = world.volume()
    start = threading.Barrier(6)

    def change(number: int) -> None:
        start.wait()
        world.volumes.metadata.set(ALICE, volume, {"a": str(number), str(number): "x"})

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(change, range(6)))
    assert set(world.volumes.metadata.get(ALICE, volume)) == {"a", *"012345"}
    db.close()


@pytest.mark.parametrize("status", STATUSES)
def test_which_volumes_can_be_deleted(world: Catalogue, status: str) -> None:
    volume = world.volume(status=status)
    if status not in DELETABLE:
        with pytest.raises(InvalidVolume, match=f'the current status is "{status}"'):
            world.volumes.delete(ALICE, volume)
        assert world.status(models.Volume, volume) == status
        return
    world.volumes.delete(ALICE, volume)
    assert world.status(models.Volume, volume) == "deleting"
    task = world.must_claim("volume.delete")
    stored = world.work.start_delete(task)
    assert (stored.id, stored.location) == (volume, f"/volumes/{volume}")
    world.work.finish_delete(task)
    with pytest.raises(VolumeNotFound):
        world.volumes.get(ALICE, volume)
    assert world.status(models.Volume, volume) == "deleted"


def test_a_delete_that_fails_can_be_asked_for_again(world: Catalogue) -> None:
    volume = world.volume()
    world.volumes.delete(ALICE, volume)
    world.work.fail(world.must_claim("volume.delete"), "busy")
    assert world.status(models.Volume, volume) == "error_deleting"
    world.volumes.delete(ALICE, volume)
    assert world.run_all() == ["volume.delete"]


@pytest.mark.parametrize("force", [False, True])
def test_attached_volumes_and_ones_with_snapshots_are_not_deleted(world: Catalogue, force: bool) -> None:
    delete = world.volumes.force_delete if force else world.volumes.delete
    attached = world.volume(status="error")
    world.attach_behind(attached)
    with pytest.raises(InvalidVolume, match="is attached"):
        delete(ALICE, attached)
    parent = world.volume()
    world.snapshot(parent)
    with pytest.raises(InvalidVolume, match="still has 1 dependent snapshots"):
        delete(ALICE, parent)
    assert world.status(models.Volume, parent) == "available"
    assert world.kinds() == []


def test_hidden_snapshots_do_not_hold_a_volume(world: Catalogue) -> None:
    volume = world.volume()
    world.snapshot(volume, temporary=True)
    world.volumes.delete(ALICE, volume)
    assert world.run_all() == ["volume.delete"]


def test_cascade_deletes_the_snapshots_first(world: Catalogue) -> None:
    volume = world.volume()
    snapshots = [world.snapshot(volume) for _ in range(2)]
    third = world.snapshot(volume)
    world.snapshots.delete(ALICE, third)
    world.volumes.delete(ALICE, volume, cascade=True)
    assert {world.status(models.Snapshot, snapshot) for snapshot in [*snapshots, third]} == {"deleting"}
    assert world.run_all() == ["snapshot.delete"] * 3 + ["volume.delete"]


def test_a_volume_waits_for_snapshots_that_are_being_deleted(world: Catalogue) -> None:
    volume = world.volume()
    snapshot = world.snapshot(volume)
    world.snapshots.delete(ALICE, snapshot)
    first = world.must_claim("snapshot.delete")
    world.volumes.delete(ALICE, volume, cascade=True)
    assert world.claim() is None
    world.work.finish_delete_snapshot(first)
    assert world.run_all() == ["volume.delete"]


def test_a_snapshot_that_claims_to_be_deleted_does_not_hold_its_volume(world: Catalogue) -> None:
    volume = world.volume()
    snapshot = world.snapshot(volume)
    world.snapshots.reset_status(ADMIN, snapshot, "deleting")
    world.volumes.delete(ALICE, volume, cascade=True)
    assert world.run_all() == ["snapshot.delete", "volume.delete"]


@pytest.mark.parametrize("started", [False, True])
def test_a_snapshot_deleted_again_comes_before_its_volume(world: Catalogue, started: bool) -> None:
    volume = world.volume()
    snapshot = world.snapshot(volume)
    world.volumes.delete(ALICE, volume, cascade=True)
    world.work.fail(world.must_claim("snapshot.delete"), "busy")
    task = world.must_claim("volume.delete") if started else None
    world.snapshots.delete(ALICE, snapshot)
    if task is not None:
        assert world.claim() is None
        assert world.renew(task)
        world.tasks.discard(task)
    assert world.run_all() == ["snapshot.delete", "volume.delete"]
    assert world.status(models.Volume, volume) == "deleted"


def test_a_volume_stays_when_a_snapshot_could_not_be_deleted(world: Catalogue) -> None:
    volume = world.volume()
    snapshot = world.snapshot(volume)
    world.volumes.delete(ALICE, volume, cascade=True)
    world.work.fail(world.must_claim("snapshot.delete"), "busy")
    task = world.must_claim("volume.delete")
    with pytest.raises(InvalidVolume, match="could not be deleted"):
        world.work.start_delete(task)
    world.work.fail(task, "A snapshot of the volume could not be deleted.")
    assert world.status(models.Volume, volume) == "error_deleting"
    assert world.status(models.Snapshot, snapshot) == "error_deleting"
    world.volumes.delete(ALICE, volume, cascade=True)
    assert world.run_all() == ["snapshot.delete", "volume.delete"]


def test_cascade_with_a_snapshot_in_use_changes_nothing(world: Catalogue) -> None:
    volume = world.volume()
    good, bad = world.snapshot(volume), world.snapshot(volume, status="backing-up")
    with pytest.raises(InvalidVolume, match=f"Snapshot {bad} of the volume cannot be deleted"):
        world.volumes.delete(ALICE, volume, cascade=True)
    assert world.status(models.Snapshot, good) == "available"
    assert world.status(models.Volume, volume) == "available"
    assert world.kinds() == []


@pytest.mark.parametrize("status", STATUSES)
def test_force_deletes_any_status(world: Catalogue, status: str) -> None:
    volume = world.volume(status=status)
    world.volumes.force_delete(ADMIN, volume)
    assert world.run_all() == ["volume.delete"]
    assert world.status(models.Volume, volume) == "deleted"


def test_force_delete_cancels_the_volumes_own_task(world: Catalogue) -> None:
    waiting = world.volumes.create(ALICE, size=1).id
    world.volumes.force_delete(ADMIN, waiting)
    assert world.kinds() == ["volume.delete"]
    world.run_all()

    running = world.volumes.create(ALICE, size=1).id
    task = world.must_claim("volume.create")
    world.volumes.force_delete(ADMIN, running)
    assert world.renew(task)
    # The delete waits until the maker has stopped; what that one says does not count any more.
    assert world.claim() is None
    with pytest.raises(TaskCancelled):
        world.work.finish_create(task, "/v")
    assert world.status(models.Volume, running) == "deleting"
    world.tasks.discard(task)
    assert world.run_all() == ["volume.delete"]


@pytest.mark.parametrize("status", STATUSES)
def test_an_adopted_volume_is_forgotten_at_once(world: Catalogue, status: str) -> None:
    volume = world.volumes.adopt(ALICE, location="/v", length=GIB).id
    world.set(models.Volume, volume, status=status)
    if status not in DELETABLE:
        with pytest.raises(InvalidVolume, match=f'the current status is "{status}"'):
            world.volumes.forget(ALICE, volume)
        return
    with pytest.raises(VolumeNotFound):
        world.volumes.forget(BOB, volume)
    world.volumes.forget(ALICE, volume)
    assert world.status(models.Volume, volume) == "deleted"
    assert world.kinds() == [], "no worker touches its storage"
    assert world.volumes.adopt(ALICE, location="/v", length=GIB).id != volume


def test_what_must_not_be_forgotten(world: Catalogue) -> None:
    ours = world.volume()
    with pytest.raises(InvalidVolume, match="was not adopted"):
        world.volumes.forget(ALICE, ours)
    used = world.volumes.adopt(ALICE, location="/u", length=GIB, in_use=True).id
    with pytest.raises(InvalidVolume, match="is attached"):
        world.volumes.forget(ALICE, used)
    copied = world.volumes.adopt(ALICE, location="/c", length=GIB).id
    world.snapshots.create(ALICE, volume_id=copied)
    with pytest.raises(InvalidVolume, match="is being copied"):
        world.volumes.forget(ALICE, copied)
    world.run_all()
    with pytest.raises(InvalidVolume, match="still has 1 dependent snapshots"):
        world.volumes.forget(ALICE, copied)


@pytest.mark.parametrize("kind", ["backup.restore", "volume.extend"])
def test_a_volume_is_not_given_up_while_a_worker_may_write_to_it(world: Catalogue, kind: str) -> None:
    """A cancellation changes the status at once, and the worker stops a while later."""
    volume = world.volumes.adopt(ALICE, location="/v", length=GIB).id
    if kind == "backup.restore":
        backups = BackupManager(world.db, world.conf)
        backup = world.backup()
        backups.restore(ALICE, backup, volume_id=volume)
        task = world.must_claim(kind)
        backups.cancel(ALICE, backup)
        ended = "error_restoring"
    else:
        world.volumes.extend(ALICE, volume, new_size=2)
        task = world.must_claim(kind)
        world.volumes.reset_status(ADMIN, volume, "error")
        ended = "error"
    assert world.status(models.Volume, volume) == ended
    with pytest.raises(InvalidVolume, match="A worker may still write"):
        world.volumes.forget(ALICE, volume)
    with pytest.raises(InvalidVolume, match="A worker may still write"):
        world.volumes.adopt_again(ADMIN, volume, location="/v", length=GIB, storage_id=None)
    assert world.status(models.Volume, volume) == ended
    world.tasks.discard(task)
    world.volumes.forget(ALICE, volume)
    assert world.volumes.adopt(ALICE, location="/v", length=GIB).id != volume


@pytest.mark.parametrize("new", [False, True])
def test_a_volume_is_not_usable_while_the_worker_of_a_cancelled_restore_may_write_to_it(
    world: Catalogue, new: bool
) -> None:
    backups, backup = BackupManager(world.db, world.conf), world.backup()
    if new:
        volume = world.volumes.create(ALICE, size=1, backup_id=backup).id
    else:
        volume = world.volume()
        backups.restore(ALICE, backup, volume_id=volume)
    restore = world.must_claim("backup.restore")
    world.set(models.Volume, volume, location="/v")
    backups.cancel(ALICE, backup)
    for status in lifecycle.RESETS[models.Volume]:
        if status in ("available", "in-use"):
            if status == "in-use":
                world.attach_behind(volume)
            with pytest.raises(InvalidVolume, match="A worker may still write"):
                world.volumes.reset_status(ADMIN, volume, status)
        else:
            world.volumes.reset_status(ADMIN, volume, status)
        # Nothing that anybody may do then begins to use it.
        for use in (
            lambda: backups.restore(ALICE, backup, volume_id=volume),
            lambda: backups.create(ALICE, volume_id=volume, force=True),
            lambda: world.snapshots.create(ALICE, volume_id=volume, force=True),
            lambda: world.volumes.create(ALICE, size=1, source_volid=volume),
            lambda: world.volumes.attachments.attach(ALICE, volume),
            lambda: world.volumes.extend(ALICE, volume, new_size=2),
        ):
            with pytest.raises(InvalidVolume):
                use()
    world.tasks.discard(restore)
    world.volumes.reset_status(ADMIN, volume, "in-use")
    world.volumes.attachments.detach(ALICE, volume)
    backups.restore(ALICE, backup, volume_id=volume)


def test_force_delete_waits_for_a_restore(world: Catalogue) -> None:
    made = world.volumes.create(ALICE, size=1, backup_id=world.backup())
    restore = world.must_claim("backup.restore")
    world.volumes.force_delete(ADMIN, made.id)
    assert world.claim() is None
    assert not world.renew(restore)


@pytest.mark.parametrize("status", STATUSES)
def test_which_volumes_can_be_extended(world: Catalogue, status: str) -> None:
    volume = world.volume(size=2, status=status)
    if status != "available":
        with pytest.raises(InvalidVolume, match=f'the current status is "{status}"'):
            world.volumes.extend(ALICE, volume, new_size=3)
        return
    world.volumes.extend(ALICE, volume, new_size=3)
    during = world.volumes.get(ALICE, volume)
    assert (during.status, during.size, during.length) == ("extending", 3, 2 * GIB)
    task = world.must_claim("volume.extend")
    plan = world.work.start_extend(task)
    assert (plan.volume.id, plan.length) == (volume, 3 * GIB)
    world.work.finish_extend(task, 3 * GIB, None)
    after = world.volumes.get(ALICE, volume)
    assert (after.status, after.size, after.length) == ("available", 3, 3 * GIB)


def test_an_extension_that_fails_gives_its_gigabytes_back(world: Catalogue) -> None:
    volume = world.volume(size=2)
    world.volumes.extend(ALICE, volume, new_size=5)
    assert world.usage("blue")["gigabytes"] == 5
    world.work.fail(world.must_claim("volume.extend"), "no space")
    after = world.volumes.get(ALICE, volume)
    assert (after.status, after.size, after.length) == ("error_extending", 2, 2 * GIB)
    assert world.usage("blue")["gigabytes"] == 2


@pytest.mark.parametrize("size", [-1, 0, 1, 2])
def test_a_volume_only_grows(world: Catalogue, size: int) -> None:
    volume = world.volume(size=2)
    with pytest.raises(InvalidInput, match=r"must be greater than current size. \(current: 2, extended: "):
        world.volumes.extend(ALICE, volume, new_size=size)


def test_an_extension_needs_room_in_the_volumes_project(world: Catalogue) -> None:
    volume = world.volume(size=2)
    world.quotas.update("blue", {"gigabytes": 4})
    # It is the volume's project that counts, not the administrator's.
    with pytest.raises(QuotaExceeded, match="Requested 3G, quota is 4G and 2G has been consumed"):
        world.volumes.extend(ADMIN, volume, new_size=5)
    assert world.status(models.Volume, volume) == "available"
    world.volumes.extend(ADMIN, volume, new_size=4)


def test_attachments_move_the_volume_in_and_out_of_use(world: Catalogue) -> None:
    volume = world.volume()
    attached = world.volumes.attachments.attach(
        ALICE, volume, instance_uuid=MISSING, host_name="h", mountpoint="/dev/vdb", mode="ro"
    )
    assert attached.status == "in-use"
    (entry,) = attached.attachments
    assert (entry.instance_uuid, entry.host_name, entry.mountpoint, entry.attach_mode) == (
        MISSING, "h", "/dev/vdb", "ro",
    )  # fmt: skip
    with pytest.raises(InvalidVolume, match='current status is "in-use"'):
        world.volumes.attachments.attach(ALICE, volume, host_name="h")
    with pytest.raises(AttachmentNotFound):
        world.volumes.attachments.detach(ALICE, volume, attachment_id=MISSING)
    detached = world.volumes.attachments.detach(ALICE, volume, attachment_id=entry.id)
    assert (detached.status, detached.attachments) == ("available", ())
    with pytest.raises(InvalidVolume, match='current status is "available"'):
        world.volumes.attachments.detach(ALICE, volume)


def test_in_use_until_the_last_one_left(world: Catalogue) -> None:
    volume = world.volume()
    (entry,) = world.volumes.attachments.attach(ALICE, volume, host_name="h").attachments
    world.attach_behind(volume)
    assert world.volumes.attachments.detach(ALICE, volume, attachment_id=entry.id).status == "in-use"
    assert world.volumes.attachments.detach(ALICE, volume).status == "available"


@pytest.mark.parametrize("status", STATUSES)
def test_which_volumes_can_be_attached(world: Catalogue, status: str) -> None:
    volume = world.volume(status=status)
    if status == "available":
        assert world.volumes.attachments.attach(ALICE, volume, host_name="h").status == "in-use"
    else:
        with pytest.raises(InvalidVolume):
            world.volumes.attachments.attach(ALICE, volume, host_name="h")


@pytest.mark.parametrize(
    ("status", "attached", "stored", "problem"),
    [
        ("available", False, True, None),
        ("error", False, True, None),
        ("attaching", False, True, None),
        ("detaching", True, True, None),
        ("maintenance", False, True, None),
        ("managing", False, False, None),
        ("error_managing", False, False, None),
        ("error", True, True, None),
        ("error", False, False, None),
        ("in-use", True, True, None),
        ("in-use", False, True, "is not attached, so it cannot be in-use"),
        ("available", True, True, "is attached, so it cannot be available"),
        ("available", False, False, "has no storage, so it cannot be available"),
    ],
)
def test_a_reset_gives_only_a_status_that_can_be_true(
    world: Catalogue, status: str, attached: bool, stored: bool, problem: str | None
) -> None:
    volume = world.volume(status="error_restoring", previous_status="in-use")
    if attached:
        world.attach_behind(volume)
    if not stored:
        world.set(models.Volume, volume, location=None)
    if problem is None:
        world.volumes.reset_status(ADMIN, volume, status)
        after = world.volumes.get(ADMIN, volume)
        assert (after.status, after.previous_status) == (status, None)
    else:
        with pytest.raises(InvalidVolume, match=problem):
            world.volumes.reset_status(ADMIN, volume, status)
        assert world.status(models.Volume, volume) == "error_restoring"


@pytest.mark.parametrize("status", ["", "nonsense", "backing-up", "restoring-backup", "deleted", "x" * 5000])
def test_what_no_reset_can_set(world: Catalogue, status: str) -> None:
    volume = world.volume()
    with pytest.raises(InvalidInput) as caught:
        world.volumes.reset_status(ADMIN, volume, status)
    assert len(str(caught.value)) < 200


def test_a_reset_ends_the_volumes_own_task(world: Catalogue) -> None:
    volume = world.volume(size=2)
    world.volumes.extend(ALICE, volume, new_size=5)
    task = world.must_claim("volume.extend")
    world.volumes.reset_status(ADMIN, volume, "available")
    after = world.volumes.get(ALICE, volume)
    assert (after.status, after.size) == ("available", 2)
    with pytest.raises(TaskCancelled):
        world.work.finish_extend(task, 5 * GIB, None)
    with pytest.raises(TaskCancelled):
        world.work.fail(task, "x")
    assert world.volumes.get(ALICE, volume) == after


def test_a_volume_that_a_restore_writes_is_not_reset(world: Catalogue) -> None:
    made = world.volumes.create(ALICE, size=1, backup_id=world.backup())
    with pytest.raises(InvalidVolume, match="reset the backup's status instead"):
        world.volumes.reset_status(ADMIN, made.id, "error")


def test_a_lost_attempt_changes_nothing(world: Catalogue) -> None:
    volume = world.volumes.create(ALICE, size=1)
    lost = world.must_claim("volume.create")
    world.tasks.take_over("host")
    current = world.must_claim("volume.create")
    for end in (
        lambda: world.work.finish_create(lost, "/old"),
        lambda: world.work.fail(lost, "x"),
    ):
        with pytest.raises(TaskLost):
            end()
    assert world.status(models.Volume, volume.id) == "creating"
    world.work.finish_create(current, "/new")
    assert world.volumes.get(ALICE, volume.id).location == "/new"


def test_of_racing_operations_one_wins(tmp_path: Path) -> None:
    db = make_database(tmp_path)
    world = Catalogue(db, make_conf())
    for _turn in range(8):
        volume = world.volume()
        start = threading.Barrier(4)
        calls: list[Callable[[], object]] = [
            lambda volume=volume: world.volumes.delete(ALICE, volume),
            lambda volume=volume: world.volumes.extend(ALICE, volume, new_size=2),
            lambda volume=volume: world.volumes.attachments.attach(ALICE, volume, host_name="h"),
            lambda volume=volume: world.volumes.delete(ALICE, volume),
        ]

        def one(call: Callable[[], object], start: threading.Barrier = start) -> bool:
            start.wait()
            try:
                call()
            except BackupfwError:
                return False
            return True

        with ThreadPoolExecutor(4) as pool:
            assert sum(pool.map(one, calls)) == 1
        world.run_all()
        if world.status(models.Volume, volume) == "in-use":
            world.volumes.attachments.detach(ALICE, volume)
        if world.status(models.Volume, volume) != "deleted":
            world.volumes.delete(ALICE, volume)
            world.run_all()
    db.close()

"""The use cases of backups: rules, texts, moves."""

from __future__ import annotations

import base64
import json
import uuid

import pytest

from backupfw import errors
from backupfw.db import models
from backupfw.manager import records
from backupfw.manager.lineage import lifecycle
from backupfw.manager.messages import Detail
from backupfw.manager.outcomes.backups import RestoredVolume
from backupfw.manager.queue import tasks
from tests.unit.manager.support import GIB, WIRE, World, check_consistent


@pytest.fixture
def world() -> World:
    return World()


def test_a_backup_occupies_its_volume_and_gives_it_back(world: World) -> None:
    volume = world.volume(size=2)
    made = world.backups.create(world.ctx(), volume_id=volume, name="n", description="d", metadata={"k": "v"})
    assert (made.status, made.size, made.container, made.store) == ("creating", 2, "volumebackups", "main")
    assert made.metadata == {"k": "v"}
    assert made.data_timestamp == made.created_at
    assert world.volume_status(volume) == "backing-up"
    assert world.wakes == 1
    check_consistent(world)
    done = world.run_create()
    assert (done.status, done.fail_reason, done.object_count) == ("available", None, 3)
    assert done.service_metadata is not None
    assert done.service == WIRE
    assert world.volume_status(volume) == "available"
    assert world.backups.get(world.ctx(), made.id) == done
    check_consistent(world)


@pytest.mark.parametrize(
    ("status", "force", "text"),
    [
        (
            "error",
            True,
            'Volume to be backed up must be available or in-use, but the current status is "error".',
        ),
        ("in-use", False, "Backing up an in-use volume must use the force flag."),
    ],
)
def test_a_volume_in_another_status_is_refused(world: World, status: str, force: bool, text: str) -> None:
    volume = world.volume(status=status)
    with pytest.raises(errors.InvalidVolume) as caught:
        world.backups.create(world.ctx(), volume_id=volume, force=force)
    assert str(caught.value) == text
    assert world.volume_status(volume) == status
    assert world.tasks.pending() == 0


def test_an_in_use_volume_returns_to_in_use(world: World) -> None:
    volume = world.volume(status="in-use")
    world.backups.create(world.ctx(), volume_id=volume, force=True)
    task = world.claim()
    assert world.outcomes.creating.start(task).in_use
    world.outcomes.creating.fail(task, "no")
    assert world.volume_status(volume) == "in-use"


def test_a_snapshot_is_occupied_and_its_volume_is_not(world: World) -> None:
    volume = world.volume(status="error")
    snapshot = world.snapshot(volume)
    made = world.backups.create(world.ctx(), volume_id=volume, snapshot_id=snapshot)
    assert world.row(models.Snapshot, snapshot).status == "backing-up"
    assert world.volume_status(volume) == "error"
    assert made.data_timestamp == world.row(models.Snapshot, snapshot).created_at
    world.run_create()
    assert world.row(models.Snapshot, snapshot).status == "available"


def test_another_projects_things_do_not_exist(world: World) -> None:
    volume = world.volume("p2")
    with pytest.raises(errors.VolumeNotFound):
        world.backups.create(world.ctx("p1"), volume_id=volume)
    backup = world.backup(volume, "p2")
    outsider = world.ctx("p1")
    for call in (
        lambda: world.backups.get(outsider, backup.id),
        lambda: world.backups.delete(outsider, backup.id),
        lambda: world.backups.restore(outsider, backup.id),
        lambda: world.backups.update(outsider, backup.id, name="x"),
        lambda: world.backups.export_record(outsider, backup.id),
        lambda: world.backups.list(outsider, marker=backup.id),
    ):
        with pytest.raises(errors.NotFound):
            call()
    assert world.backups.list(outsider, all_tenants=True).items == []
    admin = world.ctx("p1", admin=True)
    assert world.backups.get(admin, backup.id).id == backup.id
    assert world.backups.list(admin).items == []
    assert [item.id for item in world.backups.list(admin, all_tenants=True).items] == [backup.id]


def test_the_parent_is_the_newest_of_the_callers_project(world: World) -> None:
    volume = world.volume("p1")
    admin = world.ctx("adm", admin=True)
    world.backup(volume, "p1")
    with pytest.raises(errors.InvalidBackup, match=r"^No backups available to do an incremental backup\.$"):
        world.backups.create(admin, volume_id=volume, incremental=True)
    assert world.volume_status(volume) == "available"
    newest = world.backup(volume, "p1")
    own = world.backups.create(admin, volume_id=volume)
    world.run_create()
    child = world.backups.create(admin, volume_id=volume, incremental=True)
    assert (child.parent_id, child.is_incremental) == (own.id, True)
    world.run_create()
    # The administrator's incremental is nobody's dependent in the user's project.
    assert not world.backups.get(world.ctx("p1"), newest.id).has_dependent_backups
    mine = world.backups.create(world.ctx("p1"), volume_id=volume, incremental=True)
    assert mine.parent_id == newest.id
    assert not world.backups.get(world.ctx("p1"), newest.id).has_dependent_backups
    world.run_create()
    assert world.backups.get(world.ctx("p1"), newest.id).has_dependent_backups


def test_the_parent_of_a_snapshots_backup_is_older_than_the_snapshot(world: World) -> None:
    volume = world.volume()
    old = world.backup(volume)
    snapshot = world.snapshot(volume)
    world.backup(volume)
    made = world.backups.create(world.ctx(), volume_id=volume, snapshot_id=snapshot, incremental=True)
    assert made.parent_id == old.id


def test_a_failed_child_is_no_dependent(world: World) -> None:
    volume = world.volume()
    parent = world.backup(volume)
    world.backups.create(world.ctx(), volume_id=volume, incremental=True)
    world.outcomes.creating.fail(world.claim(), "no")
    assert not world.backups.get(world.ctx(), parent.id).has_dependent_backups


def test_a_deleted_child_is_no_dependent_and_a_parent_can_be_deleted(world: World) -> None:
    volume = world.volume()
    parent = world.backup(volume)
    child = world.backup(volume, incremental=True)
    assert world.backups.get(world.ctx(), parent.id).num_dependent_backups == 1
    world.backups.delete(world.ctx(), parent.id)
    assert world.run_delete()
    assert world.status(parent.id) is None
    assert world.status(child.id) == "available"


def test_parents_can_be_kept_from_deletion_whoever_asks() -> None:
    world = World(refuse_delete_of_parents=True)
    volume = world.volume()
    parent = world.backup(volume)
    child = world.backup(volume, incremental=True)
    for ctx in (world.ctx(), world.ctx("other", admin=True)):
        for call in (world.backups.delete, world.backups.force_delete):
            with pytest.raises(errors.InvalidBackup, match=r"^Incremental backups exist for this backup\.$"):
                call(ctx, parent.id)
    world.backups.delete(world.ctx(), child.id)
    world.run_delete()
    world.backups.delete(world.ctx(), parent.id)
    world.run_delete()
    assert world.status(parent.id) is None


def test_quota_is_counted_from_rows() -> None:
    world = World(backups=2, backup_gigabytes=5)
    first = world.backup(world.volume(size=2))
    world.backup(world.volume(size=2))
    with pytest.raises(errors.QuotaExceeded) as caught:
        world.backups.create(world.ctx(), volume_id=world.volume())
    assert (caught.value.resource, str(caught.value)) == (
        "backups",
        "Maximum number of backups allowed (2) exceeded",
    )
    world.backups.delete(world.ctx(), first.id)
    world.run_delete()
    volume = world.volume(size=4)
    with pytest.raises(errors.QuotaExceeded) as caught:
        world.backups.create(world.ctx(), volume_id=volume)
    assert caught.value.resource == "backup_gigabytes"
    assert world.volume_status(volume) == "available"
    world.backups.create(world.ctx(), volume_id=world.volume(size=3))


@pytest.mark.parametrize("status", ["creating", "restoring", "deleting", "error_deleting"])
def test_delete_needs_available_or_error(world: World, status: str) -> None:
    backup = world.backup(world.volume())
    with world.db.write() as session:
        session.get(models.Backup, backup.id).status = status  # type: ignore[union-attr]
    with pytest.raises(errors.InvalidBackup, match=r"^Backup status must be available or error$"):
        world.backups.delete(world.ctx(), backup.id)


def test_restore_to_an_existing_volume(world: World) -> None:
    backup = world.backup(world.volume(size=2))
    small, busy, good = (
        world.volume(size=1),
        world.volume(size=2, status="in-use"),
        world.volume(size=3, display_name="mine"),
    )
    with pytest.raises(errors.InvalidVolume) as caught:
        world.backups.restore(world.ctx(), backup.id, volume_id=small)
    assert str(caught.value) == "volume size 1 is too small to restore backup of size 2."
    with pytest.raises(errors.InvalidVolume, match=r"^Volume to be restored to must be available$"):
        world.backups.restore(world.ctx(), backup.id, volume_id=busy)
    with pytest.raises(errors.VolumeNotFound):
        world.backups.restore(world.ctx(), backup.id, volume_id=str(uuid.uuid4()))
    assert world.backups.restore(world.ctx(), backup.id, volume_id=good, name="ignored") == (
        backup.id,
        good,
        "mine",
    )
    assert (world.status(backup.id), world.volume_status(good)) == ("restoring", "restoring-backup")
    check_consistent(world)
    with pytest.raises(errors.InvalidBackup, match=r"^Backup status must be available$"):
        world.backups.restore(world.ctx(), backup.id)
    world.run_restore(RestoredVolume("theirs", "d", {"a": "1"}))
    assert (world.status(backup.id), world.volume_status(good)) == ("available", "available")
    assert world.row(models.Volume, good).display_name == "mine"
    assert world.row(models.VolumeMetadata, (good, "a")).value == "1"
    check_consistent(world)


@pytest.mark.parametrize("name", [None, "chosen"])
def test_restore_to_a_new_volume(world: World, name: str | None) -> None:
    backup = world.backup(world.volume(size=2, length=GIB + 512))
    _, volume, shown = world.backups.restore(world.ctx(), backup.id, name=name)
    assert shown == (name or f"restore_backup_{backup.id}")
    row = world.row(models.Volume, volume)
    assert (row.status, row.size, row.length, row.project_id) == ("restoring-backup", 2, GIB + 512, "p1")
    assert world.row(models.VolumeMetadata, (volume, "src_backup_id")).value == backup.id
    world.run_restore(RestoredVolume("source", "text", {"src_backup_id": "old", "k": "v"}))
    row = world.row(models.Volume, volume)
    assert (row.display_name, row.display_description) == (
        ("source", "text") if name is None else ("chosen", None)
    )
    assert world.row(models.VolumeMetadata, (volume, "src_backup_id")).value == backup.id
    assert world.row(models.VolumeMetadata, (volume, "k")).value == "v"


def test_restore_of_a_volume_without_a_name_to_a_new_one(world: World) -> None:
    backup = world.backup(world.volume())
    _, volume, shown = world.backups.restore(world.ctx(), backup.id)
    world.run_restore(RestoredVolume(None, "text", {}))
    row = world.row(models.Volume, volume)
    assert (row.display_name, row.display_description) == (shown, "text")


def test_restore_to_a_new_volume_needs_room() -> None:
    world = World(volumes=1)
    backup = world.backup(world.volume())
    with pytest.raises(errors.QuotaExceeded) as caught:
        world.backups.restore(world.ctx(), backup.id)
    assert caught.value.resource == "volumes"
    assert world.status(backup.id) == "available"
    assert world.tasks.pending() == 0


def test_a_failed_restore_leaves_the_backup_available_and_says_why(world: World) -> None:
    backup = world.backup(world.volume())
    target = world.volume()
    world.backups.restore(world.ctx(), backup.id, volume_id=target)
    world.outcomes.restoring.fail(world.claim(), "x" * 300)
    shown = world.backups.get(world.ctx(), backup.id)
    assert (shown.status, shown.fail_reason) == ("available", "x" * 255)
    assert world.volume_status(target) == "error_restoring"
    _, new, _ = world.backups.restore(world.ctx(), backup.id)
    world.outcomes.restoring.fail(world.claim(), "no")
    assert world.volume_status(new) == "error"
    world.backups.restore(world.ctx(), backup.id)
    world.run_restore()
    assert world.backups.get(world.ctx(), backup.id).fail_reason is None


@pytest.mark.parametrize("claimed", [False, True])
def test_force_delete_of_a_backup_being_made(world: World, claimed: bool) -> None:
    volume = world.volume(status="in-use")
    backup = world.backups.create(world.ctx(), volume_id=volume, force=True)
    task = None
    if claimed:
        task = world.claim()
        plan = world.outcomes.creating.start(task)
    world.backups.force_delete(world.ctx(admin=True), backup.id)
    assert (world.status(backup.id), world.volume_status(volume)) == ("deleting", "in-use")
    check_consistent(world)
    if task is not None:
        # The deletion waits for the cancelled task.
        assert world.tasks.claim("host/x", 60) is None
        assert world.renew(task)
        with pytest.raises(errors.TaskCancelled):
            world.outcomes.creating.finish(task, world.result(plan))
        with pytest.raises(errors.TaskCancelled):
            world.outcomes.creating.fail(task, "no")
        world.tasks.discard(task)
    assert world.run_delete() is claimed
    assert world.status(backup.id) is None
    check_consistent(world)


@pytest.mark.parametrize("claimed", [False, True])
def test_reset_of_a_restore(world: World, claimed: bool) -> None:
    backup = world.backup(world.volume())
    target = world.volume()
    world.backups.restore(world.ctx(), backup.id, volume_id=target)
    if claimed:
        world.claim()
    world.backups.reset_status(world.ctx(admin=True), backup.id, "AVAILABLE")
    assert (world.status(backup.id), world.volume_status(target)) == ("available", "error_restoring")
    check_consistent(world)


@pytest.mark.parametrize("claimed", [False, True])
def test_a_cancelled_backup_ends_in_error_and_leaves_nothing(world: World, claimed: bool) -> None:
    volume = world.volume(status="in-use")
    backup = world.backups.create(world.ctx(), volume_id=volume, force=True)
    task = None
    if claimed:
        task = world.claim()
        plan = world.outcomes.creating.start(task)
    wakes = world.wakes
    after = world.backups.cancel(world.ctx(), backup.id)
    assert (after.status, after.fail_reason) == ("error", "The backup was cancelled.")
    assert [one.detail_id for one in world.rows(models.Message)] == [Detail.CANCELLED.value]
    assert world.volume_status(volume) == "in-use"
    assert world.wakes == wakes + 1
    check_consistent(world)
    if task is not None:
        with pytest.raises(errors.TaskCancelled):
            world.outcomes.creating.finish(task, world.result(plan))
        world.tasks.discard(task)
    assert world.run_releases() == (1 if claimed else 0)
    assert world.tasks.pending() == 0
    check_consistent(world)
    with pytest.raises(
        errors.InvalidBackup, match=r"is not being made, restored or verified: its status is error"
    ):
        world.backups.cancel(world.ctx(), backup.id)


@pytest.mark.parametrize("claimed", [False, True])
def test_a_cancelled_restore_leaves_the_backup_as_it_was(world: World, claimed: bool) -> None:
    backup = world.backup(world.volume())
    target = world.volume()
    world.backups.restore(world.ctx(), backup.id, volume_id=target)
    task = world.claim() if claimed else None
    after = world.backups.cancel(world.ctx(), backup.id)
    assert (after.status, after.fail_reason) == ("available", "The restore was cancelled.")
    assert [one.detail_id for one in world.rows(models.Message)] == [Detail.CANCELLED.value]
    assert world.volume_status(target) == "error_restoring"
    check_consistent(world)
    if task is not None:
        with pytest.raises(errors.TaskCancelled):
            world.outcomes.restoring.finish(task)
        world.tasks.discard(task)
    world.backups.restore(world.ctx(), backup.id)
    world.run_restore()
    assert world.backups.get(world.ctx(), backup.id).fail_reason is None
    check_consistent(world)


def test_a_deletion_is_not_cancelled(world: World) -> None:
    backup = world.backup(world.volume())
    world.backups.delete(world.ctx(), backup.id)
    with pytest.raises(errors.InvalidBackup, match="its status is deleting"):
        world.backups.cancel(world.ctx(), backup.id)
    with pytest.raises(errors.BackupNotFound):
        world.backups.cancel(world.ctx("p2"), backup.id)
    assert world.run_delete()


def test_reset_grants_available_only_to_what_is_there(world: World) -> None:
    backup = world.backup(world.volume())
    admin = world.ctx(admin=True)
    assert world.backups.reset_status(admin, backup.id, "error").status == "error"
    assert world.backups.reset_status(admin, backup.id, "available").status == "available"
    volume = world.volume()
    being_made = world.backups.create(world.ctx(), volume_id=volume)
    task = world.claim()
    world.outcomes.creating.start(task)
    after = world.backups.reset_status(admin, being_made.id, "available")
    assert after.status == "error"
    assert after.fail_reason
    assert world.volume_status(volume) == "available"
    check_consistent(world)
    world.tasks.discard(task)
    assert world.run_releases() == 1
    with pytest.raises(errors.InvalidInput):
        world.backups.reset_status(admin, backup.id, "creating")


def test_reset_of_a_deletion_that_had_begun_does_not_bring_the_data_back(world: World) -> None:
    backup = world.backup(world.volume())
    admin = world.ctx(admin=True)
    world.backups.delete(world.ctx(), backup.id)
    assert world.backups.reset_status(admin, backup.id, "available").status == "available"
    world.backups.delete(world.ctx(), backup.id)
    task = world.claim()
    assert world.outcomes.deleting.start(task) is not None
    assert world.backups.reset_status(admin, backup.id, "available").status == "error"
    check_consistent(world)
    world.tasks.discard(task)
    world.run_releases()
    world.backups.delete(world.ctx(), backup.id)
    assert not world.run_delete()
    check_consistent(world)


def test_update_changes_what_is_given(world: World) -> None:
    backup = world.backup(world.volume(), name="n", description="d", metadata={"a": "1"})
    ctx = world.ctx()
    assert world.backups.update(ctx, backup.id, name=None).display_name is None
    changed = world.backups.update(ctx, backup.id, description="e", metadata={"b": "2"})
    assert (changed.display_description, changed.metadata) == ("e", {"b": "2"})
    assert world.backups.merge_metadata(ctx, backup.id, {"c": "3"}).metadata == {"b": "2", "c": "3"}


def _with_id(url: str, backup_id: str, **changes: object) -> str:
    record = json.loads(base64.b64decode(url))
    record.update({"id": backup_id, **changes})
    return base64.b64encode(json.dumps(record).encode()).decode()


def _run_import(world: World) -> None:
    task = world.claim(tasks.BACKUP_IMPORT)
    plan = world.outcomes.importing.start(task, {"main": WIRE})
    (manifest,) = world.rows(models.Manifest, models.Manifest.key == plan.key)
    world.outcomes.importing.finish(task, world.facts(manifest))


def test_export_and_import_as_a_twin(world: World) -> None:
    backup = world.backup(world.volume(), name="n")
    ctx = world.ctx(admin=True)
    service, url = world.backups.export_record(ctx, backup.id)
    assert service == WIRE
    with pytest.raises(errors.InvalidBackup, match=r"^Backup already exists in database\.$"):
        world.backups.import_record(ctx, backup_service=service, backup_url=url)
    duplicate_id = str(uuid.uuid4())
    duplicate = world.backups.import_record(
        ctx, backup_service=service, backup_url=_with_id(url, duplicate_id)
    )
    assert (duplicate.id, duplicate.status, duplicate.display_name, duplicate.volume_id) == (
        duplicate_id,
        "creating",
        None,
        "00000000-0000-0000-0000-000000000000",
    )
    check_consistent(world)
    _run_import(world)
    shown = world.backups.get(ctx, duplicate_id)
    assert (shown.status, shown.display_name, shown.volume_id, shown.size) == (
        "available",
        "n",
        backup.volume_id,
        1,
    )
    check_consistent(world)
    # Duplicate first, then the original: only the last one removes the data.
    world.backups.delete(ctx, duplicate_id)
    assert not world.run_delete()
    assert world.status(backup.id) == "available"
    world.backups.delete(ctx, backup.id)
    assert world.run_delete()
    check_consistent(world)


def test_a_deleted_id_is_revived_and_deleted_data_is_refused(world: World) -> None:
    backup = world.backup(world.volume(), metadata={"a": "b"})
    ctx = world.ctx(admin=True)
    service, url = world.backups.export_record(ctx, backup.id)
    duplicate_id = str(uuid.uuid4())
    world.backups.import_record(ctx, backup_service=service, backup_url=_with_id(url, duplicate_id))
    _run_import(world)
    world.backups.delete(ctx, backup.id)
    world.run_delete()
    revived = world.backups.import_record(ctx, backup_service=service, backup_url=url)
    assert (revived.id, revived.deleted, revived.deleted_at, revived.metadata) == (backup.id, False, None, {})
    _run_import(world)
    assert world.status(backup.id) == "available"
    for each in (backup.id, duplicate_id):
        world.backups.delete(ctx, each)
        world.run_delete()
    world.backups.import_record(ctx, backup_service=service, backup_url=url)
    task = world.claim()
    with pytest.raises(errors.InvalidInput, match="deleted"):
        world.outcomes.importing.start(task, {"main": WIRE})
    (manifest,) = world.rows(models.Manifest)
    with pytest.raises(errors.InvalidInput, match="deleted"):
        world.outcomes.importing.finish(task, world.facts(manifest))
    world.outcomes.importing.fail(task, "The backup's data was deleted.")
    assert world.status(backup.id) == "error"
    world.backups.delete(ctx, backup.id)
    assert not world.run_delete()
    check_consistent(world)


def test_an_import_that_breaks_a_rule_is_refused(world: World) -> None:
    backup = world.backup(world.volume())
    ctx = world.ctx(admin=True)
    _, url = world.backups.export_record(ctx, backup.id)
    new = _with_id(url, str(uuid.uuid4()))
    with pytest.raises(errors.InvalidInput, match="decode"):
        world.backups.import_record(ctx, backup_service=WIRE, backup_url="!")
    with pytest.raises(errors.InvalidInput, match="path"):
        world.backups.import_record(ctx, backup_service=WIRE, backup_url=new, expect_id=backup.id)
    world.conf.quota.backups = 1
    with pytest.raises(errors.QuotaExceeded):
        world.backups.import_record(ctx, backup_service=WIRE, backup_url=new)
    world.conf.quota.backups = -1
    world.conf.service_down_time = -1
    with pytest.raises(errors.ServiceUnavailable, match=r"^Service cinder-backup could not be found\.$"):
        world.backups.import_record(ctx, backup_service=WIRE, backup_url=new)


def test_export_needs_an_available_backup(world: World) -> None:
    made = world.backups.create(world.ctx(), volume_id=world.volume())
    with pytest.raises(errors.InvalidBackup, match=r"^Backup status must be available and not creating\.$"):
        world.backups.export_record(world.ctx(admin=True), made.id)


def test_a_record_cannot_lie_about_size_or_take_another_projects_data(world: World) -> None:
    backup = world.backup(world.volume("p2", size=9), "p2")
    _, url = world.backups.export_record(world.ctx(admin=True), backup.id)
    (manifest,) = world.rows(models.Manifest)

    def begin(ctx_admin: bool) -> tuple[str, tasks.Task]:
        duplicate = str(uuid.uuid4())
        world.backups.import_record(
            world.ctx("p1", admin=ctx_admin), backup_service=WIRE, backup_url=_with_id(url, duplicate, size=1)
        )
        return duplicate, world.claim()

    duplicate, task = begin(False)
    with pytest.raises(errors.InvalidInput, match="another project"):
        world.outcomes.importing.finish(task, world.facts(manifest))
    world.outcomes.importing.fail(task, "no")
    duplicate, task = begin(True)
    world.conf.quota.backup_gigabytes = 5
    with pytest.raises(errors.QuotaExceeded):
        world.outcomes.importing.finish(task, world.facts(manifest))
    world.conf.quota.backup_gigabytes = -1
    assert world.outcomes.importing.finish(task, world.facts(manifest)).size == 9
    assert world.backups.get(world.ctx("p1"), duplicate).project_id == "p1"
    # What it makes there shares nothing with the other project's data.
    assert records.decode(url).project_id == "p2"


def test_an_unknown_service_ends_in_error(world: World) -> None:
    backup = world.backup(world.volume())
    ctx = world.ctx(admin=True)
    _, url = world.backups.export_record(ctx, backup.id)
    duplicate = str(uuid.uuid4())
    world.backups.import_record(ctx, backup_service="some.other.Driver", backup_url=_with_id(url, duplicate))
    task = world.claim()
    with pytest.raises(errors.InvalidInput, match="service"):
        world.outcomes.importing.start(task, {"main": WIRE})
    short, _, _ = WIRE.rpartition(".")
    world.outcomes.importing.fail(task, "no")
    world.backups.delete(ctx, duplicate)
    world.run_delete()
    world.backups.import_record(ctx, backup_service=short, backup_url=_with_id(url, duplicate))
    _run_import(world)
    assert world.status(duplicate) == "available"


def test_a_foreign_manifest_is_only_a_reference(world: World) -> None:
    backup = world.backup(world.volume())
    ctx = world.ctx(admin=True)
    _, url = world.backups.export_record(ctx, backup.id)
    (manifest,) = world.rows(models.Manifest)
    key = f"{uuid.uuid4()}/x/y/z/1.1-0000000000000001/manifest"
    foreign = world.facts(manifest, key=key, installation_id=key.split("/")[0])
    duplicates = [str(uuid.uuid4()) for _ in range(2)]
    for duplicate in duplicates:
        world.backups.import_record(
            ctx, backup_service=WIRE, backup_url=_with_id(url, duplicate, service_metadata=key)
        )
        task = world.claim()
        assert world.outcomes.importing.start(task, {"main": WIRE}).key == key
        world.outcomes.importing.finish(task, foreign)
    for duplicate in duplicates:
        world.backups.delete(ctx, duplicate)
        assert not world.run_delete()
    assert world.rows(models.Manifest, models.Manifest.key == key) == []
    # It was not deleted, so it can come back.
    world.backups.import_record(
        ctx, backup_service=WIRE, backup_url=_with_id(url, duplicates[0], service_metadata=key)
    )
    world.outcomes.importing.finish(world.claim(), foreign)
    assert world.status(duplicates[0]) == "available"


def test_listing_sorts_filters_and_counts(world: World) -> None:
    made = [
        world.backup(world.volume(size=size), name=name) for size, name in ((2, "b"), (1, "a"), (3, None))
    ]
    ctx = world.ctx()
    newest_first = [item.id for item in world.backups.list(ctx).items]
    assert newest_first == [item.id for item in reversed(made)]
    page = world.backups.list(ctx, sort=[("name", "asc")], limit=2, with_count=True)
    assert [item.display_name for item in page.items] == [None, "a"]
    assert page.total == 3
    rest = world.backups.list(ctx, sort=[("name", "asc")], limit=2, marker=page.items[-1].id)
    assert [item.display_name for item in rest.items] == ["b"]
    assert [item.size for item in world.backups.list(ctx, filters={"name": "a"}).items] == [1]
    assert len(world.backups.list(ctx, filters={"status": "available", "size": "2"}).items) == 1
    assert world.backups.list(ctx, filters={"nonsense": "1"}).items == []
    assert world.backups.list(ctx, limit=0).items == []
    with pytest.raises(errors.InvalidInput, match="Sort key"):
        world.backups.list(ctx, sort=[("nonsense", "asc")])


def test_every_status_is_in_the_table(world: World) -> None:
    used = {step.target for step in lifecycle.moves(lifecycle.BackupMoves)}
    assert used == {"available", "error", "restoring", "deleting", "error_deleting", "deleted"}

"""User messages: one for each operation that failed after it was accepted, in the same transaction."""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import select, update

from backupfw.db import models
from backupfw.db.session import Database, now
from backupfw.errors import MarkerNotFound, MessageNotFound, TaskCancelled, TaskLost
from backupfw.manager import listing, messages, rows
from backupfw.manager.messages import Action, Detail, MessageManager
from backupfw.manager.outcomes.volumes import VolumeTasks
from backupfw.manager.queue import tasks
from backupfw.manager.usecases.snapshots import SnapshotManager
from backupfw.manager.usecases.volumes import VolumeManager
from tests.architecture.checkout import ROOT
from tests.unit.manager.support import World, check_audit
from tests.unit.manager.test_records import pack


@pytest.fixture
def world() -> World:
    """A world."""
    return World()


@pytest.fixture
def manager(world: World) -> MessageManager:
    """The messages of ``world``."""
    return MessageManager(world.db, world.conf)


def seen(manager: MessageManager, project: str = "p1") -> list[rows.Message]:
    """Return all messages, oldest first."""
    return list(manager.list(World.ctx(project), sort=[("created_at", "asc")]).items)


def backup_of(world: World, **values: Any) -> str:
    """Make an available backup and return its id."""
    made = world.backups.create(world.ctx(), volume_id=world.volume(), **values).id
    world.run_create()
    return made


def begin_create(world: World) -> str:
    return world.backups.create(world.ctx(), volume_id=world.volume()).id


def begin_import(world: World) -> str:
    url = pack({"id": str(uuid.uuid4()), "size": 1})
    return world.backups.import_record(world.ctx(), backup_service="x", backup_url=url).id


def begin_restore(world: World) -> str:
    backup = backup_of(world)
    world.backups.restore(world.ctx(), backup)
    return backup


def begin_delete(world: World) -> str:
    backup = backup_of(world)
    world.backups.delete(world.ctx(), backup)
    return backup


BEGINNINGS: list[tuple[Callable[[World], str], str, str, str]] = [
    (begin_create, "creating", "013_020", "error"),
    (begin_import, "importing", "102_102", "error"),
    (begin_restore, "restoring", "015_026", "available"),
    (begin_delete, "deleting", "014_025", "error_deleting"),
]
each_kind = pytest.mark.parametrize(("begin", "part", "event", "status"), BEGINNINGS)


@each_kind
def test_a_failure_is_reported(
    world: World,
    manager: MessageManager,
    begin: Callable[[World], str],
    part: str,
    event: str,
    status: str,
) -> None:
    backup = begin(world)
    assert seen(manager) == []
    task = world.claim()
    getattr(world.outcomes, part).fail(task, "It broke.")
    assert world.status(backup) == status
    (message,) = seen(manager)
    assert message.event_id == f"VOLUME_VOLUME_BACKUP_{event}"
    assert (message.resource_type, message.resource_uuid) == ("VOLUME_BACKUP", backup)
    assert (message.project_id, message.message_level) == ("p1", "ERROR")
    assert message.request_id == task.request_id
    assert message.guaranteed_until == message.created_at + timedelta(hours=1)
    assert manager.get(world.ctx(), message.id) == message
    # Once only: the task is over.
    with pytest.raises(TaskLost):
        getattr(world.outcomes, part).fail(task, "It broke.")
    assert len(seen(manager)) == 1


@each_kind
def test_what_no_worker_takes_in_time_is_reported(
    world: World,
    manager: MessageManager,
    begin: Callable[[World], str],
    part: str,
    event: str,
    status: str,
) -> None:
    backup = begin(world)
    with world.db.write() as session:
        session.execute(update(models.Service).values(disabled=True))
        later = now(session) + timedelta(seconds=world.conf.backup.service_wait + 1)
    assert world.expiry.expire(later) == 1
    assert world.expiry.expire(later) == 0
    assert world.status(backup) == status
    (message,) = seen(manager)
    assert message.event_id == f"VOLUME_VOLUME_BACKUP_{event[:3]}_018"
    assert message.user_message.endswith(": No backup service was available.")


@each_kind
def test_what_was_cancelled_is_not_reported(
    world: World,
    manager: MessageManager,
    begin: Callable[[World], str],
    part: str,
    event: str,
    status: str,
) -> None:
    backup = begin(world)
    task = world.claim()
    world.backups.reset_status(world.ctx(admin=True), backup, "error")
    with pytest.raises(TaskCancelled):
        getattr(world.outcomes, part).fail(task, "It broke.")
    assert seen(manager) == []


def test_success_is_not_reported(world: World, manager: MessageManager) -> None:
    backup = backup_of(world)
    world.backups.restore(world.ctx(), backup)
    world.run_restore()
    backup_of(world)
    assert seen(manager) == []


@pytest.mark.parametrize("detail", [Detail.SCHEDULE, Detail.DEVICE, Detail.ATTACH, Detail.VOLUME_STATE])
def test_a_message_has_the_detail_that_the_worker_knows(
    world: World, manager: MessageManager, detail: Detail
) -> None:
    begin_create(world)
    world.outcomes.creating.fail(world.claim(), "It broke.", detail)
    begin_restore(world)
    world.outcomes.restoring.fail(world.claim(tasks.BACKUP_RESTORE), "It broke.", detail)
    assert [message.event_id for message in seen(manager)] == [
        f"VOLUME_VOLUME_BACKUP_013_{detail.value}",
        f"VOLUME_VOLUME_BACKUP_015_{detail.value}",
    ]


def test_a_failed_deletion_is_reported_once(world: World, manager: MessageManager) -> None:
    backup = begin_delete(world)
    for _ in range(3):
        world.outcomes.deleting.fail(world.claim(tasks.BACKUP_DELETE), "It broke.")
        assert world.status(backup) == "error_deleting"
        with world.db.write() as session:
            session.execute(update(models.Task).values(not_before=None))
    assert len(seen(manager)) == 1
    # Asked for once more: reported once more.
    world.backups.force_delete(world.ctx(admin=True), backup)
    world.outcomes.deleting.fail(world.claim(tasks.BACKUP_DELETE), "It broke.")
    assert len(seen(manager)) == 2


def test_who_asked_gets_the_message(world: World, manager: MessageManager) -> None:
    backup = backup_of(world)
    world.backups.restore(world.ctx("p2", admin=True), backup)
    world.outcomes.restoring.fail(world.claim(), "It broke.")
    assert seen(manager) == []
    assert len(seen(manager, "p2")) == 1


@pytest.mark.parametrize("lost", ["never taken", "unreadable", None])
def test_an_incremental_backup_that_became_full_is_reported(
    world: World, manager: MessageManager, lost: str | None
) -> None:
    volume = world.volume()
    world.backups.create(world.ctx(), volume_id=volume)
    world.run_create()
    container = "elsewhere" if lost == "never taken" else None
    backup = world.backups.create(world.ctx(), volume_id=volume, incremental=True, container=container).id
    task = world.claim()
    plan = world.outcomes.creating.start(task)
    world.outcomes.creating.bind_source(task, "source", "full backup")
    world.outcomes.creating.finish(task, replace(world.result(plan), base_lost=lost == "unreadable"))
    assert world.status(backup) == "available"
    found = [(message.event_id, message.message_level) for message in seen(manager)]
    assert found == ([("VOLUME_VOLUME_BACKUP_013_030", "WARNING")] if lost else [])


def test_failures_of_volumes_and_snapshots_are_reported(world: World, manager: MessageManager) -> None:
    volumes = VolumeManager(world.db, world.conf, lambda: None)
    snapshots = SnapshotManager(world.db, world.conf, lambda: None)
    worker = VolumeTasks(world.db)
    world.conf.quota.per_volume_gigabytes = -1
    ctx = world.ctx()
    made = volumes.create(ctx, size=1).id
    worker.fail(world.claim(), "It broke.")
    volume = world.volume()
    volumes.extend(ctx, volume, new_size=2)
    worker.fail(world.claim(), "It broke.")
    assert world.row(models.Volume, volume).size == 1
    other = world.volume()
    snapshot = snapshots.create(ctx, volume_id=other).id
    worker.fail(world.claim(), "It broke.")
    snapshots.delete(ctx, snapshot)
    worker.fail(world.claim(), "It broke.")
    volumes.delete(ctx, made)
    worker.fail(world.claim(), "It broke.")
    assert [(message.event_id, message.resource_uuid) for message in seen(manager)] == [
        ("VOLUME_VOLUME_008_012", made),
        ("VOLUME_VOLUME_007_010", volume),
        ("VOLUME_VOLUME_SNAPSHOT_009_013", snapshot),
        ("VOLUME_VOLUME_SNAPSHOT_010_016", snapshot),
        ("VOLUME_VOLUME_101_001", made),
    ]


@pytest.mark.parametrize(("alive", "detail"), [(True, "003"), (False, "018")])
def test_volumes_and_snapshots_of_a_host_that_is_gone(
    world: World, manager: MessageManager, alive: bool, detail: str
) -> None:
    """Whatever was to be done with them ends, and what was spoken for is free again."""
    volumes = VolumeManager(world.db, world.conf, lambda: None)
    snapshots = SnapshotManager(world.db, world.conf, lambda: None)
    world.conf.quota.per_volume_gigabytes = -1
    ctx = world.ctx()
    source, grown, gone, other = (world.volume(host="gone") for _ in range(4))
    doomed = world.snapshot(other)
    made = volumes.create(ctx, size=1, source_volid=source).id
    volumes.extend(ctx, grown, new_size=5)
    volumes.delete(ctx, gone)
    snapshot = snapshots.create(ctx, volume_id=source).id
    snapshots.delete(ctx, doomed)
    if not alive:
        world.silence(seconds=601)
    world.age(seconds=500)
    assert world.expiry.expire() == 0
    world.age(seconds=101)
    assert world.expiry.expire() == 5
    assert world.expiry.expire() == 0
    assert world.rows(models.Task) == []
    assert [world.volume_status(volume) for volume in (source, made, grown, gone)] == [
        "available",
        "error",
        "error_extending",
        "error_deleting",
    ]
    assert world.row(models.Volume, grown).size == 1
    assert world.row(models.Snapshot, snapshot).status == "error"
    assert world.row(models.Snapshot, doomed).status == "error_deleting"
    assert {(message.event_id, message.resource_uuid) for message in seen(manager)} == {
        (f"VOLUME_VOLUME_008_{detail}", made),
        (f"VOLUME_VOLUME_007_{detail}", grown),
        (f"VOLUME_VOLUME_101_{detail}", gone),
        (f"VOLUME_VOLUME_SNAPSHOT_009_{detail}", snapshot),
        (f"VOLUME_VOLUME_SNAPSHOT_010_{detail}", doomed),
    }
    # Its host came back: each can be tried again.
    volumes.delete(ctx, gone)
    snapshots.delete(ctx, doomed)
    check_audit(world)


def test_a_volume_without_a_host_waits_for_any_worker(world: World) -> None:
    made = VolumeManager(world.db, world.conf, lambda: None).create(world.ctx(), size=1).id
    world.age(seconds=700)
    assert world.expiry.expire() == 0
    assert world.volume_status(made) == "creating"


def test_a_temporary_snapshot_is_deleted_in_the_end(world: World, manager: MessageManager) -> None:
    """Nobody sees it, so nobody could delete it again, or would know what a message is about."""
    volume = world.volume(host="gone")
    snapshot = world.snapshot(volume, status="deleting")
    with world.db.write() as session:
        session.get_one(models.Snapshot, snapshot).temporary = True
        tasks.add(
            session,
            tasks.SNAPSHOT_DELETE,
            resource_id=snapshot,
            source_id=volume,
            project_id="p1",
            request_id="r",
        )
    world.age(seconds=100_000)
    assert world.expiry.expire() == 0
    worker = VolumeTasks(world.db)
    worker.fail(world.claim(tasks.SNAPSHOT_DELETE), "It broke.")
    assert seen(manager) == []
    assert world.tasks.claim("host/w", 60) is None
    world.age(seconds=301)
    worker.finish_delete_snapshot(world.claim(tasks.SNAPSHOT_DELETE))
    assert world.row(models.Snapshot, snapshot).deleted


def post(world: World, project: str = "p1", age: float = 0) -> str:
    """Add a message of an age in seconds; return its id."""
    resource = str(uuid.uuid4())
    with world.db.write() as session:
        messages.post(
            session,
            Action.CREATE_BACKUP,
            Detail.CREATE_BACKUP,
            project_id=project,
            request_id="req-1",
            resource_type=messages.BACKUP,
            resource_id=resource,
        )
        row = session.scalars(select(models.Message).where(models.Message.resource_uuid == resource)).one()
        row.created_at = now(session) - timedelta(seconds=age)
        return row.id


def test_every_pair_has_a_text() -> None:
    for action in Action:
        for detail in Detail:
            what, _, why = messages.text(action.value, detail.value).partition(": ")
            assert what
            assert why.endswith(".")
    assert messages.text("999", "998") == "unknown operation: The operation failed."


def test_the_page_of_the_api_has_every_action_and_detail() -> None:
    page = (ROOT / "docs" / "api.md").read_text().split("## Messages")[1].split("Clients know")[0]
    cells = [line.split("|")[1:5] for line in page.splitlines() if line.startswith("| ")]
    actions, details = (
        set(re.findall(r"\d{3}", " ".join(cell[column] for cell in cells))) for column in (0, 2)
    )
    assert actions == {action.value for action in Action}
    assert details == {detail.value for detail in Detail}


def test_old_messages_are_hidden_and_purged(any_db: Database) -> None:
    world = World(database=any_db)
    manager = MessageManager(world.db, world.conf)
    known = [post(world, age=age) for age in (3700, 3601, 3500, 0)]
    assert [message.id for message in seen(manager)] == known[2:]
    assert [message.id for message in manager.list(world.ctx(), limit=1, marker=known[3]).items] == known[2:3]
    assert manager.list(world.ctx(), with_count=True).total == 2
    for message_id in known[:2]:
        with pytest.raises(MessageNotFound):
            manager.get(world.ctx(), message_id)
        with pytest.raises(MessageNotFound):
            manager.delete(world.ctx(), message_id)
    assert manager.purge() == 2
    assert manager.purge() == 0
    assert {row.id for row in world.rows(models.Message)} == set(known[2:])


def test_a_purge_takes_any_number(
    world: World, manager: MessageManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listing, "_BATCH", 2)
    for _ in range(5):
        post(world, age=4000)
    assert manager.purge() == 5
    assert world.rows(models.Message) == []


def test_a_project_sees_only_its_own_messages(world: World, manager: MessageManager) -> None:
    mine = post(world)
    theirs = post(world, "p2")
    assert [message.id for message in seen(manager)] == [mine]
    assert len(manager.list(world.ctx(admin=True), all_tenants=True).items) == 2
    assert len(manager.list(world.ctx(), all_tenants=True).items) == 1
    for call in (manager.get, manager.delete):
        with pytest.raises(MessageNotFound):
            call(world.ctx(), theirs)
    with pytest.raises(MarkerNotFound):
        manager.list(world.ctx(), marker=theirs)
    assert manager.get(world.ctx(admin=True), theirs).id == theirs
    manager.delete(world.ctx(admin=True), theirs)
    manager.delete(world.ctx(), mine)
    assert world.rows(models.Message) == []

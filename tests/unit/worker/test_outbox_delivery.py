"""Which events are sent while a worker works, and that no task waits for a send."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from backupfw.db import models
from backupfw.manager.queue.outbox import Outbox
from backupfw.manager.rows import Task
from backupfw.manager.usecases.backups import BackupManager
from tests.unit.manager.support import WIRE
from tests.unit.worker.world import WorkerWorld

KEYS = {
    "tenant_id",
    "user_id",
    "availability_zone",
    "backup_id",
    "host",
    "display_name",
    "created_at",
    "status",
    "volume_id",
    "size",
    "service_metadata",
    "service",
    "fail_reason",
    "parent_id",
    "num_dependent_backups",
    "snapshot_id",
}


class Heard:
    """Remembers what was sent."""

    def __init__(self) -> None:
        self.events: list[tuple[str, Mapping[str, Any], Mapping[str, Any]]] = []

    def __call__(self, event: str, payload: Mapping[str, Any], context: Mapping[str, Any]) -> None:
        self.events.append((event, payload, context))

    def names(self, backup_id: str) -> list[tuple[str, str]]:
        """Events and the status in each, of one backup."""
        return [(event, body["status"]) for event, body, _ in self.events if body["backup_id"] == backup_id]


@pytest.fixture
def world(tmp_path: Path) -> WorkerWorld:
    return WorkerWorld(tmp_path)


@contextmanager
def listening(world: WorkerWorld, send: Any) -> Iterator[Outbox]:
    """Send a worker's events as a process does, by a thread of its own; in the end all of them."""
    nudged, over = threading.Event(), threading.Event()
    outbox = Outbox(world.db, send, nudged.set)
    world.tools = replace(world.tools, outbox=outbox)
    world.backups = BackupManager(world.db, world.conf, world.dispatch.wake, outbox=outbox)

    def deliver() -> None:
        last = False
        while not last:
            nudged.wait()
            nudged.clear()
            last = over.is_set()
            outbox.deliver(send)

    thread = threading.Thread(target=deliver)
    thread.start()
    try:
        yield outbox
    finally:
        over.set()
        nudged.set()
        thread.join()


def test_every_operation_begins_and_ends(world: WorkerWorld) -> None:
    heard = Heard()
    ctx = world.ctx()
    volume = world.filled_volume(b"data" * 4096)
    with listening(world, heard), world.worker():
        full = world.backups.create(ctx, volume_id=volume).id
        world.wait_backup(full, "available")
        child = world.backups.create(ctx, volume_id=volume, incremental=True).id
        world.wait_backup(child, "available")
        world.backups.restore(ctx, full)
        world.wait_backup(full, "available")
        world.wait_idle()
        world.backups.reset_status(world.ctx(admin=True), full, "error")
        world.backups.delete(ctx, full)
        world.wait_idle()
        world.wait(lambda: ("backup.delete.end", "deleted") in heard.names(full), "the end to be sent")
    sent = [item for item in heard.names(full) if item[0] != "backup.createprogress"]
    assert sent == [
        ("backup.create.start", "creating"),
        ("backup.create.end", "available"),
        ("backup.restore.start", "restoring"),
        ("backup.restore.end", "available"),
        ("backup.reset_status.start", "available"),
        ("backup.reset_status.end", "error"),
        ("backup.delete.start", "deleting"),
        ("backup.delete.end", "deleted"),
    ]
    ends = {body["backup_id"]: body for event, body, _ in heard.events if event == "backup.create.end"}
    assert set(ends[full]) == KEYS
    assert ends[full]["service"] == WIRE
    assert ends[full]["num_dependent_backups"] == 0
    assert ends[child]["parent_id"] == full
    restored = next(body for event, body, _ in heard.events if event == "backup.restore.end")
    assert restored["num_dependent_backups"] == 1
    request = next(context for event, _, context in heard.events if event == "backup.create.end")
    assert (request["request_id"], request["project_id"]) == (ctx.request_id, "p1")
    numbers = [context["notice_id"] for event, _, context in heard.events if "progress" not in event]
    assert numbers == sorted(set(numbers))


def test_an_end_says_why_it_failed_and_a_retry_is_no_end(world: WorkerWorld) -> None:
    heard = Heard()
    with listening(world, heard), world.worker():
        # It is longer than what the provider has of it.
        volume = world.volume()
        backup = world.backups.create(world.ctx(), volume_id=volume).id
        world.wait_backup(backup, "error")
        world.wait(lambda: len(heard.names(backup)) == 2, "the end to be sent")
    assert heard.names(backup) == [("backup.create.start", "creating"), ("backup.create.end", "error")]
    assert heard.events[-1][1]["fail_reason"]


def test_progress_is_a_true_percentage(world: WorkerWorld) -> None:
    heard = Heard()
    outbox = Outbox(world.db, heard)
    backup = world.backups.create(world.ctx(), volume_id=world.volume())
    task = world.claim()
    for done, total in ((0, 1000), (335, 1000), (1000, 1000), (5, 0)):
        outbox.progressed(task, done, total)
    assert [body["backup_percent"] for _, body, _ in heard.events] == [0, 33, 100]
    assert {event for event, _, _ in heard.events} == {"backup.createprogress"}
    assert set(heard.events[0][1]) == KEYS | {"backup_percent"}
    assert backup.id == heard.events[0][1]["backup_id"]


def test_a_sender_that_fails_fails_no_task(world: WorkerWorld) -> None:
    def broken(*_: Any) -> None:
        raise OSError("the bus is away")

    outbox = Outbox(world.db, broken)
    world.tools = replace(world.tools, outbox=outbox)
    with world.worker():
        backup = world.backups.create(world.ctx(), volume_id=world.filled_volume(b"x" * 4096)).id
        world.wait_backup(backup, "available")
    with pytest.raises(OSError, match="away"):
        outbox.deliver(broken)
    assert [row.event for row in world.rows(models.OutboxEvent)] == [
        "backup.create.start",
        "backup.create.end",
    ]


def test_no_event_is_stored_or_read_when_none_is_sent(world: WorkerWorld) -> None:
    Outbox(world.db)
    backup = world.backup(world.volume())
    world.backups.reset_status(world.ctx(admin=True), backup.id, "error")
    assert world.rows(models.OutboxEvent) == []
    world.db.close()
    Outbox(world.db).progressed(Task(1, "backup.create", "id", None, "p", "req", 1), 1, 2)

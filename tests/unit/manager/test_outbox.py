"""Events are sent at least once and in order, even if their sender dies."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import update

from backupfw.db import models
from backupfw.db.session import Database, now
from backupfw.errors import TaskLost
from backupfw.manager.queue import tasks
from backupfw.manager.queue.outbox import Outbox
from tests.unit.db.lost_answers import lost_answers
from tests.unit.manager.support import World


@pytest.fixture
def world(any_db: Database) -> World:
    world = World(database=any_db)
    Outbox(world.db, lambda *_: None)
    return world


def deliver(world: World, during: Callable[[], object] = lambda: None) -> list[tuple[str, str]]:
    """Send all stored events, as any process may; returns the events and the status in each."""
    sent: list[tuple[str, str]] = []

    def send(event: str, payload: Mapping[str, Any], _context: Mapping[str, Any]) -> None:
        during()
        sent.append((event, payload["status"]))

    Outbox(world.db, send).deliver(send)
    return sent


def test_events_of_a_process_that_died_are_sent_by_another(world: World) -> None:
    """Each holds the backup as it was then; a commit that failed has no event."""
    backup = world.backup(world.volume())
    world.backups.restore(world.ctx(), backup.id)
    task = world.claim()
    world.outcomes.restoring.fail(task, "It broke.")
    with pytest.raises(TaskLost):
        world.outcomes.restoring.finish(task)
    world.backups.delete(world.ctx(), backup.id)
    world.run_delete()
    assert deliver(world) == [
        ("backup.create.start", "creating"),
        ("backup.create.end", "available"),
        ("backup.restore.start", "restoring"),
        ("backup.restore.end", "available"),
        ("backup.delete.start", "deleting"),
        ("backup.delete.end", "deleted"),
    ]
    assert deliver(world) == []


def test_lost_answers_double_nothing(world: World) -> None:
    world.backups.create(world.ctx(), volume_id=world.volume())
    with lost_answers(world.db):
        task = world.claim()
    plan = world.outcomes.creating.start(task)
    world.outcomes.creating.bind_source(task, "source", "full backup")
    with lost_answers(world.db):
        world.outcomes.creating.finish(task, world.result(plan))
    assert deliver(world) == [("backup.create.start", "creating"), ("backup.create.end", "available")]


def test_every_end_is_sent(world: World) -> None:
    """Also of a task that expired, that was cancelled, and whose backup was reset."""
    expired = world.backups.create(world.ctx(), volume_id=world.volume()).id
    world.claim()
    world.silence(seconds=700)
    world.age(seconds=700)
    assert world.expiry.expire() == 1
    assert world.status(expired) == "error"
    world.services.heartbeat("host", "cinder-backup", "nova", {"main": "x"})
    cancelled = world.backups.create(world.ctx(), volume_id=world.volume()).id
    task = world.claim(tasks.BACKUP_CREATE)
    world.backups.reset_status(world.ctx(admin=True), cancelled, "error")
    world.tasks.discard(task)
    # Nobody had begun it.
    unheard = world.backups.create(world.ctx(), volume_id=world.volume()).id
    world.backups.reset_status(world.ctx(admin=True), unheard, "error")
    assert deliver(world) == [
        ("backup.create.start", "creating"),
        ("backup.create.end", "error"),
        ("backup.create.start", "creating"),
        ("backup.reset_status.start", "creating"),
        ("backup.reset_status.end", "error"),
        ("backup.create.end", "error"),
        ("backup.reset_status.start", "creating"),
        ("backup.reset_status.end", "error"),
    ]


def test_one_that_is_being_sent_is_waited_for_until_its_sender_counts_as_dead(world: World) -> None:
    world.backup(world.volume())
    sending, go_on = threading.Event(), threading.Event()

    def hang() -> None:
        sending.set()
        assert go_on.wait(60)

    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(deliver, world, hang)
        try:
            assert sending.wait(60)
            assert deliver(world) == [], "the second of a backup came before the first"
            with world.db.write() as session:
                past = now(session) - timedelta(seconds=1)
                session.execute(
                    update(models.OutboxEvent)
                    .where(models.OutboxEvent.taken_until.is_not(None))
                    .values(taken_until=past)
                )
            both = [("backup.create.start", "creating"), ("backup.create.end", "available")]
            assert deliver(world) == both
        finally:
            go_on.set()
        # It was not dead: the event is sent twice, under the same number, and what is after it only once.
        assert first.result(60) == both[:1]
    assert world.rows(models.OutboxEvent) == []

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
from backupfw.manager.queue import outbox, tasks
from backupfw.manager.queue.outbox import Outbox
from tests.unit.db.lost_answers import lost_answers
from tests.unit.manager.support import World

Alert = dict[str, Any]


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


class TestAlerts:
    """What operators are told, and how it waits; in each way apart from the others and from the bus."""

    @pytest.fixture(autouse=True)
    def _ways(self, world: World) -> None:
        Outbox(world.db, lambda *_: None, ways=("webhook", "mail"))

    @pytest.fixture
    def fails(self, world: World) -> Callable[[], tuple[str, str]]:
        def fail() -> tuple[str, str]:
            volume = world.volume()
            backup = world.backups.create(world.ctx(), volume_id=volume).id
            world.outcomes.creating.fail(world.claim(tasks.BACKUP_CREATE), "It broke.")
            return backup, volume

        return fail

    def sent(self, world: World, way: str = "webhook", most: int = outbox.MOST_WAITING) -> list[list[Alert]]:
        """Send the alerts of a way, as any process may; returns what was sent together."""
        sent: list[list[Alert]] = []
        Outbox(world.db).deliver_alerts(way, lambda alerts: sent.append([dict(one) for one in alerts]), most)
        return sent

    def age(self, world: World, seconds: float = outbox.GATHER_SECONDS) -> None:
        with world.db.write() as session:
            then = now(session) - timedelta(seconds=seconds)
            session.execute(update(models.OutboxEvent).values(created_at=then))

    def test_what_fails_is_told_once_in_each_way(self, world: World, fails: Callable[[], Any]) -> None:
        backup, volume = fails()
        self.age(world)
        for way in ("webhook", "mail"):
            ((alert,),) = self.sent(world, way)
            assert alert.pop("id")
            assert alert.pop("at").endswith("Z")
            assert alert == {
                "event": "backup.create.failed",
                "text": f"Backup {backup} of volume {volume}:"
                " create backup: The backup could not be made. It broke.",
                "tenant_id": "p1",
                "backup_id": backup,
                "volume_id": volume,
                "fail_reason": "It broke.",
            }
            assert self.sent(world, way) == []
        # The bus has its own events, and none of these.
        assert deliver(world) == [("backup.create.start", "creating"), ("backup.create.end", "error")]
        assert world.rows(models.OutboxEvent) == []

    def test_they_are_gathered_and_sent_together(self, world: World, fails: Callable[[], Any]) -> None:
        fails()
        self.age(world, outbox.GATHER_SECONDS - 5)
        fails()
        assert self.sent(world) == []
        self.age(world)
        assert [len(alerts) for alerts in self.sent(world)] == [2]
        for _ in range(3):
            fails()
        self.age(world)
        assert [len(alerts) for alerts in self.sent(world, most=2)] == [2, 1]

    def test_a_way_that_is_down_holds_up_nothing(self, world: World, fails: Callable[[], Any]) -> None:
        fails()
        self.age(world)

        def broken(_alerts: object) -> None:
            assert self.sent(world) == [], "another process sends what this one is sending"
            raise OSError("It is down.")

        for _ in range(2):
            # It is tried again at once: nothing is left taken.
            with pytest.raises(OSError, match="down"):
                Outbox(world.db).deliver_alerts("webhook", broken)
        assert len(self.sent(world, "mail")) == 1
        assert len(deliver(world)) == 2
        assert len(self.sent(world)) == 1

    def test_what_waits_is_bounded(self, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(outbox, "MOST_WAITING", 3)
        monkeypatch.setattr(outbox, "_BATCH", 2)
        told = Outbox(world.db, ways=("webhook", "mail"))
        for number in range(5):
            told.alert("store.down", f"{number}")
        self.age(world)
        ((*alerts,),) = self.sent(world)
        assert [alert["text"] for alert in alerts] == ["2", "3", "4"]
        assert len(world.rows(models.OutboxEvent)) == 5, "the other way has its own"

    def test_who_cancels_knows_it(self, world: World) -> None:
        backup = world.backups.create(world.ctx(), volume_id=world.volume()).id
        world.backups.cancel(world.ctx(), backup)
        self.age(world)
        assert self.sent(world) == []

    def test_a_damaged_object_is_told_once(self, world: World) -> None:
        backup = world.backup(world.volume())
        found = world.outcomes.damaged_objects
        for _ in range(2):
            found.record(
                "main",
                "box",
                "a/key",
                "Its checksum is wrong.",
                str(world.row(models.Backup, backup.id).manifest_id),
            )
        self.age(world)
        ((alert,),) = self.sent(world)
        assert (alert["event"], alert["store"], alert["key"]) == ("object.damaged", "main", "a/key")
        assert alert["text"].endswith("a/key in container box of the store main: Its checksum is wrong.")

    def test_nothing_is_stored_where_nothing_is_sent(self, world: World, fails: Callable[[], Any]) -> None:
        world.db.info.clear()
        fails()
        Outbox(world.db).alert("store.down", "It is down.")
        assert world.rows(models.OutboxEvent) == []

"""What a transaction decides that had to wait for a lock: from what is there when it goes on."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

import pytest
from sqlalchemy import select, text, update
from sqlalchemy.orm import Session

from backupfw.db import locks
from backupfw.db.digest import object_digest
from backupfw.db.models import Backup, DamagedObject, Manifest, Task, Volume, VolumeMetadata
from backupfw.db.session import Database, now
from backupfw.manager import metadata
from backupfw.manager.lineage import manifests
from backupfw.manager.outcomes.backups import RestoredVolume
from backupfw.manager.outcomes.creating import CreatePlan, CreateTasks
from tests.unit.manager.lineage_rows import manifest
from tests.unit.manager.support import World
from tests.unit.tables import create_tables

Result = TypeVar("Result")

#: Statements that count the transactions that wait for a lock.
WAITING = {
    "postgresql": "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'",
    "mysql": "SELECT count(*) FROM information_schema.innodb_trx WHERE trx_state = 'LOCK WAIT'",
}


def while_it_waits(
    db: Database, waiter: Callable[[], Result], holder: Callable[[Callable[[], None]], None]
) -> Result:
    """Run ``holder`` in the middle of whose transaction ``waiter`` starts; return what that returns.

    :param holder: is given a function that starts the waiter and returns when it waits for a lock.
    """
    results: list[Result] = []
    thread = threading.Thread(target=lambda: results.append(waiter()))

    def start() -> None:
        thread.start()
        deadline = time.monotonic() + 60
        while True:
            with db.engine.connect() as connection:
                if connection.scalar(text(WAITING[db.backend])):
                    return
            assert thread.is_alive(), "it did not wait"
            assert time.monotonic() < deadline
            # MariaDB tells what it told before, to whoever asks again within a tenth of a second.
            time.sleep(0.3)

    holder(start)
    thread.join(60)
    (result,) = results
    return result


@pytest.fixture
def server_db(any_db: Database) -> Database:
    if any_db.backend == "sqlite":
        pytest.skip("declared: servers only, SQLite takes one writer at a time")
    create_tables(any_db)
    return any_db


@pytest.mark.server
def test_a_release_sees_a_child_that_came_while_it_waited(server_db: Database) -> None:
    db = server_db
    with db.write() as session:
        for row in (manifest("7x", None, "released"), manifest("8a", "7x"), manifest("9b", "7x")):
            session.add(row)
            session.flush()

    def search() -> list[str]:
        with db.write() as session:
            return [row.id for row in manifests.relatives(session, "7x")]

    def held(start: Callable[[], None]) -> None:
        with db.write() as session:
            assert manifests.take(session, "8a")
            start()
            # Meanwhile 9b gets a child, which is finished, and loses its own record.
            other = threading.Thread(target=child)
            other.start()
            other.join()

    def child() -> None:
        with db.write() as session:
            assert manifests.take(session, "9b")
            session.add(manifest("1c", "9b"))
        with db.write() as session:
            session.execute(update(Manifest).where(Manifest.id == "9b").values(state="released"))

    assert sorted(while_it_waits(db, search, held)) == ["1c", "8a"]
    with db.read() as session:
        assert session.scalar(select(Manifest.state).where(Manifest.id == "9b")) == "released"


def when_committed_first(
    db: Database, waiter: Callable[[], object], first: Callable[[Session], object]
) -> None:
    """Run ``waiter`` in the middle of a transaction that does ``first``; it goes on after its commit."""

    def held(start: Callable[[], None]) -> None:
        with db.write() as session:
            first(session)
            start()

    while_it_waits(db, waiter, held)


@pytest.mark.server
def test_a_restore_ends_well_while_its_user_sets_the_same_key(server_db: Database) -> None:
    world = World(database=server_db)
    backup = world.backup(world.volume())
    target = world.volume()
    world.backups.restore(world.ctx(), backup.id, volume_id=target)

    def set_by_the_user(session: Session) -> None:
        locks.lock(session, Volume, Volume.id == target)
        locks.put(session, VolumeMetadata, [{"volume_id": target, "key": "k", "value": "user's"}])

    when_committed_first(
        server_db,
        lambda: world.run_restore(RestoredVolume(metadata={"k": "source's", "other": "1"})),
        set_by_the_user,
    )
    with server_db.read() as session:
        assert metadata.pairs(session, VolumeMetadata, target)["k"] == "source's"
    assert world.volume_status(target) == "available"


@pytest.mark.server
def test_damage_is_recorded_by_two_at_once(server_db: Database) -> None:
    world = World(database=server_db)
    manifest = world.row(Backup, world.backup(world.volume()).id).manifest_id

    def recorded(session: Session) -> None:
        row = {"digest": object_digest("main", "box", "k"), "store": "main", "container": "box", "key": "k"}
        locks.put(session, DamagedObject, [{**row, "reason": "missing", "found_at": now(session)}])

    when_committed_first(
        server_db,
        lambda: world.outcomes.damaged_objects.record("main", "box", "k", "wrong", manifest),
        recorded,
    )
    with server_db.read() as session:
        assert session.scalars(select(DamagedObject.reason)).all() == ["wrong"]


@pytest.mark.server
def test_a_backup_is_stopped_whose_first_attempt_is_just_being_planned(
    server_db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever stops it waits for the transaction in which it gets its manifest."""
    world = World(database=server_db)
    made = world.backups.create(world.ctx(), volume_id=world.volume())
    task = world.claim()

    def begun(start: Callable[[], None]) -> None:
        plan = CreateTasks._plan

        def planned(*arguments: Any) -> CreatePlan:
            start()
            return plan(*arguments)

        monkeypatch.setattr(CreateTasks, "_plan", planned)
        world.outcomes.creating.start(task)

    reset = world.ctx(admin=True)
    while_it_waits(server_db, lambda: world.backups.reset_status(reset, made.id, "error"), begun)
    (row,) = world.rows(Manifest)
    assert row.state == "released"
    (release,) = world.rows(Task, Task.kind == "manifest.release")
    assert release.resource_id == row.id

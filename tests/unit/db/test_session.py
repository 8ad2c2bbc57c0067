"""Transactions: what is committed, what is not, who waits for whom, what time it is."""

from __future__ import annotations

import logging
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from oslo_db.exception import DBConnectionError, DBDeadlock, DBDuplicateEntry, DBReferenceError
from sqlalchemy import delete, event, func, select, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from backupfw.db import models
from backupfw.db import session as session_module
from backupfw.db.session import Database
from tests.servers.ports import free_port
from tests.unit.db.conftest import any_db as db
from tests.unit.db.lost_answers import lost_answers
from tests.unit.tables import create_tables

__all__ = ["db"]


@pytest.fixture(autouse=True)
def _tables(db: Database) -> None:
    create_tables(db)


def _count(db: Database) -> int:
    with db.read() as session:
        return session.scalar(select(func.count()).select_from(models.Project)) or 0


def test_an_error_rolls_back(db: Database) -> None:
    def fail() -> None:
        with db.write() as session:
            session.add(models.Project(id="a"))
            session.flush()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert _count(db) == 0
    with db.write() as session:
        session.add(models.Project(id="a"))
    assert _count(db) == 1
    with db.read() as session:
        session.add(models.Project(id="b"))
        session.flush()
    assert _count(db) == 1


def test_errors_are_oslos_on_every_database(db: Database) -> None:
    with db.write() as session:
        session.add(models.Project(id="a"))
    with pytest.raises(DBDuplicateEntry), db.write() as session:
        session.add(models.Project(id="a"))
    with pytest.raises(DBReferenceError), db.write() as session:
        session.add(models.VolumeMetadata(volume_id="none", key="k", value="v"))


def test_text_is_compared_byte_for_byte(db: Database) -> None:
    with db.write() as session:
        session.add_all(models.Project(id=name) for name in ("a", "A", "ä", "\U0001f4be"))
    with db.read() as session:
        assert session.scalars(select(models.Project.id).where(models.Project.id == "A")).all() == ["A"]
        assert session.get(models.Project, "\U0001f4be") is not None


def test_transactions_do_not_nest(db: Database) -> None:
    with db.read(), pytest.raises(RuntimeError), db.write():
        pass
    with db.write():
        pass


def test_a_statement_that_is_kept_has_the_time_of_each(db: Database) -> None:
    kept = select(db.clock().label("moment"))
    before, then = (db.fetch(kept, {})[0].moment for _ in range(2))
    assert before < then
    with db.read() as session:
        assert then <= db.now(session)


def test_the_clock_is_utc_with_microseconds(db: Database) -> None:
    before = datetime.now(UTC).replace(tzinfo=None)
    with db.read() as session:
        moments = [db.now(session) for _ in range(5)]
    after = datetime.now(UTC).replace(tzinfo=None)
    slack = timedelta(seconds=2)
    assert all(moment.tzinfo is None for moment in moments)
    assert before - slack <= moments[0] <= moments[-1] <= after + slack
    assert any(moment.microsecond % 1000 for moment in moments)


def test_times_keep_their_microseconds_and_lose_their_zone(db: Database) -> None:
    zone = timezone(timedelta(hours=2))
    with db.write() as session:
        session.add(
            models.Installation(id=1, uuid="x", created_at=datetime(2026, 1, 2, 3, 4, 5, 678901, zone))
        )
    with db.read() as session:
        assert session.get_one(models.Installation, 1).created_at == datetime(2026, 1, 2, 1, 4, 5, 678901)


def test_writers_run_one_after_the_other(db: Database) -> None:
    with db.write() as session:
        session.add(models.Quota(project_id="p", resource="r", hard_limit=0))

    def add() -> None:
        for _ in range(10):
            # Read, then write what was read: only turns (or a lock) keep the count right.
            def work(session: object) -> None:
                row = session.scalar(select(models.Quota).with_for_update())  # type: ignore[attr-defined]
                row.hard_limit += 1

            db.run(work)

    threads = [threading.Thread(target=add) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with db.read() as session:
        assert session.scalar(select(models.Quota.hard_limit)) == 60


def test_a_deadlock_is_tried_again(db: Database) -> None:
    tries = []

    def work(session: object) -> int:
        tries.append(1)
        session.add(models.Project(id="a"))  # type: ignore[attr-defined]
        session.flush()  # type: ignore[attr-defined]
        if len(tries) < 3:
            raise DBDeadlock
        return 7

    assert db.run(work) == 7
    assert len(tries) == 3
    assert _count(db) == 1


def test_a_repetition_that_is_refused_asks_what_was_done(db: Database) -> None:
    def add(session: Session) -> str:
        session.add(models.Project(id="a"))
        session.flush()
        return "added"

    def found(session: Session) -> str | None:
        return "found" if session.get(models.Project, "a") is not None else None

    with lost_answers(db) as lost:
        assert db.run(add, found) == "found"
    assert lost() == 1
    # A refusal that follows no lost connection is one, and so is one of something that was not done.
    with pytest.raises(DBDuplicateEntry):
        db.run(add, found)
    with db.write() as session:
        session.execute(delete(models.Project))
    with lost_answers(db), pytest.raises(DBDuplicateEntry):
        db.run(add, lambda session: None)
    assert _count(db) == 1


def test_two_transactions_that_lock_in_opposite_order_both_end(db: Database) -> None:
    with db.write() as session:
        session.add_all(models.Quota(project_id=name, resource="r", hard_limit=0) for name in "ab")
    barrier = threading.Barrier(2)
    met = threading.local()

    def both(order: str) -> None:
        def work(session: object) -> None:
            for name in order:
                row = session.get(models.Quota, (name, "r"), with_for_update=True)  # type: ignore[attr-defined]
                row.hard_limit += 1
                session.flush()  # type: ignore[attr-defined]
                if db.backend != "sqlite" and not getattr(met, "done", False):
                    met.done = True
                    barrier.wait(60)

        db.run(work)

    threads = [threading.Thread(target=both, args=(order,)) for order in ("ab", "ba")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with db.read() as session:
        assert session.scalars(select(models.Quota.hard_limit)).all() == [2, 2]


def test_servers_read_what_is_committed_on_every_connection(db: Database) -> None:
    if db.backend == "sqlite":
        pytest.skip("declared: servers only")
    question = {"postgresql": "SHOW transaction_isolation", "mysql": "SELECT @@tx_isolation"}[db.backend]
    for transaction in (db.read, db.write, db.read):
        with transaction() as session:
            level = str(session.execute(text(question)).scalar())
        assert level.lower().replace("-", " ") == "read committed"


def test_a_frozen_process_gives_its_locks_back(db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that stands still in the middle of a transaction holds the others up for a while, not for ever."""
    if db.backend == "sqlite":
        pytest.skip("declared: servers only")
    with db.write() as session:
        session.add(models.Quota(project_id="p", resource="r", hard_limit=0))
    monkeypatch.setattr(session_module, "IDLE_SECONDS", 1)
    frozen = Database(db.engine.url.render_as_string(hide_password=False))

    def add_one(session: Session) -> None:
        session.get_one(models.Quota, ("p", "r"), with_for_update=True).hard_limit += 1

    tries = []

    def stand_still(session: Session) -> None:
        add_one(session)
        session.flush()
        tries.append(1)
        if len(tries) == 1:
            with ThreadPoolExecutor(1) as pool:
                pool.submit(db.run, add_one).result(60)

    try:
        # Its first try was ended by the server; it begins again as after any lost connection.
        frozen.run(stand_still)
    finally:
        frozen.close()
    with db.read() as session:
        assert session.scalar(select(models.Quota.hard_limit)) == 2
    # More, if this process stood still by itself; what was added once is what counts.
    assert len(tries) >= 2


@pytest.mark.parametrize("db", [pytest.param("mariadb", marks=pytest.mark.server)], indirect=True)
def test_a_lock_that_is_not_given_back_is_tried_for_again(
    db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the server ends no idle transactions, the wait for its locks ends all the same."""
    with db.write() as session:
        session.add(models.Quota(project_id="p", resource="r", hard_limit=0))
    monkeypatch.setattr(session_module, "LOCK_SECONDS", 1)
    hasty = Database(db.engine.url.render_as_string(hide_password=False))
    tries: list[int] = []
    second = threading.Event()

    def add_one(session: Session) -> None:
        tries.append(1)
        if len(tries) == 2:
            second.set()
        session.get_one(models.Quota, ("p", "r"), with_for_update=True).hard_limit += 1

    try:
        with ThreadPoolExecutor(1) as pool:
            with db.write() as session:
                session.get_one(models.Quota, ("p", "r"), with_for_update=True).hard_limit += 1
                session.flush()
                waiting = pool.submit(hasty.run, add_one)
                assert second.wait(60)
            waiting.result(60)
    finally:
        hasty.close()
    with db.read() as session:
        assert session.scalar(select(models.Quota.hard_limit)) == 2


@pytest.mark.parametrize("known", [True, False])
def test_the_idle_limit_is_set_where_the_server_has_one(known: bool) -> None:
    """MariaDB has it, MySQL has not; neither refuses the connection."""
    said: list[str] = []

    class Cursor:
        def __enter__(self) -> Cursor:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def execute(self, statement: str) -> None:
            said.append(statement)

        def fetchall(self) -> object:
            return [("idle_transaction_timeout", "0")] if known else []

    class Connection:
        cursor = Cursor

    session_module._mysql_connect(Connection(), None)
    assert any("SET SESSION idle_transaction_timeout" in statement for statement in said) is known


def test_sqlite_is_set_up_to_last(db: Database) -> None:
    if db.backend != "sqlite":
        pytest.skip("declared: SQLite only")
    with db.read() as session:
        values = {
            name: session.execute(text(f"PRAGMA {name}")).scalar()
            for name in ("journal_mode", "synchronous", "foreign_keys")
        }
    assert values == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1}


def test_connections_to_a_sqlite_file_are_kept(tmp_path: Path) -> None:
    made: list[object] = []
    database = Database(f"sqlite:///{tmp_path}/kept.sqlite")
    try:
        event.listen(database.engine, "connect", lambda connection, _record: made.append(connection))
        for _ in range(5):
            with database.write() as session:
                session.execute(text("SELECT 1"))
            with database.read() as session:
                # Whoever made it: every connection is set up in the same way.
                assert session.scalar(text("PRAGMA foreign_keys")) == 1
        assert len(made) == 1
    finally:
        database.close()


def test_no_connection_to_a_sqlite_file_keeps_old_statistics_for_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session_module, "_CONNECTION_SECONDS", 60)
    made: list[object] = []
    database = Database(f"sqlite:///{tmp_path}/kept.sqlite")
    moment = time.time()
    try:
        event.listen(database.engine, "connect", lambda connection, _record: made.append(connection))
        for later, expected in ((0, 1), (30, 1), (90, 2), (120, 2)):
            monkeypatch.setattr(time, "time", lambda later=later: moment + later)
            with database.read() as session:
                session.execute(text("SELECT 1"))
            assert len(made) == expected
    finally:
        monkeypatch.undo()
        database.close()


def test_a_snapshot_is_one_state(db: Database) -> None:
    def add() -> None:
        with db.write() as session:
            session.add(models.Project(id=str(uuid.uuid4())))

    add()
    with db.snapshot() as session:
        count = select(func.count()).select_from(models.Project)
        assert session.scalar(count) == 1
        other = threading.Thread(target=add)
        other.start()
        other.join()
        assert session.scalar(count) == 1
    # Only that transaction was so.
    with db.read() as session:
        assert session.scalar(count) == 2


def test_a_server_that_is_away_is_a_lost_connection(db: Database) -> None:
    """Whatever words its client has for it: so work is tried again, and tasks are not given up for it."""
    if db.backend == "sqlite":
        pytest.skip("declared: servers only")
    away = Database(db.engine.url.render_as_string(hide_password=False), max_retries=0)
    port = free_port()

    def nobody_there(_dialect: Any, _record: Any, _arguments: Any, parameters: dict[str, Any]) -> None:
        parameters["port"] = port

    event.listen(away.engine, "do_connect", nobody_there)
    try:
        with pytest.raises(DBConnectionError), away.read() as session:
            session.execute(text("SELECT 1"))
    finally:
        away.close()


def test_a_refusal_at_the_first_connection_is_not_tried_again(
    db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A wrong user or password: waiting would not heal it, and a command would hang."""
    if db.backend == "sqlite":
        pytest.skip("declared: servers only")
    monkeypatch.setattr(session_module.time, "sleep", lambda _: pytest.fail("waited"))
    with pytest.raises(OperationalError):
        Database(db.engine.url.set(username="stranger").render_as_string(hide_password=False))


@pytest.mark.parametrize("db", [pytest.param("mariadb", marks=pytest.mark.server)], indirect=True)
def test_a_server_that_does_not_answer_at_first_is_tried_as_often_as_configured(
    db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(session_module.time, "sleep", pauses.append)
    url = db.engine.url.set(port=free_port()).render_as_string(hide_password=False)
    with pytest.raises(DBConnectionError):
        Database(url, max_retries=3, retry_interval=7)
    assert pauses == [7, 7]


@pytest.mark.parametrize("db", [pytest.param("mariadb", marks=pytest.mark.server)], indirect=True)
def test_mariadb_is_strict_unless_the_operator_says_otherwise(db: Database) -> None:
    url = db.engine.url.render_as_string(hide_password=False)
    own = Database(url, mysql_sql_mode="ANSI")
    try:
        modes = []
        for each in (db, own):
            with each.read() as session:
                modes.append(str(session.scalar(text("SELECT @@sql_mode"))))
    finally:
        own.close()
    assert "TRADITIONAL" in modes[0]
    assert "ANSI" in modes[1]
    assert "TRADITIONAL" not in modes[1]


def test_statements_are_logged_and_say_where_they_come_from(
    db: Database, caplog: pytest.LogCaptureFixture
) -> None:
    options = {"connection_debug": 50, "connection_trace": True}
    open_one = Database(db.engine.url.render_as_string(hide_password=False), **options)
    try:
        open_one.fetch(text("SELECT 42"), {})
    finally:
        open_one.close()
        logging.getLogger("sqlalchemy.engine").setLevel(logging.WARNING)
    (line,) = (record.getMessage() for record in caplog.records if "SELECT 42" in record.getMessage())
    assert "-- db/session.py:" in line


@pytest.mark.parametrize("db", [pytest.param("postgresql", marks=pytest.mark.server)], indirect=True)
def test_settings_that_lose_commits_are_named(db: Database) -> None:
    """The test's server has them all."""
    assert sorted(db.lax_settings()) == ["fsync = off", "full_page_writes = off", "synchronous_commit = off"]


@pytest.mark.parametrize("db", [pytest.param("mariadb", marks=pytest.mark.server)], indirect=True)
def test_settings_of_mariadb_that_lose_commits_are_named(db: Database) -> None:
    assert db.lax_settings() == ["innodb_flush_log_at_trx_commit = 0"]


@pytest.mark.parametrize("db", ["sqlite"], indirect=True)
def test_sqlite_loses_no_commit(db: Database) -> None:
    assert db.lax_settings() == []
    with db.read() as session:
        assert session.scalar(text("PRAGMA synchronous")) == 2

"""Each code of the table, raised by the database itself: what is repeated, what is not, as what it ends."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable
from typing import Any

import pytest
from oslo_db.exception import DBConnectionError, DBDeadlock
from sqlalchemy import event, func, insert, select, text
from sqlalchemy.orm import Session

from backupfw.db import models, trouble
from backupfw.db import session as session_module
from backupfw.db.installation import ensure_installation
from backupfw.db.session import Database
from backupfw.db.trouble import Trouble
from backupfw.errors import DatabaseUnwritable
from tests.unit.db.conftest import any_db as db
from tests.unit.tables import create_tables

__all__ = ["db"]

REPEATED = {Trouble.CONFLICT: DBDeadlock, Trouble.AWAY: DBConnectionError}


@pytest.fixture(autouse=True)
def _hasty(db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    create_tables(db)
    monkeypatch.setattr(session_module, "_REPETITIONS", 2)
    monkeypatch.setattr(session_module.time, "sleep", lambda _seconds: None)


def _is_reported(db: Database, meaning: Trouble, fail: Callable[[Session], Any]) -> None:
    """What fails twice is done in the end where it is repeated; what always fails ends as what it is."""
    tries: list[int] = []

    def work(session: Session) -> str:
        tries.append(1)
        session.add(models.Project(id=f"{meaning}"))
        session.flush()
        if len(tries) < 3:
            fail(session)
        return "done"

    if meaning in REPEATED:
        assert db.run(work) == "done"
        with db.write() as session:
            assert session.scalar(select(func.count()).select_from(models.Project)) == 1
            session.execute(models.Project.__table__.delete())
        with pytest.raises(REPEATED[meaning]):
            db.run(fail)
    else:
        with pytest.raises(DatabaseUnwritable, match=meaning.value):
            db.run(work)
        assert len(tries) == 1


def _executing(statement: str) -> Callable[[Session], Any]:
    return lambda session: session.execute(text(statement))


@pytest.mark.parametrize("db", [pytest.param("mariadb", marks=pytest.mark.server)], indirect=True)
def test_each_code_of_mariadb_is_raised_as_its_kind(db: Database) -> None:
    for code, meaning in trouble.MYSQL.items():
        statement = f"SIGNAL SQLSTATE 'HY000' SET MYSQL_ERRNO = {code}, MESSAGE_TEXT = 'words of any kind'"
        _is_reported(db, meaning, _executing(statement))


@pytest.mark.parametrize("db", [pytest.param("postgresql", marks=pytest.mark.server)], indirect=True)
def test_each_code_of_postgresql_is_raised_as_its_kind(db: Database) -> None:
    for code, meaning in trouble.POSTGRESQL.items():
        state = code if len(code) == 5 else f"{code}006"
        statement = f"DO $$ BEGIN RAISE EXCEPTION 'words of any kind' USING ERRCODE = '{state}'; END $$"
        _is_reported(db, meaning, _executing(statement))


@pytest.mark.parametrize("db", [pytest.param("postgresql", marks=pytest.mark.server)], indirect=True)
def test_a_serialization_failure_of_a_database_that_is_serializable_by_default(db: Database) -> None:
    """Ours say READ COMMITTED for each transaction; one that is told otherwise is repeated."""
    with db.write() as session:
        session.add(models.Quota(project_id="p", resource="r", hard_limit=0))
    tries: list[int] = []

    def add_one(session: Session) -> None:
        session.get_one(models.Quota, ("p", "r")).hard_limit += 1

    def work(session: Session) -> None:
        session.execute(text("SET TRANSACTION ISOLATION LEVEL SERIALIZABLE"))
        add_one(session)
        tries.append(1)
        if len(tries) == 1:
            other = threading.Thread(target=db.run, args=(add_one,))
            other.start()
            other.join()

    db.run(work)
    assert len(tries) == 2
    with db.read() as session:
        assert session.scalar(select(models.Quota.hard_limit)) == 2


@pytest.mark.parametrize("db", ["sqlite"], indirect=True)
def test_a_busy_sqlite_file_is_a_conflict(db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_module, "BUSY_SECONDS", 0)
    with db.engine.connect() as connection:
        file = connection.scalar(text("SELECT file FROM pragma_database_list"))
    hasty = Database(f"sqlite:///{file}")
    tries: list[int] = []
    try:
        other = sqlite3.connect(str(file), isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(DBDeadlock):
            hasty.run(lambda session: tries.append(1))
        other.execute("ROLLBACK")
        other.close()
        hasty.run(lambda session: tries.append(1))
    finally:
        hasty.close()
    assert tries == [1]


@pytest.mark.parametrize("db", ["sqlite"], indirect=True)
def test_a_full_sqlite_file_cannot_be_written(db: Database) -> None:
    def fill(session: Session) -> None:
        session.execute(text("PRAGMA max_page_count = 1"))
        session.add_all(models.Project(id=f"{number:0250}") for number in range(2000))
        session.flush()

    _is_reported(db, Trouble.FULL, fill)
    # The limit is the connection's; it stands for a disk that is full until something is deleted.
    assert db.writable()


@pytest.mark.parametrize("db", ["sqlite"], indirect=True)
def test_what_cannot_be_written_is_known_until_it_can(db: Database) -> None:
    broken = [True]

    def refuse(connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if broken and statement.startswith(("INSERT", "UPDATE")):
            connection.exec_driver_sql("PRAGMA query_only = 1")

    def allow(connection: Any, _record: Any) -> None:
        connection.execute("PRAGMA query_only = 0")

    event.listen(db.engine, "before_cursor_execute", refuse)
    event.listen(db.engine, "checkin", allow)
    assert db.writable()
    with pytest.raises(DatabaseUnwritable):
        db.run(lambda session: session.execute(insert(models.Project).values(id="a")))
    assert not db.writable()
    assert not db.writable()
    broken.clear()
    assert db.writable()


def test_what_was_full_is_looked_at_by_a_change(db: Database) -> None:
    """A row that is given the value it has is no write on MariaDB, and would succeed on a full disk."""
    db.run(ensure_installation)
    touched = []
    for _ in range(2):
        with pytest.raises(DatabaseUnwritable), db.write():
            raise DatabaseUnwritable("full")
        assert db.writable()
        with db.read() as session:
            touched.append(session.scalars(select(models.Installation.touched)).one())
    assert touched == [1, 2]


@pytest.mark.parametrize("db", ["sqlite"], indirect=True)
def test_a_read_only_sqlite(db: Database) -> None:
    def write(session: Session) -> None:
        try:
            session.execute(text("PRAGMA query_only = 1"))
            session.execute(text("DELETE FROM projects"))
        finally:
            session.execute(text("PRAGMA query_only = 0"))

    _is_reported(db, Trouble.READ_ONLY, write)


@pytest.mark.parametrize("backend", ["sqlite", "postgresql", "mysql"])
def test_an_error_of_a_statement_is_none_of_the_databases(backend: str) -> None:
    assert trouble.trouble_of(backend, ValueError("words")) is None
    assert trouble.trouble_of(backend, ValueError()) is None

"""Writes of rows that may be there already, at the same moment on every database."""

from __future__ import annotations

import threading

from sqlalchemy import select

from backupfw.db import locks
from backupfw.db.models import Project, Quota
from backupfw.db.session import Database
from tests.unit.db.conftest import any_db as db
from tests.unit.tables import create_tables

__all__ = ["db"]


def test_whoever_puts_a_row_at_the_same_moment_overwrites_it(db: Database) -> None:
    create_tables(db)
    count = 8
    barrier = threading.Barrier(count)
    errors: list[BaseException] = []

    def put(number: int) -> None:
        for turn in range(10):
            barrier.wait()
            row = {"project_id": "p", "resource": f"r{turn}", "hard_limit": number}
            try:
                # Not repeated: no database may call it a fault.
                with db.write() as session:
                    locks.put(session, Quota, [row])
            except BaseException as error:
                errors.append(error)

    threads = [threading.Thread(target=put, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    with db.read() as session:
        assert len(session.scalars(select(Quota)).all()) == 10


def test_put_overwrites_what_the_session_knows(db: Database) -> None:
    create_tables(db)
    with db.write() as session:
        locks.put(session, Quota, [])
        locks.put(session, Quota, [{"project_id": "p", "resource": "r", "hard_limit": 1}])
        known = session.get_one(Quota, ("p", "r"))
        locks.put(
            session,
            Quota,
            [{"project_id": "p", "resource": name, "hard_limit": 2} for name in ("r", "a")],
        )
        assert known.hard_limit == 2
        assert len(session.scalars(select(Quota)).all()) == 2


def test_a_lock_returns_the_keys_in_order_and_has_the_rows_read_anew(db: Database) -> None:
    create_tables(db)
    with db.write() as session:
        session.add_all(Project(id=name) for name in ("c", "a", "b"))
    with db.write() as session:
        assert locks.lock(session, Project, Project.id != "b") == ["a", "c"]
        assert locks.lock(session, Project, limit=1) == ["a"]
        assert locks.lock(session, Project, Project.id == "nobody") == []

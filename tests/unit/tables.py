"""The tables of a test's own database."""

from __future__ import annotations

import sqlite3
from functools import cache

from backupfw.db.models import Base
from backupfw.db.session import Database


def create_tables(db: Database) -> None:
    """Make all tables that are not there.

    The migrations make the same ones (``tests/unit/db`` shows it), only slower.  SQLAlchemy needs longer to
    make them than SQLite to copy a database that has them.
    """
    if db.backend == "sqlite":
        with db.engine.connect() as connection:
            if not connection.exec_driver_sql("SELECT count(*) FROM sqlite_master").scalar():
                connection.rollback()
                _template().backup(connection.connection.driver_connection)
                return
    Base.metadata.create_all(db.engine)


@cache
def _template() -> sqlite3.Connection:
    db = Database("sqlite://")
    Base.metadata.create_all(db.engine)
    made = sqlite3.connect(":memory:", check_same_thread=False)
    with db.engine.connect() as connection:
        connection.connection.driver_connection.backup(made)
    db.close()
    return made

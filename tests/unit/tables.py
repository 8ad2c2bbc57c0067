"""The tables of a test's own database."""

from __future__ import annotations

from functools import cache

from sqlalchemy import MetaData, text

from backupfw.db.models import Base
from backupfw.db.session import Database

#: The databases of servers that have all tables.
_with_tables: set[str] = set()


def create_tables(db: Database) -> None:
    """Make all tables that are not there.

    The migrations make the same ones (``tests/unit/db`` shows it), only slower.  SQLAlchemy needs longer to
    make them than SQLite to copy a database that has them.
    """
    if str(db.engine.url) in _with_tables:
        return
    if db.backend == "sqlite":
        with db.engine.connect() as connection:
            is_empty = not connection.exec_driver_sql("SELECT count(*) FROM sqlite_master").scalar()
        if is_empty:
            copy(_template(), db)
            return
    Base.metadata.create_all(db.engine)


def copy(source: Database, target: Database) -> None:
    """Let a SQLite database have what another one has, and nothing else."""
    with source.engine.connect() as read, target.engine.connect() as written:
        made = read.connection.driver_connection
        assert made is not None
        made.backup(written.connection.driver_connection)


def remove_tables(db: Database) -> None:
    """Leave nothing in a database, whatever a test has made there."""
    _with_tables.discard(str(db.engine.url))
    found = MetaData()
    found.reflect(db.engine)
    found.drop_all(db.engine)


def remove_rows(db: Database) -> None:
    """Leave no row in a database.  That of a server has all tables then: it needs seconds to make them."""
    if db.backend == "sqlite":
        # Each test has a new file.
        return
    if str(db.engine.url) not in _with_tables:
        remove_tables(db)
        create_tables(db)
        _with_tables.add(str(db.engine.url))
        return
    with db.engine.begin() as connection:
        if db.backend != "postgresql":
            connection.execute(text("SET foreign_key_checks = 0"))
        for table in reversed(Base.metadata.sorted_tables):
            connection.execute(table.delete())
        if db.backend != "postgresql":
            connection.execute(text("SET foreign_key_checks = 1"))


@cache
def _template() -> Database:
    db = Database("sqlite://")
    Base.metadata.create_all(db.engine)
    return db

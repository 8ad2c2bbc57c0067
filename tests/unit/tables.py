"""The tables of a test's own database."""

from __future__ import annotations

from functools import cache

from backupfw.db.models import Base
from backupfw.db.session import Database


def create_tables(db: Database) -> None:
    """Make all tables that are not there.

    The migrations make the same ones (``tests/unit/db`` shows it), only slower.  SQLAlchemy needs longer to
    write the statements than SQLite to carry them out, so they are kept.
    """
    if db.backend == "sqlite":
        with db.engine.begin() as connection:
            if not connection.exec_driver_sql("SELECT count(*) FROM sqlite_master").scalar():
                for statement in _statements():
                    connection.exec_driver_sql(statement)
                return
    Base.metadata.create_all(db.engine)


@cache
def _statements() -> tuple[str, ...]:
    db = Database("sqlite://")
    Base.metadata.create_all(db.engine)
    with db.engine.connect() as connection:
        found = connection.exec_driver_sql(
            "SELECT sql FROM sqlite_master WHERE name NOT LIKE 'sqlite_%'"
        ).scalars()
        statements = tuple(found)
    db.close()
    return statements

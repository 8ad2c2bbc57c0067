"""Bring a database's schema up to date, and say how far it is."""

from __future__ import annotations

import threading
from functools import cache
from pathlib import Path

from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, text

from backupfw.db.installation import ensure_installation
from backupfw.db.models import Base
from backupfw.db.session import Database
from backupfw.errors import ConfigError

#: Any number that no other program uses: the lock under which PostgreSQL is migrated.
_POSTGRESQL_LOCK = 0x6261636B757066
#: The same for MariaDB, and how long to wait for it.
_MYSQL_LOCK = "backupfw_migrate"
_LOCK_SECONDS = 600
#: Alembic's environment and the modules of its steps are global to a process: its threads take turns.
_turn = threading.Lock()


def _config(connection: Connection | None = None) -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
    config.attributes["connection"] = connection
    return config


@cache
def _known() -> tuple[str, ...]:
    """The versions of the schema that this release knows, the newest first; read from the disk once."""
    return tuple(script.revision for script in ScriptDirectory.from_config(_config()).walk_revisions())


def head() -> str:
    """Return the newest version of the schema that this release knows."""
    return _known()[0]


def version(db: Database) -> str | None:
    """Return the database's version; None: it is empty."""
    with db.engine.connect() as connection:
        return MigrationContext.configure(connection).get_current_revision()


def sync(db: Database, installation_id: str | None = None) -> str:
    """Bring the schema up to date, make the installation's id, and return that id.

    Idempotent, and safe when several processes or threads do it at the same time.

    :param installation_id: the id a deployer chose; it must be the database's if that has one.
    :raises ConfigError: the database has another installation id, or a version that this release does
        not know (it was made by a newer one).
    """
    with _turn:
        _upgrade(db)
    return db.run(lambda session: ensure_installation(session, installation_id))


def _upgrade(db: Database) -> None:
    with db.engine.connect() as connection:
        if db.backend == "sqlite":
            # Alembic would begin a transaction that only reads and could then not write.
            connection.execute(text("COMMIT"))
            connection.execute(text("BEGIN IMMEDIATE"))
        elif db.backend == "postgresql":
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _POSTGRESQL_LOCK})
        else:
            connection.execute(
                text("SELECT GET_LOCK(:name, :seconds)"), {"name": _MYSQL_LOCK, "seconds": _LOCK_SECONDS}
            )
        _refuse_newer(MigrationContext.configure(connection).get_current_revision())
        command.upgrade(_config(connection), "head")
        connection.commit()
        if db.backend == "mysql":
            connection.execute(text("SELECT RELEASE_LOCK(:name)"), {"name": _MYSQL_LOCK})
            connection.commit()


def check(db: Database) -> None:
    """Refuse to work on a database that is not up to date.

    :raises ConfigError: it is empty, older or newer than this release; the message says what to run.
    """
    current = version(db)
    _refuse_newer(current)
    if current != head():
        raise ConfigError(
            f"the database has version {current or 'none'}, this release needs {head()}; run backupfw db sync"
        )


def _refuse_newer(current: str | None) -> None:
    if current is not None and current not in _known():
        raise ConfigError(
            f"the database has version {current}, which this release does not know; it was set up by a newer"
            " one, which is to be installed here, too"
        )


def differences(db: Database) -> list[object]:
    """Return how the database's tables differ from the models, in alembic's words; for tests."""
    with db.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        return list(compare_metadata(context, Base.metadata))

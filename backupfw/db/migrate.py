"""Migrate a database's schema, and report its version."""

from __future__ import annotations

import contextlib
import threading
import time
import uuid
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from oslo_db.exception import DBDeadlock, DBError
from sqlalchemy import (
    BigInteger,
    Column,
    Connection,
    MetaData,
    SmallInteger,
    String,
    Table,
    Update,
    insert,
    inspect,
    or_,
    select,
    text,
    update,
)
from sqlalchemy.orm import Session
from sqlalchemy.schema import CreateTable

from backupfw.db.installation import ensure_installation
from backupfw.db.models import Base
from backupfw.db.session import Database, pause
from backupfw.errors import ConfigError, DatabaseUnwritable

#: Any number that no other program uses: the lock under which PostgreSQL is migrated.
_POSTGRESQL_LOCK = 0x6261636B757066
#: The same for MariaDB, and how long to wait for it.
_MYSQL_LOCK = "backupfw_migrate"
_LOCK_SECONDS = 600
#: Nodes of a Galera cluster do not see each other's locks.  So on a cluster a row says who migrates.  Its
#: table exists only there, and is made before all others.
_HOLDER = Table(
    "schema_holder",
    MetaData(),
    Column("id", SmallInteger, primary_key=True, autoincrement=False),
    Column("holder", String(36)),
    Column("beat", BigInteger, nullable=False),
    mysql_engine="InnoDB",
)
#: Seconds between two changes of that row by its holder, and seconds without a change after which another
#: process takes it.  That time begins again after a query that took longer than the first number.
_BEAT_SECONDS = 2
_STILL_SECONDS = 20
#: How often a migration is repeated after a deadlock on PostgreSQL.
_REPETITIONS = 6
#: Alembic's environment and the modules of its steps are global to a process: one thread at a time runs them.
_lock = threading.Lock()


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
        not know (it was made by a newer one); or another process does not come to the end of its migration.
    """
    with _lock, _alone_in_cluster(db):
        _upgrade_beside_workers(db)
    return db.run(lambda session: ensure_installation(session, installation_id))


@contextlib.contextmanager
def _alone_in_cluster(db: Database) -> Iterator[None]:
    """On a Galera cluster, wait until no other process migrates at any node, and make others wait meanwhile.

    If several processes take the row at once, certification lets one of them win.  A killed holder no longer
    changes the row.  If a frozen holder continues beside its successor, one of them gets an error: each step
    can be repeated.
    """
    if not _is_cluster(db):
        yield
        return
    me, done = str(uuid.uuid4()), threading.Event()
    _wait_for_holder(db, me)
    beating = threading.Thread(target=_beat, args=(db, me, done), daemon=True)
    beating.start()
    try:
        yield
    finally:
        done.set()
        beating.join()
        _try(db, _changed(me).values(holder=None))


def _is_cluster(db: Database) -> bool:
    if db.backend != "mysql":
        return False
    with db.engine.connect() as connection:
        return connection.execute(text("SHOW VARIABLES LIKE 'wsrep_on'")).all() == [("wsrep_on", "ON")]


def _wait_for_holder(db: Database, me: str) -> None:
    with db.engine.connect() as connection:
        connection.execute(CreateTable(_HOLDER, if_not_exists=True))
    row, seen, since = _HOLDER.c, -1, time.monotonic()

    def take(session: Session) -> tuple[str, int]:
        session.execute(insert(_HOLDER).prefix_with("IGNORE").values(id=1, beat=0))
        abandoned = row.beat == (seen if asked - since > _STILL_SECONDS else -1)
        session.execute(
            update(_HOLDER).where(or_(row.holder.is_(None), abandoned)).values(holder=me, beat=row.beat + 1)
        )
        holder, beat = session.execute(select(row.holder, row.beat)).one()
        return holder, beat

    while True:
        asked = time.monotonic()
        holder, beat = db.run(take)
        if holder == me:
            return
        # While a table is changed, the whole cluster waits, the holder's update and this query, too.  So
        # after a slow answer the time begins again.
        if beat != seen or time.monotonic() - asked > _BEAT_SECONDS:
            seen, since = beat, time.monotonic()
        time.sleep(0.5)


def _changed(me: str) -> Update:
    return update(_HOLDER).where(_HOLDER.c.holder == me).values(beat=_HOLDER.c.beat + 1)


def _beat(db: Database, me: str, done: threading.Event) -> None:
    while not done.wait(_BEAT_SECONDS):
        _try(db, _changed(me))


def _try(db: Database, statement: Update) -> None:
    # If this fails, the row stands still, and another process takes it after a while.
    with contextlib.suppress(DBError, DatabaseUnwritable):
        db.run(lambda session: session.execute(statement))


def _upgrade_beside_workers(db: Database) -> None:
    for tried in range(_REPETITIONS if db.backend == "postgresql" else 0):
        try:
            _upgrade(db)
            return
        except DBDeadlock:
            # No step was done: the transaction was still waiting for its locks (see _lock_tables).
            pause(tried)
    _upgrade(db)


def _upgrade(db: Database) -> None:
    with db.engine.connect() as connection, contextlib.ExitStack() as held:
        if db.backend == "sqlite":
            # Begin a transaction that writes: Alembic would begin one that only reads.
            connection.execute(text("COMMIT"))
            connection.execute(text("BEGIN IMMEDIATE"))
        elif db.backend == "postgresql":
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _POSTGRESQL_LOCK})
        else:
            held.enter_context(_mysql_lock(connection))
        current = MigrationContext.configure(connection).get_current_revision()
        _refuse_newer(current)
        if db.backend == "postgresql" and current not in (None, head()):
            _lock_tables(connection)
        command.upgrade(_config(connection), "head")
        connection.commit()


@contextlib.contextmanager
def _mysql_lock(connection: Connection) -> Iterator[None]:
    asked = {"name": _MYSQL_LOCK, "seconds": _LOCK_SECONDS}
    if connection.scalar(text("SELECT GET_LOCK(:name, :seconds)"), asked) != 1:
        raise ConfigError(f"another process has been migrating the database for {_LOCK_SECONDS} s; try again")
    try:
        yield
    except BaseException:
        # The lock belongs to the connection, which would keep it in the pool: close the connection.
        connection.invalidate()
        raise
    connection.execute(text("SELECT RELEASE_LOCK(:name)"), {"name": _MYSQL_LOCK})
    connection.commit()


def _lock_tables(connection: Connection) -> None:
    """Lock all tables before the first step, for PostgreSQL, where all steps are one transaction.

    Otherwise each step would lock its tables when it needs them.  A worker that holds a later table and waits
    for an earlier one would then cause a deadlock, and PostgreSQL would end the migration, however long it
    has run.  The tables are locked one after the other, tasks first, in the order of workers; a transaction
    with another order only costs a repetition, before any step is done.
    """
    there = Base.metadata.tables.keys() & set(inspect(connection).get_table_names())
    names = ", ".join(sorted(there, key=lambda name: (name != "tasks", name)))
    connection.execute(text(f"LOCK TABLE {names} IN ACCESS EXCLUSIVE MODE"))


def check(db: Database) -> None:
    """Refuse to work on a database that is not up to date.

    :raises ConfigError: it is empty, older or newer than this release; the message says which command to run.
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
        context = MigrationContext.configure(
            connection,
            opts={"compare_type": True, "include_name": lambda name, *_: name != _HOLDER.name},
        )
        return list(compare_metadata(context, Base.metadata))

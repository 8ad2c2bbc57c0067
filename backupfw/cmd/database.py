"""The state directory and the database as commands use them.

The directory is private, and at most one running service holds it.  A SQLite file that only this process uses
is migrated at once; for other databases an operator decides that.
"""

from __future__ import annotations

import dataclasses
import fcntl
import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, NoSuchModuleError

from backupfw.db.files import SQLITE_SUFFIXES
from backupfw.errors import ConfigError

if TYPE_CHECKING:
    from oslo_config import cfg

    from backupfw.db.session import Database

#: Options of ``[database]`` that are handed on as they are.
_PASSED_ON = (
    "connection_recycle_time",
    "max_pool_size",
    "max_overflow",
    "pool_timeout",
    "max_retries",
    "retry_interval",
    "connection_debug",
    "connection_trace",
    "connection_parameters",
    "mysql_sql_mode",
)


def make_state_dir(state_dir: str) -> Path:
    """Make the directory, readable by its owner only, unless it is there.

    :raises ConfigError: it cannot be made or written.
    """
    path = Path(state_dir)
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"state directory {path}: {error.strerror}") from error
    if not os.access(path, os.W_OK | os.X_OK):
        raise ConfigError(f"state directory {path}: not writable")
    return path


@contextmanager
def only_service(state_dir: str, shared: bool = False) -> Iterator[None]:
    """Hold the state directory: at its start a service takes over what the last one left running.

    The kernel gives the hold back with the process, however it ends.

    :param shared: let others that ask for the same be there too (workers that take nothing over).
    :raises ConfigError: it is held already.
    """
    path = make_state_dir(state_dir)
    descriptor = os.open(path / "service.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigError(f"state directory {path}: another backupfw service runs on it") from error
        yield
    finally:
        os.close(descriptor)


def _sqlite_file(conf: cfg.ConfigOpts) -> Path | None:
    """Return the file of a SQLite database, None for any other.

    :raises ConfigError: the URL cannot be read.
    """
    try:
        url = make_url(conf.database.connection)
    except ArgumentError as error:
        raise ConfigError("section [database], option connection: this is not a database URL") from error
    if url.get_backend_name() != "sqlite":
        return None
    if not url.database or url.database == ":memory:":
        raise ConfigError(
            "section [database], option connection: a database in memory ends with each command; allowed: a"
            " SQLite file or a database server"
        )
    return Path(url.database)


def files(conf: cfg.ConfigOpts) -> list[str]:
    """Return the files of a SQLite database; none for any other."""
    file = _sqlite_file(conf)
    return [] if file is None else [f"{file}{suffix}" for suffix in SQLITE_SUFFIXES]


def check(conf: cfg.ConfigOpts) -> None:
    """Look at the database's URL; opens nothing.

    :raises ConfigError: it cannot be read, or its driver is not installed.
    """
    _sqlite_file(conf)
    with _driver_needed():
        make_url(conf.database.connection).get_dialect().import_dbapi()


def _require_sound(file: Path) -> None:
    """Look whether a SQLite file has its head and is as long as that says; costs the same at any size.

    :raises ConfigError: it is cut off, or no database.
    """
    if not file.exists():
        return
    try:
        with closing(sqlite3.connect(f"{file.absolute().as_uri()}?mode=rw", uri=True)) as connection:
            connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    except sqlite3.DatabaseError as error:
        # Any other error, e.g. a lock, is reported by the code that uses the database.
        if error.sqlite_errorcode & 0xFF in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
            raise ConfigError(
                f"the database {file} is cut off, damaged or no database ({error}): put a copy of it in its"
                " place and run backupfw audit"
            ) from error


@contextmanager
def _driver_needed() -> Iterator[None]:
    try:
        yield
    except (ImportError, NoSuchModuleError) as error:
        raise ConfigError(f"section [database], option connection: {error}; install that driver") from error


def is_made(conf: cfg.ConfigOpts) -> bool:
    """Say whether a SQLite file is there; a database server always counts as made."""
    file = _sqlite_file(conf)
    return file is None or file.exists()


def require_made(conf: cfg.ConfigOpts) -> None:
    """Refuse to go on where a SQLite file is missing.

    :raises ConfigError: it is.
    """
    if not is_made(conf):
        raise ConfigError(
            f"no instance there: there is no database {_sqlite_file(conf)}; a new one is made by backupfw"
            " serve, volume create, volume adopt and db sync"
        )


def connect(conf: cfg.ConfigOpts, make: bool = False) -> Database:
    """Connect to the database; the caller closes it.  Nothing is migrated.

    :param make: make a SQLite file that is missing.  A command that only reads must not: if the name of the
        state directory is misspelt, it would report that all is well.
    :raises ConfigError: the URL cannot be read, its driver is not installed, or a SQLite file is damaged or
        missing.
    :raises oslo_db.exception.DBError: the server does not answer.
    """
    from backupfw.db.session import Database

    file = _sqlite_file(conf)
    if file is not None:
        if not make:
            require_made(conf)
        make_state_dir(str(file.parent))
        _require_sound(file)
    options: dict[str, Any] = {name: conf.database[name] for name in _PASSED_ON}
    with _driver_needed():
        return Database(conf.database.connection, **options)


def prepare(conf: cfg.ConfigOpts, make: bool = False, upgrade: bool = False) -> None:
    """Make sure that the database fits this release.

    One of an earlier release is only looked at, because others may be running on it: ``backupfw db sync`` is
    the operator's decision.

    :param make: as for :func:`connect`; an empty SQLite file gets its tables.
    :param upgrade: migrate a SQLite file; no other process may use it.
    :raises ConfigError: the database is older or newer than this release, or of another installation, or as
        :func:`connect`.
    """
    with closing(connect(conf, make)) as db:
        _fit(conf, db, make, upgrade)


@contextmanager
def opened(conf: cfg.ConfigOpts, make: bool = False) -> Iterator[Database]:
    """Open a database that fits this release for a ``with`` block.

    :param make: as for :func:`connect`.
    :raises ConfigError: as :func:`prepare`.
    """
    with closing(connect(conf, make)) as db:
        _fit(conf, db, make)
        yield db


def _fit(conf: cfg.ConfigOpts, db: Database, make: bool, upgrade: bool = False) -> None:
    from backupfw.db import migrate

    on_this_host = _sqlite_file(conf) is not None
    if on_this_host and (upgrade or (make and migrate.version(db) is None)):
        migrate.sync(db, conf.installation_id)
        return
    migrate.check(db)
    if on_this_host and conf.installation_id:
        # The schema is up to date: this only compares the installation's id.
        migrate.sync(db, conf.installation_id)


def plain(record: Any) -> dict[str, Any]:
    """Return a manager's record as JSON values: times in ISO 8601 (UTC)."""
    return {
        name: value.isoformat() + "Z" if hasattr(value, "isoformat") else value
        for name, value in dataclasses.asdict(record).items()
    }

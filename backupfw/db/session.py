"""Transactions: ``with db.write() as session`` and ``with db.read() as session``.

The engine comes from oslo.db's enginefacade with a configuration of its own, so several databases can
live in one process and nothing is global.  Errors are oslo.db's (``DBDuplicateEntry``, ``DBDeadlock``,
``DBConnectionError``) whatever the database says; :mod:`backupfw.db.trouble` has the codes.

SQLite: WAL, foreign keys on, ``synchronous=FULL`` (a record that a caller was told of must survive a
power cut; with NORMAL a commit in WAL mode may be lost).  Writers begin with BEGIN IMMEDIATE, so two of
them never both hold a read lock that neither can upgrade; readers see one state and wait for nobody.
PostgreSQL, MariaDB: READ COMMITTED; rows are locked by conditional updates and :mod:`backupfw.db.locks`.
"""

from __future__ import annotations

import logging
import os
import random
import socket
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from typing import Any, TypeVar

from oslo_db.exception import DBConnectionError, DBDeadlock, DBError
from oslo_db.sqlalchemy import enginefacade, exc_filters
from sqlalchemy import (
    ColumnElement,
    Engine,
    Executable,
    Row,
    event,
    func,
    literal,
    literal_column,
    select,
    text,
    type_coerce,
    update,
)
from sqlalchemy.engine import Connection, ExceptionContext, make_url
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session
from sqlalchemy.pool import QueuePool

from backupfw.db import trouble
from backupfw.db.files import make_private
from backupfw.db.models import Installation
from backupfw.db.types import UtcDateTime
from backupfw.errors import DatabaseUnwritable

LOG = logging.getLogger(__name__)

Result = TypeVar("Result")

#: Execution option that tells the begin event which kind of transaction starts.
_WRITES = "backupfw_writes"
#: Key of a connection's ``info``: whether a pooler stands before the server.
_POOLED = "backupfw_pooled"
#: Keys of ``Session.info``: what is done before the transaction is committed, and after that.
_AT_END = "backupfw_at_end"
_AFTER = "backupfw_after"
#: How long a SQLite transaction waits for another writer, seconds.
BUSY_SECONDS = 60
#: How often a transaction is done again; with the pauses between, for about eight seconds.
_REPETITIONS = 10
#: How many idle connections to a SQLite file are kept.
_KEPT_CONNECTIONS = 16
#: After how many of a process' write transactions the statistics of a SQLite file are renewed, and from how
#: many rows of each index.
_WRITES_PER_ANALYSIS = 1000
_ANALYSED_ROWS = 400
#: After how many seconds a connection to a SQLite file is made anew: it reads the statistics when it is made,
#: and another process may have renewed them.
_CONNECTION_SECONDS = 600
#: How long a server lets a transaction stand idle before it ends it and gives its locks back.  Ours never
#: wait for anything but the database; one that does belongs to a process that is frozen or gone.
IDLE_SECONDS = 20
#: After so many seconds without a word from the server's system a connection counts as cut: half of a usual
#: lease.  Linux itself waits for a quarter of an hour when it has sent something, and else for two hours.
CUT_SECONDS = 30
#: How long MariaDB lets a statement wait for a lock, after which the transaction is tried again: by then
#: whoever held it has ended or was ended.
LOCK_SECONDS = IDLE_SECONDS + 5


@enginefacade.transaction_context_provider
class _Scope:
    """What enginefacade hangs one transaction on."""


class Database:
    """A database and its transactions.  Thread-safe; one per process.

    :param url: SQLAlchemy URL, e.g. ``sqlite:////var/lib/backupfw/backupfw.sqlite``.
    :param options: options of oslo.db's enginefacade, e.g. ``max_pool_size``, ``max_overflow``,
        ``connection_recycle_time``, ``max_retries``.
    :ivar info: what every session has in its ``info``, for those who use the database.
    """

    def __init__(self, url: str, **options: Any) -> None:
        self.info: dict[Any, Any] = {}
        parsed = make_url(url)
        if parsed.get_backend_name() in ("mysql", "mariadb") and "charset" not in parsed.query:
            # oslo.db would ask for three-byte utf8.
            parsed = parsed.update_query_dict({"charset": "utf8mb4"})
        self.backend = "mysql" if parsed.get_backend_name() == "mariadb" else parsed.get_backend_name()
        self._in_memory = self.backend == "sqlite" and parsed.database in (None, "", ":memory:")
        if self.backend == "sqlite" and not self._in_memory:
            make_private(str(parsed.database))
        # An in-memory SQLite database is one connection: one transaction at a time can use it.
        self._one_at_a_time = threading.Lock()
        self._local = threading.local()
        self._counting = threading.Lock()
        self._writes = 0
        self._unwritable = False
        self._manager = enginefacade.transaction_context()
        self._manager.configure(
            connection=parsed.render_as_string(hide_password=False),
            sqlite_fk=True,
            rollback_reader_sessions=True,
            # A pause for green threads at each return of a connection; ours are real ones.
            thread_checkin=False,
            **options,
        )
        self._manager.append_on_engine_create(self._prepare)
        self.engine: Engine = self._manager.writer.get_engine()
        # Without one connection that stays open the transaction that leaves last would have to fold the
        # log into the database.
        self._anchor = self.engine.raw_connection() if self.backend == "sqlite" else None
        if self._anchor is not None and not self._in_memory:
            # Pools come and go.
            self._anchor.detach()
            self._anchor.cursor().execute("SELECT count(*) FROM sqlite_master").fetchall()

    def _prepare(self, engine: Engine) -> None:
        """Install per-connection settings on a fresh engine."""
        # Before oslo.db's own: the first listener that raises decides, and nothing else makes ours first.
        event.remove(engine, "handle_error", exc_filters.handler)
        event.listen(engine, "handle_error", trouble.translate)
        if self.backend != "sqlite":
            # A SQLite file that cannot be opened is no server that may be back soon.
            event.listen(engine, "handle_error", _translate_failed_connects)
        event.listen(engine, "handle_error", exc_filters.handler, retval=True)
        if self.backend == "sqlite":
            event.listen(engine, "connect", _sqlite_connect)
            event.listen(engine, "set_connection_execution_options", _sqlite_claim_begin)
            event.listen(engine, "begin", _sqlite_begin)
        else:
            event.listen(engine, "connect", _notice_cuts)
        if self.backend == "mysql":
            event.listen(engine, "connect", _mysql_connect)
        elif self.backend == "postgresql":
            event.listen(engine, "connect", _postgresql_connect)
            # The client says it with each BEGIN.
            event.listen(
                engine,
                "connect",
                lambda connection, _: engine.dialect.set_isolation_level(connection, "READ COMMITTED"),
            )
            event.listen(engine, "begin", _postgresql_begin)
        # oslo.db has tried a connection already, which knows nothing of these settings.
        engine.dispose()
        if self.backend == "sqlite" and not self._in_memory:
            engine.pool = _pool_like(engine.pool)

    @contextmanager
    def _only_transaction(self) -> Iterator[None]:
        if getattr(self._local, "busy", False):
            raise RuntimeError("this thread has a transaction open already")
        lock = self._one_at_a_time if self._in_memory else None
        if lock is not None:
            lock.acquire()
        self._local.busy = True
        try:
            yield
        finally:
            self._local.busy = False
            if lock is not None:
                lock.release()

    @contextmanager
    def _transaction(self, mode: Any, writes: bool) -> Iterator[Session]:
        with self._only_transaction(), mode.using(_Scope()) as session:
            session.info.update(self.info)
            session.connection(execution_options={_WRITES: writes})
            yield session
            for work in session.info.pop(_AT_END, ()):
                work(session)
        _do_after(session)

    @contextmanager
    def write(self) -> Iterator[Session]:
        """Begin a transaction that changes rows; commits at the end, rolls back on any exception.

        :raises RuntimeError: this thread has a transaction open already (they do not nest).
        :raises oslo_db.exception.DBError: the database refused; see :meth:`run` for what to repeat.
        """
        try:
            with self._transaction(self._manager.writer, True) as session:
                yield session
        except DatabaseUnwritable:
            self._unwritable = True
            raise
        self._unwritable = False
        with self._counting:
            self._writes += 1
            due = not self._writes % _WRITES_PER_ANALYSIS
        if due:
            self.renew_statistics()

    def renew_statistics(self) -> None:
        """Have SQLite look at a sample of its tables, in milliseconds; a server does it itself.

        Without figures it scans what it has an index for.  Done when a process begins to serve, and now and
        then while it writes (a worker that idles reports itself, so it writes, too).  Nobody waits for it:
        where others write for longer than a second, it is left out.
        """
        if self.backend != "sqlite" or self._in_memory:
            return
        try:
            # A connection of its own: those of the pool wait for long.
            with closing(sqlite3.connect(str(self.engine.url.database), timeout=1.0)) as connection:
                connection.execute(f"PRAGMA analysis_limit = {_ANALYSED_ROWS}")
                connection.execute("ANALYZE")
        except sqlite3.Error as error:
            # They make nothing but plans.
            LOG.info("SQLite's statistics are renewed later: %s", error)
            return
        # Connections that are kept have the old ones.
        self.engine.dispose()

    def writable(self) -> bool:
        """Say whether the database takes writes, as the last one found; one that did not is tried again."""
        if not self._unwritable:
            return True
        try:
            with self.write() as session:
                # A value that stays as it is MariaDB would not write.
                session.execute(update(Installation).values(touched=Installation.touched + 1))
        except (DatabaseUnwritable, DBError):
            return False
        return True

    @contextmanager
    def read(self) -> Iterator[Session]:
        """Begin a transaction that only reads; it is always rolled back."""
        with self._transaction(self._manager.reader, False) as session:
            yield session
            # The rollback would mark every row that was read as out of date, one by one.
            session.expunge_all()

    def fetch(self, statement: Executable, values: Mapping[str, Any]) -> Sequence[Row[Any]]:
        """Read with one statement and no session: half of what :meth:`read` costs.

        :raises RuntimeError: this thread has a transaction open already.
        """
        with (
            self._only_transaction(),
            self.engine.connect().execution_options(**{_WRITES: False}) as connection,
        ):
            return connection.execute(statement, values).all()

    @contextmanager
    def snapshot(self) -> Iterator[Session]:
        """Begin a transaction that only reads, all its statements one state of the database.

        :meth:`read` promises that for one statement only; what compares tables with each other needs more.
        """
        with self.read() as session:
            if self.backend != "sqlite":
                # Ahead of the first statement that reads a table, and for this transaction only.
                session.execute(text("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ"))
            yield session

    def run(
        self, work: Callable[[Session], Result], done: Callable[[Session], Result | None] | None = None
    ) -> Result:
        """Run ``work(session)`` in a write transaction and return what it returns.

        It is repeated from the start when it lost against another transaction or the server is away
        (:mod:`backupfw.db.trouble` says when), so it must have no effect outside the session.  A
        connection lost in the middle of a commit leaves open whether the work was done: ``work`` must be
        safe to do again (conditional updates are), or be refused the second time and have a ``done``.

        :param done: asked when a repetition after a lost connection is refused: returns what ``work``
            would have, if it was done before, or None.  Asked after the refusal and not before the
            repetition, because only one that waited for the same rows knows that the lost commit is over.
        """
        lost: Session | None = None

        def once() -> Result:
            nonlocal lost
            session: Session | None = None
            try:
                with self.write() as session:
                    return work(session)
            except DBConnectionError:
                lost = session or lost
                raise
            except Exception:
                if lost is not None and done is not None:
                    with self.read() as session:
                        found = done(session)
                    if found is not None:
                        _do_after(lost)
                        return found
                raise

        # oslo.db's own decorator would log a trace where it gives up; whoever asked says what came of it.
        for tried in range(_REPETITIONS):
            try:
                return once()
            except (DBConnectionError, DBDeadlock):
                pause(tried)
        return once()

    def lax_settings(self) -> list[str]:
        """Return the server's settings, as ``name = value``, by which a crash loses what was committed."""
        if self.backend == "postgresql":
            settings = {"fsync": "on", "synchronous_commit": None, "full_page_writes": "on"}
            question = "SELECT name, setting FROM pg_settings"
        elif self.backend == "mysql":
            settings = {"innodb_flush_log_at_trx_commit": "1", "innodb_doublewrite": None, "sync_binlog": "1"}
            question = "SHOW GLOBAL VARIABLES"
        else:
            # Every connection of ours sets what matters.
            return []
        with self.read() as session:
            found = {str(name): str(value) for name, value in session.execute(text(question))}
        if found.get("log_bin") == "OFF":
            del settings["sync_binlog"]
        return [
            f"{name} = {found[name]}"
            for name, wanted in settings.items()
            if name in found and (found[name] != wanted if wanted else found[name].lower() in ("off", "0"))
        ]

    def now(self, session: Session) -> datetime:
        """Return the database's clock as naive UTC with microseconds.

        SQLite has no clock of its own: its file is used on one host, whose clock is this one.
        """
        return now(session)

    def close(self) -> None:
        """Give up all connections; idempotent."""
        if self._anchor is not None:
            self._anchor.close()
            self._anchor = None
        self._manager.dispose_pool()


def pause(tried: int) -> None:
    """Wait before a transaction is done again, longer after each try."""
    time.sleep(min(0.05 * 2**tried, 2) * random.uniform(0.5, 1))  # noqa: S311  (no secret)


def now(session: Session) -> datetime:
    """Return the clock of the session's database as naive UTC with microseconds."""
    backend = session.get_bind().dialect.name
    if backend == "postgresql":
        value = session.scalar(select(func.timezone("utc", func.clock_timestamp())))
    elif backend in ("mysql", "mariadb"):
        value = session.scalar(select(text("utc_timestamp(6)")))
    else:
        value = datetime.now(UTC).replace(tzinfo=None)
    assert isinstance(value, datetime)
    return value


def at_end(session: Session, work: Callable[[Session], object]) -> None:
    """Have something done at the end of the session's transaction, as its last part."""
    session.info.setdefault(_AT_END, []).append(work)


def after(session: Session, work: Callable[[], object]) -> None:
    """Have something done once the session's transaction is committed; it must not raise.

    Where the answer to the commit is lost it is done only if whoever began the transaction can tell that it
    was committed (``done`` of :meth:`Database.run`).
    """
    session.info.setdefault(_AFTER, []).append(work)


def _do_after(session: Session) -> None:
    for work in session.info.pop(_AFTER, ()):
        work()


def clock(session: Session) -> ColumnElement[datetime]:
    """Return the database's clock as a term for statements, in the form that columns hold.

    It stands still during a statement; comparing with it costs no statement of its own.
    """
    backend = session.get_bind().dialect.name
    if backend == "postgresql":
        return type_coerce(func.timezone("utc", func.statement_timestamp()), UtcDateTime())
    if backend in ("mysql", "mariadb"):
        return type_coerce(literal_column("utc_timestamp(6)"), UtcDateTime())
    return literal(datetime.now(UTC).replace(tzinfo=None), UtcDateTime())


def _translate_failed_connects(context: ExceptionContext) -> None:
    """Raise a failed attempt to connect as what it is, so that it is tried again.

    oslo.db knows it by words that client libraries no longer use, and a server that is starting or stopping
    has words of its own.
    """
    if context.connection is None and isinstance(context.sqlalchemy_exception, OperationalError):
        raise DBConnectionError(context.sqlalchemy_exception)


def _pool_like(pool: Any) -> QueuePool:
    """Return a pool that keeps connections, with the creator and the listeners of one that does not.

    oslo.db gives a SQLite file no pool, for reasons of old; a new connection has to read the schema, which
    costs more than most transactions.  The pool has no limit: who may be busy at once is decided elsewhere.
    """
    return QueuePool(
        pool._creator,
        pool_size=_KEPT_CONNECTIONS,
        max_overflow=-1,
        recycle=_CONNECTION_SECONDS,
        _dispatch=pool.dispatch,
        dialect=pool._dialect,
    )


def _sqlite_connect(connection: Any, _record: Any) -> None:
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute(f"PRAGMA busy_timeout = {BUSY_SECONDS * 1000}")


def _sqlite_claim_begin(connection: Connection, options: dict[str, Any]) -> None:
    # oslo.db's listener for "begin" says BEGIN unless this mark stands; it clears the mark at the end.
    if _WRITES in options:
        connection.info["in_transaction"] = True


def _sqlite_begin(connection: Connection) -> None:
    writes = connection.get_execution_options().get(_WRITES)
    if writes:
        connection.exec_driver_sql("BEGIN IMMEDIATE")
    elif writes is not None:
        # It takes no lock and cannot fail, and SQLAlchemy's way costs more than most statements behind it.
        connection.connection.cursor().execute("BEGIN")


def _notice_cuts(connection: Any, _record: Any) -> None:
    """Let a connection fail on whose way something swallows everything (a host that died, a firewall).

    That bounds no statement: the system of a server that works on one still answers.
    """
    # PyMySQL keeps its socket to itself.
    owner = connection if hasattr(connection, "fileno") else getattr(connection, "_sock", None)
    if owner is None:
        return
    with socket.socket(fileno=os.dup(owner.fileno())) as link:
        if link.family == socket.AF_UNIX:
            return
        link.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        link.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, CUT_SECONDS // 2)
        link.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, CUT_SECONDS // 6)
        link.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)
        link.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, CUT_SECONDS * 1000)


def _mysql_connect(connection: Any, _record: Any) -> None:
    with connection.cursor() as cursor:
        cursor.execute("SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED")
        cursor.execute(f"SET SESSION innodb_lock_wait_timeout = {LOCK_SECONDS}")
        cursor.execute("SHOW VARIABLES WHERE Variable_name IN ('idle_transaction_timeout', 'wsrep_on')")
        found = dict(cursor.fetchall())
        # MySQL has no such limit; there the server's operator must see to frozen clients.
        if "idle_transaction_timeout" in found:
            cursor.execute(f"SET SESSION idle_transaction_timeout = {IDLE_SECONDS}")
        # A node of a Galera cluster: a transaction's first statement, of whatever kind, waits until the node
        # has what any node confirmed before.  Else who gets another node finds no trace of what it just did.
        if found.get("wsrep_on") == "ON":
            cursor.execute("SET SESSION wsrep_sync_wait = 15")


def _postgresql_connect(connection: Any, record: Any) -> None:
    # Behind a pooler the server's session is another one in each transaction: no statement is kept prepared
    # in it, and nothing is set for it.  The pooler speaks for a process of its own.
    if hasattr(connection, "prepare_threshold"):
        connection.prepare_threshold = None
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        record.info[_POOLED] = cursor.fetchone()[0] != connection.info.backend_pid
        if not record.info[_POOLED]:
            cursor.execute(f"SET SESSION idle_in_transaction_session_timeout = '{IDLE_SECONDS}s'")
    connection.commit()


def _postgresql_begin(connection: Connection) -> None:
    if connection.info.get(_POOLED):
        connection.exec_driver_sql(f"SET LOCAL idle_in_transaction_session_timeout = '{IDLE_SECONDS}s'")

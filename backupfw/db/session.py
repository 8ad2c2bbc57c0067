"""Transactions: ``with db.write() as session`` and ``with db.read() as session``.

The engine is a plain SQLAlchemy engine with oslo.db's filters for errors.  With oslo.db's own engines we
could not see an error first, and could not control how a transaction on SQLite begins and whether connections
are kept.  Nothing is global, so several databases can live in one process.  Errors are oslo.db's
(``DBDuplicateEntry``, ``DBDeadlock``, ``DBConnectionError``) on every database; :mod:`backupfw.db.trouble`
has the codes.

SQLite: WAL, foreign keys on, ``synchronous=FULL`` (a confirmed commit must survive a power cut;
with NORMAL a commit in WAL mode can be lost).  Writers begin with BEGIN IMMEDIATE, so two of them never both
hold a read lock that neither can upgrade; readers see one state and never wait.
PostgreSQL, MariaDB: READ COMMITTED; rows are locked by conditional updates and :mod:`backupfw.db.locks`.
"""

from __future__ import annotations

import itertools
import logging
import os
import random
import socket
import sqlite3
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from typing import Any, TypeVar

from oslo_db.exception import DBConnectionError, DBDeadlock, DBError
from oslo_db.sqlalchemy import exc_filters
from sqlalchemy import (
    ColumnElement,
    Engine,
    Executable,
    Row,
    bindparam,
    create_engine,
    event,
    func,
    literal,
    literal_column,
    select,
    text,
    type_coerce,
    update,
)
from sqlalchemy.engine import URL, Connection, ExceptionContext, make_url
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session, sessionmaker
from sqlalchemy.pool import QueuePool, StaticPool

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
#: Keys of ``Session.info``: functions to call before the transaction is committed, and after that.
_AT_END = "backupfw_at_end"
_AFTER = "backupfw_after"
#: Name of the parameter by which :meth:`Database.fetch` gives SQLite the time.
_CLOCK = "backupfw_clock"
#: How long a SQLite transaction waits for another writer, seconds.
BUSY_SECONDS = 60
#: How often a transaction is repeated; with the pauses between, for about eight seconds.
_REPETITIONS = 10
#: How many idle connections to a SQLite file are kept.
_KEPT_CONNECTIONS = 16
#: The statistics of a SQLite file are renewed after this many write transactions of a process, from this many
#: rows of each index.
_WRITES_PER_ANALYSIS = 1000
_ANALYSED_ROWS = 400
#: Seconds after which a connection to a SQLite file is replaced: a new connection reads the statistics, which
#: another process may have renewed.
_CONNECTION_SECONDS = 600
#: Seconds after which a server ends an idle transaction and releases its locks.  Our transactions wait for
#: nothing but the database; an idle one belongs to a process that is frozen or dead.
IDLE_SECONDS = 20
#: Seconds without an answer of the server's system after which a connection counts as lost: half of a usual
#: lease.  Linux itself waits for a quarter of an hour after it has sent something, and otherwise for two
#: hours.
CUT_SECONDS = 30
#: Seconds for which MariaDB lets a statement wait for a lock; then the transaction is repeated.  By then the
#: holder has ended or was ended.
LOCK_SECONDS = IDLE_SECONDS + 5


class Database:
    """A database and its transactions.  Thread-safe; one per process.

    :param url: SQLAlchemy URL, e.g. ``sqlite:////var/lib/backupfw/backupfw.sqlite``.
    :param options: options of ``[database]``: ``connection_debug``, ``connection_trace``,
        ``connection_parameters``, and those that :func:`_server_engine` takes.  The latter are for servers:
        SQLite needs no retries, and has as many connections as are needed.
    :ivar info: copied to the ``info`` of every session, for users of the database.
    """

    def __init__(self, url: str, **options: Any) -> None:
        self.info: dict[Any, Any] = {}
        parsed = make_url(url)
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
        _log_statements(options.pop("connection_debug", 0))
        trace = options.pop("connection_trace", False)
        if parameters := options.pop("connection_parameters", ""):
            parsed = parsed.update_query_string(parameters, append=True)
        if self.backend == "sqlite":
            self.engine = _sqlite_engine(parsed, self._in_memory)
        else:
            self.engine = _server_engine(parsed, self.backend, **options)
        if trace:
            event.listen(self.engine, "before_cursor_execute", _with_trace, retval=True)
        self._sessions = sessionmaker(self.engine, expire_on_commit=False)
        # One connection stays open, because SQLite writes its log back into the database file whenever the
        # last connection is closed.
        self._anchor = self.engine.raw_connection() if self.backend == "sqlite" else None
        if self._anchor is not None and not self._in_memory:
            # Take it out of the pool, which dispose() replaces.
            self._anchor.detach()
            self._anchor.cursor().execute("SELECT count(*) FROM sqlite_master").fetchall()

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
    def _transaction(self, writes: bool) -> Iterator[Session]:
        with self._only_transaction(), self._sessions() as session:
            session.info.update(self.info)
            with session.begin() as transaction:
                session.connection(execution_options={_WRITES: writes})
                yield session
                for work in session.info.pop(_AT_END, ()):
                    work(session)
                if not writes:
                    transaction.rollback()
        _do_after(session)

    @contextmanager
    def write(self) -> Iterator[Session]:
        """Begin a transaction that changes rows; commits at the end, rolls back on any exception.

        :raises RuntimeError: this thread has a transaction open already (they do not nest).
        :raises oslo_db.exception.DBError: the database refused; see :meth:`run` for what to repeat.
        """
        try:
            with self._transaction(True) as session:
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
        """Renew SQLite's statistics from a sample of its tables, in milliseconds; a server does it itself.

        Without statistics it scans tables although they have an index.  This happens when a process starts to
        serve, and sometimes while it writes (an idle worker writes its heartbeats).  Nothing waits for it: if
        other transactions write for longer than a second, it is skipped.
        """
        if self.backend != "sqlite" or self._in_memory:
            return
        try:
            # A connection of its own: those of the pool wait for long.
            with closing(sqlite3.connect(str(self.engine.url.database), timeout=1.0)) as connection:
                connection.execute(f"PRAGMA analysis_limit = {_ANALYSED_ROWS}")
                connection.execute("ANALYZE")
        except sqlite3.Error as error:
            # Statistics only affect plans.
            LOG.info("SQLite's statistics are renewed later: %s", error)
            return
        # Connections that are kept have the old ones.
        self.engine.dispose()

    def writable(self) -> bool:
        """Return whether the database accepted the last write; if it did not, try a write."""
        if not self._unwritable:
            return True
        try:
            with self.write() as session:
                # MariaDB would not write an unchanged value.
                session.execute(update(Installation).values(touched=Installation.touched + 1))
        except (DatabaseUnwritable, DBError):
            return False
        return True

    @contextmanager
    def read(self) -> Iterator[Session]:
        """Begin a transaction that only reads; it is always rolled back."""
        with self._transaction(False) as session:
            yield session
            # The rollback would expire every row that was read, one by one.
            session.expunge_all()

    def fetch(self, statement: Executable, values: Mapping[str, Any]) -> Sequence[Row[*tuple[Any, ...]]]:
        """Read with one statement and no session: half of what :meth:`read` costs.

        :param statement: may have :meth:`clock` in it; to make it once and keep it halves the costs again.
        :raises RuntimeError: this thread has a transaction open already.
        """
        with (
            self._only_transaction(),
            self.engine.connect().execution_options(**{_WRITES: False}) as connection,
        ):
            if self.backend == "sqlite":
                values = {**values, _CLOCK: datetime.now(UTC).replace(tzinfo=None)}
            return connection.execute(statement, values).all()

    def clock(self) -> ColumnElement[datetime]:
        """Return what :func:`clock` returns, for :meth:`fetch`; a kept statement has the time of each."""
        return bindparam(_CLOCK, type_=UtcDateTime()) if self.backend == "sqlite" else _clock(self.backend)

    @contextmanager
    def snapshot(self) -> Iterator[Session]:
        """Begin a transaction that only reads, all its statements one state of the database.

        :meth:`read` guarantees that for one statement only, which is not enough to compare tables.
        """
        with self.read() as session:
            if self.backend != "sqlite":
                # Before the first statement that reads a table, and for this transaction only.
                session.execute(text("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ"))
            yield session

    def run(
        self, work: Callable[[Session], Result], done: Callable[[Session], Result | None] | None = None
    ) -> Result:
        """Run ``work(session)`` in a write transaction and return what it returns.

        It is repeated from the start when it lost against another transaction or the server is away
        (:mod:`backupfw.db.trouble` says when), so it must have no effect outside the session.  If
        a connection is lost during a commit, nobody knows whether the work was done: ``work`` must be safe to
        repeat (conditional updates are), or be refused the second time and have a ``done``.

        :param done: called when a repetition after a lost connection is refused: returns the result of
            ``work`` if it was done before, or None.  It is called after the refusal and not before the
            repetition, because only a transaction that waited for the same rows knows that the lost commit
            has ended.
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

        # Not oslo.db's decorator, which logs a traceback when it gives up: the caller reports the error.
        for tried in range(_REPETITIONS):
            try:
                return once()
            except (DBConnectionError, DBDeadlock):
                pause(tried)
        return once()

    def lax_settings(self) -> list[str]:
        """Return the server's settings, as ``name = value``, with which a crash can lose commits."""
        if self.backend == "postgresql":
            settings = {"fsync": "on", "synchronous_commit": None, "full_page_writes": "on"}
            question = "SELECT name, setting FROM pg_settings"
        elif self.backend == "mysql":
            settings = {"innodb_flush_log_at_trx_commit": "1", "innodb_doublewrite": None, "sync_binlog": "1"}
            question = "SHOW GLOBAL VARIABLES"
        else:
            # Every connection to SQLite sets ``synchronous`` itself.
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
        self.engine.dispose()


def pause(tried: int) -> None:
    """Wait before a transaction is repeated, longer after each try."""
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
    """Call a function at the end of the session's transaction, as its last part."""
    session.info.setdefault(_AT_END, []).append(work)


def after(session: Session, work: Callable[[], object]) -> None:
    """Call a function once the session's transaction is committed; it must not raise.

    If the answer to the commit is lost, it is called only if ``done`` of :meth:`Database.run` says that the
    transaction was committed.
    """
    session.info.setdefault(_AFTER, []).append(work)


def _do_after(session: Session) -> None:
    for work in session.info.pop(_AFTER, ()):
        work()


def clock(session: Session) -> ColumnElement[datetime]:
    """Return the database's clock as an expression for statements, in the form of the columns.

    It does not advance during a statement; comparing with it costs no statement of its own.
    """
    return _clock(session.get_bind().dialect.name)


def _clock(backend: str) -> ColumnElement[datetime]:
    if backend == "postgresql":
        return type_coerce(func.timezone("utc", func.statement_timestamp()), UtcDateTime())
    if backend in ("mysql", "mariadb"):
        return type_coerce(literal_column("utc_timestamp(6)"), UtcDateTime())
    return literal(datetime.now(UTC).replace(tzinfo=None), UtcDateTime())


def _log_statements(verbosity: int) -> None:
    """Log SQL statements (from 50 on) and their results (from 100 on), for the whole process."""
    level = logging.DEBUG if verbosity >= 100 else logging.INFO if verbosity >= 50 else logging.WARNING
    logging.getLogger("sqlalchemy.engine").setLevel(level)


def _with_trace(
    _connection: object, _cursor: object, statement: str, parameters: Any, _context: object, _many: bool
) -> tuple[str, Any]:
    """Append to a statement the place in backupfw that sends it."""
    places = [
        f"{frame.filename.rpartition('/backupfw/')[2]}:{frame.lineno}"
        for frame in traceback.extract_stack()
        if "/backupfw/" in frame.filename
    ]
    return f"{statement}  -- {' '.join(places[:-1])}", parameters


def _sqlite_engine(url: URL, in_memory: bool) -> Engine:
    """Return an engine for SQLite that keeps its connections, because a new one must read the schema.

    :raises oslo_db.exception.DBError: the file cannot be opened.
    """
    if in_memory:
        # One connection for all threads.  It keeps no statements: one that a thread resets while another
        # thread reads it loses rows (CPython, issue 118172).
        engine = create_engine(
            url, poolclass=StaticPool, connect_args={"check_same_thread": False, "cached_statements": 0}
        )
    else:
        # The pool has no limit: other code limits the number of concurrent transactions.
        engine = create_engine(
            url,
            poolclass=QueuePool,
            pool_size=_KEPT_CONNECTIONS,
            max_overflow=-1,
            pool_recycle=_CONNECTION_SECONDS,
        )
    event.listen(engine, "handle_error", trouble.translate)
    exc_filters.register_engine(engine)
    event.listen(engine, "connect", _sqlite_connect)
    event.listen(engine, "begin", _sqlite_begin)
    engine.connect().close()
    return engine


def _server_engine(
    url: URL,
    backend: str,
    *,
    connection_recycle_time: int = 3600,
    max_pool_size: int | None = None,
    max_overflow: int | None = None,
    pool_timeout: int | None = None,
    max_retries: int = 10,
    retry_interval: int = 10,
    mysql_sql_mode: str | None = "TRADITIONAL",
) -> Engine:
    """Return an engine for PostgreSQL, MySQL or MariaDB, once the server has answered.

    :param backend: ``postgresql`` or ``mysql``.
    :param connection_recycle_time: seconds after which a connection is replaced.
    :param max_pool_size, max_overflow: connections that are kept, and how many more there may be; None:
        SQLAlchemy's own.
    :param pool_timeout: seconds to wait for a free connection; None: SQLAlchemy's own.
    :param max_retries: how often to try to connect; -1: without end, 0: only at the first use.
    :param retry_interval: seconds between two tries.
    :param mysql_sql_mode: MySQL's mode of each session; empty or None: the server's.
    :raises oslo_db.exception.DBConnectionError: the server does not answer.
    :raises sqlalchemy.exc.OperationalError: the server refuses.
    """
    pool = {"pool_size": max_pool_size, "max_overflow": max_overflow, "pool_timeout": pool_timeout}
    arguments: dict[str, Any] = {name: value for name, value in pool.items() if value is not None}
    if backend == "postgresql" and "client_encoding" not in url.query:
        arguments["client_encoding"] = "utf8"
    elif backend == "mysql" and "charset" not in url.query:
        url = url.update_query_dict({"charset": "utf8mb4"})
    engine = create_engine(url, pool_pre_ping=True, pool_recycle=connection_recycle_time, **arguments)
    reached = threading.Event()
    # The first listener that raises decides, and oslo.db's raises for every error, so ours come first.
    event.listen(engine, "handle_error", trouble.translate)
    event.listen(engine, "handle_error", lambda context: _translate_failed_connects(context, reached))
    exc_filters.register_engine(engine)
    event.listen(engine, "connect", _notice_cuts)
    if backend == "mysql":
        event.listen(engine, "connect", lambda connection, _: _mysql_connect(connection, mysql_sql_mode))
    elif backend == "postgresql":
        event.listen(engine, "connect", _postgresql_connect)
        # The client library sends the isolation level with each BEGIN.
        event.listen(
            engine,
            "connect",
            lambda connection, _: engine.dialect.set_isolation_level(connection, "READ COMMITTED"),
        )
        event.listen(engine, "begin", _postgresql_begin)
    if max_retries:
        _connect(engine, max_retries, retry_interval)
    reached.set()
    return engine


def _connect(engine: Engine, tries: int, interval: float) -> None:
    """Connect; try again while the server does not answer; ``tries`` -1 means without end."""
    for tried in itertools.count(1):
        try:
            engine.connect().close()
        except DBConnectionError:
            if tried == tries:
                raise
            LOG.warning("the database does not answer; trying again in %s s", interval)
            time.sleep(interval)
        else:
            return


def _translate_failed_connects(context: ExceptionContext, reached: threading.Event) -> None:
    """Translate the error of a failed attempt to connect, so that it is tried again.

    oslo.db recognises it by texts that client libraries no longer use, and a starting or stopping server has
    texts of its own.  Before the server was reached it can also be a wrong password, which waiting does
    not repair: then it is raised at once.
    """
    if context.is_pre_ping:
        # A connection that the pool kept is dead; the pool replaces it.
        return
    refused = context.connection is None and isinstance(context.sqlalchemy_exception, OperationalError)
    if refused and (reached.is_set() or _is_silent(context)):
        raise DBConnectionError(context.sqlalchemy_exception)


def _is_silent(context: ExceptionContext) -> bool:
    """Return whether a failed attempt to connect got no answer from PostgreSQL, or that it starts or stops.

    Its client library has no code for either: what the server itself refuses, it calls FATAL.  Where that
    word is translated, a refusal counts as silence and is tried again, which only takes longer.
    """
    text = str(context.original_exception)
    return context.dialect.name == "postgresql" and ("FATAL" not in text or "the database system is" in text)


def _sqlite_connect(connection: Any, _record: Any) -> None:
    # Python begins no transactions by itself; the code below begins them.
    connection.isolation_level = None
    connection.execute("PRAGMA foreign_keys = ON")
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute(f"PRAGMA busy_timeout = {BUSY_SECONDS * 1000}")


def _sqlite_begin(connection: Connection) -> None:
    if connection.get_execution_options().get(_WRITES):
        connection.exec_driver_sql("BEGIN IMMEDIATE")
    else:
        # BEGIN takes no lock and cannot fail.  To send it through SQLAlchemy costs more than most statements.
        connection.connection.cursor().execute("BEGIN")


def _notice_cuts(connection: Any, _record: Any) -> None:
    """Make a connection fail if nothing arrives over it any more (a host that died, a firewall).

    This does not limit statements: while a server works on one, its system still answers.
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


def _mysql_connect(connection: Any, mode: str | None) -> None:
    with connection.cursor() as cursor:
        if mode:
            cursor.execute("SET SESSION sql_mode = %s", (mode,))
        cursor.execute("SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED")
        cursor.execute(f"SET SESSION innodb_lock_wait_timeout = {LOCK_SECONDS}")
        cursor.execute("SHOW VARIABLES WHERE Variable_name IN ('idle_transaction_timeout', 'wsrep_on')")
        found = dict(cursor.fetchall())
        # MySQL has no such limit; there the operator must end frozen clients.
        if "idle_transaction_timeout" in found:
            cursor.execute(f"SET SESSION idle_transaction_timeout = {IDLE_SECONDS}")
        # On a Galera cluster, the first statement of a transaction waits until the node has everything that
        # any node confirmed before.  Otherwise a client might miss what it committed through another node.
        if found.get("wsrep_on") == "ON":
            cursor.execute("SET SESSION wsrep_sync_wait = 15")


def _postgresql_connect(connection: Any, record: Any) -> None:
    # Behind a pooler, each transaction can have another session of the server.  So no prepared statement is
    # kept, and no session setting is made.  A pooler shows: the server's process is not the one that the
    # client library was told.
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

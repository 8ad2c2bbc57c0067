"""The table of databases' error codes, and their meaning for the transaction that gets them.

No other module knows codes.  :func:`translate` raises the right class for each code, before oslo.db guesses
from the error's text:

========================  ======================================  =========================  ==============
what it is                raised as                               ``Database.run``           the API, last
========================  ======================================  =========================  ==============
lost against another one  ``oslo_db.exception.DBDeadlock``        repeats it                 503
server away for a while   ``oslo_db.exception.DBConnectionError``  repeats it, connects anew  503
cannot be written         ``errors.DatabaseUnwritable``           ends                       503, not ready
========================  ======================================  =========================  ==============

A commit with an unknown outcome counts as a lost connection: only then ``Database.run`` finds out whether
the work was done.
"""

from __future__ import annotations

import enum
import sqlite3
from collections.abc import Mapping

from oslo_db.exception import DBConnectionError, DBDeadlock
from sqlalchemy.engine import ExceptionContext

from backupfw.errors import DatabaseUnwritable


class Trouble(enum.Enum):
    """What an error code means."""

    CONFLICT = "lost against another transaction"
    AWAY = "does not serve for a while"
    FULL = "its disk is full"
    READ_ONLY = "it is read-only"
    BROKEN = "its file cannot be read or written"


#: MariaDB and MySQL: number of the error.
MYSQL: Mapping[int, Trouble] = {
    1020: Trouble.CONFLICT,  # a row changed since it was read (snapshot isolation)
    1205: Trouble.CONFLICT,  # a lock that was not given back in time
    1213: Trouble.CONFLICT,  # deadlock; Galera: another node's transaction won
    1040: Trouble.AWAY,  # too many connections
    1047: Trouble.AWAY,  # Galera: the node is not in the cluster's majority
    1053: Trouble.AWAY,  # the server shuts down
    1077: Trouble.AWAY,
    1079: Trouble.AWAY,
    1158: Trouble.AWAY,  # the network, in the middle of a packet
    1159: Trouble.AWAY,
    1160: Trouble.AWAY,
    1161: Trouble.AWAY,
    1180: Trouble.AWAY,  # an error during COMMIT: whether it was done is unknown
    1203: Trouble.AWAY,  # too many connections of this user
    1290: Trouble.AWAY,  # read_only: a fail-over is under way
    1317: Trouble.AWAY,  # the statement was killed
    1792: Trouble.AWAY,  # tx_read_only
    1836: Trouble.AWAY,  # the server is read-only
    1927: Trouble.AWAY,  # the connection was killed
    2002: Trouble.AWAY,  # the client's own words for a lost server
    2003: Trouble.AWAY,
    2006: Trouble.AWAY,
    2013: Trouble.AWAY,
    4031: Trouble.AWAY,  # MySQL ended an idle connection
    1021: Trouble.FULL,
    1026: Trouble.FULL,
    1114: Trouble.FULL,
}

#: PostgreSQL: SQLSTATE, or its class (two characters).
POSTGRESQL: Mapping[str, Trouble] = {
    "40001": Trouble.CONFLICT,  # serialization failure
    "40P01": Trouble.CONFLICT,  # deadlock
    "55P03": Trouble.CONFLICT,  # lock_timeout
    "08": Trouble.AWAY,  # connection exceptions; poolers have no others
    "25006": Trouble.AWAY,  # read-only: the server was or becomes a standby
    "25P03": Trouble.AWAY,  # idle in a transaction for too long
    "25P04": Trouble.AWAY,  # transaction_timeout
    "40003": Trouble.AWAY,  # completion unknown
    "53300": Trouble.AWAY,  # too many connections
    "57P01": Trouble.AWAY,  # an administrator's shutdown
    "57P02": Trouble.AWAY,  # a crash
    "57P03": Trouble.AWAY,  # starting or stopping
    "57P04": Trouble.AWAY,  # the database was dropped
    "57P05": Trouble.AWAY,  # idle_session_timeout
    "53100": Trouble.FULL,
}

#: SQLite: primary result code.
SQLITE: Mapping[int, Trouble] = {
    sqlite3.SQLITE_BUSY: Trouble.CONFLICT,
    sqlite3.SQLITE_LOCKED: Trouble.CONFLICT,
    sqlite3.SQLITE_FULL: Trouble.FULL,
    sqlite3.SQLITE_READONLY: Trouble.READ_ONLY,
    sqlite3.SQLITE_IOERR: Trouble.BROKEN,
}


def trouble_of(backend: str, error: BaseException) -> Trouble | None:
    """Look up an error of a database's client library; None: the error is in the statement.

    :param backend: ``sqlite``, ``postgresql``, ``mysql`` or ``mariadb``.
    """
    if backend == "sqlite":
        return SQLITE.get(getattr(error, "sqlite_errorcode", 0) & 0xFF)
    if backend == "postgresql":
        # psycopg2 and psycopg have it in different attributes.
        state = getattr(error, "pgcode", None) or getattr(error, "sqlstate", None) or ""
        return POSTGRESQL.get(state) or POSTGRESQL.get(state[:2])
    number = error.args[0] if error.args else None
    return MYSQL.get(number) if isinstance(number, int) else None


def translate(context: ExceptionContext) -> None:
    """Translate an error that is in the table; for SQLAlchemy's event ``handle_error``."""
    error = context.sqlalchemy_exception
    if error is None or context.dialect is None:
        return
    trouble = trouble_of(context.dialect.name, context.original_exception)
    if trouble is Trouble.CONFLICT:
        raise DBDeadlock(error)
    if trouble is Trouble.AWAY:
        # Drop a connection to a server that does not serve: the next one may reach another server.
        context.is_disconnect = True
        if context.is_pre_ping:
            # Nothing was asked yet: the pool takes another connection.
            return
        raise DBConnectionError(error)
    if trouble is not None:
        raise DatabaseUnwritable(f"The service's database cannot be written: {trouble.value}.") from error

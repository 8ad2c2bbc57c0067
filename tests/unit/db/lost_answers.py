"""Commits that are done although their answers are lost."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from oslo_db.exception import DBConnectionError

from backupfw.db.session import Database


@contextmanager
def lost_answers(db: Database, times: int = 1) -> Iterator[Callable[[], int]]:
    """Lose the answers to the next commits of this thread; yields how many were lost.

    The commit is done, then the connection is cut, and what the client library says of that is what the
    commit ends with.  SQLite has no connection to cut: there it is only said that one was lost.
    """
    dialect: Any = db.engine.dialect
    commit = dialect.do_commit
    thread = threading.get_ident()
    lost = 0

    def do_commit(connection: Any) -> None:
        nonlocal lost
        commit(connection)
        if lost == times or threading.get_ident() != thread:
            return
        lost += 1
        if db.backend == "sqlite":
            raise DBConnectionError
        _cut(connection)
        connection.cursor().execute("SELECT 1")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dialect, "do_commit", do_commit)
        yield lambda: lost


def _cut(connection: Any) -> None:
    raw = getattr(connection, "dbapi_connection", connection)
    if hasattr(raw, "fileno"):
        with socket.socket(fileno=raw.fileno()) as cut:
            cut.shutdown(socket.SHUT_RDWR)
            cut.detach()
    else:
        raw._sock.shutdown(socket.SHUT_RDWR)

"""Connections to a server: the first one, and those that the pool keeps."""

from __future__ import annotations

import sqlite3
import time
from pathlib import Path
from typing import Any

import psycopg2  # type: ignore[import-untyped]
import pytest
from oslo_db.exception import DBConnectionError
from sqlalchemy import Engine, create_engine, make_url, text
from sqlalchemy.exc import OperationalError

from backupfw.db import session as session_module
from backupfw.db import trouble
from backupfw.db.session import Database
from backupfw.db.trouble import Trouble
from tests.servers.ports import free_port


@pytest.mark.parametrize("error", [sqlite3.OperationalError, sqlite3.InterfaceError])
@pytest.mark.parametrize("known", [False, True], ids=["of unknown code", "of known code"])
def test_a_connection_that_was_cut_while_it_was_idle_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[Exception], known: bool
) -> None:
    """By a proxy, or by a restart of the server: the first read after that does not fail."""

    def make(_url: object, **options: Any) -> Engine:
        return create_engine(f"sqlite:///{tmp_path / 'x'}", **options)

    monkeypatch.setattr(session_module, "create_engine", make)
    monkeypatch.setattr(trouble, "trouble_of", lambda *_: Trouble.AWAY if known else None)
    engine = session_module._server_engine(make_url("mysql+pymysql://host/x"), "mysql like", max_retries=1)
    pinged: list[object] = []

    def ping(connection: object) -> bool:
        pinged.append(connection)
        raise error("server closed the connection unexpectedly")

    monkeypatch.setattr(engine.dialect, "do_ping", ping)
    monkeypatch.setattr(engine.dialect, "is_disconnect", lambda *_: True)
    try:
        with engine.connect() as connection:
            assert connection.scalar(text("SELECT 42")) == 42
    finally:
        engine.dispose()
    assert len(pinged) == 1


@pytest.mark.parametrize("scheme", ["postgresql+psycopg2", "mysql+pymysql"])
def test_a_server_that_does_not_listen_yet_is_tried_as_often_as_configured(
    monkeypatch: pytest.MonkeyPatch, scheme: str
) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(time, "sleep", pauses.append)
    with pytest.raises(DBConnectionError):
        Database(f"{scheme}://user:word@127.0.0.1:{free_port()}/x", max_retries=3, retry_interval=7)
    assert pauses == [7, 7]


@pytest.mark.parametrize(
    ("words", "tries"),
    [
        ("the database system is starting up", 3),
        ("the database system is shutting down", 3),
        ('password authentication failed for user "user"', 1),
        ('no pg_hba.conf entry for host "h"', 1),
    ],
)
def test_what_postgresql_says_itself_at_the_first_connection(
    monkeypatch: pytest.MonkeyPatch, words: str, tries: int
) -> None:
    """Waiting helps a server that starts or stops, and does not repair a wrong password."""
    tried: list[int] = []

    def refuse(*_: object, **__: object) -> None:
        tried.append(1)
        raise psycopg2.OperationalError(
            f'connection to server at "127.0.0.1", port 1 failed: FATAL:  {words}'
        )

    monkeypatch.setattr(psycopg2, "connect", refuse)
    monkeypatch.setattr(time, "sleep", lambda _: None)
    with pytest.raises(DBConnectionError if tries > 1 else OperationalError):
        Database("postgresql+psycopg2://user:word@127.0.0.1:1/x", max_retries=3)
    assert len(tried) == tries

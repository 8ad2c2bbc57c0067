"""Connections to a server that the pool keeps: one that was cut meanwhile is replaced."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, create_engine, make_url, text

from backupfw.db import session as session_module
from backupfw.db import trouble
from backupfw.db.trouble import Trouble


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

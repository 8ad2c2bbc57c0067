"""The API in somebody else's WSGI server."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import webtest

from backupfw.cmd import database, wsgi
from backupfw.conf import logging
from backupfw.db.session import Database
from backupfw.errors import ConfigError


def test_the_first_request_loads_the_configuration(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging, "setup", lambda _conf: None)
    monkeypatch.setattr(wsgi, "_app", None)
    monkeypatch.setenv("BACKUPFW_STATE_DIR", str(state))
    app = webtest.TestApp(wsgi.application)
    assert not state.exists()
    assert app.get("/", status=300).json["versions"]
    assert app.get("/v2/demo/backups", status=200).json == {"backups": []}
    made = wsgi._app
    app.get("/")
    assert wsgi._app is made
    wsgi._open.close()


def test_what_no_worker_takes_ends(state: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Although there may be no other process than those of the WSGI server."""
    path = tmp_path / "impatient.conf"
    path.write_text("[backup]\nservice_wait = 0\n")
    monkeypatch.setattr(logging, "setup", lambda _conf: None)
    monkeypatch.setattr(wsgi, "_app", None)
    monkeypatch.setenv("BACKUPFW_STATE_DIR", str(state))
    monkeypatch.setenv("BACKUPFW_CONFIG_FILE", str(path))
    app = webtest.TestApp(wsgi.application)
    try:
        made = app.post_json("/v2/demo/volumes", {"volume": {"size": 1}}, status=202).json["volume"]
        end = time.monotonic() + 60
        while app.get(f"/v2/demo/volumes/{made['id']}").json["volume"]["status"] != "error":
            assert time.monotonic() < end
            time.sleep(0.05)
    finally:
        wsgi._open.close()


def test_a_wrong_configuration_is_told_at_every_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "wrong.conf"
    path.write_text("[api]\nport = x\n")
    monkeypatch.setattr(wsgi, "_app", None)
    monkeypatch.setenv("BACKUPFW_CONFIG_FILE", str(path))
    app = webtest.TestApp(wsgi.application)
    for _ in range(2):
        with pytest.raises(ConfigError, match="option port"):
            app.get("/")


def test_what_cannot_be_made_stays_open_at_no_request(
    state: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each request tries again."""
    monkeypatch.setattr(logging, "setup", lambda _conf: None)
    closed: list[Database] = []
    connected: list[Database] = []
    connect, close = database.connect, Database.close

    def remembered(conf: object) -> Database:
        connected.append(connect(conf))
        return connected[-1]

    monkeypatch.setattr(database, "connect", remembered)
    monkeypatch.setattr(Database, "close", lambda db: (closed.append(db), close(db))[1])
    path = tmp_path / "wrong.conf"
    path.write_text("[oslo_policy]\npolicy_file = missing.yaml\n")
    monkeypatch.setattr(wsgi, "_app", None)
    monkeypatch.setenv("BACKUPFW_CONFIG_FILE", str(path))
    monkeypatch.setenv("BACKUPFW_STATE_DIR", str(state))
    app = webtest.TestApp(wsgi.application)
    for _ in range(2):
        with pytest.raises(ConfigError, match=r"missing\.yaml"):
            app.get("/")
    assert connected
    assert all(db in closed for db in connected)

"""The API in somebody else's WSGI server."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import webtest

from backupfw.cmd import database, wsgi
from backupfw.conf import logging
from backupfw.db.session import Database


def make_instance(*words: str) -> None:
    subprocess.run([sys.executable, "-m", "backupfw.cmd.main", "db", "sync", *words], check=True)


@pytest.fixture
def process() -> Iterator[wsgi._Process]:
    process = wsgi._Process()
    yield process
    process.close()


def test_the_first_request_loads_the_configuration(
    process: wsgi._Process, state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging, "setup", lambda _conf: None)
    monkeypatch.setattr(wsgi, "_process", process)
    monkeypatch.setenv("BACKUPFW_STATE_DIR", str(state))
    app = webtest.TestApp(wsgi.application)
    app.get("/", status=503)
    assert not state.exists()
    make_instance("--state-dir", str(state))
    assert app.get("/", status=300).json["versions"]
    assert app.get("/v2/demo/backups", status=200).json == {"backups": []}
    made = process.app()
    app.get("/")
    assert process.app() is made


def test_what_no_worker_takes_ends(
    process: wsgi._Process, state: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Although there may be no other process than those of the WSGI server."""
    path = tmp_path / "impatient.conf"
    path.write_text("[backup]\nservice_wait = 0\n")
    make_instance("--state-dir", str(state))
    monkeypatch.setattr(logging, "setup", lambda _conf: None)
    monkeypatch.setattr(wsgi, "_process", process)
    monkeypatch.setenv("BACKUPFW_STATE_DIR", str(state))
    monkeypatch.setenv("BACKUPFW_CONFIG_FILE", str(path))
    app = webtest.TestApp(wsgi.application)
    made = app.post_json("/v2/demo/volumes", {"volume": {"size": 1}}, status=202).json["volume"]
    end = time.monotonic() + 60
    while app.get(f"/v2/demo/volumes/{made['id']}").json["volume"]["status"] != "error":
        assert time.monotonic() < end
        time.sleep(0.05)


def test_a_wrong_configuration_is_reported_until_it_is_mended(
    process: wsgi._Process, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging, "setup", lambda _conf: None)
    path = tmp_path / "backupfw.conf"
    embedded = f"[DEFAULT]\nstate_dir = {tmp_path}\n[database]\nconnection = sqlite:///{tmp_path}/db.sqlite\n"
    store = f"[store:main]\ndriver = posix\npath = {tmp_path}/store\n"
    path.write_text(f"{embedded}{store}[api]\nport = x\n")
    monkeypatch.setattr(wsgi, "_process", process)
    monkeypatch.setenv("BACKUPFW_CONFIG_FILE", str(path))
    app = webtest.TestApp(wsgi.application)
    for _ in range(2):
        assert app.get("/", status=503).json["serviceUnavailable"]["message"] == "The service is not ready."
    path.write_text(f"{embedded}{store}")
    make_instance("--config-file", str(path))
    assert app.get("/", status=300).json["versions"]


def test_a_forked_process_makes_its_own(
    process: wsgi._Process, state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging, "setup", lambda _conf: None)
    monkeypatch.setattr(wsgi, "_process", process)
    monkeypatch.setattr(wsgi, "_inherited", [])
    monkeypatch.setenv("BACKUPFW_STATE_DIR", str(state))
    make_instance("--state-dir", str(state))
    process.app()
    wsgi._begin_anew()
    try:
        assert wsgi._process is not process
        assert wsgi._process.app() is not process.app()
        assert wsgi._inherited == [process]
    finally:
        wsgi._process.close()


def test_what_cannot_be_made_stays_open_at_no_request(
    process: wsgi._Process, state: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each request tries again."""
    monkeypatch.setattr(logging, "setup", lambda _conf: None)
    closed: list[Database] = []
    connected: list[Database] = []
    make_instance("--state-dir", str(state))
    connect, close = database.connect, Database.close

    def remembered(conf: object, make: bool = False) -> Database:
        connected.append(connect(conf, make))
        return connected[-1]

    monkeypatch.setattr(database, "connect", remembered)
    monkeypatch.setattr(Database, "close", lambda db: (closed.append(db), close(db))[1])
    path = tmp_path / "wrong.conf"
    path.write_text("[oslo_policy]\npolicy_file = missing.yaml\n")
    monkeypatch.setattr(wsgi, "_process", process)
    monkeypatch.setenv("BACKUPFW_CONFIG_FILE", str(path))
    monkeypatch.setenv("BACKUPFW_STATE_DIR", str(state))
    app = webtest.TestApp(wsgi.application)
    for _ in range(2):
        app.get("/", status=503)
    assert connected
    assert all(db in closed for db in connected)

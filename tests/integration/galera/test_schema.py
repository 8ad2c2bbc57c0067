"""``db sync`` at two nodes of a cluster, which know nothing of each other's locks."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from backupfw.db import migrate
from backupfw.db.session import Database
from tests.servers.databases import Galera

pytestmark = pytest.mark.server


def test_two_at_once_make_one_schema(cluster: Galera, tmp_path: Path) -> None:
    urls = cluster.create_database()
    running = []
    for number, url in enumerate(urls):
        config = tmp_path / f"{number}.conf"
        config.write_text(
            f"[DEFAULT]\nstate_dir = {tmp_path}/state\nenabled_stores = main\n"
            f"[store:main]\ndriver = posix\npath = {tmp_path}/store\n[database]\nconnection = {url}\n"
        )
        words = [sys.executable, "-m", "backupfw.cmd.main", "db", "sync", "--config-file", str(config)]
        running.append(subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True))
    for process in running:
        said = process.communicate(timeout=120)[0]
        assert process.returncode == 0, said
    for url in urls:
        db = Database(url)
        migrate.check(db)
        assert migrate.differences(db) == []
        db.close()


#: Migrates, and does something else in the middle of it.
_HOLDER = """
import os, signal, sys, time
from sqlalchemy import event
from backupfw.db import migrate
from backupfw.db.session import Database

db = Database(sys.argv[1])
# Not late on a busy machine.
migrate._BEAT_SECONDS = 0.3

@event.listens_for(db.engine, "before_cursor_execute")
def in_the_middle(connection, cursor, statement, *_):
    if "CREATE TABLE backups" in statement:
        print("there", flush=True)
        {deed}

migrate.sync(db)
"""


def start_holder(url: str, deed: str) -> subprocess.Popen[str]:
    """Start to migrate in another process; returns when it is in the middle."""
    words = [sys.executable, "-c", _HOLDER.format(deed=deed), url]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "there\n"
    return process


def test_one_waits_for_the_other(nodes: list[Database], monkeypatch: pytest.MonkeyPatch) -> None:
    """Also for one that takes longer than it may stand still."""
    monkeypatch.setattr(migrate, "_STILL_SECONDS", 5)
    found: list[str | None] = []
    upgrade = migrate._upgrade

    def look_first(db: Database) -> None:
        found.append(migrate.version(db))
        upgrade(db)

    monkeypatch.setattr(migrate, "_upgrade", look_first)
    url = nodes[0].engine.url.render_as_string(hide_password=False)
    with start_holder(url, "time.sleep(7)") as holder:
        migrate.sync(nodes[1])
        assert holder.wait(60) == 0
    assert found == [migrate.head()]


def test_one_that_was_killed_is_followed(nodes: list[Database], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(migrate, "_STILL_SECONDS", 3)
    url = nodes[0].engine.url.render_as_string(hide_password=False)
    with start_holder(url, "os.kill(os.getpid(), signal.SIGKILL)") as holder:
        holder.wait(60)
    migrate.sync(nodes[1])
    for db in nodes:
        migrate.check(db)
        assert migrate.differences(db) == []

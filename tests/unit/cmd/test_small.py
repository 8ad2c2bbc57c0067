"""``db``, ``config`` and ``store`` commands, and the state directory's lock."""

from __future__ import annotations

import contextlib
import json
import sqlite3
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from backupfw import outages
from backupfw.cmd import database, service
from backupfw.db import migrate
from backupfw.errors import ConfigError
from backupfw.manager.actions import ActionManager
from backupfw.manager.messages import MessageManager
from backupfw.manager.outcomes.expiry import Expiry
from tests.files import files_below
from tests.unit.cmd.conftest import Run


def test_db_commands_make_and_compare_the_schema(run: Run, state: Path) -> None:
    state.mkdir()
    (state / "backupfw.sqlite").touch()
    assert run("db", "version").out == "none\n"
    refused = run("db", "check")
    assert refused.status == 1
    assert "backupfw db sync" in refused.err
    for _ in range(2):
        assert run("db", "sync").out == f"{migrate.head()}\n"
    assert run("db", "version").out == f"{migrate.head()}\n"
    assert run("db", "check").out.startswith("ok")


def test_a_database_of_a_newer_release_is_left_alone(run: Run, state: Path) -> None:
    run("db", "sync")
    with contextlib.closing(sqlite3.connect(state / "backupfw.sqlite")) as db, db:
        db.execute("UPDATE alembic_version SET version_num = '9999'")
    done = run("volume", "create", "--size", "1")
    assert done.status == 1
    assert "9999" in done.err
    assert run("db", "version").out == "9999\n"


def test_the_installation_id_is_the_configurations(run: Run, state: Path) -> None:
    chosen = "0a0b0c0d-1111-2222-3333-444455556666"
    state.mkdir()
    (state / "backupfw.conf").write_text(f"[DEFAULT]\ninstallation_id = {chosen}\n")
    assert run("db", "sync").status == 0
    with contextlib.closing(sqlite3.connect(state / "backupfw.sqlite")) as db:
        assert db.execute("SELECT uuid FROM installation").fetchall() == [(chosen,)]
    (state / "backupfw.conf").write_text(f"[DEFAULT]\ninstallation_id = {chosen.replace('a', 'f')}\n")
    done = run("volume", "create", "--size", "1")
    assert done.status == 1
    assert chosen in done.err


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("sqlite://", "in memory"),
        ("this is none", "not a database URL"),
        ("postgresql+nodriver://h/d", "driver"),
    ],
)
def test_a_connection_that_cannot_be_used(run: Run, state: Path, url: str, said: str) -> None:
    state.mkdir()
    (state / "backupfw.conf").write_text(f"[database]\nconnection = {url}\n")
    for command in (["db", "version"], ["config", "check"]):
        done = run(*command)
        assert done.status == 1
        assert "section [database], option connection" in done.err
        assert said in done.err


def test_a_message_bus_that_cannot_be(run: Run, state: Path) -> None:
    state.mkdir()
    (state / "backupfw.conf").write_text("[DEFAULT]\ntransport_url = nobus://user:secret@host\n")
    done = run("config", "check")
    assert done.status == 1
    assert "section [DEFAULT], option transport_url: this is not the URL of a message bus" in done.err
    assert "secret" not in done.err


def test_config_check_opens_nothing_and_names_what_is_wrong(run: Run, state: Path) -> None:
    done = run("config", "check")
    assert done.status == 0
    assert done.out.splitlines()[0].startswith("configuration ok")
    assert "store main (default): driver posix" in done.out
    assert not state.exists(), "nothing is opened or made"
    state.mkdir()
    (state / "backupfw.conf").write_text("[api]\nport = 123456\n[stray]\nx = 1\n")
    done = run("config", "check")
    assert (done.status, done.out) == (1, "")
    assert done.err.count("\n") == 1
    assert "section [api], option port" in done.err
    (state / "backupfw.conf").write_text("[api]\nlisten = 0.0.0.0\n[stray]\nx = 1\n")
    assert "allow_noauth_beyond_loopback" in run("config", "check").err
    (state / "backupfw.conf").write_text("[stray]\nx = 1\n")
    done = run("config", "check")
    assert done.status == 0
    assert "[stray]" in done.err


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[healthcheck]\nallowed_source_ranges = here\n", "section [healthcheck]"),
        ("[healthcheck]\nbackends = nobody\n", "section [healthcheck]"),
        ("[api]\nresource_filters_file = nowhere.json\n", "option resource_filters_file"),
        ("[oslo_policy]\npolicy_file = nowhere.yaml\n", "option policy_file"),
    ],
)
def test_what_only_the_api_reads_is_checked_too(run: Run, state: Path, text: str, said: str) -> None:
    state.mkdir()
    (state / "backupfw.conf").write_text(text)
    for command in ("config check", "serve"):
        done = run(*command.split())
        assert (done.status, done.out) == (1, "")
        assert said in done.err
    assert [path.name for path in state.iterdir()] == ["backupfw.conf"], "told before anything is made"


def test_a_store_that_is_not_enabled(run: Run) -> None:
    for words in (("store", "check", "tape"), ("sweep", "--store", "tape")):
        done = run(*words)
        assert done.status == 1
        assert "enabled: main" in done.err


@pytest.mark.usefixtures("few_objects")
def test_store_check_leaves_nothing(run: Run, state: Path) -> None:
    done = run("store", "check", "main")
    assert done.status == 0, done.out
    assert files_below(state / "store") == []


def test_store_check_of_a_broken_store(run: Run, state: Path) -> None:
    state.mkdir()
    (state / "store").write_text("in the way")
    done = run("store", "check", "main")
    assert done.status == 1
    assert done.out.splitlines()[-1] == "store main: NOT ok"


@pytest.mark.usefixtures("few_objects")
def test_config_check_connect_asks_database_and_stores(run: Run, state: Path) -> None:
    done = run("config", "check", "--connect")
    assert done.status == 0, done.out
    assert "database sqlite: none yet" in done.out
    assert not state.exists()
    state.mkdir()
    (state / "backupfw.sqlite").touch()
    done = run("config", "check", "--connect")
    assert done.status == 1
    assert "version none" in done.out
    assert "Stop, crash, upgrade" in done.out
    run("db", "sync")
    done = run("config", "check", "--connect")
    assert done.status == 0, done.out
    assert "store main: ok" in done.out


@pytest.mark.parametrize(
    "words",
    [
        ("audit",),
        ("audit", "--no-stores"),
        ("sweep",),
        ("sweep", "--dry-run"),
        ("backup", "show", "ID"),
        ("backup", "verify", "ID"),
        ("volume", "adopt", "--again", "ID"),
        ("volume", "attach", "ID"),
        ("volume", "detach", "ID"),
        ("volume", "path", "ID"),
        ("db", "version"),
        ("db", "check"),
        ("db", "purge", "--before", "2026-01-31"),
        ("api",),
        ("worker",),
    ],
    ids=" ".join,
)
def test_a_misspelt_state_directory_is_reported_and_not_made(
    run: Run, state: Path, words: tuple[str, ...]
) -> None:
    done = run(*words)
    assert done.status == 1
    assert f"there is no database {state / 'backupfw.sqlite'}" in done.err
    assert not state.exists()


def test_one_service_per_state_directory(state: Path) -> None:
    with contextlib.ExitStack() as stack:
        stack.enter_context(database.only_service(str(state)))
        with pytest.raises(ConfigError, match="another backupfw service"):
            stack.enter_context(database.only_service(str(state)))
        with pytest.raises(ConfigError, match="another backupfw service"):
            stack.enter_context(database.only_service(str(state), shared=True))
    with contextlib.ExitStack() as stack:
        for _ in range(2):
            stack.enter_context(database.only_service(str(state), shared=True))
        with pytest.raises(ConfigError, match="another backupfw service"):
            stack.enter_context(database.only_service(str(state)))
    with database.only_service(str(state)):
        pass


def test_a_state_directory_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="state directory"):
        database.make_state_dir(str(tmp_path / "file" / "state"))


def test_what_is_looked_after(monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[str] = []
    clock = [1000.0]
    monkeypatch.setattr(outages, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    monkeypatch.setattr(service, "make_expiry", lambda _conf, _db: object.__new__(Expiry))
    monkeypatch.setattr(Expiry, "expire", lambda self: called.append("expiry"))
    monkeypatch.setattr(ActionManager, "purge", lambda self: called.append("actions"))

    def fails(self: MessageManager) -> None:
        raise OSError

    monkeypatch.setattr(MessageManager, "purge", fails)
    unused: Any = None
    look = service.make_look(unused, unused)
    look()
    monkeypatch.setattr(MessageManager, "purge", lambda self: called.append("messages"))
    # What failed is done again at the next look, and then once an hour.
    for seconds in (0, 3599, 1):
        clock[0] += seconds
        look()
    everything = ["expiry", "messages", "actions"]
    assert called == ["expiry", *everything, "expiry", *everything]


def test_a_clean_up_is_given_up(run: Run, backup_id: str) -> None:
    assert run("backup", "delete", "--no-wait", backup_id).status == 0
    listed = run("task", "list", "-f", "json")
    assert (listed.status, listed.err) == (0, "")
    (task,) = json.loads(listed.out)
    found = (task["kind"], task["resource_id"], task["requires"], task["waits_for"])
    assert found == ("backup.delete", backup_id, "main", "waiting-for-worker")
    dropped = run("task", "drop", str(task["id"]))
    assert (dropped.status, dropped.err) == (0, "")
    assert f"/{backup_id}/ stay" in dropped.out
    assert json.loads(run("task", "list", "-f", "json").out) == []
    assert run("backup", "show", backup_id).status == 1
    refused = run("task", "drop", str(task["id"]))
    assert (refused.status, refused.out) == (1, "")
    assert "There is no task" in refused.err


def test_who_had_what_done_is_listed(run: Run, backup_id: str) -> None:
    assert run("backup", "delete", "--no-wait", backup_id).status == 0
    listed = run("action", "list", "--about", backup_id, "-f", "json")
    assert listed.status == 0, listed.err
    actions = json.loads(listed.out)
    assert [one["kind"] for one in actions] == ["backup.delete", "backup.create"]
    assert actions[0]["user_id"] == "backupfw"
    assert actions[0]["request_id"].startswith("req-")
    assert [one["kind"] for one in json.loads(run("action", "list", "--limit", "1", "-f", "json").out)] == [
        "backup.delete"
    ]
    assert json.loads(run("action", "list", "--project", "nobody", "-f", "json").out) == []
    assert run("action", "list", "--limit", "0").status == 2

"""Commands on a schema that is not theirs: refused with a plain message, before anything is served."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from backupfw.cmd import service
from backupfw.db import migrate
from backupfw.db.session import Database
from tests.unit.cmd.conftest import Run
from tests.unit.cmd.test_one_host import conf
from tests.unit.db.conftest import db, mariadb_url, postgresql_url

__all__ = ["conf", "db", "mariadb_url", "postgresql_url"]


def stamp(db: Database, version: str) -> None:
    with db.engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = :version"), {"version": version})


@pytest.mark.parametrize("db", ["postgresql"], indirect=True)
@pytest.mark.parametrize("command", ["api", "worker", "serve"])
@pytest.mark.parametrize(("version", "message"), [("0001", "run backupfw db sync"), ("9999", "a newer one")])
def test_a_service_refuses_to_start(
    db: Database, conf: Any, run: Run, tmp_path: Path, command: str, version: str, message: str
) -> None:
    assert conf.state_dir == str(tmp_path)
    stamp(db, version)
    refused = run(command, "--config-file", str(tmp_path / "backupfw.conf"), at_state=False)
    assert (refused.status, refused.out) == (1, "")
    assert f"the database has version {version}" in refused.err
    assert message in refused.err
    assert "Traceback" not in refused.err


@pytest.mark.parametrize("db", ["postgresql"], indirect=True)
def test_a_service_that_runs_goes_on(db: Database, conf: Any) -> None:
    """An upgrade leaves processes alone that were not stopped yet, and those that a master starts again."""
    with service.running_worker(conf):
        stamp(db, "9999")
        with service.running_worker(conf):
            assert migrate.version(db) == "9999"


@pytest.mark.parametrize(
    "words",
    [
        ("audit",),
        ("sweep",),
        ("backup", "show", "x"),
        ("volume", "path", "x"),
        ("volume", "create", "--size", "1"),
        ("api", "--port", "0"),
        ("worker",),
    ],
    ids=" ".join,
)
def test_a_sqlite_database_of_an_earlier_release_is_left_alone(
    run: Run, state: Path, words: tuple[str, ...]
) -> None:
    """A service of that release may be running on it: only its own successor migrates it, or an operator."""
    file = f"sqlite:///{state}/backupfw.sqlite"
    assert run("db", "sync").status == 0
    with closing(Database(file)) as made:
        stamp(made, "0001")
        refused = run(*words)
        assert (refused.status, refused.out) == (1, "")
        assert "the database has version 0001" in refused.err
        assert "run backupfw db sync" in refused.err
        assert migrate.version(made) == "0001"


@pytest.mark.parametrize("damage", ["half", "a page", "noise", "no head"])
@pytest.mark.parametrize(
    "words", [("audit", "--no-stores"), ("db", "check"), ("db", "sync"), ("sweep",), ("serve", "--port", "0")]
)
def test_a_damaged_sqlite_file_is_named(run: Run, state: Path, damage: str, words: tuple[str, ...]) -> None:
    assert run("db", "sync").status == 0
    file = state / "backupfw.sqlite"
    whole = file.read_bytes()
    broken = {
        "half": whole[: len(whole) // 2],
        "a page": whole[:4096],
        "noise": b"no database" * 2000,
        "no head": bytes(100) + whole[100:],
    }[damage]
    file.write_bytes(broken)
    done = run(*words)
    assert (done.status, done.out) == (1, "")
    assert f"the database {file} is cut off, damaged or no database" in done.err
    assert "internal error" not in done.err
    # Nobody touched it: what can be saved is still there.
    assert file.read_bytes() == broken

"""Commands run inside the test's process, on a state directory of the test."""

from __future__ import annotations

import argparse
import io
import random
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from backupfw.cmd import configure, database, service
from backupfw.cmd import main as command
from backupfw.conf import logging
from backupfw.context import RequestContext
from backupfw.db import migrate
from backupfw.db.session import Database
from backupfw.manager.usecases.backups import BackupManager
from backupfw.testing import operator
from tests.waiting import wait_until

CTX = RequestContext("demo", "tester", frozenset({"admin"}), is_admin=True)


@dataclass(frozen=True)
class Outcome:
    """What a command left: its exit status and what it wrote."""

    status: int
    out: str
    err: str


Run = Callable[..., Outcome]


@pytest.fixture(scope="session")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SQLite file with the tables of this release, made by all migrations, and nothing else."""
    path = tmp_path_factory.mktemp("migrated") / "backupfw.sqlite"
    with closing(Database(f"sqlite:///{path}")) as db:
        migrate._upgrade(db)
    return path


@pytest.fixture(scope="module", autouse=True)
def _migrations_run_once(migrated: Path) -> Iterator[None]:
    """Let a new SQLite file get its tables from one that has them: nearly each test makes an instance."""
    upgrade = migrate._upgrade

    def copy(db: Database) -> None:
        if db.backend == "sqlite" and migrate.version(db) is None:
            with closing(sqlite3.connect(migrated)) as made, closing(db.engine.raw_connection()) as empty:
                made.backup(empty.driver_connection)
        else:
            upgrade(db)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(migrate, "_upgrade", copy)
        yield


@pytest.fixture
def few_objects(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a check of a store make few objects to list: that it makes more than a page is in test_store.py."""
    monkeypatch.setattr(operator, "LISTED", 30)


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """The state directory, not made yet."""
    return tmp_path / "state"


@pytest.fixture
def run(state: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run a command; usage errors come back as status 2 like in a shell."""
    # oslo.log would take the handlers of pytest away from the process.
    monkeypatch.setattr(logging, "setup", lambda _conf, quiet=False: None)

    def runner(*words: str, at_state: bool = True) -> Outcome:
        argv = [*words, "--state-dir", str(state)] if at_state else list(words)
        capsys.readouterr()
        try:
            status = command.main(argv)
        except SystemExit as error:
            status = int(error.code or 0)
        text = capsys.readouterr()
        return Outcome(status, text.out, text.err)

    return runner


def load_conf(state: Path) -> Any:
    """The configuration of a state directory, its API on any free port."""
    conf = configure.load(argparse.Namespace(state_dir=str(state), config_file=[], debug=False)).conf
    conf.set_override("port", 0, "api")
    # Of what a test's own managers queue nobody tells the worker.
    conf.set_override("poll_seconds", 0.1, "backup")
    return conf


def adopted(state: Path, image: Path) -> str:
    """Adopt an image; return its volume's id."""
    out = io.StringIO()
    with redirect_stdout(out):
        assert command.main(["volume", "adopt", str(image), "--state-dir", str(state)]) == 0
    return out.getvalue().strip()


def backed_up(
    backups: BackupManager, volume: str, *, incremental: bool = False, container: str | None = None
) -> str:
    """Have a running service back a volume up; return the backup's id."""
    made = backups.create(
        CTX, volume_id=volume, name=None, description=None, container=container,
        incremental=incremental, force=False, snapshot_id=None,
    )  # fmt: skip
    wait_until("the backup", lambda: backups.get(CTX, made.id).status != "creating")
    assert backups.get(CTX, made.id).status == "available"
    return made.id


def copy_state(made: Path, state: Path) -> None:
    """Copy the state directory of a service that was stopped."""
    shutil.copytree(made, state, ignore=lambda _at, names: [name for name in names if name.endswith(".sock")])


@pytest.fixture(scope="session")
def made_backup(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A state directory to copy, and the id of its available backup of 3 MiB: made once, it takes seconds."""
    top = tmp_path_factory.mktemp("made")
    state, image = top / "state", top / "image.raw"
    image.write_bytes(random.Random(8).randbytes(3 << 20))
    with pytest.MonkeyPatch.context() as patch:
        # As in run().
        patch.setattr(logging, "setup", lambda _conf, quiet=False: None)
        volume = adopted(state, image)
        conf = load_conf(state)
        with service.EmbeddedService(conf), database.opened(conf) as db:
            return state, backed_up(BackupManager(db, conf), volume)


@pytest.fixture
def backup_id(state: Path, made_backup: tuple[Path, str]) -> str:
    """The id of an available backup of 3 MiB."""
    copy_state(made_backup[0], state)
    return made_backup[1]

"""``backupfw audit`` on the database and store of a real service."""

from __future__ import annotations

import json
import uuid
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import delete, update

from backupfw.chunkstore.base import ChunkStore
from backupfw.cmd import database
from backupfw.db.models import Backup, Installation, Manifest
from backupfw.engine import audit as engine
from backupfw.manager.operators import audit
from tests.unit.cmd.conftest import Run, load_conf
from tests.unit.cmd.test_backup import objects
from tests.unit.cmd.test_store import keeps_versions


def test_an_audit_without_findings_ends_with_0(run: Run, backup_id: str) -> None:
    done = run("audit")
    assert (done.status, done.out) == (0, "nothing wrong\n")
    done = run("audit", "--json")
    assert (done.status, json.loads(done.out)) == (
        0,
        {"findings": [], "unknown_manifests": 0, "foreign_manifests": {}},
    )


def test_an_object_too_many_and_one_too_few(run: Run, state: Path, backup_id: str) -> None:
    packs = [path for path in objects(state) if path.name.startswith("p")]
    packs[0].rename(packs[0].with_name(packs[0].name.replace("p0000", "p0fff")))
    done = run("audit")
    assert done.status == 1
    missing, extra, count = done.out.splitlines()
    assert missing.startswith("store: main/")
    assert missing.endswith("/p0000: object missing")
    assert ": object named by nothing: " in extra
    assert count == "2 findings"
    assert run("audit", "--no-stores").status == 0


def test_more_findings_than_are_told(
    run: Run, state: Path, backup_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(3):
        assert run("volume", "create", "--size", "1").status == 0
    for image in (state / "volumes").glob("*.img"):
        image.unlink()
    for path in objects(state):
        path.rename(path.with_name("x" + path.name))
    everything = run("audit").out.splitlines()
    monkeypatch.setattr(audit, "MOST", 2)
    monkeypatch.setattr(engine, "MOST_OF_ALL", 1)
    told = run("audit").out.splitlines()
    assert len([line for line in told if line.startswith("volume: volume ")]) == 2
    assert "volume: 1 more: beside the first 2 of this check" in told
    more = len([line for line in everything if line.startswith("store: ")]) - 1
    assert more > 1
    assert f"store: main/volumebackups: {more} more findings, beside the first 1" in told


def test_rows_that_disagree_are_findings(run: Run, state: Path, backup_id: str) -> None:
    conf: Any = load_conf(state)
    with database.opened(conf) as db, db.write() as session:
        session.execute(update(Backup).where(Backup.id == backup_id).values(status="restoring"))
    done = run("audit", "--json")
    assert done.status == 1
    assert json.loads(done.out) == {
        "findings": [
            {
                "check": "status",
                "subject": f"backup {backup_id}",
                "problem": "is restoring, but no task is about it",
            }
        ],
        "unknown_manifests": 0,
        "foreign_manifests": {},
    }


def test_a_store_that_is_away(run: Run, state: Path, backup_id: str) -> None:
    (state / "store").rename(state / "unmounted")
    (state / "store").mkdir()
    done = run("audit")
    assert done.status == 1
    assert "container volumebackups of store main: could not be looked at" in done.out


@pytest.mark.parametrize("words", [("--store", "nothing")])
def test_an_audit_of_an_unknown_store_fails(run: Run, backup_id: str, words: tuple[str, ...]) -> None:
    done = run("audit", *words)
    assert done.status == 1
    assert "nothing" in done.err


@pytest.mark.parametrize("words", [("audit",), ("sweep", "--dry-run")])
def test_audit_and_sweep_note_what_deletes_do_not_free(
    run: Run, backup_id: str, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]
) -> None:
    monkeypatch.setattr(ChunkStore, "inspect", keeps_versions)
    done = run(*words)
    assert done.status == 0
    note = "note: container volumebackups of store main: versions: volumebackups keeps them"
    assert note in done.err.splitlines()
    assert "note: container volumebackups of store main: locks" not in done.err


def test_a_database_that_knows_nothing_of_a_full_store(run: Run, state: Path, backup_id: str) -> None:
    """Three green lights over a full bucket: a database made anew has another installation id."""
    conf: Any = load_conf(state)
    with database.opened(conf) as db, db.write() as session:
        installation = session.get_one(Installation, 1)
        old, installation.uuid = installation.uuid, str(uuid.uuid4())
        session.execute(update(Backup).values(manifest_id=None))
        session.execute(delete(Manifest))
    done = run("audit", "--json")
    assert json.loads(done.out)["foreign_manifests"] == {old: 1}
    assert f"1 manifest of another installation: {old}" in run("audit").out
    assert f"1 manifest of another installation: {old}" in run("sweep").out
    with database.opened(conf) as db, db.write() as session:
        session.get_one(Installation, 1).uuid = old
    for command in ("audit", "sweep"):
        done = run(command)
        assert done.status == (command == "audit")
        assert "1 manifest of this installation that the database does not know" in done.out

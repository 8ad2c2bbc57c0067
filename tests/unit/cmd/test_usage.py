"""``usage``: what backups take in the stores is what the files say."""

from __future__ import annotations

import json
import shutil
import uuid
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import inspect as sa_inspect
from sqlalchemy import select, update

from backupfw.cmd import catalogue, database, usage
from backupfw.cmd.progress import Progress
from backupfw.db import models
from backupfw.db.digest import object_digest
from backupfw.worker.stores import Stores
from tests.unit.cmd.conftest import Run, load_conf
from tests.unit.cmd.test_backup import objects
from tests.unit.cmd.test_verify import Chain, chain, made

__all__ = ["chain", "made"]


def counted(state: Path, by: str, volume: str | None = None) -> tuple[dict[str, dict[str, Any]], list[str]]:
    conf = load_conf(state)
    with (
        database.opened(conf) as db,
        closing(Stores(conf)) as stores,
        closing(usage.Count(conf, db, stores, by, Progress("x", unit="manifests"))) as found,
    ):
        return {row.pop("key"): row for row in found.rows(volume)}, found.problems


def stored(state: Path, *parts: str) -> int:
    return sum(path.stat().st_size for path in objects(state) if all(part in str(path) for part in parts))


@pytest.mark.parametrize("by", ["project", "store", "volume"])
def test_what_shares_with_nobody_owns_all_its_files(chain: Chain, by: str) -> None:
    rows, problems = counted(chain.state, by)
    assert problems == []
    assert sum(row["own_bytes"] for row in rows.values()) == stored(chain.state)
    assert sum(row["own_objects"] for row in rows.values()) == len(objects(chain.state))
    assert all(
        row["shared_bytes"] == 0 and row["deleting_frees_bytes"] == row["own_bytes"] for row in rows.values()
    )
    if by == "volume":
        assert rows[chain.volume]["backups"] == 2
        assert rows[chain.volume]["own_bytes"] == stored(chain.state, chain.volume)


def test_by_backup_it_says_what_show_says(chain: Chain) -> None:
    rows, _ = counted(chain.state, "backup")
    assert set(rows) == {chain.full, chain.increment, chain.other}
    for backup, row in rows.items():
        holdings = chain.show(backup)["holdings"]
        assert holdings["own"] == {"objects": row["own_objects"], "bytes": row["own_bytes"]}
        assert holdings["shared"] == {"objects": row["shared_objects"], "bytes": row["shared_bytes"]}
        assert holdings["deleting_frees"]["bytes"] == row["deleting_frees_bytes"]
    assert rows[chain.full]["shared_bytes"] > 0
    only, _ = counted(chain.state, "backup", chain.volume)
    assert only == {name: rows[name] for name in (chain.full, chain.increment)}


def test_copies_count_in_their_store_and_once_elsewhere(chain: Chain, tmp_path: Path) -> None:
    """The files of the store ``main`` are those of the other one, too."""
    before = {by: counted(chain.state, by)[0] for by in ("project", "store", "backup")}
    with open(chain.state / "backupfw.conf", "a") as file:
        file.write("[DEFAULT]\nenabled_stores = main,offsite\n")
        file.write(f"[store:offsite]\ndriver = posix\npath = {tmp_path / 'off'}\n")
    shutil.copytree(chain.state / "store", tmp_path / "off")
    with database.opened(load_conf(chain.state)) as db, db.write() as session:
        for backup in session.scalars(select(models.Backup).where(models.Backup.volume_id == chain.volume)):
            own = session.get_one(models.Manifest, backup.manifest_id)
            copy = {one.key: getattr(own, one.key) for one in sa_inspect(models.Manifest).column_attrs}
            copy |= {"id": str(uuid.uuid4()), "store": "offsite", "copied": True, "copy_step": "placed"}
            digest = object_digest("offsite", own.container, str(own.key))
            session.add(models.Manifest(**{**copy, "key_digest": digest, "base_id": None, "detached": True}))
            session.flush()
            session.add(
                models.BackupCopy(
                    id=str(uuid.uuid4()),
                    backup_id=backup.id,
                    store="offsite",
                    container=own.container,
                    status="available",
                    manifest_id=copy["id"],
                    created_at=backup.created_at,
                )
            )
    after = {by: counted(chain.state, by)[0] for by in ("project", "store", "backup")}
    (was,), (project,) = before["project"].values(), after["project"].values()
    assert (project["backups"], project["gigabytes"]) == (was["backups"], was["gigabytes"])
    both = stored(chain.state, chain.volume)
    assert project["own_bytes"] == was["own_bytes"] + both
    assert project["deleting_frees_bytes"] == project["own_bytes"]
    assert after["store"]["main"] == before["store"]["main"]
    assert after["store"]["offsite"]["own_bytes"] == both
    assert after["store"]["offsite"]["backups"] == 2
    for backup in (chain.full, chain.increment):
        one = after["backup"][backup]
        assert one["backups"] == 1
        assert one["deleting_frees_bytes"] == 2 * before["backup"][backup]["deleting_frees_bytes"]
    assert after["backup"][chain.other] == before["backup"][chain.other]


def test_names_stand_beside_ids(chain: Chain, run: Run) -> None:
    with database.opened(load_conf(chain.state)) as db, db.write() as session:
        session.get_one(models.Backup, chain.full).display_name = "monday"
        # Its backups are still there.
        volume = session.get_one(models.Volume, chain.volume)
        volume.display_name, volume.deleted = "db-disk", True
    named = {
        row["backup"]: row["name"] for row in json.loads(run("usage", "--by", "backup", "-f", "json").out)
    }
    assert named == {chain.full: "monday", chain.increment: None, chain.other: None}
    named = {
        row["volume"]: row["name"] for row in json.loads(run("usage", "--by", "volume", "-f", "json").out)
    }
    assert named[chain.volume] == "db-disk"
    assert len(named) == 2
    # What is its own name has no other.
    assert "name" not in json.loads(run("usage", "-f", "json").out)[0]


def test_by_project_two_that_share_are_told_apart(chain: Chain) -> None:
    with database.opened(load_conf(chain.state)) as db, db.write() as session:
        session.execute(
            update(models.Backup).where(models.Backup.id == chain.increment).values(project_id="second")
        )
    by_backup, _ = counted(chain.state, "backup")
    rows, _ = counted(chain.state, "project")
    assert rows["second"] == by_backup[chain.increment]
    assert rows["demo"]["shared_bytes"] == rows["second"]["shared_bytes"] > 0


def test_what_deleting_would_not_free(chain: Chain) -> None:
    """A manifest that the database forgot, and one that a running backup is built upon."""
    before, _ = counted(chain.state, "backup")
    with database.opened(load_conf(chain.state)) as db, db.write() as session:
        full = session.get_one(models.Backup, chain.full)
        other = session.get_one(models.Backup, chain.other)
        base = session.get_one(models.Manifest, other.manifest_id)
        values = {column.key: getattr(base, column.key) for column in models.Manifest.__table__.columns}
        values |= {"id": "child", "key": None, "key_digest": None, "base_id": base.id, "state": "writing"}
        session.add(models.Manifest(**values))
        forgotten = full.manifest_id
        full.manifest_id, full.deleted = None, True
        session.execute(
            update(models.Manifest).where(models.Manifest.base_id == forgotten).values(base_id=None)
        )
        session.flush()
        session.delete(session.get_one(models.Manifest, forgotten))
    after, problems = counted(chain.state, "backup")
    assert problems == []
    assert after[chain.other] == {**before[chain.other], "deleting_frees_bytes": 0}
    # What the forgotten one names is shared with nobody that is counted, but stays.
    assert after[chain.increment] == before[chain.increment]


def test_a_volume_that_cannot_be_read_is_told_and_the_others_are_counted(chain: Chain) -> None:
    before, _ = counted(chain.state, "backup")
    (manifest,) = [
        path for path in objects(chain.state) if chain.full in str(path) and "manifest" in path.name
    ]
    manifest.unlink()
    rows, (problem,) = counted(chain.state, "backup")
    assert problem.startswith(f"volume {chain.volume}: NOT counted: object ")
    assert rows[chain.other] == before[chain.other]
    assert rows[chain.full]["backups"] == 1
    assert rows[chain.full]["own_bytes"] == rows[chain.increment]["own_bytes"] == 0


def test_pages_leave_nothing_out(chain: Chain, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, _ = counted(chain.state, "backup")
    monkeypatch.setattr(usage, "_NEXT_HOLDINGS", usage._NEXT_HOLDINGS.replace("LIMIT 1000", "LIMIT 1"))
    monkeypatch.setattr(catalogue, "_PAGE", 1)
    assert counted(chain.state, "backup") == (whole, [])


def test_a_backup_that_is_deleted_while_it_is_read_is_left_out(
    chain: Chain, monkeypatch: pytest.MonkeyPatch
) -> None:
    (manifest,) = [
        path for path in objects(chain.state) if chain.other in str(path) and "manifest" in path.name
    ]
    read = catalogue.holdings

    def deleted_then(*words: Any) -> list[catalogue.Holding]:
        found = list(read(*words))
        with database.opened(load_conf(chain.state)) as db, db.write() as session:
            backup = session.get_one(models.Backup, chain.other)
            session.execute(
                update(models.Manifest).where(models.Manifest.id == backup.manifest_id).values(state="gone")
            )
        manifest.unlink()
        return found

    monkeypatch.setattr(catalogue, "holdings", deleted_then)
    rows, problems = counted(chain.state, "backup")
    assert (set(rows), problems) == ({chain.full, chain.increment}, [])

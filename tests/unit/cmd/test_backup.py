"""``backup show``, ``backup verify`` and ``sweep`` on a backup that a real service made."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from backupfw.chunkstore.base import Body
from backupfw.chunkstore.container import Container
from backupfw.chunkstore.errors import Unavailable
from backupfw.cmd import catalogue, database, service, store, sweep
from backupfw.db import models
from backupfw.engine import sweep as engine_sweep
from backupfw.errors import NotFound
from backupfw.manager.usecases.backups import BackupManager
from tests.files import files_below
from tests.unit.cmd.conftest import CTX, Run, adopted, backed_up, load_conf
from tests.waiting import wait_until


@pytest.fixture
def shown(run: Run, backup_id: str) -> Iterator[dict[str, Any]]:
    """What ``backup show`` prints."""
    done = run("backup", "show", backup_id)
    assert done.status == 0, done.err
    return json.loads(done.out)


def objects(state: Path) -> list[Path]:
    return files_below(state / "store")


def _wait_until_gone(backups: BackupManager, backup: str) -> None:
    def gone() -> bool:
        try:
            backups.get(CTX, backup)
        except NotFound:
            return True
        return False

    wait_until(f"the end of backup {backup}", gone)


def test_the_figures_are_true(state: Path, shown: dict[str, Any]) -> None:
    assert shown["put_bytes"] == sum(path.stat().st_size for path in objects(state))
    assert shown["object_count"] == len(objects(state))
    assert shown["length"] == 3 << 20
    assert shown["manifest"].endswith("/manifest")
    assert shown["created_at"].endswith("Z")


def test_a_backup_alone_owns_all_that_the_store_has(state: Path, shown: dict[str, Any]) -> None:
    all_of_it = {
        "objects": len(objects(state)),
        "bytes": sum(path.stat().st_size for path in objects(state)),
    }
    nothing = {"objects": 0, "bytes": 0}
    assert shown["holdings"] == {
        "own": all_of_it,
        "shared": nothing,
        "shared_with": [],
        "same_manifest": [],
        "deleting_frees": all_of_it,
    }


def test_an_increment_owns_what_its_deleted_base_left_it(run: Run, state: Path, tmp_path: Path) -> None:
    """And while the base is there, they share it; what a deletion frees is what was foretold."""
    image = tmp_path / "image.raw"
    data = bytearray(random.Random(9).randbytes(3 << 20))
    image.write_bytes(data)
    volume = adopted(state, image)
    conf = load_conf(state)

    def show(backup: str) -> dict[str, Any]:
        done = run("backup", "show", backup)
        assert done.status == 0, done.err
        return json.loads(done.out)

    def stored() -> int:
        return sum(path.stat().st_size for path in objects(state))

    with service.EmbeddedService(conf), database.opened(conf) as db:
        backups = BackupManager(db, conf)

        full = backed_up(backups, volume)
        image.write_bytes(data[:-4096] + bytes(range(256)) * 16)
        child = backed_up(backups, volume, incremental=True)
        before, base, total = show(child), show(full), stored()
        assert before["put_bytes"] + base["put_bytes"] == total
        shared = before["holdings"]["shared"]
        assert shared["bytes"] > 2 << 20
        assert before["holdings"]["own"]["bytes"] == before["put_bytes"] < 1 << 20
        (with_base,) = before["holdings"]["shared_with"]
        assert with_base == {"manifest": base["manifest"], "backups": [full], **shared}

        backups.delete(CTX, full)
        _wait_until_gone(backups, full)
        assert total - stored() == base["holdings"]["deleting_frees"]["bytes"]
        after = show(child)
        assert after["put_bytes"] == before["put_bytes"]
        assert after["holdings"]["own"] == after["holdings"]["deleting_frees"]
        assert after["holdings"]["own"] == {"objects": len(objects(state)), "bytes": stored()}
        assert after["holdings"]["shared_with"] == []


def test_deleting_one_of_two_records_of_a_manifest_frees_nothing(
    run: Run, state: Path, backup_id: str, shown: dict[str, Any]
) -> None:
    with database.opened(load_conf(state)) as db, db.write() as session:
        row = session.get_one(models.Backup, backup_id)
        values = {column.key: getattr(row, column.key) for column in models.Backup.__table__.columns}
        session.add(models.Backup(**{**values, "id": "duplicate"}))
    found = json.loads(run("backup", "show", backup_id).out)["holdings"]
    assert found["same_manifest"] == ["duplicate"]
    assert found["own"] == shown["holdings"]["own"]
    assert found["deleting_frees"] == {"objects": 0, "bytes": 0}


def test_a_record_is_shown_although_the_store_does_not_answer(
    run: Run, state: Path, backup_id: str, shown: dict[str, Any]
) -> None:
    (manifest,) = [path for path in objects(state) if path.name.startswith("manifest")]
    manifest.unlink()
    done = run("backup", "show", backup_id)
    assert done.status == 0, done.err
    again = json.loads(done.out)
    assert list(again["holdings"]) == ["problem"]
    assert {**again, "holdings": None} == {**shown, "holdings": None}


def test_a_verification_reports_a_changed_object(
    run: Run, state: Path, backup_id: str, shown: dict[str, Any]
) -> None:
    done = run("backup", "verify", backup_id)
    assert done.status == 0, done.out
    assert f"backup {backup_id}: ok ({shown['object_count']} objects, 48 blocks" in done.out
    largest = max(objects(state), key=lambda path: path.stat().st_size)
    data = bytearray(largest.read_bytes())
    data[len(data) // 2] ^= 1
    largest.chmod(0o600)
    largest.write_bytes(data)
    done = run("backup", "verify", backup_id)
    assert done.status == 1
    damaged, verdict = done.out.splitlines()
    assert damaged.startswith("damaged: ")
    assert "DAMAGED, 1 object" in verdict


@pytest.mark.parametrize("what", ["directory", "link"])
def test_verify_names_an_object_that_became_something_else(
    run: Run, state: Path, backup_id: str, tmp_path: Path, what: str
) -> None:
    (pack, *_) = [path for path in objects(state) if path.name.startswith("p")]
    pack.rename(tmp_path / "moved")
    if what == "directory":
        pack.mkdir()
    else:
        pack.symlink_to(tmp_path / "moved")
    done = run("backup", "verify", backup_id)
    assert done.status == 1
    (damaged, verdict) = done.out.splitlines()
    assert damaged.startswith("damaged: ")
    assert pack.name.removesuffix(".o") in damaged
    assert "DAMAGED, 1 object" in verdict


def test_a_backup_that_does_not_exist_is_an_error(run: Run) -> None:
    run("db", "sync")
    for verb in ("show", "verify"):
        done = run("backup", verb, "nothing")
        assert (done.status, done.err) == (1, "backupfw: Backup nothing could not be found.\n")


def test_a_sweep_deletes_orphans_and_nothing_else(
    run: Run, state: Path, backup_id: str, shown: dict[str, Any]
) -> None:
    before = len(objects(state))
    done = run("sweep", "--dry-run")
    assert (done.status, done.out) == (0, f"1 volume, {before} objects, 0 orphans (0 B)\n")
    # An object that a lost attempt of this backup might have left, and one that is not ours.
    conf = load_conf(state)
    prefix = shown["manifest"].rsplit("/", 2)[0]
    stray = f"{prefix}/1.7-0123456789abcdef/00000000/p0000"
    with store.opened(conf, "main") as opened:
        for key in (stray, "somebody/elses"):
            opened.put("volumebackups", key, Body.from_bytes(b"stray"))
    found = run("sweep", "--dry-run")
    assert found.status == 0
    volume_line, total = found.out.splitlines()
    assert volume_line == f"volume {shown['volume_id']} of project demo: 1 orphan, 5 B"
    assert total == f"1 volume, {before + 1} objects, 1 orphan (5 B)"
    assert len(objects(state)) == before + 2
    (one,) = json.loads(run("sweep", "--dry-run", "-f", "json").out)
    assert one == {
        "store": "main",
        "container": "volumebackups",
        "project_id": "demo",
        "volume_id": shown["volume_id"],
        "result": "ok",
        "objects": before + 1,
        "orphans": 1,
        "orphan_bytes": 5,
        "skipped_objects": 0,
        "locked_objects": 0,
        "locked_until": None,
        "unknown_manifests": [],
        "problem": None,
    }
    assert run("sweep").out.splitlines()[-1].endswith("1 orphan (5 B) deleted")
    assert len(objects(state)) == before + 1
    assert "0 orphans" in run("sweep").out
    assert run("backup", "verify", backup_id).status == 0


def test_sweep_removes_containers_that_are_empty_and_unused(run: Run, state: Path, tmp_path: Path) -> None:
    image = tmp_path / "image.raw"
    image.write_bytes(bytes(1 << 20))
    volume = adopted(state, image)
    conf = load_conf(state)

    with service.EmbeddedService(conf), database.opened(conf) as db:
        backups = BackupManager(db, conf)
        made = backed_up(backups, volume, container="mine")
        assert run("sweep").status == 0
        assert (state / "store" / "mine").is_dir()
        backups.delete(CTX, made)
        _wait_until_gone(backups, made)
        wait_until("the end of its objects", lambda: not objects(state))
    (state / "store" / "volumebackups").mkdir(exist_ok=True)
    assert run("sweep", "--dry-run").status == 0
    # A service that makes none has to be given the next one, too.
    (state / "backupfw.conf").write_text("[backup]\ncreate_containers = false\n")
    assert run("sweep").status == 0
    assert (state / "store" / "mine").is_dir()
    (state / "backupfw.conf").unlink()
    done = run("sweep")
    assert done.status == 0
    assert "container mine of store main: empty, removed" in done.out.splitlines()
    # The store's own default container stays.
    assert [path.name for path in (state / "store").iterdir()] == ["volumebackups"]


def test_a_stores_own_default_container_is_looked_at(run: Run, state: Path) -> None:
    state.mkdir()
    (state / "backupfw.conf").write_text("[store:main]\ncontainer = ours\n")
    assert run("db", "sync").status == 0
    conf = load_conf(state)
    with database.opened(conf) as db:
        assert catalogue.containers(db, conf, None) == [("main", "ours")]


def test_a_container_that_is_needed_again_comes_back(
    run: Run, state: Path, backup_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A backup that is begun between the look at the rows and the removal."""
    conf = load_conf(state)
    with database.opened(conf) as db, store.opened(conf, "main") as opened:
        opened.ensure_container("mine")
        looks = iter([False, True])
        monkeypatch.setattr(catalogue, "is_in_use", lambda *_: next(looks))
        assert not sweep._removed(db, conf, Container(opened, "mine"))
        assert "mine" in list(opened.list_containers())


def test_a_container_that_could_not_be_swept_is_not_removed(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    run("db", "sync")
    asked: list[object] = []

    def away(*_: object, **__: object) -> None:
        raise Unavailable("does not answer", store="main")

    monkeypatch.setattr(engine_sweep, "run", away)
    monkeypatch.setattr(catalogue, "is_in_use", lambda *place: asked.append(place) or True)
    done = run("sweep")
    assert done.status == 1
    assert "does not answer" in done.err
    assert asked == []


def test_a_sweep_of_an_empty_installation_finds_nothing(run: Run) -> None:
    run("db", "sync")
    assert run("sweep").out == "0 volumes, 0 objects, 0 orphans (0 B)\n"

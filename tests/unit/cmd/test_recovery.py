"""``catalogue rebuild``: a database that was lost comes back from the store alone."""

from __future__ import annotations

import json
import random
import uuid
from contextlib import closing
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select, update

from backupfw.chunkstore.container import Container
from backupfw.chunkstore.memory import MemoryStore
from backupfw.cmd import database, service
from backupfw.cmd.main import main
from backupfw.db import models
from backupfw.db.installation import installation_id
from backupfw.engine.format.geometry import Geometry
from backupfw.engine.format.keys import Origin
from backupfw.engine.format.manifest import ManifestHead, ManifestReader, ManifestWriter, read_head
from backupfw.errors import InvalidInput
from backupfw.manager import records
from backupfw.manager.operators import recovery
from backupfw.manager.usecases.backups import BackupManager
from backupfw.worker import holding
from backupfw.worker.handlers.backup_import import manifest_facts
from backupfw.worker.stores import Stores
from tests.files import files_below
from tests.unit.cmd.conftest import CTX, Run, adopted, backed_up, load_conf
from tests.unit.cmd.test_backup import _wait_until_gone, objects
from tests.unit.cmd.test_verify import Chain, chain, made
from tests.waiting import wait_until

__all__ = ["chain", "made"]

#: Columns that a store does not have.
_LOST = {
    "host",
    "comparison",
    "read_bytes",
    "manifest_id",
    "updated_at",
    "touched",
    "progress_done",
    "progress_total",
}


def installation(state: Path) -> str:
    with database.opened(load_conf(state)) as db, db.read() as session:
        return installation_id(session)


def lose_the_database(run: Run, state: Path) -> str:
    """Lose all but the store; return the old installation's id."""
    old = installation(state)
    for file in state.glob("backupfw.sqlite*"):
        file.unlink()
    assert run("db", "sync").status == 0
    return old


def rows(state: Path, model: Any) -> list[dict[str, Any]]:
    with database.opened(load_conf(state)) as db, db.read() as session:
        found = session.execute(select(model.__table__).order_by(model.__table__.c[0])).mappings()
        return [dict(row) for row in found]


def backups(state: Path) -> dict[str, dict[str, Any]]:
    return {row["id"]: {k: v for k, v in row.items() if k not in _LOST} for row in rows(state, models.Backup)}


def edges(state: Path) -> set[tuple[str, str | None, bool, bool]]:
    found = rows(state, models.Manifest)
    by_id = {row["id"]: row["backup_id"] for row in found}
    return {(row["backup_id"], by_id.get(row["base_id"]), row["detached"], row["in_tree"]) for row in found}


def rebuilt(run: Run, *words: str) -> tuple[int, dict[str, str]]:
    done = run("catalogue", "rebuild", "--store", "main", *words, "--format", "json")
    assert done.out, done.err
    return done.status, {one["backup_id"]: one["result"] for one in json.loads(done.out)}


def test_a_lost_database_comes_back_and_goes_on(chain: Chain, tmp_path: Path) -> None:
    run, state = chain.run, chain.state
    before, tree = backups(state), edges(state)
    old = lose_the_database(run, state)
    dry = rebuilt(run, "--take-over", old, "--dry-run")
    assert backups(state) == {}
    assert installation(state) != old
    assert dry == rebuilt(run, "--take-over", old) == (0, dict.fromkeys(before, "entered"))
    assert (backups(state), edges(state), installation(state)) == (before, tree, old)
    assert rebuilt(run, "--take-over", old) == (0, dict.fromkeys(before, "known"))
    assert run("audit").status == 0, run("audit").out
    assert run("backup", "verify", "--all").status == 0
    # The increment stays whole when its base goes, and then nothing is left.
    conf = load_conf(state)
    with service.EmbeddedService(conf), database.opened(conf) as db:
        manager = BackupManager(db, conf)
        manager.delete(CTX, chain.full)
        _wait_until_gone(manager, chain.full)
        assert run("backup", "verify", chain.increment).status == 0
        for backup in (chain.increment, chain.other):
            manager.delete(CTX, backup)
            _wait_until_gone(manager, backup)
    assert run("sweep").status == 0
    assert objects(state) == []


def test_the_key_of_an_encrypted_volume_comes_back(run: Run, state: Path, tmp_path: Path) -> None:
    """A Block Storage service has encrypted it, in a storage that adds the header to its size."""
    image = tmp_path / "image"
    with image.open("wb") as file:
        file.truncate((1 << 30) + (16 << 20))
    assert run("db", "sync").status == 0
    conf = load_conf(state)
    conf.set_override("port", 0, "api")
    key = str(uuid.uuid4())
    with service.EmbeddedService(conf), database.opened(conf) as db:
        volume = run("volume", "adopt", str(image)).out.strip()
        with db.write() as session:
            session.execute(update(models.Volume).values(size=1, encryption_key_id=key))
        backed_up(BackupManager(db, conf), volume)
    before = backups(state)
    [made] = before.values()
    assert (made["size"], made["encryption_key_id"]) == (1, key)
    rebuilt(run, "--take-over", lose_the_database(run, state))
    assert backups(state) == before


def test_without_a_take_over_they_are_references(chain: Chain) -> None:
    before = backups(chain.state)
    old = lose_the_database(chain.run, chain.state)
    assert rebuilt(chain.run) == (0, dict.fromkeys(before, "entered"))
    assert {one[1:] for one in edges(chain.state)} == {(None, False, False)}
    kept = objects(chain.state)
    conf = load_conf(chain.state)
    with service.EmbeddedService(conf), database.opened(conf) as db:
        manager = BackupManager(db, conf)
        manager.delete(CTX, chain.other)
        _wait_until_gone(manager, chain.other)
    assert objects(chain.state) == kept
    # Taken over after all, the references become its own, and what was dropped is there again.
    status, results = rebuilt(chain.run, "--take-over", old)
    assert (status, sorted(results.values())) == (0, ["entered", "known", "known"])
    assert chain.run("audit").status == 0
    assert {one[2:] for one in edges(chain.state)} == {(True, True), (False, True)}
    assert backups(chain.state) == before


def test_one_place_under_two_names(chain: Chain) -> None:
    """Entered as copies, their removal would remove the backups."""
    (chain.state / "backupfw.conf").write_text(
        "[DEFAULT]\nenabled_stores = main, alias\n"
        f"[store:alias]\ndriver = posix\npath = {chain.state / 'store'}\n"
    )
    before = rows(chain.state, models.Manifest)
    done = chain.run("catalogue", "rebuild", "--store", "alias")
    assert done.status == 1
    assert "is container volumebackups of store main, under another name" in done.err
    assert rows(chain.state, models.Manifest) == before
    assert not files_below(chain.state / "store", "*probe*")


def test_only_one_project(chain: Chain) -> None:
    old = lose_the_database(chain.run, chain.state)
    assert rebuilt(chain.run, "--take-over", old, "--project", "other") == (0, {})
    assert len(rebuilt(chain.run, "--take-over", old, "--project", "demo")[1]) == 3


def test_a_database_with_its_own_backups_takes_nothing_over(chain: Chain) -> None:
    other = "00000000-0000-4000-8000-000000000001"
    done = chain.run("catalogue", "rebuild", "--store", "main", "--take-over", other)
    assert done.status == 1
    assert "has backups of its own installation" in done.err
    assert done.out == ""


def test_damaged_ones_are_entered_in_error(chain: Chain) -> None:
    (pack,) = chain.packs_of(chain.increment)
    pack.unlink()
    (manifest,) = [one for one in objects(chain.state) if chain.other in str(one) and "manifest" in one.name]
    manifest.chmod(0o600)
    manifest.write_bytes(manifest.read_bytes()[:-1] + b"!")
    old = lose_the_database(chain.run, chain.state)
    status, results = rebuilt(chain.run, "--take-over", old)
    assert (status, results) == (
        1,
        {chain.full: "entered", chain.increment: "damaged", chain.other: "damaged"},
    )
    found = backups(chain.state)
    assert found[chain.full]["status"] == "available"
    assert found[chain.increment]["fail_reason"] == "1 of the backup's objects are missing or damaged."
    assert found[chain.other]["fail_reason"].startswith("Its manifest is damaged: ")
    # They can be deleted, and that harms no other one.
    conf = load_conf(chain.state)
    with service.EmbeddedService(conf), database.opened(conf) as db:
        manager = BackupManager(db, conf)
        for backup in (chain.other, chain.increment):
            manager.delete(CTX, backup)
            _wait_until_gone(manager, backup)
    assert chain.run("backup", "verify", chain.full).status == 0
    assert chain.run("audit").status == 0


def test_what_an_attempt_left_is_named(chain: Chain) -> None:
    for path in objects(chain.state):
        if chain.other in str(path) and path.name.startswith("manifest"):
            path.unlink()
    old = lose_the_database(chain.run, chain.state)
    done = chain.run("catalogue", "rebuild", "--store", "main", "--take-over", old)
    assert done.status == 0
    assert f"backup {chain.other} of volume" in done.out
    assert "an attempt left 2 objects, not entered" in done.out
    assert "2 backups: 2 entered" in done.out
    assert "1 unfinished attempt with 2 objects" in done.out
    assert "2 orphans" in chain.run("sweep").out


def test_what_an_older_copy_of_the_database_does_not_know(chain: Chain) -> None:
    """The increment is unknown; so is the manifest of a backup that was made again."""
    run, state = chain.run, chain.state
    before = backups(state)
    with database.opened(load_conf(state)) as db, db.write() as session:
        lost = session.get_one(models.Backup, chain.increment)
        manifest = session.get_one(models.Manifest, lost.manifest_id)
        session.delete(lost)
        session.flush()
        session.delete(manifest)
    assert rebuilt(run) == (0, {**dict.fromkeys(before, "known"), chain.increment: "entered"})
    assert backups(state) == before
    # The database may know what the store does not have any more.
    assert (chain.increment, None, True, True) in edges(state)
    assert run("audit").status == 0


def test_a_backup_that_was_made_again_has_two_manifests(chain: Chain) -> None:
    """As after a copy of the database was restored that knew the backup as one that had begun."""
    store = chain.state / "store"
    (manifest,) = [one for one in objects(chain.state) if chain.other in str(one) and "manifest" in one.name]
    old = manifest.parent
    parts = [*old.relative_to(store).parts]
    with closing(Stores(load_conf(chain.state))) as stores:
        container = stores.container("main", parts[0])
        key = next(
            info.key for info in container.list() if chain.other in info.key and "manifest" in info.key
        )
        head = read_head(container, key)
        again = replace(head, origin=replace(head.origin, attempt=2, token="f" * 16))
        with ManifestWriter(again) as writer:
            for entry in ManifestReader(container, key).segments():
                writer.add(entry)
            writer.put(container)
    before = backups(chain.state)
    lost = lose_the_database(chain.run, chain.state)
    done = chain.run("catalogue", "rebuild", "--store", "main", "--take-over", lost, "-f", "json")
    found = [one for one in json.loads(done.out) if one["volume_id"] == before[chain.other]["volume_id"]]
    assert sorted(one["result"] for one in found) == ["entered", "made again"]
    # The later attempt has the backup's id; both lineages count as unknown, because they share.
    (later,) = [one for one in found if one["backup_id"] == chain.other]
    assert later["key"] == again.key
    assert {one[2] for one in edges(chain.state) if one[0] == chain.other} == {True}
    assert set(rebuilt(chain.run)[1].values()) == {"known"}
    conf = load_conf(chain.state)
    with service.EmbeddedService(conf), database.opened(conf) as db:
        manager = BackupManager(db, conf)
        manager.delete(CTX, chain.other)
        _wait_until_gone(manager, chain.other)
    (other,) = {one["backup_id"] for one in found} - {chain.other}
    assert chain.run("backup", "verify", other).status == 0
    assert chain.run("audit").status == 0


def test_texts_of_a_manifest_pass_the_checks_of_records() -> None:
    good = {"name": "a", "created_at": "2026-01-02T03:04:05.000006", "metadata": {"k": "v"}}
    found = records.of_manifest("x", 1, {**good, "parent_id": "A" * 8 + "-0000" * 3 + "-" + "0" * 12})
    assert (found.display_name, found.metadata) == ("a", {"k": "v"})
    assert found.created_at == datetime(2026, 1, 2, 3, 4, 5, 6)
    assert found.parent_id == "a" * 8 + "-0000" * 3 + "-" + "0" * 12
    hostile = {
        "name": ["x"], "description": "x" * 256, "created_at": "2026-99-99T00:00:00", "parent_id": "../x",
        "metadata": {"k": "\ud800"}, "user_id": "a\0b", "snapshot_id": 7, "availability_zone": {"a": 1},
        "data_timestamp": "9999-12-31T23:59:59-23:59",
    }  # fmt: skip
    assert records.of_manifest("x", 1, hostile) == records.Record(id="x", size=1)


def test_the_id_of_a_key_that_cannot_be_proven_is_checked() -> None:
    origin = Origin("i", "p", "v", "b", 1, 1, "0" * 16)
    container = Container(MemoryStore("main"), "box")
    for mac_id, good in (("0" * 32, True), ("0" * 33, False), ("x" * 4000, False), (None, True)):
        head = ManifestHead(origin, Geometry(1 << 20, 4096, 1 << 20), mac_id)
        if good:
            assert manifest_facts(head, container, "s", 1, 1, 1).mac_id == mac_id
        else:
            with pytest.raises(InvalidInput):
                manifest_facts(head, container, "s", 1, 1, 1)


def test_an_encrypted_backup_comes_back_and_is_extended(run: Run, state: Path, tmp_path: Path) -> None:
    image = tmp_path / "image.raw"
    image.write_bytes(random.Random(3).randbytes(1 << 20))
    volume = adopted(state, image)

    def encrypted_conf() -> Any:
        conf = load_conf(state)
        conf.set_override("encryption", "project", "store:main")
        return conf

    def back_up(incremental: bool) -> str:
        conf = encrypted_conf()
        with service.EmbeddedService(conf), database.opened(conf) as db:
            return backed_up(BackupManager(db, conf), volume, incremental=incremental)

    first = back_up(False)
    before = backups(state)
    old = lose_the_database(run, state)
    # Without the keys it is entered with what can be read.
    (kept,) = [one for one in (state / "keys").iterdir() if one.name != "backupfw-keys"]
    kept.rename(tmp_path / "key")
    assert rebuilt(run, "--take-over", old) == (0, {first: "sealed"})
    assert backups(state)[first] != before[first]
    assert backups(state)[first]["size"] == before[first]["size"]
    (tmp_path / "key").rename(kept)
    assert rebuilt(run, "--take-over", old) == (0, {first: "described"})
    assert backups(state) == before
    assert rebuilt(run, "--take-over", old) == (0, {first: "known"})
    assert adopted_again(state, image, volume) == volume
    second = back_up(True)
    assert backups(state)[second]["stored_bytes"] < before[first]["stored_bytes"] // 4, "it shares"
    assert run("backup", "verify", "--all").status == 0
    assert run("audit").status == 0


def adopted_again(state: Path, image: Path, volume: str) -> str:
    """Adopt an image under the id that its volume had."""
    made = adopted(state, image)
    with database.opened(load_conf(state)) as db, db.write() as session:
        session.execute(update(models.Volume).where(models.Volume.id == made).values(id=volume))
    return volume


def test_a_run_that_is_killed_goes_on(chain: Chain, monkeypatch: pytest.MonkeyPatch) -> None:
    before, tree = backups(chain.state), edges(chain.state)
    old = lose_the_database(chain.run, chain.state)
    monkeypatch.setattr(recovery, "BATCH", 1)
    entered = recovery._enter

    def enter(session: Any, found: Any, *words: Any) -> Any:
        if found.facts.backup_id == chain.increment:
            raise KeyboardInterrupt
        return entered(session, found, *words)

    with monkeypatch.context() as patch:
        patch.setattr(recovery, "_enter", enter)
        assert chain.run("catalogue", "rebuild", "--store", "main", "--take-over", old).status == 130
    assert chain.full in backups(chain.state)
    assert chain.increment not in backups(chain.state)
    assert set(rebuilt(chain.run, "--take-over", old)[1].values()) <= {"known", "entered"}
    assert backups(chain.state) == before
    assert {one[0] for one in edges(chain.state)} == {one[0] for one in tree}
    assert chain.run("audit").status == 0


def test_a_living_service_is_not_taken_over(chain: Chain, monkeypatch: pytest.MonkeyPatch) -> None:
    """It renews the holder object, whatever its clock says."""
    monkeypatch.setattr(holding, "RENEW_SECONDS", 0.2)
    old, new = chain.state, chain.state.with_name("new")
    (found,) = (old / "store").iterdir()
    conf = load_conf(old)
    with service.EmbeddedService(conf):
        new.mkdir()
        (new / "backupfw.conf").write_text(f"[store:main]\npath = {old / 'store'}\n")
        assert main(["db", "sync", "--state-dir", str(new)]) == 0
        words = ["catalogue", "rebuild", "--store", "main", "--take-over", installation(old)]
        wait_until("its holder object", lambda: [one for one in found.iterdir() if ".holder" in one.name])
        assert main([*words, "--state-dir", str(new)]) == 1
        assert installation(new) != installation(old)
        assert backups(new) == {}
    # It is silent now.
    monkeypatch.setattr("backupfw.engine.holder.SILENT_SECONDS", 1)
    assert main([*words, "--state-dir", str(new)]) == 0
    assert installation(new) == installation(old)
    assert set(backups(new)) == {chain.full, chain.increment, chain.other}

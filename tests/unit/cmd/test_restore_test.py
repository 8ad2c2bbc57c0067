"""``backupfw restore-test``: what it proves, what it records, and what it calls a failure."""

from __future__ import annotations

import json
import random
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select, update

from backupfw.chunkstore import errors
from backupfw.cmd import database, meters, service
from backupfw.db import models
from backupfw.db.session import now
from backupfw.manager.outcomes import restoring
from backupfw.manager.usecases.backups import BackupManager
from tests.unit.cmd.conftest import Run, adopted, backed_up, load_conf
from tests.unit.cmd.test_verify import BLOCK, Chain, chain, made
from tests.unit.engine.test_content_digest import expected

__all__ = ["chain", "made"]


def results_of(chain: Chain, *options: str) -> tuple[int, dict[str, dict[str, Any]]]:
    done = chain.run("restore-test", *options, "--format", "json")
    return done.status, {one["id"]: one for one in json.loads(done.out or "[]")}


def change(chain: Chain, backup: str, **values: Any) -> None:
    with database.opened(load_conf(chain.state)) as db, db.write() as session:
        session.execute(update(models.Backup).where(models.Backup.id == backup).values(**values))


def test_the_digest_of_each_volume_is_recorded_and_compared(chain: Chain) -> None:
    full = random.Random(8).randbytes(1 << 20)
    changed = bytearray(full)
    changed[3 * BLOCK : 4 * BLOCK] = random.Random(10).randbytes(BLOCK)
    contents = {
        chain.full: full,
        chain.increment: bytes(changed),
        chain.other: random.Random(9).randbytes(1 << 20),
    }
    status, records = results_of(chain, "--all")
    assert status == 0
    assert {one: record["digest"] for one, record in records.items()} == {
        one: expected(data) for one, data in contents.items()
    }
    for backup, data in contents.items():
        assert records[backup]["bytes"] == len(data)
        shown = chain.show(backup)
        assert shown["content_digest"] == expected(data)
        assert shown["restore_test_result"] == "ok"
        assert shown["restore_tested_at"] is not None
    done = chain.run("restore-test", chain.full)
    assert done.status == 0
    assert f"digest {expected(full)}" in done.out
    # A backup's content never changes.
    change(chain, chain.full, content_digest="0" * 64)
    status, records = results_of(chain, chain.full)
    assert status == 1
    assert records[chain.full]["result"] == "failed"
    assert "0" * 64 in records[chain.full]["problem"]
    shown = chain.show(chain.full)
    assert (shown["restore_test_result"], shown["content_digest"]) == ("failed", "0" * 64)
    with database.opened(load_conf(chain.state)) as db:
        assert b"backupfw_failed_restore_tests 1.0" in meters.Meters(db).text()
        with db.read() as session:
            (message,) = session.scalars(select(models.Message))
            assert (message.resource_uuid, message.action_id) == (chain.full, "103")


def test_damage_is_a_failure_and_nothing_is_recorded_as_its_digest(chain: Chain) -> None:
    chain.spoil(chain.full, 7)
    status, records = results_of(chain, "--all")
    assert status == 1
    results = {one: record["result"] for one, record in records.items()}
    assert results == {chain.full: "failed", chain.increment: "failed", chain.other: "ok"}
    shown = chain.show(chain.full)
    assert (shown["restore_test_result"], shown["content_digest"]) == ("failed", None)
    assert shown["damaged_objects"]
    done = chain.run("restore-test", "--all")
    assert "3 backups: 1 ok, 2 failed, 0 not tested" in done.out
    assert f"backup {chain.full}: FAILED: " in done.out


def test_a_backup_that_loses_its_data_meanwhile_says_nothing_of_others(
    chain: Chain, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a manifest, all backups without one were taken for the same, and called damaged."""
    record = restoring.RestoreTasks.record_test

    def late(self: restoring.RestoreTasks, backup_id: str, digest: str | None) -> restoring.Tested:
        for one in (chain.full, chain.other):
            change(chain, one, manifest_id=None)
        return record(self, backup_id, digest)

    with monkeypatch.context() as patch:
        patch.setattr(restoring.RestoreTasks, "record_test", late)
        assert chain.run("restore-test", chain.full).status != 0
    for one in (chain.full, chain.other):
        assert chain.show(one)["restore_tested_at"] is None


def test_a_store_that_does_not_answer_proves_nothing(chain: Chain, monkeypatch: pytest.MonkeyPatch) -> None:
    def silent(*_: Any) -> Any:
        raise errors.Unavailable("no answer", store="main")

    with monkeypatch.context() as patch:
        patch.setattr("backupfw.chunkstore.container.Container.get", silent)
        status, records = results_of(chain, chain.full)
    assert status == 1
    assert records[chain.full]["result"] == "not tested"
    assert chain.show(chain.full)["restore_tested_at"] is None


def test_an_encrypted_backup_needs_its_key(run: Run, state: Path, tmp_path: Path) -> None:
    """Without it nothing is proven, and nothing recorded."""
    image = tmp_path / "image.raw"
    data = random.Random(3).randbytes(1 << 20)
    image.write_bytes(data)
    volume = adopted(state, image)
    conf = load_conf(state)
    conf.set_override("encryption", "project", "store:main")
    with service.EmbeddedService(conf), database.opened(conf) as db:
        backup = backed_up(BackupManager(db, conf), volume)
    (key,) = [one for one in (state / "keys").iterdir() if one.name != "backupfw-keys"]
    kept = key.rename(tmp_path / "key")
    done = run("restore-test", backup, "--format", "json")
    assert done.status == 1
    (record,) = json.loads(done.out)
    assert record["result"] == "not tested"
    assert "key" in record["problem"]
    shown = json.loads(run("backup", "show", backup).out)
    assert (shown["restore_tested_at"], shown["content_digest"]) == (None, None)
    kept.rename(key)
    done = run("restore-test", backup, "--format", "json")
    assert done.status == 0, done.err
    (record,) = json.loads(done.out)
    assert (record["result"], record["digest"], record["bytes"]) == ("ok", expected(data), len(data))


def test_which_backups_are_tested(chain: Chain) -> None:
    everything = {chain.full, chain.increment, chain.other}
    assert set(results_of(chain, "--newest")[1]) == {chain.increment, chain.other}
    with database.opened(load_conf(chain.state)) as db, db.read() as session:
        long_ago = now(session) - timedelta(days=40)
        project = session.scalars(select(models.Backup.project_id)).first()
    change(chain, chain.other, restore_tested_at=long_ago)
    # Those that never were tested come first.
    assert list(results_of(chain, "--older-than", "30")[1]) == [chain.full, chain.other]
    assert results_of(chain, "--older-than", "30")[1] == {}
    # Where the newest backup may be another each night, the last test of its volume counts.
    change(chain, chain.increment, restore_tested_at=None)
    change(chain, chain.other, restore_tested_at=long_ago)
    assert list(results_of(chain, "--newest", "--older-than", "30")[1]) == [chain.other]
    change(chain, chain.full, restore_tested_at=long_ago - timedelta(days=1))
    change(chain, chain.other, restore_tested_at=long_ago)
    assert list(results_of(chain, "--newest", "--older-than", "30")[1]) == [chain.increment, chain.other]
    assert set(results_of(chain, "--project", str(project))[1]) == everything
    change(chain, chain.increment, restore_tested_at=None)
    change(chain, chain.full, deleted=True, manifest_id=None)
    assert results_of(chain, "--newest", "--older-than", "30")[1] == {}
    change(chain, chain.full, restore_tested_at=None)
    assert list(results_of(chain, "--newest", "--older-than", "30")[1]) == [chain.increment]
    assert len(results_of(chain, "--sample", "2")[1]) == 2
    assert len(results_of(chain, "--newest", "--sample", "1")[1]) == 1
    assert chain.run("restore-test", "--project", "nobody").status != 0
    assert chain.run("restore-test").status == 2
    assert chain.run("restore-test", chain.full, "--sample", "1").status == 2
    assert chain.run("restore-test", "no-such-backup").status != 0

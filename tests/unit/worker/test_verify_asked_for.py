"""Verifications that somebody asks for: a backup is read in all its places, whether scrubs are on or not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from sqlalchemy import update

from backupfw import crash_points
from backupfw.db import models
from backupfw.errors import BackupNotFound, InvalidBackup, UnsupportedFormat
from backupfw.manager.outcomes.expiry import Expiry
from backupfw.manager.queue import progress, tasks
from backupfw.manager.queue.requirements import of_row
from backupfw.manager.usecases.overview import Overview
from backupfw.worker.handlers import manifest_scrub
from tests.unit.worker.test_copies import chain, content
from tests.unit.worker.test_encryption import MemoryKeys
from tests.unit.worker.test_scrub import POINTS, STORES, ScrubWorld

DONE = (tasks.BACKUP_VERIFY, "done")


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> Iterator[ScrubWorld]:
    """A world with encrypted backups and two stores, none of which is scrubbed."""
    monkeypatch.setattr(manifest_scrub, "CHECKPOINT_SECONDS", 0.0)
    monkeypatch.setattr(manifest_scrub, "_LONG", 0.0)
    made = ScrubWorld(MemoryKeys())
    for store in STORES:
        made.conf[f"store:{store}"].scrub_days = 0
        # Nobody waits for a scrub, but somebody does for this.
        made.conf[f"store:{store}"].scrub_bytes_per_second = 1.0
        made.conf[f"store:{store}"].max_running = 0
    made.conf.backup.max_running = made.conf.backup.max_running_per_project = 0
    monkeypatch.setattr(crash_points, "reach", made.reach)
    yield made
    made.offsite.close()


def verify(world: ScrubWorld, backup: str) -> list[str]:
    return list(world.backups.verify(world.ctx(), backup))


def proof(world: ScrubWorld, backup: str) -> Any:
    row = world.row(models.Backup, backup)
    return row.fully_verified_at and (row.verified_how, row.verified_result)


def told(world: ScrubWorld) -> list[tuple[str, str]]:
    """Of which backup users were told what about verifications."""
    return [(m.resource_uuid, m.detail_id) for m in world.rows(models.Message) if m.action_id == "103"]


def test_one_backup_is_read_in_all_its_places(world: ScrubWorld) -> None:
    _, backups, _ = chain(world)
    wanted, other = backups[1], backups[0]
    assert world.copy(wanted) == "available"
    world.reads.clear()
    assert verify(world, wanted) == ["main", "offsite"]
    assert {of_row(one).store for one in world.rows(models.Task)} == set(STORES)
    assert world.work() == [DONE, DONE]
    named = world.named_by(wanted)
    assert world.reads == {(store, key): 1 for store in STORES for key in named}
    assert proof(world, wanted) == ("full", "ok")
    assert proof(world, other) is None
    assert sum(one is not None for one in world.proofs()) == 2, "in both places"
    assert told(world) == []
    world.is_clean()


@pytest.mark.parametrize("point", POINTS)
def test_a_killed_one_goes_on_where_it_was(world: ScrubWorld, point: str) -> None:
    _, backups, _ = chain(world)
    backup = backups[-1]
    harmed = min(key for key in world.named_by(backup) if "/p" in key[-6:])
    world.damage("main", harmed, None)
    verify(world, backup)
    world.work_through_kills(point)
    assert world.tasks.pending() == 0
    assert proof(world, backup) == ("full", "damaged")
    assert {one.key for one in world.rows(models.DamagedObject)} == {harmed}
    assert (backup, "105") in told(world)


def test_damage_is_repaired_from_a_copy_and_all_of_it_is_proven(world: ScrubWorld) -> None:
    """Even if the manifest itself was damaged, nobody has to ask a second time."""
    _, backups, held = chain(world)
    backup = backups[1]
    assert world.copy(backup) == "available"
    for key in (world.row(models.Backup, backup).service_metadata, max(world.named_by(backup))):
        world.damage("main", str(key), 10)
    verify(world, backup)
    assert world.work() == [DONE, DONE]
    assert world.rows(models.DamagedObject) == []
    assert proof(world, backup) == ("full", "ok")
    assert world.restored(backup, "main") == held[1]
    assert told(world) == []


def test_what_cannot_be_verified_is_told(world: ScrubWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    backup = world.back_up(world.filled_volume(content(3, 8)))

    def newer(*_: object, **__: object) -> None:
        raise UnsupportedFormat("version 3")

    verify(world, backup)
    with monkeypatch.context() as patch:
        patch.setattr("backupfw.engine.scrub.ManifestReader", newer)
        assert world.work() == [(tasks.BACKUP_VERIFY, "failed")]
    assert told(world) == [(backup, "109")]
    assert proof(world, backup) is None
    assert world.row(models.Backup, backup).status == "available"
    assert world.row(models.Backup, backup).fail_reason is None
    verify(world, backup)
    assert world.work() == [DONE]


def test_a_store_that_no_worker_has_is_told(world: ScrubWorld) -> None:
    backup = world.back_up(world.filled_volume(content(3)))
    verify(world, backup)
    with world.db.write() as session:
        session.execute(update(models.Task).values(store="gone"))
    with world.db.read() as session:
        moment = world.db.now(session).replace(year=world.db.now(session).year + 1)
    assert Expiry(world.db, world.conf).expire(moment) == 1
    assert world.tasks.pending() == 0
    assert [about for about, _ in told(world)] == [backup]
    assert world.row(models.Backup, backup).status == "available"


def test_who_may_not_be_verified(world: ScrubWorld) -> None:
    backup = world.back_up(world.filled_volume(content(3)))
    verify(world, backup)
    with pytest.raises(InvalidBackup, match=rf"Backup {backup} is already being verified."):
        verify(world, backup)
    with pytest.raises(BackupNotFound):
        world.backups.verify(world.ctx("another"), backup)
    world.work()
    with world.db.write() as session:
        session.execute(update(models.Backup).values(status="error"))
    with pytest.raises(InvalidBackup, match=r"Backup status must be available and not error."):
        verify(world, backup)
    with world.db.write() as session:
        session.execute(update(models.Backup).values(status="available"))
        session.execute(update(models.Manifest).values(state="released"))
    with pytest.raises(InvalidBackup, match=r"no data that could be verified"):
        verify(world, backup)
    assert world.tasks.pending() == 0


def test_nothing_waits_for_it_and_a_deletion_ends_it(world: ScrubWorld) -> None:
    volume = world.filled_volume(content(3, 8))
    backup = world.back_up(volume)
    verify(world, backup)
    running = world.claim_next()
    assert running is not None
    _, made, _ = world.backups.restore(world.ctx(), backup)
    with world.db.read() as session:
        assert progress.of(session, world.conf, backup).phase == "queued", "the restore"
    restore = world.claim_next()
    assert restore is not None
    assert (restore.kind, world.run_one(restore)) == (tasks.BACKUP_RESTORE, "done")
    assert world.volume_status(made) == "available"
    with world.db.read() as session:
        assert progress.of(session, world.conf, backup).phase == "verifying"
    world.backups.delete(world.ctx(), backup)
    assert (tasks.BACKUP_DELETE, "done") in world.work()
    assert world.run_one(running) == "cancelled"
    assert world.tasks.pending() == 0
    assert world.rows(models.DamagedObject) == []
    assert told(world) == []


def test_it_is_cancelled_alone(world: ScrubWorld) -> None:
    backup = world.back_up(world.filled_volume(content(3)))
    assert world.copy(backup) == "available"
    verify(world, backup)
    running = world.claim_next()
    assert running is not None
    world.backups.restore(world.ctx(), backup)
    shown = Overview(world.db, world.conf).work(world.ctx()).operations
    mine = [one.kind for one in shown if one.cancellable and one.backup_id == backup]
    assert mine.count(tasks.BACKUP_VERIFY) == 2
    assert world.backups.cancel(world.ctx(), backup, verification=True).status == "restoring"
    left = world.rows(models.Task)
    assert [(one.kind, one.cancel) for one in left] == [
        (tasks.BACKUP_VERIFY, True),
        (tasks.BACKUP_RESTORE, False),
    ]
    with pytest.raises(InvalidBackup, match=rf"Backup {backup} is not being verified."):
        world.backups.cancel(world.ctx(), backup, verification=True)
    world.tasks.discard(running)
    world.work()
    verify(world, backup)
    # Nothing else is done to it, so this is what is meant.
    world.backups.cancel(world.ctx(), backup)
    assert world.tasks.pending() == 0
    assert proof(world, backup) is None


def test_a_duplicate_is_verified_as_what_it_is(world: ScrubWorld) -> None:
    """Its data is another backup's, which is deleted: what is shown and cancelled is the duplicate."""
    backup = world.back_up(world.filled_volume(content(3)))
    with world.db.write() as session:
        first = session.get_one(models.Backup, backup)
        values = {one.key: getattr(first, one.key) for one in models.Backup.__table__.columns}
        session.add(models.Backup(**{**values, "id": "99999999-0000-4000-8000-000000000000"}))
    world.backups.delete(world.ctx(), backup)
    world.work()
    duplicate = "99999999-0000-4000-8000-000000000000"
    verify(world, duplicate)
    (shown,) = Overview(world.db, world.conf).work(world.ctx()).operations
    assert (shown.backup_id, shown.kind) == (duplicate, "backup.verify")
    world.work()
    assert proof(world, duplicate) == ("full", "ok")


def test_an_older_worker_leaves_it(world: ScrubWorld) -> None:
    """It claims kinds that it knows."""
    backup = world.back_up(world.filled_volume(content(3)))
    verify(world, backup)
    older: Callable[..., Any] = world.tasks.claim
    assert older("old/w", 60, tasks.KINDS - {tasks.BACKUP_VERIFY}) is None
    assert world.work() == [DONE]

"""Yesterday's database over today's store: what was made since stays, whatever is deleted."""

from __future__ import annotations

import random
import sqlite3
from pathlib import Path

import pytest

from backupfw import steps
from backupfw.cmd.catalogue import DatabaseCatalogue
from backupfw.db import models
from backupfw.engine import audit, sweep
from backupfw.engine.format import keys
from tests.unit.engine.fakes import FakeControl
from tests.unit.worker.world import WorkerWorld

DATA = random.Random(4).randbytes(400_000)


def copy(source: Path, target: Path) -> None:
    with sqlite3.connect(source) as one, sqlite3.connect(target) as other:
        one.backup(other)
    one.close()
    other.close()


def end_leases(world: WorkerWorld) -> None:
    """What the copy shows as running is taken over when its lease has run out."""
    with world.db.write() as session:
        for task in world.rows_in(session, models.Task):
            task.state, task.owner, task.lease_until = "queued", None, None


def restored(world: WorkerWorld, backup_id: str) -> bytes:
    _, target, _ = world.backups.restore(world.ctx(), backup_id)
    world.wait(lambda: world.volume_status(target) == "available", "the restore")
    return bytes(world.provider.volumes[target][: len(DATA)])


@pytest.mark.parametrize("taken_at", ["before the child", "while it was made"])
@pytest.mark.parametrize("then", ["deleted", "force deleted"])
def test_records_kept_from_after_the_copy_import_and_restore(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, taken_at: str, then: str
) -> None:
    world = WorkerWorld(tmp_path)
    admin = world.ctx(admin=True)
    database, kept = tmp_path / "db.sqlite", tmp_path / "kept.sqlite"
    made_of: list[str] = []

    def reach(name: str, detail: object = "") -> None:
        if name == "backup.recorded" and taken_at == "while it was made" and not made_of:
            made_of.append(name)
            copy(database, kept)

    monkeypatch.setattr(steps, "reach", reach)
    volume = world.filled_volume(DATA)
    with world.worker():
        full = world.backups.create(world.ctx(), volume_id=volume)
        world.wait_backup(full.id, "available")
        if taken_at == "before the child":
            copy(database, kept)
        world.provider.volumes[volume][:9000] = changed = random.Random(5).randbytes(9000)
        child = world.backups.create(world.ctx(), volume_id=volume, incremental=True)
        world.wait_backup(child.id, "available")
        exported = [world.backups.export_record(admin, one.id) for one in (full, child)]
        world.wait_idle()
    # The volume has moved on too, so the backup that is made again is another one.
    world.provider.volumes[volume][20_000:29_000] = random.Random(6).randbytes(9000)
    needed = world.objects()
    copy(kept, database)
    end_leases(world)
    if then == "force deleted":
        world.backups.force_delete(admin, full.id)
    with world.worker():
        if then == "deleted":
            world.wait_backup(full.id, "available")
            world.backups.delete(world.ctx(), full.id)
        world.wait_backup(full.id, None)
        world.wait_idle()
        if taken_at == "while it was made":
            assert needed <= world.objects(), "both manifests are unknown: nothing of them went"
        (container,) = {one.container for one in world.rows(models.Manifest)}
        assert container is not None
        installation = world.outcomes.installation_id()
        catalogue = DatabaseCatalogue(world.db, "main", container, installation)
        prefix, box = keys.installation_prefix(installation), world.tools.stores.container("main", container)
        found = audit.run(prefix, box, catalogue, FakeControl())
        assert found.unknown == (2 if taken_at == "while it was made" else 1)
        assert {one.kind for one in found.discrepancies} == {audit.UNKNOWN}
        before = world.objects()
        assert sweep.run(prefix, box, catalogue, FakeControl()).orphans == 0
        assert world.objects() == before
        for original, content, (service, url) in zip(
            (full, child), (DATA, changed + DATA[9000:]), exported, strict=True
        ):
            if original.id == full.id and taken_at == "before the child":
                continue  # Known to the copy, and deleted by its user.
            back = world.backups.import_record(admin, backup_service=service, backup_url=url)
            world.wait_backup(back.id, "available")
            assert restored(world, back.id) == content

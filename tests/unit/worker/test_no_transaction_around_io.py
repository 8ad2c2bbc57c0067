"""While a store or a volume is worked on, no transaction stays open: its locks would last as long."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event
from sqlalchemy.engine import Connection

from backupfw.db import models
from backupfw.db.session import Database
from backupfw.manager.usecases.snapshots import SnapshotManager
from backupfw.manager.usecases.volumes import VolumeManager
from tests.unit.engine.fakes import MemoryPoint, MemoryTarget
from tests.unit.worker.world import SEGMENT, WorkerWorld
from tests.waiting import PATIENCE

DATA = random.Random(3).randbytes(3 * SEGMENT + 100)


class OpenTransactions:
    """Knows which transactions of a database are open."""

    def __init__(self, db: Database) -> None:
        self._changed = threading.Condition()
        self._open: dict[Connection, int] = {}
        self._begun = 0
        self.outlasted: list[str] = []
        self.asked: set[str] = set()
        event.listen(db.engine, "begin", self._begin)
        event.listen(db.engine, "commit", self._end)
        event.listen(db.engine, "rollback", self._end)

    def _begin(self, connection: Connection) -> None:
        with self._changed:
            self._begun += 1
            self._open[connection] = self._begun

    def _end(self, connection: Connection) -> None:
        with self._changed:
            self._open.pop(connection, None)
            self._changed.notify_all()

    def must_end(self, what: str) -> None:
        """Wait until those that are open now have ended: whoever waits for this call keeps his open."""
        with self._changed:
            self.asked.add(what)
            now = set(self._open.values())
            if not self._changed.wait_for(lambda: not now & set(self._open.values()), PATIENCE):
                self.outlasted.append(what)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[WorkerWorld]:
    world = WorkerWorld(tmp_path)
    yield world
    world.store.close()
    world.db.close()


def watch(world: WorkerWorld, patch: pytest.MonkeyPatch) -> OpenTransactions:
    """Have every call of the store, of the volume provider and of an open volume ask."""
    transactions = OpenTransactions(world.db)

    def asking(method: Callable[..., Any], name: str) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            transactions.must_end(name)
            return method(*arguments, **options)

        return call

    for name in ("put", "get", "list", "delete", "ensure_container"):
        patch.setattr(world.faulty, name, asking(getattr(world.faulty, name), name))
    for name in ("create", "delete", "extend", "create_snapshot", "delete_snapshot"):
        patch.setattr(world.provider, name, asking(getattr(world.provider, name), f"volume {name}"))
    for opened, names in (
        (MemoryPoint, ("read_into", "close")),
        (MemoryTarget, ("write", "flush", "close")),
    ):
        for name in names:
            patch.setattr(opened, name, asking(getattr(opened, name), name))
    return transactions


def test_no_task_holds_one(world: WorkerWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each kind of task, in full."""
    world.conf.quota.per_volume_gigabytes = -1
    volumes = VolumeManager(world.db, world.conf, world.dispatch.wake)
    snapshots = SnapshotManager(world.db, world.conf, world.dispatch.wake)
    ctx = world.ctx(admin=True)
    transactions = watch(world, monkeypatch)
    volume, used = world.filled_volume(DATA), world.filled_volume(DATA)
    with world.db.write() as session:
        session.get_one(models.Volume, used).status = "in-use"
    with world.worker():
        full = world.backups.create(ctx, volume_id=volume).id
        hot = world.backups.create(ctx, volume_id=used, force=True).id
        world.wait_backup(full, "available")
        world.wait_backup(hot, "available")
        world.provider.volumes[volume][:100] = bytes(100)
        child = world.backups.create(ctx, volume_id=volume, incremental=True).id
        world.wait_backup(child, "available")
        world.backups.restore(ctx, child)
        world.wait_idle()
        snapshot = snapshots.create(ctx, volume_id=volume).id
        world.wait_idle()
        read = world.backups.create(ctx, volume_id=volume, snapshot_id=snapshot).id
        world.wait_backup(read, "available")
        snapshots.delete(ctx, snapshot)
        for backup in (full, child, read):
            world.backups.delete(ctx, backup)
        world.wait_idle()
        volumes.delete(ctx, volume)
        world.wait_idle()
    assert transactions.outlasted == []
    assert {"put", "get", "delete", "read_into", "write", "flush", "volume delete_snapshot"} <= (
        transactions.asked
    )


def test_one_that_does_is_seen(world: WorkerWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    transactions = watch(world, monkeypatch)
    monkeypatch.setattr("tests.unit.worker.test_no_transaction_around_io.PATIENCE", 0.2)
    with world.db.read():
        world.store.ensure_container("c")
    assert transactions.outlasted == ["ensure_container"]

"""Volumes of a foreign catalogue: what the worker tells it at the end of a restore."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from types import MethodType

import pytest
from sqlalchemy import update

from backupfw.db import models
from backupfw.errors import StorageChanged, TaskCancelled
from backupfw.manager.usecases.backups import BackupManager
from backupfw.manager.usecases.mirrors import Mirrors
from backupfw.volume.base import BlockTarget, Restored, VolumeRef
from tests.unit.manager.test_mirrors import Foreign
from tests.unit.worker.world import MemoryProvider, WorkerWorld

CONTENT = b"some bytes" * 5000
#: Bytes of a volume of one GiB here: the test is none of sizes.
LENGTH = 1 << 20


@pytest.fixture
def world(tmp_path: Path) -> WorkerWorld:
    made = WorkerWorld(tmp_path)
    made.conf.volumes.enabled = ["cinder"]
    return made


@pytest.fixture
def foreign(world: WorkerWorld, monkeypatch: pytest.MonkeyPatch) -> Foreign:
    monkeypatch.setattr("backupfw.manager.usecases.mirrors.GIB", LENGTH)
    made = Foreign(world)
    mirrors = Mirrors(world.db, world.conf, {"cinder": made})
    world.backups = BackupManager(world.db, world.conf, world.dispatch.wake, mirrors=mirrors)
    return made


@pytest.fixture
def ends(world: WorkerWorld) -> list[tuple[str, Restored | None]]:
    """What the provider was told, by volume."""
    told: list[tuple[str, Restored | None]] = []

    def end_restore(_: MemoryProvider, volume: VolumeRef, source: Restored | None) -> None:
        told.append((volume.id, source))

    world.provider.end_restore = MethodType(end_restore, world.provider)  # type: ignore[method-assign]
    return told


def filled(world: WorkerWorld, volume_id: str, content: bytes = b"") -> str:
    world.provider.volumes[volume_id] = bytearray(content.ljust(LENGTH, b"\0"))
    return volume_id


def test_a_restored_volume_gets_what_belongs_to_its_bytes(
    world: WorkerWorld, foreign: Foreign, ends: list[tuple[str, Restored | None]]
) -> None:
    volume = filled(
        world,
        foreign.add(bootable=True, metadata={"a": "b"}, image_metadata={"os": "x"}),
        CONTENT,
    )
    with world.worker():
        backup = world.backups.create(world.ctx(), volume_id=volume).id
        world.wait_backup(backup, "available")
        target = filled(world, foreign.add())
        world.backups.restore(world.ctx(), backup, volume_id=target)
        world.wait_idle()
    assert world.volume_status(target) == "available"
    assert world.provider.volumes[target] == world.provider.volumes[volume]
    assert ends == [(target, Restored(True, {"a": "b"}, {"os": "x"}))]


def test_the_target_of_a_failed_restore_is_no_good_there_either(
    world: WorkerWorld, foreign: Foreign, ends: list[tuple[str, Restored | None]]
) -> None:
    volume = filled(world, foreign.add(), CONTENT)
    with world.worker():
        backup = world.backups.create(world.ctx(), volume_id=volume).id
        world.wait_backup(backup, "available")
        target = foreign.add()
        # The provider does not have it.
        world.backups.restore(world.ctx(), backup, volume_id=target)
        world.wait_idle()
    assert world.row(models.Volume, target).status == "error_restoring"
    assert ends == [(target, None)]
    assert world.status(backup) == "available"


@pytest.mark.parametrize("cancelled", [False, True])
def test_an_attempt_that_was_lost_says_nothing_of_the_target(
    world: WorkerWorld, foreign: Foreign, ends: list[tuple[str, Restored | None]], cancelled: bool
) -> None:
    """Another attempt writes it, or has made it good."""
    volume = filled(world, foreign.add(), CONTENT)
    open_target = world.provider.open_target
    frozen = [True]

    def lose(ref: VolumeRef, attempt: int) -> AbstractContextManager[BlockTarget]:
        if not frozen:
            return open_target(ref, attempt)
        frozen.clear()
        with world.db.write() as session:
            session.execute(update(models.Task).values(attempt=models.Task.attempt + 1))
        raise TaskCancelled("cancelled") if cancelled else StorageChanged("volume", "is gone", "")

    with world.worker(lease_seconds=1.0):
        backup = world.backups.create(world.ctx(), volume_id=volume).id
        world.wait_backup(backup, "available")
        world.provider.open_target = lose  # type: ignore[method-assign]
        target = filled(world, foreign.add())
        world.backups.restore(world.ctx(), backup, volume_id=target)
        world.wait_idle()
    assert world.volume_status(target) == "available"
    assert ends == [(target, Restored())]

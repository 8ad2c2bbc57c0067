"""Whole backups on a store that fails, hangs or lists late: they end, and what they say is true."""

from __future__ import annotations

import itertools
import math
import random
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import pytest

from backupfw.chunkstore.base import Body, ChunkStore
from backupfw.chunkstore.container import Container
from backupfw.chunkstore.errors import PermissionDenied, Unavailable
from backupfw.chunkstore.layers.base import Layer
from backupfw.chunkstore.layers.stack import stack
from backupfw.db import models
from backupfw.manager.rows import Task
from backupfw.testing.faults import Fault, LaggingStore
from tests.unit.manager.support import check_consistent
from tests.unit.worker.world import SEGMENT, LayerOptions, OneStore, WorkerWorld

T = TypeVar("T")

#: So many segments that requests of each kind are hit several times.
DATA = random.Random(7).randbytes(24 * SEGMENT + 100)


class Options:
    """Layers that try again at once and wait for no call longer than a moment."""

    retry_tries = 8
    retry_base_pause = 0.001
    operation_timeout = 0.5


@pytest.fixture
def world(tmp_path: Path) -> Iterator[WorkerWorld]:
    world = WorkerWorld(tmp_path)
    yield world
    world.store.close()
    check_consistent(world)
    world.db.close()


def put_over(world: WorkerWorld, store: ChunkStore) -> None:
    """Let the world's worker work on this store, under layers that retry."""
    world.store = stack(store, Options())
    world.tools = replace(world.tools, stores=OneStore(world.store))  # type: ignore[arg-type]


def every(nth: int, first: int) -> Callable[[str], bool]:
    """Match one call in ``nth``; counted, so that no run goes without."""
    numbers = itertools.count()
    return lambda _: next(numbers) % nth == first


class HangingStore(Layer):
    """Never answers one put or get in fifty until it is let go; it does nothing then."""

    def __init__(self, inner: ChunkStore) -> None:
        super().__init__(inner)
        self._numbers = itertools.count()
        self._let_go = threading.Event()
        self.hung = 0

    def _call(self, action: Callable[[], T]) -> T:
        # One counter for all threads; itertools.count is atomic.
        if next(self._numbers) % 50 == 20:
            self.hung += 1
            self._let_go.wait(120)
            raise Unavailable("late", store=self.name)
        return action()

    def put(self, container: str, key: str, body: Body, *, if_absent: bool = False) -> None:
        self._call(lambda: self.inner.put(container, key, body, if_absent=if_absent))

    def get(self, container: str, key: str, offset: int | None = None, length: int | None = None) -> bytes:
        return self._call(lambda: self.inner.get(container, key, offset, length))

    def close(self) -> None:
        self._let_go.set()
        self.inner.close()


def changed(data: bytes) -> bytes:
    """Other bytes in every third segment, zeros in some."""
    copy = bytearray(data)
    rng = random.Random(8)
    for start in range(0, len(copy), 3 * SEGMENT):
        copy[start : start + 5000] = rng.randbytes(5000)[: len(copy) - start]
    copy[20 * SEGMENT : 21 * SEGMENT] = bytes(SEGMENT)
    return bytes(copy)


def restored(world: WorkerWorld, backup_id: str, target: str | None = None) -> bytes:
    """Restore a backup, to a new volume or an existing one, and return what is there."""
    _, volume, _ = world.backups.restore(world.ctx(), backup_id, volume_id=target)
    world.wait(lambda: world.volume_status(volume) in ("available", "error"), "the restore")
    assert world.volume_status(volume) == "available"
    return bytes(world.provider.volumes[volume])


def the_main_job(world: WorkerWorld) -> None:
    """Full, incremental, delete the full, restore to a new and to a dirty volume, delete."""
    volume = world.filled_volume(DATA)
    dirty = world.filled_volume(random.Random(9).randbytes(len(DATA)))
    with world.worker():
        full = world.backups.create(world.ctx(), volume_id=volume)
        assert world.wait_backup(full.id, "available").fail_reason is None
        world.provider.volumes[volume][:] = changed(DATA)
        incremental = world.backups.create(world.ctx(), volume_id=volume, incremental=True)
        world.wait_backup(incremental.id, "available")
        assert restored(world, full.id) == DATA
        world.backups.delete(world.ctx(), full.id)
        world.wait_backup(full.id, None)
        assert restored(world, incremental.id) == changed(DATA)
        assert restored(world, incremental.id, dirty) == changed(DATA)
        world.backups.delete(world.ctx(), incremental.id)
        world.wait_backup(incremental.id, None)
        world.wait_idle()


def test_one_request_in_twenty_fails_or_hangs(world: WorkerWorld) -> None:
    """Requests that fail, whose answers are lost, or that hang: nobody notices, and every byte is right."""
    hanging = HangingStore(world.faulty)
    put_over(world, hanging)
    faults = [
        Fault("put", "before", times=None, match=every(50, 3)),
        Fault("put", "after", times=None, match=every(50, 13)),
        Fault("get", "before", times=None, match=every(50, 7)),
        Fault("get", "after", times=None, match=every(50, 17)),
        # There are few of these.
        Fault("delete", "before"),
        Fault("delete", "after", amount=5, times=2),
    ]
    world.faulty.script(*faults)
    the_main_job(world)
    assert all(fault.struck for fault in faults)
    assert hanging.hung > 5
    calls = len(world.faulty.calls) + hanging.hung
    assert sum(fault.struck for fault in faults) + hanging.hung >= calls / 20
    # Not even the lost answers left anything behind, and no task had to be tried again.
    assert world.objects() == set()
    assert {row.fail_reason for row in world.rows(models.Backup)} == {None}


def test_a_listing_that_never_catches_up(world: WorkerWorld) -> None:
    """What is restored and deleted follows from manifests; what the listing shows makes no difference."""
    put_over(world, LaggingStore(world.faulty))
    the_main_job(world)
    assert world.objects() == set()


def test_what_a_driver_calls_temporary_is_tried_again_as_a_task(world: WorkerWorld) -> None:
    """The layers' tries are used up, and then the driver's word counts for the task."""
    volume = world.filled_volume(DATA[:SEGMENT])
    world.faulty.fail("put", lambda: PermissionDenied("the clocks differ", temporary=True), times=2)
    with world.worker():
        first = world.backups.create(world.ctx(), volume_id=volume)
        world.wait_backup(first.id, "available")
        world.faulty.fail("put", lambda: PermissionDenied("no such user"), times=1)
        second = world.backups.create(world.ctx(), volume_id=volume)
        world.wait_backup(second.id, "error")
        world.wait_idle()


class BehindStores(OneStore):
    """A store whose listings show only later what was put before this process began."""

    settled_at = math.inf

    def container(self, store: str, container: str) -> Container:
        found = super().container(store, container)
        return Container(found.store, found.name, self.settled_at)


def behind(world: WorkerWorld, monkeypatch: pytest.MonkeyPatch) -> BehindStores:
    """Put stores in place that keep clean-ups from beginning; a task that waits for that asks again soon."""
    stores = BehindStores(stack(LaggingStore(world.faulty, 0), LayerOptions()))
    world.tools = replace(world.tools, stores=stores)  # type: ignore[arg-type]
    given_back = world.tasks.release

    def release(task: Task, delay: float = 0, *, store_down: bool = False) -> None:
        given_back(task, min(delay, 0.05), store_down=store_down)

    monkeypatch.setattr(world.tasks, "release", release)
    return stores


def test_a_deletion_that_is_too_early_holds_no_slot(
    world: WorkerWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    stores = behind(world, monkeypatch)
    volume, other = world.filled_volume(DATA), world.filled_volume(DATA[:SEGMENT])
    with world.worker(slots=1):
        backup = world.backups.create(world.ctx(), volume_id=volume)
        world.wait_backup(backup.id, "available")
        world.backups.delete(world.ctx(), backup.id)
        second = world.backups.create(world.ctx(), volume_id=other)
        world.wait_backup(second.id, "available")
        assert world.status(backup.id) == "deleting"
        stores.settled_at = 0.0
        world.wait_backup(backup.id, None)
        world.wait_idle()


def test_a_backup_that_is_too_early_to_clean_up_is_committed_later(
    world: WorkerWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    stores = behind(world, monkeypatch)
    volume, other = world.filled_volume(DATA), world.filled_volume(DATA[:SEGMENT])
    world.faulty.fail("put", times=None, skip=10, match=lambda key: volume in key and "/1.1-" in key)
    with world.worker(slots=1):
        backup = world.backups.create(world.ctx(), volume_id=volume)
        world.wait(lambda: any(key.endswith("/manifest") for key in world.objects()), "the manifest")
        put = world.objects()
        second = world.backups.create(world.ctx(), volume_id=other)
        world.wait_backup(second.id, "available")
        assert world.status(backup.id) == "creating"
        stores.settled_at = 0.0
        row = world.wait_backup(backup.id, "available")
        assert row.service_metadata in put, "nothing was made again"
        assert restored(world, backup.id) == DATA


def test_a_listing_that_lags_behind_a_lost_attempt(world: WorkerWorld) -> None:
    """An attempt's leftovers that the listing hides stay for the sweep; nothing that is needed goes."""
    lagging = LaggingStore(world.faulty)
    put_over(world, lagging)
    volume = world.filled_volume(DATA)
    # The first attempt's keys fail for good from some put on: the task is what is tried again.
    world.faulty.fail("put", times=None, skip=10, match=lambda key: "/1.1-" in key)
    with world.worker():
        full = world.backups.create(world.ctx(), volume_id=volume)
        row = world.wait_backup(full.id, "available")
        assert row.service_metadata is not None
        assert "/1.1-" not in row.service_metadata
        assert restored(world, full.id) == DATA
        child = world.backups.create(world.ctx(), volume_id=volume, incremental=True)
        world.wait_backup(child.id, "available")
        world.backups.delete(world.ctx(), full.id)
        world.wait_backup(full.id, None)
        assert restored(world, child.id) == DATA
        world.backups.delete(world.ctx(), child.id)
        world.wait_backup(child.id, None)
        world.wait_idle()
    left = world.objects()
    assert all("/1.1-" in key for key in left), "only the lost attempt's"

"""A worker on real managers, a memory store that can be made to fail, and volumes in memory."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from sqlalchemy import event

from backupfw.chunkstore.container import Container
from backupfw.chunkstore.layers.stack import stack
from backupfw.chunkstore.memory import MemoryStore
from backupfw.db import models
from backupfw.dispatch.base import InProcessDispatch
from backupfw.engine import recovery, removal
from backupfw.engine.format import keys
from backupfw.engine.format.sealing import AES_256_GCM
from backupfw.errors import TaskStopped
from backupfw.keys.base import KeyStore
from backupfw.manager.operators import recovery as entering
from backupfw.manager.outcomes.volumes import VolumeTasks
from backupfw.manager.queue.services import BACKUP_BINARY
from backupfw.manager.usecases.backups import BackupManager
from backupfw.manager.usecases.keys import KeyManager
from backupfw.testing.faults import FaultyStore
from backupfw.volume.base import (
    BlockTarget,
    Capabilities,
    Point,
    SnapshotRef,
    Storage,
    Tick,
    VolumeProvider,
    VolumeRef,
    no_tick,
)
from backupfw.worker.control import TaskControl
from backupfw.worker.data_keys import DataKeys
from backupfw.worker.handlers import EngineSettings, Tools
from backupfw.worker.handlers.backup_import import manifest_facts
from backupfw.worker.worker import Worker, WorkerSettings
from tests.unit.engine.fakes import FakeControl, MemoryPoint, MemoryTarget
from tests.unit.manager.support import WIRE, World
from tests.waiting import wait_until

SEGMENT = 64 << 10


class MemoryProvider(VolumeProvider):
    """Volumes as byte arrays by volume id; snapshots as copies by location."""

    API_VERSION = 2
    capabilities = Capabilities(snapshots=True, writes=True, fences=True)

    def __init__(self) -> None:
        super().__init__(None)
        self.volumes: dict[str, bytearray] = {}
        self.snapshots: dict[str, bytes] = {}
        #: Called before each write to a target, e.g. to hold it up.
        self.before_write: Callable[[], object] = lambda: None
        self.attempts: list[int] = []

    def create(self, volume: VolumeRef, source: SnapshotRef | VolumeRef | None, tick: Tick = no_tick) -> str:
        self.volumes.setdefault(volume.id, bytearray(volume.length))
        return volume.id

    def adopt(self, path: str, **judging: Any) -> Storage:
        raise NotImplementedError

    def look(self, volume: VolumeRef) -> Storage:
        return Storage(volume.id, len(self.volumes[volume.id]))

    def delete(self, volume: VolumeRef) -> None:
        self.volumes.pop(volume.id, None)

    def extend(self, volume: VolumeRef, length: int) -> None:
        self.volumes[volume.id].extend(bytes(length - volume.length))

    def create_snapshot(self, snapshot: SnapshotRef, in_use: bool, tick: Tick = no_tick) -> str:
        self.snapshots[snapshot.id] = bytes(self.volumes[snapshot.volume.id])
        return snapshot.id

    def delete_snapshot(self, snapshot: SnapshotRef) -> None:
        self.snapshots.pop(snapshot.id, None)

    def open_point(self, ref: VolumeRef | SnapshotRef, point_id: str, tick: Tick = no_tick) -> Point:
        if isinstance(ref, SnapshotRef):
            if ref.id not in self.snapshots:
                raise FileNotFoundError(2, "no such snapshot")
            return MemoryPoint(self.snapshots[ref.id], identity=f"snapshot {ref.id}")
        return MemoryPoint(self.volumes[ref.id], identity=f"volume {ref.id}")

    @contextmanager
    def open_target(self, volume: VolumeRef, attempt: int) -> Iterator[BlockTarget]:
        self.attempts.append(attempt)
        provider = self

        class Target(MemoryTarget):
            def write(self, offset: int, buffers: Any) -> None:
                provider.before_write()
                super().write(offset, buffers)

        target = Target(volume.length)
        target.data = self.volumes[volume.id]
        target.reads_zero = False
        yield target


class OneStore:
    """What ``worker.stores.Stores`` is, for one store that is open already."""

    def __init__(self, store: Any) -> None:
        self._store = store
        self.wire_names = {"main": WIRE}

    def container(self, store: str, container: str) -> Container:
        assert store == "main"
        return Container(self._store, container)

    def locks(self, store: str) -> bool:
        """Nothing is locked."""
        del store
        return False

    def failed(self, store: str) -> bool:
        """It answers: a test's faults pass at once."""
        del store
        return False

    def still_down(self, store: str) -> bool:
        """Whoever says that it is down is right."""
        return store == "main"


class OneBackend:
    """What ``worker.backends.Backends`` is, for one provider, whose volumes have no host."""

    def __init__(self, provider: VolumeProvider) -> None:
        self._provider = provider

    def provider(self, name: str) -> VolumeProvider:
        del name
        return self._provider

    def has(self, name: str) -> bool:
        del name
        return True

    def host_of_new(self, name: str) -> None:
        del name


class LayerOptions:
    """No retries at once: the task is what is tried again."""

    retry_tries = 1
    # As a real store has it: a call that hangs does so in a thread of its own.
    operation_timeout = 120.0


def rebuilt(world: WorkerWorld, container: Container) -> list[entering.Entered]:
    """What ``backupfw catalogue rebuild`` does with one container of a database of our own."""
    ours = world.outcomes.installation_id()
    done: list[entering.Entered] = []
    removal.settle(container, FakeControl())
    find_key = partial(world.data_keys.finder, container)
    for volume in recovery.run(keys.installation_prefix(ours), container, FakeControl(), find_key):
        heads = {one.key: one.head for one in volume.manifests if one.head is not None}
        listed = []
        for one in volume.manifests:
            if one.head is None:
                continue
            sizes = (one.object_count, one.stored_bytes, one.referenced_bytes)
            facts = manifest_facts(one.head, container, WIRE, *sizes)
            problem = f"{one.missing} are missing" if one.missing else None
            listed.append(entering.Found(facts, 1, problem, base=one.base, detached=one.detached))
            if one.head.key_id is not None:
                KeyManager(world.db).add_found(world.data_keys.of_lineage(container, one.head))
        done += entering.enter(
            world.db, listed, lambda found, heads=heads: heads[found.facts.key].record.get("backup", {}), ours
        )
    return done


class WorkerWorld(World):
    """A :class:`World` whose tasks are carried out by workers that a test starts and stops.

    :param folder: for its database; None keeps it in memory, for a test that uses one thread.
    """

    def __init__(self, folder: Path | None, key_store: KeyStore | None = None, **changes: Any) -> None:
        super().__init__("sqlite://" if folder is None else f"sqlite:///{folder}/db.sqlite", **changes)
        self._committed = threading.Event()
        event.listen(self.db.engine, "commit", lambda _connection: self._committed.set())
        self.conf.backup.block_size = 4 << 10
        self.conf.backup.segment_size = SEGMENT
        self.faulty = FaultyStore(MemoryStore("main"))
        self.store = stack(self.faulty, LayerOptions())
        self.provider = MemoryProvider()
        self.dispatch = InProcessDispatch()
        self.backups = BackupManager(self.db, self.conf, self.dispatch.wake)
        self.data_keys = DataKeys(KeyManager(self.db), key_store, AES_256_GCM)
        self.tools = Tools(
            host="host",
            engine=EngineSettings(pack_size=16 << 10, compression_level=1, streams=2),
            tasks=self.tasks,
            backups=self.outcomes,
            volumes=VolumeTasks(self.db),
            stores=OneStore(self.store),  # type: ignore[arg-type]
            data_keys=self.data_keys,
            backends=OneBackend(self.provider),  # type: ignore[arg-type]
            heartbeat=lambda: self.services.heartbeat("host", BACKUP_BINARY, "nova", {"main": WIRE}),
            expire_waiting=self.expiry.expire,
        )

    def close(self) -> None:
        """Close store and database."""
        self.store.close()
        super().close()

    @contextmanager
    def worker(self, lease_seconds: float = 30.0, slots: int = 2, **settings: Any) -> Iterator[Worker]:
        """Run a worker for a ``with`` block."""
        # Nobody wakes a worker up when a pause is over: the next look finds it, and costs some milliseconds.
        settings = {"retry_pause": 0.01, "poll_seconds": 0.1, **settings}
        worker = Worker(self.tools, self.dispatch, WorkerSettings("host", slots, lease_seconds, **settings))
        worker.start()
        try:
            yield worker
        finally:
            worker.stop()

    def filled_volume(self, data: bytes) -> str:
        """Enter an available volume with this content."""
        volume_id = self.volume(length=len(data))
        self.provider.volumes[volume_id] = bytearray(data)
        return volume_id

    def wait(self, done: Callable[[], object], what: str) -> None:
        """Look after each commit, and now and then, until ``done()`` is true."""
        wait_until(what, done, pause=0.05, sleep=self._wait_for_a_commit)

    def _wait_for_a_commit(self, seconds: float) -> None:
        """Wait for the next commit, for at most ``seconds``; one since the last call counts."""
        if self._committed.wait(seconds):
            # Commits come in groups.
            time.sleep(0.02)
        self._committed.clear()

    def wait_backup(self, backup_id: str, status: str | None) -> models.Backup:
        """Poll until a backup has a status; returns its row."""
        self.wait(lambda: self.status(backup_id) == status, f"backup {self.status(backup_id)} -> {status}")
        return self.row(models.Backup, backup_id)

    def wait_idle(self) -> None:
        """Poll until no task is left."""
        self.wait(lambda: self.tasks.pending() == 0, "the tasks to end")

    def wait_reported(self, worker: Worker) -> None:
        """Poll until every running attempt of a worker has heard that it must end."""

        def stopped(control: TaskControl) -> bool:
            try:
                control.check()
            except TaskStopped:
                return True
            return False

        held = worker._leases._held
        self.wait(lambda: all(stopped(item.control) for item in list(held.values())), "the attempts to hear")

    def objects(self) -> set[str]:
        """The keys in the store."""
        store = self.faulty.inner
        assert isinstance(store, MemoryStore)
        return {key for container in store.contents.values() for key in container}

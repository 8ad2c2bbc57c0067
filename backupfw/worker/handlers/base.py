"""What handlers of tasks have in common."""

from __future__ import annotations

import abc
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, ClassVar, Protocol

from backupfw import naming
from backupfw.conf.quiesce import QuiesceCommands
from backupfw.engine.ports import BackupResult
from backupfw.manager import rows
from backupfw.manager.messages import Detail
from backupfw.manager.outcomes.backups import BackupTasks
from backupfw.manager.outcomes.restoring import RestoredVolume
from backupfw.manager.outcomes.volumes import VolumeTasks
from backupfw.manager.queue.claims import Reach
from backupfw.manager.queue.outbox import Outbox
from backupfw.manager.queue.tasks import Tasks
from backupfw.manager.rows import Task
from backupfw.volume.base import Encryption, SnapshotRef, VolumeRef
from backupfw.worker.backends import Backends
from backupfw.worker.control import TaskControl
from backupfw.worker.data_keys import DataKeys
from backupfw.worker.stores import Stores


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """What the engine is configured with.

    :ivar pack_size: bytes of blocks after which a pack is closed.
    :ivar compression_level: zstd's level.
    :ivar streams: segments that one task works on at once.
    :ivar create_containers: whether a missing container is made.
    :ivar verify_unchanged: the share, from 0 to 1, that is read of what a storage says is unchanged, or zero.
    :ivar full_compare_every: of this many incremental backups in a row, one reads everything.
    """

    pack_size: int
    compression_level: int
    streams: int
    create_containers: bool = True
    verify_unchanged: float = 0.01
    full_compare_every: int = 30


class Meter(Protocol):
    """Counts what workers do.  Called from any thread; must be quick and must not raise."""

    def attempt(self, kind: str, taken_over: bool) -> None:
        """Count an attempt that begins; ``taken_over``: another worker had lost the task."""

    def backed_up(self, result: BackupResult) -> None:
        """Count what a finished backup did."""

    def change_missed(self) -> None:
        """Count a wrong answer of a volume's storage about what is unchanged."""


class NullMeter:
    """Counts nothing."""

    def attempt(self, kind: str, taken_over: bool) -> None:
        """Do nothing."""

    def backed_up(self, result: BackupResult) -> None:
        """Do nothing."""

    def change_missed(self) -> None:
        """Do nothing."""


@dataclass(frozen=True, slots=True)
class Tools:
    """What handlers work with; shared by all tasks of a worker, thread-safe.

    :ivar host: the host name that backups made here show.
    :ivar heartbeat: records that this worker lives.
    :ivar expire_waiting: called now and then: ends tasks that no worker could claim for too long.
    :ivar queue_scrubs: called now and then: queues what is to be scrubbed in the stores of this worker.
    :ivar record_usage: called now and then: records what stores hold, once an hour.
    :ivar meter: counts what is done.
    :ivar quiesce: commands that freeze and thaw volumes, by the names that users know.
    :ivar outbox: the event outbox; None: no events are sent.
    :ivar reach: what this worker can serve; None: everything.
    """

    host: str
    engine: EngineSettings
    tasks: Tasks
    backups: BackupTasks
    volumes: VolumeTasks
    stores: Stores
    data_keys: DataKeys
    backends: Backends
    heartbeat: Callable[[], None]
    expire_waiting: Callable[[], object]
    queue_scrubs: Callable[[], object] = bool
    record_usage: Callable[[], object] = bool
    reach: Reach | None = None
    meter: Meter = field(default_factory=NullMeter)
    outbox: Outbox | None = None
    quiesce: Mapping[str, QuiesceCommands] = field(default_factory=dict)


class Handler(abc.ABC):
    """Carries out one kind of task.  Each method ends the task, or raises.

    :cvar refusals: errors that the user's input causes: the log has one line, without a traceback.
    :cvar waits_for_stores: it waits for a store that is down as long as that takes.
    """

    refusals: ClassVar[tuple[type[Exception], ...]] = ()
    waits_for_stores: ClassVar[bool] = False

    def __init__(self, tools: Tools) -> None:
        self._tools = tools

    @abc.abstractmethod
    def run(self, task: Task, control: TaskControl) -> None:
        """Do the work of one attempt and record its outcome.

        :raises TaskStopped: the attempt must end; the statuses were moved by the call that ended it.
        :raises Exception: it failed; the worker decides whether it is tried again.
        """

    @abc.abstractmethod
    def failed(self, task: Task, reason: str) -> None:
        """End a task that is not tried again, with the reason for the user."""

    def failed_with(self, task: Task, reason: str, detail: Detail | None) -> None:
        """As :meth:`failed`, where more is known for a user message than the kind of task says."""
        del detail
        self.failed(task, reason)

    def locked(self, task: Task, until: datetime, seconds: float) -> None:
        """Give back a task whose objects are locked in their store; this does not count as a failed attempt.

        :param until: naive UTC.
        :param seconds: from now until then.
        """
        del until
        self._tools.tasks.release(task, seconds, locked=True)

    def cancelled(self, task: Task) -> None:
        """Clean up after a cancelled task and end it; the statuses were moved when it was cancelled."""
        self._tools.tasks.discard(task)


def volume_ref(volume: rows.Volume) -> VolumeRef:
    """Return a volume of the catalogue as its provider knows it."""
    key = volume.encryption_key_id
    return VolumeRef(
        volume.id,
        volume.length,
        volume.location,
        volume.adopted,
        volume.storage_id,
        volume.project_id,
        None if key is None else Encryption(key),
    )


def snapshot_ref(snapshot: rows.Snapshot, volume: rows.Volume) -> SnapshotRef:
    """Return a snapshot of the catalogue as its provider knows it."""
    return SnapshotRef(snapshot.id, volume_ref(volume), snapshot.length, snapshot.location)


def encryption(record: Mapping[str, Any]) -> Encryption | None:
    """Take what the bytes of the source volume are encrypted with from a manifest that may say anything."""
    volume = record.get("volume")
    found = volume.get("encryption") if isinstance(volume, dict) else None
    if not isinstance(found, dict):
        return None
    key, header = found.get("key_id"), found.get("header")
    return Encryption(str(key), header if isinstance(header, str) else None)


def restored_volume(record: Mapping[str, Any]) -> RestoredVolume | None:
    """Take the source volume's description from a manifest; one that is not ours may say anything."""
    volume = record.get("volume")
    if not isinstance(volume, dict):
        return None
    return RestoredVolume(
        name=naming.storable(volume.get("name")),
        description=naming.storable(volume.get("description")),
        metadata=naming.storable_pairs(volume.get("metadata")),
        volume_type=naming.storable(volume.get("volume_type")),
        bootable=volume.get("bootable") is True,
        image_metadata=(
            naming.storable_pairs(volume["image_metadata"]) if "image_metadata" in volume else None
        ),
    )

"""Outcomes of volumes' and snapshots' tasks: the plan of an attempt, and its end.

``start_*`` moves no status, so a lost attempt needs no repair; ``finish_*`` and ``fail`` end the task and
move the status in one transaction.  All but ``start_create_snapshot`` and ``start_delete_snapshot``, which
only read, raise TaskLost if another attempt owns the task, and TaskCancelled if it was cancelled (force
delete, reset); in both cases nothing changes.

Handlers look like this::

    plan = volume_tasks.start_create(task)
    location = provider.create(ref(plan.volume), …, tick)
    volume_tasks.finish_create(task, location)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from sqlalchemy import select
from sqlalchemy.orm import Session, aliased

from backupfw.db.models import Backup, Manifest, Snapshot, Volume
from backupfw.errors import InvalidVolume, SnapshotNotFound, VolumeNotFound
from backupfw.manager import rows
from backupfw.manager.lineage import lifecycle
from backupfw.manager.lineage.lifecycle import Move, SnapshotMoves, VolumeMoves
from backupfw.manager.messages import Detail
from backupfw.manager.queue import tasks
from backupfw.manager.rows import Task
from backupfw.manager.rules import failures
from backupfw.manager.rules.volume_rules import bind_to_host, follow_storage, gigabytes

if TYPE_CHECKING:
    from backupfw.db.session import Database


@dataclass(frozen=True, slots=True)
class CreatePlan:
    """A volume to make.

    :ivar source_snapshot: the snapshot to copy, or None.
    :ivar source_volume: the volume to copy, or the snapshot's volume; None: zeros.  The source does not
        change while the task runs.
    """

    volume: rows.Volume
    source_volume: rows.Volume | None = None
    source_snapshot: rows.Snapshot | None = None


@dataclass(frozen=True, slots=True)
class ExtendPlan:
    """A volume to make larger.

    :ivar length: its new length in bytes.
    """

    volume: rows.Volume
    length: int


@dataclass(frozen=True, slots=True)
class SnapshotPlan:
    """A snapshot to make or to delete.

    :ivar volume: its volume, for a delete perhaps one that is deleted already.
    :ivar in_use: a program may write to the volume.
    """

    snapshot: rows.Snapshot
    volume: rows.Volume
    in_use: bool


#: The kinds of these tasks.
KINDS = frozenset(
    (
        tasks.VOLUME_CREATE,
        tasks.VOLUME_DELETE,
        tasks.VOLUME_EXTEND,
        tasks.SNAPSHOT_CREATE,
        tasks.SNAPSHOT_DELETE,
    )
)
#: Seconds before the removal of what users do not see is tried again after it failed.
_AGAIN_SECONDS = 300.0


@dataclass(frozen=True, slots=True)
class PointsNeeded:
    """The backups whose points are needed in the storage of their volume, by id.

    :ivar compared: those that a backup is or will be compared with.
    :ivar read: those that are being made.
    :ivar known: all that this database knows, deleted ones, too.
    """

    compared: frozenset[str]
    read: frozenset[str]
    known: frozenset[str]


class VolumeTasks:
    """Starts and ends the tasks of volumes and snapshots.  Thread-safe."""

    def __init__(self, db: Database) -> None:
        self._db = db

    def start_create(
        self, task: Task, host_of_new: Callable[[str], str | None] = lambda _backend: None
    ) -> CreatePlan:
        """Return the volume to make, and its source.

        :param host_of_new: returns the host whose workers alone will be able to open a new volume of a back
            end; None: all workers that have it.
        """

        def work(session: Session) -> CreatePlan:
            tasks.hold(session, task)
            volume = _volume(session, task.resource_id)
            if (host := host_of_new(volume.backend)) is not None:
                bind_to_host(session, volume, host)
                session.flush()
            made = rows.volume(session, volume)
            if volume.snapshot_id is not None:
                plan = _snapshot_plan(session, volume.snapshot_id)
                return CreatePlan(made, plan.volume, plan.snapshot)
            if volume.source_volid is not None:
                return CreatePlan(made, rows.volume(session, _volume(session, volume.source_volid)))
            return CreatePlan(made)

        return self._db.run(work)

    def finish_create(self, task: Task, location: str) -> None:
        """End the task: the volume is ``available``."""
        self._end(task, Volume, VolumeMoves.created, location=location)

    def start_delete(self, task: Task) -> rows.Volume:
        """Return the volume to delete; the tasks that delete its snapshots have ended.

        :raises InvalidVolume: a snapshot of it could not be deleted, so the volume cannot be either.
        """
        with self._db.read() as session:
            volume = _volume(session, task.resource_id)
            left = select(Snapshot.id).where(
                Snapshot.volume_id == volume.id,
                Snapshot.deleted.is_(False),
                Snapshot.temporary.is_(False),
            )
            if session.scalar(left.limit(1)) is not None:
                raise InvalidVolume("A snapshot of the volume could not be deleted.")
            return rows.volume(session, volume)

    def finish_delete(self, task: Task) -> None:
        """End the task: the volume is deleted."""

        def work(session: Session) -> None:
            tasks.end(session, task)
            lifecycle.move(session, Volume, task.resource_id, VolumeMoves.deleted)
            # The storage of an adopted volume is still there.
            tasks.tidy(session, task.resource_id, task.request_id)

        self._db.run(work)

    def start_tidy(self, task: Task) -> rows.Volume:
        """Return the volume to tidy, perhaps deleted, or as it was when it had another storage."""
        with self._db.read() as session:
            volume = rows.volume(session, session.get_one(Volume, task.resource_id))
            return replace(volume, **task.payload)

    def needed_points(self, task: Task) -> PointsNeeded:
        """Return which points are needed, as it is now, in the storage of the volume to tidy."""
        volume_id = task.resource_id
        manifest, base = aliased(Manifest), aliased(Manifest)
        mine = Backup.volume_id == volume_id
        being_made = (mine, Backup.deleted.is_(False), Backup.status == lifecycle.CREATING)
        made = select(manifest.backup_id).join(Backup, Backup.manifest_id == manifest.id)
        last = (
            made.where(mine, Backup.deleted.is_(False))
            .where(Backup.status.in_((lifecycle.AVAILABLE, lifecycle.RESTORING)))
            .order_by(Backup.data_timestamp.desc(), Backup.created_at.desc(), Backup.id.desc())
            .limit(1)
        )
        bases = (
            select(base.backup_id)
            .join(manifest, manifest.base_id == base.id)
            .join(Backup, Backup.manifest_id == manifest.id)
            .where(*being_made, manifest.state == lifecycle.WRITING)
        )
        # No worker has begun them yet.
        parents = made.where(
            Backup.id.in_(select(Backup.parent_id).where(*being_made, Backup.manifest_id.is_(None)))
        )
        with self._db.read() as session:
            volume = session.get(Volume, volume_id)
            going = (
                volume is None or volume.deleted or volume.status == lifecycle.DELETING or bool(task.payload)
            )
            read = frozenset(session.scalars(select(Backup.id).where(*being_made)))
            compared: set[str] = set()
            for query in (last, bases, parents):
                compared.update(() if going else session.scalars(query))
            # A duplicate lives longer than the row of the backup whose point its manifest is of.
            makers = select(Manifest.backup_id).where(Manifest.volume_id == volume_id)
            known = frozenset(session.scalars(select(Backup.id).where(mine).union(makers)))
        return PointsNeeded(frozenset(compared), read, known)

    def finish_tidy(self, task: Task) -> None:
        """End the task: what is not needed is removed."""
        self._db.run(lambda session: tasks.end(session, task))

    def start_extend(self, task: Task) -> ExtendPlan:
        """Return the volume to make larger, and its new length."""
        with self._db.read() as session:
            return ExtendPlan(
                rows.volume(session, _volume(session, task.resource_id)), int(task.payload["length"])
            )

    def finish_extend(self, task: Task, length: int, storage_id: str | None) -> None:
        """End the task: the volume has its new length and is ``available``.

        :param length: its real length in bytes; if it is more than requested, see :func:`follow_storage`.
        :param storage_id: its storage id, if the provider knows one.
        """
        asked = int(task.payload["length"])

        def work(session: Session) -> None:
            tasks.end(session, task)
            values = {"length": asked, "size": gigabytes(asked)}
            if lifecycle.move(session, Volume, task.resource_id, VolumeMoves.extended, **values):
                follow_storage(session, task, task.resource_id, length, storage_id)

        self._db.run(work)

    def start_create_snapshot(self, task: Task) -> SnapshotPlan:
        """Return the snapshot to make, and whether programs may write to its volume meanwhile.

        A volume that is not attached cannot be attached while the task runs.
        """
        with self._db.read() as session:
            return _snapshot_plan(session, task.resource_id)

    def follow_volume(self, task: Task, length: int, storage_id: str | None) -> SnapshotPlan:
        """Update a volume, and the snapshot that is being made of it, after an open of the volume.

        See :func:`follow_storage`.
        """

        def work(session: Session) -> SnapshotPlan:
            tasks.hold(session, task)
            snapshot = session.get_one(Snapshot, task.resource_id)
            volume = follow_storage(session, task, snapshot.volume_id, length, storage_id)
            snapshot.length, snapshot.size = volume.length, volume.size
            session.flush()
            return _snapshot_plan(session, task.resource_id)

        return self._db.run(work)

    def finish_create_snapshot(self, task: Task, location: str) -> None:
        """End the task: the snapshot is ``available``."""
        self._end(task, Snapshot, SnapshotMoves.created, location=location)

    def start_delete_snapshot(self, task: Task) -> SnapshotPlan:
        """Return the snapshot to delete."""
        with self._db.read() as session:
            return _snapshot_plan(session, task.resource_id)

    def finish_delete_snapshot(self, task: Task) -> None:
        """End the task: the snapshot is deleted."""
        self._end(task, Snapshot, SnapshotMoves.deleted)

    def _end(self, task: Task, model: type[Volume | Snapshot], step: Move, **values: Any) -> None:
        def work(session: Session) -> None:
            tasks.end(session, task)
            lifecycle.move(session, model, task.resource_id, step, **values)

        self._db.run(work)

    def fail(self, task: Task, reason: str) -> None:
        """End the task: its resource is in an error status; after a failed extension it has its old size."""

        def work(session: Session) -> None:
            tasks.end(session, task, "failed")
            failed(session, task, reason)

        self._db.run(work)


def failed(session: Session, task: Task, reason: str, detail: Detail | None = None) -> None:
    """See :func:`failures.failed`; a volume that was not extended gets its old size again.

    The removal of what users do not see (a temporary snapshot, points) is tried again after a while.
    """
    values: dict[str, Any] = {}
    if task.kind == tasks.VOLUME_TIDY:
        tasks.again(session, task, _AGAIN_SECONDS)
        return
    if task.kind == tasks.SNAPSHOT_DELETE:
        snapshot = session.get(Snapshot, task.resource_id)
        if snapshot is not None and snapshot.temporary:
            tasks.again(session, task, _AGAIN_SECONDS)
            return
    elif task.kind == tasks.VOLUME_EXTEND:
        volume = session.get(Volume, task.resource_id)
        values = {} if volume is None else {"size": gigabytes(volume.length)}
    failures.failed(session, task, reason, detail, **values)


def _volume(session: Session, volume_id: str) -> Volume:
    volume = session.get(Volume, volume_id)
    if volume is None or volume.deleted:
        raise VolumeNotFound(volume_id)
    return volume


def _snapshot_plan(session: Session, snapshot_id: str) -> SnapshotPlan:
    snapshot = session.get(Snapshot, snapshot_id)
    if snapshot is None or snapshot.deleted:
        raise SnapshotNotFound(snapshot_id)
    # The volume may have been deleted before its snapshot; its row still exists.
    volume = rows.volume(session, session.get_one(Volume, snapshot.volume_id))
    return SnapshotPlan(rows.snapshot(session, snapshot), volume, bool(volume.attachments))

"""Snapshots of the embedded catalogue's volumes: one method per use case, as in ``volumes``.

Nobody can see temporary snapshots, which running backups make.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, TypeVar, Unpack

from sqlalchemy.orm import Session

from backupfw.db import locks, models
from backupfw.db.models import SnapshotMetadata
from backupfw.db.session import now
from backupfw.errors import InvalidInput, InvalidSnapshot, InvalidVolume
from backupfw.manager import actions, listing, rows
from backupfw.manager.actions import Kind
from backupfw.manager.lineage import lifecycle
from backupfw.manager.lineage.lifecycle import SnapshotMoves
from backupfw.manager.metadata import Metadata, add
from backupfw.manager.queue import tasks
from backupfw.manager.rules import quota
from backupfw.manager.rules.volume_rules import (
    find_snapshot,
    find_volume,
    held_by_backup,
    queue_snapshot_delete,
)
from backupfw.manager.usecases.base import UseCases, describe, queue

if TYPE_CHECKING:
    from oslo_config import cfg

    from backupfw.context import RequestContext
    from backupfw.db.session import Database

Result = TypeVar("Result")

#: Kinds of a snapshot's own tasks.
_OWN_TASKS = (tasks.SNAPSHOT_CREATE, tasks.SNAPSHOT_DELETE)


class SnapshotManager(UseCases):
    """The use cases of snapshots.  Thread-safe.

    :param conf: has the group ``quota``.
    :ivar metadata: their metadata.
    """

    def __init__(self, db: Database, conf: cfg.ConfigOpts, wake: Callable[[], None]) -> None:
        super().__init__(db, conf, wake)
        self.metadata = Metadata(db, SnapshotMetadata, find_snapshot)

    def create(
        self,
        ctx: RequestContext,
        *,
        volume_id: str,
        name: str | None = None,
        description: str | None = None,
        force: bool = False,
        metadata: Mapping[str, str] | None = None,
    ) -> rows.Snapshot:
        """Begin to make a snapshot of an available volume; with ``force`` also of an attached one.

        :raises VolumeNotFound: there is none, or not for this caller.
        :raises InvalidVolume: its status forbids it.
        :raises QuotaExceeded: the volume's project has no room for it.
        """
        allowed = (lifecycle.AVAILABLE, lifecycle.IN_USE) if force else (lifecycle.AVAILABLE,)
        snapshot_id = str(uuid.uuid4())

        def work(session: Session) -> rows.Snapshot:
            volume = find_volume(session, ctx, volume_id, lock=True)
            if volume.status not in allowed:
                raise InvalidVolume(
                    f"Volume {volume_id} status must be {' or '.join(allowed)}, "
                    f"but current status is: {volume.status}."
                )
            wanted = {"snapshots": 1, "gigabytes": volume.size}
            quota.check(session, self._conf, volume.project_id, wanted, volume.volume_type)
            snapshot = models.Snapshot(
                id=snapshot_id,
                volume_id=volume_id,
                project_id=volume.project_id,
                user_id=ctx.user_id,
                status=lifecycle.CREATING,
                size=volume.size,
                length=volume.length,
                display_name=name,
                display_description=description,
                temporary=False,
                created_at=now(session),
                deleted=False,
            )
            session.add(snapshot)
            session.flush()
            add(session, SnapshotMetadata, snapshot.id, metadata or {})
            actions.record(session, ctx, Kind.SNAPSHOT_CREATE, snapshot)
            queue(session, ctx, tasks.SNAPSHOT_CREATE, snapshot, volume_id)
            return rows.snapshot(session, snapshot)

        def made(session: Session) -> rows.Snapshot | None:
            found = session.get(models.Snapshot, snapshot_id)
            return None if found is None else rows.snapshot(session, found)

        return self._change(work, made)

    def get(self, ctx: RequestContext, snapshot_id: str) -> rows.Snapshot:
        """Return a snapshot.

        :raises SnapshotNotFound: there is none, or not for this caller.
        """
        with self._db.read() as session:
            return rows.snapshot(session, find_snapshot(session, ctx, snapshot_id))

    def project_of(self, ctx: RequestContext, snapshot_id: str) -> str:
        """Return the project of a snapshot, without its metadata.

        :raises SnapshotNotFound: there is none, or not for this caller.
        """
        with self._db.read() as session:
            return find_snapshot(session, ctx, snapshot_id, mirrors=True).project_id

    def list(
        self, ctx: RequestContext, *, detail: bool = True, **paging: Unpack[listing.Paging]
    ) -> rows.Page[rows.Snapshot]:
        """Return a page of snapshots; see :func:`backupfw.manager.listing.page`.

        :param detail: accepted as in the other listings; the summary of a snapshot has all fields.
        """
        del detail
        with self._db.read() as session:
            lasting = models.Snapshot.temporary.is_(False)
            found, total = listing.page(session, models.Snapshot, ctx, paging, where=[lasting])
            return rows.Page(rows.snapshots(session, found), total)

    def update(
        self,
        ctx: RequestContext,
        snapshot_id: str,
        *,
        name: str | None,
        description: str | None,
        metadata: Mapping[str, str] | None = None,
    ) -> rows.Snapshot:
        """Set name and description, and the whole metadata unless it is None.

        :raises SnapshotNotFound: there is none, or not for this caller.
        """

        def work(session: Session) -> rows.Snapshot:
            snapshot = find_snapshot(session, ctx, snapshot_id, lock=True)
            describe(session, ctx, snapshot, name, description, metadata)
            return rows.snapshot(session, snapshot)

        return self._db.run(work)

    def delete(self, ctx: RequestContext, snapshot_id: str) -> None:
        """Begin to delete a snapshot; volumes that are being made from it are finished first.

        :raises SnapshotNotFound: there is none, or not for this caller.
        :raises InvalidSnapshot: its status forbids it.
        """

        def work(session: Session) -> None:
            snapshot = self._locked(session, ctx, snapshot_id)
            if snapshot.status not in SnapshotMoves.delete.sources:
                raise InvalidSnapshot(
                    f"Snapshot status must be one of {', '.join(SnapshotMoves.delete.sources)} to delete it, "
                    f'but the current status is "{snapshot.status}".'
                )
            actions.record(session, ctx, Kind.SNAPSHOT_DELETE, snapshot)
            queue_snapshot_delete(session, ctx, snapshot)

        self._change(work)

    def force_delete(self, ctx: RequestContext, snapshot_id: str) -> None:
        """Begin to delete a snapshot of any status; a task that makes it is cancelled.

        A backup that reads it ends first.  A delete that has begun continues.

        :raises SnapshotNotFound: there is none, or not for this caller.
        """

        def work(session: Session) -> None:
            snapshot = self._locked(session, ctx, snapshot_id)
            actions.record(session, ctx, Kind.SNAPSHOT_FORCE_DELETE, snapshot)
            tasks.cancel(session, snapshot_id, (tasks.SNAPSHOT_CREATE,))
            queue_snapshot_delete(session, ctx, snapshot)

        self._change(work)

    def reset_status(self, ctx: RequestContext, snapshot_id: str, status: str) -> None:
        """Give a snapshot another status; a task that makes or deletes it is cancelled.

        :raises SnapshotNotFound: there is none, or not for this caller.
        :raises InvalidInput: there is no such status, or it cannot be set.
        :raises InvalidSnapshot: it has no storage and so cannot be available; or a backup is reading it
            (the backup's reset gives the snapshot its status back).
        """
        if status not in lifecycle.RESETS[models.Snapshot]:
            raise InvalidInput(f"Snapshot status {status[:64]!r} cannot be set.")

        def work(session: Session) -> None:
            snapshot = find_snapshot(session, ctx, snapshot_id, lock=True)
            if held_by_backup(session, snapshot_id):
                raise InvalidSnapshot(
                    f"Snapshot {snapshot_id} is used by a backup; reset the backup's status instead."
                )
            if status == lifecycle.AVAILABLE and snapshot.location is None:
                raise InvalidSnapshot(f"Snapshot {snapshot_id} has no storage, so it cannot be {status}.")
            actions.record(session, ctx, Kind.SNAPSHOT_RESET_STATUS, snapshot, f"to {status}")
            tasks.cancel(session, snapshot_id, _OWN_TASKS)
            lifecycle.move(
                session, models.Snapshot, snapshot_id, lifecycle.reset(status), previous_status=None
            )

        self._change(work)

    def update_status(
        self, ctx: RequestContext, snapshot_id: str, status: str, progress: str | None = None
    ) -> None:
        """Set the status and progress of a snapshot that is being made or deleted; cancel its task.

        :param progress: e.g. ``80%``; None: unchanged.
        :raises SnapshotNotFound: there is none, or not for this caller.
        :raises InvalidInput: the status does not follow from the one it has.
        :raises InvalidSnapshot: it has no storage and so cannot be available.
        """

        def work(session: Session) -> None:
            snapshot = self._locked(session, ctx, snapshot_id)
            if status not in lifecycle.SNAPSHOT_REPORTS.get(snapshot.status, ()):
                raise InvalidInput(
                    f"Provided snapshot status {status[:64]} not allowed for snapshot with status"
                    f" {snapshot.status}."
                )
            if status == lifecycle.AVAILABLE and snapshot.location is None:
                raise InvalidSnapshot(f"Snapshot {snapshot_id} has no storage, so it cannot be {status}.")
            values = {} if progress is None else {"progress": progress}
            actions.record(session, ctx, Kind.SNAPSHOT_RESET_STATUS, snapshot, f"to {status}")
            if status != snapshot.status:
                tasks.cancel(session, snapshot_id, _OWN_TASKS)
            lifecycle.move(session, models.Snapshot, snapshot_id, lifecycle.reset(status), **values)

        self._change(work)

    def _locked(self, session: Session, ctx: RequestContext, snapshot_id: str) -> models.Snapshot:
        """Lock the snapshot after its volume, the order in which all code locks them."""
        volume_id = find_snapshot(session, ctx, snapshot_id).volume_id
        locks.lock(session, models.Volume, models.Volume.id == volume_id)
        return find_snapshot(session, ctx, snapshot_id, lock=True)

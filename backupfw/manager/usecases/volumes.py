"""Volumes of the embedded catalogue: one method per use case.

Each is one transaction that locks the volume's row, checks the rules, moves the status and queues the task
that does the work; :mod:`backupfw.manager.outcomes.volumes` ends that task.  Only administrators can see
volumes of other projects.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar, Unpack

from sqlalchemy import ColumnElement, and_, delete, func, or_, select, update
from sqlalchemy.orm import Session, aliased

from backupfw.db import models, queries
from backupfw.db.locks import lock
from backupfw.db.models import VolumeImageMetadata, VolumeMetadata
from backupfw.db.session import now
from backupfw.errors import (
    InvalidBackup,
    InvalidInput,
    InvalidSnapshot,
    InvalidVolume,
)
from backupfw.manager import actions, listing, rows
from backupfw.manager.actions import Kind
from backupfw.manager.lineage import lifecycle
from backupfw.manager.lineage.lifecycle import SnapshotMoves, VolumeMoves
from backupfw.manager.metadata import Metadata, pairs
from backupfw.manager.queue import tasks
from backupfw.manager.rules import quota, volume_types
from backupfw.manager.rules.volume_rules import (
    GIB,
    MAX_GIGABYTES,
    SOURCE_KEY,
    check_encryption,
    find_backup,
    find_snapshot,
    find_volume,
    gigabytes,
    held_by_backup,
    is_attached,
    is_read_by_task,
    new_volume,
    queue_snapshot_delete,
    refuse_written,
)
from backupfw.manager.usecases.attachments import Attachments, add_attachment
from backupfw.manager.usecases.backups import begin_restore
from backupfw.manager.usecases.base import UseCases, describe, queue

if TYPE_CHECKING:
    from oslo_config import cfg

    from backupfw.context import RequestContext
    from backupfw.db.session import Database

Result = TypeVar("Result")

#: Kinds of a volume's own tasks.
_OWN_TASKS = (tasks.VOLUME_CREATE, tasks.VOLUME_DELETE, tasks.VOLUME_EXTEND)


@dataclass(frozen=True, slots=True)
class VolumeTotals:
    """The totals of many volumes.

    :ivar size: GiB.
    :ivar metadata: every value that a metadata key has, in order.
    """

    count: int
    size: int
    metadata: Mapping[str, Sequence[str]]


class VolumeManager(UseCases):
    """The use cases of volumes.  Thread-safe.

    :param conf: has the group ``quota``.
    :param foreign: names of the back ends whose volumes a foreign catalogue has: none is made here.
    :ivar metadata: their metadata.
    :ivar image_metadata: what is known of the images that they were made of.
    :ivar attachments: who uses them.
    """

    def __init__(
        self,
        db: Database,
        conf: cfg.ConfigOpts,
        wake: Callable[[], None],
        foreign: Collection[str] = frozenset(),
    ) -> None:
        super().__init__(db, conf, wake)
        self._foreign = foreign
        self.metadata = Metadata(db, VolumeMetadata, find_volume)
        self.image_metadata = Metadata(db, VolumeImageMetadata, find_volume)
        self.attachments = Attachments(db)

    def create(
        self,
        ctx: RequestContext,
        *,
        size: int | None,
        name: str | None = None,
        description: str | None = None,
        snapshot_id: str | None = None,
        source_volid: str | None = None,
        metadata: Mapping[str, str] | None = None,
        volume_type: str | None = None,
        availability_zone: str | None = None,
        backup_id: str | None = None,
    ) -> rows.Volume:
        """Make a volume: empty, or from a snapshot, an available volume or an available backup.

        :param size: GiB; None: the size of the source.
        :param volume_type: id or name of its type; that of its source unless given, else the default.
        :raises InvalidInput: a size is missing, out of range or below the source's; several sources; the
            type's back end is not enabled, or not the source's.
        :raises VolumeNotFound: no such source volume for this caller; likewise SnapshotNotFound,
            BackupNotFound and VolumeTypeNotFound.
        :raises InvalidVolume: the source volume is not available; likewise InvalidSnapshot and
            InvalidBackup.
        :raises QuotaExceeded: the project has no room for it.
        """
        if sum(source is not None for source in (snapshot_id, source_volid, backup_id)) > 1:
            raise InvalidInput("A volume can be created from one snapshot, volume or backup only.")
        volume_id = str(uuid.uuid4())

        def work(session: Session) -> rows.Volume:
            source_size, what = 0, ""
            source: models.Volume | None = None
            if snapshot_id is not None:
                snapshot = find_snapshot(session, ctx, snapshot_id, lock=True)
                if snapshot.status != lifecycle.AVAILABLE:
                    raise InvalidSnapshot(
                        "Snapshot to create a volume from must be available, "
                        f'but the current status is "{snapshot.status}".'
                    )
                source_size, what = snapshot.size, "snapshot"
                source = session.get(models.Volume, snapshot.volume_id)
            elif source_volid is not None:
                source = find_volume(session, ctx, source_volid, lock=True)
                if source.status != lifecycle.AVAILABLE:
                    raise InvalidVolume(
                        f'Volume to be copied must be available, but the current status is "{source.status}".'
                    )
                source_size, what = source.size, "source volume"
            backup = None if backup_id is None else _available_backup(session, ctx, backup_id)
            if backup is not None:
                source_size, what = backup.size, "backup"
            wanted = _checked_size(size, source_size, what)
            kind = None if volume_type is None else volume_types.chosen(session, ctx, volume_type)
            backend = None
            if source is not None:
                backend = source.backend
                if volume_types.backend_of(session, self._conf, kind) not in (None, backend):
                    raise InvalidInput(f"Volume type {kind} has another back end than the {what}.")
            if kind is None and source is not None:
                kind = source.volume_type
            if backup is not None:
                chosen = kind is not None
                kind = kind or volume_types.type_of_backup(session, ctx.project_id, backup)
                backend = volume_types.backend_of_restored(
                    session, self._conf, ctx, backup, kind, chosen=chosen
                )
            volume = new_volume(
                session,
                self._conf,
                ctx,
                status=lifecycle.CREATING,
                size=wanted,
                name=name,
                description=description,
                metadata=metadata if backup is None else {**(metadata or {}), SOURCE_KEY: backup.id},
                volume_type=kind,
                # A copy can be booted if its source can.
                bootable=source is not None and source.bootable,
                image_metadata=None if source is None else pairs(session, VolumeImageMetadata, source.id),
                availability_zone=availability_zone or self._conf.availability_zone,
                backend=backend,
                snapshot_id=snapshot_id,
                source_volid=source_volid,
                volume_id=volume_id,
            )
            self._refuse_foreign(volume)
            source_id = snapshot_id or source_volid or backup_id
            actions.record(session, ctx, Kind.VOLUME_CREATE, volume, source_id and f"from {what} {source_id}")
            if backup is None:
                queue(session, ctx, tasks.VOLUME_CREATE, volume, snapshot_id or source_volid)
            else:
                # The restore makes the volume's storage; it stays ``creating`` until that is done.
                check_encryption(backup, None, new=True)
                begin_restore(session, ctx, backup, volume, new=True, typed=kind is not None)
            return rows.volume(session, volume)

        return self._change(work, lambda session: _made(session, volume_id))

    def adopt(
        self,
        ctx: RequestContext,
        *,
        location: str,
        length: int,
        name: str | None = None,
        project_id: str | None = None,
        host: str | None = None,
        backend: str | None = None,
        made_as: str | None = None,
        storage_id: str | None = None,
        in_use: bool = False,
    ) -> rows.Volume:
        """Add existing storage to the catalogue as an available volume.

        :param location: as the provider's ``adopt`` returned it.
        :param length: bytes; the volume's size is that in GiB, rounded up.
        :param project_id: the project that gets it; the caller's unless given.
        :param host: the host whose workers alone can open it; None: all can.
        :param backend: the name of its back end; that of the default type unless given.
        :param made_as: the id under which the provider made this storage for the volume, which then owns
            it; None for storage that is not the service's own and stays when the volume is deleted.
        :param storage_id: as the provider's ``adopt`` returned it.
        :param in_use: a program uses it now: the volume is ``in-use``, with an attachment.
        :raises InvalidInput: it is empty, or a volume or snapshot already.
        :raises QuotaExceeded: the project has no room for it.
        """
        if length <= 0:
            raise InvalidInput("Storage without any bytes cannot be a volume.")
        volume_id = made_as or str(uuid.uuid4())
        attachment_id = str(uuid.uuid4())

        def work(session: Session) -> rows.Volume:
            # One adoption at a time: there is no row of a location that could be locked.
            quota.lock_project(session, quota.NO_PROJECT)
            if made_as is None:
                self._refuse_taken(session, location, storage_id)
            volume = new_volume(
                session,
                self._conf,
                ctx,
                status=lifecycle.AVAILABLE,
                size=_checked_size(gigabytes(length), 0, ""),
                length=length,
                name=name,
                availability_zone=self._conf.availability_zone,
                project_id=project_id,
                location=location,
                host=host,
                backend=backend,
                adopted=made_as is None,
                storage_id=storage_id,
                volume_id=volume_id,
            )
            self._refuse_foreign(volume)
            actions.record(session, ctx, Kind.VOLUME_ADOPT, volume)
            if in_use:
                add_attachment(session, volume_id, attachment_id)
                lifecycle.move(session, models.Volume, volume_id, VolumeMoves.attach)
            return rows.volume(session, volume)

        return self._db.run(work, lambda session: _made(session, volume_id))

    def _refuse_foreign(self, volume: models.Volume) -> None:
        if volume.backend in self._foreign:
            raise InvalidInput(
                f"Volumes of the back end {volume.backend} are made in the service that has them; a backup"
                " names them by their ids there."
            )

    def adopt_again(
        self,
        ctx: RequestContext,
        volume_id: str,
        *,
        location: str,
        length: int,
        storage_id: str | None,
        host: str | None = None,
    ) -> rows.Volume:
        """Adopt a volume again: at another place, from another file, or with another length.

        A volume on which an operation failed, because its storage had changed, can be used again.
        The arguments are those of :meth:`adopt`.

        :raises VolumeNotFound: there is none, or not for this caller.
        :raises InvalidVolume: it was not adopted, or a task works on it.
        :raises InvalidInput: the storage is empty, or is another volume or a snapshot.
        """

        def work(session: Session) -> rows.Volume:
            quota.lock_project(session, quota.NO_PROJECT)
            volume = find_volume(session, ctx, volume_id, lock=True)
            if not volume.adopted:
                raise InvalidVolume(f"Volume {volume_id} was not adopted: its storage is the service's own.")
            busy = volume.status in (lifecycle.DELETING, lifecycle.EXTENDING)
            if busy or held_by_backup(session, volume_id) or is_read_by_task(session, volume_id):
                raise InvalidVolume(f'Volume {volume_id} is being used: its status is "{volume.status}".')
            refuse_written(session, volume_id, extended=True)
            self._refuse_taken(session, location, storage_id, but=volume_id)
            if (location, host) != (volume.location, volume.host):
                tasks.tidy(session, volume_id, ctx.request_id, leaves=True)
            volume.location, volume.storage_id, volume.host = location, storage_id, host
            volume.length, volume.size = length, _checked_size(gigabytes(length), 0, "")
            volume.updated_at = now(session)
            actions.record(session, ctx, Kind.VOLUME_ADOPT, volume, "again")
            session.flush()
            # An operation may have failed because the old storage had changed; that failure is settled now.
            lifecycle.move(session, models.Volume, volume_id, VolumeMoves.adopted_again)
            if is_attached(session, volume_id):
                lifecycle.move(session, models.Volume, volume_id, VolumeMoves.attach)
            return rows.volume(session, volume)

        return self._db.run(work)

    def forget(self, ctx: RequestContext, volume_id: str) -> None:
        """Remove an adopted volume from the catalogue at once; its storage is not touched.

        Its backups stay, too.  What the storage keeps for them is removed by a task.

        :raises VolumeNotFound: there is none, or not for this caller.
        :raises InvalidVolume: it was not adopted, a task works on it, it is attached, or it has
            snapshots.
        """

        def work(session: Session) -> None:
            volume = find_volume(session, ctx, volume_id, lock=True)
            if not volume.adopted:
                raise InvalidVolume(f"Volume {volume_id} was not adopted: its storage is the service's own.")
            if is_attached(session, volume_id):
                raise InvalidVolume(f"Volume {volume_id} is attached; detach it before it is forgotten.")
            if is_read_by_task(session, volume_id):
                raise InvalidVolume(f"Volume {volume_id} is being copied; it can be forgotten after that.")
            refuse_written(session, volume_id, extended=True)
            if snapshots := _snapshots_of(session, volume_id):
                raise InvalidVolume(f"Volume {volume_id} still has {len(snapshots)} dependent snapshots.")
            if not lifecycle.move(session, models.Volume, volume_id, VolumeMoves.forget):
                raise InvalidVolume(
                    f"Volume status must be one of {', '.join(VolumeMoves.forget.sources)} to forget it, "
                    f'but the current status is "{volume.status}".'
                )
            actions.record(session, ctx, Kind.VOLUME_FORGET, volume)
            _withdraw(session, volume_id)
            tasks.tidy(session, volume_id, ctx.request_id)

        self._change(work)

    def trust_changes(self, ctx: RequestContext, volume_id: str) -> rows.Volume:
        """Let incremental backups rely again on what the volume's storage says is unchanged.

        Backups that were made before may hold wrong data, so the next one reads everything.

        :raises VolumeNotFound: there is none, or not for this caller.
        """

        def work(session: Session) -> rows.Volume:
            volume = find_volume(session, ctx, volume_id, lock=True, mirrors=True)
            if volume.changes_distrusted_at is not None:
                volume.changes_distrusted_at, volume.changes_trusted_at = None, now(session)
                actions.record(session, ctx, Kind.VOLUME_UPDATE, volume, "its changes are trusted again")
                session.flush()
            return rows.volume(session, volume)

        return self._db.run(work)

    def not_recorded(self) -> Sequence[rows.Volume]:
        """Return the adopted volumes that this host can open and whose storage id was never recorded."""
        row = models.Volume
        with self._db.read() as session:
            found = session.scalars(
                select(row).where(
                    row.adopted, row.deleted.is_(False), row.storage_id.is_(None), self._is_here()
                )
            ).all()
            return rows.volumes(session, found)

    def _is_here(self) -> ColumnElement[bool]:
        """The condition that this host can open a volume."""
        return or_(models.Volume.host.is_(None), models.Volume.host == self._conf.host)

    def _refuse_taken(
        self, session: Session, location: str, storage_id: str | None, but: str | None = None
    ) -> None:
        """Refuse storage that is a volume or snapshot already, of whatever back end, also under another name.

        :param but: the volume whose storage it may be.
        """
        row, snapshot = models.Volume, models.Snapshot
        # What the service made has a bare name, which says nothing of the directory: that may be one of a
        # back end which is not enabled now, or a former one.
        name = os.path.basename(location)
        taken = or_(row.location == location, and_(row.location == name, row.adopted.is_(False)))
        if storage_id is not None:
            taken = or_(taken, and_(row.storage_id == storage_id, self._is_here()))
        owner = session.scalar(
            select(row.id).where(row.deleted.is_(False), row.id != (but or ""), taken).limit(1)
        )
        if owner is not None:
            raise InvalidInput(f"This storage is volume {owner} already.")
        found = select(snapshot.id).where(
            snapshot.deleted.is_(False), snapshot.location.in_((location, name))
        )
        if (owner := session.scalar(found.limit(1))) is not None:
            raise InvalidInput(f"This storage is snapshot {owner}.")

    def of_storage(self, location: str, storage_id: str | None) -> str | None:
        """Return the id of the volume that a provider's storage is; None: it is none here."""
        row = models.Volume
        same = row.location == location
        if storage_id is not None:
            same = or_(same, row.storage_id == storage_id)
        with self._db.read() as session:
            return session.scalar(select(row.id).where(row.deleted.is_(False), same).limit(1))

    def record_storage(self, volume_id: str, storage_id: str) -> None:
        """Record a volume's storage id, unless it is recorded already."""
        row = models.Volume
        self._db.run(
            lambda session: session.execute(
                update(row).where(row.id == volume_id, row.storage_id.is_(None)).values(storage_id=storage_id)
            )
        )

    def get(self, ctx: RequestContext, volume_id: str) -> rows.Volume:
        """Return a volume.

        :raises VolumeNotFound: there is none, or not for this caller.
        """
        with self._db.read() as session:
            return rows.volume(session, find_volume(session, ctx, volume_id))

    def project_of(self, ctx: RequestContext, volume_id: str) -> str:
        """Return the project of a volume, without its metadata and attachments.

        :raises VolumeNotFound: there is none, or not for this caller.
        """
        with self._db.read() as session:
            return find_volume(session, ctx, volume_id).project_id

    def list(
        self, ctx: RequestContext, *, detail: bool = True, **paging: Unpack[listing.Paging]
    ) -> rows.Page[rows.Volume]:
        """Return a page of volumes; see :func:`backupfw.manager.listing.page`.

        :param detail: whether metadata and attachments are wanted.
        """
        with self._db.read() as session:
            found, total = listing.page(session, models.Volume, ctx, paging)
            if detail:
                return rows.Page(rows.volumes(session, found), total)
            return rows.Page([rows.Volume(**rows.columns(row, rows.Volume)) for row in found], total)

    def totals(
        self, ctx: RequestContext, *, filters: Mapping[str, str] | None = None, all_tenants: bool = False
    ) -> VolumeTotals:
        """Count the volumes that :meth:`list` would show, without paging."""
        row = models.Volume
        meant = listing.scope(row, ctx, filters, all_tenants)
        conditions = queries.conditions(
            row, project_id=meant.project_id, filters=meant.filters, where=meant.where
        )
        metadata: dict[str, list[str]] = {}
        with self._db.read() as session:
            count, size = session.execute(
                select(func.count(), func.coalesce(func.sum(row.size), 0)).where(*conditions)
            ).one()
            # An alias, because a filter may name the table of metadata, too.
            pair = aliased(VolumeMetadata)
            found = (
                select(pair.key, pair.value)
                .join(row, row.id == pair.volume_id)
                .where(*conditions)
                .distinct()
                .order_by(pair.key, pair.value)
            )
            for key, value in session.execute(found):
                metadata.setdefault(key, []).append(value)
        return VolumeTotals(int(count), int(size), metadata)

    def update(
        self,
        ctx: RequestContext,
        volume_id: str,
        *,
        name: str | None,
        description: str | None,
        metadata: Mapping[str, str] | None = None,
    ) -> rows.Volume:
        """Set name and description, and the whole metadata unless it is None.

        :raises VolumeNotFound: there is none, or not for this caller.
        """

        def work(session: Session) -> rows.Volume:
            volume = find_volume(session, ctx, volume_id, lock=True)
            describe(session, ctx, volume, name, description, metadata)
            return rows.volume(session, volume)

        return self._db.run(work)

    def delete(self, ctx: RequestContext, volume_id: str, *, cascade: bool = False) -> None:
        """Begin to delete a volume.

        :param cascade: delete its snapshots too.
        :raises VolumeNotFound: there is none, or not for this caller.
        :raises InvalidVolume: its status forbids it, it is attached, or it has snapshots (with
            ``cascade``: snapshots that cannot be deleted now).
        """

        def work(session: Session) -> None:
            volume = find_volume(session, ctx, volume_id, lock=True)
            if volume.status not in VolumeMoves.delete.sources:
                raise InvalidVolume(
                    f"Volume status must be one of {', '.join(VolumeMoves.delete.sources)} to delete it, "
                    f'but the current status is "{volume.status}".'
                )
            self._begin_delete(session, ctx, volume, cascade, VolumeMoves.delete)
            actions.record(session, ctx, Kind.VOLUME_DELETE, volume, _with_snapshots(cascade))

        self._change(work)

    def force_delete(self, ctx: RequestContext, volume_id: str, *, cascade: bool = False) -> None:
        """Begin to delete a volume of any status; a task that makes or extends it is cancelled.

        A backup or restore that uses the volume ends first.

        :raises VolumeNotFound: there is none, or not for this caller.
        :raises InvalidVolume: it is attached, or it has snapshots, as for :meth:`delete`.
        """

        def work(session: Session) -> None:
            volume = find_volume(session, ctx, volume_id, lock=True)
            tasks.cancel(session, volume_id, _OWN_TASKS)
            self._begin_delete(session, ctx, volume, cascade, VolumeMoves.force_delete)
            actions.record(session, ctx, Kind.VOLUME_FORCE_DELETE, volume, _with_snapshots(cascade))

        self._change(work)

    def _begin_delete(
        self,
        session: Session,
        ctx: RequestContext,
        volume: models.Volume,
        cascade: bool,
        step: lifecycle.Move,
    ) -> None:
        if is_attached(session, volume.id):
            raise InvalidVolume(f"Volume {volume.id} is attached; detach it before it is deleted.")
        snapshots = _snapshots_of(session, volume.id)
        if snapshots and not cascade:
            raise InvalidVolume(f"Volume {volume.id} still has {len(snapshots)} dependent snapshots.")
        for snapshot in snapshots:
            if snapshot.status in (lifecycle.DELETING, *SnapshotMoves.delete.sources):
                queue_snapshot_delete(session, ctx, snapshot, first_of=volume.id)
            else:
                raise InvalidVolume(
                    f"Snapshot {snapshot.id} of the volume cannot be deleted: "
                    f'its current status is "{snapshot.status}".'
                )
        _withdraw(session, volume.id)
        lifecycle.move(session, models.Volume, volume.id, step)
        queue(session, ctx, tasks.VOLUME_DELETE, volume, None)

    def extend(self, ctx: RequestContext, volume_id: str, *, new_size: int) -> None:
        """Begin to make an available volume larger.

        Its size is the new one from now on, so that the quota counts it, and the old one again if it fails.

        :param new_size: GiB.
        :raises VolumeNotFound: there is none, or not for this caller.
        :raises InvalidVolume: it is not available.
        :raises InvalidInput: the new size is not greater, or out of range.
        :raises QuotaExceeded: the project has no room for it.
        """

        def work(session: Session) -> None:
            volume = find_volume(session, ctx, volume_id, lock=True)
            if volume.status not in VolumeMoves.extend.sources:
                raise InvalidVolume(
                    f"Volume {volume_id} must be available to be extended, "
                    f'but the current status is "{volume.status}".'
                )
            if new_size <= volume.size:
                raise InvalidInput(
                    "New size for extend must be greater than current size. "
                    f"(current: {volume.size}, extended: {new_size})."
                )
            _checked_size(new_size, 0, "")
            growth = {"gigabytes": new_size - volume.size, "per_volume_gigabytes": new_size}
            quota.check(session, self._conf, volume.project_id, growth, volume.volume_type)
            lifecycle.move(session, models.Volume, volume_id, VolumeMoves.extend, size=new_size)
            actions.record(session, ctx, Kind.VOLUME_EXTEND, volume, f"to {new_size} GiB")
            queue(session, ctx, tasks.VOLUME_EXTEND, volume, None, length=new_size * GIB)

        self._change(work)

    def retype(self, ctx: RequestContext, volume_id: str, wanted: str) -> None:
        """Give a volume another type; its data stays where it is.

        :param wanted: the type's id or name.
        :raises VolumeNotFound: there is none, or not for this caller; likewise VolumeTypeNotFound.
        :raises InvalidVolume: its status forbids it, or the type has another back end.
        :raises QuotaExceeded: the project has no room for more volumes of the type.
        """
        allowed = (lifecycle.AVAILABLE, lifecycle.IN_USE)

        def work(session: Session) -> None:
            volume = find_volume(session, ctx, volume_id, lock=True)
            if volume.status not in allowed:
                raise InvalidVolume(
                    f"Volume {volume_id} status must be {' or '.join(allowed)} to change its type, "
                    f'but the current status is "{volume.status}".'
                )
            kind = volume_types.chosen(session, ctx, wanted)
            if volume_types.backend_of(session, self._conf, kind) not in (None, volume.backend):
                raise InvalidVolume(
                    f"Volume {volume_id} cannot have the type {kind}, which has another back end: its data"
                    " stays where it is."
                )
            if kind != volume.volume_type:
                quota.check_type(session, self._conf, volume.project_id, kind, volume.size)
            volume.volume_type = kind
            actions.record(session, ctx, Kind.VOLUME_UPDATE, volume, f"type {kind}")
            volume.updated_at = now(session)

        self._db.run(work)

    def set_bootable(self, ctx: RequestContext, volume_id: str, bootable: bool) -> None:
        """Set whether a machine can boot from the volume.

        :raises VolumeNotFound: there is none, or not for this caller.
        """

        def work(session: Session) -> None:
            volume = find_volume(session, ctx, volume_id, lock=True)
            volume.bootable = bootable
            actions.record(session, ctx, Kind.VOLUME_UPDATE, volume, "bootable")
            volume.updated_at = now(session)

        self._db.run(work)

    def reset_status(self, ctx: RequestContext, volume_id: str, status: str) -> None:
        """Give a volume another status; a task that makes, extends or deletes it is cancelled.

        :raises VolumeNotFound: there is none, or not for this caller.
        :raises InvalidInput: there is no such status, or it cannot be set.
        :raises InvalidVolume: the status would be wrong: in-use without an attachment, available
            with one, without any storage, or while a cancelled restore may still write to it; or a
            backup or restore uses the volume (reset that backup to give the volume its status back).
        """
        if status not in lifecycle.RESETS[models.Volume]:
            raise InvalidInput(f"Volume status {status[:64]!r} cannot be set.")

        def work(session: Session) -> None:
            volume = find_volume(session, ctx, volume_id, lock=True)
            if held_by_backup(session, volume_id):
                raise InvalidVolume(
                    f"Volume {volume_id} is used by a backup or restore; reset the backup's status instead."
                )
            attached = is_attached(session, volume_id)
            if status == lifecycle.IN_USE and not attached:
                raise InvalidVolume(f"Volume {volume_id} is not attached, so it cannot be in-use.")
            if status == lifecycle.AVAILABLE and attached:
                raise InvalidVolume(f"Volume {volume_id} is attached, so it cannot be available.")
            if status in (lifecycle.AVAILABLE, lifecycle.IN_USE):
                if volume.location is None:
                    raise InvalidVolume(f"Volume {volume_id} has no storage, so it cannot be {status}.")
                refuse_written(session, volume_id, extended=False)
            actions.record(session, ctx, Kind.VOLUME_RESET_STATUS, volume, f"to {status}")
            tasks.cancel(session, volume_id, _OWN_TASKS)
            _withdraw(session, volume_id)
            # After a cancelled extension, only the recorded length surely exists.
            lifecycle.move(
                session,
                models.Volume,
                volume_id,
                lifecycle.reset(status),
                previous_status=None,
                size=gigabytes(volume.length),
            )

        self._change(work)


def _with_snapshots(cascade: bool) -> str | None:
    """Return what the record of a deletion says besides the volume."""
    return "with its snapshots" if cascade else None


def _withdraw(session: Session, volume_id: str) -> None:
    """End an offer of a volume to other projects."""
    session.execute(delete(models.Transfer).where(models.Transfer.volume_id == volume_id))


def _snapshots_of(session: Session, volume_id: str) -> Sequence[models.Snapshot]:
    """Lock the snapshots of a volume, except temporary ones, and return them."""
    row = models.Snapshot
    living = (row.volume_id == volume_id, row.deleted.is_(False), row.temporary.is_(False))
    lock(session, row, *living)
    return session.scalars(select(row).where(*living).order_by(row.id)).all()


def _made(session: Session, volume_id: str) -> rows.Volume | None:
    found = session.get(models.Volume, volume_id)
    return None if found is None else rows.volume(session, found)


def _available_backup(session: Session, ctx: RequestContext, backup_id: str) -> models.Backup:
    backup = find_backup(session, ctx, backup_id)
    if backup.status != lifecycle.AVAILABLE:
        raise InvalidBackup("Backup status must be available")
    return backup


def _checked_size(size: int | None, least: int, source: str) -> int:
    """Return the size in GiB of a new volume.

    :param least: the size of its source; 0 if there is none.
    :param source: the noun for the source in the error.
    """
    if size is None and least:
        return least
    if size is None or not 0 < size <= MAX_GIGABYTES:
        raise InvalidInput(f"Volume size must be a whole number of GiB from 1 to {MAX_GIGABYTES}.")
    if size < least:
        raise InvalidInput(f"Volume size {size}GB cannot be smaller than the {source} size {least}GB.")
    return size

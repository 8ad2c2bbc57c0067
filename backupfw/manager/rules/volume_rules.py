"""When volumes and snapshots can be backed up and restored to: the rules and their texts.

The functions run inside the caller's write transaction: they lock a row, check the rule, and move the row by
a conditional UPDATE, so a rule that holds when it is checked also holds when the transaction commits.  Rows
are locked in one order everywhere: volume, snapshot, then the project's quota (``quota.check``).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from datetime import datetime
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from oslo_log import log
from sqlalchemy import CursorResult, select, update
from sqlalchemy.orm import Session

from backupfw.db import locks
from backupfw.db.models import (
    Attachment,
    Backup,
    Snapshot,
    Task,
    Volume,
    VolumeImageMetadata,
    VolumeMetadata,
)
from backupfw.db.session import now
from backupfw.errors import BackupNotFound, InvalidSnapshot, InvalidVolume, SnapshotNotFound, VolumeNotFound
from backupfw.manager import rows
from backupfw.manager.lineage import lifecycle
from backupfw.manager.lineage.lifecycle import SnapshotMoves, VolumeMoves
from backupfw.manager.messages import Detail
from backupfw.manager.queue import tasks
from backupfw.manager.rules import failures, quota, volume_types

if TYPE_CHECKING:
    from oslo_config import cfg

    from backupfw.context import RequestContext

LOG = log.getLogger(__name__)

Row = TypeVar("Row", Backup, Volume, Snapshot)

#: Bytes.
GIB = 1 << 30
#: The largest volume, GiB: what the database's integer holds.
MAX_GIGABYTES = (1 << 31) - 1

#: Volumes in these statuses, a foreign catalogue's among them, are about to come, or to go.
NOT_THERE = (lifecycle.CREATING, "downloading", lifecycle.DELETING, lifecycle.ERROR_DELETING)


class Source(NamedTuple):
    """The source of a backup; rows of the caller's session."""

    volume: Volume
    snapshot: Snapshot | None

    @property
    def size(self) -> int:
        """GiB of the source."""
        return self.volume.size if self.snapshot is None else self.snapshot.size


#: Metadata key of a volume that was made by a restore.
SOURCE_KEY = "src_backup_id"


def gigabytes(length: int) -> int:
    """Return bytes as GiB, rounded up."""
    return -(-length // GIB)


def size_of(length: int, key_id: str | None) -> int:
    """Return how many GiB a volume of some bytes has, as users count them.

    :param key_id: of the key with which a foreign catalogue encrypts it: it is longer than its size by the
        header, which belongs to its bytes.
    """
    return gigabytes(length) if key_id is None else length // GIB


def find_volume(
    session: Session, ctx: RequestContext, volume_id: str, *, lock: bool = False, mirrors: bool = False
) -> Volume:
    """Return a volume's row, for administrators any project's.

    :param lock: hold the row until the transaction ends.
    :param mirrors: find a mirror of a foreign volume, too: nothing but its backups is our business.
    :raises VolumeNotFound: there is none, or not for this caller.
    """
    volume = _row(session, Volume, volume_id, lock)
    if volume is None or volume.deleted or not is_visible(ctx, volume.project_id):
        raise VolumeNotFound(volume_id)
    if volume.mirrored_at is not None and not mirrors:
        raise VolumeNotFound(volume_id)
    return volume


def find_snapshot(
    session: Session, ctx: RequestContext, snapshot_id: str, *, lock: bool = False, mirrors: bool = False
) -> Snapshot:
    """Return a snapshot's row, as :func:`find_volume`; hidden ones are not found.

    :raises SnapshotNotFound: there is none, or not for this caller.
    """
    snapshot = _row(session, Snapshot, snapshot_id, lock)
    if snapshot is None or snapshot.deleted or snapshot.temporary or not is_visible(ctx, snapshot.project_id):
        raise SnapshotNotFound(snapshot_id)
    if snapshot.mirrored_at is not None and not mirrors:
        raise SnapshotNotFound(snapshot_id)
    return snapshot


def find_backup(session: Session, ctx: RequestContext, backup_id: str, *, lock: bool = False) -> Backup:
    """Return a backup's row, as :func:`find_volume`.

    :raises BackupNotFound: there is none, or not for this caller.
    """
    backup = _row(session, Backup, backup_id, lock)
    if backup is None or backup.deleted or not is_visible(ctx, backup.project_id):
        raise BackupNotFound(backup_id)
    return backup


def may_be_id(text: str) -> bool:
    """Return whether a row can have this id; for some characters databases raise their own errors."""
    return len(text) == 36 and text.isascii() and text.isprintable()


def is_visible(ctx: RequestContext, project_id: str) -> bool:
    """Return whether this caller can see resources of that project."""
    return ctx.is_admin or project_id == ctx.project_id


def _row(session: Session, model: type[Row], row_id: str, lock: bool) -> Row | None:
    if not may_be_id(row_id):
        return None
    if lock:
        locks.lock(session, model, model.id == row_id)
    return session.scalar(select(model).where(model.id == row_id))


def is_attached(session: Session, volume_id: str) -> bool:
    """Return whether the volume has an attachment."""
    return session.scalar(select(Attachment.id).where(Attachment.volume_id == volume_id).limit(1)) is not None


def held_by_backup(session: Session, source_id: str) -> bool:
    """Return whether a backup or restore that is not cancelled uses the volume or snapshot."""
    return _has_task(session, source_id, (tasks.BACKUP_CREATE, tasks.BACKUP_RESTORE))


def is_read_by_task(session: Session, volume_id: str) -> bool:
    """Return whether a task makes, or will make, a snapshot or another volume from the volume."""
    return _has_task(session, volume_id, (tasks.SNAPSHOT_CREATE, tasks.VOLUME_CREATE))


def refuse_written(session: Session, volume_id: str, *, extended: bool) -> None:
    """Refuse to let a volume be used, or its storage be given up, while a worker may write to it.

    A cancelled restore or extension changes the volume's status at once; its worker stops a while later.

    :param extended: whether an extension counts, too: it adds zeros behind the end and harms no user.
    :raises InvalidVolume: a worker may still write to it.
    """
    writes = (Task.source_id == volume_id) & (Task.kind == tasks.BACKUP_RESTORE)
    if extended:
        writes |= (Task.resource_id == volume_id) & (Task.kind == tasks.VOLUME_EXTEND)
    if session.scalar(select(Task.id).where(writes).limit(1)) is not None:
        raise InvalidVolume(f"A worker may still write to volume {volume_id}; try again when it has stopped.")


def _has_task(session: Session, source_id: str, kinds: Collection[str]) -> bool:
    task = select(Task.id).where(
        Task.source_id == source_id, Task.kind.in_(kinds), Task.cancel.is_(False)
    )  # fmt: skip
    return session.scalar(task.limit(1)) is not None


def bind_to_host(session: Session, volume: Volume, host: str) -> None:
    """Record the host whose workers alone can open a volume, before the volume is made.

    A task that deletes the volume while it is being made then also runs on that host.  On another host its
    storage would not be found and would stay.
    """
    volume.host = host
    session.execute(
        update(Task)
        .where(Task.resource_id == volume.id, Task.kind == tasks.VOLUME_DELETE)
        .values(volume_host=host),
        execution_options={"synchronize_session": False},
    )


def queue_snapshot_delete(
    session: Session, ctx: RequestContext, snapshot: Snapshot, *, first_of: str | None = None
) -> None:
    """Move a snapshot to ``deleting`` and queue its task, before any delete of its volume.

    The caller has locked the rows of volume and snapshot and checked the rules.

    :param first_of: the volume that is about to be deleted after its snapshots.  A task about the
        snapshot that names it as its source is older than the volume's delete, which waits for it.
    """
    waiting = update(Task).where(
        Task.resource_id == snapshot.id, Task.kind == tasks.SNAPSHOT_DELETE, Task.cancel.is_(False)
    )
    result = session.execute(waiting.values(source_id=snapshot.volume_id))
    assert isinstance(result, CursorResult)
    if result.rowcount:
        return
    tasks.delete_snapshot(session, snapshot, ctx.request_id, source_id=first_of)


def begin_backup(
    session: Session, volume_id: str, ctx: RequestContext, *, force: bool, snapshot_id: str | None = None
) -> Source:
    """Move the source of a backup to ``backing-up``: the snapshot if one is given, else the volume.

    :param force: back up a volume with an attachment, too.
    :returns: the rows.
    :raises VolumeNotFound: no such volume for this caller.
    :raises SnapshotNotFound: no such snapshot for this caller.
    :raises InvalidVolume: its status forbids a backup, or the snapshot is another volume's.
    :raises InvalidSnapshot: the snapshot's status forbids a backup.
    """
    if snapshot_id is None:
        volume = find_volume(session, ctx, volume_id, lock=True, mirrors=True)
        if volume.status not in VolumeMoves.back_up_forced.sources:
            raise InvalidVolume(
                "Volume to be backed up must be available or in-use, "
                f'but the current status is "{volume.status}".'
            )
        step = VolumeMoves.back_up_forced if force else VolumeMoves.back_up
        if volume.status not in step.sources:
            raise InvalidVolume("Backing up an in-use volume must use the force flag.")
        _moved(lifecycle.move(session, Volume, volume_id, step))
        return Source(volume, None)
    volume = find_volume(session, ctx, volume_id, mirrors=True)
    snapshot = find_snapshot(session, ctx, snapshot_id, lock=True, mirrors=True)
    if snapshot.volume_id != volume_id:
        raise InvalidVolume(
            f"Volume {volume_id} does not match with snapshot.volume_id {snapshot.volume_id}."
        )
    if snapshot.status not in SnapshotMoves.back_up.sources:
        raise InvalidSnapshot(
            f'Snapshot to be backed up must be available, but the current status is "{snapshot.status}".'
        )
    _moved(lifecycle.move(session, Snapshot, snapshot_id, SnapshotMoves.back_up))
    return Source(volume, snapshot)


def end_backup(session: Session, volume_id: str, snapshot_id: str | None = None) -> None:
    """Give the volume (or the snapshot) its previous status back; nothing if it was reset meanwhile."""
    if snapshot_id is None:
        lifecycle.move(session, Volume, volume_id, VolumeMoves.backed_up)
    else:
        lifecycle.move(session, Snapshot, snapshot_id, SnapshotMoves.backed_up)


def begin_restore(session: Session, volume_id: str, size: int, ctx: RequestContext | None = None) -> Volume:
    """Move an existing volume to ``restoring-backup``.

    :param size: GiB of the backup.
    :param ctx: the caller, if the volume must be visible to them.
    :raises VolumeNotFound: no such volume for this caller.
    :raises InvalidVolume: it is not available, or too small.
    """
    if ctx is not None:
        volume = find_volume(session, ctx, volume_id, lock=True, mirrors=True)
    else:
        found = _row(session, Volume, volume_id, True)
        if found is None or found.deleted:
            raise VolumeNotFound(volume_id)
        volume = found
    if volume.status not in VolumeMoves.restore.sources:
        raise InvalidVolume("Volume to be restored to must be available")
    if volume.size < size:
        raise InvalidVolume(f"volume size {volume.size} is too small to restore backup of size {size}.")
    _moved(lifecycle.move(session, Volume, volume_id, VolumeMoves.restore))
    return volume


def check_encryption(backup: Backup, volume: Volume | None, *, new: bool) -> None:
    """Refuse a restore that would make a volume whose bytes its key does not open.

    The worker looks again, and at the bytes, before it writes.

    :param volume: the target; None: it will be made, and not be encrypted.
    :param new: the target was made for this restore, as a copy of the volume that was backed up.
    :raises InvalidVolume: the backup and the volume are not encrypted with the same key.
    """
    key = None if volume is None else volume.encryption_key_id
    if backup.encryption_key_id == key:
        return
    if key is None:
        raise InvalidVolume(
            "The backup is of an encrypted volume; it can be restored only to that volume, or to a new one"
            " that is a copy of it."
        )
    if backup.encryption_key_id is None:
        raise InvalidVolume("The volume is encrypted, and the backup is not of an encrypted volume.")
    if not new:
        raise InvalidVolume(
            "The volume is encrypted with another key than the backup; restore to the volume that was backed"
            " up, or to a new one."
        )


def end_restore(session: Session, volume_id: str, *, ok: bool, new: bool) -> None:
    """Move a restore's target to ``available``, or to ``error_restoring`` (``error`` if it is new).

    Nothing happens if the volume's status was reset meanwhile.

    :param ok: the restore succeeded.
    :param new: the volume was made for this restore.
    """
    if ok:
        step = VolumeMoves.restored
    else:
        step = VolumeMoves.restore_of_new_failed if new else VolumeMoves.restore_failed
    lifecycle.move(session, Volume, volume_id, step)


def new_volume(
    session: Session,
    conf: cfg.ConfigOpts,
    ctx: RequestContext,
    *,
    status: str,
    size: int,
    length: int | None = None,
    name: str | None = None,
    description: str | None = None,
    metadata: Mapping[str, str] | None = None,
    volume_type: str | None = None,
    bootable: bool = False,
    image_metadata: Mapping[str, str] | None = None,
    availability_zone: str | None = None,
    project_id: str | None = None,
    snapshot_id: str | None = None,
    source_volid: str | None = None,
    location: str | None = None,
    host: str | None = None,
    backend: str | None = None,
    adopted: bool = False,
    storage_id: str | None = None,
    volume_id: str,
) -> Volume:
    """Add the row of a new volume, within the quotas.

    :param status: ``creating``, or ``restoring-backup`` for the target of a restore.
    :param size: GiB.
    :param length: bytes; ``size`` GiB unless given.
    :param volume_type: the name of an existing type; the default one unless given.
    :param project_id: its project; the caller's unless given.
    :param host: the host whose workers alone can open it; None: all can.
    :param backend: the name of its back end; that of its type unless given.
    :param volume_id: its id; drawn by the caller outside the transaction, which may be repeated.
    :raises InvalidInput: the back end of its type is not enabled.
    :raises QuotaExceeded: it would exceed a limit of the project.
    """
    project = ctx.project_id if project_id is None else project_id
    if volume_type is None and (kind := volume_types.default(session, conf, project)) is not None:
        volume_type = kind.name
    if backend is None:
        backend = volume_types.backend_for(session, conf, volume_type)
    wanted = {"volumes": 1, "gigabytes": size, "per_volume_gigabytes": size}
    quota.check(session, conf, project, wanted, volume_type)
    volume = Volume(
        id=volume_id,
        project_id=project,
        user_id=ctx.user_id,
        status=status,
        size=size,
        length=size * GIB if length is None else length,
        display_name=name,
        display_description=description,
        availability_zone=availability_zone,
        volume_type=volume_type,
        snapshot_id=snapshot_id,
        source_volid=source_volid,
        bootable=bootable,
        location=location,
        host=host,
        backend=backend,
        adopted=adopted,
        storage_id=storage_id,
        created_at=now(session),
        updated_at=None,
        deleted=False,
    )
    session.add(volume)
    session.flush()
    session.add_all(
        model(volume_id=volume.id, key=key, value=value)
        for model, pairs in ((VolumeMetadata, metadata), (VolumeImageMetadata, image_metadata))
        for key, value in (pairs or {}).items()
    )
    session.flush()
    return volume


def trusts_changes(volume: rows.Volume | Volume, made_at: datetime | None) -> bool:
    """Return whether what the volume's storage says is unchanged can be relied on, since an earlier backup.

    :param made_at: the moment whose data that backup has; None: it is not known.
    """
    if volume.changes_distrusted_at is not None:
        return False
    again = volume.changes_trusted_at
    # What was made before may hold wrong data itself.
    return again is None or (made_at is not None and made_at > again)


def is_followed(volume: rows.Volume, length: int, storage_id: str | None) -> bool:
    """Return whether the catalogue has the length and storage id that an open of the volume found."""
    return length <= volume.length and (volume.storage_id is not None or storage_id is None)


def follow_storage(
    session: Session, task: rows.Task, volume_id: str, length: int, storage_id: str | None
) -> Volume:
    """Update a volume's row after an open: a greater length, a storage id that was never recorded.

    The quota is not checked, because the bytes exist already.  A user message reports the growth.

    :param task: the task that opened it.
    :param length: the real length in bytes.
    """
    volume = _row(session, Volume, volume_id, True)
    if volume is None or volume.deleted:
        raise VolumeNotFound(volume_id)
    if volume.storage_id is None:
        volume.storage_id = storage_id
    if length > volume.length:
        LOG.warning(
            "Volume %s has %s bytes, where %s were known: its size follows", volume_id, length, volume.length
        )
        volume.length = length
        size = size_of(length, volume.encryption_key_id)
        if size > volume.size or volume.encryption_key_id is None:
            volume.size = max(volume.size, size)
            volume.updated_at = now(session)
            failures.warn(session, task, Detail.VOLUME_GREW)
    session.flush()
    return volume


def _moved(done: bool) -> None:
    # The row was locked and checked before, so the move cannot be refused.
    if not done:
        raise RuntimeError("a locked row changed its status")

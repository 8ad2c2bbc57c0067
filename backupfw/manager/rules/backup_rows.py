"""Changes of backups' rows that several use cases share; all inside the caller's transaction."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import asdict, fields
from datetime import datetime
from typing import Any

from sqlalchemy import delete, exists, select
from sqlalchemy.orm import Session

from backupfw.context import RequestContext
from backupfw.db import locks, models
from backupfw.db.session import now
from backupfw.errors import StillLocked
from backupfw.manager.lineage import lifecycle, manifests
from backupfw.manager.queue import tasks
from backupfw.manager.records import Record
from backupfw.manager.rows import Task
from backupfw.manager.rules import volume_rules

#: Metadata key of a backup that no retention deletes, with any value but these.
KEEP_KEY = "backupfw:keep"
_NOT_KEPT = frozenset({"", "false", "no", "off", "0"})


def is_kept(value: str | None) -> bool:
    """Whether a value of :data:`KEEP_KEY` keeps a backup from every retention; None: it has no such key."""
    return value is not None and value.strip().lower() not in _NOT_KEPT


def set_metadata(session: Session, backup_id: str, metadata: Mapping[str, str]) -> None:
    """Replace the whole metadata of a backup."""
    session.execute(delete(models.BackupMetadata).where(models.BackupMetadata.backup_id == backup_id))
    session.add_all(
        models.BackupMetadata(backup_id=backup_id, key=key, value=value) for key, value in metadata.items()
    )
    session.flush()


def manifest_of(session: Session, backup: models.Backup, *, lock: bool = False) -> models.Manifest | None:
    """Return the manifest of a backup, read again from the database."""
    if backup.manifest_id is None:
        return None
    if lock:
        locks.lock(session, models.Manifest, models.Manifest.id == backup.manifest_id)
    return session.get(models.Manifest, backup.manifest_id, populate_existing=True)


def is_needed(session: Session, backup: models.Backup) -> bool:
    """Return whether other backups cannot be restored without this one: it has Cinder's format, and so have
    they.  A duplicate has the same data.
    """
    manifest = manifest_of(session, backup)
    if manifest is None or manifest.installation_id != manifests.CINDER:
        return False
    row = models.Backup
    duplicate = select(row.id).where(
        row.manifest_id == manifest.id, row.id != backup.id, row.deleted.is_(False)
    )
    return session.scalar(duplicate.limit(1)) is None and manifests.is_needed_link(session, manifest.id)


def queue_release(
    session: Session,
    manifest: models.Manifest,
    project_id: str,
    request_id: str | None,
    delay: float = 0,
    *,
    locked: bool = False,
) -> None:
    """Queue the removal of a released manifest's objects, unless it is queued already.

    It waits for older tasks of the backup that made it: a cancelled one may still put objects.  That of a
    copy waits for the task of the copy only, which has the same resource.

    :param locked: the manifest is live until its lock ends, after the delay: the task releases it then.
    """
    queued = exists().where(
        models.Task.kind == tasks.MANIFEST_RELEASE, models.Task.resource_id == manifest.id
    )
    if session.scalar(select(queued)):
        return
    tasks.add(
        session,
        tasks.MANIFEST_RELEASE,
        resource_id=manifest.id,
        source_id=None if manifest.copied else manifest.backup_id,
        project_id=project_id,
        request_id=request_id,
        payload={"tries": 0},
        delay=delay,
        locked=locked,
    )


def locked_until(session: Session, backup: models.Backup) -> datetime | None:
    """Return until when a backup's data is locked in its store, naive UTC, by the database alone.

    A deletion of the backup waits until then.  Copies in other stores have locks of their own.

    :returns: None: it is not locked, or not any more.
    """
    return None if backup.manifest_id is None else manifests.locked_until(session, backup.manifest_id)


def let_go(session: Session, manifest_id: str | None, project_id: str, request_id: str | None) -> None:
    """Release a manifest if no record uses it any more, and queue the removal of its objects.

    If it is locked, the task that is queued releases it when the lock has ended.
    """
    if manifest_id is None:
        return
    delay = 0.0
    try:
        if not manifests.release_if_unused(session, manifest_id):
            return
    except StillLocked as error:
        delay = error.seconds
    manifest = session.get(models.Manifest, manifest_id)
    assert manifest is not None
    queue_release(session, manifest, project_id, request_id, delay, locked=delay > 0)


def give_up_manifest(session: Session, backup: models.Backup, request_id: str | None) -> bool:
    """Abandon the manifest of a backup that was being made, and give up its base.

    Returns whether there was one; the caller must queue the removal of its objects.
    """
    manifest = manifest_of(session, backup)
    if manifest is None or not manifests.abandon(session, manifest.id):
        return False
    session.execute(delete(models.Segment).where(models.Segment.manifest_id == manifest.id))
    let_go(session, manifest.base_id, backup.project_id, request_id)
    return True


def stop_tasks(session: Session, backup: models.Backup, kinds: Collection[str] | None = None) -> list[Task]:
    """Cancel the tasks of a backup and undo their effect on volumes, snapshots and manifest.

    The target of a restore ends as that of a failed one, because it may be half written; also one that was
    not touched yet, because clients that wait for the restore would take ``available`` for success.

    :param kinds: only tasks of these kinds; None for all.
    :returns: the tasks that were cancelled.
    """
    cancelled = tasks.cancel(session, backup.id, kinds)
    # An attempt that was waited for may have given it a manifest.
    session.refresh(backup)
    for task in cancelled:
        if task.kind == tasks.BACKUP_CREATE:
            volume_rules.end_backup(session, backup.volume_id, backup.snapshot_id)
            give_up_manifest(session, backup, task.request_id)
        elif task.kind == tasks.BACKUP_RESTORE:
            volume_rules.end_restore(
                session, task.payload["volume_id"], ok=False, new=bool(task.payload["new"])
            )
    return cancelled


def stop_verifications(session: Session, backup: models.Backup) -> list[Task]:
    """Cancel the verifications of a backup that somebody asked for; return them."""
    row = models.Task
    places = select(row.resource_id).where(row.source_id == backup.id, row.kind == tasks.BACKUP_VERIFY)
    return [
        task
        for manifest_id in session.scalars(places).all()
        for task in tasks.cancel(session, manifest_id, (tasks.BACKUP_VERIFY,))
    ]


def forget(session: Session, backup: models.Backup) -> None:
    """Delete a backup's record (softly), from status ``deleting``."""
    lifecycle.move(
        session,
        models.Backup,
        backup.id,
        lifecycle.BackupMoves.deleted,
        manifest_id=None,
        fail_reason=None,
        temp_snapshot_id=None,
        temp_volume_id=None,
    )


def imported(
    session: Session,
    ctx: RequestContext,
    record: Record,
    known: models.Backup | None,
    *,
    volume_id: str,
) -> models.Backup:
    """Add the row of an import in status ``creating``, or revive a deleted one (locked by the caller).

    Only id and size come from the record; the other columns are set when its data was found.
    """
    moment = now(session)
    values: dict[str, Any] = {
        "user_id": ctx.user_id,
        "project_id": ctx.project_id,
        "volume_id": volume_id,
        "status": lifecycle.CREATING,
        "size": record.size,
        "created_at": moment,
        "updated_at": moment,
        "deleted": False,
        "is_incremental": False,
        "completed": False,
        "object_count": 0,
        "stored_bytes": 0,
        "referenced_bytes": 0,
        "progress_done": 0,
        "progress_total": 0,
    }
    if known is None:
        row = models.Backup(id=record.id, **values)
        session.add(row)
    else:
        row = known
        set_metadata(session, row.id, {})
        for column in models.Backup.__table__.columns:
            if column.key not in ("id", "touched"):
                setattr(row, column.key, values.get(column.key))
    session.flush()
    return row


def record_to_json(record: Record) -> dict[str, Any]:
    """Return a record as JSON for a task's payload; :func:`record_from_json` undoes it."""
    return {
        name: value.isoformat() if isinstance(value, datetime) else value
        for name, value in asdict(record).items()
    }


def record_from_json(values: Mapping[str, Any]) -> Record:
    """Return the record that :func:`record_to_json` turned into JSON."""
    known = {item.name for item in fields(Record)}
    arguments: dict[str, Any] = {name: value for name, value in values.items() if name in known}
    for name in ("created_at", "data_timestamp"):
        if arguments.get(name) is not None:
            arguments[name] = datetime.fromisoformat(arguments[name])
    return Record(**arguments)

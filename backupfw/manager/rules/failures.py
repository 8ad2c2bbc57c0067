"""How accepted operations fail, and how their users are informed: the only place for both.

One table, by kind of task, says what moves to an error status and what the user message says; a kind that is
not in it cannot fail in this way.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from backupfw.db.models import Backup, BackupCopy, Snapshot, Volume
from backupfw.manager import messages
from backupfw.manager.lineage import lifecycle
from backupfw.manager.lineage.lifecycle import BackupMoves, CopyMoves, FailingMove, SnapshotMoves, VolumeMoves
from backupfw.manager.messages import Action, Detail
from backupfw.manager.queue import outbox, tasks

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from backupfw.manager.rows import Task


@dataclass(frozen=True, slots=True)
class Failure:
    """How a resource changes when its task fails, and the user message.

    :ivar detail: the reason, if nothing more exact is known.
    """

    model: type[Backup | Volume | Snapshot]
    step: FailingMove
    action: Action
    detail: Detail


#: By kind of task.  No user asked for the removal of a manifest, so it has no user message.
FAILURES: Mapping[str, Failure] = {
    tasks.BACKUP_CREATE: Failure(
        Backup, BackupMoves.create_failed, Action.CREATE_BACKUP, Detail.CREATE_BACKUP
    ),
    tasks.BACKUP_IMPORT: Failure(
        Backup, BackupMoves.create_failed, Action.IMPORT_BACKUP, Detail.IMPORT_BACKUP
    ),
    tasks.BACKUP_RESTORE: Failure(
        Backup, BackupMoves.restore_failed, Action.RESTORE_BACKUP, Detail.RESTORE_BACKUP
    ),
    tasks.BACKUP_DELETE: Failure(
        Backup, BackupMoves.delete_failed, Action.DELETE_BACKUP, Detail.DELETE_BACKUP
    ),
    tasks.VOLUME_CREATE: Failure(
        Volume, VolumeMoves.create_failed, Action.CREATE_VOLUME, Detail.CREATE_VOLUME
    ),
    tasks.VOLUME_DELETE: Failure(Volume, VolumeMoves.delete_failed, Action.DELETE_VOLUME, Detail.UNKNOWN),
    tasks.VOLUME_EXTEND: Failure(
        Volume, VolumeMoves.extend_failed, Action.EXTEND_VOLUME, Detail.EXTEND_VOLUME
    ),
    tasks.SNAPSHOT_CREATE: Failure(
        Snapshot, SnapshotMoves.create_failed, Action.CREATE_SNAPSHOT, Detail.CREATE_SNAPSHOT
    ),
    tasks.SNAPSHOT_DELETE: Failure(
        Snapshot, SnapshotMoves.delete_failed, Action.DELETE_SNAPSHOT, Detail.DELETE_SNAPSHOT
    ),
}
#: By kind of task, if it can be refused after it was accepted.
REFUSALS: Mapping[str, FailingMove] = {tasks.BACKUP_DELETE: BackupMoves.delete_refused}
#: The resource type in a message.
_RESOURCE_TYPES: Mapping[type, str] = {
    Backup: messages.BACKUP,
    Volume: messages.VOLUME,
    Snapshot: messages.SNAPSHOT,
}


def failed(
    session: Session,
    task: Task,
    reason: str,
    detail: Detail | None = None,
    *,
    again: bool = False,
    refused: bool = False,
    **values: Any,
) -> None:
    """Move the resource of a task to its error status and report it, in the transaction that ends the task.

    Nothing happens if its status was reset meanwhile.

    :param reason: for users, if the resource has a column for it.
    :param detail: the reason, if it is known more exactly than in the table.
    :param again: it was an automatic try after a failure that was reported already.
    :param refused: it was not tried at all: see :data:`REFUSALS`.
    :param values: other columns to set.
    """
    failure = FAILURES[task.kind]
    if failure.model is Backup:
        values["fail_reason"] = tasks.short_reason(reason)

    step = REFUSALS[task.kind] if refused else failure.step

    def report() -> None:
        if again:
            return
        known = detail or failure.detail
        _post(session, task, known, messages.ERROR)
        if failure.model is Backup and known is not Detail.CANCELLED:
            told = messages.text(failure.action.value, known.value)
            _alert(session, task.kind, session.get_one(Backup, task.resource_id), told, reason)

    lifecycle.fail(session, failure.model, task.resource_id, step, report, **values)


def copy_failed(session: Session, task: Task, copy: BackupCopy, reason: str, *, again: bool) -> None:
    """Move a copy to ``error`` and report it, as :func:`failed` does; the backup is as good as before.

    :param copy: the record of what the task has made; the message is about its backup.
    """

    def report() -> None:
        if not again:
            messages.post(
                session,
                Action.COPY_BACKUP,
                Detail.COPY_BACKUP,
                project_id=task.project_id,
                request_id=task.request_id,
                resource_type=messages.BACKUP,
                resource_id=copy.backup_id,
            )

    reason_ = tasks.short_reason(reason)
    lifecycle.fail(session, BackupCopy, copy.id, CopyMoves.copy_failed, report, fail_reason=reason_)


def verification_failed(session: Session, task: Task, reason: str, detail: Detail | None) -> None:
    """Report that a verification ended before everything was read; no status says so.

    :param detail: the reason, if it is known more exactly.
    """
    backup = session.get(Backup, task.source_id)
    if backup is None or backup.deleted:
        return
    known = detail or Detail.VERIFY_BACKUP
    messages.post(
        session,
        Action.VERIFY_BACKUP,
        known,
        project_id=backup.project_id,
        request_id=task.request_id,
        resource_type=messages.BACKUP,
        resource_id=backup.id,
    )
    _alert(session, task.kind, backup, messages.text(Action.VERIFY_BACKUP.value, known.value), reason)


def _alert(session: Session, kind: str, backup: Backup, told: str, reason: str) -> None:
    outbox.alert(
        session,
        f"{kind}.failed",
        f"Backup {backup.id} of volume {backup.volume_id}: {told} {reason}",
        project_id=backup.project_id,
        backup_id=backup.id,
        volume_id=backup.volume_id,
        fail_reason=tasks.short_reason(reason),
    )


def warn(session: Session, task: Task, detail: Detail) -> None:
    """Report that a task succeeded, but not exactly as requested."""
    _post(session, task, detail, messages.WARNING)


def _post(session: Session, task: Task, detail: Detail, level: str) -> None:
    failure = FAILURES[task.kind]
    messages.post(
        session,
        failure.action,
        detail,
        project_id=task.project_id,
        request_id=task.request_id,
        resource_type=_RESOURCE_TYPES[failure.model],
        resource_id=task.resource_id,
        level=level,
    )

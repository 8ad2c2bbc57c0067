"""Progress of the operation on a backup, a volume or a snapshot."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from sqlalchemy import or_, select
from sqlalchemy.orm import Session

from backupfw.db import models
from backupfw.manager.lineage import lifecycle
from backupfw.manager.queue import tasks, waiting
from backupfw.manager.queue.claims import Limits

if TYPE_CHECKING:
    from oslo_config import cfg

#: There is no operation.
IDLE = "idle"

#: The phase of a running task, by kind.
_PHASES = {
    tasks.BACKUP_CREATE: lifecycle.CREATING,
    tasks.BACKUP_IMPORT: "importing",
    tasks.BACKUP_RESTORE: lifecycle.RESTORING,
    tasks.BACKUP_DELETE: lifecycle.DELETING,
    tasks.BACKUP_COPY: lifecycle.COPYING,
    tasks.BACKUP_VERIFY: "verifying",
    tasks.VOLUME_CREATE: lifecycle.CREATING,
    tasks.VOLUME_DELETE: lifecycle.DELETING,
    tasks.VOLUME_EXTEND: lifecycle.EXTENDING,
    tasks.SNAPSHOT_CREATE: lifecycle.CREATING,
    tasks.SNAPSHOT_DELETE: lifecycle.DELETING,
}


@dataclass(frozen=True, slots=True)
class Progress:
    """The progress of an operation.

    :ivar phase: ``idle``; ``creating``, ``importing``, ``restoring``, ``extending``, ``deleting`` or
        (of a copy, by the id of the manifest that it makes) ``copying``; ``verifying``, if nothing else is
        done to the backup; or why the operation waits (see :func:`backupfw.manager.queue.waiting.why`).
    :ivar done: bytes; holes and unchanged blocks count when the operation has passed them.
    :ivar total: bytes; None: not known (yet).
    :ivar rate: bytes per second at the worker's last report; None: no task runs, or it is too early.
    :ivar seconds_left: remaining seconds at that rate; None: not known.
    :ivar waits_until: when an operation that waits is tried again, naive UTC; None: not known, or it runs.
    :ivar comparison: how a backup that is being made finds what changed, for people; None: not known (yet).
    """

    phase: str
    done: int | None = None
    total: int | None = None
    rate: int | None = None
    seconds_left: int | None = None
    comparison: str | None = None
    waits_until: datetime | None = None


def of(session: Session, conf: cfg.ConfigOpts, resource_id: str) -> Progress:
    """Return the progress of the operation on a backup, volume or snapshot; if several wait, of the first
    one.

    A restore is an operation on the backup.
    """
    row = models.Task
    is_verification = row.kind == tasks.BACKUP_VERIFY
    task = session.scalar(
        select(row)
        .where(
            or_(row.resource_id == resource_id, is_verification & (row.source_id == resource_id)),
            row.kind.in_(_PHASES),
            row.cancel.is_(False),
        )
        .order_by(is_verification, row.id)
        .limit(1)
    )
    if task is None:
        return Progress(IDLE)
    done, total = task.progress_done, task.progress_total
    comparison = None
    if task.kind == tasks.BACKUP_CREATE:
        comparison = session.scalar(select(models.Backup.comparison).where(models.Backup.id == resource_id))
    if not total and task.kind in (tasks.BACKUP_CREATE, tasks.BACKUP_RESTORE):
        # The worker has reported nothing yet.
        total = session.scalar(select(models.Backup.length).where(models.Backup.id == resource_id)) or 0
    reason = waiting.why(session, conf, task, Limits.of(conf))
    rate = None if reason is not None or not task.progress_rate else task.progress_rate
    return Progress(
        phase=_PHASES[task.kind] if reason is None else reason,
        done=done,
        total=total or None,
        rate=rate,
        seconds_left=None if rate is None or not total else -(-max(total - done, 0) // rate),
        comparison=comparison,
        waits_until=waiting.until(task, reason),
    )

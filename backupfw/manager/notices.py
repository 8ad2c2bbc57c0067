"""What is told to the outside about backups: events, each with the backup as it is then.

Events: ``backup.create.start`` and ``.end``, ``backup.createprogress``, and ``.start`` and ``.end`` of
``backup.import``, ``backup.restore``, ``backup.delete`` and ``backup.reset_status``.  A start is told by
the worker that makes the first attempt, an end when the operation ended, however it did: ``status`` and
``fail_reason`` say how.  Telling never fails and never delays what is told.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from oslo_log import log
from sqlalchemy import select
from sqlalchemy.orm import Session

from backupfw.db import models
from backupfw.db.session import Database
from backupfw.manager import rows, tasks
from backupfw.manager.tasks import Task

LOG = log.getLogger(__name__)

#: Takes an event's name, its payload, and who caused it.
Send = Callable[[str, Mapping[str, Any], Mapping[str, Any]], None]

_TOLD = frozenset({tasks.BACKUP_CREATE, tasks.BACKUP_IMPORT, tasks.BACKUP_RESTORE, tasks.BACKUP_DELETE})


class Notices:
    """Tells events.  Thread-safe.

    :param send: sends one event; must not block.  None: nothing is told, and the database not asked.
    """

    def __init__(self, db: Database, send: Send | None = None) -> None:
        self._db = db
        self._send = send

    def begun(self, task: Task) -> None:
        """Tell that an operation began, if this is its first attempt."""
        if task.kind in _TOLD and task.attempt == 1:
            self.tell(f"{task.kind}.start", task.resource_id, task.request_id)

    def ended(self, task: Task) -> None:
        """Tell that an operation ended, if it did: an attempt may as well have given its task back."""
        if task.kind in _TOLD:
            self.tell(f"{task.kind}.end", task.resource_id, task.request_id, unless_task=task.id)

    def progressed(self, task: Task, done: int, total: int) -> None:
        """Tell how far the making of a backup is."""
        if task.kind == tasks.BACKUP_CREATE and total:
            percent = min(100, 100 * done // total)
            self.tell("backup.createprogress", task.resource_id, task.request_id, backup_percent=percent)

    def tell(
        self, event: str, backup_id: str, request_id: str | None, unless_task: int | None = None, **more: Any
    ) -> None:
        """Tell any event of a backup.

        :param unless_task: nothing is told while this task is there.
        :param more: what the payload holds besides.
        """
        if self._send is None:
            return
        try:
            with self._db.read() as session:
                if unless_task is not None and session.get(models.Task, unless_task) is not None:
                    return
                found = _payload(session, backup_id)
            if found is not None:
                context = {"request_id": request_id, "project_id": found["tenant_id"]}
                self._send(event, {**found, **more}, context)
        except Exception:
            LOG.exception("%s of backup %s could not be told", event, backup_id)


def _payload(session: Session, backup_id: str) -> dict[str, Any] | None:
    """Return a backup, deleted ones too, as listeners know it."""
    row = session.scalar(select(models.Backup).where(models.Backup.id == backup_id))
    if row is None:
        return None
    return {
        "tenant_id": row.project_id,
        "user_id": row.user_id,
        "availability_zone": row.availability_zone,
        "backup_id": row.id,
        "host": row.host,
        "display_name": row.display_name,
        "created_at": row.created_at.isoformat(),
        "status": row.status,
        "volume_id": row.volume_id,
        "size": row.size,
        "service_metadata": row.service_metadata,
        "service": row.service,
        "fail_reason": row.fail_reason,
        "parent_id": row.parent_id,
        "num_dependent_backups": rows.dependents_of(session, [row.id]).get((row.id, row.project_id), 0),
        "snapshot_id": row.snapshot_id,
    }

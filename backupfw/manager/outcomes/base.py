"""What the parts of :mod:`backupfw.manager.outcomes.backups` have in common."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy.orm import Session

from backupfw.db import models
from backupfw.db.session import Database
from backupfw.errors import BackupNotFound
from backupfw.manager.messages import Detail
from backupfw.manager.queue.tasks import Task
from backupfw.manager.rules import failures

if TYPE_CHECKING:
    from oslo_config import cfg

#: A failed deletion is tried again after at most this many seconds.
LONGEST_RETRY = 86400.0


class Outcomes:
    """Base: a database and a configuration.  Thread-safe.

    Every method is one transaction that is conditional on the task's attempt; it raises
    :class:`~backupfw.errors.TaskLost` when another attempt owns the task and
    :class:`~backupfw.errors.TaskCancelled` when it was cancelled, and has changed nothing then.
    """

    def __init__(self, db: Database, conf: cfg.ConfigOpts) -> None:
        self._db = db
        self._conf = conf

    def _backup(self, session: Session, task: Task) -> models.Backup:
        row = session.get(models.Backup, task.resource_id, populate_existing=True)
        if row is None or row.deleted:
            raise BackupNotFound(task.resource_id)
        return row

    @staticmethod
    def _fail_delete(session: Session, task: Task, reason: str, detail: Detail | None = None) -> None:
        """The first failure is told; the others are of tries that nobody asked for."""
        failures.failed(session, task, reason, detail, again=bool(task.payload.get("tries")))

    def _retry_delay(self, tries: int) -> float:
        """Return the seconds before the next try of a deletion that failed ``tries`` times before."""
        return float(min(self._conf.backup.delete_retry_seconds * 2.0 ** min(tries, 32), LONGEST_RETRY))

"""What the modules of outcomes have in common."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy.orm import Session

from backupfw.db import models
from backupfw.db.session import Database
from backupfw.errors import BackupNotFound
from backupfw.manager.rows import Task

if TYPE_CHECKING:
    from oslo_config import cfg


class Outcomes:
    """Base: a database and a configuration.  Thread-safe.

    A method that takes a task is one transaction that is conditional on its attempt; it raises
    :class:`~backupfw.errors.TaskLost` when another attempt owns the task and
    :class:`~backupfw.errors.TaskCancelled` when it was cancelled, and has changed nothing then.
    """

    def __init__(self, db: Database, conf: cfg.ConfigOpts) -> None:
        self._db = db
        self._conf = conf


def backup_of(session: Session, task: Task) -> models.Backup:
    """Return the row of the backup that a task is about, as it is now.

    :raises BackupNotFound: it is gone.
    """
    row = session.get(models.Backup, task.resource_id, populate_existing=True)
    if row is None or row.deleted:
        raise BackupNotFound(task.resource_id)
    return row

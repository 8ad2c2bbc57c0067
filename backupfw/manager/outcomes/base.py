"""The base of the modules of outcomes."""

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

    A method that takes a task is one transaction that is conditional on its attempt.  It raises
    :class:`~backupfw.errors.TaskLost` if another attempt owns the task, and
    :class:`~backupfw.errors.TaskCancelled` if the task was cancelled; in both cases it changes nothing.
    """

    def __init__(self, db: Database, conf: cfg.ConfigOpts) -> None:
        self._db = db
        self._conf = conf


def backup_of(session: Session, task: Task) -> models.Backup:
    """Return the row of a task's backup, as it is now.

    :raises BackupNotFound: it is gone.
    """
    row = session.get(models.Backup, task.resource_id, populate_existing=True)
    if row is None or row.deleted:
        raise BackupNotFound(task.resource_id)
    return row

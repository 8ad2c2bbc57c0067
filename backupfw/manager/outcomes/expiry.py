"""Expiry: how operations end that no worker could take in time, by kind of task."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Protocol

from oslo_log import log
from sqlalchemy import ColumnElement, and_, delete, or_, select
from sqlalchemy.orm import Session

from backupfw.context import RequestContext, working_for
from backupfw.db import models
from backupfw.db.locks import lock
from backupfw.db.session import Database
from backupfw.errors import BackupNotFound
from backupfw.manager import rows
from backupfw.manager.lineage import lifecycle
from backupfw.manager.messages import Detail
from backupfw.manager.outcomes import creating, deleting, importing, restoring, scrubbing, volumes
from backupfw.manager.outcomes.base import Outcomes
from backupfw.manager.queue import tasks, waiting
from backupfw.manager.queue.services import Service
from backupfw.manager.queue.tasks import Outcome
from backupfw.manager.rows import Task

if TYPE_CHECKING:
    from oslo_config import cfg

LOG = log.getLogger(__name__)


class Fails(Protocol):
    """Moves the resource of a task to its error status, and reports it to the user."""

    def __call__(self, session: Session, task: Task, reason: str, detail: Detail | None = None) -> None:
        """Do it in the transaction that ends the task."""


@dataclass(frozen=True, slots=True)
class _Ending:
    """How a kind of task ends.

    :ivar detail: the user message if there are services, but none that can do it.
    :ivar stays: its task stays, and the next worker that can do it carries it out.
    """

    fails: Fails
    detail: Detail = Detail.SCHEDULE
    stays: bool = False


#: By kind.  The removal of objects, which users do not see, has none and waits on.
_ENDINGS: Mapping[str, _Ending] = {
    tasks.BACKUP_CREATE: _Ending(creating.failed),
    tasks.BACKUP_IMPORT: _Ending(importing.failed),
    tasks.BACKUP_RESTORE: _Ending(restoring.failed),
    tasks.BACKUP_DELETE: _Ending(deleting.failed, stays=True),
    tasks.BACKUP_VERIFY: _Ending(scrubbing.failed),
    **dict.fromkeys(volumes.KINDS, _Ending(volumes.failed, Detail.NO_BACKEND)),
}


class Expiry(Outcomes):
    """Ends tasks that no worker can take.  Any process may do it, at any time, and twice.

    :param spoil: called with the volume of a foreign catalogue to which a restore failed that has no worker.
    """

    def __init__(
        self,
        db: Database,
        conf: cfg.ConfigOpts,
        spoil: Callable[[rows.Volume], None] = lambda _volume: None,
    ) -> None:
        super().__init__(db, conf)
        self._spoil = spoil

    def expire(self, moment: datetime | None = None) -> int:
        """End tasks that have waited for a worker for ``[backup] service_wait`` seconds.

        Tasks of backups, volumes and snapshots end in their error statuses.  The deletion of a backup shows
        ``error_deleting`` and its task stays.  The removal of objects and of temporary snapshots, which users
        do not see, waits on.  A cancelled task of any kind is dropped unfinished, so
        that the next task on the resource, e.g. the deletion, can run.

        :param moment: the time to compare with, naive UTC; the database's clock unless given.
        :returns: how many operations were ended.
        """
        # A read takes no write lock, and nearly always there is nothing to end.
        with self._db.read() as session:
            if not waiting.overdue(session, self._conf, _ends(), moment)[0]:
                return 0
        ended = self._db.run(lambda session: self._expire(session, moment))
        for task, reason in ended:
            if not task.cancel:
                with working_for(RequestContext.of_task(task.project_id, task.request_id)):
                    LOG.error("Task %s (%s of %s) ends: %s", task.id, task.kind, task.resource_id, reason)
            if task.kind == tasks.BACKUP_RESTORE:
                self._spoil_target(task)
        return len(ended)

    def _spoil_target(self, task: Task) -> None:
        """Tell the target's foreign catalogue, if it has one, that its bytes are no good.

        An existing volume that no attempt was made for has its old bytes.
        """
        with self._db.read() as session:
            volume = session.get(models.Volume, task.payload["volume_id"])
            if volume is None or volume.mirrored_at is None or not (task.payload["new"] or task.attempt):
                return
            target = rows.volume(session, volume)
        try:
            self._spoil(target)
        except Exception:
            # The task has ended.
            LOG.exception("The target of a restore of backup %s is not marked as failed", task.resource_id)

    def _expire(self, session: Session, moment: datetime | None) -> list[tuple[Task, str]]:
        ended = []
        overdue, left = waiting.overdue(session, self._conf, _ends(), moment)
        for row in overdue:
            # Lock the row and check again: a worker may have claimed the task meanwhile.
            unchanged = (
                models.Task.attempt == row.attempt,
                models.Task.updated_at == row.updated_at,
                models.Task.cancel.is_(row.cancel),
            )
            if lock(session, models.Task, models.Task.id == row.id, *unchanged):
                locked = session.get_one(models.Task, row.id)
                task = tasks.as_task(locked)
                reason = locked.fail_reason or waiting.missing(locked, left)
                _end(session, task, reason, left)
                ended.append((task, reason))
        return ended


def _ends() -> ColumnElement[bool]:
    """The condition that a task is cancelled, or that its users must learn that no worker took it."""
    row = models.Task
    deleting_ids = select(models.Backup.id).where(models.Backup.status == lifecycle.DELETING)
    hidden = select(models.Snapshot.id).where(models.Snapshot.temporary.is_(True))
    return or_(
        row.cancel.is_(True),
        and_(
            row.kind.in_(_ENDINGS),
            # A backup in error_deleting was reported already.
            or_(row.kind != tasks.BACKUP_DELETE, row.resource_id.in_(deleting_ids)),
            or_(row.kind.not_in(volumes.KINDS), row.resource_id.not_in(hidden)),
        ),
    )


def _end(session: Session, task: Task, reason: str, left: Sequence[Service]) -> None:
    if task.cancel:
        # The cancellation has moved the statuses already.
        _drop(session, task, "cancelled")
        return
    ending = _ENDINGS[task.kind]
    if ending.stays:
        tasks.count_end(session, task, "failed")
    else:
        _drop(session, task, "failed")
    try:
        ending.fails(session, task, reason, ending.detail if left else Detail.SERVICE_DOWN)
    except BackupNotFound:
        return


def _drop(session: Session, task: Task, outcome: Outcome) -> None:
    """Delete a task's row: an attempt that is frozen, not dead, finds it missing and changes nothing."""
    session.execute(delete(models.Task).where(models.Task.id == task.id))
    tasks.ended(session, task, outcome)

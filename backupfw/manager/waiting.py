"""Accepted operations that no worker takes: after a while they end, with the reason."""

from __future__ import annotations

from datetime import datetime, timedelta

from sqlalchemy import delete, func, or_, select
from sqlalchemy.orm import Session

from backupfw.db import models
from backupfw.db.session import now
from backupfw.errors import BackupNotFound
from backupfw.manager import lifecycle, services, tasks
from backupfw.manager.create_tasks import CreateTasks
from backupfw.manager.import_tasks import ImportTasks
from backupfw.manager.lifecycle import BackupMoves
from backupfw.manager.messages import Action, Detail
from backupfw.manager.restore_tasks import RestoreTasks

#: What users read.
REASON = "No backup service was available."
#: How many tasks one call ends, so that its transaction stays short.
_BATCH = 100


class Waiting(CreateTasks, RestoreTasks, ImportTasks):
    """Ends what waits in vain.  Any process may do it, at any time, twice."""

    def expire_waiting(self, moment: datetime | None = None) -> int:
        """End backup tasks that no live worker took for ``[backup] service_wait`` seconds.

        Creations, imports and restores end in their error statuses.  A deletion shows
        ``error_deleting`` and its task stays: the next worker carries it out.  Nothing happens while a
        worker lives: it will come to them.

        :param moment: the time to compare with, naive UTC; the database's clock unless given.
        :returns: how many operations were ended.
        """
        # Looking costs no write lock; there is nearly never anything to end.
        with self._db.read() as session:
            if not self._overdue(session, moment):
                return 0
        return self._db.run(lambda session: self._expire(session, moment))

    def _overdue(self, session: Session, moment: datetime | None) -> list[models.Task]:
        if services.backup_workers_alive(session, self._conf):
            return []
        row = models.Task
        oldest = (moment or now(session)) - timedelta(seconds=self._conf.backup.service_wait)
        deleting = select(models.Backup.id).where(models.Backup.status == lifecycle.DELETING)
        waiting_since = func.coalesce(row.lease_until, row.not_before, row.updated_at)
        query = (
            select(row)
            .where(
                row.cancel.is_(False),
                waiting_since <= oldest,
                or_(
                    row.kind.in_((tasks.BACKUP_CREATE, tasks.BACKUP_IMPORT, tasks.BACKUP_RESTORE)),
                    # One that shows error_deleting already has nothing to tell.
                    (row.kind == tasks.BACKUP_DELETE) & row.resource_id.in_(deleting),
                ),
            )
            .order_by(row.id)
            .limit(_BATCH)
        )
        return list(session.scalars(query))

    def _expire(self, session: Session, moment: datetime | None) -> int:
        ended = 0
        for row in self._overdue(session, moment):
            # Locked and read again: a worker may have come.
            locked = session.scalar(
                select(models.Task)
                .where(models.Task.id == row.id, models.Task.attempt == row.attempt)
                .where(models.Task.updated_at == row.updated_at, models.Task.cancel.is_(False))
                .with_for_update()
                .execution_options(populate_existing=True)
            )
            if locked is not None:
                self._end(session, locked)
                ended += 1
        return ended

    def _end(self, session: Session, row: models.Task) -> None:
        task = tasks.as_task(row)
        reason = row.fail_reason or REASON
        if task.kind == tasks.BACKUP_DELETE:
            moved = lifecycle.move(
                session, models.Backup, task.resource_id, BackupMoves.delete_failed, fail_reason=reason
            )
            if moved and not task.payload.get("tries"):
                self._tell(session, task, Action.DELETE_BACKUP, Detail.SERVICE_DOWN)
            return
        # An attempt that is frozen, not dead, finds its row missing and changes nothing any more.
        session.execute(delete(models.Task).where(models.Task.id == row.id))
        try:
            if task.kind == tasks.BACKUP_CREATE:
                self._fail_create(session, task, reason, Detail.SERVICE_DOWN)
            elif task.kind == tasks.BACKUP_IMPORT:
                self._fail_import(session, task, reason, Detail.SERVICE_DOWN)
            else:
                self._fail_restore(session, task, reason, Detail.SERVICE_DOWN)
        except BackupNotFound:
            return

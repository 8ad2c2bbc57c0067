"""Freezing a volume while its point is taken, and thawing it whatever happens.

Before a worker freezes a volume, it queues a ``volume.thaw`` that is due when the volume must be thawed in
any case, and removes it when it has thawed the volume itself.  So whoever is killed in between, another
worker thaws the volume.  Only if the task, and those of earlier attempts, were still there and waiting,
nobody else has done so meanwhile.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from sqlalchemy import delete, update
from sqlalchemy.orm import Session

from backupfw.db import models
from backupfw.db.locks import lock
from backupfw.db.session import now
from backupfw.errors import TaskStopped
from backupfw.manager import rows
from backupfw.manager.outcomes.base import Outcomes, backup_of
from backupfw.manager.queue import claims, outbox, tasks
from backupfw.manager.rows import Task

#: Why a backup is not quiesced, for users.
INTERRUPTED = "It is not known whether the volume was frozen when the point was taken."
THAWED_EARLY = "The volume was thawed before the point was taken."
#: Seconds before the thawing of a volume is tried again that has failed several times.
_AGAIN_SECONDS = 60.0


class FreezeTasks(Outcomes):
    """What a worker records of the freezing of a volume, and the outcomes of ``volume.thaw``."""

    def begin(self, task: Task, name: str, seconds: float) -> tuple[int, ...] | None:
        """Queue the thawing of the volume of a backup that is going to be frozen now.

        What is left of an earlier attempt and is due is replaced.  What is due later stays: the command with
        which a killed worker froze the volume may be running still, and end behind our thawing.

        :param name: of the commands.
        :param seconds: after which it is due.
        :returns: the ids of the tasks that thaw it, the new one first; None: another worker thaws it just
            now, so the freezing must wait.
        """

        def work(session: Session) -> tuple[int, ...] | None:
            tasks.hold(session, task)
            backup = backup_of(session, task)
            row, moment = models.Task, now(session)
            ids = lock(session, row, row.kind == tasks.VOLUME_THAW, row.resource_id == backup.volume_id)
            left = [session.get_one(row, one) for one in ids]
            if any(one.state == claims.RUNNING for one in left):
                return None
            later = [one.id for one in left if one.not_before is not None and one.not_before > moment]
            session.execute(delete(row).where(row.id.in_(ids), row.id.not_in(later)))
            backup.quiesced, backup.quiesce_reason = False, INTERRUPTED
            mine = tasks.add(
                session,
                tasks.VOLUME_THAW,
                resource_id=backup.volume_id,
                source_id=None,
                project_id=backup.project_id,
                request_id=task.request_id,
                payload={"quiesce": name},
                delay=seconds,
            )
            return mine, *later

        return self._db.run(work)

    def end(self, task: Task, thaw_ids: Sequence[int], reason: str | None, *, thawed: bool) -> None:
        """Record how the taking of a point has ended, also of an attempt that lost its task or was cancelled.

        :param thaw_ids: what :meth:`begin` has returned.
        :param reason: why the backup is not quiesced, for users; None: it is.
        :param thawed: the volume was thawed; else the task stays, and is due now.
        """

        def work(session: Session) -> None:
            row, mine = models.Task, models.Task.id == thaw_ids[0]
            waiting = lock(session, row, row.id.in_(thaw_ids), row.state == claims.QUEUED)
            # Nobody has thawed the volume meanwhile, for us or for an earlier attempt.
            alone = len(waiting) == len(thaw_ids)
            backup = session.get(models.Backup, task.resource_id, populate_existing=True)
            if thaw_ids[0] not in waiting:
                pass
            elif thawed:
                session.execute(delete(row).where(mine))
            else:
                session.execute(update(row).where(mine).values(not_before=None))
            try:
                tasks.hold(session, task)
            except TaskStopped:
                return
            if backup is not None and not (backup.quiesced and reason is None):
                backup.quiesced = alone and reason is None
                backup.quiesce_reason = None if backup.quiesced else reason or THAWED_EARLY

        self._db.run(work)

    def leave(self, task: Task, reason: str | None) -> None:
        """Record that this attempt has not frozen the volume; what is known from an earlier one stays.

        What that has perhaps left frozen is thawed now.

        :param reason: why not, for users; None: nobody writes to it, so there is nothing to freeze.
        """

        def work(session: Session) -> None:
            tasks.hold(session, task)
            backup = backup_of(session, task)
            left = (models.Task.kind == tasks.VOLUME_THAW, models.Task.resource_id == backup.volume_id)
            session.execute(update(models.Task).where(*left).values(not_before=None))
            if not backup.quiesced and backup.quiesce_reason is None:
                backup.quiesced = None if reason is None else False
                backup.quiesce_reason = reason

        self._db.run(work)

    def refuse(self, task: Task, reason: str) -> None:
        """Record that a point is taken without freezing the volume.

        :param reason: why, for users.
        """

        def work(session: Session) -> None:
            tasks.hold(session, task)
            backup = backup_of(session, task)
            backup.quiesced, backup.quiesce_reason = False, reason

        self._db.run(work)

    # The task that thaws.

    def start(self, task: Task) -> rows.Volume | None:
        """Return the volume to thaw, perhaps a deleted one; None: its record is gone."""
        with self._db.read() as session:
            row = session.get(models.Volume, task.resource_id)
            return None if row is None else rows.volume(session, row)

    def finish(self, task: Task) -> None:
        """End the task: the volume is thawed, or gone."""
        self._db.run(lambda session: tasks.end(session, task))

    def fail(self, task: Task, reason: str) -> None:
        """Try it again after a while, and tell operators the first time; a deleted volume is left alone."""

        def work(session: Session) -> None:
            tasks.end(session, task, "failed")
            row = session.get(models.Volume, task.resource_id)
            if row is None or row.deleted:
                return
            again = replace(task, payload={**task.payload, "told": True})
            tasks.again(session, again, _AGAIN_SECONDS)
            if task.payload.get("told"):
                return
            outbox.alert(
                session,
                f"{task.kind}.failed",
                f"Volume {task.resource_id} may be frozen: {reason}",
                project_id=task.project_id,
                volume_id=task.resource_id,
                fail_reason=tasks.short_reason(reason),
            )

        self._db.run(work)

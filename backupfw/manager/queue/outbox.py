"""What is told to the outside about backups: events, each with the backup as it is then.

Events: ``backup.create.start`` and ``.end``, ``backup.createprogress``, and ``.start`` and ``.end`` of
``backup.import``, ``backup.restore``, ``backup.delete`` and ``backup.reset_status``.  A start is told when a
worker claims the task for the first time, an end when the operation ended, however it did: ``status`` and
``fail_reason`` say how.

Starts and ends are noted in the transaction that they tell of, so there is one exactly when that was
committed.  Whoever tells them takes the oldest, sends it and deletes it: each is told at least once, and
those of one backup in order; one whose teller died in between is told again, under the same number.
Progress is not noted: what was not told in time is told better a moment later.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from oslo_log import log
from sqlalchemy import delete, exists, select
from sqlalchemy.orm import Session

from backupfw.db import models
from backupfw.db.locks import lock
from backupfw.db.session import Database, at_end, now
from backupfw.manager import rows

if TYPE_CHECKING:
    from backupfw.manager.rows import Task

LOG = log.getLogger(__name__)

#: Takes an event's name, its payload, and who caused it.
Send = Callable[[str, Mapping[str, Any], Mapping[str, Any]], None]

#: Kinds of tasks whose starts and ends are told.
_TOLD = frozenset({"backup.create", "backup.import", "backup.restore", "backup.delete"})
#: Key of ``Session.info``: this process tells events.
_TELLS = "backupfw_tells"
#: How long one that is being sent is left to whoever sends it, seconds.
_TAKEN_SECONDS = 60


@dataclass(frozen=True, slots=True)
class _Notice:
    id: int
    event: str
    request_id: str | None
    payload: Mapping[str, Any]

    @property
    def context(self) -> Mapping[str, Any]:
        return {
            "request_id": self.request_id,
            "project_id": self.payload["tenant_id"],
            "notice_id": self.id,
        }


def begun(session: Session, task: Task) -> None:
    """Note that an operation begins, if this is its first attempt, in the transaction of the claim."""
    if task.kind in _TOLD and task.attempt == 1:
        note(session, f"{task.kind}.start", task.resource_id, task.request_id)


def ended(session: Session, task: Task) -> None:
    """Note that an operation ends, in the transaction that deletes the task: with what that leaves behind.

    One that nobody had begun is not told of.
    """
    if task.kind in _TOLD and task.attempt > 0:
        at_end(session, lambda session: note(session, f"{task.kind}.end", task.resource_id, task.request_id))


def note(session: Session, event: str, backup_id: str, request_id: str | None) -> None:
    """Note any event of a backup as it is now, in the caller's transaction, if this process tells events."""
    if not session.info.get(_TELLS):
        return
    payload = _payload(session, backup_id)
    if payload is not None:
        session.add(
            models.Notice(event=event, request_id=request_id, payload=payload, created_at=now(session))
        )
        session.flush()


class Outbox:
    """Tells events.  Thread-safe.

    :param send: sends one event when it can; must not block.  None: nothing is noted or told, and the
        database not asked.
    :param nudge: has :meth:`deliver` called soon.
    """

    def __init__(self, db: Database, send: Send | None = None, nudge: Callable[[], object] = bool) -> None:
        self._db = db
        self._send = send
        self.nudge = nudge
        if send is not None:
            db.info[_TELLS] = True

    def progressed(self, task: Task, done: int, total: int) -> None:
        """Tell how far the making of a backup is; never fails."""
        if self._send is None or task.kind != "backup.create" or not total:
            return
        try:
            with self._db.read() as session:
                payload = _payload(session, task.resource_id)
            if payload is not None:
                context = {"request_id": task.request_id, "project_id": payload["tenant_id"]}
                percent = min(100, 100 * done // total)
                self._send("backup.createprogress", {**payload, "backup_percent": percent}, context)
        except Exception:
            LOG.exception("The progress of backup %s could not be told", task.resource_id)

    def deliver(self, send: Send) -> None:
        """Tell what was noted, by this process or another one, the oldest first.

        :param send: sends one event, and returns when it is sent or fails.
        """
        while (notice := self._take()) is not None:
            send(notice.event, notice.payload, notice.context)
            sent = delete(models.Notice).where(models.Notice.id == notice.id)
            self._db.run(lambda session, sent=sent: session.execute(sent))  # type: ignore[misc]

    def _take(self) -> _Notice | None:
        """Take the oldest, unless somebody else is sending it: those after it wait for that."""
        row = models.Notice
        with self._db.read() as session:
            if not session.scalar(select(exists().where(row.id.is_not(None)))):
                return None

        def work(session: Session) -> _Notice | None:
            found = lock(session, row, limit=1)
            if not found:
                return None
            oldest = session.get_one(row, found[0])
            moment = now(session)
            if oldest.taken_until is not None and oldest.taken_until > moment:
                return None
            oldest.taken_until = moment + timedelta(seconds=_TAKEN_SECONDS)
            return _Notice(oldest.id, oldest.event, oldest.request_id, dict(oldest.payload))

        return self._db.run(work)


def _payload(session: Session, backup_id: str) -> dict[str, Any] | None:
    """Return a backup, deleted ones too, as listeners know it."""
    query = select(models.Backup).where(models.Backup.id == backup_id)
    row = session.scalar(query.execution_options(populate_existing=True))
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

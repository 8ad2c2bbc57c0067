"""The event outbox: events about backups that wait in the database until they are sent.

Events: ``backup.create.start`` and ``.end``, ``backup.createprogress``, ``.start`` and ``.end`` of
``backup.import``, ``backup.restore``, ``backup.delete`` and ``backup.reset_status``; and ``backup.damaged``,
when a verification found damaged objects that the backup names.  Each holds the backup as it is then.  A
start is sent when a worker claims the task for the first time.  An end is sent when the operation ended,
whether it succeeded or not: ``status`` and ``fail_reason`` say which.

A start or an end is added to the outbox in the transaction that it reports, so it exists exactly when that
transaction was committed.  A sender takes the oldest event, sends it and deletes it.  So each event is sent
at least once, and the events of one backup are sent in order.  When a sender dies in between, another one
sends the event again, under the same number.  Progress events are not stored: a lost one is replaced by the
next.
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

#: Kinds of tasks whose starts and ends are events.
_KINDS = frozenset({"backup.create", "backup.import", "backup.restore", "backup.delete"})
#: Key of ``Session.info``: this process sends events.
_SENDS_EVENTS = "backupfw_sends_events"
#: Seconds for which an event that was taken is left to the sender that took it.
_TAKEN_SECONDS = 60


@dataclass(frozen=True, slots=True)
class _Event:
    id: int
    name: str
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
    """Add the start of an operation, if this is its first attempt, in the transaction of the claim."""
    if task.kind in _KINDS and task.attempt == 1:
        add(session, f"{task.kind}.start", task.resource_id, task.request_id)


def ended(session: Session, task: Task) -> None:
    """Add the end of an operation, in the transaction that deletes its task: the backup as that leaves it.

    An operation that never began has no end.
    """
    if task.kind in _KINDS and task.attempt > 0:
        at_end(session, lambda session: add(session, f"{task.kind}.end", task.resource_id, task.request_id))


def add(session: Session, event: str, backup_id: str, request_id: str | None) -> None:
    """Add an event of a backup as it is now, in the caller's transaction, if this process sends events."""
    if not session.info.get(_SENDS_EVENTS):
        return
    payload = _payload(session, backup_id)
    if payload is not None:
        session.add(
            models.OutboxEvent(event=event, request_id=request_id, payload=payload, created_at=now(session))
        )
        session.flush()


def keep(db: Database) -> None:
    """Let this process add events that others send."""
    db.info[_SENDS_EVENTS] = True


class Outbox:
    """Sends events.  Thread-safe.

    :param send: sends one event when it can; must not block.  None: no event is stored or sent, and the
        database is not asked.
    :param nudge: makes somebody call :meth:`deliver` soon.
    """

    def __init__(self, db: Database, send: Send | None = None, nudge: Callable[[], object] = bool) -> None:
        self._db = db
        self._send = send
        self.nudge = nudge
        if send is not None:
            keep(db)

    def progressed(self, task: Task, done: int, total: int) -> None:
        """Send how much of a backup is made; never fails."""
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
            LOG.exception("The progress of backup %s could not be sent", task.resource_id)

    def deliver(self, send: Send) -> None:
        """Send the stored events, of this process and of others, oldest first.

        :param send: sends one event, and returns when it is sent or fails.
        """
        while (event := self._take()) is not None:
            send(event.name, event.payload, event.context)
            sent = delete(models.OutboxEvent).where(models.OutboxEvent.id == event.id)
            self._db.run(lambda session, sent=sent: session.execute(sent))  # type: ignore[misc]

    def _take(self) -> _Event | None:
        """Take the oldest event; None while another process sends it: the events after it wait."""
        row = models.OutboxEvent
        with self._db.read() as session:
            if not session.scalar(select(exists().where(row.id.is_not(None)))):
                return None

        def work(session: Session) -> _Event | None:
            found = lock(session, row, limit=1)
            if not found:
                return None
            oldest = session.get_one(row, found[0])
            moment = now(session)
            if oldest.taken_until is not None and oldest.taken_until > moment:
                return None
            oldest.taken_until = moment + timedelta(seconds=_TAKEN_SECONDS)
            return _Event(oldest.id, oldest.event, oldest.request_id, dict(oldest.payload))

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

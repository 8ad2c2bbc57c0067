"""The event outbox: events about backups that wait in the database until they are sent.

Events: ``backup.create.start`` and ``.end``, ``backup.createprogress``, ``.start`` and ``.end`` of
``backup.import``, ``backup.restore``, ``backup.delete``, ``backup.copy`` and ``backup.reset_status``; and
``backup.damaged``, when a verification found damaged objects that the backup names.  Each holds the backup as
it is then, and of a copy also that.  A start is sent when a worker claims the task for the first time.  An
end is sent when the operation ended, whether it succeeded or not: ``status`` and ``fail_reason`` say which.
Runs of backup policies have ``policy.run.missed`` and ``policy.run.failed``, which say what their alerts do.

A start or an end is added to the outbox in the transaction that it reports, so it exists exactly when that
transaction was committed.  A sender takes the oldest event, sends it and deletes it.  So each event is sent
at least once, and the events of one backup are sent in order.  When a sender dies in between, another one
sends the event again, under the same number.  Progress events are not stored: a lost one is replaced by the
next.

*Alerts* tell operators of failures.  They wait in the same table and are sent in the same manner, but those
of each way (a webhook, mail) wait in a line of their own, so one that is down holds up nothing else.  They
are gathered for a while, and sent together.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from oslo_log import log
from sqlalchemy import delete, select, update
from sqlalchemy.orm import Session

from backupfw.conf import alerts
from backupfw.db import models
from backupfw.db.locks import lock
from backupfw.db.session import Database, at_end, now
from backupfw.manager import rows

if TYPE_CHECKING:
    from oslo_config import cfg

    from backupfw.manager.rows import Task

LOG = log.getLogger(__name__)

#: Takes an event's name, its payload, and who caused it.
Send = Callable[[str, Mapping[str, Any], Mapping[str, Any]], None]

#: Kinds of tasks whose starts and ends are events.
_KINDS = frozenset({"backup.create", "backup.import", "backup.restore", "backup.delete"})
_COPY = "backup.copy"
#: Keys of ``Session.info``: this process sends events; the ways in which it sends alerts.
_SENDS_EVENTS = "backupfw_sends_events"
_WAYS = "backupfw_ways_of_alerts"
#: Seconds for which an event that was taken is left to the sender that took it.
_TAKEN_SECONDS = 60
#: Seconds for which alerts are gathered: so long the oldest of those that are sent together has waited.
GATHER_SECONDS = 60
#: How many alerts of one way wait at most; the oldest ones go.
MOST_WAITING = 10_000
#: Longest text of an alert, characters: it may quote what a store or a driver said.
_LONGEST_TEXT = 1000
#: How many rows one statement names at most.
_BATCH = 500
#: A statement by ids changes no row that the session knows.
_UNKNOWN: Mapping[str, Any] = {"execution_options": {"synchronize_session": False}}


@dataclass(frozen=True, slots=True)
class _Event:
    id: int
    name: str
    request_id: str | None
    payload: Mapping[str, Any]
    created_at: datetime

    @property
    def context(self) -> Mapping[str, Any]:
        return {
            "request_id": self.request_id,
            "project_id": self.payload["tenant_id"],
            "notice_id": self.id,
        }

    def as_alert(self) -> Mapping[str, Any]:
        return {"id": self.id, "event": self.name, "at": f"{self.created_at.isoformat()}Z", **self.payload}


def begun(session: Session, task: Task) -> None:
    """Add the start of an operation, if this is its first attempt, in the transaction of the claim."""
    if task.kind == _COPY and task.attempt == 1 and (copy := _copy(session, task)) is not None:
        _add_copy(session, "backup.copy.start", copy, task.request_id)
    if task.kind in _KINDS and task.attempt == 1:
        add(session, f"{task.kind}.start", task.resource_id, task.request_id)


def ended(session: Session, task: Task) -> None:
    """Add the end of an operation, in the transaction that deletes its task: the backup as that leaves it.

    An operation that never began has no end, nor has a copy that was removed.
    """
    if task.kind == _COPY and task.attempt > 0 and (copy := _copy(session, task)) is not None:
        at_end(session, lambda session: _add_copy(session, "backup.copy.end", copy, task.request_id))
    if task.kind in _KINDS and task.attempt > 0:
        at_end(session, lambda session: add(session, f"{task.kind}.end", task.resource_id, task.request_id))


def add(
    session: Session, event: str, backup_id: str, request_id: str | None, **more: Mapping[str, Any]
) -> None:
    """Add an event of a backup as it is now, in the caller's transaction, if this process sends events.

    :param more: members of the event beside the backup's.
    """
    if not session.info.get(_SENDS_EVENTS):
        return
    payload = _payload(session, backup_id)
    if payload is not None:
        payload |= more
        session.add(
            models.OutboxEvent(event=event, request_id=request_id, payload=payload, created_at=now(session))
        )
        session.flush()


def keep(db: Database, conf: cfg.ConfigOpts) -> None:
    """Let this process add the events and alerts that others send, as the configuration says."""
    if conf.oslo_messaging_notifications.driver:
        db.info[_SENDS_EVENTS] = True
    db.info[_WAYS] = alerts.ways(conf)


def alert(
    session: Session,
    event: str,
    text: str,
    *,
    project_id: str | None = None,
    on_bus: bool = False,
    **about: str | None,
) -> None:
    """Add an alert in the caller's transaction, for each way in which this process sends alerts.

    :param event: what happened, e.g. ``backup.create.failed``.
    :param text: for operators: one sentence, without a credential.  It is made one line that can be printed,
        and cut: nothing in it can look like another alert, or keep the others from being sent.
    :param on_bus: add it as an event, too, if this process sends events.  Events of backups are added apart.
    :param about: ids of what it is about, and the reason, under the names that events have.
    """
    line = "".join(char if char.isprintable() else "?" for char in " ".join(text.split()))
    payload = {"text": line[:_LONGEST_TEXT], "tenant_id": project_id, **about}
    ways: list[str | None] = [*session.info.get(_WAYS, ())]
    if on_bus and session.info.get(_SENDS_EVENTS):
        ways.append(None)
    for way in ways:
        session.add(models.OutboxEvent(way=way, event=event, payload=payload, created_at=now(session)))


def _copy(session: Session, task: Task) -> str | None:
    """Return the id of the copy that a task makes; None: it was removed."""
    row = models.BackupCopy
    return session.scalar(select(row.id).where(row.manifest_id == task.resource_id))


def _add_copy(session: Session, event: str, copy_id: str, request_id: str | None) -> None:
    row = models.BackupCopy
    copy = session.scalar(select(row).where(row.id == copy_id).execution_options(populate_existing=True))
    if copy is not None:
        told = {"store": copy.store, "status": copy.status, "fail_reason": copy.fail_reason}
        add(session, event, copy.backup_id, request_id, copy=told)


class Outbox:
    """Sends events and alerts.  Thread-safe.

    :param send: sends one event when it can; must not block.  None: no event is stored or sent, and the
        database is not asked.
    :param nudge: makes somebody call :meth:`deliver` soon.
    :param ways: in which alerts are sent; for each of them somebody calls :meth:`deliver_alerts`.
    """

    def __init__(
        self,
        db: Database,
        send: Send | None = None,
        nudge: Callable[[], object] = bool,
        ways: Collection[str] = (),
    ) -> None:
        self._db = db
        self._send = send
        self.nudge = nudge
        if send is not None:
            db.info[_SENDS_EVENTS] = True
        if ways:
            db.info[_WAYS] = tuple(ways)

    def alert(self, event: str, text: str, **about: str | None) -> None:
        """Add an alert about something that is in no transaction; never fails."""
        try:
            self._db.run(lambda session: alert(session, event, text, on_bus=False, **about))
        except Exception:
            LOG.exception("The alert could not be stored: %s", text)

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
        while events := self._take(None):
            (event,) = events
            send(event.name, event.payload, event.context)
            self._sent(events)

    def deliver_alerts(
        self, way: str, send: Callable[[Sequence[Mapping[str, Any]]], object], most: int = MOST_WAITING
    ) -> None:
        """Send the alerts of a way that have been gathered, of this process and of others, oldest first.

        :param send: sends some, each as what JSON holds, and returns when they are sent or fails.
        :param most: how many it is given at most.
        """
        self._drop_too_many(way)
        while events := self._take(way, most, GATHER_SECONDS):
            try:
                send([each.as_alert() for each in events])
            except Exception:
                # They are tried again at the next look, by any process.
                self._set_taken(events, None)
                raise
            self._sent(events)

    def _drop_too_many(self, way: str) -> None:
        row = models.OutboxEvent
        with self._db.read() as session:
            waiting = select(row.id).where(row.way == way).order_by(row.id.desc())
            last = session.scalar(waiting.offset(MOST_WAITING).limit(1))
        if last is not None:
            dropped = delete(row).where(row.way == way, row.id <= last)
            self._db.run(lambda session: session.execute(dropped))
            LOG.error("More than %d alerts wait to be sent by %s; older ones were dropped", MOST_WAITING, way)

    def _take(self, way: str | None, most: int = 1, age: float = 0) -> list[_Event]:
        """Take the oldest events of a way; none while another process sends them: those after them wait.

        :param most: how many.
        :param age: seconds that the oldest one must have waited.
        """
        row = models.OutboxEvent
        mine = row.way == way  # SQLAlchemy writes IS NULL for None.
        with self._db.read() as session:
            oldest = session.scalar(select(row.created_at).where(mine).order_by(row.id).limit(1))
            if oldest is None or now(session) - oldest < timedelta(seconds=age):
                return []

        def work(session: Session) -> list[_Event]:
            taken = lock(session, row, mine, limit=most)
            if not taken:
                return []
            moment = now(session)
            busy = session.get_one(row, taken[0]).taken_until
            if busy is not None and busy > moment:
                return []
            until = moment + timedelta(seconds=_TAKEN_SECONDS)
            events = []
            columns = (row.id, row.event, row.request_id, row.payload, row.created_at)
            for some in _batches(taken):
                session.execute(update(row).where(row.id.in_(some)).values(taken_until=until), **_UNKNOWN)
                found = session.execute(select(*columns).where(row.id.in_(some)).order_by(row.id))
                events += [_Event(*values) for values in found]
            return events

        return self._db.run(work)

    def _set_taken(self, events: Sequence[_Event], until: datetime | None) -> None:
        row = models.OutboxEvent

        def work(session: Session) -> None:
            for some in _batches([event.id for event in events]):
                session.execute(update(row).where(row.id.in_(some)).values(taken_until=until), **_UNKNOWN)

        self._db.run(work)

    def _sent(self, events: Sequence[_Event]) -> None:
        def work(session: Session) -> None:
            for some in _batches([event.id for event in events]):
                session.execute(delete(models.OutboxEvent).where(models.OutboxEvent.id.in_(some)), **_UNKNOWN)

        self._db.run(work)


def _batches(ids: Sequence[int]) -> Iterator[Sequence[int]]:
    return (ids[start : start + _BATCH] for start in range(0, len(ids), _BATCH))


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

"""Accepted operations that no worker takes: why they wait, and how they end after a while."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from oslo_log import log
from sqlalchemy import ColumnElement, and_, delete, func, not_, or_, select
from sqlalchemy.orm import Session

from backupfw.context import working_for
from backupfw.db import models
from backupfw.db.locks import lock
from backupfw.db.session import now
from backupfw.errors import BackupNotFound
from backupfw.manager.lineage import lifecycle
from backupfw.manager.messages import Detail
from backupfw.manager.outcomes import volumes
from backupfw.manager.outcomes.creating import CreateTasks
from backupfw.manager.outcomes.importing import ImportTasks
from backupfw.manager.outcomes.restoring import RestoreTasks
from backupfw.manager.queue import claims, services, tasks
from backupfw.manager.queue.claims import Limits, Reach
from backupfw.manager.queue.requirements import Needs
from backupfw.manager.queue.services import Service
from backupfw.manager.queue.tasks import Outcome, Task

if TYPE_CHECKING:
    from oslo_config import cfg

LOG = log.getLogger(__name__)

#: What users read where no worker at all is there.
REASON = "No backup service was available."
#: How many tasks one call ends, so that its transaction stays short.
_BATCH = 100

#: What :func:`why` says of a task that does not run.
QUEUED = "queued"
WAITING_FOR_LIMIT = "waiting-for-limit"
WAITING_FOR_WORKER = "waiting-for-worker"
WAITING_FOR_OPERATION = "waiting-for-operation"
WAITING_FOR_RETRY = "waiting-for-retry"
WAITING_FOR_STORE = "waiting-for-store"


def why(session: Session, conf: cfg.ConfigOpts, task: models.Task, limits: Limits) -> str | None:
    """Say what a task waits for, or None: it runs.

    ``waiting-for-retry``: an attempt failed, and the next one is due later.  ``waiting-for-store``: the store
    does not answer; it is asked again later.  ``waiting-for-operation``: an earlier one on the same backup,
    volume or snapshot.  ``waiting-for-worker``: none that lives and is enabled can serve it.
    ``waiting-for-limit``: as many tasks run as may.  ``queued``: for a free worker.
    """
    row = models.Task
    moment = now(session)
    if task.state == claims.RUNNING and task.lease_until is not None and task.lease_until > moment:
        return None
    if task.not_before is not None and task.not_before > moment:
        return WAITING_FOR_STORE if task.store_down else WAITING_FOR_RETRY
    this = row.id == task.id
    if session.scalar(select(row.id).where(this, claims.first_in_line())) is None:
        return WAITING_FOR_OPERATION
    able = [
        service
        for service in services.services(session, conf, binary=services.BACKUP_BINARY)
        if service.up and not service.disabled and not service.frozen
    ]
    needed = Needs(task.zone, task.store, task.volume_host)
    if not any(_can_serve(service, needed) for service in able):
        return WAITING_FOR_WORKER
    room = limits.has_room(session)
    if room is None or session.scalar(select(row.id).where(this, room)) is None:
        return WAITING_FOR_LIMIT
    return QUEUED


class Waiting(CreateTasks, RestoreTasks, ImportTasks):
    """Ends what waits in vain.  Any process may do it, at any time, twice."""

    def expire_waiting(self, moment: datetime | None = None) -> int:
        """End tasks that wait for a worker since ``[backup] service_wait`` seconds.

        Those that no worker could serve: one that can, is not disabled, and reported itself within that
        time will come to them.  Tasks of backups, volumes and snapshots end in their error statuses.  The
        deletion of a backup shows ``error_deleting`` and its task stays: the next worker that can carries it
        out.  So does what users do not see: the removal of objects and of temporary snapshots.  A cancelled
        task of any kind goes, unfinished: what comes after it, e.g. the deletion, is not held up by it.

        :param moment: the time to compare with, naive UTC; the database's clock unless given.
        :returns: how many operations were ended.
        """
        # Looking costs no write lock; there is nearly never anything to end.
        with self._db.read() as session:
            if not self._overdue(session, moment)[0]:
                return 0
        ended = self._db.run(lambda session: self._expire(session, moment))
        for task, reason in ended:
            if not task.cancel:
                with working_for(task.request_id):
                    LOG.error("Task %s (%s of %s) ends: %s", task.id, task.kind, task.resource_id, reason)
        return len(ended)

    def _overdue(
        self, session: Session, moment: datetime | None
    ) -> tuple[Sequence[models.Task], Sequence[Service]]:
        """Return tasks that waited too long and that no service can serve, and the services that are left.

        A zone that no service was ever in is not waited for.
        """
        row = models.Task
        moment = moment or now(session)
        wait = self._conf.backup.service_wait
        oldest = moment - timedelta(seconds=wait)
        left = [
            service
            for service in services.services(session, self._conf, binary=services.BACKUP_BINARY)
            if not service.disabled and (service.up or service.reported_at >= oldest)
        ]
        deleting = select(models.Backup.id).where(models.Backup.status == lifecycle.DELETING)
        hidden = select(models.Snapshot.id).where(models.Snapshot.temporary.is_(True))
        waiting_since = func.coalesce(row.lease_until, row.not_before, row.updated_at)
        too_long: ColumnElement[bool] = waiting_since <= oldest
        if left:
            zones = select(models.Service.availability_zone).where(
                models.Service.availability_zone.is_not(None)
            )
            too_long = or_(too_long, and_(row.state == claims.QUEUED, row.zone.not_in(zones)))
        query = (
            select(row)
            .where(
                too_long,
                or_(
                    row.cancel.is_(True),
                    row.kind.in_((tasks.BACKUP_CREATE, tasks.BACKUP_IMPORT, tasks.BACKUP_RESTORE)),
                    # One that shows error_deleting already has nothing to tell.
                    and_(row.kind == tasks.BACKUP_DELETE, row.resource_id.in_(deleting)),
                    and_(row.kind.in_(volumes.KINDS), row.resource_id.not_in(hidden)),
                ),
                *(not_(reach.serves()) for reach in {_reach(service) for service in left}),
            )
            .order_by(row.id)
            .limit(_BATCH)
        )
        return list(session.scalars(query)), left

    def _expire(self, session: Session, moment: datetime | None) -> list[tuple[Task, str]]:
        ended = []
        overdue, left = self._overdue(session, moment)
        for row in overdue:
            # Locked and read again: a worker may have come.
            unchanged = (
                models.Task.attempt == row.attempt,
                models.Task.updated_at == row.updated_at,
                models.Task.cancel.is_(row.cancel),
            )
            if lock(session, models.Task, models.Task.id == row.id, *unchanged):
                locked = session.get_one(models.Task, row.id)
                task = tasks.as_task(locked)
                reason = locked.fail_reason or _reason(
                    Needs(locked.zone, locked.store, locked.volume_host), left
                )
                self._end(session, task, reason, left)
                ended.append((task, reason))
        return ended

    def _end(self, session: Session, task: Task, reason: str, left: Sequence[Service]) -> None:
        if task.cancel:
            # Whoever cancelled it has moved the statuses.
            _drop(session, task, "cancelled")
            return
        if task.kind in volumes.KINDS:
            _drop(session, task, "failed")
            volumes.failed(session, task, reason, Detail.NO_BACKEND if left else Detail.SERVICE_DOWN)
            return
        detail = Detail.SCHEDULE if left else Detail.SERVICE_DOWN
        if task.kind == tasks.BACKUP_DELETE:
            self._fail_delete(session, task, reason, detail)
            tasks.count_end(session, task, "failed")
            return
        _drop(session, task, "failed")
        try:
            if task.kind == tasks.BACKUP_CREATE:
                self._fail_create(session, task, reason, detail)
            elif task.kind == tasks.BACKUP_IMPORT:
                self._fail_import(session, task, reason, detail)
            else:
                self._fail_restore(session, task, reason, detail)
        except BackupNotFound:
            return


def _drop(session: Session, task: Task, outcome: Outcome) -> None:
    """Delete a task's row: an attempt that is frozen, not dead, finds it missing and changes nothing."""
    session.execute(delete(models.Task).where(models.Task.id == task.id))
    tasks.ended(session, task, outcome)


def _reach(service: Service) -> Reach:
    return Reach(
        service.host,
        service.binary,
        service.availability_zone,
        frozenset(service.stores),
        service.every_volume,
    )


def _can_serve(service: Service, needed: Needs) -> bool:
    return (
        needed.zone in (None, service.availability_zone)
        and (needed.store is None or needed.store in service.stores)
        and (service.every_volume or needed.volume_host in (None, service.host))
    )


def _reason(needed: Needs, left: Iterable[Service]) -> str:
    """Say what was missing, without a word about hosts: users read it."""
    there = list(left)
    if not there:
        return REASON
    wanted = [
        (Needs(zone=needed.zone), f"in availability zone {needed.zone}"),
        (Needs(store=needed.store), f"with the store {needed.store}"),
        (Needs(volume_host=needed.volume_host), "that can open the volume"),
    ]
    asked = [(need, words) for need, words in wanted if need != Needs()]
    # What nobody has; or else everything: each is there, but not together.
    missing = [item for item in asked if not any(_can_serve(service, item[0]) for service in there)]
    return f"No backup service {' and '.join(words for _, words in missing or asked)} was available."

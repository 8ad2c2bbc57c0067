"""What accepted operations wait for, and which of them have waited too long for a worker.

:mod:`backupfw.manager.outcomes.expiry` ends the latter.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from sqlalchemy import ColumnElement, and_, func, not_, or_, select
from sqlalchemy.orm import Session

from backupfw.db import models
from backupfw.db.session import now
from backupfw.manager.queue import claims, requirements, services
from backupfw.manager.queue.claims import Limits, Reach
from backupfw.manager.queue.requirements import Requirements
from backupfw.manager.queue.services import Service

if TYPE_CHECKING:
    from oslo_config import cfg

#: What users read if there is no worker at all.
REASON = "No backup service was available."
#: How many tasks one call ends, so that its transaction stays short.
_BATCH = 100

#: What :func:`why` returns for a task that does not run.
QUEUED = "queued"
WAITING_FOR_LIMIT = "waiting-for-limit"
WAITING_FOR_WORKER = "waiting-for-worker"
WAITING_FOR_OPERATION = "waiting-for-operation"
WAITING_FOR_RETRY = "waiting-for-retry"
WAITING_FOR_STORE = "waiting-for-store"
WAITING_FOR_LOCK = "waiting-for-lock"


def why(session: Session, conf: cfg.ConfigOpts, task: models.Task, limits: Limits) -> str | None:
    """Say what a task waits for, or None: it runs.

    ``waiting-for-retry``: an attempt failed, and the next one is due later.  ``waiting-for-store``: the store
    does not answer; it is asked again later.  ``waiting-for-lock``: what is to be deleted is locked in
    its store; it is tried again when that ends.  ``waiting-for-operation``: an earlier one on the same
    backup, volume or snapshot.  ``waiting-for-worker``: no live, enabled worker can serve it.
    ``waiting-for-limit``: a limit of running tasks is reached.  ``queued``: for a free worker.
    """
    return reasons(session, conf, [task], limits)[task.id]


def reasons(
    session: Session,
    conf: cfg.ConfigOpts,
    found: Sequence[Any],
    limits: Limits,
    first: Collection[int] | None = None,
) -> dict[int, str | None]:
    """Return what :func:`why` says of each of some tasks, with a few statements for all of them.

    :param found: rows of tasks, or tuples with their columns.
    :param first: the ids of those that no older one is in the way of; None: it is looked up.
    """
    row, moment = models.Task, now(session)
    said: dict[int, str | None] = {}
    waiting: dict[int, Any] = {}
    for task in found:
        if task.state == claims.RUNNING and task.lease_until is not None and task.lease_until > moment:
            said[task.id] = None
        elif task.not_before is not None and task.not_before > moment:
            said[task.id] = _delayed(task)
        else:
            waiting[task.id] = task
    if not waiting:
        return said
    if first is None:
        these = row.id.in_(list(waiting))
        first = session.scalars(select(row.id).where(these, claims.first_in_line())).all()
    first = waiting.keys() & first
    said.update((task_id, WAITING_FOR_OPERATION) for task_id in waiting.keys() - first)
    if not first:
        return said
    reaches = _reaches(
        service
        for service in services.services(session, conf, binary=services.BACKUP_BINARY)
        if service.up and not service.disabled and not service.frozen
    )
    needs = {task_id: requirements.of_row(waiting[task_id]) for task_id in first}
    able = {task_id for task_id, needed in needs.items() if any(reach.can_serve(needed) for reach in reaches)}
    said.update((task_id, WAITING_FOR_WORKER) for task_id in first - able)
    if able and not limits.any():
        said.update((task_id, QUEUED) for task_id in able)
    elif able:
        these = row.id.in_(list(able))
        fits = set(session.scalars(select(row.id).where(these, limits.has_room(session))))
        said.update((task_id, QUEUED if task_id in fits else WAITING_FOR_LIMIT) for task_id in able)
    return said


def _delayed(task: models.Task) -> str:
    if task.locked:
        return WAITING_FOR_LOCK
    return WAITING_FOR_STORE if task.store_down else WAITING_FOR_RETRY


def until(task: models.Task, reason: str | None) -> datetime | None:
    """Return when a task is due that waits for that reason, naive UTC; None: nobody knows."""
    timed = reason in (WAITING_FOR_LOCK, WAITING_FOR_STORE, WAITING_FOR_RETRY)
    return task.not_before if timed else None


def overdue(
    session: Session, conf: cfg.ConfigOpts, ends: ColumnElement[bool], moment: datetime | None = None
) -> tuple[Sequence[models.Task], Sequence[Service]]:
    """Return tasks that waited ``[backup] service_wait`` seconds for a worker, and the services there are.

    These are the enabled services with a heartbeat within that time; none of them can serve any of the tasks.
    If there is one, a queued task for a zone that never had a service is returned without that wait.

    :param ends: which tasks to look at.
    :param moment: the time to compare with, naive UTC; the database's clock unless given.
    :returns: the oldest tasks, at most 100, so that ending them is a short transaction.
    """
    row = models.Task
    if session.scalar(select(row.id).where(ends).limit(1)) is None:
        # Most looks find nothing, and cost this statement only.
        return [], []
    moment = moment or now(session)
    oldest = moment - timedelta(seconds=conf.backup.service_wait)
    left = [
        service
        for service in services.services(session, conf, binary=services.BACKUP_BINARY)
        if not service.disabled and (service.up or service.reported_at >= oldest)
    ]
    waiting_since = func.coalesce(row.lease_until, row.not_before, row.updated_at)
    too_long: ColumnElement[bool] = waiting_since <= oldest
    if left:
        zones = select(models.Service.availability_zone).where(models.Service.availability_zone.is_not(None))
        too_long = or_(too_long, and_(row.state == claims.QUEUED, row.zone.not_in(zones)))
    query = (
        select(row)
        .where(too_long, ends, *(not_(reach.serves()) for reach in _reaches(left)))
        .order_by(row.id)
        .limit(_BATCH)
    )
    return list(session.scalars(query)), left


def _reaches(known: Iterable[Service]) -> Sequence[Reach]:
    """Return what each process of the services can serve: one of them must serve a task as a whole."""
    found = []
    for service in known:
        pairs = [(one["stores"], services.backends_of(one)) for one in (service.processes or {}).values()]
        # Where no process is known, or all have left, the row has what they had.
        for stores, backends in pairs or [(service.stores, service.backends)]:
            shared = frozenset(name for name, can in backends.items() if can)
            place = (service.host, service.binary, service.availability_zone)
            found.append(Reach(*place, frozenset(stores), frozenset(backends), shared))
    return list(dict.fromkeys(found))


def missing(task: models.Task, left: Iterable[Service]) -> str:
    """Name the requirement that no service meets.  Users read it, so it names no host."""
    needed = requirements.of_row(task)
    there = _reaches(left)
    if not there:
        return REASON
    wanted = [
        (Requirements(zone=needed.zone), f"in availability zone {needed.zone}"),
        (Requirements(store=needed.store), f"with the store {needed.store}"),
        (Requirements(backend=needed.backend), f"with the volume back end {needed.backend}"),
    ]
    opens = Requirements(volume_host=needed.volume_host, backend=needed.backend)
    if needed.volume_host is not None and any(needed.backend in (None, *one.backends) for one in there):
        wanted.append((opens, "that can open the volume"))
    asked = [(need, words) for need, words in wanted if need != Requirements()]
    # The requirements that no service meets; if each is met, but not all together, those that some lack.
    nowhere = [item for item in asked if not any(reach.can_serve(item[0]) for reach in there)]
    apart = [item for item in asked if not all(reach.can_serve(item[0]) for reach in there)]
    return f"No backup service {' and '.join(words for _, words in nowhere or apart or asked)} was available."

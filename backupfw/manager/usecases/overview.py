"""What the console shows that no use case of one kind of resource returns: reads across many kinds.

Each method reads a bounded number of rows along an index, whatever the database holds.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from sqlalchemy import ColumnElement, case, func, select, true
from sqlalchemy.orm import Session

from backupfw.db import models
from backupfw.db.session import now
from backupfw.manager.queue import claims, requirements, tasks, waiting
from backupfw.manager.queue.claims import Limits

if TYPE_CHECKING:
    from oslo_config import cfg

    from backupfw.context import RequestContext
    from backupfw.db.session import Database

#: Kinds whose resource is a backup; that of a copy is a manifest.
_OF_BACKUPS = (tasks.BACKUP_CREATE, tasks.BACKUP_IMPORT, tasks.BACKUP_RESTORE, tasks.BACKUP_DELETE)
#: Kinds whose resource is a volume.
_OF_VOLUMES = (tasks.VOLUME_CREATE, tasks.VOLUME_DELETE, tasks.VOLUME_EXTEND, tasks.VOLUME_TIDY)
_OF_SNAPSHOTS = (tasks.SNAPSHOT_CREATE, tasks.SNAPSHOT_DELETE)
#: Kinds that their users may cancel.
_CANCELLABLE = (tasks.BACKUP_CREATE, tasks.BACKUP_IMPORT, tasks.BACKUP_RESTORE)


@dataclass(frozen=True, slots=True)
class Operation:
    """A task, as people ask for it.

    :ivar waits_for: see :func:`backupfw.manager.queue.waiting.why`; None: it runs.
    :ivar backup_id: the backup that it is about; None: it is about none.
    :ivar volume_id: the volume that it is about, reads or writes; None: not known.
    :ivar volume_name: as its user called it.
    :ivar done: bytes; ``total`` is None where it is not known (yet).
    :ivar rate: bytes per second at the worker's last report; None: not known.
    :ivar seconds_left: at that rate.
    :ivar owner: the worker that has it.
    :ivar lease_until: naive UTC; until then nobody else takes it.
    :ivar reason: why the attempt before failed.
    :ivar cancellable: whether its user may cancel it.
    """

    id: int
    kind: str
    project_id: str
    waits_for: str | None
    backup_id: str | None
    backup_name: str | None
    volume_id: str | None
    volume_name: str | None
    store: str | None
    done: int
    total: int | None
    rate: int | None
    seconds_left: int | None
    owner: str | None
    lease_until: datetime | None
    attempt: int
    reason: str | None
    cancellable: bool
    created_at: datetime


@dataclass(frozen=True, slots=True)
class Work:
    """What workers do and will do.

    :ivar operations: what runs, then what waits in the order of the queue; the first of them.
    :ivar running: how many tasks run.
    :ivar waiting: how many tasks wait.
    :ivar moment: of the database's clock, naive UTC.
    """

    operations: Sequence[Operation]
    running: int
    waiting: int
    moment: datetime


class Overview:
    """Reads for people.  Thread-safe.

    Only administrators see other projects, and clean-ups that no user asked for.
    """

    def __init__(self, db: Database, conf: cfg.ConfigOpts) -> None:
        self._db = db
        self._conf = conf

    def work(self, ctx: RequestContext, limit: int = 100) -> Work:
        """Return what workers do and will do."""
        row = models.Task
        mine: ColumnElement[bool] = true()
        if not ctx.is_admin:
            mine = (row.project_id == ctx.project_id) & row.kind.not_in(requirements.HIDDEN)
        with self._db.read() as session:
            states = session.execute(select(row.state, func.count()).where(mine).group_by(row.state))
            counts: dict[str, int] = {one[0]: one[1] for one in states}
            first = case((row.state == claims.RUNNING, 0), else_=1)
            found = list(
                session.scalars(
                    select(row).where(mine).order_by(first, row.queue_position, row.id).limit(limit)
                )
            )
            operations = _operations(session, self._conf, found)
            moment = now(session)
        return Work(operations, counts.get(claims.RUNNING, 0), counts.get(claims.QUEUED, 0), moment)


def _operations(session: Session, conf: cfg.ConfigOpts, found: Sequence[models.Task]) -> Sequence[Operation]:
    """Turn tasks into records, with a few queries for all of them."""
    reasons = waiting.reasons(session, conf, found, Limits.of(conf))
    backup_of = {task.id: task.resource_id for task in found if task.kind in _OF_BACKUPS}
    manifests = {task.resource_id for task in found} - set(backup_of.values())
    made_by = _pairs(session, models.Manifest.id, models.Manifest.backup_id, manifests)
    backup_of |= {task.id: made_by[task.resource_id] for task in found if task.resource_id in made_by}
    backup = models.Backup
    backups = {
        one.id: one
        for one in session.execute(
            select(backup.id, backup.display_name, backup.volume_id, backup.length, backup.store).where(
                backup.id.in_(set(backup_of.values()))
            )
        )
    }
    snapshots = {task.resource_id for task in found if task.kind in _OF_SNAPSHOTS}
    snapshot_of = _pairs(session, models.Snapshot.id, models.Snapshot.volume_id, snapshots)
    volume_of: dict[int, str | None] = {}
    for task in found:
        its = backups.get(backup_of.get(task.id, ""))
        if task.kind == tasks.BACKUP_RESTORE:
            volume_of[task.id] = task.payload.get("volume_id")
        elif task.kind in _OF_VOLUMES:
            volume_of[task.id] = task.resource_id
        else:
            volume_of[task.id] = its.volume_id if its else snapshot_of.get(task.resource_id)
    wanted = {volume_id for volume_id in volume_of.values() if volume_id}
    names = _pairs(session, models.Volume.id, models.Volume.display_name, wanted)
    operations = []
    for task in found:
        its, volume_id = backups.get(backup_of.get(task.id, "")), volume_of[task.id]
        total = task.progress_total or (its.length if its is not None and its.length else 0)
        if task.kind not in (*_CANCELLABLE, tasks.BACKUP_COPY):
            total = task.progress_total
        rate = task.progress_rate if reasons[task.id] is None and task.progress_rate else None
        left = max(total - task.progress_done, 0)
        operations.append(
            Operation(
                id=task.id,
                kind=task.kind,
                project_id=task.project_id,
                waits_for=reasons[task.id],
                backup_id=None if its is None else its.id,
                backup_name=None if its is None else its.display_name,
                volume_id=volume_id,
                volume_name=names.get(volume_id or ""),
                store=task.store,
                done=task.progress_done,
                total=total or None,
                rate=rate,
                seconds_left=None if rate is None or not total else -(-left // rate),
                owner=task.owner,
                lease_until=task.lease_until,
                attempt=task.attempt,
                reason=task.fail_reason,
                cancellable=task.kind in _CANCELLABLE and not task.cancel and its is not None,
                created_at=task.created_at,
            )
        )
    return operations


def _pairs(session: Session, key: Any, value: Any, wanted: Collection[str]) -> dict[str, Any]:
    """Return a column's values for some keys."""
    if not wanted:
        return {}
    found = session.execute(select(key, value).where(key.in_(wanted)))
    return {one[0]: one[1] for one in found}

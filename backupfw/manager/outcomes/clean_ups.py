"""Clean-ups that are given up: their store, volume back end or machine is gone for good.

Such tasks are repeated until they succeed: the removal of a backup's objects, of a temporary snapshot, and of
what a volume's storage keeps for points.  An operator who knows that they never will ends them here; what
they were about to remove stays where it is.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from backupfw.db import models
from backupfw.db.locks import lock
from backupfw.db.session import Database, now
from backupfw.errors import InvalidInput
from backupfw.manager.lineage import lifecycle
from backupfw.manager.lineage.lifecycle import SnapshotMoves
from backupfw.manager.outcomes.deleting import DeleteTasks
from backupfw.manager.queue import claims, tasks, waiting
from backupfw.manager.queue.claims import Limits
from backupfw.manager.rows import Task

if TYPE_CHECKING:
    from oslo_config import cfg


@dataclass(frozen=True, slots=True)
class Unfinished:
    """A task that has not ended.

    :ivar resource_id: of the backup, manifest, volume or snapshot that it is about.
    :ivar requires: the store or volume back end that its worker must have.
    :ivar waits_for: see :func:`backupfw.manager.queue.waiting.why`; None: it runs.
    :ivar since: when it was queued, naive UTC; a clean-up that failed is queued again.
    :ivar reason: why the attempt before failed, if that is known.
    :ivar until: when it is tried again, naive UTC; None: not known, or it runs.
    """

    id: int
    kind: str
    resource_id: str
    project_id: str
    requires: str | None
    waits_for: str | None
    since: datetime
    reason: str | None
    until: datetime | None = None


@dataclass(frozen=True, slots=True)
class ManifestPlace:
    """Where the objects of a manifest are.

    :ivar maker: installation, project, volume and backup, which the objects' names begin with.
    """

    store: str
    container: str
    maker: tuple[str, str, str, str]


@dataclass(frozen=True, slots=True)
class Left:
    """What stays behind after a clean-up that was given up.

    :ivar backend: of the volume whose storage has it, at ``place``.
    :ivar backups: the ids of the backups that names in that storage may have.
    :ivar manifest: where a backup's objects are; None: there are none.
    """

    task: Task
    backend: str | None = None
    place: str | None = None
    backups: tuple[str, ...] = ()
    manifest: ManifestPlace | None = None


def unfinished(db: Database, conf: cfg.ConfigOpts, limits: Limits) -> Iterator[Unfinished]:
    """Yield the tasks that have not ended, the oldest first.

    :param limits: of running tasks, for which one may wait.
    """
    with db.read() as session:
        ids = list(session.scalars(select(models.Task.id).order_by(models.Task.id)))
    for task_id in ids:
        with db.read() as session:
            row = session.get(models.Task, task_id)
            if row is not None:
                waits_for = waiting.why(session, conf, row, limits)
                yield Unfinished(
                    row.id,
                    row.kind,
                    row.resource_id,
                    row.project_id,
                    row.store or row.backend,
                    waits_for,
                    row.created_at,
                    row.fail_reason,
                    waiting.until(row, waits_for),
                )


def give_up(db: Database, conf: cfg.ConfigOpts, task_id: int) -> Left:
    """End a clean-up unfinished.

    :returns: what stays behind, and where.
    :raises InvalidInput: there is no such task, a worker has it, or it is no clean-up.
    """
    deletions = DeleteTasks(db, conf)

    def work(session: Session) -> Left:
        lock(session, models.Task, models.Task.id == task_id)
        row = session.get(models.Task, task_id, populate_existing=True)
        if row is None:
            raise InvalidInput(f"There is no task {task_id}.")
        if row.state == claims.RUNNING and row.lease_until is not None and row.lease_until > now(session):
            raise InvalidInput(f"A worker has task {task_id}; try again when it waits.")
        task = tasks.as_task(row)
        session.execute(delete(models.Task).where(models.Task.id == task_id))
        left = _end(session, deletions, task)
        tasks.ended(session, task, "cancelled")
        return left

    return db.run(work)


def _end(session: Session, deletions: DeleteTasks, task: Task) -> Left:
    if task.kind == tasks.VOLUME_TIDY:
        volume = session.get_one(models.Volume, task.resource_id)
        mine = models.Backup.volume_id == volume.id
        backups = session.scalars(select(models.Backup.id).where(mine).order_by(models.Backup.created_at))
        place = task.payload.get("location") or volume.location
        return Left(task, backend=volume.backend, place=place, backups=tuple(backups))
    if task.kind == tasks.SNAPSHOT_DELETE:
        snapshot = session.get_one(models.Snapshot, task.resource_id)
        if snapshot.temporary:
            lifecycle.move(session, models.Snapshot, snapshot.id, SnapshotMoves.deleted)
            volume = session.get_one(models.Volume, snapshot.volume_id)
            return Left(task, backend=volume.backend, place=snapshot.location or snapshot.id)
    elif task.kind in (tasks.BACKUP_DELETE, tasks.MANIFEST_RELEASE):
        manifest_id = deletions.give_up(session, task)
        return Left(task, manifest=None if manifest_id is None else _place(session, manifest_id))
    elif task.kind == tasks.VOLUME_THAW:
        return Left(task)
    elif task.kind == tasks.MANIFEST_SCRUB:
        # It leaves nothing behind; if its store is there after all, the next one begins anew.
        return Left(task)
    raise InvalidInput(f"Task {task.id} is no clean-up, but {task.kind}.")


def _place(session: Session, manifest_id: str) -> ManifestPlace:
    row = session.get_one(models.Manifest, manifest_id)
    maker = (row.installation_id, row.project_id, row.volume_id, row.backup_id)
    return ManifestPlace(row.store, row.container, maker)

"""Which task runs next: what a worker can serve, how many tasks may run, which one is first in the queue.

*Queue positions.*  Each task gets a number when it is queued: one more than its project's last one, and more
than that of the task claimed last.  The lowest number runs first.  So projects alternate, however many tasks
each has queued, and a project gets nothing extra for the time when it was idle.

*Limits.*  Every claim locks one row (``queue``), so two claims never both see the last free place.  A running
task counts until a claim finds that its lease has ended and takes the task from its owner.  The owner cannot
renew the lease after that, so a renewal that was begun in time and is committed late cannot exceed a limit.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from functools import cache
from typing import TYPE_CHECKING

from sqlalchemy import ColumnElement, Select, and_, exists, func, not_, or_, select, update
from sqlalchemy.orm import Session, aliased

from backupfw.conf.stores import group_of
from backupfw.conf.volumes import LOCAL
from backupfw.db import models
from backupfw.db.locks import insert_if_absent, lock
from backupfw.db.session import clock
from backupfw.manager.queue import requirements

if TYPE_CHECKING:
    from oslo_config import cfg

QUEUED = "queued"
RUNNING = "running"

#: How many tasks a claim looks at in one go.
_PAGE = 64
#: The one row of table ``queue``.
_QUEUE = 1


@dataclass(frozen=True, slots=True)
class Reach:
    """What the workers of one process can serve.

    :ivar host: their host, as volumes and ``os-services`` name it.
    :ivar binary: their service's name.
    :ivar zone: their availability zone.
    :ivar stores: the configured names of the stores they can reach.
    :ivar backends: the names of the volume back ends that they have.
    :ivar shared: the back ends in which they can open volumes of other hosts, too.
    """

    host: str
    binary: str
    zone: str | None
    stores: frozenset[str]
    backends: frozenset[str]
    shared: frozenset[str] = frozenset()

    def serves(self) -> ColumnElement[bool]:
        """The condition on a task's row that these workers can serve it: its ``requirements.of_row``."""
        row = models.Task
        in_none = and_(
            row.backend.is_(None), row.volume_host.is_(None), row.kind.in_(requirements.WITHOUT_VOLUME)
        )
        return and_(
            or_(row.zone.is_(None), row.zone == self.zone),
            or_(row.store.is_(None), row.store.in_(sorted(self.stores))),
            or_(row.from_store.is_(None), row.from_store.in_(sorted(self.stores))),
            or_(in_none, _is_backend_of(self.backends)),
            or_(row.volume_host.is_(None), row.volume_host == self.host, _is_backend_of(self.shared)),
        )

    def can_serve(self, needed: requirements.Requirements) -> bool:
        """Return what :meth:`serves` says of a task's requirements."""
        return (
            needed.zone in (None, self.zone)
            and (needed.store is None or needed.store in self.stores)
            and (needed.from_store is None or needed.from_store in self.stores)
            and (needed.backend is None or needed.backend in self.backends)
            and (needed.volume_host in (None, self.host) or needed.backend in self.shared)
        )

    def takes_new(self) -> ColumnElement[bool]:
        """The condition on a task's row that these workers are neither disabled nor frozen.

        The thawing of a volume is nothing new: programs wait for it, and there may be no other worker.
        """
        service = models.Service
        is_off = exists().where(
            service.host == self.host,
            service.binary == self.binary,
            or_(service.disabled.is_(True), service.frozen.is_(True)),
        )
        return or_(models.Task.kind == requirements.VOLUME_THAW, ~is_off)


def _is_backend_of(names: frozenset[str]) -> ColumnElement[bool]:
    """The condition on a task's row that its back end has one of these names; never NULL.

    A process of an older release queues tasks without a back end: its volumes are in the back end ``local``.
    Statistics do not tell a database how many rows meet a condition on a function's value, such as COALESCE.
    """
    column = models.Task.backend
    named = column.in_(sorted(names))
    return or_(column.is_(None), named) if LOCAL in names else and_(column.is_not(None), named)


@dataclass(frozen=True, slots=True)
class Limits:
    """How many tasks may run at once, over all workers; 0 stands for no limit.

    :ivar total: of all projects and stores.
    :ivar project: of each project.
    :ivar stores: of a store, by its configured name.
    """

    total: int = 0
    project: int = 0
    stores: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, conf: cfg.ConfigOpts) -> Limits:
        """Return the configured limits."""
        return cls(
            conf.backup.max_running,
            conf.backup.max_running_per_project,
            {name: conf[group_of(name)].max_running for name in conf.enabled_stores},
        )

    def any(self) -> bool:
        """Whether there is a limit at all."""
        return bool(self.total or self.project or any(self.stores.values()))

    def has_room(self, session: Session) -> ColumnElement[bool]:
        """The condition on a task's row that the limits allow one more such task.

        A scrub takes nobody's place, and needs none: there is one for each store, and it has a limit of its
        own.  Nor does the thawing of a volume, for which programs wait.
        """
        row = models.Task
        if not self.any():
            return row.id.is_not(None)
        is_free = row.kind.in_(requirements.UNLIMITED)
        running = session.execute(
            select(row.project_id, row.store, func.count())
            .where(row.state == RUNNING, row.owner.is_not(None), not_(is_free))
            .group_by(row.project_id, row.store)
        ).all()
        if self.total and sum(count for *_, count in running) >= self.total:
            return is_free
        projects: dict[str, int] = {}
        stores: dict[str, int] = {}
        for project, store, count in running:
            projects[project] = projects.get(project, 0) + count
            if store is not None:
                stores[store] = stores.get(store, 0) + count
        full_projects = [name for name, count in projects.items() if self.project and count >= self.project]
        full_stores = [name for name, limit in self.stores.items() if 0 < limit <= stores.get(name, 0)]
        return or_(
            is_free,
            and_(
                row.project_id.not_in(full_projects), or_(row.store.is_(None), row.store.not_in(full_stores))
            ),
        )


@cache
def first_in_line(*, of_few: bool = False) -> ColumnElement[bool]:
    """No older unfinished task concerns the same resource or source (ids of both kinds never collide).

    It is made once: to make the alias takes longer than to ask.

    :param of_few: for a page of tasks that people look at: SQLite answers in about half the time, but MariaDB
        reads the whole table for each task.
    """
    row, older = models.Task, aliased(models.Task)
    in_the_way = and_(
        older.id < row.id,
        # Programs wait for it; and what it is in the way of may be what froze the volume.
        row.kind != requirements.VOLUME_THAW,
        # But a volume is tidied by one worker at a time.
        or_(
            # Not by an IN, whose parameters would be put into the text at each execution.
            and_(*(older.kind != kind for kind in requirements.IN_NOBODYS_WAY)),
            and_(row.kind == requirements.VOLUME_TIDY, older.kind == requirements.VOLUME_TIDY),
        ),
    )
    same = (
        older.resource_id == row.resource_id,
        older.source_id == row.resource_id,
        older.resource_id == row.source_id,
        older.source_id == row.source_id,
    )
    # MariaDB uses no index for a subquery with an OR over several columns.
    if of_few:
        return ~exists(select(older.id).where(in_the_way, or_(*same)))
    return and_(*(~exists(select(older.id).where(in_the_way, one)) for one in same))


def due(moment: ColumnElement[datetime]) -> tuple[ColumnElement[bool], ColumnElement[bool]]:
    """The two conditions under which a task can be claimed: its lease has ended, or it is queued and due.

    They are separate because each has its own index.
    """
    row = models.Task
    lost = and_(row.state == RUNNING, row.lease_until <= moment)
    queued = and_(row.state == QUEUED, or_(row.not_before.is_(None), row.not_before <= moment))
    return lost, queued


def question(
    moment: ColumnElement[datetime], reach: Reach | None, kinds: Collection[str] | None
) -> Select[bool]:
    """Ask whether a claim may find a task, without a lock.

    It ignores limits, and tasks that wait for older ones.
    """
    row = models.Task
    return select(
        or_(
            *(
                exists(select(row.id).where(way, *_eligible(reach, kinds)).correlate_except(row))
                for way in due(moment)
            )
        )
    )


def next_task(
    session: Session, reach: Reach | None, limits: Limits, kinds: Collection[str] | None
) -> models.Task | None:
    """Return the task that runs next, locked, for the caller to claim in the same transaction."""
    position = lock_queue(session)
    if limits.any():
        _disown(session)
    room = limits.has_room(session)
    row = models.Task
    for way in due(clock(session)):
        for task_id in _in_order(session, and_(way, room, *_eligible(reach, kinds))):
            # Skip a row that another transaction has locked: all other claims would wait with this one.
            if lock(session, row, row.id == task_id, way, skip_locked=True):
                found = session.get_one(row, task_id)
                _advance(session, position, found.queue_position)
                return found
    return None


def _disown(session: Session) -> None:
    """Take tasks whose leases have ended from their owners; one whose row is locked still counts."""
    row = models.Task
    lapsed = (row.state == RUNNING, row.lease_until <= clock(session), row.owner.is_not(None))
    ids = lock(session, row, *lapsed, skip_locked=True)
    if ids:
        session.execute(
            update(row).where(row.id.in_(ids)).values(owner=None),
            execution_options={"synchronize_session": False},
        )


def _in_order(session: Session, condition: ColumnElement[bool]) -> Iterator[int]:
    """Yield the tasks that meet a condition and are first in line, in the order of the queue.

    It reads the tasks page by page along an index, and looks for older tasks of the same resource per page:
    in one statement, a database without fresh statistics would look for them for every waiting task.
    """
    row = models.Task
    after: ColumnElement[bool] | None = None
    while True:
        query = select(row.id, row.queue_position).where(condition)
        if after is not None:
            query = query.where(after)
        page = session.execute(query.order_by(row.queue_position, row.id).limit(_PAGE)).all()
        if not page:
            return
        ids = [task_id for task_id, _ in page]
        free = set(session.scalars(select(row.id).where(row.id.in_(ids), first_in_line())))
        yield from (task_id for task_id in ids if task_id in free)
        if len(page) < _PAGE:
            return
        last, position = page[-1]
        after = or_(row.queue_position > position, and_(row.queue_position == position, row.id > last))


def _eligible(reach: Reach | None, kinds: Collection[str] | None) -> list[ColumnElement[bool]]:
    conditions = [] if reach is None else [reach.serves(), reach.takes_new()]
    if kinds is not None:
        conditions.append(models.Task.kind.in_(list(kinds)))
    return conditions


def lock_queue(session: Session) -> int:
    """Lock the queue's row until the transaction ends, and return the position of the task claimed last."""
    row = models.Queue
    if not lock(session, row, row.id == _QUEUE):
        session.execute(insert_if_absent(session, row), {"id": _QUEUE, "queue_position": 0})
        # The row exists now, whichever transaction inserted it; wait for its lock.
        lock(session, row, row.id == _QUEUE)
    return session.scalars(select(row.queue_position).where(row.id == _QUEUE)).one()


def _advance(session: Session, position: int, claimed: int) -> None:
    if claimed > position:
        session.execute(
            update(models.Queue).where(models.Queue.id == _QUEUE).values(queue_position=claimed),
            execution_options={"synchronize_session": False},
        )


def new_position(session: Session, project_id: str) -> int:
    """Return the queue position that a task of a project gets when it is queued."""
    last = select(func.max(models.Task.queue_position)).where(
        models.Task.project_id == project_id, models.Task.kind != requirements.MANIFEST_SCRUB
    )
    current = select(models.Queue.queue_position).where(models.Queue.id == _QUEUE)
    mine, all_ = session.execute(select(last.scalar_subquery(), current.scalar_subquery())).one()
    return max(mine or 0, all_ or 0) + 1

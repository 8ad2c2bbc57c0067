"""Audit of the database: do its rows agree with each other?

Looks only, in one state of the database (:meth:`~backupfw.db.session.Database.snapshot`), so it may run
at any time beside the service.  What the store holds is the engine's to compare
(:mod:`backupfw.engine.audit`).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import groupby
from operator import attrgetter

from sqlalchemy import and_, exists, or_, select, true
from sqlalchemy.orm import Session, aliased

from backupfw.db.digest import object_digest
from backupfw.db.installation import installation_id
from backupfw.db.models import Backup, Manifest, Segment, Snapshot, Task, Volume
from backupfw.db.session import Database, now
from backupfw.manager import claims, lifecycle, quota, tasks
from backupfw.manager.lifecycle import (
    AVAILABLE,
    BACKING_UP,
    CREATING,
    DELETING,
    ERROR_DELETING,
    EXTENDING,
    GONE,
    LIVE,
    RELEASED,
    RESTORING,
    RESTORING_BACKUP,
    WRITING,
)
from backupfw.manager.lineage_tree import Node, Tree
from backupfw.manager.volume_rules import gigabytes

#: Which unfinished tasks may stand behind a status: kinds about the resource, kinds that occupy it.
_BEHIND: dict[tuple[type[Backup | Volume | Snapshot], str], tuple[tuple[str, ...], tuple[str, ...]]] = {
    (Backup, CREATING): ((tasks.BACKUP_CREATE, tasks.BACKUP_IMPORT), ()),
    (Backup, RESTORING): ((tasks.BACKUP_RESTORE,), ()),
    (Backup, DELETING): ((tasks.BACKUP_DELETE,), ()),
    (Backup, ERROR_DELETING): ((tasks.BACKUP_DELETE,), ()),
    (Volume, CREATING): ((tasks.VOLUME_CREATE,), (tasks.BACKUP_RESTORE,)),
    (Volume, DELETING): ((tasks.VOLUME_DELETE,), ()),
    (Volume, EXTENDING): ((tasks.VOLUME_EXTEND,), ()),
    (Volume, BACKING_UP): ((), (tasks.BACKUP_CREATE,)),
    (Volume, RESTORING_BACKUP): ((), (tasks.BACKUP_RESTORE,)),
    (Snapshot, CREATING): ((tasks.SNAPSHOT_CREATE,), ()),
    (Snapshot, DELETING): ((tasks.SNAPSHOT_DELETE,), ()),
    (Snapshot, BACKING_UP): ((), (tasks.BACKUP_CREATE,)),
}

#: The statuses in which the backup of a task that was not cancelled must be.
_OF_TASK = {
    tasks.BACKUP_CREATE: (CREATING,),
    tasks.BACKUP_IMPORT: (CREATING,),
    tasks.BACKUP_RESTORE: (RESTORING,),
    tasks.BACKUP_DELETE: (DELETING, ERROR_DELETING),
}


#: Whole tables pass by in parts of so many rows, on every database.
_STREAMED = {"yield_per": 1000}


@dataclass(frozen=True, slots=True, order=True)
class Finding:
    """Something that is wrong.

    :ivar check: what was checked: ``status``, ``lease``, ``task``, ``snapshot``, ``lineage``, ``usage``,
        ``volume`` or ``store``.
    :ivar subject: what it is about, e.g. ``backup <id>``.
    :ivar problem: what is wrong with it.
    """

    check: str
    subject: str
    problem: str


@dataclass(slots=True)
class _Tasks:
    """The unfinished tasks, as the checks look them up."""

    rows: Sequence[Task]
    of: dict[tuple[str, str], list[Task]] = field(default_factory=lambda: defaultdict(list))
    occupying: dict[tuple[str, str], list[Task]] = field(default_factory=lambda: defaultdict(list))

    def __post_init__(self) -> None:
        for row in self.rows:
            self.of[row.kind, row.resource_id].append(row)
            if row.source_id is not None:
                self.occupying[row.kind, row.source_id].append(row)


def run(db: Database, lease_seconds: float) -> list[Finding]:
    """Return everything that is wrong, sorted.

    :param lease_seconds: how long leases hold; one that ran out longer ago than that is found.
    """
    with db.snapshot() as session:
        known = _Tasks(session.scalars(select(Task).order_by(Task.id)).all())
        found = [
            *_statuses(session, known),
            *_leases(session, known, lease_seconds),
            *_causes(session, known),
            *_temporary_snapshots(session, known),
            *_manifests_of_backups(session),
            *_holders_of_manifests(session, known),
            *_manifests(session),
            *_trees(session),
            *_usage(session),
        ]
    return sorted(found)


def _noun(model: type) -> str:
    return model.__name__.lower()


def _statuses(session: Session, known: _Tasks) -> Iterator[Finding]:
    """No transient status stands without a task that leads out of it."""
    for model in (Backup, Volume, Snapshot):
        wanted = [status for of, status in _BEHIND if of is model]
        rows = session.execute(
            select(model.id, model.status).where(model.status.in_(wanted), model.deleted.is_(False))
        )
        for resource_id, status in rows:
            about, occupying = _BEHIND[model, status]
            behind = [
                *(task for kind in about for task in known.of[kind, resource_id]),
                *(task for kind in occupying for task in known.occupying[kind, resource_id]),
            ]
            # A temporary snapshot belongs to its backup's task and has a check of its own.
            if model is Snapshot and _is_temporary(session, resource_id):
                continue
            if not any(not task.cancel for task in behind):
                yield Finding(
                    "status", f"{_noun(model)} {resource_id}", f"is {status}, but no task is about it"
                )


def _is_temporary(session: Session, snapshot_id: str) -> bool:
    return bool(session.scalar(select(Snapshot.temporary).where(Snapshot.id == snapshot_id)))


def _leases(session: Session, known: _Tasks, lease_seconds: float) -> Iterator[Finding]:
    """Every running task has a lease that is live, or ran out so lately that nobody took over yet."""
    moment = now(session)
    for task in known.rows:
        if task.state != claims.RUNNING:
            continue
        until = task.lease_until
        if until is None:
            yield Finding("lease", _task(task), "is running without a lease")
        elif until < moment - timedelta(seconds=lease_seconds):
            seconds = int((moment - until).total_seconds())
            yield Finding("lease", _task(task), f"its lease ran out {seconds} s ago and nobody took it over")


def _task(task: Task) -> str:
    return f"task {task.id} ({task.kind} {task.resource_id})"


def _causes(session: Session, known: _Tasks) -> Iterator[Finding]:
    """Every task that was not cancelled is about something that waits for it."""
    for task in known.rows:
        if task.cancel or task.kind not in _OF_TASK:
            continue
        statuses = _OF_TASK[task.kind]
        status = session.scalar(
            select(Backup.status).where(Backup.id == task.resource_id, Backup.deleted.is_(False))
        )
        if status is None:
            yield Finding("task", _task(task), "the backup does not exist")
        elif status not in statuses:
            yield Finding("task", _task(task), f"the backup is {status}")


def _temporary_snapshots(session: Session, known: _Tasks) -> Iterator[Finding]:
    """A temporary snapshot lives as long as the task of its backup, or its removal."""
    row = Snapshot
    for snapshot_id, status, backup_id in session.execute(
        select(row.id, row.status, Backup.id)
        .outerjoin(Backup, Backup.temp_snapshot_id == row.id)
        .where(row.temporary, row.deleted.is_(False))
    ):
        making = known.of[tasks.BACKUP_CREATE, backup_id] if backup_id else []
        if not making and not known.of[tasks.SNAPSHOT_DELETE, snapshot_id]:
            yield Finding("snapshot", f"snapshot {snapshot_id}", f"is temporary and {status}, but of no task")


def _manifests_of_backups(session: Session) -> Iterator[Finding]:
    """A backup that can be restored has a live manifest, in the place the backup says."""
    row, manifest = Backup, Manifest
    told = (row.store, row.container, row.service_metadata, row.length)
    known = (manifest.store, manifest.container, manifest.key, manifest.length)
    differs = or_(*(one.is_distinct_from(other) for one, other in zip(told, known, strict=True)))
    for backup_id, status, state in session.execute(
        select(row.id, row.status, manifest.state)
        .outerjoin(manifest, row.manifest_id == manifest.id)
        .where(
            row.deleted.is_(False),
            row.status.in_((AVAILABLE, RESTORING)),
            or_(manifest.id.is_(None), manifest.state != LIVE, differs),
        )
    ):
        subject = f"backup {backup_id}"
        if not state:
            yield Finding("lineage", subject, f"is {status} without a manifest")
        elif state != LIVE:
            yield Finding("lineage", subject, f"is {status}, but its manifest is {state}")
        else:
            yield Finding("lineage", subject, "says another place or length than its manifest's row")


def _holders_of_manifests(session: Session, known: _Tasks) -> Iterator[Finding]:
    """A live manifest is held; a writing or released one has the task that leads it on."""
    holder = exists().where(Backup.manifest_id == Manifest.id, Backup.deleted.is_(False))
    child = aliased(Manifest)
    heir = exists().where(child.base_id == Manifest.id, child.state == WRITING)
    for manifest_id in session.scalars(select(Manifest.id).where(Manifest.state == LIVE, ~holder, ~heir)):
        yield Finding("lineage", f"manifest {manifest_id}", "is live, but no backup names it")
    for manifest_id, state, backup_id in session.execute(
        select(Manifest.id, Manifest.state, Backup.id)
        .outerjoin(Backup, and_(Backup.manifest_id == Manifest.id, Backup.deleted.is_(False)))
        .where(Manifest.state.in_((WRITING, RELEASED)))
    ):
        if state == WRITING:
            led = backup_id is not None and known.of[tasks.BACKUP_CREATE, backup_id]
        else:
            led = known.of[tasks.MANIFEST_RELEASE, manifest_id] or (
                backup_id is not None and known.of[tasks.BACKUP_DELETE, backup_id]
            )
        if not led:
            yield Finding("lineage", f"manifest {manifest_id}", f"is {state}, but no task is about it")


def _manifests(session: Session) -> Iterator[Finding]:
    """What each manifest's row says of itself can be."""
    row, base = Manifest, aliased(Manifest)
    for manifest in session.scalars(
        select(row).where(
            or_(
                and_(row.state == LIVE, row.key.is_(None)),
                and_(row.state == WRITING, row.key.is_not(None)),
                row.state.not_in((WRITING, LIVE, RELEASED, GONE)),
            )
        )
    ):
        has = "no key" if manifest.key is None else "a key"
        yield Finding("lineage", f"manifest {manifest.id}", f"is {manifest.state} and has {has}")
    for manifest_id, digest, store, container, key in session.execute(
        select(row.id, row.key_digest, row.store, row.container, row.key).where(row.key.is_not(None)),
        execution_options=_STREAMED,
    ):
        if digest != object_digest(store, container, str(key)):
            yield Finding("lineage", f"manifest {manifest_id}", "its digest is not that of its key")
    for manifest_id in session.scalars(
        select(Segment.manifest_id).join(row).where(row.state != WRITING).distinct()
    ):
        yield Finding("lineage", f"manifest {manifest_id}", "is not being written, but has a journal")
    for manifest_id, state in session.execute(
        select(row.id, base.state).join(base, row.base_id == base.id).where(row.state == WRITING)
    ):
        if state != LIVE:
            yield Finding("lineage", f"manifest {manifest_id}", f"is being made from one that is {state}")


def _trees(session: Session) -> Iterator[Finding]:
    """The edges of every lineage tree join what can share, and gone nodes stay only as forks."""
    row = Manifest
    columns = (row.volume_id, row.store, row.container, row.installation_id)
    # No other statement while the rows pass by.
    ours = installation_id(session)
    rows = session.execute(
        select(row.id, row.base_id, row.state, row.detached, *columns).where(row.in_tree).order_by(*columns),
        execution_options=_STREAMED,
    )
    for _place, group in groupby(rows, key=attrgetter(*(column.key for column in columns))):
        nodes = list(group)
        bases = {node.id: node.base_id for node in nodes}
        circular = _circular(bases)
        for node in nodes:
            subject = f"manifest {node.id}"
            if node.base_id is not None and node.base_id not in bases:
                yield Finding("lineage", subject, "its base is not in its tree")
            elif node.id in circular:
                yield Finding("lineage", subject, "its line of bases never ends")
            if node.installation_id != ours:
                yield Finding("lineage", subject, "is of another installation, but in a tree of this one")
        tree = Tree(Node(node.id, node.base_id, node.state, node.detached) for node in nodes)
        for manifest_id in tree.contract():
            yield Finding("lineage", f"manifest {manifest_id}", "a gone one in its tree is no fork")


def _circular(bases: Mapping[str, str | None]) -> set[str]:
    """Return the nodes from which following the bases never ends."""
    ends: set[str | None] = {None}
    circular: set[str | None] = set()
    for start in bases:
        path: dict[str | None, None] = {}
        here: str | None = start
        while here not in ends and here not in circular and here not in path:
            path[here] = None
            here = bases.get(here) if here is not None else None
        (ends if here in ends else circular).update(path)
    return {node for node in circular if node is not None}


def _usage(session: Session) -> Iterator[Finding]:
    """What quotas count is what the rows are, and each row counts with the size of what it holds."""
    counted: dict[str, dict[str, int]] = defaultdict(lambda: dict.fromkeys(quota.RESOURCES, 0))
    for model, rows, size in (
        (Backup, "backups", "backup_gigabytes"),
        (Volume, "volumes", "gigabytes"),
        (Snapshot, "snapshots", "gigabytes"),
    ):
        # Temporary snapshots are nobody's.
        shown = Snapshot.temporary.is_(False) if model is Snapshot else true()
        statement = select(model.id, model.project_id, model.size, model.length, model.status).where(
            model.deleted.is_(False), shown
        )
        for row_id, project_id, gib, length, status in session.execute(
            statement, execution_options=_STREAMED
        ):
            counted[project_id][rows] += 1
            counted[project_id][size] += gib
            # A backup's length is that of its volume until it is made, and unknown while it is imported.
            if length is not None and status == AVAILABLE and gib < gigabytes(length):
                problem = f"counts with {gib} GiB, but has {length} bytes"
                yield Finding("usage", f"{_noun(model)} {row_id}", problem)
            if status == lifecycle.DELETED:
                yield Finding("usage", f"{_noun(model)} {row_id}", "counts, though its status is deleted")
    for project_id, wanted in counted.items():
        used = quota.usage_of(session, project_id)
        for resource in quota.RESOURCES:
            if used[resource] != wanted[resource]:
                yield Finding(
                    "usage",
                    f"project {project_id}",
                    f"{resource}: {used[resource]} are counted as used, the rows are {wanted[resource]}",
                )

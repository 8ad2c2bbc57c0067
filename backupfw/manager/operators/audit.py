"""Audit of the database: do its rows agree with each other?

It only reads, in one state of the database (:meth:`~backupfw.db.session.Database.snapshot`), so it can run
at any time while the service runs.  The engine compares the store (:mod:`backupfw.engine.audit`).
"""

from __future__ import annotations

import sqlite3
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from datetime import timedelta
from itertools import groupby, islice
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Executable,
    Select,
    and_,
    case,
    exists,
    func,
    null,
    or_,
    select,
    true,
    union,
)
from sqlalchemy.orm import Session, aliased

from backupfw.db.digest import object_digest
from backupfw.db.installation import installation_id
from backupfw.db.models import Backup, BackupCopy, Manifest, Segment, Snapshot, Task, Volume
from backupfw.db.session import Database, now
from backupfw.manager.lineage import lifecycle, manifests
from backupfw.manager.lineage.lifecycle import (
    ANNOUNCED,
    AVAILABLE,
    BACKING_UP,
    COPYING,
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
from backupfw.manager.queue import claims, tasks
from backupfw.manager.rules import quota
from backupfw.manager.rules.volume_rules import size_of

#: The unfinished tasks that belong to a status: kinds of tasks on the resource itself, and kinds of tasks
#: that have it as their source.
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


#: The counted tables, and their resources.
_COUNTED: tuple[tuple[type[Backup | Volume | Snapshot], str, str], ...] = (
    (Backup, "backups", "backup_gigabytes"),
    (Volume, "volumes", "gigabytes"),
    (Snapshot, "snapshots", "gigabytes"),
)

#: Projects that are counted at a time.
PROJECTS = 1000

#: Reported findings of one check; a database that lost a table would have very many.
MOST = 1000

#: Whole tables are read in parts of so many rows, on every database.
_STREAMED = {"yield_per": 1000}


@dataclass(frozen=True, slots=True, order=True)
class Finding:
    """A finding: something that is wrong.

    :ivar check: what was checked: ``status``, ``lease``, ``task``, ``snapshot``, ``lineage``, ``usage``,
        ``changes``, ``volume`` or ``store``.
    :ivar subject: the resource, e.g. ``backup <id>``.
    :ivar problem: the error.
    """

    check: str
    subject: str
    problem: str


def run(db: Database, lease_seconds: float) -> list[Finding]:
    """Return all findings, sorted: the first :data:`MOST` of each check, and the number of the others.

    Each check is a few statements over whole tables, whose answers are read in parts.  So memory does not
    depend on the number of rows, projects or findings, nor on the size of a tree.

    :param lease_seconds: the length of leases; a lease that ended longer ago than that is a finding.
    """
    with db.snapshot() as session:
        checks = (
            _statuses(session),
            _leases(session, lease_seconds),
            _causes(session),
            _temporary_snapshots(session),
            _lineage(session),
            _usage(session),
            _distrusted(session),
        )
        return sorted(finding for check in checks for finding in first(check))


def first(findings: Iterable[Finding]) -> Iterator[Finding]:
    """Yield the first findings, then one with the number of the others."""
    rest = iter(findings)
    yield from islice(rest, MOST)
    more = Counter(finding.check for finding in rest)
    for check, count in more.items():
        yield Finding(check, f"{count} more", f"beside the first {MOST} of this check")


def _lineage(session: Session) -> Iterator[Finding]:
    yield from _manifests_of_backups(session)
    yield from _holders_of_manifests(session)
    yield from _copies(session)
    yield from _manifests(session)
    yield from _trees(session)


def _rows(session: Session, statement: Executable) -> Iterator[Any]:
    """Yield the rows of a statement, a part at a time; no other statement may run meanwhile."""
    return iter(session.execute(statement, execution_options=_STREAMED))


def _noun(model: type) -> str:
    return model.__name__.lower()


def _statuses(session: Session) -> Iterator[Finding]:
    """Every transient status has a task that will end it."""
    goes_on = Task.cancel.is_(False)
    for (model, status), (about, occupying) in _BEHIND.items():
        behind = or_(
            exists().where(Task.resource_id == model.id, Task.kind.in_(about), goes_on),
            exists().where(Task.source_id == model.id, Task.kind.in_(occupying), goes_on),
        )
        # A temporary snapshot belongs to its backup's task; another check looks at it.
        shown: ColumnElement[bool] = Snapshot.temporary.is_(False) if model is Snapshot else true()
        if issubclass(model, Volume | Snapshot):
            # That of a mirror may be its catalogue's own.
            shown = and_(shown, model.mirrored_at.is_(None))
        statement = select(model.id).where(model.status == status, model.deleted.is_(False), shown, ~behind)
        for (resource_id,) in _rows(session, statement):
            yield Finding("status", f"{_noun(model)} {resource_id}", f"is {status}, but no task is about it")


def _leases(session: Session, lease_seconds: float) -> Iterator[Finding]:
    """Every running task has a lease that is valid, or that ended only a short time ago."""
    moment = now(session)
    ended = or_(Task.lease_until.is_(None), Task.lease_until < moment - timedelta(seconds=lease_seconds))
    statement = select(Task.id, Task.kind, Task.resource_id, Task.lease_until)
    for task in _rows(session, statement.where(Task.state == claims.RUNNING, ended).order_by(Task.id)):
        if task.lease_until is None:
            problem = "is running without a lease"
        else:
            seconds = int((moment - task.lease_until).total_seconds())
            problem = f"its lease ran out {seconds} s ago and nobody took it over"
        yield Finding("lease", _task(task), problem)


def _task(task: Any) -> str:
    return f"task {task.id} ({task.kind} {task.resource_id})"


def _causes(session: Session) -> Iterator[Finding]:
    """Every task that was not cancelled has a resource in the status that belongs to it."""
    for kind, statuses in _OF_TASK.items():
        statement = (
            select(Task.id, Task.kind, Task.resource_id, Backup.status)
            .outerjoin(Backup, and_(Backup.id == Task.resource_id, Backup.deleted.is_(False)))
            .where(Task.cancel.is_(False), Task.kind == kind)
            .where(or_(Backup.id.is_(None), Backup.status.not_in(statuses)))
            .order_by(Task.id)
        )
        for task in _rows(session, statement):
            problem = "the backup does not exist" if task.status is None else f"the backup is {task.status}"
            yield Finding("task", _task(task), problem)


def _distrusted(session: Session) -> Iterator[Finding]:
    """Yield volumes whose storage said wrongly what is unchanged."""
    found = select(Volume.id, Volume.changes_distrusted_at).where(
        Volume.deleted.is_(False), Volume.changes_distrusted_at.is_not(None)
    )
    for volume_id, moment in _rows(session, found):
        yield Finding(
            "changes",
            f"volume {volume_id}",
            f"its storage said that changed data is unchanged (found on {moment:%Y-%m-%d}): backups read all"
            " of it until 'backupfw volume set --trust-changes'",
        )


def _temporary_snapshots(session: Session) -> Iterator[Finding]:
    """A temporary snapshot lives as long as the task of its backup, or its removal."""
    row = Snapshot
    made = exists().where(
        Backup.temp_snapshot_id == row.id, Task.resource_id == Backup.id, Task.kind == tasks.BACKUP_CREATE
    )
    removed = exists().where(Task.resource_id == row.id, Task.kind == tasks.SNAPSHOT_DELETE)
    statement = select(row.id, row.status).where(row.temporary, row.deleted.is_(False), ~made, ~removed)
    for snapshot_id, status in _rows(session, statement):
        yield Finding("snapshot", f"snapshot {snapshot_id}", f"is temporary and {status}, but of no task")


def _manifests_of_backups(session: Session) -> Iterator[Finding]:
    """A backup that can be restored has a live manifest, with the same store and container."""
    row, manifest = Backup, Manifest
    told = (row.store, row.length, row.container, row.service_metadata)
    known = (manifest.store, manifest.length, manifest.container, manifest.key)
    store, length, *place = (one.is_distinct_from(other) for one, other in zip(told, known, strict=True))
    # A backup of Cinder's format says its place as Cinder spells it.
    differs = or_(store, length, and_(manifest.installation_id != manifests.CINDER, or_(*place)))
    for backup_id, status, state in _rows(
        session,
        select(row.id, row.status, manifest.state)
        .outerjoin(manifest, row.manifest_id == manifest.id)
        .where(
            row.deleted.is_(False),
            row.status.in_((AVAILABLE, RESTORING)),
            or_(manifest.id.is_(None), manifest.state != LIVE, differs),
        ),
    ):
        subject = f"backup {backup_id}"
        if not state:
            yield Finding("lineage", subject, f"is {status} without a manifest")
        elif state != LIVE:
            yield Finding("lineage", subject, f"is {status}, but its manifest is {state}")
        else:
            yield Finding("lineage", subject, "says another place or length than its manifest's row")


def _holders_of_manifests(session: Session) -> Iterator[Finding]:
    """A live manifest is used by a backup; a writing or released one has its task."""
    row = Manifest
    of_backup = and_(Backup.manifest_id == row.id, Backup.deleted.is_(False))
    child = aliased(Manifest)
    needs = or_(child.state == WRITING, child.installation_id == manifests.CINDER)
    heir = exists().where(child.base_id == row.id, needs)
    of_copy = and_(BackupCopy.manifest_id == row.id, BackupCopy.status == AVAILABLE)
    # A locked one stays live until its task can release it.
    released = exists().where(Task.resource_id == row.id, Task.kind == tasks.MANIFEST_RELEASE)
    statement = select(row.id).where(
        row.state == LIVE, ~exists().where(of_backup), ~exists().where(of_copy), ~heir, ~released
    )
    for (manifest_id,) in _rows(session, statement):
        yield Finding("lineage", f"manifest {manifest_id}", "is live, but no backup names it")
    led = {
        WRITING: or_(
            _task_of_backup(of_backup, tasks.BACKUP_CREATE),
            exists().where(Task.resource_id == row.id, Task.kind == tasks.BACKUP_COPY),
        ),
        RELEASED: or_(released, _task_of_backup(of_backup, tasks.BACKUP_DELETE)),
    }
    for state, condition in led.items():
        for (manifest_id,) in _rows(session, select(row.id).where(row.state == state, ~condition)):
            yield Finding("lineage", f"manifest {manifest_id}", f"is {state}, but no task is about it")


def _copies(session: Session) -> Iterator[Finding]:
    """A copy is of a backup that is there, and its manifest is in the state that belongs to its status."""
    row = BackupCopy
    manifest_state = case((row.status == AVAILABLE, LIVE), (row.status == COPYING, WRITING), else_=None)
    statement = (
        select(row.id, row.backup_id, row.status, row.store, Manifest.state)
        .outerjoin(Manifest, Manifest.id == row.manifest_id)
        .join(Backup, Backup.id == row.backup_id)
        .where(or_(Backup.deleted, Manifest.state.is_distinct_from(manifest_state)))
    )
    for copy in _rows(session, statement):
        known = f"its manifest is {copy.state}" if copy.state else "it has no manifest"
        yield Finding(
            "lineage",
            f"backup {copy.backup_id}",
            f"its copy in store {copy.store} is {copy.status}, but {known} or the backup is deleted",
        )


def _task_of_backup(which: ColumnElement[bool], kind: str) -> ColumnElement[bool]:
    """The condition that a task of a kind belongs to one of some backups."""
    return exists().where(which, Task.resource_id == Backup.id, Task.kind == kind)


def _manifests(session: Session) -> Iterator[Finding]:
    """The columns of each manifest's row agree with each other."""
    row, base = Manifest, aliased(Manifest)
    wrong = or_(
        and_(row.state == LIVE, row.key.is_(None)),
        and_(row.state == WRITING, row.key.is_not(None), ~row.copied),
        and_(row.state == ANNOUNCED, row.key.is_(None)),
        row.state.not_in((WRITING, ANNOUNCED, LIVE, RELEASED, GONE)),
    )
    for manifest in _rows(session, select(row.id, row.state, row.key).where(wrong)):
        has = "no key" if manifest.key is None else "a key"
        yield Finding("lineage", f"manifest {manifest.id}", f"is {manifest.state} and has {has}")
    for (manifest_id,) in _rows(session, select(row.id).where(manifests.announced_for_nobody())):
        problem = "is announced, but its backup is deleted; sweep and purge give it up"
        yield Finding("lineage", f"manifest {manifest_id}", problem)
    place = (row.store, row.container, row.key)
    for manifest_id, digest, store, container, key in _rows(
        session, select(row.id, row.key_digest, *place).where(row.key.is_not(None))
    ):
        if digest != object_digest(store, container, str(key)):
            yield Finding("lineage", f"manifest {manifest_id}", "its digest is not that of its key")
    journal = exists().where(Segment.manifest_id == row.id)
    for (manifest_id,) in _rows(session, select(row.id).where(row.state != WRITING, journal)):
        yield Finding("lineage", f"manifest {manifest_id}", "is not being written, but has a journal")
    for manifest_id, state in _rows(
        session,
        select(row.id, base.state)
        .join(base, row.base_id == base.id)
        .where(row.state == WRITING, base.state != LIVE),
    ):
        yield Finding("lineage", f"manifest {manifest_id}", f"is being made from one that is {state}")


def _trees(session: Session) -> Iterator[Finding]:
    """The edges of every lineage tree join manifests that can share; gone ones stay only as forks."""
    row, base = Manifest, aliased(Manifest)
    foreign = row.installation_id != installation_id(session)
    based = and_(base.in_tree, *_same_tree(row, base), row.base_id == base.id)
    outside = and_(row.base_id.is_not(None), ~exists().where(based))
    wrong = {
        "is of another installation, but in a tree of this one": select(row.id).where(foreign),
        "its base is not in its tree": select(row.id).where(outside),
        "a gone one in its tree is no fork": _no_forks(),
    }
    for problem, statement in wrong.items():
        for (manifest_id,) in _rows(session, statement.where(row.in_tree)):
            yield Finding("lineage", f"manifest {manifest_id}", problem)
    edges = select(row.id, row.base_id, row.volume_id).join(base, based).where(row.in_tree)
    # Volumes are read in parts, by the first characters of their ids; a tree lies within one volume.
    parts = groupby(_rows(session, edges.order_by(row.volume_id)), key=lambda edge: edge.volume_id[:2])
    for _, part in parts:
        for manifest_id in _endless((edge.id, edge.base_id) for edge in part):
            yield Finding("lineage", f"manifest {manifest_id}", "its line of bases never ends")


def _same_tree(row: Any, other: Any) -> list[ColumnElement[bool]]:
    """The conditions that two manifests in trees are in the same one."""
    places = ("volume_id", "store", "container", "installation_id")
    return [getattr(row, place) == getattr(other, place) for place in places]


def _no_forks() -> Select[str]:
    """Select the gone manifests that are no forks: a contraction (``Tree.contract``) would drop them."""
    row, near, joint, first = Manifest, aliased(Manifest), aliased(Manifest), aliased(Manifest)
    place = (joint.volume_id, joint.store, joint.container, joint.installation_id)
    # A gone detached manifest joins all manifests of its tree, so no other gone one may stay beside it.
    joints = (
        select(func.min(joint.id).label("id"), *place)
        .where(joint.in_tree, joint.detached, joint.state == GONE)
        .group_by(*place)
        .subquery()
    )
    children = select(func.count()).where(near.base_id == row.id, near.in_tree).scalar_subquery()
    around = children + case((row.base_id.is_not(None), 1), else_=0)
    alone = ~exists().where(first.in_tree, *_same_tree(row, first), first.id != row.id)
    return (
        select(row.id)
        .outerjoin(joints, and_(*_same_tree(row, joints.c)))
        .where(row.state == GONE)
        .where(
            or_(
                and_(joints.c.id.is_(None), around <= 2),
                joints.c.id != row.id,
                and_(joints.c.id == row.id, alone),
            )
        )
    )


def _endless(edges: Iterable[tuple[str, str]]) -> Iterator[str]:
    """Yield the manifests whose chain of bases never ends.

    A database cannot follow such long chains in few statements, and they do not fit into the memory of a
    process.  So the edges are put into a temporary SQLite database, in a file without a name.

    :param edges: id and base of each manifest that has one.
    """
    with closing(sqlite3.connect("")) as file:
        file.execute("CREATE TABLE edges (id TEXT PRIMARY KEY, base TEXT NOT NULL) WITHOUT ROWID")
        file.executemany("INSERT INTO edges VALUES (?, ?)", edges)
        file.execute("CREATE INDEX bases ON edges (base)")
        for (manifest_id,) in file.execute(
            """WITH RECURSIVE ends (id) AS (
                SELECT id FROM edges WHERE base NOT IN (SELECT id FROM edges)
                UNION ALL SELECT edges.id FROM ends JOIN edges ON edges.base = ends.id
            ) SELECT id FROM edges WHERE id NOT IN ends"""
        ):
            yield manifest_id


def _usage(session: Session) -> Iterator[Finding]:
    """Quotas count the rows that exist, and each row counts with the size of its data."""
    last: str | None = None
    while projects := _projects_after(session, last):
        yield from _usage_between(session, last, projects[-1])
        last = projects[-1]


def _projects_after(session: Session, last: str | None) -> list[str]:
    """Return the next projects that have anything, in the database's order."""
    parts = []
    for model, _rows, _size in _COUNTED:
        found = select(model.project_id).where(model.deleted.is_(False), _is_after(model, last))
        part = found.distinct().order_by(model.project_id).limit(PROJECTS).subquery()
        parts.append(select(part.c.project_id))
    together = union(*parts).subquery()
    return list(
        session.scalars(select(together.c.project_id).order_by(together.c.project_id).limit(PROJECTS))
    )


def _is_after(model: Any, project_id: str | None) -> ColumnElement[bool]:
    condition: ColumnElement[bool] = true() if project_id is None else model.project_id > project_id
    return condition


def _usage_between(session: Session, after: str | None, until: str) -> Iterator[Finding]:
    counted: dict[str, dict[str, int]] = defaultdict(lambda: dict.fromkeys(quota.RESOURCES, 0))
    for model, rows, size in _COUNTED:
        # Temporary snapshots and mirrors do not count.
        shown: ColumnElement[bool] = Snapshot.temporary.is_(False) if model is Snapshot else true()
        if issubclass(model, Volume | Snapshot):
            shown = and_(shown, model.mirrored_at.is_(None))
        # Mirrors and their backups alone can be encrypted by their catalogue.
        key_id = Backup.encryption_key_id if model is Backup else null()
        statement = select(model.id, model.project_id, model.size, model.length, key_id, model.status).where(
            model.deleted.is_(False), shown, _is_after(model, after), model.project_id <= until
        )
        for row_id, project_id, gib, length, key, status in _rows(session, statement):
            counted[project_id][rows] += 1
            counted[project_id][size] += gib
            # A backup's length is that of its volume until it is made, and unknown while it is imported.
            if length is not None and status == AVAILABLE and gib < size_of(length, key):
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

"""What the console shows that no use case of one kind of resource returns: reads across many kinds.

Each method reads a bounded number of rows along an index, whatever the database holds.
"""

from __future__ import annotations

from collections import Counter, namedtuple
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cache
from typing import TYPE_CHECKING, Any

from sqlalchemy import (
    ColumnElement,
    Subquery,
    and_,
    bindparam,
    case,
    exists,
    false,
    func,
    or_,
    select,
    true,
    union,
)
from sqlalchemy.orm import Session

from backupfw.conf.stores import group_of
from backupfw.db import models, queries
from backupfw.db.installation import installation_id
from backupfw.db.session import now
from backupfw.errors import VolumeNotFound
from backupfw.manager.lineage import lifecycle
from backupfw.manager.queue import claims, requirements, services, tasks, waiting
from backupfw.manager.queue.claims import Limits
from backupfw.manager.rules import backup_rows, quota, volume_rules
from backupfw.manager.usecases.stores import unproven_since

if TYPE_CHECKING:
    from oslo_config import cfg

    from backupfw.context import RequestContext
    from backupfw.db.session import Database

#: How many of each kind of trouble are shown.
SHOWN = 25
#: Statuses of a backup that can be restored.
GOOD = (lifecycle.AVAILABLE, lifecycle.RESTORING)
#: Kinds that their users may cancel.
_CANCELLABLE = (tasks.BACKUP_CREATE, tasks.BACKUP_IMPORT, tasks.BACKUP_RESTORE, tasks.BACKUP_VERIFY)
#: Kinds that go through all of a backup, so that its length is their end as long as they report no other one.
_OF_WHOLE_BACKUPS = (*_CANCELLABLE, tasks.BACKUP_COPY)


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


@dataclass(frozen=True, slots=True)
class VolumeState:
    """A volume, and how well it is backed up.

    :ivar status: None: this service does not know the volume, only its backups.
    :ivar size: GiB.
    :ivar last_good: of which moment the newest good backup is, naive UTC; None: there is none.
    :ivar last_verified: of which moment the newest good backup is that was verified, every block of it.
    """

    id: str
    name: str | None
    project_id: str
    status: str | None
    size: int | None
    last_good: datetime | None
    last_verified: datetime | None


@dataclass(frozen=True, slots=True)
class Freed:
    """What deleting a backup frees in its store, bytes; other backups may need some of what it names."""

    least: int
    most: int


@dataclass(frozen=True, slots=True)
class BackupState:
    """A backup on the time line of its volume.

    :ivar moment: of which moment its data is, or when it was begun; naive UTC.
    :ivar new: bytes that it put into the store.
    :ivar shared: bytes of other backups' objects that it names as well.
    :ivar frees: what its deletion frees; None: only its store knows.
    :ivar damaged: it names an object that is missing or wrong.
    :ivar copies: store and status of each copy; ``damaged``: it names an object that is missing or wrong.
    :ivar kept: no policy deletes it.
    :ivar verifying: a worker verifies it, or will, because somebody asked for it.
    """

    id: str
    name: str | None
    project_id: str
    volume_id: str
    status: str
    fail_reason: str | None
    is_incremental: bool
    size: int
    moment: datetime
    new: int
    shared: int
    frees: Freed | None
    damaged: bool
    verified_at: datetime | None
    verified_how: str | None
    verified_result: str | None
    store: str | None
    copies: Sequence[tuple[str, str]]
    kept: bool = False
    verifying: bool = False


@dataclass(frozen=True, slots=True)
class StoreState:
    """A store, as workers see it.

    :ivar workers: how many live, enabled services reach it.
    :ivar down: how many tasks wait because it does not answer.
    :ivar overdue_since: of when the oldest proof of what it holds is, if ``scrub_days`` are over since then.
    """

    name: str
    workers: int
    down: int
    overdue_since: datetime | None = None


@dataclass(frozen=True, slots=True)
class Health:
    """Whether everything is backed up, and if not, what is not.

    :ivar volumes: how many volumes there are.
    :ivar new: how many of them are younger than that, and have no good backup yet.
    :ivar stale: the first volumes that had no good backup for too long; none that is younger than that.
    :ivar stale_count: how many there are.
    :ivar failed: the newest backups of the last day that failed.
    :ivar damaged: the first backups that name an object which is missing or wrong, themselves or by a copy.
    :ivar not_copied: the newest backups of which a copy has failed.
    :ivar undeleted: the newest backups whose deletion has failed.
    :ivar untested: the newest backups whose last restore test has failed.
    :ivar services: the workers; ``stores``: what they reach.  None: the caller may not see them.
    :ivar quotas: resource, use and limit of what the caller's project has nearly used up.
    :ivar moment: of the database's clock, naive UTC.
    """

    volumes: int
    new: int
    stale: Sequence[VolumeState]
    stale_count: int
    failed: Sequence[BackupState]
    damaged: Sequence[BackupState]
    not_copied: Sequence[BackupState]
    undeleted: Sequence[BackupState]
    untested: Sequence[BackupState]
    services: Sequence[services.Service] | None
    stores: Sequence[StoreState] | None
    quotas: Sequence[tuple[str, int, int]]
    moment: datetime

    @property
    def is_good(self) -> bool:
        """Whether nobody needs to look at anything."""
        workers = self.services is None or (
            any(one.up and not one.disabled for one in self.services) and all(one.up for one in self.services)
        )
        stores = all(one.workers and not one.down and one.overdue_since is None for one in self.stores or ())
        backups = self.stale or self.failed or self.damaged or self.not_copied
        backups = backups or self.undeleted or self.untested
        return workers and stores and not (backups or self.quotas)


class Overview:
    """Reads for people.  Thread-safe.

    Only administrators see other projects, and clean-ups that no user asked for.
    """

    def __init__(self, db: Database, conf: cfg.ConfigOpts) -> None:
        self._db = db
        self._conf = conf

    def work(self, ctx: RequestContext, limit: int = 100) -> Work:
        """Return what workers do and will do."""
        row, everywhere = models.Task, bool(ctx.is_admin)
        values = {} if everywhere else {"project_id": ctx.project_id}
        with self._db.read() as session:
            # Without the session: it would take most of the time of a refresh.
            connection = session.connection()
            rows = connection.execute(_first_tasks(everywhere), {**values, "most": limit + 1})
            found = [_task_row(everywhere)._make(one) for one in rows]
            if len(found) > limit:
                query = select(row.state, func.count()).where(_seen(everywhere)).group_by(row.state)
                counts = {one[0]: one[1] for one in connection.execute(query, values)}
                found = found[:limit]
            else:
                counts = Counter(one.state for one in found)
            operations = _operations(session, self._conf, found)
            moment = now(session)
        return Work(operations, counts.get(claims.RUNNING, 0), counts.get(claims.QUEUED, 0), moment)

    def moment(self) -> datetime:
        """Return the database's clock, naive UTC."""
        with self._db.read() as session:
            return now(session)

    def volumes(
        self, ctx: RequestContext, *, name: str | None = None, marker: str | None = None, limit: int = 50
    ) -> Sequence[VolumeState]:
        """Return one page of the volumes that are not deleted, newest first, foreign ones included.

        :param name: a part of their names.
        :param marker: the id of the last one on the page before.
        :raises MarkerNotFound: the marker is no volume that this caller can see.
        """
        with self._db.read() as session:
            found, _ = queries.page(
                session,
                models.Volume,
                project_id=None if ctx.is_admin else ctx.project_id,
                filters={"name~": name} if name else {},
                sort=(),
                limit=limit,
                marker=marker,
            )
            return _states(session, ctx, found)

    def volume(self, ctx: RequestContext, volume_id: str) -> VolumeState:
        """Return a volume; one that is gone is known as long as it has backups.

        :raises VolumeNotFound: there is none, and no backup of one, for this caller.
        """
        if not volume_rules.may_be_id(volume_id):
            raise VolumeNotFound(volume_id)
        with self._db.read() as session:
            row = session.get(models.Volume, volume_id)
            if row is not None and not volume_rules.is_visible(ctx, row.project_id):
                row = None
            if row is not None and not row.deleted:
                return _states(session, ctx, [row])[0]
            mine = _of_volume(ctx, volume_id)
            project_id = session.scalar(select(models.Backup.project_id).where(*mine).limit(1))
            if project_id is None:
                raise VolumeNotFound(volume_id)
            name = None if row is None else row.display_name
            good, verified = (_newest_good(session, ctx, [volume_id], verified=how) for how in (False, True))
            return VolumeState(
                volume_id, name, project_id, None, None, good.get(volume_id), verified.get(volume_id)
            )

    def volume_names(self, ctx: RequestContext, volume_ids: Iterable[str | None]) -> Mapping[Any, str | None]:
        """Return what users call volumes, by id; of those that the caller sees."""
        row = models.Volume
        mine = true() if ctx.is_admin else row.project_id == ctx.project_id
        name = case((mine, row.display_name))
        with self._db.read() as session:
            wanted = {volume_id for volume_id in volume_ids if volume_id}
            return _pairs(session, row.id, name, wanted)

    def time_line(
        self, ctx: RequestContext, volume_id: str, *, limit: int = 50, offset: int = 0
    ) -> tuple[Sequence[BackupState], int]:
        """Return some backups of a volume, the newest first, and how many there are.

        :param offset: how many newer ones to skip.
        """
        row = models.Backup
        mine = _of_volume(ctx, volume_id)
        # By an expression: else SQLite walks through all backups in the order of another index.
        moment = func.coalesce(row.data_timestamp, row.created_at)
        with self._db.read() as session:
            total = _count(session, row, mine)
            newest = select(row).where(*mine).order_by(moment.desc(), row.id.desc())
            found = session.scalars(newest.limit(limit).offset(offset)).all()
            return _backup_states(session, found), total

    def frees(self, ctx: RequestContext, backup_id: str) -> Freed | None:
        """Return what the deletion of a backup frees in its store; None: only the store knows."""
        with self._db.read() as session:
            row = volume_rules.find_backup(session, ctx, backup_id)
            return _freed(session, [row]).get(row.id)

    def health(self, ctx: RequestContext, *, age: timedelta, installation: bool) -> Health:
        """Return whether everything is backed up.

        :param age: how old the newest good backup of a volume may be.
        :param installation: whether workers and stores are wanted, too.
        """
        volume, backup = models.Volume, models.Backup
        with self._db.read() as session:
            moment = now(session)
            living = [volume.deleted == false()]
            mine = [backup.deleted == false()]
            if not ctx.is_admin:
                living.append(volume.project_id == ctx.project_id)
                mine.append(backup.project_id == ctx.project_id)
            without = [*living, ~_good_since(session, ctx, moment - age)]
            stale = [*without, volume.created_at < moment - age]
            oldest = select(volume).where(*stale).order_by(volume.created_at, volume.id).limit(SHOWN)
            mine_of_today = [*mine, backup.created_at > moment - timedelta(days=1)]
            newest = select(backup).order_by(backup.created_at.desc(), backup.id.desc()).limit(SHOWN)
            failed = newest.where(*mine_of_today, backup.status == lifecycle.ERROR)
            copy = models.BackupCopy
            without_copy = select(copy.backup_id).where(copy.status == lifecycle.ERROR).distinct().subquery()
            not_copied = newest.join(without_copy, without_copy.c.backup_id == backup.id).where(*mine)
            # They are rare, but SQLite would walk through all backups in the order of creation to find them.
            rare = (
                select(backup)
                .order_by(func.coalesce(backup.created_at, backup.created_at).desc())
                .limit(SHOWN)
            )
            undeleted = rare.where(*mine, backup.status == lifecycle.ERROR_DELETING)
            untested = rare.where(*mine, backup.restore_test_result == "failed")
            somewhere = _damaged_somewhere()
            damaged = select(backup).join(somewhere, somewhere.c.id == backup.id).where(*mine).limit(SHOWN)
            known = services.services(session, self._conf, binary=services.BACKUP_BINARY)
            return Health(
                volumes=_count(session, volume, living),
                new=_count(session, volume, [*without, volume.created_at >= moment - age]),
                stale=_states(session, ctx, session.scalars(oldest).all()),
                stale_count=_count(session, volume, stale),
                failed=_backup_states(session, session.scalars(failed).all()),
                damaged=_backup_states(session, session.scalars(damaged).all()),
                not_copied=_backup_states(session, session.scalars(not_copied).all()),
                undeleted=_backup_states(session, session.scalars(undeleted).all()),
                untested=_backup_states(session, session.scalars(untested).all()),
                services=known if installation else None,
                stores=self._stores(session, known, moment) if installation else None,
                quotas=self._quotas(session, ctx),
                moment=moment,
            )

    def _stores(
        self, session: Session, known: Sequence[services.Service], moment: datetime
    ) -> Sequence[StoreState]:
        row = models.Task
        waiting_for = dict.fromkeys(self._conf.enabled_stores, 0)
        query = select(row.store, func.count()).where(row.store_down == true(), row.store.is_not(None))
        waiting_for |= {one[0]: one[1] for one in session.execute(query.group_by(row.store))}
        able = [one for one in known if one.up and not one.disabled]
        return [
            StoreState(
                name, sum(name in one.stores for one in able), down, self._overdue(session, name, moment)
            )
            for name, down in waiting_for.items()
        ]

    def _overdue(self, session: Session, store: str, moment: datetime) -> datetime | None:
        days = self._conf[group_of(store)].scrub_days if store in self._conf.enabled_stores else 0
        since = unproven_since(session, store) if days else None
        return since if since is not None and since < moment - timedelta(days=days) else None

    def _quotas(self, session: Session, ctx: RequestContext) -> Sequence[tuple[str, int, int]]:
        """Return what a project has used up by nine tenths; an administrator has no project of his own."""
        if ctx.is_admin:
            return ()
        limits = quota.limits_of(session, self._conf, ctx.project_id)
        limits = {name: limits[name] for name in ("backups", "backup_gigabytes") if limits[name] > 0}
        used = quota.usage_of(session, ctx.project_id, limits)
        return [(name, used[name], limit) for name, limit in limits.items() if 10 * used[name] >= 9 * limit]


def _marked() -> Any:
    """The manifests that name a damaged object."""
    return select(models.DamageMark.manifest_id)


def _damaged_somewhere() -> Subquery:
    """The ids of backups that name a damaged object, themselves or by a copy.

    To be joined: MariaDB would ask an ``IN`` of a union once for each backup.
    """
    backup, copy = models.Backup, models.BackupCopy
    return union(
        select(backup.id).where(backup.manifest_id.in_(_marked())),
        select(copy.backup_id).where(copy.manifest_id.in_(_marked())),
    ).subquery()


def _without_damage(session: Session) -> Sequence[ColumnElement[bool]]:
    """The condition that a backup names no damaged object; nothing is asked where there is none at all."""
    if session.scalar(_marked().limit(1)) is None:
        return ()
    row = models.Backup
    return (or_(row.manifest_id.is_(None), row.manifest_id.not_in(_marked())),)


def _good(ctx: RequestContext) -> tuple[ColumnElement[bool], ...]:
    """The conditions for good backups that a caller sees.

    Those of another project, which had the volume before, are no use to its owner.
    """
    row = models.Backup
    good = (row.deleted == false(), row.status.in_(GOOD))
    return good if ctx.is_admin else (*good, row.project_id == ctx.project_id)


def _good_since(session: Session, ctx: RequestContext, moment: datetime) -> ColumnElement[bool]:
    """The condition that a volume has a good backup of a moment or later; an index answers it."""
    row = models.Backup
    conditions = (row.volume_id == models.Volume.id, *_good(ctx))
    return exists(select(row.id).where(*conditions, row.data_timestamp >= moment, *_without_damage(session)))


def _count(session: Session, model: type[models.Base], conditions: Sequence[ColumnElement[bool]]) -> int:
    return session.scalar(select(func.count()).select_from(model).where(*conditions)) or 0


def _of_volume(ctx: RequestContext, volume_id: str) -> tuple[ColumnElement[bool], ...]:
    """The conditions for the backups of a volume that a caller sees."""
    row = models.Backup
    mine = (row.volume_id == volume_id, row.deleted == false())
    return mine if ctx.is_admin else (*mine, row.project_id == ctx.project_id)


def _newest_good(
    session: Session, ctx: RequestContext, volume_ids: Collection[str], *, verified: bool = False
) -> dict[str, datetime]:
    """Return the moment of the newest good backup without known damage of each volume that has one.

    :param verified: whether every block of it must have been verified.
    """
    row = models.Backup
    query = select(row.volume_id, func.max(row.data_timestamp)).where(
        row.volume_id.in_(volume_ids),
        *_good(ctx),
        *_without_damage(session),
    )
    if verified:
        query = query.where(row.fully_verified_at.is_not(None), row.verified_result == "ok")
    return {one[0]: one[1] for one in session.execute(query.group_by(row.volume_id)) if one[1] is not None}


def _states(session: Session, ctx: RequestContext, found: Sequence[models.Volume]) -> Sequence[VolumeState]:
    ids = [row.id for row in found]
    good, verified = (_newest_good(session, ctx, ids, verified=how) for how in (False, True))
    return [
        VolumeState(
            row.id,
            row.display_name,
            row.project_id,
            row.status,
            row.size,
            good.get(row.id),
            verified.get(row.id),
        )
        for row in found
    ]


def _backup_states(session: Session, found: Sequence[models.Backup]) -> Sequence[BackupState]:
    """Turn backups of one volume into records, with a few queries for all of them."""
    copies: dict[str, list[tuple[str, str]]] = {}
    copy, mark = models.BackupCopy, models.DamageMark
    those = copy.backup_id.in_([row.id for row in found])
    columns = (copy.backup_id, copy.store, copy.status, copy.manifest_id)
    copied = session.execute(select(*columns).where(those).order_by(copy.store)).all()
    named = {row.manifest_id for row in found} | {one.manifest_id for one in copied}
    marked = mark.manifest_id.in_(named - {None})
    damaged = set(session.scalars(select(mark.manifest_id).where(marked).distinct()))
    for one in copied:
        status = "damaged" if one.manifest_id in damaged else one.status
        copies.setdefault(one.backup_id, []).append((one.store, status))
    freed = _freed(session, found)
    pair = models.BackupMetadata
    keeping = (pair.backup_id.in_([row.id for row in found]), pair.key == backup_rows.KEEP_KEY)
    kept = {one[0]: one[1] for one in session.execute(select(pair.backup_id, pair.value).where(*keeping))}
    task = models.Task
    of_them = (task.source_id.in_([row.id for row in found]), task.kind == tasks.BACKUP_VERIFY)
    verifying = set(session.scalars(select(task.source_id).where(*of_them, task.cancel.is_(False))))
    return [
        BackupState(
            id=row.id,
            name=row.display_name,
            project_id=row.project_id,
            volume_id=row.volume_id,
            status=row.status,
            fail_reason=row.fail_reason,
            is_incremental=row.is_incremental,
            size=row.size,
            moment=row.data_timestamp or row.created_at,
            new=row.stored_bytes,
            shared=max(row.referenced_bytes - row.stored_bytes, 0),
            frees=freed.get(row.id),
            damaged=row.manifest_id in damaged,
            verified_at=row.verified_at,
            verified_how=row.verified_how,
            verified_result=row.verified_result,
            store=row.store,
            copies=copies.get(row.id, ()),
            kept=backup_rows.is_kept(kept.get(row.id)),
            verifying=row.id in verifying,
        )
        for row in found
    ]


def _freed(session: Session, found: Sequence[models.Backup]) -> dict[str, Freed]:
    """Say what the deletion of each of some backups frees in its store, as far as the lineage tells.

    Nobody but its descendants names what a backup put itself, and its base names all that it shares, while
    that is the base that it was made with.  So the lineage tells all of a backup without descendants, and
    the bounds of others.
    """
    node, backup = models.Manifest, models.Backup
    manifest_ids = {row.manifest_id for row in found if row.manifest_id}
    columns = (node.id, node.base_id, node.state, node.detached, node.installation_id)
    nodes = {one.id: one for one in session.execute(select(*columns).where(node.id.in_(manifest_ids)))}
    bases = {one.base_id for one in nodes.values() if one.base_id}
    live = set(session.scalars(select(node.id).where(node.id.in_(bases), node.state == lifecycle.LIVE)))
    below = select(node.base_id).where(node.base_id.in_(manifest_ids), node.in_tree == true()).distinct()
    with_children = set(session.scalars(below))
    those = select(backup.manifest_id).where(backup.manifest_id.in_(manifest_ids), backup.deleted == false())
    named = Counter(session.scalars(those))
    parents = {row.parent_id for row in found if row.parent_id}
    made_with = _pairs(session, backup.id, backup.manifest_id, parents)
    ours = installation_id(session)
    freed = {}
    for row in found:
        its = nodes.get(row.manifest_id or "")
        if its is None or its.state != lifecycle.LIVE or its.detached or its.installation_id != ours:
            continue
        if named[its.id] > 1:
            freed[row.id] = Freed(0, 0)
            continue
        based = its.base_id in live and made_with.get(row.parent_id or "") == its.base_id
        most = row.stored_bytes if based else max(row.referenced_bytes, row.stored_bytes)
        least = 0 if its.id in with_children else row.stored_bytes if its.base_id else most
        freed[row.id] = Freed(least, most)
    return freed


def _seen(everywhere: bool) -> ColumnElement[bool]:
    """The condition that a caller sees a task, with the parameter ``project_id`` unless he sees all."""
    row = models.Task
    if everywhere:
        return true()
    return (row.project_id == bindparam("project_id")) & row.kind.not_in(requirements.HIDDEN)


@cache
def _first_tasks(everywhere: bool) -> Any:
    """Return the statement that reads the first tasks, with what people call them by; at most ``most``.

    Ids of different tables never collide, so one join finds whatever a task is about.
    """
    row, backup, manifest, snapshot = models.Task, models.Backup, models.Manifest, models.Snapshot
    volume = models.Volume
    # Another project may have it by now, and call it otherwise.
    is_seen = true() if everywhere else volume.project_id == bindparam("project_id")
    order = (case((row.state == claims.RUNNING, 0), else_=1), row.queue_position, row.id)
    backup_id = case(
        (row.kind == tasks.BACKUP_VERIFY, row.source_id),
        else_=func.coalesce(manifest.backup_id, row.resource_id),
    )
    ids = select(row.id).where(_seen(everywhere)).order_by(*order).limit(bindparam("most")).subquery()
    volume_id = case(
        (row.kind == tasks.BACKUP_RESTORE, row.source_id),
        (row.kind.like("volume.%"), row.resource_id),
        else_=func.coalesce(backup.volume_id, snapshot.volume_id),
    )
    return (
        select(
            *(row.id, row.kind, row.project_id, row.state, row.cancel, row.owner, row.attempt),
            *(row.lease_until, row.not_before, row.fail_reason, row.locked, row.store_down, row.created_at),
            *(row.zone, row.store, row.from_store, row.volume_host, row.backend),
            *(row.progress_done, row.progress_total, row.progress_rate),
            *(backup.id.label("backup_id"), backup.display_name.label("backup_name"), backup.length),
            *(volume_id.label("volume_id"), volume.display_name.label("volume_name")),
            claims.first_in_line(of_few=True).label("is_first"),
        )
        .select_from(row)
        .join(ids, ids.c.id == row.id)
        .outerjoin(manifest, manifest.id == row.resource_id)
        .outerjoin(backup, backup.id == backup_id)
        .outerjoin(snapshot, snapshot.id == row.resource_id)
        .outerjoin(volume, and_(volume.id == volume_id, is_seen))
        .order_by(*order)
    )


@cache
def _task_row(everywhere: bool) -> Any:
    """Return the named tuple of such a row: its attributes are read ten times as fast as the row's own."""
    return namedtuple("TaskRow", _first_tasks(everywhere).selected_columns.keys())


def _operations(session: Session, conf: cfg.ConfigOpts, found: Sequence[Any]) -> Sequence[Operation]:
    """Turn rows of :func:`_first_tasks` into records."""
    first = {task.id for task in found if task.is_first}
    reasons = waiting.reasons(session, conf, found, Limits.of(conf), first)
    operations = []
    for task in found:
        reason, kind, total = reasons[task.id], task.kind, task.progress_total
        if kind in _OF_WHOLE_BACKUPS:
            total = total or task.length
        rate = task.progress_rate if reason is None and task.progress_rate else None
        left = None
        if rate is not None and total:
            left = -(-max(total - task.progress_done, 0) // rate)
        cancellable = kind in _CANCELLABLE and not task.cancel and task.backup_id is not None
        operations.append(
            Operation(
                id=task.id,
                kind=kind,
                project_id=task.project_id,
                waits_for=reason,
                backup_id=task.backup_id,
                backup_name=task.backup_name,
                volume_id=task.volume_id,
                volume_name=task.volume_name,
                store=task.store,
                done=task.progress_done,
                total=total or None,
                rate=rate,
                seconds_left=left,
                owner=task.owner,
                lease_until=task.lease_until,
                attempt=task.attempt,
                reason=task.fail_reason,
                cancellable=cancellable,
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

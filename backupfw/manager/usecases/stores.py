"""What stores hold, by project, and how that grew: recorded once an hour, because it looks at all backups.

The database knows what each backup put, not which objects of a deleted one others still need.  So a backup
whose base is gone is counted with all that it names, any other with what it put itself: objects that were
put by a deleted backup between two others are missing.  ``backupfw usage`` reads the manifests and knows it
exactly.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from sqlalchemy import case, delete, exists, false, func, or_, select, union_all
from sqlalchemy.orm import Session, aliased

from backupfw.conf.stores import group_of
from backupfw.db import models
from backupfw.db.locks import put
from backupfw.db.session import now
from backupfw.manager.lineage import lifecycle

if TYPE_CHECKING:
    from oslo_config import cfg

    from backupfw.db.session import Database

#: For how long the sums of a store are kept, days; those of projects are kept for the last day only.
KEPT_DAYS = 400
#: How old a record becomes before it is made anew; each day keeps its last one.
EVERY = timedelta(hours=1)
#: In place of a project: all of them.
ALL = ""
#: How many projects are shown of a store.
PROJECTS = 25


@dataclass(frozen=True, slots=True)
class Held:
    """What a store, or a project in it, held on a day.

    :ivar project_id: :data:`ALL`, or whose it is.
    :ivar day: as ``2026-01-31``.
    :ivar backups: backups and copies of backups.
    :ivar recorded_at: naive UTC.
    """

    store: str
    project_id: str
    day: str
    backups: int
    objects: int
    bytes: int
    recorded_at: datetime


@dataclass(frozen=True, slots=True)
class StoreUse:
    """A store, for operators.

    :ivar history: its sums, day by day, the oldest first; empty: nothing was recorded yet.
    :ivar projects: those with the most bytes at the last record, the largest first.
    :ivar project_count: how many have something in it.
    :ivar lock_days: for how long backups are locked; 0: they are not.
    :ivar scrub_days: within how many days everything is verified again; 0: nothing is.
    :ivar unproven_since: of when the oldest proof of what it holds is, naive UTC; None: it holds nothing.
    :ivar copying: copies that are not made yet.
    :ivar failed_copies: copies that could not be made.
    :ivar damaged_objects: objects that are known to be damaged.
    :ivar price: of a GiB and month, as the operator has set it; 0: it is not set.
    """

    name: str
    history: Sequence[Held]
    projects: Sequence[Held]
    project_count: int
    lock_days: int
    scrub_days: int
    unproven_since: datetime | None
    copying: int
    failed_copies: int
    damaged_objects: int
    price: float


class StoreManager:
    """What stores hold.  Thread-safe."""

    def __init__(self, db: Database, conf: cfg.ConfigOpts) -> None:
        self._db = db
        self._conf = conf

    def record(self) -> bool:
        """Record what stores hold, if nobody did within an hour; any process may call it at any time.

        It reads every backup, about a second for a million of them.

        :returns: whether it did.
        """
        row = models.StoreUsage
        with self._db.read() as session:
            moment = now(session)
            day = _day(moment)
            last = session.scalar(select(func.max(row.recorded_at)).where(row.day == day))
            if last is not None and moment - EVERY < last <= moment:
                return False
            found = _counted(session)
        sums = {store: [0, 0, 0] for store in self._conf.enabled_stores}
        for (store, _), counts in found.items():
            sums[store] = [one + more for one, more in zip(sums.get(store, (0, 0, 0)), counts, strict=True)]
        found |= {(store, ALL): tuple(counts) for store, counts in sums.items()}
        values = [
            {
                "store": store,
                "project_id": project_id,
                "day": day,
                "recorded_at": moment,
                **dict(zip(("backups", "objects", "bytes"), counts, strict=True)),
            }
            for (store, project_id), counts in sorted(found.items())
        ]
        oldest = _day(moment - timedelta(days=KEPT_DAYS))

        def work(session: Session) -> None:
            # Another process may do the same now: the rows of whoever is last are the record.
            put(session, row, values)
            of_project = row.project_id != ALL
            old = or_(row.day < oldest, (row.day < day) & of_project, (row.recorded_at < moment) & of_project)
            session.execute(delete(row).where(old), execution_options={"synchronize_session": False})

        self._db.run(work)
        return True

    def uses(self) -> Sequence[StoreUse]:
        """Return the enabled stores, and others of which something was recorded, by name."""
        row, copy, damaged = models.StoreUsage, models.BackupCopy, models.DamagedObject
        with self._db.read() as session:
            history = session.scalars(select(row).where(row.project_id == ALL).order_by(row.day)).all()
            names = sorted({*self._conf.enabled_stores, *(one.store for one in history)})
            waiting = copy.status.in_((lifecycle.COPYING, lifecycle.ERROR))
            copies = select(copy.store, copy.status, func.count()).where(waiting)
            by_copy = {
                (store, status): count
                for store, status, count in session.execute(copies.group_by(copy.store, copy.status))
            }
            bad = select(damaged.store, func.count()).group_by(damaged.store)
            by_damage = {one[0]: one[1] for one in session.execute(bad)}
            return [
                self._use(session, name, [one for one in history if one.store == name], by_copy, by_damage)
                for name in names
            ]

    def _use(
        self,
        session: Session,
        name: str,
        history: Sequence[models.StoreUsage],
        by_copy: Mapping[tuple[str, str], int],
        by_damage: Mapping[str, int],
    ) -> StoreUse:
        row = models.StoreUsage
        group = self._conf[group_of(name)] if name in self._conf.enabled_stores else None
        last = history[-1].day if history else ""
        mine = (row.store == name, row.day == last, row.project_id != ALL)
        largest = select(row).where(*mine).order_by(row.bytes.desc(), row.project_id).limit(PROJECTS)
        return StoreUse(
            name=name,
            history=[_held(one) for one in history],
            projects=[_held(one) for one in session.scalars(largest)],
            project_count=session.scalar(select(func.count()).select_from(row).where(*mine)) or 0,
            lock_days=group.lock_days if group else 0,
            scrub_days=group.scrub_days if group else 0,
            unproven_since=unproven_since(session, name),
            copying=by_copy.get((name, lifecycle.COPYING), 0),
            failed_copies=by_copy.get((name, lifecycle.ERROR), 0),
            damaged_objects=by_damage.get(name, 0),
            price=group.price_per_gib_month if group else 0.0,
        )


def _day(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d}"


def _held(row: models.StoreUsage) -> Held:
    return Held(row.store, row.project_id, row.day, row.backups, row.objects, row.bytes, row.recorded_at)


def unproven_since(session: Session, store: str) -> datetime | None:
    """Return of when the oldest proof of what a store holds is: a full verification, or its creation."""
    row = models.Manifest
    proof = func.coalesce(row.fully_verified_at, row.created_at)
    mine = (row.store == store, row.state == lifecycle.LIVE, row.key.is_not(None))
    return session.scalar(select(func.min(proof)).where(*mine))


def _counted(session: Session) -> dict[tuple[str, str], tuple[int, ...]]:
    """Count backups, objects and bytes of each project in each store."""
    backup, copy, other = models.Backup, models.BackupCopy, aliased(models.Backup)
    # Of several backups with the same manifest one is counted.
    first = ~exists(
        select(other.id).where(
            other.manifest_id == backup.manifest_id, other.id < backup.id, other.deleted == false()
        )
    )
    columns = (backup.project_id, backup.object_count, backup.stored_bytes, backup.referenced_bytes)
    held = union_all(
        select(backup.manifest_id, *columns).where(backup.deleted == false(), first),
        select(copy.manifest_id, *columns)
        .join(backup, backup.id == copy.backup_id)
        .where(copy.status == lifecycle.AVAILABLE, backup.deleted == false()),
    ).subquery()
    manifest, base = models.Manifest, aliased(models.Manifest)
    alone = or_(base.id.is_(None), base.state != lifecycle.LIVE)
    most = case(
        (held.c.referenced_bytes > held.c.stored_bytes, held.c.referenced_bytes), else_=held.c.stored_bytes
    )
    size = case((alone, most), else_=held.c.stored_bytes)
    query: Any = (
        select(manifest.store, held.c.project_id, func.count(), func.sum(held.c.object_count), func.sum(size))
        .join(manifest, manifest.id == held.c.manifest_id)
        .outerjoin(base, base.id == manifest.base_id)
        .where(manifest.state == lifecycle.LIVE)
        .group_by(manifest.store, held.c.project_id)
    )
    return {
        (store, project_id): (int(count), int(objects or 0), int(total or 0))
        for store, project_id, count, objects, total in session.execute(query)
    }

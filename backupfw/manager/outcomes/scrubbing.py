"""Scrubbing: which objects of a store are verified next, and what becomes of that.

A task verifies the live manifests of one volume in one container together (:mod:`backupfw.engine.scrub`), or
one link of Cinder's format.  Which manifests these are is recorded in the transaction that queues it: what is
committed later comes with the next one.  There is one task for each store at a time.

A *verification that somebody asked for* (``backup.verify``) is the same of one manifest: that of a backup in
one of its places.  It runs whether scrubbing is on or not, and as fast as the store lets it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import ColumnElement, exists, func, or_, select, update
from sqlalchemy.orm import Session

from backupfw.conf.stores import group_of
from backupfw.db import models
from backupfw.db.locks import lock
from backupfw.db.session import now
from backupfw.manager import rows
from backupfw.manager.lineage import lifecycle, manifests
from backupfw.manager.messages import Detail
from backupfw.manager.outcomes.base import Outcomes
from backupfw.manager.outcomes.damaged_objects import DAMAGED, FULL, OK, DamagedObjects
from backupfw.manager.queue import claims, tasks
from backupfw.manager.rows import Task
from backupfw.manager.rules import copies, failures

#: The share of ``scrub_days`` after which a proof is renewed: what is left is for reading.
_DUE = 0.75
#: How many rows one statement names at most.
_BATCH = 500
#: Seconds after which what could not be verified is tried again.
_AGAIN_SECONDS = 6 * 3600.0


@dataclass(frozen=True, slots=True)
class ScrubbedManifest:
    """A manifest that a scrub verifies.

    :ivar key_id: of its data key; None: the database says that it is not encrypted.
    """

    id: str
    key: str
    key_id: str | None

    @property
    def encrypted(self) -> bool:
        """Whether it is encrypted."""
        return self.key_id is not None


@dataclass(frozen=True, slots=True)
class ScrubPlan:
    """What one attempt of a scrub works on.

    :ivar manifests: those that are live still, oldest first; never empty.
    :ivar links: of one of Cinder's format: container and key of it and of those that it needs.
    :ivar begun: when it was queued, by the database's clock: what is found damaged since then, this scrub or
        another reader found meanwhile.
    :ivar asked_for: somebody asked for it, and wants to know if nothing can be proven.
    """

    store: str
    container: str
    manifests: tuple[ScrubbedManifest, ...]
    links: tuple[tuple[str, str], ...]
    begun: datetime
    asked_for: bool

    @property
    def key(self) -> str:
        """Of the oldest manifest."""
        return self.manifests[0].key

    @property
    def encrypted(self) -> bool:
        """Whether the oldest is."""
        return self.manifests[0].encrypted


class ScrubTasks(Outcomes):
    """Queues ``manifest.scrub``, and records its outcomes and those of ``backup.verify``."""

    def queue_due(self, stores: Collection[str]) -> int:
        """Queue a scrub for each store that has none, and in which something is due.

        Any process may do it, at any time.

        :param stores: those of the caller; the others are left to others.
        :returns: how many were queued.
        """
        queued = 0
        for store in self._conf.enabled_stores:
            days = self._conf[group_of(store)].scrub_days if store in stores else 0
            if not days:
                continue
            # A read takes no lock, and nearly always there is nothing to queue.
            with self._db.read() as session:
                if _is_queued(session, store) or _oldest(session, store, days) is None:
                    continue
            queued += self._db.run(lambda session, store=store, days=days: _queue(session, store, days))  # type: ignore[misc]
        return queued

    def start(self, task: Task) -> ScrubPlan | None:
        """Begin an attempt, or end the task: all its manifests were deleted, or scrubbing was turned off."""

        def work(session: Session) -> ScrubPlan | None:
            tasks.hold(session, task)
            row = models.Manifest
            found = session.scalars(select(row).where(_of(task)).order_by(row.created_at, row.id)).all()
            asked_for = task.kind == tasks.BACKUP_VERIFY
            if not found or not (asked_for or self._conf[group_of(found[0].store)].scrub_days):
                _end(session, task)
                return None
            begun = session.scalars(select(models.Task.created_at).where(models.Task.id == task.id)).one()
            return ScrubPlan(
                found[0].store,
                found[0].container,
                tuple(ScrubbedManifest(one.id, str(one.key), one.key_id) for one in found),
                manifests.links(session, found[0]),
                begun,
                asked_for,
            )

        return self._db.run(work)

    def bytes_per_second(self, plan: ScrubPlan) -> float:
        """Return how fast the store may be read, now; 0: there is no limit but that of the store."""
        return 0.0 if plan.asked_for else float(self._conf[group_of(plan.store)].scrub_bytes_per_second)

    def goes_on(self, task: Task) -> bool:
        """Return whether any manifest of a scrub is live still."""
        with self._db.read() as session:
            return session.scalar(select(models.Manifest.id).where(_of(task)).limit(1)) is not None

    def leave_out(self, task: Task, manifest_id: str) -> None:
        """Take a manifest that cannot be read from a scrub: also a later attempt proves nothing of it."""

        def work(session: Session) -> None:
            tasks.hold(session, task)
            _let_go(session, models.Manifest.id == manifest_id)

        self._db.run(work)

    def places(self, manifest_id: str) -> list[rows.Place]:
        """Return all places of a backup whose manifest, or whose copy's manifest, this is; [] if none is."""
        backup, copy = models.Backup, models.BackupCopy
        with self._db.read() as session:
            found = session.scalars(
                select(backup)
                .where(
                    backup.deleted.is_(False),
                    or_(
                        backup.manifest_id == manifest_id,
                        exists().where(copy.backup_id == backup.id, copy.manifest_id == manifest_id),
                    ),
                )
                .limit(1)
            ).first()
            return [] if found is None else copies.places(session, found, self._conf.enabled_stores)

    def prove(self, plan: ScrubPlan, manifest_id: str, named: Iterable[str]) -> None:
        """Record that everything that a manifest names was verified: its result is what is known of it now.

        :param named: keys of objects on the list of damaged ones that it names.
        """
        mark, damaged = models.DamageMark, models.DamagedObject
        with self._db.read() as session:
            is_damaged = session.scalar(
                select(
                    exists().where(
                        mark.manifest_id == manifest_id,
                        damaged.digest == mark.digest,
                        damaged.found_at >= plan.begun,
                    )
                )
            )
        result = DAMAGED if is_damaged else OK
        listed = DamagedObjects(self._db, self._conf)
        listed.record_verification(manifest_id, plan.begun, FULL, result, named)
        self._db.run(lambda session: _let_go(session, models.Manifest.id == manifest_id, again=False))

    def finish(self, task: Task) -> None:
        """End a scrub; what was not proven is tried again later."""
        self._db.run(lambda session: _end(session, task))

    def fail(self, task: Task, reason: str) -> None:
        """End a scrub that cannot go on; its manifests are tried again later."""

        def work(session: Session) -> None:
            _end(session, task, "failed")
            if task.kind == tasks.BACKUP_VERIFY:
                failed(session, task, reason)

        self._db.run(work)


def failed(session: Session, task: Task, reason: str, detail: Detail | None = None) -> None:
    """Tell whoever asked for a verification that it failed, in the transaction that ends its task.

    The backup is as good or as bad as before, and nothing else of it changes.
    """
    failures.verification_failed(session, task, reason, detail)


def _of(task: Task) -> ColumnElement[bool]:
    """The condition on a manifest's row that a task verifies it, and that it is live still."""
    row = models.Manifest
    mine = row.id == task.resource_id if task.kind == tasks.BACKUP_VERIFY else row.scrub_task_id == task.id
    return mine & (row.state == lifecycle.LIVE) & row.key.is_not(None)


def _end(session: Session, task: Task, outcome: tasks.Outcome = "done") -> None:
    _let_go(session, models.Manifest.scrub_task_id == task.id)
    tasks.end(session, task, outcome)


def _let_go(session: Session, which: ColumnElement[bool], *, again: bool = True) -> None:
    """Take manifests from their scrub.

    :param again: they were not proven, and are tried again later.
    """
    row = models.Manifest
    later = now(session) + timedelta(seconds=_AGAIN_SECONDS) if again else None
    lock(session, row, which)
    session.execute(
        update(row).where(which).values(scrub_task_id=None, scrub_after=later),
        execution_options={"synchronize_session": False},
    )


def _is_queued(session: Session, store: str) -> bool:
    row = models.Task
    return bool(session.scalar(select(exists().where(row.kind == tasks.MANIFEST_SCRUB, row.store == store))))


def _oldest(session: Session, store: str, days: int) -> models.Manifest | None:
    """Return the manifest in a store whose proof is the oldest, if it is due."""
    row, moment = models.Manifest, now(session)
    proof = func.coalesce(row.fully_verified_at, row.created_at)
    return session.scalars(
        select(row)
        .where(
            row.store == store,
            row.state == lifecycle.LIVE,
            row.key.is_not(None),
            proof <= moment - timedelta(days=days) * _DUE,
            or_(row.scrub_after.is_(None), row.scrub_after <= moment),
        )
        .order_by(proof, row.id)
        .limit(1)
    ).first()


def _queue(session: Session, store: str, days: int) -> bool:
    """Queue a scrub, unless another transaction did: the lock lets one after the other look."""
    claims.lock_queue(session)
    if _is_queued(session, store):
        return False
    oldest = _oldest(session, store, days)
    if oldest is None:
        return False
    row = models.Manifest
    together = row.id == oldest.id
    if oldest.installation_id != manifests.CINDER:
        together = (
            (row.store == store)
            & (row.container == oldest.container)
            & (row.installation_id == oldest.installation_id)
            & (row.project_id == oldest.project_id)
            & (row.volume_id == oldest.volume_id)
            & row.key.is_not(None)
        )
        if oldest.scrub_after is not None:
            # The last scrub could not prove it, so it is tried without those that it proved.
            together &= row.scrub_after.is_not(None)
    task_id = tasks.add(
        session,
        tasks.MANIFEST_SCRUB,
        resource_id=oldest.id,
        source_id=None,
        project_id=oldest.project_id,
        request_id=None,
    )
    ids = lock(session, row, together, row.state == lifecycle.LIVE)
    for start in range(0, len(ids), _BATCH):
        session.execute(
            update(row)
            .where(row.id.in_(ids[start : start + _BATCH]), row.state == lifecycle.LIVE)
            .values(scrub_task_id=task_id),
            execution_options={"synchronize_session": False},
        )
    return True

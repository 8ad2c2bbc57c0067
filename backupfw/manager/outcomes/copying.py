"""Copying a backup to another store: the plan of an attempt, and its end.

The backup stays as it is meanwhile: it can be restored, deleted, and backups can be made from it.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from backupfw.db import models
from backupfw.db.digest import object_digest
from backupfw.db.locks import lock
from backupfw.db.session import now
from backupfw.errors import InvalidBackup, TaskLost
from backupfw.manager.lineage import lifecycle, manifests
from backupfw.manager.lineage.lifecycle import CopyMoves
from backupfw.manager.outcomes.base import Outcomes
from backupfw.manager.queue import outbox, tasks
from backupfw.manager.rows import Task
from backupfw.manager.rules import backup_rows, copies, failures


@dataclass(frozen=True, slots=True)
class CopyPlan:
    """The plan of one attempt to copy a backup.

    :ivar key: of the manifest, in both containers.
    :ivar source_id: the row of the manifest that is read, in ``from_store`` and ``from_container``.
    :ivar manifest_id: the row of the manifest that is made, in ``store`` and ``container``.
    :ivar held: the container has something of ours, so it must be there.
    :ivar placed: its place in the lineage is recorded.
    :ivar locked_until: everything that was put for it is locked at least until then, naive UTC; None: not
        known.
    :ivar base_locked_until: likewise, what its base in the container names.
    """

    key: str
    source_id: str
    from_store: str
    from_container: str
    manifest_id: str
    store: str
    container: str
    held: bool
    placed: bool
    encrypted: bool
    locked_until: datetime | None = None
    base_locked_until: datetime | None = None


class CopyTasks(Outcomes):
    """Outcomes of ``backup.copy``."""

    def start(self, task: Task) -> CopyPlan:
        """Begin an attempt.

        :raises TakesTurns: a removal in the same container has not ended; try again later.
        :raises InvalidBackup: the backup has no data to copy.
        """

        def work(session: Session) -> CopyPlan:
            manifest, copy = self._copying(session, task)
            backup = session.get_one(models.Backup, copy.backup_id)
            source = backup_rows.manifest_of(session, backup)
            if backup.deleted or source is None or source.state != lifecycle.LIVE or source.key is None:
                raise InvalidBackup("The backup has no data that could be copied.")
            assert manifest.key == source.key
            placed = manifests.begin_copy(session, manifest)
            row = models.Manifest
            other = select(row.id).where(
                row.store == manifest.store,
                row.container == manifest.container,
                row.state.in_((lifecycle.LIVE, lifecycle.RELEASED)),
            )
            return CopyPlan(
                key=source.key,
                source_id=source.id,
                from_store=source.store,
                from_container=source.container,
                manifest_id=manifest.id,
                store=manifest.store,
                container=manifest.container,
                held=placed or session.scalar(other.limit(1)) is not None,
                placed=placed,
                encrypted=source.key_id is not None,
                locked_until=manifest.locked_until,
                base_locked_until=_base_locked_until(session, manifest),
            )

        return self._db.run(work)

    def place(self, task: Task, base: str | None, *, detached: bool) -> datetime | None:
        """Record the copy's place in the lineage; before anything is put.

        It returns until when what the base names is locked, naive UTC; None: not known.

        :param base: the key of the manifest in its container whose objects it shares; None: it shares none.
        :param detached: its neighbours are not known.
        """

        def work(session: Session) -> datetime | None:
            manifest, _ = self._copying(session, task)
            digest = None if base is None else object_digest(manifest.store, manifest.container, base)
            manifests.place_copy(session, manifest, digest, detached=detached)
            return _base_locked_until(session, manifest)

        return self._db.run(work)

    def will_lock(self, task: Task, until: datetime | None, *, first: bool) -> datetime | None:
        """Record until when an attempt locks what it puts; before it puts anything.

        :param until: naive UTC; None: it locks nothing.
        :param first: nothing was put for the copy before.
        :returns: until when all that was put for it is locked then; None: not known.
        """

        def work(session: Session) -> datetime | None:
            manifest, _ = self._copying(session, task)
            known = [] if first else [manifest.locked_until]
            # Of a detached one, objects may be there that were not put for it.
            manifest.locked_until = None if manifest.detached else manifests.earliest(*known, until)
            session.flush()
            return manifest.locked_until

        return self._db.run(work)

    def finish(self, task: Task, locked_until: datetime | None = None) -> None:
        """End the task: the copy is available.

        :param locked_until: everything that its manifest names is locked at least until then, naive UTC.
        :raises TaskLost: another attempt owns the task, or the copy was removed.
        """

        def work(session: Session) -> None:
            manifest, copy = self._copying(session, task)
            tasks.end(session, task)
            manifest.state = lifecycle.LIVE
            manifest.locked_until = locked_until
            manifest.updated_at = now(session)
            session.flush()
            lifecycle.move(session, models.BackupCopy, copy.id, CopyMoves.copied, fail_reason=None)
            backup_rows.let_go(session, manifest.base_id, task.project_id, task.request_id)
            _let_retention_work(session, copy.backup_id)

        self._db.run(work)

    def fail(self, task: Task, reason: str) -> None:
        """End the task: the copy is in ``error``; another task removes what was put for it."""

        def work(session: Session) -> None:
            tasks.end(session, task, "failed")
            copy = _copy(session, task)
            if copy is None:
                return
            copy.manifest_id = None
            session.flush()
            failures.copy_failed(session, task, copy, reason, again=bool(task.payload.get("again")))
            copies.end(session, task.resource_id, task.request_id)
            outbox.alert(
                session,
                "backup.copy.failed",
                f"The copy of backup {copy.backup_id} to the store {copy.store} failed: {reason}",
                project_id=task.project_id,
                backup_id=copy.backup_id,
                store=copy.store,
                fail_reason=tasks.short_reason(reason),
            )

        self._db.run(work)

    def _copying(self, session: Session, task: Task) -> tuple[models.Manifest, models.BackupCopy]:
        tasks.hold(session, task)
        row = models.Manifest
        lock(session, row, row.id == task.resource_id)
        manifest = session.get(row, task.resource_id, populate_existing=True)
        copy = _copy(session, task)
        if manifest is None or copy is None or manifest.state != lifecycle.WRITING:
            raise TaskLost(f"the copy {task.resource_id} is not being made any more")
        return manifest, copy


def _let_retention_work(session: Session, backup_id: str) -> None:
    """Let the retention of the policy that made a backup work anew: the new copy may take another's place."""
    backup, run = session.get_one(models.Backup, backup_id), models.PolicyRun
    if backup.policy_id is not None:
        # The key of runs begins with policy and volume.
        mine = (run.policy_id == backup.policy_id, run.volume_id == backup.volume_id)
        session.execute(
            # Retention that is just at work has not seen the copy: the counter tells it so.
            update(run)
            .where(*mine, run.backup_id == backup_id)
            .values(tidied=False, touched=run.touched + 1),
            execution_options={"synchronize_session": False},
        )


def _base_locked_until(session: Session, manifest: models.Manifest) -> datetime | None:
    base = None if manifest.base_id is None else session.get(models.Manifest, manifest.base_id)
    return None if base is None else base.locked_until


def _copy(session: Session, task: Task) -> models.BackupCopy | None:
    row = models.BackupCopy
    return session.scalar(select(row).where(row.manifest_id == task.resource_id))

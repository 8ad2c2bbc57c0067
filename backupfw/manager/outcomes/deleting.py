"""Deleting backups, and the objects that no manifest names any more.

The record of a backup is deleted at once if its data stays (other backups use it) or was never stored.
Otherwise its manifest is released, which is irrevocable, and the record stays until the objects are deleted.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import delete, exists, select, update
from sqlalchemy.orm import Session

from backupfw.db import models
from backupfw.db.digest import object_digest
from backupfw.db.installation import installation_id
from backupfw.db.locks import lock
from backupfw.errors import EngineError
from backupfw.manager import rows
from backupfw.manager.lineage import lifecycle, manifests
from backupfw.manager.lineage.lifecycle import BackupMoves
from backupfw.manager.lineage.manifests import CINDER
from backupfw.manager.messages import Detail
from backupfw.manager.outcomes import damaged_objects
from backupfw.manager.outcomes.base import Outcomes, backup_of
from backupfw.manager.queue import tasks
from backupfw.manager.rows import Task
from backupfw.manager.rules import backup_rows, copies, failures

#: How the reason begins for which the deletion of a locked backup waits.
LOCKED = "The backup's data is locked in its store"
#: A failed deletion is tried again after at most this many seconds.
LONGEST_RETRY = 86400.0


@dataclass(frozen=True, slots=True)
class ReleasePlan:
    """The plan of a deletion: the objects, and the manifests that must be read before.

    :ivar manifest_id: the released manifest's row.
    :ivar key: its key; None: it was never committed, so there are only leftovers.
    :ivar given_up: keys under which the backup's attempts may have put a manifest that will never be
        committed; such a manifest also names objects that it took over from other backups.
    :ivar begun: an attempt may have put objects, so the container existed.
    :ivar relatives: keys of the manifests that may share its objects, in the same container.
    :ivar known_keys: keys of all manifests of the volume that the database ever knew; unknown manifests in
        the store may share objects, too.
    :ivar installation_id: with ``project_id``, ``volume_id`` and ``backup_id`` the parts of the prefix
        of all objects that this manifest's backup put.
    :ivar copied: it is a copy: if its manifest is not there, objects of other backups may have been put for
        it.
    """

    manifest_id: str
    store: str
    container: str
    key: str | None
    given_up: tuple[str, ...]
    begun: bool
    relatives: tuple[str, ...]
    known_keys: frozenset[str]
    installation_id: str
    project_id: str
    volume_id: str
    backup_id: str
    copied: bool = False

    @property
    def is_link(self) -> bool:
        """Whether it is of Cinder's format: its key is the prefix of all its objects."""
        return self.installation_id == CINDER


@dataclass(frozen=True, slots=True)
class DoomedLink:
    """A link of Cinder's format that a task is about to delete.

    :ivar key: the prefix of its objects.
    :ivar backup_id: the backup that Cinder made, with which children name it.
    """

    store: str
    container: str
    key: str
    backup_id: str
    volume_id: str


class DeleteTasks(Outcomes):
    """Outcomes of ``backup.delete`` and ``manifest.release``."""

    def doomed_link(self, task: Task) -> DoomedLink | None:
        """Return the link that a task would delete: the caller looks for children that are not known here.

        :returns: None: it deletes none.
        """
        with self._db.read() as session:
            manifest_id: str | None = task.resource_id
            states = (lifecycle.RELEASED,)
            if task.kind == tasks.BACKUP_DELETE:
                backup = session.get(models.Backup, task.resource_id)
                manifest_id = None if backup is None else backup.manifest_id
                # What an earlier attempt released is lost: it has begun to delete.
                states = (lifecycle.LIVE,)
            found = None if manifest_id is None else session.get(models.Manifest, manifest_id)
            if found is None or found.installation_id != CINDER or found.state not in states:
                return None
            return DoomedLink(found.store, found.container, str(found.key), found.backup_id, found.volume_id)

    def of_unknown_lock(self, task: Task) -> tuple[rows.Place, str] | None:
        """Return place and key of the manifest that the deletion of a backup may release, if it is not known
        until when it is locked.

        :returns: None: it is known, or nothing may be released.
        """
        with self._db.read() as session:
            backup = session.get(models.Backup, task.resource_id)
            found = None if backup is None else backup_rows.manifest_of(session, backup)
            if found is None or found.key is None or found.locked_until is not None:
                return None
            if found.state != lifecycle.LIVE or found.installation_id != installation_id(session):
                return None
            return rows.Place(found.id, found.store, found.container), found.key

    def knows(self, store: str, container: str, key: str) -> bool:
        """Return whether the database knows, or knew, a link."""
        row = models.Manifest
        with self._db.read() as session:
            found = select(row.id).where(row.key_digest == object_digest(store, container, key))
            return session.scalar(found) is not None

    def refuse(self, task: Task, reason: str) -> None:
        """End the task of a deletion that must not be carried out: the backup is available again."""

        def work(session: Session) -> None:
            tasks.end(session, task, "failed")
            failures.failed(session, task, reason, Detail.NEEDED, refused=True)

        self._db.run(work)

    def forget_link(self, task: Task) -> None:
        """End the task of a release that must not be carried out: the link's objects are nobody's here."""

        def work(session: Session) -> None:
            tasks.end(session, task)
            row = models.Manifest
            link = session.get_one(row, task.resource_id)
            needed, project = link.base_id, link.project_id
            damaged_objects.forget_marks(session, link.id)
            session.execute(
                update(models.Backup).where(models.Backup.manifest_id == link.id).values(manifest_id=None),
                execution_options={"synchronize_session": False},
            )
            session.execute(delete(row).where(row.id == link.id))
            session.expire_all()
            backup_rows.let_go(session, manifests.drop_links(session, needed), project, task.request_id)

        self._db.run(work)

    def start(self, task: Task) -> ReleasePlan | None:
        """Begin an attempt.

        :returns: the plan; None: nothing is to be deleted from the store, the record is deleted and the task
            has ended.
        :raises StillLocked: the backup's data is locked in its store; nothing was changed, so a reset of its
            status makes the backup available again.
        :raises EngineError: the plan cannot be made yet; try again later.
        """
        manifest_id = self._db.run(lambda session: self._release(session, task))
        return None if manifest_id is None else self._search(manifest_id)

    def _release(self, session: Session, task: Task) -> str | None:
        tasks.hold(session, task)
        backup = session.get(models.Backup, task.resource_id, populate_existing=True)
        moved = lifecycle.move(session, models.Backup, task.resource_id, BackupMoves.delete_again)
        if backup is None or not moved:
            # The backup was deleted or reset, by a transaction that should also have cancelled this task.
            tasks.end(session, task)
            return None
        # They go by tasks of their own: if one store is down, only what is there stays.
        copies.remove_all(session, backup.id, task.request_id)
        manifest = backup_rows.manifest_of(session, backup, lock=True)
        if manifest is not None and self._must_remove(session, backup, manifest, task):
            return manifest.id
        tasks.end(session, task)
        backup_rows.forget(session, backup)
        return None

    def _must_remove(
        self,
        session: Session,
        backup: models.Backup,
        manifest: models.Manifest,
        task: Task,
        *,
        even_locked: bool = False,
    ) -> bool:
        """Give up the manifest; return whether this task must delete its objects.

        :raises StillLocked: it is locked; the caller's transaction must not be committed.
        """
        # The user deletes the backup, so no key of it that is still open may be committed.
        manifests.give_up(session, models.Manifest.backup_id == backup.id)
        # These may also be keys that an earlier attempt gave up before it failed.
        given_up = bool(manifests.given_up_keys(session, backup.id))
        if manifest.state == lifecycle.GONE:
            return given_up
        if manifest.state == lifecycle.WRITING:
            backup_rows.give_up_manifest(session, backup, task.request_id)
            return True
        if manifest.state == lifecycle.RELEASED:
            # An earlier attempt of this task released it, or a creation that failed, which has queued a
            # clean-up of its own.
            cleaning = exists().where(
                models.Task.kind == tasks.MANIFEST_RELEASE, models.Task.resource_id == manifest.id
            )
            return given_up or not session.scalar(select(cleaning))
        self._set_manifest(session, backup, None)
        if manifest.installation_id == CINDER:
            self._require_no_children(session, manifest.id)
        elif manifest.installation_id != installation_id(session):
            _drop_reference(session, manifest.id)
            return False
        if not manifests.release_if_unused(session, manifest.id, even_locked=even_locked):
            return False
        # The next attempt must find the manifest.
        self._set_manifest(session, backup, manifest.id)
        return True

    @staticmethod
    def _require_no_children(session: Session, manifest_id: str) -> None:
        """Refuse the deletion of a link that others need: one was imported after the request was accepted.

        :raises EngineError: try again later.
        """
        named = select(models.Backup.id).where(
            models.Backup.manifest_id == manifest_id, models.Backup.deleted.is_(False)
        )
        lock(session, models.Manifest, models.Manifest.id == manifest_id)
        if session.scalar(named.limit(1)) is None and manifests.is_needed_link(session, manifest_id):
            raise EngineError("Incremental backups of Cinder's format need the backup's data.")

    @staticmethod
    def _set_manifest(session: Session, backup: models.Backup, manifest_id: str | None) -> None:
        session.execute(
            update(models.Backup).where(models.Backup.id == backup.id).values(manifest_id=manifest_id),
            execution_options={"synchronize_session": False},
        )
        session.expire(backup)

    def plan_again(self, plan: ReleasePlan) -> ReleasePlan:
        """Look for the relatives again, for a plan with a relative that cannot be read.

        :returns: a plan without relatives that were released meanwhile.
        :raises EngineError: as :meth:`start`.
        """
        return self._search(plan.manifest_id)

    def _search(self, manifest_id: str) -> ReleasePlan:
        """Look for the relatives, in a transaction that began after the release was committed."""

        def work(session: Session) -> ReleasePlan:
            manifests.refuse_while_copying(session, manifest_id)
            found = manifests.relatives(session, manifest_id)
            manifest = session.get(models.Manifest, manifest_id)
            assert manifest is not None
            if any(row.key is None for row in found):
                raise EngineError("A backup that may share the data is being made.")
            relatives = {row.key for row in found if row.key is not None}
            if manifest.key is None:
                relatives.update(manifests.keys_that_may_name(session, manifest_id))
            given_up = manifests.given_up_keys(session, manifest.backup_id)
            if given_up:
                # The tree does not show which manifests share with one that was given up: the row may have
                # left the tree, or have got another base since.
                relatives.update(manifests.live_backups(session, manifest_id))
            return ReleasePlan(
                manifest_id=manifest_id,
                store=manifest.store,
                container=manifest.container,
                key=manifest.key,
                given_up=tuple(given_up),
                begun=manifests.may_have_objects(manifest),
                relatives=tuple(sorted(relatives)),
                known_keys=frozenset(manifests.volume_keys(session, manifest_id)),
                installation_id=manifest.installation_id,
                project_id=manifest.project_id,
                volume_id=manifest.volume_id,
                backup_id=manifest.backup_id,
                copied=manifest.copied,
            )

        return self._db.run(work)

    def volume_rows(self, plan: ReleasePlan) -> manifests.VolumeRows:
        """Return what the database says of the volume in the plan's container, for the sweep of a copy."""
        with self._db.read() as session:
            return manifests.volume_rows(
                session,
                store=plan.store,
                container=plan.container,
                installation_id=plan.installation_id,
                volume_id=plan.volume_id,
                ending=plan.manifest_id,
            )

    def finish(self, task: Task, plan: ReleasePlan) -> None:
        """End the task: the manifest is gone and the record deleted."""

        def work(session: Session) -> None:
            tasks.end(session, task)
            self._gone(session, plan.manifest_id, task.request_id)
            backup = backup_of(session, task)
            backup_rows.forget(session, backup)
            # A rebuild may have found a copy since the deletion began.
            copies.remove_all(session, backup.id, task.request_id)

        self._db.run(work)

    def fail(self, task: Task, reason: str) -> None:
        """End the task: the backup is in ``error_deleting``; a new task tries again after a while.

        Only the first failure gives a user message: the later tries are automatic.
        """

        def work(session: Session) -> None:
            tasks.end(session, task, "failed")
            failed(session, task, reason)
            self._again(session, task)

        self._db.run(work)

    def tell_locked(self, task: Task, until: datetime) -> None:
        """Tell users that the deletion waits for the end of a lock.

        :param until: naive UTC.
        """

        def work(session: Session) -> None:
            tasks.hold(session, task)
            backup = backup_of(session, task)
            if backup.fail_reason is None or LOCKED not in backup.fail_reason:
                failures.warn(session, task, Detail.LOCKED)
            backup.fail_reason = f"{LOCKED} until {until:%Y-%m-%d %H:%M} UTC; it is deleted after that."

        self._db.run(work)

    def give_up(self, session: Session, task: Task) -> str | None:
        """Delete the record of a backup, or of a manifest, whose store is gone for good.

        In the transaction of the caller, who has deleted the task.

        :returns: the id of the manifest whose objects stay; None: it had none of its own.
        """
        if task.kind == tasks.MANIFEST_RELEASE:
            manifests.release_if_unused(session, task.resource_id, even_locked=True)
            found = session.get(models.Manifest, task.resource_id, populate_existing=True)
            # One that is live again: a record names it.
            is_used = found is None or found.state == lifecycle.LIVE
            manifest_id: str | None = None if is_used else task.resource_id
        else:
            backup = backup_of(session, task)
            lifecycle.move(session, models.Backup, backup.id, BackupMoves.delete_again)
            copies.remove_all(session, backup.id, task.request_id)
            manifest = backup_rows.manifest_of(session, backup, lock=True)
            removed = manifest is not None and self._must_remove(
                session, backup, manifest, task, even_locked=True
            )
            manifest_id = manifest.id if manifest is not None and removed else None
            backup_rows.forget(session, backup)
        if manifest_id is not None:
            self._gone(session, manifest_id, task.request_id)
        return manifest_id

    def start_release(self, task: Task) -> ReleasePlan | None:
        """Begin an attempt to remove a released manifest's objects.

        :returns: None: they are deleted already, or needed again, and the task has ended.
        :raises StillLocked: the manifest is live until its lock has ended.
        :raises EngineError: as :meth:`start`.
        """

        def work(session: Session) -> bool:
            tasks.hold(session, task)
            manifest = session.get(models.Manifest, task.resource_id, populate_existing=True)
            if manifest is not None and manifest.state == lifecycle.LIVE:
                # It was locked when nothing needed it any more.
                manifests.release_if_unused(session, manifest.id)
                manifest = session.get(models.Manifest, task.resource_id, populate_existing=True)
            if manifest is not None and manifest.state == lifecycle.RELEASED:
                return True
            tasks.end(session, task)
            return False

        return self._search(task.resource_id) if self._db.run(work) else None

    def finish_release(self, task: Task, plan: ReleasePlan) -> None:
        """End the task: the manifest is gone."""

        def work(session: Session) -> None:
            tasks.end(session, task)
            self._gone(session, plan.manifest_id, task.request_id)

        self._db.run(work)

    def fail_release(self, task: Task, reason: str) -> None:
        """End the task; a new one tries again after a while."""

        def work(session: Session) -> None:
            tasks.end(session, task, "failed")
            again = self._again(session, task)
            session.execute(
                update(models.Task)
                .where(models.Task.id == again)
                .values(fail_reason=tasks.short_reason(reason))
            )

        self._db.run(work)

    def _again(self, session: Session, task: Task) -> int:
        tries = int(task.payload.get("tries", 0))
        return tasks.add(
            session,
            task.kind,
            resource_id=task.resource_id,
            source_id=task.source_id,
            project_id=task.project_id,
            request_id=task.request_id,
            payload={**task.payload, "tries": tries + 1},
            delay=min(self._conf.backup.delete_retry_seconds * 2.0 ** min(tries, 32), LONGEST_RETRY),
        )

    @staticmethod
    def _gone(session: Session, manifest_id: str, request_id: str | None) -> None:
        manifest = session.get_one(models.Manifest, manifest_id)
        needed, project = manifest.base_id, manifest.project_id
        is_link = manifest.installation_id == CINDER
        manifests.mark_gone(session, manifest_id)
        damaged_objects.forget_marks(session, manifest_id)
        if is_link:
            backup_rows.let_go(session, manifests.drop_links(session, needed), project, request_id)


def failed(session: Session, task: Task, reason: str, detail: Detail | None = None) -> None:
    """Report that a deletion failed, only the first time: the later tries are automatic."""
    failures.failed(session, task, reason, detail, again=bool(task.payload.get("tries")))


def _drop_reference(session: Session, manifest_id: str) -> None:
    """Delete the row of another installation's manifest if no live backup uses it."""
    # An import that makes a duplicate holds the lock of this row, or waits for it and then finds no row.
    lock(session, models.Manifest, models.Manifest.id == manifest_id)
    backup = models.Backup
    if session.scalar(select(exists().where(backup.manifest_id == manifest_id, backup.deleted.is_(False)))):
        return
    session.execute(
        update(backup).where(backup.manifest_id == manifest_id).values(manifest_id=None),
        execution_options={"synchronize_session": False},
    )
    session.execute(delete(models.Manifest).where(models.Manifest.id == manifest_id))
    session.expire_all()

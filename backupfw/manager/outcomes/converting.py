"""Converting a backup of Cinder's format into one of our own: the plan of an attempt, and its end.

What is made is a copy that is being made until it is complete; then it is the backup's own.  The backup keeps
its id, and stays as it is meanwhile: it can be restored and deleted.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from datetime import datetime

from sqlalchemy import select
from sqlalchemy.orm import Session

from backupfw.db import models
from backupfw.db.locks import lock
from backupfw.db.session import now
from backupfw.errors import InvalidBackup, TakesTurns, TaskLost
from backupfw.manager import rows
from backupfw.manager.lineage import lifecycle, manifests
from backupfw.manager.outcomes.making import (
    CreateResult,
    KeyIds,
    KeyPlace,
    MakingPlan,
    MakingTasks,
    base_of,
)
from backupfw.manager.queue import tasks
from backupfw.manager.rows import Task
from backupfw.manager.rules import backup_rows, copies


@dataclass(frozen=True, slots=True, kw_only=True)
class ConvertPlan(MakingPlan):
    """The plan of one attempt to convert a backup.

    :ivar link_id: the row of the link that is read, in ``from_store``.
    :ivar links: container and key of it and of those that it needs, newest first.
    """

    link_id: str
    from_store: str
    links: tuple[tuple[str, str], ...]


class ConvertTasks(MakingTasks):
    """Outcomes of ``backup.copy`` of a backup of Cinder's format.  It fails as any copy does."""

    def is_conversion(self, task: Task) -> bool:
        """Return whether a copy's task converts."""
        with self._db.read() as session:
            manifest = session.get(models.Manifest, task.resource_id)
            return manifest is not None and not manifest.copied

    def to_encrypt(self, task: Task) -> KeyPlace | None:
        """See :meth:`MakingTasks.to_encrypt`."""
        with self._db.read() as session:
            manifest = session.get(models.Manifest, task.resource_id)
            if manifest is None or manifests.has_begun(manifest) or not task.payload.get("encrypt"):
                return None
            backup = session.get_one(models.Backup, manifest.backup_id)
            return self._key_place(session, backup, manifest.store, manifest.container)

    def start(self, task: Task, settled: Collection[str] = (), key: KeyIds | None = None) -> ConvertPlan:
        """Begin an attempt: see :meth:`CreateTasks.start`.

        :raises TakesTurns: what an earlier conversion put there is still being removed, or all is done but
            the end; try again later.
        :raises InvalidBackup: the backup has no data of Cinder's format, or its keys are being destroyed.
        """

        def work(session: Session) -> ConvertPlan:
            backup, manifest = self._writing(session, task)
            row = models.Manifest
            here = (row.store == manifest.store, row.container == manifest.container)
            if not manifests.has_begun(manifest):
                # That removal finds objects by the beginning of their keys, which is the same.
                mine = (row.backup_id == backup.id, row.installation_id == manifest.installation_id)
                released = select(row.id).where(*here, *mine, row.state == lifecycle.RELEASED)
                if session.scalar(released.limit(1)) is not None:
                    raise TakesTurns("the removal of an earlier conversion has not ended")
                self._begin(session, backup, manifest, key)
                session.flush()
            elif announced := set(manifests.announced_keys(session, backup.id, *here)).difference(settled):
                # Nothing is left to do but what must wait.
                _require_at_rest(backup)
                return replace(
                    self._plan(session, task, backup, manifest), announced=tuple(sorted(announced))
                )
            elif not self._same_geometry(manifest):
                self._fresh_epoch(session, backup, manifest, None)
            return self._plan(session, task, backup, manifest)

        return self._db.run(work)

    def bind_source(
        self, task: Task, source_identity: str, locked_until: datetime | None = None
    ) -> ConvertPlan:
        """Record the source identity; a new epoch begins if the finished segments have another one.

        :param locked_until: what this attempt will put is locked until then, naive UTC; None: it is not.
        """

        def work(session: Session) -> ConvertPlan:
            backup, manifest = self._writing(session, task)
            self._bind(session, backup, manifest, source_identity, locked_until)
            session.flush()
            return self._plan(session, task, backup, manifest)

        return self._db.run(work)

    def finish(self, task: Task, result: CreateResult) -> rows.Backup:
        """End the task: what was made is the backup's own, and its link a copy of it.

        :raises TaskLost: another attempt owns the task, or the manifest was given up.
        :raises TakesTurns: the backup is being restored, from its link; try again later.
        :raises InvalidBackup: it is not available.
        """

        def work(session: Session) -> rows.Backup:
            backup, manifest = self._writing(session, task)
            lock(session, models.Backup, models.Backup.id == backup.id)
            session.refresh(backup)
            _require_at_rest(backup)
            if backup.deleted or backup.status != lifecycle.AVAILABLE:
                raise InvalidBackup("Backup status must be available")
            copy = session.scalars(
                select(models.BackupCopy).where(models.BackupCopy.manifest_id == manifest.id)
            ).one()
            tasks.end(session, task)
            self._commit(session, manifest, result)
            copies.converted(session, backup, copy)
            backup.service, backup.service_metadata = result.service, result.key
            backup.length = result.length
            backup.object_count = result.object_count
            backup.stored_bytes = result.stored_bytes
            backup.referenced_bytes = result.referenced_bytes
            backup.updated_at = now(session)
            session.flush()
            backup_rows.let_go(session, manifest.base_id, backup.project_id, task.request_id)
            return rows.backup(session, backup)

        def finished(session: Session) -> rows.Backup | None:
            row = models.Backup
            found = session.scalar(select(row).where(row.manifest_id == task.resource_id))
            return None if found is None else rows.backup(session, found)

        return self._db.run(work, finished)

    def _writing(self, session: Session, task: Task) -> tuple[models.Backup, models.Manifest]:
        tasks.hold(session, task)
        row = models.Manifest
        lock(session, row, row.id == task.resource_id)
        manifest = session.get(row, task.resource_id, populate_existing=True)
        copy = models.BackupCopy
        backup_id = session.scalar(select(copy.backup_id).where(copy.manifest_id == task.resource_id))
        if manifest is None or backup_id is None or manifest.state != lifecycle.WRITING:
            raise TaskLost(f"the conversion {task.resource_id} is not going on any more")
        return session.get_one(models.Backup, backup_id, populate_existing=True), manifest

    def _plan(
        self, session: Session, task: Task, backup: models.Backup, manifest: models.Manifest
    ) -> ConvertPlan:
        link = backup_rows.manifest_of(session, backup)
        links = () if link is None or link.state != lifecycle.LIVE else manifests.links(session, link)
        if link is None or not links or backup.deleted:
            raise InvalidBackup("The backup has no data of Cinder's format.")
        return ConvertPlan(
            backup=rows.backup(session, backup),
            manifest_id=manifest.id,
            installation_id=manifest.installation_id,
            store=manifest.store,
            container=manifest.container,
            epoch=manifest.epoch,
            attempt=task.attempt,
            block_size=manifest.block_size,
            segment_size=manifest.segment_size,
            key_id=manifest.key_id,
            source_identity=manifest.source_identity,
            base=base_of(session, manifest),
            locked_until=manifest.locked_until,
            link_id=link.id,
            from_store=link.store,
            links=links,
        )


def _require_at_rest(backup: models.Backup) -> None:
    """Refuse to exchange the data of a backup while it is restored: its checkpoint counts in links' units.

    :raises TakesTurns: it is.
    """
    if backup.status == lifecycle.RESTORING:
        raise TakesTurns("the backup is being restored")

"""Making a backup: the plan of an attempt, its finished segments, and its end."""

from __future__ import annotations

import uuid
from collections.abc import Collection
from dataclasses import dataclass, replace
from datetime import datetime

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from backupfw.conf import stores
from backupfw.db import models
from backupfw.db.installation import installation_id
from backupfw.db.locks import lock
from backupfw.db.session import now
from backupfw.errors import (
    SnapshotNotFound,
    TaskLost,
    TrustWithdrawn,
    VolumeNotFound,
)
from backupfw.manager import rows
from backupfw.manager.lineage import lifecycle, manifests
from backupfw.manager.lineage.lifecycle import BackupMoves
from backupfw.manager.messages import Detail
from backupfw.manager.outcomes.base import backup_of
from backupfw.manager.outcomes.making import (
    BaseManifest,
    CreateResult,
    KeyIds,
    KeyPlace,
    MakingPlan,
    MakingTasks,
    base_of,
)
from backupfw.manager.queue import tasks
from backupfw.manager.rows import Task
from backupfw.manager.rules import backup_rows, copies, failures, volume_rules

#: The comparison of a backup whose base could not be used.
BASE_LOST = "no comparison: the data of the backup before cannot be used"


@dataclass(frozen=True, slots=True, kw_only=True)
class CreatePlan(MakingPlan):
    """The plan of one attempt to make a backup.

    :ivar volume: the volume, its metadata included; for a backup of a snapshot the snapshot's volume.
    :ivar snapshot: the snapshot to read, or None to read the volume.
    :ivar in_use: a program may write to the volume: read a temporary snapshot of it.
    """

    volume: rows.Volume
    snapshot: rows.Snapshot | None
    in_use: bool

    @property
    def trusts_base(self) -> bool:
        """Whether the volume's storage can be asked what is unchanged since the base."""
        made_at = None if self.base is None else self.base.made_at
        return volume_rules.trusts_changes(self.volume, made_at)


class CreateTasks(MakingTasks):
    """Outcomes of ``backup.create``."""

    def to_encrypt(self, task: Task) -> KeyPlace | None:
        """Return where the data key belongs to that the first attempt of a backup needs; None: it needs none.

        A backup that has begun keeps what it has: its first attempt has decided.
        """
        with self._db.read() as session:
            backup = backup_of(session, task)
            if backup.manifest_id is not None or not task.payload.get("encrypt"):
                return None
            return self._key_place(session, backup, backup.store, backup.container)

    def start(self, task: Task, settled: Collection[str] = (), key: KeyIds | None = None) -> CreatePlan:
        """Begin an attempt.

        The first attempt chooses base, geometry, hash mode and key; later ones keep them.  If the
        configured geometry has changed, a new epoch starts without finished segments, as soon as all open
        keys are settled.

        :param settled: announced keys that were looked at already and stay open.
        :param key: the data key of a first attempt; see :meth:`to_encrypt`.
        :raises InvalidBackup: the project's keys are being destroyed.
        :raises VolumeNotFound: the volume is gone (its status was reset and it was deleted).
        :raises SnapshotNotFound: likewise.
        """

        def work(session: Session) -> CreatePlan:
            tasks.hold(session, task)
            backup = backup_of(session, task)
            manifest = backup_rows.manifest_of(session, backup, lock=True)
            if manifest is None:
                manifest = self._first(session, backup, key)
            elif manifest.state != lifecycle.WRITING:
                raise TaskLost(f"the manifest of backup {backup.id} is {manifest.state}")
            elif announced := sorted(set(manifests.announced_keys(session, backup.id)).difference(settled)):
                plan = self._plan(session, task, backup, manifest)
                return replace(plan, announced=tuple(announced))
            elif not self._same_geometry(manifest):
                self._fresh_epoch(session, backup, manifest, None)
            return self._plan(session, task, backup, manifest)

        return self._db.run(work)

    def places_of(self, base: BaseManifest) -> list[rows.Place]:
        """Return where the data of a base is, its own place first."""
        with self._db.read() as session:
            return copies.places_of(session, base.id, self._conf.enabled_stores)

    def follow_volume(self, task: Task, length: int, storage_id: str | None) -> CreatePlan:
        """Update volume and backup after an open of the volume; see :func:`follow_storage`."""

        def work(session: Session) -> CreatePlan:
            backup, manifest = self._writing(session, task)
            volume = volume_rules.follow_storage(session, task, backup.volume_id, length, storage_id)
            backup.length, backup.size = volume.length, volume.size
            manifest.length = volume.length
            session.flush()
            return self._plan(session, task, backup, manifest)

        return self._db.run(work)

    def bind_source(
        self, task: Task, source_identity: str, comparison: str, locked_until: datetime | None = None
    ) -> CreatePlan:
        """Record the source identity; a new epoch begins if the finished segments have another one.

        :param comparison: how the attempt finds what changed, for people.
        :param locked_until: what this attempt will put is locked until then, naive UTC; None: it is not.
        """

        def work(session: Session) -> CreatePlan:
            backup, manifest = self._writing(session, task)
            self._bind(session, backup, manifest, source_identity, locked_until)
            backup.comparison = comparison
            session.flush()
            return self._plan(session, task, backup, manifest)

        return self._db.run(work)

    def distrust_changes(self, task: Task) -> datetime:
        """Record that a volume's storage said wrongly what is unchanged: it is not asked again.

        This is true whatever becomes of the backup, so an attempt that was cancelled or lost records it, too.

        :returns: since when, by the database's clock.
        """

        def work(session: Session) -> datetime:
            volume = _locked_volume(session, task)
            if volume.changes_distrusted_at is None:
                volume.changes_distrusted_at = now(session)
                failures.warn(session, task, Detail.CHANGE_MISSED)
                session.flush()
            return volume.changes_distrusted_at

        return self._db.run(work)

    def will_keep_points(self, task: Task) -> None:
        """Record that the volume's storage may keep something for a point from now on."""

        def work(session: Session) -> None:
            backup, _ = self._writing(session, task)
            _volume(session, backup.volume_id).keeps_points = True

        self._db.run(work)

    def finish(self, task: Task, result: CreateResult) -> rows.Backup:
        """End the task: the manifest is live, the backup available, and the volume has its old status.

        The manifest may be one that an earlier attempt announced.

        :raises TaskLost: another attempt owns the task, or the manifest was given up.
        :raises TrustWithdrawn: it relied on the volume's storage, which was found to be wrong meanwhile.
        """

        def work(session: Session) -> rows.Backup:
            tasks.end(session, task)
            backup = backup_of(session, task)
            manifest = backup_rows.manifest_of(session, backup, lock=True)
            if manifest is None or manifest.state != lifecycle.WRITING:
                raise TaskLost(f"backup {backup.id} has no manifest that is being written")
            if result.trusting:
                base = base_of(session, manifest)
                volume = _locked_volume(session, task)
                if not volume_rules.trusts_changes(volume, None if base is None else base.made_at):
                    raise TrustWithdrawn
            self._commit(session, manifest, result)
            moved = lifecycle.move(
                session,
                models.Backup,
                backup.id,
                BackupMoves.created,
                completed=True,
                fail_reason=None,
                host=result.host,
                service=result.service,
                service_metadata=result.key,
                length=result.length,
                object_count=result.object_count,
                stored_bytes=result.stored_bytes,
                referenced_bytes=result.referenced_bytes,
                progress_done=result.length,
                progress_total=result.length,
                read_bytes=result.read_bytes,
                **({"comparison": BASE_LOST} if result.base_lost else {}),
            )
            if not moved:
                raise TaskLost(f"backup {backup.id} is not being created any more")
            if backup.is_incremental and (manifest.base_id is None or result.base_lost):
                failures.warn(session, task, Detail.BECAME_FULL)
            if backup.quiesced is False:
                failures.warn(session, task, Detail.NOT_QUIESCED)
            volume_rules.end_backup(session, backup.volume_id, backup.snapshot_id)
            backup_rows.let_go(session, manifest.base_id, backup.project_id, task.request_id)
            # A task of an older release names none.
            for store in task.payload.get("copies", ()):
                if store in self._conf.enabled_stores:
                    container = stores.default_container(self._conf, store)
                    copies.begin_failed_again(session, backup, store, container, task.request_id)
                    copies.begin(session, backup, store, container, task.request_id)
            return rows.backup(session, backup_of(session, task))

        def finished(session: Session) -> rows.Backup | None:
            manifest = models.Manifest
            mine = select(manifest.id).where(
                manifest.backup_id == task.resource_id,
                manifest.key == result.key,
                manifest.length.is_not(None),
            )
            # This attempt committed it, or a later one that found it in the store.  The backup may have been
            # deleted since.
            if session.scalar(mine) is None:
                return None
            return rows.backup(session, session.get_one(models.Backup, task.resource_id))

        return self._db.run(work, finished)

    def fail(self, task: Task, reason: str, detail: Detail | None = None) -> None:
        """End the task: the backup is in ``error``; another task deletes its objects.

        :param detail: for the user message; None if nothing more exact is known.
        """

        def work(session: Session) -> None:
            tasks.end(session, task, "failed")
            failed(session, task, reason, detail)

        self._db.run(work)

    # The temporary snapshot of a volume in use.

    def begin_temp_snapshot(self, task: Task) -> rows.Snapshot:
        """Return the hidden snapshot that this backup reads; the first call inserts its row."""

        def work(session: Session) -> rows.Snapshot:
            tasks.hold(session, task)
            backup = backup_of(session, task)
            row = None
            if backup.temp_snapshot_id is not None:
                row = session.get(models.Snapshot, backup.temp_snapshot_id)
            if row is None or row.deleted:
                volume = _volume(session, backup.volume_id)
                row = models.Snapshot(
                    id=str(uuid.uuid4()),
                    volume_id=volume.id,
                    project_id=volume.project_id,
                    user_id=backup.user_id,
                    status=lifecycle.CREATING,
                    size=volume.size,
                    length=volume.length,
                    temporary=True,
                    created_at=now(session),
                )
                session.add(row)
                backup.temp_snapshot_id = row.id
                session.flush()
            return rows.snapshot(session, row)

        return self._db.run(work)

    def temp_snapshot_made(self, task: Task, location: str) -> rows.Snapshot:
        """Record that the temporary snapshot exists in its storage."""

        def work(session: Session) -> rows.Snapshot:
            tasks.hold(session, task)
            backup = backup_of(session, task)
            row = session.get(models.Snapshot, backup.temp_snapshot_id or "")
            if row is None:
                raise SnapshotNotFound(str(backup.temp_snapshot_id))
            row.location = location
            lifecycle.move(session, models.Snapshot, row.id, lifecycle.SnapshotMoves.created)
            return rows.snapshot(session, row)

        return self._db.run(work)

    def temp_snapshot(self, backup_id: str) -> tuple[rows.Snapshot, rows.Volume] | None:
        """Return the temporary snapshot that an attempt of a backup began, and its volume; None: none has."""
        with self._db.read() as session:
            row = session.scalar(
                select(models.Snapshot)
                .join(models.Backup, models.Backup.temp_snapshot_id == models.Snapshot.id)
                .where(models.Backup.id == backup_id, models.Snapshot.deleted.is_(False))
            )
            if row is None:
                return None
            volume = session.get_one(models.Volume, row.volume_id)
            return rows.snapshot(session, row), rows.volume(session, volume)

    def forget_temp_snapshot(self, backup_id: str) -> None:
        """Record that a backup's temporary snapshot was deleted from its storage; idempotent.

        A snapshot that the backup still has when its task ends is deleted by another task.
        """

        def work(session: Session) -> None:
            backup = session.get(models.Backup, backup_id)
            if backup is None or backup.temp_snapshot_id is None:
                return
            moment = now(session)
            session.execute(
                update(models.Snapshot)
                .where(models.Snapshot.id == backup.temp_snapshot_id, models.Snapshot.deleted.is_(False))
                .values(status=lifecycle.DELETED, deleted=True, deleted_at=moment, updated_at=moment),
                execution_options={"synchronize_session": False},
            )
            backup.temp_snapshot_id = None

        self._db.run(work)

    def _first(self, session: Session, backup: models.Backup, key: KeyIds | None) -> models.Manifest:
        assert backup.store is not None
        assert backup.container is not None
        moment = now(session)
        manifest = models.Manifest(
            id=str(uuid.uuid4()),
            store=backup.store,
            container=backup.container,
            installation_id=installation_id(session),
            project_id=backup.project_id,
            volume_id=backup.volume_id,
            backup_id=backup.id,
            in_tree=True,
            detached=False,
            state=lifecycle.WRITING,
            epoch=1,
            length=backup.length,
            touched=0,
            created_at=moment,
            updated_at=moment,
        )
        self._begin(session, backup, manifest, key)
        session.add(manifest)
        session.flush()
        backup.manifest_id = manifest.id
        session.flush()
        return manifest

    def _writing(self, session: Session, task: Task) -> tuple[models.Backup, models.Manifest]:
        tasks.hold(session, task)
        backup = backup_of(session, task)
        manifest = backup_rows.manifest_of(session, backup, lock=True)
        if manifest is None or manifest.state != lifecycle.WRITING:
            raise TaskLost(f"backup {backup.id} has no manifest that is being written")
        return backup, manifest

    def _plan(
        self, session: Session, task: Task, backup: models.Backup, manifest: models.Manifest
    ) -> CreatePlan:
        volume = _volume(session, backup.volume_id)
        snapshot = None
        if backup.snapshot_id is not None:
            snapshot = session.get(models.Snapshot, backup.snapshot_id)
            if snapshot is None or snapshot.deleted:
                raise SnapshotNotFound(backup.snapshot_id)
        return CreatePlan(
            backup=rows.backup(session, backup),
            volume=rows.volume(session, volume),
            snapshot=None if snapshot is None else rows.snapshot(session, snapshot),
            # If an earlier attempt treated the volume as in use, so does this one.
            in_use=snapshot is None
            and (volume.previous_status == lifecycle.IN_USE or backup.temp_snapshot_id is not None),
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
        )


def failed(session: Session, task: Task, reason: str, detail: Detail | None = None) -> None:
    """Give up a backup, in the transaction that ends its task; its objects are deleted later."""
    backup = backup_of(session, task)
    failures.failed(session, task, reason, detail)
    volume_rules.end_backup(session, backup.volume_id, backup.snapshot_id)
    if backup_rows.give_up_manifest(session, backup, task.request_id):
        manifest = backup_rows.manifest_of(session, backup)
        assert manifest is not None
        backup_rows.queue_release(session, manifest, backup.project_id, task.request_id)


def _locked_volume(session: Session, task: Task) -> models.Volume:
    """Lock the row of the volume of a task's backup, and return it; it may be deleted."""
    backup = session.get_one(models.Backup, task.resource_id)
    lock(session, models.Volume, models.Volume.id == backup.volume_id)
    return session.get_one(models.Volume, backup.volume_id, populate_existing=True)


def _volume(session: Session, volume_id: str) -> models.Volume:
    row = session.get(models.Volume, volume_id, populate_existing=True)
    if row is None or row.deleted:
        raise VolumeNotFound(volume_id)
    return row

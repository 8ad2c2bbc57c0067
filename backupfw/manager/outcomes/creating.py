"""Making a backup: the plan of an attempt, its finished segments, and its end."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from sqlalchemy import delete, insert, select, update
from sqlalchemy.orm import Session

from backupfw.conf import stores
from backupfw.db import models
from backupfw.db.digest import object_digest
from backupfw.db.installation import installation_id
from backupfw.db.locks import lock
from backupfw.db.session import now
from backupfw.errors import (
    OutcomeUnknown,
    SnapshotNotFound,
    TaskCancelled,
    TaskLost,
    TrustWithdrawn,
    VolumeNotFound,
)
from backupfw.manager import rows
from backupfw.manager.lineage import lifecycle, manifests
from backupfw.manager.lineage.lifecycle import BackupMoves
from backupfw.manager.messages import Detail
from backupfw.manager.outcomes import damaged_objects
from backupfw.manager.outcomes.base import Outcomes, backup_of
from backupfw.manager.queue import tasks
from backupfw.manager.rows import Task
from backupfw.manager.rules import backup_rows, copies, failures, project_keys, volume_rules

#: What the digests of blocks are: BLAKE3, with a secret key if the backup is encrypted.
HASH_MODE, KEYED_HASH_MODE = "blake3", "blake3-keyed"
#: The comparison of a backup whose base could not be used.
BASE_LOST = "no comparison: the data of the backup before cannot be used"
#: Finished segments are read from the database in pages of this many.
_SEGMENTS = 1000


@dataclass(frozen=True, slots=True)
class BaseManifest:
    """The manifest whose data may be shared.

    :ivar id: its row's id.
    :ivar key: its key, in the same store and container as the new one.
    :ivar made_at: the moment whose data its backup has; None: it is not known.
    :ivar locked_until: everything that it names is locked at least until then, naive UTC; None: not known.
    """

    id: str
    key: str
    made_at: datetime | None = None
    locked_until: datetime | None = None


@dataclass(frozen=True, slots=True)
class KeyPlace:
    """Where a data key belongs to: the backups of one volume in one container.

    :ivar held: whether the container holds something of this installation.
    """

    installation_id: str
    project_id: str
    volume_id: str
    store: str
    container: str
    held: bool


@dataclass(frozen=True, slots=True)
class KeyIds:
    """The ids of a data key, and of its key of the digests."""

    key_id: str
    mac_id: str


@dataclass(frozen=True, slots=True)
class CreatePlan:
    """The plan of one attempt to make a backup.

    :ivar backup: the record, for the manifest's head.
    :ivar volume: the volume, its metadata included; for a backup of a snapshot the snapshot's volume.
    :ivar snapshot: the snapshot to read, or None to read the volume.
    :ivar in_use: a program may write to the volume: read a temporary snapshot of it.
    :ivar manifest_id: the row of the manifest that is being written.
    :ivar epoch: part of every key of this attempt; finished segments belong to one epoch.
    :ivar attempt: part of every key, too; the caller chooses the random half of the token.
    :ivar segment_size: bytes, as ``block_size``.
    :ivar key_id: the data key's id; None: the backup is not encrypted.
    :ivar source_identity: the source identity of this epoch's finished segments; None at first.
    :ivar base: the manifest whose objects can be shared; None: store everything again.
    :ivar announced: keys under which earlier attempts may have put this backup's manifest; settle each
        before anything else: commit it (:meth:`CreateTasks.finish`) or give it up.
    :ivar locked_until: everything that was put for it in this epoch is locked at least until then, naive UTC;
        None: not known.
    """

    backup: rows.Backup
    volume: rows.Volume
    snapshot: rows.Snapshot | None
    in_use: bool
    manifest_id: str
    installation_id: str
    store: str
    container: str
    epoch: int
    attempt: int
    block_size: int
    segment_size: int
    key_id: str | None
    source_identity: str | None
    base: BaseManifest | None
    announced: tuple[str, ...] = ()
    locked_until: datetime | None = None

    @property
    def trusts_base(self) -> bool:
        """Whether the volume's storage can be asked what is unchanged since the base."""
        made_at = None if self.base is None else self.base.made_at
        return volume_rules.trusts_changes(self.volume, made_at)


@dataclass(frozen=True, slots=True)
class CreateResult:
    """The result of a finished backup.

    :ivar key: the manifest's key.
    :ivar service: the store driver's wire name.
    :ivar host: the worker's host name.
    :ivar length: bytes of the source.
    :ivar object_count: objects this backup put, its manifest included.
    :ivar stored_bytes: their bytes.
    :ivar referenced_bytes: bytes of older objects that it uses.
    :ivar read_bytes: bytes read from the source; None: another attempt read it.
    :ivar base_lost: the base could not be read, so nothing is shared with it.
    :ivar trusting: it left out what the volume's storage said is unchanged.
    :ivar damaged: keys of objects on the list of damaged ones that it names.
    :ivar locked_until: everything that it names is locked at least until then, naive UTC; None: it is not.
    """

    key: str
    service: str
    host: str
    length: int
    object_count: int
    stored_bytes: int
    referenced_bytes: int
    read_bytes: int | None = None
    base_lost: bool = False
    trusting: bool = False
    damaged: frozenset[str] = frozenset()
    locked_until: datetime | None = None


class CreateTasks(Outcomes):
    """Outcomes of ``backup.create``."""

    def to_encrypt(self, task: Task) -> KeyPlace | None:
        """Return where the data key belongs to that the first attempt of a backup needs; None: it needs none.

        A backup that has begun keeps what it has: its first attempt has decided.
        """
        with self._db.read() as session:
            backup = backup_of(session, task)
            if backup.manifest_id is not None or not task.payload.get("encrypt"):
                return None
            assert backup.store is not None
            assert backup.container is not None
            row = models.Manifest
            mine = installation_id(session)
            held = session.scalar(
                select(row.id)
                .where(
                    row.installation_id == mine,
                    row.store == backup.store,
                    row.container == backup.container,
                    row.key.is_not(None),
                )
                .limit(1)
            )
            return KeyPlace(
                mine, backup.project_id, backup.volume_id, backup.store, backup.container, held is not None
            )

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

    def give_up_announced(self, task: Task, keys: Collection[str]) -> None:
        """Give up keys that an earlier attempt announced.

        :param keys: keys whose manifests are not in the store, or cannot be read there.
        :raises TaskLost: another attempt owns the task; nothing was given up.
        """

        def work(session: Session) -> None:
            tasks.hold(session, task)
            row = models.Manifest
            manifests.give_up(session, row.backup_id == task.resource_id, row.key.in_(keys))

        self._db.run(work)

    def give_up_manifest(self, task: Task, store: str, container: str, key: str) -> bool:
        """Give up the key that this attempt announced, unless it is committed or another attempt has the
        task.

        That attempt may be committing the manifest.

        :return: whether the object under the key can be deleted: see :func:`manifests.is_unneeded`.
        """
        digest = object_digest(store, container, key)

        def work(session: Session) -> bool:
            with contextlib.suppress(TaskLost, TaskCancelled):
                tasks.hold(session, task)
                manifests.give_up(session, models.Manifest.key_digest == digest)
            return manifests.is_unneeded(session, digest)

        return self._db.run(work)

    def is_unneeded(self, store: str, container: str, key: str) -> bool:
        """Return whether the object under a key that was announced can be deleted, as it is now."""
        digest = object_digest(store, container, key)
        with self._db.read() as session:
            return manifests.is_unneeded(session, digest)

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
            known: list[datetime | None] = [manifest.locked_until]
            if manifest.source_identity is None:
                manifest.source_identity, known = source_identity, []
            elif manifest.source_identity != source_identity:
                self._fresh_epoch(session, backup, manifest, source_identity)
                known = []
            manifest.locked_until = manifests.earliest(*known, locked_until)
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

    def finished_segments(self, manifest_id: str, epoch: int) -> Iterator[tuple[int, bytes]]:
        """Yield the finished segments of an epoch, ``(index, entry)`` by index, some at a time."""
        row = models.Segment
        last = -1
        while True:
            with self._db.read() as session:
                found = session.execute(
                    select(row.seg_index, row.entry)
                    .where(row.manifest_id == manifest_id, row.epoch == epoch, row.seg_index > last)
                    .order_by(row.seg_index)
                    .limit(_SEGMENTS)
                ).all()
            for index, entry in found:
                yield int(index), bytes(entry)
            if len(found) < _SEGMENTS:
                return
            last = found[-1][0]

    def record_segments(self, task: Task, entries: Sequence[tuple[int, bytes]]) -> None:
        """Record finished segments of the manifest's epoch; counts as progress of the attempt.

        An index that was recorded before is replaced.

        :raises TaskLost: another attempt owns the task; nothing was recorded.
        :raises OutcomeUnknown: another attempt owns the task, which was lost together with an answer.
        """
        if not entries:
            return

        def work(session: Session) -> None:
            tasks.hold(session, task, progressed=True)
            _, manifest = self._writing(session, task)
            row = models.Segment
            session.execute(
                delete(row).where(
                    row.manifest_id == manifest.id,
                    row.epoch == manifest.epoch,
                    row.seg_index.in_([index for index, _ in entries]),
                ),
                execution_options={"synchronize_session": False},
            )
            session.execute(
                insert(row),
                [
                    {
                        "manifest_id": manifest.id,
                        "epoch": manifest.epoch,
                        "seg_index": index,
                        "entry": entry,
                    }
                    for index, entry in entries
                ],
            )

        def unknown(session: Session) -> None:
            lost = tasks.lost(session, task)
            if isinstance(lost, TaskLost):
                # The journal cannot show what was committed: the other attempt may have ended and deleted it.
                raise OutcomeUnknown(str(lost))

        self._db.run(work, unknown)

    def announce_manifest(self, task: Task, key: str) -> None:
        """Announce a key: record that this attempt will put its manifest there.

        :raises TaskLost: another attempt owns the task; nothing was recorded.
        """

        def work(session: Session) -> None:
            _, manifest = self._writing(session, task)
            digest = object_digest(manifest.store, manifest.container, key)
            # A transaction whose answer was lost may have recorded it.
            if not manifests.is_announced(session, digest):
                manifests.announce(session, manifest, key, digest)

        self._db.run(work)

    def known_manifests(self, manifest_id: str) -> tuple[list[str], set[str]]:
        """Return the known keys of a manifest's volume, for the clean-up after its attempts.

        :return: keys of the live manifests whose lineage is unknown, and of all that are known.
        """
        with self._db.read() as session:
            return manifests.detached_keys(session, manifest_id), manifests.volume_keys(session, manifest_id)

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
                base = _base(session, manifest)
                volume = _locked_volume(session, task)
                if not volume_rules.trusts_changes(volume, None if base is None else base.made_at):
                    raise TrustWithdrawn
            digest = object_digest(manifest.store, manifest.container, result.key)
            if not manifests.commit(session, manifest, result.key, digest, result.length):
                raise TaskLost(f"the manifest {result.key} was given up")
            manifest.updated_at = now(session)
            manifest.locked_until = result.locked_until
            session.flush()
            if result.base_lost:
                # It shares nothing with its base, so marks for the base's objects do not apply.
                damaged_objects.forget_marks(session, manifest.id)
            named = (object_digest(manifest.store, manifest.container, key) for key in result.damaged)
            damaged_objects.mark(session, manifest.id, named)
            session.execute(delete(models.Segment).where(models.Segment.manifest_id == manifest.id))
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
            volume_rules.end_backup(session, backup.volume_id, backup.snapshot_id)
            backup_rows.let_go(session, manifest.base_id, backup.project_id, task.request_id)
            # A task of an older release names none.
            for store in task.payload.get("copies", ()):
                if store in self._conf.enabled_stores:
                    container = stores.default_container(self._conf, store)
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

    # The values of a manifest's row at the first attempt, and at the begin of a new epoch.

    def _same_geometry(self, manifest: models.Manifest) -> bool:
        backup = self._conf.backup
        return (manifest.block_size, manifest.segment_size) == (backup.block_size, backup.segment_size)

    def _first(self, session: Session, backup: models.Backup, key: KeyIds | None) -> models.Manifest:
        if key is not None:
            project_keys.require_usable(session, key.key_id)
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
            block_size=self._conf.backup.block_size,
            segment_size=self._conf.backup.segment_size,
            hash_mode=HASH_MODE if key is None else KEYED_HASH_MODE,
            key_id=None if key is None else key.key_id,
            mac_id=None if key is None else key.mac_id,
            length=backup.length,
            touched=0,
            created_at=moment,
            updated_at=moment,
        )
        # The base's row is updated before the child's is inserted, so that of this transaction and a release
        # of the base only one succeeds.
        manifest.base_id = self._take_base(session, backup, manifest)
        session.add(manifest)
        session.flush()
        backup.manifest_id = manifest.id
        session.flush()
        return manifest

    def _take_base(self, session: Session, backup: models.Backup, child: models.Manifest) -> str | None:
        """Take the parent's manifest if the child can share with it, and return its id."""
        if backup.parent_id is None:
            return None
        parent = session.get(models.Backup, backup.parent_id)
        if parent is None or parent.deleted or parent.project_id != backup.project_id:
            return None
        base = backup_rows.manifest_of(session, parent)
        same = (
            "store",
            "container",
            "installation_id",
            "project_id",
            "volume_id",
            "block_size",
            "segment_size",
            "hash_mode",
            "mac_id",
        )
        if base is None or any(getattr(base, name) != getattr(child, name) for name in same):
            return None
        return base.id if manifests.take(session, base.id) else None

    def _fresh_epoch(
        self,
        session: Session,
        backup: models.Backup,
        manifest: models.Manifest,
        source_identity: str | None,
    ) -> None:
        session.execute(delete(models.Segment).where(models.Segment.manifest_id == manifest.id))
        manifest.epoch += 1
        manifest.source_identity = source_identity
        manifest.updated_at = now(session)
        if not self._same_geometry(manifest):
            old_base = manifest.base_id
            manifest.block_size = self._conf.backup.block_size
            manifest.segment_size = self._conf.backup.segment_size
            manifest.base_id = None
            session.flush()
            manifest.base_id = self._take_base(session, backup, manifest)
            session.flush()
            if manifest.base_id != old_base:
                backup_rows.let_go(session, old_base, backup.project_id, None)
        session.flush()

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
            base=_base(session, manifest),
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


def _base(session: Session, manifest: models.Manifest) -> BaseManifest | None:
    """Return the base of a manifest that is being written."""
    base = None if manifest.base_id is None else session.get(models.Manifest, manifest.base_id)
    if base is None or base.key is None:
        return None
    # What an import says of that moment is not known to be true.
    maker = None if base.detached else session.get(models.Backup, base.backup_id)
    made_at = None if maker is None else maker.data_timestamp
    return BaseManifest(base.id, base.key, made_at, base.locked_until)


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

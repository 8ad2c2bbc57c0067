"""The use cases of backups, one method each: what the API calls.

A method is one transaction: the rules are checked, statuses move by conditional updates and a task is
queued, all or nothing; then ``wake`` wakes the workers.  Error messages are the texts that clients know,
without the prefix that the API adds.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, Unpack

from oslo_db.exception import DBDuplicateEntry
from sqlalchemy import case, select
from sqlalchemy.orm import Session

from backupfw.conf import stores
from backupfw.context import RequestContext
from backupfw.db import locks, models
from backupfw.db.session import Database, now
from backupfw.errors import BackupNotFound, InvalidBackup, InvalidInput, InvalidVolume, ServiceUnavailable
from backupfw.manager import actions, listing, records, rows
from backupfw.manager.actions import Kind
from backupfw.manager.lineage import lifecycle
from backupfw.manager.lineage.lifecycle import BackupMoves
from backupfw.manager.lineage.manifests import CINDER
from backupfw.manager.messages import Detail
from backupfw.manager.metadata import pairs
from backupfw.manager.queue import outbox, progress, services, tasks
from backupfw.manager.queue.outbox import Outbox
from backupfw.manager.rules import (
    backup_rows,
    copies,
    failures,
    project_keys,
    quota,
    volume_rules,
    volume_types,
)
from backupfw.manager.rules.placement import Placement, Placer, Subject
from backupfw.manager.rules.volume_rules import SOURCE_KEY
from backupfw.manager.usecases.base import UseCases, queue
from backupfw.manager.usecases.mirrors import Mirrors

if TYPE_CHECKING:
    from oslo_config import cfg

#: Kinds of the tasks of a backup that can be cancelled; a deletion continues once it has begun.
_CANCELLABLE = (tasks.BACKUP_CREATE, tasks.BACKUP_IMPORT, tasks.BACKUP_RESTORE)


class Unset(Enum):
    """A value that was not given, where null has a meaning."""

    UNSET = "unset"


UNSET: Final = Unset.UNSET


#: ``fail_reason`` of a backup whose making was cancelled.
CANCELLED = "The backup was cancelled."


@dataclass(frozen=True, slots=True)
class MadeBy:
    """The run of a backup policy that makes a backup.

    :ivar backup_id: the backup's id: to begin it twice makes one backup.
    :ivar copies: the stores to which the policy wants it copied, besides those of its placement rule.
    :ivar quiesce: the name of the commands that freeze the volume while its point is taken; None: none do.
    """

    policy_id: str
    backup_id: str
    copies: Sequence[str] = ()
    quiesce: str | None = None


class BackupManager(UseCases):
    """The backups of all projects.  Thread-safe.

    Only administrators can see backups of other projects.

    :param db: the database.
    :param conf: the configuration: stores and placement rules, ``availability_zone``, ``[backup]`` and
        ``[quota]``.
    :param wake: called after a transaction that queued or cancelled a task.
    :param outbox: the event outbox; None: no events are sent.
    :param container_patterns: the pattern of container names, by store.
    :param mirrors: of volumes of foreign catalogues; None: all volumes are ours.
    """

    def __init__(
        self,
        db: Database,
        conf: cfg.ConfigOpts,
        wake: Callable[[], None] = lambda: None,
        container_patterns: Mapping[str, str] = MappingProxyType({}),
        outbox: Outbox | None = None,
        mirrors: Mirrors | None = None,
    ) -> None:
        super().__init__(db, conf, wake)
        #: Volumes of foreign catalogues.
        self.mirrors = mirrors or Mirrors(db, conf)
        self._placer = Placer(conf, container_patterns)
        self._outbox = outbox or Outbox(db)

    def create(
        self,
        ctx: RequestContext,
        *,
        volume_id: str,
        name: str | None = None,
        description: str | None = None,
        container: str | None = None,
        incremental: bool = False,
        force: bool = False,
        snapshot_id: str | None = None,
        metadata: Mapping[str, str] | None = None,
        availability_zone: str | None = None,
        made_by: MadeBy | None = None,
    ) -> rows.Backup:
        """Begin a backup of a volume, or of one of its snapshots.

        The parent of an incremental backup is the newest available backup of the volume in the caller's
        project (for a snapshot: one older than the snapshot).  :mod:`backupfw.manager.rules.placement`
        decides about its store and container.

        :param availability_zone: of the worker that makes it; None or empty: any.
        :param container: ``container``, or ``store:container`` where the store is enabled; None or
            empty leaves the choice to the service.
        :param made_by: the run of a policy that makes it; then an incremental backup without a parent is a
            full one.
        :raises VolumeNotFound: no such volume for this caller.
        :raises SnapshotNotFound: no such snapshot for this caller.
        :raises InvalidVolume: the volume's status forbids it, or the snapshot is another volume's.
        :raises InvalidSnapshot: the snapshot's status forbids it.
        :raises InvalidBackup: incremental, and there is no parent.
        :raises oslo_db.exception.DBDuplicateEntry: the backup of ``made_by`` exists, or existed.
        :raises InvalidInput: the container's name is not allowed.
        :raises QuotaExceeded: the project has no room for it.
        """
        wish = self._placer.wish(container)
        self.mirrors.look(ctx, volume_id, snapshot_id)
        # The id is chosen outside the transaction: if that is repeated after a lost answer, it finds its row.
        backup_id = str(uuid.uuid4()) if made_by is None else made_by.backup_id
        quiesce = None if made_by is None else made_by.quiesce

        def work(session: Session) -> rows.Backup:
            source = volume_rules.begin_backup(session, volume_id, ctx, force=force, snapshot_id=snapshot_id)
            moment = now(session)
            volume, snapshot = source
            parent = None
            if incremental:
                parent = _parent(session, ctx.project_id, volume.id, snapshot, needed=made_by is None)
            zone = availability_zone or volume.availability_zone or self._conf.availability_zone
            subject = Subject(ctx.project_id, zone, volume.volume_type)
            wanted = () if made_by is None else made_by.copies
            beside = _placement_of(self._conf, parent)
            if beside is not None and beside.store in wanted:
                # The parent was moved to where its copy was; that is no reason to make others there.
                beside = None
            where = self._placer.place(wish, subject, beside)
            quota.check(session, self._conf, ctx.project_id, {"backups": 1, "backup_gigabytes": source.size})
            row = models.Backup(
                id=backup_id,
                user_id=ctx.user_id,
                project_id=ctx.project_id,
                volume_id=volume.id,
                snapshot_id=None if snapshot is None else snapshot.id,
                availability_zone=availability_zone or self._conf.availability_zone,
                container=where.container,
                store=where.store,
                parent_id=None if parent is None else parent.id,
                is_incremental=parent is not None,
                status=lifecycle.CREATING,
                volume_record=records.volume_record(
                    volume.volume_type, volume.bootable, pairs(session, models.VolumeImageMetadata, volume.id)
                ),
                size=source.size,
                length=volume.length if snapshot is None else snapshot.length,
                encryption_key_id=volume.encryption_key_id,
                display_name=name,
                display_description=description,
                data_timestamp=moment if snapshot is None else snapshot.created_at,
                policy_id=None if made_by is None else made_by.policy_id,
                # Until its worker says more; one of an older release does not.
                quiesced=None if quiesce is None else False,
                created_at=moment,
                updated_at=moment,
            )
            session.add(row)
            session.flush()
            if metadata:
                backup_rows.set_metadata(session, row.id, metadata)
            read = volume.id if snapshot is None else snapshot.id
            encrypt = self._placer.encrypts(where.store, subject)
            queue(
                session,
                ctx,
                tasks.BACKUP_CREATE,
                row,
                read,
                zone=availability_zone or None,
                encrypt=encrypt,
                copies=self._placer.copies(where.store, subject, wanted),
                **({} if quiesce is None else {"quiesce": quiesce}),
            )
            actions.record(session, ctx, Kind.BACKUP_CREATE, row, "incremental" if parent else "full")
            return rows.new_backup(row, metadata or {})

        return self._change(work, lambda session: rows.backup_by_id(rows.fetching(session), backup_id))

    def project_of_volume(self, ctx: RequestContext, volume_id: str, snapshot_id: str | None = None) -> str:
        """Return the project of a volume that a request wants to back up or to write to.

        :param snapshot_id: a snapshot of it that the request names, too.
        :raises VolumeNotFound: no such volume for this caller.
        :raises SnapshotNotFound: likewise; not for every snapshot.
        """
        self.mirrors.look(ctx, volume_id, snapshot_id)
        with self._db.read() as session:
            return volume_rules.find_volume(session, ctx, volume_id, mirrors=True).project_id

    def get(self, ctx: RequestContext, backup_id: str) -> rows.Backup:
        """Return a backup.

        :raises BackupNotFound: no such backup for this caller.
        """
        found = rows.backup_by_id(self._db.fetch, backup_id) if volume_rules.may_be_id(backup_id) else None
        if found is None or not volume_rules.is_visible(ctx, found.project_id):
            raise BackupNotFound(backup_id)
        return found

    def progress(self, ctx: RequestContext, backup_id: str) -> progress.Progress:
        """Return the progress of the operation on a backup.

        :raises BackupNotFound: no such backup for this caller.
        """
        self.get(ctx, backup_id)
        with self._db.read() as session:
            return progress.of(session, self._conf, backup_id)

    def list(
        self, ctx: RequestContext, *, detail: bool = True, **paging: Unpack[listing.Paging]
    ) -> rows.Page[rows.ListedBackup]:
        """Return one page of backups.

        :param detail: whether metadata and dependents are wanted.
        :raises InvalidInput: a sort key or direction is unknown.
        :raises MarkerNotFound: the marker is no backup that this caller can see.
        """
        with self._db.read() as session:
            found, total = listing.page(session, models.Backup, ctx, paging, columns=rows.listed_columns())
            return rows.Page(rows.listed_backups(session, found, detail=detail), total)

    def update(
        self,
        ctx: RequestContext,
        backup_id: str,
        *,
        name: str | Unset | None = UNSET,
        description: str | Unset | None = UNSET,
        metadata: Mapping[str, str] | Unset = UNSET,
    ) -> rows.Backup:
        """Change the given values; ``metadata`` replaces the whole map.

        :raises BackupNotFound: no such backup for this caller.
        """

        def work(session: Session) -> rows.Backup:
            row = volume_rules.find_backup(session, ctx, backup_id, lock=True)
            if name is not UNSET:
                row.display_name = name
            if description is not UNSET:
                row.display_description = description
            if metadata is not UNSET:
                backup_rows.set_metadata(session, backup_id, metadata)
            row.updated_at = now(session)
            changed = {"name": name, "description": description, "metadata": metadata}
            words = ", ".join(word for word, value in changed.items() if value is not UNSET)
            actions.record(session, ctx, Kind.BACKUP_UPDATE, row, words)
            session.flush()
            return rows.backup(session, row)

        return self._db.run(work)

    def merge_metadata(self, ctx: RequestContext, backup_id: str, metadata: Mapping[str, str]) -> rows.Backup:
        """Set the given metadata keys and keep the others.

        :raises BackupNotFound: no such backup for this caller.
        """

        def work(session: Session) -> rows.Backup:
            row = volume_rules.find_backup(session, ctx, backup_id, lock=True)
            known = rows.metadata_of(session, models.BackupMetadata, [backup_id]).get(backup_id, {})
            backup_rows.set_metadata(session, backup_id, {**known, **metadata})
            row.updated_at = now(session)
            words = ", ".join(f"{key}={value}" for key, value in metadata.items())
            actions.record(session, ctx, Kind.BACKUP_UPDATE, row, words)
            session.flush()
            return rows.backup(session, row)

        return self._db.run(work)

    def delete(
        self,
        ctx: RequestContext,
        backup_id: str,
        refuse: Callable[[Session, models.Backup], object] | None = None,
    ) -> None:
        """Begin the deletion of a backup.

        A backup with incremental backups can be deleted (they do not need it), unless
        ``refuse_delete_of_parents`` is set, or it has Cinder's format (there they do).

        :param refuse: raises what forbids the deletion besides that; called with the backup's row locked.
        :raises BackupNotFound: no such backup for this caller.
        :raises InvalidBackup: its status forbids it, or it has incremental backups that refuse it.
        """

        def work(session: Session) -> None:
            row = volume_rules.find_backup(session, ctx, backup_id, lock=refuse is not None)
            self._refuse_parent(session, row)
            if refuse is not None:
                refuse(session, row)
            if not lifecycle.move(session, models.Backup, row.id, BackupMoves.delete):
                raise InvalidBackup("Backup status must be available or error")
            actions.record(session, ctx, Kind.BACKUP_DELETE, row)
            backup_rows.stop_verifications(session, row)
            queue(session, ctx, tasks.BACKUP_DELETE, row, tries=0)

        self._change(work)

    def force_delete(self, ctx: RequestContext, backup_id: str) -> None:
        """Begin the deletion of a backup whatever its status is; its running task is cancelled.

        Volume and snapshot get their statuses back at once; the deletion itself waits until the
        cancelled task has ended.

        :raises BackupNotFound: no such backup for this caller.
        :raises InvalidBackup: it has incremental backups that refuse it.
        """

        def work(session: Session) -> None:
            row = volume_rules.find_backup(session, ctx, backup_id)
            self._refuse_parent(session, row)
            backup_rows.stop_tasks(session, row)
            if not lifecycle.move(session, models.Backup, row.id, BackupMoves.force_delete, fail_reason=None):
                raise BackupNotFound(backup_id)
            actions.record(session, ctx, Kind.BACKUP_FORCE_DELETE, row)
            backup_rows.stop_verifications(session, row)
            queue(session, ctx, tasks.BACKUP_DELETE, row, tries=0)

        self._change(work)

    def verify(self, ctx: RequestContext, backup_id: str) -> Sequence[str]:
        """Begin to verify every object of a backup, in its own store and in those of its copies.

        The backup can be used as before meanwhile.  What becomes of it is recorded as by a scrub.

        :returns: the stores.
        :raises BackupNotFound: no such backup for this caller.
        :raises InvalidBackup: it is not available, has no data, or is being verified already.
        """
        task = models.Task

        def work(session: Session) -> Sequence[str]:
            row = volume_rules.find_backup(session, ctx, backup_id, lock=True)
            if row.status != lifecycle.AVAILABLE:
                raise InvalidBackup(f"Backup status must be available and not {row.status}.")
            places = copies.places(session, row, self._conf.enabled_stores)
            if not places:
                raise InvalidBackup("The backup has no data that could be verified.")
            same = task.resource_id.in_([place.manifest_id for place in places])
            running = select(task.id).where(same, task.kind == tasks.BACKUP_VERIFY, task.cancel.is_(False))
            if session.scalar(running.limit(1)) is not None:
                raise InvalidBackup(f"Backup {backup_id} is already being verified.")
            for place in places:
                tasks.add(
                    session,
                    tasks.BACKUP_VERIFY,
                    resource_id=place.manifest_id,
                    source_id=row.id,
                    project_id=row.project_id,
                    request_id=ctx.request_id,
                )
            found = [place.store for place in places]
            actions.record(session, ctx, Kind.BACKUP_VERIFY, row, f"in {' and '.join(found)}")
            return found

        def begun(session: Session) -> Sequence[str] | None:
            mine = (task.source_id == backup_id, task.request_id == ctx.request_id)
            query = select(task.store).where(*mine, task.kind == tasks.BACKUP_VERIFY).order_by(task.id)
            return [store for store in session.scalars(query) if store is not None] or None

        return self._change(work, begun)

    def cancel(self, ctx: RequestContext, backup_id: str, *, verification: bool = False) -> rows.Backup:
        """Cancel the making, the import or the restore of a backup, whether it waits or runs; or, if there is
        none, its verification.

        A backup that was being made becomes ``error``; volume and snapshot get their statuses back at once.
        A backup that was being restored is available again; the target ends as that of a failed restore.
        The next task on the backup or the volume waits until the worker has stopped.  A verification leaves
        the backup as it is.

        :param verification: only the verification.
        :returns: the backup as it is then; its ``fail_reason`` says what was cancelled, if it is
            no verification.
        :raises BackupNotFound: no such backup for this caller.
        :raises InvalidBackup: it has no task that can be cancelled.
        """

        def work(session: Session) -> rows.Backup:
            row = volume_rules.find_backup(session, ctx, backup_id)
            cancelled = [] if verification else backup_rows.stop_tasks(session, row, _CANCELLABLE)
            verified = [] if cancelled else backup_rows.stop_verifications(session, row)
            if not cancelled and not verified:
                raise InvalidBackup(
                    f"Backup {backup_id} is not being verified."
                    if verification
                    else f"Backup {backup_id} is not being made, restored or verified:"
                    f" its status is {row.status}."
                )
            for task in cancelled:
                reason = "The restore was cancelled." if task.kind == tasks.BACKUP_RESTORE else CANCELLED
                failures.failed(session, task, reason, Detail.CANCELLED)
            kinds = dict.fromkeys(task.kind for task in (*cancelled, *verified))
            actions.record(session, ctx, Kind.BACKUP_CANCEL, row, ", ".join(kinds))
            manifest = backup_rows.manifest_of(session, row, lock=True)
            if manifest is not None and manifest.state == lifecycle.RELEASED:
                backup_rows.queue_release(session, manifest, row.project_id, ctx.request_id)
            session.flush()
            session.refresh(row)
            return rows.backup(session, row)

        return self._change(work)

    def copies(self, ctx: RequestContext, backup_id: str) -> Sequence[rows.BackupCopy]:
        """Return the copies of a backup in other stores, by store.

        :raises BackupNotFound: no such backup for this caller.
        """
        self.get(ctx, backup_id)
        with self._db.read() as session:
            return rows.copies(session, backup_id)

    def copy(self, ctx: RequestContext, backup_id: str, store: str) -> rows.BackupCopy:
        """Begin to copy a backup to another store, into that store's own container.

        The backup can be used as before meanwhile.  A copy that failed can be begun again.

        :raises BackupNotFound: no such backup for this caller.
        :raises InvalidInput: the store is not enabled, or is the backup's own.
        :raises InvalidBackup: it is not available, has that copy, or the copy before is still being removed.
        """
        if store not in self._conf.enabled_stores:
            raise InvalidInput(f"There is no store {store} that is enabled.")
        container = stores.default_container(self._conf, store)

        def work(session: Session) -> rows.BackupCopy:
            row = volume_rules.find_backup(session, ctx, backup_id, lock=True)
            copies.begin(session, row, store, container, ctx.request_id)
            actions.record(session, ctx, Kind.BACKUP_COPY, row, f"to {store}")
            return self._copy(session, backup_id, store)

        return self._change(work)

    def convert(self, ctx: RequestContext, backup_id: str, store: str | None = None) -> rows.BackupCopy:
        """Begin to convert a backup of Cinder's format into one of our own, in another store.

        :mod:`backupfw.manager.rules.placement` decides about place and encryption, as of a new backup.
        The backup can be used as before meanwhile.  If it is being converted into that store already, nothing
        is changed.

        :param store: None: as for a new backup of the volume.
        :returns: the record of what is being made.
        :raises BackupNotFound: no such backup for this caller.
        :raises InvalidInput: the store is not enabled, or is the backup's own; or it has another format.
        :raises InvalidBackup: it is not available, or is being converted into another store.
        """
        wish = self._placer.wish(None if store is None else f"{store}:")

        def work(session: Session) -> rows.BackupCopy:
            row = volume_rules.find_backup(session, ctx, backup_id, lock=True)
            volume = session.get(models.Volume, row.volume_id)
            parent = None if row.parent_id is None else session.get(models.Backup, row.parent_id)
            if parent is not None and (parent.deleted or parent.store == row.store):
                parent = None
            zone = row.availability_zone or self._conf.availability_zone
            subject = Subject(row.project_id, zone, None if volume is None else volume.volume_type)
            where = self._placer.place(wish, subject, _placement_of(self._conf, parent))
            encrypt = self._placer.encrypts(where.store, subject)
            made = copies.convert(session, row, where.store, where.container, ctx.request_id, encrypt=encrypt)
            actions.record(session, ctx, Kind.BACKUP_CONVERT, row, f"to {made.store}")
            return self._copy(session, backup_id, made.store)

        return self._change(work)

    def remove_copy(self, ctx: RequestContext, backup_id: str, store: str) -> None:
        """Remove the copy of a backup in a store, whether it is complete or not; the backup stays.

        It is not shown any more at once; its objects are removed later.

        :raises BackupNotFound: no such backup for this caller.
        :raises InvalidBackup: it has no copy there.
        """
        self.remove_copies(ctx, backup_id, [store])

    def remove_copies(
        self,
        ctx: RequestContext,
        backup_id: str,
        leaving: Collection[str],
        refuse: Callable[[Session, models.Backup], object] | None = None,
    ) -> None:
        """Remove the copies of a backup in some stores, as :meth:`remove_copy` does: all, or none.

        :param refuse: as of :meth:`delete`.
        """

        def work(session: Session) -> None:
            row = volume_rules.find_backup(session, ctx, backup_id, lock=True)
            if refuse is not None:
                refuse(session, row)
            _remove_copies(session, ctx, row, leaving)

        self._change(work)

    def promote_copy(
        self,
        ctx: RequestContext,
        backup_id: str,
        store: str,
        service: str,
        refuse: Callable[[Session, models.Backup], object] | None = None,
        *,
        leaving: Collection[str] = (),
    ) -> None:
        """Let the copy of a backup in a store be the backup's own; what was its own is a copy then.

        :param service: the wire name of the store's driver.
        :param refuse: as of :meth:`delete`.
        :param leaving: the stores whose copies are removed then, that in the backup's store of before among
            them.
        :raises BackupNotFound: no such backup for this caller.
        :raises InvalidBackup: it is not available, has no complete copy there, or is being copied.
        """

        def work(session: Session) -> None:
            row = volume_rules.find_backup(session, ctx, backup_id, lock=True)
            if refuse is not None:
                refuse(session, row)
            copies.promote(session, row, store, service)
            actions.record(session, ctx, Kind.BACKUP_PROMOTE_COPY, row, f"in {store}")
            _remove_copies(session, ctx, row, leaving)

        self._change(work)

    @staticmethod
    def _copy(session: Session, backup_id: str, store: str) -> rows.BackupCopy:
        return next(one for one in rows.copies(session, backup_id) if one.store == store)

    def restore(
        self, ctx: RequestContext, backup_id: str, *, volume_id: str | None = None, name: str | None = None
    ) -> tuple[str, str, str | None]:
        """Begin to restore a backup to an existing volume, or to a new one if none is named.

        :param name: a new volume's name; ``restore_backup_<id>`` unless given.
        :returns: the backup's id, the volume's id and name.
        :raises BackupNotFound: no such backup for this caller.
        :raises VolumeNotFound: no such volume for this caller.
        :raises InvalidBackup: the backup is not available.
        :raises InvalidVolume: the volume is not available, or too small.
        :raises QuotaExceeded: the project has no room for a new volume.
        """
        if volume_id is not None:
            self.mirrors.look(ctx, volume_id)
            return self._restore(ctx, backup_id, volume_id, None, new=False)
        name = name or f"restore_backup_{backup_id}"
        with self.mirrors.target(ctx, backup_id, name) as made:
            return self._restore(ctx, backup_id, made, name, new=True)

    def _restore(
        self, ctx: RequestContext, backup_id: str, volume_id: str | None, name: str | None, *, new: bool
    ) -> tuple[str, str, str | None]:
        """Begin a restore, as above.

        :param volume_id: the target; None: this makes it, with the name.
        :param new: the target is made for this restore.
        """
        target_id = volume_id or str(uuid.uuid4())

        def work(session: Session) -> tuple[str, str, str | None]:
            backup = volume_rules.find_backup(session, ctx, backup_id)
            if backup.status != lifecycle.AVAILABLE:
                raise InvalidBackup("Backup status must be available")
            kind = None
            if volume_id is not None:
                volume = volume_rules.begin_restore(session, volume_id, backup.size, ctx)
                volume_rules.check_encryption(backup, volume, new=new)
                # How long an encrypted volume is, with its header, only its storage says.
                if (
                    backup.length is not None
                    and volume.length < backup.length
                    and not backup.encryption_key_id
                ):
                    raise InvalidVolume(
                        f"volume size {volume.size} is too small to restore backup of size {backup.size}."
                    )
            else:
                kind = volume_types.type_of_backup(session, ctx.project_id, backup)
                volume_rules.check_encryption(backup, None, new=new)
                volume = volume_rules.new_volume(
                    session,
                    self._conf,
                    ctx,
                    volume_type=kind,
                    backend=volume_types.backend_of_restored(session, self._conf, ctx, backup, kind),
                    status=lifecycle.RESTORING_BACKUP,
                    size=backup.size,
                    length=backup.length,
                    name=name,
                    metadata={SOURCE_KEY: backup.id},
                    availability_zone=self._conf.availability_zone,
                    volume_id=target_id,
                )
            begin_restore(session, ctx, backup, volume, new=new, typed=kind is not None)
            return backup.id, volume.id, volume.display_name

        def begun(session: Session) -> tuple[str, str, str | None] | None:
            task = models.Task
            mine = select(task.id).where(task.resource_id == backup_id, task.request_id == ctx.request_id)
            volume = session.get(models.Volume, target_id)
            # An existing volume does not show whether this request was committed, but its task does.
            if volume is None or (volume_id is not None and session.scalar(mine) is None):
                return None
            return backup_id, volume.id, volume.display_name

        return self._change(work, begun)

    def reset_status(self, ctx: RequestContext, backup_id: str, status: str) -> rows.Backup:
        """Give a backup the status ``available`` or ``error``, and cancel its tasks.

        A backup becomes ``available`` only if its manifest is live in the database (verifying checks the
        store) and its key is not destroyed; otherwise it becomes ``error`` with the reason.  Volume and
        snapshot get their statuses back; the target of a restore ends as that of a failed one.

        :param status: in any letter case.
        :raises BackupNotFound: no such backup for this caller.
        :raises InvalidInput: another status was asked for.
        """
        wanted = status.lower()
        if wanted not in (lifecycle.AVAILABLE, lifecycle.ERROR):
            raise InvalidInput(f"Status {status} is not available or error.")

        def work(session: Session) -> rows.Backup:
            row = volume_rules.find_backup(session, ctx, backup_id)
            outbox.add(session, "backup.reset_status.start", row.id, ctx.request_id)
            actions.record(session, ctx, Kind.BACKUP_RESET_STATUS, row, f"to {wanted}")
            backup_rows.stop_tasks(session, row)
            manifest = backup_rows.manifest_of(session, row, lock=True)
            live = manifest is not None and manifest.state == lifecycle.LIVE
            key_gone = project_keys.is_gone(session, manifest)
            if wanted == lifecycle.AVAILABLE and live and not key_gone:
                moved = lifecycle.move(
                    session, models.Backup, row.id, BackupMoves.reset_available, fail_reason=None
                )
            else:
                reason = None
                if wanted == lifecycle.AVAILABLE:
                    reason = "The backup cannot be made available: its data is not complete in the store."
                    if key_gone:
                        reason = project_keys.DESTROYED
                moved = lifecycle.move(
                    session, models.Backup, row.id, BackupMoves.reset_error, fail_reason=reason
                )
            if not moved:
                raise BackupNotFound(backup_id)
            if manifest is not None and manifest.state == lifecycle.RELEASED:
                backup_rows.queue_release(session, manifest, row.project_id, ctx.request_id)
            outbox.add(session, "backup.reset_status.end", row.id, ctx.request_id)
            return rows.backup(session, row)

        backup = self._db.run(work)
        self._wake()
        self._outbox.nudge()
        return backup

    def export_record(self, ctx: RequestContext, backup_id: str) -> tuple[str, str]:
        """Return ``backup_service`` and ``backup_url`` of a backup.

        :raises BackupNotFound: no such backup for this caller.
        :raises InvalidBackup: it is not available.
        """
        backup = self.get(ctx, backup_id)
        if backup.status != lifecycle.AVAILABLE:
            raise InvalidBackup(f"Backup status must be available and not {backup.status}.")
        with self._db.read() as session:
            manifest = session.get(models.Manifest, backup.manifest_id or "")
            key_ids = (None, None) if manifest is None else (manifest.key_id, manifest.mac_id)
        return backup.service or "", records.encode(backup, *key_ids)

    def import_record(
        self, ctx: RequestContext, *, backup_service: str, backup_url: str, expect_id: str | None = None
    ) -> rows.Backup:
        """Begin to import the backup that a record describes, into the caller's project.

        A worker checks the data before the backup becomes ``available``.  The id of a deleted
        backup can be used again.

        :param expect_id: the id the record must have.
        :raises InvalidInput: the record cannot be read, or has another id than expected.
        :raises InvalidBackup: there is a backup with this id.
        :raises ServiceUnavailable: no live worker can check it.
        :raises QuotaExceeded: the project has no room for it.
        """
        record = records.decode(backup_url)
        if expect_id is not None and expect_id.lower() != record.id:
            raise InvalidInput("The id in the path is not the id in the backup record.")

        def work(session: Session) -> rows.Backup:
            if not services.backup_workers_alive(session, self._conf):
                raise ServiceUnavailable(f"Service {services.BACKUP_BINARY} could not be found.")
            locks.lock(session, models.Backup, models.Backup.id == record.id)
            known = session.get(models.Backup, record.id)
            if known is not None and not known.deleted:
                raise InvalidBackup("Backup already exists in database.")
            quota.check(session, self._conf, ctx.project_id, {"backups": 1, "backup_gigabytes": record.size})
            row = backup_rows.imported(session, ctx, record, known, volume_id=rows.NO_VOLUME)
            actions.record(session, ctx, Kind.BACKUP_IMPORT, row)
            queue(
                session,
                ctx,
                tasks.BACKUP_IMPORT,
                row,
                service=backup_service,
                admin=ctx.is_admin,
                record=backup_rows.record_to_json(record),
            )
            return rows.backup(session, row)

        def begun(session: Session) -> rows.Backup | None:
            # Another request of the project may have begun it; the record is imported as this one asked, too.
            found = rows.backup_by_id(rows.fetching(session), record.id)
            return None if found is None or found.project_id != ctx.project_id else found

        try:
            return self._change(work, begun)
        except DBDuplicateEntry as error:
            raise InvalidBackup("Backup already exists in database.") from error

    def _refuse_parent(self, session: Session, row: models.Backup) -> None:
        refuses = self._conf.backup.refuse_delete_of_parents
        if (
            refuses and rows.dependents_of(session, [row.id]).get((row.id, row.project_id))
        ) or backup_rows.is_needed(session, row):
            raise InvalidBackup("Incremental backups exist for this backup.")


def _remove_copies(
    session: Session, ctx: RequestContext, backup: models.Backup, leaving: Collection[str]
) -> None:
    """Remove the copies of a backup in some stores, in the caller's transaction.

    :raises InvalidBackup: it has no copy in one of them.
    """
    row = models.BackupCopy
    for store in sorted(leaving):
        found = session.scalar(select(row).where(row.backup_id == backup.id, row.store == store))
        if found is None:
            raise InvalidBackup(f"The backup has no copy in the store {store}.")
        actions.record(session, ctx, Kind.BACKUP_REMOVE_COPY, backup, f"in {store}")
        copies.remove(session, found, ctx.request_id)


def begin_restore(
    session: Session,
    ctx: RequestContext,
    backup: models.Backup,
    volume: models.Volume,
    *,
    new: bool,
    typed: bool,
) -> None:
    """Move a backup to ``restoring`` and queue the task, in the caller's transaction.

    The caller has moved the volume to ``restoring-backup``, or made it with that status or
    ``creating``, and has checked its size.

    :param new: the volume was made for this restore.
    :param typed: the request named its type; otherwise the manifest's type is used if possible.
    :raises InvalidBackup: the backup is not available.
    """
    if not lifecycle.move(
        session,
        models.Backup,
        backup.id,
        BackupMoves.restore,
        restore_volume_id=volume.id,
        progress_done=0,
        progress_total=0,
    ):
        raise InvalidBackup("Backup status must be available")
    actions.record(session, ctx, Kind.BACKUP_RESTORE, backup, f"to volume {volume.id}")
    tasks.add(
        session,
        tasks.BACKUP_RESTORE,
        resource_id=backup.id,
        source_id=volume.id,
        project_id=ctx.project_id,
        request_id=ctx.request_id,
        payload={
            "volume_id": volume.id,
            "new": new,
            "typed": typed,
            "made_there": new and volume.mirrored_at is not None,
        },
    )


def _parent(
    session: Session, project_id: str, volume_id: str, snapshot: models.Snapshot | None, *, needed: bool
) -> models.Backup | None:
    """Return the parent of an incremental backup.

    Nothing can be shared with a backup of Cinder's format.  Where there are only such ones the answer is
    None, and a full backup is made: so what asks for incremental ones each night goes on after an import.

    :param needed: refuse where there is no backup at all; else the answer is None there, too.
    :raises InvalidBackup: there is none, and one is needed.
    """
    row, manifest = models.Backup, models.Manifest
    query = (
        select(row, manifest.installation_id)
        .join(manifest, manifest.id == row.manifest_id)
        .where(
            row.volume_id == volume_id,
            row.project_id == project_id,
            row.status == lifecycle.AVAILABLE,
            row.deleted.is_(False),
            row.data_timestamp.is_not(None),
            manifest.state == lifecycle.LIVE,
        )
    )
    if snapshot is not None:
        query = query.where(row.data_timestamp < snapshot.created_at)
    of_cinder = case((manifest.installation_id == CINDER, 1), else_=0)
    newest = query.order_by(of_cinder, row.data_timestamp.desc(), row.created_at.desc(), row.id.desc())
    found = session.execute(newest.limit(1)).first()
    if found is None and not needed:
        return None
    if found is None:
        raise InvalidBackup("No backups available to do an incremental backup.")
    return None if found.installation_id == CINDER else found[0]


def _placement_of(conf: cfg.ConfigOpts, parent: models.Backup | None) -> Placement | None:
    """Return the place of the parent, if there is one and its store is still enabled."""
    if parent is None or parent.store is None or parent.container is None:
        return None
    if parent.store not in conf.enabled_stores:
        return None
    return Placement(parent.store, parent.container)

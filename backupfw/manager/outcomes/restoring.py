"""Restoring a backup to a volume: the plan of an attempt, and its end."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import select
from sqlalchemy.orm import Session

from backupfw.db import models
from backupfw.db.locks import lock
from backupfw.db.session import now
from backupfw.errors import BackupNotFound, InvalidBackup, TaskLost, VolumeNotFound
from backupfw.manager import rows
from backupfw.manager.lineage import lifecycle, manifests
from backupfw.manager.lineage.lifecycle import BackupMoves
from backupfw.manager.messages import Detail
from backupfw.manager.metadata import add, replace
from backupfw.manager.outcomes import damaged_objects
from backupfw.manager.outcomes.base import Outcomes, backup_of
from backupfw.manager.outcomes.damaged_objects import OK
from backupfw.manager.queue import tasks
from backupfw.manager.rows import Task
from backupfw.manager.rules import backup_rows, copies, failures, volume_rules, volume_types
from backupfw.manager.rules.volume_rules import SOURCE_KEY

#: The result of a restore to nowhere that failed.
FAILED = "failed"


@dataclass(frozen=True, slots=True)
class RestorePlan:
    """The plan of one attempt of a restore.

    :ivar volume: the target; it has no location yet if it was made for this restore.
    :ivar new: it was made for this restore.
    :ivar places: where the data is; never empty.
    :ivar key: the manifest's key, in each of them.
    :ivar links: of Cinder's format: containers and keys of its links, the backup's own first.
    :ivar encrypted: whether the database says that it is encrypted.
    :ivar checkpoint: the point that an earlier attempt reached, in the engine's form; 0 at first.
    :ivar attempt: the number for the target's fence.
    """

    backup: rows.Backup
    volume: rows.Volume
    new: bool
    store: str
    container: str
    places: tuple[rows.Place, ...]
    key: str
    links: tuple[tuple[str, str], ...]
    encrypted: bool
    checkpoint: int
    attempt: int


@dataclass(frozen=True, slots=True)
class Tested:
    """What was recorded of a restore to nowhere.

    :ivar first: the digest of the first one that succeeded; None: none did.
    """

    at: datetime
    ok: bool
    first: str | None


@dataclass(frozen=True, slots=True)
class RestoredVolume:
    """The manifest's data about the volume that was backed up.

    :ivar image_metadata: None if the backup is older than this field; then ``bootable`` has no meaning,
        either.
    """

    name: str | None = None
    description: str | None = None
    metadata: Mapping[str, str] | None = None
    volume_type: str | None = None
    bootable: bool = False
    image_metadata: Mapping[str, str] | None = None


class RestoreTasks(Outcomes):
    """Outcomes of ``backup.restore``."""

    def record_test(self, backup_id: str, digest: str | None) -> Tested:
        """Record the result of a restore to nowhere at all backups of its manifest.

        :param digest: of the content; None: something is damaged.
        :raises BackupNotFound: the backup, or its data, was deleted meanwhile.
        """

        def work(session: Session) -> Tested:
            row = models.Backup
            found = session.get(row, backup_id)
            if found is None or found.deleted or found.manifest_id is None:
                # None would be that of all backups that have no data.
                raise BackupNotFound(backup_id)
            lock(session, row, row.manifest_id == found.manifest_id, row.deleted.is_(False))
            same = session.scalars(
                select(row)
                .where(row.manifest_id == found.manifest_id, row.deleted.is_(False))
                .order_by(row.created_at, row.id)
            ).all()
            first = next((one.content_digest for one in same if one.content_digest is not None), digest)
            tested = Tested(now(session), digest is not None and digest == first, first)
            for one in same:
                one.restore_tested_at = tested.at
                one.restore_test_result = OK if tested.ok else FAILED
                one.content_digest = first
                if not tested.ok:
                    damaged_objects.tell(session, one.id, one.project_id)
            return tested

        return self._db.run(work)

    def start(self, task: Task) -> RestorePlan:
        """Begin an attempt.

        :raises VolumeNotFound: the target is gone.
        :raises InvalidBackup: the backup has no data.
        """

        def work(session: Session) -> RestorePlan:
            tasks.hold(session, task)
            backup = backup_of(session, task)
            volume = _target(session, task)
            manifest = backup_rows.manifest_of(session, backup)
            if manifest is None or manifest.key is None or manifest.state != lifecycle.LIVE:
                raise InvalidBackup("The backup has no data in the store.")
            return RestorePlan(
                backup=rows.backup(session, backup),
                volume=rows.volume(session, volume),
                new=bool(task.payload["new"]),
                store=manifest.store,
                container=manifest.container,
                places=tuple(copies.places(session, backup, self._conf.enabled_stores)),
                key=manifest.key,
                links=manifests.links(session, manifest),
                encrypted=manifest.key_id is not None,
                checkpoint=task.checkpoint,
                attempt=task.attempt,
            )

        return self._db.run(work)

    def target(self, task: Task) -> rows.Volume | None:
        """Return the volume that a restore writes to, perhaps deleted; None: it is purged.

        :raises TaskLost: another attempt owns the task, or it ended: the volume is no business of this one.
        """
        with self._db.read() as session:
            if isinstance(lost := tasks.lost(session, task), TaskLost):
                raise lost
            volume = session.get(models.Volume, task.payload["volume_id"])
            return None if volume is None else rows.volume(session, volume)

    def bind_target(self, task: Task, host: str) -> None:
        """Record, before the new target volume is made, the host whose workers alone can open it."""

        def work(session: Session) -> None:
            tasks.hold(session, task, volume_host=host)
            volume_rules.bind_to_host(session, _target(session, task), host)

        self._db.run(work)

    def set_location(self, task: Task, location: str) -> None:
        """Record where the new target volume is in its storage."""

        def work(session: Session) -> None:
            tasks.hold(session, task)
            _target(session, task).location = location

        self._db.run(work)

    def follow_target(self, task: Task, length: int, storage_id: str | None) -> None:
        """Update the target volume after its open; see :func:`volume_rules.follow_storage`."""

        def work(session: Session) -> None:
            tasks.hold(session, task)
            target = _target(session, task).id
            volume_rules.follow_storage(session, task, target, length, storage_id)

        self._db.run(work)

    def finish(self, task: Task, source: RestoredVolume | None = None) -> None:
        """End the task: backup and volume are available.

        The volume gets the source's metadata (its other keys stay).  If the request had no name, it gets the
        source's name, if there is one, and description; if the request had no type, the source's type.
        ``bootable`` and the image's metadata belong to the data, so they are always the source's.
        """

        def work(session: Session) -> None:
            tasks.end(session, task)
            backup = backup_of(session, task)
            lifecycle.move(session, models.Backup, backup.id, BackupMoves.restored, fail_reason=None)
            # Every change of a volume's metadata locks its row.
            lock(session, models.Volume, models.Volume.id == task.payload["volume_id"])
            volume = session.get(models.Volume, task.payload["volume_id"])
            if volume is not None and not volume.deleted and source is not None:
                if volume.mirrored_at is None:
                    _describe(session, backup, volume, source)
                # Tasks that an older release queued do not have ``typed``.
                if task.payload["new"] and not task.payload.get("typed", False):
                    kind = volume_types.of_backup(session, volume.project_id, source.volume_type)
                    volume.volume_type = kind or volume.volume_type
            volume_rules.end_restore(
                session, task.payload["volume_id"], ok=True, new=bool(task.payload["new"])
            )

        self._db.run(work)

    def fail(self, task: Task, reason: str, detail: Detail | None = None) -> None:
        """End the task: the backup is available, with the reason; the volume is in an error status.

        The volume is in an error status even if nothing was written to it: clients that wait for the restore
        would take ``available`` for success.

        :param detail: for the user message; None if nothing more exact is known.
        """

        def work(session: Session) -> None:
            tasks.end(session, task, "failed")
            failed(session, task, reason, detail)

        self._db.run(work)


def failed(session: Session, task: Task, reason: str, detail: Detail | None = None) -> None:
    """Give up a restore, in the transaction that ends its task."""
    failures.failed(session, task, reason, detail)
    volume_rules.end_restore(session, task.payload["volume_id"], ok=False, new=bool(task.payload["new"]))


def _target(session: Session, task: Task) -> models.Volume:
    volume = session.get(models.Volume, task.payload["volume_id"])
    if volume is None or volume.deleted:
        raise VolumeNotFound(task.payload["volume_id"])
    return volume


def _describe(session: Session, backup: models.Backup, volume: models.Volume, source: RestoredVolume) -> None:
    if volume.display_name == f"restore_backup_{backup.id}":
        # If the source has no name, the name in the call's answer stays.
        volume.display_name = source.name or volume.display_name
        volume.display_description = source.description
    # A key that an older restore left on the source does not apply to this volume.
    merged = {key: value for key, value in (source.metadata or {}).items() if key != SOURCE_KEY}
    add(session, models.VolumeMetadata, volume.id, merged)
    if source.image_metadata is not None:
        volume.bootable = source.bootable
        replace(session, models.VolumeImageMetadata, volume.id, source.image_metadata)
    session.flush()

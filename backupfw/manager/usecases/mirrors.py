"""Mirrors: rows of volumes and snapshots that a foreign catalogue has.

A backup, its tasks and its manifest refer to a volume's row: the row is locked, says whose the volume is, and
has the status that lets one backup or restore at a time begin.  So a foreign volume gets a row, too, with the
catalogue's id.  Each request that names the volume first asks the catalogue (with the caller's token, so the
catalogue decides what he sees), and writes the answer to the row.  Then the rules for our own volumes hold
for it without exception.  While a backup or restore of ours runs, the row stays as it was when that was asked
for: its provider compares owner and size with what is there then.  The volume's own status in the catalogue
is not touched by a backup.

Nobody sees a mirror as a volume of ours: it is in no listing and no quota, and the API of volumes does not
find it.
"""

from __future__ import annotations

import itertools
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from oslo_db.exception import DBDuplicateEntry
from oslo_log import log
from sqlalchemy.orm import Session

from backupfw.db import models
from backupfw.db.locks import lock
from backupfw.db.session import Database, now
from backupfw.errors import (
    BackupfwError,
    InvalidBackup,
    InvalidInput,
    InvalidVolume,
    ServiceUnavailable,
    SnapshotNotFound,
    VolumeNotFound,
)
from backupfw.manager import metadata
from backupfw.manager.lineage import lifecycle
from backupfw.manager.rules import volume_types
from backupfw.manager.rules.volume_rules import GIB, NOT_THERE, SOURCE_KEY, find_backup, held_by_backup
from backupfw.naming import storable, storable_pairs
from backupfw.volume.catalogue import Catalogue, ForeignSnapshot, ForeignVolume

if TYPE_CHECKING:
    from oslo_config import cfg

    from backupfw.context import RequestContext

LOG = log.getLogger(__name__)

#: Most volumes of a project that are listed: each is looked at with a request of its own later.
MOST_LISTED = 50_000

# Ids of requests for new volumes.
_REQUESTS = uuid.UUID("6f0d2c58-52d5-4b7e-a9a1-0c6d3f7b8e21")


class Mirrors:
    """Keeps mirrors.  Thread-safe.

    :param catalogues: the foreign catalogue of each volume back end that has one, by the back end's name.
    """

    def __init__(
        self,
        db: Database,
        conf: cfg.ConfigOpts,
        catalogues: Mapping[str, Catalogue] = MappingProxyType({}),
    ) -> None:
        self._db = db
        self._conf = conf
        self._catalogues = catalogues

    @property
    def has_catalogues(self) -> bool:
        """Whether there is any foreign catalogue."""
        return bool(self._catalogues)

    def unlisted(self) -> Sequence[str]:
        """Return the names of the back ends whose catalogues do not list their volumes."""
        return [name for name, catalogue in self._catalogues.items() if not catalogue.lists]

    def volumes(self, project_id: str) -> Mapping[str, Mapping[str, str]]:
        """Ask all catalogues which volumes a project has; no mirror is written.

        Call it outside a transaction.

        :returns: the metadata of each volume, by its id; without those that are about to come or to go.
        :raises ServiceUnavailable: a catalogue does not answer, or this process has none, unlike the one that
            wants to know.
        :raises InvalidInput: one does not list its volumes, or there are more than :data:`MOST_LISTED`.
        """
        if not self._catalogues:
            raise ServiceUnavailable("A worker is configured without the service that has the volumes.")
        if names := self.unlisted():
            raise InvalidInput(f"The volumes of back end {', '.join(names)} cannot be listed: name them.")
        every = (catalogue.volumes(project_id) for catalogue in self._catalogues.values())
        found = list(itertools.islice(itertools.chain.from_iterable(every), MOST_LISTED + 1))
        if len(found) > MOST_LISTED:
            raise InvalidInput(f"The project has more than {MOST_LISTED} volumes: name those that are meant.")
        return {
            one.id: one.metadata
            for one in found
            if one.project_id == project_id and one.status not in NOT_THERE and _is_uuid(one.id)
        }

    def look(self, ctx: RequestContext, volume_id: str, snapshot_id: str | None = None) -> None:
        """Ask the catalogue of a volume, if it is a foreign one, what it is now; write that to its mirror.

        Call it outside a transaction, before a use case of backups that names the volume.

        :param snapshot_id: a snapshot of it that the request names, too.
        :raises VolumeNotFound: no catalogue, ours included, has such a volume for this caller.
        :raises SnapshotNotFound: likewise.
        :raises InvalidVolume: it got another owner while a task works on it for the former one.
        :raises ServiceUnavailable: a catalogue does not answer.
        """
        if not self._catalogues or not _is_uuid(volume_id):
            return
        with self._db.read() as session:
            row = session.get(models.Volume, volume_id)
            if row is not None and row.mirrored_at is None:
                return
            known = None if row is None else row.backend
        names = [known] if known in self._catalogues else list(self._catalogues)
        for name in names:
            assert name is not None
            catalogue = self._catalogues[name]
            try:
                volume = catalogue.volume(ctx, volume_id)
            except VolumeNotFound:
                continue
            if volume.id != volume_id:
                raise VolumeNotFound(volume_id)
            snapshot = None
            if snapshot_id is not None and _is_uuid(snapshot_id):
                snapshot = catalogue.snapshot(ctx, snapshot_id)
                if snapshot.id != snapshot_id:
                    raise SnapshotNotFound(snapshot_id)
            self._write(name, volume, snapshot)
            return
        raise VolumeNotFound(volume_id)

    @contextmanager
    def target(self, ctx: RequestContext, backup_id: str, name: str) -> Iterator[str | None]:
        """Make the new volume that a backup is restored to, if it belongs into a foreign catalogue.

        It is made with the caller's token, so owner and quota are his.  It has the type and the availability
        zone of the volume that was backed up.  If that was encrypted, the new one is a copy of it, because
        only so it gets the key.  If the ``with`` block raises, it is deleted again, unless somebody else has
        begun to restore to it.  If an answer was lost, the next request for the same restore gets what was
        made.

        :returns: yields the volume's id; None: the new volume will be one of ours.
        :raises BackupNotFound: no such backup for this caller.
        :raises InvalidBackup: it is not available.
        :raises BackupfwError: the catalogue refuses it; see :meth:`Catalogue.create_volume`.
        """
        wanted = self._wanted_target(ctx, backup_id)
        if wanted is None:
            yield None
            return
        backend, properties = wanted
        catalogue = self._catalogues[backend]
        made = catalogue.create_volume(ctx, name=name, metadata={SOURCE_KEY: backup_id}, **properties)
        try:
            # It may be "creating" there; to us it is as good as available, because the worker waits.
            self._write(backend, replace(made, status=lifecycle.AVAILABLE))
            yield made.id
        except Exception:
            with self._db.read() as session:
                begun = held_by_backup(session, made.id)
            try:
                if not begun:
                    catalogue.delete_volume(ctx, made.id)
            except BackupfwError:
                LOG.exception("Volume %s, made for a restore that did not begin, stays", made.id)
            raise

    def _wanted_target(self, ctx: RequestContext, backup_id: str) -> tuple[str, dict[str, Any]] | None:
        """Return back end and properties of a new volume; None if its back end has no foreign catalogue."""
        if not self._catalogues:
            return None
        with self._db.read() as session:
            backup = find_backup(session, ctx, backup_id)
            if backup.status != lifecycle.AVAILABLE:
                raise InvalidBackup("Backup status must be available")
            backend = volume_types.backend_of_restored(session, self._conf, ctx, backup, None)
            if backend not in self._catalogues:
                return None
            source = session.get(models.Volume, backup.volume_id)
            # Each restore that begins changes the time, so no volume of an earlier one has this id.
            request = uuid.uuid5(_REQUESTS, f"{backup.id} {backup.updated_at}")
            return backend, {
                "request": str(request),
                "size": backup.size,
                "volume_type": (backup.volume_record or {}).get("volume_type"),
                "availability_zone": None if source is None else source.availability_zone,
                "copy_of": backup.volume_id if backup.encryption_key_id else None,
            }

    def _write(
        self,
        backend: str,
        volume: ForeignVolume,
        snapshot: ForeignSnapshot | None = None,
    ) -> None:
        def work(session: Session) -> None:
            moment = now(session)
            _mirror_volume(session, backend, volume, moment)
            if snapshot is not None:
                _mirror_snapshot(session, snapshot, moment)

        try:
            self._db.run(work)
        except DBDuplicateEntry:
            # Another request has mirrored it meanwhile.
            self._db.run(work)


def _is_uuid(text: str) -> bool:
    try:
        return str(uuid.UUID(text)) == text
    except ValueError:
        return False


def _mirror_volume(session: Session, backend: str, found: ForeignVolume, moment: datetime) -> None:
    lock(session, models.Volume, models.Volume.id == found.id)
    row = session.get(models.Volume, found.id, populate_existing=True)
    if row is None:
        row = models.Volume(id=found.id, created_at=moment, location=found.id, adopted=True)
        session.add(row)
    elif row.mirrored_at is None:
        raise VolumeNotFound(found.id)
    elif held_by_backup(session, found.id):
        if row.project_id != found.project_id:
            raise InvalidVolume(f'Volume {found.id} is being used: its status is "{row.status}".')
        row.mirrored_at = moment
        return
    # A back end that was renamed is another one.
    row.backend = backend
    row.status, row.previous_status = found.status, None
    row.project_id, row.user_id = found.project_id, storable(found.user_id)
    row.size, row.length = found.size, found.size * GIB
    row.display_name, row.display_description = storable(found.name), storable(found.description)
    row.availability_zone, row.volume_type = storable(found.availability_zone), storable(found.volume_type)
    row.bootable, row.mirrored_at = found.bootable, moment
    row.encryption_key_id = found.encryption_key_id
    session.flush()
    metadata.replace(session, models.VolumeMetadata, found.id, storable_pairs(found.metadata))
    metadata.replace(session, models.VolumeImageMetadata, found.id, storable_pairs(found.image_metadata))


def _mirror_snapshot(session: Session, found: ForeignSnapshot, moment: datetime) -> None:
    # A snapshot of another volume that was never looked at gets no row; the rule refuses it.
    if session.get(models.Volume, found.volume_id) is None:
        return
    lock(session, models.Snapshot, models.Snapshot.id == found.id)
    row = session.get(models.Snapshot, found.id, populate_existing=True)
    if row is None:
        row = models.Snapshot(id=found.id, volume_id=found.volume_id, location=found.id)
        session.add(row)
    elif row.mirrored_at is None:
        raise SnapshotNotFound(found.id)
    elif held_by_backup(session, found.id):
        row.mirrored_at = moment
        return
    row.status, row.previous_status = found.status, None
    row.project_id, row.size, row.length = found.project_id, found.size, found.size * GIB
    row.display_name, row.created_at, row.mirrored_at = storable(found.name), found.created_at, moment
    session.flush()

"""Requirements: what a task requires of its worker: a zone, a store, the back end and the host of a volume.

They are written to the task's row when it is queued, so that a claim only compares columns.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from backupfw.conf.volumes import LOCAL
from backupfw.db import models

#: The kinds of tasks that need no volume; one of an older release may, for what a killed attempt left there.
WITHOUT_VOLUME = (
    *("backup.copy", "backup.delete", "backup.import", "backup.verify"),
    *("manifest.release", "manifest.scrub"),
)
VOLUME_TIDY = "volume.tidy"
MANIFEST_SCRUB = "manifest.scrub"
BACKUP_VERIFY = "backup.verify"
VOLUME_THAW = "volume.thaw"
#: The kinds of tasks that no limit of running tasks counts.
UNLIMITED = (MANIFEST_SCRUB, VOLUME_THAW)
#: The kinds of tasks that users do not see: they may be repeated for days.
HIDDEN = ("manifest.release", VOLUME_TIDY, MANIFEST_SCRUB, VOLUME_THAW)
#: The kinds of tasks for which no other task waits: those, and what only reads data that stays as it is.
IN_NOBODYS_WAY = (*HIDDEN, BACKUP_VERIFY)


@dataclass(frozen=True, slots=True)
class Requirements:
    """What a task requires of its worker; None where any worker will do.

    :ivar zone: the availability zone that was asked for.
    :ivar store: the configured name of the store with the data; of a copy: of the store that gets it.
    :ivar from_store: of a copy: the store that is read.
    :ivar volume_host: the host whose workers alone can open the volume.
    :ivar backend: the name of the volume's back end.
    """

    zone: str | None = None
    store: str | None = None
    volume_host: str | None = None
    backend: str | None = None
    from_store: str | None = None


def of_row(task: models.Task) -> Requirements:
    """Return what a task's row requires.

    A process of an older release queues tasks without a back end: its volumes are all in ``local``.
    """
    backend = task.backend
    if backend is None and (task.volume_host is not None or task.kind not in WITHOUT_VOLUME):
        backend = LOCAL
    return Requirements(task.zone, task.store, task.volume_host, backend, task.from_store)


def of_task(session: Session, kind: str, resource_id: str, payload: Mapping[str, Any]) -> Requirements:
    """Return a task's requirements, from the rows it is about; none if these are gone."""
    subject, _, action = kind.partition(".")
    if kind == "backup.copy":
        copied = session.get(models.Manifest, resource_id)
        store = None if copied is None else copied.store
        return Requirements(store=store, from_store=payload["from_store"])
    if kind == BACKUP_VERIFY or subject == "manifest":
        manifest = session.get(models.Manifest, resource_id)
        return Requirements(store=None if manifest is None else manifest.store)
    if subject == "backup":
        return _of_backup(session, action, resource_id, payload)
    if subject == "snapshot":
        return _of_snapshot(session, resource_id)
    volume = session.get(models.Volume, resource_id)
    if volume is None or action != "create":
        return _of_volume(volume)
    # A copy needs a host that can read its source, in whose back end it is made.
    if volume.snapshot_id is not None:
        return _of_snapshot(session, volume.snapshot_id)
    if volume.source_volid is not None:
        return _of_volume(session.get(models.Volume, volume.source_volid))
    return Requirements(backend=volume.backend)


def _of_backup(session: Session, action: str, backup_id: str, payload: Mapping[str, Any]) -> Requirements:
    backup = session.get(models.Backup, backup_id)
    if backup is None:
        return Requirements()
    if action == "import":
        return Requirements(store=_known_store(session, payload["record"].get("store")))
    volume_id: str | None = backup.volume_id
    if action == "restore":
        volume_id = payload["volume_id"]
    elif action == "delete":
        volume_id = None
    zone = payload.get("zone") if action == "create" else None
    volume = None if volume_id is None else session.get(models.Volume, volume_id)
    return replace(_of_volume(volume), zone=zone, store=backup.store)


def _of_volume(volume: models.Volume | None) -> Requirements:
    return Requirements() if volume is None else Requirements(volume_host=volume.host, backend=volume.backend)


def _of_snapshot(session: Session, snapshot_id: str) -> Requirements:
    snapshot = session.get(models.Snapshot, snapshot_id)
    return Requirements() if snapshot is None else _of_volume(session.get(models.Volume, snapshot.volume_id))


def _known_store(session: Session, name: str | None) -> str | None:
    """Return the store that a record names as a hint, if a worker ever had a store of that name."""
    known = session.scalars(select(models.Service.stores))
    return name if name is not None and any(name in stores for stores in known) else None

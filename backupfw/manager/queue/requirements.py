"""Requirements: what a task requires of its worker: an availability zone, a store, the host of a volume.

They are written to the task's row when it is queued, so that a claim only compares columns.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from backupfw.db import models


@dataclass(frozen=True, slots=True)
class Requirements:
    """What a task requires of its worker; None where any worker will do.

    :ivar zone: the availability zone that was asked for.
    :ivar store: the configured name of the store with the data.
    :ivar volume_host: the host whose workers alone can open the volume.
    """

    zone: str | None = None
    store: str | None = None
    volume_host: str | None = None


def of_task(session: Session, kind: str, resource_id: str, payload: Mapping[str, Any]) -> Requirements:
    """Return a task's requirements, from the rows it is about; none if these are gone."""
    subject, _, action = kind.partition(".")
    if subject == "backup":
        return _of_backup(session, action, resource_id, payload)
    if subject == "manifest":
        manifest = session.get(models.Manifest, resource_id)
        return Requirements(store=None if manifest is None else manifest.store)
    if subject == "snapshot":
        return Requirements(volume_host=_snapshot_host(session, resource_id))
    volume = session.get(models.Volume, resource_id)
    if volume is None or action != "create":
        return Requirements(volume_host=None if volume is None else volume.host)
    # A copy needs a host that can read its source.
    if volume.snapshot_id is not None:
        return Requirements(volume_host=_snapshot_host(session, volume.snapshot_id))
    return Requirements(volume_host=_host(session, volume.source_volid))


def _of_backup(session: Session, action: str, backup_id: str, payload: Mapping[str, Any]) -> Requirements:
    backup = session.get(models.Backup, backup_id)
    if backup is None:
        return Requirements()
    if action == "create":
        return Requirements(payload.get("zone"), backup.store, _host(session, backup.volume_id))
    if action == "restore":
        return Requirements(store=backup.store, volume_host=_host(session, payload["volume_id"]))
    if action == "import":
        return Requirements(store=_known_store(session, payload["record"].get("store")))
    # The temporary snapshot that a killed attempt left is on its volume's host.
    host = None if backup.temp_snapshot_id is None else _host(session, backup.volume_id)
    return Requirements(store=backup.store, volume_host=host)


def _host(session: Session, volume_id: str | None) -> str | None:
    volume = None if volume_id is None else session.get(models.Volume, volume_id)
    return None if volume is None else volume.host


def _snapshot_host(session: Session, snapshot_id: str) -> str | None:
    snapshot = session.get(models.Snapshot, snapshot_id)
    return None if snapshot is None else _host(session, snapshot.volume_id)


def _known_store(session: Session, name: str | None) -> str | None:
    """Return the store that a record names as a hint, if a worker ever had a store of that name."""
    known = session.scalars(select(models.Service.stores))
    return name if name is not None and any(name in stores for stores in known) else None

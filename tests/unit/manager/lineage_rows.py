"""Rows of manifests and backups for tests of the lineage, in one place unless a test says another."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from datetime import datetime
from typing import Any

from backupfw.db.models import Backup, Base, Manifest
from backupfw.db.session import Database
from backupfw.manager.lineage import manifests

NOW = datetime(2030, 1, 1)
VOLUME = str(uuid.UUID(int=7))
#: Where these rows are.
PLACE = {"store": "main", "container": "box", "volume_id": VOLUME}


def manifest(manifest_id: str, base_id: str | None = None, state: str = "live", **columns: Any) -> Manifest:
    values: dict[str, Any] = {
        **PLACE,
        "key": None if state == "writing" else f"k/{manifest_id}",
        "installation_id": "inst",
        "project_id": "p",
        "backup_id": manifest_id,
        "block_size": 65536,
        "segment_size": 1 << 28,
        "hash_mode": "blake3",
        "created_at": NOW,
    }
    return Manifest(id=manifest_id, base_id=base_id, state=state, **(values | columns))


def backup(backup_id: str, manifest_id: str, deleted: bool = False) -> Backup:
    return Backup(
        id=backup_id,
        project_id="p",
        volume_id=VOLUME,
        status="available",
        manifest_id=manifest_id,
        created_at=NOW,
        deleted=deleted,
    )


def tables() -> Iterator[Database]:
    """Yield a database with empty tables: the body of a fixture."""
    database = Database("sqlite://")
    Base.metadata.create_all(database.engine)
    yield database
    database.close()


def fill(db: Database, *rows: Base) -> None:
    with db.write() as session:
        for row in rows:
            session.add(row)
            session.flush()


def volume_rows(db: Database, **options: Any) -> manifests.VolumeRows:
    """Return what a sweep is told of the volume."""
    with db.read() as session:
        return manifests.volume_rows(session, installation_id="inst", **PLACE, **options)


#: What makes a manifest one of another tree.
ELSEWHERE = {"volume_id": "other", "store": "other", "container": "other", "installation_id": "other"}


def elsewhere(prefix: str, state: str = "live", **columns: Any) -> list[Manifest]:
    """Return a manifest of each other volume, store, container and installation."""
    return [
        manifest(f"{prefix}-{name}", None, state, **{name: value}, **columns)
        for name, value in ELSEWHERE.items()
    ]


def announced(key: str, backup_id: str, **columns: Any) -> Manifest:
    """Return an open key."""
    return manifest(
        f"id-{key}", None, "announced", key=key, backup_id=backup_id, in_tree=False, key_digest=key, **columns
    )


def given_up(key: str, backup_id: str, **columns: Any) -> Manifest:
    """Return a key that was given up."""
    row = announced(key, backup_id, **columns)
    row.state = "gone"
    return row

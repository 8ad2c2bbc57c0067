"""What is done for each kind of task."""

from __future__ import annotations

from collections.abc import Mapping

from backupfw.manager.queue import tasks
from backupfw.worker.handlers.backup_copy import BackupCopy
from backupfw.worker.handlers.backup_create import BackupCreate
from backupfw.worker.handlers.backup_delete import BackupDelete, ManifestRelease
from backupfw.worker.handlers.backup_import import BackupImport
from backupfw.worker.handlers.backup_restore import BackupRestore
from backupfw.worker.handlers.base import EngineSettings, Handler, Tools
from backupfw.worker.handlers.manifest_scrub import BackupVerify, ManifestScrub
from backupfw.worker.handlers.volumes import (
    SnapshotCreate,
    SnapshotDelete,
    VolumeCreate,
    VolumeDelete,
    VolumeExtend,
    VolumeThaw,
    VolumeTidy,
)

__all__ = ["EngineSettings", "Handler", "Tools", "handler_for"]

_HANDLERS: Mapping[str, type[Handler]] = {
    tasks.BACKUP_CREATE: BackupCreate,
    tasks.BACKUP_IMPORT: BackupImport,
    tasks.BACKUP_RESTORE: BackupRestore,
    tasks.BACKUP_DELETE: BackupDelete,
    tasks.BACKUP_COPY: BackupCopy,
    tasks.MANIFEST_RELEASE: ManifestRelease,
    tasks.VOLUME_CREATE: VolumeCreate,
    tasks.VOLUME_DELETE: VolumeDelete,
    tasks.VOLUME_EXTEND: VolumeExtend,
    tasks.SNAPSHOT_CREATE: SnapshotCreate,
    tasks.SNAPSHOT_DELETE: SnapshotDelete,
    tasks.VOLUME_TIDY: VolumeTidy,
    tasks.MANIFEST_SCRUB: ManifestScrub,
    tasks.BACKUP_VERIFY: BackupVerify,
    tasks.VOLUME_THAW: VolumeThaw,
}
assert frozenset(_HANDLERS) == tasks.KINDS


def handler_for(kind: str, tools: Tools) -> Handler:
    """Return a fresh handler of a kind of task; one attempt uses it."""
    return _HANDLERS[kind](tools)

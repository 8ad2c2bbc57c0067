"""Backups as answers show them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from backupfw.api import versions
from backupfw.api.request import Request
from backupfw.api.views import timestamp

if TYPE_CHECKING:
    from backupfw.manager.queue.progress import Progress
    from backupfw.manager.rows import Backup, BackupCopy, ListedBackup


def summary(req: Request, backup: Backup | ListedBackup) -> dict[str, Any]:
    """What list, create and import show."""
    return {"id": backup.id, "name": backup.display_name, "links": req.links.of("backups", backup.id)}


def details(
    req: Request, shows_owner: Callable[[str], bool]
) -> Callable[[Backup | ListedBackup], dict[str, Any]]:
    """Return the view of show and the detailed list.  Published test suites refuse unknown keys.

    :param shows_owner: whether the caller may see the project and user of a project's backups.
    """
    version, links = req.version, req.links.of
    shows_owner = functools.cache(shows_owner)
    # Decided once for a page, not for each row.
    has_project = version >= versions.BACKUP_PROJECT
    has_user = version >= versions.BACKUP_USER_ID
    has_metadata = version >= versions.BACKUP_METADATA
    has_key = version >= versions.ENCRYPTION_KEY_ID

    def detail(backup: Backup | ListedBackup) -> dict[str, Any]:
        body: dict[str, Any] = {
            "id": backup.id,
            "name": backup.display_name,
            "links": links("backups", backup.id),
            "status": backup.status,
            "size": backup.size,
            "object_count": backup.object_count or 0,
            "availability_zone": backup.availability_zone,
            "container": backup.container,
            "created_at": timestamp(backup.created_at),
            "updated_at": timestamp(backup.updated_at),
            "description": backup.display_description,
            "fail_reason": backup.fail_reason,
            "volume_id": backup.volume_id,
            "is_incremental": backup.is_incremental,
            "has_dependent_backups": backup.has_dependent_backups,
            "snapshot_id": backup.snapshot_id,
            "data_timestamp": timestamp(backup.data_timestamp),
        }
        if has_project and shows_owner(backup.project_id):
            body["os-backup-project-attr:project_id"] = backup.project_id
            if has_user:
                body["user_id"] = backup.user_id
        if has_metadata:
            body["metadata"] = backup.metadata
        if has_key and backup.encryption_key_id:
            body["encryption_key_id"] = backup.encryption_key_id
        return body

    return detail


def copy(found: BackupCopy) -> dict[str, Any]:
    """A copy of a backup in another store."""
    return {
        "store": found.store,
        "container": found.container,
        "status": found.status,
        "fail_reason": found.fail_reason,
        "created_at": timestamp(found.created_at),
        "updated_at": timestamp(found.updated_at),
    }


def progress(found: Progress) -> dict[str, Any]:
    """The progress of the operation on a backup; null if it is not known."""
    return {
        "phase": found.phase,
        "bytes_done": found.done,
        "bytes_total": found.total,
        "bytes_per_second": found.rate,
        "seconds_left": found.seconds_left,
        "waits_until": None if found.waits_until is None else timestamp(found.waits_until),
        "comparison": found.comparison,
    }

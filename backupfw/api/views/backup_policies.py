"""Backup policies, their runs and their previews as answers show them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from backupfw.api.request import Request
from backupfw.api.views import timestamp

if TYPE_CHECKING:
    from backupfw.manager.policies.preview import Preview
    from backupfw.manager.rows import BackupPolicy, PolicyRun


def summary(req: Request, policy: BackupPolicy) -> dict[str, Any]:
    """What the plain list shows."""
    return {
        "id": policy.id,
        "name": policy.display_name,
        "links": req.links.of("backup-policies", policy.id),
    }


def detail(req: Request, policy: BackupPolicy) -> dict[str, Any]:
    """What every other answer about a policy shows."""
    return {
        **summary(req, policy),
        "description": policy.display_description,
        "project_id": policy.project_id,
        "enabled": policy.enabled,
        **policy.settings,
        "max_concurrent": policy.max_concurrent,
        "next_run_at": timestamp(policy.next_run_at),
        "created_by": policy.user_id,
        "updated_by": policy.updated_by,
        "created_at": timestamp(policy.created_at),
        "updated_at": timestamp(policy.updated_at),
    }


def run(found: PolicyRun) -> dict[str, Any]:
    """A run of a policy for one volume, or its search for volumes."""
    return {
        "id": found.id,
        "volume_id": found.volume_id,
        "scheduled_at": timestamp(found.scheduled_at),
        "status": found.status,
        "reason": found.reason,
        # Only one that was begun is there.
        "backup_id": None if found.started_at is None else found.backup_id,
        "quiesced": found.quiesced,
        "started_at": timestamp(found.started_at),
        "ended_at": timestamp(found.ended_at),
    }


def preview(found: Preview) -> dict[str, Any]:
    """What a policy will do."""
    return {
        "next_runs": [timestamp(one) for one in found.next_runs],
        "until": timestamp(found.until),
        "volumes": [
            {
                "volume_id": volume.volume_id,
                "backups": [
                    {
                        "backup_id": fate.backup_id,
                        "data_timestamp": timestamp(fate.taken_at),
                        "reason": fate.reason,
                        "goes_at": timestamp(fate.goes_at),
                        "places": [
                            {"store": one.store, "reason": one.reason, "goes_at": timestamp(one.goes_at)}
                            for one in fate.places
                        ],
                    }
                    for fate in volume.backups
                ],
                "backups_then": volume.kept,
            }
            for volume in found.volumes
        ],
        "volumes_total": found.total,
    }

"""Snapshots as answers show them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from backupfw.api import versions
from backupfw.api.request import Request
from backupfw.api.views import timestamp

if TYPE_CHECKING:
    from backupfw.manager.rows import Snapshot


def summary(snapshot: Snapshot) -> dict[str, Any]:
    """What list, create and update show."""
    return {
        "id": snapshot.id,
        "name": snapshot.display_name,
        "description": snapshot.display_description,
        "volume_id": snapshot.volume_id,
        "status": snapshot.status,
        "size": snapshot.size,
        "created_at": timestamp(snapshot.created_at),
        "updated_at": timestamp(snapshot.updated_at),
        "metadata": dict(snapshot.metadata),
    }


def detail(req: Request, snapshot: Snapshot) -> dict[str, Any]:
    """What show and the detailed list show."""
    body = {
        **summary(snapshot),
        "os-extended-snapshot-attributes:progress": _progress(snapshot),
        "os-extended-snapshot-attributes:project_id": snapshot.project_id,
    }
    if req.version >= versions.SNAPSHOT_GROUP:
        body["group_snapshot_id"] = None
    if req.version >= versions.SNAPSHOT_USER_ID:
        body["user_id"] = snapshot.user_id
    if req.version >= versions.CONSUMES_QUOTA:
        body["consumes_quota"] = True
    return body


def _progress(snapshot: Snapshot) -> str:
    if snapshot.status == "available":
        return "100%"
    return snapshot.progress or "0%"

"""Transfers as answers show them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from backupfw.api import versions
from backupfw.api.request import Request
from backupfw.api.views import timestamp

if TYPE_CHECKING:
    from backupfw.manager.rows import Transfer


def summary(req: Request, transfer: Transfer) -> dict[str, Any]:
    """What the list and accept show."""
    collection = req.tail.split("/", 1)[0]
    return {
        "id": transfer.id,
        "name": transfer.display_name,
        "volume_id": transfer.volume_id,
        "links": req.links.of(collection, transfer.id),
    }


def detail(req: Request, transfer: Transfer) -> dict[str, Any]:
    """What show and the detailed list show."""
    body = {**summary(req, transfer), "created_at": timestamp(transfer.created_at)}
    if req.version >= versions.TRANSFERS:
        body["no_snapshots"] = transfer.no_snapshots
    if req.version >= versions.TRANSFER_PROJECTS:
        # Always null: a transfer is deleted when it is accepted.
        body["source_project_id"] = transfer.project_id
        body["destination_project_id"] = None
        body["accepted"] = False
    return body

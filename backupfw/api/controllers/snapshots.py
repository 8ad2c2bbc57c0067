"""Snapshots of volumes."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from backupfw import errors
from backupfw.api import versions
from backupfw.api.controllers.base import Controller, checked_id, display_fields, id_of
from backupfw.api.controllers.metadata import metadata_of
from backupfw.api.query import ListingRules, boolean
from backupfw.api.request import Request, Response, action, expose
from backupfw.api.resource import ActionsResource
from backupfw.api.schemas import snapshots as schemas
from backupfw.api.views import snapshots as views

if TYPE_CHECKING:
    from backupfw.manager.rows import Snapshot

_COLUMNS = (
    "id",
    "created_at",
    "updated_at",
    "status",
    "size",
    "volume_id",
    "display_name",
    "display_description",
    "project_id",
    "user_id",
)
LISTING = ListingRules(
    sort_keys={**{column: column for column in _COLUMNS}, "name": "display_name"},
    filter_keys={
        "name": "display_name",
        "display_name": "display_name",
        "status": "status",
        "volume_id": "volume_id",
        "metadata": "metadata",
    },
    resource="snapshot",
)


class SnapshotController(Controller, ActionsResource):
    """``/snapshots/{snapshot_id}``."""

    children = {
        "metadata": metadata_of(
            lambda managers: managers.snapshots,
            errors.SnapshotNotFound,
            read_rule="volume:get_snapshot_metadata",
            create_rule="volume:update_snapshot_metadata",
            write_rule="volume:update_snapshot_metadata",
            delete_rule="volume:delete_snapshot_metadata",
        )
    }
    snapshot: Snapshot

    def project_of(self, req: Request) -> str:
        """Find the snapshot; return its project."""
        snapshot_id = checked_id(self.parts[0], errors.SnapshotNotFound)
        self.snapshot = self.managers.snapshots.get(req.context, snapshot_id)
        return self.snapshot.project_id

    @expose("GET", rule="volume:get_snapshot")
    def show(self, req: Request, resp: Response) -> dict[str, Any]:
        """``GET /snapshots/{id}``."""
        return {"snapshot": views.detail(req, self.snapshot)}

    @expose("PUT", rule="volume:update_snapshot", takes=schemas.update)
    def update(self, req: Request, resp: Response) -> dict[str, Any]:
        """``PUT /snapshots/{id}``: what is not named stays."""
        name, description = display_fields(
            req.data["snapshot"], self.snapshot.display_name, self.snapshot.display_description
        )
        changed = self.managers.snapshots.update(
            req.context, self.snapshot.id, name=name, description=description
        )
        return {"snapshot": views.summary(changed)}

    @expose("DELETE", rule="volume:delete_snapshot", status=202)
    def delete(self, req: Request, resp: Response) -> None:
        """``DELETE /snapshots/{id}``."""
        self.managers.snapshots.delete(req.context, self.snapshot.id)

    @action(
        "os-reset_status",
        rule="volume_extension:snapshot_admin_actions:reset_status",
        takes=schemas.reset_status,
    )
    def reset_status(self, req: Request, resp: Response) -> None:
        """Action ``os-reset_status``."""
        status = req.data["os-reset_status"]["status"].lower()
        self.managers.snapshots.reset_status(req.context, self.snapshot.id, status)

    @action(
        "os-force_delete",
        rule="volume_extension:snapshot_admin_actions:force_delete",
        takes=schemas.force_delete,
    )
    def force_delete(self, req: Request, resp: Response) -> None:
        """Action ``os-force_delete``."""
        self.managers.snapshots.force_delete(req.context, self.snapshot.id)

    @action(
        "os-update_snapshot_status",
        rule="snapshot_extension:snapshot_actions:update_snapshot_status",
        takes=schemas.update_status,
    )
    def update_status(self, req: Request, resp: Response) -> None:
        """Action ``os-update_snapshot_status``: whoever makes or removes a snapshot reports its progress."""
        wanted = req.data["os-update_snapshot_status"]
        progress = wanted.get("progress")
        self.managers.snapshots.update_status(
            req.context,
            self.snapshot.id,
            wanted["status"],
            None if progress is None else f"{progress.removesuffix('%')}%",
        )


class SnapshotsController(Controller):
    """``/snapshots``."""

    item = ("snapshot_id", SnapshotController)

    @expose("GET", rule="volume:get_all_snapshots")
    @expose("GET", "detail", rule="volume:get_all_snapshots")
    def index(self, req: Request, resp: Response) -> dict[str, Any]:
        """``GET /snapshots`` and ``GET /snapshots/detail``."""
        return self.page(
            req,
            self.managers.snapshots.list,
            "snapshots",
            LISTING,
            functools.partial(views.detail, req),
            views.summary,
        )

    @expose("POST", rule="volume:create_snapshot", takes=schemas.create, status=202)
    def create(self, req: Request, resp: Response) -> dict[str, Any]:
        """``POST /snapshots``."""
        wanted: Mapping[str, Any] = req.data["snapshot"]
        volume_id = id_of(wanted["volume_id"])
        if volume_id is None:
            raise errors.VolumeNotFound("None")
        self.enforce_on(req, "volume:create_snapshot", self.managers.volumes.project_of, volume_id)
        name, description = display_fields(wanted)
        snapshot = self.managers.snapshots.create(
            req.context,
            volume_id=volume_id,
            name=name,
            description=description,
            force=_force(req, wanted),
            metadata=wanted.get("metadata") or {},
        )
        return {"snapshot": views.summary(snapshot)}


def _force(req: Request, wanted: Mapping[str, Any]) -> bool:
    """Whether a snapshot may be made of a volume in use."""
    if req.version < versions.SNAPSHOT_IN_USE:
        return boolean(wanted.get("force", False), "force")
    if not boolean(wanted.get("force", True), "force"):
        raise errors.InvalidInput(f"force cannot be false from {versions.SNAPSHOT_IN_USE} on.")
    return True

"""Snapshots of volumes."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from backupfw import errors
from backupfw.api import microversions, words
from backupfw.api.controllers.base import Controller, display_fields, id_of, resource_id
from backupfw.api.controllers.metadata import MetadataCalls
from backupfw.api.query import ListingRules
from backupfw.api.routing import Action, Call, Route
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


class SnapshotsController(Controller):
    """``/snapshots``."""

    def routes(self) -> Sequence[Route]:
        """Return the lines of the route table."""
        metadata = MetadataCalls(
            manager=self.managers.snapshots,
            policy=self.policy,
            collection="snapshots",
            missing=errors.SnapshotNotFound,
            read_rule="volume:get_snapshot_metadata",
            create_rule="volume:update_snapshot_metadata",
            write_rule="volume:update_snapshot_metadata",
            delete_rule="volume:delete_snapshot_metadata",
        )
        return [
            Route("GET", "/snapshots", self.index),
            Route("GET", "/snapshots/detail", self.index_detail),
            Route("POST", "/snapshots", self.create, status=202, schema=schemas.create),
            Route("GET", "/snapshots/{snapshot_id}", self.show),
            Route("PUT", "/snapshots/{snapshot_id}", self.update, schema=schemas.update),
            Route("DELETE", "/snapshots/{snapshot_id}", self.delete, status=202),
            Route(
                "POST",
                "/snapshots/{snapshot_id}/action",
                status=202,
                actions={
                    "os-reset_status": Action(self.reset_status, schemas.reset_status),
                    "os-force_delete": Action(self.force_delete, schemas.force_delete),
                    "os-update_snapshot_status": Action(self.update_status, schemas.update_status),
                },
            ),
            *metadata.routes(),
        ]

    def _get(self, call: Call, rule: str) -> Snapshot:
        snapshot = self.managers.snapshots.get(
            call.context, resource_id(call, "snapshot_id", errors.SnapshotNotFound)
        )
        self.enforce(call, rule, snapshot.project_id)
        return snapshot

    def index(self, call: Call) -> dict[str, Any]:
        """``GET /snapshots``."""
        return self._index(call, detail=False)

    def index_detail(self, call: Call) -> dict[str, Any]:
        """``GET /snapshots/detail``."""
        return self._index(call, detail=True)

    def _index(self, call: Call, *, detail: bool) -> dict[str, Any]:
        self.enforce(call, "volume:get_all_snapshots")
        view = functools.partial(views.detail, call) if detail else views.summary
        return self.page(call, self.managers.snapshots.list, "snapshots", LISTING, view, detail=detail)

    def show(self, call: Call) -> dict[str, Any]:
        """``GET /snapshots/{id}``."""
        return {"snapshot": views.detail(call, self._get(call, "volume:get_snapshot"))}

    def create(self, call: Call) -> dict[str, Any]:
        """``POST /snapshots``."""
        self.enforce(call, "volume:create_snapshot")
        wanted: Mapping[str, Any] = call.body["snapshot"]
        volume_id = id_of(wanted["volume_id"])
        if volume_id is None:
            raise errors.VolumeNotFound("None")
        self.enforce_on(call, "volume:create_snapshot", self.managers.volumes.project_of, volume_id)
        name, description = display_fields(wanted)
        snapshot = self.managers.snapshots.create(
            call.context,
            volume_id=volume_id,
            name=name,
            description=description,
            force=_force(call, wanted),
            metadata=wanted.get("metadata") or {},
        )
        return {"snapshot": views.summary(snapshot)}

    def update(self, call: Call) -> dict[str, Any]:
        """``PUT /snapshots/{id}``: what is not named stays."""
        snapshot = self._get(call, "volume:update_snapshot")
        name, description = display_fields(
            call.body["snapshot"], snapshot.display_name, snapshot.display_description
        )
        changed = self.managers.snapshots.update(
            call.context, snapshot.id, name=name, description=description
        )
        return {"snapshot": views.summary(changed)}

    def delete(self, call: Call) -> None:
        """``DELETE /snapshots/{id}``."""
        snapshot = self._get(call, "volume:delete_snapshot")
        self.managers.snapshots.delete(call.context, snapshot.id)

    def reset_status(self, call: Call) -> None:
        """Action ``os-reset_status``."""
        snapshot = self._get(call, "volume_extension:snapshot_admin_actions:reset_status")
        status = call.body["os-reset_status"]["status"].lower()
        self.managers.snapshots.reset_status(call.context, snapshot.id, status)

    def update_status(self, call: Call) -> None:
        """Action ``os-update_snapshot_status``: who makes or removes a snapshot says how far it is."""
        snapshot = self._get(call, "snapshot_extension:snapshot_actions:update_snapshot_status")
        wanted = call.body["os-update_snapshot_status"]
        progress = wanted.get("progress")
        self.managers.snapshots.update_status(
            call.context,
            snapshot.id,
            wanted["status"],
            None if progress is None else f"{progress.removesuffix('%')}%",
        )

    def force_delete(self, call: Call) -> None:
        """Action ``os-force_delete``."""
        snapshot = self._get(call, "volume_extension:snapshot_admin_actions:force_delete")
        self.managers.snapshots.force_delete(call.context, snapshot.id)


def _force(call: Call, wanted: Mapping[str, Any]) -> bool:
    """Whether a volume in use may be snapshotted."""
    if call.version < microversions.SNAPSHOT_IN_USE:
        return words.boolean(wanted.get("force", False), "force")
    if not words.boolean(wanted.get("force", True), "force"):
        raise errors.InvalidInput(f"force cannot be false from {microversions.SNAPSHOT_IN_USE} on.")
    return True

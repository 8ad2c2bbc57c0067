"""Backups: every call that the Block Storage backups API has."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from backupfw import errors
from backupfw.api import errors as api_errors
from backupfw.api import microversions, words
from backupfw.api.controllers.base import Controller, id_of, resource_id, stripped
from backupfw.api.query import ListingRules
from backupfw.api.routing import Action, Call, Route
from backupfw.api.schemas import backups as schemas
from backupfw.api.schemas import metadata as metadata_schemas
from backupfw.api.views import backups as views

if TYPE_CHECKING:
    from backupfw.manager.rows import Backup, ListedBackup

_COLUMNS = (
    "id",
    "created_at",
    "updated_at",
    "status",
    "size",
    "volume_id",
    "snapshot_id",
    "container",
    "availability_zone",
    "object_count",
    "data_timestamp",
    "display_name",
    "display_description",
    "fail_reason",
    "service",
    "host",
    "project_id",
    "user_id",
    "parent_id",
)
LISTING = ListingRules(
    sort_keys={**{column: column for column in _COLUMNS}, "name": "display_name"},
    filter_keys={"name": "display_name", "status": "status", "volume_id": "volume_id"},
    late_sort_keys={"name": microversions.BACKUP_SORT_NAME},
    resource="backup",
)


class BackupsController(Controller):
    """``/backups``."""

    def routes(self) -> Sequence[Route]:
        """Return the lines of the route table."""
        return [
            Route("GET", "/backups", self.index),
            Route("GET", "/backups/detail", self.index_detail),
            Route("POST", "/backups", self.create, status=202, schema=schemas.create),
            Route("POST", "/backups/import_record", self.import_record, 201, schemas.import_record),
            Route("GET", "/backups/{backup_id}", self.show),
            Route(
                "PUT",
                "/backups/{backup_id}",
                self.update,
                schema=schemas.update,
                since=microversions.BACKUP_UPDATE,
            ),
            Route("DELETE", "/backups/{backup_id}", self.delete, status=202),
            # Clients ask for these without a microversion.
            Route(
                "GET", "/backups/{backup_id}/metadata", self.show_metadata, since=microversions.BASE_VERSION
            ),
            Route(
                "POST",
                "/backups/{backup_id}/metadata",
                self.add_metadata,
                schema=metadata_schemas.whole,
                since=microversions.BASE_VERSION,
            ),
            Route("POST", "/backups/{backup_id}/restore", self.restore, 202, schemas.restore),
            Route("GET", "/backups/{backup_id}/export_record", self.export_record),
            Route("GET", "/backups/{backup_id}/progress", self.progress),
            Route(
                "POST", "/backups/{backup_id}/import_record", self.import_record, 201, schemas.import_record
            ),
            Route(
                "POST",
                "/backups/{backup_id}/action",
                status=202,
                actions={
                    "os-force_delete": Action(self.force_delete, schemas.force_delete),
                    "os-reset_status": Action(self.reset_status, schemas.reset_status),
                },
            ),
        ]

    def _get(self, call: Call, rule: str) -> Backup:
        # Existence before policy: to anyone but an administrator another project's backup is not there.
        backup = self.managers.backups.get(
            call.context, resource_id(call, "backup_id", errors.BackupNotFound)
        )
        self.enforce(call, rule, backup.project_id)
        return backup

    def index(self, call: Call) -> dict[str, Any]:
        """``GET /backups``."""
        return self._index(call, detail=False)

    def index_detail(self, call: Call) -> dict[str, Any]:
        """``GET /backups/detail``."""
        return self._index(call, detail=True)

    def _index(self, call: Call, *, detail: bool) -> dict[str, Any]:
        self.enforce(call, "backup:get_all")
        view = self._detail(call) if detail else functools.partial(views.summary, call)
        return self.page(call, self.managers.backups.list, "backups", LISTING, view, detail=detail)

    def _detail(self, call: Call) -> Callable[[Backup | ListedBackup], dict[str, Any]]:
        """Return the view of everything that this caller may see."""
        return views.details(
            call,
            lambda project: self.policy.allows(call.context, "backup:backup_project_attribute", project),
        )

    def show(self, call: Call) -> dict[str, Any]:
        """``GET /backups/{id}``."""
        return {"backup": self._detail(call)(self._get(call, "backup:get"))}

    def create(self, call: Call) -> dict[str, Any]:
        """``POST /backups``."""
        self.enforce(call, "backup:create")
        wanted = call.body["backup"]
        volume_id, snapshot_id = id_of(wanted["volume_id"]), id_of(wanted.get("snapshot_id"))
        self.enforce_on(call, "backup:create", self.managers.volumes.project_of, volume_id)
        self.enforce_on(call, "backup:create", self.managers.snapshots.project_of, snapshot_id)
        backup = self.managers.backups.create(
            call.context,
            volume_id=volume_id,
            name=stripped(wanted.get("name")),
            description=stripped(wanted.get("description")),
            container=wanted.get("container"),
            incremental=words.boolean(wanted.get("incremental", False), "incremental"),
            force=words.boolean(wanted.get("force", False), "force"),
            snapshot_id=snapshot_id,
            metadata=wanted.get("metadata"),
            availability_zone=wanted.get("availability_zone"),
        )
        return {"backup": views.summary(call, backup)}

    def update(self, call: Call) -> dict[str, Any]:
        """``PUT /backups/{id}``: what is not named stays; metadata is replaced as a whole."""
        backup = self._get(call, "backup:update")
        wanted = call.body["backup"]
        changes: dict[str, Any] = {
            field: stripped(wanted[field]) for field in ("name", "description") if field in wanted
        }
        if "metadata" in wanted:
            changes["metadata"] = wanted["metadata"]
        return {
            "backup": views.summary(call, self.managers.backups.update(call.context, backup.id, **changes))
        }

    def show_metadata(self, call: Call) -> dict[str, Any]:
        """``GET /backups/{id}/metadata``."""
        return {"metadata": dict(self._get(call, "backup:get").metadata)}

    def add_metadata(self, call: Call) -> dict[str, Any]:
        """``POST /backups/{id}/metadata``: what is not named stays."""
        backup = self._get(call, "backup:update")
        changed = self.managers.backups.merge_metadata(call.context, backup.id, call.body["metadata"])
        return {"metadata": dict(changed.metadata)}

    def delete(self, call: Call) -> None:
        """``DELETE /backups/{id}``."""
        backup = self._get(call, "backup:delete")
        self.managers.backups.delete(call.context, backup.id)

    def restore(self, call: Call) -> dict[str, Any]:
        """``POST /backups/{id}/restore``."""
        backup = self._get(call, "backup:restore")
        wanted = call.body["restore"]
        target = id_of(wanted.get("volume_id"))
        self.enforce_on(call, "backup:restore", self.managers.volumes.project_of, target)
        try:
            backup_id, volume_id, volume_name = self.managers.backups.restore(
                call.context, backup.id, volume_id=target, name=stripped(wanted.get("name"))
            )
        except errors.QuotaExceeded as error:
            # Other than those of what makes a volume, this refusal has no name before its text.
            raise api_errors.OverQuota(str(error)) from error
        return {
            # Clients insist on a text, also where a volume without a name is the target.
            "restore": {"backup_id": backup_id, "volume_id": volume_id, "volume_name": volume_name or ""}
        }

    def export_record(self, call: Call) -> dict[str, Any]:
        """``GET /backups/{id}/export_record``."""
        backup = self._get(call, "backup:export-import")
        service, url = self.managers.backups.export_record(call.context, backup.id)
        return {"backup-record": {"backup_service": service, "backup_url": url}}

    def progress(self, call: Call) -> dict[str, Any]:
        """``GET /backups/{id}/progress``: an addition of this service."""
        backup = self._get(call, "backup:get_progress")
        return {"progress": views.progress(self.managers.backups.progress(call.context, backup.id))}

    def import_record(self, call: Call) -> dict[str, Any]:
        """``POST /backups/import_record``, and the form with the id in the path."""
        self.enforce(call, "backup:backup-import")
        record = call.body["backup-record"]
        path_id = call.args.get("backup_id")
        backup = self.managers.backups.import_record(
            call.context,
            backup_service=record["backup_service"],
            backup_url=record["backup_url"],
            expect_id=None if path_id is None else path_id.lower(),
        )
        return {"backup": views.summary(call, backup)}

    def force_delete(self, call: Call) -> None:
        """Action ``os-force_delete``."""
        backup = self._get(call, "volume_extension:backup_admin_actions:force_delete")
        self.managers.backups.force_delete(call.context, backup.id)

    def reset_status(self, call: Call) -> None:
        """Action ``os-reset_status``."""
        backup = self._get(call, "volume_extension:backup_admin_actions:reset_status")
        self.managers.backups.reset_status(
            call.context, backup.id, call.body["os-reset_status"]["status"].lower()
        )

"""Backups: every call that the Block Storage backups API has."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from backupfw import errors
from backupfw.api import errors as api_errors
from backupfw.api import versions
from backupfw.api.controllers.base import Controller, checked_id, id_of, stripped
from backupfw.api.query import ListingRules, boolean
from backupfw.api.request import Request, Response, action, expose
from backupfw.api.resource import ActionsResource
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
    late_sort_keys={"name": versions.BACKUP_SORT_NAME},
    resource="backup",
)


class _Backups(Controller):
    """Base of the controllers of one backup and of all backups."""

    def _detail(self, req: Request) -> Callable[[Backup | ListedBackup], dict[str, Any]]:
        """Return the view of everything that this caller may see."""
        return views.details(
            req, lambda project: self.allows(req, "backup:backup_project_attribute", project)
        )

    def _import(self, req: Request, expect_id: str | None) -> dict[str, Any]:
        record = req.data["backup-record"]
        backup = self.managers.backups.import_record(
            req.context,
            backup_service=record["backup_service"],
            backup_url=record["backup_url"],
            expect_id=expect_id,
        )
        return {"backup": views.summary(req, backup)}


class BackupController(_Backups, ActionsResource):
    """``/backups/{backup_id}``."""

    backup: Backup

    def project_of(self, req: Request) -> str:
        """Find the backup; return its project."""
        backup_id = checked_id(self.parts[0], errors.BackupNotFound)
        self.backup = self.managers.backups.get(req.context, backup_id)
        return self.backup.project_id

    @expose("GET", rule="backup:get")
    def show(self, req: Request, resp: Response) -> dict[str, Any]:
        """``GET /backups/{id}``."""
        return {"backup": self._detail(req)(self.backup)}

    @expose("PUT", rule="backup:update", takes=schemas.update, since=versions.BACKUP_UPDATE)
    def update(self, req: Request, resp: Response) -> dict[str, Any]:
        """``PUT /backups/{id}``: what is not named stays; metadata is replaced as a whole."""
        wanted = req.data["backup"]
        changes: dict[str, Any] = {
            field: stripped(wanted[field]) for field in ("name", "description") if field in wanted
        }
        if "metadata" in wanted:
            changes["metadata"] = wanted["metadata"]
        return {
            "backup": views.summary(req, self.managers.backups.update(req.context, self.backup.id, **changes))
        }

    @expose("DELETE", rule="backup:delete", status=202)
    def delete(self, req: Request, resp: Response) -> None:
        """``DELETE /backups/{id}``."""
        self.managers.backups.delete(req.context, self.backup.id)

    # Clients ask for metadata without a microversion.
    @expose("GET", "metadata", rule="backup:get", since=versions.BASE_VERSION)
    def show_metadata(self, req: Request, resp: Response) -> dict[str, Any]:
        """``GET /backups/{id}/metadata``."""
        return {"metadata": dict(self.backup.metadata)}

    @expose(
        "POST",
        "metadata",
        rule="backup:update",
        takes=metadata_schemas.whole,
        since=versions.BASE_VERSION,
    )
    def add_metadata(self, req: Request, resp: Response) -> dict[str, Any]:
        """``POST /backups/{id}/metadata``: what is not named stays."""
        changed = self.managers.backups.merge_metadata(req.context, self.backup.id, req.data["metadata"])
        return {"metadata": dict(changed.metadata)}

    @expose("POST", "restore", rule="backup:restore", takes=schemas.restore, status=202)
    def restore(self, req: Request, resp: Response) -> dict[str, Any]:
        """``POST /backups/{id}/restore``."""
        wanted = req.data["restore"]
        target = id_of(wanted.get("volume_id"))
        self.enforce_on(req, "backup:restore", self.managers.backups.project_of_volume, target)
        try:
            backup_id, volume_id, volume_name = self.managers.backups.restore(
                req.context, self.backup.id, volume_id=target, name=stripped(wanted.get("name"))
            )
        except errors.QuotaExceeded as error:
            # Unlike other refusals by quotas, this one has no name before its text.
            raise api_errors.OverQuota(str(error)) from error
        return {
            # Clients need a text, also if the volume has no name.
            "restore": {"backup_id": backup_id, "volume_id": volume_id, "volume_name": volume_name or ""}
        }

    @expose("GET", "export_record", rule="backup:export-import")
    def export_record(self, req: Request, resp: Response) -> dict[str, Any]:
        """``GET /backups/{id}/export_record``."""
        service, url = self.managers.backups.export_record(req.context, self.backup.id)
        return {"backup-record": {"backup_service": service, "backup_url": url}}

    @expose("GET", "progress", rule="backup:get_progress")
    def progress(self, req: Request, resp: Response) -> dict[str, Any]:
        """``GET /backups/{id}/progress``: an addition of this service."""
        return {"progress": views.progress(self.managers.backups.progress(req.context, self.backup.id))}

    @expose("POST", "import_record", takes=schemas.import_record, status=201)
    def import_record(self, req: Request, resp: Response) -> dict[str, Any]:
        """``POST /backups/{id}/import_record``: the backup does not exist yet, so it has no project."""
        self.enforce(req, "backup:backup-import")
        return self._import(req, self.parts[0].lower())

    @action("os-backupfw-cancel", rule="backup:cancel", takes=schemas.cancel)
    def cancel(self, req: Request, resp: Response) -> None:
        """Action ``os-backupfw-cancel``: an addition of this service."""
        only_verification = req.data["os-backupfw-cancel"].get("verification", False)
        self.managers.backups.cancel(req.context, self.backup.id, verification=only_verification)

    @action("os-backupfw-verify", rule="backup:verify", takes=schemas.verify)
    def verify(self, req: Request, resp: Response) -> None:
        """Action ``os-backupfw-verify``: an addition of this service."""
        self.managers.backups.verify(req.context, self.backup.id)

    @expose("GET", "copies", rule="backup:get_copies")
    def copies(self, req: Request, resp: Response) -> dict[str, Any]:
        """``GET /backups/{id}/copies``: an addition of this service."""
        found = self.managers.backups.copies(req.context, self.backup.id)
        return {"copies": [views.copy(one) for one in found]}

    @action("os-backupfw-copy", rule="backup:copy", takes=schemas.copy)
    def copy(self, req: Request, resp: Response) -> None:
        """Action ``os-backupfw-copy``: an addition of this service."""
        self.managers.backups.copy(req.context, self.backup.id, req.data["os-backupfw-copy"]["store"])

    @action("os-backupfw-remove_copy", rule="backup:copy", takes=schemas.remove_copy)
    def remove_copy(self, req: Request, resp: Response) -> None:
        """Action ``os-backupfw-remove_copy``: an addition of this service."""
        store = req.data["os-backupfw-remove_copy"]["store"]
        self.managers.backups.remove_copy(req.context, self.backup.id, store)

    @action(
        "os-force_delete",
        rule="volume_extension:backup_admin_actions:force_delete",
        takes=schemas.force_delete,
    )
    def force_delete(self, req: Request, resp: Response) -> None:
        """Action ``os-force_delete``."""
        self.managers.backups.force_delete(req.context, self.backup.id)

    @action(
        "os-reset_status",
        rule="volume_extension:backup_admin_actions:reset_status",
        takes=schemas.reset_status,
    )
    def reset_status(self, req: Request, resp: Response) -> None:
        """Action ``os-reset_status``."""
        self.managers.backups.reset_status(
            req.context, self.backup.id, req.data["os-reset_status"]["status"].lower()
        )


class BackupsController(_Backups):
    """``/backups``."""

    item = ("backup_id", BackupController)

    @expose("GET", rule="backup:get_all")
    @expose("GET", "detail", rule="backup:get_all")
    def index(self, req: Request, resp: Response) -> dict[str, Any]:
        """``GET /backups`` and ``GET /backups/detail``."""
        return self.page(
            req,
            self.managers.backups.list,
            "backups",
            LISTING,
            self._detail(req),
            functools.partial(views.summary, req),
        )

    @expose("POST", rule="backup:create", takes=schemas.create, status=202)
    def create(self, req: Request, resp: Response) -> dict[str, Any]:
        """``POST /backups``."""
        wanted = req.data["backup"]
        volume_id, snapshot_id = id_of(wanted["volume_id"]), id_of(wanted.get("snapshot_id"))
        project_of = functools.partial(self.managers.backups.project_of_volume, snapshot_id=snapshot_id)
        self.enforce_on(req, "backup:create", project_of, volume_id)
        self.enforce_on(req, "backup:create", self.managers.snapshots.project_of, snapshot_id)
        backup = self.managers.backups.create(
            req.context,
            volume_id=volume_id,
            name=stripped(wanted.get("name")),
            description=stripped(wanted.get("description")),
            container=wanted.get("container"),
            incremental=boolean(wanted.get("incremental", False), "incremental"),
            force=boolean(wanted.get("force", False), "force"),
            snapshot_id=snapshot_id,
            metadata=wanted.get("metadata"),
            availability_zone=wanted.get("availability_zone"),
        )
        return {"backup": views.summary(req, backup)}

    @expose("POST", "import_record", rule="backup:backup-import", takes=schemas.import_record, status=201)
    def import_record(self, req: Request, resp: Response) -> dict[str, Any]:
        """``POST /backups/import_record``."""
        return self._import(req, None)

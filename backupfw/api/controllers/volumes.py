"""Volumes: the calls that clients need before, during and after a backup."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from backupfw import errors
from backupfw.api import errors as api_errors
from backupfw.api import versions
from backupfw.api.controllers.base import Controller, checked_id, display_fields, id_of
from backupfw.api.controllers.metadata import metadata_of
from backupfw.api.query import ListingRules, boolean
from backupfw.api.request import Request, Response, action, expose
from backupfw.api.resource import ActionsResource
from backupfw.api.schemas import volumes as schemas
from backupfw.api.views import volumes as views

if TYPE_CHECKING:
    from backupfw.manager.rows import Volume

_COLUMNS = (
    "id",
    "created_at",
    "updated_at",
    "status",
    "size",
    "display_name",
    "display_description",
    "availability_zone",
    "volume_type",
    "snapshot_id",
    "source_volid",
    "bootable",
    "project_id",
    "user_id",
)
LISTING = ListingRules(
    sort_keys={**{column: column for column in _COLUMNS}, "name": "display_name"},
    filter_keys={
        "name": "display_name",
        "display_name": "display_name",
        "status": "status",
        "bootable": "bootable",
        "availability_zone": "availability_zone",
        "metadata": "metadata",
    },
    resource="volume",
)


class _Volumes(Controller):
    """Base of the controllers of one volume and of all volumes."""

    def _detail(self, req: Request) -> Callable[[Volume], dict[str, Any]]:
        """Return the view of everything that this caller may see; a page asks once for each project."""

        @functools.cache
        def shows_image(project_id: str) -> bool:
            return self.allows(req, "volume_extension:volume_image_metadata:show", project_id)

        return lambda volume: views.detail(req, volume, shows_image)


class VolumeController(_Volumes, ActionsResource):
    """``/volumes/{volume_id}``."""

    children = {
        "metadata": metadata_of(
            lambda managers: managers.volumes,
            errors.VolumeNotFound,
            read_rule="volume:get_volume_metadata",
            create_rule="volume:create_volume_metadata",
            write_rule="volume:update_volume_metadata",
            delete_rule="volume:delete_volume_metadata",
        )
    }
    volume: Volume

    def project_of(self, req: Request) -> str:
        """Find the volume; return its project."""
        volume_id = checked_id(self.parts[0], errors.VolumeNotFound)
        self.volume = self.managers.volumes.get(req.context, volume_id)
        return self.volume.project_id

    @expose("GET", rule="volume:get")
    def show(self, req: Request, resp: Response) -> dict[str, Any]:
        """``GET /volumes/{id}``."""
        return {"volume": self._detail(req)(self.volume)}

    @expose("PUT", rule="volume:update", takes=schemas.update)
    def update(self, req: Request, resp: Response) -> dict[str, Any]:
        """``PUT /volumes/{id}``: what is not named stays."""
        wanted: Mapping[str, Any] = req.data["volume"]
        name, description = display_fields(wanted, self.volume.display_name, self.volume.display_description)
        changed = self.managers.volumes.update(
            req.context,
            self.volume.id,
            name=name,
            description=description,
            metadata=wanted.get("metadata"),
        )
        return {"volume": views.updated(req, changed)}

    @expose("DELETE", rule="volume:delete", status=202)
    def delete(self, req: Request, resp: Response) -> None:
        """``DELETE /volumes/{id}``; ``?cascade`` deletes its snapshots; ``?force`` ignores the status."""
        cascade = req.query.flag("cascade")
        if req.version >= versions.VOLUME_DELETE_FORCE and req.query.flag("force"):
            self.enforce(req, "volume:force_delete", self.volume.project_id)
            self.managers.volumes.force_delete(req.context, self.volume.id, cascade=cascade)
        else:
            self.managers.volumes.delete(req.context, self.volume.id, cascade=cascade)

    @action("os-attach", rule="volume_extension:volume_actions:attach", takes=schemas.attach)
    def attach(self, req: Request, resp: Response) -> None:
        """Action ``os-attach``: the caller reports that the volume is in use."""
        wanted = req.data["os-attach"]
        server = wanted.get("instance_uuid")
        if not server and not wanted.get("host_name"):
            raise errors.InvalidInput("instance_uuid or host_name must be given.")
        self.managers.volumes.attachments.attach(
            req.context,
            self.volume.id,
            instance_uuid=id_of(server),
            host_name=wanted.get("host_name"),
            mountpoint=wanted["mountpoint"],
            mode=wanted.get("mode", "rw"),
        )

    @action("os-detach", rule="volume_extension:volume_actions:detach", takes=schemas.detach)
    def detach(self, req: Request, resp: Response) -> None:
        """Action ``os-detach``."""
        wanted = req.data["os-detach"] or {}
        self.managers.volumes.attachments.detach(
            req.context, self.volume.id, attachment_id=wanted.get("attachment_id")
        )

    @action("os-extend", rule="volume:extend", takes=schemas.extend)
    def extend(self, req: Request, resp: Response) -> None:
        """Action ``os-extend``."""
        self.managers.volumes.extend(
            req.context, self.volume.id, new_size=int(req.data["os-extend"]["new_size"])
        )

    @action("os-retype", rule="volume:retype", takes=schemas.retype)
    def retype(self, req: Request, resp: Response) -> None:
        """Action ``os-retype``: the data stays where it is, whatever the migration policy."""
        self.managers.volumes.retype(req.context, self.volume.id, req.data["os-retype"]["new_type"])

    @action(
        "os-set_bootable",
        rule="volume_extension:volume_actions:set_bootable",
        takes=schemas.set_bootable,
        status=200,
    )
    def set_bootable(self, req: Request, resp: Response) -> dict[str, Any]:
        """Action ``os-set_bootable``."""
        bootable = boolean(req.data["os-set_bootable"]["bootable"], "bootable")
        self.managers.volumes.set_bootable(req.context, self.volume.id, bootable)
        return {}

    @action(
        "os-set_image_metadata",
        rule="volume_extension:volume_image_metadata:set",
        takes=schemas.set_image_metadata,
        status=200,
    )
    def set_image_metadata(self, req: Request, resp: Response) -> dict[str, Any]:
        """Action ``os-set_image_metadata``: what is not named stays."""
        wanted = req.data["os-set_image_metadata"]["metadata"]
        return {
            "metadata": dict(self.managers.volumes.image_metadata.set(req.context, self.volume.id, wanted))
        }

    @action(
        "os-show_image_metadata",
        rule="volume_extension:volume_image_metadata:show",
        takes=schemas.show_image_metadata,
        status=200,
    )
    def show_image_metadata(self, req: Request, resp: Response) -> dict[str, Any]:
        """Action ``os-show_image_metadata``."""
        return {"metadata": dict(self.volume.image_metadata)}

    @action(
        "os-unset_image_metadata",
        rule="volume_extension:volume_image_metadata:remove",
        takes=schemas.unset_image_metadata,
        status=200,
    )
    def unset_image_metadata(self, req: Request, resp: Response) -> dict[str, Any]:
        """Action ``os-unset_image_metadata``."""
        self.managers.volumes.image_metadata.delete_key(
            req.context, self.volume.id, req.data["os-unset_image_metadata"]["key"]
        )
        return {}

    @action(
        "os-reset_status",
        rule="volume_extension:volume_admin_actions:reset_status",
        takes=schemas.reset_status,
    )
    def reset_status(self, req: Request, resp: Response) -> None:
        """Action ``os-reset_status``; attach status and migration status cannot be set."""
        status = req.data["os-reset_status"].get("status")
        if status is None:
            raise errors.InvalidInput("only status can be reset.")
        self.managers.volumes.reset_status(req.context, self.volume.id, status.lower())

    @action(
        "os-force_delete",
        rule="volume_extension:volume_admin_actions:force_delete",
        takes=schemas.force_delete,
    )
    def force_delete(self, req: Request, resp: Response) -> None:
        """Action ``os-force_delete``."""
        self.managers.volumes.force_delete(req.context, self.volume.id)


class VolumesController(_Volumes):
    """``/volumes``."""

    item = ("volume_id", VolumeController)

    @expose("GET", rule="volume:get_all")
    @expose("GET", "detail", rule="volume:get_all")
    def index(self, req: Request, resp: Response) -> dict[str, Any]:
        """``GET /volumes`` and ``GET /volumes/detail``."""
        return self.page(
            req,
            self.managers.volumes.list,
            "volumes",
            LISTING,
            self._detail(req),
            functools.partial(views.summary, req),
        )

    @expose("POST", rule="volume:create", takes=schemas.create, status=202)
    def create(self, req: Request, resp: Response) -> dict[str, Any]:
        """``POST /volumes``."""
        wanted: Mapping[str, Any] = req.data["volume"]
        if wanted.get("imageRef"):
            raise api_errors.BadRequest("Invalid image identifier or unable to access requested image.")
        if wanted.get("consistencygroup_id"):
            raise errors.InvalidInput("consistency groups are not supported.")
        if req.version >= versions.VOLUME_GROUP and wanted.get("group_id"):
            raise errors.InvalidInput("groups are not supported.")
        if boolean(wanted.get("multiattach") or False, "multiattach"):
            raise errors.InvalidInput("multiattach volumes are not supported.")
        name, description = display_fields(wanted)
        size = wanted.get("size")
        backup_id = None
        if req.version >= versions.VOLUME_FROM_BACKUP and wanted.get("backup_id"):
            # Making a volume from a backup reads the backup, like a restore.
            backup_id = id_of(wanted["backup_id"])
            self.enforce(req, "backup:restore", self.managers.backups.get(req.context, backup_id).project_id)
        snapshot_id, source_volid = id_of(wanted.get("snapshot_id")), id_of(wanted.get("source_volid"))
        self.enforce_on(req, "volume:create", self.managers.snapshots.project_of, snapshot_id)
        self.enforce_on(req, "volume:create", self.managers.volumes.project_of, source_volid)
        volume = self.managers.volumes.create(
            req.context,
            size=None if size is None else int(size),
            name=name,
            description=description,
            snapshot_id=snapshot_id,
            source_volid=source_volid,
            metadata=wanted.get("metadata") or {},
            volume_type=wanted.get("volume_type") or None,
            availability_zone=wanted.get("availability_zone"),
            backup_id=backup_id,
        )
        return {"volume": views.created(req, volume)}

    @expose("GET", "summary", rule="volume:get_all", since=versions.VOLUME_SUMMARY)
    def summary(self, req: Request, resp: Response) -> dict[str, Any]:
        """``GET /volumes/summary``: number and size of all volumes that a listing would show."""
        wanted = self.listing(req, LISTING)
        totals = self.managers.volumes.totals(
            req.context, filters=wanted.filters, all_tenants=wanted.all_tenants
        )
        body: dict[str, Any] = {"total_count": totals.count, "total_size": totals.size}
        if req.version >= versions.VOLUME_SUMMARY_METADATA:
            body["metadata"] = {key: list(values) for key, values in totals.metadata.items()}
        return {"volume-summary": body}

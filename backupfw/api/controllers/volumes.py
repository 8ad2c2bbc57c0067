"""Volumes: what clients need of them before, during and after a backup."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from backupfw import errors
from backupfw.api import errors as api_errors
from backupfw.api import microversions, words
from backupfw.api.controllers.base import Controller, display_fields, id_of, resource_id
from backupfw.api.controllers.metadata import MetadataCalls
from backupfw.api.query import ListingRules
from backupfw.api.routing import Action, Call, Route
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


class VolumesController(Controller):
    """``/volumes``."""

    def routes(self) -> Sequence[Route]:
        """Return the lines of the route table."""
        metadata = MetadataCalls(
            manager=self.managers.volumes,
            policy=self.policy,
            collection="volumes",
            missing=errors.VolumeNotFound,
            read_rule="volume:get_volume_metadata",
            create_rule="volume:create_volume_metadata",
            write_rule="volume:update_volume_metadata",
            delete_rule="volume:delete_volume_metadata",
        )
        return [
            Route("GET", "/volumes", self.index),
            Route("GET", "/volumes/detail", self.index_detail),
            Route("POST", "/volumes", self.create, status=202, schema=schemas.create),
            Route("GET", "/volumes/summary", self.summary, since=microversions.VOLUME_SUMMARY),
            Route("GET", "/volumes/{volume_id}", self.show),
            Route("PUT", "/volumes/{volume_id}", self.update, schema=schemas.update),
            Route("DELETE", "/volumes/{volume_id}", self.delete, status=202),
            Route(
                "POST",
                "/volumes/{volume_id}/action",
                status=202,
                actions={
                    "os-attach": Action(self.attach, schemas.attach),
                    "os-detach": Action(self.detach, schemas.detach),
                    "os-extend": Action(self.extend, schemas.extend),
                    "os-retype": Action(self.retype, schemas.retype),
                    "os-set_bootable": Action(self.set_bootable, schemas.set_bootable, status=200),
                    "os-set_image_metadata": Action(
                        self.set_image_metadata, schemas.set_image_metadata, status=200
                    ),
                    "os-show_image_metadata": Action(
                        self.show_image_metadata, schemas.show_image_metadata, status=200
                    ),
                    "os-unset_image_metadata": Action(
                        self.unset_image_metadata, schemas.unset_image_metadata, status=200
                    ),
                    "os-reset_status": Action(self.reset_status, schemas.reset_status),
                    "os-force_delete": Action(self.force_delete, schemas.force_delete),
                },
            ),
            *metadata.routes(),
        ]

    def _get(self, call: Call, rule: str) -> Volume:
        volume = self.managers.volumes.get(
            call.context, resource_id(call, "volume_id", errors.VolumeNotFound)
        )
        self.enforce(call, rule, volume.project_id)
        return volume

    def index(self, call: Call) -> dict[str, Any]:
        """``GET /volumes``."""
        return self._index(call, detail=False)

    def index_detail(self, call: Call) -> dict[str, Any]:
        """``GET /volumes/detail``."""
        return self._index(call, detail=True)

    def _index(self, call: Call, *, detail: bool) -> dict[str, Any]:
        self.enforce(call, "volume:get_all")
        view = self._detail(call) if detail else functools.partial(views.summary, call)
        return self.page(call, self.managers.volumes.list, "volumes", LISTING, view, detail=detail)

    def _detail(self, call: Call) -> Callable[[Volume], dict[str, Any]]:
        """Return the view of everything that this caller may see; a page asks once for each project."""

        @functools.cache
        def shows_image(project_id: str) -> bool:
            return self.policy.allows(call.context, "volume_extension:volume_image_metadata:show", project_id)

        return lambda volume: views.detail(call, volume, shows_image)

    def summary(self, call: Call) -> dict[str, Any]:
        """``GET /volumes/summary``: of all volumes that a listing would show."""
        self.enforce(call, "volume:get_all")
        wanted = self.listing(call, LISTING)
        totals = self.managers.volumes.totals(
            call.context, filters=wanted.filters, all_tenants=wanted.all_tenants
        )
        body: dict[str, Any] = {"total_count": totals.count, "total_size": totals.size}
        if call.version >= microversions.VOLUME_SUMMARY_METADATA:
            body["metadata"] = {key: list(values) for key, values in totals.metadata.items()}
        return {"volume-summary": body}

    def show(self, call: Call) -> dict[str, Any]:
        """``GET /volumes/{id}``."""
        return {"volume": self._detail(call)(self._get(call, "volume:get"))}

    def create(self, call: Call) -> dict[str, Any]:
        """``POST /volumes``."""
        self.enforce(call, "volume:create")
        wanted: Mapping[str, Any] = call.body["volume"]
        if wanted.get("imageRef"):
            raise api_errors.BadRequest("Invalid image identifier or unable to access requested image.")
        if wanted.get("consistencygroup_id"):
            raise errors.InvalidInput("consistency groups are not supported.")
        if call.version >= microversions.VOLUME_GROUP and wanted.get("group_id"):
            raise errors.InvalidInput("groups are not supported.")
        if words.boolean(wanted.get("multiattach") or False, "multiattach"):
            raise errors.InvalidInput("multiattach volumes are not supported.")
        name, description = display_fields(wanted)
        size = wanted.get("size")
        backup_id = None
        if call.version >= microversions.VOLUME_FROM_BACKUP and wanted.get("backup_id"):
            # It reads the backup as a restore does.
            backup_id = id_of(wanted["backup_id"])
            self.enforce(
                call, "backup:restore", self.managers.backups.get(call.context, backup_id).project_id
            )
        snapshot_id, source_volid = id_of(wanted.get("snapshot_id")), id_of(wanted.get("source_volid"))
        self.enforce_on(call, "volume:create", self.managers.snapshots.project_of, snapshot_id)
        self.enforce_on(call, "volume:create", self.managers.volumes.project_of, source_volid)
        volume = self.managers.volumes.create(
            call.context,
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
        return {"volume": views.created(call, volume)}

    def update(self, call: Call) -> dict[str, Any]:
        """``PUT /volumes/{id}``: what is not named stays."""
        volume = self._get(call, "volume:update")
        wanted: Mapping[str, Any] = call.body["volume"]
        name, description = display_fields(wanted, volume.display_name, volume.display_description)
        changed = self.managers.volumes.update(
            call.context,
            volume.id,
            name=name,
            description=description,
            metadata=wanted.get("metadata"),
        )
        return {"volume": views.updated(call, changed)}

    def delete(self, call: Call) -> None:
        """``DELETE /volumes/{id}``; ``?cascade`` takes its snapshots along, ``?force`` takes any status."""
        volume = self._get(call, "volume:delete")
        cascade = call.query.flag("cascade")
        if call.version >= microversions.VOLUME_DELETE_FORCE and call.query.flag("force"):
            self.enforce(call, "volume:force_delete", volume.project_id)
            self.managers.volumes.force_delete(call.context, volume.id, cascade=cascade)
        else:
            self.managers.volumes.delete(call.context, volume.id, cascade=cascade)

    def attach(self, call: Call) -> None:
        """Action ``os-attach``: somebody says that they use the volume."""
        volume = self._get(call, "volume_extension:volume_actions:attach")
        wanted = call.body["os-attach"]
        server = wanted.get("instance_uuid")
        if not server and not wanted.get("host_name"):
            raise errors.InvalidInput("instance_uuid or host_name must be given.")
        self.managers.volumes.attach(
            call.context,
            volume.id,
            instance_uuid=id_of(server),
            host_name=wanted.get("host_name"),
            mountpoint=wanted["mountpoint"],
            mode=wanted.get("mode", "rw"),
        )

    def detach(self, call: Call) -> None:
        """Action ``os-detach``."""
        volume = self._get(call, "volume_extension:volume_actions:detach")
        wanted = call.body["os-detach"] or {}
        self.managers.volumes.detach(call.context, volume.id, attachment_id=wanted.get("attachment_id"))

    def extend(self, call: Call) -> None:
        """Action ``os-extend``."""
        volume = self._get(call, "volume:extend")
        self.managers.volumes.extend(
            call.context, volume.id, new_size=int(call.body["os-extend"]["new_size"])
        )

    def retype(self, call: Call) -> None:
        """Action ``os-retype``: the data stays where it is, whatever the policy of migration says."""
        volume = self._get(call, "volume:retype")
        self.managers.volumes.retype(call.context, volume.id, call.body["os-retype"]["new_type"])

    def set_bootable(self, call: Call) -> dict[str, Any]:
        """Action ``os-set_bootable``."""
        volume = self._get(call, "volume_extension:volume_actions:set_bootable")
        bootable = words.boolean(call.body["os-set_bootable"]["bootable"], "bootable")
        self.managers.volumes.set_bootable(call.context, volume.id, bootable)
        return {}

    def set_image_metadata(self, call: Call) -> dict[str, Any]:
        """Action ``os-set_image_metadata``: what is not named stays."""
        volume = self._get(call, "volume_extension:volume_image_metadata:set")
        wanted = call.body["os-set_image_metadata"]["metadata"]
        return {"metadata": dict(self.managers.volumes.set_image_metadata(call.context, volume.id, wanted))}

    def show_image_metadata(self, call: Call) -> dict[str, Any]:
        """Action ``os-show_image_metadata``."""
        volume = self._get(call, "volume_extension:volume_image_metadata:show")
        return {"metadata": dict(volume.image_metadata)}

    def unset_image_metadata(self, call: Call) -> dict[str, Any]:
        """Action ``os-unset_image_metadata``."""
        volume = self._get(call, "volume_extension:volume_image_metadata:remove")
        self.managers.volumes.unset_image_metadata(
            call.context, volume.id, call.body["os-unset_image_metadata"]["key"]
        )
        return {}

    def reset_status(self, call: Call) -> None:
        """Action ``os-reset_status``; attach and migration status follow from the rest here."""
        volume = self._get(call, "volume_extension:volume_admin_actions:reset_status")
        status = call.body["os-reset_status"].get("status")
        if status is None:
            raise errors.InvalidInput("only status can be reset.")
        self.managers.volumes.reset_status(call.context, volume.id, status.lower())

    def force_delete(self, call: Call) -> None:
        """Action ``os-force_delete``."""
        volume = self._get(call, "volume_extension:volume_admin_actions:force_delete")
        self.managers.volumes.force_delete(call.context, volume.id)

"""Small answers that clients need: zones, extensions, filters, and empty lists."""

from __future__ import annotations

from typing import Any

from backupfw import errors
from backupfw.api import versions
from backupfw.api.controllers.base import Controller
from backupfw.api.request import Request, Response, expose

#: Extensions of the first volume API: (alias, name, description).
_EXTENSIONS = (
    ("backups", "Backups", "Backups of volumes."),
    ("os-admin-actions", "AdminActions", "Status reset and force delete."),
    ("os-availability-zone", "AvailabilityZones", "Availability zones."),
    ("os-extended-snapshot-attributes", "ExtendedSnapshotAttributes", "Progress and project of snapshots."),
    ("os-hosts", "Hosts", "Hosts, and what is on them."),
    ("os-quota-class-sets", "QuotaClasses", "Limits of quota classes."),
    ("os-quota-sets", "Quotas", "Limits of projects."),
    ("os-services", "Services", "Workers and their state."),
    ("os-used-limits", "UsedLimits", "Usage beside the limits."),
    ("os-types-extra-specs", "TypesExtraSpecs", "Extra specs of volume types."),
    ("os-types-manage", "TypesManage", "Volume types are made and changed."),
    ("os-vol-host-attr", "VolumeHostAttribute", "Host of volumes, for administrators."),
    ("os-vol-image-meta", "VolumeImageMetadata", "What is known of a volume's image."),
    ("os-vol-tenant-attr", "VolumeTenantAttribute", "Project of volumes."),
    ("os-volume-actions", "VolumeActions", "Attach, detach and extend."),
    ("os-volume-transfer", "VolumeTransfer", "Volumes are offered to other projects."),
    ("os-volume-type-access", "VolumeTypeAccess", "Private volume types."),
)


def _extension(alias: str, name: str, description: str) -> dict[str, Any]:
    return {
        "alias": alias,
        "name": name,
        "description": description,
        "updated": "2026-11-23T00:00:00+00:00",
        "links": [],
    }


class ZonesController(Controller):
    """``/os-availability-zone``."""

    @expose("GET", rule="volume:availability_zone_list")
    def index(self, req: Request, resp: Response) -> dict[str, Any]:
        """``GET /os-availability-zone``."""
        return {
            "availabilityZoneInfo": [
                {"zoneName": self.settings.availability_zone, "zoneState": {"available": True}}
            ]
        }


class ExtensionController(Controller):
    """``/extensions/{alias}``."""

    @expose("GET", rule="volume:get_extensions")
    def show(self, req: Request, resp: Response) -> dict[str, Any]:
        """``GET /extensions/{alias}``."""
        for entry in _EXTENSIONS:
            if entry[0] == self.parts[0]:
                return {"extension": _extension(*entry)}
        raise ExtensionNotFound(self.parts[0])


class ExtensionsController(Controller):
    """``/extensions``."""

    item = ("alias", ExtensionController)

    @expose("GET", rule="volume:get_extensions")
    def index(self, req: Request, resp: Response) -> dict[str, Any]:
        """``GET /extensions``."""
        return {"extensions": [_extension(*entry) for entry in _EXTENSIONS]}


class ResourceFiltersController(Controller):
    """``/resource_filters``."""

    since = versions.RESOURCE_FILTER_CONFIG

    @expose("GET")
    def index(self, req: Request, resp: Response) -> dict[str, Any]:
        """``GET /resource_filters``; ``?resource`` chooses.  Everybody may know them."""
        wanted = req.query.get("resource")
        return {
            "resource_filters": [
                {"resource": resource, "filters": list(filters)}
                for resource, filters in self.settings.resource_filters.items()
                if not wanted or resource == wanted
            ]
        }


class QosSpecsController(Controller):
    """``/qos-specs``: Horizon shows neither volumes nor backups where this is a 404."""

    @expose("GET", rule="volume_extension:qos_specs_manage:get_all")
    def index(self, req: Request, resp: Response) -> dict[str, Any]:
        """``GET /qos-specs``: the list is empty, whatever the filters."""
        return {"qos_specs": []}


class GroupsController(Controller):
    """``/groups``: an empty list, for the same reason."""

    since = versions.VOLUME_GROUP

    @expose("GET", rule="group:get_all")
    @expose("GET", "detail", rule="group:get_all")
    def index(self, req: Request, resp: Response) -> dict[str, Any]:
        """``GET /groups`` and ``GET /groups/detail``."""
        return {"groups": []}


class GroupSnapshotsController(Controller):
    """``/group_snapshots``: an empty list, for the same reason."""

    since = versions.SNAPSHOT_GROUP

    @expose("GET", rule="group:get_all_group_snapshots")
    @expose("GET", "detail", rule="group:get_all_group_snapshots")
    def index(self, req: Request, resp: Response) -> dict[str, Any]:
        """``GET /group_snapshots`` and ``GET /group_snapshots/detail``."""
        return {"group_snapshots": []}


class ExtensionNotFound(errors.NotFound):
    """No such extension."""

    noun = "Extension"

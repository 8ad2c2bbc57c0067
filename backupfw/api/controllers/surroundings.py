"""Small answers that clients ask for on their way: zones, extensions, filters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from backupfw import errors
from backupfw.api import microversions
from backupfw.api.controllers.base import Controller
from backupfw.api.routing import Call, Route

#: What is served beyond the first volume API: (alias, name, description).
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


class SurroundingsController(Controller):
    """``/os-availability-zone``, ``/extensions`` and ``/resource_filters``."""

    def routes(self) -> Sequence[Route]:
        """Return the lines of the route table."""
        return [
            Route("GET", "/os-availability-zone", self.zones),
            Route("GET", "/extensions", self.extensions),
            Route("GET", "/extensions/{alias}", self.show_extension),
            Route(
                "GET",
                "/resource_filters",
                self.resource_filters,
                since=microversions.RESOURCE_FILTER_CONFIG,
            ),
        ]

    def zones(self, call: Call) -> dict[str, Any]:
        """``GET /os-availability-zone``."""
        self.enforce(call, "volume:availability_zone_list")
        return {
            "availabilityZoneInfo": [
                {"zoneName": self.settings.availability_zone, "zoneState": {"available": True}}
            ]
        }

    def extensions(self, call: Call) -> dict[str, Any]:
        """``GET /extensions``."""
        self.enforce(call, "volume:get_extensions")
        return {"extensions": [_extension(*entry) for entry in _EXTENSIONS]}

    def show_extension(self, call: Call) -> dict[str, Any]:
        """``GET /extensions/{alias}``."""
        self.enforce(call, "volume:get_extensions")
        for entry in _EXTENSIONS:
            if entry[0] == call.args["alias"]:
                return {"extension": _extension(*entry)}
        raise ExtensionNotFound(call.args["alias"])

    def resource_filters(self, call: Call) -> dict[str, Any]:
        """``GET /resource_filters``; ``?resource`` chooses.  Everybody may know them."""
        wanted = call.query.get("resource")
        return {
            "resource_filters": [
                {"resource": resource, "filters": list(filters)}
                for resource, filters in self.settings.resource_filters.items()
                if not wanted or resource == wanted
            ]
        }


class ExtensionNotFound(errors.NotFound):
    """No such extension."""

    noun = "Extension"

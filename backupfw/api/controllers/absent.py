"""Listings of what this service has none of, for clients that look there on their way to something else."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from backupfw.api import microversions, versions
from backupfw.api.controllers.base import Controller
from backupfw.api.routing import Call, Route
from backupfw.api.versions import ApiVersion


class Absent(NamedTuple):
    """A collection without items.

    :ivar path: its first part.
    :ivar key: what its listing is called in the body.
    """

    path: str
    key: str
    since: ApiVersion
    rule: str


#: Horizon shows neither volumes nor backups where one of these is a 404.
ABSENT = (
    Absent("qos-specs", "qos_specs", versions.V2, "volume_extension:qos_specs_manage:get_all"),
    Absent("groups", "groups", microversions.VOLUME_GROUP, "group:get_all"),
    Absent(
        "group_snapshots", "group_snapshots", microversions.SNAPSHOT_GROUP, "group:get_all_group_snapshots"
    ),
)


class AbsentController(Controller):
    """``GET /groups`` and the like: an empty list, whatever the filters."""

    def routes(self) -> Sequence[Route]:
        """Return the lines of the route table."""
        return [
            Route("GET", f"/{absent.path}{detail}", _Listing(self, absent).show, since=absent.since)
            for absent in ABSENT
            # What a volume type could say of quality has no details.
            for detail in (("",) if absent.key == "qos_specs" else ("", "/detail"))
        ]


class _Listing(NamedTuple):
    controller: Controller
    absent: Absent

    def show(self, call: Call) -> dict[str, Any]:
        """``GET`` of one of them."""
        self.controller.enforce(call, self.absent.rule)
        return {self.absent.key: []}

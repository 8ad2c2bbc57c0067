"""Workers as administrators see them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from backupfw.api import microversions
from backupfw.api.controllers.base import Controller
from backupfw.api.routing import Call, Route
from backupfw.api.schemas import services as schemas
from backupfw.api.views.common import timestamp


class ServicesController(Controller):
    """``/os-services`` and ``/os-hosts``."""

    def routes(self) -> Sequence[Route]:
        """Return the lines of the route table."""
        return [
            Route("GET", "/os-services", self.index),
            Route("PUT", "/os-services/enable", self.enable, schema=schemas.choice),
            Route("PUT", "/os-services/disable", self.disable, schema=schemas.choice),
            Route(
                "PUT",
                "/os-services/disable-log-reason",
                self.disable_with_reason,
                schema=schemas.with_reason,
            ),
            Route("PUT", "/os-services/freeze", self.freeze, schema=schemas.host),
            Route("PUT", "/os-services/thaw", self.thaw, schema=schemas.host),
            Route("GET", "/os-hosts", self.hosts),
            Route("GET", "/os-hosts/{host}", self.show_host),
        ]

    def index(self, call: Call) -> dict[str, Any]:
        """``GET /os-services``; ``?host`` and ``?binary`` choose."""
        self.enforce(call, "volume_extension:services:index")
        # "service" is an older name.
        binary = call.query.get("binary") or call.query.get("service") or None
        found = self.managers.services.list(call.context, host=call.query.get("host") or None, binary=binary)
        # There are no clusters here.
        later = {"cluster": None} if call.version >= microversions.SERVICE_CLUSTER else {}
        return {
            "services": [
                {
                    "binary": service.binary,
                    "host": service.host,
                    "zone": service.availability_zone or self.settings.availability_zone,
                    "status": service.status,
                    "state": service.state,
                    "updated_at": timestamp(service.reported_at),
                    "disabled_reason": service.disabled_reason,
                    "frozen": service.frozen,
                    **later,
                }
                for service in found
            ]
        }

    def enable(self, call: Call) -> dict[str, Any]:
        """``PUT /os-services/enable``."""
        return {**self._switch(call, disabled=False), "disabled_reason": None}

    def disable(self, call: Call) -> dict[str, Any]:
        """``PUT /os-services/disable``."""
        return self._switch(call, disabled=True)

    def disable_with_reason(self, call: Call) -> dict[str, Any]:
        """``PUT /os-services/disable-log-reason``."""
        reason = call.body["disabled_reason"].strip()
        return {**self._switch(call, disabled=True, reason=reason), "disabled_reason": reason}

    def freeze(self, call: Call) -> None:
        """``PUT /os-services/freeze``: the host's worker drains."""
        self._set_frozen(call, "volume:freeze_host", True)

    def thaw(self, call: Call) -> None:
        """``PUT /os-services/thaw``."""
        self._set_frozen(call, "volume:thaw_host", False)

    def hosts(self, call: Call) -> dict[str, Any]:
        """``GET /os-hosts``; ``?zone`` and ``?service`` choose."""
        self.enforce(call, "volume_extension:hosts")
        zone, binary = call.query.get("zone"), call.query.get("service")
        shown = [
            {
                "host_name": service.host,
                "service": service.binary,
                "zone": service.availability_zone or self.settings.availability_zone,
                "service-status": "available" if service.up else "unavailable",
                "service-state": service.status,
                "last-update": timestamp(service.reported_at),
            }
            for service in self.managers.services.list(call.context, binary=binary or None)
        ]
        return {"hosts": [each for each in shown if zone in (None, "", each["zone"])]}

    def show_host(self, call: Call) -> dict[str, Any]:
        """``GET /os-hosts/{host}``: the volumes there that no other host can open, in all and by project."""
        self.enforce(call, "volume_extension:hosts")
        host = call.args["host"]
        usage = self.managers.services.usage_of_host(call.context, host)
        figures = [
            (each.volumes, each.volume_gigabytes, each.snapshots, each.snapshot_gigabytes)
            for each in usage.values()
        ]
        totals = tuple(map(sum, zip(*figures, strict=True))) or (0, 0, 0, 0)
        names = ("volume_count", "total_volume_gb", "snapshot_count", "total_snapshot_gb")
        return {
            "host": [
                {
                    # Texts, as clients expect them.
                    "resource": {
                        "host": host,
                        "project": project,
                        **dict(zip(names, map(str, counts), strict=True)),
                    }
                }
                for project, counts in zip(("(total)", *usage), (totals, *figures), strict=True)
            ]
        }

    def _set_frozen(self, call: Call, rule: str, frozen: bool) -> None:
        self.enforce(call, rule)
        self.managers.services.set_frozen(call.context, call.body["host"], frozen=frozen)

    def _switch(self, call: Call, *, disabled: bool, reason: str | None = None) -> dict[str, Any]:
        self.enforce(call, "volume_extension:services:update")
        binary = call.body.get("binary", call.body.get("service"))
        service = self.managers.services.set_disabled(
            call.context, call.body["host"], binary, disabled=disabled, reason=reason
        )
        return {
            "host": service.host,
            "service": service.binary,
            "binary": service.binary,
            "disabled": service.disabled,
            "status": service.status,
        }

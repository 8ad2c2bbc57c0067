"""Workers as administrators see them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from backupfw.api.controllers.base import Controller
from backupfw.api.routing import Call, Route
from backupfw.api.views.common import timestamp


class ServicesController(Controller):
    """``/os-services``."""

    def routes(self) -> Sequence[Route]:
        """Return the lines of the route table."""
        return [Route("GET", "/os-services", self.index)]

    def index(self, call: Call) -> dict[str, Any]:
        """``GET /os-services``; ``?host`` and ``?binary`` choose."""
        self.enforce(call, "volume_extension:services:index")
        found = self.managers.services.list(
            call.context, host=call.query.get("host"), binary=call.query.get("binary")
        )
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
                }
                for service in found
            ]
        }

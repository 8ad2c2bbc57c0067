"""Workers and hosts, for administrators."""

from __future__ import annotations

from typing import Any

from backupfw.api import versions
from backupfw.api.controllers.base import Controller, checked_name
from backupfw.api.request import Request, Response, expose
from backupfw.api.schemas import services as schemas
from backupfw.api.views import timestamp
from backupfw.manager.queue.services import HostNotFound


class ServicesController(Controller):
    """``/os-services``."""

    @expose("GET", rule="volume_extension:services:index")
    def index(self, req: Request, resp: Response) -> dict[str, Any]:
        """``GET /os-services``; ``?host`` and ``?binary`` choose."""
        # "service" is an older name.
        binary = req.query.get("binary") or req.query.get("service") or None
        found = self.managers.services.list(req.context, host=req.query.get("host") or None, binary=binary)
        # There are no clusters here.
        later = {"cluster": None} if req.version >= versions.SERVICE_CLUSTER else {}
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

    @expose("PUT", "enable", rule="volume_extension:services:update", takes=schemas.choice)
    def enable(self, req: Request, resp: Response) -> dict[str, Any]:
        """``PUT /os-services/enable``."""
        return {**self._switch(req, disabled=False), "disabled_reason": None}

    @expose("PUT", "disable", rule="volume_extension:services:update", takes=schemas.choice)
    def disable(self, req: Request, resp: Response) -> dict[str, Any]:
        """``PUT /os-services/disable``."""
        return self._switch(req, disabled=True)

    @expose("PUT", "disable-log-reason", rule="volume_extension:services:update", takes=schemas.with_reason)
    def disable_with_reason(self, req: Request, resp: Response) -> dict[str, Any]:
        """``PUT /os-services/disable-log-reason``."""
        reason = req.data["disabled_reason"].strip()
        return {**self._switch(req, disabled=True, reason=reason), "disabled_reason": reason}

    @expose("PUT", "freeze", rule="volume:freeze_host", takes=schemas.host)
    def freeze(self, req: Request, resp: Response) -> None:
        """``PUT /os-services/freeze``: the host's worker drains."""
        self.managers.services.set_frozen(req.context, req.data["host"], frozen=True)

    @expose("PUT", "thaw", rule="volume:thaw_host", takes=schemas.host)
    def thaw(self, req: Request, resp: Response) -> None:
        """``PUT /os-services/thaw``."""
        self.managers.services.set_frozen(req.context, req.data["host"], frozen=False)

    def _switch(self, req: Request, *, disabled: bool, reason: str | None = None) -> dict[str, Any]:
        binary = req.data.get("binary", req.data.get("service"))
        service = self.managers.services.set_disabled(
            req.context, req.data["host"], binary, disabled=disabled, reason=reason
        )
        return {
            "host": service.host,
            "service": service.binary,
            "binary": service.binary,
            "disabled": service.disabled,
            "status": service.status,
        }


class HostController(Controller):
    """``/os-hosts/{host}``."""

    @expose("GET", rule="volume_extension:hosts")
    def show(self, req: Request, resp: Response) -> dict[str, Any]:
        """``GET /os-hosts/{host}``: count and size of volumes that only this host can open, by project."""
        host = checked_name(self.parts[0], HostNotFound)
        usage = self.managers.services.usage_of_host(req.context, host)
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


class HostsController(Controller):
    """``/os-hosts``."""

    item = ("host", HostController)

    @expose("GET", rule="volume_extension:hosts")
    def index(self, req: Request, resp: Response) -> dict[str, Any]:
        """``GET /os-hosts``; ``?zone`` and ``?service`` choose."""
        zone, binary = req.query.get("zone"), req.query.get("service")
        shown = [
            {
                "host_name": service.host,
                "service": service.binary,
                "zone": service.availability_zone or self.settings.availability_zone,
                "service-status": "available" if service.up else "unavailable",
                "service-state": service.status,
                "last-update": timestamp(service.reported_at),
            }
            for service in self.managers.services.list(req.context, binary=binary or None)
        ]
        return {"hosts": [each for each in shown if zone in (None, "", each["zone"])]}

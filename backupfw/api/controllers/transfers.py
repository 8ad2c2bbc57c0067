"""Transfers of volumes from project to project."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from backupfw.api import versions
from backupfw.api.controllers.base import Controller, checked_id, id_of, stripped
from backupfw.api.query import ListingRules, boolean
from backupfw.api.request import Request, Response, expose
from backupfw.api.schemas import transfers as schemas
from backupfw.api.views import transfers as views
from backupfw.manager.usecases.transfers import TransferNotFound

if TYPE_CHECKING:
    from backupfw.manager.rows import Transfer

LISTING = ListingRules(
    sort_keys={
        **{column: column for column in ("id", "created_at", "display_name", "volume_id")},
        "name": "display_name",
    },
    filter_keys={"name": "display_name", "volume_id": "volume_id"},
)


class TransferController(Controller):
    """``/os-volume-transfer/{transfer_id}``."""

    transfer: Transfer

    def project_of(self, req: Request) -> str:
        """Find the transfer; return its project."""
        transfer_id = checked_id(self.parts[0], TransferNotFound)
        self.transfer = self.managers.transfers.get(req.context, transfer_id)
        return self.transfer.project_id

    @expose("GET", rule="volume:get_transfer")
    def show(self, req: Request, resp: Response) -> dict[str, Any]:
        """``GET`` of one."""
        return {"transfer": views.detail(req, self.transfer)}

    @expose("DELETE", rule="volume:delete_transfer", status=202)
    def delete(self, req: Request, resp: Response) -> None:
        """``DELETE``: withdraw the offer."""
        self.managers.transfers.delete(req.context, self.transfer.id)

    @expose("POST", "accept", takes=schemas.accept, status=202)
    def accept(self, req: Request, resp: Response) -> dict[str, Any]:
        """``POST …/accept``: by anybody who has the key."""
        # The rule is asked for the caller's own project, not for the one that offers the volume.
        self.enforce(req, "volume:accept_transfer")
        transfer_id = checked_id(self.parts[0], TransferNotFound)
        transfer = self.managers.transfers.accept(req.context, transfer_id, req.data["accept"]["auth_key"])
        return {"transfer": views.summary(req, transfer)}


class TransfersController(Controller):
    """``/os-volume-transfer``."""

    item = ("transfer_id", TransferController)

    @expose("GET", rule="volume:get_all_transfers")
    @expose("GET", "detail", rule="volume:get_all_transfers")
    def index(self, req: Request, resp: Response) -> dict[str, Any]:
        """``GET /os-volume-transfer`` and ``GET /os-volume-transfer/detail``."""
        return self.page(
            req,
            self.managers.transfers.list,
            "transfers",
            LISTING,
            functools.partial(views.detail, req),
            functools.partial(views.summary, req),
        )

    @expose("POST", rule="volume:create_transfer", takes=schemas.create, status=202)
    def create(self, req: Request, resp: Response) -> dict[str, Any]:
        """``POST``: only this answer has the key."""
        wanted = req.data["transfer"]
        volume_id = id_of(wanted["volume_id"])
        self.enforce_on(req, "volume:create_transfer", self.managers.volumes.project_of, volume_id)
        transfer, key = self.managers.transfers.create(
            req.context,
            volume_id=volume_id,
            name=stripped(wanted.get("name")),
            no_snapshots=boolean(wanted.get("no_snapshots", False), "no_snapshots"),
        )
        return {"transfer": {**views.detail(req, transfer), "auth_key": key}}


class NewTransfersController(TransfersController):
    """``/volume-transfers``: the same under a newer name, and with ``no_snapshots``."""

    since = versions.TRANSFERS

    @expose("POST", rule="volume:create_transfer", takes=schemas.create_with_snapshots, status=202)
    def create(self, req: Request, resp: Response) -> dict[str, Any]:
        """``POST``: a snapshot may stay behind."""
        return super().create(req, resp)

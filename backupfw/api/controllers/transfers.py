"""Transfers of volumes from project to project."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

from backupfw.api import microversions, versions, words
from backupfw.api.controllers.base import Controller, id_of, resource_id, stripped
from backupfw.api.query import ListingRules
from backupfw.api.routing import Call, Route
from backupfw.api.schemas import transfers as schemas
from backupfw.api.views import transfers as views
from backupfw.manager.rows import Transfer
from backupfw.manager.transfers import TransferNotFound

LISTING = ListingRules(
    sort_keys={
        **{column: column for column in ("id", "created_at", "display_name", "volume_id")},
        "name": "display_name",
    },
    filter_keys={"name": "display_name", "volume_id": "volume_id"},
)


class TransfersController(Controller):
    """``/os-volume-transfer``, and from 3.55 on ``/volume-transfers``."""

    def routes(self) -> Sequence[Route]:
        """Return the lines of the route table."""
        return [
            route
            for path, since, schema in (
                ("/os-volume-transfer", versions.V2, schemas.create),
                ("/volume-transfers", microversions.TRANSFERS, schemas.create_with_snapshots),
            )
            for route in (
                Route("GET", path, self.index, since=since),
                Route("GET", f"{path}/detail", self.index_detail, since=since),
                Route("POST", path, self.create, status=202, schema=schema, since=since),
                Route("GET", f"{path}/{{transfer_id}}", self.show, since=since),
                Route("DELETE", f"{path}/{{transfer_id}}", self.delete, status=202, since=since),
                Route(
                    "POST",
                    f"{path}/{{transfer_id}}/accept",
                    self.accept,
                    status=202,
                    schema=schemas.accept,
                    since=since,
                ),
            )
        ]

    def _get(self, call: Call, rule: str) -> Transfer:
        transfer = self.managers.transfers.get(
            call.context, resource_id(call, "transfer_id", TransferNotFound)
        )
        self.enforce(call, rule, transfer.project_id)
        return transfer

    def index(self, call: Call) -> dict[str, Any]:
        """``GET`` of the plain list."""
        return self._index(call, detail=False)

    def index_detail(self, call: Call) -> dict[str, Any]:
        """``GET …/detail``."""
        return self._index(call, detail=True)

    def _index(self, call: Call, *, detail: bool) -> dict[str, Any]:
        self.enforce(call, "volume:get_all_transfers")
        view = functools.partial(views.detail if detail else views.summary, call)
        return self.page(call, self.managers.transfers.list, "transfers", LISTING, view, detail=detail)

    def show(self, call: Call) -> dict[str, Any]:
        """``GET`` of one."""
        return {"transfer": views.detail(call, self._get(call, "volume:get_transfer"))}

    def create(self, call: Call) -> dict[str, Any]:
        """``POST``: the answer has the key, which is told this once."""
        self.enforce(call, "volume:create_transfer")
        wanted = call.body["transfer"]
        volume_id = id_of(wanted["volume_id"])
        self.enforce_on(call, "volume:create_transfer", self.managers.volumes.project_of, volume_id)
        transfer, key = self.managers.transfers.create(
            call.context,
            volume_id=volume_id,
            name=stripped(wanted.get("name")),
            no_snapshots=words.boolean(wanted.get("no_snapshots", False), "no_snapshots"),
        )
        return {"transfer": {**views.detail(call, transfer), "auth_key": key}}

    def delete(self, call: Call) -> None:
        """``DELETE``: the offer is taken back."""
        transfer = self._get(call, "volume:delete_transfer")
        self.managers.transfers.delete(call.context, transfer.id)

    def accept(self, call: Call) -> dict[str, Any]:
        """``POST …/accept``: by anybody who has the key."""
        self.enforce(call, "volume:accept_transfer")
        transfer = self.managers.transfers.accept(
            call.context,
            resource_id(call, "transfer_id", TransferNotFound),
            call.body["accept"]["auth_key"],
        )
        return {"transfer": views.summary(call, transfer)}

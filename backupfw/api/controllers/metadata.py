"""The six metadata calls, the same for volumes and snapshots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from backupfw import errors
from backupfw.api import errors as api_errors
from backupfw.api import policies
from backupfw.api.controllers.base import resource_id
from backupfw.api.routing import Call, Route
from backupfw.api.schemas import metadata as schemas
from backupfw.context import RequestContext


class MetadataManager(Protocol):
    """The part of a manager that these calls need."""

    def get(self, ctx: RequestContext, resource_id: str, /) -> Any:
        """Return the record."""

    def get_metadata(self, ctx: RequestContext, resource_id: str, /) -> Mapping[str, str]:
        """Return the whole map."""

    def set_metadata(
        self, ctx: RequestContext, resource_id: str, metadata: Mapping[str, str], /
    ) -> Mapping[str, str]:
        """Add and overwrite keys; return the whole map."""

    def replace_metadata(
        self, ctx: RequestContext, resource_id: str, metadata: Mapping[str, str], /
    ) -> Mapping[str, str]:
        """Put this map in place of the old one; return it."""

    def delete_metadata_key(self, ctx: RequestContext, resource_id: str, key: str, /) -> None:
        """Remove one key."""


@dataclass(frozen=True)
class MetadataCalls:
    """Handlers of ``…/{id}/metadata[/{key}]``.

    :ivar collection: e.g. ``volumes``.
    :ivar read_rule, create_rule, write_rule, delete_rule: policy rules.
    """

    manager: MetadataManager
    policy: policies.Policy
    collection: str
    missing: type[errors.NotFound]
    read_rule: str
    create_rule: str
    write_rule: str
    delete_rule: str

    def routes(self) -> Sequence[Route]:
        """Return the lines of the route table."""
        whole = f"/{self.collection}/{{id}}/metadata"
        item = whole + "/{key}"
        return [
            Route("GET", whole, self.show),
            Route("POST", whole, self.add, schema=schemas.whole),
            Route("PUT", whole, self.replace, schema=schemas.whole),
            Route("GET", item, self.show_item),
            Route("PUT", item, self.set_item, schema=schemas.item),
            Route("DELETE", item, self.delete_item),
        ]

    def _id(self, call: Call, rule: str) -> str:
        record = self.manager.get(call.context, resource_id(call, "id", self.missing))
        policies.enforce(self.policy, call.context, rule, record.project_id)
        found: str = record.id
        return found

    def show(self, call: Call) -> dict[str, Any]:
        """``GET …/metadata``."""
        owner = self._id(call, self.read_rule)
        return {"metadata": dict(self.manager.get_metadata(call.context, owner))}

    def add(self, call: Call) -> dict[str, Any]:
        """``POST …/metadata``: what is not named stays."""
        owner = self._id(call, self.create_rule)
        return {"metadata": dict(self.manager.set_metadata(call.context, owner, call.body["metadata"]))}

    def replace(self, call: Call) -> dict[str, Any]:
        """``PUT …/metadata``: what is not named goes."""
        owner = self._id(call, self.write_rule)
        return {"metadata": dict(self.manager.replace_metadata(call.context, owner, call.body["metadata"]))}

    def show_item(self, call: Call) -> dict[str, Any]:
        """``GET …/metadata/{key}``."""
        owner = self._id(call, self.read_rule)
        key = call.args["key"]
        metadata = self.manager.get_metadata(call.context, owner)
        if key not in metadata:
            raise errors.KeyNotFound(key)
        return {"meta": {key: metadata[key]}}

    def set_item(self, call: Call) -> dict[str, Any]:
        """``PUT …/metadata/{key}``: the body's key must be the path's."""
        owner = self._id(call, self.write_rule)
        key = call.args["key"]
        if key not in call.body["meta"]:
            raise api_errors.BadRequest("Request body and URI mismatch")
        metadata = self.manager.set_metadata(call.context, owner, call.body["meta"])
        return {"meta": {key: metadata[key]}}

    def delete_item(self, call: Call) -> None:
        """``DELETE …/metadata/{key}``."""
        owner = self._id(call, self.delete_rule)
        key = call.args["key"]
        if "\0" in key or len(key) > 255:
            raise errors.KeyNotFound(key)
        self.manager.delete_metadata_key(call.context, owner, key)

"""The six metadata calls, the same for volumes and snapshots."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from backupfw import errors
from backupfw.api import errors as api_errors
from backupfw.api.controllers.base import Controller, checked_id, checked_name
from backupfw.api.request import Request, Response, expose
from backupfw.api.schemas import metadata as schemas
from backupfw.context import RequestContext
from backupfw.manager.metadata import Metadata

if TYPE_CHECKING:
    from backupfw.api.site import Managers


class MetadataManager(Protocol):
    """The part of a manager that these calls need.

    :ivar metadata: the metadata of what it manages.
    """

    metadata: Metadata

    def get(self, ctx: RequestContext, resource_id: str, /) -> Any:
        """Return the record."""


def metadata_of(
    manager: Callable[[Managers], MetadataManager],
    missing: type[errors.NotFound],
    *,
    read_rule: str,
    create_rule: str,
    write_rule: str,
    delete_rule: str,
) -> type[Controller]:
    """Make the controller of ``…/{id}/metadata`` and of its items.

    :param manager: returns the manager of the owners.
    :param missing: the error for an owner that does not exist.
    :param read_rule, create_rule, write_rule, delete_rule: policy rules.
    """

    class Owned(Controller):
        """Metadata of one owner."""

        owner: str

        @property
        def manager(self) -> MetadataManager:
            """The owner's."""
            return manager(self.managers)

        def project_of(self, req: Request) -> str:
            """Find the owner; return its project."""
            record = self.manager.get(req.context, checked_id(self.parts[0], missing))
            self.owner = record.id
            project: str = record.project_id
            return project

    class Item(Owned):
        """``…/metadata/{key}``."""

        @expose("GET", rule=read_rule)
        def show(self, req: Request, resp: Response) -> dict[str, Any]:
            """``GET …/metadata/{key}``."""
            _, key = self.parts
            metadata = self.manager.metadata.get(req.context, self.owner)
            if key not in metadata:
                raise errors.KeyNotFound(key)
            return {"meta": {key: metadata[key]}}

        @expose("PUT", rule=write_rule, takes=schemas.item)
        def update(self, req: Request, resp: Response) -> dict[str, Any]:
            """``PUT …/metadata/{key}``: the body's key must be the path's."""
            _, key = self.parts
            if key not in req.data["meta"]:
                raise api_errors.BadRequest("Request body and URI mismatch")
            metadata = self.manager.metadata.set(req.context, self.owner, req.data["meta"])
            return {"meta": {key: metadata[key]}}

        @expose("DELETE", rule=delete_rule)
        def delete(self, req: Request, resp: Response) -> None:
            """``DELETE …/metadata/{key}``."""
            key = checked_name(self.parts[1], errors.KeyNotFound)
            self.manager.metadata.delete_key(req.context, self.owner, key)

    class Whole(Owned):
        """``…/metadata``."""

        item = ("key", Item)

        @expose("GET", rule=read_rule)
        def index(self, req: Request, resp: Response) -> dict[str, Any]:
            """``GET …/metadata``."""
            return {"metadata": dict(self.manager.metadata.get(req.context, self.owner))}

        @expose("POST", rule=create_rule, takes=schemas.whole)
        def create(self, req: Request, resp: Response) -> dict[str, Any]:
            """``POST …/metadata``: what is not named stays."""
            metadata = self.manager.metadata.set(req.context, self.owner, req.data["metadata"])
            return {"metadata": dict(metadata)}

        @expose("PUT", rule=write_rule, takes=schemas.whole)
        def update(self, req: Request, resp: Response) -> dict[str, Any]:
            """``PUT …/metadata``: what is not named goes."""
            metadata = self.manager.metadata.replace(req.context, self.owner, req.data["metadata"])
            return {"metadata": dict(metadata)}

    return Whole

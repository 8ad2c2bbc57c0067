"""Volume types, their extra specs, who may use them, and which one a project's volumes get."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from backupfw import errors
from backupfw.api import errors as api_errors
from backupfw.api import versions
from backupfw.api.controllers.base import Controller, NamedController, checked_name, stripped
from backupfw.api.query import ListingRules, Query, boolean
from backupfw.api.request import Request, Response, action, expose
from backupfw.api.resource import ActionsResource
from backupfw.api.schemas import volume_types as schemas
from backupfw.api.views import volume_types as views

if TYPE_CHECKING:
    from backupfw.manager.rows import VolumeType

_COLUMNS = ("id", "name", "description", "is_public", "created_at", "updated_at")
LISTING = ListingRules(
    sort_keys={column: column for column in _COLUMNS},
    filter_keys={"name": "name", "description": "description"},
    resource="volume_type",
)


class _Types(Controller):
    """Base of the controllers of one type and of all types."""

    def _kind(self, req: Request) -> VolumeType:
        """Return the type of the path, which may be its name.

        :raises VolumeTypeNotFound: it does not exist, or no type can have such a name.
        """
        return self.managers.types.get(req.context, checked_name(self.parts[0], errors.VolumeTypeNotFound))

    def _sees_all(self, req: Request) -> bool:
        return self.allows(req, "volume_extension:types_extra_specs:read_sensitive")


class ExtraSpecController(_Types):
    """``/types/{type_id}/extra_specs/{key}``."""

    @expose("GET", rule="volume_extension:types_extra_specs:show")
    def show(self, req: Request, resp: Response) -> dict[str, Any]:
        """``GET /types/{id}/extra_specs/{key}``."""
        kind = self._kind(req)
        key = self.parts[1]
        shown = views.extra_specs(kind.extra_specs, all_specs=self._sees_all(req))
        if key not in shown:
            raise errors.KeyNotFound(key)
        return {key: shown[key]}

    @expose("PUT", rule="volume_extension:types_extra_specs:update", takes=schemas.extra_spec)
    def update(self, req: Request, resp: Response) -> dict[str, Any]:
        """``PUT /types/{id}/extra_specs/{key}``: the body's key must be the path's."""
        kind = self._kind(req)
        if self.parts[1] not in req.data:
            raise api_errors.BadRequest("Request body and URI mismatch")
        self.managers.types.set_extra_specs(req.context, kind.id, req.data)
        return dict(req.data)

    @expose("DELETE", rule="volume_extension:types_extra_specs:delete", status=202)
    def delete(self, req: Request, resp: Response) -> None:
        """``DELETE /types/{id}/extra_specs/{key}``."""
        kind = self._kind(req)
        key = checked_name(self.parts[1], errors.KeyNotFound)
        self.managers.types.delete_extra_spec(req.context, kind.id, key)


class ExtraSpecsController(_Types):
    """``/types/{type_id}/extra_specs``."""

    item = ("key", ExtraSpecController)

    @expose("GET", rule="volume_extension:types_extra_specs:index")
    def index(self, req: Request, resp: Response) -> dict[str, Any]:
        """``GET /types/{id}/extra_specs``."""
        kind = self._kind(req)
        return {"extra_specs": views.extra_specs(kind.extra_specs, all_specs=self._sees_all(req))}

    @expose("POST", rule="volume_extension:types_extra_specs:create", takes=schemas.extra_specs)
    def create(self, req: Request, resp: Response) -> dict[str, Any]:
        """``POST /types/{id}/extra_specs``: what is not named stays; shows what was named."""
        kind = self._kind(req)
        wanted = req.data["extra_specs"]
        self.managers.types.set_extra_specs(req.context, kind.id, wanted)
        return {"extra_specs": wanted}


class VolumeTypeController(_Types, ActionsResource):
    """``/types/{type_id}``."""

    children = {"extra_specs": ExtraSpecsController}

    @expose("GET", rule="volume_extension:type_get")
    def show(self, req: Request, resp: Response) -> dict[str, Any]:
        """``GET /types/{id}``, ``GET /types/default``."""
        default = self.parts[0] == "default"
        kind = self.managers.types.default(req.context) if default else self._kind(req)
        return {"volume_type": views.detail(kind, all_specs=self._sees_all(req))}

    @expose("PUT", rule="volume_extension:type_update", takes=schemas.update)
    def update(self, req: Request, resp: Response) -> dict[str, Any]:
        """``PUT /types/{id}``: what is not named, or null, stays."""
        kind = self._kind(req)
        wanted: Mapping[str, Any] = req.data["volume_type"]
        public = wanted.get("is_public")
        if public is None and wanted.get("name") is None and wanted.get("description") is None:
            raise api_errors.BadRequest(
                "Specify volume type name, description, is_public or a combination thereof."
            )
        changed = self.managers.types.update(
            req.context,
            kind.id,
            name=wanted.get("name"),
            description=stripped(wanted.get("description")),
            is_public=None if public is None else boolean(public, "is_public"),
        )
        return {"volume_type": views.updated(changed, all_specs=self._sees_all(req))}

    @expose("DELETE", rule="volume_extension:type_delete", status=202)
    def delete(self, req: Request, resp: Response) -> None:
        """``DELETE /types/{id}``."""
        kind = self._kind(req)
        self.managers.types.delete(req.context, kind.id)

    @expose("GET", "os-volume-type-access", rule="volume_extension:volume_type_access:get_all_for_type")
    def access(self, req: Request, resp: Response) -> dict[str, Any]:
        """``GET /types/{id}/os-volume-type-access``: who may use a private type."""
        kind = self._kind(req)
        return {
            "volume_type_access": [
                {"volume_type_id": kind.id, "project_id": project}
                for project in self.managers.types.projects(req.context, kind.id)
            ]
        }

    @expose("GET", "encryption", rule="volume_extension:volume_type_encryption:get")
    def encryption(self, req: Request, resp: Response) -> dict[str, Any]:
        """``GET /types/{id}/encryption``: volumes are not encrypted by their type."""
        self._kind(req)
        return {}

    @action(
        "addProjectAccess", rule="volume_extension:volume_type_access:addProjectAccess", takes=schemas.allow
    )
    def allow(self, req: Request, resp: Response) -> None:
        """Action ``addProjectAccess``."""
        kind = self._kind(req)
        project = req.data["addProjectAccess"]["project"]
        self.expect_project(project)
        self.managers.types.allow(req.context, kind.id, project)

    @action(
        "removeProjectAccess",
        rule="volume_extension:volume_type_access:removeProjectAccess",
        takes=schemas.refuse,
    )
    def refuse(self, req: Request, resp: Response) -> None:
        """Action ``removeProjectAccess``."""
        kind = self._kind(req)
        self.managers.types.refuse(req.context, kind.id, req.data["removeProjectAccess"]["project"])


class VolumeTypesController(_Types):
    """``/types``."""

    item = ("type_id", VolumeTypeController)

    @expose("GET", rule="volume_extension:type_get_all")
    def index(self, req: Request, resp: Response) -> dict[str, Any]:
        """``GET /types``; an administrator's ``?is_public=None`` asks for private ones too."""
        text = req.query.get("is_public")
        public: bool | None = True
        if text is not None and req.context.is_admin:
            public = None if text.strip().lower() == "none" else boolean(text, "is_public")
        query = Query([pair for pair in req.query.pairs if pair[0] != "is_public"])
        lister = functools.partial(self.managers.types.list, public=public)
        view = functools.partial(views.detail, all_specs=self._sees_all(req))
        return self.page(req, lister, "volume_types", LISTING, view, query=query, links="volume_type_links")

    @expose("POST", rule="volume_extension:type_create", takes=schemas.create)
    def create(self, req: Request, resp: Response) -> dict[str, Any]:
        """``POST /types``."""
        wanted: Mapping[str, Any] = req.data["volume_type"]
        kind = self.managers.types.create(
            req.context,
            name=wanted["name"],
            description=stripped(wanted.get("description")),
            is_public=boolean(wanted.get("os-volume-type-access:is_public", True), "is_public"),
            extra_specs=wanted.get("extra_specs"),
        )
        return {"volume_type": views.created(kind, all_specs=self._sees_all(req))}


class DefaultTypeController(NamedController):
    """``/default-types/{target}``."""

    arg = "project_id"

    def project_of(self, req: Request) -> str:
        """Return the project of the path."""
        return self.parts[0]

    @expose("GET", rule="volume_extension:default_get")
    def show(self, req: Request, resp: Response) -> dict[str, Any]:
        """``GET /default-types/{project}``."""
        project = self.name()
        return {"default_type": _default(project, self.managers.types.project_default(project))}

    @expose("PUT", rule="volume_extension:default_set_or_update", takes=schemas.default)
    def update(self, req: Request, resp: Response) -> dict[str, Any]:
        """``PUT /default-types/{project}``."""
        project = self.name()
        self.expect_project(project)
        wanted = req.data["default_type"]["volume_type"]
        return {
            "default_type": _default(
                project, self.managers.types.set_project_default(req.context, project, wanted)
            )
        }

    @expose("DELETE", rule="volume_extension:default_unset", status=204)
    def delete(self, req: Request, resp: Response) -> None:
        """``DELETE /default-types/{project}``."""
        self.managers.types.unset_project_default(self.name())


class DefaultTypesController(Controller):
    """``/default-types``."""

    since = versions.DEFAULT_TYPES
    item = ("target", DefaultTypeController)

    @expose("GET", rule="volume_extension:default_get_all")
    def index(self, req: Request, resp: Response) -> dict[str, Any]:
        """``GET /default-types``: of all projects that have one."""
        return {"default_types": [_default(*each) for each in self.managers.types.project_defaults()]}


def _default(project_id: str, type_id: str) -> dict[str, Any]:
    return {"project_id": project_id, "volume_type_id": type_id}

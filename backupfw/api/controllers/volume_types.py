"""Volume types, their extra specs, who may use them, and which one a project's volumes get."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from backupfw import errors
from backupfw.api import errors as api_errors
from backupfw.api import microversions, words
from backupfw.api.controllers.base import Controller, stripped
from backupfw.api.query import ListingRules, Query
from backupfw.api.routing import Action, Call, Route
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
#: Width of the columns that hold keys and projects.
_MAX_TEXT = 255


class VolumeTypesController(Controller):
    """``/types`` and ``/default-types``."""

    def routes(self) -> Sequence[Route]:
        """Return the lines of the route table."""
        one = "/types/{type_id}"
        default, since = "/default-types/{target}", microversions.DEFAULT_TYPES
        return [
            Route("GET", "/types", self.index),
            Route("POST", "/types", self.create, schema=schemas.create),
            Route("GET", one, self.show),
            Route("PUT", one, self.update, schema=schemas.update),
            Route("DELETE", one, self.delete, status=202),
            Route("GET", one + "/extra_specs", self.extra_specs),
            Route("POST", one + "/extra_specs", self.add_extra_specs, schema=schemas.extra_specs),
            Route("GET", one + "/extra_specs/{key}", self.extra_spec),
            Route("PUT", one + "/extra_specs/{key}", self.set_extra_spec, schema=schemas.extra_spec),
            Route("DELETE", one + "/extra_specs/{key}", self.delete_extra_spec, status=202),
            Route("GET", one + "/os-volume-type-access", self.access),
            Route("GET", one + "/encryption", self.encryption),
            Route(
                "POST",
                one + "/action",
                status=202,
                actions={
                    "addProjectAccess": Action(self.allow, schemas.allow),
                    "removeProjectAccess": Action(self.refuse, schemas.refuse),
                },
            ),
            Route("GET", "/default-types", self.defaults, since=since),
            Route("GET", default, self.show_default, since=since),
            Route("PUT", default, self.set_default, schema=schemas.default, since=since),
            Route("DELETE", default, self.unset_default, status=204, since=since),
        ]

    def _get(self, call: Call, rule: str) -> VolumeType:
        self.enforce(call, rule)
        return self.managers.types.get(call.context, _path_text(call, "type_id", errors.VolumeTypeNotFound))

    def _sees_all(self, call: Call) -> bool:
        return self.policy.allows(
            call.context, "volume_extension:types_extra_specs:read_sensitive", call.context.project_id
        )

    def index(self, call: Call) -> dict[str, Any]:
        """``GET /types``; an administrator's ``?is_public=None`` asks for private ones too."""
        self.enforce(call, "volume_extension:type_get_all")
        text = call.query.get("is_public")
        public: bool | None = True
        if text is not None and call.context.is_admin:
            public = None if text.strip().lower() == "none" else words.boolean(text, "is_public")
        call = replace(call, query=Query([pair for pair in call.query.pairs if pair[0] != "is_public"]))
        wanted = self.listing(call, LISTING)
        page = self.managers.types.list(
            call.context,
            public=public,
            filters=wanted.filters,
            limit=wanted.limit,
            marker=wanted.marker,
            offset=wanted.offset,
            sort=wanted.sort,
            with_count=wanted.with_count,
        )
        all_specs = self._sees_all(call)
        body: dict[str, Any] = {
            "volume_types": [views.detail(kind, all_specs=all_specs) for kind in page.items]
        }
        if page.items and len(page.items) >= wanted.limit:
            pairs = [*call.query.pairs, *([] if text is None else [("is_public", text)])]
            body["volume_type_links"] = call.links.next_page(call.path, pairs, page.items[-1].id)
        if page.total is not None:
            body["count"] = page.total
        return body

    def show(self, call: Call) -> dict[str, Any]:
        """``GET /types/{id}``, ``GET /types/default``."""
        if call.args["type_id"] == "default":
            self.enforce(call, "volume_extension:type_get")
            kind = self.managers.types.default(call.context)
        else:
            kind = self._get(call, "volume_extension:type_get")
        return {"volume_type": views.detail(kind, all_specs=self._sees_all(call))}

    def create(self, call: Call) -> dict[str, Any]:
        """``POST /types``."""
        self.enforce(call, "volume_extension:type_create")
        wanted: Mapping[str, Any] = call.body["volume_type"]
        kind = self.managers.types.create(
            call.context,
            name=wanted["name"],
            description=stripped(wanted.get("description")),
            is_public=words.boolean(wanted.get("os-volume-type-access:is_public", True), "is_public"),
            extra_specs=wanted.get("extra_specs"),
        )
        return {"volume_type": views.created(kind, all_specs=self._sees_all(call))}

    def update(self, call: Call) -> dict[str, Any]:
        """``PUT /types/{id}``: what is not named, or null, stays."""
        kind = self._get(call, "volume_extension:type_update")
        wanted: Mapping[str, Any] = call.body["volume_type"]
        public = wanted.get("is_public")
        if public is None and wanted.get("name") is None and wanted.get("description") is None:
            raise api_errors.BadRequest(
                "Specify volume type name, description, is_public or a combination thereof."
            )
        changed = self.managers.types.update(
            call.context,
            kind.id,
            name=wanted.get("name"),
            description=stripped(wanted.get("description")),
            is_public=None if public is None else words.boolean(public, "is_public"),
        )
        return {"volume_type": views.updated(changed, all_specs=self._sees_all(call))}

    def delete(self, call: Call) -> None:
        """``DELETE /types/{id}``."""
        kind = self._get(call, "volume_extension:type_delete")
        self.managers.types.delete(call.context, kind.id)

    def extra_specs(self, call: Call) -> dict[str, Any]:
        """``GET /types/{id}/extra_specs``."""
        kind = self._get(call, "volume_extension:types_extra_specs:index")
        return {"extra_specs": views.extra_specs(kind.extra_specs, all_specs=self._sees_all(call))}

    def add_extra_specs(self, call: Call) -> dict[str, Any]:
        """``POST /types/{id}/extra_specs``: what is not named stays; shows what was named."""
        kind = self._get(call, "volume_extension:types_extra_specs:create")
        wanted = call.body["extra_specs"]
        self.managers.types.set_extra_specs(call.context, kind.id, wanted)
        return {"extra_specs": wanted}

    def extra_spec(self, call: Call) -> dict[str, Any]:
        """``GET /types/{id}/extra_specs/{key}``."""
        kind = self._get(call, "volume_extension:types_extra_specs:show")
        key = call.args["key"]
        shown = views.extra_specs(kind.extra_specs, all_specs=self._sees_all(call))
        if key not in shown:
            raise errors.KeyNotFound(key)
        return {key: shown[key]}

    def set_extra_spec(self, call: Call) -> dict[str, Any]:
        """``PUT /types/{id}/extra_specs/{key}``: the body's key must be the path's."""
        kind = self._get(call, "volume_extension:types_extra_specs:update")
        if call.args["key"] not in call.body:
            raise api_errors.BadRequest("Request body and URI mismatch")
        self.managers.types.set_extra_specs(call.context, kind.id, call.body)
        return dict(call.body)

    def delete_extra_spec(self, call: Call) -> None:
        """``DELETE /types/{id}/extra_specs/{key}``."""
        kind = self._get(call, "volume_extension:types_extra_specs:delete")
        key = _path_text(call, "key", errors.KeyNotFound)
        self.managers.types.delete_extra_spec(call.context, kind.id, key)

    def access(self, call: Call) -> dict[str, Any]:
        """``GET /types/{id}/os-volume-type-access``: who may use a private type."""
        kind = self._get(call, "volume_extension:volume_type_access:get_all_for_type")
        return {
            "volume_type_access": [
                {"volume_type_id": kind.id, "project_id": project}
                for project in self.managers.types.projects(call.context, kind.id)
            ]
        }

    def encryption(self, call: Call) -> dict[str, Any]:
        """``GET /types/{id}/encryption``: volumes are not encrypted by their type."""
        self._get(call, "volume_extension:volume_type_encryption:get")
        return {}

    def allow(self, call: Call) -> None:
        """Action ``addProjectAccess``."""
        kind = self._get(call, "volume_extension:volume_type_access:addProjectAccess")
        project = call.body["addProjectAccess"]["project"]
        self.expect_project(project)
        self.managers.types.allow(call.context, kind.id, project)

    def refuse(self, call: Call) -> None:
        """Action ``removeProjectAccess``."""
        kind = self._get(call, "volume_extension:volume_type_access:removeProjectAccess")
        self.managers.types.refuse(call.context, kind.id, call.body["removeProjectAccess"]["project"])

    def defaults(self, call: Call) -> dict[str, Any]:
        """``GET /default-types``: of the projects that have their own."""
        self.enforce(call, "volume_extension:default_get_all")
        return {"default_types": [_default(*each) for each in self.managers.types.project_defaults()]}

    def show_default(self, call: Call) -> dict[str, Any]:
        """``GET /default-types/{project}``."""
        project = self._project(call, "volume_extension:default_get")
        return {"default_type": _default(project, self.managers.types.project_default(project))}

    def set_default(self, call: Call) -> dict[str, Any]:
        """``PUT /default-types/{project}``."""
        project = self._project(call, "volume_extension:default_set_or_update")
        self.expect_project(project)
        wanted = call.body["default_type"]["volume_type"]
        return {
            "default_type": _default(
                project, self.managers.types.set_project_default(call.context, project, wanted)
            )
        }

    def unset_default(self, call: Call) -> None:
        """``DELETE /default-types/{project}``."""
        self.managers.types.unset_project_default(self._project(call, "volume_extension:default_unset"))

    def _project(self, call: Call, rule: str) -> str:
        project = call.args["target"]
        self.enforce(call, rule, project)
        if len(project) > _MAX_TEXT or not project.isprintable():
            raise api_errors.BadRequest("Invalid input received: project_id is not a valid id")
        return project


def _path_text(call: Call, name: str, missing: type[errors.NotFound]) -> str:
    """Return a part of the path; one that no row can have is simply not found.

    :raises NotFound: of the class ``missing``.
    """
    text = call.args[name]
    if len(text) > _MAX_TEXT or not text.isprintable():
        raise missing(text)
    return text


def _default(project_id: str, type_id: str) -> dict[str, Any]:
    return {"project_id": project_id, "volume_type_id": type_id}

"""Limits and quotas."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from backupfw.api import errors as api_errors
from backupfw.api import microversions, words
from backupfw.api.controllers.base import Controller
from backupfw.api.routing import Call, Route
from backupfw.api.schemas import quotas as schemas

#: Keys of a quota body that are not resources.
_NOT_RESOURCES = frozenset({"tenant_id", "force", "skip_validation", "class_name", "id"})
#: Width of the columns that hold projects and classes.
_MAX_ID = 255


def _given_limits(body: Mapping[str, Any]) -> dict[str, int]:
    return {name: int(value) for name, value in body.items() if name not in _NOT_RESOURCES}


def _name(call: Call, arg: str) -> str:
    name = call.args[arg]
    if len(name) > _MAX_ID or not name.isprintable():
        raise api_errors.BadRequest(f"Invalid input received: {arg} is not a valid id")
    return name


class QuotasController(Controller):
    """``/limits``, ``/os-quota-sets`` and ``/os-quota-class-sets``."""

    def routes(self) -> Sequence[Route]:
        """Return the lines of the route table."""
        one = "/os-quota-sets/{target}"
        return [
            Route("GET", "/limits", self.limits),
            Route("GET", one, self.show),
            Route("PUT", one, self.update, schema=schemas.quota_set),
            Route("DELETE", one, self.delete),
            Route("GET", one + "/defaults", self.defaults),
            Route("GET", "/os-quota-class-sets/{name}", self.show_class),
            Route("PUT", "/os-quota-class-sets/{name}", self.update_class, schema=schemas.quota_class_set),
        ]

    def limits(self, call: Call) -> dict[str, Any]:
        """``GET /limits``: of the caller's project; from 3.39 on an administrator may name another one."""
        project = None
        if call.version >= microversions.LIMITS_OF_PROJECT and call.context.is_admin:
            project = call.query.get("project_id") or call.query.get("tenant_id") or None
        self.enforce(call, "limits_extension:used_limits", project)
        return {"limits": {"rate": [], "absolute": self.managers.quota.limits(call.context, project)}}

    def show(self, call: Call) -> dict[str, Any]:
        """``GET /os-quota-sets/{project}``; with ``?usage=True`` what is used beside each limit."""
        target = _name(call, "target")
        self.enforce(call, "volume_extension:quotas:show", target)
        usage = call.query.flag("usage")
        return {"quota_set": {"id": target, **self.managers.quota.show(target, usage)}}

    def update(self, call: Call) -> dict[str, Any]:
        """``PUT /os-quota-sets/{project}``."""
        target = _name(call, "target")
        self.enforce(call, "volume_extension:quotas:update", target)
        self.expect_project(target)
        wanted = call.body["quota_set"]
        force = call.query.flag("skip_validation") or words.boolean(wanted.get("force") or False, "force")
        return {"quota_set": self.managers.quota.update(target, _given_limits(wanted), force=force)}

    def delete(self, call: Call) -> None:
        """``DELETE /os-quota-sets/{project}``: the defaults hold again."""
        target = _name(call, "target")
        self.enforce(call, "volume_extension:quotas:delete", target)
        self.managers.quota.delete(target)

    def defaults(self, call: Call) -> dict[str, Any]:
        """``GET /os-quota-sets/{project}/defaults``."""
        target = _name(call, "target")
        self.enforce(call, "volume_extension:quotas:show", target)
        return {"quota_set": {"id": target, **self.managers.quota.defaults()}}

    def show_class(self, call: Call) -> dict[str, Any]:
        """``GET /os-quota-class-sets/{name}``."""
        name = _name(call, "name")
        self.enforce(call, "volume_extension:quota_classes:get")
        return {"quota_class_set": {"id": name, **self.managers.quota.class_show(name)}}

    def update_class(self, call: Call) -> dict[str, Any]:
        """``PUT /os-quota-class-sets/{name}``."""
        name = _name(call, "name")
        self.enforce(call, "volume_extension:quota_classes:update")
        limits = _given_limits(call.body["quota_class_set"])
        return {"quota_class_set": self.managers.quota.class_update(name, limits)}

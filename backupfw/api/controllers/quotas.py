"""Limits and quotas."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from backupfw.api import versions
from backupfw.api.controllers.base import Controller, NamedController
from backupfw.api.query import boolean
from backupfw.api.request import Request, Response, expose
from backupfw.api.schemas import quotas as schemas

#: Keys of a quota body that are not resources.
_NOT_RESOURCES = frozenset({"tenant_id", "force", "skip_validation", "class_name", "id"})


def _given_limits(body: Mapping[str, Any]) -> dict[str, int]:
    return {name: int(value) for name, value in body.items() if name not in _NOT_RESOURCES}


class LimitsController(Controller):
    """``/limits``."""

    def project_of(self, req: Request) -> str | None:
        """Return the project that an administrator names, from 3.39 on."""
        if req.version >= versions.LIMITS_OF_PROJECT and req.context.is_admin:
            return req.query.get("project_id") or req.query.get("tenant_id") or None
        return None

    @expose("GET", rule="limits_extension:used_limits")
    def index(self, req: Request, resp: Response) -> dict[str, Any]:
        """``GET /limits``: of the caller's project; from 3.39 on an administrator may name another one."""
        return {
            "limits": {"rate": [], "absolute": self.managers.quota.limits(req.context, self.project_of(req))}
        }


class QuotaSetController(NamedController):
    """``/os-quota-sets/{target}``."""

    arg = "target"

    def project_of(self, req: Request) -> str:
        """Return the project of the path."""
        return self.name()

    @expose("GET", rule="volume_extension:quotas:show")
    def show(self, req: Request, resp: Response) -> dict[str, Any]:
        """``GET /os-quota-sets/{project}``; with ``?usage=True`` what is used beside each limit."""
        target = self.name()
        usage = req.query.flag("usage")
        return {"quota_set": {"id": target, **self.managers.quota.show(target, usage)}}

    @expose("PUT", rule="volume_extension:quotas:update", takes=schemas.quota_set)
    def update(self, req: Request, resp: Response) -> dict[str, Any]:
        """``PUT /os-quota-sets/{project}``."""
        target = self.name()
        self.expect_project(target)
        wanted = req.data["quota_set"]
        force = req.query.flag("skip_validation") or boolean(wanted.get("force") or False, "force")
        return {"quota_set": self.managers.quota.update(target, _given_limits(wanted), force=force)}

    @expose("DELETE", rule="volume_extension:quotas:delete")
    def delete(self, req: Request, resp: Response) -> None:
        """``DELETE /os-quota-sets/{project}``: the defaults hold again."""
        target = self.name()
        self.managers.quota.delete(target)

    @expose("GET", "defaults", rule="volume_extension:quotas:show")
    def defaults(self, req: Request, resp: Response) -> dict[str, Any]:
        """``GET /os-quota-sets/{project}/defaults``."""
        target = self.name()
        return {"quota_set": {"id": target, **self.managers.quota.defaults()}}


class QuotaSetsController(Controller):
    """``/os-quota-sets``: of one project at a time."""

    item = ("target", QuotaSetController)


class QuotaClassController(NamedController):
    """``/os-quota-class-sets/{name}``."""

    arg = "name"

    def project_of(self, req: Request) -> None:
        """Check the name; a class has no project."""
        self.name()

    @expose("GET", rule="volume_extension:quota_classes:get")
    def show(self, req: Request, resp: Response) -> dict[str, Any]:
        """``GET /os-quota-class-sets/{name}``."""
        name = self.name()
        return {"quota_class_set": {"id": name, **self.managers.quota.class_show(name)}}

    @expose("PUT", rule="volume_extension:quota_classes:update", takes=schemas.quota_class_set)
    def update(self, req: Request, resp: Response) -> dict[str, Any]:
        """``PUT /os-quota-class-sets/{name}``."""
        name = self.name()
        limits = _given_limits(req.data["quota_class_set"])
        return {"quota_class_set": self.managers.quota.class_update(name, limits)}


class QuotaClassesController(Controller):
    """``/os-quota-class-sets``: one at a time."""

    item = ("name", QuotaClassController)

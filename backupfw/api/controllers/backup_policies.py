"""Backup policies: a resource of this service's own, which the published API does not have."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from backupfw import moments
from backupfw.api import errors as api_errors
from backupfw.api import versions
from backupfw.api.controllers.base import Controller, checked_id, id_of, stripped
from backupfw.api.query import ListingRules
from backupfw.api.request import Request, Response, action, expose
from backupfw.api.resource import ActionsResource
from backupfw.api.schemas import backup_policies as schemas
from backupfw.api.views import backup_policies as views
from backupfw.errors import BackupPolicyNotFound
from backupfw.manager.policies.manager import PARTS

if TYPE_CHECKING:
    from backupfw.manager.rows import BackupPolicy

_COLUMNS = ("id", "created_at", "updated_at", "enabled", "next_run_at", "display_name")
LISTING = ListingRules(
    sort_keys={**{column: column for column in _COLUMNS}, "name": "display_name"},
    filter_keys={"name": "display_name", "enabled": "enabled"},
)
_RUN_COLUMNS = ("id", "created_at", "scheduled_at", "started_at", "ended_at", "status", "volume_id")
RUNS = ListingRules(
    sort_keys={column: column for column in _RUN_COLUMNS},
    filter_keys={column: column for column in ("status", "volume_id", "backup_id")},
)


class _Policies(Controller):
    """Base of the controllers of one policy and of all policies."""

    def _enforce_work(self, req: Request, project_id: str, copy_to: object) -> None:
        """Refuse what the caller could not do by hand.

        A policy makes and deletes backups, and copies of them, so whoever makes or changes one, or lets one
        go on, must be allowed to do that.

        :param copy_to: where it copies to, if it does.
        :raises Forbidden: he is not.
        """
        for rule in ("backup:create", "backup:delete", *(("backup:copy",) if copy_to else ())):
            self.enforce(req, rule, project_id)

    def _wanted(self, req: Request, project_id: str, copy_to: object = ()) -> dict[str, Any]:
        """Return what a body asks for, as the use cases take it.

        :param copy_to: where the policy copies to until now.
        :raises Forbidden: see above.
        """
        body: Mapping[str, Any] = req.data["backup_policy"]
        self._enforce_work(req, project_id, body.get("copy_to", copy_to))
        wanted: dict[str, Any] = {
            field: stripped(body[field]) for field in ("name", "description") if field in body
        }
        wanted |= {field: body[field] for field in ("enabled", "max_concurrent") if field in body}
        settings = {part: body[part] for part in PARTS if part in body}
        if ids := settings.get("selection", {}).get("volume_ids"):
            settings["selection"] = {"volume_ids": list(dict.fromkeys(id_of(one) for one in ids))}
        return {**wanted, "settings": settings}


class PolicyController(_Policies, ActionsResource):
    """``/backup-policies/{policy_id}``."""

    policy: BackupPolicy

    def project_of(self, req: Request) -> str:
        """Find the policy; return its project."""
        policy_id = checked_id(self.parts[0], BackupPolicyNotFound)
        self.policy = self.managers.policies.get(req.context, policy_id)
        return self.policy.project_id

    def _shown(self, req: Request, policy: BackupPolicy) -> dict[str, Any]:
        return {"backup_policy": views.detail(req, policy)}

    @expose("GET", rule="backup_policy:get")
    def show(self, req: Request, resp: Response) -> dict[str, Any]:
        """``GET /backup-policies/{id}``."""
        return self._shown(req, self.policy)

    @expose("PUT", rule="backup_policy:update", takes=schemas.update)
    def update(self, req: Request, resp: Response) -> dict[str, Any]:
        """``PUT /backup-policies/{id}``: what is not named stays."""
        wanted = self._wanted(req, self.policy.project_id, self.policy.settings["copy_to"])
        return self._shown(req, self.managers.policies.update(req.context, self.policy.id, **wanted))

    @expose("DELETE", rule="backup_policy:delete", status=204)
    def delete(self, req: Request, resp: Response) -> None:
        """``DELETE /backup-policies/{id}``: its backups stay."""
        self.managers.policies.delete(req.context, self.policy.id)

    @expose("GET", "runs", rule="backup_policy:get")
    def runs(self, req: Request, resp: Response) -> dict[str, Any]:
        """``GET /backup-policies/{id}/runs``: the newest first."""
        lister = functools.partial(self._list_runs, self.policy.id)
        return self.page(req, lister, "runs", RUNS, views.run)

    def _list_runs(self, policy_id: str, context: Any, **paging: Any) -> Any:
        return self.managers.policies.runs(context, policy_id, **paging)

    @action("run", rule="backup_policy:run", takes=schemas.run)
    def run(self, req: Request, resp: Response) -> dict[str, Any]:
        """Action ``run``: now, besides the schedule."""
        self.enforce(req, "backup:create", self.policy.project_id)
        if self.policy.settings["copy_to"]:
            self.enforce(req, "backup:copy", self.policy.project_id)
        begun = self.managers.policies.run(req.context, self.policy.id)
        return {"runs": [views.run(one) for one in begun]}

    @action("pause", rule="backup_policy:update", takes=schemas.pause, status=200)
    def pause(self, req: Request, resp: Response) -> dict[str, Any]:
        """Action ``pause``."""
        return self._shown(req, self.managers.policies.pause(req.context, self.policy.id))

    @action("resume", rule="backup_policy:update", takes=schemas.resume, status=200)
    def resume(self, req: Request, resp: Response) -> dict[str, Any]:
        """Action ``resume``."""
        self._enforce_work(req, self.policy.project_id, self.policy.settings["copy_to"])
        return self._shown(req, self.managers.policies.resume(req.context, self.policy.id))

    @action("preview", rule="backup_policy:get", takes=schemas.preview, status=200)
    def preview(self, req: Request, resp: Response) -> dict[str, Any]:
        """Action ``preview``: what it will do; nothing is changed."""
        wanted = req.data["preview"]
        at = wanted.get("at")
        try:
            moment = None if at is None else moments.parse(at)
        except ValueError as error:
            raise api_errors.BadRequest(f"Invalid input received: at: {at!a} is no time.") from error
        days = wanted.get("days")
        found = self.managers.policies.preview(
            req.context,
            self.policy.id,
            at=moment,
            days=30 if days is None else days,
            volume_id=id_of(wanted.get("volume_id")),
        )
        return {"preview": views.preview(found)}


class PoliciesController(_Policies):
    """``/backup-policies``."""

    since = versions.BASE_VERSION
    item = ("policy_id", PolicyController)

    @expose("GET", rule="backup_policy:get_all")
    @expose("GET", "detail", rule="backup_policy:get_all")
    def index(self, req: Request, resp: Response) -> dict[str, Any]:
        """``GET /backup-policies`` and ``GET /backup-policies/detail``."""
        return self.page(
            req,
            self.managers.policies.list,
            "backup_policies",
            LISTING,
            functools.partial(views.detail, req),
            functools.partial(views.summary, req),
        )

    @expose("POST", rule="backup_policy:create", takes=schemas.create, status=201)
    def create(self, req: Request, resp: Response) -> dict[str, Any]:
        """``POST /backup-policies``."""
        wanted = self._wanted(req, req.context.project_id)
        made = self.managers.policies.create(req.context, **wanted)
        return {"backup_policy": views.detail(req, made)}

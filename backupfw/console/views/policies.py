"""Policies: a list, and the form that makes one."""

from __future__ import annotations

from functools import partial

from backupfw import naming
from backupfw.api.request import Request, Response, expose
from backupfw.console import policy_form
from backupfw.console.page import View
from backupfw.console.views.policy import PolicyPage
from backupfw.console.views.policy_base import MAKES, PolicyBase

#: How many policies a page has.
SHOWN = 50


class PoliciesPage(PolicyBase):
    """``/console/policies``."""

    item = ("policy_id", PolicyPage)

    @expose("GET", rule="backup_policy:get_all")
    def index(self, req: Request, resp: Response) -> View:
        """List them, the newest first."""
        everywhere = bool(req.context.is_admin)
        found = self.site.managers.policies.list(
            req.context, all_tenants=everywhere, limit=SHOWN + 1, marker=req.query.get("marker")
        ).items
        view = View("policies", policies=found[:SHOWN], more=len(found) > SHOWN, everywhere=everywhere)
        may_create = self.may(req, self._project(req, None), "backup_policy:create", *MAKES)
        view.update(may_create=may_create, now=self.site.overview.moment())
        return view

    @expose("GET", "new", rule="backup_policy:create")
    def new(self, req: Request, resp: Response) -> View:
        """Show the form."""
        project = self._project(req, req.query.get("project"))
        self.needs(req, project, "backup_policy:create", *MAKES)
        return self.form(req, None, project, policy_form.empty(req.query.get("volume") or ""), {})

    @expose("POST", rule="backup_policy:create")
    def create(self, req: Request, resp: Response) -> View | None:
        """Make one, or say what is wrong with the form."""
        project = self._project(req, req.data.get("project"))
        context = self.needs(req, project, "backup_policy:create", *MAKES)
        return self.sent(req, resp, None, project, partial(self.site.managers.policies.create, context))

    def _project(self, req: Request, asked: str | None) -> str:
        """Return whose policy it becomes: whoever acts anywhere names the project."""
        project = (asked or "").strip()
        named = bool(project) and naming.is_name(project)
        return self.acting(req, project).project_id if named else req.context.project_id

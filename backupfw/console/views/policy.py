"""One policy: what it does, its runs, what becomes of its backups, and what can be done with it."""

from __future__ import annotations

from functools import partial

from backupfw.api.request import Request, Response, expose
from backupfw.console import calendar, policy_form
from backupfw.console.page import View, go, number
from backupfw.console.views.policy_base import COPIES, MAKES, PolicyBase
from backupfw.errors import InvalidInput
from backupfw.manager.policies import settings
from backupfw.manager.rows import BackupPolicy

#: How many runs a page has, and how many volumes a preview, with how many backups each.
SHOWN = 50
PREVIEWED = (5, 50)
_DO = {
    "run": ("backup_policy:run", "backup:create"),
    "pause": ("backup_policy:update",),
    "resume": ("backup_policy:update", *MAKES),
    "edit": ("backup_policy:update", *MAKES),
    "delete": ("backup_policy:delete",),
}


class PolicyPage(PolicyBase):
    """``/console/policies/{policy_id}``."""

    policy: BackupPolicy

    def project_of(self, req: Request) -> str:
        """Find the policy; return its project."""
        self.policy = self.site.managers.policies.get(req.context, self.parts[0].lower())
        return self.policy.project_id

    def _rules(self, what: str) -> tuple[str, ...]:
        """Return what must be allowed to whoever does something with the policy."""
        copies = self.policy.settings["copy_to"] and what in ("run", "resume", "edit")
        return (*_DO[what], *((COPIES,) if copies else ()))

    @expose("GET", rule="backup_policy:get")
    def show(self, req: Request, resp: Response) -> View:
        """Show it."""
        policy, overview = self.policy, self.site.overview
        moment, set_to = overview.moment(), settings.read(policy.settings)
        marker = req.query.get("marker")
        runs = self.site.managers.policies.runs(req.context, policy.id, limit=SHOWN + 1, marker=marker).items
        wanted = [*(run.volume_id for run in runs), *(set_to.volume_ids or ())]
        names = overview.volume_names(req.context, wanted)
        may = {what: self.may(req, policy.project_id, *self._rules(what)) for what in _DO}
        weeks = calendar.weeks(set_to.schedule, moment) if policy.enabled else ()
        view = View("policy", policy=policy, form=policy_form, weeks=weeks, may=may, now=moment)
        view.update(runs=runs[:SHOWN], more=len(runs) > SHOWN, names=names)
        return view

    @expose("GET", "preview", rule="backup_policy:get")
    def preview(self, req: Request, resp: Response) -> View:
        """Say why each backup is kept, and when it goes."""
        days = min(number(req.query.get("days")) or 30, 366)
        volume = (req.query.get("volume") or "").strip().lower()
        found = self.site.managers.policies.preview(
            req.context, self.policy.id, days=days, volume_id=volume or None
        )
        view = View(
            "policy_preview", policy=self.policy, found=found, most=PREVIEWED, days=days, volume=volume
        )
        wanted = [one.volume_id for one in found.volumes[: PREVIEWED[0]]]
        names = self.site.overview.volume_names(req.context, wanted)
        view.update(names=names, now=self.site.overview.moment())
        return view

    @expose("GET", "edit", rule="backup_policy:update")
    def edit(self, req: Request, resp: Response) -> View:
        """Show the form."""
        policy = self.policy
        self.needs(req, policy.project_id, *self._rules("edit"))
        return self.form(req, policy, policy.project_id, policy_form.filled(policy), {})

    @expose("POST", "edit", rule="backup_policy:update")
    def change(self, req: Request, resp: Response) -> View | None:
        """Change it, or say what is wrong with the form."""
        context = self.needs(req, self.policy.project_id, *self._rules("edit"))
        act = partial(self.site.managers.policies.update, context, self.policy.id)
        return self.sent(req, resp, self.policy, self.policy.project_id, act)

    @expose("GET", "delete", rule="backup_policy:delete")
    def confirm(self, req: Request, resp: Response) -> View:
        """Ask whether the deletion is meant."""
        return View("policy_delete", policy=self.policy)

    @expose("POST", "delete", rule="backup_policy:delete")
    def delete(self, req: Request, resp: Response) -> None:
        """Delete it; its backups stay."""
        context = self.needs(req, self.policy.project_id, *self._rules("delete"))
        self.site.managers.policies.delete(context, self.policy.id)
        go(req, resp, "policies")

    @expose("POST", "act", rule="backup_policy:get")
    def act(self, req: Request, resp: Response) -> None:
        """Run it now, let it rest or go on: what the button says."""
        policies = self.site.managers.policies
        acts = {"run": policies.run, "pause": policies.pause, "resume": policies.resume}
        what = req.data.get("what", "")
        if what not in acts:
            raise InvalidInput("what: must be run, pause or resume.")
        acts[what](self.needs(req, self.policy.project_id, *self._rules(what)), self.policy.id)
        go(req, resp, f"policies/{self.policy.id}")

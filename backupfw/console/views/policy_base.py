"""What the pages of policies share: the rights that they ask for, and the form."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from backupfw.api.request import Request, Response
from backupfw.console import policy_form
from backupfw.console.page import Page, View, go
from backupfw.context import RequestContext
from backupfw.errors import InvalidInput
from backupfw.manager.policies.manager import PARTS
from backupfw.manager.rows import BackupPolicy

#: As in the API: a policy makes and deletes backups, so whoever sets one to do so must be allowed to.
MAKES = ("backup:create", "backup:delete")
#: And where it copies them to another store.
COPIES = "backup:copy"
#: The volumes that the form names.
_NAMED = 50


class PolicyBase(Page):
    """Base of the pages of policies."""

    def may(self, req: Request, project_id: str, *rules: str) -> bool:
        """Whether rules allow the caller something in a project."""
        return all(self.allows(req, rule, project_id) for rule in rules)

    def needs(self, req: Request, project_id: str, *rules: str) -> RequestContext:
        """Return as whom the caller acts in a project.

        :raises Forbidden: a rule does not allow it.
        """
        for rule in rules:
            self.enforce(req, rule, project_id)
        return self.acting(req, project_id)

    def form(
        self,
        req: Request,
        policy: BackupPolicy | None,
        project: str,
        given: Mapping[str, str],
        problems: Mapping[str, str],
    ) -> View:
        """Return the form of a policy, or of a new one, with what is wrong with it."""
        # Not as an administrator, who would see those of all projects.
        own = RequestContext(project, req.context.user_id, request_id=req.context.request_id)
        names = {volume.id: volume.name for volume in self.site.overview.volumes(own, limit=_NAMED)}
        view = View("policy_form", policy=policy, form=policy_form, given=given, problems=problems)
        view.update(choices=list(self.site.managers.policies.quiesce_commands))
        view.update(project=project, anywhere=policy is None and self.acts_anywhere(req), volumes=names)
        return view

    def sent(
        self,
        req: Request,
        resp: Response,
        policy: BackupPolicy | None,
        project: str,
        act: Callable[..., BackupPolicy],
    ) -> View | None:
        """Do what a form asks for, or return the form with what is wrong with it."""
        body = policy_form.body(req.data, policy)
        problems = policy_form.problems(body)
        if policy is not None and req.data.get("seen") != policy_form.state(policy):
            # It would undo that, and perhaps let backups go that are to be kept now.
            problems[""] = "Somebody has changed the policy meanwhile. To send this again undoes that."
        if body["copy_to"]:
            self.needs(req, project, COPIES)
        if not problems:
            own = {name: body[name] for name in ("name", "description", "max_concurrent")}
            try:
                made = act(settings={part: body[part] for part in PARTS}, **own)
            except InvalidInput as error:
                key, message = policy_form.place_of(str(error))
                problems = {key: message}
            else:
                go(req, resp, f"policies/{made.id}")
                return None
        resp.status = 400
        return self.form(req, policy, project, req.data, problems)

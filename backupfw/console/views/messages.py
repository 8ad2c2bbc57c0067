"""Messages: what users were told of operations that failed; and who had what done when."""

from __future__ import annotations

from backupfw.api.request import Request, Response, expose
from backupfw.console.page import Page, View, go, number

#: How many a page has.
SHOWN = 50


class MessagePage(Page):
    """``/console/messages/{message_id}``."""

    def project_of(self, req: Request) -> str:
        """Find the message; return its project."""
        return self.site.managers.messages.get(req.context, self.parts[0]).project_id

    @expose("POST", "delete", rule="message:delete")
    def delete(self, req: Request, resp: Response) -> None:
        """Delete it: it has been read."""
        self.site.managers.messages.delete(req.context, self.parts[0])
        go(req, resp, "messages")


class MessagesPage(Page):
    """``/console/messages``."""

    item = ("message_id", MessagePage)

    @expose("GET", rule="message:get_all")
    def index(self, req: Request, resp: Response) -> View:
        """List them, the newest first."""
        everywhere, project = bool(req.context.is_admin), (req.query.get("project") or "").strip()
        found = self.site.managers.messages.list(
            req.context,
            all_tenants=everywhere,
            filters={"project_id": project} if project else {},
            limit=SHOWN + 1,
            marker=req.query.get("marker"),
        ).items
        return View(
            "messages",
            messages=found[:SHOWN],
            more=len(found) > SHOWN,
            everywhere=everywhere,
            project=project,
            may_delete={one.project_id: self.allows(req, "message:delete", one.project_id) for one in found},
            now=self.site.overview.moment(),
        )

    @expose("GET", "done", rule="backup:get_all")
    def done(self, req: Request, resp: Response) -> View:
        """List who had what done when, the newest first."""
        project, about = ((req.query.get(name) or "").strip() for name in ("project", "about"))
        found = self.site.actions.list(
            req.context,
            project_id=project or None,
            about=about.lower() or None,
            policies=self.allows(req, "backup_policy:get_all"),
            before=number(req.query.get("before"), 18) or None,
            limit=SHOWN + 1,
        )
        view = View("done", actions=found[:SHOWN], more=len(found) > SHOWN, project=project, about=about)
        view.update(everywhere=bool(req.context.is_admin), now=self.site.overview.moment())
        return view

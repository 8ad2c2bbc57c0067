"""Now: what runs, what waits and why, what failed last."""

from __future__ import annotations

from backupfw.api.request import Request, Response, expose
from backupfw.console.page import OPERATORS, Page, View, go, is_refresh
from backupfw.manager.rows import Backup

#: How many failures are shown.
FAILURES = 10


class OperationPage(Page):
    """``/console/now/{backup_id}``: an operation on a backup that may be cancelled."""

    backup: Backup

    def project_of(self, req: Request) -> str:
        """Find the backup; return its project."""
        self.backup = self.site.managers.backups.get(req.context, self.parts[0])
        return self.backup.project_id

    @expose("GET", "cancel", rule="backup:cancel")
    def confirm(self, req: Request, resp: Response) -> View:
        """Ask whether it is meant."""
        return View("cancel", backup=self.backup, verification=bool(req.query.get("verification")))

    @expose("POST", "cancel", rule="backup:cancel")
    def cancel(self, req: Request, resp: Response) -> None:
        """Cancel it."""
        self.site.managers.backups.cancel(
            self.acting(req, self.backup.project_id),
            self.backup.id,
            verification="verification" in req.data,
        )
        go(req, resp, "now")


class NowPage(Page):
    """``/console/now``."""

    item = ("backup_id", OperationPage)

    @expose("GET", rule="backup:get_all")
    def index(self, req: Request, resp: Response) -> View:
        """Show it; what changes is asked for again and again."""
        work, everywhere = self.site.overview.work(req.context), bool(req.context.is_admin)
        projects = {one.project_id for one in work.operations}
        may_cancel = {project: self.allows(req, "backup:cancel", project) for project in projects}
        failures = None
        if self.allows(req, "message:get_all") and not is_refresh(req):
            listed = self.site.managers.messages.list
            failures = listed(req.context, all_tenants=everywhere, limit=FAILURES).items
        return View(
            "now",
            "changing",
            work=work,
            failures=failures,
            may_cancel=may_cancel,
            everywhere=everywhere,
            shows_workers=self.allows(req, OPERATORS),
        )

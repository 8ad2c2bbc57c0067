"""Stores: what each one holds and costs, how that grew, and how well it is looked after; for operators."""

from __future__ import annotations

from backupfw.api.request import Request, Response, expose
from backupfw.console import growth
from backupfw.console.page import OPERATORS, Page, View


class StoresPage(Page):
    """``/console/stores``."""

    @expose("GET", rule=OPERATORS)
    def index(self, req: Request, resp: Response) -> View:
        """Show them."""
        uses = self.site.stores.uses()
        lines = {one.name: growth.drawn(one.history) for one in uses}
        calls, now = self.site.calls(), self.site.overview.moment()
        return View("stores", stores=uses, lines=lines, calls=calls, now=now, gib=1 << 30)

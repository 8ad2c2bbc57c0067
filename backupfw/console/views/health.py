"""Health: is everything backed up, and if not, what is not?"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

from backupfw.api.request import Request, Response, expose
from backupfw.console.page import OPERATORS, Page, View
from backupfw.manager.rows import PolicyRun
from backupfw.manager.usecases.overview import SHOWN

#: How old the newest good backup of a volume may be, days: the choices, the first one by default.
AGES = (1, 7, 30)
#: What a nightly backup may be late without a warning.
GRACE = timedelta(hours=2)


class HealthPage(Page):
    """``/console/health``."""

    @expose("GET", rule="backup:get_all")
    def index(self, req: Request, resp: Response) -> View:
        """Show it; the whole is asked for again each minute."""
        days = next((one for one in AGES if str(one) == req.query.get("days")), AGES[0])
        health = self.site.overview.health(
            req.context,
            age=timedelta(days=days) + GRACE,
            installation=self.allows(req, OPERATORS),
        )
        runs: Sequence[PolicyRun] = ()
        if self.allows(req, "backup_policy:get"):
            since = health.moment - timedelta(days=1)
            runs = self.site.managers.policies.missed_or_failed(req.context, since, SHOWN)
        good = health.is_good and not runs
        return View("health", "changing", health=health, runs=runs, good=good, days=days, ages=AGES)

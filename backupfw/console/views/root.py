"""The tree of the pages."""

from __future__ import annotations

from backupfw.console.page import Page
from backupfw.console.views.now import NowPage


class RootPage(Page):
    """``/console/``."""

    children = {"now": NowPage}

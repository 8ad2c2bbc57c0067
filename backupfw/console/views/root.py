"""The tree of the pages."""

from __future__ import annotations

from backupfw.console.page import Page
from backupfw.console.views.health import HealthPage
from backupfw.console.views.messages import MessagesPage
from backupfw.console.views.now import NowPage
from backupfw.console.views.policies import PoliciesPage
from backupfw.console.views.stores import StoresPage
from backupfw.console.views.volumes import VolumesPage


class RootPage(Page):
    """``/console/``."""

    children = {
        "health": HealthPage,
        "messages": MessagesPage,
        "now": NowPage,
        "policies": PoliciesPage,
        "stores": StoresPage,
        "volumes": VolumesPage,
    }

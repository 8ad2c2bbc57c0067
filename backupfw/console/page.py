"""What all pages of the console share: the site, the base of the pages, and how a page is written."""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any
from urllib.parse import quote

import webob
from mako.lookup import TemplateLookup
from markupsafe import Markup

from backupfw.api import policies
from backupfw.api.request import Request
from backupfw.api.resource import Resource
from backupfw.api.site import Site
from backupfw.console import files, shown
from backupfw.console.sessions import User
from backupfw.context import RequestContext
from backupfw.manager.actions import ActionManager
from backupfw.manager.usecases.overview import Overview
from backupfw.manager.usecases.stores import StoreManager

#: Key of the :class:`User` in the WSGI environment.
USER = "backupfw.console.user"

#: What this process knows of its calls to stores.
StoreCalls = Callable[[], Mapping[str, tuple[int, int]]]
#: The rule of whoever sees the installation, beside projects.
OPERATORS = "volume_extension:services:index"

#: The pages of the menu: part of the path, name, and the policy's rule that shows it.
MENU = (
    ("health", "Health", "backup:get_all"),
    ("now", "Now", "backup:get_all"),
    ("volumes", "Volumes", "volume:get_all"),
    ("policies", "Policies", "backup_policy:get_all"),
    ("stores", "Stores", OPERATORS),
    ("messages", "Messages", "message:get_all"),
)


@dataclass(frozen=True)
class ConsoleSite(Site):
    """What the pages share; thread-safe.

    :ivar overview: reads for people.
    :ivar stores: what stores hold.
    :ivar actions: who had what done.
    :ivar calls: how many calls this process made to each store, and how many failed.
    """

    overview: Overview
    stores: StoreManager
    actions: ActionManager
    calls: StoreCalls


class View(dict[str, Any]):
    """The answer of a page: a template, and the values that it shows.

    :param template: its file's name, without the ending.
    :param fragment: the ``<%def>`` that is the whole answer if htmx asks; None: it asks for nothing here.
    """

    def __init__(self, template: str, fragment: str | None = None, **values: Any) -> None:
        super().__init__(values)
        self.template = template
        self.fragment = fragment


class Page(Resource):
    """Base of the pages."""

    site: ConsoleSite

    def allows(self, req: Request, rule: str, project_id: str | None = None) -> bool:
        """Whether a rule allows the caller something, in his own project unless one is named."""
        own = req.context.project_id
        return self.site.policy.allows(req.context, rule, own if project_id is None else project_id)

    def enforce(self, req: Request, rule: str, project_id: str) -> None:
        """Refuse what a rule does not allow the caller in a project.

        :raises Forbidden: it does not.
        """
        policies.enforce(self.site.policy, req.context, rule, project_id)

    def acts_anywhere(self, req: Request) -> bool:
        """Whether the caller may act in any project.

        With ``noauth`` no caller belongs to a project, so whoever sees all projects may, as commands do.
        """
        return self.site.settings.auth_strategy == "noauth" and bool(req.context.is_admin)

    def acting(self, req: Request, project_id: str) -> RequestContext:
        """Return as whom the caller changes something of a project: in that project, if he acts anywhere."""
        mine = req.context
        if not self.acts_anywhere(req):
            return mine
        return RequestContext(
            project_id, mine.user_id, mine.roles, bool(mine.is_admin), request_id=mine.request_id
        )


def is_refresh(request: webob.Request) -> bool:
    """Whether a page asks for its own changing part: not its user, but htmx."""
    return bool(request.headers.get("HX-Request") == "true")


def number(text: str | None, digits: int = 9) -> int:
    """Return a number of a query that has at most so many digits; 0: it is none."""
    return int(text) if text and text.isascii() and text.isdigit() and len(text) <= digits else 0


def go(request: webob.Request, response: webob.Response, where: str) -> None:
    """Send a browser to a page of the console: the address always begins with the console's own."""
    response.status = 303
    # A volume of which another service made backups may have any id.
    response.headers["Location"] = f"{request.script_name}/{quote(where.lstrip('/'), safe='/?&=%+')}"


_needs_escaping = re.compile("[&<>\"']").search


def escaped(value: object) -> str:
    """Return a value as text of a page: what is no markup becomes none.

    It stands for ``markupsafe.escape``, which makes an object of each value: a page with a hundred rows has
    thousands, and it took a third of the time of a refresh.
    """
    if isinstance(value, Markup):
        return value
    text = str(value)
    return html.escape(text) if _needs_escaping(text) else text


@cache
def _templates() -> TemplateLookup:
    place = str(resources.files(__package__).joinpath("templates"))
    return TemplateLookup(
        [place],
        default_filters=["escaped"],
        imports=["from backupfw.console.page import escaped"],
        strict_undefined=True,
        filesystem_checks=False,
        input_encoding="utf-8",
    )


def render(request: webob.Request, view: View, allows: Callable[[str], bool]) -> str:
    """Write a page, or the part of it that htmx asks for.

    :param allows: whether a rule of the policy allows the caller something in his own project.
    """
    base = request.script_name
    user: User | None = request.environ.get(USER)
    common = {
        "base": base,
        "user": user,
        "here": request.path_info.removeprefix("/").partition("/")[0],
        "menu": [(part, name) for part, name, rule in MENU if user is not None and allows(rule)],
        "static": lambda beginning: f"{base}/static/{files.address(beginning)}",
        "shown": shown,
    }
    template: Any = _templates().get_template(f"{view.template}.mako")
    if view.fragment is not None and is_refresh(request):
        template = template.get_def(view.fragment)
    text: str = template.render(**common, **view)
    return text

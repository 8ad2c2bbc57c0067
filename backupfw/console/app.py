"""Puts the console together: one WSGI application below ``/console/`` of the API.

From the outside in: headers, static files, the check where a form comes from, login and session, the identity
layer of the API, Pecan.  A session puts the user's token where the identity layer of the API looks for it, so
callers of both are known, and their rights found, by the same code.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any
from urllib.parse import urlencode

import pecan.hooks
import webob
from pecan.core import ExplicitPecan

from backupfw import naming
from backupfw.api import errors as api_errors
from backupfw.api import faults, identity, urls, versions
from backupfw.api.hooks import PolicyHook
from backupfw.api.pipeline import Environ, WsgiApp
from backupfw.api.query import Query
from backupfw.api.request import Request, Response
from backupfw.api.resource import TEMPLATE
from backupfw.api.site import Site
from backupfw.console import files
from backupfw.console.login import Attempts, Login, Refused
from backupfw.console.page import USER, ConsoleSite, StoreCalls, View, go, is_refresh, render
from backupfw.console.sessions import Sessions, User, is_private
from backupfw.console.views.root import RootPage
from backupfw.manager.actions import ActionManager
from backupfw.manager.usecases.overview import Overview
from backupfw.manager.usecases.stores import StoreManager

#: Where the console lies.
MOUNT = "console"
#: A page to which a login may lead.
_PAGE = re.compile("[a-z0-9/-]*", re.ASCII)
#: The longest form, bytes.
_MAX_FORM = 1 << 16
_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'self'; img-src 'self' data:; object-src 'none';"
        " frame-ancestors 'none'; base-uri 'none'; form-action 'self'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
}
#: What the identity layer finds in place of the address of a call: neither a project nor a document.
_PATH = urls.Path("v3", None, (MOUNT,))


class _Pecan(ExplicitPecan):  # type: ignore[misc]
    """Pecan without thread-locals, whose answers are pages."""

    def route(self, req: Request, node: RootPage, path: str) -> tuple[Any, Any]:
        """Find the page; the figures of requests count it by its template, beside those of the API."""
        try:
            # As the API, it knows a path with a slash at its end.
            found: tuple[Any, Any] = node._route(path.rstrip("/").split("/")[1:], req)
        finally:
            req.environ[TEMPLATE] = f"/{MOUNT}{req.environ.get(TEMPLATE, '')}"
        return found

    def invoke_controller(
        self, controller: Callable[..., Any], args: list[Any], kwargs: dict[str, Any], state: Any
    ) -> None:
        """Call a page's method and write the page; None: the method has answered by itself."""
        view = controller(*args, **kwargs)
        if view is not None:
            state.response.text = _write(state.request, view)


def _write(request: Request, view: View) -> str:
    context = request.context
    site: ConsoleSite = request.environ[_SITE]
    return render(request, view, lambda rule: site.policy.allows(context, rule, context.project_id))


#: Key of the site in the WSGI environment.
_SITE = "backupfw.console.site"


class _PageHook(pecan.hooks.PecanHook):  # type: ignore[misc]
    """Fills the request before its page is looked for, and writes errors as pages."""

    priority = 10

    def on_route(self, state: Any) -> None:
        """Fill the request.

        :raises BadRequest: the query or the form is malformed.
        """
        request: Request = state.request
        request.pecan["content_type"] = "application/json"
        request.context = request.environ[identity.CONTEXT]
        request.version = versions.SERVED["v3"].highest
        request.query = Query.parse(request.environ.get("QUERY_STRING", ""))
        request.data = _form(request) if request.method == "POST" else {}
        state.response.content_type = "text/html"

    def on_error(self, state: Any, error: Exception) -> webob.Response:
        """Return the page that tells an error, with the status of the API."""
        response = faults.response_of(error, state.request.environ)
        response.content_type = "text/html"
        message = faults.fault_of(error).message
        response.text = _write(state.request, View("error", message=message))
        return response


def _form(request: webob.Request) -> Mapping[str, str]:
    """Return the fields of a form.

    :raises BadRequest: it is malformed.
    :raises BodyTooLarge: it is too long.
    """
    if request.content_length is None or request.content_length > _MAX_FORM:
        raise api_errors.BodyTooLarge
    return Query.parse(request.body.decode("latin-1")).items()


class Console:
    """The WSGI application.  Thread-safe.

    :param site: what the pages share.
    :param identify: puts the identity layer of the API before an application.
    :param sessions: who is logged in.
    :param login: how users identify themselves.
    """

    def __init__(
        self, site: ConsoleSite, identify: Callable[[WsgiApp], WsgiApp], sessions: Sessions, login: Login
    ) -> None:
        self._site = site
        self._sessions = sessions
        self._login = login
        self._attempts = Attempts()
        app = _Pecan(
            RootPage(site),
            hooks=[_PageHook(), PolicyHook(site)],
            force_canonical=False,
            guess_content_type_from_ext=False,
            use_context_locals=False,
            request_cls=Request,
            response_cls=Response,
        )
        self._pages = identify(app)

    def __call__(self, environ: Environ, start_response: Any) -> Iterable[bytes]:
        """Answer one request."""
        request = webob.Request(environ)
        readable = _is_readable(environ)
        if not readable:
            environ["PATH_INFO"] = f"/{MOUNT}"
        request.path_info_pop()
        try:
            if not readable:
                raise api_errors.UnknownRoute
            response = self._answer(request)
        except Exception as error:  # noqa: BLE001  (nothing may reach the server as a trace)
            # It also writes the log line.
            status = faults.response_of(error, environ).status_int
            response = self._refusal(request, status, faults.fault_of(error).message)
        response.headers.update(_HEADERS)
        if "Cache-Control" not in response.headers:
            response.cache_control = "no-store"
        # WebOb would make it absolute, with a scheme that a proxy may have changed.
        if (location := response.headers.get("Location")) is not None:
            response.headers["Location"] = location.removeprefix(request.host_url)
        start_response(response.status, response.headerlist)
        return [] if request.method == "HEAD" else response.app_iter

    def _public(self, request: webob.Request, template: str, **values: Any) -> str:
        """Write a page for somebody who is not logged in."""
        return render(request, View(template, **values), lambda _rule: False)

    def _refusal(self, request: webob.Request, status: int, message: str) -> webob.Response:
        text = self._public(request, "error", message=message)
        return webob.Response(text, status, content_type="text/html", charset="utf-8")

    def _answer(self, request: webob.Request) -> webob.Response:
        first, _, rest = request.path_info.removeprefix("/").partition("/")
        if request.method not in ("GET", "HEAD", "POST"):
            raise api_errors.UnknownRoute
        if first == "static":
            found = files.answer(request, rest)
            if found is None or request.method == "POST":
                raise api_errors.UnknownRoute
            return found
        if request.method == "POST" and not _is_ours(request):
            return self._refusal(request, 403, "This form does not come from a page of the console.")
        if first in ("login", "logout") and not rest:
            return self._login_page(request) if first == "login" else self._logout_page(request)
        if not first:
            return _gone(request, "health")
        user = self._sessions.find(request, uses=not is_refresh(request))
        return self._ask_to_log_in(request) if user is None else self._page(request, user)

    def _page(self, request: webob.Request, user: User) -> webob.Response:
        """Answer a request of somebody who is logged in."""
        environ = request.environ
        for name in [name for name in environ if name.startswith("HTTP_X_")]:
            # Who asks is the session's to say, not the browser's.
            del environ[name]
        environ |= {USER: user, _SITE: self._site, urls.PATH: _PATH, "HTTP_X_AUTH_TOKEN": user.token}
        response = request.get_response(self._pages)
        if response.status_int == 401:
            # The token has ended before the session.
            response = self._ask_to_log_in(request)
            self._sessions.end(request, response)
        return response

    def _ask_to_log_in(self, request: webob.Request) -> webob.Response:
        here = request.path_info.strip("/") if request.method == "GET" else ""
        response = _gone(request, f"login?{urlencode({'next': here})}" if here else "login")
        if is_refresh(request):
            # htmx would put the login into the page.
            response.status = 200
            response.headers["HX-Redirect"] = response.headers.pop("Location")
        return response

    def _login_page(self, request: webob.Request) -> webob.Response:
        if request.method == "POST":
            return self._log_in(request)
        query = Query.parse(request.query_string)
        return self._login_form(request, query.get("next") or "")

    def _login_form(
        self, request: webob.Request, after: str, problem: str | None = None, status: int = 200
    ) -> webob.Response:
        text = self._public(
            request,
            "login",
            login=self._login,
            after=after,
            problem=problem,
            private=is_private(request),
        )
        return webob.Response(text, status, content_type="text/html", charset="utf-8")

    def _log_in(self, request: webob.Request) -> webob.Response:
        form = _form(request)
        after = form.get("next", "") if _PAGE.fullmatch(form.get("next", "")) else ""
        if not is_private(request):
            # What would be sent here could be read on the way, and so could the cookie.
            return self._login_form(request, after, status=403)
        address = request.remote_addr or ""
        if not self._attempts.begin(address):
            return self._login_form(request, after, "Too many attempts. Wait a minute.", 429)
        try:
            user = self._login.user({field.name: form.get(field.name, "") for field in self._login.fields})
        except Refused:
            return self._login_form(request, after, "That is not right.", 403)
        self._attempts.succeeded(address)
        response = _gone(request, after or "health")
        self._sessions.begin(request, response, user)
        return response

    def _logout_page(self, request: webob.Request) -> webob.Response:
        if request.method != "POST":
            raise api_errors.UnknownRoute
        response = _gone(request, "login")
        self._sessions.end(request, response)
        return response


def _gone(request: webob.Request, where: str) -> webob.Response:
    """Return an answer that sends a browser to a page of the console."""
    response = webob.Response(status=303)
    go(request, response, where)
    return response


def _is_readable(environ: Environ) -> bool:
    """Whether a path is UTF-8; WebOb knows no other."""
    try:
        naming.received(environ["PATH_INFO"])
    except UnicodeError:
        return False
    return True


def _is_ours(request: webob.Request) -> bool:
    """Whether a form comes from a page of ours.  Browsers say it; who says nothing is no browser of today."""
    site = request.headers.get("Sec-Fetch-Site")
    if site is not None:
        return bool(site == "same-origin")
    return bool(request.headers.get("Origin") == request.host_url)


def maker(
    overview: Overview,
    stores: StoreManager,
    actions: ActionManager,
    calls: StoreCalls,
    sessions: Sessions,
    login: Login,
) -> Callable[[Site, Callable[[WsgiApp], WsgiApp]], WsgiApp]:
    """Return what makes the console of an API, for :func:`backupfw.api.app.make_app`."""

    def make(site: Site, identify: Callable[[WsgiApp], WsgiApp]) -> WsgiApp:
        own = ConsoleSite(site.managers, site.policy, site.settings, overview, stores, actions, calls)
        return Console(own, identify, sessions, login)

    return make

"""The WSGI layers between the server and Pecan, and the one function that stacks them."""

from __future__ import annotations

import io
import ipaddress
import logging
import re
import urllib.parse
from collections.abc import Callable, Collection, Iterable, Mapping
from types import MappingProxyType
from typing import Any, BinaryIO

import webob
from oslo_config import cfg
from oslo_context.context import generate_request_id
from oslo_middleware import cors, healthcheck, http_proxy_to_wsgi, request_id
from oslo_middleware.exceptions import ConfigInvalid

from backupfw import naming
from backupfw.api import errors, faults, urls, versions
from backupfw.api.site import Settings
from backupfw.context import RequestContext, working_for
from backupfw.errors import ConfigError
from backupfw.plugins import entry_points

LOG = logging.getLogger(__name__)

Environ = dict[str, Any]
WsgiApp = Callable[[Environ, Any], Iterable[bytes]]

#: Path of the health check.
HEALTH_PATH = "/healthcheck"
#: Entry points of oslo.middleware's health checks.
_BACKENDS = "oslo.middleware.healthcheck"
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://(?:[a-z0-9._-]+|\[[0-9a-f:.]+\])(?::[0-9]{1,5})?", re.ASCII)


def header(environ: Environ, name: str) -> str | None:
    """Return a header's text; None where the request has no such header.

    :raises BadRequest: :func:`naming.input_problem` refuses the text.
    """
    raw = environ.get("HTTP_" + name.upper().replace("-", "_"))
    if raw is None:
        return None
    try:
        text = naming.received(raw)
        problem = naming.input_problem(text, naming.MAX_FIELD)
    except UnicodeError:
        problem = "it is not Unicode"
    if problem is not None:
        raise errors.BadRequest(f"The header {name} is refused: {problem}")
    return text


class _Proxies(http_proxy_to_wsgi.HTTPProxyToWSGI):
    """Puts what proxies tell of the client's request in place of the proxy's own request.

    Each proxy of a chain appends to a header, so the first value is that of the proxy that the client talks
    to.  The prefixes of all proxies are joined and stand before the application's own mount point.  The
    library knows neither lists nor ports nor quotes.
    """

    def process_request(self, req: Any) -> Any:
        """Change the environment of a request before the next layer gets it."""
        environ: Environ = req.environ
        # A server may leave out an empty SCRIPT_NAME; the library needs it.
        environ.setdefault("SCRIPT_NAME", "")
        if "HTTP_FORWARDED" in environ:
            # A host with a port and an IPv6 address are quoted.
            environ["HTTP_FORWARDED"] = environ["HTTP_FORWARDED"].replace('"', "")
        for name in ("HTTP_X_FORWARDED_PROTO", "HTTP_X_FORWARDED_HOST", "HTTP_X_FORWARDED_FOR"):
            if name in environ:
                environ[name] = _list(environ[name])[0]
        prefixes = [part.strip("/") for part in _list(environ.get("HTTP_X_FORWARDED_PREFIX", ""))]
        environ["HTTP_X_FORWARDED_PREFIX"] = "".join(f"/{part}" for part in prefixes if part)
        peer = environ.get("REMOTE_ADDR", "")
        super().process_request(req)
        # What a proxy sends may be no address, e.g. "unknown".
        environ["REMOTE_ADDR"] = _address(environ.get("REMOTE_ADDR", "")) or peer
        port = _list(environ.get("HTTP_X_FORWARDED_PORT", ""))[0]
        host = environ.get("HTTP_HOST", "")
        if port and host and ":" not in host.rpartition("]")[2]:
            environ["HTTP_HOST"] = f"{host}:{port}"


def _list(text: str) -> list[str]:
    return [part.strip() for part in text.split(",")]


def _address(text: str) -> str | None:
    """Return the address in ``192.0.2.1:4711`` or ``[2001:db8::1]:4711``; None where there is none."""
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        return None


class _Health:
    """Answers the health check; every other request passes."""

    def __init__(self, app: WsgiApp, conf: cfg.ConfigOpts, healthy: Callable[[], bool]) -> None:
        self._app = app
        self._healthy = healthy
        known = entry_points(_BACKENDS).names
        unknown = set(conf.healthcheck.backends) - known
        if unknown:
            # The library would ignore them.
            raise ConfigError(
                f"section [healthcheck], option backends: unknown: {', '.join(sorted(unknown))}; allowed: a"
                f" list, each one of {', '.join(sorted(known))}"
            )
        try:
            # A caller that the options of the health check exclude gets the API's 404.
            self._health = healthcheck.Healthcheck(app, conf)
        except (ValueError, ConfigInvalid) as error:
            raise ConfigError(f"section [healthcheck]: {error}") from error

    def __call__(self, environ: Environ, start_response: Any) -> Iterable[bytes]:
        if environ.get("PATH_INFO") != HEALTH_PATH:
            return self._app(environ, start_response)
        health = webob.Request(environ).get_response(self._health)
        if health.status_int == 200 and not self._healthy():
            health = webob.Response("The database cannot be written.\n", 503, content_type="text/plain")
        answer: Iterable[bytes] = health(environ, start_response)
        return answer


class _Beside:
    """Hands requests on to what lies beside the API."""

    def __init__(self, api: WsgiApp, others: Mapping[str, WsgiApp]) -> None:
        self._api = api
        self._others = others

    def __call__(self, environ: Environ, start_response: Any) -> Iterable[bytes]:
        return self._others.get(urls.first_part(environ), self._api)(environ, start_response)


def _adding(start_response: Any, more: Callable[[], Iterable[tuple[str, str]]]) -> Any:
    """Return a ``start_response`` that adds headers when the answer passes.

    :param more: returns them; called once the answer begins.
    """

    def start(status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Any:
        return start_response(status, [*headers, *more()], *([exc_info] if exc_info else []))

    return start


class _RequestId(request_id.RequestId):
    """Gives every request an id, under both names that clients look for.

    The headers are added when the answer passes.  For that, the library would make a WebOb response of each
    answer, a quarter of the time that a small answer takes.
    """

    def __call__(self, environ: Environ, start_response: Any) -> Iterable[bytes]:
        """Answer one request."""
        self.set_global_req_id(webob.Request(environ))
        own = environ[request_id.ENV_REQUEST_ID] = generate_request_id()
        more = [(request_id.HTTP_RESP_HEADER_REQUEST_ID, own), ("x-compute-request-id", own)]
        assert self.application is not None
        answer: Iterable[bytes] = self.application(environ, _adding(start_response, lambda: more))
        return answer


class _LimitedInput(io.RawIOBase):
    """A body of unknown length; reading it fails when it is too long."""

    def __init__(self, source: BinaryIO, limit: int) -> None:
        self._source = source
        self._left = limit

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        wanted = self._left + 1 if size is None or size < 0 else min(size, self._left + 1)
        data = self._source.read(wanted)
        self._left -= len(data)
        if self._left < 0:
            raise errors.BodyTooLarge
        return data

    def readinto(self, buffer: Any) -> int:
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)


class Envelope:
    """Limits bodies, logs requests, and answers errors that the layers inside did not answer.

    :param app: the WSGI application inside.
    :param max_body: bytes.
    """

    def __init__(self, app: WsgiApp, max_body: int) -> None:
        self._app = app
        self._max_body = max_body

    def __call__(self, environ: Environ, start_response: Any) -> Iterable[bytes]:
        """Answer one request."""
        # The caller is not known yet; the identity layer sets it.
        with working_for(RequestContext("", "", request_id=environ.get(faults.REQUEST_ID))):
            return self._answer(environ, start_response)

    def _answer(self, environ: Environ, start_response: Any) -> Iterable[bytes]:
        # Without the query, which may hold private data.  Quoted, so that one request is one line.
        path = urllib.parse.quote(environ.get("PATH_INFO", ""), "/:", "latin-1", "replace")
        LOG.info("%s %s", environ["REQUEST_METHOD"], path)
        try:
            self._limit(environ)
            return self._app(environ, start_response)
        except Exception as error:  # noqa: BLE001  (nothing may reach the server as a trace)
            answer: Iterable[bytes] = faults.response_of(error, environ)(environ, start_response)
            return answer

    def _limit(self, environ: Environ) -> None:
        declared = environ.get("CONTENT_LENGTH")
        if declared:
            if not (declared.isascii() and declared.isdigit()):
                raise errors.BadRequest("Content-Length is not a number")
            if len(declared) > 18 or int(declared) > self._max_body:
                raise errors.BodyTooLarge
        elif environ.get("wsgi.input_terminated"):
            environ["wsgi.input"] = _LimitedInput(environ["wsgi.input"], self._max_body)


class Negotiation:
    """Puts :data:`urls.PATH` and :data:`versions.VERSION` into the environment.

    :param app: the WSGI application inside; its errors are answered here.
    :param collections: see :func:`urls.parse`.
    """

    def __init__(self, app: WsgiApp, collections: Collection[str]) -> None:
        self._app = app
        self._collections = frozenset(collections)

    def __call__(self, environ: Environ, start_response: Any) -> Iterable[bytes]:
        """Answer one request."""
        served = versions.SERVED.get(urls.first_part(environ))
        if served is None:
            # The document of all versions, or a path that does not exist.
            environ[urls.PATH] = urls.parse(environ, self._collections)
            return self._app(environ, start_response)
        version: versions.ApiVersion | None = None
        start = _adding(start_response, lambda: versions.reply_headers(served, version))
        try:
            version = versions.negotiate(served, header(environ, versions.HEADER))
            environ[versions.VERSION] = version
            environ[urls.PATH] = urls.parse(environ, self._collections)
            return self._app(environ, start)
        except Exception as error:  # noqa: BLE001  (an answer to an error has these headers too)
            answer: Iterable[bytes] = faults.response_of(error, environ)(environ, start)
            return answer


def _check_origins(origins: Iterable[str]) -> None:
    for origin in origins:
        if origin != "*" and _ORIGIN.fullmatch(origin) is None:
            # Such an origin never equals one that browsers send.
            raise ConfigError(
                f"section [cors], option allowed_origin: {origin!r} is not what browsers send; allowed: a"
                " list, each one scheme://host or scheme://host:port in lower case, or *"
            )


def assemble(
    app: WsgiApp,
    conf: cfg.ConfigOpts | None,
    settings: Settings,
    collections: Collection[str],
    healthy: Callable[[], bool] = lambda: True,
    beside: Mapping[str, WsgiApp] = MappingProxyType({}),
) -> WsgiApp:
    """Put the layers around the API.  From the outside in:

    1. *http_proxy_to_wsgi*, with ``[api] enable_proxy_headers_parsing``: the layers inside see the request as
       the client sent it;
    2. *healthcheck*: needs neither id nor token, and shall cost little;
    3. *what lies beside the API*, e.g. the console: it has an id and an envelope, too, but no script of
       another site may read its pages, and its errors are pages;
    4. *cors*, with ``[cors] allowed_origin``: a browser asks before it has a token, and must be able to read
       refusals;
    5. *request id*: everything that is logged or refused inside carries it;
    6. *envelope*: body limit and last resort for errors.  oslo.middleware's own size limit does not answer in
       JSON, and a body without a length that is too long would end in a 500;
    7. *negotiation* of the version.

    :param app: identity, and Pecan inside it (:func:`backupfw.api.app.make_app`).
    :param conf: the configuration (oslo.config); None leaves out what is configured there.
    :param collections: see :func:`urls.parse`.
    :param healthy: whether this process can be given work.
    :param beside: applications beside the API, by the first part of their paths.
    """
    app = Negotiation(app, collections)
    app = Envelope(app, settings.max_body)
    app = _RequestId(app)
    if conf is not None and conf.cors.allowed_origin:
        _check_origins(conf.cors.allowed_origin)
        app = cors.CORS(app, conf)
    if beside:
        app = _Beside(
            app, {part: _RequestId(Envelope(one, settings.max_body)) for part, one in beside.items()}
        )
    if conf is not None:
        app = _Health(app, conf, healthy)
    if settings.trust_forwarded:
        own = cfg.ConfigOpts()
        app = _Proxies(app, own)
        own.set_override("enable_proxy_headers_parsing", True, "oslo_middleware")
        own(args=[], default_config_files=[], default_config_dirs=[])
    return app

"""What stands between the server and the API, in one function."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterable
from importlib.metadata import entry_points
from typing import Any

import webob
from oslo_config import cfg
from oslo_middleware import cors, healthcheck, http_proxy_to_wsgi, request_id
from oslo_middleware.exceptions import ConfigInvalid

from backupfw.api.middleware import Envelope, Environ, WsgiApp
from backupfw.errors import ConfigError

#: Where the health of the process is asked for.
HEALTH_PATH = "/healthcheck"
#: Where oslo.middleware finds what can be asked there.
_BACKENDS = "oslo.middleware.healthcheck"
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://(?:[a-z0-9._-]+|\[[0-9a-f:.]+\])(?::[0-9]{1,5})?", re.ASCII)


class _RequestId(request_id.RequestId):
    """An id for every request, under both names that clients look for."""

    compat_headers = ["x-compute-request-id"]  # noqa: RUF012  (the library's attribute)


class _Health:
    """Answers the health path, and lets everything else pass."""

    def __init__(self, app: WsgiApp, conf: cfg.ConfigOpts, healthy: Callable[[], bool]) -> None:
        self._app = app
        self._healthy = healthy
        unknown = set(conf.healthcheck.backends) - set(entry_points(group=_BACKENDS).names)
        if unknown:
            # The middleware would do without them.
            raise ConfigError(
                f"section [healthcheck], option backends: unknown: {', '.join(sorted(unknown))}; allowed: a"
                f" list, each one of {', '.join(sorted(entry_points(group=_BACKENDS).names))}"
            )
        try:
            # What its options keep from asking goes on to the API, which does not know the path.
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


class _Proxies(http_proxy_to_wsgi.HTTPProxyToWSGI):
    """What proxies say of the client's request becomes the request.

    Each proxy of a chain adds to a header: the first one is what the client spoke to.  Their prefixes add
    up, before the place where the application is mounted itself.
    """

    def process_request(self, req: Any) -> Any:
        """Change the environment of a request before it goes on."""
        environ: Environ = req.environ
        # A server may leave it out where it is empty, and the library counts on it.
        environ.setdefault("SCRIPT_NAME", "")
        if "HTTP_FORWARDED" in environ:
            # A host with a port, and an address of IPv6, come in quotes.
            environ["HTTP_FORWARDED"] = environ["HTTP_FORWARDED"].replace('"', "")
        for header in ("HTTP_X_FORWARDED_PROTO", "HTTP_X_FORWARDED_HOST", "HTTP_X_FORWARDED_FOR"):
            if header in environ:
                environ[header] = _list(environ[header])[0]
        prefixes = [part.strip("/") for part in _list(environ.get("HTTP_X_FORWARDED_PREFIX", ""))]
        environ["HTTP_X_FORWARDED_PREFIX"] = "".join(f"/{part}" for part in prefixes if part)
        peer = environ.get("REMOTE_ADDR", "")
        super().process_request(req)
        # It may be no address at all: "unknown", say.
        environ["REMOTE_ADDR"] = _address(environ.get("REMOTE_ADDR", "")) or peer
        port = _list(environ.get("HTTP_X_FORWARDED_PORT", ""))[0]
        host = environ.get("HTTP_HOST", "")
        if port and host and ":" not in host.rpartition("]")[2]:
            environ["HTTP_HOST"] = f"{host}:{port}"


def _list(header: str) -> list[str]:
    return [part.strip() for part in header.split(",")]


def _address(text: str) -> str | None:
    """Return the address in ``192.0.2.1:4711``, ``[2001:db8::1]:4711`` and the like, if it is one."""
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        return None


def _check_origins(origins: Iterable[str]) -> None:
    for origin in origins:
        if origin != "*" and _ORIGIN.fullmatch(origin) is None:
            # It would be compared with what browsers send, and never be equal.
            raise ConfigError(
                f"section [cors], option allowed_origin: {origin!r} is not what browsers send; allowed: a"
                " list, each one scheme://host or scheme://host:port in lower case, or *"
            )


def assemble(
    app: WsgiApp,
    conf: cfg.ConfigOpts | None,
    max_body: int,
    behind_proxy: bool,
    healthy: Callable[[], bool] = lambda: True,
) -> WsgiApp:
    """Put the layers around the API.  From the outside in:

    1. *http_proxy_to_wsgi*, with ``[api] enable_proxy_headers_parsing``: everything inside sees the request
       as the client sent it;
    2. *healthcheck*: needs no id and no token, and is the cheapest way to be told that a process lives;
    3. *cors*, with ``[cors] allowed_origin``: a browser asks before it has a token, and has to be told the
       headers of refusals too;
    4. *request id*: everything that is logged or refused further in has one;
    5. the envelope: body limit and last resort for errors.  It takes the place of oslo.middleware's size
       limit, whose refusal is no JSON and whose answer to a body without a length is an error of ours.

    Inside are negotiation of the version, identity, and the API (:func:`backupfw.api.app.make_app`).

    :param conf: the configuration (oslo.config); None leaves out what is configured there.
    :param healthy: whether this process can be given work.
    :param behind_proxy: whether ``Forwarded`` and ``X-Forwarded-*`` headers come from a proxy of ours.
    """
    app = Envelope(app, max_body)
    app = _RequestId(app)
    if conf is not None:
        if conf.cors.allowed_origin:
            _check_origins(conf.cors.allowed_origin)
            app = cors.CORS(app, conf)
        app = _Health(app, conf, healthy)
    if behind_proxy:
        own = cfg.ConfigOpts()
        app = _Proxies(app, own)
        own.set_override("enable_proxy_headers_parsing", True, "oslo_middleware")
        own(args=[], default_config_files=[], default_config_dirs=[])
    return app

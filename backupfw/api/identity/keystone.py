"""``auth_strategy = keystone``: keystonemiddleware validates the token, and this layer reads its result.

Version documents need no token: clients read them before they have one.
"""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any
from urllib.parse import quote

import webob.exc
from cachetools import TLRUCache, TTLCache
from keystoneauth1 import exceptions as keystone_errors
from keystoneauth1 import loading, plugin
from keystoneauth1.adapter import Adapter
from keystonemiddleware import auth_token
from oslo_log import log

from backupfw import errors
from backupfw.api import errors as api_errors
from backupfw.api import identity, urls
from backupfw.api.faults import REQUEST_ID
from backupfw.api.pipeline import Environ, WsgiApp
from backupfw.api.policies import Policy
from backupfw.conf.identity import GROUP
from backupfw.context import RequestContext

LOG = log.getLogger(__name__)

#: Key of the cache of validated tokens in the WSGI environment, for the middleware.
_CACHE = "backupfw.token_cache"


#: Most projects of which it is remembered whether they are disabled, and for how long.
MAX_PROJECTS = 4096
REMEMBERED_SECONDS = 300
#: Seconds for which a Keystone that did not answer is not asked whether policies rest.
SILENT_SECONDS = 30.0
#: Most tokens in the cache; one with its catalogue has some KiB.
MAX_TOKENS = 4096


class TokenCache:
    """A cache of validated tokens in memory, with the interface of memcached.  Thread-safe.

    All threads of a process share it.  When it is full, the least recently used token is dropped.

    :param size: most tokens that are kept.
    :param timer: returns the seconds of a clock.
    """

    def __init__(self, size: int = MAX_TOKENS, timer: Callable[[], float] = time.monotonic) -> None:
        self._lock = threading.Lock()
        # Token -> its value, and the seconds that it is valid.
        self._entries: TLRUCache[str, tuple[bytes, float]]
        self._entries = TLRUCache(size, ttu=lambda _key, entry, now: now + entry[1], timer=timer)

    def get(self, key: str) -> bytes | None:
        """Return a value; None if there is none, or its time is over."""
        with self._lock:
            found = self._entries.get(key)
        return None if found is None else found[0]

    def set(self, key: str, value: bytes, time: float = 0) -> bool:
        """Keep a value for ``time`` seconds; zero and less keep nothing."""
        if time > 0:
            with self._lock:
                self._entries[key] = (value, time)
        return True


class _AuthProtocol(auth_token.AuthProtocol):  # type: ignore[misc]
    """The middleware; it raises an error of ours when the identity service does not answer."""

    def fetch_token(self, token: str, **options: Any) -> Any:
        """Return what Keystone knows of a token.

        :raises ServiceUnavailable: Keystone does not answer.
        """
        try:
            return super().fetch_token(token, **options)
        except (webob.exc.HTTPServiceUnavailable, keystone_errors.ClientException) as error:
            raise errors.ServiceUnavailable("The identity service is temporarily unavailable.") from error


class Projects:
    """Asks Keystone, as the service's own user, whether a project exists and is enabled.  Thread-safe.

    :param conf: the configuration (oslo.config), with ``[keystone_authtoken]`` registered.
    """

    def __init__(self, conf: Any) -> None:
        self._conf = conf
        self._identity = functools.cache(self._connect)
        self._lock = threading.Lock()
        self._pauses: TTLCache[str, str] = TTLCache(MAX_PROJECTS, REMEMBERED_SECONDS)
        #: When it did not answer last.
        self._silent_at = float("-inf")

    def _connect(self) -> Adapter:
        group = self._conf[GROUP]
        session = loading.session.Session().load_from_options(
            insecure=group.insecure,
            cacert=group.cafile,
            cert=group.certfile,
            key=group.keyfile,
            timeout=group.http_connect_timeout,
            auth=loading.load_auth_from_conf_options(self._conf, GROUP),
        )
        interface: Any = plugin.AUTH_INTERFACE
        return Adapter(session, interface=interface, min_version="3", max_version="3.latest")

    def known(self, project_id: str) -> bool:
        """Say whether a project exists; True if Keystone does not allow the service's user to ask.

        :raises ServiceUnavailable: Keystone does not answer.
        """
        return self._ask(project_id) is not None

    def pauses(self, project_id: str) -> str | None:
        """Say why a project's backup policies do not run now: it is gone, or disabled; None: they run.

        What Keystone said is remembered for some minutes.  If it does not answer, they run; then it is not
        asked again for a while, because to wait for it each time would keep all of them from beginning.
        """
        with self._lock:
            known = self._pauses.get(project_id)
            is_silent = time.monotonic() < self._silent_at + SILENT_SECONDS
        if known is not None:
            return known or None
        if is_silent:
            return None
        try:
            found = self._ask(project_id)
        except errors.ServiceUnavailable as error:
            LOG.warning("It is not known whether project %s is disabled: %s", project_id, error)
            with self._lock:
                self._silent_at = time.monotonic()
            return None
        said = ""
        if found is None:
            said = "The project does not exist any more."
        elif found.get("enabled") is False:
            said = "The project is disabled."
        with self._lock:
            self._pauses[project_id] = said
        return said or None

    def _ask(self, project_id: str) -> Mapping[str, Any] | None:
        """Return what Keystone says of a project: None if it does not exist, nothing if it refuses.

        :raises ServiceUnavailable: Keystone does not answer.
        """
        try:
            answer = self._identity().get(f"/projects/{quote(project_id, safe='')}", raise_exc=False)
        except keystone_errors.ClientException as error:
            raise errors.ServiceUnavailable("The identity service is temporarily unavailable.") from error
        if answer.status_code not in (200, 404):
            LOG.warning(
                "Keystone does not say whether there is a project %s (status %d): the service's user needs a"
                " role that may read projects",
                project_id,
                answer.status_code,
            )
        if answer.status_code == 404:
            return None
        return dict(answer.json()["project"]) if answer.status_code == 200 else {}


def _words(text: str | None) -> frozenset[str]:
    return frozenset(word.strip().lower() for word in (text or "").split(",") if word.strip())


def context_of(environ: Environ) -> RequestContext:
    """Make the context of a request from the middleware's result in the environment.

    :raises WrongScope: the token is valid for neither a project nor the system.
    """
    # Not from the header, which may have the scope of a service token.
    system = environ["keystone.token_info"]["token"].get("system") or {}
    system_scope = "all" if system.get("all") else None
    project = environ.get("HTTP_X_PROJECT_ID")
    if not project and system_scope is None:
        raise api_errors.WrongScope
    return RequestContext(
        project_id=project or "",
        user_id=environ["HTTP_X_USER_ID"],
        roles=_words(environ.get("HTTP_X_ROLES")),
        system_scope=system_scope,
        service_roles=_words(environ.get("HTTP_X_SERVICE_ROLES")),
        request_id=environ[REQUEST_ID],
        user_token=environ.get("HTTP_X_AUTH_TOKEN"),
    )


class Keystone:
    """The WSGI layer.

    :param conf: the configuration (oslo.config), with ``[keystone_authtoken]`` registered.
    :param policy: says who is an administrator.
    """

    def __init__(self, app: WsgiApp, conf: Any, policy: Policy) -> None:
        self._app = app
        self._policy = policy
        options: dict[str, Any] = {"oslo_config_config": conf}
        # The middleware's own cache in memory is one for each thread and has no limit.
        self._cache = None if conf[GROUP].memcached_servers else TokenCache()
        if self._cache is not None:
            options["cache"] = _CACHE
        self._protocol = _AuthProtocol(self._identified, options)

    def __call__(self, environ: Environ, start_response: Any) -> Iterable[bytes]:
        """Let a request with a valid token pass."""
        path: urls.Path = environ[urls.PATH]
        if path.is_document:
            return self._app(environ, start_response)
        environ[_CACHE] = self._cache
        answer: Iterable[bytes] = self._protocol(environ, start_response)
        return answer

    def _identified(self, environ: Environ, start_response: Any) -> Iterable[bytes]:
        return identity.admit(context_of(environ), self._policy, self._app, environ, start_response)

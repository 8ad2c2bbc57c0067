"""The layer that settles path and version of a request, before anybody asks who sends it.

It lies outside of authentication, so that a refusal of any kind says which version it was given in.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

from backupfw.api import faults, paths, versions
from backupfw.api.middleware import Environ, WsgiApp

_ENVIRON_KEY = "HTTP_" + versions.HEADER.upper().replace("-", "_")


class Negotiation:
    """The WSGI layer: leaves :data:`paths.PATH` and :data:`versions.VERSION` in the environment.

    :param app: the WSGI application inside; its errors are answered here.
    :param collections: see :func:`paths.parse`.
    """

    def __init__(self, app: WsgiApp, collections: Collection[str]) -> None:
        self._app = app
        self._collections = frozenset(collections)

    def __call__(self, environ: Environ, start_response: Any) -> Iterable[bytes]:
        """Answer one request."""
        served = versions.SERVED.get(paths.first_part(environ))
        if served is None:
            # The document of all versions, or nothing.
            environ[paths.PATH] = paths.parse(environ, self._collections)
            return self._app(environ, start_response)
        version: versions.ApiVersion | None = None

        def start(status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Any:
            said = [*headers, *versions.reply_headers(served, version)]
            return start_response(status, said, exc_info) if exc_info else start_response(status, said)

        try:
            version = versions.negotiate(served, environ.get(_ENVIRON_KEY))
            environ[versions.VERSION] = version
            environ[paths.PATH] = paths.parse(environ, self._collections)
            return self._app(environ, start)
        except Exception as error:  # noqa: BLE001  (an answer to an error has these headers too)
            answer: Iterable[bytes] = faults.response_of(error, environ)(environ, start)
            return answer

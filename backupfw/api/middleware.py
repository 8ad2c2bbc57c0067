"""The outermost layer of ours: a limit for every body, JSON for every failure."""

from __future__ import annotations

import io
import logging
import urllib.parse
from collections.abc import Callable, Iterable
from typing import Any, BinaryIO

from backupfw.api import errors, faults
from backupfw.context import working_for

LOG = logging.getLogger(__name__)

Environ = dict[str, Any]
WsgiApp = Callable[[Environ, Any], Iterable[bytes]]


class _LimitedInput(io.RawIOBase):
    """A body of unknown length that ends in an error when it grows too long."""

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
    """Bounds bodies, and answers whatever escapes the layers below.

    :param app: the WSGI application inside.
    :param max_body: bytes.
    """

    def __init__(self, app: WsgiApp, max_body: int) -> None:
        self._app = app
        self._max_body = max_body

    def __call__(self, environ: Environ, start_response: Any) -> Iterable[bytes]:
        """Answer one request."""
        with working_for(environ.get(faults.REQUEST_ID)):
            return self._answer(environ, start_response)

    def _answer(self, environ: Environ, start_response: Any) -> Iterable[bytes]:
        # Without the query: what a user searches for is nobody else's.  And as it was sent, so that one
        # request is one line whatever its path holds.
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

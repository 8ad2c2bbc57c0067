"""Speaks HTTP to the array: one request for each call, and its refusals as errors."""

from __future__ import annotations

import http.client
import json
import urllib.parse
from collections.abc import Mapping
from typing import Any

_NOTHING: Mapping[str, str | int | None] = {}


class Missing(Exception):
    """The array has no such disk or snapshot."""


class Refused(Exception):
    """The array does not do this now: a later writer has the disk, or it has snapshots."""


class Array:
    """The array; thread-safe.

    :param endpoint: its address.
    :param key: the user's key; no error shows it.
    :param timeout: seconds it may be silent.
    """

    def __init__(self, endpoint: str, key: str, timeout: float) -> None:
        parts = urllib.parse.urlsplit(endpoint)
        self._kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        self._host, self._port, self._base = parts.hostname or "", parts.port, parts.path.rstrip("/")
        self._headers = {"Authorization": f"Bearer {key}"}
        self._timeout = timeout

    def call(
        self,
        method: str,
        name: str,
        what: str = "",
        query: Mapping[str, str | int | None] = _NOTHING,
        body: bytes | None = None,
    ) -> bytes:
        """Send a request; return the answer's body.

        :param name: a disk, or ``DISK@SNAPSHOT``.
        :param what: a part of it, e.g. ``bytes``.
        :param query: what is None is left out.
        :raises Missing, Refused: the array says so.
        :raises OSError: it cannot be reached, does not answer, or answers with another error.
        """
        words = {key: value for key, value in query.items() if value is not None}
        path = f"{self._base}/{urllib.parse.quote(name, safe='')}/{what}?{urllib.parse.urlencode(words)}"
        # No connection is kept: this is the place for a pool, or for your SDK's.
        connection = self._kind(self._host, self._port, timeout=self._timeout)
        try:
            connection.request(method, path, body=body, headers=self._headers)
            response = connection.getresponse()
            data = response.read()
        except http.client.HTTPException as error:
            raise ConnectionError("the array broke the connection off") from error
        finally:
            connection.close()
        if response.status == 404:
            raise Missing(name)
        if response.status == 409:
            raise Refused(name)
        if response.status == 403:
            raise PermissionError("the array refuses the key")
        if response.status >= 300:
            raise OSError(f"the array answers with status {response.status}")
        return data

    def ask(
        self, method: str, name: str, what: str = "", query: Mapping[str, str | int | None] = _NOTHING
    ) -> Any:
        """Send a request; return the answer's JSON."""
        return json.loads(self.call(method, name, what, query))

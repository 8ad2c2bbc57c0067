"""Speaks HTTP to the server: connections that are kept, and a token that is renewed."""

from __future__ import annotations

import http.client
import json
import select
import socket
import threading
import time
import urllib.parse
from collections.abc import Mapping
from dataclasses import dataclass

from backupfw.chunkstore.errors import ChunkStoreError
from backupfw_template import errors

#: Connections kept for the next call.
IDLE_CONNECTIONS = 32
#: A token is renewed when so much of its life is left.
RENEW_AT = 0.2


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer of the server, read to its end."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class Link:
    """Sends each request once, without a pause before it; thread-safe.

    :param store: the store's name, for errors.
    :param endpoint: the server's address.
    :param timeout: seconds the server may be silent.
    """

    def __init__(self, store: str, endpoint: str, user: str, password: str, timeout: float) -> None:
        parts = urllib.parse.urlsplit(endpoint)
        self._store = store
        self._secure = parts.scheme == "https"
        self._host = parts.hostname or ""
        self._port = parts.port
        self._base = parts.path.rstrip("/")
        self._sign_in = json.dumps({"user": user, "password": password}).encode()
        self._timeout = timeout
        self._lock = threading.Lock()
        self._renewing = threading.Lock()
        self._idle: list[http.client.HTTPConnection] = []
        self._token = ""
        self._renew_at = 0.0
        self._closed = False

    def call(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        *,
        container: str = "",
        key: str = "",
    ) -> Answer:
        """Send a request with a token; if the server refuses the token, renew it once.

        :param container, key: for errors.
        :returns: the answer, if its status is below 300.
        :raises ChunkStoreError: any other answer, and none.
        """
        token = self._good_token(container, key)
        answer = self._send(method, path, body, headers, token, container, key)
        if answer.status == 401:
            answer = self._send(
                method, path, body, headers, self._good_token(container, key, refused=token), container, key
            )
        if answer.status >= 300:
            raise errors.of_status(
                answer.status, answer.headers, store=self._store, container=container, key=key
            )
        return answer

    def close(self) -> None:
        """Close the connections; calls that are under way end by themselves."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()

    def _good_token(self, container: str, key: str, refused: str = "") -> str:
        """Return a token that is not the refused one; ask for a new one if that is needed."""
        # One thread at a time asks; the others then find the new token.
        with self._renewing:
            if self._token and self._token != refused and time.monotonic() < self._renew_at:
                return self._token
            begin = time.monotonic()
            answer = self._send("POST", "/token", self._sign_in, None, "", container, key)
            if answer.status >= 300:
                raise errors.of_status(
                    answer.status, answer.headers, store=self._store, container=container, key=key
                )
            try:
                found = json.loads(answer.body)
                self._token = str(found["token"])
                self._renew_at = begin + float(found["expires_in"]) * (1 - RENEW_AT)
            except (KeyError, TypeError, ValueError) as error:
                raise errors.of_exception(error, store=self._store, container=container, key=key) from error
            return self._token

    def _send(
        self,
        method: str,
        path: str,
        body: bytes | None,
        headers: Mapping[str, str] | None,
        token: str,
        container: str,
        key: str,
    ) -> Answer:
        sent = {**(headers or {}), **({"Authorization": f"Bearer {token}"} if token else {})}
        connection = self._connection()
        try:
            connection.request(method, self._base + path, body=body, headers=sent)
            response = connection.getresponse()
            answer = Answer(response.status, dict(response.headers), response.read())
        except errors.BROKEN as error:
            connection.close()
            raise errors.of_exception(error, store=self._store, container=container, key=key) from error
        except BaseException:
            connection.close()
            raise
        self._give_back(connection)
        return answer

    def _connection(self) -> http.client.HTTPConnection:
        with self._lock:
            if self._closed:
                raise ChunkStoreError("the store is closed", store=self._store)
            while self._idle:
                connection = self._idle.pop()
                if connection.sock is not None and not _has_ended(connection.sock):
                    return connection
                connection.close()
        kind = http.client.HTTPSConnection if self._secure else http.client.HTTPConnection
        return kind(self._host, self._port, timeout=self._timeout)

    def _give_back(self, connection: http.client.HTTPConnection) -> None:
        with self._lock:
            if not self._closed and len(self._idle) < IDLE_CONNECTIONS:
                self._idle.append(connection)
                return
        connection.close()


def _has_ended(resting: socket.socket) -> bool:
    """Say whether there is something to read: nothing was asked, so it is the end of the connection."""
    # Not select(), which knows descriptors below 1024 only.
    poll = select.poll()
    poll.register(resting, select.POLLIN)
    return bool(poll.poll(0))

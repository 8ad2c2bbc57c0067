"""A small object server over HTTP, for the tests: replace it by the server your driver is for.

``python shelf.py`` serves until it is ended and prints its address.  Objects are in memory and survive
:meth:`Shelf.restart`; everything but a token needs a token.

    POST   /token               JSON {user, password}      -> JSON {token, expires_in}
    GET    /                                               -> JSON of the containers' names
    PUT    /CONTAINER/                                        made, or there already
    DELETE /CONTAINER/                                        409 unless empty
    GET    /CONTAINER/?prefix=…&after=…                    -> JSON [[key, size], …], at most 500, sorted
    POST   /CONTAINER/          JSON of keys to delete
    PUT    /CONTAINER/KEY       X-Blake3, If-None-Match: *    422, 412, 507
    GET    /CONTAINER/KEY       Range: bytes=first-last    -> the bytes; X-Blake3 of the whole object
"""

from __future__ import annotations

import argparse
import contextlib
import http.server
import json
import secrets
import socket
import threading
import time
import urllib.parse
from typing import Any

from blake3 import blake3

#: Entries of one page of a listing.
PAGE = 500


class Shelf:
    """The server; thread-safe.

    :param user, password: whom it gives tokens.
    :param token_seconds: how long a token is good.
    :ivar objects: container -> key -> bytes: what tests see without the driver.
    :ivar capacity: bytes of objects that fit into each container.
    """

    def __init__(self, user: str, password: str, token_seconds: float = 3600.0, port: int = 0) -> None:
        self.user = user
        self.password = password
        self.token_seconds = token_seconds
        self.port = port
        self.objects: dict[str, dict[str, bytes]] = {}
        self.capacity: dict[str, int] = {}
        self.lock = threading.Lock()
        self._tokens: dict[str, float] = {}
        self.start()

    @property
    def endpoint(self) -> str:
        """Where it answers."""
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Listen, at the port it had before."""
        self._http = _Server(self.port, self)
        self.port = self._http.server_port
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End it and every connection, whatever is under way."""
        self._http.shutdown()
        self._http.end()
        self._thread.join()

    def restart(self) -> None:
        """Stop and start; the objects stay, the tokens are gone."""
        self.stop()
        self.expire_tokens()
        self.start()

    def expire_tokens(self) -> None:
        """Make every token that there is invalid."""
        with self.lock:
            self._tokens.clear()

    def token(self, user: str, password: str) -> str | None:
        """Return a new token, None if the password is wrong."""
        if (user, password) != (self.user, self.password):
            return None
        token = secrets.token_urlsafe(24)
        with self.lock:
            self._tokens[token] = time.monotonic() + self.token_seconds
        return token

    def knows(self, token: str) -> bool:
        """Say whether a token is good."""
        with self.lock:
            return self._tokens.get(token, 0) > time.monotonic()


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(self, port: int, shelf: Shelf) -> None:
        self.shelf = shelf
        self._open: set[socket.socket] = set()
        super().__init__(("127.0.0.1", port), _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self._open.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: connections that break are what the tests make."""

    def end(self) -> None:
        self.server_close()
        for request in list(self._open):
            with contextlib.suppress(OSError):
                request.shutdown(socket.SHUT_RDWR)


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server

    def log_message(self, *_: object) -> None:
        pass

    def _handle(self) -> None:
        size = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(size)
        if len(body) != size:
            # The connection ended: nobody is there to be answered.
            self.close_connection = True
            return
        shelf = self.server.shelf
        path, _, query = self.path.partition("?")
        parts = [urllib.parse.unquote(part) for part in path.split("/")[1:]]
        if parts == ["token"]:
            asked = json.loads(body)
            token = shelf.token(asked["user"], asked["password"])
            if token is None:
                self._answer(401)
            else:
                self._answer(200, json.dumps({"token": token, "expires_in": shelf.token_seconds}).encode())
        elif not shelf.knows((self.headers.get("Authorization") or "").removeprefix("Bearer ")):
            self._answer(401)
        elif parts == [""]:
            with shelf.lock:
                names = sorted(shelf.objects)
            self._answer(200, json.dumps(names).encode())
        elif parts[1:] == [""]:
            self._container(shelf, parts[0], body, dict(urllib.parse.parse_qsl(query)))
        else:
            self._object(shelf, parts[0], parts[1], body)

    do_GET = do_PUT = do_POST = do_DELETE = _handle  # noqa: N815

    def _container(self, shelf: Shelf, name: str, body: bytes, query: dict[str, str]) -> None:
        with shelf.lock:
            if self.command == "PUT":
                shelf.objects.setdefault(name, {})
                answer = 200, b""
            elif name not in shelf.objects:
                answer = 404, b""
            elif self.command == "GET":
                prefix, after = query.get("prefix", ""), query.get("after", "")
                found = sorted(key for key in shelf.objects[name] if key.startswith(prefix) and key > after)[
                    :PAGE
                ]
                answer = 200, json.dumps([[key, len(shelf.objects[name][key])] for key in found]).encode()
            elif self.command == "POST":
                for key in json.loads(body):
                    shelf.objects[name].pop(key, None)
                answer = 200, b""
            elif shelf.objects[name]:
                answer = 409, b""
            else:
                del shelf.objects[name]
                answer = 200, b""
        self._answer(*answer)

    def _object(self, shelf: Shelf, container: str, key: str, body: bytes) -> None:
        if self.command == "PUT":
            self._answer(self._put(shelf, container, key, body))
            return
        with shelf.lock:
            data = shelf.objects.get(container, {}).get(key)
        if data is None:
            self._answer(404)
            return
        headers = {"X-Blake3": blake3(data).hexdigest()}
        if asked := self.headers.get("Range"):
            first, last = (int(word) for word in asked.removeprefix("bytes=").split("-"))
            if first >= len(data):
                self._answer(416)
            else:
                self._answer(206, data[first : last + 1], headers)
        else:
            self._answer(200, data, headers)

    def _put(self, shelf: Shelf, container: str, key: str, body: bytes) -> int:
        if self.headers.get("X-Blake3", blake3(body).hexdigest()) != blake3(body).hexdigest():
            return 422
        with shelf.lock:
            objects = shelf.objects.get(container)
            if objects is None:
                return 404
            if self.headers.get("If-None-Match") == "*" and key in objects:
                return 412
            used = sum(map(len, objects.values())) if container in shelf.capacity else 0
            if used + len(body) > shelf.capacity.get(container, used + len(body)):
                return 507
            objects[key] = body
            return 201

    def _answer(self, status: int, body: bytes = b"", headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {**(headers or {}), "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)


def main() -> None:
    """Serve until the process is ended."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--user", default="tester")
    parser.add_argument("--password", default="password")
    arguments = parser.parse_args()
    shelf = Shelf(arguments.user, arguments.password)
    print(shelf.endpoint, flush=True)
    threading.Event().wait()


if __name__ == "__main__":
    main()

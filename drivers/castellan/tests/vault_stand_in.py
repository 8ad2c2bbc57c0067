"""A stand-in for Vault: its key/value store, versions 1 and 2, its tokens and AppRole; no real Vault is here.

It answers as Vault's documentation says: 404 for what is not there or was deleted (version 2 keeps it), 403
without a valid token, 404 for a path that is not mounted, 503 while it is sealed.
"""

from __future__ import annotations

import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKEN = "s.root-token-of-the-tests"
ROLE, SECRET = "role-of-the-tests", "secret-of-the-tests"
_ISSUED = "s.issued-token-of-the-tests"


class Vault:
    """A server on a free port, which can be stopped and started again; it keeps what it has."""

    def __init__(self) -> None:
        self.secrets: dict[str, Any] = {}
        self.deleted: dict[str, Any] = {}
        self.port = 0
        self.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        vault = self

        class Handler(_Handler):
            of = vault

        self._server = ThreadingHTTPServer(("127.0.0.1", self.port), Handler)
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    of: Vault

    def log_message(self, *_: object) -> None:
        pass

    def _answer(self, status: int, body: object = None) -> None:
        data = json.dumps(body if body is not None else {"errors": []}).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _body(self) -> Any:
        return json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)) or b"null")

    def _serve(self) -> None:
        body = self._body()
        if self.path == "/v1/auth/approle/login":
            if body != {"role_id": ROLE, "secret_id": SECRET}:
                return self._answer(400, {"errors": ["invalid role or secret ID"]})
            return self._answer(200, {"auth": {"client_token": _ISSUED, "lease_duration": 3600}})
        if self.headers.get("X-Vault-Token") not in (TOKEN, _ISSUED):
            return self._answer(403, {"errors": ["permission denied"]})
        match = re.fullmatch(r"/v1/(v1|v2/data)/backupfw/([0-9a-f]+)", self.path)
        if match is None:
            return self._answer(404, {"errors": ["no handler for route"]})
        versioned, key = match[1] != "v1", match[2]
        if self.command == "POST":
            self.of.secrets[key] = body["data"] if versioned else body
            return self._answer(200 if versioned else 204, {})
        if self.command == "DELETE":
            if key in self.of.secrets:
                gone = self.of.secrets.pop(key)
                if versioned:
                    self.of.deleted[key] = gone
            return self._answer(204, {})
        if key not in self.of.secrets:
            return self._answer(404)
        found = self.of.secrets[key]
        return self._answer(200, {"data": {"data": found} if versioned else found})

    do_GET = do_POST = do_DELETE = _serve  # noqa: N815

"""A gate in front of a GCS server that looks at credentials, as the servers themselves do not.

It is a token server for service accounts (a signed assertion against a token) and a proxy that lets only
requests with one of its tokens through, to those who may.  Answers of refusal have Google's form.
"""

from __future__ import annotations

import http.client
import json
import secrets
import sys
import threading
import urllib.parse
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Literal

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from google.auth import jwt

#: Seconds a token lives by its word; the gate may forget it before.
TOKEN_SECONDS = 3600


class Account:
    """A service account with a key of its own.

    :ivar denied: methods of the JSON API that it may not use.
    """

    def __init__(self, name: str, denied: frozenset[str] = frozenset()) -> None:
        self.email = f"{name}@test.iam.gserviceaccount.com"
        self.denied = denied
        self._key = rsa.generate_private_key(65537, 2048)

    @property
    def private_pem(self) -> str:
        """The private key."""
        return self._key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        ).decode()

    @property
    def public_pem(self) -> bytes:
        """The public key."""
        return self._key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )

    def write(self, path: Path, gate: Gate) -> Path:
        """Write the account's key file, as Google's console hands it out."""
        path.write_text(
            json.dumps(
                {
                    "type": "service_account",
                    "project_id": "test",
                    "private_key_id": "1",
                    "private_key": self.private_pem,
                    "client_email": self.email,
                    "client_id": "1",
                    "token_uri": f"{gate.endpoint}/token",
                }
            )
        )
        path.chmod(0o600)
        return path


@dataclass(frozen=True)
class Answer:
    """An answer that the gate gives itself, instead of the server.

    :ivar content: its JSON, or its text as it is.
    """

    status: int
    content: dict[str, Any] | str
    headers: Mapping[str, str] = field(default_factory=dict)


def google_error(status: int, message: str, reason: str = "") -> dict[str, Any]:
    """Return an error's content in Google's form."""
    errors = [{"message": message, "domain": "global", "reason": reason}]
    return {"error": {"code": status, "message": message, "errors": errors}}


#: What may happen to a request: an answer of the gate's own, the connection closed before (drop) or after
#: (lose answer) the server acted, a bit turned on the way up or down, half an answer (cut).
Fault = Answer | Literal["drop", "lose answer", "flip up", "flip down", "cut"]


def _flipped(data: bytes) -> bytes:
    # Of an upload, the middle is the object's bytes.
    place = len(data) // 2
    return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]


class Gate:
    """The gate's state; thread-safe.

    :ivar tokens: every token ever given out.
    :ivar seen: requests let through, by method and path without query.
    :ivar refused: how many were refused, by status.
    :ivar last_json: what the last request brought, if that was JSON.
    """

    def __init__(self, port: int) -> None:
        self.port = port
        self.tokens: list[str] = []
        self.seen: list[tuple[str, str]] = []
        self.refused = Counter[int]()
        self.last_json = b""
        self._faults: list[tuple[str, Fault]] = []
        self._valid: dict[str, Account] = {}
        self._accounts: dict[str, Account] = {}
        self._lock = threading.Lock()

    @property
    def endpoint(self) -> str:
        """What the driver's option of that name takes."""
        return f"http://127.0.0.1:{self.port}"

    def admit(self, account: Account) -> Account:
        """Know an account from now on."""
        with self._lock:
            self._accounts[account.email] = account
        return account

    def revoke(self) -> None:
        """Make every token invalid."""
        with self._lock:
            self._valid.clear()

    def fail(self, part: str, *faults: Fault) -> None:
        """Script faults for the next requests whose method and path contain ``part``."""
        with self._lock:
            self._faults += [(part, fault) for fault in faults]

    def next_fault(self, method: str, path: str) -> Fault | None:
        """Take the next fault that is meant for a request."""
        with self._lock:
            for place, (part, fault) in enumerate(self._faults):
                if part in f"{method} {path}":
                    del self._faults[place]
                    return fault
            return None

    def token(self, assertion: str) -> str | None:
        """Return a new token, None if the assertion is not one of a known account's."""
        try:
            email = str(jwt.decode(assertion, verify=False)["iss"])
            account = self._accounts[email]
            jwt.decode(assertion, certs=account.public_pem)
        except (KeyError, ValueError):
            return None
        token = f"ya29.{secrets.token_urlsafe(40)}"
        with self._lock:
            self.tokens.append(token)
            self._valid[token] = account
        return token

    def judge(self, authorization: str, method: str, path: str) -> tuple[int, str] | None:
        """Return status and message of a refusal, or None."""
        with self._lock:
            account = self._valid.get(authorization.removeprefix("Bearer "))
            verdict: tuple[int, str] | None = None
            if account is None:
                verdict = 401, "Invalid Credentials"
            elif method in account.denied:
                verdict = (
                    403,
                    f"{account.email} does not have storage access to the Google Cloud Storage bucket.",
                )
            if verdict:
                self.refused[verdict[0]] += 1
            else:
                self.seen.append((method, urllib.parse.urlsplit(path).path))
            return verdict


def _handler(gate: Gate, target: int) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _handle(self) -> None:
            # Read first: an answer before the end of a body may be lost with the connection.
            size = int(self.headers.get("Content-Length") or 0)
            body = self.rfile.read(size)
            if len(body) != size:
                # The client is gone: half of what it sends must not become an object.
                self.close_connection = True
                return
            fault = gate.next_fault(self.command, self.path)
            if fault == "drop":
                self.close_connection = True
                return
            if self.path == "/token":
                form = urllib.parse.parse_qs(body.decode())
                token = gate.token(form.get("assertion", [""])[0])
                if token is None:
                    problem = {"error": "invalid_grant", "error_description": "Invalid JWT Signature."}
                    self._answer(400, problem)
                else:
                    fields = {"access_token": token, "expires_in": TOKEN_SECONDS, "token_type": "Bearer"}
                    self._answer(200, fields)
                return
            gate.last_json = (
                body if self.headers.get("Content-Type", "").startswith("application/json") else b""
            )
            verdict = gate.judge(self.headers.get("Authorization", ""), self.command, self.path)
            if verdict:
                status, text = verdict
                reason = "authError" if status == 401 else "forbidden"
                self._answer(status, google_error(status, text, reason))
                return
            if isinstance(fault, Answer):
                self._answer(fault.status, fault.content, fault.headers)
            else:
                self._forward(body if fault != "flip up" else _flipped(body), fault)

        do_GET = do_POST = do_PUT = do_DELETE = do_PATCH = _handle  # noqa: N815

        def _forward(self, body: bytes, fault: str | None) -> None:
            connection = http.client.HTTPConnection("127.0.0.1", target, timeout=60)
            try:
                headers = {
                    name: value
                    for name, value in self.headers.items()
                    if name.lower() not in ("connection", "content-length", "authorization")
                }
                connection.request(self.command, self.path, body=body or None, headers=headers)
                answer = connection.getresponse()
                content = answer.read()
            finally:
                connection.close()
            if fault == "lose answer":
                self.close_connection = True
                return
            self.send_response(answer.status)
            for name, value in answer.getheaders():
                if name.lower() not in ("connection", "content-length", "transfer-encoding"):
                    self.send_header(name, value)
            self._finish(content if fault != "flip down" else _flipped(content), cut=fault == "cut")

        def _answer(
            self, status: int, content: dict[str, Any] | str, headers: Mapping[str, str] | None = None
        ) -> None:
            self.send_response(status)
            for name, value in {"Content-Type": "application/json", **(headers or {})}.items():
                self.send_header(name, value)
            self._finish((content if isinstance(content, str) else json.dumps(content)).encode())

        def _finish(self, content: bytes, cut: bool = False) -> None:
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content[: len(content) // 2] if cut else content)
            self.close_connection = self.close_connection or cut

        def log_message(self, *_: Any) -> None:
            pass

    return Handler


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, request: Any, client_address: Any) -> None:
        # Connections that the driver gave up are part of the tests.
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)


@contextmanager
def gcs_gate(target: int) -> Iterator[Gate]:
    """Run a gate in front of the server on a port of 127.0.0.1."""
    server = _Server(("127.0.0.1", 0), BaseHTTPRequestHandler)
    gate = Gate(server.server_address[1])
    server.RequestHandlerClass = _handler(gate, target)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield gate
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)

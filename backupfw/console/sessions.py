"""Who is logged in: the cookie of a browser, and the session that it belongs to.

The cookie has a random secret.  The database has its digest, and what the user identified himself with,
encrypted under a key that is made of the secret: whoever reads the database can log in with nothing that he
finds there.
"""

from __future__ import annotations

import hashlib
import json
import re
import secrets
from dataclasses import asdict, dataclass
from ipaddress import ip_address

import webob
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from backupfw.manager.usecases.sessions import SessionManager

#: The names of the cookie: browsers keep the first one to themselves only if it is sure that it came over TLS
#: and from this host.  Not all take such a cookie over plain HTTP, so on loopback it has another name.
_SECURE, _PLAIN = "__Host-backupfw-console", "backupfw-console"
_SECRET = re.compile(r"[A-Za-z0-9_-]{43}", re.ASCII)
_NONCE_BYTES = 12


@dataclass(frozen=True, slots=True)
class User:
    """Somebody who has logged in.

    :ivar token: what the identity layer of the API takes as ``X-Auth-Token``.
    :ivar name: for people.
    :ivar project: its name, for people; empty: none in particular.
    """

    token: str
    name: str
    project: str


def is_private(request: webob.Request) -> bool:
    """Whether nobody on the way can read a request: it came over TLS, or from a browser on this machine.

    The latter is known by the name that the browser used, which is no other site's.
    """
    return request.scheme == "https" or _is_loopback(request.domain)


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


class Sessions:
    """Begins, finds and ends sessions.  Thread-safe."""

    def __init__(self, manager: SessionManager) -> None:
        self._manager = manager

    def begin(self, request: webob.Request, response: webob.Response, user: User) -> None:
        """Log a user in; any session that the browser had before ends."""
        self.end(request, response)
        secret = secrets.token_urlsafe(32)
        digest = _digest(secret)
        nonce = secrets.token_bytes(_NONCE_BYTES)
        sealed = AESGCM(_key(secret)).encrypt(
            nonce, json.dumps(asdict(user)).encode("utf-8"), digest.encode("ascii")
        )
        self._manager.begin(digest, nonce + sealed)
        self._set_cookie(request, response, secret)

    def find(self, request: webob.Request, *, uses: bool) -> User | None:
        """Return who sent a request; None: nobody who is logged in.

        :param uses: whether the user does something; a page that refreshes itself does not count.
        """
        secret = self._secret(request)
        if secret is None:
            return None
        digest = _digest(secret)
        sealed = self._manager.find(digest, uses=uses)
        if sealed is None:
            return None
        try:
            opened = AESGCM(_key(secret)).decrypt(
                sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], digest.encode("ascii")
            )
        except InvalidTag:
            return None
        return User(**json.loads(opened))

    def end(self, request: webob.Request, response: webob.Response) -> None:
        """Log the browser out."""
        secret = self._secret(request)
        if secret is not None:
            self._manager.end(_digest(secret))
        self._set_cookie(request, response, None)

    def _secret(self, request: webob.Request) -> str | None:
        name, _ = _cookie(request)
        found = request.cookies.get(name)
        return found if found is not None and _SECRET.fullmatch(found) else None

    def _set_cookie(self, request: webob.Request, response: webob.Response, secret: str | None) -> None:
        name, secure = _cookie(request)
        # A secure one must be the whole host's.
        path = "/" if secure else f"{request.script_name}/"
        age = 0 if secret is None else None
        response.set_cookie(
            name, secret or "", max_age=age, path=path, secure=secure, httponly=True, samesite="Strict"
        )


def _cookie(request: webob.Request) -> tuple[str, bool]:
    """Return the cookie's name, and whether it is sent over TLS only."""
    return (_SECURE, True) if request.scheme == "https" else (_PLAIN, False)


def _digest(secret: str) -> str:
    return hashlib.blake2b(secret.encode("ascii"), digest_size=32, person=b"console-digest").hexdigest()


def _key(secret: str) -> bytes:
    return hashlib.blake2b(secret.encode("ascii"), digest_size=32, person=b"console-key").digest()

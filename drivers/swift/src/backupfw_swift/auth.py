"""The ways to authenticate: Keystone v3 and Swift's own v1."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlparse

from keystoneauth1.identity import v3
from keystoneauth1.session import Session
from swiftclient.client import HTTPConnection
from swiftclient.exceptions import ClientException

from backupfw.chunkstore.errors import ChunkStoreError
from backupfw_swift.errors import translated
from backupfw_swift.tokens import Grant


@dataclass(frozen=True, slots=True)
class Transport:
    """How to connect, for authentication and storage alike.

    :ivar connect_timeout, read_timeout: seconds.
    """

    cacert: str | None
    insecure: bool
    cert: str | None
    cert_key: str | None
    connect_timeout: float
    read_timeout: float

    def connection(self, url: str) -> HTTPConnection:
        """Return a new connection (not yet made) to the host of ``url``; for one thread at a time."""
        connection = HTTPConnection(
            url,
            cacert=self.cacert,
            insecure=self.insecure,
            cert=self.cert,
            cert_key=self.cert_key,
            timeout=(self.connect_timeout, self.read_timeout),
        )
        # A redirect would carry the token to whatever host it names.
        connection.requests_args["allow_redirects"] = False
        return connection


def authenticator(store: str, options: Any, transport: Transport) -> Callable[[], Grant]:
    """Return the function that authenticates as the options say; it raises ChunkStoreError."""
    grant = _v1 if options.auth == "v1" else _keystone

    def authenticate() -> Grant:
        with translated(store):
            found = grant(options, transport)
        url = options.storage_url or found.url
        if not url:
            raise ChunkStoreError("the server names no account: set storage_url", store=store)
        return Grant(url.rstrip("/"), found.token, found.lifetime)

    return authenticate


def _v1(options: Any, transport: Transport) -> Grant:
    # The client library's own function does not tell when the token expires.
    connection = transport.connection(options.auth_url)
    try:
        connection.request(
            "GET",
            urlparse(options.auth_url).path or "/",
            "",
            {"X-Auth-User": options.username, "X-Auth-Key": options.password},
        )
        answer = connection.getresponse()
        answer.read()
        headers = answer.headers
        token = headers.get("X-Storage-Token") or headers.get("X-Auth-Token")
        if answer.status == 404:
            # Must not pass for a missing object.
            raise ChunkStoreError("there is no v1 authentication at auth_url (404)")
        if not 200 <= answer.status < 300 or not token:
            status = answer.status if answer.status >= 300 else 502
            raise ClientException("authentication failed", http_status=status, http_response_headers=headers)
        seconds = headers.get("X-Auth-Token-Expires", "")
        lifetime = float(seconds) if re.fullmatch(r"\d+", seconds) else None
        return Grant(headers.get("X-Storage-Url", ""), token, lifetime)
    finally:
        connection.close()


def _keystone(options: Any, transport: Transport) -> Grant:
    cert: str | tuple[str, str] | None = transport.cert
    if transport.cert and transport.cert_key:
        cert = (transport.cert, transport.cert_key)
    session = Session(
        verify=False if transport.insecure else transport.cacert or True,
        cert=cert,
        timeout=transport.read_timeout,
        redirect=False,
    )
    try:
        access = _plugin(options).get_access(session)
    finally:
        session.session.close()
    url: str | None = None
    if not options.storage_url:
        url = access.service_catalog.url_for(
            service_type=options.service_type, interface=options.interface, region_name=options.region_name
        )
    if not access.auth_token:
        raise ValueError("Keystone's answer has no token")
    lifetime = None
    if access.expires is not None and access.issued is not None:
        lifetime = (access.expires - access.issued).total_seconds()
    return Grant(url or "", access.auth_token, lifetime)


def _plugin(options: Any) -> v3.Auth:
    url = options.auth_url.rstrip("/")
    if not url.endswith("/v3"):
        url += "/v3"
    user: dict[str, Any] = {"user_id": options.user_id}
    if not options.user_id:
        user = {"username": options.username, **_domain("user", options)}
    if options.auth == "application_credential":
        if options.application_credential_id:
            user = {"application_credential_id": options.application_credential_id}
        else:
            user["application_credential_name"] = options.application_credential_name
        return v3.ApplicationCredential(
            url, application_credential_secret=options.application_credential_secret, **user
        )
    project: dict[str, Any] = {"project_id": options.project_id}
    if not options.project_id:
        project = {"project_name": options.project_name, **_domain("project", options)}
    return v3.Password(url, password=options.password, **user, **project)


def _domain(kind: str, options: Any) -> dict[str, Any]:
    domain_id = getattr(options, f"{kind}_domain_id")
    if domain_id:
        return {f"{kind}_domain_id": domain_id}
    return {f"{kind}_domain_name": getattr(options, f"{kind}_domain_name")}

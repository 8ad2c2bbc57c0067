"""The ways to authenticate: Keystone v3 by keystoneauth1, and Swift's own v1, which that does not have."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from keystoneauth1.identity import v3

from backupfw.chunkstore.errors import ChunkStoreError
from backupfw_swift.errors import Refused, translated
from backupfw_swift.tokens import Grant
from backupfw_swift.transport import Transport


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
    try:
        answer = transport.request(
            "GET",
            options.auth_url,
            headers={"X-Auth-User": options.username, "X-Auth-Key": options.password},
        )
    except Refused as error:
        if error.status == 404:
            # Must not pass for a missing object.
            raise ChunkStoreError("there is no v1 authentication at auth_url (404)") from error
        raise
    headers = answer.headers
    token = headers.get("X-Storage-Token") or headers.get("X-Auth-Token")
    if not token:
        raise Refused(502, "", headers)
    seconds = headers.get("X-Auth-Token-Expires", "")
    lifetime = float(seconds) if re.fullmatch(r"\d+", seconds) else None
    return Grant(headers.get("X-Storage-Url", ""), token, lifetime)


def _keystone(options: Any, transport: Transport) -> Grant:
    access = _plugin(options).get_access(transport.session)
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

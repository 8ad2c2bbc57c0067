"""URLs that point back at this service."""

from __future__ import annotations

import urllib.parse
from collections.abc import Mapping, Sequence
from typing import Any


def base_url(environ: Mapping[str, Any], public_endpoint: str | None) -> str:
    """Return scheme, host and mount point as clients see them, without a trailing slash.

    :param environ: the WSGI environment; what proxies say is in it already, if they are believed.
    :param public_endpoint: ``[api] public_endpoint``; counts before anything a request says.
    """
    if public_endpoint:
        return public_endpoint.rstrip("/")
    scheme = str(environ.get("wsgi.url_scheme", "http"))
    host = str(environ.get("HTTP_HOST") or "")
    if not host:
        host = str(environ.get("SERVER_NAME", "localhost"))
        port = str(environ.get("SERVER_PORT", ""))
        host = f"{host}:{port}" if port else host
    mount = str(environ.get("SCRIPT_NAME", ""))
    host = host.removesuffix({"http": ":80", "https": ":443"}.get(scheme, ""))
    return f"{scheme}://{host}{urllib.parse.quote(mount.rstrip('/'), safe='/%')}"


class Links:
    """Builds the links of one call.

    :param base: see :func:`base_url`.
    :param version_prefix: first part of the request's path, e.g. ``v2``.
    :param project: the project as the path had it; None when the path had none.
    """

    def __init__(self, base: str, version_prefix: str, project: str | None) -> None:
        self.base = base
        project_part = "" if project is None else "/" + urllib.parse.quote(project, safe="")
        self._versioned = f"{base}/{version_prefix}{project_part}"
        self._plain = f"{base}{project_part}"

    def of(self, collection: str, resource_id: str) -> list[dict[str, str]]:
        """Return the ``self`` and ``bookmark`` links of a resource; its id, a UUID, needs no quoting."""
        tail = f"/{collection}/{resource_id}"
        return [
            {"rel": "self", "href": self._versioned + tail},
            {"rel": "bookmark", "href": self._plain + tail},
        ]

    def next_page(self, path: str, query: Sequence[tuple[str, str]], marker: str) -> list[dict[str, str]]:
        """Return the link to the page after ``marker``: the same query, from there on.

        An offset counts from the start of the whole list, so it is left out: it was used up already.
        """
        kept = [(key, value) for key, value in query if key not in ("marker", "offset")]
        href = f"{self._versioned}/{path}?{urllib.parse.urlencode([*kept, ('marker', marker)])}"
        return [{"rel": "next", "href": href}]

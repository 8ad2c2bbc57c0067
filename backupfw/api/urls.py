"""The URLs of this service: a request's path in parts, and the links of an answer.

:class:`pipeline.Negotiation` cuts the path once for each request and leaves the :class:`Path` in the WSGI
environment under :data:`PATH`.  The identity layer and the root controller read it there.
"""

from __future__ import annotations

import urllib.parse
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from backupfw import naming
from backupfw.api import errors, versions

#: Key of the :class:`Path` in the WSGI environment.
PATH = "backupfw.path"
#: The last part of the path of a version's description.
DESCRIPTION = "openapi.json"


@dataclass(frozen=True, slots=True)
class Path:
    """A request's path in parts.

    :ivar prefix: ``v2`` or ``v3``; None where the path is empty.
    :ivar project: None where the path ends before it, or a collection stands in its place.
    :ivar rest: the parts after the project, without empty parts at the end.
    """

    prefix: str | None
    project: str | None
    rest: tuple[str, ...]

    @property
    def is_document(self) -> bool:
        """Whether this is the path of a version document or description, which everybody may read."""
        return self.project is None and self.rest in ((), (DESCRIPTION,))


def first_part(environ: Mapping[str, Any]) -> str:
    """Return the first part of a path, which names the version."""
    path: str = environ.get("PATH_INFO", "")
    return path.removeprefix("/").partition("/")[0]


def parse(environ: Mapping[str, Any], collections: Collection[str] = ()) -> Path:
    """Cut the path of a WSGI environment.

    From v3 on the project may be left out.  So that a path has one meaning only, a project cannot have the
    name of a collection there; ids of an identity service never are such names.

    :param collections: the first parts of all paths behind the project, e.g. ``backups``.
    :raises UnknownRoute: the path is not UTF-8, or its version is not served.
    :raises MalformedUrl: the part in the project's place cannot be a project's id.
    """
    raw = environ.get("PATH_INFO", "")
    try:
        text = naming.received(raw)
    except UnicodeError as error:
        raise errors.UnknownRoute from error
    parts = text.removeprefix("/").split("/")
    while parts and not parts[-1]:
        parts.pop()
    if not parts:
        return Path(None, None, ())
    prefix = parts[0]
    if prefix not in versions.SERVED:
        raise errors.UnknownRoute
    if len(parts) == 1:
        return Path(prefix, None, ())
    if parts[1:] == [DESCRIPTION]:
        return Path(prefix, None, (DESCRIPTION,))
    if prefix != "v2" and parts[1] in collections:
        return Path(prefix, None, tuple(parts[1:]))
    project = parts[1]
    if not project:
        raise errors.UnknownRoute
    if not naming.is_name(project):
        raise errors.MalformedUrl
    return Path(prefix, project, tuple(parts[2:]))


def base_url(environ: Mapping[str, Any], public_endpoint: str | None) -> str:
    """Return scheme, host and mount point as clients see them, without a trailing slash.

    :param environ: the WSGI environment; headers of trusted proxies have been applied to it.
    :param public_endpoint: ``[api] public_endpoint``; counts instead of the request.
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
        """Return the link to the page after ``marker``, with the same query.

        The offset is left out: it was applied to the first page.
        """
        kept = [(key, value) for key, value in query if key not in ("marker", "offset")]
        href = f"{self._versioned}/{path}?{urllib.parse.urlencode([*kept, ('marker', marker)])}"
        return [{"rel": "next", "href": href}]

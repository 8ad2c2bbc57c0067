"""Cutting a request's path into version, project and the rest.

:class:`negotiation.Negotiation` does it once for each request and leaves the :class:`Path` in the WSGI
environment under :data:`PATH`, for whoever finds out who asks and for the root controller.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from backupfw.api import errors, versions

#: Where the path in parts stands in the WSGI environment.
PATH = "backupfw.path"
#: The description of a version stands at this part behind it.
DESCRIPTION = "openapi.json"
#: What a project's id may have: the width of its column.
MAX_PROJECT = 255


@dataclass(frozen=True, slots=True)
class Path:
    """A request's path in parts.

    :ivar prefix: ``v2`` or ``v3``; None where the path is empty.
    :ivar project: None where the path has none: it ends before it, or it goes on with a collection.
    :ivar rest: what comes after the project, without empty parts at the end.
    """

    prefix: str | None
    project: str | None
    rest: tuple[str, ...]

    @property
    def is_document(self) -> bool:
        """Whether it is the path of a version document or description, which everybody may read."""
        return self.project is None and self.rest in ((), (DESCRIPTION,))


def first_part(environ: Mapping[str, Any]) -> str:
    """Return the first part of a path, where its version is, without a look at the rest."""
    path: str = environ.get("PATH_INFO", "")
    return path.removeprefix("/").partition("/")[0]


def parse(environ: Mapping[str, Any], collections: Collection[str] = ()) -> Path:
    """Cut the path of a WSGI environment.

    From v3 on the project may be left out.  So that a path has one meaning only, a project cannot have
    the name of a collection there; ids that an identity service makes never do.

    :param collections: the first parts of all paths behind the project, e.g. ``backups``.
    :raises UnknownRoute: the path is not UTF-8, or its version is not served.
    :raises MalformedUrl: what stands in the project's place cannot be a project.
    """
    raw = environ.get("PATH_INFO", "")
    try:
        text = raw.encode("latin-1").decode("utf-8")
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
    if len(project) > MAX_PROJECT or not project.isprintable():
        raise errors.MalformedUrl
    return Path(prefix, project, tuple(parts[2:]))

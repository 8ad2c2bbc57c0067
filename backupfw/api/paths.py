"""Cutting a request's path into version, project and the rest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from backupfw.api import errors, versions

#: What a project's id may have: the width of its column.
MAX_PROJECT = 255


@dataclass(frozen=True, slots=True)
class Path:
    """A request's path in parts.

    :ivar prefix: ``v2``, or None where the path has no version we serve.
    :ivar project: None where the path ends before it.
    :ivar rest: what comes after the project, without empty parts at the end.
    """

    prefix: str | None
    project: str | None
    rest: tuple[str, ...]


def parse(environ: Mapping[str, Any]) -> Path:
    """Cut the path of a WSGI environment.

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
    project = parts[1]
    if not project:
        raise errors.UnknownRoute
    if len(project) > MAX_PROJECT or not project.isprintable():
        raise errors.MalformedUrl
    return Path(prefix, project, tuple(parts[2:]))

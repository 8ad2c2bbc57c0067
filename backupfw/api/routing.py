"""The route table: which method and path is which handler.

A table, not a tree of objects: every call that is served, its status, its body's schema and the version
it came with stand in one line each, and nothing that is not in a line can be reached.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from backupfw.api import bodies, errors
from backupfw.api.links import Links
from backupfw.api.query import Query
from backupfw.api.schemas.types import SchemaOf
from backupfw.api.versions import V2, ApiVersion
from backupfw.context import RequestContext


@dataclass(frozen=True, slots=True)
class Call:
    """One request as a handler sees it.

    :ivar version: the version it was made in.
    :ivar args: the parts of the path that the route names.
    :ivar path: the path behind the project, as matched, e.g. ``backups/detail``.
    :ivar body: the parsed and validated body; None where the route takes none.
    """

    context: RequestContext
    version: ApiVersion
    args: Mapping[str, str]
    path: str
    query: Query
    links: Links
    body: Any = None


Handler = Callable[[Call], dict[str, Any] | None]


@dataclass(frozen=True, slots=True)
class Action:
    """One of the calls that share ``POST …/action``: chosen by the body's only key.

    :ivar status: of the answer when all went well; None: the route's.
    """

    handler: Handler
    schema: SchemaOf
    since: ApiVersion = V2
    status: int | None = None


@dataclass(frozen=True, slots=True)
class Route:
    """One line of the table.

    :ivar template: path behind the project; ``{name}`` takes one part.
    :ivar status: of the answer when all went well.
    :ivar schema: of the body, by version; None for a call without a body.
    :ivar actions: in place of a handler, by the body's only key.
    :ivar since, until: the versions that have it, both included.
    """

    method: str
    template: str
    handler: Handler | None = None
    status: int = 200
    schema: SchemaOf | None = None
    actions: Mapping[str, Action] = field(default_factory=dict)
    since: ApiVersion = V2
    until: ApiVersion | None = None

    @property
    def takes_body(self) -> bool:
        """Whether the request's body counts; a body that nobody asked for is not looked at."""
        return self.schema is not None or bool(self.actions)

    def serves(self, version: ApiVersion) -> bool:
        """Whether this version has the call."""
        return self.since <= version and (self.until is None or version <= self.until)

    def choose(self, call_version: ApiVersion, body: Any) -> tuple[Handler, int]:
        """Check the body; return the handler and the status of its answer when all went well.

        :raises BadRequest: the body is wrong, or names no action of this version.
        """
        if self.handler is not None:
            if self.schema is not None:
                bodies.validate(body, self.schema(call_version))
            return self.handler, self.status
        if not isinstance(body, dict) or len(body) != 1:
            raise errors.MalformedBody
        (name,) = body
        action = self.actions.get(name)
        if action is None or call_version < action.since:
            raise errors.BadRequest(f"There is no such action: {name}.")
        bodies.validate(body, action.schema(call_version))
        return action.handler, action.status or self.status


#: Key of a request's environment: the template of the route it took.
ROUTE = "backupfw.route"


class Router:
    """Finds the route of a request.  Immutable, so thread-safe.

    :param routes: earlier ones win; so a fixed part stands before one that takes anything.
    """

    def __init__(self, routes: Sequence[Route]) -> None:
        self._by_shape: dict[tuple[str, int], list[tuple[tuple[str, ...], Route]]] = {}
        for route in routes:
            parts = tuple(route.template.removeprefix("/").split("/"))
            self._by_shape.setdefault((route.method, len(parts)), []).append((parts, route))

    def find(self, method: str, parts: Sequence[str], version: ApiVersion) -> tuple[Route, dict[str, str]]:
        """Return the route and what its named parts are.

        :raises UnknownRoute: no line of the table fits.
        """
        for template, route in self._by_shape.get((method, len(parts)), ()):
            args = _match(template, parts)
            if args is not None and route.serves(version):
                return route, args
        raise errors.UnknownRoute


def _match(template: Sequence[str], parts: Sequence[str]) -> dict[str, str] | None:
    args: dict[str, str] = {}
    for wanted, part in zip(template, parts, strict=True):
        if wanted.startswith("{"):
            if not part:
                return None
            args[wanted[1:-1]] = part
        elif wanted != part:
            return None
    return args

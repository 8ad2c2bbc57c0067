"""The base of the controllers, and the walk through their tree.

Pecan asks the root for the method that answers a request (``_route``, as it asks a ``RestController``).
Unlike a ``RestController``, a resource finds exposed methods only, whatever a part of the path is called, and
only those that the version of the request has.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import pecan

from backupfw.api import errors
from backupfw.api.request import Answer, Exposure, Request, Response, expose, exposures_of
from backupfw.api.schemas.types import SchemaOf
from backupfw.api.versions import V2, ApiVersion

if TYPE_CHECKING:
    from backupfw.api.site import Site

#: Key in a request's environment: the template of its path, e.g. ``/backups/{backup_id}``.
TEMPLATE = "backupfw.route"


class Resource:
    """Base of the controllers.  Each request has its own objects, which may keep what they looked up.

    :cvar children: the resources behind this one, by part of the path.
    :cvar item: for any other part of the path: its name in the template, and the resource behind it.
    :cvar since: the first version that has this resource and those behind it.
    :ivar parts: the named parts of the path so far.
    """

    children: ClassVar[Mapping[str, type[Resource]]] = {}
    item: ClassVar[tuple[str, type[Resource]] | None] = None
    since: ClassVar[ApiVersion] = V2
    #: The exposed methods, by HTTP method and part: name and decorator.  Actions are at "" and their name.
    exposed: ClassVar[Mapping[tuple[str, str], tuple[str, Exposure]]] = {}

    def __init__(self, site: Site, parts: tuple[str, ...] = ()) -> None:
        self.site = site
        self.parts = parts

    def __init_subclass__(cls) -> None:
        # In the order of the class and its bases; the description of the API has the same.
        names = dict.fromkeys(name for base in cls.__mro__ for name in vars(base))
        cls.exposed = {
            (exposure.method, exposure.part): (name, exposure)
            for name in names
            for exposure in exposures_of(getattr(cls, name))
        }

    def project_of(self, req: Request) -> str | None:  # noqa: ARG002
        """Find what the request is about; return its project, for the policy, or None for the caller's own.

        :raises NotFound: it does not exist for this caller.
        """
        return None

    @pecan.expose()  # type: ignore[untyped-decorator]
    def _lookup(self, part: str, *remainder: str) -> tuple[Resource, Sequence[str]]:
        """Return the resource behind a part of the path that is no child's, and the parts that remain."""
        if self.item is None or not part:
            raise errors.UnknownRoute
        return self.item[1](self.site, (*self.parts, part)), remainder

    @pecan.expose()  # type: ignore[untyped-decorator]
    def _route(self, args: Sequence[str], request: Request) -> tuple[Callable[..., Answer], Sequence[str]]:
        """Return the method that answers a request, for Pecan.

        One loop walks down the tree, because Pecan needs twice as long when it asks for each part.

        :raises UnknownRoute: nothing here serves this path, method and version.
        """
        # HEAD is answered like GET; WebOb leaves out the body.
        method = "GET" if request.method == "HEAD" else request.method
        node, version, template = self, request.version, ""
        while version >= node.since:
            part = args[0] if args else ""
            # A call of this resource has at most one more part, which is not empty.
            found = node.exposed.get((method, part)) if len(args) == bool(part) else None
            if found is not None and version >= found[1].since:
                name, request.exposure = found
                request.environ[TEMPLATE] = f"{template}/{part}" if part else template
                bound: Callable[..., Answer] = getattr(node, name)
                return bound, ()
            if not args:
                break
            if part in node.children:
                node, args = node.children[part](node.site, node.parts), args[1:]
                template = f"{template}/{part}"
            else:
                template = f"{template}/{{{node.item[0] if node.item else part}}}"
                node, args = node._lookup(*args)
        raise errors.UnknownRoute


class ActionsResource(Resource):
    """A resource with actions: methods that ``POST …/action`` calls; the body's only key names the method."""

    @expose("POST", "action", status=202)
    def action(self, req: Request, resp: Response) -> Answer:
        """Call the method of the action that the body names."""
        assert req.exposure is not None
        name, _ = self.exposed["", req.exposure.part]
        answer: Answer = getattr(self, name)(req, resp)
        return answer

    @classmethod
    def chosen(cls, version: ApiVersion, body: Any) -> Exposure:
        """Return the decorator of the action that a body names.

        :raises BadRequest: this version has no such action.
        """
        if not isinstance(body, dict) or len(body) != 1:
            raise errors.MalformedBody
        (name,) = body
        found = cls.exposed.get(("", name))
        if found is None or version < found[1].since:
            raise errors.BadRequest(f"There is no such action: {name}.")
        return found[1]


@dataclass(frozen=True, slots=True)
class Route:
    """One call of the API, for its description and for tests.

    :ivar template: path behind the project; ``{name}`` is any one part.
    :ivar rule: the policy's rule that is asked before the method is called.
    :ivar actions: the actions that share this path, by name.
    """

    function: Callable[..., Answer]
    method: str
    template: str
    status: int
    takes: SchemaOf | None
    since: ApiVersion
    rule: str | None = None
    actions: Mapping[str, Exposure] = field(default_factory=dict)

    @property
    def takes_body(self) -> bool:
        """Whether the call takes a body; else a body is ignored."""
        return self.takes is not None or bool(self.actions)

    def serves(self, version: ApiVersion) -> bool:
        """Whether this version has the call."""
        return self.since <= version


def routes(resource: type[Resource], path: str = "", since: ApiVersion = V2) -> Iterator[Route]:
    """Walk through a tree of controllers; yield every call.

    :param path: the path of the resource.
    :param since: the first version that has this path.
    """
    since = max(since, resource.since)
    actions = {name: exposure for (verb, name), (_, exposure) in resource.exposed.items() if not verb}
    for (verb, part), (_, exposure) in resource.exposed.items():
        if verb:
            yield Route(
                function=exposure.function,
                method=verb,
                template=f"{path}/{part}" if part else path,
                status=exposure.status,
                takes=exposure.takes,
                since=max(since, exposure.since),
                rule=exposure.rule,
                actions=actions if part == "action" else {},
            )
    for part, child in resource.children.items():
        yield from routes(child, f"{path}/{part}", since)
    if resource.item is not None:
        yield from routes(resource.item[1], f"{path}/{{{resource.item[0]}}}", since)

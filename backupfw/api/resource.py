"""Resources: the controllers of a tree, and beside each method of theirs what it serves.

Pecan asks the first of them (``_route``, as it does a ``RestController``) for the method that answers a
request.  They differ from a ``RestController`` in what is found: nothing but what is exposed, whatever a part
of the path is called, and nothing in a version or for a method that has not got it.
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

#: Key of a request's environment: the template of the path that it took.
TEMPLATE = "backupfw.route"


class Resource:
    """Base of the controllers; made anew for each request, so that it may keep what it looked up.

    :cvar children: resources behind this one, by part of the path.
    :cvar item: what one more part, whatever it is, leads to: its name and the resource.
    :cvar since: the first version that has this resource and what is behind it.
    :ivar parts: the named parts of the path so far.
    """

    children: ClassVar[Mapping[str, type[Resource]]] = {}
    item: ClassVar[tuple[str, type[Resource]] | None] = None
    since: ClassVar[ApiVersion] = V2
    #: Names of methods and what stands beside them, by HTTP method and part; actions by "" and their name.
    exposed: ClassVar[Mapping[tuple[str, str], tuple[str, Exposure]]] = {}

    def __init__(self, site: Site, parts: tuple[str, ...] = ()) -> None:
        self.site = site
        self.parts = parts

    def __init_subclass__(cls) -> None:
        # In the order of the class and its bases, which is that of the description.
        names = dict.fromkeys(name for base in cls.__mro__ for name in vars(base))
        cls.exposed = {
            (exposure.method, exposure.part): (name, exposure)
            for name in names
            for exposure in exposures_of(getattr(cls, name))
        }

    def project_of(self, req: Request) -> str | None:  # noqa: ARG002
        """Return whose thing the request is about, for the policy; None: the caller's own project.

        :raises NotFound: it is not there, or not for this caller.
        """
        return None

    @pecan.expose()  # type: ignore[untyped-decorator]
    def _lookup(self, part: str, *remainder: str) -> tuple[Resource, Sequence[str]]:
        """Return the resource of one more part."""
        if self.item is None or not part:
            raise errors.UnknownRoute
        return self.item[1](self.site, (*self.parts, part)), remainder

    @pecan.expose()  # type: ignore[untyped-decorator]
    def _route(self, args: Sequence[str], request: Request) -> tuple[Callable[..., Answer], Sequence[str]]:
        """Return the method that answers a request; Pecan asks this of a controller and goes by the answer.

        The way down the tree is a loop: asked by Pecan again for each part, it would take twice as long.

        :raises UnknownRoute: nothing here serves this path, method and version.
        """
        # The answer to a HEAD is that of a GET; WebOb leaves out its body.
        method = "GET" if request.method == "HEAD" else request.method
        node, version, template = self, request.version, ""
        while version >= node.since:
            part = args[0] if args else ""
            # What has a part behind it is no call of this resource, and no more has an empty part.
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
    """A resource with actions: calls that share ``POST …/action``, chosen by the body's only key."""

    @expose("POST", "action", status=202)
    def action(self, req: Request, resp: Response) -> Answer:
        """Call the method of the action that the body names."""
        assert req.exposure is not None
        name, _ = self.exposed["", req.exposure.part]
        answer: Answer = getattr(self, name)(req, resp)
        return answer

    @classmethod
    def chosen(cls, version: ApiVersion, body: Any) -> Exposure:
        """Return what stands beside the action that a body names.

        :raises BadRequest: it names none of this version.
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
    """One call that is served, as the tree of controllers has it; for the description and for tests.

    :ivar template: path behind the project; ``{name}`` is any one part.
    :ivar rule: the policy's rule that is asked before the method is called.
    :ivar actions: what shares this path, by the body's only key.
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
        """Whether the request's body counts; a body that nobody asked for is not looked at."""
        return self.takes is not None or bool(self.actions)

    def serves(self, version: ApiVersion) -> bool:
        """Whether this version has the call."""
        return self.since <= version


def routes(resource: type[Resource], path: str = "", since: ApiVersion = V2) -> Iterator[Route]:
    """Walk a tree of controllers; yield every call that it serves.

    :param path: where the resource is.
    :param since: the first version that has what is there.
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

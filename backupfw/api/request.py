"""Requests and answers as controllers see them, and the decorators of the methods that answer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import pecan
import webob
from webob.multidict import MultiDict

from backupfw.api import bodies, errors, versions
from backupfw.api.query import Query
from backupfw.api.schemas.types import SchemaOf
from backupfw.api.urls import Links
from backupfw.api.versions import V2, ApiVersion
from backupfw.context import RequestContext

#: What a method returns: the body's content, or None where the answer has no body.
Answer = Mapping[str, Any] | None
Method = TypeVar("Method", bound=Callable[..., Answer])


@dataclass(frozen=True, slots=True)
class Exposure:
    """What the decorator of a method says.

    :ivar function: the method.
    :ivar method: the HTTP method; empty for an action, which is called by ``POST …/action``.
    :ivar part: what the path has behind the resource's own path, or the action's name; may be empty.
    :ivar rule: the policy's rule that is asked before the method is called.
    :ivar status: the status of a successful answer.
    :ivar takes: the schema of the body, by version; None for a call without a body.
    :ivar since: the first version that has it.
    """

    function: Callable[..., Answer]
    method: str
    part: str = ""
    rule: str | None = None
    status: int = 200
    takes: SchemaOf | None = None
    since: ApiVersion = V2


def expose(
    method: str,
    part: str = "",
    *,
    rule: str | None = None,
    status: int = 200,
    takes: SchemaOf | None = None,
    since: ApiVersion = V2,
) -> Callable[[Method], Method]:
    """Expose a method of a resource to Pecan; parameters as of :class:`Exposure`.

    A method that serves several paths has the decorator several times.
    """

    def decorate(function: Method) -> Method:
        _add(function, Exposure(function, method, part, rule, status, takes, since))
        exposed: Method = pecan.expose(content_type="application/json")(function)
        return exposed

    return decorate


def action(
    name: str, *, rule: str | None = None, status: int = 202, takes: SchemaOf, since: ApiVersion = V2
) -> Callable[[Method], Method]:
    """Let ``POST …/action`` call a method when ``name`` is the body's only key; see :class:`Exposure`."""

    def decorate(function: Method) -> Method:
        _add(function, Exposure(function, "", name, rule, status, takes, since))
        return function

    return decorate


def _add(function: Callable[..., Answer], exposure: Exposure) -> None:
    function.exposures = (exposure, *exposures_of(function))  # type: ignore[attr-defined]


def exposures_of(function: object) -> tuple[Exposure, ...]:
    """Return what a method's decorators say, in their order; nothing for anything else."""
    found: tuple[Exposure, ...] = getattr(function, "exposures", ())
    return found


class Request(webob.Request):  # type: ignore[misc]
    """A request whose parameters Pecan does not see: methods read them from ``query``, not from arguments.

    :ivar context: who asks.
    :ivar version: the version of the request.
    :ivar links: makes the links of its answer.
    :ivar tail: the path behind the project, e.g. ``backups/detail``.
    :ivar query: the parameters.
    :ivar data: the parsed and validated body; None where the call takes none.
    :ivar exposure: the decorator of the method that answers; None for documents.
    """

    # They are class attributes, because WebOb keeps the values of all other attributes in the environment.
    context: RequestContext = None  # type: ignore[assignment]
    version: versions.ApiVersion = versions.V2
    links: Links = None  # type: ignore[assignment]
    tail: str = ""
    query: Query = Query(())
    data: Any = None
    exposure: Exposure | None = None

    @property
    def GET(self) -> MultiDict:  # noqa: N802  (WebOb's name)
        """Empty: Pecan would turn parameters into arguments.  :class:`query.Query` reads them."""
        return MultiDict()

    @property
    def params(self) -> MultiDict:
        """Empty, for the same reason."""
        return MultiDict()

    @property
    def json(self) -> Any:
        """Empty, for the same reason.  :meth:`read_json` reads the body."""
        return {}

    def read_json(self) -> Any:
        """Return the parsed body; None when it is empty.

        :raises UnsupportedMediaType: its content type is not JSON.
        :raises MalformedBody: it is not JSON.
        """
        try:
            raw: bytes = self.body
        except (OSError, ValueError) as error:  # cut off, or a length that is no number
            raise errors.MalformedBody from error
        if raw:
            bodies.check_media_type(self.environ.get("CONTENT_TYPE", ""))
        return bodies.parse(raw)


class Response(webob.Response):  # type: ignore[misc]
    """An answer; JSON unless it is empty."""

"""Holds answers against the description of the API, whoever asked."""

from __future__ import annotations

import dataclasses
import functools
import io
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import jsonschema

from backupfw.api import errors, openapi, urls, versions
from backupfw.api.controllers.root import COLLECTIONS, ROUTES
from backupfw.api.pipeline import Environ, WsgiApp
from backupfw.api.resource import Route
from backupfw.api.versions import ApiVersion


def _find(method: str, parts: tuple[str, ...], version: ApiVersion) -> Route:
    """Return the call that was asked for: of those that fit the one with the fewest named parts.

    :raises UnknownRoute: none is.
    """
    found = [
        route for route in ROUTES if route.method == method and route.serves(version) and _fits(route, parts)
    ]
    if not found:
        raise errors.UnknownRoute
    return min(found, key=lambda route: route.template.count("{"))


def _fits(route: Route, parts: tuple[str, ...]) -> bool:
    wanted = route.template.split("/")[1:]
    return len(wanted) == len(parts) and all(
        part == want or (want.startswith("{") and part) for want, part in zip(wanted, parts, strict=True)
    )


def operations(route: Route) -> list[str]:
    """Return what can be asked at a route: ``METHOD /path``, with the action's name where there are some."""
    line = f"{route.method} {route.template}"
    return [f"{line} ({action})" for action in route.actions] or [line]


@functools.cache
def description(prefix: str, version: ApiVersion) -> dict[str, Any]:
    """Return the description of a version."""
    return openapi.describe(ROUTES, prefix, version, "http://localhost")


@dataclass
class Answer:
    """One answer as it left the application."""

    status: int = 0
    headers: dict[str, str] = dataclasses.field(default_factory=dict)
    body: bytes = b""


class Described:
    """A WSGI layer that fails where an answer is not as described.

    :ivar reached: the operations that were asked for and not refused.
    """

    def __init__(self, app: WsgiApp) -> None:
        self._app = app
        self.reached: set[str] = set()

    def __call__(self, environ: Environ, start_response: Callable[..., Any]) -> Iterable[bytes]:
        """Answer one request."""
        answer = Answer()

        def start(status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Any:
            answer.status, answer.headers = int(status.split()[0]), dict(headers)
            return start_response(status, headers)

        sent = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        answer.body = b"".join(self._app({**environ, "wsgi.input": io.BytesIO(sent)}, start))
        self._check(environ, sent, answer)
        return [answer.body]

    def _check(self, environ: Environ, sent: bytes, answer: Answer) -> None:
        try:
            path = urls.parse(environ, COLLECTIONS)
            served = versions.SERVED[path.prefix or ""]
            version = versions.negotiate(served, environ.get("HTTP_OPENSTACK_API_VERSION"))
            if path.is_document:
                raise errors.UnknownRoute
            route = _find(environ["REQUEST_METHOD"], path.rest, version)
        except (KeyError, errors.RequestError):
            # Nothing that is described; but what refuses it has one form.
            if answer.status >= 400:
                _validate(answer, description("v2", versions.V2)["components"]["responses"]["404"])
            return
        assert path.prefix is not None
        if answer.status < 400:
            self.reached.update(operation for operation in operations(route) if _asks(operation, sent))
        whole = description(path.prefix, version)
        said = whole["paths"][f"/{path.prefix}/{{project_id}}{route.template}"][route.method.lower()]
        responses = said["responses"]
        assert str(answer.status) in responses, (answer.status, route.method, route.template)
        wanted = responses[str(answer.status)]
        if "$ref" in wanted:
            wanted = whole["components"]["responses"][wanted["$ref"].rpartition("/")[2]]
        missing = {name.lower() for name in wanted["headers"]} - {name.lower() for name in answer.headers}
        assert not missing, missing
        _validate(answer, wanted)


def _asks(operation: str, sent: bytes) -> bool:
    action = operation.partition(" (")[2].removesuffix(")")
    return not action or action in json.loads(sent)


def _validate(answer: Answer, wanted: dict[str, Any]) -> None:
    if "content" not in wanted:
        assert not answer.body
        return
    schema = wanted["content"]["application/json"]["schema"]
    if "$ref" in schema:
        schema = description("v2", versions.V2)["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
    jsonschema.Draft202012Validator(schema).validate(json.loads(answer.body))

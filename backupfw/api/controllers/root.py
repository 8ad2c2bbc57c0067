"""Pecan's root: finds the route, calls the handler, writes the answer."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pecan
import webob

from backupfw.api import errors, identity, openapi, paths, versions
from backupfw.api.controllers.base import Settings
from backupfw.api.links import Links, base_url
from backupfw.api.query import Query
from backupfw.api.request import ApiRequest
from backupfw.api.routing import ROUTE, Call, Route, Router
from backupfw.context import RequestContext


class RootController:
    """Everything starts here; what the router does not know is a 404."""

    def __init__(self, routes: Sequence[Route], settings: Settings) -> None:
        self._router = Router(routes)
        self._descriptions = openapi.Descriptions(routes)
        self._settings = settings

    @pecan.expose()  # type: ignore[untyped-decorator]
    def _route(self, remainder: list[str], request: ApiRequest) -> tuple[Any, list[str]]:
        """Hand every path to :meth:`answer`: the route table decides, not attribute names."""
        del remainder, request
        return self.answer, []

    @pecan.expose(content_type="application/json")  # type: ignore[untyped-decorator]
    def answer(self, request: ApiRequest, response: webob.Response) -> webob.Response:
        """Answer one request.  A HEAD is a GET whose body WebOb leaves out."""
        method = "GET" if request.method == "HEAD" else request.method
        path: paths.Path = request.environ[paths.PATH]
        base = base_url(request.environ, self._settings.public_endpoint)
        if path.is_document:
            if method != "GET":
                raise errors.UnknownRoute
            if path.prefix is None:
                return _write(response, 300, versions.document(base))
            if not path.rest:
                return _write(response, 200, versions.document(base, path.prefix))
            asked: versions.ApiVersion = request.environ[versions.VERSION]
            return _write_cached(request, response, *self._descriptions.of(path.prefix, asked, base))
        assert path.prefix is not None
        context: RequestContext = request.environ[identity.CONTEXT]
        if path.project is not None and context.project_id != path.project:
            raise errors.MalformedUrl
        version: versions.ApiVersion = request.environ[versions.VERSION]
        route, args = self._router.find(method, path.rest, version)
        request.environ[ROUTE] = route.template
        body = request.read_json() if route.takes_body else None
        handler, status = route.choose(version, body)
        result = handler(
            Call(
                context=context,
                version=version,
                args=args,
                path="/".join(path.rest),
                query=Query.parse(request.environ.get("QUERY_STRING", "")),
                links=Links(base, path.prefix, path.project),
                body=body,
            )
        )
        return _write(response, status, result)


def _write_cached(request: ApiRequest, response: webob.Response, body: bytes, etag: str) -> webob.Response:
    """Answer with what changes with the release only; who has it already is told so."""
    response.etag = etag
    # It may be kept, and is asked for again before it is used: an upgrade changes it.
    response.cache_control = "no-cache"
    if etag in request.if_none_match:
        response.status = 304
        del response.content_type
        return response
    return _write_body(response, 200, body)


def _write(response: webob.Response, status: int, result: dict[str, Any] | None) -> webob.Response:
    if status == 204:
        response.status = status
        # No content has no type either.
        del response.content_type
        return response
    return _write_body(response, status, b"" if result is None else json.dumps(result).encode("utf-8"))


def _write_body(response: webob.Response, status: int, body: bytes) -> webob.Response:
    response.status = status
    response.content_type = "application/json"
    response.charset = "UTF-8"
    response.body = body
    return response

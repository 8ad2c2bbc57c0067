"""The hooks: what Pecan does around every call."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pecan.hooks
import webob

from backupfw.api import bodies, errors, faults, identity, policies, urls, versions
from backupfw.api.query import Query
from backupfw.api.request import Request, Response
from backupfw.api.resource import ActionsResource, Resource
from backupfw.api.urls import Links, base_url

if TYPE_CHECKING:
    from backupfw.api.site import Site


class IdentityHook(pecan.hooks.PecanHook):  # type: ignore[misc]
    """Fills the request with caller, version and links, from what the layers before Pecan found.

    :param site: of the application.
    """

    priority = 10

    def __init__(self, site: Site) -> None:
        self._site = site

    def on_route(self, state: Any) -> None:
        """Fill the request before Pecan looks for a controller.

        :raises MalformedUrl: the project in the path is not the caller's.
        """
        request: Request = state.request
        environ = request.environ
        path: urls.Path = environ[urls.PATH]
        base = base_url(environ, self._site.settings.public_endpoint)
        request.links = Links(base, path.prefix or "", path.project)
        if path.prefix is not None:
            request.version = environ[versions.VERSION]
        if path.is_document:
            return
        request.context = environ[identity.CONTEXT]
        if path.project is not None and request.context.project_id != path.project:
            raise errors.MalformedUrl
        request.tail = "/".join(path.rest)


class BodyHook(pecan.hooks.PecanHook):  # type: ignore[misc]
    """Reads body and query of a call; the body of a call that takes none is ignored."""

    priority = 20

    def before(self, state: Any) -> None:
        """Read and check them before the method is called.

        :raises BadRequest: the body or the query is malformed or does not match.
        """
        request: Request = state.request
        exposure = request.exposure
        if exposure is None:
            return
        owner = state.controller.__self__
        acts = isinstance(owner, ActionsResource) and exposure.part == "action"
        if acts or exposure.takes is not None:
            request.data = request.read_json()
            if acts:
                request.exposure = exposure = owner.chosen(request.version, request.data)
            assert exposure.takes is not None
            bodies.validate(request.data, exposure.takes(request.version))
        request.query = Query.parse(request.environ.get("QUERY_STRING", ""))


class PolicyHook(pecan.hooks.PecanHook):  # type: ignore[misc]
    """Asks the policy's rule that the method's decorator names.

    :param site: of the application.
    """

    priority = 30

    def __init__(self, site: Site) -> None:
        self._site = site

    def before(self, state: Any) -> None:
        """Ask it before the method is called.

        The resource is looked up first: only administrators may know that one of another project exists.

        :raises NotFound: the resource does not exist for this caller.
        :raises Forbidden: the rule does not allow the call.
        """
        request: Request = state.request
        if request.exposure is not None and request.exposure.rule is not None:
            resource: Resource = state.controller.__self__
            project_id = resource.project_of(request)
            policies.enforce(self._site.policy, request.context, request.exposure.rule, project_id)


class AnswerHook(pecan.hooks.PecanHook):  # type: ignore[misc]
    """Makes every answer JSON, whatever ``Accept`` says, and answers errors."""

    priority = 40

    def on_route(self, state: Any) -> None:
        """Set the content type, so that Pecan does not negotiate one."""
        state.request.pecan["content_type"] = "application/json"

    def after(self, state: Any) -> None:
        """Give the answer the status of its method; an answer to an error is complete already."""
        response, exposure = state.response, state.request.exposure
        if not isinstance(response, Response):
            return
        if exposure is not None:
            response.status = exposure.status
        if response.status_int in (204, 304):
            # An answer without content has no content type.
            response.content_type = None
        else:
            response.charset = "UTF-8"

    def on_error(self, state: Any, error: Exception) -> webob.Response:
        """Return the answer that the table of :mod:`faults` gives an error."""
        return faults.response_of(error, state.request.environ)

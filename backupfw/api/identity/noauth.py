"""``auth_strategy = noauth``: every caller is believed.

The project is the path's, or the token's if the path has none.  A token is ``user`` or
``user:project[:role,…]``.  A caller without roles in the token has those of ``[api] noauth_roles``.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from backupfw import naming
from backupfw.api import errors, identity, urls
from backupfw.api.faults import REQUEST_ID
from backupfw.api.pipeline import Environ, WsgiApp, header
from backupfw.api.policies import Policy
from backupfw.context import RequestContext

#: The user of a request without a token.
ANONYMOUS = "anonymous"


def _token(environ: Environ) -> str:
    try:
        return (header(environ, "X-Auth-Token") or "").strip()
    except errors.BadRequest as error:
        raise errors.Unauthorized(str(error)) from error


def context_of(
    token: str, path_project: str | None, default_roles: frozenset[str], request_id: str
) -> RequestContext:
    """Make the context of a request.

    :param path_project: None where the path has no project.
    :raises MalformedUrl: the token's project is not the path's, or cannot be a project's id.
    :raises Unauthorized: the token's user cannot be a user's id, or neither path nor token has a project.
    """
    user, colon, rest = token.partition(":")
    project, _, role_list = rest.partition(":")
    if path_project is None:
        if not project:
            raise errors.Unauthorized("Neither the path nor the token (user:project) names a project")
        if not naming.is_name(project):
            raise errors.MalformedUrl
    elif not colon:
        project = path_project
    elif project != path_project:
        raise errors.MalformedUrl
    named = frozenset(role.strip().lower() for role in role_list.split(",") if role.strip())
    roles = named or default_roles
    if not naming.is_name(user):
        raise errors.Unauthorized(f"The token's user is not one line of at most {naming.MAX_NAME} characters")
    return RequestContext(
        project_id=project,
        user_id=user or ANONYMOUS,
        roles=roles,
        request_id=request_id,
        user_token=token,
    )


class NoAuth:
    """The WSGI layer.

    :param default_roles: roles of requests that name none.
    :param policy: says who is an administrator.
    """

    def __init__(self, app: WsgiApp, default_roles: Iterable[str], policy: Policy) -> None:
        self._app = app
        self._policy = policy
        self._default_roles = frozenset(role.strip().lower() for role in default_roles if role.strip())

    def __call__(self, environ: Environ, start_response: Any) -> Iterable[bytes]:
        """Put the context into the environment; version documents need no caller."""
        path: urls.Path = environ[urls.PATH]
        if not path.is_document:
            context = context_of(_token(environ), path.project, self._default_roles, environ[REQUEST_ID])
            return identity.admit(context, self._policy, self._app, environ, start_response)
        return self._app(environ, start_response)

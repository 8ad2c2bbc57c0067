"""Identity: one WSGI layer for each ``[api] auth_strategy`` puts a RequestContext into the environment."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from backupfw.api.faults import GLOBAL_REQUEST_ID
from backupfw.api.pipeline import Environ, WsgiApp
from backupfw.api.policies import Policy
from backupfw.context import RequestContext, working_for

#: Key of the context in the WSGI environment.
CONTEXT = "backupfw.context"


def admit(
    context: RequestContext, policy: Policy, app: WsgiApp, environ: Environ, start_response: Any
) -> Iterable[bytes]:
    """Let a request pass when its caller is known.

    :param policy: says whether the caller is an administrator.
    """
    context.global_request_id = environ.get(GLOBAL_REQUEST_ID)
    context.is_admin = policy.is_admin(context)
    environ[CONTEXT] = context
    with working_for(context):
        return app(environ, start_response)

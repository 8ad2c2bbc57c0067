"""Who asks: carried from the request to the log lines of the worker."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

#: The id of the request that this thread works for, for its log lines.  Threads that a task starts run in a
#: copy of its context.
_request: ContextVar[str | None] = ContextVar("backupfw_request", default=None)


def current_request() -> str | None:
    """Return the id of the request that this thread works for, or None."""
    return _request.get()


@contextmanager
def working_for(request_id: str | None) -> Iterator[None]:
    """Work for a request: its id stands in the log lines of the ``with`` block."""
    token = _request.set(request_id)
    try:
        yield
    finally:
        _request.reset(token)


@dataclass(frozen=True, slots=True)
class RequestContext:
    """The caller of a use case.

    :param project_id: the project the request is made in.
    :param user_id: the user, as the identity service names it.
    :param roles: role names, lower case.
    :param is_admin: whether the caller sees every project's resources; what may be done to them is the
        policy's to say.
    :param request_id: ``req-<uuid>``, in every log line and answer of the request.
    :param system_scope: ``all`` where the caller acts on the installation as a whole and in no project;
        ``project_id`` is empty then.
    :param service_roles: roles of the service that passes the request on for the user.
    """

    project_id: str
    user_id: str
    roles: frozenset[str] = frozenset()
    is_admin: bool = False
    request_id: str = field(default_factory=lambda: f"req-{uuid.uuid4()}")
    system_scope: str | None = None
    service_roles: frozenset[str] = frozenset()

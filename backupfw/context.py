"""Who asks: carried from the request to the log lines of the worker."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from oslo_context import context


class RequestContext(context.RequestContext):
    """The caller of a use case, as oslo.log, oslo.policy and oslo.messaging know callers.

    :param project_id: the project the request is made in.
    :param user_id: the user, as the identity service names it.
    :param roles: role names, lower case.
    :param is_admin: whether the caller sees every project's resources; what may be done to them is the
        policy's to say.
    :param request_id: ``req-<uuid>``, in every log line and answer of the request; None makes one.
    :param global_request_id: the id that the caller gave the whole of which the request is a part.
    :param system_scope: ``all`` where the caller acts on the installation as a whole and in no project;
        ``project_id`` is empty then.
    :param service_roles: roles of the service that passes the request on for the user.
    """

    project_id: str
    user_id: str
    request_id: str

    def __init__(
        self,
        project_id: str,
        user_id: str,
        roles: Iterable[str] = (),
        is_admin: bool = False,
        *,
        request_id: str | None = None,
        global_request_id: str | None = None,
        system_scope: str | None = None,
        service_roles: Iterable[str] = (),
    ) -> None:
        super().__init__(
            project_id=project_id,
            user_id=user_id,
            roles=sorted(roles),
            is_admin=is_admin,
            request_id=request_id,
            global_request_id=global_request_id,
            system_scope=system_scope,
            service_roles=sorted(service_roles),
        )

    def update_store(self) -> None:
        """Do nothing: oslo.context's store keeps a caller until the thread's next one.

        :func:`working_for` says from when to when a thread works for one.
        """

    @classmethod
    def of_task(cls, project_id: str, request_id: str | None) -> RequestContext | None:
        """Return what a task still knows of its caller; None where no request led to the task."""
        return cls(project_id, "", request_id=request_id) if request_id else None


#: Whom this thread works for.  Threads that a task starts run in a copy of its context.
_caller: ContextVar[RequestContext | None] = ContextVar("backupfw_caller", default=None)


def current_caller() -> RequestContext | None:
    """Return the caller that this thread works for, or None."""
    return _caller.get()


@contextmanager
def working_for(caller: RequestContext | None) -> Iterator[None]:
    """Work for a caller: the log lines of the ``with`` block carry the caller's request."""
    token = _caller.set(caller)
    try:
        yield
    finally:
        _caller.reset(token)

"""The caller of a request, from the API to the log lines of the worker."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from oslo_context import context


class RequestContext(context.RequestContext):
    """The caller of a use case, in the form that oslo.log knows.

    :param project_id: the project the request is made in.
    :param user_id: the user, as the identity service names it.
    :param roles: role names, lower case.
    :param is_admin: whether the caller sees the resources of every project; the policy decides what else the
        caller may do.
    :param request_id: ``req-<uuid>``, in every log line and the answer; None: a new one.
    :param global_request_id: the id of the operation of several services that the request is a part of.
    :param system_scope: ``all`` where the caller acts on the installation as a whole and in no project;
        ``project_id`` is empty then.
    :param service_roles: roles of the service that passes the request on for the user.
    :param policy_id: the backup policy that does it, in the name of its user; None: nobody's.
    :param user_token: what the caller has identified himself with, to ask other services in his name while
        the request is there.  It is in no log line and no task.
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
        user_token: str | None = None,
        policy_id: str | None = None,
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
        self.user_token = user_token
        self.policy_id = policy_id

    def update_store(self) -> None:
        """Do nothing: oslo.context's store would keep a caller after the request.

        :func:`working_for` sets the caller of a thread instead.
        """

    @classmethod
    def of_task(cls, project_id: str, request_id: str | None) -> RequestContext | None:
        """Return the caller of a task, with project and request only; None if no request caused the task."""
        return cls(project_id, "", request_id=request_id) if request_id else None


#: The caller that this thread works for.  Threads of a task run in a copy of its context.
_caller: ContextVar[RequestContext | None] = ContextVar("backupfw_caller", default=None)


def current_caller() -> RequestContext | None:
    """Return the caller that this thread works for, or None."""
    return _caller.get()


@contextmanager
def working_for(caller: RequestContext | None) -> Iterator[None]:
    """Set the caller that this thread works for: log lines inside the ``with`` block carry the caller."""
    token = _caller.set(caller)
    try:
        yield
    finally:
        _caller.reset(token)

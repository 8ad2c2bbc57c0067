"""Who asks: carried from the request to the log lines of the worker."""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class RequestContext:
    """The caller of a use case.

    :param project_id: the project the request is made in.
    :param user_id: the user, as the identity service names it.
    :param roles: role names, lower case.
    :param is_admin: whether the caller may see and change every project's resources.
    :param request_id: ``req-<uuid>``, in every log line and answer of the request.
    """

    project_id: str
    user_id: str
    roles: frozenset[str] = frozenset()
    is_admin: bool = False
    request_id: str = field(default_factory=lambda: f"req-{uuid.uuid4()}")

"""The only place that turns the server's errors into those of the contract."""

from __future__ import annotations

import http.client
from collections.abc import Mapping

from backupfw.chunkstore.errors import (
    AlreadyExists,
    ChunkStoreError,
    IntegrityError,
    NoSpace,
    NotFound,
    PermissionDenied,
    RangeError,
    Unavailable,
    retry_after,
)

#: Status of an answer -> kind of error, whether the same call may work later, and the text.
STATUSES: Mapping[int, tuple[type[ChunkStoreError], bool, str]] = {
    401: (PermissionDenied, False, "the server refuses user or password"),
    403: (PermissionDenied, False, "the server forbids it to this user"),
    404: (NotFound, False, "the server has no such object or container"),
    412: (AlreadyExists, False, "an object is there"),
    413: (NoSpace, False, "the server takes no object of this size"),
    416: (RangeError, False, "the range begins past the object's end"),
    # The driver checked the bytes before it sent them, so they changed on the way.
    422: (IntegrityError, True, "the bytes that the server received are not those that were sent"),
    429: (Unavailable, True, "the server is asked too often"),
    500: (Unavailable, True, "the server failed"),
    502: (Unavailable, True, "the server cannot be reached"),
    503: (Unavailable, True, "the server is overloaded"),
    504: (Unavailable, True, "the server does not answer"),
    507: (NoSpace, False, "the server is full, or a quota is reached"),
}

#: What a connection raises when it breaks or the answer makes no sense.
BROKEN = (OSError, http.client.HTTPException, ValueError)


def of_status(
    status: int, headers: Mapping[str, str], *, store: str, container: str = "", key: str = ""
) -> ChunkStoreError:
    """Return the error for an answer.

    :param headers: the answer's; ``Retry-After`` says when the same call may work.
    """
    kind, temporary, text = STATUSES.get(
        status, (ChunkStoreError, False, f"the server answers with status {status}")
    )
    return kind(
        text,
        store=store,
        container=container,
        key=key,
        temporary=temporary,
        retry_after=retry_after(headers),
    )


def of_exception(error: Exception, *, store: str, container: str = "", key: str = "") -> Unavailable:
    """Return the error for a connection that broke; raise it ``from`` its cause."""
    # Not the cause's text: it may hold what was sent.
    return Unavailable(
        f"the connection failed ({type(error).__name__})", store=store, container=container, key=key
    )

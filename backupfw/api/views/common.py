"""What every view needs."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

from backupfw.api.request import Request


class HasId(Protocol):
    """A record with an id."""

    @property
    def id(self) -> str:
        """Its UUID."""


T = TypeVar("T", bound=HasId)


def timestamp(moment: datetime.datetime | None) -> str | None:
    """Write a time (naive UTC, or with a zone) as ``YYYY-MM-DDThh:mm:ss.ffffff``, UTC without a zone."""
    if moment is None:
        return None
    if moment.tzinfo is not None:
        moment = moment.astimezone(datetime.UTC).replace(tzinfo=None)
    return moment.isoformat(timespec="microseconds")


def page(
    req: Request,
    collection: str,
    items: Sequence[T],
    limit: int,
    view: Callable[[T], dict[str, Any]],
    total: int | None = None,
) -> dict[str, Any]:
    """Return the body of a listing.

    ``<collection>_links`` is there only when the page is full, because a page that is not full is the
    last one and published response schemas refuse the key.
    """
    body: dict[str, Any] = {collection: [view(item) for item in items]}
    if items and len(items) >= limit:
        body[f"{collection}_links"] = req.links.next_page(req.tail, req.query.pairs, items[-1].id)
    if total is not None:
        body["count"] = total
    return body

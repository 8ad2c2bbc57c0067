"""Bodies of answers: each function turns a manager's record into the exact keys that clients check."""

from __future__ import annotations

import datetime


def timestamp(moment: datetime.datetime | None) -> str | None:
    """Write a time (naive UTC, or with a zone) as ``YYYY-MM-DDThh:mm:ss.ffffff``, UTC without a zone."""
    if moment is None:
        return None
    if moment.tzinfo is not None:
        moment = moment.astimezone(datetime.UTC).replace(tzinfo=None)
    # Positional arguments are faster, and a page has thousands of times.
    return moment.isoformat("T", "microseconds")

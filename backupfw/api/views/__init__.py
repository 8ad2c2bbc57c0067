"""Bodies of answers: each function turns a manager's record into the exact keys that clients check."""

from __future__ import annotations

import datetime

from backupfw import moments


def timestamp(moment: datetime.datetime | None) -> str | None:
    """Write a time (naive UTC, or with a zone) as ``YYYY-MM-DDThh:mm:ss.ffffff``, UTC without a zone."""
    if moment is None:
        return None
    # Positional arguments are faster, and a page has thousands of times.
    return moments.utc(moment).isoformat("T", "microseconds")

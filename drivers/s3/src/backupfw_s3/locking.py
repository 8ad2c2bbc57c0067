"""Object lock: what requests and answers of S3 say about it."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

#: Codes with which servers say that an object, or a bucket, has no lock.
NO_LOCK = frozenset(
    (
        "NoSuchObjectLockConfiguration",
        "ObjectLockConfigurationNotFound",
        "ObjectLockConfigurationNotFoundError",
    )
)
#: Codes with which servers refuse all about locks in a bucket that was made without object lock.
REFUSED = NO_LOCK | {"InvalidRequest"}


def in_seconds(until: datetime) -> datetime:
    """Return the next full second: some servers cut off the rest, and the lock would end too early."""
    return until if not until.microsecond else until.replace(microsecond=0) + timedelta(seconds=1)


def retention(answer: Mapping[str, Any]) -> tuple[str | None, datetime | None]:
    """Return mode and end of the lock that an answer tells."""
    found = answer.get("Retention") or {}
    return found.get("Mode"), found.get("RetainUntilDate")

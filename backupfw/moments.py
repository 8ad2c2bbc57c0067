"""Moments: naive UTC everywhere in the service, whatever zone a text or a caller has."""

from __future__ import annotations

from datetime import UTC, datetime


def utc(moment: datetime) -> datetime:
    """Return a moment as naive UTC; one without a zone is UTC already.

    :raises OverflowError: it is before the year 1 or after the year 9999 there.
    """
    return moment if moment.tzinfo is None else moment.astimezone(UTC).replace(tzinfo=None)


def aware(moment: datetime) -> datetime:
    """Return a moment in naive UTC with its zone, as stores want it."""
    return moment.replace(tzinfo=UTC)


def parse(text: str, *, zoned: bool = False) -> datetime:
    """Return the moment that a text in ISO 8601 says, as naive UTC; a day is its beginning.

    :param zoned: refuse a text without a zone; else that is UTC.
    :raises ValueError: the text says no moment.
    """
    try:
        moment = datetime.fromisoformat(text)
        if zoned and moment.tzinfo is None:
            raise ValueError(f"{text!a} has no zone")
        return utc(moment)
    except OverflowError as error:
        raise ValueError(f"{text!a} is beyond all calendars") from error

"""Moments of texts are naive UTC."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backupfw import moments

zones = st.integers(-1439, 1439).map(lambda minutes: timezone(timedelta(minutes=minutes)))


@given(st.datetimes(datetime(2, 1, 1), datetime(9998, 1, 1)), zones)
def test_a_moment_is_the_same_in_every_zone(moment: datetime, zone: timezone) -> None:
    elsewhere = moment.replace(tzinfo=UTC).astimezone(zone)
    assert moments.parse(elsewhere.isoformat()) == moments.utc(elsewhere) == moment
    assert moments.parse(moment.isoformat()) == moments.utc(moment) == moment


@pytest.mark.parametrize(
    "text", ["", "soon", "2026-13-01", "0001-01-01T00:00:00+23:59", "9999-12-31T23:59-01:00"]
)
def test_what_is_no_moment(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        moments.parse(text)


def test_a_zone_may_be_needed() -> None:
    assert moments.parse("2026-01-31T20:00:00Z", zoned=True) == datetime(2026, 1, 31, 20)
    with pytest.raises(ValueError, match="has no zone"):
        moments.parse("2026-01-31T20:00:00", zoned=True)

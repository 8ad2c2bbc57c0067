"""The functions that drivers translate errors with."""

from __future__ import annotations

import email.utils
import ssl
import time

import botocore.exceptions
import pytest
import requests
import urllib3

from backupfw.chunkstore.errors import causes, retry_after


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0", 0.0),
        ("120", 120.0),
        ("1.5", 1.5),
        ("-3", 0.0),
        ("Sun, 06 Nov 1994 08:49:37 GMT", 0.0),
        # The two older forms of a date, which name no zone or a short year.
        ("Sun Nov  6 08:49:37 1994", 0.0),
        ("Sunday, 06-Nov-94 08:49:37 GMT", 0.0),
        ("", None),
        ("soon", None),
        ("\u0661", None),
        ("nan", None),
        ("inf", None),
        ("9" * 400, None),
        ("Sun, 06 Nov 99999 08:49:37 GMT", None),
        ("Mon, 01 Jan 0001 00:00:00 +2359", 0.0),
    ],
)
def test_retry_after_is_a_number_or_a_date_or_nothing(text: str, seconds: float | None) -> None:
    assert retry_after({"Retry-After": text}) == seconds


@pytest.mark.parametrize("name", ["Retry-After", "retry-after", "RETRY-AFTER"])
def test_retry_after_counts_from_now_to_the_date(name: str) -> None:
    found = retry_after({"Date": "never", name: email.utils.formatdate(time.time() + 3600, usegmt=True)})
    assert found is not None
    assert 3000 < found <= 3600


def test_a_date_without_a_zone_is_in_utc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    try:
        found = retry_after({"Retry-After": time.asctime(time.gmtime(time.time() + 3600))})
    finally:
        monkeypatch.undo()
        time.tzset()
    assert found is not None
    assert 3000 < found <= 3600


def test_no_answer_asks_for_nothing() -> None:
    assert retry_after(None) is None
    assert retry_after({}) is None


INNERMOST = ssl.SSLCertVerificationError("self-signed certificate")


def raised(outer: Exception, inner: Exception) -> Exception:
    """An error that was raised while another one was handled."""
    try:
        try:
            raise inner
        except Exception:
            raise outer  # noqa: B904  (what is tested)
    except Exception as error:
        return error


@pytest.mark.parametrize(
    "error",
    [
        INNERMOST,
        raised(ValueError("outer"), INNERMOST),
        requests.exceptions.SSLError(
            urllib3.exceptions.MaxRetryError(None, "/", urllib3.exceptions.SSLError(INNERMOST))  # type: ignore[arg-type]
        ),
        botocore.exceptions.SSLError(endpoint_url="https://s3", error=urllib3.exceptions.SSLError(INNERMOST)),
    ],
    ids=["itself", "context", "requests", "botocore"],
)
def test_causes_finds_the_error_inside(error: Exception) -> None:
    found = list(causes(error))
    assert error in found
    assert INNERMOST in found


def test_causes_ends_where_errors_hold_each_other() -> None:
    first, second = ValueError("first"), ValueError("second")
    first.__context__, second.__context__ = second, first
    first.args = (second, first)
    assert set(causes(first)) == {first, second}

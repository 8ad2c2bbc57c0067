"""Negotiation: which version a request is answered in."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from backupfw.api import errors, versions
from backupfw.api.versions import SERVED, ApiVersion, negotiate

V2, V3 = SERVED["v2"], SERVED["v3"]


def test_no_header_is_the_lowest() -> None:
    assert negotiate(V3, None) == ApiVersion(3, 0)


def test_latest_is_the_highest() -> None:
    assert negotiate(V3, "volume latest") == ApiVersion(3, 71)


@given(st.one_of(st.none(), st.text()))
def test_v2_has_no_header(header: str | None) -> None:
    assert negotiate(V2, header) == ApiVersion(2, 0)
    assert versions.reply_headers(V2, ApiVersion(2, 0)) == []


others = st.sampled_from(["compute 2.90", "identity latest", "volumes 3.5", "volumev3 3.5", "x", "x y z"])
blanks = st.sampled_from(["", " ", "  ", "\t"])
gaps = st.sampled_from([" ", "  ", "\t", " \t"])


@given(
    st.integers(0, 5),
    st.integers(0, 2000),
    st.lists(others, max_size=3),
    st.lists(others, max_size=3),
    blanks,
    gaps,
    blanks,
)
@example(3, 0, [], [], "", " ", "")
@example(3, 71, [], [], "", " ", "")
@example(3, 72, [], [], "", " ", "")
@example(2, 71, [], [], "", " ", "")
@example(4, 0, [], [], "", " ", "")
@example(3, 9, [], [], "", "\t", "")
def test_a_version_is_served_or_406(
    major: int, minor: int, before: list[str], after: list[str], left: str, gap: str, right: str
) -> None:
    header = ",".join([*before, f"{left}volume{gap}{major}.{minor}{right}", *after])
    if major == 3 and minor <= 71:
        assert negotiate(V3, header) == ApiVersion(major, minor)
        return
    with pytest.raises(errors.UnsupportedVersion) as caught:
        negotiate(V3, header)
    assert str(caught.value) == (
        f"Version {major}.{minor} is not supported by the API. Minimum is 3.0 and maximum is 3.71."
    )


@given(st.lists(others, min_size=1).map(",".join))
@example("")
@example("3.5")
@example("latest")
@example("Volume 3.5")
def test_a_header_for_others_only(header: str) -> None:
    with pytest.raises(errors.BadRequest, match="names no version of the service volume"):
        negotiate(V3, header)


@pytest.mark.parametrize(
    "text",
    [
        *("", "3", "3.", ".5", "3.05", "03.5", "3.5.1", "3.x", "v3.5", "3,5", "-3.5", "3.-5", "+3.5"),
        *("LATEST", "3.5 latest", "3 .5", "\N{ARABIC-INDIC DIGIT THREE}.5", "3." + "9" * 5000),
    ],
)
def test_a_malformed_version_is_refused(text: str) -> None:
    with pytest.raises(
        errors.BadRequest, match=r"is of invalid format\. Must be of format MajorNum.MinorNum"
    ):
        negotiate(V3, f"volume {text}")


@given(st.text())
def test_any_header_is_answered(header: str) -> None:
    try:
        version = negotiate(V3, header)
    except (errors.BadRequest, errors.UnsupportedVersion):
        return
    assert ApiVersion(3, 0) <= version <= ApiVersion(3, 71)

"""Query parameters: what is taken, what is refused and with which text."""

from __future__ import annotations

import pytest

from backupfw import errors as core_errors
from backupfw.api import errors
from backupfw.api.query import Listing, ListingRules, Query, listing

RULES = ListingRules(
    sort_keys={"created_at": "created_at", "id": "id", "size": "size", "label": "display_name"},
    filter_keys={"name": "display_name", "status": "status"},
)


def ask(text: str, *, is_admin: bool = False, max_limit: int = 1000) -> Listing:
    return listing(Query.parse(text), RULES, is_admin=is_admin, max_limit=max_limit)


def test_an_empty_query_is_the_newest_page() -> None:
    assert ask("") == Listing(1000, None, 0, (("created_at", "desc"),), False, {})


@pytest.mark.parametrize(
    ("text", "limit"),
    [
        ("limit=0", 0),
        ("limit=5", 5),
        ("limit=+5", 5),
        ("limit=1000", 1000),
        ("limit=1001", 1000),
        ("limit=" + "9" * 30, 1000),
    ],
)
def test_limit_is_capped(text: str, limit: int) -> None:
    assert ask(text).limit == limit


@pytest.mark.parametrize("value", ["", "x", "1.5", "1_0", "0x10", "%D9%A3", "9" * 31, "--1", "None"])
def test_limit_that_is_no_integer(value: str) -> None:
    with pytest.raises(errors.BadRequest, match=r"^limit param must be an integer$"):
        ask(f"limit={value}")


def test_a_negative_limit_is_refused() -> None:
    with pytest.raises(errors.BadRequest, match=r"^limit param must be positive$"):
        ask("limit=-1")


@pytest.mark.parametrize("value", ["-1", "2147483648", "x", "", "1.0"])
def test_an_offset_out_of_range_is_refused(value: str) -> None:
    with pytest.raises(core_errors.InvalidInput):
        ask(f"offset={value}")


def test_the_largest_offset_passes() -> None:
    assert ask("offset=2147483647").offset == 2147483647


@pytest.mark.parametrize(
    ("text", "sort"),
    [
        ("sort_key=size", (("size", "desc"),)),
        ("sort_key=size&sort_dir=asc", (("size", "asc"),)),
        ("sort_dir=asc", (("created_at", "asc"),)),
        ("sort=size", (("size", "desc"),)),
        ("sort=size:asc,label:desc", (("size", "asc"), ("display_name", "desc"))),
        ("sort=size:asc,size:desc", (("size", "asc"),)),
        ("sort_key=size,id&sort_dir=asc", (("size", "asc"), ("id", "asc"))),
        ("sort_key=", (("created_at", "desc"),)),
    ],
)
def test_sort_parameters_give_columns_and_directions(text: str, sort: tuple[tuple[str, str], ...]) -> None:
    assert ask(text).sort == sort


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("sort=size&sort_key=size", errors.BadRequest, "together"),
        ("sort=size&sort_dir=asc", errors.BadRequest, "together"),
        ("sort_key=size&sort_dir=up", core_errors.InvalidInput, "sort direction"),
        ("sort=size:up", core_errors.InvalidInput, "sort direction"),
        ("sort_dir=ASC", core_errors.InvalidInput, "sort direction"),
        ("sort=size:Desc", core_errors.InvalidInput, "sort direction"),
        ("sort=nothing", core_errors.InvalidInput, "Sort key"),
        ("sort=", core_errors.InvalidInput, "Sort key"),
        ("sort_key=name", core_errors.InvalidInput, "Sort key"),
        ("sort_key=size&sort_dir=asc,desc", core_errors.InvalidInput, "exceeds"),
    ],
)
def test_wrong_sort_parameters_are_refused(text: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        ask(text)


@pytest.mark.parametrize("word", ["1", "true", "True", "YES", "on", "t", "y", ""])
def test_all_tenants_is_for_administrators(word: str) -> None:
    assert ask(f"all_tenants={word}", is_admin=True).all_tenants
    assert not ask(f"all_tenants={word}").all_tenants


@pytest.mark.parametrize("word", ["0", "false", "False", "NO", "off"])
def test_all_tenants_can_be_false(word: str) -> None:
    assert not ask(f"all_tenants={word}", is_admin=True).all_tenants


@pytest.mark.parametrize("is_admin", [False, True])
def test_all_tenants_that_is_no_boolean(is_admin: bool) -> None:
    with pytest.raises(errors.BadRequest, match="all_tenants"):
        ask("all_tenants=maybe", is_admin=is_admin)


def test_unknown_filters_are_dropped_but_not_for_administrators() -> None:
    text = "name=a&status=b&host=c&limit=3"
    assert ask(text).filters == {"display_name": "a", "status": "b"}
    assert ask(text, is_admin=True).filters == {"display_name": "a", "status": "b", "host": "c"}


def test_substring_filters_are_none_yet() -> None:
    assert ask("name~=a").filters == {}
    assert ask("name~=a", is_admin=True).filters == {"name~~": "a"}


def test_the_last_of_equal_parameters_counts() -> None:
    assert ask("limit=1&limit=2").limit == 2


@pytest.mark.parametrize(
    "text", ["name=%ff", "%ff=1", "name=a%00b", "%00=1", "&".join("a=1" for _ in range(300))]
)
def test_a_malformed_query_is_refused(text: str) -> None:
    with pytest.raises(errors.BadRequest, match=r"^Malformed query string"):
        Query.parse(text)


def test_bytes_that_nobody_encoded() -> None:
    raw = "name=böck".encode().decode("latin-1")
    assert ask(raw).filters == ask("name=b%C3%B6ck").filters == {"display_name": "böck"}
    for wrong in ("name=\xff", "name=\u65e5"):
        with pytest.raises(errors.BadRequest, match="Malformed query string"):
            ask(wrong)


def test_blank_marker_is_none() -> None:
    assert ask("marker=").marker is None


def test_a_flag_is_a_boolean_word_or_absent() -> None:
    assert Query.parse("cascade=True").flag("cascade")
    assert not Query.parse("cascade=False").flag("cascade")
    assert not Query.parse("").flag("cascade")
    with pytest.raises(errors.BadRequest):
        Query.parse("cascade=x").flag("cascade")


def test_a_text_that_cannot_be_kept_is_reported_by_its_field() -> None:
    with pytest.raises(errors.BadRequest, match=r"^Malformed query string: 'name': it holds a NUL$"):
        ask("name=a%00b")

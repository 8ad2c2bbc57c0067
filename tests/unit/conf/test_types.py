"""Sizes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backupfw.conf.types import Size, format_size

ANY = Size(0, 1 << 62)


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("0", 0),
        ("4096", 4096),
        ("7b", 7),
        ("64k", 65536),
        ("64 KiB", 65536),
        ("64KB", 65536),
        ("256M", 256 << 20),
        (" 1 gib ", 1 << 30),
        ("2T", 2 << 40),
    ],
)
def test_a_size_is_plain_or_has_a_binary_unit(text: str, count: int) -> None:
    assert ANY(text) == count


@pytest.mark.parametrize("text", ["", "M", "-1", "1.5M", "1 XiB", "1 M B", "0x10", "1e3"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not a size"):
        ANY(text)


def test_a_size_keeps_its_bounds_and_powers_of_two() -> None:
    size = Size(1 << 10, 1 << 20, power_of_two=True)
    assert size("1k") == 1024
    assert size("1M") == 1 << 20
    with pytest.raises(ValueError, match="1 KiB to 1 MiB"):
        size("1023")
    with pytest.raises(ValueError, match="1 KiB to 1 MiB"):
        size("1048577")
    with pytest.raises(ValueError, match="power of two"):
        size("3k")


@given(st.integers(0, 1 << 60))
def test_what_is_written_is_read(count: int) -> None:
    assert ANY(format_size(count)) == count

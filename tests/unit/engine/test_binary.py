"""The smallest parts of the format: one spelling of JSON, and bytes that are taken off a buffer."""

from __future__ import annotations

import pytest

from backupfw.engine.format.binary import BadBytes, Cursor, dump_json, parse_json


def test_a_json_object_has_one_spelling() -> None:
    value = {"b": [1, None], "a": {"ü": "\U0001f4be", "z": "/"}}
    data = '{"a":{"z":"/","ü":"\U0001f4be"},"b":[1,null]}'.encode()
    assert dump_json(value) == data
    assert parse_json(data) == value


def test_a_cursor_never_goes_past_the_end_nor_back() -> None:
    cursor = Cursor(b"abc")
    assert cursor.take(0) == b""
    assert cursor.take(2) == b"ab"
    for length in (-1, 2):
        with pytest.raises(BadBytes, match="cut short"):
            cursor.take(length)
    with pytest.raises(BadBytes, match="longer"):
        cursor.end()
    assert cursor.text(1) == "c"
    assert cursor.take(0) == b""
    cursor.end()

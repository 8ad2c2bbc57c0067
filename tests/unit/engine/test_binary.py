"""The smallest parts of the format: one spelling of JSON, and bytes that are taken off a buffer."""

from __future__ import annotations

import sys
from array import array

import pytest

from backupfw.engine.format.binary import BadBytes, Cursor, column, column_bytes, dump_json, parse_json


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


@pytest.mark.parametrize("typecode", ["H", "I"])
def test_columns_are_stored_in_one_order_of_bytes_on_any_processor(
    typecode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = array(typecode).itemsize
    data = bytes(range(1, 1 + 3 * size))
    numbers = [data[at : at + size] for at in range(0, len(data), size)]
    assert column(typecode, data).tolist() == [int.from_bytes(number, "little") for number in numbers]
    assert column_bytes(column(typecode, data)) == data
    # As on a processor of the other order: where it would have the right numbers, here they are turned round.
    monkeypatch.setattr(sys, "byteorder", {"little": "big", "big": "little"}[sys.byteorder])
    values = column(typecode, data)
    turned = [int.from_bytes(number, "big") for number in numbers]
    assert values.tolist() == turned
    assert column_bytes(values) == data
    assert values.tolist() == turned, "the caller's array was changed"

"""Changes of bytes, as hypothesis draws them: small enough to shrink, aware of what numbers look like."""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from typing import Any

from hypothesis import strategies as st

_NUMBERS = [0, 1, 2, 3, 4, 0x7F, 0x80, 0xFF, 512, 4095, 4096, 4097, 0x7FFF, 0x8000, 0xFFFF, 0x10000]
_NUMBERS += [0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 1 << 50, (1 << 63) - 1, 1 << 63, (1 << 64) - 1]
_WIDTHS = {"u8": "<B", "u16": "<H", "u32": "<I", "u64": "<Q"}

#: What is done, where (in 1/65536 of the length), with which number.
Edit = tuple[str, int, int]

edits = st.lists(
    st.tuples(
        st.sampled_from([*_WIDTHS, "flip", "near", "cut", "double", "fill", "end"]),
        st.integers(0, 0xFFFF),
        st.sampled_from(_NUMBERS) | st.integers(0, 0xFFFF),
    ),
    min_size=1,
    max_size=4,
)

_TEXTS = ["", ".", "..", "%", "%00", "/", "\0", "a\nb", "\ud800", "é" * 300, "x" * 36, "x" * 37, "x" * 800]

_values: st.SearchStrategy[Any] = st.recursive(
    st.sampled_from([*_NUMBERS, -1, 9_999_999_999, 10**30, 0.5, 1e308, float("inf"), None, True])
    | st.sampled_from(_TEXTS)
    | st.text(max_size=300),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=20), inner, max_size=3),
    max_leaves=5,
)
#: Members of an object that get another value, by their place.
members = st.lists(st.tuples(st.integers(0, 40), _values), min_size=1, max_size=3)


def changed(data: bytes, todo: Sequence[Edit]) -> bytes:
    """Return the bytes with all edits done, in order."""
    found = bytearray(data)
    for what, where, number in todo:
        at = where * len(found) >> 16
        if what in _WIDTHS:
            size = struct.calcsize(_WIDTHS[what])
            if at + size <= len(found):
                struct.pack_into(_WIDTHS[what], found, at, number % (1 << 8 * size))
        elif what == "flip" and found:
            found[at] ^= 1 << number % 8
        elif what == "near" and found:
            found[at] = (found[at] + number % 5 - 2) % 256
        elif what == "cut":
            del found[at : at + number % 64]
        elif what == "double":
            found[at:at] = found[at : at + number % 512]
        elif what == "fill":
            found[at : at + number % 64] = bytes([number >> 8 & 0xFF]) * (number % 64)
        elif what == "end":
            del found[at + 1 :]
    return bytes(found)


def changed_members(data: bytes, todo: Sequence[tuple[int, Any]]) -> bytes:
    """Return a JSON object with other values for some of its members, those of objects within it too."""
    value = json.loads(data)
    places = []
    waiting = [value]
    while waiting:
        item = waiting.pop(0)
        places += [(item, name) for name in sorted(item)]
        waiting += [inner for inner in item.values() if isinstance(inner, dict)]
    for number, new in todo:
        item, name = places[number % len(places)]
        item[name] = new
    return json.dumps(value).encode("ascii")

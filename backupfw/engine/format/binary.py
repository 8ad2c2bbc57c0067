"""Reading bytes that may be hostile: bounded decompression, bounded JSON, a cursor that checks.

For wrong bytes, everything here raises :class:`BadBytes` and nothing else.  The callers know which object
they read, and turn the error into ``Damaged``.
"""

from __future__ import annotations

import json
import struct
import sys
from array import array
from typing import Any

import zstandard
from blake3 import blake3

DIGEST_BYTES = 32
#: Most values a JSON part may have, counted by the marks that come before them (within texts, too).
MAX_JSON_VALUES = 1 << 18


class BadBytes(ValueError):
    """Bytes are not what the format says; the message says in which way."""


def digest(data: bytes | bytearray | memoryview) -> bytes:
    """Return the 32-byte BLAKE3 digest of ``data``."""
    return blake3(data).digest()


def decompress(frame: bytes | memoryview, length: int) -> bytes:
    """Decompress one zstd frame that holds exactly ``length`` bytes.

    The frame must declare its content's size: so a hostile one cannot ask for more memory than the
    caller, who knows the length from elsewhere, has bounded.

    :raises BadBytes: it is no such frame.
    """
    try:
        if zstandard.frame_content_size(frame) != length:
            raise BadBytes("a compressed part has another length than promised")
        data = zstandard.ZstdDecompressor().decompress(frame, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise BadBytes("a compressed part cannot be decompressed") from error
    if len(data) != length:
        raise BadBytes("a compressed part has another length than promised")
    return data


def parse_json(data: bytes) -> dict[str, Any]:
    """Parse a JSON object; the caller has bounded its size.

    :raises BadBytes: it is not JSON in UTF-8, or not an object.
    """
    # A parsed value takes up to 30 times as many bytes as its text.
    if sum(data.count(mark) for mark in (b",", b"[", b"{")) > MAX_JSON_VALUES:
        raise BadBytes("a JSON part has more values than any")
    try:
        value = json.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise BadBytes("a JSON part cannot be parsed") from error
    if not isinstance(value, dict):
        raise BadBytes("a JSON part is not an object")
    return value


def dump_json(value: dict[str, Any]) -> bytes:
    """Return the one spelling of a JSON object that this format writes (sorted keys, no spaces)."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode("utf-8")


class Cursor:
    """Takes parts off a buffer, from the front, and never past its end."""

    def __init__(self, data: bytes | memoryview) -> None:
        self._data = memoryview(data)
        self.offset = 0

    def take(self, length: int) -> memoryview:
        """Return the next ``length`` bytes.

        :raises BadBytes: there are not so many.
        """
        end = self.offset + length
        if length < 0 or end > len(self._data):
            raise BadBytes("a part is cut short")
        part = self._data[self.offset : end]
        self.offset = end
        return part

    def unpack(self, layout: struct.Struct) -> tuple[Any, ...]:
        """Return the next fields as ``layout`` describes them.

        :raises BadBytes: the buffer ends before.
        """
        return layout.unpack(self.take(layout.size))

    def text(self, length: int) -> str:
        """Return the next ``length`` bytes as ASCII text.

        :raises BadBytes: they are not, or there are not so many.
        """
        try:
            return str(self.take(length), "ascii")
        except UnicodeDecodeError as error:
            raise BadBytes("a text is not ASCII") from error

    def end(self) -> None:
        """Check that nothing is left.

        :raises BadBytes: something is.
        """
        if self.offset != len(self._data):
            raise BadBytes("a part is longer than promised")


def column(typecode: str, data: bytes | memoryview) -> array[int]:
    """Return little-endian integers of an array type (``H`` or ``I``) as an array."""
    values: array[int] = array(typecode)
    values.frombytes(data)
    if sys.byteorder == "big":
        values.byteswap()
    return values


def column_bytes(values: array[int]) -> bytes:
    """Return an array's integers in little-endian order."""
    if sys.byteorder == "big":
        values = array(values.typecode, values)
        values.byteswap()
    return values.tobytes()

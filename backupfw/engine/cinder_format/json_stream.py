"""Reads a JSON object of any length a member at a time, in bounded memory."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Callable, Collection, Iterator
from typing import Any, NoReturn

from backupfw.engine.format.binary import BadBytes

#: Longest value, and longest item of a list that is read item by item, in characters.
MAX_VALUE, MAX_ITEM = 1 << 20, 1 << 14

_SPACE = re.compile(r"[ \t\n\r]*")
_HASHES = re.compile(r'(?:[ \t\n\r]*"[0-9a-f]{64}"[ \t\n\r]*,)+')


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


_DECODER = json.JSONDecoder(parse_constant=_refuse_constant)


class JsonStream:
    """A JSON object, read once from its beginning.  Not thread-safe.

    :param read: returns the next bytes, none at the end.
    """

    def __init__(self, read: Callable[[], bytes]) -> None:
        self._read = read
        self._decode = codecs.getincrementaldecoder("utf-8")().decode
        self._text = ""
        self._at = 0
        self._ended = False

    def members(self, lists: Collection[str] = ()) -> Iterator[tuple[str, Any]]:
        """Yield name and value of each member.

        :param lists: names of members whose value is a list: each item is yielded by itself.
        :raises BadBytes: it is no JSON object, or a part of it is too long.
        """
        self._expect("{")
        if self._next() == "}":
            self._at += 1
        else:
            while True:
                name = self._value(MAX_ITEM)
                if not isinstance(name, str):
                    raise BadBytes("it is no JSON object")
                self._expect(":")
                if name in lists:
                    yield from ((name, item) for item in self._items())
                else:
                    yield name, self._value(MAX_VALUE)
                if not self._another("}"):
                    break
        if self._next():
            raise BadBytes("more follows its JSON object")

    def hashes(self, name: str) -> Iterator[bytes]:
        """Yield the SHA-256 digests of the list ``name``, many at a time, joined.

        :raises BadBytes: as :meth:`members`; or an item is no SHA-256 in hexadecimal.
        """
        self._expect("{")
        while True:
            member = self._value(MAX_ITEM)
            self._expect(":")
            if member == name:
                break
            self._value(MAX_VALUE)
            if not self._another("}"):
                raise BadBytes(f"it has no {name}")
        self._expect("[")
        if self._next() == "]":
            return
        while True:
            self._fill(MAX_ITEM)
            # Nearly all of them, without a Python object for each.
            if (run := _HASHES.match(self._text, self._at)) is not None:
                yield bytes.fromhex(re.sub('[", \t\n\r]+', "", run[0]))
                self._at = run.end()
            one = self._value(MAX_ITEM)
            if not isinstance(one, str) or not re.fullmatch("[0-9a-fA-F]{64}", one):
                raise BadBytes("an item of its list is no SHA-256")
            yield bytes.fromhex(one)
            if not self._another("]"):
                return

    def _items(self) -> Iterator[Any]:
        self._expect("[")
        if self._next() == "]":
            self._at += 1
            return
        while True:
            yield self._value(MAX_ITEM)
            if not self._another("]"):
                return

    def _another(self, end: str) -> bool:
        """Pass a comma, or the end of what is read."""
        found = self._next()
        self._at += 1
        if found not in (",", end):
            raise BadBytes("it is not JSON")
        return found == ","

    def _expect(self, mark: str) -> None:
        if self._next() != mark:
            raise BadBytes("it is not the JSON that it should be")
        self._at += 1

    def _next(self) -> str:
        """Return the next character that is no space, without passing it; empty at the end."""
        while True:
            self._fill(1)
            found = _SPACE.match(self._text, self._at)
            assert found is not None
            self._at = found.end()
            if self._at < len(self._text):
                return self._text[self._at]
            if self._ended:
                return ""

    def _value(self, longest: int) -> Any:
        self._next()
        self._fill(longest + 1)
        try:
            value, end = _DECODER.raw_decode(self._text, self._at)
        except (ValueError, RecursionError) as error:
            more = len(self._text) - self._at > longest
            raise BadBytes("it is not JSON, or a part of it is too long" if more else "it is not JSON") from (
                error
            )
        if end - self._at > longest:
            raise BadBytes("a part of it is too long")
        self._at = end
        return value

    def _fill(self, least: int) -> None:
        """Have at least so many characters before the end of what was read, if there are so many."""
        if len(self._text) - self._at >= least or self._ended:
            return
        parts = [self._text[self._at :]]
        length = len(parts[0])
        while length < least and not self._ended:
            data = self._read()
            self._ended = not data
            try:
                parts.append(self._decode(data, self._ended))
            except UnicodeDecodeError as error:
                raise BadBytes("it is not UTF-8") from error
            length += len(parts[-1])
        self._text = "".join(parts)
        self._at = 0

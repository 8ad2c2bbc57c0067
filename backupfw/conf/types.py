"""Option types that oslo.config does not have."""

from __future__ import annotations

import re
import shlex
from collections.abc import Collection
from typing import Any

from oslo_config import types

#: Names that are used in section headings, before a colon in requests, and after an ``@`` in answers.
NAME = types.String(regex=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,62}$")

_PLACEHOLDER = re.compile(r"\{([^{}]*)\}")
_UNITS = {
    "": 1,
    "b": 1,
    "k": 1 << 10,
    "m": 1 << 20,
    "g": 1 << 30,
    "t": 1 << 40,
}
_SIZE = re.compile(r"(\d+)\s*(?:([kmgt])(?:i?b)?|b)?", re.IGNORECASE)


def format_size(count: int) -> str:
    """Return a number of bytes in the largest unit that shows it exactly, e.g. ``256 MiB``."""
    for unit, factor in (("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if count and count % factor == 0:
            return f"{count // factor} {unit}"
    return str(count)


class Size(types.ConfigType):
    """A number of bytes, plain or with a binary unit: ``4096``, ``64 KiB``, ``256M``, ``1g``.

    :param min: smallest allowed value, bytes.
    :param max: largest allowed value, bytes.
    :param power_of_two: whether only powers of two are allowed.
    """

    def __init__(self, min: int, max: int, power_of_two: bool = False) -> None:  # noqa: A002  (oslo's names)
        super().__init__(type_name="size in bytes, or with KiB, MiB, GiB")
        self.min = min
        self.max = max
        self.power_of_two = power_of_two

    def __call__(self, value: Any) -> int:
        """Return the bytes that ``value`` says.

        :raises ValueError: it is not a size, or out of bounds.
        """
        match = _SIZE.fullmatch(str(value).strip())
        if match is None:
            raise ValueError(f"{value!r} is not a size such as 65536, 64 KiB or 256 MiB")
        count = int(match[1]) * _UNITS[(match[2] or "").lower()]
        if not self.min <= count <= self.max:
            raise ValueError(f"{value!r} is not from {format_size(self.min)} to {format_size(self.max)}")
        if self.power_of_two and count & (count - 1):
            raise ValueError(f"{value!r} is not a power of two")
        return count

    def __repr__(self) -> str:
        return f"size from {format_size(self.min)} to {format_size(self.max)}" + (
            ", a power of two" if self.power_of_two else ""
        )

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Size) and vars(self) == vars(other)

    def __hash__(self) -> int:
        return hash((self.min, self.max, self.power_of_two))

    def _formatter(self, value: Any) -> str:
        return format_size(self(value))


class Command(types.ConfigType):
    """A command as a list of arguments, e.g. ``/usr/bin/virsh domfsfreeze {volume_id}``; no shell runs it.

    :param placeholders: the names that can be in braces.
    """

    def __init__(self, placeholders: Collection[str] = ()) -> None:
        named = f"; in braces: {', '.join(placeholders)}" if placeholders else ""
        super().__init__(type_name=f"absolute path of a program and its arguments{named}")
        self.placeholders = tuple(placeholders)

    def __call__(self, value: Any) -> tuple[str, ...]:
        """Return the arguments, the program first.

        :raises ValueError: it is no command.
        """
        if isinstance(value, tuple):
            return value
        text = str(value)
        try:
            arguments = tuple(shlex.split(text))
        except ValueError as error:
            raise ValueError(f"{text!r} cannot be split into arguments: {error}") from error
        if not arguments or not arguments[0].startswith("/"):
            raise ValueError(f"{text!r} does not begin with the absolute path of a program")
        if "{" in arguments[0] or "\0" in text:
            raise ValueError(f"{text!r} does not name its program as it is")
        for argument in arguments[1:]:
            rest = _PLACEHOLDER.sub(lambda found: "" if found[1] in self.placeholders else found[0], argument)
            if "{" in rest or "}" in rest:
                raise ValueError(f"{argument!r} has something in braces that is not known")
        return arguments

    def __repr__(self) -> str:
        return self.type_name

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Command) and vars(self) == vars(other)

    def __hash__(self) -> int:
        return hash(self.placeholders)

    def _formatter(self, value: Any) -> str:
        return shlex.join(self(value))

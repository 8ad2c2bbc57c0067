"""Texts that mean true or false, in bodies and in queries."""

from __future__ import annotations

from backupfw.api import errors

_TRUE = frozenset({"1", "t", "true", "on", "y", "yes"})
_FALSE = frozenset({"0", "f", "false", "off", "n", "no"})


def boolean(value: str | bool, name: str) -> bool:
    """Read a boolean word in any case; a boolean is itself.

    :raises BadRequest: it is no such word; ``name`` says which parameter it was.
    """
    if isinstance(value, bool):
        return value
    word = value.strip().lower()
    if word in _TRUE:
        return True
    if word in _FALSE:
        return False
    raise errors.BadRequest(f"Invalid input received: {name} must be a boolean, not '{value}'")

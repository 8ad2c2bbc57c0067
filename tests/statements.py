"""Looks at the statements that tests send to a database."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from sqlalchemy import event
from sqlalchemy.engine import Engine

#: A table, and the name that it has in the statement.
_TABLE = re.compile(r"(?:\bFROM|\bJOIN|\bUPDATE|,)\s+(\w+)(?!\w*\.)(?:\s+AS\s+(\w+))?")
_BRACKET = re.compile(r"\bEXISTS\s*\((?=\s*SELECT\b)|[()]")

_seen: set[str] = set()


def watch() -> None:
    """Let every statement fail that has an EXISTS which looks through a table of the statement around it.

    SQLAlchemy correlates a subquery with the statement right around it, and with none further out: there it
    writes the outer table once more into the subquery.  The condition then holds for all rows or for none,
    and a simple test does not notice.  Who means the table as a whole uses an alias.
    """
    event.listen(Engine, "before_cursor_execute", _look)


def _look(conn: Any, cursor: Any, statement: str, *rest: Any) -> None:
    if statement in _seen:
        return
    for table in repeated(statement):
        raise AssertionError(
            f"EXISTS looks through all of {table}, which the statement is about: {statement}"
        )
    _seen.add(statement)


def repeated(statement: str) -> Iterator[str]:
    """Yield the tables of each EXISTS that are tables of what surrounds it, too."""
    whole = open_bracket = Bracket(None)
    place = 0
    for found in _BRACKET.finditer(statement):
        open_bracket.text += statement[place : found.start()]
        place = found.end()
        if found[0] == ")":
            assert open_bracket.around is not None
            open_bracket = open_bracket.around
        else:
            open_bracket = Bracket(open_bracket, exists=found[0] != "(")
    whole.text += statement[place:]
    yield from _repeated(whole, set())


class Bracket:
    """What stands in brackets, without what stands in brackets there."""

    def __init__(self, around: Bracket | None, *, exists: bool = False) -> None:
        self.around = around
        self.exists = exists
        self.text = ""
        self.inner: list[Bracket] = []
        if around is not None:
            around.inner.append(self)
            around.text += "()"


def _repeated(bracket: Bracket, around: set[str]) -> Iterator[str]:
    tables = {alias or table for table, alias in _TABLE.findall(bracket.text)}
    if bracket.exists:
        yield from tables & around
    for inner in bracket.inner:
        yield from _repeated(inner, around | tables)

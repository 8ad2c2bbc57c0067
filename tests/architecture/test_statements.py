"""What looks at the statements of all tests sees the one mistake it is there for."""

from __future__ import annotations

import pytest
from sqlalchemy import create_engine, text

from tests.statements import repeated

ROW = "EXISTS (SELECT 1 FROM b WHERE a.x = b.x)"
ALL = "EXISTS (SELECT 1 FROM b, a WHERE a.x = b.x)"


@pytest.mark.parametrize(
    "statement",
    [
        f"SELECT a.x FROM a WHERE {ALL}",
        f"SELECT a.x, {ALL} FROM a",
        f"SELECT a.x FROM c JOIN d AS a WHERE NOT ({ALL})",
        f"UPDATE a SET x=1 WHERE {ALL}",
        f"DELETE FROM a WHERE {ALL}",
        f"SELECT a.x FROM a WHERE EXISTS (SELECT 1 FROM c WHERE c.x = a.x AND ({ALL}))",
    ],
)
def test_all_of_a_table_instead_of_one_row(statement: str) -> None:
    assert list(repeated(statement)) == ["a"]


@pytest.mark.parametrize(
    "statement",
    [
        f"SELECT a.x FROM a WHERE {ROW}",
        f"SELECT a.x, {ROW} FROM a",
        f"SELECT {ALL}",
        "SELECT a.x FROM a WHERE EXISTS (SELECT 1 FROM a AS a_1 WHERE a.x = a_1.y)",
        "DELETE FROM a WHERE a.x IN (SELECT a.x FROM a WHERE a.y > 1)",
        f"SELECT a.x FROM a WHERE EXISTS (SELECT 1 FROM c WHERE c.x = a.x AND {ROW})",
    ],
)
def test_one_row(statement: str) -> None:
    assert not list(repeated(statement))


def test_every_statement_is_looked_at() -> None:
    engine = create_engine("sqlite://")
    with engine.connect() as connection, pytest.raises(AssertionError, match="all of a"):
        connection.execute(text(f"SELECT a.x FROM a WHERE {ALL}"))
    engine.dispose()

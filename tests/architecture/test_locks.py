"""Rows are locked, and rows that may be there already are written, in one module only."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from tests.architecture.checkout import CORE

ALLOWED = CORE / "db" / "locks.py"


def racy(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield what locks and reads at once, and what reads before it decides between insert and update."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            names = [word.arg for word in node.keywords]
            if isinstance(node.func, ast.Attribute):
                names.append(node.func.attr)
                owner = node.func.value
                if node.func.attr == "merge" and isinstance(owner, ast.Name) and owner.id == "session":
                    yield node.lineno, "session.merge"
            if "with_for_update" in names:
                yield node.lineno, "with_for_update"
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and "FOR UPDATE" in node.value:
            yield node.lineno, "FOR UPDATE"


def test_only_one_module_locks() -> None:
    found = {
        str(path.relative_to(CORE)): hits
        for path in sorted(CORE.rglob("*.py"))
        if path != ALLOWED and (hits := list(racy(ast.parse(path.read_text()))))
    }
    assert found == {}
    assert list(racy(ast.parse(ALLOWED.read_text())))


def test_the_search_finds_what_it_looks_for() -> None:
    source = (
        "select(row).with_for_update(skip_locked=True)\n"
        "session.get(row, 1, with_for_update=True)\n"
        "session.merge(row)\n"
        "heapq.merge(runs)\n"
        "text('SELECT 1 FOR UPDATE')\n"
    )
    assert sorted(racy(ast.parse(source))) == [
        (1, "with_for_update"),
        (2, "with_for_update"),
        (3, "session.merge"),
        (5, "FOR UPDATE"),
    ]

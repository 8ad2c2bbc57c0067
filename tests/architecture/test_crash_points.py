"""Every crash point is reached somewhere, and every name that is reached is listed."""

from __future__ import annotations

import ast
from pathlib import Path

from backupfw import crash_points

ROOT = Path(crash_points.__file__).parent


def reached() -> set[str]:
    names = set()
    for path in ROOT.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "crash_points.reach":
                assert isinstance(node.args[0], ast.Constant), f"{path}: a point's name is a literal"
                names.add(node.args[0].value)
    return names


def test_the_list_is_what_the_code_reaches() -> None:
    assert reached() == set(crash_points.NAMES)
    assert len(set(crash_points.NAMES)) == len(crash_points.NAMES)

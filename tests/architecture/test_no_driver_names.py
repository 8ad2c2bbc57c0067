"""Core knows no driver: it imports none and compares nothing with a driver's name."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.architecture.checkout import (
    CORE,
    ROOT,
    driver_entry_points,
    driver_projects,
    key_store_entry_points,
    provider_entry_points,
)

#: The embedded profile is the one place that names a driver.
ALLOWED = {
    CORE / "conf" / "embedded.py",
    # The module of the operating system that it imports is called like a driver.
    CORE / "volume" / "nbd" / "client.py",
}

#: Drivers that will be in the checkout; named here so that core cannot get used to them before.
NAMES = {"posix", "s3", "swift", "gcs"} | {
    *driver_entry_points(),
    *provider_entry_points(),
    *key_store_entry_points(),
}


def modules() -> list[Path]:
    return sorted(CORE.rglob("*.py"))


def imported(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


def docstrings(tree: ast.AST) -> set[int]:
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            found.add(id(node.value))
    return found


def named(tree: ast.AST) -> Iterator[tuple[int, str]]:
    plain = docstrings(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and node.value in NAMES and id(node) not in plain:
            yield node.lineno, node.value


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(CORE)))
def test_core_knows_no_driver(path: Path) -> None:
    tree = ast.parse(path.read_text())
    drivers = tuple(f"backupfw_{folder}" for folder in (*driver_projects(), *NAMES))
    assert [name for name in imported(tree) if name.partition(".")[0] in drivers] == []
    if path not in ALLOWED:
        assert list(named(tree)) == []


def test_the_search_finds_what_it_looks_for() -> None:
    tree = ast.parse('"""posix"""\nimport backupfw_posix.store\nif driver == "posix":\n    pass\n')
    assert list(imported(tree)) == ["backupfw_posix.store"]
    assert list(named(tree)) == [(3, "posix")]


def test_every_driver_imports_only_the_boundary() -> None:
    of_volumes = {path.partition(".")[0] for path in provider_entry_points().values()}
    of_keys = {path.partition(".")[0] for path in key_store_entry_points().values()}
    for folder in driver_projects():
        allowed: tuple[str, ...] = ("backupfw.chunkstore",)
        if f"backupfw_{folder}" in of_volumes:
            allowed = ("backupfw.volume", "backupfw.errors")
        elif f"backupfw_{folder}" in of_keys:
            allowed = ("backupfw.keys", "backupfw.errors")
        sources = sorted((ROOT / "drivers" / folder / "src").rglob("*.py"))
        assert sources
        for path in sources:
            for name in imported(ast.parse(path.read_text())):
                if name.partition(".")[0] == "backupfw":
                    assert name.startswith(allowed), f"{path}: {name}"
                    assert not name.startswith("backupfw.volume.local"), f"{path}: {name}"

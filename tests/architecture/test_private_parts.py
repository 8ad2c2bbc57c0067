"""Each private part of a library that is touched is listed in docs/architecture.md, with a version bound."""

from __future__ import annotations

import ast
import importlib
import importlib.metadata
import pkgutil
import re
import sys
from collections.abc import Iterable, Iterator, Set
from pathlib import Path
from types import ModuleType

import pytest
from packaging.requirements import Requirement

from tests.architecture.checkout import CORE, ROOT, driver_projects, lines, setup_cfg

PAGE = ROOT / "docs" / "architecture.md"
HEADING = "## Private parts of libraries\n"
ROW = re.compile(
    r"^\| `(?P<file>[^`|]+)` \| `(?P<part>[^`|]+)` \| `(?P<bound>[^`|]+)` \| (?P<reason>[^|]+) \|$"
)

#: Names with an underscore that a library documents for everybody, or that Python itself sets in a class.
DOCUMENTED = {
    "_abc_impl": "abc",
    "_exit": "os",
    "_fields": "collections.namedtuple",
    "_make": "collections.namedtuple",
    "_is_protocol": "typing.Protocol",
    "_lookup": "pecan",
    "_mapping": "sqlalchemy.Row",
    "_route": "pecan",
}
#: Functions that take an attribute's name as their second argument.
BY_NAME = ("getattr", "hasattr", "setattr", "delattr")
#: A module's path with a private part, in a text.
PRIVATE_PATH = re.compile(r"[a-z]\w*(?:\.\w+)*\._[a-z][\w.]*")


def source_files() -> list[Path]:
    return sorted([*CORE.rglob("*.py"), *(ROOT / "drivers").glob("*/src/**/*.py")])


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__") and name not in DOCUMENTED


def is_ours(module: str | None) -> bool:
    return (module or "").split(".")[0].startswith("backupfw")


def nodes_of(source: str) -> list[ast.AST]:
    return list(ast.walk(ast.parse(source)))


def defined(nodes: Iterable[ast.AST]) -> set[str]:
    """Return the private names that a file's own classes and functions give to attributes and parameters."""
    found: set[str] = set()
    for node in nodes:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            found.add(node.name)
        elif isinstance(node, ast.arg):
            found.add(node.arg)
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            found.add(node.target.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and is_self(node.value):
            found.add(node.attr)
    return found


def is_self(node: ast.expr) -> bool:
    if isinstance(node, ast.Call):
        return isinstance(node.func, ast.Name) and node.func.id == "super"
    return isinstance(node, ast.Name) and node.id in ("self", "cls")


def touched(nodes: Iterable[ast.AST], own: Set[str]) -> Iterator[tuple[str, bool]]:
    """Yield the private names of others that a file uses, and whether as an attribute of its own objects.

    A name of the file's own classes is no other's.
    """
    for node in nodes:
        of_self = isinstance(node, ast.Attribute) and is_self(node.value)
        if isinstance(node, ast.Attribute):
            names = [node.attr]
        elif isinstance(node, ast.keyword):
            names = [node.arg or ""]
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in BY_NAME:
            name = node.args[1]
            names = [name.value] if isinstance(name, ast.Constant) else []
        else:
            continue
        yield from ((name, of_self) for name in names if is_private(name) and name not in own)


def imported(nodes: Iterable[ast.AST]) -> Iterator[str]:
    """Yield the private modules and names of libraries that a file imports, or names in a text."""
    for node in nodes:
        if isinstance(node, ast.Import):
            paths = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            paths = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            paths = [node.value] if PRIVATE_PATH.fullmatch(node.value) else []
        else:
            continue
        yield from (
            path for path in paths if not is_ours(path) and any(is_private(part) for part in path.split("."))
        )


def modules() -> Iterator[ModuleType]:
    for package in ("backupfw", *(f"backupfw_{name}" for name in driver_projects())):
        root = importlib.import_module(package)
        for info in pkgutil.walk_packages(root.__path__, f"{package}."):
            # Alembic runs the migrations itself; they have no classes.
            if not info.name.endswith("__main__") and ".migrations." not in info.name:
                yield importlib.import_module(info.name)


def overridden() -> Iterator[tuple[str, str]]:
    """Yield the private methods of libraries' classes that classes of ours replace: file and name.

    An abstract method is left out: its library asks every subclass for it.
    """
    for module in modules():
        for each in vars(module).values():
            if not isinstance(each, type) or each.__module__ != module.__name__:
                continue
            strangers = [
                base
                for base in each.__mro__
                if not is_ours(base.__module__)
                and base.__module__.split(".")[0] not in sys.stdlib_module_names
            ]
            for name in vars(each):
                if is_private(name) and any(
                    name in vars(base) and name not in getattr(base, "__abstractmethods__", ())
                    for base in strangers
                ):
                    yield str(Path(str(module.__file__)).relative_to(ROOT)), name


def found() -> set[tuple[str, str]]:
    pairs, anywhere, of_self = set(overridden()), set[str](), set[tuple[str, str]]()
    for path in source_files():
        file, nodes = str(path.relative_to(ROOT)), nodes_of(path.read_text())
        own = defined(nodes)
        anywhere |= own
        pairs |= {(file, name) for name in imported(nodes)}
        for name, own_object in touched(nodes, own):
            (of_self if own_object else pairs).add((file, name))
    # What a class of another file here defines is inherited.
    return pairs | {(file, name) for file, name in of_self if name not in anywhere}


def rows() -> list[re.Match[str]]:
    section = PAGE.read_text().partition(HEADING)[2].partition("\n## ")[0]
    return [match for line in section.splitlines() if (match := ROW.match(line))]


def test_every_private_part_that_is_touched_is_listed_and_no_other() -> None:
    assert found() == {(row["file"], row["part"]) for row in rows()}


def test_each_has_a_bound_that_the_distribution_declares_and_that_ends_somewhere() -> None:
    options = setup_cfg()
    core = options["options"]["install_requires"]
    extras = [text for name, text in options["options.extras_require"].items() if name != "test"]
    declared = {line for text in (core, *extras) for line in lines(text)}
    for project in driver_projects().values():
        declared |= set(project["project"]["dependencies"])
    assert rows()
    for row in rows():
        bound = Requirement(row["bound"])
        assert row["bound"] in declared, f"{row['file']}: no distribution here requires {row['bound']}"
        assert any(each.operator in ("<", "==", "~=") for each in bound.specifier), (
            f"{row['bound']}: a later version may change the part"
        )
        assert bound.specifier.contains(importlib.metadata.version(bound.name))


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("client._credentials", "_credentials"),
        ("def f(x):\n  self._y = x\n  return x._z", "_z"),
        ("self.session._pool", "_pool"),
        ("class Ours(Theirs):\n  def f(self): return self._their_own", "_their_own"),
        ("f()._x = 1", "_x"),
        ("Client(_http=1)", "_http"),
        ("getattr(c, '_sock', None)", "_sock"),
        ("from lib._deep.down import thing", "lib._deep.down.thing"),
        ("from lib import _thing", "lib._thing"),
        ("import lib._deep", "lib._deep"),
        ("KINDS = 'oslo_policy._checks'", "oslo_policy._checks"),
    ],
)
def test_a_private_part_is_found_in_every_form(source: str, name: str) -> None:
    nodes = nodes_of(source)
    assert [*(name for name, _ in touched(nodes, defined(nodes))), *imported(nodes)] == [name]


@pytest.mark.parametrize(
    "source",
    [
        "class Ours(Theirs):\n  def _x(self): return super()._x()",
        "class A:\n  _x: int\n  def same(self, other): return other._x",
        "row._mapping",
        "x.__class__",
        "from backupfw.errors import _thing",
        "from __future__ import annotations",
        "'see foo._bar, and more'",
        "def f(_x): pass\nf(_x=1)",
    ],
)
def test_what_is_ones_own_or_documented_is_no_private_part(source: str) -> None:
    nodes = nodes_of(source)
    assert [*touched(nodes, defined(nodes)), *imported(nodes)] == []

"""The template keeps the rules of the other drivers, though it is not installed beside them."""

from __future__ import annotations

import ast
import tomllib
from pathlib import Path

import pytest
from backupfw_template.store import TemplateStore

from backupfw.chunkstore.base import API_VERSION
from tests.architecture.checkout import ROOT

TEMPLATE = ROOT / "drivers" / "template"
PACKAGE = TEMPLATE / "src" / "backupfw_template"


@pytest.mark.parametrize("path", sorted(PACKAGE.glob("*.py")), ids=lambda path: path.name)
def test_it_imports_the_boundary_only(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            names.append(node.module or "")
        for name in names:
            if name.split(".")[0] == "backupfw":
                assert name.startswith("backupfw.chunkstore"), name


def test_its_entry_point_leads_to_it() -> None:
    project = tomllib.loads((TEMPLATE / "pyproject.toml").read_text())["project"]
    assert project["entry-points"]["backupfw.chunkstore"] == {
        "template": f"{TemplateStore.__module__}:{TemplateStore.__name__}"
    }
    assert TemplateStore.API_VERSION == API_VERSION
    assert TemplateStore.wire_name == f"{TemplateStore.__module__}.{TemplateStore.__name__}"


def test_its_readme_lists_every_option() -> None:
    readme = (TEMPLATE / "README.md").read_text()
    for option in TemplateStore.options():
        default = "(needed)" if option.required else f"`{option.default}`"
        secret = " Secret." if option.secret else ""
        assert f"| `{option.name}` | {default} | {option.help}{secret} |" in readme

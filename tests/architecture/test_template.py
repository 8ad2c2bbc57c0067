"""The templates keep the rules of the other drivers, though they are not installed beside them."""

from __future__ import annotations

import ast
import tomllib
from pathlib import Path

import pytest
from backupfw_template.store import TemplateStore
from backupfw_template_volume.provider import TemplateProvider

from backupfw.chunkstore.base import API_VERSION
from backupfw.testing.readme import require_options_table
from backupfw.volume import base as volume
from tests.architecture.checkout import ROOT

STORE = ROOT / "drivers" / "template"
VOLUME = ROOT / "drivers" / "template-volume"

#: Each module of a template, and what it may import of core.
MODULES = [
    *((path, ("backupfw.chunkstore",)) for path in sorted(STORE.glob("src/*/*.py"))),
    *(
        (path, ("backupfw.volume.base", "backupfw.volume.taking", "backupfw.errors"))
        for path in sorted(VOLUME.glob("src/*/*.py"))
    ),
]


@pytest.mark.parametrize(("path", "allowed"), MODULES, ids=lambda value: getattr(value, "name", ""))
def test_it_imports_the_boundary_only(path: Path, allowed: tuple[str, ...]) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            names.append(node.module or "")
        for name in names:
            if name.split(".")[0] == "backupfw":
                assert name.startswith(allowed), name


def entry_points(folder: Path, group: str) -> dict[str, str]:
    project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
    points: dict[str, str] = project["entry-points"][group]
    return points


def test_its_entry_point_leads_to_it() -> None:
    assert entry_points(STORE, "backupfw.chunkstore") == {
        "template": f"{TemplateStore.__module__}:{TemplateStore.__name__}"
    }
    assert TemplateStore.API_VERSION == API_VERSION
    assert TemplateStore.wire_name == f"{TemplateStore.__module__}.{TemplateStore.__name__}"


def test_the_entry_point_of_volumes_leads_to_it() -> None:
    assert entry_points(VOLUME, "backupfw.volume") == {
        "template": f"{TemplateProvider.__module__}:{TemplateProvider.__name__}"
    }
    assert vars(TemplateProvider)["API_VERSION"] == volume.API_VERSION


def test_its_readme_lists_every_option() -> None:
    readme = (STORE / "README.md").read_text()
    for option in TemplateStore.options():
        default = "(needed)" if option.required else f"`{option.default}`"
        secret = " Secret." if option.secret else ""
        assert f"| `{option.name}` | {default} | {option.help}{secret} |" in readme
    require_options_table(VOLUME / "README.md", TemplateProvider.options())

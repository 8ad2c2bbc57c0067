"""One version everywhere, everything pinned, a place for the next change."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import tomllib
from collections.abc import Collection
from configparser import ConfigParser
from datetime import date
from functools import cache
from importlib import metadata
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

import backupfw
from tests.architecture.checkout import ROOT, TEMPLATES, driver_projects, lines, parts, setup_cfg


def plain_name(requirement: str) -> str:
    """A requirement's project name, normalised."""
    name = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert name is not None
    return re.sub(r"[-_.]+", "-", name[0]).lower()


def others(project: dict[str, Any]) -> list[str]:
    """What a distribution requires, but for those of the checkout, which carry its own version."""
    mine = f"=={backupfw.__version__}"
    found = []
    for requirement in project["project"]["dependencies"]:
        if plain_name(requirement).startswith("backupfw"):
            assert requirement.endswith(("backupfw", mine)), requirement
        else:
            found.append(requirement)
    return found


def pins() -> dict[str, str]:
    """The lines of constraints.txt, by project."""
    found = lines((ROOT / "constraints.txt").read_text())
    return {plain_name(line): line for line in found if not line.startswith("#")}


def runtime_requirements() -> dict[str, list[str]]:
    """What core (with all extras for users) and each other part may import, by the package's folder."""
    config = setup_cfg()
    core = lines(config["options"]["install_requires"])
    for extra in ("keystone", "messaging", "mysql", "postgresql", "testing"):
        core += lines(config["options.extras_require"][extra])
    found = {"backupfw": core}
    templates = {
        path: tomllib.loads((ROOT / path / "pyproject.toml").read_text())
        for path in (f"drivers/{folder}" for folder in TEMPLATES)
    }
    for path, project in {**parts(), **templates}.items():
        found[f"{path}/src"] = others(project)
    return found


@cache
def owners() -> dict[str, str]:
    """Each installed file to the project that it came with."""
    found: dict[str, str] = {}
    for distribution in metadata.distributions():
        # Read once: each look at it reads the metadata.
        name = plain_name(distribution.name)
        found |= {str(path): name for path in distribution.files or () if path.suffix == ".py"}
    return found


def imported(folder: Path) -> dict[str, Path]:
    """The projects that modules below a folder import, each with one module that does."""
    found: dict[str, Path] = {}
    for path in sorted(folder.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            names: list[str] = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and not node.level:
                # Where the package is a namespace of several projects, the name below it decides.
                names = [node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)]
            for name in names:
                place = name.replace(".", "/")
                owner = owners().get(f"{place}/__init__.py") or owners().get(f"{place}.py")
                if owner is not None and not owner.startswith("backupfw"):
                    found.setdefault(owner, path)
    return found


def supported_pythons() -> list[str]:
    """The minor versions of Python that setup.cfg declares."""
    return re.findall(r"Python :: (3\.\d+)$", setup_cfg()["metadata"]["classifiers"], re.MULTILINE)


def test_all_parts_carry_one_version() -> None:
    assert setup_cfg()["metadata"]["version"] == "attr: backupfw.__version__"
    assert len(parts()) > len(driver_projects()) > 0
    for path, project in parts().items():
        assert project["project"]["version"] == backupfw.__version__, path
    for folder, project in driver_projects().items():
        assert f"backupfw=={backupfw.__version__}" in project["project"]["dependencies"], folder


def test_the_changelog_has_a_place_for_the_next_change() -> None:
    text = (ROOT / "CHANGELOG.md").read_text()
    heads = re.findall(r"^## (.+)$", text, re.MULTILINE)
    assert heads[0] == "Unreleased"
    assert text.partition("## Unreleased")[2].partition("\n## ")[0].strip()


def test_the_changelog_lists_releases_newest_first() -> None:
    """Each as ``## 1.2.0 (2026-11-28)``; the newest one that is not newer than the code."""
    heads = re.findall(r"^## (.+)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)[1:]
    found = [re.fullmatch(r"(\d+\.\d+\.\d+) \((\d{4}-\d{2}-\d{2})\)", head) for head in heads]
    assert all(found), heads
    releases = [(Version(match[1]), date.fromisoformat(match[2])) for match in found if match]
    assert all(newer[0] > older[0] and newer[1] >= older[1] for newer, older in pairwise(releases)), heads
    assert all(version <= Version(backupfw.__version__) for version, _day in releases)


def test_the_changelog_is_a_list_of_sentences() -> None:
    """Each entry begins with ``- `` and ends with a full stop; what belongs to it is indented."""
    _top, *sections = re.split(r"^## .+$", (ROOT / "CHANGELOG.md").read_text(), flags=re.MULTILINE)
    for section in sections:
        assert "<<<<<<<" not in section
        entries = re.split(r"^- ", section, flags=re.MULTILINE)
        assert not entries[0].strip(), "text before the first entry"
        for entry in entries[1:]:
            assert entry.rstrip().endswith((".", "`.", ".)")), entry
            assert all(line.startswith("  ") for line in entry.rstrip().splitlines()[1:]), entry


#: What is generated of what users and operators see, and what decides it.
SEEN = re.compile(
    r"etc/|docs/openapi/|backupfw/db/migrations/versions/|backupfw/api/microversions|drivers/\w+/src/.*/options\.py"
)


def unnoted(changed: Collection[str]) -> list[str]:
    """Return the changed files that users notice, unless a line of the changelog changed with them."""
    return [] if "CHANGELOG.md" in changed else [path for path in changed if SEEN.match(path)]


def test_what_users_notice_is_in_the_changelog() -> None:
    """What a branch changes since it left its base: BACKUPFW_BASE, or the main that was cloned."""
    base = os.environ.get("BACKUPFW_BASE", "origin/main")
    done = subprocess.run(
        ["git", "diff", "--name-only", f"{base}...HEAD"], cwd=ROOT, capture_output=True, text=True
    )
    if done.returncode:
        pytest.skip(f"declared: there is no {base} to compare with")
    assert unnoted(done.stdout.splitlines()) == [], "it wants a line in CHANGELOG.md"
    assert unnoted(["etc/backupfw/backupfw.conf.sample", "backupfw/errors.py"]) != []
    assert unnoted(["etc/backupfw/backupfw.conf.sample", "CHANGELOG.md"]) == []


def test_everything_installed_by_the_checkout_is_pinned() -> None:
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[^=\s]+", line) for line in pins().values())
    config = setup_cfg()
    wanted = lines(config["options"]["install_requires"])
    for extra in config["options.extras_require"].values():
        wanted += lines(extra)
    for project in parts().values():
        wanted += others(project)
    missing = {plain_name(requirement) for requirement in wanted} - set(pins())
    assert missing == set(), "run 'make constraints'"


@pytest.mark.parametrize("folder", runtime_requirements())
def test_every_requirement_has_a_lower_bound_that_the_pins_keep(folder: str) -> None:
    for text in runtime_requirements()[folder]:
        requirement = Requirement(text)
        operators = [part.operator for part in requirement.specifier]
        assert operators.count(">=") == 1, f"{text}: give it a lower bound; 'make lowest' tests it"
        pin = pins()[plain_name(text)]
        assert Version(pin.partition("==")[2]) in requirement.specifier, pin


def test_a_library_has_the_same_lower_bound_everywhere() -> None:
    bounds: dict[str, set[str]] = {}
    config = setup_cfg()
    texts = [text for wanted in runtime_requirements().values() for text in wanted]
    texts += lines(config["options.extras_require"]["test"])
    for text in texts:
        bounds.setdefault(plain_name(text), set()).add(str(Requirement(text).specifier))
    assert {name: found for name, found in bounds.items() if len(found) > 1} == {}


@pytest.mark.parametrize("folder", runtime_requirements())
def test_every_import_is_declared(folder: str) -> None:
    declared = {plain_name(requirement) for requirement in runtime_requirements()[folder]}
    found = imported(ROOT / folder)
    assert found, "it would find none"
    assert {name: str(path) for name, path in found.items() if name not in declared} == {}


def test_the_supported_pythons_are_those_from_the_lowest_one_on() -> None:
    pythons = supported_pythons()
    assert pythons[0] == "3.11"
    assert setup_cfg()["options"]["python_requires"] == f">={pythons[0]}"
    for path, project in parts().items():
        assert project["project"]["requires-python"] == f">={pythons[0]}", path


def test_everything_is_under_one_licence() -> None:
    text = (ROOT / "LICENSE").read_text()
    assert "Apache License" in text
    assert "Version 2.0" in text
    assert setup_cfg()["metadata"]["license"] == "Apache-2.0"
    for path, project in parts().items():
        assert project["project"]["license"] == "Apache-2.0", path
        assert (ROOT / path / "LICENSE").read_text() == text, path


def test_every_part_of_the_checkout_is_installed_and_tested() -> None:
    makefile = (ROOT / "Makefile").read_text()
    tox = (ROOT / "tox.ini").read_text()
    pyproject = (ROOT / "pyproject.toml").read_text()
    (drivers,) = re.findall(r"^DRIVERS := (.+)$", makefile, re.MULTILINE)
    assert set(drivers.split()) == set(driver_projects())
    (listed,) = re.findall(r"^PARTS := (.+)$", makefile, re.MULTILINE)
    assert {path for path in parts() if path.startswith("clients/")} == set(listed.split()[1:])
    for path in parts():
        assert f"commands = pytest {path}/tests " in tox
        assert f'"{path}/tests"' in pyproject
        (package,) = [found.parent.name for found in (ROOT / path / "src").glob("*/__init__.py")]
        assert f'"{package}"' in pyproject


def test_every_environment_of_tox_can_be_made() -> None:
    """It is described, runs something, and installs what is there."""
    tox = ConfigParser(interpolation=None)
    tox.read(ROOT / "tox.ini")
    names = [name.strip() for name in re.split(r",(?![^{]*\})", tox["tox"]["env_list"])]
    (drivers,) = [name for name in names if name.startswith("driver-{")]
    names.remove(drivers)
    names += [f"driver-{folder}" for folder in drivers.removeprefix("driver-{").removesuffix("}").split(",")]
    pythons = [f"py{version.replace('.', '')}" for version in supported_pythons()]
    assert names[: len(pythons)] == pythons
    names = names[len(pythons) :]
    assert {f"testenv:{name}" for name in names} == {
        name for name in tox.sections() if name.startswith("testenv:")
    }
    extras = set(setup_cfg()["options.extras_require"])
    for section in ("testenv", *(f"testenv:{name}" for name in names)):
        assert tox[section]["description"]
        for command in lines(tox[section]["commands"]):
            for word in command.split():
                assert not word.startswith(("tests/", "drivers/", "clients/")) or (ROOT / word).is_dir(), (
                    command
                )
        for place in re.findall(r"-e (\S+)", tox[section]["deps"]):
            folder, _, wanted = place.partition("[")
            assert (ROOT / folder).is_dir(), place
            assert set(filter(None, wanted.removesuffix("]").split(","))) <= extras, place


@pytest.mark.parametrize("path", [*parts(), *(f"drivers/{folder}" for folder in TEMPLATES)])
def test_every_part_names_its_types(path: str) -> None:
    """The marker is there, and the wheel takes it along."""
    (marker,) = (ROOT / path / "src").glob("*/py.typed")
    project = tomllib.loads((ROOT / path / "pyproject.toml").read_text())
    assert "py.typed" in project["tool"]["setuptools"]["package-data"][marker.parent.name]

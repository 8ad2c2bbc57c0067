"""One version everywhere, everything pinned, a place for the next change."""

from __future__ import annotations

import re
import tomllib
from configparser import ConfigParser

import pytest

import backupfw
from tests.architecture.checkout import ROOT, driver_projects, lines, setup_cfg


def plain_name(requirement: str) -> str:
    """A requirement's project name, normalised."""
    name = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert name is not None
    return re.sub(r"[-_.]+", "-", name[0]).lower()


def test_core_and_drivers_carry_one_version() -> None:
    assert setup_cfg()["metadata"]["version"] == "attr: backupfw.__version__"
    assert driver_projects()
    for folder, project in driver_projects().items():
        assert project["project"]["version"] == backupfw.__version__, folder
        assert f"backupfw=={backupfw.__version__}" in project["project"]["dependencies"], folder


def test_the_changelog_has_a_place_for_the_next_change() -> None:
    text = (ROOT / "CHANGELOG.md").read_text()
    heads = re.findall(r"^## (.+)$", text, re.MULTILINE)
    assert heads[0] == "Unreleased"
    assert text.partition("## Unreleased")[2].partition("\n## ")[0].strip()


def test_everything_installed_by_the_checkout_is_pinned() -> None:
    pins = {
        plain_name(line): line
        for line in lines((ROOT / "constraints.txt").read_text())
        if not line.startswith("#")
    }
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[^=\s]+", line) for line in pins.values())
    config = setup_cfg()
    wanted = lines(config["options"]["install_requires"])
    for extra in config["options.extras_require"].values():
        wanted += lines(extra)
    for project in driver_projects().values():
        wanted += [name for name in project["project"]["dependencies"] if plain_name(name) != "backupfw"]
    missing = {plain_name(requirement) for requirement in wanted} - set(pins)
    assert missing == set(), "run 'make constraints'"


def test_every_driver_of_the_checkout_is_installed_and_tested() -> None:
    makefile = (ROOT / "Makefile").read_text()
    tox = (ROOT / "tox.ini").read_text()
    pyproject = (ROOT / "pyproject.toml").read_text()
    (drivers,) = re.findall(r"^DRIVERS := (.+)$", makefile, re.MULTILINE)
    assert set(drivers.split()) == set(driver_projects())
    for folder in driver_projects():
        assert f"[testenv:driver-{folder}]" in tox
        assert f"drivers/{folder}/tests" in pyproject
        assert f'"backupfw_{folder}"' in pyproject


def test_every_environment_of_tox_can_be_made() -> None:
    """It is described, runs something, and installs what is there."""
    tox = ConfigParser(interpolation=None)
    tox.read(ROOT / "tox.ini")
    names = [name.strip() for name in re.split(r",(?![^{]*\})", tox["tox"]["env_list"])]
    (drivers,) = [name for name in names if name.startswith("driver-{")]
    names.remove(drivers)
    names += [f"driver-{folder}" for folder in drivers.removeprefix("driver-{").removesuffix("}").split(",")]
    assert {f"testenv:{name}" for name in names} - {"testenv:py311"} == {
        name for name in tox.sections() if name.startswith("testenv:")
    }
    extras = set(setup_cfg()["options.extras_require"])
    for section in ("testenv", *(f"testenv:{name}" for name in names if name != "py311")):
        assert tox[section]["description"]
        for command in lines(tox[section]["commands"]):
            for word in command.split():
                assert not word.startswith(("tests/", "drivers/")) or (ROOT / word).is_dir(), command
        for place in re.findall(r"-e (\S+)", tox[section]["deps"]):
            folder, _, wanted = place.partition("[")
            assert (ROOT / folder).is_dir(), place
            assert set(filter(None, wanted.removesuffix("]").split(","))) <= extras, place


@pytest.mark.parametrize("folder", [*driver_projects(), "template"])
def test_every_driver_tells_its_types(folder: str) -> None:
    """The marker is there, and the wheel takes it along."""
    package = f"backupfw_{folder}"
    assert (ROOT / "drivers" / folder / "src" / package / "py.typed").is_file()
    project = tomllib.loads((ROOT / "drivers" / folder / "pyproject.toml").read_text())
    assert "py.typed" in project["tool"]["setuptools"]["package-data"][package]

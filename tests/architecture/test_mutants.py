"""What ``make mutants`` goes by is there: its modules, its tests, and the lines that its list excuses."""

from __future__ import annotations

import importlib

import pytest

from tests.architecture.checkout import ROOT
from tests.mutants.__main__ import GROUPS, Mutant, is_of, listed


@pytest.mark.parametrize("name", GROUPS)
def test_modules_and_tests_are_there(name: str) -> None:
    for pattern in GROUPS[name].mutate:
        assert list(ROOT.glob(pattern)), pattern
    for place in GROUPS[name].tests:
        assert (ROOT / place).exists(), place


def test_the_modules_of_the_format_are_all_there() -> None:
    mutated = {path for group in GROUPS.values() for pattern in group.mutate for path in ROOT.glob(pattern)}
    assert set((ROOT / "backupfw" / "engine" / "format").glob("[!_]*.py")) <= mutated


@pytest.mark.parametrize("mutant", listed(), ids=lambda mutant: f"{mutant.function}: {mutant.became}")
def test_each_survivor_has_its_line_and_a_reason(mutant: Mutant) -> None:
    assert listed()[mutant].endswith(".")
    assert [is_of(mutant, group) for group in GROUPS.values()].count(True) == 1
    parts = mutant.function.split(".")
    modules = [".".join(parts[:end]) for end in range(len(parts), 0, -1)]
    module = next(name for name in modules if (ROOT / f"{name.replace('.', '/')}.py").exists())
    thing: object = importlib.import_module(module)
    for attribute in mutant.function.removeprefix(f"{module}.").split("."):
        thing = getattr(thing, attribute)
    source = (ROOT / f"{module.replace('.', '/')}.py").read_text()
    for line in mutant.was.splitlines():
        assert line.strip() in source

"""docs/writing-a-volume-driver.md quotes the template as it is, and names nothing that is not there."""

from __future__ import annotations

import re

import pytest

from backupfw.testing.volume import adoption
from tests.architecture.checkout import ROOT

PAGE = (ROOT / "docs" / "writing-a-volume-driver.md").read_text()
TEMPLATE = ROOT / "drivers" / "template-volume"

#: Code blocks that begin with a file's name: (that name, the code).
QUOTES = re.findall(r"^```\w+\n# (\S+)\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize(("name", "code"), QUOTES, ids=[f"{number}" for number in range(len(QUOTES))])
def test_quotes_are_in_their_files(name: str, code: str) -> None:
    assert code.strip("\n") in (TEMPLATE / name).read_text()


def test_the_pages_files_are_the_templates() -> None:
    assert len(QUOTES) >= 6
    named = set(re.findall(r"^\| `([\w/.]+\.\w+)` \|", PAGE, re.MULTILINE))
    there = {
        re.sub("template[-_]volume", "attic", str(path.relative_to(TEMPLATE)))
        for path in TEMPLATE.rglob("*.*")
        if path.suffix in (".py", ".toml") and path.stat().st_size and "egg-info" not in str(path)
    }
    assert named == there - {"rename.py"}


def test_every_piece_of_the_suite_is_named() -> None:
    #: Fixtures, what tests call, and what nearly nobody changes.
    untold = {"server", "provider", "volume", "require", "whole", "open_provider"}
    pieces = {name for name in vars(adoption.Adoption) if not name.startswith("_")} - untold
    assert {piece for piece in pieces if not re.search(rf"\b{piece}\b", PAGE)} == set()
    assert {piece for piece in adoption.OPTIONAL if not re.search(rf"\b{piece}\b", PAGE)} == set()

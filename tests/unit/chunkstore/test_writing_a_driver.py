"""docs/writing-a-driver.md quotes the template as it is, and names nothing that is not there."""

from __future__ import annotations

import re

import pytest

from backupfw.testing.suite import adoption
from tests.architecture.checkout import ROOT

PAGE = (ROOT / "docs" / "writing-a-driver.md").read_text()
TEMPLATE = ROOT / "drivers" / "template"

#: Code blocks that begin with a file's name: (that name, the code).
QUOTES = re.findall(r"^```\w+\n# (\S+)\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize(("name", "code"), QUOTES, ids=[f"{number}" for number in range(len(QUOTES))])
def test_quotes_are_in_their_files(name: str, code: str) -> None:
    assert code.strip("\n") in (TEMPLATE / name).read_text()


def test_the_pages_files_are_the_templates() -> None:
    assert len(QUOTES) >= 5
    named = set(re.findall(r"^\| `([\w/.]+\.\w+)` \|", PAGE, re.MULTILINE))
    there = {
        str(path.relative_to(TEMPLATE)).replace("template", "attic")
        for path in TEMPLATE.rglob("*.*")
        if path.suffix in (".py", ".toml") and path.stat().st_size and "egg-info" not in str(path)
    }
    assert named == there - {"rename.py"}


def test_every_piece_of_the_suite_is_named() -> None:
    #: Fixtures, what tests call, and numbers with defaults that nearly nobody changes.
    untold = {
        "server",
        "store",
        "container",
        "listed",
        "eventually",
        "require",
        "new_container_name",
        "can_hold",
    }
    untold |= {"no_room", "patience", "unreachable_seconds", "model_examples"}
    pieces = {name for name in vars(adoption.Adoption) if not name.startswith("_")} - untold
    assert {piece for piece in pieces if not re.search(rf"\b{piece}\b", PAGE)} == set()

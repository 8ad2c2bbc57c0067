"""What README says can be typed works: its configuration loads, its commands and targets exist."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from backupfw.cmd import configure
from backupfw.cmd.main import parse
from tests.architecture import operating
from tests.architecture.checkout import ROOT

PAGES = [ROOT / "README.md", *operating.PAGES]


def blocks(page: Path, language: str) -> list[str]:
    """The fenced blocks of a page in one language."""
    # All of them: a fence that ends one block must not be taken for the beginning of the next.
    found = re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)
    return [text for tongue, text in found if tongue == language]


def commands(page: Path) -> list[list[str]]:
    """Every backupfw command in a page's shell blocks, without what the shell does."""
    found = []
    for block in blocks(page, ""):
        for text in re.findall(r"(?:^|[(/])backupfw ([a-z][^\n&)#>]*)", block, re.MULTILINE):
            found.append(shlex.split(text.replace("$", "")))
    return found


def test_the_configuration_examples_load(tmp_path: Path) -> None:
    examples = [block for page in PAGES for block in blocks(page, "ini")]
    assert examples
    for example in examples:
        (tmp_path / "backupfw.conf").write_text(example)
        args = parse(["config", "check", "--state-dir", str(tmp_path)])
        assert configure.load(args).unused_sections == ()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_commands_parse(page: Path) -> None:
    words = commands(page)
    assert words
    for argv in words:
        parse(argv)


def test_the_make_targets_exist() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"(?:^|`)make ([a-z]+)", (ROOT / "README.md").read_text(), re.MULTILINE))
    assert {"demo", "serve", "test"} <= named <= targets

"""What pages for people who change the code name is there."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.architecture.checkout import ROOT

PAGES = [
    *(ROOT / name for name in ("CONTRIBUTING.md", "SECURITY.md", "CODE_OF_CONDUCT.md")),
    *(ROOT / "docs" / name for name in ("overview.md", "changing.md", "packaging.md")),
    *sorted((ROOT / "docs" / "adr").glob("*.md")),
]
#: A path of the checkout, as these pages write it.
PATH = re.compile(r"(?<![\w~/.])(?:backupfw|docs|drivers|tests|etc|demo|benchmarks)/[\w./-]*\w")
#: What stands for a name that the reader chooses.
CHOSEN = re.compile(r"NAME|attic")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_files_that_a_page_names_exist(page: Path) -> None:
    found = {path for path in PATH.findall(page.read_text()) if not CHOSEN.search(path)}
    assert [path for path in sorted(found) if not (ROOT / path).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_links_of_a_page_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text())
    assert [link for link in links if not (page.parent / link).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_targets_of_make_that_a_page_names_exist(page: Path) -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = re.findall(r"(?:^ *|`)make ([a-z]+(?: [a-z]+)*)", page.read_text(), re.MULTILINE)
    assert {word for words in named for word in words.split()} <= targets


def test_ten_decisions_are_written_in_one_form_and_listed() -> None:
    folder = ROOT / "docs" / "adr"
    pages = sorted(folder.glob("0*.md"))
    assert len(pages) >= 10
    index = (folder / "index.md").read_text()
    for number, page in enumerate(pages, 1):
        text = page.read_text()
        assert text.startswith(f"# {number:04d}: ")
        assert re.findall(r"^## (.+)$", text, re.MULTILINE) == ["Context", "Decision", "Consequences"]
        assert re.search(r"^Status: (accepted|superseded by \d{4})$", text, re.MULTILINE)
        assert f"]({page.name})" in index


def test_the_picture_is_plain_svg_with_a_description() -> None:
    root = ElementTree.parse(ROOT / "docs" / "overview.svg").getroot()
    names = {element.tag.rpartition("}")[2] for element in root.iter()}
    assert {"title", "desc"} <= names
    # A forge shows no picture that runs or fetches anything.
    assert names.isdisjoint({"script", "image", "foreignObject", "use"})

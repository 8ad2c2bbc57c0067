"""docs/glossary.md has each term once, and pages and docstrings do not use the words it replaces."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from tests.architecture.checkout import ROOT

GLOSSARY = ROOT / "docs" / "glossary.md"
ROW = re.compile(r"^\| (?P<term>[^|]+?) \| (?P<meaning>[^|]+?) \| (?P<replaced>[^|]*?) ?\|$", re.MULTILINE)
#: Names of code, files and columns: a name may keep a word that prose has given up.
CODE = re.compile(r"^```.*?^```|`+[^`]*`+|\]\([^)]*\)", re.MULTILINE | re.DOTALL)


def rows() -> list[tuple[str, str, str]]:
    found = [match.group("term", "meaning", "replaced") for match in ROW.finditer(GLOSSARY.read_text())]
    return [row for row in found if row[0] not in ("Term", "---")]


def replaced() -> list[tuple[str, str]]:
    """Each word that is not used, with its term; without those in italics, which are ordinary English."""
    return [
        (word, term)
        for term, _, words in rows()
        for word in words.split(", ")
        if word and not word.startswith("*")
    ]


def prose() -> Iterator[tuple[str, str]]:
    """Yield every page and every docstring: where it is, and its text without code."""
    readmes = [
        ROOT / "README.md",
        *sorted(ROOT.glob("drivers/*/README.md")),
        *sorted(ROOT.glob("clients/*/README.md")),
    ]
    for page in [*sorted((ROOT / "docs").glob("*.md")), *readmes]:
        if page != GLOSSARY:
            yield str(page.relative_to(ROOT)), CODE.sub("", page.read_text())
    for path in sorted(
        [
            *(ROOT / "backupfw").rglob("*.py"),
            *ROOT.glob("drivers/*/src/**/*.py"),
            *ROOT.glob("clients/*/src/**/*.py"),
        ]
    ):
        # Released migrations stay as they are.
        if path.parent.name != "versions":
            for where, text in docstrings(path):
                yield f"{path.relative_to(ROOT)}: {where}", CODE.sub("", text)


def docstrings(path: Path) -> Iterator[tuple[str, str]]:
    for node in ast.walk(ast.parse(path.read_text())):
        documented = isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        if documented and (text := ast.get_docstring(node)):
            yield getattr(node, "name", "module"), text


@cache
def all_prose() -> list[tuple[str, str]]:
    return list(prose())


def test_each_term_is_defined_once_in_one_sentence_or_two() -> None:
    terms = [term for term, _, _ in rows()]
    assert len(terms) > 50
    assert sorted(set(terms)) == sorted(terms)
    assert [term for term, meaning, _ in rows() if not meaning.endswith(".") or meaning.count(". ") > 1] == []


def test_the_terms_of_a_table_are_in_the_order_of_the_alphabet() -> None:
    for table in GLOSSARY.read_text().split("\n## ")[1:]:
        terms = [term for term, _, _ in (m.group("term", "meaning", "replaced") for m in ROW.finditer(table))]
        assert terms[1:] == sorted(terms[1:]), table.partition("\n")[0]


@pytest.mark.parametrize(("word", "term"), replaced())
def test_a_word_that_a_term_replaces_is_not_used(word: str, term: str) -> None:
    pattern = re.compile(rf"\b{re.escape(word)}(?:s|es|ing|ed)?\b", re.IGNORECASE)
    found = [f"{where}: {match.group()}" for where, text in all_prose() if (match := pattern.search(text))]
    assert found == [], f"say {term}"

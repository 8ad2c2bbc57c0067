"""The pytest plug-in for authors of drivers: pytest loads it wherever backupfw is installed.

It makes the assertions of the conformance suites show the compared values, and sums up each adopted
suite as one line per guarantee: ``G1 … ok`` for stores, ``V1 … ok`` for volumes, ``K1 … ok`` for keys.  It
imports nothing but pytest, so that it does not slow other test runs down.
"""

from __future__ import annotations

import re
from collections import defaultdict
from typing import Any

import pytest

pytest.register_assert_rewrite(
    "backupfw.testing.chunkstore",
    "backupfw.testing.keys",
    "backupfw.testing.suite",
    "backupfw.testing.volume",
)

#: What pytest calls otherwise.
_WORDS = {"passed": "ok", "xfailed": "fails as expected", "xpassed": "holds against expectation"}
_GUARANTEE = re.compile(r"::(\w+)::test_([gkv])(\d+)_")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add ``--guarantees``."""
    parser.addoption(
        "--guarantees",
        action="store_true",
        help="print a verdict per guarantee for each conformance suite that ran",
    )


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Print the verdicts."""
    if not config.getoption("--guarantees"):
        return
    verdicts: defaultdict[str, dict[tuple[str, int], str]] = defaultdict(dict)
    # The worst outcome wins.  An expected failure is one: the guarantee does not hold.
    for outcome in ("passed", "skipped", "xfailed", "xpassed", "failed", "error"):
        for report in terminalreporter.stats.get(outcome, ()):
            if match := _GUARANTEE.search(getattr(report, "nodeid", "")):
                guarantee = match[2].upper(), int(match[3])
                if outcome == "skipped" and guarantee in verdicts[match[1]]:
                    continue
                verdicts[match[1]][guarantee] = _WORDS.get(outcome, outcome)
    for suite, words in sorted(verdicts.items()):
        terminalreporter.section(f"guarantees of {suite}")
        for (letter, number), word in sorted(words.items()):
            terminalreporter.write_line(f"{letter}{number:<3} {word}")

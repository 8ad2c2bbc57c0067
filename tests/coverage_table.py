"""Writes how much of each package the tests run, from coverage.py's report, as a page.

    python -m tests.coverage_table REPORT.json PAGE.md

``make coverage`` calls it.
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

HEAD = """# Coverage

What part of each package's statements and branches the tests of `make test` run, and of the processes that
they start.  Those of `make check`, with servers, are not in it: they run the drivers' and the databases' code
more.  Written by `make coverage`.

| package | statements | not run | branches | not taken | covered |
| --- | ---: | ---: | ---: | ---: | ---: |
"""
COUNTS = ("num_statements", "missing_lines", "num_branches", "missing_branches")


def package_of(path: str) -> str:
    """Return the package a file belongs to, e.g. ``backupfw.engine`` or ``backupfw_posix``."""
    parts = Path(path).parts
    if parts[0] in ("drivers", "clients"):
        return parts[3]
    return ".".join(parts[:2]) if len(parts) > 2 else parts[0]


def page(files: Mapping[str, Mapping[str, Mapping[str, int]]]) -> str:
    """Return the page.

    :param files: path -> what coverage.py says of it, as in its JSON report.
    """
    packages: defaultdict[str, list[int]] = defaultdict(lambda: [0] * len(COUNTS))
    for path, said in files.items():
        for name in (package_of(path), "all"):
            for index, count in enumerate(COUNTS):
                packages[name][index] += said["summary"][count]
    everything = packages.pop("all")
    lines = [_line(f"`{name}`", counts) for name, counts in sorted(packages.items())]
    return HEAD + "\n".join((*lines, _line("**all**", everything))) + "\n"


def _line(name: str, counts: Sequence[int]) -> str:
    statements, missing, branches, missed = counts
    share = 1 - (missing + missed) / max(statements + branches, 1)
    return f"| {name} | {statements} | {missing} | {branches} | {missed} | {share:.1%} |"


if __name__ == "__main__":
    report, target = map(Path, sys.argv[1:])
    target.write_text(page(json.loads(report.read_text())["files"]))

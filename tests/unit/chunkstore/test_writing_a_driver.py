"""The driver of docs/writing-a-driver.md is complete: installed by its own metadata, it passes the suite."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
import tomllib
from pathlib import Path

import pytest

pytest_plugins = ["pytester"]

PAGE = Path(__file__).resolve().parents[3] / "docs" / "writing-a-driver.md"


def blocks() -> dict[str, str]:
    """The page's code blocks that begin with a file's name, by that name."""
    found = re.findall(r"^```\w+\n# (\S+)\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    return dict(found)


def test_the_page_has_all_files() -> None:
    assert set(blocks()) == {"pyproject.toml", "src/backupfw_sqlite/store.py", "tests/test_conformance.py"}


def test_the_example_passes_the_suite(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, text in blocks().items():
        path = pytester.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    # Fewer and smaller objects: here it is the page that is tested.
    conformance = pytester.path / "tests" / "test_conformance.py"
    conformance.write_text(
        conformance.read_text() + "    listing_keys = 2200\n    largest = 4 << 20\n    model_examples = 4\n"
    )
    (pytester.path / "src" / "backupfw_sqlite" / "__init__.py").touch()
    metadata = pytester.path / "src" / "backupfw_sqlite-1.0.0.dist-info"
    metadata.mkdir()
    project = tomllib.loads((pytester.path / "pyproject.toml").read_text())["project"]
    (metadata / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
    )
    points = project["entry-points"]["backupfw.chunkstore"]
    (metadata / "entry_points.txt").write_text(
        "[backupfw.chunkstore]\n" + "".join(f"{name} = {value}\n" for name, value in points.items())
    )
    (pytester.path / "tests" / "test_found.py").write_text(
        "from backupfw.chunkstore.loader import installed_drivers, load_driver\n"
        "def test_found():\n"
        "    assert load_driver('sqlite').wire_name == 'backupfw_sqlite.store.SqliteStore'\n"
        "    (info,) = [info for info in installed_drivers() if info.name == 'sqlite']\n"
        "    assert (info.distribution, info.version, info.problem) == ('backupfw-sqlite', '1.0.0', None)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(pytester.path / "src"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(pytester.path / "cache"))
    # In memory where there is such a place: SQLite syncs each of thousands of puts.
    where = ["--basetemp=" + tempfile.mkdtemp(dir="/dev/shm")] if os.access("/dev/shm", os.W_OK) else []
    # A process of its own, so that the driver is found as an installed one is.
    result = pytester.runpytest_subprocess(
        "-q", "-p", "no:cacheprovider", "-W", "error", "--guarantees", *where
    )
    for option in where:
        shutil.rmtree(option.partition("=")[2])
    outcomes = result.parseoutcomes()
    assert "failed" not in outcomes
    assert "errors" not in outcomes
    assert outcomes["passed"] > 100
    assert outcomes["skipped"] == 27
    result.stdout.fnmatch_lines([f"G{number}*ok" for number in range(1, 19)])

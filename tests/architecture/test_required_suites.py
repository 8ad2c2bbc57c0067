"""The checkout's conftest: a skip that CI forbids is a failure, every other one is listed; who runs what."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.architecture.checkout import ROOT

pytestmark = pytest.mark.check

SUITE = """
import pytest

@pytest.mark.root
def test_needs_root():
    pytest.skip("no loop devices")

def test_needs_nothing():
    pytest.skip("not today")

@pytest.mark.parametrize("number", range(3))
def test_many(number):
    pytest.skip("declared: too many to name")

def test_runs():
    pass

@pytest.mark.root
@pytest.mark.xfail(reason="known")
def test_expected():
    assert False
"""

MODULE = "import pytest\npytest.skip('no server', allow_module_level=True)\n"


def run(directory: Path, require: str | None, *options: str) -> tuple[int, str]:
    environ = {name: value for name, value in os.environ.items() if name != "BACKUPFW_REQUIRE"}
    if require is not None:
        environ["BACKUPFW_REQUIRE"] = require
    # The plug-ins that are installed take longer than the tests.
    environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    # What the conftest has of the package of tests.
    environ["PYTHONPATH"] = str(ROOT)
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            "-p",
            "xdist.plugin",
            *options,
            "tests",
        ],
        cwd=directory,
        env=environ,
        capture_output=True,
        text=True,
        timeout=300,
    )
    return done.returncode, done.stdout


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    shutil.copy(ROOT / "conftest.py", tmp_path)
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers =\n    root: x\n    check: y\n")
    suite = tmp_path / "tests" / "unit"
    suite.mkdir(parents=True)
    (suite / "test_suite.py").write_text(SUITE)
    return tmp_path


#: In one process, and as 'make test' does it.
PROCESSES = pytest.mark.parametrize("options", [(), ("-n", "2", "--dist", "loadscope")], ids=["one", "two"])


@PROCESSES
def test_skips_are_listed_and_suites_timed(checkout: Path, options: Sequence[str]) -> None:
    (checkout / "tests" / "unit" / "test_module.py").write_text(MODULE)
    status, out = run(checkout, None, *options)
    assert status == 0, out
    assert "skipped: 6" in out
    assert "tests/unit/test_suite.py::test_needs_root: no loop devices" in out
    assert "tests/unit/test_module.py: no server" in out
    assert out.count("too many to name") == 1
    assert "tests/unit/test_suite.py (3 tests): declared: too many to name" in out
    assert "tests/unit " in out


@PROCESSES
def test_a_required_skip_fails(checkout: Path, options: Sequence[str]) -> None:
    status, out = run(checkout, "server, root", *options)
    assert status == 1
    assert "root is required here (BACKUPFW_REQUIRE): no loop devices" in out
    assert "1 failed, 1 passed, 4 skipped, 1 xfailed" in out


def test_another_requirement_changes_nothing(checkout: Path) -> None:
    status, out = run(checkout, "server")
    assert status == 0, out


@PROCESSES
def test_a_module_that_is_skipped_whole_fails(checkout: Path, options: Sequence[str]) -> None:
    (checkout / "tests" / "unit" / "test_module.py").write_text(MODULE)
    status, out = run(checkout, "root", *options)
    assert status != 0
    assert "every module is required here (BACKUPFW_REQUIRE): no server" in out


def test_what_needs_a_server_or_services_is_for_check(checkout: Path) -> None:
    for name in ("test_kill.py", "test_main_job.py"):
        (checkout / "tests" / "integration").mkdir(exist_ok=True)
        (checkout / "tests" / "integration" / name).write_text("def test_it():\n    pass\n")
    _, quick = run(checkout, None, "-m", "not check", "--collect-only")
    _, checked = run(checkout, None, "-m", "check", "--collect-only")
    found = [{line for line in out.splitlines() if "::" in line} for out in (quick, checked)]
    assert found[1] == {
        "tests/integration/test_kill.py::test_it",
        "tests/unit/test_suite.py::test_needs_root",
        "tests/unit/test_suite.py::test_expected",
    }
    assert "tests/integration/test_main_job.py::test_it" in found[0]
    assert len(found[0] | found[1]) == len(found[0]) + len(found[1]) == 9


def test_the_tests_of_clients_run_in_one_process(checkout: Path) -> None:
    """The last of them judges by what all others noted in that process."""
    clients = checkout / "tests" / "integration" / "clients"
    clients.mkdir(parents=True)
    for name in "abc":
        text = (
            f"import os, pathlib\ndef test_it():\n    pathlib.Path({name!r}).write_text(str(os.getpid()))\n"
        )
        (clients / f"test_{name}.py").write_text(text)
    status, out = run(checkout, None, "-n", "3", "--dist", "loadscope", "-m", "check", "-k", "test_it")
    assert status == 0, out
    assert len({(checkout / name).read_text() for name in "abc"}) == 1

"""'make test': two processes, one outcome."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.architecture.checkout import ROOT

PASSES = "def test_it():\n    pass\n"
FAILS = "def test_it():\n    assert False, 'told'\n"
DIES = "import os\n\ndef test_it():\n    os.kill(os.getpid(), 9)\n"


@pytest.mark.parametrize(
    ("integration", "unit", "options", "status"),
    [
        (PASSES, PASSES, [], 0),
        (FAILS, PASSES, [], 1),
        (PASSES, FAILS, [], 1),
        (FAILS, FAILS, [], 1),
        (DIES, PASSES, [], -9),
        # What was asked for is in one of them, or in none.
        (PASSES, PASSES, ["-k", "test_unit"], 0),
        (PASSES, FAILS, ["-k", "test_unit"], 1),
        (PASSES, PASSES, ["-k", "nowhere"], 5),
        (FAILS, PASSES, ["tests/unit"], 0),
        (FAILS, PASSES, ["tests/integration/test_integration.py::test_it"], 1),
    ],
)
def test_it_fails_when_one_of_them_does(
    integration: str, unit: str, options: list[str], status: int, tmp_path: Path
) -> None:
    for name, text in (("integration", integration), ("unit", unit)):
        (tmp_path / "tests" / name).mkdir(parents=True)
        (tmp_path / "tests" / name / f"test_{name}.py").write_text(text)
    (tmp_path / "pyproject.toml").write_text('[tool.pytest.ini_options]\ntestpaths = ["tests"]\n')
    program = "import sys; from tests.side_by_side import main; sys.exit(main(sys.argv[1:]) % 256)"
    done = subprocess.run(
        [sys.executable, "-c", program, "-p", "no:backupfw_chunkstore", *options],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == status % 256, done.stdout + done.stderr
    assert ("told" in done.stdout) is (status == 1)

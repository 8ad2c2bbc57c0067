"""Who tells what in the log: the service and its plug-ins much, other libraries only warnings by default."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import argparse, logging, sys
from pathlib import Path
from backupfw.cmd.configure import load
from backupfw.cmd.reload import reloader
from backupfw.conf import logging as ours

args = argparse.Namespace(state_dir=sys.argv[1], config_file=[], debug="--debug" in sys.argv)
conf = load(args).conf
ours.setup(conf, quiet="--quiet" in sys.argv)
if "--reload" in sys.argv:
    file = Path(sys.argv[1]) / "backupfw.conf"
    file.write_text(file.read_text() + "debug = true\\n")
    reloader(args, (), conf)()
for name in ("backupfw.manager", "backupfw_posix.store", "botocore.endpoint", "swiftclient", "waitress"):
    for level in ("debug", "info", "warning"):
        getattr(logging.getLogger(name), level)("it says %s", level)
"""


def told(state: Path, text: str, *words: str) -> set[str]:
    """Which loggers told what, as name:level."""
    state.mkdir()
    (state / "backupfw.conf").write_text("[DEFAULT]\n" + text)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(state), *words], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stderr.splitlines() if "it says" in line]
    return {f"{line[4]}:{line[3].lower()}" for line in lines}


WARNINGS = {"botocore.endpoint:warning", "swiftclient:warning", "waitress:warning"}
OURS = {"backupfw.manager:warning", "backupfw_posix.store:warning"}
INFOS = {"backupfw.manager:info", "backupfw_posix.store:info"}
DETAILS = {"backupfw.manager:debug", "backupfw_posix.store:debug"}


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ((), OURS | INFOS),
        (("--debug",), OURS | INFOS | DETAILS),
        (("--quiet",), OURS),
        (("--quiet", "--debug"), OURS | INFOS | DETAILS),
        (("--reload",), OURS | INFOS | DETAILS),
    ],
)
def test_other_libraries_warn_only(tmp_path: Path, words: tuple[str, ...], expected: set[str]) -> None:
    assert told(tmp_path / "state", "", *words) == WARNINGS | expected


def test_debug_lines_are_logged_on_request(tmp_path: Path) -> None:
    asked = "default_log_levels = botocore=INFO, backupfw_posix=ERROR\n"
    assert told(tmp_path / "state", asked) == WARNINGS | {
        "botocore.endpoint:info",
        "backupfw.manager:info",
        "backupfw.manager:warning",
    }

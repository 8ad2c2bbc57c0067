"""The man page that is checked in is what the commands say today."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from backupfw.cmd import main
from tests.architecture import man
from tests.architecture.checkout import ROOT, lines, setup_cfg

PAGE = ROOT / "docs" / "man" / "backupfw.1"


def test_the_page_is_up_to_date(tmp_path: Path) -> None:
    pytest.importorskip("sphinx", reason="declared: needs the extra 'docs'")
    assert PAGE.read_text() == man.write(tmp_path).read_text(), "run 'make man'"


def test_every_command_is_in_the_page() -> None:
    found = re.findall(r"^\.SS (.*)$", PAGE.read_text(), re.MULTILINE)
    named = {name.replace("\\-", "-") for name in found}
    assert named == {name for name, _point in main.App().command_manager}


@pytest.mark.skipif(shutil.which("man") is None, reason="declared: man is not installed")
def test_man_shows_it() -> None:
    done = subprocess.run(
        ["man", "--warnings", "-l", str(PAGE)], capture_output=True, text=True, env={"MANWIDTH": "80"}
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "EXIT STATUS" in done.stdout


def test_it_is_installed() -> None:
    assert lines(setup_cfg()["options.data_files"]["share/man/man1"]) == ["docs/man/backupfw.1"]

"""What the pages for operators and etc/systemd give can be used as it is."""

from __future__ import annotations

import argparse
import configparser
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from backupfw.cmd import configure
from backupfw.cmd import main as command
from backupfw.conf import volumes
from tests.architecture import operating

UNITS = sorted(operating.UNITS.glob("*.service"))


def test_the_example_of_three_hosts_is_a_configuration(tmp_path: Path) -> None:
    file = tmp_path / "backupfw.conf"
    file.write_text(operating.Section("An example: three hosts").only("ini"))
    loaded = configure.load(argparse.Namespace(state_dir=None, config_file=[str(file)], debug=False))
    assert loaded.unused_sections == ()
    assert not loaded.embedded
    assert loaded.conf.api.auth_strategy == "keystone"
    assert loaded.conf["store:main"].driver == "s3"
    assert volumes.is_shared(loaded.conf, volumes.LOCAL)


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_units_start_commands_that_there_are(unit: Path) -> None:
    parser = configparser.ConfigParser(interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read(unit)
    program, *words = parser["Service"]["ExecStart"].split()
    assert program.endswith("/bin/backupfw")
    args = command.parse(words)
    assert args.config_file == ([] if unit.stem == "backupfw" else ["/etc/backupfw/backupfw.conf"])
    assert unit.name in "".join(page.read_text() for page in operating.PAGES)


@pytest.mark.parametrize("drop_in", [None, "The API under another WSGI server"])
@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
def test_systemd_understands_the_units(unit: Path, drop_in: str | None, tmp_path: Path) -> None:
    """With a program in the place of ours that is there; alone, and with the drop-in of the page."""
    text = unit.read_text() + (operating.Section(drop_in).only("systemd") if drop_in else "")
    text = re.sub(r"(?<=^ExecStart=)/\S+", "/bin/true", text, flags=re.MULTILINE)
    (tmp_path / unit.name).write_text(text)
    done = subprocess.run(
        ["systemd-analyze", "verify", "--recursive-errors=no", str(tmp_path / unit.name)],
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
def test_the_units_give_away_little(unit: Path) -> None:
    """By systemd's own measure, from 0 to 10: its defaults have more than 9."""
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--threshold=40", str(unit)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-200:] + done.stderr
    assert "\nUMask=0077\n" in unit.read_text()


def test_there_are_units() -> None:
    assert [unit.name for unit in UNITS] == [
        "backupfw-api.service",
        "backupfw-worker.service",
        "backupfw.service",
    ]

"""What docs/operating.md and etc/systemd give to operators can be used as it is."""

from __future__ import annotations

import argparse
import configparser
from pathlib import Path

import pytest

from backupfw.cmd import configure
from backupfw.cmd import main as command
from tests.architecture import operating
from tests.architecture.checkout import ROOT

UNITS = sorted(operating.UNITS.glob("*.service"))


def test_the_example_of_three_hosts_is_a_configuration(tmp_path: Path) -> None:
    file = tmp_path / "backupfw.conf"
    file.write_text(operating.Section("An example: three hosts").only("ini"))
    loaded = configure.load(argparse.Namespace(state_dir=None, config_file=[str(file)], debug=False))
    assert loaded.unused_sections == ()
    assert not loaded.embedded
    assert loaded.conf.api.auth_strategy == "keystone"
    assert loaded.conf["store:main"].driver == "s3"
    assert loaded.conf.volumes.shared


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_units_start_commands_that_there_are(unit: Path) -> None:
    parser = configparser.ConfigParser(interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read(unit)
    program, *words = parser["Service"]["ExecStart"].split()
    assert program.endswith("/bin/backupfw")
    args = command.build_parser().parse_args(words)
    assert args.config_file == ["/etc/backupfw/backupfw.conf"]
    assert unit.name in (ROOT / "docs" / "operating.md").read_text()


def test_there_are_units() -> None:
    assert [unit.name for unit in UNITS] == ["backupfw-api.service", "backupfw-worker.service"]

"""Reading the files of a running process again: what is mutable changes, wrong files change nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from oslo_config import cfg

from backupfw.conf import load
from backupfw.conf.load import reread
from backupfw.errors import ConfigError
from tests.unit.conf.plugins import DRIVERS, find_driver, find_key_store, find_provider

PLAIN = """
[DEFAULT]
state_dir = /srv/state
[database]
connection = postgresql://u:p@db/backupfw
[store:main]
driver = shelf
path = /srv/objects
"""
PLUG_INS = load.PlugIns(
    find_driver,
    lambda _driver: (cfg.FloatOpt("speed", default=0.0, min=0, mutable=True), cfg.IntOpt("tries", default=5)),
    find_provider,
    find_key_store,
)


class Process:
    """A running process's configuration and its file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.write("speed = 5\ntries = 3")
        self.conf = self.load().conf
        self.heard: list[Any] = []
        self.conf.register_mutate_hook(lambda conf, changes: self.heard.append((conf, changes)))

    def write(self, text: str) -> None:
        self.path.write_text(f"{PLAIN}{text}\n")

    def load(self) -> load.Loaded:
        return load.load(PLUG_INS, config_files=[str(self.path)])

    def reread(self) -> tuple[str, ...]:
        return reread(self.conf, self.load)

    @property
    def values(self) -> tuple[float, int]:
        group = self.conf["store:main"]
        return group.speed, group.tries


@pytest.fixture
def process(tmp_path: Path) -> Process:
    assert "shelf" in DRIVERS
    return Process(tmp_path / "test.conf")


def test_what_is_mutable_changes(process: Process) -> None:
    process.write("speed = 7.5\ntries = 9")
    assert process.reread() == ("store:main.speed",)
    assert process.values == (7.5, 3)
    assert process.heard == [(process.conf, {("store:main", "speed"): ("5", "7.5")})]


def test_an_option_that_is_gone_has_its_default_again(process: Process) -> None:
    process.write("tries = 3")
    assert process.reread() == ("store:main.speed",)
    assert process.values == (0.0, 3)


def test_an_unchanged_file_changes_nothing(process: Process) -> None:
    assert process.reread() == ()
    assert process.values == (5.0, 3)


@pytest.mark.parametrize(
    "text", ["speed = -1", "speed = fast", "sped = 5", "speed = 6\nboards = 99", "[", "speed"]
)
def test_wrong_files_change_nothing(process: Process, text: str) -> None:
    process.write(text)
    with pytest.raises(ConfigError):
        process.reread()
    assert process.values == (5.0, 3)
    assert process.heard == []
    process.write("speed = 8\ntries = 3")
    assert process.reread() == ("store:main.speed",)
    assert process.values == (8.0, 3)


def test_a_file_that_is_gone_changes_nothing(process: Process) -> None:
    process.path.unlink()
    with pytest.raises(ConfigError):
        process.reread()
    assert process.values == (5.0, 3)

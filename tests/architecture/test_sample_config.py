"""The sample configuration is what the options say today."""

from __future__ import annotations

import io
import re

from oslo_config import cfg, generator

from backupfw.cmd.reference import list_opts as plug_in_options
from backupfw.conf.opts import list_opts as core_options
from tests.architecture.checkout import ROOT, driver_entry_points, provider_entry_points

SAMPLE = ROOT / "etc" / "backupfw" / "backupfw.conf.sample"


def generated() -> str:
    conf = cfg.ConfigOpts()
    generator.register_cli_opts(conf)
    conf(["--config-file", str(ROOT / "etc" / "backupfw" / "config-generator.conf")], default_config_dirs=[])
    text = io.StringIO()
    generator.generate(conf, text)
    return text.getvalue()


def test_the_sample_is_up_to_date() -> None:
    assert SAMPLE.read_text() == generated(), "run 'make genconfig'"


def test_the_sample_has_a_section_for_every_driver() -> None:
    sections = set(re.findall(r"^\[(.+)\]$", SAMPLE.read_text(), re.MULTILINE))
    assert {f"store:my-{name}" for name in driver_entry_points()} <= sections
    assert {f"volumes:{name}" for name in provider_entry_points()} <= sections
    assert {"DEFAULT", "api", "backup", "database", "quota", "volumes"} <= sections


def test_every_option_of_ours_has_help() -> None:
    listed = [*core_options(), *plug_in_options()]
    ours = [(section, opt) for section, opts in listed for opt in opts if section != "database"]
    assert len(ours) > 40
    assert [f"[{section}] {opt.name}" for section, opt in ours if not opt.help] == []

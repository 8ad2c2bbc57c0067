"""``[quiesce:NAME]``: what is wrong with it is said with section and option, before anything runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from backupfw.conf import load, quiesce
from backupfw.conf.load import Loaded
from backupfw.errors import ConfigError
from tests.unit.conf.plugins import PLUG_INS

GOOD = """[DEFAULT]
quiesce_commands = agent
[quiesce:agent]
freeze = /usr/bin/virsh -c 'qemu:///a b' domfsfreeze {volume_id} x={project_id}
thaw = /usr/bin/thaw
[quiesce:later]
anything = 1
"""


def loaded(folder: Path, text: str) -> Loaded:
    path = folder / "test.conf"
    path.write_text(text)
    return load.load(PLUG_INS, state_dir=str(folder), config_files=[str(path)])


def test_the_commands_are_lists_of_arguments(tmp_path: Path) -> None:
    found = loaded(tmp_path, GOOD)
    (one,) = quiesce.commands(found.conf).values()
    program, *arguments = one.freeze
    assert program == "/usr/bin/virsh"
    assert arguments == ["-c", "qemu:///a b", "domfsfreeze", "{volume_id}", "x={project_id}"]
    assert (one.thaw, one.timeout, one.frozen_seconds) == (("/usr/bin/thaw",), 30, 60)
    assert found.unused_sections == ("quiesce:later",)
    assert quiesce.commands(loaded(tmp_path, "").conf) == {}


@pytest.mark.parametrize(
    ("good", "wrong", "section", "option", "said"),
    [
        ("_commands = agent", "_commands = gone", "quiesce:gone", "freeze", "needs a value"),
        ("_commands = agent", "_commands = agent, agent", "DEFAULT", "quiesce_commands", "named twice"),
        ("_commands = agent", "_commands = agent, Agent", "DEFAULT", "quiesce_commands", "only in case"),
        ("_commands = agent", "_commands = a/b", "DEFAULT", "quiesce_commands", "allowed"),
        ("thaw = /usr/bin/thaw\n", "", "quiesce:agent", "thaw", "needs a value"),
        ("= /usr/bin/thaw", "= thaw", "quiesce:agent", "thaw", "absolute path"),
        ("= /usr/bin/thaw", "=", "quiesce:agent", "thaw", "absolute path"),
        ("= /usr/bin/thaw", "= /usr/{location}", "quiesce:agent", "thaw", "name its program"),
        ("= /usr/bin/thaw", "= /usr/bin/thaw 'a", "quiesce:agent", "thaw", "cannot be split"),
        ("{project_id}", "{password}", "quiesce:agent", "freeze", "'x={password}' has something in braces"),
        ("{project_id}", "{project_id", "quiesce:agent", "freeze", "in braces"),
        ("{project_id}", "{{project_id}}", "quiesce:agent", "freeze", "in braces"),
        ("/thaw\n", "/thaw\ntimeout_seconds = 0\n", "quiesce:agent", "timeout_seconds", "from 1 to 300"),
        ("/thaw\n", "/thaw\nfrozen_seconds = 9999\n", "quiesce:agent", "frozen_seconds", "from 1 to 600"),
        ("/thaw\n", "/thaw\nfreez = x\n", "quiesce:agent", "freez", "did you mean freeze?"),
    ],
)
def test_what_is_wrong_is_said(
    tmp_path: Path, good: str, wrong: str, section: str, option: str, said: str
) -> None:
    assert good in GOOD
    with pytest.raises(ConfigError) as caught:
        loaded(tmp_path, GOOD.replace(good, wrong, 1))
    assert str(caught.value).startswith(f"section [{section}], option {option}: ")
    assert said in str(caught.value)

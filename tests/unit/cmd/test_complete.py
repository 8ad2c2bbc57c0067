"""``backupfw complete``: each shell itself completes what is typed."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from backupfw.cmd import main
from tests.unit.cmd.conftest import Run
from tests.waiting import PATIENCE

Offered = Callable[[str], set[str]]


def in_bash(script: Path, typed: str) -> set[str]:
    words = ["backupfw", *typed.split(" ")]
    program = f"""
        source {script}
        compopt() {{ echo "files"; }}
        COMP_WORDS=({" ".join(repr(word) for word in words)})
        COMP_CWORD={len(words) - 1}
        _backupfw
        printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    done = subprocess.run(
        ["bash", "--norc", "-c", program], capture_output=True, text=True, timeout=PATIENCE, check=True
    )
    assert done.stderr == ""
    return set(done.stdout.split())


def in_fish(script: Path, typed: str) -> set[str]:
    program = f"source {script}; complete -C 'backupfw {typed}'"
    done = subprocess.run(
        ["fish", "--no-config", "-c", program],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=True,
        cwd=script.parent,
        env={**os.environ, "HOME": str(script.parent)},
    )
    assert done.stderr == ""
    return {line.partition("\t")[0] for line in done.stdout.splitlines()}


def in_zsh(script: Path, typed: str) -> set[str]:
    """What the function gives to zsh's completion, which works in a terminal only."""
    words = ["backupfw", *typed.split(" ")]
    program = f"""
        compdef() {{ true; }}
        compadd() {{ shift; print -l -- "$@"; }}
        _describe() {{ print -l -- "${{offered[@]%%:*}}"; }}
        _files() {{ print files; }}
        source {script}
        words=({" ".join(repr(word) for word in words)})
        CURRENT={len(words)}
        _backupfw
    """
    done = subprocess.run(
        ["zsh", "-f", "-c", program], capture_output=True, text=True, timeout=PATIENCE, check=True
    )
    assert done.stderr == ""
    return set(done.stdout.split())


@pytest.fixture(params=["bash", "zsh", "fish"])
def offered(request: pytest.FixtureRequest, run: Run, tmp_path: Path) -> Offered:
    """What a shell offers for what is typed after ``backupfw``, in a directory with one file."""
    shell = request.param
    if shutil.which(shell) is None:
        pytest.skip(f"declared: {shell} is not installed")
    done = run("complete", "--shell", shell)
    assert done.status == 0
    folder = tmp_path / "place"
    folder.mkdir()
    script = folder / "script"
    script.write_text(done.out)
    complete = {"bash": in_bash, "zsh": in_zsh, "fish": in_fish}[shell]
    return lambda typed: complete(script, typed)


def test_commands_are_completed(offered: Offered) -> None:
    first = {name.split()[0] for name, _point in main.App().command_manager}
    assert first <= offered("")
    assert {"list", "show", "verify"} <= offered("backup ")
    assert not {"check", "audit"} & offered("backup ")
    assert first <= offered("help ")
    assert {"list", "show", "verify"} <= offered("help backup ")
    assert not {"check", "audit", "place"} & offered("help backup ")
    assert "--debug" in offered("help --")


def test_options_of_the_command_are_completed(offered: Offered) -> None:
    found = offered("backup list --")
    assert {"--volume", "--project", "--damaged", "--format", "--column", "--state-dir"} <= found
    assert "--quick" not in found
    found = offered("serve --listen 127.0.0.1 --")
    assert {"--port", "--config-file"} <= found


def test_values_of_options_are_completed(offered: Offered) -> None:
    found = offered("backup list --damaged --format ")
    assert {"csv", "json", "table", "text", "value", "yaml"} <= found
    assert not {"--volume", "audit"} & found
    assert {"bash", "fish", "zsh"} <= offered("complete --shell ")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_each_shell_understands_its_script(run: Run, tmp_path: Path, shell: str) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"declared: {shell} is not installed")
    (tmp_path / "script").write_text(run("complete", "--shell", shell).out)
    done = subprocess.run([shell, "-n", str(tmp_path / "script")], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_bash_is_the_usual_shell_and_no_other_is_known(run: Run) -> None:
    assert run("complete").out == run("complete", "--shell", "bash").out
    assert run("complete", "--shell", "csh").status == 2

"""Commands run inside the test's process, on a state directory of the test."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from backupfw.cmd import main as command
from backupfw.conf import logging


@dataclass(frozen=True)
class Outcome:
    """What a command left: its exit status and what it wrote."""

    status: int
    out: str
    err: str


Run = Callable[..., Outcome]


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """The state directory, not made yet."""
    return tmp_path / "state"


@pytest.fixture
def run(state: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run a command; usage errors come back as status 2 like in a shell."""
    # oslo.log would take the handlers of pytest away from the process.
    monkeypatch.setattr(logging, "setup", lambda _conf, quiet=False: None)

    def runner(*words: str, at_state: bool = True) -> Outcome:
        argv = [*words, "--state-dir", str(state)] if at_state else list(words)
        capsys.readouterr()
        try:
            status = command.main(argv)
        except SystemExit as error:
            status = int(error.code or 0)
        text = capsys.readouterr()
        return Outcome(status, text.out, text.err)

    return runner

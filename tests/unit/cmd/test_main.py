"""The command as a whole: usage, errors on one line, exit statuses."""

from __future__ import annotations

import pytest
from oslo_db.exception import DBConnectionError

import backupfw
from backupfw.cmd import reference
from backupfw.errors import BackupfwError
from tests.unit.cmd.conftest import Run


def test_help_and_version(run: Run) -> None:
    done = run("--help", at_state=False)
    assert done.status == 0
    for command in (
        "serve",
        "api",
        "worker",
        "volume",
        "backup",
        "store",
        "sweep",
        "db",
        "config",
        "lifecycle",
    ):
        assert f"\n    {command}" in done.out
    assert run("--version", at_state=False).out == f"backupfw {backupfw.__version__}\n"


@pytest.mark.parametrize(
    "words",
    [
        (),
        ("nothing",),
        ("volume",),
        ("volume", "create", "--size", "0"),
        ("volume", "create", "--size", "many"),
        ("volume", "path"),
        ("store", "check"),
        ("sweep", "--dry"),
        ("serve", "--prot", "1"),
    ],
)
def test_wrong_usage(run: Run, words: tuple[str, ...]) -> None:
    done = run(*words, at_state=False)
    assert done.status == 2
    assert done.out == ""
    assert "usage: backupfw" in done.err


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (BackupfwError("two\n lines"), "backupfw: two lines\n"),
        (
            OSError(28, "No space left on device", "/x"),
            "backupfw: [Errno 28] No space left on device: '/x'\n",
        ),
        (DBConnectionError(ValueError("refused")), "backupfw: database: refused\n"),
        (TypeError("oops"), "backupfw: internal error: TypeError: oops (--debug shows where)\n"),
    ],
)
def test_errors_are_one_line(
    run: Run, monkeypatch: pytest.MonkeyPatch, error: Exception, message: str
) -> None:
    def fail() -> str:
        raise error

    monkeypatch.setattr("backupfw.manager.lineage.lifecycle.mermaid", fail)
    done = run("lifecycle")
    assert (done.status, done.out, done.err) == (1, "", message)
    done = run("lifecycle", "--debug")
    assert done.status == 1
    assert "Traceback" in done.err
    assert done.err.endswith(message.replace(" (--debug shows where)", ""))


def test_interrupted(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt() -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr("backupfw.manager.lineage.lifecycle.mermaid", interrupt)
    done = run("lifecycle")
    assert (done.status, done.err) == (130, "backupfw: interrupted\n")


def test_lifecycle_prints_the_tables_diagram(run: Run) -> None:
    done = run("lifecycle")
    assert done.status == 0
    assert done.out.count("stateDiagram-v2") == 3
    assert "error_deleting" in done.out
    assert reference.__doc__

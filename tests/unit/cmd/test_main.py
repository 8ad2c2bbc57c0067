"""The command as a whole: usage, errors on one line, exit statuses."""

from __future__ import annotations

import subprocess
import sys

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
        ("volume", "create", "--name", "without-size"),
        ("volume", "adopt", "--name", "without-path"),
        ("volume", "path"),
        ("backup", "verify"),
        ("backup", "verify", "one", "--all"),
        ("backup", "restore", "one", "--overwrite"),
        ("backup", "restore", "one", "--to", "file", "--no-wait"),
        ("store", "check"),
        ("sweep", "--dry"),
        ("serve", "--prot", "1"),
    ],
)
def test_wrong_usage_ends_with_2_and_the_usage(run: Run, words: tuple[str, ...]) -> None:
    done = run(*words, at_state=False)
    assert done.status == 2
    assert done.out == ""
    assert "usage: backupfw" in done.err


def test_an_option_before_the_command_is_told_where_it_stands(run: Run) -> None:
    for word in ("--state-dir", "--config-file=x", "-f"):
        done = run(word, "DIR", "volume", "list", at_state=False)
        assert (done.status, done.out) == (2, "")
        assert f"{word} stands before the command" in done.err


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("help", "nonsense"), "'nonsense'"),
        (("nonsense", "-f", "json"), "'nonsense'"),
        (("backup", "creat", "--name", "x"), "'backup creat'"),
    ],
)
def test_an_unknown_command_is_named_without_options(run: Run, words: tuple[str, ...], named: str) -> None:
    done = run(*words, at_state=False)
    assert done.status == 2
    assert f"there is no command {named};" in done.err


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


def test_an_interrupt_ends_with_130(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt() -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr("backupfw.manager.lineage.lifecycle.mermaid", interrupt)
    done = run("lifecycle")
    assert (done.status, done.err) == (130, "backupfw: interrupted\n")


def test_lifecycle_prints_the_tables_diagram(run: Run) -> None:
    done = run("lifecycle")
    assert done.status == 0
    assert done.out.count("stateDiagram-v2") == 4
    assert "error_deleting" in done.out
    assert reference.__doc__


@pytest.mark.parametrize("words", [("lifecycle",), ("--help",), ("backup", "--help")])
def test_a_reader_that_leaves_is_no_success_and_no_traceback(words: tuple[str, ...]) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "backupfw.cmd.main", *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert (process.wait(60), process.stderr.read()) == (1, b"")


def test_help_is_there_before_what_commands_need() -> None:
    """No command needs what takes long to import in order to say what it is for."""
    program = """if True:
        import sys
        from backupfw.cmd import main
        try:
            main.main(["--help"])
        except SystemExit:
            print(*{"sqlalchemy", "oslo_config", "oslo_log", "webob", "rich", "alembic"} & set(sys.modules))
    """
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == ""

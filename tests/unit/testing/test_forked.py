"""Programs that are forked behave as those that are started."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.servers.forked import ForkServer

PROGRAM = """
import atexit, os, signal, sys, threading, time

def main():
    atexit.register(print, "at exit")
    what, *words = sys.argv[1:]
    if what == "tell":
        print(words, os.environ.get("MINE"), os.environ.get("HOME"), os.getcwd(), sys.stdin.read())
        print("to the other", file=sys.stderr)
        return int(words[0])
    if what == "exit":
        sys.exit(" ".join(words))
    if what == "raise":
        raise OSError("on purpose")
    if what == "thread":
        threading.Thread(target=lambda: (time.sleep(0.1), print("from a thread"))).start()
    if what == "wait":
        print("waiting", os.getpgrp() == os.getpid(), flush=True)
        signal.pause()
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ForkServer]:
    folder = tmp_path_factory.mktemp("program")
    (folder / "a_program.py").write_text(PROGRAM)
    running = ForkServer(
        sys.executable, "a_program:main", environment={**os.environ, "PYTHONPATH": str(folder), "MINE": "not"}
    )
    yield running
    running.close()


def run(server: ForkServer, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return server.run(["program", *words], environment, 30)


def test_it_gets_what_it_is_started_with(server: ForkServer) -> None:
    done = run(server, "tell", "7", MINE="yes")
    assert done.returncode == 7
    assert done.stdout == f"['7'] yes None {os.getcwd()} \nat exit\n"
    assert done.stderr == "to the other\n"


def test_runs_know_nothing_of_each_other(server: ForkServer) -> None:
    assert run(server, "tell", "0", MINE="yes").returncode == 0
    assert "None None" in run(server, "tell", "0").stdout


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [(("exit", "a", "b"), 1, "a b\n"), (("raise",), 1, "OSError: on purpose\n"), (("nothing",), 0, "")],
)
def test_its_end(server: ForkServer, words: tuple[str, ...], status: int, said: str) -> None:
    done = run(server, *words)
    assert done.returncode == status
    assert done.stderr.endswith(said)
    assert done.stdout == "at exit\n"


def test_threads_are_waited_for(server: ForkServer) -> None:
    assert run(server, "thread").stdout == "from a thread\nat exit\n"


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_signal_ends_it(server: ForkServer, number: int, tmp_path: Path) -> None:
    with open(tmp_path / "log", "a") as log:
        process = server.start(["program", "wait"], os.environ, log)
    assert process.stdout is not None
    # It leads a session of its own, which can be killed as a whole.
    assert process.stdout.readline() == "waiting True\n"
    assert process.poll() is None
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.01)
    process.send_signal(number)
    assert process.wait(30) == process.poll() == -number
    process.send_signal(number)
    assert process.stdout.read() == ""
    process.stdout.close()


def test_it_outlives_who_has_imported_it(tmp_path: Path) -> None:
    (tmp_path / "a_program.py").write_text(PROGRAM)
    server = ForkServer(
        sys.executable, "a_program:main", environment={**os.environ, "PYTHONPATH": str(tmp_path)}
    )
    with tempfile.TemporaryFile("w+") as log:
        process = server.start(["program", "wait"], os.environ, log)
        assert process.stdout is not None
        process.stdout.readline()
        server.close()
        assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == -signal.SIGTERM
        process.stdout.close()


def test_what_cannot_be_imported(tmp_path: Path) -> None:
    with pytest.raises(ImportError, match="cannot be imported"):
        ForkServer(sys.executable, "no_such_module:main", environment=dict(os.environ))

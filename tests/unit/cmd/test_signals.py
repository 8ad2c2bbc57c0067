"""SIGTERM at any moment of the life of each command that serves: none is lost."""

from __future__ import annotations

import os
import random
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.waiting import PATIENCE

pytestmark = pytest.mark.check

COMMAND = ("-m", "backupfw.cmd.main")

#: The signal reaches a thread that is not the main one, as the kernel may choose.
ELSEWHERE = """
import os, signal, threading
from backupfw.cmd.signals import until_stopped

with until_stopped(lambda: print("reload", flush=True), 60) as stop:
    threading.Thread(target=threading.Event().wait, daemon=True).start()
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGHUP})
    print("ready", flush=True)
    stop.wait()
"""
#: What is to stop does not.
HANGING = """
import threading
from backupfw.cmd.signals import until_stopped

with until_stopped(lambda: None, 0.5) as stop:
    print("ready", flush=True)
    stop.wait()
    print("told", flush=True)
    threading.Event().wait()
"""
#: A worker process that takes long until it has handlers of its own.
SLOW_TO_START = """
import sys, time
from cotyledon import _service_worker
from backupfw.cmd import main

class Slow(_service_worker.ServiceWorker):
    def __init__(self, *args):
        print("forked", flush=True)
        time.sleep(4)
        super().__init__(*args)

_service_worker.ServiceWorker = Slow
sys.exit(main.main(sys.argv[1:]))
"""
#: A worker that is stopped after it took its first look and before it said that it was ready.
STOPPED_AS_IT_STARTS = """
import sys, time
from contextlib import contextmanager
from backupfw.cmd import main, service

@contextmanager
def running_worker(conf):
    print("started", flush=True)
    time.sleep(2)
    try:
        yield
    finally:
        print("closed", flush=True)

service.running_worker = running_worker
sys.exit(main.main(sys.argv[1:]))
"""

Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start Python with some words; whatever is left is killed."""
    started: list[subprocess.Popen[str]] = []

    def starter(*words: str) -> subprocess.Popen[str]:
        with open(tmp_path / "log", "a") as log:
            process = subprocess.Popen(
                [sys.executable, *words],
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                start_new_session=True,
            )
        started.append(process)
        return process

    yield starter
    for process in started:
        # Processes of a worker are in its session.
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate(timeout=PATIENCE)


def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    assert select.select([process.stdout], [], [], PATIENCE)[0], "nothing came"
    return process.stdout.readline()


def test_a_signal_that_another_thread_receives_counts(start: Start) -> None:
    process = start("-c", ELSEWHERE)
    assert line(process) == "ready\n"
    process.send_signal(signal.SIGHUP)
    assert line(process) == "reload\n"
    process.send_signal(signal.SIGTERM)
    assert process.wait(PATIENCE) == 0


def test_a_second_one_ends_it_at_once(start: Start) -> None:
    process = start("-c", HANGING.replace("0.5", "600"))
    assert line(process) == "ready\n"
    process.send_signal(signal.SIGTERM)
    # Two that wait are one.
    assert line(process) == "told\n"
    process.send_signal(signal.SIGTERM)
    assert process.wait(PATIENCE) == 128 + signal.SIGTERM


def test_what_does_not_stop_is_ended(start: Start) -> None:
    process = start("-c", HANGING)
    assert line(process) == "ready\n"
    process.send_signal(signal.SIGTERM)
    assert process.wait(PATIENCE) == 1


def test_a_worker_process_that_has_no_handlers_yet_hears_it(start: Start, tmp_path: Path) -> None:
    made(tmp_path / "state")
    process = start("-c", SLOW_TO_START, "worker", "--state-dir", str(tmp_path / "state"))
    assert line(process) == "forked\n"
    process.send_signal(signal.SIGTERM)
    # Not 1: that would be a process that had to be killed.
    assert process.wait(PATIENCE) == 0, (tmp_path / "log").read_text()


def test_a_worker_that_is_just_starting_is_stopped_in_order(start: Start, tmp_path: Path) -> None:
    made(tmp_path / "state")
    process = start("-c", STOPPED_AS_IT_STARTS, "worker", "--state-dir", str(tmp_path / "state"))
    assert line(process) == "started\n"
    process.send_signal(signal.SIGTERM)
    assert process.wait(PATIENCE) == 0, (tmp_path / "log").read_text()
    assert process.stdout is not None
    assert "closed\n" in process.stdout.read()


def made(state: Path) -> None:
    """Make the instance that commands beside ``serve`` want."""
    words = [sys.executable, *COMMAND, "db", "sync", "--state-dir", str(state)]
    subprocess.run(words, check=True, capture_output=True, timeout=PATIENCE)


def at_any_moment(command: str, start: Start, tmp_path: Path, times: int) -> None:
    """Start and stop a command again and again, at moments between its fork and a while after it is ready."""
    state = tmp_path / "state"
    made(state)
    words = [*COMMAND, command, "--state-dir", str(state)]
    if command != "worker":
        words += ["--port", "0"]
    begin = time.monotonic()
    process = start(*words)
    assert "ready" in line(process), (tmp_path / "log").read_text()
    usual = time.monotonic() - begin
    # At once: the moment at which most were lost.
    process.send_signal(signal.SIGTERM)
    assert process.wait(PATIENCE) == 0
    seed = random.randrange(1 << 32)
    moments = random.Random(seed)
    for number in range(times):
        process = start(*words)
        time.sleep(moments.uniform(0, usual * 1.3))
        process.send_signal(signal.SIGTERM)
        where = f"seed {seed}, number {number}: {(tmp_path / 'log').read_text()[-2000:]}"
        try:
            status = process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            pytest.fail(f"the signal was lost; {where}")
        assert process.stdout is not None
        was_ready = "ready" in process.stdout.read()
        assert status == 0 or (status == -signal.SIGTERM and not was_ready), f"status {status}; {where}"


@pytest.mark.parametrize("command", ["serve", "api", "worker"])
def test_sigterm_at_any_moment(command: str, start: Start, tmp_path: Path) -> None:
    at_any_moment(command, start, tmp_path, 2)


@pytest.mark.soak
@pytest.mark.parametrize("command", ["serve", "api", "worker"])
def test_sigterm_at_any_moment_very_often(command: str, start: Start, tmp_path: Path) -> None:
    at_any_moment(command, start, tmp_path, 150)

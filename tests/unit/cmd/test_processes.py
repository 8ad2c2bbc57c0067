"""``backupfw worker`` as a master and several processes: start, reload, replacement, end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from backupfw.cmd import database
from tests.unit.cmd.conftest import load_conf
from tests.waiting import PATIENCE, wait_until

pytestmark = pytest.mark.check

PROGRAM = ("-m", "backupfw.cmd.main")
#: The same, with a task that never lets its process stop.
STUBBORN = """
import sys, threading
from contextlib import contextmanager
from backupfw.cmd import main, service

@contextmanager
def stubborn(conf):
    yield
    threading.Event().wait()

service.running_worker = stubborn
sys.exit(main.main(sys.argv[1:]))
"""


class Master:
    def __init__(self, state: Path, *options: str, program: tuple[str, ...] = PROGRAM) -> None:
        # Of a wrong configuration the worker shall tell.
        database.prepare(load_conf(state), make=True)
        self.config = state / "backupfw.conf"
        self.config.write_text("\n".join(("[DEFAULT]", "debug = true", "[backup]", *options)) + "\n")
        self.log = state.parent / "worker.log"
        with open(self.log, "a") as log:
            self.process = subprocess.Popen(
                [sys.executable, *program, "worker", "--state-dir", str(state)],
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                start_new_session=True,
            )

    def ready(self) -> None:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line.startswith("backupfw worker ready on "), self.log.read_text()

    def children(self) -> list[int]:
        found = []
        for entry in Path("/proc").glob("[0-9]*/stat"):
            try:
                state, parent = entry.read_text().rpartition(")")[2].split()[:2]
            except OSError:
                continue
            if int(parent) == self.process.pid and state != "Z":
                found.append(int(entry.parent.name))
        return found

    def close(self) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.communicate(timeout=PATIENCE)


@pytest.fixture
def master(tmp_path: Path) -> Iterator[Master]:
    master = Master(tmp_path / "state", "processes = 2", "max_running = 3")
    try:
        for _ in range(2):
            master.ready()
        yield master
    finally:
        master.close()


def test_a_process_that_dies_is_replaced_and_all_stop_in_order(master: Master) -> None:
    before = master.children()
    assert len(before) == 2
    os.kill(before[0], signal.SIGKILL)
    master.ready()
    after = master.children()
    assert len(after) == 2
    assert before[1] in after
    master.process.send_signal(signal.SIGTERM)
    assert master.process.wait(PATIENCE) == 0, master.log.read_text()
    assert master.children() == []


def test_an_interrupt_stops_in_order_too(master: Master) -> None:
    os.killpg(master.process.pid, signal.SIGINT)
    assert master.process.wait(PATIENCE) == 0, master.log.read_text()


def test_every_process_reads_its_configuration_again(master: Master) -> None:
    text = master.config.read_text()
    master.config.write_text(text.replace("max_running = 3", "max_running = 4"))
    master.process.send_signal(signal.SIGHUP)
    again = "Read the configuration again"
    wait_until("both processes to read", lambda: master.log.read_text().count(again) == 2)
    assert master.log.read_text().count("max_running") >= 2
    assert len(master.children()) == 2


def test_the_processes_end_with_their_master(master: Master) -> None:
    children = master.children()
    master.process.kill()
    master.process.wait(PATIENCE)
    wait_until("the processes to end", lambda: not [pid for pid in children if running(pid)])


def test_a_process_that_does_not_stop_in_time_is_reported_by_the_status(tmp_path: Path) -> None:
    with closing(Master(tmp_path / "state", "stop_seconds = 1", program=("-c", STUBBORN))) as master:
        master.ready()
        master.process.send_signal(signal.SIGTERM)
        assert master.process.wait(PATIENCE) == 1, master.log.read_text()
        assert master.children() == []


def test_a_frozen_process_does_not_keep_the_others_from_ending(tmp_path: Path) -> None:
    with closing(Master(tmp_path / "state", "processes = 2", "stop_seconds = 5")) as master:
        for _ in range(2):
            master.ready()
        children = master.children()
        os.kill(children[0], signal.SIGSTOP)
        master.process.send_signal(signal.SIGTERM)
        assert master.process.wait(PATIENCE) == 1, master.log.read_text()
        assert not [pid for pid in children if running(pid)]


def test_a_wrong_configuration_ends_it_at_once(tmp_path: Path) -> None:
    with closing(Master(tmp_path / "state", "processes = none")) as master:
        assert master.process.wait(PATIENCE) == 1
        assert "option processes" in master.log.read_text()


def running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False

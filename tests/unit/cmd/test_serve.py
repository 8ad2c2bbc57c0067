"""``backupfw serve`` as a process: what it says when it is ready, a clean end, no start on a wrong value."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.cmd.conftest import Run
from tests.waiting import PATIENCE, wait_until

pytestmark = pytest.mark.check

COMMAND = [sys.executable, "-m", "backupfw.cmd.main"]


def start(*words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*COMMAND, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


@pytest.fixture
def serving(state: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A running service that has said where it is, and its URL."""
    process = start("serve", "--state-dir", str(state), "--port", "0")
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("backupfw ready on http://127.0.0.1:"), process.communicate(timeout=PATIENCE)
        assert line.endswith(f"(state {state})\n")
        url = line.split()[3]
        assert process.stdout.readline().startswith(f"backupfw console on {url}console/ (token ")
        yield process, url
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate(timeout=PATIENCE)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_answers_and_ends(serving: tuple[subprocess.Popen[str], str], number: signal.Signals) -> None:
    process, url = serving
    # 300: a choice of versions; urllib takes it for an error.
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(url, timeout=PATIENCE)
    assert caught.value.code == 300
    assert json.load(caught.value)["versions"]
    process.send_signal(number)
    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, err
    assert out == "", "the service says only where it and its console are"
    assert "Traceback" not in err


def log_line(process: subprocess.Popen[str], part: str) -> str:
    """Read the log up to a line with ``part``."""
    assert process.stderr is not None
    for line in process.stderr:
        if part in line:
            return line
    raise AssertionError(f"the log ended without {part!r}")


def test_hangup_reads_the_configuration_again(state: Path) -> None:
    state.mkdir()
    path = state / "backupfw.conf"
    path.write_text("[store:main]\nmax_bytes_per_second = 1000\n")
    process = start("serve", "--state-dir", str(state), "--port", "0")
    try:
        assert process.stdout is not None
        process.stdout.readline()
        path.write_text("[store:main]\nmax_bytes_per_second = 5000\n")
        process.send_signal(signal.SIGHUP)
        assert "changed: store:main.max_bytes_per_second" in log_line(process, "Read the configuration again")
        path.write_text("[store:main]\nmax_bytes_per_second = -1\n")
        process.send_signal(signal.SIGHUP)
        assert "max_bytes_per_second: " in log_line(process, "The configuration stays as it was")
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=PATIENCE)
        assert process.returncode == 0
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate(timeout=PATIENCE)


def test_volumes_are_made_while_it_runs(serving: tuple[subprocess.Popen[str], str], run: Run) -> None:
    _process, url = serving
    done = run("volume", "create", "--size", "1", "--project", "p7")
    assert done.status == 0, done.err
    with urllib.request.urlopen(f"{url}v2/p7/volumes/{done.out.strip()}", timeout=PATIENCE) as answer:
        assert json.load(answer)["volume"]["status"] == "available"


def test_a_second_one_on_the_same_state_is_refused(
    serving: tuple[subprocess.Popen[str], str], state: Path
) -> None:
    out, err = start("serve", "--state-dir", str(state), "--port", "0").communicate(timeout=PATIENCE)
    assert out == ""
    assert err == f"backupfw: state directory {state}: another backupfw service runs on it\n"
    assert serving[0].poll() is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[api]\nport = none\n", "section [api], option port"),
        ("[store:main]\nretry_tries = 0\n", "section [store:main], option retry_tries"),
        ("[api]\nlisten = 0.0.0.0\n", "allow_noauth_beyond_loopback"),
        ("[oslo_policy]\npolicy_file = missing.yaml\n", "missing.yaml: no such file"),
    ],
)
def test_a_wrong_configuration_ends_it_before_it_listens(state: Path, text: str, said: str) -> None:
    state.mkdir()
    (state / "backupfw.conf").write_text(text)
    process = start("serve", "--state-dir", str(state))
    out, err = process.communicate(timeout=PATIENCE)
    assert (process.returncode, out) == (1, "")
    assert said in err
    assert len(err.splitlines()) == 1
    assert [path.name for path in state.iterdir()] == ["backupfw.conf"]


def test_a_port_that_is_taken(state: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        process = start("serve", "--state-dir", str(state), "--port", port)
        out, err = process.communicate(timeout=PATIENCE)
    assert (process.returncode, out) == (1, "")
    assert f"[api], options listen and port: 127.0.0.1, port {port}: Address already" in err.splitlines()[-1]
    assert "Traceback" not in err


def test_api_and_worker_apart(state: Path) -> None:
    assert start("db", "sync", "--state-dir", str(state)).wait(PATIENCE) == 0
    worker = start("worker", "--state-dir", str(state))
    api = start("api", "--state-dir", str(state), "--port", "0")
    try:
        assert worker.stdout is not None
        assert api.stdout is not None
        assert worker.stdout.readline().startswith("backupfw worker ready")
        line = api.stdout.readline()
        assert line.startswith("backupfw api ready on http://127.0.0.1:")
        request = urllib.request.Request(
            f"{line.split()[4]}v2/p/volumes",
            data=b'{"volume": {"size": 1}}',
            headers={"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
            volume = json.load(answer)["volume"]["id"]

        def made() -> bool:
            where = f"{line.split()[4]}v2/p/volumes/{volume}"
            with urllib.request.urlopen(where, timeout=PATIENCE) as answer:
                return bool(json.load(answer)["volume"]["status"] == "available")

        wait_until("the worker to make the volume", made)
    finally:
        for process in (worker, api):
            process.terminate()
    for process in (worker, api):
        _out, err = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0, err


def test_what_it_is_served_with_counts_for_other_commands(state: Path, tmp_path: Path) -> None:
    path = tmp_path / "away.conf"
    path.write_text("[DEFAULT]\nenabled_stores = main, away\n[store:away]\ndriver = posix\npath = /nowhere\n")
    process = start("serve", "--state-dir", str(state), "--config-file", str(path), "--port", "0")
    try:
        assert process.stdout is not None
        assert "ready" in process.stdout.readline()
        out, _err = start("config", "check", "--state-dir", str(state)).communicate(timeout=PATIENCE)
        assert "store away: driver posix" in out
    finally:
        process.terminate()
        process.communicate(timeout=PATIENCE)
    # Until it is served with others.
    process = start("serve", "--state-dir", str(state), "--port", "0")
    try:
        assert process.stdout is not None
        assert "ready" in process.stdout.readline()
        out, _err = start("config", "check", "--state-dir", str(state)).communicate(timeout=PATIENCE)
        assert "store away" not in out
    finally:
        process.terminate()
        process.communicate(timeout=PATIENCE)

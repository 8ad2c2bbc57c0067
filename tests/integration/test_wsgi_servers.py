"""The API in a WSGI server that is not ours, with several processes: gunicorn."""

from __future__ import annotations

import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.integration.service import Client, free_port
from tests.servers import forked
from tests.servers.databases import PostgreSQL
from tests.servers.rabbitmq import RabbitMQ
from tests.waiting import PATIENCE, wait_until

APPLICATION = "backupfw.cmd.wsgi:application"
#: Lets the master ask for the API before it forks: what it then has must not be used by its processes.
ASKS_FIRST = """
def on_starting(server):
    from webob import Request
    from backupfw.cmd.wsgi import application
    assert Request.blank("/healthcheck").send(application).status_int == 200
"""
LOGGED = re.compile(r"^\S+ \S+ (\d+) INFO backupfw\.api\.pipeline ", re.MULTILINE)


class Server:
    """A server of the API as a process.

    :param words: its command line.
    :param port: where it listens.
    """

    def __init__(self, words: list[str], port: int, log: Path, environment: Mapping[str, str]) -> None:
        self.port = port
        self.url = f"http://127.0.0.1:{port}"
        self._log = log
        with open(log, "ab") as output:
            self.process = subprocess.Popen(
                words,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                env={**os.environ, **environment},
            )
        self.wait("the server to answer", self._answers)

    def _answers(self) -> bool:
        assert self.process.poll() is None, self.log_tail()
        try:
            with urllib.request.urlopen(f"{self.url}/healthcheck", timeout=PATIENCE) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def log(self) -> str:
        """What it wrote."""
        return self._log.read_text()

    def log_tail(self, lines: int = 40) -> str:
        """The end of that, for messages of failed tests."""
        return "\n".join(self.log().splitlines()[-lines:])

    def answered_by(self) -> set[str]:
        """The ids of the processes that answered requests."""
        return set(LOGGED.findall(self.log()))

    def client(self) -> Client:
        """A client with every role."""
        return Client(f"{self.url}/v3/demo", "tester:demo:admin", self)  # type: ignore[arg-type]

    def wait(self, what: str, done: Callable[[], Any]) -> Any:
        """Poll until ``done()`` is true; returns its value."""
        return wait_until(what, done, self.log_tail, pause=0.05)

    def close(self) -> None:
        """End it and its processes."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(PATIENCE)


@contextmanager
def gunicorn(folder: Path, config: Path, *options: str, **environment: str) -> Iterator[Server]:
    """Run gunicorn with two processes."""
    port = free_port()
    words = [f"{sys.prefix}/bin/gunicorn", "--bind", f"127.0.0.1:{port}", "--workers", "2", "--threads", "4"]
    own = {"BACKUPFW_CONFIG_FILE": str(config), **environment}
    with closing(Server([*words, *options, APPLICATION], port, folder / "gunicorn.log", own)) as server:
        yield server


@contextmanager
def ours(folder: Path, config: Path) -> Iterator[Server]:
    """Run ``backupfw api``."""
    port = free_port()
    words = [
        sys.executable,
        "-m",
        "backupfw.cmd.main",
        "api",
        "--config-file",
        str(config),
        "--port",
        str(port),
    ]
    with closing(Server(words, port, folder / "api.log", {})) as server:
        yield server


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A configuration on SQLite."""
    return written(tmp_path, f"sqlite:///{tmp_path}/backupfw.sqlite")


def written(folder: Path, database: str, default: str = "", more: str = "") -> Path:
    file = folder / "backupfw.conf"
    file.write_text(
        f"""[DEFAULT]
state_dir = {folder}
{default}
[database]
connection = {database}
[api]
noauth_roles = admin
[store:main]
driver = posix
path = {folder}/store
[volumes:local]
volumes_dir = {folder}/volumes
{more}
"""
    )
    if database.startswith("sqlite"):
        command(file, "db", "sync")
    return file


def command(config: Path, *words: str) -> str:
    words = ("backupfw", *words, "--config-file", str(config))
    done = forked.backupfw().run(words, os.environ, PATIENCE)
    assert done.returncode == 0, f"{done.stdout}{done.stderr}"
    return done.stdout.strip()


@pytest.mark.server
@pytest.mark.parametrize("way", ["each process imports", "the master has asked"])
def test_processes_share_nothing(
    way: str, broker: RabbitMQ, database_server: PostgreSQL, tmp_path: Path
) -> None:
    """Connections to the database and to the bus are each process's own, whenever it was forked."""
    default = f"transport_url = {broker.url}\ncontrol_exchange = gunicorn{free_port()}"
    # A worker that nobody wakes up would come too late.
    more = "shared = true\n[backup]\npoll_seconds = 300\n[quota]\nvolumes = -1"
    config = written(tmp_path, database_server.create_database(), default, more)
    command(config, "db", "sync")
    options: list[str] = []
    if way == "the master has asked":
        (tmp_path / "hooks.py").write_text(ASKS_FIRST)
        options = ["--preload", "--config", str(tmp_path / "hooks.py")]
    with (
        gunicorn(tmp_path, config, *options) as server,
        closing(Worker(config, tmp_path / "worker.log")),
        ThreadPoolExecutor(12) as pool,
    ):
        while len(server.answered_by()) < 2:
            # Each takes a while for its first answer.
            assert {status for status, _ in pool.map(get, [f"{server.url}/v3/demo/volumes"] * 12)} == {200}
        client = server.client()
        made = list(pool.map(lambda _: client.create_volume(1), range(16)))
        listed = client.expect(200, "GET", "/volumes")["volumes"]
        assert {volume["id"] for volume in listed} == set(made)
        assert len(made) == len(set(made)) == 16
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(PATIENCE) == 0, server.log_tail()
        assert "Traceback" not in server.log(), server.log_tail()


class Worker:
    """``backupfw worker``, which takes tasks from the moment it was made."""

    def __init__(self, config: Path, log: Path) -> None:
        with open(log, "ab") as errors:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "backupfw.cmd.main", "worker", "--config-file", str(config)],
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                start_new_session=True,
            )
        assert self._process.stdout is not None
        assert "ready" in self._process.stdout.readline(), log.read_text()

    def close(self) -> None:
        """kill -9."""
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.communicate(timeout=PATIENCE)


@pytest.mark.parametrize("kind", [gunicorn, ours])
def test_a_request_under_way_is_answered_when_the_server_stops(
    kind: Callable[..., Any], config: Path, tmp_path: Path
) -> None:
    with kind(tmp_path, config) as server, ThreadPoolExecutor(1) as pool:
        with closing(sqlite3.connect(tmp_path / "backupfw.sqlite", isolation_level=None)) as database:
            database.execute("BEGIN IMMEDIATE")
            body = {"volume": {"size": 1}}
            asked = pool.submit(server.client().request, "POST", "/volumes", body)
            server.wait("the request to come", lambda: "POST /v3/demo/volumes" in server.log())
            server.process.send_signal(signal.SIGTERM)
            database.execute("ROLLBACK")
        status, answer = asked.result(PATIENCE)
        assert status == 202, answer
        assert server.process.wait(PATIENCE) == 0, server.log_tail()
        with closing(sqlite3.connect(tmp_path / "backupfw.sqlite")) as database:
            assert database.execute("SELECT id FROM volumes").fetchall() == [(answer["volume"]["id"],)]


def test_a_reload_reads_the_configuration_and_loses_nothing(config: Path, tmp_path: Path) -> None:
    with gunicorn(tmp_path, config, "--preload") as server, ThreadPoolExecutor(1) as pool:
        ended = threading.Event()

        def ask() -> set[int]:
            found = set()
            while not ended.is_set():
                found.add(get(f"{server.url}/v3/demo/volumes")[0])
            return found

        asking = pool.submit(ask)
        try:
            text = config.read_text()
            config.write_text(text.replace("[api]", "[api]\npublic_endpoint = https://moved.example.org"))
            server.process.send_signal(signal.SIGHUP)
            # The document of versions has links, which begin with where the service says it is.
            server.wait("the new configuration", lambda: "https://moved" in get(f"{server.url}/v3/")[1])
        finally:
            ended.set()
        assert asking.result(PATIENCE) == {200}


#: How long a stop may take.  On a busy machine one of a few tries shows it.
STOP_SECONDS = 5
TRIES = 10


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize("options", [(), ("--preload",)])
def test_with_messages_it_stops_and_leaves_nobody(
    number: signal.Signals, options: tuple[str, ...], tmp_path: Path
) -> None:
    """Stopped in order, and when its master dies."""
    config = written(tmp_path, f"sqlite:///{tmp_path}/backupfw.sqlite", "transport_url = fake://")
    command(config, "db", "sync")
    took: list[float] = []
    while len(took) < TRIES and (not took or took[-1] >= STOP_SECONDS):
        with gunicorn(tmp_path, config, *options) as server:
            while len(server.answered_by()) < 2:
                assert get(f"{server.url}/v3/demo/volumes")[0] == 200
            begin = time.monotonic()
            server.process.send_signal(number)
            server.process.wait(PATIENCE)
            server.wait("its processes to end", lambda: not in_session(server.process.pid))
            took.append(time.monotonic() - begin)
            (tmp_path / "gunicorn.log").unlink()
    assert took[-1] < STOP_SECONDS, took


def in_session(session: int) -> set[str]:
    """The living processes of a session."""
    found = set()
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _parent, _group, its_session = entry.read_text().rpartition(")")[2].split()[:4]
        except OSError:
            continue
        if int(its_session) == session and state != "Z":
            found.add(entry.parent.name)
    return found


def get(url: str) -> tuple[int, str]:
    """Ask for something, with all the patience a busy machine needs; returns status and body."""
    request = urllib.request.Request(url, headers={"X-Auth-Token": "tester:demo:admin"})
    try:
        with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_the_figures_of_all_processes_are_added_up(tmp_path: Path) -> None:
    port = free_port()
    config = written(
        tmp_path, f"sqlite:///{tmp_path}/db.sqlite", more=f"[metrics]\nport = 1\napi_port = {port}"
    )
    (tmp_path / "figures").mkdir()
    with gunicorn(
        tmp_path, config, "--preload", PROMETHEUS_MULTIPROC_DIR=str(tmp_path / "figures")
    ) as server:
        asked = 0
        while len(server.answered_by()) < 2 or asked < 10:
            assert get(f"{server.url}/v3/demo/volumes")[0] == 200
            asked += 1
        for _ in range(4):
            _, text = get(f"http://127.0.0.1:{port}/metrics")
            assert count(text, "backupfw_api_request_seconds_count", "/volumes") == asked
            assert "backupfw_tasks{" in text
        status, ready = get(f"http://127.0.0.1:{port}/ready")
        assert (status, json.loads(ready)["api"]) == (200, "ok")


def count(text: str, name: str, route: str) -> float:
    """The sum of a figure's samples whose route ends so."""
    return sum(
        sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == name and sample.labels["route"].endswith(route)
    )

"""What the API's benchmarks run against: the API as a process on a database, and clients."""

from __future__ import annotations

import http.client
import json
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, text

from backupfw.db import migrate
from backupfw.db.session import Database
from tests.servers.ports import free_port

#: Seconds a request may take before it counts as lost.
PATIENCE = 120


class Client:
    """One kept-open connection to the API.  Not thread-safe.

    :param port: on the loopback interface.
    :param project: whose project; the caller is an administrator there.
    """

    def __init__(self, port: int, project: str) -> None:
        self._base = f"/v2/{project}"
        self._headers = {"X-Auth-Token": f"bench:{project}:admin", "Content-Type": "application/json"}
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)

    def send(self, method: str, path: str, body: Any = None, *, absolute: bool = False) -> tuple[int, bytes]:
        """Send one request; returns the status and the body's bytes."""
        data = None if body is None else json.dumps(body)
        self._connection.request(method, path if absolute else self._base + path, data, self._headers)
        answer = self._connection.getresponse()
        return answer.status, answer.read()

    def get(self, path: str, *, absolute: bool = False, status: int = 200) -> Any:
        """GET what must answer with ``status``; returns the decoded body."""
        found, data = self.send("GET", path, absolute=absolute)
        if found != status:
            raise RuntimeError(f"GET {path}: {found} {data[:200]!r}")
        return json.loads(data)

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()


@contextmanager
def empty_database(url: str) -> Iterator[Database]:
    """Open a database with the schema and nothing else."""
    # Each client has a thread, and a connection of its own beside it.
    db = Database(url, max_pool_size=32)
    try:
        migrate.sync(db, None)
        yield db
    finally:
        db.close()


@contextmanager
def api_process(directory: Path, url: str, quota: int = -1) -> Iterator[int]:
    """Serve the API on a database in a process of its own; yields its port.

    :param quota: every project's limit of backups.
    """
    port = free_port()
    config = directory / f"api-{port}.conf"
    lines = [
        "[database]", f"connection = {url}",
        "[api]", f"port = {port}", "noauth_roles = admin", "threads = 16",
        "[quota]", f"backups = {quota}", "backup_gigabytes = -1", "volumes = -1", "gigabytes = -1",
        "[backup]", "service_wait = 86400",
    ]  # fmt: skip
    config.write_text("\n".join(lines) + "\n")
    state = directory / f"state-{port}"
    words = [sys.executable, "-m", "backupfw.cmd.main", "api"]
    with open(directory / f"api-{port}.log", "w") as log:
        process = subprocess.Popen(
            [*words, "--config-file", str(config), "--state-dir", str(state)],
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
    try:
        assert process.stdout is not None
        if "ready" not in process.stdout.readline():
            raise RuntimeError((directory / f"api-{port}.log").read_text()[-2000:])
        yield port
    finally:
        process.terminate()
        process.wait(30)
        assert process.stdout is not None
        process.stdout.close()


def execute(engine: Engine, statement: str, values: Mapping[str, Any] | None = None) -> None:
    """Run one statement and commit."""
    with engine.begin() as connection:
        connection.execute(text(statement), dict(values or {}))


def in_turn(rounds: int, *measured: Callable[[], object]) -> list[list[float]]:
    """Time each of several calls ``rounds`` times, in turn; returns the seconds of each, sorted."""
    seconds: list[list[float]] = [[] for _ in measured]
    for _ in range(rounds):
        for place, call in zip(seconds, measured, strict=True):
            begin = time.perf_counter()
            call()
            place.append(time.perf_counter() - begin)
    return [sorted(place) for place in seconds]


def median(seconds: Sequence[float]) -> float:
    """Return the median."""
    return statistics.median(seconds)


def share(seconds: Sequence[float], part: float) -> float:
    """Return the time that ``part`` of the sorted measurements do not exceed."""
    return seconds[min(len(seconds) - 1, int(len(seconds) * part))]


def at_once(threads: int, work: Callable[[int], None]) -> float:
    """Run ``work(number)`` in so many threads that begin together; returns the seconds all of them took.

    :raises Exception: the first error of any thread.
    """
    errors: list[BaseException] = []
    gate = threading.Barrier(threads + 1)

    def run(number: int) -> None:
        gate.wait()
        try:
            work(number)
        except BaseException as error:
            errors.append(error)

    running = [threading.Thread(target=run, args=(number,)) for number in range(threads)]
    for thread in running:
        thread.start()
    gate.wait()
    begin = time.perf_counter()
    for thread in running:
        thread.join()
    if errors:
        raise errors[0]
    return time.perf_counter() - begin

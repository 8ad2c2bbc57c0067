"""Two servers that speak Google Cloud Storage's JSON API; each proves what the other does not.

fake-gcs-server keeps preconditions and pages, and takes wrong checksums; gcp-storage-emulator refuses
wrong checksums and has batch requests, and knows neither preconditions nor pages.  Neither looks at
credentials: ``tests/servers/gcs_gate.py`` stands in front where they matter.
"""

from __future__ import annotations

import signal
import sys
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.servers.ports import free_port
from tests.servers.process import ServerProcess
from tests.servers.programs import find_program, servers_directory

ENVIRONMENT = "gcs"


@dataclass(frozen=True)
class GcsServer:
    """A running server.

    :ivar port: of the JSON API, on 127.0.0.1.
    """

    port: int
    _start: Callable[[int], ServerProcess] = field(kw_only=True)
    _processes: list[ServerProcess] = field(default_factory=list)

    def start(self) -> None:
        """Start the process and return when it answers."""
        self._processes.append(self._start(self.port))

    def restart(self) -> None:
        """End the process at once and start it again, without the objects it had."""
        self.stop(signal.SIGKILL)
        self.start()

    def stop(self, how: signal.Signals = signal.SIGTERM) -> None:
        """End the process."""
        self._processes[-1].stop(how)

    @property
    def endpoint(self) -> str:
        """What the driver's option of that name takes."""
        return f"http://127.0.0.1:{self.port}"


def _fake_program() -> Path | None:
    # The wrapper's own command picks a program by platform and runs it as a child; we need the pid.
    name = f"fake-gcs-server-{sys.platform}-amd64"
    found = servers_directory().glob(f"{ENVIRONMENT}/lib/python*/site-packages/*/vendor/*/bin/{name}")
    return next(found, None)


def fake_gcs_missing() -> str | None:
    """Say what is missing to run fake-gcs-server, or None."""
    return None if _fake_program() else "not installed: fake-gcs-server (tests/servers/install.sh gcs)"


def emulator_missing() -> str | None:
    """Say what is missing to run gcp-storage-emulator, or None."""
    found = find_program("gcp-storage-emulator", ENVIRONMENT)
    return None if found else "not installed: gcp-storage-emulator (tests/servers/install.sh gcs)"


def _answers(url: str) -> bool:
    with urllib.request.urlopen(url, timeout=5) as answer:
        return bool(answer.status == 200)


@contextmanager
def fake_gcs(directory: Path, seed: Path | None = None) -> Iterator[GcsServer]:
    """Run fake-gcs-server, objects in memory.

    :param seed: a directory per bucket with a file per object, to begin with.
    """
    program = _fake_program()
    assert program is not None

    def start(port: int) -> ServerProcess:
        endpoint = f"http://127.0.0.1:{port}"
        process = ServerProcess(
            [str(program), "-scheme", "http", "-host", "127.0.0.1", "-port", str(port),
             "-external-url", endpoint, "-public-host", f"127.0.0.1:{port}",
             "-backend", "memory", "-log-level", "error", *(("-data", str(seed)) if seed else ())],
            directory,
        )  # fmt: skip
        process.wait_ready(lambda: _answers(f"{endpoint}/_internal/healthcheck"))
        return process

    yield from _running(GcsServer(free_port(), _start=start))


@contextmanager
def gcs_emulator(directory: Path) -> Iterator[GcsServer]:
    """Run gcp-storage-emulator, objects in memory: in files, a key and another below it cannot both be."""
    program = find_program("gcp-storage-emulator", ENVIRONMENT)
    assert program is not None

    def start(port: int) -> ServerProcess:
        process = ServerProcess(
            [program, "start", "--host", "127.0.0.1", "--port", str(port), "--in-memory", "-q"], directory
        )
        process.wait_ready(lambda: _answers(f"http://127.0.0.1:{port}/"))
        return process

    yield from _running(GcsServer(free_port(), _start=start))


def _running(server: GcsServer) -> Iterator[GcsServer]:
    try:
        server.start()
        yield server
    finally:
        server.stop()

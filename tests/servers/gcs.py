"""Two servers that speak Google Cloud Storage's JSON API; each proves what the other does not.

fake-gcs-server keeps preconditions and pages, and takes wrong checksums; gcp-storage-emulator refuses
wrong checksums and has batch requests, and knows neither preconditions nor pages.  Neither looks at
credentials: ``tests/servers/gcs_gate.py`` stands in front where they matter.
"""

from __future__ import annotations

import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.servers.process import ServerProcess, free_port
from tests.servers.programs import find_program, servers_directory

ENVIRONMENT = "gcs"


@dataclass(frozen=True)
class GcsServer:
    """A running server.

    :ivar port: of the JSON API, on 127.0.0.1.
    """

    port: int

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
    server = GcsServer(free_port())
    process = ServerProcess(
        [str(program), "-scheme", "http", "-host", "127.0.0.1", "-port", str(server.port),
         "-external-url", server.endpoint, "-public-host", f"127.0.0.1:{server.port}",
         "-backend", "memory", "-log-level", "error", *(("-data", str(seed)) if seed else ())],
        directory,
    )  # fmt: skip
    try:
        process.wait_ready(lambda: _answers(f"{server.endpoint}/_internal/healthcheck"))
        yield server
    finally:
        process.stop()


@contextmanager
def gcs_emulator(directory: Path) -> Iterator[GcsServer]:
    """Run gcp-storage-emulator, objects in memory: in files, a key and another below it cannot both be."""
    program = find_program("gcp-storage-emulator", ENVIRONMENT)
    assert program is not None
    server = GcsServer(free_port())
    process = ServerProcess(
        [program, "start", "--host", "127.0.0.1", "--port", str(server.port), "--in-memory", "-q"], directory
    )
    try:
        process.wait_ready(lambda: _answers(f"{server.endpoint}/"))
        yield server
    finally:
        process.stop()

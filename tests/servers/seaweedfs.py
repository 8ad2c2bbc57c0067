"""SeaweedFS: all its servers in one process, with the S3 gateway."""

from __future__ import annotations

import glob
import http.client
import json
import os
import signal
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.servers.ports import free_port
from tests.servers.process import ServerProcess
from tests.servers.programs import find_program

ENVIRONMENT = "seaweedfs"


@dataclass(frozen=True)
class SeaweedFS:
    """A running server.

    :ivar port: of the S3 gateway, on 127.0.0.1.
    :ivar access_key, secret_key: credentials that may do everything.
    :ivar reader_key, reader_secret: credentials that may read and list.
    """

    port: int
    access_key: str = "AKIDTESTER0000000001"
    secret_key: str = "very-secret-key-of-the-tester"
    reader_key: str = "AKIDREADER0000000001"
    reader_secret: str = "very-secret-key-of-the-reader"
    _start: Callable[[], ServerProcess] = field(kw_only=True)
    _processes: list[ServerProcess] = field(default_factory=list)

    @property
    def endpoint(self) -> str:
        """The S3 endpoint."""
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start the process and return when it answers."""
        self._processes.append(self._start())

    def stop(self) -> None:
        """End the process at once: it takes more than ten seconds to end by itself."""
        self._processes[-1].stop(signal.SIGKILL)

    def freeze(self) -> None:
        """Let the process hang: connections stay, and nothing is answered."""
        self._processes[-1].send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on, with what it was sent meanwhile first."""
        self._processes[-1].send_signal(signal.SIGCONT)


def seaweedfs_missing() -> str | None:
    """Say what is missing to run it, or None."""
    found = find_program("weed", ENVIRONMENT)
    return None if found else "not installed: weed (tests/servers/install.sh seaweedfs)"


def _identities(server: SeaweedFS) -> str:
    return json.dumps(
        {
            "identities": [
                {
                    "name": "admin",
                    "credentials": [{"accessKey": server.access_key, "secretKey": server.secret_key}],
                    "actions": ["Admin", "Read", "Write", "List", "Tagging"],
                },
                {
                    "name": "reader",
                    "credentials": [{"accessKey": server.reader_key, "secretKey": server.reader_secret}],
                    "actions": ["Read", "List"],
                },
            ]
        }
    )


def _request(port: int, method: str, path: str) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request(method, path, headers={"Content-Length": "0"} if method == "PUT" else {})
        answer = connection.getresponse()
        answer.read()
        return answer.status
    finally:
        connection.close()


def _takes_files(filer: int) -> bool:
    """Whether an object can be written: the gateway answers some seconds before its volumes do."""
    connection = http.client.HTTPConnection("127.0.0.1", filer, timeout=10)
    try:
        # The filer's own protocol needs no signature.
        connection.request("PUT", "/ready", body=b"x" * 5000)
        answer = connection.getresponse()
        answer.read()
        return answer.status < 300
    finally:
        connection.close()


@contextmanager
def seaweedfs(directory: Path) -> Iterator[SeaweedFS]:
    """Run a server on an empty directory."""
    program = find_program("weed", ENVIRONMENT)
    assert program is not None
    ports = [free_port() for _ in range(8)]
    master, master_grpc, volume, volume_grpc, filer, filer_grpc, s3, s3_grpc = ports
    (directory / "data").mkdir()
    words = (
        program, "-logtostderr=true", "server", f"-dir={directory}/data",
        "-ip=127.0.0.1", "-ip.bind=127.0.0.1",
        f"-master.port={master}", f"-master.port.grpc={master_grpc}", "-master.volumeSizeLimitMB=64",
        "-master.electionTimeout=1s", "-master.telemetry=false",
        f"-volume.port={volume}", f"-volume.port.grpc={volume_grpc}", "-volume.max=2000",
        "-volume.preStopSeconds=0", "-volume.minFreeSpace=1",
        "-filer", f"-filer.port={filer}", f"-filer.port.grpc={filer_grpc}",
        "-s3", f"-s3.port={s3}", f"-s3.port.grpc={s3_grpc}", "-s3.port.iceberg=0", "-s3.port.lance=0",
        f"-s3.config={directory}/s3.json",
    )  # fmt: skip
    environment = {
        "WEED_S3_SSE_KEK": "0123456789abcdef" * 4,
        # Each bucket takes volumes of its own: one at a time, else many buckets use them all up.
        "WEED_MASTER_VOLUME_GROWTH_COPY_1": "1",
    }

    def start() -> ServerProcess:
        process = ServerProcess(words, directory, environment=environment)
        process.wait_ready(lambda: _request(s3, "GET", "/healthz") == 200 and _takes_files(filer))
        return process

    server = SeaweedFS(s3, _start=start)
    (directory / "s3.json").write_text(_identities(server))
    try:
        server.start()
        yield server
    finally:
        server.stop()
        for port in ports:
            for left in glob.glob(os.path.join(tempfile.gettempdir(), f"seaweedfs-*-{port}.sock")):
                os.unlink(left)

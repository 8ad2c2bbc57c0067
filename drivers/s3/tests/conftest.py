"""The servers of the suites, started once for all of them."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Callable, Iterator

import pytest
from backupfw_s3.store import S3Store

from backupfw.chunkstore.options import option_values
from tests.servers.ceph import Ceph, ceph, ceph_missing
from tests.servers.seaweedfs import SeaweedFS, seaweedfs, seaweedfs_missing
from tests.servers.tls import TlsProxy, tls_missing, tls_proxy

#: Status, headers and body of an answer.
Answer = tuple[int, dict[str, str], bytes]


@pytest.fixture(scope="session")
def ceph_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ceph]:
    """A Ceph cluster with its gateway."""
    if missing := ceph_missing():
        pytest.skip(missing)
    with ceph(tmp_path_factory.mktemp("ceph")) as server:
        yield server


@pytest.fixture(scope="session")
def ceph_tls(ceph_server: Ceph, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TlsProxy]:
    """TLS in front of Ceph."""
    if missing := tls_missing():
        pytest.skip(missing)
    with tls_proxy(tmp_path_factory.mktemp("tls"), ceph_server.port) as proxy:
        yield proxy


@pytest.fixture(scope="session")
def seaweedfs_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SeaweedFS]:
    """A SeaweedFS server."""
    if missing := seaweedfs_missing():
        pytest.skip(missing)
    with seaweedfs(tmp_path_factory.mktemp("seaweedfs")) as server:
        yield server


class ScriptedServer:
    """An HTTP server that answers what a test wants and remembers what it was asked.

    :ivar answer: called for each request; returns status, headers and body.
    :ivar requests: method, path with query, headers (lower case) and body of each request.
    """

    def __init__(self) -> None:
        self.answer: Callable[[str, str], Answer] = lambda method, path: (200, {}, b"")
        self.requests: list[tuple[str, str, dict[str, str], bytes]] = []
        scripted = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_any(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                headers = {name.lower(): value for name, value in self.headers.items()}
                scripted.requests.append((self.command, self.path, headers, body))
                status, answered, data = scripted.answer(self.command, self.path)
                self.send_response(status)
                for name, value in {"Content-Length": str(len(data)), **answered}.items():
                    self.send_header(name, value)
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(data)
                if answered.get("Connection") == "close":
                    self.close_connection = True

            do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = handle_any  # noqa: N815

            def log_message(self, *arguments: object) -> None:
                pass

        class Server(http.server.ThreadingHTTPServer):
            def handle_error(self, request: object, client_address: object) -> None:
                """Say nothing: clients that go away are what some tests want."""

        self._server = Server(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def open(self, **options: object) -> S3Store:
        """Open a store on it."""
        values = {
            "endpoint": self.endpoint,
            "access_key_id": "AKIDTESTER0000000001",
            "secret_access_key": "secret",
            "region": "us-east-1",
            **options,
        }
        return S3Store("odd", option_values(S3Store.options(), **values))

    def close(self) -> None:
        """End it."""
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def scripted() -> Iterator[ScriptedServer]:
    """A server that answers what the test wants."""
    server = ScriptedServer()
    yield server
    server.close()

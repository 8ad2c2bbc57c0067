"""The API under gunicorn behind a proxy, both as the pages for operators say, among idle and slow clients."""

from __future__ import annotations

import http.client
import resource
import shlex
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path

import pytest

from tests.architecture import operating
from tests.integration.service import free_port
from tests.integration.test_wsgi_servers import Server, written
from tests.servers.programs import find_program
from tests.servers.tls import make_certificates
from tests.waiting import PATIENCE

IDLE = 1000
DRIPPING = 200
#: Connections from one address; both proxies take 64.
OF_ONE = 50
EXAMPLES = operating.Section("In front of the API")
_POST = b"POST /v3/demo/backups HTTP/1.1\r\nHost: x\r\nX-Auth-Token: a:demo:admin\r\n"
#: Requests that never end: in the headers, before the body, and in bodies that no usual buffer holds.
BEGUN = (
    b"GET /v3/demo/volumes HTTP/1.1\r\nHost: x\r\nX-Auth-Token: a:demo:admin\r\n",
    _POST + b"Content-Length: 100000\r\n\r\n",
    _POST + b"Content-Length: 100000\r\n\r\n" + b" " * 40_000,
    _POST + b"Transfer-Encoding: chunked\r\n\r\nfffff\r\n" + b" " * 40_000,
)


def nginx(folder: Path, port: int, api: int, certificate: Path) -> list[str]:
    """Write the example for nginx; returns the command that runs it."""
    text = operating.replaced(
        EXAMPLES.only("nginx"),
        {
            "443 ssl": f"127.0.0.1:{port} ssl",
            "127.0.0.1:8776": f"127.0.0.1:{api}",
            "/etc/ssl/backup.example.org.pem": str(certificate),
            "/etc/ssl/backup.example.org.key": str(certificate),
            # Where it may write as whoever runs the test.
            "http {": "\n".join(
                ["http {", "access_log off;"]
                + [f"{kind}_temp_path {folder}/{kind};" for kind in ("client_body", "proxy", "fastcgi")]
                + [f"{kind}_temp_path {folder}/{kind};" for kind in ("uwsgi", "scgi")]
            ),
        },
    )
    (folder / "nginx.conf").write_text(text)
    log = f"pid {folder}/nginx.pid; error_log stderr; daemon off; user root;"
    return ["nginx", "-p", str(folder), "-c", str(folder / "nginx.conf"), "-e", "stderr", "-g", log]


def haproxy(folder: Path, port: int, api: int, certificate: Path) -> list[str]:
    """Write the example for HAProxy; returns the command that runs it."""
    text = operating.replaced(
        EXAMPLES.only("text"),
        {
            ":443 ssl": f"127.0.0.1:{port} ssl",
            "/etc/ssl/backup.example.org.pem": str(certificate),
            "node1:8776": f"127.0.0.1:{api}",
            "node2:8776": f"127.0.0.1:{api}",
        },
    )
    (folder / "haproxy.cfg").write_text(text)
    return ["haproxy", "-db", "-f", str(folder / "haproxy.cfg")]


@pytest.fixture
def api(tmp_path: Path) -> Iterator[Server]:
    """The API under gunicorn, with the options of the page."""
    config = written(tmp_path, f"sqlite:///{tmp_path}/backupfw.sqlite")
    unit = operating.Section("The API under another WSGI server").only("systemd")
    port = free_port()
    words = shlex.split(operating.unit_lines(unit, "ExecStart")[-1])
    words[0] = f"{sys.prefix}/bin/gunicorn"
    words[words.index("--bind") + 1] = f"127.0.0.1:{port}"
    own = {"BACKUPFW_CONFIG_FILE": str(config)}
    with closing(Server(words, port, tmp_path / "gunicorn.log", own)) as server:
        yield server


class Crowd:
    """Connections that ask nothing, or for ever, until they are closed."""

    def __init__(self, port: int, context: ssl.SSLContext | None) -> None:
        self._port = port
        self._context = context
        self._stack = ExitStack()
        self._ended = threading.Event()
        self._dripping: dict[int, tuple[bytes, socket.socket]] = {}
        self._thread = threading.Thread(target=self._drip)

    def come(self) -> None:
        """Open all of them."""
        for number in range(IDLE):
            # Some do not even say that they speak TLS.
            self._connected(number, greet=number % 4 == 0)
        for number in range(DRIPPING):
            # Some may be refused at once.
            with suppress(OSError):
                self._begin(number)
        self._thread.start()

    def close(self) -> None:
        """Leave."""
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join()
        self._stack.close()

    def _connected(self, number: int, *, greet: bool = True) -> socket.socket:
        address = f"127.0.0.{2 + number // OF_ONE}"
        sock = socket.create_connection(("127.0.0.1", self._port), PATIENCE, source_address=(address, 0))
        if self._context is not None and greet:
            sock = self._context.wrap_socket(sock, server_hostname="localhost")
        return self._stack.enter_context(sock)

    def _begin(self, number: int) -> None:
        sock = self._connected(IDLE + number)
        words = BEGUN[number % len(BEGUN)]
        self._dripping[number] = (b" " if words.startswith(b"POST") else b"a: b\r\n", sock)
        sock.sendall(words)

    def _drip(self) -> None:
        while not self._ended.wait(1):
            for number, (drop, sock) in list(self._dripping.items()):
                try:
                    sock.sendall(drop)
                except OSError:
                    # Its time was over.
                    sock.close()
                    with suppress(OSError):
                        self._begin(number)


@contextmanager
def running(words: Sequence[str], log: Path) -> Iterator[None]:
    """Run a proxy in the foreground."""
    program = find_program(words[0])
    assert program is not None
    with open(log, "wb") as output:
        process = subprocess.Popen([program, *words[1:]], stdout=output, stderr=output)
    try:
        yield
    finally:
        process.terminate()
        process.wait(PATIENCE)


def ask(port: int, context: ssl.SSLContext) -> int:
    """Ask for something in a connection of its own; returns the status."""
    connection = http.client.HTTPSConnection("localhost", port, timeout=PATIENCE, context=context)
    with closing(connection):
        connection.request("GET", "/v3/demo/volumes", headers={"X-Auth-Token": "tester:demo:admin"})
        return connection.getresponse().status


@pytest.mark.server
@pytest.mark.parametrize("proxy", [nginx, haproxy], ids=lambda proxy: proxy.__name__)
def test_a_thousand_idle_and_two_hundred_dripping_connections_keep_nobody_out(
    proxy: type[list[str]], api: Server, tmp_path: Path
) -> None:
    if find_program(proxy.__name__) is None:
        pytest.skip(f"not installed: {proxy.__name__}")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 8192:
        pytest.skip("declared: this user may open too few files")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 8192), hard))
    ca, certificate = make_certificates(tmp_path)
    context = ssl.create_default_context(cafile=str(ca))
    port = free_port()
    log = tmp_path / "proxy.log"
    with running(proxy(tmp_path, port, api.port, certificate), log):

        def answers() -> bool:
            with suppress(OSError):
                return ask(port, context) == 200
            return False

        api.wait("the proxy to answer", answers)
        with closing(Crowd(port, context)) as crowd:
            crowd.come()
            for _ in range(20):
                assert ask(port, context) == 200, f"{log.read_text()[-2000:]}\n{api.log_tail()}"
                time.sleep(0.1)

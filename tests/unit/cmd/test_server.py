"""The API's server among idle, slow and hostile connections: others are answered."""

from __future__ import annotations

import http.client
import os
import resource
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from oslo_config import cfg

from backupfw.cmd import server as module
from backupfw.cmd.server import ApiServer
from backupfw.conf import api as api_conf
from tests.waiting import PATIENCE, wait_until


def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    body = environ["wsgi.input"].read() + b"x" * int(environ["QUERY_STRING"] or 0)
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]


@contextmanager
def serving(**options: Any) -> Iterator[ApiServer]:
    """Serve a small application."""
    conf = cfg.ConfigOpts()
    api_conf.register_opts(conf)
    conf(args=[], default_config_files=[], default_config_dirs=[])
    for name, value in {"port": 0, "threads": 2, **options}.items():
        conf.set_override(name, value, "api")
    server = ApiServer(conf, application)
    try:
        yield server
    finally:
        server.close()


def port_of(server: ApiServer) -> int:
    return int(server.url.rstrip("/").rpartition(":")[2])


@contextmanager
def served(**options: Any) -> Iterator[int]:
    """Serve a small application; yields its port."""
    with serving(**options) as server:
        yield port_of(server)


def connected(port: int, sent: bytes = b"", host: int = 1) -> socket.socket:
    """Connect from the loopback address 127.0.0.HOST."""
    sock = socket.create_connection(("127.0.0.1", port), PATIENCE, source_address=(f"127.0.0.{host}", 0))
    sock.sendall(sent)
    return sock


def closed(sock: socket.socket) -> bool:
    """Read until the server ends the connection, within a generous time."""
    try:
        while sock.recv(1 << 16):
            pass
    except TimeoutError:
        return False
    except OSError:
        pass
    return True


def answer(sock: socket.socket) -> bytes:
    """Read one answer without a body."""
    text = b""
    while b"\r\n\r\n" not in text:
        part = sock.recv(4096)
        if not part:
            break
        text += part
    return text


def is_open(sock: socket.socket) -> bool:
    # No select(): it knows no descriptor above 1023.
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    return not poll.poll(0)


GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
BODY = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n1"


@pytest.mark.parametrize(
    ("option", "sent"),
    [
        ("header_timeout", b""),
        ("header_timeout", b"GET / HTTP/1.1\r\nHost:"),
        ("header_timeout", GET + b"GET / HTTP"),
        ("body_timeout", BODY),
        ("idle_timeout", GET),
    ],
)
def test_each_part_of_a_request_has_its_time(option: str, sent: bytes) -> None:
    others = dict.fromkeys(("header_timeout", "body_timeout", "idle_timeout"), 3000)
    with served(**{**others, option: 0.5}) as port, connected(port, sent) as sock:
        assert closed(sock)


def test_dripping_wins_no_time() -> None:
    with served(header_timeout=2) as port, connected(port, GET[:-2]) as sock:
        end = time.monotonic() + PATIENCE
        try:
            while time.monotonic() < end:
                sock.sendall(b"a: b\r\n")
                time.sleep(0.1)
        except OSError:
            return
        pytest.fail("it was let go on")


def test_a_client_that_does_not_read_is_let_go() -> None:
    many = b"GET /?8000000 HTTP/1.1\r\nHost: x\r\n\r\n"
    with serving(body_timeout=1) as server, connected(port_of(server), many[:-2]) as sock:
        (there,) = wait_until("the connection", lambda: list(server._servers[0].active_channels.values()))
        sock.sendall(many[-2:])
        wait_until("its end", lambda: not there.connected)
        got = 0
        try:
            while part := sock.recv(1 << 20):
                got += len(part)
        except ConnectionError:
            pass
        assert got < 8000000


def test_who_goes_on_asking_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """Minutes pass between two requests, and the server looks meanwhile."""
    minutes = looks = 0
    clock = SimpleNamespace(monotonic=lambda: time.monotonic() + 60 * minutes, sleep=time.sleep)
    monkeypatch.setattr(module, "time", clock)
    end_late = module._Limits.end_late

    def counted(limits: Any, channels: Any) -> None:
        nonlocal looks
        end_late(limits, channels)
        looks += 1

    monkeypatch.setattr(module._Limits, "end_late", counted)
    with served(idle_timeout=600, header_timeout=600) as port, connected(port) as sock:
        for _ in range(2):
            sock.sendall(GET)
            assert answer(sock).startswith(b"HTTP/1.1 200")
            minutes, before = minutes + 9, looks
            # One that has begun may have read the clock before.
            wait_until("two looks", lambda before=before: looks >= before + 2)
        sock.sendall(GET)
        assert answer(sock).startswith(b"HTTP/1.1 200"), "longer than its time together, but not at once"


@pytest.mark.parametrize("version", [b"1.0", b"1.1"])
@pytest.mark.parametrize(
    "headers",
    [
        b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
        b"transfer-encoding: chunked\r\ncontent-length: 5\r\n",
        b"Content-Length: 5\r\nTransfer-Encoding:\r\n",
        b"Content-Length: 5\r\nContent-Length: 6\r\n",
    ],
)
def test_two_lengths_are_refused(headers: bytes, version: bytes) -> None:
    sent = b"POST / HTTP/" + version + b"\r\nHost: x\r\n" + headers + b"\r\n0\r\n\r\nGET / HTTP/1.1\r\n\r\n"
    with served() as port, connected(port, sent) as sock:
        text = answer(sock)
        assert text.startswith(b"HTTP/" + version + b" 400 ")
        assert closed(sock)


def test_chunks_alone_are_read() -> None:
    head = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
    with served() as port, connected(port, head + b"3\r\nabc\r\n0\r\n\r\n") as sock:
        assert sock.makefile("rb").read().endswith(b"abc")


def test_it_ends_well_although_its_loop_is_awake_before_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread that answered has just woken the loop, which closes its pipe."""
    write = os.write
    late = threading.Event()

    def after_another(descriptor: int, data: bytes) -> int:
        if data == b"x" and not late.is_set():
            late.set()
            write(descriptor, data)
            time.sleep(0.2)
        return write(descriptor, data)

    with served() as port:
        assert answer(connected(port, GET)).startswith(b"HTTP/1.1 200")
        monkeypatch.setattr(os, "write", after_another)
    assert late.is_set()


def test_too_many_of_one_address_make_room_for_each_other_only() -> None:
    with served(connections_per_address=5) as port, ExitStack() as stack:
        other = stack.enter_context(connected(port, host=3))
        first, *rest = [stack.enter_context(connected(port, host=2)) for _ in range(5)]
        more = stack.enter_context(connected(port, GET, host=2))
        assert answer(more).startswith(b"HTTP/1.1 200")
        assert closed(first)
        assert all(is_open(sock) for sock in (other, *rest, more))


def test_the_one_that_waits_for_longest_makes_room() -> None:
    with served(connection_limit=16) as port, ExitStack() as stack:
        socks = [stack.enter_context(connected(port, host=2 + number)) for number in range(16)]
        # The first one has just asked.
        socks[0].sendall(GET)
        answer(socks[0])
        time.sleep(1.5)
        more = stack.enter_context(connected(port, GET, host=100))
        assert answer(more).startswith(b"HTTP/1.1 200")
        assert closed(socks[1])
        assert all(is_open(sock) for sock in (socks[0], *socks[2:], more))


@pytest.mark.check
def test_a_thousand_idle_and_two_hundred_dripping_connections(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 4096:
        pytest.skip("this user may open too few files")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 4096), hard))
    with open(tmp_path / "log", "w") as log:
        process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "backupfw.cmd.main",
                "serve",
                "--port=0",
                f"--state-dir={tmp_path / 'state'}",
            ],
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            # What a unit of systemd gets.
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (1024, hard)),
        )
    ended = threading.Event()
    try:
        assert process.stdout is not None
        port = int(process.stdout.readline().split()[3].rstrip("/").rpartition(":")[2])
        with ExitStack() as stack:
            idle = [stack.enter_context(connected(port, host=2 + number // 100)) for number in range(1000)]
            dripping = [
                stack.enter_context(connected(port, GET[:-2], host=20 + number // 100))
                for number in range(200)
            ]

            def drip() -> None:
                while not ended.wait(0.5):
                    for sock in dripping:
                        try:
                            sock.sendall(b"a: b\r\n")
                        except OSError:
                            continue

            thread = threading.Thread(target=drip)
            thread.start()
            stack.callback(thread.join, PATIENCE)
            stack.callback(ended.set)
            for _ in range(20):
                client = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
                client.request("GET", "/v3/demo/backups")
                assert client.getresponse().status == 200
                client.close()
            # None of them was closed to make room.
            assert sum(is_open(sock) for sock in idle) > 900
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == 0, (tmp_path / "log").read_text()
        assert "Traceback" not in (tmp_path / "log").read_text()
    finally:
        ended.set()
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
        process.communicate(timeout=PATIENCE)

"""Connections to database servers on whose way everything is swallowed."""

from __future__ import annotations

import socket
import subprocess
import sys

import pytest

from backupfw.db import session as session_module
from backupfw.db.session import Database

#: In a network of its own, with a server that answers nothing: a client that only waits, one that has sent
#: something, then no way between them any more.
_CUT = """
import ctypes, socket, subprocess
from concurrent.futures import ThreadPoolExecutor
from backupfw.db import session

session.CUT_SECONDS = 6
subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
server = socket.create_server(("127.0.0.1", 0))
clients = [socket.create_connection(server.getsockname()) for _ in range(2)]
accepted = [server.accept() for _ in clients]
for client in clients:
    session._notice_cuts(client, None)
subprocess.run(["ip", "link", "set", "lo", "down"], check=True)
clients[1].send(b"SELECT 1")


def receive(client):
    try:
        return client.recv(1)
    except OSError as error:
        return type(error).__name__


with ThreadPoolExecutor(2) as pool:
    print(*pool.map(receive, clients))
"""


@pytest.mark.root
def test_a_connection_that_is_cut_fails() -> None:
    done = subprocess.run(
        ["unshare", "--net", sys.executable, "-c", _CUT], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["TimeoutError", "TimeoutError"]


def test_every_connection_to_a_server_notices(db: Database) -> None:
    if db.backend == "sqlite":
        pytest.skip("declared: servers only")
    connection = db.engine.raw_connection()
    try:
        driver = connection.driver_connection
        owner = driver if db.backend == "postgresql" else driver._sock  # type: ignore[union-attr]
        with socket.fromfd(owner.fileno(), socket.AF_INET, socket.SOCK_STREAM) as link:  # type: ignore[union-attr]
            assert link.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
            milliseconds = link.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT)
        assert milliseconds == 1000 * session_module.CUT_SECONDS
    finally:
        connection.close()

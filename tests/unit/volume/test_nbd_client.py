"""The NBD client on a real server, and on one that lags, goes away, truncates and does not encrypt."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from backupfw.errors import ConfigError
from backupfw.volume import system
from backupfw.volume.nbd import client as module
from backupfw.volume.nbd.client import ALLOCATION, ZERO, Client, Server, ServerLost, Tls
from tests.servers.programs import missing_programs
from tests.waiting import wait_until

LENGTH = 4 << 20


class Running:
    """A qemu-nbd for a raw file, which keeps what it has; the server may look at it after it answers."""

    def __init__(self, directory: Path, *words: str, length: int = LENGTH) -> None:
        self.file, self.socket = directory / "disk.raw", str(directory / "s")
        with self.file.open("ab") as file:
            file.truncate(length)
        command = ["qemu-nbd", "-t", "-e", "8", "-f", "raw", *words, "-k", self.socket, str(self.file)]
        self.process = subprocess.Popen(command)
        wait_until("the server", self._answers)

    def _answers(self) -> bool:
        with socket.socket(socket.AF_UNIX) as connection:
            return connection.connect_ex(self.socket) == 0

    def client(self, timeout: float = 20) -> Client:
        server = Server(socket=self.socket)
        return Client([server.begin] * 4, contexts=[ALLOCATION], timeout=timeout)


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Running]:
    if missing := missing_programs("qemu-nbd"):
        pytest.skip(f"{missing} is not installed")
    started = Running(tmp_path)
    yield started
    started.process.send_signal(signal.SIGCONT)
    started.process.kill()
    started.process.wait()


@pytest.mark.server
def test_many_threads_write_zero_and_read(running: Running) -> None:
    model, noise = bytearray(LENGTH), random.Random(1)
    client = running.client()

    def work(part: int) -> None:
        own, begin = random.Random(part), part * (LENGTH // 8)
        for _ in range(20):
            start = begin + own.randrange(LENGTH // 8 - 1000)
            data = own.randbytes(own.randrange(1, 1000))
            if own.random() < 0.3:
                client.zero(start, len(data))
                data = bytes(len(data))
            else:
                client.write(start, data)
            model[start : start + len(data)] = data
            found = bytearray(len(data))
            client.read_into(start, memoryview(found))
            assert found == data

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    client.flush()
    assert running.file.read_bytes() == model
    position = 0
    for status in client.status(ALLOCATION, 0, LENGTH):
        assert status.offset == position
        position += status.length
        if status.flags & ZERO:
            assert not any(model[status.offset : position])
    assert position == LENGTH
    start = noise.randrange(LENGTH // 2)
    assert next(client.status(ALLOCATION, start, LENGTH)).offset == start
    client.close()
    with pytest.raises(OSError, match="closed"):
        client.flush()


@pytest.mark.server
def test_an_export_in_the_place_of_another_one_is_not_read(running: Running, tmp_path: Path) -> None:
    """A server may be started again while connections are made."""
    (tmp_path / "later").mkdir()
    (tmp_path / "later" / "disk.raw").write_bytes(b"x" * 2 * LENGTH)
    later = Running(tmp_path / "later", length=2 * LENGTH)
    client = Client([Server(socket=one.socket).begin for one in (running, later)], timeout=20)
    assert client.length == LENGTH

    def read(_: int) -> None:
        found = bytearray(LENGTH)
        client.read_into(0, memoryview(found))
        assert not any(found)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(read, range(16)))
    client.close()
    later.process.kill()
    later.process.wait()


@pytest.mark.server
def test_a_server_that_stops_is_lost_in_time_and_the_process_goes_on(running: Running) -> None:
    client = running.client(timeout=3)
    running.process.send_signal(signal.SIGSTOP)
    steps = 0

    def count() -> None:
        nonlocal steps
        while not done.wait(0.01):
            steps += 1

    done = threading.Event()
    other = threading.Thread(target=count)
    other.start()
    with pytest.raises(ServerLost, match="did not answer"):
        client.read_into(0, memoryview(bytearray(1000)))
    done.set()
    other.join()
    # The interpreter was free meanwhile.
    assert steps > 3
    # It is not used again, even when it is back: writes may be lost.
    running.process.send_signal(signal.SIGCONT)
    with pytest.raises(ServerLost):
        client.write(0, b"x")
    client.close()


@pytest.mark.server
def test_a_server_that_goes_away_is_lost(running: Running) -> None:
    client = running.client()
    running.process.kill()
    running.process.wait()
    for call in (lambda: client.write(0, b"x"), client.flush, lambda: list(client.status(ALLOCATION, 0, 9))):
        with pytest.raises(ServerLost):
            call()
    with pytest.raises(ServerLost) as caught:
        running.client()
    assert running.socket not in str(caught.value)


@pytest.mark.server
def test_a_truncated_file_is_an_error_or_zeros(running: Running) -> None:
    client = running.client()
    client.write(LENGTH - 4096, b"x" * 4096)
    client.flush()
    os.truncate(running.file, LENGTH // 2)
    found = bytearray(4096)
    try:
        client.read_into(LENGTH - 4096, memoryview(found))
    except OSError:
        return
    # QEMU reads what is not there as zeros.
    assert not any(found)


@pytest.mark.server
def test_no_range_outside_is_asked_for(running: Running) -> None:
    client = running.client()
    with pytest.raises(ValueError, match="not within"):
        client.read_into(LENGTH - 1, memoryview(bytearray(2)))
    with pytest.raises(ValueError, match="not within"):
        client.zero(-1, 2)


@pytest.mark.server
def test_a_server_that_does_not_encrypt_is_refused(running: Running) -> None:
    server = Server(socket=running.socket, tls=Tls())
    with pytest.raises((ConfigError, ServerLost)) as caught:
        Client([server.begin], timeout=5)
    assert running.socket not in str(caught.value)


@pytest.mark.server
@pytest.mark.parametrize("greeting", [b"", b"SSH-2.0-x\r\n" * 10, b"NBDMAGIC"])
def test_what_speaks_no_nbd_is_refused(running: Running, tmp_path: Path, greeting: bytes) -> None:
    path = str(tmp_path / "other")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(path)
        listening.listen()

        def answer() -> None:
            connection, _ = listening.accept()
            connection.sendall(greeting)
            refused.wait(60)
            connection.close()

        refused = threading.Event()
        other = threading.Thread(target=answer)
        other.start()
        with pytest.raises(ServerLost):
            Client([Server(socket=path).begin], timeout=0.5)
        refused.set()
        other.join()


def test_without_libnbd_the_package_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(system, "PLACES", (str(tmp_path),))
    for name in ("nbd", "libnbdmod"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    with pytest.raises(ConfigError, match="python3-libnbd"):
        module.binding()

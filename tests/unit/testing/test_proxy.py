"""The fault proxy: what it does to each direction, what it counts, and that nothing of it stays."""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from backupfw.testing.proxy import FaultProxy

SECONDS = 60.0


class Echo:
    """A server that sends back what it gets, and keeps it."""

    def __init__(self) -> None:
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = self._listening.getsockname()[1]
        self.got = bytearray()
        self.errors: list[OSError] = []
        self.ended = threading.Event()
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                end, _ = self._listening.accept()
                threading.Thread(target=self._echo, args=(end,), daemon=True).start()

    def _echo(self, end: socket.socket) -> None:
        with end:
            try:
                while data := end.recv(1 << 16):
                    self.got += data
                    end.sendall(data)
            except OSError as error:
                self.errors.append(error)
            self.ended.set()

    def close(self) -> None:
        # Closing alone would leave the thread waiting.
        with contextlib.suppress(OSError):
            self._listening.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listening.close()


@pytest.fixture
def echo() -> Iterator[Echo]:
    server = Echo()
    yield server
    server.close()


@pytest.fixture
def proxy(echo: Echo) -> Iterator[FaultProxy]:
    with FaultProxy("127.0.0.1", echo.port) as running:
        yield running


def connect(proxy: FaultProxy) -> socket.socket:
    return socket.create_connection((proxy.host, proxy.port), SECONDS)


def read(end: socket.socket, size: int) -> bytes:
    """Return up to ``size`` bytes; fewer when the connection ended."""
    found = bytearray()
    while len(found) < size and (piece := end.recv(size - len(found))):
        found += piece
    return bytes(found)


def exchange(end: socket.socket, data: bytes) -> bytes:
    """Send and read the same number of bytes, at the same time."""

    def send() -> None:
        # What broke the connection, the reader says.
        with contextlib.suppress(OSError):
            end.sendall(data)

    sender = threading.Thread(target=send, daemon=True)
    sender.start()
    found = read(end, len(data))
    sender.join(SECONDS)
    return found


def test_without_faults_everything_passes_and_is_counted(proxy: FaultProxy) -> None:
    data = secrets.token_bytes(5 << 20)
    with connect(proxy) as one, connect(proxy) as two:
        assert exchange(one, data) == data
        assert exchange(two, b"other") == b"other"
    assert proxy.connections == 2
    assert proxy.bytes_up == proxy.bytes_down == len(data) + 5


def test_the_ends_of_both_sides_pass(proxy: FaultProxy, echo: Echo) -> None:
    with connect(proxy) as end:
        end.sendall(b"last words")
        end.shutdown(socket.SHUT_WR)
        # The other direction goes on until the server ends it.
        assert read(end, 100) == b"last words"
    assert echo.ended.wait(SECONDS)
    assert echo.errors == []


def test_a_server_that_is_away_resets(echo: Echo) -> None:
    echo.close()
    # The reset may come before the client knows that it is connected.
    with FaultProxy("127.0.0.1", 1) as proxy, pytest.raises(ConnectionResetError), connect(proxy) as end:
        end.recv(1)


@pytest.mark.parametrize("at", [0, 1, 100_000])
def test_a_reset_ends_a_request_at_its_byte(proxy: FaultProxy, echo: Echo, at: int) -> None:
    fault = proxy.fault("up", "reset", at)
    with connect(proxy) as end, pytest.raises(ConnectionError):
        exchange(end, bytes(200_000))
    assert fault.struck == 1
    assert echo.ended.wait(SECONDS)
    assert len(echo.got) <= at
    with connect(proxy) as end:
        assert exchange(end, b"again") == b"again"


@pytest.mark.parametrize("at", [0, 1, 100_000])
def test_close_down_sends_exactly_what_came_before(proxy: FaultProxy, at: int) -> None:
    fault = proxy.fault("down", "close", at)
    data = secrets.token_bytes(200_000)
    with connect(proxy) as end:
        end.sendall(data)
        assert read(end, len(data)) == data[:at]
    assert fault.struck == 1


def test_close_is_no_reset_although_more_was_on_its_way(proxy: FaultProxy, echo: Echo) -> None:
    """What came before the cut is not overtaken by a reset, and what comes later does not cause one."""
    fault = proxy.fault("down", "close", 1000)
    data = secrets.token_bytes(4 << 20)
    with connect(proxy) as end:
        sender = threading.Thread(target=end.sendall, args=(data,), daemon=True)
        sender.start()
        assert fault.reached.wait(SECONDS)
        sender.join(SECONDS)
        assert not sender.is_alive()
        assert read(end, len(data)) == data[:1000]
    assert echo.ended.wait(SECONDS)


def test_a_reset_ends_an_answer_at_its_byte(proxy: FaultProxy) -> None:
    proxy.fault("down", "reset", 10)
    with connect(proxy) as end, pytest.raises(ConnectionResetError):
        exchange(end, bytes(100))


@pytest.mark.parametrize("direction", ["up", "down"])
@pytest.mark.parametrize("at", [0, 77, 99_999])
def test_a_flip_turns_one_bit_once(proxy: FaultProxy, direction: str, at: int) -> None:
    fault = proxy.fault(direction, "flip", at)  # type: ignore[arg-type]
    data = secrets.token_bytes(100_000)
    with connect(proxy) as end:
        found = exchange(end, data)
        wrong = [place for place in range(len(data)) if found[place] != data[place]]
        assert wrong == [at]
        assert (found[at] ^ data[at]).bit_count() == 1
        # Once per connection.
        assert exchange(end, data) == data
    assert fault.struck == 1


def test_a_fault_strikes_as_often_as_it_should(proxy: FaultProxy) -> None:
    fault = proxy.fault("down", "flip", 1, times=2)
    seen = []
    for _ in range(3):
        with connect(proxy) as end:
            seen.append(exchange(end, b"abc"))
    assert seen == [b"acc", b"acc", b"abc"]
    assert fault.struck == 2
    assert fault.times == 0


def test_a_connection_that_does_not_come_so_far_is_left_alone(proxy: FaultProxy) -> None:
    fault = proxy.fault("up", "reset", 3, times=None)
    with connect(proxy) as end:
        assert exchange(end, b"abc") == b"abc"
        assert not fault.reached.is_set()
        with pytest.raises(ConnectionError):
            exchange(end, b"defg")
    assert fault.reached.is_set()


@pytest.mark.parametrize("direction", ["up", "down"])
def test_a_hole_swallows_the_rest_and_keeps_the_connection(
    proxy: FaultProxy, echo: Echo, direction: str
) -> None:
    fault = proxy.fault(direction, "hole", 3)  # type: ignore[arg-type]
    with connect(proxy) as end:
        end.sendall(b"abcdef")
        assert read(end, 3) == b"abc"
        assert fault.reached.wait(SECONDS)
        end.settimeout(0.2)
        # Nothing more, and no end either.
        with pytest.raises(TimeoutError):
            end.recv(1)
        end.settimeout(SECONDS)
        proxy.heal()
        with pytest.raises(ConnectionResetError):
            end.recv(1)
    assert bytes(echo.got) == (b"abc" if direction == "up" else b"abcdef")


@pytest.mark.parametrize("direction", ["up", "down"])
def test_a_hold_passes_nothing_until_it_is_released(proxy: FaultProxy, direction: str) -> None:
    fault = proxy.fault(direction, "hold", 3)  # type: ignore[arg-type]
    with connect(proxy) as end:
        end.sendall(b"abcdef")
        assert read(end, 3) == b"abc"
        assert fault.reached.wait(SECONDS)
        end.sendall(b"ghi")
        end.settimeout(0.2)
        with pytest.raises(TimeoutError):
            end.recv(1)
        end.settimeout(SECONDS)
        fault.release()
        assert read(end, 6) == b"defghi"
    assert fault.struck == 1


def test_a_released_hold_holds_nobody(proxy: FaultProxy) -> None:
    fault = proxy.fault("up", "hold", 0, times=None)
    fault.release()
    with connect(proxy) as end:
        assert exchange(end, b"abc") == b"abc"


def test_a_new_fault_ends_old_connections_and_replaces_old_faults(proxy: FaultProxy) -> None:
    first = proxy.fault("up", "hole", 0, times=None)
    with connect(proxy) as end:
        end.sendall(b"x")
        assert first.reached.wait(SECONDS)
        proxy.fault("down", "flip", 2)
        with pytest.raises(ConnectionResetError):
            end.recv(1)
    with connect(proxy) as end:
        assert exchange(end, b"abc") == b"abb"
    assert first.struck == 1


def test_kill_resets_all_connections(proxy: FaultProxy, echo: Echo) -> None:
    with connect(proxy) as one, connect(proxy) as two:
        assert exchange(one, b"x") == exchange(two, b"x") == b"x"
        proxy.kill()
        for end in (one, two):
            with pytest.raises(ConnectionResetError):
                end.recv(1)
    with connect(proxy) as end:
        assert exchange(end, b"x") == b"x"


def test_a_refusing_proxy_keeps_its_port(proxy: FaultProxy) -> None:
    with connect(proxy) as end:
        assert exchange(end, b"x") == b"x"
        proxy.refuse()
        with pytest.raises(ConnectionResetError):
            end.recv(1)
    with pytest.raises(ConnectionRefusedError):
        connect(proxy)
    # The port is kept meanwhile.
    with socket.socket() as other, pytest.raises(OSError, match="in use"):
        other.bind((proxy.host, proxy.port))
    proxy.accept()
    proxy.accept()
    with connect(proxy) as end:
        assert exchange(end, b"x") == b"x"


def test_heal_ends_a_refusal_and_all_delays(proxy: FaultProxy) -> None:
    proxy.refuse()
    proxy.latency, proxy.rate = 1000.0, 1.0
    proxy.fault("up", "hole", 0, times=None)
    proxy.heal()
    with connect(proxy) as end:
        assert exchange(end, b"x" * 100) == b"x" * 100


def test_latency_delays_answers_and_does_not_add_up(proxy: FaultProxy) -> None:
    proxy.latency = 0.5
    with connect(proxy) as end:
        start = time.monotonic()
        assert exchange(end, b"x") == b"x"
        # Making the connection, and the answer.
        assert time.monotonic() - start >= 1.0
        start = time.monotonic()
        data = bytes(24 << 20)
        assert exchange(end, data) == data
        took = time.monotonic() - start
    # At least 96 pieces: if each waited for the one before, this would be 48 seconds.
    assert 0.5 <= took < 45


def test_rate_is_shared_by_connections_and_apart_for_directions(proxy: FaultProxy) -> None:
    proxy.rate = 200_000.0
    data = bytes(50_000)
    start = time.monotonic()
    with connect(proxy) as one, connect(proxy) as two:
        other = threading.Thread(target=exchange, args=(two, data), daemon=True)
        other.start()
        assert exchange(one, data) == data
        other.join(SECONDS)
    assert time.monotonic() - start >= 100_000 / 200_000


def test_a_slow_reader_slows_the_sender(proxy: FaultProxy) -> None:
    piece = secrets.token_bytes(1 << 20)
    # More bytes than the kernel's buffers of all sockets on the way hold together.
    limit = 1 << 30
    sent = 0
    with connect(proxy) as end:
        end.settimeout(1.0)
        # Nobody reads the echo: what is on its way is bounded, so not all can be sent.
        with contextlib.suppress(TimeoutError):
            while sent < limit:
                sent += end.send(piece[sent % len(piece) :])
        assert sent < limit
        end.settimeout(SECONDS)
        equal = read(end, sent) == (piece * (sent // len(piece) + 1))[:sent]
        assert equal


def test_many_connections_at_once(proxy: FaultProxy) -> None:
    wrong = []

    def talk(number: int) -> None:
        data = bytes([number]) * 300_000
        for _ in range(3):
            with connect(proxy) as end:
                if exchange(end, data) != data:
                    wrong.append(number)

    threads = [threading.Thread(target=talk, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SECONDS)
    assert wrong == []
    assert proxy.connections == 48


def test_closing_leaves_no_thread_and_no_descriptor(echo: Echo) -> None:
    def descriptors() -> int:
        return len(os.listdir("/proc/self/fd"))

    before = descriptors()
    with FaultProxy("127.0.0.1", echo.port) as proxy:
        ends = [connect(proxy) for _ in range(5)]
        for end in ends:
            exchange(end, b"x")
        proxy.fault("up", "hole", 0)
    proxy.close()
    for end in ends:
        end.close()
    assert [each.name for each in threading.enumerate() if each.name.startswith("proxy")] == []
    # The echo server closes its ends in threads of its own.
    patience = time.monotonic() + SECONDS
    while descriptors() > before and time.monotonic() < patience:
        time.sleep(0.01)
    assert descriptors() <= before

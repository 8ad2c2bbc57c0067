"""A TCP proxy between a driver and its server that delays, cuts, drops and changes bytes.

::

    with FaultProxy("127.0.0.1", 8080) as proxy:
        store = open_my_store(proxy.host, proxy.port)
        fault = proxy.fault("up", "reset", at=100_000)
        ...
        assert fault.struck == 1

It works with every server on TCP.  Bytes are counted per connection and direction, and clients keep
connections; so setting a fault ends existing connections, and counts bytes in new ones.  It needs one thread
for the proxy and one for each connection; leaving the block ends them all.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import struct
import threading
import time
from collections import deque
from types import TracebackType
from typing import Literal, Self

#: ``up`` is from the client to the server.
Direction = Literal["up", "down"]
#: ``reset`` and ``close`` end the connection in both directions, with RST or FIN; ``hole`` swallows this
#: byte and all that follow and keeps the connection; ``flip`` turns one bit; ``hold`` lets nothing more
#: pass until :meth:`Fault.release`.
Kind = Literal["reset", "close", "hole", "flip", "hold"]

_PIECE = 256 << 10
#: Bytes of one direction that are on their way through a connection at most.
_IN_FLIGHT = 16 << 20
#: How long a connection to the server may take, or its end in order, seconds.
_CONNECT_SECONDS = 10.0
#: Close sends RST instead of FIN, and drops what was not sent yet.
_ABRUPT = struct.pack("ii", 1, 0)


class Fault:
    """A fault of one direction of connections; made by :meth:`FaultProxy.fault`.

    :ivar direction, kind, at: the fault, and its byte of a connection, 0 being the first.
    :ivar times: the number of further connections with this fault; None for all.
    :ivar struck: the number of connections that had it.
    :ivar reached: set as soon as one connection had it.
    """

    def __init__(
        self, proxy: FaultProxy, direction: Direction, kind: Kind, at: int, times: int | None
    ) -> None:
        self._proxy = proxy
        self.direction = direction
        self.kind = kind
        self.at = at
        self.times = times
        self.struck = 0
        self.reached = threading.Event()
        self.released = False

    def release(self) -> None:
        """Let the bytes pass that a ``hold`` keeps back, now and later."""
        self.released = True
        self._proxy.wake()


class FaultProxy:
    """A running proxy; use it in a ``with`` block.  Thread-safe.

    :param host, port: the server.
    :ivar host, port: where the proxy listens.
    :ivar latency: seconds by which answers and new connections are delayed; any number of bytes may be on
        their way meanwhile.
    :ivar rate: bytes per second in each direction, all connections together; 0 for no limit.
    :ivar connections: the number of connections to the proxy.
    :ivar bytes_up, bytes_down: the number of bytes from clients and from the server.
    """

    def __init__(self, host: str, port: int) -> None:
        self._target = (host, port)
        self.host = "127.0.0.1"
        # Keeps the port while nothing listens on it.
        self._reserved = _bound(self.host, 0)
        self.port: int = self._reserved.getsockname()[1]
        self.latency = 0.0
        self.rate = 0.0
        self.connections = 0
        self.bytes_up = 0
        self.bytes_down = 0
        self._lock = threading.Lock()
        self._faults: list[Fault] = []
        self._open: set[_Connection] = set()
        self._line_free = {"up": 0.0, "down": 0.0}
        self._listener: _Listener | None = None

    def __enter__(self) -> Self:
        self.accept()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def endpoint(self) -> str:
        """The proxy's address for HTTP."""
        return f"http://{self.host}:{self.port}"

    def fault(self, direction: Direction, kind: Kind, at: int = 0, times: int | None = 1) -> Fault:
        """Replace the faults by one for new connections, and end existing ones.

        :param at: the byte of a connection; a shorter connection has no fault.
        :param times: the number of connections; None for all.
        """
        fault = Fault(self, direction, kind, at, times)
        with self._lock:
            self._faults = [fault]
        self.kill()
        return fault

    def heal(self) -> None:
        """Remove latency, rate and faults, listen, and end existing connections."""
        with self._lock:
            self._faults = []
            self.latency = self.rate = 0.0
        self.kill()
        self.accept()

    def refuse(self) -> None:
        """Refuse new connections, and end existing ones, until :meth:`accept`."""
        if self._listener is not None:
            self._listener.stop()
            self._listener = None
        self.kill()

    def accept(self) -> None:
        """Accept connections again after :meth:`refuse`."""
        if self._listener is None:
            self._listener = _Listener(self, _bound(self.host, self.port))

    def kill(self) -> None:
        """Reset all connections; the clients' ends know when this returns."""
        with self._lock:
            connections = list(self._open)
            for connection in connections:
                connection.stop()
        for connection in connections:
            connection.join()

    def close(self) -> None:
        """Stop listening and end everything."""
        self.refuse()
        self._reserved.close()

    def wake(self) -> None:
        """Let every connection check again what it may do."""
        with self._lock:
            for connection in self._open:
                connection.wake()

    # ---- for its connections ---------------------------------------------------------------------

    def _begin(self, client: socket.socket) -> None:
        with self._lock:
            self.connections += 1
            connection = _Connection(self, client, self._target, tuple(self._faults))
            self._open.add(connection)
        connection.start()

    def _ended(self, connection: _Connection) -> None:
        with self._lock:
            self._open.discard(connection)

    def _strike(self, fault: Fault) -> bool:
        """Return whether a fault strikes now, and count it."""
        with self._lock:
            if fault.times == 0:
                return False
            if fault.times is not None:
                fault.times -= 1
            fault.struck += 1
        fault.reached.set()
        return True

    def _count(self, direction: Direction, size: int) -> float:
        """Count bytes and return when they are at the other end, by the monotonic clock."""
        now = time.monotonic()
        with self._lock:
            if direction == "up":
                self.bytes_up += size
            else:
                self.bytes_down += size
            if self.rate:
                now = self._line_free[direction] = max(now, self._line_free[direction]) + size / self.rate
            return now + (self.latency if direction == "down" else 0.0)


def _bound(host: str, port: int) -> socket.socket:
    made = socket.socket()
    # Two sockets share the port: one keeps it, the other listens.
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    made.bind((host, port))
    return made


class _Listener:
    """The thread that takes connections."""

    def __init__(self, proxy: FaultProxy, listening: socket.socket) -> None:
        self._proxy = proxy
        self._listening = listening
        self._wake = os.eventfd(0)
        # Listening when this returns, so that no connection is refused from then on.
        listening.listen(128)
        listening.setblocking(False)
        self._thread = threading.Thread(target=self._run, name="proxy", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        poll = select.poll()
        poll.register(self._listening, select.POLLIN)
        poll.register(self._wake, select.POLLIN)
        while self._wake not in [number for number, _ in poll.poll()]:
            with contextlib.suppress(OSError):
                client, _ = self._listening.accept()
                self._proxy._begin(client)

    def stop(self) -> None:
        os.eventfd_write(self._wake, 1)
        self._thread.join()
        self._listening.close()
        os.close(self._wake)


class _Flow:
    """One direction of a connection."""

    def __init__(self, direction: Direction, source: socket.socket, target: socket.socket) -> None:
        self.direction = direction
        self.source = source
        self.target = target
        self.fault: Fault | None = None
        #: What was read and waits: when it is due, and the bytes.
        self.pending: deque[tuple[float, memoryview]] = deque()
        self.waiting = 0
        self.seen = 0
        #: The source has ended; so has the target's receiving, once all is sent.
        self.ended = False
        self.done = False
        self.full = False
        self.swallows = False
        self.held_by: Fault | None = None

    @property
    def stuck(self) -> bool:
        """Whether only the bytes of a hold are left: they are the last piece that was read."""
        return self.held_by is not None and len(self.pending) == 1

    def add(self, due: float, data: memoryview) -> None:
        self.pending.append((due, data))
        self.waiting += len(data)


class _Over(Exception):
    """The connection is to be closed now."""


class _Connection(threading.Thread):
    """One connection, both directions."""

    def __init__(
        self,
        proxy: FaultProxy,
        client: socket.socket,
        target: tuple[str, int],
        faults: tuple[Fault, ...],
    ) -> None:
        super().__init__(name="proxy-connection", daemon=True)
        self._proxy = proxy
        self._client = client
        self._target = target
        self._faults = faults
        self._wake = os.eventfd(0)
        self._stopped = False

    def stop(self) -> None:
        """Reset the connection soon."""
        self._stopped = True
        self.wake()

    def wake(self) -> None:
        """Look again; only for connections that the proxy still counts as open."""
        os.eventfd_write(self._wake, 1)

    def run(self) -> None:
        server: socket.socket | None = None
        abrupt = True
        try:
            if self._sleep(self._proxy.latency):
                server = socket.create_connection(self._target, _CONNECT_SECONDS)
                abrupt = self._pump(server)
        except OSError:
            # The server does not answer, or one side has closed: close the other one, too.
            pass
        finally:
            for end in (self._client, server):
                if end is not None:
                    if abrupt:
                        end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _ABRUPT)
                    end.close()
            # In this order, so that nobody writes to a descriptor number that has a new owner.
            self._proxy._ended(self)
            os.close(self._wake)

    def _sleep(self, seconds: float) -> bool:
        """Return True after so many seconds, False if stopped before."""
        end = time.monotonic() + seconds
        poll = select.poll()
        poll.register(self._wake, select.POLLIN)
        while not self._stopped and (left := end - time.monotonic()) > 0:
            if poll.poll(left * 1000):
                os.eventfd_read(self._wake)
        return not self._stopped

    def _pump(self, server: socket.socket) -> bool:
        """Move bytes until both directions have ended; returns whether the end is abrupt."""
        for end in (self._client, server):
            end.setblocking(False)
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        flows = (_Flow("up", self._client, server), _Flow("down", server, self._client))
        for flow in flows:
            flow.fault = next(
                (each for each in self._faults if each.direction == flow.direction and each.times != 0), None
            )
        try:
            while not self._stopped and not all(flow.done for flow in flows):
                for flow in flows:
                    self._send(flow)
                self._wait(flows)
        except _Over:
            self._part((self._client, server))
            return False
        return self._stopped or not all(flow.done for flow in flows)

    def _part(self, ends: tuple[socket.socket, ...]) -> None:
        """Send FIN to both sides, and read and drop further bytes until they close.

        Closing a socket with unread bytes sends RST, which can overtake bytes that were sent.
        """
        until = time.monotonic() + _CONNECT_SECONDS
        poll = select.poll()
        poll.register(self._wake, select.POLLIN)
        left = {end.fileno(): end for end in ends}
        for end in ends:
            end.setblocking(False)
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_WR)
            poll.register(end, select.POLLIN)
        while left and not self._stopped and (seconds := until - time.monotonic()) > 0:
            for number, _ in poll.poll(seconds * 1000):
                if number == self._wake:
                    os.eventfd_read(self._wake)
                elif _ended(left[number]):
                    poll.unregister(left.pop(number))

    def _wait(self, flows: tuple[_Flow, ...]) -> None:
        """Wait until bytes can be read or sent, or are due; read the available ones."""
        interest: dict[socket.socket, int] = {}
        soonest: float | None = None
        for flow in flows:
            if not flow.ended and flow.waiting < _IN_FLIGHT and flow.held_by is None:
                interest[flow.source] = interest.get(flow.source, 0) | select.POLLIN
            if flow.full:
                interest[flow.target] = interest.get(flow.target, 0) | select.POLLOUT
            elif flow.pending and not flow.stuck:
                soonest = min(soonest or flow.pending[0][0], flow.pending[0][0])
        if all(flow.done for flow in flows):
            return
        left = None if soonest is None else max(0.0, soonest - time.monotonic())
        if left is not None and left < 0.001:
            # Finer than poll can.
            time.sleep(left)
            left = 0.0
        poll = select.poll()
        poll.register(self._wake, select.POLLIN)
        for end, events in interest.items():
            poll.register(end, events)
        ready = dict(poll.poll(None if left is None else int(left * 1000)))
        if self._wake in ready:
            os.eventfd_read(self._wake)
        for flow in flows:
            if flow.held_by is not None and flow.held_by.released:
                flow.held_by = None
            if ready.get(flow.target.fileno(), 0) & ~select.POLLIN:
                flow.full = False
            happened = ready.get(flow.source.fileno(), 0)
            if happened and interest.get(flow.source, 0) & select.POLLIN and not flow.ended:
                self._read(flow)

    def _read(self, flow: _Flow) -> None:
        try:
            data = memoryview(flow.source.recv(_PIECE))
        except BlockingIOError:
            return
        if not data:
            flow.ended = True
            return
        due = self._proxy._count(flow.direction, len(data))
        fault, begin = flow.fault, flow.seen
        flow.seen += len(data)
        if fault is None or not begin <= fault.at < flow.seen:
            if not flow.swallows:
                flow.add(due, data)
            return
        flow.fault = None
        if not self._proxy._strike(fault):
            flow.add(due, data)
            return
        before, after = data[: fault.at - begin], data[fault.at - begin :]
        if fault.kind == "flip":
            flow.add(due, memoryview(bytes(before) + bytes([after[0] ^ 1]) + bytes(after[1:])))
            return
        if before:
            flow.add(due, before)
        if fault.kind == "hold":
            flow.held_by = None if fault.released else fault
            flow.add(due, after)
        elif fault.kind == "hole":
            flow.swallows = True
        else:
            self._cut(flow, abrupt=fault.kind == "reset")

    def _cut(self, flow: _Flow, *, abrupt: bool) -> None:
        """Send the bytes before the cut, then end the connection."""
        if flow.pending and self._sleep(flow.pending[-1][0] - time.monotonic()):
            flow.target.settimeout(_CONNECT_SECONDS)
            for _, data in flow.pending:
                flow.target.sendall(data)
        if abrupt:
            raise ConnectionResetError
        raise _Over

    def _send(self, flow: _Flow) -> None:
        """Send the bytes that are due; end the target's receiving when the source has ended."""
        while flow.pending and not flow.full and not flow.stuck and flow.pending[0][0] <= time.monotonic():
            due, data = flow.pending.popleft()
            try:
                sent = flow.target.send(data)
            except BlockingIOError:
                sent = 0
            flow.waiting -= sent
            if sent < len(data):
                flow.pending.appendleft((due, data[sent:]))
                flow.full = True
        if flow.ended and not flow.pending and not flow.done:
            flow.done = True
            if not flow.swallows:
                with contextlib.suppress(OSError):
                    flow.target.shutdown(socket.SHUT_WR)


def _ended(end: socket.socket) -> bool:
    """Read and drop; return whether the other side has ended."""
    try:
        return not end.recv(_PIECE)
    except BlockingIOError:
        return False
    except OSError:
        return True

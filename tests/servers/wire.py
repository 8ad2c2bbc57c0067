"""A wire between client and server that cuts, delays, swallows and flips what goes over it."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

T = TypeVar("T")
_PIECE = 64 << 10

#: ``up`` is from the client to the server.
Direction = Literal["up", "down"]


@dataclass
class Fault:
    """What happens to one direction of a connection.

    :ivar direction: which.
    :ivar kind: ``cut`` resets the connection, ``swallow`` drops this and all that follows but keeps the
        connection, ``flip`` turns one bit.
    :ivar at: after how many bytes of a connection made after the fault was set.
    :ivar times: in how many connections; None for all.
    :ivar struck: in how many it did.
    """

    direction: Direction
    kind: Literal["cut", "swallow", "flip"]
    at: int
    times: int | None = 1
    struck: int = 0


class Wire:
    """A running proxy on 127.0.0.1.

    :ivar port: where it listens.
    :ivar latency: seconds that every piece waits.
    :ivar connections: how many were made.
    """

    def __init__(self, target: int) -> None:
        self._target = target
        self._faults: list[Fault] = []
        self._writers: set[asyncio.StreamWriter] = set()
        self.latency = 0.0
        self.connections = 0
        self.port = 0

    @property
    def endpoint(self) -> str:
        """The address for HTTP."""
        return f"http://127.0.0.1:{self.port}"

    def fault(
        self, direction: Direction, kind: Literal["cut", "swallow", "flip"], at: int, times: int | None = 1
    ) -> Fault:
        """Set a fault for connections to come; ends those there are, so that the next call makes one."""
        fault = Fault(direction, kind, at, times)
        self._faults = [fault]
        self.hang_up()
        return fault

    def heal(self) -> None:
        """Forget all faults, and end the connections that are there."""
        self._faults = []
        self.hang_up()

    def hang_up(self) -> None:
        """End all connections; the client's end knows when this returns."""
        self._run(self._abort())

    async def _abort(self) -> None:
        for writer in list(self._writers):
            writer.transport.abort()
        while self._writers:
            await asyncio.sleep(0.005)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            there, back = await asyncio.open_connection("127.0.0.1", self._target)
        except OSError:
            writer.transport.abort()
            return
        both = {writer, back}
        self._writers |= both
        try:
            await asyncio.gather(
                self._pump("up", reader, back, both), self._pump("down", there, writer, both)
            )
        finally:
            self._writers -= both

    def _take(self, direction: Direction) -> Fault | None:
        for fault in self._faults:
            if fault.direction == direction and fault.times != 0:
                return fault
        return None

    async def _pump(
        self,
        direction: Direction,
        source: asyncio.StreamReader,
        target: asyncio.StreamWriter,
        both: set[asyncio.StreamWriter],
    ) -> None:
        seen = 0
        swallowing = False
        fault = self._take(direction)
        with contextlib.suppress(OSError):
            while data := await source.read(_PIECE):
                if self.latency:
                    await asyncio.sleep(self.latency)
                if fault is not None and fault.times != 0 and seen <= fault.at < seen + len(data):
                    fault.struck += 1
                    if fault.times is not None:
                        fault.times -= 1
                    here = fault.at - seen
                    if fault.kind == "cut":
                        target.write(data[:here])
                        await target.drain()
                        for writer in both:
                            writer.transport.abort()
                        return
                    if fault.kind == "swallow":
                        swallowing = True
                    else:
                        data = data[:here] + bytes([data[here] ^ 1]) + data[here + 1 :]
                    fault = None
                seen += len(data)
                if not swallowing:
                    target.write(data)
                    await target.drain()
        target.close()

    def _start(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._server = self._run(asyncio.start_server(self._serve, "127.0.0.1", 0))
        self.port = self._server.sockets[0].getsockname()[1]

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(30)

    async def _end(self) -> None:
        self._server.close()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _stop(self) -> None:
        self._run(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(30)
        self._loop.close()


@contextmanager
def wire(target: int) -> Iterator[Wire]:
    """Put a wire in front of port ``target`` on 127.0.0.1."""
    running = Wire(target)
    running._start()
    try:
        yield running
    finally:
        running._stop()

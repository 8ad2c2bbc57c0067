"""What stands before the nodes of a cluster: it knows which ones serve, and gives each client one of them."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import threading
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self


class Balancer:
    """A TCP proxy whose clients get the servers in turn, those that are well; use it in a ``with`` block.

    Only new connections look who is well: those that stand go on, whatever becomes of their server.

    :param ports: where the servers listen on 127.0.0.1.
    :param well: whether the server of a number takes clients; it may raise where that is not so.
    :ivar port: where it listens on 127.0.0.1.
    """

    def __init__(self, ports: Sequence[int], well: Callable[[int], bool]) -> None:
        self._ports = ports
        self._well = well
        self._turns = itertools.count()
        self._started = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._main()), daemon=True)
        self._thread.start()
        assert self._started.wait(30)

    async def _main(self) -> None:
        self._loop, self._end = asyncio.get_running_loop(), asyncio.Event()
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port: int = server.sockets[0].getsockname()[1]
        self._started.set()
        async with server:
            await self._end.wait()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # Cancelled at the end: nobody asks what came of it.
        with contextlib.closing(writer), contextlib.suppress(OSError, asyncio.CancelledError):
            first = next(self._turns)
            for number in range(first, first + len(self._ports)):
                if not await self._loop.run_in_executor(None, self._is_well, number % len(self._ports)):
                    continue
                there = await asyncio.open_connection("127.0.0.1", self._ports[number % len(self._ports)])
                with contextlib.closing(there[1]):
                    ways = [
                        asyncio.ensure_future(_pass(*way)) for way in ((reader, there[1]), (there[0], writer))
                    ]
                    # Who leaves on one side is gone for the other one, too.
                    await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
                    for way in ways:
                        way.cancel()
                return

    def _is_well(self, number: int) -> bool:
        try:
            return self._well(number)
        except Exception:
            return False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._end.set)
        self._thread.join(30)


async def _pass(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()

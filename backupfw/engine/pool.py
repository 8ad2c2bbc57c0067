"""Threads that share one stream of work items; the first error ends all of them."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextvars import copy_context
from typing import Generic, Protocol, TypeVar

from backupfw.chunkstore.cancellation import cancelled_by
from backupfw.engine.ports import Control
from backupfw.errors import ChangeMissed

Item = TypeVar("Item")
Result = TypeVar("Result")
_In = TypeVar("_In", contravariant=True)
_Out = TypeVar("_Out", covariant=True)


class _Ended(Exception):
    """Another stream has failed and reports it; this one ends without a report."""


class Worker(Protocol[_In, _Out]):
    """What one stream keeps for itself (buffers, compressor) and does with an item."""

    def work(self, item: _In) -> _Out:
        """Do one item."""

    def close(self) -> None:
        """Give up the buffers."""


class Halt:
    """The control of streams: the task's control, which also ends when another stream fails.

    Thread-safe.

    :param control: the task's.
    """

    def __init__(self, control: Control) -> None:
        self._control = control
        self._event = threading.Event()

    def set(self) -> None:
        """Make every stream end at its next check."""
        self._event.set()

    def check(self) -> None:
        """Raise when the task, or the work of all streams, must end."""
        if self._event.is_set():
            raise _Ended
        self._control.check()

    def may_write(self) -> None:
        """Raise when the target must not be written any more."""
        if self._event.is_set():
            raise _Ended
        self._control.may_write()


class Meter:
    """Counts bytes done from several threads and passes them on, about once a second.

    :param control: gets the reports.
    :param total: bytes there are to do.
    :param interval: seconds between two reports.
    """

    def __init__(self, control: Control, total: int, interval: float = 1.0) -> None:
        self._control = control
        self._total = total
        self._interval = interval
        self._lock = threading.Lock()
        self._done = 0
        self._next = time.monotonic()

    def add(self, count: int) -> None:
        """Count bytes as done."""
        with self._lock:
            self._done += count
            if time.monotonic() < self._next:
                return
            self._next = time.monotonic() + self._interval
            done = self._done
        self._control.progress(min(done, self._total), self._total)

    def finish(self) -> None:
        """Report the whole as done."""
        self._control.progress(self._total, self._total)


class Streams(Generic[Item, Result]):
    """Runs workers in threads.

    :param make: makes one stream's worker; called in the calling thread.
    :param streams: number of threads, at least 1.
    :param halt: what the workers check; set when the run ends early.
    """

    def __init__(self, make: Callable[[], Worker[Item, Result]], streams: int, halt: Halt) -> None:
        self._make = make
        self._streams = max(1, streams)
        self._halt = halt

    def run(self, items: Iterator[Item]) -> Generator[Result, None, None]:
        """Yield results as they come, in any order; items are drawn in the calling thread, few ahead.

        An error of an item's work, of the items or of the caller's loop ends all streams at their next
        check and is raised once they have ended; the first one, if several fail.  But a ChangeMissed of any
        stream is raised instead: it is the only proof that a storage is wrong, and must not be lost.
        """
        tasks: queue.SimpleQueue[tuple[Item] | None] = queue.SimpleQueue()
        results: queue.SimpleQueue[tuple[Result | None, BaseException | None]] = queue.SimpleQueue()
        threads: list[threading.Thread] = []
        workers: list[Worker[Item, Result]] = []
        in_flight = 0
        more = True
        try:
            while True:
                # One more item waits for each stream, so no stream is idle while the caller is busy.
                while more and in_flight < 2 * self._streams:
                    item = next(items, _END)
                    if item is _END:
                        more = False
                        break
                    tasks.put((item,))  # type: ignore[arg-type]
                    in_flight += 1
                    if len(threads) < min(in_flight, self._streams):
                        workers.append(self._make())
                        threads.append(
                            threading.Thread(
                                # So that the thread's log lines have the same request id.
                                target=copy_context().run,
                                args=(_serve, workers[-1], tasks, results, self._halt),
                                name=f"stream-{len(threads)}",
                                daemon=True,
                            )
                        )
                        threads[-1].start()
                if in_flight == 0:
                    return
                result, error = results.get()
                in_flight -= 1
                if error is not None:
                    raise error
                yield result  # type: ignore[misc]
        finally:
            if in_flight:
                self._halt.set()
            for _ in threads:
                tasks.put(None)
            for thread in threads:
                thread.join()
            for worker in workers:
                with contextlib.suppress(BufferError):
                    worker.close()
            while not results.empty():
                _, error = results.get()
                if isinstance(error, ChangeMissed):
                    raise error


_END: object = object()


def _serve(
    worker: Worker[Item, Result],
    tasks: queue.SimpleQueue[tuple[Item] | None],
    results: queue.SimpleQueue[tuple[Result | None, BaseException | None]],
    halt: Halt,
) -> None:
    while (task := tasks.get()) is not None:
        try:
            with cancelled_by(halt.check):
                result = worker.work(task[0])
            results.put((result, None))
        except BaseException as error:  # noqa: BLE001  (handed to the thread that waits for it)
            results.put((None, error))
            if isinstance(error, _Ended):
                return

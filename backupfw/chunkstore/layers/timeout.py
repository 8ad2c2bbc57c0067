"""Ends the wait for a call that takes too long."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from contextvars import copy_context
from datetime import datetime
from functools import partial
from typing import Any, TypeVar

from backupfw.chunkstore.base import Body, CheckItem, CheckReport, ChunkStore, ObjectInfo
from backupfw.chunkstore.cancellation import POLL_INTERVAL, check_cancelled, undo_check
from backupfw.chunkstore.errors import AlreadyExists, ChunkStoreError, Unavailable
from backupfw.chunkstore.layers.base import Layer, Pages
from backupfw.chunkstore.layers.watch import Watch

T = TypeVar("T")

#: Slowest transfer that a call may have, in bytes per second: a manifest of 2 GiB gets half an hour on top of
#: the timeout.
SLOWEST = 1 << 20
#: Threads kept for the next call; more are made when more calls run at once.
IDLE_THREADS = 16
#: Calls that may hang in the driver before further ones are refused at once.
HANGING_CALLS = 64


class _Job:
    """One call on its way through a worker thread."""

    def __init__(self, action: Callable[[], Any]) -> None:
        # So that its log lines have the request id of the thread that waits.
        context = copy_context()
        self._action: Callable[[], Any] = partial(context.run, action)
        self._late: Callable[[], None] | None = None
        self._lock = threading.Lock()
        self._finished = threading.Event()
        self._result: Any = None
        self._error: BaseException | None = None
        self.watch = Watch()

    def run(self) -> None:
        """Run the action in the calling (worker) thread."""
        self.watch.attach()
        try:
            self._result = self._action()
        except BaseException as error:  # noqa: BLE001  (raised again where the caller waits)
            self._error = error
        finally:
            Watch.detach()
            with self._lock:
                self._finished.set()
                late = self._late
            if late is not None:
                late()

    def wait(self, seconds: float) -> bool:
        """Return whether it finished within ``seconds`` at work.

        :raises Exception: what the thread's check raises (:mod:`backupfw.chunkstore.cancellation`).
        """
        while (left := seconds - self.watch.worked()) > 0:
            # While the call waits for a limit, ``left`` stands still and this loops.
            if self._finished.wait(min(left, POLL_INTERVAL)):
                return True
            check_cancelled()
        return self._finished.is_set()

    def give_up(self, late: Callable[[], None]) -> bool:
        """Wait no more, unless it has finished; ``late`` is called in its thread when it does.

        Returns whether it was given up.
        """
        with self._lock:
            if self._finished.is_set():
                return False
            self._late = late
            return True

    def result(self) -> Any:
        """Return what the action returned, or raise what it raised."""
        if self._error is not None:
            try:
                raise self._error
            finally:
                # The traceback holds this frame: without this it would be a cycle that keeps the bytes.
                self._error = None
        return self._result


class _Workers:
    """Daemon threads that are reused; a thread that hangs blocks no other one, and not the process's end.

    An executor of the standard library would wait for hanging threads at exit.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._idle: list[_Worker] = []
        self._closed = False

    def run(self, job: _Job) -> None:
        with self._lock:
            worker = self._idle.pop() if self._idle else None
        if worker is None:
            worker = _Worker(self)
            worker.start()
        worker.give(job)

    def back(self, worker: _Worker) -> bool:
        """Take a worker back; False when it is not needed any more."""
        with self._lock:
            if self._closed or len(self._idle) >= IDLE_THREADS:
                return False
            self._idle.append(worker)
            return True

    def close(self) -> None:
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        for worker in idle:
            worker.give(None)


class _Worker(threading.Thread):
    def __init__(self, workers: _Workers) -> None:
        super().__init__(name="store-call", daemon=True)
        self._workers = workers
        self._ready = threading.Semaphore(0)
        self._job: _Job | None = None

    def give(self, job: _Job | None) -> None:
        self._job = job
        self._ready.release()

    def run(self) -> None:
        while True:
            self._ready.acquire()
            job, self._job = self._job, None
            if job is None:
                return
            job.run()
            del job  # keeps no answer's bytes while idle
            if not self._workers.back(self):
                return


class TimeoutLayer(Layer):
    """Bounds the time of calls; a call past its bound raises Unavailable, a temporary error.

    ``erase``, ``inspect`` and ``remove_container`` have no bound: only commands of operators call them.

    The call itself continues in its thread until the driver returns, and counts against the store's limits
    until then.  So a put that timed out may still take effect later, after its caller has put the key again
    and has filled the body's buffer with other bytes.  Two rules make that harmless: keys of the backup
    format are written once, so the late put has the same bytes as any other put of its key; and a driver
    publishes only bytes that it has verified (see :class:`Body`), so it refuses a body that has changed.

    A wait also ends when its work is cancelled (:mod:`backupfw.chunkstore.cancellation`).  Nobody tries such
    a put again or names its key, so the object is deleted if the put succeeds after all.  Somebody may name
    a key that was announced before: its put says so (:func:`~backupfw.chunkstore.cancellation.undoing_if`).

    :param seconds: bound of one call, 0 for none (then no thread is used).  Each MiB moved adds a
        second, waiting for a limit does not count, each page of a listing counts alone.
    """

    def __init__(self, inner: ChunkStore, seconds: float) -> None:
        super().__init__(inner)
        self.seconds = seconds
        self._workers = _Workers()
        self._hanging = 0
        self._lock = threading.Lock()

    def _run(
        self,
        operation: str,
        size: int,
        action: Callable[[], T],
        container: str = "",
        key: str = "",
        undo: Callable[[], None] | None = None,
        undo_timeout: bool = False,
    ) -> T:
        if not self.seconds:
            return action()
        if self._hanging >= HANGING_CALLS:
            raise Unavailable(
                f"{HANGING_CALLS} earlier calls still hang", store=self.name, container=container, key=key
            )
        job = _Job(action)
        self._workers.run(job)
        bound = self.seconds + size / SLOWEST
        try:
            finished = job.wait(bound)
        except BaseException:
            self._give_up(job, undo)
            raise
        if not finished and self._give_up(job, undo if undo_timeout else None):
            raise Unavailable(
                f"{operation} took longer than {bound:g} s", store=self.name, container=container, key=key
            )
        result: T = job.result()
        return result

    def _give_up(self, job: _Job, undo: Callable[[], None] | None) -> bool:
        """Leave a call to itself; returns False when it has just finished."""

        def late() -> None:
            with self._lock:
                self._hanging -= 1
            if undo is not None:
                undo()

        with self._lock:
            self._hanging += 1
        if job.give_up(late):
            return True
        with self._lock:
            self._hanging -= 1
        if undo is not None:
            # Not in this thread: it must end, and the store may hang.
            self._workers.run(_Job(undo))
        return False

    def _undo_put(self, container: str, key: str) -> None:
        # If that fails, a sweep finds the object.
        with contextlib.suppress(ChunkStoreError):
            self.inner.delete(container, (key,))

    def put(self, container: str, key: str, body: Body, *, if_absent: bool = False) -> None:
        """Put within the bound."""
        taken = threading.Event()
        allowed = undo_check()

        def act() -> None:
            try:
                self.inner.put(container, key, body, if_absent=if_absent)
            except AlreadyExists:
                taken.set()
                raise

        def undo() -> None:
            # The object that was there before is not this call's.
            if not taken.is_set() and (allowed is None or allowed()):
                self._undo_put(container, key)

        self._run(
            "put",
            body.length,
            act,
            container,
            key,
            undo=undo,
            # Without a check it would delete what the next try puts.
            undo_timeout=allowed is not None,
        )

    def get(self, container: str, key: str, offset: int | None = None, length: int | None = None) -> bytes:
        """Get within the bound; the size of a whole object is not known, so it adds nothing."""
        return self._run(
            "get", length or 0, lambda: self.inner.get(container, key, offset, length), container, key
        )

    def list(self, container: str, prefix: str = "", start_after: str = "") -> Iterator[ObjectInfo]:
        """List; each page within the bound."""
        if not self.seconds:
            yield from self.inner.list(container, prefix, start_after)
            return
        pages = self._run(
            "list", 0, lambda: Pages(self.inner.list(container, prefix, start_after)), container
        )
        while not pages.done:
            yield from self._run("list", 0, pages.take, container)

    def delete(self, container: str, keys: Sequence[str]) -> None:
        """Delete within the bound; the retry layer above hands over a batch at a time."""
        self._run("delete", 0, lambda: self.inner.delete(container, keys), container)

    def lock(self, container: str, key: str, until: datetime) -> None:
        """Lock within the bound."""
        self._run("lock", 0, lambda: self.inner.lock(container, key, until), container, key)

    def locked_until(self, container: str, key: str) -> datetime | None:
        """Ask within the bound."""
        return self._run("locked_until", 0, lambda: self.inner.locked_until(container, key), container, key)

    def ensure_container(self, container: str) -> None:
        """Make the container within the bound."""
        self._run("ensure_container", 0, lambda: self.inner.ensure_container(container), container)

    def list_containers(self) -> Iterator[str]:
        """List the containers within the bound."""
        yield from self._run("list_containers", 0, lambda: tuple(self.inner.list_containers()))

    def check(self) -> CheckReport:
        """Check within four times the bound: it is made of several calls."""
        try:
            return self._run("check", int(3 * self.seconds * SLOWEST), self.inner.check)
        except Unavailable as error:
            return CheckReport((CheckItem("answer", False, error.reason),))

    def close(self) -> None:
        """Close the next store and let idle threads end."""
        self._workers.close()
        self.inner.close()

"""Repeats calls that failed with a temporary error.  No other place of the program retries a store.

Drivers never retry, and callers never retry: this layer does, and each store has exactly one.  When it
gives up, it raises the last error unchanged.

Three bounds hold.  Per operation: ``tries`` and ``seconds``.  Per store: a :class:`RetryBudget` that becomes
empty when most calls fail, so a store that is down gets one request per call, not one per try.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TypeVar

from backupfw.chunkstore.base import Body, ChunkStore, ObjectInfo
from backupfw.chunkstore.cancellation import check_cancelled
from backupfw.chunkstore.errors import AlreadyExists, ChunkStoreError, DeleteFailed
from backupfw.chunkstore.layers.base import Layer
from backupfw.chunkstore.layers.metrics import NullRecorder, Recorder

LOG = logging.getLogger(__name__)

T = TypeVar("T")

#: Seconds between two looks at ``stop`` during a pause: the longest time that a pause delays a shutdown.
STOP_INTERVAL = 0.2


def never() -> bool:
    """Say that nothing asks to stop."""
    return False


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often and how long.

    :ivar tries: most tries of one operation, the first included.
    :ivar seconds: no new try begins later than this after the operation's start; 0 means no bound.
    :ivar base: upper bound of the first pause in seconds; it doubles with each try.
    :ivar cap: upper bound of every pause in seconds, unless the store asks for a longer one.
    """

    tries: int = 5
    seconds: float = 120.0
    base: float = 0.5
    cap: float = 30.0


class RetryBudget:
    """How many retries one store may still have; thread-safe.

    A retry costs 1, and a successful call gives ``refund`` back.  With the defaults a sixth of a store's
    calls may fail for ever.  A store that is down uses up the budget, and then has no retries until calls
    succeed again.

    :param size: the largest balance, which is also the first.
    """

    def __init__(self, size: float = 100.0, refund: float = 0.2) -> None:
        self._size = size
        self._refund = refund
        self._balance = size
        self._lock = threading.Lock()

    def spend(self) -> bool:
        """Take one retry; False when there is none left."""
        with self._lock:
            if self._balance < 1:
                return False
            self._balance -= 1
            return True

    def succeeded(self) -> None:
        """Give back a part of a retry for a call that worked."""
        with self._lock:
            self._balance = min(self._size, self._balance + self._refund)


class _Attempts:
    """The tries of one operation."""

    def __init__(self, layer: RetryLayer, operation: str) -> None:
        self._layer = layer
        self._operation = operation
        self._start = layer._clock()
        self._used = 1

    def progress(self) -> None:
        """Forget the tries so far: the operation has come nearer to its end."""
        self._used = 1
        self._start = self._layer._clock()

    @property
    def first(self) -> bool:
        """Whether this is the first try."""
        return self._used == 1

    def pause_or_raise(self, error: ChunkStoreError) -> None:
        """Return after the pause before the next try, or raise ``error``."""
        layer, policy = self._layer, self._layer.policy
        if not error.temporary:
            raise error
        pause = layer._random() * min(policy.cap, policy.base * 2 ** min(self._used - 1, 30))
        # What the store asks for is a lower bound; spread the callers a little past it.
        pause = max(pause, (error.retry_after or 0) + layer._random() * policy.base)
        late = policy.seconds and layer._clock() + pause - self._start > policy.seconds
        if self._used >= policy.tries or late or layer._stopping() or not layer.budget.spend():
            raise self._given_up(error)
        layer._recorder.retried(layer.name, self._operation, pause, error)
        LOG.info("%s failed, trying again in %.1f s: %s", self._operation, pause, error)
        self._used += 1
        end = layer._clock() + pause
        while (left := end - layer._clock()) > 0:
            if layer._stopping():
                raise self._given_up(error)
            layer._sleep(min(left, STOP_INTERVAL))
            check_cancelled()
        if layer._stopping():
            raise self._given_up(error)

    def _given_up(self, error: ChunkStoreError) -> ChunkStoreError:
        error.add_note(f"gave up {self._operation} after {self._used} tries")
        return error


class RetryLayer(Layer):
    """Retries temporary errors with exponential pauses and full jitter.

    ``check`` is not retried, so that it shows each fault; nor are ``erase``, ``inspect`` and
    ``remove_container``, which only commands of operators call.

    A delete is cut into batches of the store's bulk size, and only the keys that remain are tried again.
    A sorted listing goes on after the last key that came; an unsorted one is only retried before its
    first entry.

    :param policy: how often and how long.
    :param budget: the store's own budget.
    :param stop: asked before and during pauses; True ends retrying at once (shutdown).
    :param sleep, rand, clock: ``time.sleep``, ``random.random``, ``time.monotonic``, or a test's.
    """

    def __init__(
        self,
        inner: ChunkStore,
        policy: RetryPolicy | None = None,
        *,
        budget: RetryBudget | None = None,
        recorder: Recorder | None = None,
        stop: Callable[[], bool] = never,
        sleep: Callable[[float], None] = time.sleep,
        rand: Callable[[], float] = random.random,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(inner)
        self.policy = policy or RetryPolicy()
        self.budget = budget or RetryBudget()
        self._recorder = recorder or NullRecorder()
        self._stop = stop
        self._sleep = sleep
        self._random = rand
        self._clock = clock
        self._closed = False

    def _stopping(self) -> bool:
        return self._closed or self._stop()

    def _run(self, operation: str, action: Callable[[_Attempts], T]) -> T:
        attempts = _Attempts(self, operation)
        while True:
            try:
                result = action(attempts)
            except ChunkStoreError as error:
                attempts.pause_or_raise(error)
            else:
                self.budget.succeeded()
                return result

    def put(self, container: str, key: str, body: Body, *, if_absent: bool = False) -> None:
        """Put, with retries.

        With ``if_absent`` an earlier try may have stored the object although it failed.  So an object with
        exactly these bytes counts as put.
        """

        def once(attempts: _Attempts) -> None:
            try:
                self.inner.put(container, key, body, if_absent=if_absent)
            except AlreadyExists:
                if attempts.first or not self._holds(container, key, body):
                    raise

        self._run("put", once)

    def _holds(self, container: str, key: str, body: Body) -> bool:
        return Body(self.inner.get(container, key), body.length, body.checksum).problem() is None

    def get(self, container: str, key: str, offset: int | None = None, length: int | None = None) -> bytes:
        """Get, again where needed."""
        return self._run("get", lambda _: self.inner.get(container, key, offset, length))

    def list(self, container: str, prefix: str = "", start_after: str = "") -> Iterator[ObjectInfo]:
        """List; the caller does not notice a fault in mid-listing if the store's listing is sorted."""
        attempts = _Attempts(self, "list")
        entries: Iterator[ObjectInfo] | None = None
        begun = moved = False
        while True:
            try:
                if entries is None:
                    entries = iter(self.inner.list(container, prefix, start_after))
                info = next(entries, None)
            except ChunkStoreError as error:
                if begun and not self.capabilities.sorted_listing:
                    raise
                if moved:
                    # Tries and seconds count from here: the time before was the caller's own.
                    attempts.progress()
                    moved = False
                attempts.pause_or_raise(error)
                entries = None
                continue
            if info is None:
                self.budget.succeeded()
                return
            begun = moved = True
            if self.capabilities.sorted_listing:
                start_after = info.key
            yield info

    def delete(self, container: str, keys: Sequence[str]) -> None:
        """Delete; the keys that remain because of temporary errors are tried again.

        :raises DeleteFailed: the keys that remain of all batches.
        """
        size = max(1, self.capabilities.bulk_delete)
        failed: dict[str, ChunkStoreError] = {}
        for start in range(0, len(keys), size):
            remaining = keys[start : start + size]

            def once(_: _Attempts) -> None:
                nonlocal remaining
                try:
                    self.inner.delete(container, remaining)
                except DeleteFailed as error:
                    again = {key: each for key, each in error.errors.items() if each.temporary}
                    failed.update((key, each) for key, each in error.errors.items() if key not in again)
                    if again:
                        remaining = list(again)
                        raise DeleteFailed(again, store=self.name, container=container) from error

            try:
                self._run("delete", once)
            except DeleteFailed as error:
                failed.update(error.errors)
        if failed:
            raise DeleteFailed(failed, store=self.name, container=container)

    def lock(self, container: str, key: str, until: datetime) -> None:
        """Lock, again where needed."""
        self._run("lock", lambda _: self.inner.lock(container, key, until))

    def locked_until(self, container: str, key: str) -> datetime | None:
        """Ask, again where needed."""
        return self._run("locked_until", lambda _: self.inner.locked_until(container, key))

    def ensure_container(self, container: str) -> None:
        """Make the container, again where needed."""
        self._run("ensure_container", lambda _: self.inner.ensure_container(container))

    def list_containers(self) -> Iterator[str]:
        """List the containers; collected first, so that a fault in the middle can be retried."""
        yield from self._run("list_containers", lambda _: tuple(self.inner.list_containers()))

    def close(self) -> None:
        """End the pauses of other threads and close the next store."""
        self._closed = True
        self.inner.close()

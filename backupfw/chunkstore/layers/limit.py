"""Limits what one store is asked for: calls at once, requests per second, bytes per second."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime

from backupfw.chunkstore.base import Body, CheckReport, ChunkStore, ObjectInfo
from backupfw.chunkstore.cancellation import check_cancelled
from backupfw.chunkstore.errors import ChunkStoreError
from backupfw.chunkstore.layers.base import Layer, Pages
from backupfw.chunkstore.layers.watch import waiting

#: A waiting call looks this often, in seconds, whether limits were changed or the store closed.
_LOOK = 0.2
#: Shortest pause in seconds, so that rounding cannot make a call wait in a busy loop.
_SHORTEST = 0.001


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits of one store; 0 means no limit.

    :ivar concurrency: calls at once.
    :ivar bytes_per_second: object bytes, put and got together.
    :ivar requests_per_second: calls; a page of a listing and a batch of a delete are one each.
    """

    concurrency: int = 0
    bytes_per_second: float = 0
    requests_per_second: float = 0


class TokenBucket:
    """A rate that may be overdrawn once: an amount passes as soon as no debt is left.

    So an object that is larger than one second's worth passes, and the next ones wait for it.  Over any
    time, the amount that passes is at most rate x time + one second's worth + the last amount.
    Thread-safe.

    :param rate: amount per second, 0 for no limit.
    """

    def __init__(self, rate: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._rate = rate
        self._tokens = rate
        self._filled = clock()

    def set_rate(self, rate: float) -> None:
        """Change the rate; a debt stays, savings are cut to one second of the new rate."""
        with self._lock:
            self._fill()
            # Without a limit no debt was written down, so the first limited second starts full.
            self._tokens = min(self._tokens, rate) if self._rate else rate
            self._rate = rate

    def take(self, amount: float) -> float:
        """Take ``amount`` and return 0, or take nothing and return the seconds until it may work."""
        with self._lock:
            if not self._rate:
                return 0.0
            self._fill()
            if self._tokens >= 0:
                self._tokens -= amount
                return 0.0
            return max(_SHORTEST, -self._tokens / self._rate)

    def correct(self, amount: float) -> None:
        """Take ``amount`` at once, into debt if need be, or give it back if it is negative."""
        with self._lock:
            if self._rate:
                self._fill()
                self._tokens -= amount

    def _fill(self) -> None:
        now = self._clock()
        self._tokens = min(self._rate, self._tokens + (now - self._filled) * self._rate)
        self._filled = now


class LimitLayer(Layer):
    """Lets calls pass as the limits allow; the limits may be changed while calls run.

    ``erase``, ``inspect`` and ``remove_container`` have no limit: only commands of operators call them.

    A wait ends with an error when the store is closed, or when its work is cancelled
    (:mod:`backupfw.chunkstore.cancellation`; under a timeout layer, that layer makes the check).

    :param limits: the limits to begin with.
    :param sleep, clock: ``time.sleep``, ``time.monotonic``, or a test's.
    """

    def __init__(
        self,
        inner: ChunkStore,
        limits: Limits | None = None,
        *,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(inner)
        self._limits = limits or Limits()
        self._sleep = sleep
        self._running = 0
        self._line: deque[object] = deque()
        self._changed = threading.Condition()
        self._bytes = TokenBucket(self._limits.bytes_per_second, clock)
        self._requests = TokenBucket(self._limits.requests_per_second, clock)
        self._closed = False

    @property
    def limits(self) -> Limits:
        """The limits in force."""
        return self._limits

    def set_limits(self, limits: Limits) -> None:
        """Put other limits in force; calls that wait see them within a moment."""
        with self._changed:
            self._limits = limits
            self._bytes.set_rate(limits.bytes_per_second)
            self._requests.set_rate(limits.requests_per_second)
            self._changed.notify_all()

    @contextmanager
    def _place(self, size: int | None = None) -> Iterator[None]:
        """Hold a place among the running calls, once the rates allow it.

        :param size: bytes it will move, 0 if that is not known yet; None for a call that moves none.
        """
        ticket = object()
        with self._changed:
            # First come, first served: callers that ask again at once must not starve one that waits.
            self._line.append(ticket)
            try:
                if self._must_wait(ticket):
                    with waiting():
                        while self._must_wait(ticket):
                            self._changed.wait(_LOOK)
                            self._require_open()
                            check_cancelled()
                self._running += 1
            finally:
                self._line.remove(ticket)
                self._changed.notify_all()
        try:
            self._pay(self._requests, 1)
            if size is not None:
                self._pay(self._bytes, size)
            yield
        finally:
            with self._changed:
                self._running -= 1
                self._changed.notify_all()

    def _must_wait(self, ticket: object) -> bool:
        concurrency = self._limits.concurrency
        return concurrency > 0 and (concurrency <= self._running or self._line[0] is not ticket)

    def _pay(self, bucket: TokenBucket, amount: float) -> None:
        pause = bucket.take(amount)
        if not pause:
            return
        with waiting():
            while pause:
                self._sleep(min(pause, _LOOK))
                self._require_open()
                check_cancelled()
                pause = bucket.take(amount)

    def _require_open(self) -> None:
        if self._closed:
            raise ChunkStoreError("the store is closed", store=self.name)

    def put(self, container: str, key: str, body: Body, *, if_absent: bool = False) -> None:
        """Put when it is allowed."""
        with self._place(body.length):
            self.inner.put(container, key, body, if_absent=if_absent)

    def get(self, container: str, key: str, offset: int | None = None, length: int | None = None) -> bytes:
        """Get when it is allowed; a whole object's bytes are counted once they are known."""
        received = 0
        try:
            with self._place(length or 0):
                data = self.inner.get(container, key, offset, length)
            received = len(data)
            return data
        finally:
            # Correct what was paid before the call: all bytes of a whole object, none for a failed call.
            self._bytes.correct(received - (length or 0))

    def list(self, container: str, prefix: str = "", start_after: str = "") -> Iterator[ObjectInfo]:
        """List; each page has a place of its own, none is held while the caller works."""
        pages = Pages(self.inner.list(container, prefix, start_after))
        while not pages.done:
            with self._place():
                page = pages.take()
            yield from page

    def delete(self, container: str, keys: Sequence[str]) -> None:
        """Delete when it is allowed; the retry layer above hands over a batch at a time."""
        with self._place():
            self.inner.delete(container, keys)

    def lock(self, container: str, key: str, until: datetime) -> None:
        """Lock when it is allowed."""
        with self._place():
            self.inner.lock(container, key, until)

    def locked_until(self, container: str, key: str) -> datetime | None:
        """Ask when it is allowed."""
        with self._place():
            return self.inner.locked_until(container, key)

    def ensure_container(self, container: str) -> None:
        """Make the container when it is allowed."""
        with self._place():
            self.inner.ensure_container(container)

    def list_containers(self) -> Iterator[str]:
        """List the containers when it is allowed."""
        with self._place():
            names = tuple(self.inner.list_containers())
        yield from names

    def check(self) -> CheckReport:
        """Check when it is allowed."""
        with self._place():
            return self.inner.check()

    def close(self) -> None:
        """Refuse the calls that wait and close the next store."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self.inner.close()

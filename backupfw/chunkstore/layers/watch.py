"""How the timeout layer watches a call, and how a layer below it says that it only waits.

A call must not time out because it waits under a limit, although the limit layer is below the timeout
layer. (It has to be: a call that timed out still counts against the limit until the driver returns.)  So
the limit layer stops the watch while it waits.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_current = threading.local()


class Watch:
    """Measures how long a call has been at work; thread-safe.

    :param clock: monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._worked = 0.0
        self._since: float | None = clock()

    def worked(self) -> float:
        """Return the seconds at work so far, waiting excluded."""
        with self._lock:
            return self._worked + (self._clock() - self._since if self._since is not None else 0.0)

    def stop(self) -> None:
        """The call begins to wait."""
        with self._lock:
            if self._since is not None:
                self._worked += self._clock() - self._since
                self._since = None

    def go_on(self) -> None:
        """The call's turn has come."""
        with self._lock:
            self._since = self._clock()

    def attach(self) -> None:
        """Make this the watch of the calling thread."""
        _current.watch = self

    @staticmethod
    def detach() -> None:
        """Leave the calling thread without a watch."""
        _current.watch = None


@contextmanager
def waiting() -> Iterator[None]:
    """Stop the calling thread's watch, if it has one, for the time of the block."""
    watch: Watch | None = getattr(_current, "watch", None)
    if watch is None:
        yield
        return
    watch.stop()
    try:
        yield
    finally:
        watch.go_on()

"""Cancellation: ends a thread's wait for a store when the thread's work is cancelled.

A call that hangs in a store cannot be stopped, but its caller can stop waiting for it.  While a thread waits,
the layers call the check that the thread has set with :func:`cancelled_by`; its exception ends the wait.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

#: Seconds between two calls of the check while a thread waits.
POLL_INTERVAL = 0.25

_current = threading.local()


@contextmanager
def _set(name: str, value: Callable[[], object]) -> Iterator[None]:
    """Within the block, this thread has the value; afterwards the one that it had before."""
    outer = getattr(_current, name, None)
    setattr(_current, name, value)
    try:
        yield
    finally:
        setattr(_current, name, outer)


@contextmanager
def cancelled_by(check: Callable[[], None]) -> Iterator[None]:
    """Within the block, end this thread's waits for stores with the exception that ``check`` raises."""
    with _set("check", check):
        yield


@contextmanager
def undoing_if(allowed: Callable[[], bool]) -> Iterator[None]:
    """Within the block, ask whether to delete an object whose put ended after this thread's wait for it.

    For an object that somebody else may name although its put was never seen to end.  Without it, only an
    object whose put was cancelled is deleted: one that took too long is put again.

    :param allowed: returns whether the object can be deleted; called in another thread, after the put.
    """
    with _set("undo", allowed):
        yield


def undo_check() -> Callable[[], bool] | None:
    """Return what the calling thread has set with :func:`undoing_if`."""
    allowed: Callable[[], bool] | None = getattr(_current, "undo", None)
    return allowed


def check_cancelled() -> None:
    """Call the calling thread's check, if it has one; it raises when the work is cancelled."""
    check: Callable[[], None] | None = getattr(_current, "check", None)
    if check is not None:
        check()

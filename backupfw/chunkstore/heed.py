"""Ends a wait for a store when the one who waits must end.

A call that hangs in a store cannot be stopped, but nobody needs to wait for it: the layers ask now and then
what the waiting thread was told to heed, and what that raises ends the wait.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

#: How often a wait asks, seconds.
LOOK = 0.25

_current = threading.local()


@contextmanager
def heeding(check: Callable[[], None]) -> Iterator[None]:
    """Let waits for stores in this thread, within the block, end with what ``check`` raises."""
    outer = getattr(_current, "check", None)
    _current.check = check
    try:
        yield
    finally:
        _current.check = outer


def heed() -> None:
    """Raise what the calling thread's check raises, if it has one."""
    check: Callable[[], None] | None = getattr(_current, "check", None)
    if check is not None:
        check()

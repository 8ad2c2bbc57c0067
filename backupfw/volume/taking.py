"""Where a provider takes a point: the worker may let programs rest meanwhile.

A provider puts the one call by which its storage takes the state of a volume into ``with taking_point():``,
and nothing else: programs wait as long as the block lasts.  It does so each time it takes a new state, and
never where it goes on with what an earlier call has taken, or where taking is a copy of all bytes.  In what
lasts longer than a moment the block is right only if the state is the one at its beginning, or all of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar

#: What is done around each taking, in this context and in threads that run in copies of it.
_around: ContextVar[Callable[[], AbstractContextManager[None]] | None] = ContextVar("around", default=None)


def taking_point() -> AbstractContextManager[None]:
    """Return what a provider takes a point in; nothing happens there unless somebody has asked for it."""
    around = _around.get()
    return nullcontext() if around is None else around()


def is_awaited() -> bool:
    """Whether something is done around the taking of a point: then a provider first sees that it can."""
    return _around.get() is not None


@contextmanager
def taken_in(around: Callable[[], AbstractContextManager[None]]) -> Iterator[None]:
    """Within the block, points are taken in what ``around`` returns; called for each of them."""
    token = _around.set(around)
    try:
        yield
    finally:
        _around.reset(token)

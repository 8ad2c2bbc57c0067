"""How workers are woken: the interface, and its implementation within one process.

A wake-up carries no data; a worker reads what there is to do from the database.
"""

from __future__ import annotations

import threading
from typing import Protocol


class Dispatch(Protocol):
    """Wakes workers.  Lost, duplicate, late and reordered wake-ups cost time and nothing else."""

    def wake(self) -> None:
        """Wake every worker, because tasks were queued or cancelled, or a backup policy was changed.

        Called after the commit.

        Never blocks and never fails, because the caller's change is done already.
        """

    def nudge(self) -> None:
        """Wake the worker of this process only."""

    def wait(self, seconds: float) -> bool:
        """Wait for a wake-up, for at most ``seconds``; one since the last call counts.

        :returns: whether there was one.
        """

    def close(self) -> None:
        """Stop sending and receiving."""


class InProcessDispatch:
    """Wake-ups through one event.  Thread-safe; one waiter."""

    def __init__(self) -> None:
        self._event = threading.Event()

    def wake(self) -> None:
        """See :meth:`Dispatch.wake`."""
        self.nudge()

    def nudge(self) -> None:
        """See :meth:`Dispatch.nudge`."""
        self._event.set()

    def wait(self, seconds: float) -> bool:
        """See :meth:`Dispatch.wait`."""
        woken = self._event.wait(seconds)
        self._event.clear()
        return woken

    def close(self) -> None:
        """See :meth:`Dispatch.close`."""

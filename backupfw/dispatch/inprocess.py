"""Dispatch within one process: the API and the worker of the embedded service."""

from __future__ import annotations

import threading


class InProcessDispatch:
    """Wake-ups through one event.  Thread-safe; one waiter."""

    def __init__(self) -> None:
        self._event = threading.Event()

    def wake(self) -> None:
        """See :meth:`backupfw.dispatch.base.Dispatch.wake`."""
        self.nudge()

    def nudge(self) -> None:
        """See :meth:`backupfw.dispatch.base.Dispatch.nudge`."""
        self._event.set()

    def wait(self, seconds: float) -> bool:
        """See :meth:`backupfw.dispatch.base.Dispatch.wait`."""
        woken = self._event.wait(seconds)
        self._event.clear()
        return woken

    def close(self) -> None:
        """See :meth:`backupfw.dispatch.base.Dispatch.close`."""

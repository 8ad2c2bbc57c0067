"""The control of one running task: cancellation, the lease's deadline, progress.

The lease keeper moves the deadline and sets the reason to stop; the engine checks both before it goes on.
"""

from __future__ import annotations

import threading
import time

from backupfw.errors import TaskCancelled, TaskLost


def boot_time() -> float:
    """Seconds since boot, suspended time included: a frozen or suspended writer sees it pass."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class TaskControl:
    """Engine control of one attempt (``engine.ports.Control``).  Thread-safe.

    :param deadline: boot time after which another worker may have the lease.
    """

    def __init__(self, deadline: float) -> None:
        self._deadline = deadline
        self._stop: TaskCancelled | TaskLost | None = None
        self._shutdown = False
        self._asked_at: float | None = None
        self._left = False
        self._lock = threading.Lock()
        self._progress = (0, 0)

    # -- the lease keeper's side

    def extend(self, deadline: float) -> None:
        """Move the deadline; it was computed from a clock read *before* the renewal was sent."""
        self._deadline = deadline

    def cancel(self) -> None:
        """Ask the attempt to end because a user asked for it."""
        self._end(TaskCancelled("The task was cancelled."))

    def shutdown(self) -> None:
        """Ask the attempt to end because the worker does; another one will go on."""
        with self._lock:
            self._shutdown = self._shutdown or self._stop is None
        self._end(TaskCancelled("The worker is shutting down."))

    def lose(self) -> None:
        """Say that the task belongs to another attempt now."""
        self._end(TaskLost("The task is not this attempt's any more."))

    def _end(self, error: TaskCancelled | TaskLost) -> None:
        with self._lock:
            if self._asked_at is None:
                self._asked_at = boot_time()
            if self._stop is None or isinstance(error, TaskLost):
                self._stop = error

    @property
    def lost(self) -> bool:
        """Whether the task was said to belong to another attempt."""
        return isinstance(self._stop, TaskLost)

    def ignored_seconds(self) -> float:
        """Seconds since the attempt was asked to end, if it still works; else 0."""
        return 0.0 if self._left or self._asked_at is None else boot_time() - self._asked_at

    @property
    def for_shutdown(self) -> bool:
        """Whether the attempt ends because the worker does, not because of a user."""
        return self._shutdown and isinstance(self._stop, TaskCancelled)

    @property
    def progress_seen(self) -> tuple[int, int]:
        """Bytes done and in total, as the engine last reported."""
        return self._progress

    # -- the worker's side

    def left(self) -> None:
        """Note that the attempt's work has ended; what follows is its outcome, or cleaning up."""
        self._left = True

    # -- the engine's side

    def check(self) -> None:
        """Raise when the attempt must end.

        :raises TaskCancelled: it was cancelled, or the worker stops.
        :raises TaskLost: the lease may have run out, or the task is another attempt's.
        """
        if self._stop is not None:
            raise self._stop
        if boot_time() >= self._deadline:
            raise TaskLost("The lease was not renewed in time.")

    def may_write(self) -> None:
        """Like :meth:`check`; called before every batch of writes to a target."""
        self.check()

    def progress(self, done: int, total: int) -> None:
        """Remember how far the work is, in bytes."""
        self._progress = (done, total)

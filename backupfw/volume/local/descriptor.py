"""A file descriptor that many threads use, and that one of them can close at any moment."""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Callable

from backupfw.errors import TaskLost


class Descriptor:
    """Lends a descriptor out: ``with descriptor as fd: …``.  Thread-safe.

    It is closed only when no thread uses it.  Otherwise a thread could read or write another file, which got
    the same number from the system.

    :param fd: the open file; owned by this object from now on.
    :param before_close: called once, right before the descriptor is closed.
    """

    def __init__(self, fd: int, before_close: Callable[[], None] | None = None) -> None:
        self._fd = fd
        self._before_close = [] if before_close is None else [before_close]
        self._users = 0
        self._closing = False
        self._closed = False
        self._revoked = False
        self._changed = threading.Condition()

    def __enter__(self) -> int:
        with self._changed:
            if self._closing:
                if self._revoked:
                    raise TaskLost("A later attempt writes to this volume.")
                raise OSError(errno.EBADF, "the volume was closed")
            self._users += 1
            return self._fd

    def __exit__(self, *error: object) -> None:
        with self._changed:
            self._users -= 1
            self._end()

    def before_close(self, call: Callable[[], None]) -> None:
        """Let this be called, too, right before the descriptor is closed: the latest first."""
        with self._changed:
            self._before_close.insert(0, call)

    def close(self) -> None:
        """Refuse new users; close at once, or when the last user leaves.  Idempotent."""
        with self._changed:
            self._closing = True
            self._end()

    def revoke(self, timeout: float) -> bool:
        """Close on behalf of a later attempt and wait for the users to leave.

        :param timeout: seconds.
        :return: whether the descriptor is closed now; if not, it will be when the last user leaves.
        """
        give_up = time.monotonic() + timeout
        with self._changed:
            self._revoked = True
            self._closing = True
            self._end()
            while not self._closed:
                left = give_up - time.monotonic()
                if left <= 0:
                    return False
                self._changed.wait(left)
            return True

    def _end(self) -> None:
        if self._closing and not self._users and not self._closed:
            self._closed = True
            try:
                for call in self._before_close:
                    call()
            finally:
                os.close(self._fd)
                self._changed.notify_all()

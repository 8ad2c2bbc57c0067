"""Validated tokens in memory, one cache for all threads of a process, with the interface of memcached."""

from __future__ import annotations

import threading
import time as clock
from collections import OrderedDict

#: A token with its catalogue is some KiB.
MAX_TOKENS = 4096


class TokenCache:
    """Keeps values for a time; the least recently used ones go first.  Thread-safe.

    :param size: how many are kept.
    """

    def __init__(self, size: int = MAX_TOKENS) -> None:
        self._size = size
        self._lock = threading.Lock()
        self._entries: OrderedDict[str, tuple[float, bytes]] = OrderedDict()

    def get(self, key: str) -> bytes | None:
        """Return a value; None where there is none, or its time is over."""
        with self._lock:
            until, value = self._entries.get(key, (0.0, None))
            if value is None:
                return None
            if clock.monotonic() >= until:
                del self._entries[key]
                return None
            self._entries.move_to_end(key)
            return value

    def set(self, key: str, value: bytes, time: float = 0) -> bool:
        """Keep a value for ``time`` seconds; not at all where that is not positive."""
        if time <= 0:
            return True
        with self._lock:
            self._entries[key] = (clock.monotonic() + time, value)
            self._entries.move_to_end(key)
            if len(self._entries) > self._size:
                self._entries.popitem(last=False)
        return True

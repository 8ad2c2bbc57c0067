"""How tests wait for what something else does: one loop, and one time after which it counts as lost."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

Value = TypeVar("Value")

#: How long anything may take before it counts as lost, seconds: a machine may be very busy, and what works is
#: there long before.
PATIENCE = 120.0
#: Which part of what was waited a pause between two looks may be, and the longest one, seconds.
RARER, RAREST = 0.1, 0.5


def wait_until(
    what: str,
    done: Callable[[], Value],
    told: Callable[[], object] = str,
    pause: float = 0.02,
    sleep: Callable[[float], object] = time.sleep,
) -> Value:
    """Poll until ``done()`` is true; returns its value.

    :param what: what is waited for, for the message of a failure.
    :param told: says more for that message, e.g. the end of a log.
    :param pause: seconds between two looks at first; they become rarer the longer it takes, because they
        take processor time from what is waited for.
    :param sleep: passes the pause; it may return earlier, when a look is worth it.
    :raises AssertionError: nothing came of it.
    """
    begin = time.monotonic()
    while not (value := done()):
        waited = time.monotonic() - begin
        assert waited < PATIENCE, f"gave up waiting for {what}\n{told()}"
        sleep(max(pause, min(waited * RARER, RAREST)))
    return value

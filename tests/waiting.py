"""How tests wait for what something else does: one loop, and one time after which it counts as lost."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

Value = TypeVar("Value")

#: How long anything may take before it counts as lost, seconds: a machine may be very busy, and what works is
#: there long before.
PATIENCE = 120.0


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
    :param pause: seconds between two looks.
    :param sleep: passes the pause; it may return earlier, when a look is worth it.
    :raises AssertionError: nothing came of it.
    """
    end = time.monotonic() + PATIENCE
    while not (value := done()):
        assert time.monotonic() < end, f"gave up waiting for {what}\n{told()}"
        sleep(pause)
    return value

"""What becomes of a published test."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Result:
    """What became of a test.

    :ivar status: ``success``, ``skip``, ``fail``, …
    :ivar why: the reason of a skip; the traceback of a failure.
    """

    status: str
    why: str

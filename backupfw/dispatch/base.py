"""The dispatch interface: wake-ups that carry nothing a worker would have to believe."""

from __future__ import annotations

from typing import Protocol


class Dispatch(Protocol):
    """Wakes workers up.  Lost, doubled, late and reordered wake-ups change nothing but delay."""

    def wake(self) -> None:
        """Say to every worker that tasks were queued or cancelled; called after the commit.

        Never blocks and never fails: whoever calls it has done its work already.
        """

    def nudge(self) -> None:
        """Wake only the one who waits in this process."""

    def wait(self, seconds: float) -> bool:
        """Return at the next wake-up, or after ``seconds``; a wake-up since the last call counts.

        :returns: whether there was one.
        """

    def close(self) -> None:
        """Send and receive nothing any more."""

"""How what a store holds grew, to scale: a line of days and bytes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date

from backupfw.manager.usecases.stores import Held

#: The drawing, in units of its own; browsers fit it to the page.
WIDTH, HEIGHT = 1000, 120


@dataclass(frozen=True, slots=True)
class Line:
    """What is drawn.

    :ivar points: as an SVG has them.
    :ivar first, last: its days.
    :ivar most: the bytes of a point at the top.
    """

    points: str
    first: str
    last: str
    most: int


def drawn(history: Sequence[Held]) -> Line | None:
    """Lay out the days, the oldest first; None: there are not two days yet, or nothing was ever there."""
    most = max((one.bytes for one in history), default=0)
    if len(history) < 2 or not most:
        return None
    first, last = (date.fromisoformat(history[place].day) for place in (0, -1))
    scale = WIDTH / (last - first).days
    points = (
        f"{(date.fromisoformat(one.day) - first).days * scale:.1f},{HEIGHT * (1 - one.bytes / most):.1f}"
        for one in history
    )
    return Line(" ".join(points), history[0].day, history[-1].day, most)

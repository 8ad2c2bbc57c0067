"""The time line of a volume's backups, to scale: when each one is of, what it put, what it shares."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from backupfw.manager.usecases.overview import BackupState

#: The drawing, in units of its own; browsers fit it to the page.
WIDTH, HEIGHT = 1000, 130
#: The lowest bar that can be seen, and the widest bar.
_LEAST, _WIDEST = 2.0, 24.0


@dataclass(frozen=True, slots=True)
class Bar:
    """One backup: a bar of what it put, upon one of what it shares."""

    backup: BackupState
    x: float
    width: float
    new: float
    shared: float


@dataclass(frozen=True, slots=True)
class TimeLine:
    """What is drawn.

    :ivar most: the bytes of a bar as high as the drawing.
    """

    bars: Sequence[Bar]
    first: datetime
    last: datetime
    most: int


def drawn(backups: Sequence[BackupState], now: datetime) -> TimeLine | None:
    """Lay out the backups that have data; None: there is none."""
    good = sorted((one for one in backups if one.new + one.shared), key=lambda one: one.moment)
    if not good:
        return None
    first = good[0].moment
    seconds = max((now - first).total_seconds(), 1.0)
    most = max(one.new + one.shared for one in good)
    width = min(_WIDEST, max(WIDTH / len(good) / 2, _LEAST + 1))
    room = WIDTH - width
    bars = []
    for one in good:
        x = min(max((one.moment - first).total_seconds() / seconds, 0), 1) * room
        new = max(HEIGHT * one.new / most, _LEAST) if one.new else 0.0
        bars.append(
            Bar(one, round(x, 1), round(width, 1), round(new, 1), round(HEIGHT * one.shared / most, 1))
        )
    return TimeLine(bars, first, now, most)

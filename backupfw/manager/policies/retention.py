"""Which backups of one policy and volume are kept, and why: computed without a database.

The options are applied in a fixed order: ``within``, ``last``, ``hourly``, ``daily``, ``weekly``,
``monthly``, ``yearly``, each over all backups, the newest first.  What an option has decided, a later one
leaves alone.  A period that has a kept backup already is passed over without using up a count, so 7 daily
and 4 weekly backups reach 7 days and four further weeks.  Of a period in which an option keeps a backup, the
others go.  When its count is used up, the option ends; what no option keeps, goes.  Periods are the
calendar's in the policy's time zone; weeks are ISO weeks.

So the newest backup is always kept, and to apply the rules again to what they kept changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

#: The counted options in the order in which they are applied; of a local time, the period.
_PERIODS: Mapping[str, Callable[[datetime], object]] = {
    # In an hour that occurs twice, the offset tells them apart.
    "hourly": lambda local: (local.date(), local.hour, local.utcoffset()),
    "daily": lambda local: local.date(),
    "weekly": lambda local: local.isocalendar()[:2],
    "monthly": lambda local: (local.year, local.month),
    "yearly": lambda local: local.year,
}
COUNTS = ("last", *_PERIODS)


@dataclass(frozen=True, slots=True)
class Rules:
    """What is to be kept.

    :ivar counts: of :data:`COUNTS`, how many; those that are missing keep nothing.
    :ivar within: everything that is at most so much older than the newest backup; None: nothing.
    :ivar min_keep: so many of the newest are kept in any case; at least 1.
    """

    counts: Mapping[str, int] = field(default_factory=dict)
    within: timedelta | None = None
    min_keep: int = 1

    def limits(self) -> bool:
        """Return whether anything goes at all: rules that say nothing keep everything."""
        return bool(self.counts) or self.within is not None


@dataclass(frozen=True, slots=True)
class Taken:
    """A backup as the rules see it.

    :ivar taken_at: as of when its data is, naive UTC.
    """

    id: str
    taken_at: datetime


def apply(rules: Rules, zone: ZoneInfo, backups: Sequence[Taken]) -> dict[str, str | None]:
    """Return of each backup why it is kept, or None: it goes; the newest first.

    :param zone: of the calendar.
    :param backups: good ones, in any order.
    """
    ordered = sorted(backups, key=lambda one: (one.taken_at, one.id), reverse=True)
    if not rules.limits():
        return dict.fromkeys((one.id for one in ordered), "no retention")
    local = {one.id: one.taken_at.replace(tzinfo=UTC).astimezone(zone) for one in ordered}
    marks: dict[str, str | None] = {}
    if rules.within is not None:
        for one in ordered:
            if ordered[0].taken_at - one.taken_at <= rules.within:
                marks[one.id] = "within"
    for number, one in enumerate(ordered[: rules.counts.get("last", 0)], 1):
        marks.setdefault(one.id, f"last {number}")
    for name, period in _PERIODS.items():
        if name in rules.counts:
            _keep_periods(marks, {one: period(local[one]) for one in local}, name, rules.counts[name])
    for number, one in enumerate(ordered[: rules.min_keep], 1):
        if marks.get(one.id) is None:
            marks[one.id] = f"min_keep {number}"
    return {one.id: marks.get(one.id) for one in ordered}


def _keep_periods(marks: dict[str, str | None], periods: Mapping[str, object], name: str, count: int) -> None:
    """Apply one option.

    :param periods: of each backup, the newest first.
    """
    covered = {which for one, which in periods.items() if marks.get(one) is not None}
    kept: set[object] = set()
    for one, which in periods.items():
        if one in marks:
            continue
        if which in kept:
            # Its period has a newer one; no later option may keep it.
            marks[one] = None
        elif which not in covered:
            if len(kept) >= count:
                return
            kept.add(which)
            marks[one] = f"{name} {len(kept)}"

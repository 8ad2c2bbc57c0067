"""The next runs of a schedule as a calendar: weeks of days, in the schedule's own time zone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from itertools import islice

from backupfw.manager.policies.schedule import Schedule

#: How many weeks are shown, and how many runs are computed for them at most.
WEEKS, RUNS = 5, 300


@dataclass(frozen=True, slots=True)
class Day:
    """A day.

    :ivar runs: the local times of its runs.
    :ivar known: whether all of its runs are there: not before today, and not behind the last one computed.
    """

    day: date
    runs: Sequence[datetime]
    known: bool


def weeks(schedule: Schedule, moment: datetime) -> Sequence[Sequence[Day]]:
    """Return the weeks from a moment (naive UTC) on, each from Monday, as far as their runs are known."""
    today = moment.replace(tzinfo=UTC).astimezone(schedule.zone).date()
    first = today - timedelta(days=today.weekday())
    end = first + timedelta(weeks=WEEKS)
    runs: dict[date, list[datetime]] = {}
    last = end - timedelta(days=1)
    number = 0
    for number, run in enumerate(islice(schedule.all_after(moment), RUNS), 1):
        local = run.replace(tzinfo=UTC).astimezone(schedule.zone)
        if local.date() >= end:
            break
        runs.setdefault(local.date(), []).append(local)
        if number == RUNS:
            # The day may have more of them.
            last = local.date() - timedelta(days=1)
    days = [first + timedelta(days=offset) for offset in range(7 * WEEKS)]
    found = [Day(day, runs.get(day, ()), today <= day <= last) for day in days]
    all_weeks = [found[start : start + 7] for start in range(0, len(found), 7)]
    return [week for week in all_weeks if any(day.known for day in week)]

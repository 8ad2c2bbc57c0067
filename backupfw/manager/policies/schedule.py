"""When a policy runs: a cron expression in a time zone, computed without a database.

Where clocks are put forward, a run whose local time does not exist takes place when the clock shows the next
time that does.  Where they are put back, a run at a fixed time takes place once, at its first occurrence; an
expression whose minute or hour begins with ``*`` runs in both hours.  All results are naive UTC.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import zoneinfo
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from cronsim import CronSim, CronSimError

from backupfw import moments
from backupfw.errors import InvalidInput

MACROS = {
    "@hourly": "0 * * * *",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@weekly": "0 0 * * 0",
    "@monthly": "0 0 1 * *",
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
}
#: The shortest time between two runs: more often there would be runs, but hardly backups.
LEAST_MINUTES = 5
#: How many runs of an expression are looked at to find its shortest pause: those of a day at least.
_LOOKED_AT = 24 * 60 // LEAST_MINUTES + 2
#: And for how long: some expressions are only every forty years.
_LOOKED_FOR = timedelta(days=5 * 366)
_EPOCH = datetime(2001, 1, 1, tzinfo=UTC)
#: No clock is put back or forward by more in one go.
_LARGEST_SHIFT = timedelta(hours=25)
#: Names that stand for another zone on each host, or for none.
_NO_ZONES = frozenset({"localtime", "Factory", "posixrules"})


@functools.cache
def _zones() -> frozenset[str]:
    return frozenset(zoneinfo.available_timezones() - _NO_ZONES)


@dataclass(frozen=True, slots=True)
class Schedule:
    """A schedule; :func:`read` makes one.

    :ivar cron: five fields.
    :ivar zone: the time zone of the expression, and of retention's calendar.
    :ivar jitter: the runs of a policy are spread over so many seconds.
    :ivar start_window: minutes after the scheduled time within which a run may begin.
    :ivar completion_window: minutes after it within which its backup must be complete; None: no such limit.
    """

    cron: str
    zone: zoneinfo.ZoneInfo
    jitter: int
    start_window: int
    completion_window: int | None

    def after(self, moment: datetime) -> datetime | None:
        """Return the first run after a moment; None: there is none in the next fifty years.

        :param moment: naive UTC.
        """
        return next(self.all_after(moment), None)

    def all_after(self, moment: datetime) -> Iterator[datetime]:
        """Yield all runs after a moment, in order."""
        last = moment
        # Without the fold, a moment in an hour that occurs twice is taken for the first one: so begin before.
        begin = (moment - timedelta(hours=3)).replace(tzinfo=UTC).astimezone(self.zone)
        for found in CronSim(self.cron, begin):
            run = moments.utc(found)
            if run > last:
                last = run
                yield run

    def latest(self, moment: datetime) -> datetime | None:
        """Return the last run at or before a moment; None: there was none in the last fifty years."""
        local = (moment + timedelta(seconds=1)).replace(tzinfo=UTC).astimezone(self.zone)
        # Backwards, times that do not exist are moved in the other direction: it is near, but not the run.
        near = next(CronSim(self.cron, local, reverse=True), None)
        if near is None:
            return None
        runs = self.all_after(moments.utc(near) - _LARGEST_SHIFT)
        last: datetime | None = None
        for run in runs:
            if run > moment:
                break
            last = run
        return last

    def check(self) -> None:
        """Refuse an expression that is never, or too often; this looks at many runs.

        :raises InvalidInput: it is.
        """
        # In UTC, where no clock is put back: there, a pause may be shorter for once.
        found = CronSim(self.cron, _EPOCH)
        first = next(found, None)
        if first is None:
            raise InvalidInput(f"schedule.cron: {self.cron!a} is never: there is no such day.")
        some = itertools.takewhile(lambda run: run - first < _LOOKED_FOR, found)
        runs = [first, *itertools.islice(some, _LOOKED_AT)]
        shortest = min((after - before for before, after in itertools.pairwise(runs)), default=None)
        if shortest is not None and shortest < timedelta(minutes=LEAST_MINUTES):
            raise InvalidInput(
                f"schedule.cron: {self.cron!a} is more often than every {LEAST_MINUTES} minutes; backups take"
                " longer."
            )

    def offset(self, volume_id: str) -> timedelta:
        """Return how long after the scheduled time the run of a volume begins: the same each time."""
        if not self.jitter:
            return timedelta(0)
        digest = hashlib.sha256(volume_id.encode()).digest()
        return timedelta(seconds=int.from_bytes(digest[:8], "big") % self.jitter)


def read(
    cron: str, timezone: str, *, jitter: int | None, start_window: int, completion_window: int | None
) -> Schedule:
    """Return the schedule that a user describes.

    :param cron: five fields, or one of :data:`MACROS`.
    :param timezone: the IANA name of a time zone.
    :param jitter: None: a quarter of an hour, or less where the window is shorter.
    :raises InvalidInput: a value is wrong; the message names its field.
    """
    if timezone not in _zones():
        raise InvalidInput(f"schedule.timezone: {timezone!a} is no time zone, as e.g. Europe/Berlin.")
    window = start_window * 60
    if jitter is None:
        jitter = min(900, window // 2)
    elif jitter >= window:
        raise InvalidInput(
            f"schedule.jitter: {jitter} seconds must be less than the start_window, {window} seconds."
        )
    expression = MACROS.get(cron.strip().lower(), cron)
    try:
        if len(expression.split()) != 5:
            raise CronSimError("it must have five fields: minute, hour, day of month, month, day of week")
        CronSim(expression, _EPOCH)
    except CronSimError as error:
        raise InvalidInput(f"schedule.cron: {cron!a} cannot be understood: {error}.") from error
    return Schedule(expression, zoneinfo.ZoneInfo(timezone), jitter, start_window, completion_window)

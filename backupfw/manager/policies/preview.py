"""What a policy will do: its next runs, and what becomes of each backup.

It computes with the functions that the runs themselves use: when they take place, which volumes they back up,
and what the rules say after each of them.  It assumes that each run succeeds at once.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from sqlalchemy.orm import Session

from backupfw.db import models
from backupfw.manager.policies import ending, places
from backupfw.manager.policies.ending import Candidates
from backupfw.manager.policies.places import Stored, Verdict
from backupfw.manager.policies.settings import Settings

#: How many runs are shown.
NEXT_RUNS = 10
#: How many runs are computed at most, over all volumes: a request must end soon.
MOST_STEPS = 2000
#: And how many backups are judged at most, each anew after each run.
MOST_JUDGED = 200_000
#: How many volumes are shown at most; a request can name others.
MOST_VOLUMES = 100


@dataclass(frozen=True, slots=True)
class PlaceFate:
    """What becomes of a backup in one store.

    :ivar reason: why it is kept there today.
    :ivar goes_at: as of :class:`Fate`.
    """

    store: str
    reason: str
    goes_at: datetime | None


@dataclass(frozen=True, slots=True)
class Fate:
    """What becomes of a backup.

    :ivar reason: why it is kept today.
    :ivar goes_at: the scheduled time of the run after which it goes; None: it is there at the end.
    :ivar places: the stores that have it, or get a copy just now; its own first.
    """

    backup_id: str
    taken_at: datetime
    reason: str
    goes_at: datetime | None
    places: Sequence[PlaceFate]


@dataclass(frozen=True, slots=True)
class VolumeFate:
    """What becomes of the backups of one volume, the newest first.

    :ivar kept: how many backups of it there are at the end, those that future runs make among them.
    """

    volume_id: str
    backups: Sequence[Fate]
    kept: int


@dataclass(frozen=True, slots=True)
class Preview:
    """What a policy will do.

    :ivar next_runs: scheduled times after the moment that was asked for.
    :ivar until: how far the backups were computed: as asked for, or less where that would be too many runs.
    :ivar volumes: one for each volume, at most :data:`MOST_VOLUMES`.
    :ivar total: how many volumes there are.
    """

    next_runs: Sequence[datetime]
    until: datetime
    volumes: Sequence[VolumeFate]
    total: int


def compute(
    session: Session,
    policy: models.BackupPolicy,
    settings: Settings,
    volumes: Sequence[str],
    moment: datetime,
    *,
    at: datetime,
    days: int,
    volume_id: str | None = None,
) -> Preview:
    """Compute what a policy will do.

    :param volumes: the ids of its volumes.
    :param moment: now.
    :param at: from when on the next runs are wanted; not before now.
    :param days: how long after that the backups are computed.
    :param volume_id: only of this volume.
    """
    total = len(volumes)
    volumes = (
        list(volumes[:MOST_VOLUMES]) if volume_id is None else [one for one in volumes if one == volume_id]
    )
    until = at + timedelta(days=days)
    steps = MOST_STEPS // max(1, len(volumes))
    futures = [_Future(settings, ending.of(session, policy, one), one, moment) for one in volumes]
    judged = 0
    for number, run in enumerate(_until(settings, moment, until)):
        if number == steps or judged >= MOST_JUDGED:
            until = run
            break
        judged += sum(one.run(run) for one in futures)
    return Preview(
        next_runs=list(itertools.islice(settings.schedule.all_after(at), NEXT_RUNS)),
        until=until,
        volumes=[one.fate() for one in futures],
        total=total,
    )


def _until(settings: Settings, moment: datetime, until: datetime) -> itertools.takewhile[datetime]:
    return itertools.takewhile(lambda run: run <= until, settings.schedule.all_after(moment))


#: Why something is still kept that no rule keeps.
_NEXT_RUN = "until the next run"


class _Future:
    """The backups of one volume, followed through its next runs, each of which copies what it makes."""

    def __init__(self, settings: Settings, candidates: Candidates, volume_id: str, moment: datetime) -> None:
        self._settings = settings
        self._candidates = candidates
        self._volume_id = volume_id
        self._moment = moment
        self._there = {one.id: self._copied(one) for one in candidates.good}
        #: Of a backup and a store, after which run it goes from there.
        self._goes: dict[tuple[str, str], datetime] = {}

    def _copied(self, backup: Stored) -> Stored:
        """Return a backup as it is when the copies that are being made are complete."""
        copying = self._candidates.copying.get(backup.id, frozenset())
        return replace(backup, copies=backup.copies | copying)

    def run(self, scheduled: datetime) -> int:
        """Let a run take place, and retention after it; return how many backups it judged."""
        settings, candidates = self._settings, self._candidates
        taken_at = scheduled + settings.schedule.offset(self._volume_id)
        name = f"run at {scheduled}"
        self._there[name] = Stored(name, taken_at, settings.store or "", frozenset(settings.copies))
        verdicts = places.apply(settings, list(self._there.values()))
        for one, verdict in verdicts.items():
            step = candidates.step(settings, self._there[one], verdict, taken_at)
            if step is None or candidates.stays(settings, one) is not None:
                continue
            self._goes |= {(one, store): scheduled for store in step.leaves}
            after = step.after()
            if after is None:
                del self._there[one]
            else:
                self._there[one] = after
        return len(verdicts) * (1 + len(settings.copies))

    def fate(self) -> VolumeFate:
        """Return what becomes of them."""
        candidates = self._candidates
        verdicts = places.apply(self._settings, candidates.good)
        fates = [self._fate(one, verdicts.get(one.id, {})) for one in (*candidates.good, *candidates.kept)]
        fates.sort(key=lambda fate: (fate.taken_at, fate.backup_id), reverse=True)
        return VolumeFate(self._volume_id, fates, len(self._there) + len(candidates.kept))

    def _fate(self, backup: Stored, verdict: Verdict) -> Fate:
        candidates = self._candidates
        held = candidates.stays(self._settings, backup.id)
        copying = candidates.copying.get(backup.id, ())
        found = []
        for store in self._copied(backup).stores:
            lock = candidates.lock(self._settings, backup, store, self._moment)
            passing = ending.COPIED if store in copying else lock
            reason = held or passing or verdict.get(store) or (ending.COPIED if copying else _NEXT_RUN)
            found.append(PlaceFate(store, reason, self._goes.get((backup.id, store))))
        gone = [one.goes_at for one in found if one.goes_at is not None]
        reason = next((one.reason for one in found if one.reason != _NEXT_RUN), _NEXT_RUN)
        # It is gone when it has left the last place; what is left has no time.
        goes_at = max(gone) if len(gone) == len(found) else None
        return Fate(backup.id, backup.taken_at, reason, goes_at, found)

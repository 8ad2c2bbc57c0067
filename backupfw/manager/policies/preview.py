"""What a policy will do: its next runs, and what becomes of each backup.

It computes with the functions that the runs themselves use: when they take place, which volumes they back up,
and what the rules say after each of them.  It assumes that each run succeeds at once.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy.orm import Session

from backupfw.db import models
from backupfw.manager.policies import ending, retention
from backupfw.manager.policies.ending import Candidates
from backupfw.manager.policies.retention import Taken
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
class Fate:
    """What becomes of a backup.

    :ivar reason: why it is kept today.
    :ivar goes_at: the scheduled time of the run after which it goes; None: it is there at the end.
    """

    backup_id: str
    taken_at: datetime
    reason: str
    goes_at: datetime | None


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
    futures = [_Future(settings, ending.of(session, policy, one), one) for one in volumes]
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


class _Future:
    """The backups of one volume, followed through its next runs."""

    def __init__(self, settings: Settings, candidates: Candidates, volume_id: str) -> None:
        self._settings = settings
        self._candidates = candidates
        self._volume_id = volume_id
        self._there = list(candidates.good)
        self._goes: dict[str, datetime] = {}

    def run(self, scheduled: datetime) -> int:
        """Let a run take place, and retention after it; return how many backups it judged."""
        schedule = self._settings.schedule
        taken_at = scheduled + schedule.offset(self._volume_id)
        self._there.append(Taken(f"run at {scheduled}", taken_at))
        verdicts = retention.apply(self._settings.rules, schedule.zone, self._there)
        for one, why in verdicts.items():
            if why is None and one not in self._candidates.held:
                self._goes[one] = scheduled
        self._there = [one for one in self._there if one.id not in self._goes]
        return len(verdicts)

    def fate(self) -> VolumeFate:
        """Return what becomes of them."""
        candidates = self._candidates
        verdicts = candidates.verdicts(self._settings)
        fates = [
            Fate(
                one.id,
                one.taken_at,
                candidates.held.get(one.id) or verdicts.get(one.id) or "until the next run",
                self._goes.get(one.id),
            )
            for one in (*candidates.good, *candidates.kept)
        ]
        fates.sort(key=lambda fate: (fate.taken_at, fate.backup_id), reverse=True)
        return VolumeFate(self._volume_id, fates, len(self._there) + len(candidates.kept))

"""Which volumes a policy backs up, and the runs of one scheduled time; all inside the caller's transaction.

A policy is due when its ``next_run_at`` has come.  Then each of its volumes gets a row of ``policy_runs``,
whose key is policy, volume and scheduled time: so there is one run, whoever plans it and however often.
After an outage only the last scheduled time counts, if its window is still open.  Of those that passed, the
last one gets a row that says so, not each: a policy would fill the table with them.

Which volumes foreign catalogues have cannot be asked in a transaction.  So a policy that does not name its
volumes gets one more run, of :data:`NO_VOLUME`: a *search*.  It waits, is begun, tried again and missed as
any other run, but instead of a backup it plans the runs of the volumes that it finds, and is gone.
"""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from oslo_log import log
from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from backupfw.db import models
from backupfw.db.locks import insert_if_absent, lock
from backupfw.db.session import now
from backupfw.errors import InvalidInput
from backupfw.manager import messages
from backupfw.manager.messages import Action, Detail
from backupfw.manager.policies import settings as policy_settings
from backupfw.manager.policies.settings import Settings
from backupfw.manager.queue import outbox, tasks
from backupfw.manager.rows import NO_VOLUME
from backupfw.manager.rules.volume_rules import NOT_THERE

LOG = log.getLogger(__name__)

#: States of runs: their end is one of the last four.
WAITING, RUNNING, OK, SKIPPED, MISSED, FAILED = "waiting", "running", "ok", "skipped", "missed", "failed"
#: Why runs that wait are skipped.
PAUSED = "The policy was paused."

#: After this time a policy is looked at again that cannot run.
_LATER = timedelta(hours=1)
#: Policies of one transaction.
BATCH = 250
#: Policies whose volumes are read at once: the runs may be full after the first of them.
_READ_AT_ONCE = 50
#: Runs of one transaction, after which the policies that are left wait for the next one.
_MOST_RUNS = 5000
#: With so many runs that wait, a policy is not run by hand: all workers look through those that wait.
MOST_WAITING = 5000


def plan(session: Session, *, foreign: bool) -> int:
    """Plan the runs of due policies, some at a time and each project in turn; return how many policies.

    Policies that another process plans just now are left out.

    :param foreign: whether there are foreign catalogues.
    """
    moment = now(session)
    row = models.BackupPolicy
    turn = func.row_number().over(partition_by=row.project_id, order_by=row.next_run_at)
    due = select(row.id, turn.label("turn"), row.next_run_at).where(row.next_run_at <= moment).subquery()
    chosen = session.scalars(
        select(due.c.id).order_by(due.c.turn, due.c.next_run_at, due.c.id).limit(BATCH)
    ).all()
    ids = lock(session, row, row.id.in_(chosen), row.next_run_at <= moment, skip_locked=True)
    found = session.scalars(select(row).where(row.id.in_(ids))).all()
    rank = {policy_id: number for number, policy_id in enumerate(chosen)}
    ordered = sorted(found, key=lambda one: rank[one.id])
    runs: list[dict[str, Any]] = []
    planned: list[dict[str, Any]] = []
    for start in range(0, len(ordered), _READ_AT_ONCE):
        some = ordered[start : start + _READ_AT_ONCE]
        read = {one.id: settings for one in some if (settings := _read(one)) is not None}
        volumes = volumes_of(
            session, [(one, read[one.id]) for one in some if one.id in read], foreign=foreign
        )
        for one in some:
            if len(runs) >= _MOST_RUNS:
                break
            settings = read.get(one.id)
            if settings is None:
                planned.append({"id": one.id, "next_run_at": moment + _LATER, "planned_at": moment})
                continue
            following, rows = _plan_one(one, settings, volumes[one.id], moment)
            runs += rows
            planned.append({"id": one.id, "next_run_at": following, "planned_at": moment})
        if len(runs) >= _MOST_RUNS:
            break
    insert(session, runs)
    if planned:
        session.execute(update(row), planned)
    return len(planned)


def _plan_one(
    policy: models.BackupPolicy, settings: Settings, volumes: Sequence[str], moment: datetime
) -> tuple[datetime | None, list[dict[str, Any]]]:
    """Return when a due policy is due again, and the rows of the runs until then."""
    due, schedule = policy.next_run_at, settings.schedule
    assert due is not None
    scheduled, following = due, schedule.after(due)
    if following is not None and following <= moment:
        scheduled = max(schedule.latest(moment) or due, due)
        following = schedule.after(moment)
    runs: list[dict[str, Any]] = []
    if scheduled > due and scheduled + timedelta(minutes=schedule.start_window) > moment:
        # At least one scheduled time before this one passed, while nothing planned it.
        passed = schedule.latest(scheduled - timedelta(seconds=1)) or due
        runs += _runs(policy, settings, passed, moment, volumes, replaced=True)
    return following, runs + _runs(policy, settings, scheduled, moment, volumes, following=following)


def plan_now(session: Session, policy: models.BackupPolicy, moment: datetime, *, foreign: bool) -> None:
    """Plan runs of a policy that begin now, besides those of its schedule.

    :param policy: locked by the caller.
    :param foreign: whether there are foreign catalogues.
    :raises InvalidInput: too many of its runs wait already.
    """
    run = models.PolicyRun
    # By the status: a policy has many runs, of which few wait.
    mine = (run.status == WAITING, func.coalesce(run.policy_id, "") == policy.id)
    if (session.scalar(select(func.count()).where(*mine)) or 0) >= MOST_WAITING:
        raise InvalidInput(f"run: {MOST_WAITING} runs of the policy, or more, wait already.")
    settings = policy_settings.read(policy.settings)
    volumes = volumes_of(session, [(policy, settings)], foreign=foreign)[policy.id]
    insert(session, _runs(policy, settings, moment, moment, volumes, spread=False))


def plan_found(
    session: Session, search: models.PolicyRun, found: Mapping[str, Mapping[str, str]], moment: datetime
) -> None:
    """Plan the runs of volumes that a search has found, in the place of the search.

    :param search: locked by the caller; it is deleted.
    :param found: the project's volumes in foreign catalogues, by id, with their metadata.
    """
    policy = session.get_one(models.BackupPolicy, search.policy_id)
    settings = policy_settings.read(policy.settings)
    schedule, scheduled = settings.schedule, search.scheduled_at
    # A run by hand is of no scheduled time.
    spread = schedule.latest(scheduled) == scheduled
    following = schedule.after(scheduled) if spread else None
    volumes = meant(settings, found)
    runs = _runs(policy, settings, scheduled, moment, volumes, following=following, spread=spread)
    # They are as old as the search: if the policy was paused meanwhile, they are skipped, too.
    insert(session, [{**one, "created_at": search.created_at} for one in runs])
    session.delete(search)


def was_paused(policy: models.BackupPolicy, run: models.PolicyRun) -> bool:
    """Return whether a policy was paused after a run was planned; while it rests, it can be run by hand."""
    return not policy.enabled and policy.planned_at > run.created_at


def meant(settings: Settings, found: Mapping[str, Mapping[str, str]]) -> Sequence[str]:
    """Return which of the volumes that a search has found a policy backs up."""
    if settings.by_name:
        return ()
    asked = (settings.metadata or {}).items()
    return [one for one, pairs in found.items() if asked <= pairs.items()]


def _read(policy: models.BackupPolicy) -> Settings | None:
    """Return a policy's settings; None: they were right once and are not now; a zone was renamed, say."""
    try:
        return policy_settings.read(policy.settings)
    except InvalidInput as error:
        LOG.error("Backup policy %s cannot run: %s", policy.id, error)
        return None


def forget_future(session: Session) -> int:
    """Compute again what was computed while the clock was wrong and in the future; return how many policies.

    Without this a policy would not run until that future comes.
    """
    row = models.BackupPolicy
    moment = now(session)
    wrong = (row.planned_at > moment, row.next_run_at.is_not(None))
    ids = lock(session, row, *wrong, limit=BATCH, skip_locked=True)
    found = session.scalars(select(row).where(row.id.in_(ids))).all()
    for one in found:
        settings = _read(one)
        one.next_run_at = moment + _LATER if settings is None else settings.schedule.after(moment)
        one.planned_at = moment
    session.flush()
    return len(found)


def _runs(
    policy: models.BackupPolicy,
    settings: Settings,
    scheduled: datetime,
    moment: datetime,
    volumes: Iterable[str],
    *,
    following: datetime | None = None,
    spread: bool = True,
    replaced: bool = False,
) -> list[dict[str, Any]]:
    """Return the rows of one scheduled time; after its window they are missed.

    :param following: the next scheduled time: what has not begun then never does, because the next run takes
        its place.  So of each volume one run waits at a time.
    :param spread: begin them one after the other, as the jitter says.
    :param replaced: they are missed in any case, because those of a later time are planned, too.
    """
    when = settings.schedule
    before = scheduled + timedelta(minutes=when.start_window)
    end = None
    if when.completion_window is not None:
        end = scheduled + timedelta(minutes=when.completion_window)
    missed = replaced or before <= moment
    reason = None
    if missed:
        reason = "No worker planned it in time" + ("; the next run takes its place." if replaced else ".")
    common = {
        "policy_id": policy.id,
        "project_id": policy.project_id,
        "scheduled_at": scheduled,
        "end_before": end,
        "status": MISSED if missed else WAITING,
        "reason": reason,
        "ended_at": moment if missed else None,
        "tidied": missed,
        "created_at": moment,
    }
    rows = []
    for volume in volumes:
        offset = when.offset(volume) if spread and volume != NO_VOLUME else timedelta(0)
        rows.append(
            {
                **common,
                "id": str(uuid.uuid4()),
                "volume_id": volume,
                "begin_at": scheduled + offset,
                "begin_before": before if following is None else min(before, following + offset),
            }
        )
    return rows


def insert(session: Session, runs: Sequence[Mapping[str, Any]]) -> None:
    """Insert rows of runs; one that is there stays as it is."""
    if runs:
        session.execute(insert_if_absent(session, models.PolicyRun), runs)
    missed = [models.PolicyRun(**values) for values in runs if values["status"] == MISSED]
    for run in missed:
        _alert(session, run)
    for run in {run.policy_id: run for run in missed}.values():
        _post(session, run)
    for policy_id, number in sorted(Counter(run.policy_id for run in missed).items()):
        _count(session, policy_id, MISSED, number)


def tell(session: Session, run: models.PolicyRun) -> None:
    """Add the alert that a run was missed or has failed, and the message if no backup has one; count it.

    That locks its policy: who tells of several ones does it in the order of their policies.
    """
    _alert(session, run)
    if run.started_at is None:
        _post(session, run)
    _count(session, run.policy_id, run.status, 1)


def _count(session: Session, policy_id: str, status: str, number: int) -> None:
    row = models.BackupPolicy
    total = {MISSED: row.missed_runs, FAILED: row.failed_runs}[status]
    session.execute(
        update(row)
        .where(row.id == policy_id)
        .values({total: total + number})
        .execution_options(synchronize_session=False)
    )


def _alert(session: Session, run: models.PolicyRun) -> None:
    outbox.alert(
        session,
        f"policy.run.{run.status}",
        f"The run of backup policy {run.policy_id} {_of_what(run)} at"
        f" {run.scheduled_at.isoformat()}Z: {run.status}. {run.reason or ''}".rstrip(),
        project_id=run.project_id,
        on_bus=True,
        policy_id=run.policy_id,
        volume_id=None if run.volume_id == NO_VOLUME else run.volume_id,
        fail_reason=run.reason,
    )


def _post(session: Session, run: models.PolicyRun) -> None:
    """Tell the project's users of a run that made no backup."""
    messages.post(
        session,
        Action.CREATE_BACKUP,
        {MISSED: Detail.RUN_MISSED, FAILED: Detail.RUN_FAILED}[run.status],
        project_id=run.project_id,
        request_id=None,
        resource_type=messages.POLICY,
        resource_id=run.policy_id,
    )


def _of_what(run: models.PolicyRun) -> str:
    if run.volume_id == NO_VOLUME:
        return "for the project's volumes in foreign catalogues"
    return f"for volume {run.volume_id}"


def volumes_of(
    session: Session,
    policies: Sequence[tuple[models.BackupPolicy, Settings]],
    *,
    foreign: bool = False,
) -> dict[str, Sequence[str]]:
    """Return the ids of the volumes that policies back up, by policy, with two statements for all of them.

    Of policies that do not name their volumes these are ours; a mirror says what was there once.

    :param foreign: with :data:`NO_VOLUME`, which stands for the others.
    """
    found: dict[str, Sequence[str]] = {}
    searching = [(policy, settings) for policy, settings in policies if not settings.by_name]
    projects = {policy.project_id for policy, _ in searching}
    there: dict[str, list[str]] = {}
    pairs: dict[str, set[tuple[str, str]]] = {}
    if projects:
        row, pair = models.Volume, models.VolumeMetadata
        mine = (
            row.project_id.in_(projects),
            row.deleted.is_(False),
            row.mirrored_at.is_(None),
            row.status.not_in(NOT_THERE),
        )
        for volume, project in session.execute(select(row.id, row.project_id).where(*mine).order_by(row.id)):
            there.setdefault(project, []).append(volume)
        keys = {key for _, settings in searching for key in settings.metadata or {}}
        if keys:
            wanted = select(pair.volume_id, pair.key, pair.value).join(row, row.id == pair.volume_id)
            for volume, key, value in session.execute(wanted.where(*mine, pair.key.in_(keys))):
                pairs.setdefault(volume, set()).add((key, value))
    for policy, settings in policies:
        if settings.volume_ids is not None:
            found[policy.id] = settings.volume_ids
            continue
        asked = set((settings.metadata or {}).items())
        mine_all = there.get(policy.project_id, [])
        found[policy.id] = [one for one in mine_all if asked <= pairs.get(one, set())]
        if foreign:
            found[policy.id] = [*found[policy.id], NO_VOLUME]
    return found


def short(reason: str) -> str:
    """Cut a reason to the length of its column."""
    return tasks.short_reason(reason) or ""

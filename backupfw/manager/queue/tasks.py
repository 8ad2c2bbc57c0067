"""Tasks: rows that describe operations, and which worker runs them.

Workers find tasks in the table; a message only wakes a worker up.  A task is inserted in the transaction that
moves a resource to a transient status, and deleted in the transaction that moves it on, so a transient status
always has a task.  Every statement of a running attempt is conditional on its attempt number: an attempt
whose lease ended, and whose task another worker claimed, can change nothing any more.

Leases and delays are compared with the database's clock only.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import replace
from datetime import timedelta
from typing import Any, Literal

from oslo_log import log
from sqlalchemy import ColumnElement, CursorResult, Select, and_, delete, func, select, update
from sqlalchemy.orm import Session

from backupfw.context import RequestContext, working_for
from backupfw.db import models
from backupfw.db.locks import lock
from backupfw.db.session import Database, after, clock, now
from backupfw.errors import TaskCancelled, TaskLost
from backupfw.manager.lineage import lifecycle
from backupfw.manager.queue import claims, outbox, requirements
from backupfw.manager.queue.claims import QUEUED, RUNNING, Limits, Reach
from backupfw.manager.rows import Task

LOG = log.getLogger(__name__)

BACKUP_CREATE = "backup.create"
BACKUP_IMPORT = "backup.import"
BACKUP_RESTORE = "backup.restore"
BACKUP_DELETE = "backup.delete"
#: Copies a backup to another store; its resource is the manifest there.
BACKUP_COPY = "backup.copy"
MANIFEST_RELEASE = "manifest.release"
VOLUME_CREATE = "volume.create"
VOLUME_DELETE = "volume.delete"
VOLUME_EXTEND = "volume.extend"
SNAPSHOT_CREATE = "snapshot.create"
SNAPSHOT_DELETE = "snapshot.delete"
#: Removes what a volume's storage keeps for points that are not needed any more.
VOLUME_TIDY = requirements.VOLUME_TIDY
#: Verifies what is in a store: the manifests of one volume there.  It has a place of its own in each worker,
#: and no limit of running tasks counts it.
MANIFEST_SCRUB = requirements.MANIFEST_SCRUB
#: Verifies a backup in one of its places, because somebody asked for it.  Its resource is the manifest there,
#: and its source the backup; nothing that is done to the backup waits for it.
BACKUP_VERIFY = requirements.BACKUP_VERIFY
#: Thaws a volume whose freezing a lost attempt may not have undone.  It waits neither for a slot nor for a
#: limit of running tasks.
VOLUME_THAW = requirements.VOLUME_THAW

KINDS = frozenset(
    {
        BACKUP_CREATE,
        BACKUP_IMPORT,
        BACKUP_RESTORE,
        BACKUP_DELETE,
        BACKUP_COPY,
        MANIFEST_RELEASE,
        VOLUME_CREATE,
        VOLUME_DELETE,
        VOLUME_EXTEND,
        SNAPSHOT_CREATE,
        SNAPSHOT_DELETE,
        VOLUME_TIDY,
        MANIFEST_SCRUB,
        BACKUP_VERIFY,
        VOLUME_THAW,
    }
)
#: What the slots of a worker are for.
OF_SLOTS = KINDS - {MANIFEST_SCRUB}

#: How a task ended.
Outcome = Literal["done", "failed", "cancelled"]
#: Key of ``Session.info``: the function of this process that is called at each end of a task.
_HEARS = "backupfw_hears"
#: Longest ``fail_reason``.
REASON_LENGTH = models.TEXT_LENGTH


def add(
    session: Session,
    kind: str,
    *,
    resource_id: str,
    source_id: str | None,
    project_id: str,
    request_id: str | None,
    payload: dict[str, Any] | None = None,
    delay: float = 0,
    locked: bool = False,
) -> int:
    """Queue a task in the caller's transaction and return its id.

    :param resource_id: the resource of the task; tasks of one resource run one after the other.
    :param source_id: the volume or snapshot the task occupies, or None; likewise.
    :param payload: the task's input as JSON; ids only, no secrets.
    :param delay: seconds before it may be claimed.
    :param locked: whether that is because what it deletes is locked in its store.
    """
    assert kind in KINDS
    moment = now(session)
    wanted = requirements.of_task(session, kind, resource_id, payload or {})
    row = models.Task(
        kind=kind,
        resource_id=resource_id,
        source_id=source_id,
        project_id=project_id,
        request_id=request_id,
        payload=payload or {},
        state=QUEUED,
        not_before=moment + timedelta(seconds=delay) if delay else None,
        locked=locked,
        zone=wanted.zone,
        store=wanted.store,
        from_store=wanted.from_store,
        volume_host=wanted.volume_host,
        backend=wanted.backend,
        queue_position=claims.new_position(session, project_id),
        created_at=moment,
        updated_at=moment,
    )
    session.add(row)
    session.flush()
    return row.id


def cancel(session: Session, resource_id: str, kinds: Collection[str] | None = None) -> list[Task]:
    """Cancel all unfinished tasks of a resource, in the caller's transaction.

    A task that no worker ever claimed is deleted, unless its payload says that something was made for it in a
    foreign catalogue.  Any other task is marked; its worker, or the worker that takes it over, cleans up and
    discards it.

    :param kinds: only tasks of these kinds; None for all.
    :returns: the tasks that were cancelled, with the attempt they were at (0: never claimed).
    """
    row = models.Task
    unfinished = [row.resource_id == resource_id, row.cancel.is_(False)]
    if kinds is not None:
        unfinished.append(row.kind.in_(kinds))
    ids = lock(session, row, *unfinished)
    cancelled = []
    for found in session.scalars(select(row).where(row.id.in_(ids)).order_by(row.id)).all():
        task = as_task(found)
        cancelled.append(task)
        if task.attempt == 0 and not task.payload.get("made_there"):
            session.delete(found)
            ended(session, task, "cancelled")
        else:
            found.cancel = True
            # The clean-up must start at once.
            found.not_before = None
            found.updated_at = now(session)
    session.flush()
    return cancelled


def end(session: Session, task: Task, outcome: Outcome = "done") -> None:
    """Delete the task's row in the caller's transaction, which then moves the statuses.

    :raises TaskCancelled: it was cancelled meanwhile; the cancellation has moved the statuses.
    :raises TaskLost: another attempt owns it, or it ended.
    """
    row = models.Task
    result = session.execute(delete(row).where(_mine(task), row.cancel.is_(False)))
    assert isinstance(result, CursorResult)
    if not result.rowcount:
        raise lost(session, task)
    ended(session, task, outcome)


def ended(session: Session, task: Task, outcome: Outcome) -> None:
    """Report the end of a task, in the transaction that deletes its row.

    What a backup may leave in the storage of its volume is removed by tasks of their own, whatever the end.
    """
    outbox.ended(session, task)
    count_end(session, task, outcome)
    if task.kind in (BACKUP_CREATE, BACKUP_DELETE):
        backup = session.get(models.Backup, task.resource_id)
        if backup is not None:
            _remove_temp_snapshot(session, backup, task.request_id)
            tidy(session, backup.volume_id, task.request_id)


def _remove_temp_snapshot(session: Session, backup: models.Backup, request_id: str | None) -> None:
    """Queue the removal of the temporary snapshot that a backup still has."""
    if backup.temp_snapshot_id is None:
        return
    snapshot = session.get(models.Snapshot, backup.temp_snapshot_id)
    backup.temp_snapshot_id = None
    session.flush()
    if snapshot is not None:
        delete_snapshot(session, snapshot, request_id, source_id=snapshot.volume_id)


def delete_snapshot(
    session: Session, snapshot: models.Snapshot, request_id: str | None, *, source_id: str | None = None
) -> None:
    """Move a snapshot to ``deleting`` and queue its task, unless it is deleted.

    If a delete of its volume is queued already, it is queued again behind this one.

    :param source_id: see :func:`add`.
    """
    if not lifecycle.move(session, models.Snapshot, snapshot.id, lifecycle.SnapshotMoves.force_delete):
        return
    overtaken = cancel(session, snapshot.volume_id, (VOLUME_DELETE,))
    add(
        session,
        SNAPSHOT_DELETE,
        resource_id=snapshot.id,
        source_id=snapshot.volume_id if overtaken else source_id,
        project_id=snapshot.project_id,
        request_id=request_id,
    )
    for task in overtaken:
        again(session, task)


def again(session: Session, task: Task, delay: float = 0) -> None:
    """Queue the same task once more, in the transaction that ends it."""
    add(
        session,
        task.kind,
        resource_id=task.resource_id,
        source_id=task.source_id,
        project_id=task.project_id,
        request_id=task.request_id,
        payload=dict(task.payload),
        delay=delay,
    )


def tidy(session: Session, volume_id: str, request_id: str | None, *, leaves: bool = False) -> None:
    """Queue the removal of what a volume's storage keeps for points that are not needed any more.

    A worker that has the volume's back end does it; what is needed is decided then, after the commit of this
    transaction.  No user sees the task, and no other task waits for it; it is repeated until it succeeds.

    :param leaves: the volume is about to get another storage, so nothing in the present one is needed.
    """
    volume = session.get(models.Volume, volume_id)
    if volume is None or not volume.keeps_points:
        return
    former = {"location": volume.location, "storage_id": volume.storage_id} if leaves else {}
    row = models.Task
    # The lock keeps one that waits from being claimed before this transaction is committed.
    ids = lock(session, row, row.kind == VOLUME_TIDY, row.resource_id == volume_id, row.state == QUEUED)
    ids = [one for one in ids if session.get_one(row, one).payload == former]
    if ids:
        # One that failed is tried again now.
        session.execute(update(row).where(row.id.in_(ids)).values(not_before=None))
        return
    add(
        session,
        VOLUME_TIDY,
        resource_id=volume_id,
        source_id=None,
        project_id=volume.project_id,
        request_id=request_id,
        payload=former,
    )


def count_end(session: Session, task: Task, outcome: Outcome) -> None:
    """Count and log an end once the transaction is committed, also one that only users see.

    A failure is logged by the caller, which knows the error.
    """
    hear = session.info.get(_HEARS)

    def report() -> None:
        if hear is not None:
            hear(task.kind, outcome)
        words = {"done": "is done", "cancelled": "was cancelled"}.get(outcome)
        if words is not None:
            with working_for(RequestContext.of_task(task.project_id, task.request_id)):
                LOG.info("Task %s (%s of %s) %s", task.id, task.kind, task.resource_id, words)

    after(session, report)


def hear_ends(db: Database, hear: Callable[[str, Outcome], object]) -> None:
    """Set the function that is called after each committed end of a task by this process.

    It gets the kind and the outcome, and must not raise.  The end of an attempt that is followed by another
    one is not the end of a task.
    """
    db.info[_HEARS] = hear


def lost(session: Session, task: Task) -> TaskCancelled | TaskLost:
    """Return why a conditional statement of this attempt found no row."""
    mine = session.scalar(select(models.Task.id).where(_mine(task)))
    if mine is None:
        return TaskLost(f"task {task.id}, attempt {task.attempt}, is not ours any more")
    return TaskCancelled(f"task {task.id} was cancelled")


def hold(session: Session, task: Task, **values: Any) -> None:
    """Check that the task still belongs to this attempt, and lock it until the transaction ends.

    :param values: columns of the task's row to set in the same statement.
    :raises TaskCancelled: it was cancelled.
    :raises TaskLost: another attempt owns it, or it ended.
    """
    row = models.Task
    result = session.execute(
        update(row).where(_mine(task), row.cancel.is_(False)).values(updated_at=now(session), **values),
        execution_options={"synchronize_session": False},
    )
    assert isinstance(result, CursorResult)
    if not result.rowcount:
        raise lost(session, task)


def short_reason(reason: str | None) -> str | None:
    """Cut a reason to the length of ``fail_reason``."""
    return None if reason is None else reason[:REASON_LENGTH]


class Tasks:
    """Claims, leases and ends of tasks, for workers.  Thread-safe.

    :param db: the database.
    :param max_attempts: failed attempts after which a task is given up.
    :param limits: returns how many tasks may run now; asked at every claim.
    """

    def __init__(self, db: Database, max_attempts: int = 3, limits: Callable[[], Limits] = Limits) -> None:
        self._db = db
        self._max_attempts = max_attempts
        self._limits = limits
        #: The claims that were sent and not answered yet, by owner.
        self._unanswered: dict[str, Task] = {}
        #: What claims ask first; made once, because to make it takes longer than to ask.
        self._questions: dict[tuple[Reach | None, frozenset[str] | None], Select[bool]] = {}

    def claim(
        self,
        owner: str,
        lease_seconds: float,
        kinds: Collection[str] | None = None,
        reach: Reach | None = None,
    ) -> Task | None:
        """Claim the task that runs next, or return None.

        A task may run when it is queued and its delay is over, or when its lease ran out, no older
        unfinished task concerns the same resource or source, and no limit is reached.  An attempt lost
        with its lease counts as a failure unless it had made progress.  If a claim was
        committed but its answer was lost, the next call of this owner returns that task.

        :param owner: ``<host>/<anything>``; two live workers never share one, and each claims one task
            after the other.
        :param lease_seconds: how long the claim holds without :meth:`renew`.
        :param kinds: only these kinds; None for all.
        :param reach: only tasks that such workers can serve, and none while they are disabled; None for
            all.
        """
        # This costs one statement and no lock, and usually there is no task.
        if owner not in self._unanswered and not self._may_find(reach, kinds):
            return None

        def work(session: Session) -> Task | None:
            sent = self._unanswered.get(owner)
            if sent is not None and _is_claimed(session, sent, owner, lease_seconds):
                return sent
            found = claims.next_task(session, reach, self._limits(), kinds)
            if found is None:
                return None
            task = self._unanswered[owner] = _claimed(session, found, owner, lease_seconds)
            return task

        task = self._db.run(work)
        self._unanswered.pop(owner, None)
        return task

    def _may_find(self, reach: Reach | None, kinds: Collection[str] | None) -> bool:
        which = reach, None if kinds is None else frozenset(kinds)
        if which not in self._questions:
            self._questions[which] = claims.question(self._db.clock(), reach, kinds)
        ((found,),) = self._db.fetch(self._questions[which], {})
        return bool(found)

    def renew(self, owner: str, held: Collection[Task], lease_seconds: float) -> dict[int, bool]:
        """Keep an owner's tasks for ``lease_seconds`` from now, however many they are, all at once.

        :returns: the ids of the tasks that it still holds, each with whether it was cancelled.  The other
            tasks belong to another attempt, have ended, or their leases have ended, so that another task may
            have their place in a limit.
        """
        attempts = {task.id: task.attempt for task in held}
        row = models.Task

        def work(session: Session) -> dict[int, bool]:
            kept = (
                row.id.in_(attempts),
                row.owner == owner,
                row.state == RUNNING,
                row.lease_until > clock(session),
            )
            session.execute(
                update(row).where(*kept).values(lease_until=now(session) + timedelta(seconds=lease_seconds)),
                execution_options={"synchronize_session": False},
            )
            found = session.execute(select(row.id, row.attempt, row.cancel).where(*kept)).all()
            # This owner may have lost a task and claimed it again, under another attempt number.
            return {
                task_id: bool(cancel) for task_id, attempt, cancel in found if attempts[task_id] == attempt
            }

        return self._db.run(work)

    def cancelled(self, owner: str) -> set[int]:
        """Return the ids of an owner's running tasks that were cancelled."""
        row = models.Task
        with self._db.read() as session:
            return set(
                session.scalars(
                    select(row.id).where(row.state == RUNNING, row.owner == owner, row.cancel.is_(True))
                )
            )

    def checkpoint(self, task: Task, value: int) -> None:
        """Record the point up to which the work is durable; a later point counts as progress.

        :raises TaskCancelled: it was cancelled.
        :raises TaskLost: another attempt owns it, or it ended.
        """

        def work(session: Session) -> None:
            hold(session, task)
            row = models.Task
            session.execute(
                update(row)
                .where(row.id == task.id, row.checkpoint < value)
                .values(checkpoint=value, progressed=True),
                execution_options={"synchronize_session": False},
            )

        self._db.run(work)

    def progress(self, task: Task, done: int, total: int) -> None:
        """Record the task's progress in bytes, and its speed; for a backup's task in the backup's row, too.

        :raises TaskCancelled: it was cancelled.
        :raises TaskLost: another attempt owns it, or it ended.
        """

        def work(session: Session) -> None:
            hold(session, task, **_pace(session, task, done, total))
            session.execute(
                update(models.Backup)
                .where(models.Backup.id == task.resource_id)
                .values(progress_done=done, progress_total=total),
                execution_options={"synchronize_session": False},
            )

        self._db.run(work)

    def release(
        self, task: Task, delay: float = 0, *, store_down: bool = False, locked: bool = False
    ) -> None:
        """Give the task back to the queue; the attempt does not count (a shutdown, a store that is down).

        :param delay: seconds before it may be claimed again.
        :param store_down: whether that is because its store does not answer.
        :param locked: whether that is because what it deletes is locked in its store.
        :raises TaskLost: another attempt owns it, or it ended.
        """

        def work(session: Session) -> None:
            found = _locked(session, task)
            found.store_down, found.locked = store_down, locked
            # A cancelled task is cleaned up at once.
            _give_back(session, found, 0 if found.cancel else delay)

        self._db.run(work)

    def retry(self, task: Task, delay: float, reason: str | None = None) -> bool:
        """Give a failed attempt's task back to the queue, unless it was the last allowed one.

        An attempt that made progress does not count.

        :param delay: seconds before it may be claimed again.
        :param reason: why it failed; used when the task finally ends.
        :returns: whether it will be tried again; if not, this attempt must end the task.
        :raises TaskLost: another attempt owns it, or it ended.
        """

        def work(session: Session) -> bool:
            found = _locked(session, task)
            failures = found.failures + int(not found.progressed)
            if failures >= self._max_attempts and not found.cancel:
                return False
            found.failures = failures
            found.fail_reason = short_reason(reason) or found.fail_reason
            # A cancelled task is cleaned up at once.
            _give_back(session, found, 0 if found.cancel else delay)
            return True

        return self._db.run(work)

    def discard(self, task: Task) -> None:
        """End a cancelled task after its clean-up; the cancellation has moved the statuses.

        :raises TaskLost: another attempt owns it, or it ended, or it is not cancelled.
        """

        def work(session: Session) -> None:
            row = models.Task
            result = session.execute(delete(row).where(_mine(task), row.cancel.is_(True)))
            assert isinstance(result, CursorResult)
            if not result.rowcount:
                raise TaskLost(f"task {task.id}, attempt {task.attempt}, is not ours to discard")
            ended(session, task, "cancelled")

        self._db.run(work)

    def abandon_all(self, owner: str) -> int:
        """Give back all tasks of an owner that shuts down; none counts as failed.

        Only for an owner whose work has stopped.  Returns how many there were.
        """

        def work(session: Session) -> int:
            row = models.Task
            result = session.execute(
                update(row)
                .where(row.owner == owner, row.state == RUNNING)
                .values(state=QUEUED, owner=None, lease_until=None, not_before=None, updated_at=now(session)),
                execution_options={"synchronize_session": False},
            )
            assert isinstance(result, CursorResult)
            return int(result.rowcount)

        return self._db.run(work)

    def take_over(self, host: str) -> int:
        """End the leases of all owners of a host at once, for a process that is the only one there.

        Returns how many leases were ended.
        """

        def work(session: Session) -> int:
            row = models.Task
            result = session.execute(
                update(row)
                .where(row.state == RUNNING, row.owner.startswith(f"{host}/", autoescape=True))
                .values(lease_until=now(session)),
                execution_options={"synchronize_session": False},
            )
            assert isinstance(result, CursorResult)
            return int(result.rowcount)

        return self._db.run(work)

    def given_up(self, task: Task) -> bool:
        """Whether so many attempts were lost, with their workers, that no further one is allowed."""
        return task.failures >= self._max_attempts

    def pending(self) -> int:
        """Count the unfinished tasks."""
        with self._db.read() as session:
            return int(session.scalar(select(func.count()).select_from(models.Task)) or 0)


def _pace(session: Session, task: Task, done: int, total: int) -> dict[str, Any]:
    """Return the columns of a task's progress; the speed is smoothed over the reports."""
    row = models.Task
    before, rate, at = session.execute(
        select(row.progress_done, row.progress_rate, row.progress_at).where(row.id == task.id)
    ).one_or_none() or (0, 0, None)
    moment = now(session)
    seconds = None if at is None else (moment - at).total_seconds()
    if seconds is None or done < before:
        # The first report of an attempt.
        rate = 0
    elif seconds > 0:
        latest = (done - before) / seconds
        rate = int(latest if rate == 0 else (latest + rate) / 2)
    return {"progress_done": done, "progress_total": total, "progress_rate": rate, "progress_at": moment}


def _mine(task: Task) -> ColumnElement[bool]:
    """The condition that the row belongs to this attempt: not claimed by another since, nor given back."""
    row = models.Task
    return and_(row.id == task.id, row.attempt == task.attempt, row.state == RUNNING)


def _claimed(session: Session, found: models.Task, owner: str, lease_seconds: float) -> Task:
    taken_over = found.state == RUNNING
    if taken_over and not found.progressed:
        found.failures += 1
        found.fail_reason = found.fail_reason or "The worker was lost."
    moment = now(session)
    found.state = RUNNING
    found.owner = owner
    found.attempt += 1
    found.progressed = False
    found.progress_rate = 0
    found.progress_at = None
    found.lease_until = moment + timedelta(seconds=lease_seconds)
    found.not_before = None
    found.store_down = found.locked = False
    found.updated_at = moment
    session.flush()
    task = replace(as_task(found), taken_over=taken_over)
    outbox.begun(session, task)
    return task


def _is_claimed(session: Session, task: Task, owner: str, lease_seconds: float) -> bool:
    """Return whether a claim whose answer was lost was committed and is still valid; then renew its lease."""
    # This waits for the lost transaction, if the database still runs it.
    claims.lock_queue(session)
    row = models.Task
    result = session.execute(
        update(row)
        .where(_mine(task), row.owner == owner, row.lease_until > clock(session))
        .values(lease_until=now(session) + timedelta(seconds=lease_seconds)),
        execution_options={"synchronize_session": False},
    )
    assert isinstance(result, CursorResult)
    return bool(result.rowcount)


def _locked(session: Session, task: Task) -> models.Task:
    """Return the row of this attempt, locked.

    :raises TaskLost: another attempt owns it, or it ended.
    """
    if not lock(session, models.Task, _mine(task)):
        raise TaskLost(f"task {task.id}, attempt {task.attempt}, is not ours any more")
    return session.get_one(models.Task, task.id)


def _give_back(session: Session, found: models.Task, delay: float) -> None:
    moment = now(session)
    found.state = QUEUED
    found.owner = None
    found.lease_until = None
    found.not_before = moment + timedelta(seconds=delay) if delay else None
    found.updated_at = moment


def as_task(row: models.Task) -> Task:
    """Return the record of a task's row, as it is now."""
    return Task(
        id=row.id,
        kind=row.kind,
        resource_id=row.resource_id,
        source_id=row.source_id,
        project_id=row.project_id,
        request_id=row.request_id or "",
        attempt=row.attempt,
        failures=row.failures,
        checkpoint=row.checkpoint,
        cancel=row.cancel,
        payload=dict(row.payload),
        fail_reason=row.fail_reason,
    )

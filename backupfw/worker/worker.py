"""The worker: claims tasks, keeps their leases, runs them, and is the one place errors arrive at."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime

from oslo_log import log

from backupfw import moments
from backupfw.chunkstore.cancellation import cancelled_by
from backupfw.chunkstore.errors import DeleteFailed, Unavailable, locked_until
from backupfw.context import RequestContext, working_for
from backupfw.dispatch.base import Dispatch
from backupfw.errors import AttemptInVain, StillLocked, TaskCancelled, TaskLost
from backupfw.manager.queue import tasks
from backupfw.manager.rows import Task
from backupfw.outages import DATABASE_TROUBLES, Outages, Turns, database_words
from backupfw.worker.control import TaskControl, boot_time
from backupfw.worker.data_keys import KeyStoreDown
from backupfw.worker.handlers import Handler, Tools, handler_for
from backupfw.worker.leases import IGNORED_SECONDS, LeaseKeeper
from backupfw.worker.reasons import may_pass, message_detail, user_reason
from backupfw.worker.stores import StoreDown

LOG = log.getLogger(__name__)

_EXPIRY = "Tasks that wait could not be looked at"
_SCRUB = "What is to be scrubbed could not be looked for"
_RECORD = "What stores hold could not be recorded"
#: The longest pause before a failed task is tried again, seconds.
LONGEST_PAUSE = 60.0
#: The shortest pause before a store is asked again to delete what it says is locked, seconds.
SHORTEST_LOCK = 60.0


@dataclass(frozen=True, slots=True)
class WorkerSettings:
    """What a worker is configured with.

    :ivar host: this worker's host name, as users of ``os-services`` see it.
    :ivar slots: how many tasks run at once.
    :ivar lease_seconds: the length of a lease.
    :ivar retry_pause: seconds before a failed task is tried again; doubles with each failure.
    :ivar poll_seconds: how often an idle worker looks for tasks without a wake-up: delayed ones,
        ones whose leases ran out, lost wake-ups.
    :ivar beat_seconds: how often the worker reports that it lives.
    :ivar expire_seconds: seconds between two looks for tasks that no worker can take.
    :ivar scrub_seconds: seconds between two looks for something to scrub, if there was nothing.
    :ivar record_seconds: seconds between two looks whether it is time to record what stores hold.
    :ivar store_wait: seconds that tasks wait for a store that is down before they end in error.
    :ivar ignored_seconds: how long an attempt that was asked to end may go on before its lease is given up.
    """

    host: str
    slots: int
    lease_seconds: float
    retry_pause: float = 2.0
    poll_seconds: float = 1.0
    beat_seconds: float = 20.0
    expire_seconds: float = 1.0
    scrub_seconds: float = 60.0
    record_seconds: float = 600.0
    store_wait: float = 600.0
    ignored_seconds: float = IGNORED_SECONDS


class Worker:
    """Runs tasks until it is stopped.

    :param tools: what handlers work with.
    :param dispatch: wakes the worker up.
    :param settings: see :class:`WorkerSettings`.
    :param woken: is called after each wake-up; must not block.
    """

    def __init__(
        self,
        tools: Tools,
        dispatch: Dispatch,
        settings: WorkerSettings,
        woken: Callable[[], None] = lambda: None,
    ) -> None:
        self._tools = tools
        self._tasks = tools.tasks
        self._dispatch = dispatch
        self._woken = woken
        self._settings = settings
        self._owner = f"{settings.host}/{uuid.uuid4()}"
        self._outages = Outages()
        self._leases = LeaseKeeper(
            lambda held, seconds: self._tasks.renew(self._owner, held, seconds),
            self._report,
            lambda: self._tasks.cancelled(self._owner),
            settings.lease_seconds,
            tools.heartbeat,
            settings.beat_seconds,
            settings.ignored_seconds,
            self._outages,
        )
        # Each store has one scrub at a time, beside the slots: it may run for days, and no other task and no
        # other store waits for it.
        scrubs = 1 if tools.reach is None else max(1, len(tools.reach.stores))
        # Programs wait for a volume that is frozen, so its thawing does not wait for a slot.
        self._pool = ThreadPoolExecutor(settings.slots + scrubs + 1, thread_name_prefix="task")
        self._slots = threading.Semaphore(settings.slots)
        self._scrub_slots = threading.Semaphore(scrubs)
        self._thaw_slots = threading.Semaphore(1)
        self._turns = Turns(self._outages)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="claims", daemon=True)

    def _report(self, task: Task, done: int, total: int) -> None:
        self._tasks.progress(task, done, total)
        if self._tools.outbox is not None:
            self._tools.outbox.progressed(task, done, total)

    def _nudge(self) -> None:
        """Have the event sent soon that a task began, or ended."""
        if self._tools.outbox is not None:
            self._tools.outbox.nudge()

    def start(self) -> None:
        """Announce the worker and start claiming."""
        self._tools.heartbeat()
        self._leases.start()
        self._thread.start()

    def stop(self) -> None:
        """End running attempts within seconds, give their tasks back and return."""
        self._stopping.set()
        self._dispatch.nudge()
        # Running attempts end at once; they do not wait for the claiming thread, which may read the database.
        self._leases.shutdown()
        self._thread.join()
        # That thread may have claimed one more task before it ended.
        self._leases.shutdown()
        self._pool.shutdown(wait=True)
        self._leases.close()
        # Each attempt gave its task back itself, unless the database did not answer just then.
        self._tasks.abandon_all(self._owner)

    def runs(self) -> bool:
        """Whether tasks are claimed and leases kept."""
        return self._thread.is_alive() and self._leases.runs()

    def _run(self) -> None:
        turns, settings = self._turns, self._settings
        while not self._stopping.is_set():
            if turns.is_due(_EXPIRY, settings.expire_seconds):
                # An error here must not keep other tasks from being claimed.
                with self._outages.guard(_EXPIRY):
                    self._tools.expire_waiting()
            if turns.is_due(_SCRUB, settings.scrub_seconds):
                with self._outages.guard(_SCRUB):
                    self._tools.queue_scrubs()
                    while not self._stopping.is_set() and self._claim_one(
                        self._scrub_slots, (tasks.MANIFEST_SCRUB,)
                    ):
                        pass
            if turns.is_due(_RECORD, settings.record_seconds):
                with self._outages.guard(_RECORD):
                    self._tools.record_usage()
            with self._outages.guard("Tasks could not be claimed"):
                while not self._stopping.is_set() and self._claim_one(self._slots, tasks.OF_SLOTS):
                    pass
                if self._is_full():
                    self._claim_one(self._thaw_slots, (tasks.VOLUME_THAW,))
            if self._dispatch.wait(self._settings.poll_seconds):
                # It may also mean that a running task was cancelled.
                self._leases.poke()
                self._woken()

    def _is_full(self) -> bool:
        """Whether all slots are taken; only the thread that claims may ask."""
        if not self._slots.acquire(blocking=False):
            return True
        self._slots.release()
        return False

    def _claim_one(self, slots: threading.Semaphore, kinds: Collection[str]) -> bool:
        """Claim and start one task; returns whether there may be more to claim now."""
        if not slots.acquire(blocking=False):
            return False
        started = False
        try:
            claimed_at = boot_time()
            task = self._tasks.claim(self._owner, self._settings.lease_seconds, kinds, self._tools.reach)
            if task is None:
                return False
            control = self._leases.hold(task, claimed_at)
            self._pool.submit(self._run_in, slots, task, control)
            started = True
            return True
        finally:
            if not started:
                slots.release()

    def _run_in(self, slots: threading.Semaphore, task: Task, control: TaskControl) -> None:
        try:
            self._run_task(task, control)
        finally:
            slots.release()
            if slots is self._scrub_slots:
                self._turns.hurry(_SCRUB)
            self._dispatch.nudge()

    def _run_task(self, task: Task, control: TaskControl) -> None:
        try:
            handler = handler_for(task.kind, self._tools)
            with working_for(RequestContext.of_task(task.project_id, task.request_id)):
                self._nudge()
                self._attempt(handler, task, control)
        except TaskLost:
            LOG.warning("Attempt %s of task %s (%s) lost its lease", task.attempt, task.id, task.kind)
        except DATABASE_TROUBLES as error:
            # Not even the outcome could be written: the lease runs out and another attempt takes over.
            LOG.error(
                "The outcome of task %s (%s) could not be recorded; the database failed: %s",
                task.id,
                task.kind,
                database_words(error),
            )
        except Exception:
            LOG.exception("The outcome of task %s (%s) could not be recorded", task.id, task.kind)
        finally:
            self._nudge()
            self._leases.drop(task)

    def _attempt(self, handler: Handler, task: Task, control: TaskControl) -> None:
        """Run one attempt to its end.  Every error of a task arrives here."""
        LOG.info("Task %s: %s of %s, attempt %s", task.id, task.kind, task.resource_id, task.attempt)
        self._tools.meter.attempt(task.kind, task.taken_over)
        try:
            if task.cancel:
                control.left()
                raise TaskCancelled("The task was cancelled.")
            if self._tasks.given_up(task):
                control.left()
                # All allowed attempts were lost.  Perhaps the task kills its worker, so it is not run again.
                reason = task.fail_reason or "Every attempt was lost."
                LOG.error("Task %s (%s of %s) ends: %s", task.id, task.kind, task.resource_id, reason)
                handler.failed(task, reason)
                return
            # A call that hangs in a store ends, too, when the attempt must end.
            try:
                with cancelled_by(control.check):
                    handler.run(task, control)
            finally:
                control.left()
        except TaskCancelled:
            self._stopped(handler, task, control)
        except TaskLost:
            raise
        except Exception as error:  # noqa: BLE001  (every error of a task ends here)
            try:
                self._failed(handler, task, control, error)
            except TaskCancelled:
                # It was cancelled while it failed.
                self._stopped(handler, task, control)

    def _stopped(self, handler: Handler, task: Task, control: TaskControl) -> None:
        """End an attempt that was asked to end; a cancellation has moved the statuses already."""
        if control.for_shutdown:
            self._tasks.release(task)
        else:
            handler.cancelled(task)

    def _failed(self, handler: Handler, task: Task, control: TaskControl, error: Exception) -> None:
        reason = user_reason(error, task.request_id)
        if isinstance(error, AttemptInVain):
            LOG.info("Task %s is tried again in %.0f s: %s", task.id, error.seconds, error)
            if isinstance(error, StillLocked):
                handler.locked(task, error.until, error.seconds)
            else:
                self._tasks.release(task, error.seconds)
            return
        until = locked_until(error)
        if until is not None:
            # Locked longer than the database knew.  The store's clock may be late.
            seconds = max(SHORTEST_LOCK, (until - datetime.now(UTC)).total_seconds())
            LOG.info("Task %s is tried again in %.0f s: %s", task.id, seconds, error)
            handler.locked(task, moments.utc(until), seconds)
            return
        if isinstance(error, StoreDown):
            self._without_store(handler, task, error, reason)
            return
        if isinstance(error, KeyStoreDown) and error.seconds < self._settings.store_wait:
            # As with a store that is down, this does not count as an attempt.
            LOG.warning("Task %s waits: %s", task.id, error)
            self._tasks.release(task, min(max(1.0, error.seconds / 4), LONGEST_PAUSE))
            return
        silent = _silent_store(error)
        if silent is not None:
            with cancelled_by(control.check):
                down = self._tools.stores.failed(silent)
            if down:
                # This does not count as an attempt: each worker process learns only by a failure that the
                # store is down, and there may be more processes than allowed attempts.
                self._tasks.release(task, self._settings.retry_pause, store_down=True)
                return
        delay = min(self._settings.retry_pause * 2.0**task.failures, LONGEST_PAUSE)
        if may_pass(error) and self._tasks.retry(task, delay, reason):
            LOG.warning(
                "Task %s (%s of %s) failed, trying again in %s s: %s",
                task.id,
                task.kind,
                task.resource_id,
                delay,
                error,
            )
            return
        if isinstance(error, handler.refusals):
            LOG.warning("Task %s (%s of %s) is refused: %s", task.id, task.kind, task.resource_id, error)
            handler.failed_with(task, reason, message_detail(error))
            return
        LOG.error("Task %s (%s of %s) failed", task.id, task.kind, task.resource_id, exc_info=error)
        handler.failed_with(task, reason, message_detail(error))

    def _without_store(self, handler: Handler, task: Task, error: StoreDown, reason: str) -> None:
        """Give back a task whose store is down, before any work; this does not count as a failed attempt."""
        if handler.waits_for_stores or error.seconds < self._settings.store_wait:
            pause = min(max(1.0, error.seconds / 4), LONGEST_PAUSE)
            self._tasks.release(task, pause, store_down=True)
            return
        if not self._tools.stores.still_down(error.store):
            self._tasks.release(task)
            return
        LOG.error("Task %s (%s of %s) ends: %s", task.id, task.kind, task.resource_id, error)
        handler.failed(task, reason)


def _silent_store(error: Exception) -> str | None:
    """Return the store that did not answer, at all or half-way through a delete; None: it was not that."""
    errors = error.errors.values() if isinstance(error, DeleteFailed) else (error,)
    return next((each.store for each in errors if isinstance(each, Unavailable)), None)

"""Keeps the leases of running tasks and carries cancellations to them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from oslo_log import log

from backupfw.errors import TaskCancelled, TaskLost
from backupfw.manager.queue.tasks import BACKUP_CREATE, BACKUP_RESTORE
from backupfw.manager.rows import Task
from backupfw.outages import Outages
from backupfw.worker.control import TaskControl, boot_time

LOG = log.getLogger(__name__)

_CANCELLED = "Cancelled tasks could not be looked for"
#: A lease is renewed when this share of it has passed.
RENEW_AFTER = 1 / 3
#: A lease is not trusted after this share of it: the rest is for a write that has begun.
TRUST_UNTIL = 0.9
#: Seconds after which an attempt loses its lease if it was asked to end and did not.  The engine checks every
#: few seconds; only a hanging storage of a volume keeps it longer.
IGNORED_SECONDS = 60.0
#: Kinds of tasks that may lose it: a late write of theirs is fenced, and their objects have their own keys.
#: Other kinds, such as an extension, cannot be fenced, so the next task on the volume must wait for their
#: end.
GIVEN_UP = frozenset({BACKUP_CREATE, BACKUP_RESTORE})


@dataclass(frozen=True, slots=True)
class _Held:
    task: Task
    control: TaskControl


class LeaseKeeper:
    """Renews every held task in one thread.  Thread-safe.

    All leases are renewed in one transaction, before progress is reported: with many tasks and a slow
    database the last renewal would be too late otherwise.

    A backup or restore that hangs where nothing can end it (a volume on dead storage) keeps its task until
    it is cancelled.  Then its lease is given up, and another attempt cleans up.

    :param renew: ``Tasks.renew`` bound to this worker: takes the tasks and the lease in seconds,
        returns the ids of those that are kept, each with whether it was cancelled.
    :param lease_seconds: the length of a lease.
    :param report: writes and sends progress: takes the task, and bytes done and in total.
    :param cancelled: returns the ids of this worker's tasks that are cancelled.
    :param beat: the worker's own heartbeat.
    :param beat_seconds: how often it is called.
    :param ignored_seconds: how long an attempt that was asked to end may go on.
    :param outages: the worker's activities that fail now.
    """

    def __init__(
        self,
        renew: Callable[[Collection[Task], float], Mapping[int, bool]],
        report: Callable[[Task, int, int], None],
        cancelled: Callable[[], Collection[int]],
        lease_seconds: float,
        beat: Callable[[], None],
        beat_seconds: float,
        ignored_seconds: float,
        outages: Outages,
    ) -> None:
        self._renew = renew
        self._report = report
        self._cancelled = cancelled
        self._lease_seconds = lease_seconds
        self._beat = beat
        self._beat_seconds = beat_seconds
        self._ignored_seconds = ignored_seconds
        self._outages = outages
        self._held: dict[int, _Held] = {}
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="leases", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def runs(self) -> bool:
        """Whether leases are being renewed."""
        return self._thread.is_alive()

    def deadline(self, before_renewal: float) -> float:
        """The boot time until which a lease that was asked for at ``before_renewal`` is trusted."""
        return before_renewal + self._lease_seconds * TRUST_UNTIL

    def hold(self, task: Task, claimed_at: float) -> TaskControl:
        """Keep the lease of a task just claimed.

        :param claimed_at: boot time read before the claim was sent.
        """
        control = TaskControl(self.deadline(claimed_at))
        with self._lock:
            self._held[task.id] = _Held(task, control)
        return control

    def drop(self, task: Task) -> None:
        """Stop keeping a task's lease."""
        with self._lock:
            held = self._held.get(task.id)
            # This worker may have claimed the task again after it lost it: that lease is another one.
            if held is not None and held.task.attempt == task.attempt:
                del self._held[task.id]

    def poke(self) -> None:
        """Look at once whether a held task was cancelled."""
        self._wake.set()

    def shutdown(self) -> None:
        """Ask every held task to end because the worker does."""
        for item in self._all_held():
            item.control.shutdown()

    def close(self) -> None:
        """Stop the thread; leases are not renewed any more."""
        self._closing.set()
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        next_beat = time.monotonic() + self._beat_seconds
        next_round = time.monotonic() + self._lease_seconds * RENEW_AFTER
        while not self._closing.is_set():
            self._wake.wait(max(0.0, min(next_beat, next_round) - time.monotonic()))
            poked = self._wake.is_set()
            self._wake.clear()
            if self._closing.is_set():
                return
            moment = time.monotonic()
            if moment >= next_beat:
                next_beat = moment + self._beat_seconds
                self._beat_once()
            if moment >= next_round:
                next_round = moment + self._lease_seconds * RENEW_AFTER
                going_on = self._renew_all()
                # The next renewal must not wait for reports: those that are left out now come after it.
                with self._outages.guard("The progress of tasks could not be written"):
                    self._report_all(going_on, next_round)
            elif poked or self._outages.fails(_CANCELLED):
                self._report_cancelled()

    def _all_held(self) -> list[_Held]:
        with self._lock:
            return list(self._held.values())

    def _beat_once(self) -> None:
        with self._outages.guard("The worker's heartbeat could not be written"):
            self._beat()

    def _report_cancelled(self) -> None:
        """Tell the attempts whose tasks were cancelled; costs nothing while none is held."""
        with self._outages.guard(_CANCELLED):
            held = self._all_held()
            cancelled = self._cancelled() if held else ()
            for item in held:
                if item.task.id in cancelled:
                    item.control.cancel()

    def _renew_all(self) -> list[_Held]:
        """Renew all leases; returns the tasks that go on."""
        going_on: list[_Held] = []
        # The database may be back before the deadlines; if not, they end the attempts.
        with self._outages.guard("Leases could not be renewed"):
            held = [item for item in self._all_held() if self._is_kept(item)]
            if not held:
                return []
            before = boot_time()
            kept = self._renew([item.task for item in held], self._lease_seconds)
            for item in held:
                cancelled = kept.get(item.task.id)
                if cancelled is None:
                    item.control.lose()
                    continue
                item.control.extend(self.deadline(before))
                if cancelled:
                    item.control.cancel()
                else:
                    going_on.append(item)
        return going_on

    def _is_kept(self, item: _Held) -> bool:
        """Whether a task's lease is to be renewed; gives up that of an attempt that does not end."""
        ignores = item.control.ignored_seconds() > self._ignored_seconds
        if ignores and item.task.kind in GIVEN_UP and not item.control.lost:
            LOG.error(
                "Task %s (%s of %s) was cancelled and does not end; its lease is given up",
                item.task.id,
                item.task.kind,
                item.task.resource_id,
            )
            item.control.lose()
        return not item.control.lost

    def _report_all(self, going_on: Collection[_Held], until: float) -> None:
        """Report the progress of tasks; one that cannot be reported does not keep others from it.

        :param until: no report begins later (monotonic).
        :raises Exception: what the first one that failed raised.
        """
        failures: list[Exception] = []
        for item in going_on:
            if time.monotonic() < until:
                try:
                    self._report_one(item)
                except Exception as error:  # noqa: BLE001  (raised below)
                    failures.append(error)
        if failures:
            raise failures[0]

    def _report_one(self, item: _Held) -> None:
        done, total = item.control.progress_seen
        if not total:
            return
        try:
            self._report(item.task, done, total)
        except TaskCancelled:
            item.control.cancel()
        except TaskLost:
            item.control.lose()

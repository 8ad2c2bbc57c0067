"""Lets programs rest while the point of a backup is taken: freezes its volume, and thaws it in any case.

The provider says when it takes the point (:mod:`backupfw.volume.taking`), here is what is done around that.
A volume is thawed by whoever is first: the thread that took the point, the one that watches the time and the
end of the attempt, or, if this process is gone, another worker (:mod:`backupfw.manager.outcomes.freezing`).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from oslo_log import log

from backupfw import crash_points
from backupfw.conf.quiesce import QuiesceCommands
from backupfw.errors import BackupfwError, TaskStopped
from backupfw.manager import rows
from backupfw.manager.outcomes.freezing import FreezeTasks
from backupfw.manager.rows import Task
from backupfw.outages import DATABASE_TROUBLES
from backupfw.volume.taking import taken_in
from backupfw.worker import commands
from backupfw.worker.commands import CommandFailed
from backupfw.worker.control import TaskControl, boot_time

LOG = log.getLogger(__name__)

#: Seconds between two looks at the time, and at what else ends the freezing.
_POLL = 0.1
#: Seconds by which another worker thaws a volume later than this one must have done it.
_RESERVE = 15.0

_UNKNOWN = "The worker has no quiesce commands {}."
_MISSING = "The commands that freeze and thaw the volume could not be run."
_FAILED = "The command that freezes the volume has failed."
_LATE = "The point was not taken within the {} seconds for which the volume may be frozen."
_NOT_TAKEN = "The point could not be taken."
_BUSY = "The volume was still being thawed after an attempt that was lost."
_NO_MOMENT = "The volume's storage does not take points at one moment, so the volume was not frozen."


class ThawFailed(BackupfwError):
    """A volume could not be thawed."""

    may_pass = True


def values(volume: rows.Volume) -> Mapping[str, str]:
    """Return what the placeholders of commands stand for."""
    return {"volume_id": volume.id, "project_id": volume.project_id, "location": volume.location or ""}


def thaw(found: QuiesceCommands | None, name: str, volume: rows.Volume, control: TaskControl) -> None:
    """Thaw a volume that a lost attempt may have frozen.

    :raises ThawFailed: the command failed, or there is none.
    """
    if found is None:
        LOG.error("Volume %s may be frozen, but there is no section [quiesce:%s]", volume.id, name)
        raise ThawFailed(_UNKNOWN.format(name))
    try:
        commands.run(commands.filled(found.thaw, values(volume)), found.timeout, control.check)
    except CommandFailed as error:
        LOG.error("Volume %s may be frozen: %s", volume.id, error)
        raise ThawFailed("The command that thaws the volume has failed.") from error


class Quiescing:
    """What is done for one attempt.

    :param found: the commands; None: this worker has none of that name.
    :param name: their name.
    """

    def __init__(
        self,
        freezing: FreezeTasks,
        task: Task,
        volume: rows.Volume,
        control: TaskControl,
        found: QuiesceCommands | None,
        name: str,
    ) -> None:
        self._freezing = freezing
        self._task = task
        self._volume = volume
        self._control = control
        self._found = found
        self._name = name
        self._frozen: _Frozen | None = None
        #: Whether a point was taken, frozen or not.
        self.was_taken = False

    @contextmanager
    def around(self, *, writes: bool) -> Iterator[None]:
        """Within the block, a point of the volume is taken while that is frozen; behind it, it is thawed.

        :param writes: whether a program may write to the volume.
        """
        with taken_in(self._taking):
            try:
                yield
            finally:
                # A call that hangs was left behind; the attempt ends all the same.
                if self._frozen is not None:
                    self._frozen.thaw(late=True)
        if not self.was_taken:
            self._freezing.leave(self._task, _NO_MOMENT if writes else None)

    @contextmanager
    def _taking(self) -> Iterator[None]:
        self.was_taken = True
        found = self._found
        if found is None:
            LOG.error("Backup %s: no section [quiesce:%s]", self._task.resource_id, self._name)
            self._freezing.refuse(self._task, _UNKNOWN.format(self._name))
            yield
            return
        due, thaw_ids = self._begin(found)
        if thaw_ids is None:
            self._freezing.refuse(self._task, _BUSY)
            yield
            return
        crash_points.reach("quiesce.begun")
        frozen = self._frozen = _Frozen(found, self._volume, self._control, due)
        reason: str | None = _NOT_TAKEN
        try:
            problem = frozen.freeze()
            if problem is not None:
                # It may be half frozen.
                frozen.thaw()
            crash_points.reach("quiesce.frozen")
            yield
            reason = problem
            crash_points.reach("quiesce.taken")
        finally:
            frozen.thaw()
            crash_points.reach("quiesce.thawed")
            if frozen.late and reason is None:
                reason = _LATE.format(found.frozen_seconds)
            self._end(thaw_ids, reason, frozen)

    def _begin(self, found: QuiesceCommands) -> tuple[float, Sequence[int] | None]:
        """Let another worker thaw the volume if this one does not.

        :returns: boot time from which on it does, and the tasks; None: one thaws it now, for too long.
        """
        seconds = found.timeout + found.frozen_seconds + _RESERVE
        give_up = boot_time() + 2 * found.timeout
        while True:
            moment = boot_time()
            thaw_ids = self._freezing.begin(self._task, self._name, seconds)
            if thaw_ids is not None or moment >= give_up:
                return moment + seconds, thaw_ids
            self._control.check()
            time.sleep(_POLL)

    def _end(self, thaw_ids: Sequence[int], reason: str | None, frozen: _Frozen) -> None:
        if reason is not None:
            LOG.warning("Backup %s is not quiesced: %s", self._task.resource_id, reason)
        try:
            self._freezing.end(self._task, thaw_ids, reason, thawed=frozen.is_thawed)
        except DATABASE_TROUBLES:
            # The attempt finds that out by itself; the volume is thawed once more later.
            LOG.exception("How volume %s was frozen could not be recorded", self._volume.id)


class _Frozen:
    """A volume that is frozen, or perhaps is.  Thread-safe.

    :param due: boot time from which on another worker thaws it.
    :ivar late: it was thawed before the point was taken, because that took too long or the attempt ended.
    :ivar is_thawed: the command that thaws it succeeded, or nothing had been frozen.
    """

    def __init__(self, found: QuiesceCommands, volume: rows.Volume, control: TaskControl, due: float) -> None:
        self._found = found
        self._values = values(volume)
        self._thaw_command: list[str] = []
        self._volume_id = volume.id
        self._control = control
        self._due = due
        # Whoever thaws waits until the command that freezes has ended, or is dead.
        self._lock = threading.Lock()
        self._done = threading.Event()
        self._started = False
        #: Boot time at which the command that freezes had succeeded.
        self._frozen_at: float | None = None
        self.late = False
        self.is_thawed = True

    def freeze(self) -> str | None:
        """Freeze the volume, and see to it that it is not frozen for too long.

        :returns: why it is not frozen, for users; None: it is.
        :raises TaskStopped: the attempt must end.
        """
        with self._lock:
            if self._done.is_set():
                # The attempt has ended without us.
                self._control.check()
                return _NOT_TAKEN
            try:
                # Nothing is frozen that could not be thawed.
                self._thaw_command = commands.filled(self._found.thaw, self._values)
                command = commands.filled(self._found.freeze, self._values)
                # This process may have stood still until now.
                self._control.check()
                self._started = True
                commands.run(command, self._found.timeout, self._control.check)
                self._frozen_at = boot_time()
            except CommandFailed as error:
                LOG.error("Volume %s is not frozen: %s", self._volume_id, error)
                self._started = error.started
                return _FAILED if error.started else _MISSING
        threading.Thread(target=self._watch, name="frozen", daemon=True).start()
        return None

    def _watch(self) -> None:
        until = boot_time() + self._found.frozen_seconds
        while not self._done.wait(_POLL):
            if boot_time() >= until or self._must_end():
                self.thaw(late=True)

    def _must_end(self) -> bool:
        try:
            self._control.check()
        except TaskStopped:
            return True
        return False

    def thaw(self, *, late: bool = False) -> None:
        """Thaw it, unless that was done.

        :param late: the point is not taken yet.
        """
        with self._lock:
            if self._done.is_set():
                return
            self.late = late
            if self._frozen_at is not None and self._frozen_at < self._due <= boot_time():
                # This process stood still since then.  The next attempt may have frozen the volume by now.
                LOG.warning("The thawing of volume %s is left to another worker", self._volume_id)
                self.is_thawed = False
            elif self._started:
                try:
                    commands.run(self._thaw_command, self._found.timeout)
                except CommandFailed as error:
                    LOG.error("Volume %s may be frozen; that is tried again: %s", self._volume_id, error)
                    self.is_thawed = False
            self._done.set()

"""``backup.restore``: write a backup to a new or an existing volume."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent import futures
from contextvars import copy_context
from functools import partial

from backupfw import steps
from backupfw.engine import restore as engine
from backupfw.engine.format.manifest import read_head
from backupfw.engine.ports import Checkpoint
from backupfw.errors import Damaged
from backupfw.manager.messages import Detail
from backupfw.manager.restore_tasks import RestorePlan
from backupfw.manager.tasks import Task
from backupfw.volume.base import VolumeRef
from backupfw.worker.control import TaskControl
from backupfw.worker.handlers.base import Handler, restored_volume, volume_ref

#: How often a wait for the database asks whether the attempt must end, seconds.
_LOOK = 0.25


class BackupRestore(Handler):
    """Restores a backup, or goes on from the last checkpoint of an earlier attempt."""

    def run(self, task: Task, control: TaskControl) -> None:
        """See :meth:`Handler.run`."""
        tools = self._tools
        steps.reach("restore.begun")
        plan = tools.backups.start_restore(task)
        steps.reach("restore.planned")
        container = tools.stores.container(plan.store, plan.container)
        try:
            # Read before the target is opened: a backup that is gone costs the volume nothing.
            head = read_head(container, plan.key)
            target = self._made(task, plan, control)
            steps.reach("restore.made")
            checkpoint = Checkpoint(
                plan.checkpoint,
                lambda segment: _heeded(partial(tools.tasks.checkpoint, task, segment), control),
            )
            with tools.provider.open_target(target, _fence_number(task)) as opened:
                steps.reach("restore.opened")
                engine.run(plan.key, container, opened, control, checkpoint, streams=tools.engine.streams)
        except Damaged as error:
            # The next incremental stores the blocks of a damaged object anew.
            tools.backups.record_damage(plan.store, plan.container, error.key, error.reason)
            raise
        steps.reach("restore.written")
        control.check()
        tools.backups.finish_restore(task, restored_volume(head.record))
        steps.reach("restore.committed")

    def failed(self, task: Task, reason: str) -> None:
        """See :meth:`Handler.failed`."""
        self._tools.backups.fail_restore(task, reason)

    def failed_with(self, task: Task, reason: str, detail: Detail | None) -> None:
        """See :meth:`Handler.failed_with`."""
        self._tools.backups.fail_restore(task, reason, detail)

    def _made(self, task: Task, plan: RestorePlan, control: TaskControl) -> VolumeRef:
        """Return the target, made first if this restore is to make it."""
        target = volume_ref(plan.volume)
        if target.location is not None:
            return target
        if self._tools.volume_host is not None:
            self._tools.backups.bind_target(task, self._tools.volume_host)
        location = self._tools.provider.create(target, None, control.check)
        self._tools.backups.set_location(task, location)
        return VolumeRef(target.id, target.length, location)


def _fence_number(task: Task) -> int:
    """Return a number that grows from attempt to attempt over all tasks of a volume."""
    return (task.id << 20) + task.attempt


def _heeded(call: Callable[[], None], control: TaskControl) -> None:
    """Make a call of the database that keeps no attempt from ending, and so from closing its target.

    One that hangs is left to itself: what it changes is conditional on the attempt, and true.
    """
    done: futures.Future[None] = futures.Future()

    def run() -> None:
        try:
            call()
        except BaseException as error:  # noqa: BLE001  (raised again where it is waited for)
            done.set_exception(error)
        else:
            done.set_result(None)

    threading.Thread(target=copy_context().run, args=(run,), name="checkpoint", daemon=True).start()
    while not futures.wait((done,), _LOOK).done:
        control.check()
    done.result()

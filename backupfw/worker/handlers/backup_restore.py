"""``backup.restore``: write a backup to a new or an existing volume."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from oslo_log import log

from backupfw import crash_points
from backupfw.engine.ports import Checkpoint
from backupfw.errors import TaskLost
from backupfw.manager.messages import Detail
from backupfw.manager.outcomes.restoring import RestoredVolume, RestorePlan
from backupfw.manager.rows import Task
from backupfw.manager.rules.volume_rules import is_followed
from backupfw.volume.base import Restored, VolumeProvider, VolumeRef
from backupfw.worker.cancellable import PROVIDER_GRACE, opened, run_cancellable
from backupfw.worker.control import TaskControl
from backupfw.worker.copies import Copies, Opened
from backupfw.worker.handlers.base import Handler, encryption, restored_volume, volume_ref

LOG = log.getLogger(__name__)


class BackupRestore(Handler):
    """Restores a backup, or goes on from the last checkpoint of an earlier attempt."""

    def run(self, task: Task, control: TaskControl) -> None:
        """See :meth:`Handler.run`."""
        tools = self._tools
        crash_points.reach("restore.begun")
        plan = tools.backups.restoring.start(task)
        crash_points.reach("restore.planned")
        record, target, provider = self._restore(task, plan, control)
        crash_points.reach("restore.written")
        control.check()
        source = restored_volume(record)
        # Before the commit: a task that is tried again does it again.
        run_cancellable(
            partial(provider.end_restore, target, _described(source)), control, grace=PROVIDER_GRACE
        )
        tools.backups.restoring.finish(task, source)
        crash_points.reach("restore.committed")

    def _restore(
        self, task: Task, plan: RestorePlan, control: TaskControl
    ) -> tuple[Mapping[str, Any], VolumeRef, VolumeProvider]:
        """Write the target; returns the backup's record, the target and its provider.

        :raises Damaged: an object is, in every store.
        """
        tools = self._tools
        reached = plan.checkpoint

        def save(segment: int) -> None:
            nonlocal reached
            # A call that is left behind does no harm: it is conditional on the attempt, and the segments
            # below the checkpoint are durable.
            run_cancellable(partial(tools.tasks.checkpoint, task, segment), control)
            reached = segment

        copies = Copies(
            tools.backups, tools.stores, tools.data_keys, plan.key, plan.places, tools.engine.streams
        )
        with Opened(tools.stores, tools.data_keys, plan, control) as data:
            # Read before the target is opened: if the backup is gone, the volume stays as it is.
            _length, record = copies.read(lambda place: data.at(place).describe(), control)
            target = replace(self._made(task, plan, control), encryption=encryption(record))
            crash_points.reach("restore.made")
            provider = tools.backends.provider(plan.volume.backend)
            with opened(partial(provider.open_target, target, _fence_number(task)), control) as volume:
                crash_points.reach("restore.opened")
                if not is_followed(plan.volume, volume.length, volume.storage_id):
                    tools.backups.restoring.follow_target(task, volume.length, volume.storage_id)
                copies.read(
                    lambda place: data.at(place).restore(
                        volume, control, Checkpoint(reached, save), streams=tools.engine.streams
                    ),
                    control,
                )
        return record, target, provider

    def failed(self, task: Task, reason: str) -> None:
        """See :meth:`Handler.failed`."""
        self.failed_with(task, reason, None)

    def failed_with(self, task: Task, reason: str, detail: Detail | None) -> None:
        """See :meth:`Handler.failed_with`."""
        self._spoil_target(task)
        self._tools.backups.restoring.fail(task, reason, detail)

    def cancelled(self, task: Task) -> None:
        """See :meth:`Handler.cancelled`."""
        self._spoil_target(task)
        self._tools.tasks.discard(task)

    def _spoil_target(self, task: Task) -> None:
        """Tell the target's foreign catalogue, if it has one, that its bytes are no good.

        :raises TaskLost: another attempt owns the task: perhaps it writes, or has made the bytes good.
        """
        backends = self._tools.backends
        try:
            volume = self._tools.backups.restoring.target(task)
            if volume is not None and volume.mirrored_at is not None and backends.has(volume.backend):
                backends.provider(volume.backend).end_restore(volume_ref(volume), None)
        except TaskLost:
            raise
        except Exception:
            # The task must end all the same.
            LOG.exception("The target of a restore of backup %s is not marked as failed", task.resource_id)

    def _made(self, task: Task, plan: RestorePlan, control: TaskControl) -> VolumeRef:
        """Return the target, made first if this restore is to make it."""
        target = volume_ref(plan.volume)
        if target.location is not None:
            return target
        backends = self._tools.backends
        provider = backends.provider(plan.volume.backend)
        host = backends.host_of_new(plan.volume.backend)
        if host is not None:
            self._tools.backups.restoring.bind_target(task, host)
        location = run_cancellable(
            partial(provider.create, target, None, control.check), control, grace=PROVIDER_GRACE
        )
        self._tools.backups.restoring.set_location(task, location)
        return VolumeRef(target.id, target.length, location)


def _described(source: RestoredVolume | None) -> Restored:
    if source is None:
        return Restored()
    return Restored(source.bootable, source.metadata or {}, source.image_metadata or {})


def _fence_number(task: Task) -> int:
    """Return a number that grows from attempt to attempt over all tasks of a volume."""
    return (task.id << 20) + task.attempt

"""Tasks of volumes and snapshots: the provider does the work, the manager records the outcome."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TypeVar

from backupfw.errors import SourceUnreadable
from backupfw.manager.rows import Task
from backupfw.manager.rules.volume_rules import is_followed
from backupfw.volume.base import Needed, SnapshotRef, VolumeRef
from backupfw.worker.cancellable import PROVIDER_GRACE, run_cancellable
from backupfw.worker.control import TaskControl
from backupfw.worker.handlers.base import Handler, snapshot_ref, volume_ref
from backupfw.worker.quiescing import ThawFailed, thaw

Result = TypeVar("Result")


class _VolumeHandler(Handler):
    """What they all have in common: how they call the provider, and how they fail."""

    def _call(self, call: Callable[[], Result], control: TaskControl) -> Result:
        return run_cancellable(call, control, grace=PROVIDER_GRACE)

    def failed(self, task: Task, reason: str) -> None:
        """See :meth:`Handler.failed`."""
        self._tools.volumes.fail(task, reason)


class VolumeCreate(_VolumeHandler):
    """Makes a volume: empty, or of a snapshot or another volume."""

    def run(self, task: Task, control: TaskControl) -> None:
        """See :meth:`Handler.run`."""
        backends = self._tools.backends
        plan = self._tools.volumes.start_create(task, backends.host_of_new)
        source: SnapshotRef | VolumeRef | None = None
        if plan.source_snapshot is not None and plan.source_volume is not None:
            source = snapshot_ref(plan.source_snapshot, plan.source_volume)
        elif plan.source_volume is not None:
            source = volume_ref(plan.source_volume)
        location = self._call(
            partial(
                backends.provider(plan.volume.backend).create, volume_ref(plan.volume), source, control.check
            ),
            control,
        )
        self._tools.volumes.finish_create(task, location)


class VolumeDelete(_VolumeHandler):
    """Deletes a volume, after its snapshots."""

    def run(self, task: Task, control: TaskControl) -> None:
        """See :meth:`Handler.run`."""
        control.check()
        volume = self._tools.volumes.start_delete(task)
        provider = self._tools.backends.provider(volume.backend)
        self._call(partial(provider.delete, volume_ref(volume)), control)
        self._tools.volumes.finish_delete(task)


class VolumeTidy(_VolumeHandler):
    """Lets a volume's storage keep only the points that are needed."""

    # Storage that is away for days (a machine that is off) is asked again and again.
    refusals = (SourceUnreadable,)

    def run(self, task: Task, control: TaskControl) -> None:
        """See :meth:`Handler.run`."""
        control.check()
        tools = self._tools
        volume = tools.volumes.start_tidy(task)

        def needed() -> Needed:
            points = tools.volumes.needed_points(task)
            return Needed(points.compared, points.read, points.known)

        keep_points = tools.backends.provider(volume.backend).keep_points
        self._call(partial(keep_points, volume_ref(volume), needed), control)
        tools.volumes.finish_tidy(task)


class VolumeThaw(Handler):
    """Thaws a volume that a lost attempt may have left frozen."""

    # The log has the command's words.
    refusals = (ThawFailed,)

    def run(self, task: Task, control: TaskControl) -> None:
        """See :meth:`Handler.run`."""
        control.check()
        freezing = self._tools.backups.freezing
        volume, name = freezing.start(task), str(task.payload["quiesce"])
        if volume is not None:
            thaw(self._tools.quiesce.get(name), name, volume, control)
        freezing.finish(task)

    def failed(self, task: Task, reason: str) -> None:
        """See :meth:`Handler.failed`."""
        self._tools.backups.freezing.fail(task, reason)


class VolumeExtend(_VolumeHandler):
    """Makes a volume larger."""

    def run(self, task: Task, control: TaskControl) -> None:
        """See :meth:`Handler.run`."""
        control.check()
        plan = self._tools.volumes.start_extend(task)
        provider = self._tools.backends.provider(plan.volume.backend)
        self._call(partial(provider.extend, volume_ref(plan.volume), plan.length), control)
        extended = replace(plan.volume, length=plan.length)
        found = self._call(partial(provider.look, volume_ref(extended)), control)
        self._tools.volumes.finish_extend(task, found.length, found.storage_id)


class SnapshotCreate(_VolumeHandler):
    """Makes a snapshot of a volume."""

    def run(self, task: Task, control: TaskControl) -> None:
        """See :meth:`Handler.run`."""
        tools = self._tools
        plan = tools.volumes.start_create_snapshot(task)
        provider = tools.backends.provider(plan.volume.backend)
        found = self._call(partial(provider.look, volume_ref(plan.volume)), control)
        if not is_followed(plan.volume, found.length, found.storage_id):
            plan = tools.volumes.follow_volume(task, found.length, found.storage_id)
        snapshot = snapshot_ref(plan.snapshot, plan.volume)
        location = self._call(
            partial(provider.create_snapshot, snapshot, plan.in_use, control.check), control
        )
        self._tools.volumes.finish_create_snapshot(task, location)


class SnapshotDelete(_VolumeHandler):
    """Deletes a snapshot."""

    def run(self, task: Task, control: TaskControl) -> None:
        """See :meth:`Handler.run`."""
        control.check()
        plan = self._tools.volumes.start_delete_snapshot(task)
        provider = self._tools.backends.provider(plan.volume.backend)
        self._call(partial(provider.delete_snapshot, snapshot_ref(plan.snapshot, plan.volume)), control)
        self._tools.volumes.finish_delete_snapshot(task)

"""``backup.create``: read the volume, a snapshot or a temporary snapshot, and store what is new."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import replace
from datetime import datetime
from functools import partial
from typing import Any

from oslo_log import log

from backupfw import crash_points, moments
from backupfw.chunkstore.container import Container
from backupfw.chunkstore.errors import IntegrityError
from backupfw.engine import backup as engine
from backupfw.engine.ports import BackupJob, BackupResult
from backupfw.errors import (
    ChangeMissed,
    Damaged,
    DataKeyMissing,
    InvalidInput,
    SourceMoved,
    StorageChanged,
    UnsupportedFormat,
)
from backupfw.manager.messages import Detail
from backupfw.manager.outcomes.creating import CreatePlan, CreateTasks
from backupfw.manager.rows import Task
from backupfw.manager.rules.volume_rules import is_followed
from backupfw.volume.base import HEADER, LUKS, Point, SnapshotRef, VolumeProvider, VolumeRef
from backupfw.worker import comparison
from backupfw.worker.cancellable import PROVIDER_GRACE, opened, run_cancellable
from backupfw.worker.control import TaskControl
from backupfw.worker.copies import Copies
from backupfw.worker.handlers.base import Tools, snapshot_ref, volume_ref
from backupfw.worker.handlers.making import Making, TaskJournal, lock_plan, lock_until, record_of
from backupfw.worker.quiescing import Quiescing

LOG = log.getLogger(__name__)


class _VolumeJournal(TaskJournal):
    """The journal of a backup whose volume's storage may be asked what changed."""

    def __init__(self, tools: Tools, task: Task, plan: CreatePlan) -> None:
        super().__init__(tools.backups.creating, task, plan)
        self._creating = tools.backups.creating
        self._meter = tools.meter
        #: Since when the storage is distrusted, if this attempt found that it must be.
        self.distrusted_at: datetime | None = None

    def distrust(self, error: ChangeMissed) -> None:
        """See :meth:`backupfw.engine.ports.Journal.distrust`."""
        LOG.warning("%s From now on all of it is compared.", error)
        self._meter.change_missed()
        self.distrusted_at = self._creating.distrust_changes(self._task)


class BackupCreate(Making):
    """Makes a backup, or goes on with one that an earlier attempt began."""

    @property
    def _making(self) -> CreateTasks:
        return self._tools.backups.creating

    def run(self, task: Task, control: TaskControl) -> None:
        """See :meth:`Handler.run`."""
        tools = self._tools
        crash_points.reach("backup.begun")
        plan = tools.backups.creating.start(task, key=self._new_key(task))
        crash_points.reach("backup.planned")
        container = tools.stores.container(plan.store, plan.container)
        if plan.announced:
            settled = self._take_over(task, plan, container, control)
            if settled is None:
                return
            plan = tools.backups.creating.start(task, settled)
        self._need(container, held=plan.base is not None or plan.source_identity is not None)
        self._mend_base(plan, control)
        try:
            plan, job, result = self._back_up(task, plan, container, control)
        except SourceMoved as error:
            if plan.in_use or plan.snapshot is not None:
                raise
            LOG.warning("Volume %s is taken for one in use: %s", plan.volume.id, error)
            plan, job, result = self._back_up(task, replace(plan, in_use=True), container, control)
        self._end(task, plan, job.geometry.length, result, container, control)

    def _mend_base(self, plan: CreatePlan, control: TaskControl) -> None:
        """Put again from a copy what is known to be damaged of the base, so that it can be shared.

        If that fails, the backup stores it anew: that is what it would do without a copy.
        """
        tools = self._tools
        places = [] if plan.base is None else tools.backups.creating.places_of(plan.base)
        if plan.base is None or len(places) < 2:
            return
        mending = Copies(
            tools.backups, tools.stores, tools.data_keys, plan.base.key, places, tools.engine.streams
        )
        try:
            mending.mend(places[0], control)
        except (Damaged, UnsupportedFormat, InvalidInput, DataKeyMissing) as error:
            LOG.warning("The base of backup %s is not repaired from a copy: %s", plan.backup.id, error)

    def _back_up(
        self, task: Task, plan: CreatePlan, container: Container, control: TaskControl
    ) -> tuple[CreatePlan, BackupJob, BackupResult]:
        """Read a point of the source and put the manifest.

        If the storage said wrongly what is unchanged, everything is read, now and by later backups.

        :raises SourceMoved: it has no state that does not change.
        """
        tools = self._tools
        creating = tools.backups.creating
        with self._point(task, plan, control) as point:
            crash_points.reach("backup.opened")
            if plan.snapshot is None and not self._needs_temp_snapshot(plan):
                plan = self._follow(task, plan, point.length, point.storage_id)
            sealing = self._sealing(plan, container)
            how = comparison.choose(plan, point, container, sealing, tools.engine.full_compare_every, control)
            while True:
                LOG.info("Backup %s: %s", plan.backup.id, how.how)
                until = lock_until(plan, container)
                plan = creating.bind_source(
                    task,
                    how.identity(point.identity),
                    how.how,
                    None if until is None else moments.utc(until),
                )
                crash_points.reach("backup.bound")
                job = replace(
                    self._job(plan, point.length, _record(plan, point), sealing),
                    since=how.since,
                    verify_unchanged=1.0 if how.checked else tools.engine.verify_unchanged,
                    read_all=how.read_all,
                    lock=lock_plan(plan, until),
                )
                journal = _VolumeJournal(tools, task, plan)
                try:
                    with self._withdrawing(task, plan, journal.announced_key, container):
                        return plan, job, engine.run(job, point, container, journal, control, how.base)
                except Damaged as error:
                    # What it shares with its base was to be locked longer, and is not there.
                    self._record_missing(plan, error, container)
                    raise IntegrityError(
                        error.reason,
                        store=plan.store,
                        container=plan.container,
                        key=error.key,
                        temporary=True,
                    ) from error
                except ChangeMissed:
                    assert journal.distrusted_at is not None
                    how = replace(comparison.distrusted(journal.distrusted_at), base=how.base)

    def _follow(self, task: Task, plan: CreatePlan, length: int, storage_id: str | None) -> CreatePlan:
        """Let the catalogue follow what an open of the volume found."""
        if is_followed(plan.volume, length, storage_id):
            return plan
        return self._tools.backups.creating.follow_volume(task, length, storage_id)

    def failed(self, task: Task, reason: str) -> None:
        """See :meth:`Handler.failed`."""
        self.failed_with(task, reason, None)

    def failed_with(self, task: Task, reason: str, detail: Detail | None) -> None:
        """See :meth:`Handler.failed_with`."""
        self._tools.backups.creating.fail(task, reason, detail)

    def _needs_temp_snapshot(self, plan: CreatePlan) -> bool:
        return plan.in_use and not self._tools.backends.provider(plan.volume.backend).capabilities.live

    @contextmanager
    def _point(self, task: Task, plan: CreatePlan, control: TaskControl) -> Iterator[Point]:
        """Lend the point that is read; its storage stays until the volume is tidied."""
        ref: SnapshotRef | VolumeRef
        provider = self._tools.backends.provider(plan.volume.backend)
        if provider.keeps_points and not plan.volume.keeps_points:
            self._tools.backups.creating.will_keep_points(task)
        with ExitStack() as stack:
            with self._quiescing(task, plan, control):
                if plan.snapshot is not None:
                    ref = snapshot_ref(plan.snapshot, plan.volume)
                elif self._needs_temp_snapshot(plan):
                    ref = self._temp_snapshot(task, plan, control)
                else:
                    ref = volume_ref(plan.volume)
                lent = opened(partial(_kept, provider, ref, task.resource_id, control), control)
                point = stack.enter_context(lent)
            yield point

    def _quiescing(
        self, task: Task, plan: CreatePlan, control: TaskControl
    ) -> AbstractContextManager[object]:
        """Return what freezes the volume while a point is taken, if that was asked for."""
        tools, name = self._tools, task.payload.get("quiesce")
        if name is None:
            return nullcontext()
        found, freezing = tools.quiesce.get(name), tools.backups.freezing
        writes = plan.in_use or tools.backends.provider(plan.volume.backend).capabilities.live
        return Quiescing(freezing, task, plan.volume, control, found, name).around(writes=writes)

    def _temp_snapshot(self, task: Task, plan: CreatePlan, control: TaskControl) -> SnapshotRef:
        """Return the temporary snapshot of a volume in use: an earlier attempt's, or a new one."""
        tools = self._tools
        provider = tools.backends.provider(plan.volume.backend)
        begun = tools.backups.creating.temp_snapshot(task.resource_id)
        if begun is None or begun[0].location is None:
            found = run_cancellable(
                partial(provider.look, volume_ref(plan.volume)), control, grace=PROVIDER_GRACE
            )
            plan = self._follow(task, plan, found.length, found.storage_id)
            if begun is not None and begun[0].length != plan.volume.length:
                # An earlier attempt began the snapshot, perhaps finished it, and the volume has grown since.
                drop = partial(provider.delete_snapshot, snapshot_ref(*begun))
                run_cancellable(drop, control, grace=PROVIDER_GRACE)
                tools.backups.creating.forget_temp_snapshot(task.resource_id)
        snapshot = tools.backups.creating.begin_temp_snapshot(task)
        ref = snapshot_ref(snapshot, plan.volume)
        if ref.location is not None:
            try:
                with opened(partial(_kept, provider, ref, task.resource_id, control), control):
                    return ref
            except (StorageChanged, OSError):
                # The new snapshot shows another state of the volume, so a new epoch begins.
                LOG.warning("The temporary snapshot of backup %s is lost; taking another", task.resource_id)
                tools.backups.creating.forget_temp_snapshot(task.resource_id)
                return self._temp_snapshot(task, plan, control)
        location = run_cancellable(
            partial(provider.create_snapshot, ref, True, control.check), control, grace=PROVIDER_GRACE
        )
        return snapshot_ref(tools.backups.creating.temp_snapshot_made(task, location), plan.volume)


@contextmanager
def _kept(
    provider: VolumeProvider, ref: VolumeRef | SnapshotRef, point_id: str, control: TaskControl
) -> Iterator[Point]:
    """Open a point; whatever happens, another attempt or a later backup may need it again."""
    point = provider.open_point(ref, point_id, control.check)
    try:
        yield point
    finally:
        point.close(keep=True)


def _record(plan: CreatePlan, point: Point) -> dict[str, Any]:
    """What the manifest keeps of backup and volume: enough to restore names and metadata from it alone."""
    backup, volume = plan.backup, plan.volume
    encrypted = {}
    if volume.encryption_key_id is not None:
        header = bytearray(min(HEADER, point.length))
        point.read_into(0, memoryview(header))
        encrypted["encryption"] = {
            "key_id": volume.encryption_key_id,
            "header": hashlib.sha256(header).hexdigest() if header.startswith(LUKS) else None,
        }
    return {
        "backup": record_of(backup),
        "volume": {
            "name": volume.display_name,
            "description": volume.display_description,
            "size": volume.size,
            "volume_type": volume.volume_type,
            "bootable": volume.bootable,
            "image_metadata": dict(volume.image_metadata),
            "metadata": dict(volume.metadata),
            **encrypted,
        },
    }

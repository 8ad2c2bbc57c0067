"""``backup.copy``: put a backup into another store, too; one of Cinder's format in our own format."""

from __future__ import annotations

import time
from dataclasses import replace

from backupfw import crash_points, moments
from backupfw.chunkstore.container import Container
from backupfw.engine import copying, objects, verify
from backupfw.engine.format import keys
from backupfw.engine.ports import LockPlan
from backupfw.errors import Damaged, InvalidBackup
from backupfw.manager.outcomes.copying import CopyPlan
from backupfw.manager.rows import Task
from backupfw.worker.control import TaskControl
from backupfw.worker.damaged_objects import mark_sharers
from backupfw.worker.handlers.backup_convert import BackupConvert
from backupfw.worker.handlers.base import Handler

#: Seconds between two records of the progress that an attempt made.
_CHECKPOINT_SECONDS = 10.0


class BackupCopy(Handler):
    """Copies a backup, or goes on where an earlier attempt ended."""

    refusals = (InvalidBackup,)
    # No user waits for it, and what was copied would have to be copied again.
    waits_for_stores = True

    def run(self, task: Task, control: TaskControl) -> None:
        """See :meth:`Handler.run`."""
        tools = self._tools
        if tools.backups.converting.is_conversion(task):
            BackupConvert(tools).run(task, control)
            return
        crash_points.reach("copy.begun")
        plan = tools.backups.copying.start(task)
        crash_points.reach("copy.planned")
        source = tools.stores.container(plan.from_store, plan.from_container)
        target = tools.stores.container(plan.store, plan.container)
        if plan.held:
            # A missing container would be a share that is not mounted.
            objects.prove_container(target, "")
        if tools.engine.create_containers:
            target.ensure()
        try:
            if not plan.placed:
                if copying.are_one_place(plan.key, source, target):
                    raise InvalidBackup(
                        f"The store {plan.store} is the place where the backup itself is, under another name."
                    )
                place = copying.find_place(plan.key, source, target, control)
                base_until = tools.backups.copying.place(task, place.base, detached=place.detached)
                plan = replace(plan, base_locked_until=base_until)
                crash_points.reach("copy.placed")
            lock = self._lock(task, plan, target)
            if plan.encrypted:
                tools.data_keys.copy(source, target, plan.key)
            prefix = keys.volume_prefix_of(plan.key)
            damaged = tools.backups.damaged_objects.keys(plan.store, plan.container, prefix)
            result = copying.run(
                plan.key,
                source,
                target,
                control,
                damaged=damaged,
                streams=tools.engine.streams,
                done=_Progressed(self, task),
                lock=lock,
            )
        except Damaged as error:
            self._record(plan, source, error, control)
            raise
        if damaged:
            self._record_repaired(plan, target, damaged, control)
        crash_points.reach("copy.copied")
        until = result.locked_until
        tools.backups.copying.finish(task, None if until is None else moments.utc(until))
        crash_points.reach("copy.committed")

    def _lock(self, task: Task, plan: CopyPlan, target: Container) -> LockPlan | None:
        """Choose which locks this attempt makes, and record it."""
        if target.rule is None and plan.locked_until is None:
            return None
        others = None if plan.base_locked_until is None else moments.aware(plan.base_locked_until)
        own = None if plan.locked_until is None else moments.aware(plan.locked_until)
        until = None if target.rule is None else target.rule.choose((own, others))
        told = self._tools.backups.copying.will_lock(
            task, None if until is None else moments.utc(until), first=not plan.placed
        )
        if until is None:
            return None
        return LockPlan(until, None if told is None else moments.aware(told), others)

    def progressed(self, task: Task, objects_put: int) -> None:
        """Record that an attempt has put objects, so that it does not count as one that failed."""
        self._tools.tasks.checkpoint(task, task.checkpoint + objects_put)

    def failed(self, task: Task, reason: str) -> None:
        """See :meth:`Handler.failed`."""
        self._tools.backups.copying.fail(task, reason)

    def _record(self, plan: CopyPlan, source: Container, error: Damaged, control: TaskControl) -> None:
        """Put an object that was found damaged on the list, as a verification does."""
        listed = self._tools.backups.damaged_objects
        if (error.store, error.container) != (plan.from_store, plan.from_container):
            return
        if listed.record(error.store, error.container, error.key, error.reason, plan.source_id):
            mark_sharers(self._tools.backups, source, plan.source_id, {error.key}, control)

    def _record_repaired(
        self, plan: CopyPlan, target: Container, damaged: frozenset[str], control: TaskControl
    ) -> None:
        """Take what was put again from the list of the target."""
        put = verify.named(plan.key, damaged, target, control)
        self._tools.backups.damaged_objects.repaired(plan.store, plan.container, put)


class _Progressed:
    """Records progress, now and then."""

    def __init__(self, handler: BackupCopy, task: Task) -> None:
        self._handler = handler
        self._task = task
        self._next = time.monotonic() + _CHECKPOINT_SECONDS

    def __call__(self, objects_put: int) -> None:
        if time.monotonic() >= self._next:
            self._handler.progressed(self._task, objects_put)
            self._next = time.monotonic() + _CHECKPOINT_SECONDS

"""``backup.copy`` of a backup of Cinder's format: make one of our own format of it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace

from backupfw import crash_points, moments
from backupfw.chunkstore.container import Container
from backupfw.chunkstore.errors import IntegrityError
from backupfw.engine import backup as engine
from backupfw.engine.cinder_format.chain import Place
from backupfw.engine.cinder_format.point import BehindStart, ChainPoint
from backupfw.engine.ports import BackupResult
from backupfw.errors import Damaged, InvalidBackup
from backupfw.manager.outcomes.converting import ConvertPlan, ConvertTasks
from backupfw.manager.rows import Task
from backupfw.worker import stored
from backupfw.worker.control import TaskControl
from backupfw.worker.damaged_objects import mark_sharers
from backupfw.worker.handlers.making import Making, TaskJournal, lock_plan, lock_until, record_of


class BackupConvert(Making):
    """Converts a backup, or goes on where an earlier attempt ended."""

    refusals = (InvalidBackup,)
    # No user waits for it, and what was read would have to be read again.
    waits_for_stores = True

    @property
    def _making(self) -> ConvertTasks:
        return self._tools.backups.converting

    def run(self, task: Task, control: TaskControl) -> None:
        """See :meth:`Handler.run`."""
        tools = self._tools
        crash_points.reach("backup.begun")
        plan = self._making.start(task, key=self._new_key(task))
        crash_points.reach("backup.planned")
        container = tools.stores.container(plan.store, plan.container)
        if plan.announced:
            settled = self._take_over(task, plan, container, control)
            if settled is None:
                return
            plan = self._making.start(task, settled)
        self._need(container, held=plan.base is not None or plan.source_identity is not None)
        try:
            plan, length, result = self._converted(task, plan, container, control)
        except Damaged as error:
            if (error.store, error.container) == (plan.store, plan.container):
                # What it shares with its base was to be locked longer, and is not there.
                self._record_missing(plan, error, container)
                raise IntegrityError(
                    error.reason, store=error.store, container=error.container, key=error.key, temporary=True
                ) from error
            self._record(plan, error, control)
            raise
        self._end(task, plan, length, result, container, control)

    def failed(self, task: Task, reason: str) -> None:
        """See :meth:`Handler.failed`."""
        self._tools.backups.copying.fail(task, reason)

    def _converted(
        self, task: Task, plan: ConvertPlan, container: Container, control: TaskControl
    ) -> tuple[ConvertPlan, int, BackupResult]:
        """Read the chain and put the manifest; returns the volume's length, too."""
        for start in (self._finished(plan), 0):
            with (
                contextlib.suppress(BehindStart),
                contextlib.closing(
                    ChainPoint(self._places(plan), control, start=start, streams=self._tools.engine.streams)
                ) as point,
            ):
                crash_points.reach("backup.opened")
                until = lock_until(plan, container)
                locked = None if until is None else moments.utc(until)
                plan = self._making.bind_source(task, point.identity, locked)
                crash_points.reach("backup.bound")
                record = {"backup": record_of(plan.backup), **stored.record_of(point.head)}
                container_of_link, prefix = plan.links[0]
                record["converted"] = stored.origin_of(container_of_link, prefix)
                job = self._job(plan, point.length, record, self._sealing(plan, container))
                job = replace(job, lock=lock_plan(plan, until))
                journal = TaskJournal(self._making, task, plan)
                with self._withdrawing(task, plan, journal.announced_key, container):
                    return plan, point.length, engine.run(job, point, container, journal, control)
        raise AssertionError

    def _places(self, plan: ConvertPlan) -> list[Place]:
        stores = self._tools.stores
        return [Place(stores.container(plan.from_store, name), key) for name, key in plan.links]

    def _finished(self, plan: ConvertPlan) -> int:
        """Return up to which byte of the volume earlier attempts have finished all segments."""
        done = 0
        segments: Iterator[tuple[int, bytes]] = self._making.finished_segments(plan.manifest_id, plan.epoch)
        for index, _ in segments:
            if index != done:
                break
            done += 1
        return done * plan.segment_size

    def _record(self, plan: ConvertPlan, error: Damaged, control: TaskControl) -> None:
        """Put an object of a link that was found damaged on the list, as a verification does."""
        tools = self._tools
        if error.store != plan.from_store:
            return
        if tools.backups.damaged_objects.record(
            error.store, error.container, error.key, error.reason, plan.link_id
        ):
            container = tools.stores.container(error.store, error.container)
            mark_sharers(tools.backups, container, plan.link_id, {error.key}, control)

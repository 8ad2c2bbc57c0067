"""Two users and an administrator, workers that succeed, fail, freeze and die: nothing is ever left over.

After every step: no transient status without a task, volumes and backups agree, what is available has
data, what nothing names is being removed, and the quota is what the rows say.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from backupfw import errors
from backupfw.db import models
from backupfw.manager.operators import purge
from backupfw.manager.outcomes.backups import CreatePlan, ReleasePlan
from backupfw.manager.queue import tasks
from backupfw.manager.rules import quota
from tests.unit.manager.support import WIRE, World, check_audit, check_consistent

#: What a user may be told.
REFUSED = (
    errors.InvalidBackup,
    errors.InvalidVolume,
    errors.InvalidSnapshot,
    errors.QuotaExceeded,
    errors.NotFound,
)


class Running:
    """A claimed task and what its worker knows."""

    def __init__(self, task: tasks.Task) -> None:
        self.task = task
        self.plan: Any = None


class Lifecycle(RuleBasedStateMachine):
    """The operations, in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World(backups=6)
        self.running: list[Running] = []
        self.stale: list[Running] = []
        self.records: list[str] = []

    @initialize()
    def volumes(self) -> None:
        self.volume_ids = [
            self.world.volume("p1"),
            self.world.volume("p2", status="in-use"),
            self.world.volume("p1", status="in-use"),
        ]
        self.snapshot_id = self.world.snapshot(self.volume_ids[0], "p1")

    def _backup(self, number: int) -> str | None:
        rows = sorted(
            self.world.rows(models.Backup, models.Backup.deleted.is_(False)), key=lambda row: row.created_at
        )
        return rows[number % len(rows)].id if rows else None

    def _ctx(self, actor: int) -> Any:
        return (self.world.ctx("p1"), self.world.ctx("p2"), self.world.ctx("p1", admin=True))[actor]

    actors = st.integers(0, 2)
    numbers = st.integers(0, 7)

    # Users.

    @rule(
        actor=actors, volume=st.integers(0, 2), incremental=st.booleans(), snapshot=st.booleans(),
        force=st.booleans(),
    )  # fmt: skip
    def create(self, actor: int, volume: int, incremental: bool, snapshot: bool, force: bool) -> None:
        try:
            self.world.backups.create(
                self._ctx(actor),
                volume_id=self.volume_ids[volume],
                incremental=incremental,
                force=force,
                snapshot_id=self.snapshot_id if snapshot else None,
            )
        except REFUSED:
            return

    @rule(actor=actors, number=numbers)
    def delete(self, actor: int, number: int) -> None:
        backup = self._backup(number)
        if backup is not None:
            before = self.world.status(backup)
            try:
                self.world.backups.delete(self._ctx(actor), backup)
                assert before in ("available", "error")
            except REFUSED:
                assert self.world.status(backup) == before

    @rule(number=numbers)
    def force_delete(self, number: int) -> None:
        backup = self._backup(number)
        if backup is not None:
            self.world.backups.force_delete(self._ctx(2), backup)
            assert self.world.status(backup) == "deleting"

    @rule(number=numbers, status=st.sampled_from(["available", "error"]))
    def reset(self, number: int, status: str) -> None:
        backup = self._backup(number)
        if backup is not None:
            after = self.world.backups.reset_status(self._ctx(2), backup, status)
            assert after.status == status or (after.status == "error" and after.fail_reason)

    @rule(actor=actors, number=numbers)
    def cancel(self, actor: int, number: int) -> None:
        backup = self._backup(number)
        if backup is not None:
            before = self.world.status(backup)
            try:
                after = self.world.backups.cancel(self._ctx(actor), backup)
            except REFUSED:
                assert self.world.status(backup) == before
            else:
                assert (before, after.status) in (("creating", "error"), ("restoring", "available"))
                assert after.fail_reason

    @rule(actor=actors, number=numbers, volume=st.sampled_from([None, 0, 1, 2]))
    def restore(self, actor: int, number: int, volume: int | None) -> None:
        backup = self._backup(number)
        if backup is not None:
            target = None if volume is None else self.volume_ids[volume]
            try:
                self.world.backups.restore(self._ctx(actor), backup, volume_id=target)
            except REFUSED:
                return

    @rule(number=numbers)
    def export(self, number: int) -> None:
        backup = self._backup(number)
        if backup is not None:
            try:
                self.records.append(self.world.backups.export_record(self._ctx(2), backup)[1])
            except REFUSED:
                return

    @precondition(lambda self: self.records)
    @rule(actor=st.sampled_from([0, 2]), number=numbers, duplicate=st.booleans(), fresh=st.uuids())
    def import_record(self, actor: int, number: int, duplicate: bool, fresh: Any) -> None:
        from tests.unit.manager.test_backups import _with_id

        url = self.records[number % len(self.records)]
        try:
            self.world.backups.import_record(
                self._ctx(actor),
                backup_service=WIRE,
                backup_url=_with_id(url, str(fresh)) if duplicate else url,
            )
        except REFUSED:
            return

    @rule(volume=st.integers(0, 2))
    def volume_comes_back(self, volume: int) -> None:
        # An administrator repairs a target that a restore left in an error status.
        with self.world.db.write() as session:
            row = session.get_one(models.Volume, self.volume_ids[volume])
            if row.status in ("error", "error_restoring"):
                row.status = "available"

    @rule()
    def rows_are_purged(self) -> None:
        """However long ago it was deleted: nothing goes that anybody needs."""
        purge.run(self.world.db, datetime(9999, 1, 1))

    # Workers.

    @rule()
    def claim(self) -> None:
        task = self.world.tasks.claim("host/w", 60)
        if task is None:
            return
        # Whoever had it before does not know that it was lost.
        self.stale += [old for old in self.running if old.task.id == task.id]
        self.running = [old for old in self.running if old.task.id != task.id]
        self.running.append(Running(task))

    @rule(rounds=st.integers(1, 4), ok=st.booleans())
    def workers_are_busy(self, rounds: int, ok: bool) -> None:
        """Claim what there is and bring every attempt a step on: most histories are like this."""
        for _ in range(rounds):
            self.claim()
            for _ in range(len(self.running)):
                self.work(0 if len(self.running) == 1 else rounds, ok)

    @rule(volume=st.integers(0, 2), incremental=st.booleans())
    def a_backup_is_begun(self, volume: int, incremental: bool) -> None:
        """Begin a backup and let a worker start it, or whatever comes first."""
        owner = 1 if volume == 1 else 0
        self.create(owner, volume, incremental, False, True)
        self.claim()
        if self.running:
            self.work(len(self.running) - 1, True)

    @rule()
    def a_parent_is_deleted_under_its_child(self) -> None:
        """Delete what a backup that is being made shares with."""
        bases = [row.base_id for row in self.world.rows(models.Manifest, models.Manifest.state == "writing")]
        parents = self.world.rows(
            models.Backup, models.Backup.manifest_id.in_(bases), models.Backup.status == "available"
        )
        for parent in parents:
            self.world.backups.delete(self._ctx(2), parent.id)
            self.claim()
            if self.running:
                self.work(len(self.running) - 1, True)

    @rule()
    def a_worker_is_lost(self) -> None:
        """Its lease runs out and another one takes its task over."""
        self.world.age(seconds=100)
        self.claim()
        if self.running:
            self.work(len(self.running) - 1, True)

    @rule()
    def time_passes(self) -> None:
        self.world.age(seconds=100)

    @rule()
    def much_time_passes(self) -> None:
        self.world.age(seconds=100_000)

    @precondition(lambda self: self.running)
    @rule(number=numbers, ok=st.booleans())
    def work(self, number: int, ok: bool) -> None:
        """An attempt starts, or ends."""
        entry = self.running[number % len(self.running)]
        try:
            if entry.task.cancel:
                raise errors.TaskCancelled
            ended = self._step(entry, ok)
        except errors.TaskCancelled:
            self.world.tasks.discard(entry.task)
            ended = True
        except errors.TaskLost:
            raise AssertionError("the newest attempt lost its task") from None
        if ended:
            self.running.remove(entry)

    @precondition(lambda self: self.running)
    @rule(number=numbers)
    def shutdown(self, number: int) -> None:
        entry = self.running.pop(number % len(self.running))
        self.world.tasks.release(entry.task)
        self.stale.append(entry)

    @precondition(lambda self: self.stale)
    @rule(number=numbers, ok=st.booleans())
    def a_frozen_worker_wakes(self, number: int, ok: bool) -> None:
        entry = self.stale[number % len(self.stale)]
        try:
            self._step(entry, ok)
        except (errors.TaskLost, errors.TaskCancelled):
            return
        # A release or deletion that was ended as nothing to do, or had no plan: it must be its own.
        raise AssertionError("a stale attempt changed something")

    def _step(self, entry: Running, ok: bool) -> bool:
        """Start the attempt, or end it; returns whether it has ended."""
        outcomes, task = self.world.outcomes, entry.task
        starting = entry.plan is None
        if task.kind == tasks.BACKUP_CREATE:
            if starting:
                entry.plan = outcomes.creating.start(task)
                outcomes.creating.bind_source(task, "source", "full backup")
                return False
            assert isinstance(entry.plan, CreatePlan)
            if ok:
                outcomes.creating.finish(task, self.world.result(entry.plan))
            else:
                outcomes.creating.fail(task, "failed")
        elif task.kind == tasks.BACKUP_RESTORE:
            if starting:
                entry.plan = outcomes.restoring.start(task)
                return False
            if ok:
                outcomes.restoring.finish(task)
            else:
                outcomes.restoring.fail(task, "failed")
        elif task.kind == tasks.BACKUP_IMPORT:
            return self._import(entry, ok)
        elif task.kind == tasks.BACKUP_DELETE:
            if starting:
                entry.plan = outcomes.deleting.start(task)
                return entry.plan is None
            assert isinstance(entry.plan, ReleasePlan)
            if ok:
                outcomes.deleting.finish(task, entry.plan)
            else:
                outcomes.deleting.fail(task, "failed")
        elif task.kind == tasks.MANIFEST_RELEASE:
            if starting:
                entry.plan = outcomes.deleting.start_release(task)
                return entry.plan is None
            if ok:
                outcomes.deleting.finish_release(task, entry.plan)
            else:
                outcomes.deleting.fail_release(task, "failed")
        else:
            raise AssertionError(task.kind)
        return True

    def _import(self, entry: Running, ok: bool) -> bool:
        outcomes, task = self.world.outcomes, entry.task
        try:
            if entry.plan is None:
                entry.plan = outcomes.importing.start(task, {"main": WIRE})
                return False
            found = self.world.rows(models.Manifest, models.Manifest.key == entry.plan.key)
            if not ok or not found:
                # A purge forgot it: its objects are deleted, so a worker does not find it either.
                raise errors.InvalidInput("damaged, or not there")
            outcomes.importing.finish(task, self.world.facts(found[0]))
        except errors.InvalidInput as error:
            outcomes.importing.fail(task, str(error))
        return True

    # What must be true.

    @invariant()
    def consistent(self) -> None:
        check_consistent(self.world)

    @invariant()
    def quota_is_what_the_rows_say(self) -> None:
        with self.world.db.read() as session:
            for project in ("p1", "p2"):
                used = quota.usage_of(session, project)
                rows = [
                    row
                    for row in self.world.rows_in(session, models.Backup)
                    if row.project_id == project and not row.deleted
                ]
                assert used["backups"] == len(rows) <= 6
                assert used["backup_gigabytes"] == sum(row.size for row in rows)

    def teardown(self) -> None:
        """Let everything end: nothing transient is left, and nothing that nobody names."""
        if not hasattr(self, "volume_ids"):
            return
        check_audit(self.world)
        self.world.tasks.abandon_all("host/w")
        for _ in range(200):
            self.world.age(seconds=100_000)
            task = self.world.tasks.claim("host/end", 60)
            if task is None:
                break
            entry = Running(task)
            try:
                if task.cancel:
                    raise errors.TaskCancelled
                while not self._step(entry, True):
                    pass
            except errors.TaskCancelled:
                self.world.tasks.discard(task)
        assert self.world.tasks.pending() == 0
        check_consistent(self.world)
        check_audit(self.world)
        for row in self.world.rows(models.Backup, models.Backup.deleted.is_(False)):
            assert row.status in ("available", "error")
        for manifest in self.world.rows(models.Manifest):
            assert manifest.state in ("live", "gone")
        self.world.db.close()


TestLifecycle = Lifecycle.TestCase
TestLifecycle.settings = settings(
    max_examples=6,
    stateful_step_count=40,
    deadline=None,
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)


@pytest.mark.soak
class TestLongLifecycle(Lifecycle.TestCase):  # type: ignore[name-defined,misc]
    settings = settings(TestLifecycle.settings, max_examples=100)

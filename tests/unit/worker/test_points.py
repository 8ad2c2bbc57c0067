"""Points that a storage keeps: what changed is asked of it, checked, and nothing of it stays for nothing."""

from __future__ import annotations

import itertools
import random
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import delete, update

from backupfw import crash_points
from backupfw.chunkstore.container import Container
from backupfw.chunkstore.errors import PermissionDenied
from backupfw.db import models
from backupfw.db.session import now
from backupfw.engine.format.manifest import ManifestReader
from backupfw.errors import ListingBehind, TaskLost
from backupfw.manager.messages import text
from backupfw.manager.operators import audit
from backupfw.manager.outcomes.creating import CreateTasks
from backupfw.manager.queue.claims import Reach
from backupfw.manager.queue.services import BACKUP_BINARY
from backupfw.manager.rows import Task
from backupfw.manager.usecases.volumes import VolumeManager
from backupfw.volume.base import (
    Capabilities,
    Needed,
    Point,
    SnapshotRef,
    Tick,
    VolumeProvider,
    VolumeRef,
    no_tick,
)
from backupfw.worker.handlers.base import NullMeter
from tests.unit.engine.fakes import MemoryPoint
from tests.unit.manager.support import check_consistent
from tests.unit.worker.test_worker import Gate
from tests.unit.worker.world import SEGMENT, MemoryProvider, OneBackend, WorkerWorld

DATA = random.Random(1).randbytes(6 * SEGMENT + 100)
BY_TOKEN = "changed blocks by token"
TRUSTED_AGAIN = "whole comparison: the backup before was made before its storage was trusted again"


class Kept:
    """What the storage keeps of a point."""

    def __init__(self, data: bytes, token: str) -> None:
        self.data = data
        self.token = token


class TrackingPoint(MemoryPoint):
    """A point whose comparison can be held up."""

    before_compare: Callable[[], object]

    def compare(self, since: str) -> str | None:
        self.before_compare()
        return super().compare(since)


class TrackingProvider(MemoryProvider):
    """Volumes in memory whose points are kept by id, and which know what changed."""

    capabilities = Capabilities(
        allocation=True, changes=True, live=True, snapshots=True, writes=True, fences=True
    )

    def __init__(self) -> None:
        super().__init__()
        self.kept: dict[str, Kept] = {}
        self.made = itertools.count()
        #: Says that everything is the same.
        self.lies = False
        #: Says that everything is zero.
        self.lies_about_zeros = False
        self.opened: list[MemoryPoint] = []
        self.before_open: Callable[[], object] = lambda: None
        self.before_keep: Callable[[], object] = lambda: None
        self.before_delete_snapshot: Callable[[], object] = lambda: None
        self.before_compare: Callable[[], object] = lambda: None

    def open_point(self, ref: VolumeRef | SnapshotRef, point_id: str, tick: Tick = no_tick) -> Point:
        self.before_open()
        if isinstance(ref, SnapshotRef):
            return super().open_point(ref, point_id, tick)
        data = bytes(self.volumes[ref.id])
        kept = self.kept.setdefault(point_id, Kept(data, f"{ref.id}/{point_id}/{next(self.made)}"))
        point = TrackingPoint(
            kept.data,
            identity=kept.token,
            token=kept.token,
            earlier={one.token: one.data for one in self.kept.values()},
            lies=[range(len(data))] if self.lies else (),
            zero_lies=[range(len(data))] if self.lies_about_zeros else (),
        )
        point.before_compare = self.before_compare
        self.opened.append(point)
        return point

    def keep_points(self, volume: VolumeRef, needed: Callable[[], Needed]) -> None:
        self.before_keep()
        there = list(self.kept)
        for point_id in needed().unneeded(there):
            del self.kept[point_id]

    def delete_snapshot(self, snapshot: SnapshotRef) -> None:
        self.before_delete_snapshot()
        super().delete_snapshot(snapshot)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[WorkerWorld]:
    world = WorkerWorld(tmp_path, max_attempts=6)
    world.provider = TrackingProvider()
    world.tools = replace(
        world.tools,
        backends=OneBackend(world.provider),  # type: ignore[arg-type]
        meter=CountingMeter(),
    )
    yield world
    world.store.close()
    check_consistent(world)
    world.db.close()


class CountingMeter(NullMeter):
    """Counts the storage's wrong answers."""

    missed = 0

    def change_missed(self) -> None:
        self.missed += 1


def set_engine(world: WorkerWorld, **values: Any) -> None:
    world.tools = replace(world.tools, engine=replace(world.tools.engine, **values))


def storage(world: WorkerWorld) -> TrackingProvider:
    assert isinstance(world.provider, TrackingProvider)
    return world.provider


def wait_kept(world: WorkerWorld, *backups: models.Backup) -> None:
    """Poll until the storage keeps exactly these points: it is told after the commit."""
    wanted = {one.id for one in backups}
    world.wait(lambda: set(storage(world).kept) == wanted, f"the storage to keep {wanted}")


def back_up(world: WorkerWorld, volume: str, incremental: bool = True, **how: Any) -> models.Backup:
    made = world.backups.create(world.ctx(), volume_id=volume, incremental=incremental, **how)
    row = world.wait_backup(made.id, "available")
    world.wait_idle()
    return row


def restored(world: WorkerWorld, backup: models.Backup) -> bytes:
    _, target, _ = world.backups.restore(world.ctx(), backup.id)
    world.wait(lambda: world.volume_status(target) == "available", "the restore")
    world.wait_idle()
    return bytes(storage(world).volumes[target][: len(DATA)])


def test_a_chain_by_tokens(world: WorkerWorld) -> None:
    volume = world.filled_volume(DATA)
    data = storage(world).volumes[volume]
    set_engine(world, verify_unchanged=0.0)
    with world.worker():
        full = back_up(world, volume, incremental=False)
        assert (full.comparison, full.read_bytes) == ("no comparison: full backup", len(DATA))
        wait_kept(world, full)
        for number in range(3):
            data[number * SEGMENT : number * SEGMENT + 3] = b"new"
            row = back_up(world, volume)
            assert (row.comparison, row.read_bytes) == (BY_TOKEN, 4 << 10)
            # One snapshot stays, as the base of the next.
            wait_kept(world, row)
            assert restored(world, row) == data
        for backup in world.rows(models.Backup):
            world.backups.delete(world.ctx(), backup.id)
        world.wait_idle()
    wait_kept(world)


def test_a_lie_is_stored_right_told_and_remembered(world: WorkerWorld) -> None:
    volume = world.filled_volume(DATA)
    data = storage(world).volumes[volume]
    volumes = VolumeManager(world.db, world.conf, lambda: None)
    set_engine(world, verify_unchanged=1.0)
    with world.worker():
        back_up(world, volume, incremental=False)
        storage(world).lies = True
        data[SEGMENT : SEGMENT + 3] = b"new"
        row = back_up(world, volume)
        assert restored(world, row) == data
        day = f"{world.row(models.Volume, volume).changes_distrusted_at:%Y-%m-%d}"
        why = f"whole comparison: on {day}, its storage said wrongly what had changed"
        assert row.comparison == why
        (message,) = world.rows(models.Message)
        assert message.message_level == "WARNING"
        assert "said wrongly what had changed" in text(message.action_id, message.detail_id)
        assert "Earlier backups" in text(message.action_id, message.detail_id)
        (finding,) = audit.run(world.db, 60)
        assert (finding.check, finding.subject) == ("changes", f"volume {volume}")
        assert isinstance(world.tools.meter, CountingMeter)
        assert world.tools.meter.missed == 1
        # From then on it is not asked.
        storage(world).lies = False
        row = back_up(world, volume)
        assert (row.comparison, row.read_bytes) == (why, len(DATA))
        assert len(world.rows(models.Message)) == 1
        volumes.trust_changes(world.ctx(), volume)
        assert audit.run(world.db, 60) == []
        assert back_up(world, volume).comparison == TRUSTED_AGAIN
        assert back_up(world, volume).comparison == BY_TOKEN


def test_nothing_is_believed_of_a_storage_that_lied_about_zeros(world: WorkerWorld) -> None:
    volume = world.filled_volume(DATA)
    data = storage(world).volumes[volume]
    set_engine(world, verify_unchanged=1.0)
    with world.worker():
        back_up(world, volume, incremental=False)
        data[SEGMENT : SEGMENT + 3] = b"new"
        # It goes on with that, also when it is not asked what changed.
        storage(world).lies_about_zeros = True
        for incremental in (True, True, False):
            row = back_up(world, volume, incremental)
            assert restored(world, row) == data
            assert row.read_bytes == len(DATA)
    assert world.row(models.Volume, volume).changes_distrusted_at is not None


@pytest.mark.parametrize("stopped", ["cancelled", "lost"])
def test_a_lie_is_recorded_although_the_attempt_ends_in_that_moment(
    world: WorkerWorld, monkeypatch: pytest.MonkeyPatch, stopped: str
) -> None:
    """And the backup before, which may hold wrong data, is then compared as a whole."""
    volume = world.filled_volume(DATA)
    data = storage(world).volumes[volume]
    set_engine(world, verify_unchanged=0.0)
    record = CreateTasks.distrust_changes

    def stop(self: CreateTasks, task: Task) -> Any:
        if stopped == "cancelled":
            world.backups.force_delete(world.ctx(admin=True), task.resource_id)
        else:
            with world.db.write() as session:
                session.execute(update(models.Task).values(attempt=models.Task.attempt + 1))
        return record(self, task)

    with world.worker(lease_seconds=1.0):
        back_up(world, volume, incremental=False)
        storage(world).lies = True
        data[SEGMENT : SEGMENT + 3] = b"new"
        wrong = back_up(world, volume)
        assert restored(world, wrong) == DATA
        set_engine(world, verify_unchanged=1.0)
    with world.worker(lease_seconds=1.0):
        monkeypatch.setattr(CreateTasks, "distrust_changes", stop)
        made = world.backups.create(world.ctx(), volume_id=volume, incremental=True)
        world.wait_backup(made.id, None if stopped == "cancelled" else "available")
        world.wait_idle()
        assert world.row(models.Volume, volume).changes_distrusted_at is not None
        assert len(world.rows(models.Message)) == 1
        if stopped == "lost":
            return
        wait_kept(world, wrong)
        storage(world).lies = False
        VolumeManager(world.db, world.conf, lambda: None).trust_changes(world.ctx(), volume)
        row = back_up(world, volume)
        assert (row.comparison, row.read_bytes) == (TRUSTED_AGAIN, len(DATA))
        assert restored(world, row) == data
        assert back_up(world, volume).comparison == BY_TOKEN


@pytest.mark.parametrize("again", [False, True], ids=["distrusted", "trusted again"])
@pytest.mark.parametrize("lost", [False, True], ids=["this attempt", "the next attempt"])
def test_what_was_taken_over_by_trust_is_not_committed_once_the_trust_is_gone(
    world: WorkerWorld, monkeypatch: pytest.MonkeyPatch, lost: bool, again: bool
) -> None:
    volume = world.filled_volume(DATA)
    data = storage(world).volumes[volume]
    volumes = VolumeManager(world.db, world.conf, lambda: None)
    set_engine(world, verify_unchanged=0.0)
    armed = [False]

    def reach(name: str, detail: object = "") -> None:
        del detail
        if name == "backup.manifest-put" and armed[0]:
            armed[0] = False
            # Another backup of the volume finds it.
            with world.db.write() as session:
                session.get_one(models.Volume, volume).changes_distrusted_at = now(session)
            if again:
                storage(world).lies = False
                volumes.trust_changes(world.ctx(), volume)
            if lost:
                raise TaskLost("killed")

    monkeypatch.setattr(crash_points, "reach", reach)
    with world.worker(lease_seconds=1.0):
        back_up(world, volume, incremental=False)
        storage(world).lies = True
        data[SEGMENT : SEGMENT + 3] = b"new"
        armed[0] = True
        row = back_up(world, volume)
        assert restored(world, row) == data
        assert str(row.comparison).startswith("whole comparison: ")
        assert world.row(models.Manifest, row.manifest_id).epoch == 2
        # It was no failure.
        assert not [one for one in world.rows(models.Message) if one.message_level == "ERROR"]
        world.backups.delete(world.ctx(), row.id)
        world.wait_backup(row.id, None)
        world.wait_idle()
        assert not [key for key in world.objects() if row.id in key]


def test_the_head_of_the_base_is_read_once(world: WorkerWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    volume = world.filled_volume(DATA)
    opened: list[str] = []
    init = ManifestReader.__init__

    def count(self: ManifestReader, container: Container, key: str) -> None:
        opened.append(key)
        init(self, container, key)

    monkeypatch.setattr(ManifestReader, "__init__", count)
    with world.worker():
        full = back_up(world, volume, incremental=False)
        opened.clear()
        assert back_up(world, volume).comparison == BY_TOKEN
    assert opened == [full.service_metadata]


def test_every_so_many_read_everything(world: WorkerWorld) -> None:
    volume = world.filled_volume(DATA)
    set_engine(world, full_compare_every=3, verify_unchanged=0.0)
    with world.worker():
        back_up(world, volume, incremental=False)
        rows = [back_up(world, volume) for _ in range(7)]
    due = ("whole comparison: due every 3 backups", len(DATA))
    same = (BY_TOKEN, 0)
    assert [(row.comparison, row.read_bytes) for row in rows] == [same, same, due, same, same, due, same]


def test_a_lie_is_noticed_when_everything_is_due_to_be_read(world: WorkerWorld) -> None:
    volume = world.filled_volume(DATA)
    data = storage(world).volumes[volume]
    set_engine(world, full_compare_every=2, verify_unchanged=0.0)
    with world.worker():
        back_up(world, volume, incremental=False)
        storage(world).lies = True
        data[SEGMENT : SEGMENT + 3] = b"new"
        assert back_up(world, volume).comparison == BY_TOKEN
        data[:3] = b"new"
        row = back_up(world, volume)
        assert restored(world, row) == data
    assert world.row(models.Volume, volume).changes_distrusted_at is not None
    assert str(row.comparison).startswith("whole comparison: on ")
    assert len(world.rows(models.Message)) == 1
    assert isinstance(world.tools.meter, CountingMeter)
    assert world.tools.meter.missed == 1


def test_a_token_that_no_longer_holds_is_said(world: WorkerWorld) -> None:
    volume = world.filled_volume(DATA)
    with world.worker():
        back_up(world, volume, incremental=False)
        storage(world).kept.clear()
        row = back_up(world, volume)
        assert row.comparison == "whole comparison: the token no longer holds, its snapshot is gone"
        assert row.read_bytes == len(DATA)
        assert back_up(world, volume).comparison == BY_TOKEN


def test_a_backup_of_a_snapshot_is_compared_as_a_whole_and_so_is_the_next(world: WorkerWorld) -> None:
    volume = world.filled_volume(DATA)
    snapshot = world.snapshot(volume)
    storage(world).snapshots[snapshot] = DATA
    with world.worker():
        row = back_up(world, volume, incremental=False, snapshot_id=snapshot)
        assert row.comparison == "no comparison: full backup"
        row = back_up(world, volume)
        assert row.comparison == "whole comparison: the backup before has no token"


def test_a_volume_in_use_needs_no_temporary_snapshot(world: WorkerWorld) -> None:
    volume = world.filled_volume(DATA)
    VolumeManager(world.db, world.conf, lambda: None).attachments.attach(world.ctx(), volume)
    with world.worker():
        full = back_up(world, volume, incremental=False, force=True)
        assert back_up(world, volume, force=True).comparison == BY_TOKEN
    assert storage(world).snapshots == {}
    assert full.temp_snapshot_id is None
    assert world.rows(models.Snapshot) == []


def test_what_a_failed_clean_up_left_goes_with_the_next_backup(world: WorkerWorld) -> None:
    volume = world.filled_volume(DATA)

    def fail() -> None:
        raise OSError("the storage is away")

    with world.worker():
        first = back_up(world, volume, incremental=False)
        storage(world).before_keep = fail
        made = world.backups.create(world.ctx(), volume_id=volume, incremental=True)
        second = world.wait_backup(made.id, "available")
        # It is tried again after a pause, when the allowed attempts are over.
        world.wait(lambda: any(one.not_before for one in world.rows(models.Task)), "the failure")
        assert set(storage(world).kept) == {first.id, second.id}
        storage(world).before_keep = lambda: None
        third = back_up(world, volume)
        assert third.comparison == BY_TOKEN
    wait_kept(world, third)


def test_what_was_kept_goes_although_the_storage_no_longer_records_changes(world: WorkerWorld) -> None:
    volume = world.filled_volume(DATA)
    with world.worker():
        back_up(world, volume, incremental=False)
        storage(world).capabilities = MemoryProvider.capabilities
        last = back_up(world, volume)
    wait_kept(world, last)


def test_the_point_of_a_backup_that_failed_goes_and_that_of_the_one_before_stays(world: WorkerWorld) -> None:
    volume = world.filled_volume(DATA)
    with world.worker():
        first = back_up(world, volume, incremental=False)
        storage(world).volumes[volume][:3] = b"new"
        world.faulty.fail("put", lambda: PermissionDenied("no"), times=None)
        made = world.backups.create(world.ctx(), volume_id=volume, incremental=True)
        world.wait_backup(made.id, "error")
        wait_kept(world, first)
        world.faulty.heal()
        assert back_up(world, volume).comparison == BY_TOKEN


def test_another_attempt_reads_the_same_point(world: WorkerWorld) -> None:
    """What was finished counts, although the volume has changed meanwhile; and both attempts decide alike."""
    volume = world.filled_volume(DATA)
    set_engine(world, verify_unchanged=0.0)
    data = storage(world).volumes[volume]
    with world.worker():
        back_up(world, volume, incremental=False)
    for segment in range(4):
        data[segment * SEGMENT : segment * SEGMENT + 3] = b"new"
    then = bytes(data)
    made = world.backups.create(world.ctx(), volume_id=volume, incremental=True)
    world.faulty.fail("put", skip=3)

    def change() -> None:
        # Before the second attempt.
        if made.id in storage(world).kept:
            data[5 * SEGMENT : 5 * SEGMENT + 3] = b"new"

    storage(world).before_open = change
    with world.worker():
        row = world.wait_backup(made.id, "available")
        world.wait_idle()
        assert row.comparison == BY_TOKEN
        assert restored(world, row) == then
        assert data != then
        manifest = world.row(models.Manifest, row.manifest_id)
        assert manifest.epoch == 1
        assert len({point.identity for point in storage(world).opened[1:]}) == 1


def test_a_point_that_was_lost_begins_anew(world: WorkerWorld) -> None:
    volume = world.filled_volume(DATA)
    with world.worker():
        back_up(world, volume, incremental=False)
    data = storage(world).volumes[volume]
    data[:3] = b"old"
    made = world.backups.create(world.ctx(), volume_id=volume, incremental=True)
    world.faulty.fail("put", skip=1)

    def lose() -> None:
        if storage(world).kept.pop(made.id, None) is not None:
            data[3 * SEGMENT : 3 * SEGMENT + 3] = b"new"
            storage(world).before_open = lambda: None

    storage(world).before_open = lose
    with world.worker():
        row = world.wait_backup(made.id, "available")
        world.wait_idle()
        assert restored(world, row) == data
        assert world.row(models.Manifest, row.manifest_id).epoch == 2


def test_a_cancelled_backup_keeps_nothing(world: WorkerWorld) -> None:
    volume = world.filled_volume(DATA)
    with world.worker():
        first = back_up(world, volume, incremental=False)
        storage(world).volumes[volume][:3] = b"new"
        gate = Gate(after=0)
        world.faulty.fail("put", times=None, match=gate)
        made = world.backups.create(world.ctx(), volume_id=volume, incremental=True)
        assert gate.reached.wait(60)
        assert set(storage(world).kept) == {first.id, made.id}
        world.backups.force_delete(world.ctx(admin=True), made.id)
        gate.open()
        world.wait_backup(made.id, None)
        world.wait_idle()
    wait_kept(world, first)


@pytest.mark.parametrize("hangs", ["before_open", "before_compare"])
def test_a_storage_that_hangs_does_not_keep_a_backup_from_its_deletion(
    world: WorkerWorld, hangs: str
) -> None:
    volume = world.filled_volume(DATA)
    with world.worker():
        back_up(world, volume, incremental=False)
        storage(world).volumes[volume][:3] = b"new"
        gate = Gate(after=0)
        setattr(storage(world), hangs, gate)
        made = world.backups.create(world.ctx(), volume_id=volume, incremental=True)
        assert gate.reached.wait(60)
        world.backups.force_delete(world.ctx(admin=True), made.id)
        try:
            world.wait_backup(made.id, None)
        finally:
            gate.open()
        world.wait_idle()


def test_no_backup_waits_for_the_tidying(world: WorkerWorld) -> None:
    volume = world.filled_volume(DATA)
    gate = Gate(after=0)
    storage(world).before_keep = gate
    with world.worker(slots=4):
        made = [world.backups.create(world.ctx(), volume_id=volume)]
        world.wait_backup(made[0].id, "available")
        assert gate.reached.wait(60)
        for incremental in (True, True):
            made.append(world.backups.create(world.ctx(), volume_id=volume, incremental=incremental))
            world.wait_backup(made[-1].id, "available")
        # One runs, and one for all ends since waits.
        assert world.tasks.pending() == 2
        gate.open()
        world.wait_idle()
    wait_kept(world, world.row(models.Backup, made[-1].id))


def test_a_temporary_snapshot_that_cannot_be_deleted_keeps_no_cancelled_backup(world: WorkerWorld) -> None:
    """It is deleted as soon as it can be, and before its volume is."""
    volume = world.filled_volume(DATA)
    storage(world).capabilities = MemoryProvider.capabilities
    VolumeManager(world.db, world.conf, lambda: None).attachments.attach(world.ctx(), volume)
    put, hangs = Gate(after=0), Gate(after=0)
    world.faulty.fail("put", times=None, match=put)
    with world.worker(slots=4):
        made = world.backups.create(world.ctx(), volume_id=volume, force=True)
        assert put.reached.wait(60)
        assert len(storage(world).snapshots) == 1
        storage(world).before_delete_snapshot = hangs
        world.backups.force_delete(world.ctx(admin=True), made.id)
        put.open()
        world.faulty.heal()
        try:
            world.wait_backup(made.id, None)
            assert hangs.reached.wait(60)
        finally:
            hangs.open()
        world.wait_idle()
    assert storage(world).snapshots == {}


def reaching(world: WorkerWorld, backend: str) -> None:
    """Let the next worker have this back end only."""

    class Only(OneBackend):
        def provider(self, name: str) -> VolumeProvider:
            assert name == backend
            return super().provider(name)

        def has(self, name: str) -> bool:
            return name == backend

    reach = Reach("host", BACKUP_BINARY, "nova", frozenset(("main",)), frozenset((backend,)))
    only: Any = Only(world.provider)
    world.tools = replace(world.tools, reach=reach, backends=only, expire_waiting=lambda: None)


def test_what_a_worker_without_the_back_end_deleted_is_tidied_by_one_that_has_it(world: WorkerWorld) -> None:
    volume = world.filled_volume(DATA)
    with world.worker():
        full = back_up(world, volume, incremental=False)
        wait_kept(world, full)
    reaching(world, "another")
    with world.worker():
        world.backups.delete(world.ctx(), full.id)
        world.wait_backup(full.id, None)
    reaching(world, "local")
    with world.worker():
        world.wait_idle()
    assert storage(world).kept == {}


@pytest.mark.parametrize("step", ["delete.committed", "backup.committed"])
def test_a_kill_after_the_commit_leaves_nothing(
    world: WorkerWorld, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    volume = world.filled_volume(DATA)
    armed = [False]

    def reach(name: str, detail: object = "") -> None:
        del detail
        if name == step and armed[0]:
            armed[0] = False
            raise TaskLost("killed")

    monkeypatch.setattr(crash_points, "reach", reach)
    with world.worker(lease_seconds=1.0):
        last = back_up(world, volume, incremental=False)
        armed[0] = True
        if step == "delete.committed":
            world.backups.delete(world.ctx(), last.id)
            world.wait_backup(last.id, None)
        else:
            last = back_up(world, volume)
        world.wait_idle()
        assert not armed[0]
        assert set(storage(world).kept) == (set() if step == "delete.committed" else {last.id})


def test_a_backup_whose_task_expired_leaves_nothing(world: WorkerWorld) -> None:
    volume = world.filled_volume(DATA)
    put = Gate(after=0)
    world.faulty.fail("put", times=None, match=put)
    with world.worker():
        made = world.backups.create(world.ctx(), volume_id=volume)
        assert put.reached.wait(60)
        threading.Timer(0.2, put.open).start()
    world.faulty.heal()
    assert set(storage(world).kept) == {made.id}
    with world.db.write() as session:
        session.execute(delete(models.Service))
        moment = now(session)
    world.expiry.expire(moment + timedelta(days=1))
    assert world.status(made.id) == "error"
    with world.worker():
        world.wait_idle()
    assert storage(world).kept == {}


@pytest.mark.parametrize("how", ["deleted", "forgotten"])
def test_a_volume_that_goes_leaves_nothing(world: WorkerWorld, how: str) -> None:
    volume = world.filled_volume(DATA)
    volumes = VolumeManager(world.db, world.conf, lambda: None)
    with world.db.write() as session:
        session.get_one(models.Volume, volume).adopted = True
    with world.worker():
        full = back_up(world, volume, incremental=False)
        wait_kept(world, full)
        if how == "deleted":
            volumes.delete(world.ctx(), volume)
        else:
            volumes.forget(world.ctx(), volume)
        world.wait_idle()
        assert storage(world).kept == {}
        assert world.status(full.id) == "available"


def test_a_storage_that_a_volume_leaves_keeps_nothing(world: WorkerWorld) -> None:
    volume = world.filled_volume(DATA)
    volumes = VolumeManager(world.db, world.conf, lambda: None)
    with world.db.write() as session:
        row = session.get_one(models.Volume, volume)
        row.adopted, row.location = True, "there"
    asked: list[str | None] = []
    tidied = TrackingProvider.keep_points

    def keep(volume: VolumeRef, needed: Callable[[], Needed]) -> None:
        asked.append(volume.location)
        tidied(storage(world), volume, needed)

    with world.worker():
        full = back_up(world, volume, incremental=False)
        assert set(storage(world).kept) == {full.id}
        storage(world).keep_points = keep  # type: ignore[method-assign]
        # At the same place it may be compared again.
        volumes.adopt_again(world.ctx(), volume, location="there", length=len(DATA), storage_id="one")
        assert world.tasks.pending() == 0
        volumes.adopt_again(world.ctx(), volume, location="here", length=len(DATA), storage_id="other")
        world.wait_idle()
    assert asked == ["there"]
    assert storage(world).kept == {}
    assert world.row(models.Volume, volume).location == "here"


def test_what_another_service_keeps_in_the_storage_stays(world: WorkerWorld) -> None:
    """The original of a copied database has made backups since, or the storage is adopted by two services."""
    volume = world.filled_volume(DATA)
    storage(world).kept["of the original"] = Kept(DATA, "token")
    with world.worker():
        back_up(world, volume, incremental=False)
        row = back_up(world, volume)
        assert set(storage(world).kept) == {row.id, "of the original"}
        world.backups.delete(world.ctx(), row.id)
        world.wait_idle()
    assert "of the original" in storage(world).kept


def test_the_point_of_a_waiting_backups_parent_stays(world: WorkerWorld) -> None:
    volume = world.filled_volume(DATA)
    world.tools = replace(world.tools, expire_waiting=lambda: None)
    with world.worker():
        parent = back_up(world, volume, incremental=False)
        snapshot = world.snapshot(volume)
        storage(world).snapshots[snapshot] = DATA
    waiting = world.backups.create(world.ctx(), volume_id=volume, incremental=True)
    mine = update(models.Task).where(models.Task.resource_id == waiting.id)
    with world.db.write() as session:
        # It is in nobody's way: the tidying would wait for it.
        session.execute(mine.values(not_before=datetime(2100, 1, 1), source_id=None))
    with world.worker():
        other = world.backups.create(world.ctx(), volume_id=volume, snapshot_id=snapshot)
        world.wait_backup(other.id, "available")
        world.wait(lambda: world.tasks.pending() == 1, "the tidying")
        assert world.status(waiting.id) == "creating"
        with world.db.write() as session:
            session.execute(mine.values(not_before=None, source_id=volume))
        row = world.wait_backup(waiting.id, "available")
        assert (row.parent_id, row.comparison) == (parent.id, BY_TOKEN)


def test_a_shutdown_keeps_the_point_for_the_next_worker(world: WorkerWorld) -> None:
    volume = world.filled_volume(DATA)
    gate = Gate(after=9)
    world.faulty.fail("put", times=None, match=gate)
    with world.worker():
        made = world.backups.create(world.ctx(), volume_id=volume)
        assert gate.reached.wait(60)
        threading.Timer(0.2, gate.open).start()
    wait_kept(world, made)
    world.faulty.heal()
    storage(world).volumes[volume][:3] = b"new"
    with world.worker():
        row = world.wait_backup(made.id, "available")
        world.wait_idle()
        assert restored(world, row) == DATA
        assert world.row(models.Manifest, row.manifest_id).epoch == 1


def test_a_backup_that_was_committed_by_another_attempt_settles_its_point(
    world: WorkerWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An attempt ends between manifest and commit; the next one finds all of it, and reads nothing."""
    volume = world.filled_volume(DATA)
    with world.worker():
        back_up(world, volume, incremental=False)
        storage(world).volumes[volume][:3] = b"new"
        lost = iter([True])
        finish = CreateTasks.finish

        def lose(self: CreateTasks, *args: Any) -> Any:
            if next(lost, False):
                raise ListingBehind(0.0)
            return finish(self, *args)

        monkeypatch.setattr(CreateTasks, "finish", lose)
        row = back_up(world, volume)
        wait_kept(world, row)
        assert row.read_bytes is None
        assert back_up(world, volume).comparison == BY_TOKEN


def test_a_kill_at_every_step_leaves_the_right_points(
    world: WorkerWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume = world.filled_volume(DATA)
    set_engine(world, verify_unchanged=0.0)
    data = storage(world).volumes[volume]
    armed = [""]

    def reach(name: str, detail: object = "") -> None:
        del detail
        if name == armed[0]:
            armed[0] = ""
            raise TaskLost("killed")

    monkeypatch.setattr(crash_points, "reach", reach)
    steps = [name for name in crash_points.NAMES if name.startswith("backup.")]
    with world.worker(lease_seconds=1.0):
        back_up(world, volume, incremental=False)
        for number, step in enumerate(steps):
            data[5 * SEGMENT : 5 * SEGMENT + 1] = bytes([number])
            armed[0] = step
            row = back_up(world, volume)
            assert armed[0] == ""
            assert row.comparison == BY_TOKEN, step
            wait_kept(world, row)
        assert restored(world, row) == data

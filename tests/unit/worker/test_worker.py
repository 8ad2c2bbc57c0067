"""The worker on real managers and the real engine: outcomes, retries, cancellation, shutdown, lost leases."""

from __future__ import annotations

import base64
import json
import random
import threading
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from oslo_db.exception import DBConnectionError
from sqlalchemy import update

from backupfw import crash_points
from backupfw.chunkstore.errors import IntegrityError, PermissionDenied, Unavailable
from backupfw.db import models
from backupfw.errors import SourceMoved
from backupfw.manager.messages import Detail
from backupfw.manager.queue import tasks
from backupfw.manager.queue.tasks import Outcome
from backupfw.manager.rows import Task
from backupfw.manager.rules.volume_types import VolumeTypeManager
from backupfw.manager.usecases.volumes import VolumeManager
from backupfw.testing.faults import Fault
from backupfw.worker.handlers.backup_create import TaskJournal
from tests.unit.db.lost_answers import lost_answers
from tests.unit.manager.support import check_consistent
from tests.unit.worker.world import SEGMENT, WorkerWorld
from tests.waiting import PATIENCE

DATA = random.Random(1).randbytes(6 * SEGMENT + 100)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[WorkerWorld]:
    world = WorkerWorld(tmp_path, max_attempts=6)
    yield world
    world.store.close()
    check_consistent(world)
    world.db.close()


class Gate:
    """Holds calls up from a certain one on, until it is opened."""

    def __init__(self, after: int) -> None:
        self.reached = threading.Event()
        self._open = threading.Event()
        self._left = after
        self._lock = threading.Lock()

    def __call__(self, *_: object) -> bool:
        with self._lock:
            self._left -= 1
            held = self._left < 0
        if held:
            self.reached.set()
            # Longer than any test waits for what shall happen meanwhile.
            assert self._open.wait(120)
        return False

    def open(self) -> None:
        self._open.set()


def test_a_kind_of_task_that_a_later_release_adds_waits_for_its_workers(world: WorkerWorld) -> None:
    volume = world.filled_volume(DATA)
    with world.db.write() as session:
        tasks.add(
            session, tasks.MANIFEST_RELEASE, resource_id="x", source_id=None, project_id="p1", request_id=None
        )
        for row in world.rows_in(session, models.Task):
            row.kind = "manifest.of-tomorrow"
    with world.worker():
        made = world.backups.create(world.ctx(), volume_id=volume)
        world.wait_backup(made.id, "available")
    (left,) = world.rows(models.Task)
    assert (left.kind, left.state, left.attempt) == ("manifest.of-tomorrow", "queued", 0)


def test_a_worker_makes_a_backup_and_restores_it(world: WorkerWorld) -> None:
    volume = world.filled_volume(DATA)
    with world.worker():
        made = world.backups.create(world.ctx(), volume_id=volume)
        row = world.wait_backup(made.id, "available")
        assert world.volume_status(volume) == "available"
        assert row.object_count == len(world.objects())
        _, target, _ = world.backups.restore(world.ctx(), made.id)
        world.wait(lambda: world.volume_status(target) == "available", "the restore")
        assert world.provider.volumes[target] == DATA
        world.backups.delete(world.ctx(), made.id)
        world.wait_backup(made.id, None)
    assert world.objects() == set()


def test_a_restored_volume_is_what_the_old_one_was(world: WorkerWorld) -> None:
    """Type, bootable and what is known of its image: from the catalogue, the manifest and an import."""
    types = VolumeTypeManager(world.db, world.conf)
    types.create(world.ctx(admin=True), name="gold")
    types.create(world.ctx(admin=True), name=world.conf.default_volume_type)
    volumes = VolumeManager(world.db, world.conf, lambda: None)
    volume = world.filled_volume(DATA)
    volumes.retype(world.ctx(), volume, "gold")
    volumes.set_bootable(world.ctx(), volume, True)
    volumes.image_metadata.set(world.ctx(), volume, {"image_name": "cirros"})
    other = world.filled_volume(DATA)
    volumes.image_metadata.set(world.ctx(), other, {"kernel_id": "k"})

    def restored(backup_id: str, target: str | None = None) -> tuple[str | None, bool, dict[str, str]]:
        _, made, _ = world.backups.restore(world.ctx(), backup_id, volume_id=target)
        world.wait(lambda: world.volume_status(made) == "available", "the restore")
        world.wait_backup(backup_id, "available")
        shown = volumes.get(world.ctx(), made)
        return shown.volume_type, shown.bootable, dict(shown.image_metadata)

    with world.worker():
        made = world.backups.create(world.ctx(), volume_id=volume)
        world.wait_backup(made.id, "available")
        assert restored(made.id) == ("gold", True, {"image_name": "cirros"})
        # What is written over becomes what the data was of, and stays of the type that it is stored as.
        assert restored(made.id, other) == (None, True, {"image_name": "cirros"})
        service, url = world.backups.export_record(world.ctx(), made.id)
        record = json.loads(base64.b64decode(url))
        kept = {"volume_type": "gold", "bootable": True, "image_metadata": {"image_name": "cirros"}}
        assert record["driver_info"]["volume"] == kept
        # The record may say what it likes; what was stored counts.
        record |= {"id": str(uuid.uuid4()), "driver_info": {"volume": {"volume_type": "lead"}}}
        url = base64.b64encode(json.dumps(record).encode()).decode()
        duplicate = world.backups.import_record(world.ctx(), backup_service=service, backup_url=url)
        assert world.wait_backup(duplicate.id, "available").volume_record == kept
        assert restored(duplicate.id) == ("gold", True, {"image_name": "cirros"})
        # A backup that was made before the catalogue knew of it.
        with world.db.write() as session:
            session.execute(update(models.Backup).values(volume_record=None))
        assert restored(made.id) == ("gold", True, {"image_name": "cirros"})
        # A type that is gone, or not for this project, makes no backup useless.
        with world.db.write() as session:
            session.execute(update(models.VolumeType).values(is_public=False))
        assert restored(made.id)[0] == world.conf.default_volume_type


def test_a_store_that_comes_back_costs_only_time(world: WorkerWorld) -> None:
    """Each attempt that finishes a segment does not count; nothing finished is sent again."""
    volume = world.filled_volume(DATA)
    world.faulty.fail("put", times=6, rate=0.1)
    with world.worker():
        made = world.backups.create(world.ctx(), volume_id=volume)
        world.wait_backup(made.id, "available")
        world.wait_idle()
    row = world.row(models.Backup, made.id)
    assert row.fail_reason is None
    assert row.object_count == len(world.objects())


def test_a_store_that_stays_away_ends_the_task(world: WorkerWorld) -> None:
    volume = world.filled_volume(DATA)
    world.faulty.fail("put", times=None)
    with world.worker():
        made = world.backups.create(world.ctx(), volume_id=volume)
        row = world.wait_backup(made.id, "error")
        assert row.fail_reason == "The store does not answer."
        assert world.volume_status(volume) == "available"
        world.faulty.heal()
        world.wait_idle()
    assert world.objects() == set()


def test_what_cannot_work_is_not_tried_again(world: WorkerWorld) -> None:
    volume = world.filled_volume(DATA)
    fault = world.faulty.fail("put", lambda: PermissionDenied("key AKIA123 refused"), times=None)
    with world.worker():
        made = world.backups.create(world.ctx(), volume_id=volume)
        row = world.wait_backup(made.id, "error")
        world.wait_idle()
    assert row.fail_reason == "The store refused the service's credentials or permissions."
    # One attempt: a stream may take up the segment that waits for it before it hears of the error.
    assert fault.struck <= 4


def test_each_end_of_a_task_is_counted_once(world: WorkerWorld) -> None:
    """By its outcome; an attempt that is tried again is no end."""
    ended: list[tuple[str, Outcome]] = []

    tasks.hear_ends(world.db, lambda *end: ended.append(end))
    volume = world.filled_volume(DATA)
    gate = Gate(after=2)
    world.faulty.fail("put", times=2, rate=1)
    with world.worker(slots=1):
        made = world.backups.create(world.ctx(), volume_id=volume)
        world.wait_backup(made.id, "available")
        world.faulty.fail("put", times=None)
        made = world.backups.create(world.ctx(), volume_id=volume)
        world.wait_backup(made.id, "error")
        world.wait_idle()
        world.faulty.heal()
        world.faulty.fail("put", times=None, match=gate)
        made = world.backups.create(world.ctx(), volume_id=volume)
        assert gate.reached.wait(PATIENCE)
        world.backups.force_delete(world.ctx(admin=True), made.id)
        gate.open()
        world.wait_backup(made.id, None)
        world.wait_idle()
        world.wait(lambda: len(ended) >= 5, "the last end to be counted")
    assert ended == [
        ("backup.create", "done"),
        ("backup.create", "failed"),
        ("manifest.release", "done"),
        ("backup.create", "cancelled"),
        ("backup.delete", "done"),
    ]


def test_force_delete_stops_a_running_backup(world: WorkerWorld) -> None:
    volume = world.filled_volume(DATA)
    gate = Gate(after=3)
    world.faulty.fail("put", times=None, match=gate)
    with world.worker():
        made = world.backups.create(world.ctx(), volume_id=volume)
        assert gate.reached.wait(PATIENCE)
        world.backups.force_delete(world.ctx(admin=True), made.id)
        assert world.volume_status(volume) == "available"
        # The volume can be backed up again at once; that one waits for the cancelled one to end.
        again = world.backups.create(world.ctx(), volume_id=volume)
        gate.open()
        world.wait_backup(made.id, None)
        world.wait_backup(again.id, "available")
        world.wait_idle()
    assert all(f"/{made.id}/" not in key for key in world.objects())


def test_reset_stops_a_running_restore(world: WorkerWorld) -> None:
    volume = world.filled_volume(DATA)
    gate = Gate(after=1)
    with world.worker() as worker:
        made = world.backups.create(world.ctx(), volume_id=volume)
        world.wait_backup(made.id, "available")
        target = world.filled_volume(b"\xaa" * len(DATA))
        world.provider.before_write = gate
        world.backups.restore(world.ctx(), made.id, volume_id=target)
        assert gate.reached.wait(PATIENCE)
        world.backups.reset_status(world.ctx(admin=True), made.id, "available")
        assert world.status(made.id) == "available"
        assert world.volume_status(target) == "error_restoring"
        world.wait_reported(worker)
        gate.open()
        world.wait_idle()
        before = bytes(world.provider.volumes[target])
        assert b"\xaa" * 1000 in before, "the restore went on"


def test_a_volume_that_hangs_keeps_no_cancelled_restore_for_ever(world: WorkerWorld) -> None:
    """Nothing ends a write that hangs in the kernel: the task goes to another attempt, which cleans up."""
    volume = world.filled_volume(DATA)
    gate = Gate(after=1)
    with world.worker(lease_seconds=1.0, ignored_seconds=0.1):
        made = world.backups.create(world.ctx(), volume_id=volume)
        world.wait_backup(made.id, "available")
        target = world.filled_volume(b"\xaa" * len(DATA))
        world.provider.before_write = gate
        world.backups.restore(world.ctx(), made.id, volume_id=target)
        assert gate.reached.wait(PATIENCE)
        world.backups.reset_status(world.ctx(admin=True), made.id, "available")
        world.wait_idle()
        gate.open()
        # What hung has its place back.
        again = [world.backups.create(world.ctx(), volume_id=world.filled_volume(DATA)) for _ in range(3)]
        for backup in again:
            world.wait_backup(backup.id, "available")
    assert world.volume_status(target) == "error_restoring"
    assert b"\xaa" * 1000 in bytes(world.provider.volumes[target]), "the restore went on"


def test_a_store_that_hangs_keeps_no_backup_from_ending(world: WorkerWorld) -> None:
    """Force delete ends the attempt while its puts hang; what they put in the end is removed again."""
    volume = world.filled_volume(DATA)
    gate = Gate(after=3)
    world.faulty.fail("put", times=None, match=gate)
    with world.worker():
        made = world.backups.create(world.ctx(), volume_id=volume)
        assert gate.reached.wait(PATIENCE)
        world.backups.force_delete(world.ctx(admin=True), made.id)
        world.wait(
            lambda: not world.rows(models.Task, models.Task.kind == "backup.create"), "the attempt to end"
        )
        # The deletion itself needs the store.
        assert world.status(made.id) == "deleting"
        gate.open()
        world.wait_backup(made.id, None)
        world.wait(lambda: not world.objects(), "the late objects to go")


def test_a_store_that_hangs_keeps_no_restore_from_ending(world: WorkerWorld) -> None:
    volume = world.filled_volume(DATA)
    gate = Gate(after=2)
    with world.worker():
        made = world.backups.create(world.ctx(), volume_id=volume)
        world.wait_backup(made.id, "available")
        world.faulty.fail("get", times=None, match=gate)
        _, target, _ = world.backups.restore(world.ctx(), made.id)
        assert gate.reached.wait(PATIENCE)
        world.backups.reset_status(world.ctx(admin=True), made.id, "available")
        world.wait_idle()
        assert world.volume_status(target) == "error"
        gate.open()


def test_a_store_that_hangs_keeps_no_worker_from_stopping(world: WorkerWorld) -> None:
    volume = world.filled_volume(DATA)
    gate = Gate(after=3)
    world.faulty.fail("put", times=None, match=gate)
    with world.worker():
        made = world.backups.create(world.ctx(), volume_id=volume)
        assert gate.reached.wait(PATIENCE)
    # It has stopped: the store still hangs.
    gate.open()
    world.faulty.heal()
    with world.worker():
        world.wait_backup(made.id, "available")
        world.wait_idle()
    assert world.row(models.Backup, made.id).object_count == len(world.objects())


def test_a_shutdown_gives_the_task_back(world: WorkerWorld) -> None:
    """The next worker goes on: what the first one finished is not sent again, and no attempt is counted."""
    volume = world.filled_volume(DATA)
    gate = Gate(after=9)
    world.faulty.fail("put", times=None, match=gate)
    with world.worker():
        made = world.backups.create(world.ctx(), volume_id=volume)
        assert gate.reached.wait(PATIENCE)
        threading.Timer(0.2, gate.open).start()
    assert world.status(made.id) == "creating"
    (task,) = world.rows(models.Task)
    assert (task.state, task.failures) == ("queued", 0)
    finished = len(world.rows(models.Segment))
    assert finished > 0
    world.faulty.heal()
    world.faulty.calls.clear()
    with world.worker():
        world.wait_backup(made.id, "available")
    maps = sum(1 for kind, key in world.faulty.calls if kind == "put" and key.endswith("/map"))
    assert maps == 7 - finished
    # Leftovers of the first attempt are gone without a sweep.
    assert world.row(models.Backup, made.id).object_count == len(world.objects())


def test_a_look_into_the_database_that_hangs_keeps_no_attempt_from_ending(world: WorkerWorld) -> None:
    shall_hang, hangs, go_on = (threading.Event() for _ in range(3))

    def look() -> None:
        if shall_hang.is_set():
            hangs.set()
            assert go_on.wait(120)

    world.tools = replace(world.tools, expire_waiting=look)
    gate = Gate(after=3)
    world.faulty.fail("put", times=None, match=gate)
    with world.worker() as worker:
        world.backups.create(world.ctx(), volume_id=world.filled_volume(DATA))
        assert gate.reached.wait(PATIENCE)
        shall_hang.set()
        assert hangs.wait(PATIENCE)
        stopper = threading.Thread(target=worker.stop)
        stopper.start()
        try:
            world.wait(lambda: world.rows(models.Task)[0].state == "queued", "the task to be given back")
        finally:
            go_on.set()
            stopper.join()
            gate.open()
    (task,) = world.rows(models.Task)
    assert task.failures == 0


def test_what_cannot_be_ended_keeps_nothing_from_beginning(world: WorkerWorld) -> None:
    def look() -> None:
        raise RuntimeError("always")

    world.tools = replace(world.tools, expire_waiting=look)
    # Due at every look for tasks.
    with world.worker(expire_seconds=0.0):
        made = world.backups.create(world.ctx(), volume_id=world.filled_volume(DATA))
        world.wait_backup(made.id, "available")


def test_a_clean_up_that_takes_its_time_keeps_its_lease(world: WorkerWorld) -> None:
    """It was cancelled before it was claimed: what is done from then on is what was asked for."""
    made = world.backups.create(world.ctx(), volume_id=world.filled_volume(DATA))
    assert world.tasks.claim("dead/1", 600) is not None
    world.backups.force_delete(world.ctx(admin=True), made.id)
    world.age(seconds=601)
    begun, go_on = threading.Event(), threading.Event()
    discard = world.tasks.discard

    def slow(task: Task) -> None:
        begun.set()
        assert go_on.wait(120)
        discard(task)

    world.tasks.discard = slow  # type: ignore[method-assign]
    with world.worker(lease_seconds=3.0, ignored_seconds=0.1) as worker:
        assert begun.wait(PATIENCE)
        (held,) = worker._leases._held.values()
        deadlines: set[float] = set()

        def renewed() -> bool:
            deadlines.add(held.control._deadline)
            return held.control._asked_at is not None and len(deadlines) > 3

        try:
            world.wait(renewed, "it to hear of it, and to be renewed again and again")
        finally:
            go_on.set()
        world.wait_backup(made.id, None)


def test_an_attempt_that_lost_its_lease_changes_nothing(world: WorkerWorld) -> None:
    """Its renewals fail, another attempt takes over; the late one ends without a trace."""
    volume = world.filled_volume(DATA)
    gate = Gate(after=2)
    world.faulty.fail("put", lambda: Unavailable("late"), times=None, match=gate)
    with world.worker(lease_seconds=600) as first:
        made = world.backups.create(world.ctx(), volume_id=volume)
        assert gate.reached.wait(PATIENCE)
        # What a take-over after a lost lease does.
        with world.db.write() as session:
            (task,) = world.rows_in(session, models.Task)
            task.attempt += 1
            task.state, task.owner, task.lease_until = "queued", None, None
        first._leases.poke()
        gate.open()
        world.wait_backup(made.id, "available")
        world.wait_idle()
    assert world.row(models.Backup, made.id).service_metadata.split("/")[4].startswith("1.3-")


class LostAfterThePut:
    """From its making on, the first attempt that puts its manifest loses its task before the commit.

    :ivar put: the key of that manifest, when it is there.
    """

    def __init__(self, world: WorkerWorld, monkeypatch: pytest.MonkeyPatch) -> None:
        self.put: list[str] = []
        self._world = world
        self._before = world.objects()
        monkeypatch.setattr(crash_points, "reach", self._reach)

    def _reach(self, name: str, detail: object = "") -> None:
        if name == "backup.manifest-put" and not self.put:
            self.put += [key for key in self._world.objects() - self._before if key.endswith("/manifest")]
            with self._world.db.write() as session:
                (task,) = self._world.rows_in(session, models.Task)
                task.state, task.owner, task.lease_until = "queued", None, None


def test_a_manifest_whose_attempt_lost_its_task_is_taken_over(
    world: WorkerWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost = LostAfterThePut(world, monkeypatch)
    with world.worker(slots=1):
        made = world.backups.create(world.ctx(), volume_id=world.filled_volume(DATA))
        row = world.wait_backup(made.id, "available")
        world.wait_idle()
    assert [row.service_metadata] == lost.put
    assert row.object_count == len(world.objects())


@pytest.mark.parametrize("kind", ["cut", "before"])
def test_a_manifest_that_is_there_is_taken_over_although_an_answer_was_wrong(
    world: WorkerWorld, monkeypatch: pytest.MonkeyPatch, kind: Any
) -> None:
    lost = LostAfterThePut(world, monkeypatch)
    wrong = Fault(
        "get", kind, lambda: IntegrityError("changed on the way"), match=lambda key: key in lost.put
    )
    world.faulty.script(wrong)
    with world.worker(slots=1):
        made = world.backups.create(world.ctx(), volume_id=world.filled_volume(DATA))
        row = world.wait_backup(made.id, "available")
        world.wait_idle()
    assert wrong.struck == 1
    assert [row.service_metadata] == lost.put
    assert row.object_count == len(world.objects())


def test_a_backup_that_is_taken_over_and_became_full_is_reported(
    world: WorkerWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume = world.filled_volume(DATA)
    with world.worker(slots=1):
        full = world.backups.create(world.ctx(), volume_id=volume)
        base = world.wait_backup(full.id, "available").service_metadata
        world.tools.stores.container("main", "volumebackups").delete([str(base)])
        lost = LostAfterThePut(world, monkeypatch)
        made = world.backups.create(world.ctx(), volume_id=volume, incremental=True)
        row = world.wait_backup(made.id, "available")
        world.wait_idle()
    assert [row.service_metadata] == lost.put
    told = [(one.resource_uuid, one.detail_id) for one in world.rows(models.Message)]
    assert told == [(made.id, Detail.BECAME_FULL.value)]


def test_a_manifest_that_came_too_late_is_withdrawn(
    world: WorkerWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever has the task by then did not find it, so nobody will commit it."""
    committed, first = threading.Event(), threading.Event()
    announce = TaskJournal.announce

    def late(journal: TaskJournal, key: str) -> None:
        announce(journal, key)
        if not first.is_set():
            first.set()
            with world.db.write() as session:
                (task,) = world.rows_in(session, models.Task)
                task.state, task.owner, task.lease_until = "queued", None, None
            world.dispatch.wake()
            assert committed.wait(60)

    monkeypatch.setattr(TaskJournal, "announce", late)
    monkeypatch.setattr(
        crash_points, "reach", lambda name, detail="": committed.set() if name == "backup.committed" else None
    )
    with world.worker(slots=2):
        made = world.backups.create(world.ctx(), volume_id=world.filled_volume(DATA))
        row = world.wait_backup(made.id, "available")
        world.wait(lambda: len(world.objects()) == row.object_count, "the withdrawal")
    assert [key for key in world.objects() if key.endswith("/manifest")] == [row.service_metadata]


def test_a_commit_whose_answer_is_lost_is_one(world: WorkerWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its manifest stays, and the backup counts as made here."""
    finish = world.outcomes.creating.finish
    lost: list[int] = []

    def finish_unheard(*arguments: Any) -> Any:
        with lost_answers(world.db) as times:
            done = finish(*arguments)
        lost.append(times())
        return done

    monkeypatch.setattr(world.outcomes.creating, "finish", finish_unheard)
    reached: list[str] = []
    monkeypatch.setattr(crash_points, "reach", lambda name, detail="": reached.append(name))
    with world.worker():
        made = world.backups.create(world.ctx(), volume_id=world.filled_volume(DATA))
        world.wait_backup(made.id, "available")
        world.wait(lambda: "backup.committed" in reached, "the attempt to end")
        assert lost == [1]
        _, target, _ = world.backups.restore(world.ctx(), made.id)
        world.wait(lambda: world.volume_status(target) == "available", "the restore")
    assert bytes(world.provider.volumes[target]) == DATA


def test_a_damaged_object_fails_the_restore_and_is_stored_anew(world: WorkerWorld) -> None:
    volume = world.filled_volume(DATA)
    with world.worker():
        made = world.backups.create(world.ctx(), volume_id=volume)
        world.wait_backup(made.id, "available")
        store = world.faulty.inner
        (objects,) = store.contents.values()  # type: ignore[attr-defined]
        pack = min(key for key in objects if "/p" in key)
        objects[pack] = objects[pack][:200] + bytes([objects[pack][200] ^ 1]) + objects[pack][201:]
        _, target, _ = world.backups.restore(world.ctx(), made.id)
        world.wait(lambda: world.volume_status(target) == "error", "the restore to fail")
        failed = world.wait_backup(made.id, "available")
        assert failed.fail_reason is not None
        assert pack.split("/", 2)[2] in failed.fail_reason
        again = world.backups.create(world.ctx(), volume_id=volume, incremental=True)
        world.wait_backup(again.id, "available")
        _, target, _ = world.backups.restore(world.ctx(), again.id)
        world.wait(lambda: world.volume_status(target) == "available", "the restore")
        assert world.provider.volumes[target] == DATA


def test_a_failed_restore_marks_all_backups_that_name_the_object(world: WorkerWorld) -> None:
    volume = world.filled_volume(DATA)
    with world.worker():
        made = [world.backups.create(world.ctx(), volume_id=volume)]
        world.wait_backup(made[0].id, "available")
        made.append(world.backups.create(world.ctx(), volume_id=volume, incremental=True))
        world.wait_backup(made[1].id, "available")
        store = world.faulty.inner
        (objects,) = store.contents.values()  # type: ignore[attr-defined]
        pack = min(key for key in objects if "/p0" in key and made[0].id in key)
        objects[pack] = objects[pack][:200] + bytes([objects[pack][200] ^ 1]) + objects[pack][201:]
        _, target, _ = world.backups.restore(world.ctx(), made[1].id)
        world.wait(lambda: world.volume_status(target) == "error", "the restore to fail")
    marked = {row.manifest_id for row in world.rows(models.DamageMark)}
    assert marked == {world.row(models.Backup, one.id).manifest_id for one in made}


def test_damage_that_is_found_while_an_increment_is_made_marks_it(
    world: WorkerWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume = world.filled_volume(DATA)
    targets: list[str] = []

    def reach(name: str, detail: object = "") -> None:
        """Restore the base, whose pack is damaged, before the increment is finished."""
        if name == "backup.manifest-put":
            store = world.faulty.inner
            (objects,) = store.contents.values()  # type: ignore[attr-defined]
            pack = min(key for key in objects if "/p0" in key and full.id in key)
            objects[pack] = objects[pack][:200] + bytes([objects[pack][200] ^ 1]) + objects[pack][201:]
            targets.append(world.backups.restore(world.ctx(), full.id)[1])
            world.wait(lambda: world.volume_status(targets[0]) == "error", "the restore to fail")

    with world.worker():
        full = world.backups.create(world.ctx(), volume_id=volume)
        world.wait_backup(full.id, "available")
        monkeypatch.setattr(crash_points, "reach", reach)
        made = world.backups.create(world.ctx(), volume_id=volume, incremental=True)
        world.wait_backup(made.id, "available")
    marked = {row.manifest_id for row in world.rows(models.DamageMark)}
    assert marked == {world.row(models.Backup, one.id).manifest_id for one in (full, made)}


def test_an_import_is_a_quick_verification(world: WorkerWorld) -> None:
    with world.worker():
        made = world.backups.create(world.ctx(), volume_id=world.filled_volume(DATA))
        world.wait_backup(made.id, "available")
        service, url = world.backups.export_record(world.ctx(), made.id)
        record = {**json.loads(base64.b64decode(url)), "id": str(uuid.uuid4())}
        url = base64.b64encode(json.dumps(record).encode()).decode()
        copy = world.backups.import_record(world.ctx(), backup_service=service, backup_url=url)
        found = world.wait_backup(copy.id, "available")
    assert (found.verified_how, found.verified_result, found.fully_verified_at) == ("quick", "ok", None)
    assert found.verified_at is not None
    assert world.row(models.Backup, made.id).verified_at is None


def test_an_import_of_a_damaged_manifest_does_not_name_its_owner(world: WorkerWorld) -> None:
    volume = world.filled_volume(DATA)
    with world.worker():
        made = world.backups.create(world.ctx(), volume_id=volume)
        world.wait_backup(made.id, "available")
        store = world.faulty.inner
        (objects,) = store.contents.values()  # type: ignore[attr-defined]
        (key,) = (key for key in objects if key.endswith("/manifest"))
        objects[key] = objects[key][:-1] + b"?"
        service, url = world.backups.export_record(world.ctx(), made.id)
        record = {**json.loads(base64.b64decode(url)), "id": str(uuid.uuid4())}
        url = base64.b64encode(json.dumps(record).encode()).decode()
        copy = world.backups.import_record(world.ctx(), backup_service=service, backup_url=url)
        reason = world.wait_backup(copy.id, "error").fail_reason
    installation, _, rest = key.split("/", 2)
    assert reason == f"The stored object {rest} is missing or damaged."
    assert installation not in reason


def test_a_volume_in_use_is_read_from_a_temporary_snapshot(world: WorkerWorld) -> None:
    volume = world.filled_volume(DATA)
    with world.db.write() as session:
        session.get_one(models.Volume, volume).status = "in-use"
    gate = Gate(after=1)
    world.faulty.fail("put", times=None, match=gate)
    with world.worker():
        made = world.backups.create(world.ctx(), volume_id=volume, force=True)
        assert gate.reached.wait(PATIENCE)
        world.provider.volumes[volume][:100] = bytes(100)
        gate.open()
        world.wait_backup(made.id, "available")
        assert world.volume_status(volume) == "in-use"
        world.wait_idle()
        assert world.provider.snapshots == {}
        _, target, _ = world.backups.restore(world.ctx(), made.id)
        world.wait(lambda: world.volume_status(target) == "available", "the restore")
    assert world.provider.volumes[target] == DATA


def test_a_task_that_takes_its_workers_along_is_given_up(world: WorkerWorld) -> None:
    """Attempts that end with their worker, without a word, count when the next one claims the task."""
    volume = world.filled_volume(DATA)
    made = world.backups.create(world.ctx(), volume_id=volume)
    for _ in range(6):
        assert world.tasks.claim("host/dead", 60) is not None
        world.tasks.take_over("host")
    with world.worker():
        row = world.wait_backup(made.id, "error")
        world.wait_idle()
    assert row.fail_reason == "The worker was lost."
    assert world.volume_status(volume) == "available"


def test_a_restore_that_gets_nowhere_ends(world: WorkerWorld) -> None:
    """One pack never answers: saving the same checkpoint again and again is no progress."""
    volume = world.filled_volume(DATA)
    with world.worker():
        made = world.backups.create(world.ctx(), volume_id=volume)
        world.wait_backup(made.id, "available")
        first = min(key for key in world.objects() if "/p" in key)
        world.faulty.fail("get", times=None, match=lambda key: key == first)
        _, target, _ = world.backups.restore(world.ctx(), made.id)
        world.wait(lambda: world.volume_status(target) == "error", "the restore to end")
        assert world.wait_backup(made.id, "available").fail_reason == "The store does not answer."


def test_a_missing_container_is_a_store_that_is_away(world: WorkerWorld) -> None:
    """A share that is not mounted: nothing counts as deleted or damaged, and all is well when it is back."""
    volume = world.filled_volume(DATA)
    store = world.faulty.inner
    with world.worker():
        made = world.backups.create(world.ctx(), volume_id=volume)
        world.wait_backup(made.id, "available")
        away = dict(store.contents)  # type: ignore[attr-defined]
        store.contents.clear()  # type: ignore[attr-defined]
        _, target, _ = world.backups.restore(world.ctx(), made.id)
        world.wait(lambda: world.volume_status(target) == "error", "the restore to end")
        assert world.rows(models.DamagedObject) == []
        world.backups.delete(world.ctx(), made.id)
        world.wait_backup(made.id, "error_deleting")
        store.contents.update(away)  # type: ignore[attr-defined]
        world.age(seconds=100_000)
        world.wait_backup(made.id, None)
    assert world.objects() == set()


@pytest.mark.parametrize("point", ["backup.bound", "backup.pack-put", "backup.map-put", "backup.recorded"])
@pytest.mark.parametrize("incremental", [False, True])
def test_a_container_that_goes_in_mid_backup_is_waited_for(
    world: WorkerWorld, monkeypatch: pytest.MonkeyPatch, point: str, incremental: bool
) -> None:
    """It is not made anew meanwhile, and all that was put before is used when it is back."""
    volume = world.filled_volume(DATA)
    store = world.faulty.inner
    away: dict[str, Any] = {}
    attempts = 0
    armed = not incremental

    def reach(name: str, detail: object = "") -> None:
        nonlocal attempts, armed
        if name == point and armed:
            armed = False
            away.update(store.contents)  # type: ignore[attr-defined]
            store.contents.clear()  # type: ignore[attr-defined]
        elif name == "backup.begun" and away:
            attempts += 1
            assert not store.contents  # type: ignore[attr-defined]
            if attempts == 3:
                store.contents.update(away)  # type: ignore[attr-defined]

    with world.worker(slots=1):
        if incremental:
            world.wait_backup(world.backups.create(world.ctx(), volume_id=volume).id, "available")
            world.provider.volumes[volume][:] = DATA[::-1]
            armed = True
        data = bytes(world.provider.volumes[volume])
        before = world.objects()
        monkeypatch.setattr(crash_points, "reach", reach)
        made = world.backups.create(world.ctx(), volume_id=volume, incremental=incremental)
        row = world.wait_backup(made.id, "available")
        assert attempts == 3
        _, target, _ = world.backups.restore(world.ctx(), made.id)
        world.wait(lambda: world.volume_status(target) == "available", "the restore")
        world.wait_idle()
    assert bytes(world.provider.volumes[target]) == data
    assert row.object_count == len(world.objects() - before)


@pytest.mark.parametrize("force", [False, True])
def test_a_clean_up_waits_for_its_container(
    world: WorkerWorld, monkeypatch: pytest.MonkeyPatch, force: bool
) -> None:
    """The backup ends in error; what it put goes when the container is back, and not before."""
    store = world.faulty.inner
    away: dict[str, Any] = {}

    def reach(name: str, detail: object = "") -> None:
        if name == "backup.recorded" and not away:
            away.update(store.contents)  # type: ignore[attr-defined]
            store.contents.clear()  # type: ignore[attr-defined]

    monkeypatch.setattr(crash_points, "reach", reach)
    with world.worker():
        made = world.backups.create(world.ctx(), volume_id=world.filled_volume(DATA))
        row = world.wait_backup(made.id, "error")
        assert row.fail_reason == "The store does not answer."
        world.wait(
            lambda: any(task.payload.get("tries") for task in world.rows(models.Task)), "a try to clean up"
        )
        if force:
            world.backups.force_delete(world.ctx(admin=True), made.id)
        store.contents.update(away)  # type: ignore[attr-defined]
        assert world.objects()
        world.age(seconds=100_000)
        world.wait(lambda: not world.objects(), "the clean-up")
        world.wait_idle()


def test_a_database_that_fails_for_a_moment_costs_only_time(
    world: WorkerWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume = world.filled_volume(DATA)
    real = world.outcomes.creating.record_segments
    failures = iter([DBConnectionError("gone"), DBConnectionError("gone")])

    def record(*arguments: Any) -> None:
        if (failure := next(failures, None)) is not None:
            raise failure
        real(*arguments)

    monkeypatch.setattr(world.outcomes.creating, "record_segments", record)
    with world.worker():
        made = world.backups.create(world.ctx(), volume_id=volume)
        assert world.wait_backup(made.id, "available").fail_reason is None


def test_containers_are_made_only_where_the_service_may(world: WorkerWorld) -> None:
    volume = world.filled_volume(DATA)
    world.tools = replace(world.tools, engine=replace(world.tools.engine, create_containers=False))
    with world.worker():
        made = world.backups.create(world.ctx(), volume_id=volume, container="nowhere")
        reason = world.wait_backup(made.id, "error").fail_reason
        assert reason == "The container nowhere does not exist, and this service does not make containers."
        world.wait_idle()
        assert list(world.store.list_containers()) == []
        world.store.ensure_container("here")
        again = world.backups.create(world.ctx(), volume_id=volume, container="here")
        world.wait_backup(again.id, "available")


def test_the_message_of_a_failure_says_what_is_known(
    world: WorkerWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    def moved(*_: Any) -> Any:
        raise SourceMoved("It moved.")

    monkeypatch.setattr(world.provider, "open_point", moved)
    backup = world.backups.create(world.ctx(), volume_id=world.filled_volume(DATA))
    with world.worker():
        world.wait_backup(backup.id, "error")
        world.wait_idle()
    told = {row.resource_uuid: row.event_id for row in world.rows(models.Message)}
    assert told == {backup.id: "VOLUME_VOLUME_BACKUP_013_019"}


def volume_from(world: WorkerWorld, backup_id: str) -> str:
    """Ask for a volume from a backup; return its id.  Its length is made one that memory is fit for."""
    world.conf.quota.per_volume_gigabytes = -1
    volumes = VolumeManager(world.db, world.conf, world.dispatch.wake)
    volume = volumes.create(world.ctx(), size=None, backup_id=backup_id).id
    with world.db.write() as session:
        session.execute(update(models.Volume).where(models.Volume.id == volume).values(length=len(DATA)))
    return volume


def test_a_volume_from_a_backup(world: WorkerWorld) -> None:
    made = world.backups.create(world.ctx(), volume_id=world.filled_volume(DATA))
    with world.worker():
        world.wait_backup(made.id, "available")
    volume = volume_from(world, made.id)
    assert world.volume_status(volume) == "creating"
    assert world.status(made.id) == "restoring"
    with world.worker():
        world.wait_backup(made.id, "available")
    assert world.volume_status(volume) == "available"
    assert bytes(world.provider.volumes[volume]) == DATA
    assert world.rows(models.Message) == []


def test_a_volume_from_a_backup_that_cannot_be_read(world: WorkerWorld) -> None:
    made = world.backups.create(world.ctx(), volume_id=world.filled_volume(DATA))
    with world.worker():
        world.wait_backup(made.id, "available")
    volume = volume_from(world, made.id)
    world.faulty.fail("get", lambda: PermissionDenied("no"), times=None)
    with world.worker():
        assert world.wait_backup(made.id, "available").fail_reason is not None
    assert world.volume_status(volume) == "error"
    (told,) = world.rows(models.Message)
    assert (told.event_id, told.resource_uuid) == ("VOLUME_VOLUME_BACKUP_015_026", made.id)

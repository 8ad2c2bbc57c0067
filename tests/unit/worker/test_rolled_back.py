"""Yesterday's database over today's store: what was made since stays, whatever is deleted."""

from __future__ import annotations

import hashlib
import random
import sqlite3
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import delete, update

from backupfw import crash_points, errors
from backupfw.chunkstore.base import Body
from backupfw.chunkstore.container import Container
from backupfw.chunkstore.errors import NotFound
from backupfw.chunkstore.layers.stack import stack
from backupfw.chunkstore.layers.timeout import TimeoutLayer
from backupfw.cmd.catalogue import DatabaseCatalogue, give_up_announced
from backupfw.db import models
from backupfw.db.digest import object_digest
from backupfw.engine import audit, cleanup, release, removal, sweep
from backupfw.engine.format import keys
from backupfw.manager.lineage import manifests
from backupfw.testing.faults import Fault, LaggingStore
from backupfw.volume.base import Point, SnapshotRef, Tick, VolumeRef, no_tick
from backupfw.worker.control import TaskControl
from backupfw.worker.handlers.backup_create import BackupCreate
from tests.unit.engine.fakes import FakeControl, MemoryPoint
from tests.unit.worker.world import LayerOptions, MemoryProvider, OneBackend, OneStore, WorkerWorld, rebuilt

#: The first ones lose data where listings are believed at once.
SEEDS = [5, 6, *(pytest.param(seed, marks=pytest.mark.soak) for seed in (0, *range(10, 40)))]
DATA = random.Random(4).randbytes(400_000)


def copy(source: Path, target: Path) -> None:
    with sqlite3.connect(source) as one, sqlite3.connect(target) as other:
        one.backup(other)
    one.close()
    other.close()


def end_leases(world: WorkerWorld) -> None:
    """What the copy shows as running is taken over when its lease has run out."""
    with world.db.write() as session:
        for task in world.rows_in(session, models.Task):
            task.state, task.owner, task.lease_until = "queued", None, None


def restored(world: WorkerWorld, backup_id: str) -> bytes:
    _, target, _ = world.backups.restore(world.ctx(), backup_id)
    world.wait(lambda: world.volume_status(target) == "available", "the restore")
    return bytes(world.provider.volumes[target][: len(DATA)])


@pytest.mark.parametrize("taken_at", ["before the child", "while it was made", "before the commit"])
@pytest.mark.parametrize("then", ["deleted", "force deleted"])
def test_records_kept_from_after_the_copy_import_and_restore(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, taken_at: str, then: str
) -> None:
    world = WorkerWorld(tmp_path)
    admin = world.ctx(admin=True)
    database, kept = tmp_path / "db.sqlite", tmp_path / "kept.sqlite"
    made_of: list[str] = []

    def reach(name: str, detail: object = "") -> None:
        moment = {"backup.recorded": "while it was made", "backup.manifest-put": "before the commit"}
        if moment.get(name) == taken_at and not made_of:
            made_of.append(name)
            copy(database, kept)

    monkeypatch.setattr(crash_points, "reach", reach)
    volume = world.filled_volume(DATA)
    with world.worker():
        full = world.backups.create(world.ctx(), volume_id=volume)
        world.wait_backup(full.id, "available")
        if taken_at == "before the child":
            copy(database, kept)
        world.provider.volumes[volume][:9000] = changed = random.Random(5).randbytes(9000)
        first_key = world.row(models.Backup, full.id).service_metadata
        child = world.backups.create(world.ctx(), volume_id=volume, incremental=True)
        world.wait_backup(child.id, "available")
        exported = [world.backups.export_record(admin, one.id) for one in (full, child)]
        world.wait_idle()
    # The volume has moved on too, so the backup that is made again is another one.
    world.provider.volumes[volume][20_000:29_000] = random.Random(6).randbytes(9000)
    needed = world.objects()
    copy(kept, database)
    end_leases(world)
    if then == "force deleted":
        world.backups.force_delete(admin, full.id)
    with world.worker():
        if then == "deleted":
            again = world.wait_backup(full.id, "available")
            if taken_at == "before the commit":
                world.wait_idle()
                assert again.service_metadata == first_key
                assert needed == world.objects(), "the first attempt had done all of it"
                assert restored(world, full.id) == DATA
            world.backups.delete(world.ctx(), full.id)
        world.wait_backup(full.id, None)
        world.wait_idle()
        if taken_at == "while it was made":
            assert needed <= world.objects(), "both manifests are unknown: nothing of them went"
        (container,) = {one.container for one in world.rows(models.Manifest)}
        assert container is not None
        installation = world.outcomes.installation_id()
        catalogue = DatabaseCatalogue(world.db, "main", container, installation)
        prefix, box = keys.installation_prefix(installation), world.tools.stores.container("main", container)
        found = audit.run(prefix, box, catalogue, FakeControl())
        assert found.unknown == (2 if taken_at == "while it was made" else 1)
        assert {one.kind for one in found.discrepancies} == {audit.UNKNOWN}
        before = world.objects()
        assert sweep.run(prefix, box, catalogue, FakeControl()).orphans == 0
        assert world.objects() == before
        for original, content, (service, url) in zip(
            (full, child), (DATA, changed + DATA[9000:]), exported, strict=True
        ):
            if original.id == full.id and taken_at != "while it was made":
                continue  # Known to the copy, and deleted by its user.
            back = world.backups.import_record(admin, backup_service=service, backup_url=url)
            world.wait_backup(back.id, "available")
            assert restored(world, back.id) == content


def test_a_rebuild_brings_back_what_the_copy_does_not_know(tmp_path: Path) -> None:
    """Until then nothing goes that an unknown manifest names; afterwards all of it can be deleted."""
    world = WorkerWorld(tmp_path)
    database, kept = tmp_path / "db.sqlite", tmp_path / "kept.sqlite"
    volume = world.filled_volume(DATA)
    states = [DATA]
    made: list[str] = []

    def back_up(name: str, **how: Any) -> None:
        made.append(world.backups.create(world.ctx(), volume_id=volume, name=name, **how).id)
        world.wait_backup(made[-1], "available")

    with world.worker():
        back_up("full")
        copy(database, kept)
        for number in (1, 2):
            world.provider.volumes[volume][number * 9000 : (number + 1) * 9000] = random.Random(
                number
            ).randbytes(9000)
            states.append(bytes(world.provider.volumes[volume]))
            back_up(f"increment {number}", incremental=True)
        # What was deleted since the copy stays deleted.
        back_up("gone")
        world.backups.delete(world.ctx(), made.pop())
        world.wait(lambda: len(world.rows(models.Task)) == 0, "the deletion")
    before = {one: world.row(models.Backup, one) for one in made}
    box = world.tools.stores.container("main", str(before[made[0]].container))
    needed = world.objects()
    copy(kept, database)
    end_leases(world)
    named = {key for key in needed if f"/{made[0]}/" not in key}
    with world.worker():
        # Before the rebuild: the deletion of what is known removes nothing that is named by what is not.
        world.backups.delete(world.ctx(), made[0])
        world.wait_backup(made[0], None)
        world.wait_idle()
        assert named <= world.objects()
        assert needed - world.objects(), "what only it named is gone"
        catalogue = DatabaseCatalogue(world.db, "main", box.name, world.outcomes.installation_id())
        prefix = keys.installation_prefix(world.outcomes.installation_id())
        there = world.objects()
        (report,) = sweep.run(prefix, box, catalogue, FakeControl()).volumes
        assert (report.orphans, len(report.unknown_manifests)) == (0, 2)
        assert world.objects() == there
        found = rebuilt(world, box)
        assert {(one.backup_id, one.result) for one in found} == {(one, "entered") for one in made[1:]}
        for number in (1, 2):
            row, was = world.row(models.Backup, made[number]), before[made[number]]
            for name in ("display_name", "project_id", "volume_id", "parent_id", "created_at", "size"):
                assert getattr(row, name) == getattr(was, name), name
            assert row.status == "available"
            assert restored(world, made[number]) == states[number]
        assert {one.result for one in rebuilt(world, box)} == {"known"}
        assert audit.run(prefix, box, catalogue, FakeControl()).discrepancies == ()
        assert sweep.run(prefix, box, catalogue, FakeControl()).orphans == 0
        # The volume's next one builds upon them, and deletions remove neither too little nor too much.
        states.append(bytes(world.provider.volumes[volume]))
        back_up("after", incremental=True)
        assert world.row(models.Backup, made[3]).parent_id == made[2]
        for number in (1, 2, 3):
            world.backups.delete(world.ctx(), made[number])
            world.wait_backup(made[number], None)
            world.wait_idle()
            for other in range(number + 1, 4):
                assert restored(world, made[other]) == states[other]
    assert world.objects() == set()


def test_a_manifest_of_a_backup_that_was_reset_before_its_commit_is_no_unknown_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It stays until the backup is deleted: the database may be a copy from before the commit."""
    world = WorkerWorld(tmp_path)
    admin = world.ctx(admin=True)
    made: list[str] = []

    def reach(name: str, detail: object = "") -> None:
        if name == "backup.manifest-put":
            world.backups.reset_status(admin, made[0], "error")

    monkeypatch.setattr(crash_points, "reach", reach)
    backup = world.backups.create(world.ctx(), volume_id=world.filled_volume(DATA))
    made.append(backup.id)
    with world.worker():
        world.wait_idle()
        assert world.status(backup.id) == "error"
        (container,) = {one.container for one in world.rows(models.Manifest)}
        assert container is not None
        installation = world.outcomes.installation_id()
        catalogue = DatabaseCatalogue(world.db, "main", container, installation)
        prefix, box = keys.installation_prefix(installation), world.tools.stores.container("main", container)
        there = world.objects()
        assert there
        assert audit.run(prefix, box, catalogue, FakeControl()).discrepancies == ()
        report = sweep.run(prefix, box, catalogue, FakeControl())
        assert (report.orphans, [one.unknown_manifests for one in report.volumes]) == (0, [()])
        assert world.objects() == there
        world.backups.delete(world.ctx(), backup.id)
        world.wait_backup(backup.id, None)
    assert world.objects() == set()


def kept_before_commit(folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """Return a world's database, and where its copy from before the first backup's commit will be."""
    database, kept = folder / "db.sqlite", folder / "kept.sqlite"

    def reach(name: str, detail: object = "") -> None:
        if name == "backup.manifest-put" and not kept.exists():
            copy(database, kept)

    monkeypatch.setattr(crash_points, "reach", reach)
    return database, kept


def test_what_an_announced_manifest_names_stays_although_some_of_it_is_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = WorkerWorld(tmp_path)
    database, kept = kept_before_commit(tmp_path, monkeypatch)
    volume = world.filled_volume(DATA)
    with world.db.write() as session:
        session.execute(update(models.Volume).values(status="in-use"))
    with world.worker():
        backup = world.backups.create(world.ctx(), volume_id=volume, force=True)
        first = world.wait_backup(backup.id, "available")
        world.wait_idle()
    box = world.tools.stores.container("main", first.container)
    (lost, *_) = [info.key for info in box.list("") if _kind(info.key) == "pack"]
    box.delete([lost])
    needed = world.objects()
    world.provider.volumes[volume][:] = today = random.Random(9).randbytes(len(DATA))
    copy(kept, database)
    end_leases(world)
    with world.worker():
        again = world.wait_backup(backup.id, "available")
        world.wait_idle()
        assert again.service_metadata != first.service_metadata
        assert needed <= world.objects()
        assert {row.key for row in world.rows(models.DamagedObject)} == {lost}
        assert restored(world, backup.id) == today
        world.backups.delete(world.ctx(), backup.id)
        world.wait_backup(backup.id, None)
        world.wait_idle()
    assert world.objects() == set(), "nobody will commit it any more"


def test_a_sweep_gives_up_what_an_older_worker_left_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = WorkerWorld(tmp_path)
    with world.worker():
        backup = world.backups.create(world.ctx(), volume_id=world.filled_volume(DATA))
        row = world.wait_backup(backup.id, "available")
        world.wait_idle()
        box = world.tools.stores.container("main", str(row.container))
        folder = str(row.service_metadata).rpartition("/")[0]
        lost = {name: f"{folder}-{name}/manifest" for name in ("lost", "there")}
        box.put(lost["there"], Body.from_bytes(b"m"))
        with world.db.write() as session:
            manifest = session.get_one(models.Manifest, row.manifest_id)
            for key in lost.values():
                manifests.announce(session, manifest, key, object_digest("main", box.name, key))

        def states() -> list[str]:
            by_key = {one.key: one.state for one in world.rows(models.Manifest)}
            return [by_key[key] for key in lost.values()]

        give_up_announced(world.db, box)
        assert states() == ["gone", "announced"], "later backups may share with what is there"
        with monkeypatch.context() as older:
            older.setattr(manifests, "give_up", lambda *_: None)
            world.backups.delete(world.ctx(), backup.id)
            world.wait_backup(backup.id, None)
        assert states() == ["gone", "announced"]
        give_up_announced(world.db, box)
        assert states() == ["gone", "gone"]


def test_an_attempt_that_lost_its_task_leaves_its_manifest_to_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = WorkerWorld(tmp_path)
    looked, ended = threading.Event(), threading.Event()
    first: list[threading.Thread] = []
    leftovers, run = cleanup.leftovers, BackupCreate.run

    def reach(name: str, detail: object = "") -> None:
        if name == "backup.manifest-put" and not first:
            first.append(threading.current_thread())
            end_leases(world)
            world.dispatch.wake()
            assert looked.wait(60)

    def slow_leftovers(*arguments: Any) -> Any:
        """The next attempt has found the manifest, when the first one hears that it lost its task."""
        if first and threading.current_thread() is not first[0]:
            looked.set()
            assert ended.wait(60)
        return leftovers(*arguments)

    def watched(self: BackupCreate, *arguments: Any) -> None:
        try:
            run(self, *arguments)
        finally:
            if first and threading.current_thread() is first[0]:
                ended.set()

    monkeypatch.setattr(crash_points, "reach", reach)
    monkeypatch.setattr(cleanup, "leftovers", slow_leftovers)
    monkeypatch.setattr(BackupCreate, "run", watched)
    volume = world.filled_volume(DATA)
    # So that there is something to clean up.
    world.faulty.script(Fault("put", kind="after", times=1, skip=3))
    with world.worker():
        backup = world.backups.create(world.ctx(), volume_id=volume)
        world.wait_backup(backup.id, "available")
        world.wait_idle()
        assert restored(world, backup.id) == DATA


def _kind(key: str) -> str | None:
    parsed = keys.parse(key)
    return None if parsed is None else parsed.kind


def back_up_uncommitted(world: WorkerWorld, monkeypatch: pytest.MonkeyPatch, volume: str, **how: Any) -> str:
    """Make a backup that is reset when its manifest was put, before the commit; returns its id."""

    def reach(name: str, _detail: object = "") -> None:
        if name == "backup.manifest-put":
            world.backups.reset_status(world.ctx(admin=True), made.id, "error")

    with monkeypatch.context() as patch:
        patch.setattr(crash_points, "reach", reach)
        made = world.backups.create(world.ctx(), volume_id=volume, **how)
        world.wait_backup(made.id, "error")
        world.wait_idle()
    return made.id


def test_a_deletion_that_fails_once_removes_what_was_never_committed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = WorkerWorld(tmp_path)
    volume = world.filled_volume(DATA)
    with world.worker():
        backup_id = back_up_uncommitted(world, monkeypatch, volume)
        assert world.objects(), "its manifest was put, so what it names stayed"
        failing = world.faulty.fail("delete")
        world.backups.delete(world.ctx(), backup_id)
        world.wait_backup(backup_id, None)
        world.wait_idle()
    assert failing.struck == 1
    assert world.objects() == set()


@pytest.mark.parametrize("base", ["deleted before", "kept"])
def test_what_a_manifest_that_was_never_committed_took_over_goes_with_its_last_user(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, base: str
) -> None:
    world = WorkerWorld(tmp_path)
    volume = world.filled_volume(DATA)
    with world.worker():
        full = world.backups.create(world.ctx(), volume_id=volume)
        world.wait_backup(full.id, "available")
        of_full = world.objects()
        world.provider.volumes[volume][:9000] = random.Random(5).randbytes(9000)
        child = back_up_uncommitted(world, monkeypatch, volume, incremental=True)
        if base == "deleted before":
            world.backups.delete(world.ctx(), full.id)
            world.wait_backup(full.id, None)
            assert of_full & world.objects(), "the child's manifest names them"
        world.backups.delete(world.ctx(), child)
        world.wait_backup(child, None)
        world.wait_idle()
        if base == "kept":
            assert world.objects() == of_full
            assert restored(world, full.id) == DATA
        else:
            assert world.objects() == set()


@pytest.mark.parametrize("then", ["committed", "deleted"])
def test_a_manifest_whose_put_ends_late_is_the_next_attempts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, then: str
) -> None:
    """A worker that was frozen in the put of a manifest wakes up, and gives its wait up."""
    world = WorkerWorld(tmp_path)
    landed, ended, answer = threading.Event(), threading.Event(), threading.Event()
    first: list[threading.Thread] = []
    put, run = world.faulty.put, BackupCreate.run

    def held_put(container: str, key: str, body: Body, **how: Any) -> None:
        put(container, key, body, **how)
        if _kind(key) == "manifest" and not landed.is_set():
            landed.set()
            assert answer.wait(60)

    def watched(self: BackupCreate, *arguments: Any) -> None:
        mine = not first
        first.append(threading.current_thread())
        try:
            run(self, *arguments)
        finally:
            if mine:
                ended.set()

    monkeypatch.setattr(world.faulty, "put", held_put)
    monkeypatch.setattr(BackupCreate, "run", watched)
    volume = world.filled_volume(DATA)
    with world.worker(lease_seconds=1.0):
        backup = world.backups.create(world.ctx(), volume_id=volume)
        assert landed.wait(60)
        if then == "committed":
            end_leases(world)
            world.dispatch.wake()
            world.wait_backup(backup.id, "available")
        else:
            world.backups.force_delete(world.ctx(admin=True), backup.id)
            world.wait_backup(backup.id, None)
        assert ended.wait(60)
        timeout = _timeout_layer(world.store)
        answer.set()
        world.wait(lambda: not timeout._hanging, "the late answer")
        world.wait(lambda: all(one._job is None for one in timeout._workers._idle), "what it leads to")
        world.wait_idle()
        if then == "committed":
            assert restored(world, backup.id) == DATA
        else:
            world.wait(lambda: world.objects() == set(), "the end of it")


def _timeout_layer(store: Any) -> TimeoutLayer:
    while not isinstance(store, TimeoutLayer):
        store = store.inner
    return store


def test_an_attempt_that_lost_its_task_leaves_its_manifest_to_the_deletion(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only that manifest still says which objects of the base stayed for it."""
    world = WorkerWorld(tmp_path)
    admin = world.ctx(admin=True)
    reading, ended = threading.Event(), threading.Event()
    release_run, run = release.run, BackupCreate.run
    made: list[str] = []

    def reach(name: str, _detail: object = "") -> None:
        if name == "backup.manifest-put":
            world.wait(lambda: made, "the request's answer")
            # A frozen worker: meanwhile its task is cancelled and forgotten, and the base is deleted.
            monkeypatch.setattr(crash_points, "reach", lambda *_: None)
            monkeypatch.setattr(TaskControl, "check", lambda _: None)
            world.backups.reset_status(admin, made[0], "error")
            with world.db.write() as session:
                session.execute(delete(models.Task).where(models.Task.kind == "backup.create"))
            world.dispatch.wake()
            world.wait_idle()
            world.backups.delete(world.ctx(), full.id)
            world.wait_backup(full.id, None)
            assert of_full & world.objects(), "they stay for the manifest"
            world.backups.delete(world.ctx(), made[0])
            assert reading.wait(60)

    def slow_release(key: str, *arguments: Any) -> Any:
        if made and made[0] in key:
            reading.set()
            assert ended.wait(60)
        return release_run(key, *arguments)

    def watched(self: BackupCreate, *arguments: Any) -> None:
        try:
            run(self, *arguments)
        finally:
            if made:
                ended.set()

    volume = world.filled_volume(DATA)
    with world.worker(slots=4):
        full = world.backups.create(world.ctx(), volume_id=volume)
        world.wait_backup(full.id, "available")
        world.wait_idle()
        of_full = world.objects()
        monkeypatch.setattr(crash_points, "reach", reach)
        monkeypatch.setattr(release, "run", slow_release)
        monkeypatch.setattr(BackupCreate, "run", watched)
        world.provider.volumes[volume][:9000] = random.Random(5).randbytes(9000)
        made.append(world.backups.create(world.ctx(), volume_id=volume, incremental=True).id)
        world.wait_backup(made[0], None)
        world.wait_idle()
    assert world.objects() == set()


def test_a_deletion_whose_manifest_is_lost_removes_what_is_the_backups_alone(tmp_path: Path) -> None:
    world = WorkerWorld(tmp_path)
    volume = world.filled_volume(DATA)
    with world.worker():
        full = world.backups.create(world.ctx(), volume_id=volume)
        row = world.wait_backup(full.id, "available")
        world.provider.volumes[volume][:9000] = changed = random.Random(5).randbytes(9000)
        child = world.backups.create(world.ctx(), volume_id=volume, incremental=True)
        world.wait_backup(child.id, "available")
        world.wait_idle()
        before = world.objects()
        world.tools.stores.container("main", str(row.container)).delete([str(row.service_metadata)])
        world.backups.delete(world.ctx(), full.id)
        world.wait_backup(full.id, None)
        assert len(world.objects()) < len(before) - 1
        assert restored(world, child.id) == changed + DATA[9000:]
        world.backups.delete(world.ctx(), child.id)
        world.wait_backup(child.id, None)
    assert world.objects() == set()


@pytest.mark.parametrize("answers", ["does not find it", "finds nothing yet"])
def test_a_manifest_that_one_answer_does_not_find_is_not_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answers: str
) -> None:
    """The database is a copy from before the commit."""
    world = WorkerWorld(tmp_path)
    database, kept = kept_before_commit(tmp_path, monkeypatch)
    volume = world.filled_volume(DATA)
    with world.worker():
        backup = world.backups.create(world.ctx(), volume_id=volume)
        first = world.wait_backup(backup.id, "available")
        world.wait_idle()
    needed = world.objects()
    copy(kept, database)
    end_leases(world)
    world.faulty.script(
        Fault("get", error=lambda: NotFound("not here"), match=lambda key: key == first.service_metadata)
    )
    if answers == "finds nothing yet":
        early = Container(world.store, str(first.container), time.monotonic() + 1.0)
        monkeypatch.setattr(type(early), "capabilities", replace(early.capabilities, listing_lag=True))
        monkeypatch.setattr(world.tools.stores, "container", lambda *_: early)
    with world.worker():
        again = world.wait_backup(backup.id, "available")
        world.wait_idle()
        assert again.service_metadata == first.service_metadata
        assert needed == world.objects()
        assert restored(world, backup.id) == DATA


class SettlingStores(OneStore):
    """A store whose listings show what is new once somebody has asked for the time; it is the clock."""

    def __init__(self, inner: Any) -> None:
        self.lagging = LaggingStore(inner)
        super().__init__(stack(self.lagging, LayerOptions()))
        self.now = self.settled_at = 0.0

    def begin(self) -> None:
        """A process begins."""
        self.settled_at = self.now + 0.05

    def container(self, store: str, container: str) -> Container:
        found = super().container(store, container)
        return Container(found.store, found.name, self.settled_at)

    def monotonic(self) -> float:
        asked = self.now
        if asked < self.settled_at:
            # Whoever asked is too early, and asks again.
            self.now = self.settled_at
            self.lagging.catch_up()
        return asked

    def sleep(self, seconds: float) -> None:
        """The clock went on when it was asked."""


class ChangingProvider(MemoryProvider):
    """Volumes whose changes show, as those of files do."""

    def open_point(self, ref: VolumeRef | SnapshotRef, point_id: str, tick: Tick = no_tick) -> Point:
        data = self.volumes[ref.id]
        return MemoryPoint(data, identity=hashlib.sha256(data).hexdigest())


@dataclass(frozen=True)
class Kept:
    """A record that its user kept.

    :ivar id: the backup's; one that was made again has two.
    :ivar content: of the volume when it was made.
    """

    id: str
    key: str
    content: bytes
    record: tuple[str, str]


class History:
    """A random history of one volume, over a store whose listings lag, with returns to older databases."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.random = random.Random(seed)
        self.world = world = WorkerWorld(folder)
        self.folder = folder
        self.stores = SettlingStores(world.faulty)
        world.provider = ChangingProvider()
        world.tools = replace(
            world.tools,
            stores=self.stores,  # type: ignore[arg-type]
            backends=OneBackend(world.provider),  # type: ignore[arg-type]
        )
        self.admin = world.ctx(admin=True)
        self.data = bytearray(self.random.randbytes(4 * (64 << 10)))
        self.volume = world.filled_volume(bytes(self.data))
        self.copies: list[Path] = []
        self.copy_at: str | None = None
        self.kept: list[Kept] = []
        self.deleted: set[str | None] = set()
        #: Whether an operator rebuilds the catalogue after a return to an older database.
        self.rebuilds = False

    def reach(self, name: str, _detail: object = "") -> None:
        if name == self.copy_at:
            self.copy_at = None
            self.copy()

    def copy(self) -> None:
        path = self.folder / f"copy-{len(self.copies)}.sqlite"
        copy(self.folder / "db.sqlite", path)
        self.copies.append(path)

    def rows(self, *statuses: str) -> list[models.Backup]:
        return [one for one in self.world.rows(models.Backup) if not one.deleted and one.status in statuses]

    def settle(self) -> None:
        """Wait for the backups that are being made, and keep their records."""
        self.world.wait(lambda: not self.rows("creating", "deleting"), "the backups to be made")
        for one in self.rows("available"):
            assert one.service_metadata is not None
            if one.service_metadata not in self.deleted | {kept.key for kept in self.kept}:
                record = self.world.backups.export_record(self.admin, one.id)
                self.kept.append(Kept(one.id, one.service_metadata, bytes(self.data), record))

    def back_up(self) -> None:
        self.copy_at = self.random.choice([None, None, "backup.recorded", "backup.manifest-put"])
        for _ in range(self.random.randrange(1, 4)):
            at = self.random.randrange(len(self.data) - 5000)
            self.data[at : at + 5000] = self.random.randbytes(5000)
        self.world.provider.volumes[self.volume][:] = self.data
        try:
            self.world.backups.create(
                self.world.ctx(), volume_id=self.volume, incremental=self.random.random() < 0.8
            )
        except errors.InvalidBackup:
            self.world.backups.create(self.world.ctx(), volume_id=self.volume)
        self.settle()

    def delete(self) -> None:
        rows = self.rows("available")
        if rows:
            self.forget(self.random.choice(rows))

    def forget(self, row: models.Backup) -> None:
        """Delete a backup for its user, who keeps no record of it any more."""
        with self.world.db.read() as session:
            self.deleted |= {row.service_metadata, *manifests.announced_keys(session, row.id)}
        self.kept = [one for one in self.kept if one.key not in self.deleted]
        self.world.backups.force_delete(self.admin, row.id)
        # It waits where another backup's objects are gone already, deleted after the copy was made.
        self.world.wait(lambda: self.world.status(row.id) in (None, "error_deleting"), "the deletion")

    def sweep(self) -> None:
        for container in {one.container for one in self.world.rows(models.Manifest)}:
            installation = self.world.outcomes.installation_id()
            catalogue = DatabaseCatalogue(self.world.db, "main", container, installation)
            box = self.world.tools.stores.container("main", container)
            sweep.run(keys.installation_prefix(installation), box, catalogue, FakeControl())

    def go_back(self) -> None:
        if self.copies:
            copy(self.random.choice(self.copies), self.folder / "db.sqlite")
            end_leases(self.world)
            if self.rebuilds:
                self.rebuild()

    def rebuild(self) -> None:
        """Before the service is started again."""
        self.stores.begin()
        for container in {one.container for one in self.world.rows(models.Manifest)}:
            rebuilt(self.world, self.world.tools.stores.container("main", container))

    def process(self) -> None:
        """What happens between a start and a stop."""
        self.stores.begin()
        doings: list[Callable[[], None]] = [self.back_up, self.back_up, self.delete, self.copy, self.sweep]
        with self.world.worker():
            self.settle()
            for doing in self.random.choices(doings, k=self.random.randrange(1, 6)):
                doing()

    def check(self) -> None:
        """Every record that was kept gives its content back, exactly."""
        self.stores.begin()
        with self.world.worker():
            self.settle()
            known = {row.service_metadata: row.id for row in self.rows("available")}
            for one in sorted(self.kept, key=lambda one: one.key not in known):
                if one.key not in known:
                    for row in self.rows("available", "error"):
                        if row.id == one.id:
                            # Made again: the record is of its first self.
                            self.forget(row)
                    service, url = one.record
                    self.world.backups.import_record(self.admin, backup_service=service, backup_url=url)
                    self.world.wait(lambda row=one: self.world.status(row.id) != "creating", "the import")
                # A rebuild enters one that was made again under another id.
                assert self.content(known.get(one.key, one.id)) == one.content, one

    def content(self, backup_id: str) -> bytes:
        _, target, _ = self.world.backups.restore(self.world.ctx(), backup_id)
        self.world.wait(lambda: self.world.volume_status(target) != "restoring-backup", "the restore")
        assert self.world.volume_status(target) == "available"
        return bytes(self.world.provider.volumes[target][: len(self.data)])


@pytest.mark.parametrize("rebuilds", [False, True])
@pytest.mark.parametrize("seed", SEEDS)
def test_every_kept_record_restores_after_any_history(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int, rebuilds: bool
) -> None:
    history = History(tmp_path, seed)
    history.rebuilds = rebuilds
    monkeypatch.setattr(crash_points, "reach", history.reach)
    monkeypatch.setattr(removal, "time", history.stores)
    for _ in range(5):
        history.process()
        history.go_back()
    history.check()

"""Scrubs through queue, manager, handler and engine: what is verified when, and what becomes of damage."""

from __future__ import annotations

import random
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select, update

from backupfw import crash_points
from backupfw.chunkstore.base import Body
from backupfw.chunkstore.container import Container
from backupfw.chunkstore.memory import MemoryStore
from backupfw.cmd.meters import Meters
from backupfw.db import models
from backupfw.db.session import now
from backupfw.engine.format import keys
from backupfw.engine.format.manifest import ManifestReader
from backupfw.errors import UnsupportedFormat
from backupfw.manager.outcomes import clean_ups
from backupfw.manager.queue import claims, tasks, waiting
from backupfw.manager.queue.claims import Limits
from backupfw.manager.queue.outbox import Outbox
from backupfw.manager.queue.services import BACKUP_BINARY
from backupfw.manager.rows import Task
from backupfw.manager.usecases.stores import StoreManager
from backupfw.worker.handlers import manifest_scrub
from tests.unit.manager.support import check_consistent
from tests.unit.worker.test_copies import BOTH, BOX, CopyWorld, chain, content, keys_of
from tests.unit.worker.test_encryption import MemoryKeys
from tests.unit.worker.world import SEGMENT, WorkerWorld

#: Every place where a worker that scrubs can die, but the one behind its last commit.
POINTS = [name for name in crash_points.NAMES if name.startswith("scrub.") and name != "scrub.committed"]
STORES = ("main", "offsite")


class ScrubWorld(CopyWorld):
    """A world in which both stores are scrubbed, and the reads of each are counted."""

    def __init__(self, key_store: MemoryKeys | None = None) -> None:
        super().__init__(key_store)
        Outbox(self.db, lambda *_: None)
        for store in STORES:
            self.conf[f"store:{store}"].scrub_days = 30
        self.reads: Counter[tuple[str, str]] = Counter()
        self._count("main", self.faulty)
        self._count("offsite", self.offsite)

    def work_through_kills(self, point: str) -> None:
        """Work on a task that dies at a crash point again and again: no attempt reads what is behind it."""
        reached = 0
        for _ in range(8):
            self.reads.clear()
            self.trap = point
            task = self.claim_next()
            if task is None:
                break
            assert task.checkpoint >= reached
            reached = task.checkpoint
            self.run_one(task)
            segments = [parsed.segment for _, key in self.reads if (parsed := keys.parse(key)) is not None]
            assert min(segments, default=reached) >= reached
        assert self.died > 0
        self.trap = None
        self.work()

    def _count(self, name: str, store: Any) -> None:
        get = store.get

        def counted(container: str, key: str, *where: Any) -> bytes:
            if not key.endswith("/manifest") and "/keys/" not in key:
                self.reads[name, key] += 1
            return get(container, key, *where)  # type: ignore[no-any-return]

        store.get = counted

    def age(self, days: int = 40) -> None:
        """Let all manifests be so much older."""
        row = models.Manifest
        with self.db.write() as session:
            moment = now(session) - timedelta(days=days)
            session.execute(update(row).values(created_at=moment, fully_verified_at=None, scrub_after=None))

    def queue(self) -> int:
        return self.outcomes.scrubbing.queue_due(STORES)

    def scrub(self) -> list[tuple[str, str]]:
        """Scrub until nothing is due."""
        done = []
        while self.queue():
            done += self.work()
        return done

    def packs(self, store: str = "main") -> set[str]:
        """The keys of maps and packs in a store."""
        inner = self.offsite if store == "offsite" else self.faulty.inner
        assert isinstance(inner, MemoryStore)
        return {key for key in self.held(inner) if "/keys/" not in key and not key.endswith("/manifest")}

    def named_by(self, backup: str) -> set[str]:
        """What the manifest of a backup names in the first store."""
        reader = ManifestReader(
            Container(self.faulty.inner, BOX), self.row(models.Backup, backup).service_metadata
        )
        return {key for entry in reader.segments() for key in entry.object_keys()}

    def proofs(self) -> list[Any]:
        """When each live manifest was last verified."""
        return [one.fully_verified_at for one in self.rows(models.Manifest) if one.state == "live"]


@pytest.fixture
def new_world(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., ScrubWorld]]:
    monkeypatch.setattr(manifest_scrub, "CHECKPOINT_SECONDS", 0.0)
    monkeypatch.setattr(manifest_scrub, "_LONG", 0.0)
    worlds: list[ScrubWorld] = []

    def make(key_store: MemoryKeys | None = None) -> ScrubWorld:
        worlds.append(ScrubWorld(key_store))
        monkeypatch.setattr(crash_points, "reach", worlds[-1].reach)
        return worlds[-1]

    yield make
    for one in worlds:
        one.offsite.close()


@pytest.fixture
def world(request: pytest.FixtureRequest, new_world: Callable[..., ScrubWorld]) -> ScrubWorld:
    return new_world(keys_of(request))


@BOTH
def test_everything_in_both_stores_is_read_once_when_it_is_due(world: ScrubWorld) -> None:
    _, backups, _ = chain(world)
    for backup in backups:
        assert world.copy(backup) == "available"
    other = world.back_up(world.filled_volume(content(9)))
    world.reads.clear()
    assert world.scrub() == []
    assert world.reads == {}
    world.age(22)
    assert world.scrub() == []
    world.age(23)
    # One for each volume in each container.
    assert world.scrub() == [(tasks.MANIFEST_SCRUB, "done")] * 3
    wanted = {(store, key) for store in STORES for key in world.packs(store)}
    assert world.reads == dict.fromkeys(wanted, 1)
    assert None not in world.proofs()
    for backup in (*backups, other):
        row = world.row(models.Backup, backup)
        assert (row.verified_how, row.verified_result) == ("full", "ok")
        assert row.fully_verified_at is not None
    assert world.scrub() == []
    world.is_clean()


def test_nothing_is_read_of_a_store_whose_scrub_is_off(world: ScrubWorld) -> None:
    _, (backup, *_), _ = chain(world, 1)
    assert world.copy(backup) == "available"
    world.age()
    world.reads.clear()
    world.conf["store:main"].scrub_days = 0
    assert world.scrub() == [(tasks.MANIFEST_SCRUB, "done")]
    assert {store for store, _ in world.reads} == {"offsite"}
    # Nor of one that another worker has.
    world.conf["store:main"].scrub_days = 30
    assert world.outcomes.scrubbing.queue_due(["offsite"]) == 0
    # It is turned off while the task waits.
    assert world.queue() == 1
    world.conf["store:main"].scrub_days = 0
    world.reads.clear()
    assert world.work() == [(tasks.MANIFEST_SCRUB, "done")]
    assert world.reads == {}


def test_the_oldest_proof_comes_first(new_world: Callable[..., ScrubWorld]) -> None:
    world = new_world()
    backups = [world.back_up(world.filled_volume(content(seed, 1))) for seed in range(3)]
    world.age()
    order = [backups[1], backups[2], backups[0]]
    with world.db.write() as session:
        for days, backup in zip((60, 50, 45), order, strict=True):
            manifest = session.get_one(models.Backup, backup).manifest_id
            proof = now(session) - timedelta(days=days)
            session.execute(
                update(models.Manifest)
                .where(models.Manifest.id == manifest)
                .values(fully_verified_at=proof if backup != order[1] else None, created_at=proof)
            )
    seen = []
    while world.queue():
        world.work()
        known = [one for one in backups if world.row(models.Backup, one).fully_verified_at is not None]
        seen += [one for one in known if one not in seen]
    assert seen == order


@pytest.mark.parametrize("point", POINTS)
def test_a_killed_scrub_goes_on_where_it_was(world: ScrubWorld, point: str) -> None:
    """Nothing that is proven is read again, and what was found is not forgotten."""
    _, backups, _ = chain(world)
    world.age()
    harmed = min(key for key in world.packs() if "/p" in key[-6:])
    world.damage("main", harmed, None)
    assert world.queue() == 1
    world.work_through_kills(point)
    assert world.tasks.pending() == 0
    for backup in backups:
        names = harmed in world.named_by(backup)
        assert world.row(models.Backup, backup).verified_result == ("damaged" if names else "ok")
    assert {one.key for one in world.rows(models.DamagedObject)} == {harmed}


def test_what_is_committed_meanwhile_is_not_taken_for_proven(new_world: Callable[..., ScrubWorld]) -> None:
    world = new_world()
    volume = world.filled_volume(content(3, 8))
    first = world.back_up(volume)
    world.age()
    assert world.queue() == 1
    world.trap = "scrub.saved"
    task = world.claim_next()
    assert task is not None
    assert world.run_one(task) == "killed"
    # A task of a user, which is claimed before or after the scrub.
    made = world.backups.create(world.ctx(), volume_id=volume, incremental=True)
    world.work()
    assert world.row(models.Backup, first).fully_verified_at is not None
    assert world.row(models.Backup, made.id).status == "available"
    assert world.row(models.Backup, made.id).fully_verified_at is None


def test_a_manifest_that_was_unreadable_once_is_not_proven_by_a_later_attempt(
    new_world: Callable[..., ScrubWorld],
) -> None:
    """What only it names was not read below the checkpoint of the attempt that could not read it."""
    world = new_world()
    _, backups, _ = chain(world)
    world.age()
    key = world.row(models.Backup, backups[1]).service_metadata
    good = world.held(world.faulty.inner)[key]  # type: ignore[arg-type]
    world.damage("main", key, 10)
    assert world.queue() == 1
    world.trap = "scrub.recorded"
    task = world.claim_next()
    assert task is not None
    assert world.run_one(task) == "killed"
    world.faulty.inner.put(BOX, key, Body.from_bytes(good))
    world.work()
    assert [world.row(models.Backup, one).fully_verified_at is None for one in backups] == [
        False,
        True,
        False,
    ]


@BOTH
def test_damage_is_recorded_told_and_stored_anew(world: ScrubWorld, caplog: pytest.LogCaptureFixture) -> None:
    volume, backups, held = chain(world)
    world.age()
    shared = world.named_by(backups[0]) & world.named_by(backups[2])
    harmed = min(key for key in shared if "/p" in key[-6:])
    world.damage("main", harmed, 200)
    assert world.scrub() == [(tasks.MANIFEST_SCRUB, "done")]
    names = [one for one in backups if harmed in world.named_by(one)]
    for backup in backups:
        assert (world.row(models.Backup, backup).verified_result == "damaged") == (backup in names)
    told = [one.resource_uuid for one in world.rows(models.Message) if one.action_id == "103"]
    assert sorted(told) == sorted(names)
    events = [one for one in world.rows(models.OutboxEvent) if one.event == "backup.damaged"]
    assert sorted(one.payload["backup_id"] for one in events) == sorted(names)
    lines = [one.getMessage() for one in caplog.records if one.levelname == "ERROR"]
    assert any(harmed in line for line in lines)
    assert all(any(backup in line for line in lines) for backup in names)
    healed = world.back_up(volume, incremental=True)
    assert world.restored(healed, "main") == held[-1]
    assert harmed not in world.named_by(healed)


@BOTH
def test_damage_is_repaired_from_a_copy(world: ScrubWorld) -> None:
    _, backups, held = chain(world)
    for backup in backups:
        assert world.copy(backup) == "available"
    world.age()
    packs = sorted(key for key in world.packs() if "/p" in key[-6:])
    world.damage("main", packs[0], 200)
    world.damage("offsite", packs[-1], None)
    manifest = world.row(models.Backup, backups[1]).service_metadata
    world.damage("main", manifest, 10)
    assert world.scrub() == [(tasks.MANIFEST_SCRUB, "done")] * 2
    assert world.rows(models.DamagedObject) == []
    assert [one for one in world.rows(models.Message) if one.action_id == "103"] == []
    # Of the repaired manifest's own objects nothing was proven: that comes with the next scrub.
    assert world.row(models.Backup, backups[1]).fully_verified_at is None
    assert world.row(models.Backup, backups[0]).verified_result == "ok"
    for store in STORES:
        for backup, data in zip(backups, held, strict=True):
            assert world.restored(backup, store) == data
    with world.db.write() as session:
        session.execute(update(models.Manifest).values(scrub_after=None))
    assert world.scrub() == [(tasks.MANIFEST_SCRUB, "done")]
    assert world.row(models.Backup, backups[1]).verified_result == "ok"
    world.is_clean()


@pytest.mark.parametrize("gone", [[0], [0, 1], [2], [0, 1, 2]])
def test_what_is_deleted_before_the_scrub_begins_is_not_damaged(
    new_world: Callable[..., ScrubWorld], gone: list[int]
) -> None:
    world = new_world()
    _, backups, _ = chain(world)
    world.age()
    assert world.queue() == 1
    for number in gone:
        world.backups.delete(world.ctx(), backups[number])
    done = world.work()
    assert all(how == "done" for _, how in done)
    assert (tasks.MANIFEST_SCRUB, "done") in done
    assert world.rows(models.DamagedObject) == []
    assert world.rows(models.Message) == []
    world.is_clean()


def test_a_backup_is_deleted_while_it_is_scrubbed(
    new_world: Callable[..., ScrubWorld], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The deletion does not wait, nothing is called damaged, and when nothing is left the scrub ends."""
    world = new_world()
    volume = world.filled_volume(content(3, 8))
    backup = world.back_up(volume)
    world.age()
    assert world.queue() == 1
    task = world.claim_next()
    assert task is not None

    def reach(name: str, _detail: object = "") -> None:
        if name == "scrub.segment" and world.status(backup) == "available":
            world.backups.delete(world.ctx(), backup)
            world.work()

    monkeypatch.setattr(crash_points, "reach", reach)
    assert world.run_one(task) == "done"
    assert world.status(backup) is None
    assert world.rows(models.DamagedObject) == []
    world.is_clean()


def test_a_scrub_waits_for_a_store_that_is_down(new_world: Callable[..., ScrubWorld]) -> None:
    world = new_world()
    _, (backup, *_), _ = chain(world, 1)
    world.age()
    world.stores.away.add("main")
    assert world.queue() == 1
    assert world.work() == [(tasks.MANIFEST_SCRUB, "waits")]
    assert world.queue() == 0
    world.stores.away.clear()
    assert world.work() == [(tasks.MANIFEST_SCRUB, "done")]
    assert world.row(models.Backup, backup).verified_result == "ok"


def test_what_cannot_be_verified_lets_others_pass(new_world: Callable[..., ScrubWorld]) -> None:
    """Its keys are gone: it is tried again later, and never said to be proven or damaged."""
    key_store = MemoryKeys()
    world = new_world(key_store)
    lost = world.back_up(world.filled_volume(content(1)))
    world.age(50)
    world.conf["store:main"].encryption = "off"
    other = world.back_up(world.filled_volume(content(2)))
    for key in list(key_store.keys):
        key_store.destroy(key)
    world.data_keys.close()
    world.age()
    assert world.scrub() == [(tasks.MANIFEST_SCRUB, "done")] * 2
    assert world.row(models.Backup, other).verified_result == "ok"
    assert world.row(models.Backup, lost).fully_verified_at is None
    assert world.rows(models.DamagedObject) == []
    assert world.queue() == 0


def test_what_cannot_be_verified_does_not_let_its_volume_be_read_again_and_again(
    world: ScrubWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It stays the oldest proof; each of its tries read all others of its volume, too, four times a day."""
    _, backups, _ = chain(world)
    unreadable = world.row(models.Backup, backups[1])
    read = ManifestReader.__init__

    def newer(self: ManifestReader, container: Container, key: str, *more: Any, **named: Any) -> None:
        if key == unreadable.service_metadata:
            raise UnsupportedFormat("a newer release made it")
        read(self, container, key, *more, **named)

    monkeypatch.setattr(ManifestReader, "__init__", newer)
    world.age()
    assert world.scrub() == [(tasks.MANIFEST_SCRUB, "done")]
    assert len([one for one in world.proofs() if one is not None]) == len(backups) - 1
    world.reads.clear()
    for _ in range(3):
        with world.db.write() as session:
            early = now(session) - timedelta(hours=1)
            session.execute(
                update(models.Manifest)
                .where(models.Manifest.scrub_after.is_not(None))
                .values(scrub_after=early)
            )
        assert world.scrub() == [(tasks.MANIFEST_SCRUB, "done")]
    assert world.reads == {}
    monkeypatch.undo()
    world.age()
    assert world.scrub() == [(tasks.MANIFEST_SCRUB, "done")]
    assert None not in world.proofs()


def test_damage_beside_a_manifest_of_a_newer_release_is_recorded(
    new_world: Callable[..., ScrubWorld], monkeypatch: pytest.MonkeyPatch
) -> None:
    world = new_world()
    _, backups, _ = chain(world)
    newer_one = world.row(models.Backup, backups[0])
    read = ManifestReader.__init__

    def newer(self: ManifestReader, container: Container, key: str, *more: Any, **named: Any) -> None:
        if key == newer_one.service_metadata:
            raise UnsupportedFormat("a newer release made it")
        read(self, container, key, *more, **named)

    key = min(world.named_by(backups[-1]) - world.named_by(backups[0]))
    world.damage("main", key, 5)
    monkeypatch.setattr(ManifestReader, "__init__", newer)
    world.age()
    assert world.scrub() == [(tasks.MANIFEST_SCRUB, "done")]
    assert [one.key for one in world.rows(models.DamagedObject)] == [key]
    assert world.row(models.Backup, backups[-1]).verified_result == "damaged"
    assert world.row(models.Backup, backups[0]).verified_at is None


@pytest.mark.parametrize("at", [None, 40])
def test_a_data_key_that_the_store_lost_is_put_again(
    new_world: Callable[..., ScrubWorld], at: int | None, caplog: pytest.LogCaptureFixture
) -> None:
    world = new_world(MemoryKeys())
    chain(world, 1)
    (key,) = (key for key in world.held(world.faulty.inner) if "/keys/" in key)  # type: ignore[arg-type]
    good = world.held(world.faulty.inner)[key]  # type: ignore[arg-type]
    world.damage("main", key, at)
    world.age()
    assert world.scrub() == [(tasks.MANIFEST_SCRUB, "done")]
    assert world.held(world.faulty.inner)[key] == good  # type: ignore[arg-type]
    assert any(key in one.getMessage() for one in caplog.records if one.levelname == "ERROR")


def test_a_scrub_whose_store_is_gone_can_be_dropped(new_world: Callable[..., ScrubWorld]) -> None:
    world = new_world()
    chain(world, 1)
    world.age()
    assert world.queue() == 1
    (task,) = world.rows(models.Task)
    left = clean_ups.give_up(world.db, world.conf, task.id)
    assert (left.manifest, left.backend) == (None, None)
    assert world.scrub() == [(tasks.MANIFEST_SCRUB, "done")]


def test_a_failed_scrub_is_tried_again_later(new_world: Callable[..., ScrubWorld]) -> None:
    world = new_world()
    chain(world, 1)
    world.age()
    assert world.queue() == 1
    world.faulty.fail("get", PermissionError("no"), times=100)
    assert world.work() == [(tasks.MANIFEST_SCRUB, "failed")]
    world.faulty.heal()
    assert world.queue() == 0
    assert world.proofs() == [None]
    with world.db.write() as session:
        session.execute(update(models.Manifest).values(scrub_after=now(session)))
    assert world.scrub() == [(tasks.MANIFEST_SCRUB, "done")]


def test_a_store_has_one_scrub_at_a_time(tmp_path: Path) -> None:
    """However many workers look at once."""
    world = WorkerWorld(tmp_path)
    world.conf["store:main"].scrub_days = 30
    for seed in range(3):
        backup = world.backups.create(
            world.ctx(), volume_id=world.filled_volume(random.Random(seed).randbytes(SEGMENT))
        )
        with world.worker():
            world.wait_backup(backup.id, "available")
    with world.db.write() as session:
        session.execute(update(models.Manifest).values(created_at=now(session) - timedelta(days=40)))
    queued: list[int] = []

    def look() -> None:
        queued.append(world.outcomes.scrubbing.queue_due(["main"]))

    threads = [threading.Thread(target=look) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(queued) == 1
    assert len(world.rows(models.Task)) == 1
    world.tools = replace(world.tools, queue_scrubs=lambda: world.outcomes.scrubbing.queue_due(["main"]))
    with world.worker(scrub_seconds=0.01), world.worker(scrub_seconds=0.01):
        world.wait(
            lambda: all(one.fully_verified_at is not None for one in world.rows(models.Manifest)),
            "the scrubs",
        )
        world.wait_idle()
    world.store.close()
    check_consistent(world)
    world.db.close()


def test_a_worker_records_what_stores_hold(tmp_path: Path) -> None:
    world = WorkerWorld(tmp_path, max_attempts=3)
    volume = world.filled_volume(random.Random(1).randbytes(2 * SEGMENT))
    first = world.backups.create(world.ctx(), volume_id=volume)
    with world.worker():
        world.wait_backup(first.id, "available")
    made = world.backups.get(world.ctx(), first.id)
    looks: list[bool] = []
    record = StoreManager(world.db, world.conf).record
    world.tools = replace(world.tools, record_usage=lambda: looks.append(record()))
    with world.worker(record_seconds=0.01), world.worker(record_seconds=0.01):
        world.wait(lambda: len(looks) > 3, "looks of both")
    assert sum(looks) >= 1
    held = {(one.store, one.project_id): one for one in world.rows(models.StoreUsage)}
    assert set(held) == {("main", ""), ("offsite", ""), ("main", made.project_id)}
    one = held["main", made.project_id]
    assert (one.backups, one.objects, one.bytes) == (1, made.object_count, made.referenced_bytes)
    world.store.close()
    world.db.close()


def test_no_task_waits_for_a_scrub_and_it_stops_at_once(tmp_path: Path) -> None:
    """The only slot is free while a scrub hangs at its limit; the worker stops within seconds."""
    world = WorkerWorld(tmp_path, max_attempts=3)
    world.conf["store:main"].scrub_days = 30
    world.conf["store:main"].scrub_bytes_per_second = 1.0
    volume = world.filled_volume(random.Random(1).randbytes(3 * SEGMENT))
    first = world.backups.create(world.ctx(), volume_id=volume)
    with world.worker():
        world.wait_backup(first.id, "available")
    with world.db.write() as session:
        session.execute(update(models.Manifest).values(created_at=now(session) - timedelta(days=40)))
    world.tools = replace(world.tools, queue_scrubs=lambda: world.outcomes.scrubbing.queue_due(["main"]))

    def scrubs() -> bool:
        with world.db.read() as session:
            row = models.Task
            found = select(row.id).where(row.kind == tasks.MANIFEST_SCRUB, row.state == claims.RUNNING)
            return session.scalar(found) is not None

    with world.worker(slots=1, scrub_seconds=0.01):
        world.wait(scrubs, "the scrub")
        second = world.backups.create(world.ctx(), volume_id=volume, incremental=True)
        world.wait_backup(second.id, "available")
        world.backups.delete(world.ctx(), first.id)
        world.wait_backup(first.id, None)
        assert scrubs()
    (left,) = world.rows(models.Task)
    assert (left.kind, left.state, left.failures) == (tasks.MANIFEST_SCRUB, claims.QUEUED, 0)
    # The limit may be lifted while it runs, and what was deleted is not missed.
    world.conf["store:main"].scrub_bytes_per_second = 0.0
    with world.worker(slots=1, scrub_seconds=0.01):
        world.wait_idle()
    assert world.rows(models.DamagedObject) == []
    world.store.close()
    check_consistent(world)
    world.db.close()


def test_no_store_waits_for_the_scrub_of_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = WorkerWorld(tmp_path)
    together = threading.Barrier(2)
    backup = world.backups.create(world.ctx(), volume_id=world.filled_volume(bytes(SEGMENT)))
    with world.worker():
        world.wait_backup(backup.id, "available")
    with world.db.write() as session:
        (own,) = world.rows_in(session, models.Manifest)
        values = {name: getattr(own, name) for name in own.__table__.columns.keys()}  # noqa: SIM118
        other = {"id": "other", "store": "offsite", "key_digest": "other"}
        session.add(models.Manifest(**{**values, **other}))
        session.flush()
        session.execute(update(models.Manifest).values(created_at=now(session) - timedelta(days=40)))
    for store in STORES:
        world.conf[f"store:{store}"].scrub_days = 30

    def run(handler: Any, task: Task, _control: object) -> None:
        # It passes only if both are here at the same time.
        together.wait(60)
        handler._tools.backups.scrubbing.finish(task)

    monkeypatch.setattr(manifest_scrub.ManifestScrub, "run", run)
    reach = claims.Reach("host", BACKUP_BINARY, "nova", frozenset(STORES), frozenset(("local",)))
    assert world.outcomes.scrubbing.queue_due(STORES) == 2
    with world.db.write() as session:
        session.execute(update(models.Task).values(updated_at=now(session) - timedelta(days=1)))
    assert b"backupfw_queue_age_seconds 0.0" in Meters(world.db).text()
    world.tools = replace(world.tools, reach=reach)
    with world.worker(slots=1, scrub_seconds=0.01):
        world.wait_idle()
    assert not together.broken
    world.store.close()
    world.db.close()


def test_limits_of_running_tasks_do_not_see_scrubs(new_world: Callable[..., ScrubWorld]) -> None:
    world = new_world()
    volume, *_ = chain(world, 1)
    world.age()
    assert world.queue() == 1
    limits = Limits(total=1, project=1, stores={"main": 1})
    world.tasks._limits = lambda: limits
    scrub: Task | None = world.claim_next()
    assert scrub is not None
    assert scrub.kind == tasks.MANIFEST_SCRUB
    world.backups.create(world.ctx(), volume_id=volume)
    with world.db.read() as session:
        (waits,) = (one for one in world.rows_in(session, models.Task) if one.kind == tasks.BACKUP_CREATE)
        assert waiting.why(session, world.conf, waits, limits) != waiting.WAITING_FOR_LIMIT
    made = world.claim_next()
    assert made is not None
    assert made.kind == tasks.BACKUP_CREATE
    # And where the limits are reached, a scrub runs.
    world.tasks.release(scrub)
    found = world.claim_next()
    assert found is not None
    assert found.id == scrub.id

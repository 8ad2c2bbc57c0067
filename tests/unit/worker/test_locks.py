"""Locked objects, through managers, handlers and engine: two stores with locks, one database.

Time passes by moving the dates of all locks back, in the stores and in the database.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import delete, select, update

from backupfw import crash_points, moments
from backupfw.chunkstore import container as containers
from backupfw.chunkstore.base import Body
from backupfw.chunkstore.container import Container, LockRule
from backupfw.chunkstore.memory import MemoryStore
from backupfw.db import models
from backupfw.engine import copying, locking
from backupfw.engine.format import keys
from backupfw.engine.format.manifest import ManifestReader
from backupfw.errors import InvalidBackup, TakesTurns
from backupfw.keys.base import KeyStore
from backupfw.manager.lineage import lifecycle, manifests
from backupfw.manager.operators import audit as rows_audit
from backupfw.manager.outcomes import clean_ups
from backupfw.manager.queue import waiting
from backupfw.manager.queue.claims import Limits
from backupfw.manager.rules import backup_rows
from backupfw.manager.usecases.keys import KeyManager
from backupfw.worker.data_keys import put_as_recorded
from backupfw.worker.handlers import handler_for
from tests.unit.engine.fakes import FakeControl
from tests.unit.manager.support import WIRE
from tests.unit.worker.test_copies import BOTH, BOX, CopyWorld, content, grow, keys_of, worlds
from tests.unit.worker.test_encryption import MemoryKeys
from tests.unit.worker.world import SEGMENT

RULE = LockRule(timedelta(days=20), timedelta(days=5), timedelta(hours=1))
#: Where a worker can die that makes, copies or removes backups.
POINTS = [name for name in crash_points.NAMES if name.startswith(("backup.", "copy.", "delete.", "key"))]


class LockWorld(CopyWorld):
    """Both stores lock; ``rule`` may be set to None."""

    def __init__(self, key_store: KeyStore | None = None) -> None:
        super().__init__(key_store)
        self.rule: LockRule | None = RULE
        self.conf.backup.max_running = self.conf.backup.max_running_per_project = 0
        for name in ("main", "offsite"):
            self.conf[f"store:{name}"].max_running = 0
        #: Every lock that was asked for after a put: store, key.
        self.renewed: list[tuple[str, str]] = []
        #: The lock with which an object was put last.
        self.asked_for: dict[tuple[str, str], datetime | None] = {}
        opened = self.stores.container

        def container(store: str, name: str) -> Container:
            made = opened(store, name)
            made.rule = self.rule
            return made

        object.__setattr__(self.stores, "container", container)
        object.__setattr__(self.stores, "locks", lambda _store: self.rule is not None)
        for store in self.memory.values():
            self._watch(store)

    def _watch(self, store: MemoryStore) -> None:
        lock = store.lock

        def watched(container: str, key: str, until: datetime) -> None:
            self.renewed.append((store.name, key))
            lock(container, key, until)

        store.lock = watched  # type: ignore[method-assign]
        put = store.put

        def checked(container: str, key: str, body: Body, **how: Any) -> None:
            # As servers do.
            assert body.locked_until is None or body.locked_until > containers._now(), key
            self.asked_for[store.name, key] = body.locked_until
            put(container, key, body, **how)

        store.put = checked  # type: ignore[method-assign]

    @property
    def memory(self) -> dict[str, MemoryStore]:
        return {"main": self.inner, "offsite": self.offsite}

    def end_pauses(self) -> None:
        """Only of tasks that wait for no lock; those of a lock that has ended are due by themselves."""
        moment = moments.utc(datetime.now(UTC))
        with self.db.write() as session:
            for row in self.rows_in(session, models.Task):
                if not row.locked or (row.not_before is not None and row.not_before <= moment):
                    row.not_before = None

    def pass_days(self, days: float) -> None:
        """Let time pass."""
        step = timedelta(days=days)
        for store in self.memory.values():
            for place in store.locks:
                store.locks[place] -= step
        with self.db.write() as session:
            for manifest in self.rows_in(session, models.Manifest):
                if manifest.locked_until is not None:
                    manifest.locked_until -= step
            for task in self.rows_in(session, models.Task):
                if task.locked and task.not_before is not None:
                    task.not_before -= step

    def end_of(self, store: str, key: str) -> datetime:
        return self.memory[store].locks.get((BOX, key), datetime.min.replace(tzinfo=UTC))

    def named(self, store: str, manifest_key: str) -> Iterator[str]:
        """Everything that a manifest needs, itself not."""
        container = Container(self.memory[store], BOX)
        reader = ManifestReader(container, manifest_key)
        for entry in reader.segments():
            yield from entry.object_keys()
        if reader.head.key_id is not None:
            yield keys.data_key_key(reader.volume_prefix, reader.head.key_id)

    def check_locks(self) -> None:
        """No live manifest names what is locked shorter than itself, or shorter than the database says."""
        for row in self.rows(models.Manifest, models.Manifest.state == lifecycle.LIVE):
            own = self.end_of(row.store, row.key)
            said = None if row.locked_until is None else moments.aware(row.locked_until)
            for key in (row.key, *self.named(row.store, row.key)):
                end = self.end_of(row.store, key)
                assert end >= own, (row.store, key)
                assert said is None or end >= said, (row.store, key)

    def put_for(self, backup: str, last: str) -> list[str]:
        """The keys in the first store that were put for a backup and end so."""
        held = self.held(self.memory["main"])
        return sorted(key for key in held if f"/{backup}/" in key and key.endswith(last))

    def is_locked_for(self, backup: str, store: str, keep: timedelta) -> bool:
        [row] = self.rows(
            models.Manifest,
            models.Manifest.store == store,
            models.Manifest.backup_id == backup,
            models.Manifest.state == lifecycle.LIVE,
        )
        needed = datetime.now(UTC) + keep - timedelta(minutes=1)
        return all(self.end_of(store, key) >= needed for key in (row.key, *self.named(store, row.key)))


@pytest.fixture
def new_world(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., LockWorld]]:
    yield from worlds(LockWorld, monkeypatch)


@pytest.fixture
def world(request: pytest.FixtureRequest, new_world: Callable[..., LockWorld]) -> LockWorld:
    return new_world(keys_of(request))


# ---- the rule ----------------------------------------------------------------------------------------


def test_the_rule_of_an_option() -> None:
    moment = datetime(2026, 3, 1, 15, 30, tzinfo=UTC)
    assert LockRule.of_days(0) is None
    for days, slack in ((1, 1), (2, 1), (30, 8), (365, 30)):
        made = LockRule.of_days(days)
        assert made is not None
        rule = LockRule(made.keep, made.slack, made.step, now=lambda: moment)
        until = rule.new()
        assert until - moment >= timedelta(days=days + slack)
        assert until - moment < timedelta(days=days + slack + 1)
        assert (until.hour, until.minute, until.second) == (0, 0, 0)
        assert rule.is_enough(until)
        assert not rule.is_enough(moment + timedelta(days=days) - timedelta(seconds=1))
        assert not rule.is_enough(None)
        assert rule.choose([None, moment, moment + timedelta(days=days)]) == moment + timedelta(days=days)
        assert rule.choose([None]) == until


# ---- making backups ----------------------------------------------------------------------------------


@BOTH
def test_backups_in_a_row_renew_only_now_and_then(world: LockWorld) -> None:
    volume, made, _ = grow(world, 2)
    renewed = {key for _, key in world.renewed if not keys.is_data_key(key)}
    assert renewed == set()
    assert world.is_locked_for(made[1], "main", RULE.keep)
    world.check_locks()
    world.pass_days(4)
    made.append(world.back_up(volume, incremental=True))
    assert {key for _, key in world.renewed if not keys.is_data_key(key)} == set()
    world.pass_days(4)
    made.append(world.back_up(volume, incremental=True))
    shared = [key for _, key in world.renewed if not keys.is_data_key(key)]
    [key] = [row.service_metadata for row in world.rows(models.Backup, models.Backup.id == made[-1])]
    named = {one for one in world.named("main", key) if not keys.is_data_key(one)}
    # Each object once, and none that nothing new names.
    assert sorted(shared) == sorted(one for one in named if made[-1] not in one)
    assert world.is_locked_for(made[-1], "main", RULE.keep)
    world.check_locks()
    world.is_clean()


def test_a_lock_that_is_turned_on_and_off(new_world: Callable[..., LockWorld]) -> None:
    world = new_world()
    world.rule = None
    volume, made, _ = grow(world, 1)
    assert world.faulty.inner.locks == {}  # type: ignore[attr-defined]
    world.rule = RULE
    made.append(world.back_up(volume, incremental=True))
    assert world.is_locked_for(made[1], "main", RULE.keep)
    world.check_locks()
    world.rule = None
    made.append(world.back_up(volume, incremental=True))
    world.check_locks()
    world.backups.delete(world.ctx(), made[2])
    world.work()
    assert world.status(made[2]) is None
    # What was locked while the option was set waits all the same.
    world.backups.delete(world.ctx(), made[1])
    world.work()
    assert world.status(made[1]) == "deleting"


@pytest.mark.parametrize("point", ["backup.pack-put", "backup.recorded", "backup.manifest-put"])
def test_a_resumed_attempt_renews_what_an_earlier_one_put(
    new_world: Callable[..., LockWorld], point: str
) -> None:
    world = new_world()
    volume, _, _ = grow(world, 1)
    world.provider.volumes[volume][:] = content(5)
    world.trap = point
    made = world.backups.create(world.ctx(), volume_id=volume, incremental=True)
    task = world.claim_next()
    assert task is not None
    assert world.run_one(task) == "killed"
    # The worker was away for longer than the slack of its locks.
    world.pass_days(9)
    world.work()
    assert world.status(made.id) == "available"
    assert world.is_locked_for(made.id, "main", RULE.keep)
    world.check_locks()


def test_an_attempt_that_lasts_longer_than_its_slack(
    new_world: Callable[..., LockWorld], monkeypatch: pytest.MonkeyPatch
) -> None:
    world = new_world()
    volume, _, _ = grow(world, 1)
    world.provider.volumes[volume][:] = content(6)
    reach = world.reach

    def late(name: str, detail: object = "") -> None:
        if name == "backup.recorded" and not world.died:
            world.died = 1
            world.pass_days(9)
        reach(name, detail)

    monkeypatch.setattr(crash_points, "reach", late)
    made = world.backups.create(world.ctx(), volume_id=volume, incremental=True)
    world.work()
    assert world.status(made.id) == "available", world.row(models.Backup, made.id).fail_reason


def test_a_shared_object_that_is_gone_is_stored_again(new_world: Callable[..., LockWorld]) -> None:
    """Its lock was to be renewed: that shows that it is missing, before the manifest is put."""
    world = new_world()
    volume, made, _ = grow(world, 1)
    lost = world.put_for(made[0], "/p0000")[0]
    del world.memory["main"].contents[BOX][lost]
    world.pass_days(9)
    data = world.provider.volumes[volume]
    data[2 * SEGMENT] ^= 1
    backup = world.backups.create(world.ctx(), volume_id=volume, incremental=True)
    task = world.claim_next()
    assert task is not None
    handler = handler_for(task.kind, world.tools)
    with pytest.raises(Exception, match="missing") as caught:
        handler.run(task, FakeControl())  # type: ignore[arg-type]
    assert caught.value.may_pass  # type: ignore[attr-defined]
    world.tasks.release(task)
    world.work()
    assert world.status(backup.id) == "available"
    assert world.restored(backup.id, "main") == bytes(data)
    world.check_locks()


def test_holder_and_probe_are_not_locked(new_world: Callable[..., LockWorld]) -> None:
    world = new_world()
    _, made, _ = grow(world, 1)
    world.copy(made[0])
    manifest = world.row(models.Backup, made[0]).service_metadata
    source, target = (world.stores.container(name, BOX) for name in ("main", "offsite"))
    assert not copying.are_one_place(manifest, source, target)
    assert copying.are_one_place(manifest, source, source)
    assert not [key for store in world.memory.values() for _, key in store.locks if "/" not in key]


# ---- deleting ----------------------------------------------------------------------------------------


@BOTH
def test_a_deletion_waits_visibly_and_blocks_nothing(world: LockWorld) -> None:
    volume, made, held = grow(world, 2)
    before = world.held(world.memory["main"])
    world.backups.delete(world.ctx(), made[1])
    assert world.work() == [("backup.delete", "locked")]
    # Nothing is tried again before the lock has ended.
    assert world.work() == []
    assert world.held(world.memory["main"]) == before
    row = world.row(models.Backup, made[1])
    until = world.row(models.Manifest, row.manifest_id).locked_until
    assert row.status == "deleting"
    assert row.fail_reason == (
        f"The backup's data is locked in its store until {until:%Y-%m-%d %H:%M} UTC;"
        " it is deleted after that."
    )
    with world.db.read() as session:
        assert backup_rows.locked_until(session, session.get_one(models.Backup, made[1])) == until
    [task] = clean_ups.unfinished(world.db, world.conf, Limits())
    assert task.waits_for == waiting.WAITING_FOR_LOCK
    assert task.until is not None
    assert abs(task.until - until) < timedelta(minutes=1)
    progress = world.backups.progress(world.ctx(), made[1])
    assert (progress.phase, progress.waits_until) == ("waiting-for-lock", task.until)
    assert world.row(models.Task, task.id).failures == 0
    [message] = world.rows(models.Message)
    assert (message.detail_id, message.message_level) == ("106", "WARNING")
    assert rows_audit.run(world.db, 60) == []
    # New backups and copies of the volume go on.
    made.append(world.back_up(volume, incremental=True))
    assert world.copy(made[0]) == "available"
    assert world.copy(made[2]) == "available"
    # A try that is too early changes nothing, and says nothing twice.
    with world.db.write() as session:
        session.get_one(models.Task, task.id).not_before = None
    assert ("backup.delete", "locked") in world.work()
    assert len(world.rows(models.Message)) == 1
    world.pass_days(60)
    world.work()
    assert world.status(made[1]) is None
    assert world.restored(made[0], "main") == held[0]
    world.check_locks()
    world.is_clean()


def test_a_deletion_is_taken_back_while_it_waits(new_world: Callable[..., LockWorld]) -> None:
    """Nothing was changed yet: neither the manifest nor the copies."""
    world = new_world()
    _, made, held = grow(world, 1)
    assert world.copy(made[0]) == "available"
    world.backups.delete(world.ctx(), made[0])
    world.work()
    world.backups.reset_status(world.ctx(admin=True), made[0], "available")
    world.work()
    assert world.status(made[0]) == "available"
    assert world.row(models.Backup, made[0]).fail_reason is None
    assert world.copy_status(made[0]) == "available"
    assert world.restored(made[0], "main") == world.restored(made[0]) == held[0]
    world.is_clean()


def test_a_forced_deletion_waits_too(new_world: Callable[..., LockWorld]) -> None:
    world = new_world()
    _, made, _ = grow(world, 1)
    world.backups.delete(world.ctx(), made[0])
    world.work()
    world.backups.force_delete(world.ctx(admin=True), made[0])
    world.end_pauses()
    world.work()
    assert world.status(made[0]) == "deleting"
    assert world.held(world.memory["main"])
    world.pass_days(60)
    world.work()
    assert world.status(made[0]) is None
    world.is_clean()
    assert world.held(world.memory["main"]) == {}


def test_a_copy_that_is_removed_stays_live_until_its_lock_ends(new_world: Callable[..., LockWorld]) -> None:
    world = new_world()
    volume, made, held = grow(world, 2)
    for backup in made:
        assert world.copy(backup) == "available"
    world.backups.remove_copy(world.ctx(), made[0], "offsite")
    world.work()
    assert world.copy_status(made[0]) == ""
    [row] = world.rows(
        models.Manifest, models.Manifest.store == "offsite", models.Manifest.backup_id == made[0]
    )
    assert row.state == lifecycle.LIVE
    assert rows_audit.run(world.db, 60) == []
    # It blocks no other copy, and the same one may be wanted again.
    made.append(world.back_up(volume, incremental=True))
    assert world.copy(made[2]) == "available"
    assert world.copy(made[0]) == "available"
    assert world.restored(made[0]) == held[0]
    world.pass_days(60)
    world.work()
    world.is_clean()
    assert world.copy_status(made[0]) == "available"
    world.backups.remove_copy(world.ctx(), made[0], "offsite")
    world.work()
    world.is_clean()
    assert world.restored(made[1]) == held[1]


def test_a_lock_that_the_database_does_not_know(world: LockWorld) -> None:
    """The database was rebuilt: the store says until when, before anything is changed."""
    _, made, held = grow(world, 2)
    assert world.copy(made[0]) == "available"
    with world.db.write() as session:
        for row in world.rows_in(session, models.Manifest):
            row.locked_until = None
    world.backups.delete(world.ctx(), made[0])
    assert world.work()[-1][1] == "locked"
    assert world.status(made[0]) == "deleting"
    assert "locked" in (world.row(models.Backup, made[0]).fail_reason or "")
    # It can be taken back, with its copies.
    world.backups.reset_status(world.ctx(), made[0], "available")
    world.work()
    assert world.status(made[0]) == world.copy_status(made[0]) == "available"
    assert world.restored(made[0], "main") == world.restored(made[0]) == held[0]
    world.backups.delete(world.ctx(), made[0])
    world.work()
    world.pass_days(60)
    world.work()
    assert world.status(made[0]) is None
    world.is_clean()


def test_an_object_that_is_locked_longer_than_its_manifest(world: LockWorld) -> None:
    """An operator locked more: the deletion has begun, and waits."""
    _, made, _ = grow(world, 1)
    pack = world.put_for(made[0], "/p0000")[0]
    world.pass_days(26)
    world.memory["main"].lock(BOX, pack, datetime.now(UTC) + timedelta(days=5))
    world.backups.delete(world.ctx(), made[0])
    assert world.work()[-1][1] == "locked"
    assert world.status(made[0]) == "deleting"
    assert "locked" in (world.row(models.Backup, made[0]).fail_reason or "")
    world.pass_days(6)
    world.work()
    assert world.status(made[0]) is None
    world.is_clean()


def test_a_removal_that_waits_for_a_lock_keeps_no_copy_waiting(world: LockWorld) -> None:
    """It has deleted some objects already: a copy puts what it needs again, and that stays."""
    volume, made, held = grow(world, 2)
    # The volume's backups move to the other store, and one comes back.
    for backup in made:
        assert world.copy(backup) == "available"
        world.backups.promote_copy(world.ctx(), backup, "offsite", WIRE)
    third = world.back_up(volume, incremental=True)
    world.pass_days(40)
    world.backups.remove_copy(world.ctx(), made[1], "main")
    world.work()
    pack = world.put_for(made[0], "/p0000")[-1]
    world.memory["main"].lock(BOX, pack, datetime.now(UTC) + timedelta(days=5))
    world.backups.remove_copy(world.ctx(), made[0], "main")
    world.backups.copy(world.ctx(), third, "main")
    removal = world.tasks.claim("host/x", 60, ["manifest.release"])
    copy = world.tasks.claim("host/x", 60, ["backup.copy"])
    assert removal is not None
    assert copy is not None
    # While the removal is at work, the copy waits; not while it only waits itself.
    assert world.run_one(copy) == "waits"
    assert world.run_one(removal) == "locked"
    (row,) = world.rows(models.Manifest, models.Manifest.state == "released")
    assert (row.store, row.backup_id) == ("main", made[0])
    assert set(world.held(world.memory["main"])).intersection(world.put_for(made[0], "")) == {row.key, pack}
    world.work()
    assert world.backups.copies(world.ctx(), third)[0].status == "available"
    assert world.row(models.Manifest, row.id).state == "released"
    assert world.restored(third, "main") == held[1]
    world.check_locks()
    world.pass_days(6)
    world.work()
    # What the copy shares is locked longer, and stays.
    assert world.row(models.Manifest, row.id).state == "gone"
    assert world.restored(third, "main") == held[1]
    world.is_clean()


def test_removals_of_others_neither_hold_a_copy_back_nor_let_it_begin(world: LockWorld) -> None:
    """Only what becomes of the released manifest's own removal counts."""
    _, (his,), _ = grow(world, 1)
    volume, (first,), _ = grow(world, 1)
    assert world.copy(first) == "available"
    world.backups.promote_copy(world.ctx(), first, "offsite", WIRE)
    second = world.back_up(volume, incremental=True)
    world.pass_days(40)
    pack = world.put_for(first, "/p0000")[-1]
    world.memory["main"].lock(BOX, pack, datetime.now(UTC) + timedelta(days=5))
    world.backups.remove_copy(world.ctx(), first, "main")
    removal = world.tasks.claim("host/x", 60, ["manifest.release"])
    assert removal is not None
    assert world.run_one(removal) == "locked"
    world.backups.delete(world.ctx(), his)
    world.backups.copy(world.ctx(), second, "main")
    (manifest,) = world.rows(models.Manifest, models.Manifest.state == "writing")

    def begins() -> bool:
        try:
            with world.db.write() as session:
                manifests.begin_copy(session, session.get_one(models.Manifest, manifest.id))
                session.rollback()
        except TakesTurns:
            return False
        return True

    assert begins()
    with world.db.write() as session:
        theirs = update(models.Task).where(models.Task.resource_id == his)
        session.execute(theirs.values(locked=True, state="queued"))
        session.execute(update(models.Task).where(models.Task.id == removal.id).values(locked=False))
    assert not begins()
    with world.db.write() as session:
        session.execute(delete(models.Task).where(models.Task.id == removal.id))
    assert not begins()


def test_a_clean_up_is_given_up_although_it_is_locked(new_world: Callable[..., LockWorld]) -> None:
    world = new_world()
    _, made, _ = grow(world, 2)
    assert world.copy(made[1]) == "available"
    world.backups.remove_copy(world.ctx(), made[1], "offsite")
    world.backups.delete(world.ctx(), made[0])
    world.work()
    for task in world.rows(models.Task):
        left = clean_ups.give_up(world.db, world.conf, task.id)
        assert left.manifest is not None
    assert world.status(made[0]) is None
    assert rows_audit.run(world.db, 60) == []


# ---- orphans -----------------------------------------------------------------------------------------


def test_what_a_failed_backup_left_is_locked_and_goes_with_a_later_sweep(world: LockWorld) -> None:
    volume, made, _ = grow(world, 1)
    world.provider.volumes[volume][:] = content(7)
    world.trap = "backup.manifest-put"
    backup = world.backups.create(world.ctx(), volume_id=volume)
    task = world.claim_next()
    assert task is not None
    assert world.run_one(task) == "killed"
    world.backups.force_delete(world.ctx(admin=True), backup.id)
    world.work()
    # Nobody waits for it, and no task is left.
    assert world.status(backup.id) is None
    assert world.tasks.pending() == 0
    left = {key for key in world.held(world.memory["main"]) if backup.id in key}
    assert left
    report = world.sweep("main")
    assert sum(one.locked for one in report.volumes) == len(left)
    assert all(one.locked_until is not None for one in report.volumes if one.locked)
    assert world.audit("main") == []
    assert {key for key in world.held(world.memory["main"]) if backup.id in key} == left
    world.pass_days(60)
    assert {one.kind for one in world.audit("main")} == {"object named by nothing"}
    report = world.sweep("main")
    assert (report.orphans, sum(one.locked for one in report.volumes)) == (len(left), 0)
    world.is_clean()
    assert world.status(made[0]) == "available"


def test_many_locked_orphans_keep_no_other_from_being_swept(
    new_world: Callable[..., LockWorld], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("backupfw.engine.removal.MAX_FAILED", 3)
    world = new_world()
    _, made, _ = grow(world, 2)
    store = world.memory["main"]
    prefix = world.put_for(made[0], "map")[0].rsplit("/", 4)[0]
    for number in range(12):
        key = f"{prefix}/{made[0]}x/1.1-{number:016x}/00000000/map"
        store.contents[BOX][key] = b"x"
        if number != 11:
            store.locks[BOX, key] = datetime.now(UTC) + timedelta(days=3)
    report = world.sweep("main")
    assert (report.orphans, sum(one.locked for one in report.volumes)) == (12, 11)
    assert f"{prefix}/{made[0]}x/1.1-{11:016x}/00000000/map" not in store.contents[BOX]


# ---- copies ------------------------------------------------------------------------------------------


def test_copies_renew_like_backups(world: LockWorld) -> None:
    volume, made, _ = grow(world, 2)
    for backup in made:
        assert world.copy(backup) == "available"
        assert world.is_locked_for(backup, "offsite", RULE.keep)
    assert not [key for store, key in world.renewed if store == "offsite" and not keys.is_data_key(key)]
    world.pass_days(9)
    made.append(world.back_up(volume, incremental=True))
    world.renewed.clear()
    assert world.copy(made[2]) == "available"
    assert [key for store, key in world.renewed if store == "offsite" and not keys.is_data_key(key)]
    assert world.is_locked_for(made[2], "offsite", RULE.keep)
    world.check_locks()
    world.is_clean()


@pytest.mark.parametrize("point", ["copy.placed", "copy.pack-put", "copy.manifest-put"])
def test_a_resumed_copy_renews_what_an_earlier_attempt_put(
    new_world: Callable[..., LockWorld], point: str
) -> None:
    world = new_world()
    _, made, _ = grow(world, 1)
    world.trap = point
    world.backups.copy(world.ctx(), made[0], "offsite")
    task = world.claim_next()
    assert task is not None
    assert world.run_one(task) == "killed"
    world.pass_days(9)
    world.work()
    assert world.copy_status(made[0]) == "available"
    assert world.is_locked_for(made[0], "offsite", RULE.keep)
    world.check_locks()


@pytest.mark.parametrize("days", [9, 40])
def test_a_copy_that_lasts_longer_than_its_slack(
    new_world: Callable[..., LockWorld], monkeypatch: pytest.MonkeyPatch, days: int
) -> None:
    """Even longer than its locks, which have ended when it puts the rest."""
    world = new_world()
    _, made, held = grow(world, 2)
    start = datetime.now(UTC)
    clock = [start]
    world.rule = LockRule(RULE.keep, RULE.slack, RULE.step, now=lambda: clock[0])
    monkeypatch.setattr(containers, "_now", lambda: clock[0])
    assert world.copy(made[0]) == "available"
    reach = world.reach

    def late(name: str, detail: object = "") -> None:
        if name == "copy.pack-put":
            clock[0] = start + timedelta(days=days)
        reach(name, detail)

    monkeypatch.setattr(crash_points, "reach", late)
    world.backups.copy(world.ctx(), made[1], "offsite")
    world.work()
    assert world.copy_status(made[1]) == "available"
    assert world.restored(made[1], "offsite") == held[1]
    assert clock[0] > start
    key = world.row(models.Backup, made[1]).service_metadata
    for one in (key, *world.named("offsite", key)):
        assert world.end_of("offsite", one) >= clock[0] + RULE.keep
    world.check_locks()


def test_a_copy_that_failed_keeps_no_other_one_waiting(new_world: Callable[..., LockWorld]) -> None:
    """It is gone although its objects stay; the same copy is made again over them."""
    world = new_world()
    _, made, held = grow(world, 2)
    world.trap = "copy.manifest-put"
    world.backups.copy(world.ctx(), made[0], "offsite")
    task = world.claim_next()
    assert task is not None
    assert world.run_one(task) == "killed"
    world.backups.remove_copy(world.ctx(), made[0], "offsite")
    world.work()
    assert world.tasks.pending() == 0
    assert world.held(world.offsite)
    assert world.audit("offsite") == []
    world.pass_days(9)
    for backup, expected in zip(made, held, strict=True):
        assert world.copy(backup) == "available"
        assert world.is_locked_for(backup, "offsite", RULE.keep)
        assert world.restored(backup) == expected
    world.check_locks()
    world.is_clean()


def test_what_is_repaired_is_locked(new_world: Callable[..., LockWorld]) -> None:
    world = new_world()
    _, made, held = grow(world, 2)
    for backup in made:
        world.copy(backup)
    pack = world.put_for(made[0], "/p0000")[0]
    for lost in (pack, world.row(models.Backup, made[1]).service_metadata):
        store = world.memory["main"]
        del store.contents[BOX][lost]
        del store.locks[BOX, lost]
        world.repair(made[1])
        assert world.end_of("main", lost) > datetime.now(UTC)
        world.check_locks()
    assert world.restored(made[1], "main") == held[1]


@pytest.mark.parametrize("rule", [RULE, None])
@pytest.mark.parametrize("days", [0, 40])
def test_a_repair_locks_as_long_as_the_manifest_was_and_not_in_the_past(
    new_world: Callable[..., LockWorld], rule: LockRule | None, days: int
) -> None:
    world = new_world()
    volume, made, held = grow(world, 2)
    for backup in made:
        world.copy(backup)
    world.pass_days(days)
    world.rule = rule
    manifest = world.row(models.Backup, made[1]).service_metadata
    store = world.memory["main"]
    for lost in ((world.put_for(made[0], "/p0000")[0], manifest), (manifest,)):
        for key in lost:
            del store.contents[BOX][key]
            store.locks.pop((BOX, key), None)
        if len(lost) == 2:
            world.repair(made[1])
        else:
            # An incremental backup repairs the manifest of its base.
            world.back_up(volume, incremental=True)
        assert all(key in store.contents[BOX] for key in lost)
        if not days:
            world.check_locks()
            assert world.end_of("main", manifest) > datetime.now(UTC)
    assert world.restored(made[1], "main") == held[1]


def test_a_data_key_that_is_wrapped_again_is_locked_as_long_as_before(
    new_world: Callable[..., LockWorld],
) -> None:
    """Also after locks became shorter, or none: the backups that need it are locked still."""
    world = new_world(MemoryKeys())
    grow(world, 1)
    [row] = world.rows(models.DataKey)
    [key] = [key for key in world.held(world.memory["main"]) if keys.is_data_key(key)]
    before = world.end_of("main", key)
    catalogue = KeyManager(world.db)
    for rule in (None, LockRule(timedelta(days=1), timedelta(days=1)), RULE):
        world.rule = rule
        put_as_recorded(catalogue, world.stores.container("main", BOX), row.id)
        asked = world.asked_for["main", key]
        assert asked is not None
        assert asked >= before


def test_a_manifest_of_an_earlier_epoch_is_not_said_to_be_locked_longer(
    new_world: Callable[..., LockWorld],
) -> None:
    """It may be committed by a later attempt, if it was left because of damage that is repaired then."""
    world = new_world()
    volume = world.filled_volume(content(1))
    world.backups.create(world.ctx(), volume_id=volume)
    task = world.claim_next()
    assert task is not None
    creating = world.outcomes.creating
    creating.start(task)
    first, later = datetime(2030, 1, 1), datetime(2031, 1, 1)
    assert creating.bind_source(task, "one", "all", first).locked_until == first
    assert creating.bind_source(task, "other", "all", later).locked_until == first
    assert creating.bind_source(task, "other", "all", None).locked_until is None


@BOTH
def test_renewing_a_manifest_locks_all_that_it_names(world: LockWorld) -> None:
    _, made, _ = grow(world, 2)
    until = datetime.now(UTC) + timedelta(days=500)
    key = world.row(models.Backup, made[1]).service_metadata
    locking.renew(key, Container(world.memory["main"], BOX), until, FakeControl())
    assert all(world.end_of("main", one) == until for one in (key, *world.named("main", key)))


# ---- everything --------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.check) for seed in (1, 2))])
def test_random_histories(new_world: Callable[..., LockWorld], seed: int) -> None:
    """Backups, copies, deletions, kills and days that pass, in any order: what is named is locked."""
    rng = random.Random(seed)
    world = new_world(MemoryKeys() if seed % 2 else None)
    data = bytearray(content(seed))
    volume = world.filled_volume(bytes(data))
    held: dict[str, bytes] = {}
    for _ in range(40):
        step = rng.choice(["backup", "backup", "copy", "copy", "remove", "delete", "sweep", "days", "work"])
        alive = sorted(one for one in held if world.status(one) == "available")
        backup = rng.choice(alive) if alive else None
        if rng.random() < 0.3:
            world.trap = rng.choice(POINTS)
        if step == "backup" and world.volume_status(volume) == "available":
            start = rng.randrange(3) * SEGMENT + rng.randrange(15) * 4096
            data[start : start + 4096] = rng.randbytes(4096)
            world.provider.volumes[volume][:] = data
            made = world.backups.create(world.ctx(), volume_id=volume, incremental=bool(alive))
            held[made.id] = bytes(data)
            if (task := world.claim_next()) is not None:
                world.run_one(task)
                if rng.random() < 0.3:
                    world.pass_days(rng.choice((1, 7)))
            world.work()
            if world.status(made.id) == "available":
                assert world.is_locked_for(made.id, "main", RULE.keep - timedelta(days=7))
        elif step == "copy" and backup is not None and world.copy_status(backup) in ("", "error"):
            try:
                world.backups.copy(world.ctx(), backup, "offsite")
            except InvalidBackup as error:
                assert "removed there" in str(error)  # noqa: PT017
        elif step == "remove" and backup is not None and world.copy_status(backup):
            world.backups.remove_copy(world.ctx(), backup, "offsite")
        elif step == "delete" and backup is not None and len(alive) > 1:
            world.backups.delete(world.ctx(), backup)
            del held[backup]
        elif step == "sweep" and BOX in world.offsite.contents:
            world.sweep("offsite")
        elif step == "days":
            world.pass_days(rng.choice((0.5, 3, 11)))
        elif step == "work":
            world.work()
            world.trap = None
            world.work()
            for one, expected in held.items():
                assert world.restored(one, "main") == expected
                if world.copy_status(one) == lifecycle.AVAILABLE:
                    assert world.restored(one) == expected
            assert rows_audit.run(world.db, 60) == []
            assert world.audit("main") == world.audit("offsite") == []
        world.check_locks()
    world.trap = None
    world.work()
    for backup in list(held):
        if world.status(backup) == "available":
            world.backups.delete(world.ctx(), backup)
    world.work()
    assert world.held(world.memory["main"])
    world.pass_days(100)
    world.work()
    for store in world.memory:
        if BOX in world.memory[store].contents:
            world.sweep(store)
    world.is_clean()
    with world.db.read() as session:
        assert session.scalars(select(models.Manifest.id).where(models.Manifest.state == "live")).all() == []
    assert world.held(world.offsite) == world.held(world.memory["main"]) == {}

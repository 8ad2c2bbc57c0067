"""Copies of backups in another store, through managers, handlers and engine: two stores, one database."""

from __future__ import annotations

import random
import sqlite3
import uuid
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cache
from typing import Any, TypeVar

import pytest
from sqlalchemy import select

from backupfw import crash_points, errors, moments
from backupfw.chunkstore.base import Body
from backupfw.chunkstore.container import Container
from backupfw.chunkstore.errors import PermissionDenied, Unavailable, locked_until
from backupfw.chunkstore.memory import Contents, MemoryStore
from backupfw.cmd.catalogue import DatabaseCatalogue
from backupfw.db import models
from backupfw.engine import audit, restore, sweep
from backupfw.engine.format import keys
from backupfw.errors import AttemptInVain, InvalidBackup, InvalidInput, StillLocked, TaskCancelled
from backupfw.keys.base import KeyStore
from backupfw.manager.lineage import lifecycle
from backupfw.manager.messages import Action, Detail
from backupfw.manager.operators import audit as rows_audit
from backupfw.manager.operators import purge
from backupfw.manager.operators import recovery as entering
from backupfw.manager.queue import tasks
from backupfw.manager.queue.outbox import Outbox
from backupfw.manager.rows import Task
from backupfw.manager.rules import copies
from backupfw.worker.copies import Copies, Repaired
from backupfw.worker.handlers import handler_for
from backupfw.worker.stores import StoreDown
from tests.unit.engine.fakes import FakeControl, MemoryTarget
from tests.unit.manager.support import WIRE
from tests.unit.manager.test_placement import rule
from tests.unit.worker.test_encryption import MemoryKeys
from tests.unit.worker.world import SEGMENT, OneStore, WorkerWorld, rebuilt

BOX = "volumebackups"
#: Every place where a worker that copies, or removes a copy, can die.
POINTS = [name for name in crash_points.NAMES if name.startswith(("copy.", "key.put"))]
REMOVAL = ["delete.some-deleted", "delete.data-deleted"]


class Killed(BaseException):
    """The worker died."""


class TwoStores(OneStore):
    """Both stores of the configuration; one can be down."""

    def __init__(self, stores: dict[str, Any]) -> None:
        super().__init__(stores["main"])
        self._stores = stores
        self.wire_names = dict.fromkeys(stores, WIRE)
        self.away: set[str] = set()

    def container(self, store: str, container: str) -> Container:
        if store in self.away:
            raise StoreDown(store, 1.0)
        return Container(self._stores[store], container)


@dataclass(frozen=True)
class Saved:
    """What a world holds."""

    database: bytes
    main: Contents
    offsite: Contents
    volumes: dict[str, bytes]
    keys: dict[str, bytes]


class CopyWorld(WorkerWorld):
    """A world with two stores, whose tasks are carried out one after the other in the test's thread."""

    def __init__(self, key_store: KeyStore | None = None) -> None:
        super().__init__(None, key_store)
        self.key_store = key_store
        self.offsite = MemoryStore("offsite")
        self.stores = TwoStores({"main": self.store, "offsite": self.offsite})
        object.__setattr__(self.tools, "stores", self.stores)
        if key_store is not None:
            for store in ("main", "offsite"):
                self.conf[f"store:{store}"].encryption = "project"
        #: Where the next worker dies; None: nowhere.
        self.trap: str | None = None
        self.died = 0

    @property
    def inner(self) -> MemoryStore:
        """What is behind the store ``main``."""
        assert isinstance(self.faulty.inner, MemoryStore)
        return self.faulty.inner

    def save(self) -> Saved:
        """Return what this world holds, for :meth:`load`."""
        keys = self.key_store.keys if isinstance(self.key_store, MemoryKeys) else {}
        return Saved(
            self._connection().serialize(),
            deepcopy(self.inner.contents),
            deepcopy(self.offsite.contents),
            {name: bytes(data) for name, data in self.provider.volumes.items()},
            dict(keys),
        )

    def load(self, saved: Saved) -> None:
        """Let this world, which is new, hold what another one held."""
        assert not self.provider.volumes
        assert not self.inner.contents
        self._connection().deserialize(saved.database)
        # Its worker may have been silent for minutes.
        self.tools.heartbeat()
        self.inner.contents.update(deepcopy(saved.main))
        self.offsite.contents.update(deepcopy(saved.offsite))
        self.provider.volumes.update((name, bytearray(data)) for name, data in saved.volumes.items())
        if isinstance(self.key_store, MemoryKeys):
            self.key_store.keys.update(saved.keys)

    def _connection(self) -> sqlite3.Connection:
        """The one connection of a database in memory."""
        found = self.db.engine.raw_connection().driver_connection
        assert isinstance(found, sqlite3.Connection)
        return found

    def reach(self, name: str, _detail: object = "") -> None:
        if name == self.trap:
            self.trap = None
            self.died += 1
            raise Killed

    def claim_next(self) -> Task | None:
        return self.tasks.claim("host/w", 60)

    def end_pauses(self) -> None:
        with self.db.write() as session:
            for row in self.rows_in(session, models.Task):
                row.not_before = None

    def run_one(self, task: Task) -> str:
        """Carry out one attempt as a worker does; returns how it ended."""
        handler = handler_for(task.kind, self.tools)
        control: Any = FakeControl()
        try:
            if task.cancel:
                raise TaskCancelled("cancelled")
            handler.run(task, control)
        except Killed:
            with self.db.write() as session:
                row = session.get(models.Task, task.id)
                if row is not None:
                    row.state, row.owner, row.lease_until = "queued", None, None
            return "killed"
        except TaskCancelled:
            handler.cancelled(task)
            return "cancelled"
        except StillLocked as error:
            handler.locked(task, error.until, error.seconds)
            return "locked"
        except (AttemptInVain, StoreDown):
            self.tasks.release(task, 3600)
            return "waits"
        except Exception as error:
            if (until := locked_until(error)) is not None:
                handler.locked(task, moments.utc(until), 3600)
                return "locked"
            handler.failed(task, f"{type(error).__name__}: {error}")
            return "failed"
        return "done"

    def work(self) -> list[tuple[str, str]]:
        """Carry out tasks until none is left that could end; returns what was tried, and how it ended."""
        done: list[tuple[str, str]] = []
        moved = True
        while moved:
            moved = False
            self.end_pauses()
            while (task := self.claim_next()) is not None:
                done.append((task.kind, self.run_one(task)))
                moved |= done[-1][1] not in ("waits", "failed")
        return done

    def back_up(self, volume: str, **arguments: Any) -> str:
        made = self.backups.create(self.ctx(), volume_id=volume, **arguments)
        self.work()
        assert self.status(made.id) == "available", self.row(models.Backup, made.id).fail_reason
        return made.id

    def copy(self, backup: str) -> str:
        self.backups.copy(self.ctx(), backup, "offsite")
        self.work()
        return self.copy_status(backup)

    def copy_status(self, backup: str) -> str:
        found = self.backups.copies(self.ctx(), backup)
        return "" if not found else found[0].status

    def held(self, store: MemoryStore) -> dict[str, bytes]:
        return dict(store.contents.get(BOX, {}))

    def audit(self, store: str) -> list[Any]:
        """What differs between a store and its manifests."""
        with self.db.read() as session:
            ours = session.scalars(select(models.Installation.uuid)).one()
        catalogue = DatabaseCatalogue(self.db, store, BOX, ours)
        container = self.stores.container(store, BOX)
        if store == "offsite" and BOX not in self.offsite.contents:
            return []
        found = audit.run(keys.installation_prefix(ours), container, catalogue, FakeControl())
        return list(found.discrepancies)

    def sweep(self, store: str) -> sweep.SweepReport:
        with self.db.read() as session:
            ours = session.scalars(select(models.Installation.uuid)).one()
        catalogue = DatabaseCatalogue(self.db, store, BOX, ours)
        prefix = keys.installation_prefix(ours)
        return sweep.run(prefix, self.stores.container(store, BOX), catalogue, FakeControl())

    def restored(self, backup: str, store: str = "offsite") -> bytes:
        """Restore a backup from the manifest in one store, with the engine alone."""
        row = self.row(models.Backup, backup)
        container = self.stores.container(store, BOX)
        target = MemoryTarget(row.length)
        find_key = self.data_keys.finder(container, row.service_metadata)
        restore.run(row.service_metadata, container, target, FakeControl(), find_key=find_key)
        return bytes(target.data)

    def damage(self, store: str, key: str, at: int | None) -> None:
        """Change a byte of an object; None: delete it."""
        inner = self.offsite if store == "offsite" else self.inner
        if at is None:
            inner.delete(BOX, [key])
            return
        data = bytearray(inner.get(BOX, key))
        data[at] ^= 1
        inner.put(BOX, key, Body.from_bytes(bytes(data)))

    def restore_to_volume(self, backup: str) -> bytes:
        """Restore a backup as users do."""
        _, volume, _ = self.backups.restore(self.ctx(), backup)
        self.work()
        assert self.volume_status(volume) == "available", self.row(models.Backup, backup).fail_reason
        return bytes(self.provider.volumes[volume])

    def repair(self, backup: str) -> list[Repaired]:
        """What ``backupfw backup repair`` does."""
        row = self.row(models.Backup, backup)
        with self.db.read() as session:
            places = copies.places(session, session.get_one(models.Backup, backup), self.conf.enabled_stores)
        stores: Any = self.stores
        mended = Copies(self.outcomes, stores, self.data_keys, row.service_metadata, places, 2)
        return mended.repair(FakeControl(), encrypted=False)

    def is_clean(self) -> None:
        """Rows agree with each other, and each store holds exactly what its manifests name."""
        assert self.tasks.pending() == 0, self.rows(models.Task)
        assert rows_audit.run(self.db, 60) == []
        assert self.audit("main") == []
        assert self.audit("offsite") == []


W = TypeVar("W", bound=CopyWorld)


def worlds(kind: type[W], monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., W]]:
    """Yield what makes worlds of a class, in which a crash point can be set; then close them."""
    made: list[W] = []

    def make(key_store: KeyStore | None = None) -> W:
        world = kind(key_store)
        made.append(world)
        monkeypatch.setattr(crash_points, "reach", world.reach)
        return world

    yield make
    for world in made:
        world.offsite.close()
        world.close()


@pytest.fixture
def new_world(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., CopyWorld]]:
    yield from worlds(CopyWorld, monkeypatch)


#: For tests in which it matters whether backups are encrypted; one that is has all that a clear one has.
BOTH = pytest.mark.parametrize("world", ["clear", "encrypted"], indirect=True)


@pytest.fixture
def world(request: pytest.FixtureRequest, new_world: Callable[..., CopyWorld]) -> CopyWorld:
    return new_world(keys_of(request))


def keys_of(request: pytest.FixtureRequest) -> MemoryKeys | None:
    """Return the key store of a test's world; None where :data:`BOTH` wants it clear."""
    return None if getattr(request, "param", "encrypted") == "clear" else MemoryKeys()


def content(seed: int, segments: int = 3) -> bytes:
    return random.Random(seed).randbytes(segments * SEGMENT)


def grow(world: CopyWorld, length: int = 3) -> tuple[str, list[str], list[bytes]]:
    """Make a volume with a full backup and incremental ones; returns it, them and what each holds."""
    data = bytearray(content(1))
    volume = world.filled_volume(bytes(data))
    made, held = [], []
    for number in range(length):
        if number:
            start = (number - 1) * SEGMENT
            data[start : start + 8192] = content(number + 10, 1)[:8192]
            world.provider.volumes[volume][:] = data
        made.append(world.back_up(volume, incremental=bool(number)))
        held.append(bytes(data))
    return volume, made, held


@cache
def grown(length: int, encrypted: bool) -> tuple[Saved, tuple[str, list[str], list[bytes]]]:
    world = CopyWorld(MemoryKeys() if encrypted else None)
    made = grow(world, length)
    return world.save(), made


def chain(world: CopyWorld, length: int = 3) -> tuple[str, list[str], list[bytes]]:
    """Do what :func:`grow` does, by a copy of what was made once: for a new world, whose rules it ignores."""
    saved, (volume, made, held) = grown(length, world.key_store is not None)
    world.load(saved)
    return volume, list(made), list(held)


@BOTH
def test_a_copy_is_the_same_objects(world: CopyWorld) -> None:
    _, (backup,), (data,) = chain(world, 1)
    before = world.held(world.inner)
    assert world.copy(backup) == "available"
    assert world.held(world.offsite) == before
    assert world.restored(backup) == data
    [copy] = world.backups.copies(world.ctx(), backup)
    assert (copy.store, copy.container, copy.fail_reason) == ("offsite", BOX, None)
    world.is_clean()


def test_a_later_copy_puts_only_what_is_new(world: CopyWorld) -> None:
    _, made, held = chain(world)
    assert world.copy(made[0]) == "available"
    first = set(world.held(world.offsite))
    assert world.copy(made[1]) == "available"
    new = set(world.held(world.offsite)) - first
    assert all(made[1] in key for key in new)
    # The base is its neighbour in the lineage there, too.
    [row] = world.rows(
        models.Manifest, models.Manifest.store == "offsite", models.Manifest.backup_id == made[1]
    )
    assert not row.detached
    assert world.row(models.Manifest, row.base_id).backup_id == made[0]
    assert [world.restored(one) for one in made[:2]] == held[:2]
    world.is_clean()


@pytest.mark.parametrize("order", [(2, 0, 1), (1, 2, 0)])
def test_any_order_of_copying_and_removing(
    new_world: Callable[..., CopyWorld], order: tuple[int, ...]
) -> None:
    world = new_world()
    _, made, held = chain(world)
    for number in order:
        assert world.copy(made[number]) == "available"
    for number in (0, 2, 1):
        world.backups.remove_copy(world.ctx(), made[number], "offsite")
        world.work()
        for other in made:
            if world.copy_status(other):
                assert world.restored(other) == held[made.index(other)]
        world.is_clean()
    assert world.held(world.offsite) == {}


def test_a_copy_that_was_removed_is_made_again(world: CopyWorld) -> None:
    """Its objects stayed for a later backup, so it is that one's neighbour now, and not only its base's."""
    _, made, held = chain(world)
    for backup in made:
        world.copy(backup)
    world.backups.remove_copy(world.ctx(), made[1], "offsite")
    # Its keys are the same, so the removal must have ended.
    with pytest.raises(InvalidBackup, match="removed there"):
        world.backups.copy(world.ctx(), made[1], "offsite")
    world.work()
    assert world.copy(made[1]) == "available"
    assert world.restored(made[1]) == held[1]
    world.backups.remove_copy(world.ctx(), made[1], "offsite")
    world.work()
    assert world.restored(made[2]) == held[2]
    world.is_clean()


@BOTH
def test_a_deletion_removes_all_copies(world: CopyWorld) -> None:
    _, made, held = chain(world)
    for backup in made:
        world.copy(backup)
    world.backups.delete(world.ctx(), made[0])
    world.work()
    assert world.status(made[0]) is None
    assert world.rows(models.BackupCopy, models.BackupCopy.backup_id == made[0]) == []
    assert [world.restored(one) for one in made[1:]] == held[1:]
    world.is_clean()
    for backup in made[1:]:
        world.backups.delete(world.ctx(), backup)
    world.work()
    assert world.held(world.offsite) == world.held(world.inner) == {}
    world.is_clean()


@pytest.mark.parametrize("away", ["main", "offsite"])
def test_a_store_that_is_down_keeps_only_its_own_part(new_world: Callable[..., CopyWorld], away: str) -> None:
    world = new_world()
    _, (backup,), _ = chain(world, 1)
    world.copy(backup)
    world.stores.away.add(away)
    world.backups.delete(world.ctx(), backup)
    world.work()
    main, offsite = world.held(world.inner), world.held(world.offsite)
    assert (bool(main), bool(offsite)) == (away == "main", away == "offsite")
    world.stores.away.clear()
    world.work()
    assert world.status(backup) is None
    assert world.held(world.offsite) == world.held(world.inner) == {}
    world.is_clean()


@pytest.mark.parametrize("point", POINTS)
def test_a_killed_copy_is_resumed(new_world: Callable[..., CopyWorld], point: str) -> None:
    world = new_world(MemoryKeys())
    _, made, held = chain(world, 2)
    world.trap = point
    assert world.copy(made[1]) == "available"
    assert world.died == 1, point
    assert world.restored(made[1]) == held[1]
    world.is_clean()
    world.backups.remove_copy(world.ctx(), made[1], "offsite")
    world.work()
    assert world.held(world.offsite) == {}
    world.is_clean()


@pytest.mark.parametrize("point", POINTS)
def test_a_killed_copy_that_is_removed_leaves_nothing(
    new_world: Callable[..., CopyWorld], point: str
) -> None:
    """It also put objects below the prefix of the base, which has no copy."""
    world = new_world(MemoryKeys())
    _, made, held = chain(world, 3)
    world.copy(made[0])
    world.trap = point
    world.backups.copy(world.ctx(), made[2], "offsite")
    task = world.claim_next()
    assert task is not None
    ended = world.run_one(task)
    assert ended == "killed", point
    world.backups.remove_copy(world.ctx(), made[2], "offsite")
    world.work()
    assert world.restored(made[0]) == held[0]
    world.is_clean()


@pytest.mark.parametrize("point", REMOVAL)
def test_a_killed_removal_goes_on(new_world: Callable[..., CopyWorld], point: str) -> None:
    world = new_world(MemoryKeys())
    _, made, held = chain(world)
    for backup in made:
        world.copy(backup)
    world.trap = point
    world.backups.remove_copy(world.ctx(), made[0], "offsite")
    world.work()
    assert world.died == 1
    assert [world.restored(one) for one in made[1:]] == held[1:]
    world.is_clean()


@BOTH
def test_a_damaged_object_is_not_copied(world: CopyWorld) -> None:
    _, (backup,), _ = chain(world, 1)
    inner = world.inner
    bad = next(
        key for key in sorted(inner.contents[BOX]) if "/p" in key.rsplit("/", 1)[1] or key.endswith("p0000")
    )
    data = bytearray(inner.get(BOX, bad))
    data[-60] ^= 1
    inner.put(BOX, bad, Body.from_bytes(bytes(data)))
    assert world.copy(backup) == "error"
    [copy] = world.backups.copies(world.ctx(), backup)
    assert bad in (copy.fail_reason or "")
    # The backup is marked as damaged, and nothing stays in the other store.
    [found] = world.outcomes.damaged_objects.of(world.row(models.Backup, backup).manifest_id)
    assert found.key == bad
    assert world.held(world.offsite) == {}
    assert world.status(backup) == "available"
    # It can be begun again when the object is whole.
    data[-60] ^= 1
    inner.put(BOX, bad, Body.from_bytes(bytes(data)))
    assert world.copy(backup) == "available"


def test_a_changed_block_is_found_without_keys_where_digests_are_not_keyed(
    new_world: Callable[..., CopyWorld],
) -> None:
    world = new_world()
    _, (backup,), _ = chain(world, 1)
    inner = world.inner
    bad = next(key for key in sorted(inner.contents[BOX]) if key.endswith("/p0000"))
    data = bytearray(inner.get(BOX, bad))
    data[200] ^= 1
    inner.put(BOX, bad, Body.from_bytes(bytes(data)))
    assert world.copy(backup) == "error"
    assert bad in (world.backups.copies(world.ctx(), backup)[0].fail_reason or "")


def test_copies_and_removals_take_turns(new_world: Callable[..., CopyWorld]) -> None:
    world = new_world()
    _, made, held = chain(world)
    world.copy(made[0])
    world.copy(made[1])
    # A copy that has begun: the removal waits for it, and that of its base does not even begin.
    world.trap = "copy.placed"
    world.backups.copy(world.ctx(), made[2], "offsite")
    task = world.claim_next()
    assert task is not None
    assert world.run_one(task) == "killed"
    world.backups.remove_copy(world.ctx(), made[1], "offsite")
    world.backups.remove_copy(world.ctx(), made[0], "offsite")
    removal = world.tasks.claim("host/x", 60, [tasks.MANIFEST_RELEASE])
    assert removal is not None
    assert world.run_one(removal) == "waits"
    assert world.tasks.claim("host/x", 60, [tasks.MANIFEST_RELEASE]) is None
    world.work()
    assert world.restored(made[2]) == held[2]
    world.is_clean()
    # A removal that has not ended: a copy waits for it.
    world.trap = "delete.some-deleted"
    world.backups.remove_copy(world.ctx(), made[2], "offsite")
    removal = world.claim_next()
    assert removal is not None
    assert world.run_one(removal) == "killed"
    world.backups.copy(world.ctx(), made[1], "offsite")
    copying = world.tasks.claim("host/x", 60, [tasks.BACKUP_COPY])
    assert copying is not None
    assert world.run_one(copying) == "waits"
    world.work()
    assert world.restored(made[1]) == held[1]
    world.is_clean()


def test_a_sweep_leaves_a_copy_that_is_being_made(new_world: Callable[..., CopyWorld]) -> None:
    world = new_world()
    _, made, held = chain(world)
    world.trap = "copy.objects-put"
    world.backups.copy(world.ctx(), made[2], "offsite")
    task = world.claim_next()
    assert task is not None
    assert world.run_one(task) == "killed"
    there = world.held(world.offsite)
    assert there
    report = world.sweep("offsite")
    assert report.orphans == 0
    assert sum(one.skipped for one in report.volumes) == len(there)
    world.work()
    assert world.restored(made[2]) == held[2]
    assert world.sweep("offsite").orphans == 0
    world.is_clean()


def test_what_a_sweep_deletes_late_is_put_again(
    new_world: Callable[..., CopyWorld], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sweep that began before the copy deletes an orphan that the copy found there."""
    world = new_world()
    _, (backup,), (data,) = chain(world, 1)
    orphans = put_orphans(world)

    def reach(name: str, _detail: object = "") -> None:
        if name == "copy.map-put" and orphans:
            world.offsite.delete(BOX, [orphans.pop()])

    monkeypatch.setattr(crash_points, "reach", reach)
    assert world.copy(backup) == "available"
    assert world.restored(backup) == data
    world.is_clean()


@pytest.mark.parametrize("removed", [False, True])
def test_a_sweep_that_was_frozen_over_a_whole_copy_deletes_nothing(
    new_world: Callable[..., CopyWorld], monkeypatch: pytest.MonkeyPatch, removed: bool
) -> None:
    """It read the manifests; then a copy was made that found there what the sweep is about to delete."""
    world = new_world()
    _, made, held = chain(world, 2)
    put_orphans(world)
    delete_all = sweep.delete_all

    def frozen(*arguments: Any) -> None:
        monkeypatch.undo()
        assert world.copy(made[0]) == world.copy(made[1]) == "available"
        if removed:
            # Of one of them nothing is seen any more but that it was.
            world.backups.remove_copy(world.ctx(), made[1], "offsite")
            world.work()
        delete_all(*arguments)

    monkeypatch.setattr(sweep, "delete_all", frozen)
    (report,) = world.sweep("offsite").volumes
    assert "copied there meanwhile" in str(report.stopped)
    assert world.restored(made[0]) == held[0]
    assert world.sweep("offsite").orphans == 0
    world.is_clean()


def put_orphans(world: CopyWorld) -> list[str]:
    """Put some objects of the first store into the second one, where no manifest names them."""
    inner = world.inner
    world.offsite.ensure_container(BOX)
    orphans = sorted(key for key in inner.contents[BOX] if key.endswith("/p0000"))[:2]
    for key in orphans:
        world.offsite.put(BOX, key, Body.from_bytes(inner.get(BOX, key)))
    return orphans


@pytest.mark.parametrize("answered", [True, False])
def test_no_copy_begins_while_a_request_of_a_sweep_is_under_way(
    new_world: Callable[..., CopyWorld], monkeypatch: pytest.MonkeyPatch, answered: bool
) -> None:
    """The copy would find there what the request deletes afterwards, and be complete before that."""
    world = new_world()
    _, (backup,), (data,) = chain(world, 1)
    orphans = put_orphans(world)
    other = world.back_up(world.filled_volume(content(7)))
    delete = world.offsite.delete

    def slow(container: str, doomed: list[str]) -> None:
        monkeypatch.undo()
        assert sorted(doomed) == orphans
        assert world.copy(backup) == "copying"
        # Another volume's copies do not wait.
        assert world.copy(other) == "available"
        delete(container, doomed)
        if not answered:
            raise Unavailable("no answer", store="offsite")

    monkeypatch.setattr(world.offsite, "delete", slow)
    if answered:
        assert world.sweep("offsite").orphans == 2
    else:
        with pytest.raises(Unavailable):
            world.sweep("offsite")
        # It may take effect later: copies wait until that is out of the question.
        world.work()
        assert world.copy_status(backup) == "copying"
        with world.db.write() as session:
            for row in world.rows_in(session, models.Sweep):
                row.until -= timedelta(hours=1)
    world.work()
    assert world.copy_status(backup) == "available"
    assert world.restored(backup) == data
    assert world.sweep("offsite").orphans == 0
    world.is_clean()


def test_a_sweep_that_has_ended_holds_no_copy_back(new_world: Callable[..., CopyWorld]) -> None:
    world = new_world()
    _, made, held = chain(world, 2)
    put_orphans(world)
    assert world.sweep("offsite").orphans == 2
    assert world.rows(models.Sweep) == []
    assert world.copy(made[0]) == "available"
    put_orphans(world)
    world.trap = "copy.objects-put"
    world.backups.copy(world.ctx(), made[1], "offsite")
    task = world.claim_next()
    assert task is not None
    assert world.run_one(task) == "killed"
    world.sweep("offsite")
    assert world.rows(models.Sweep) == []
    world.work()
    assert [world.restored(one) for one in made] == held


def test_a_copy_that_the_release_before_began_goes_on(new_world: Callable[..., CopyWorld]) -> None:
    """Its row says in another column how far it is."""
    world = new_world()
    _, made, held = chain(world, 2)
    world.copy(made[0])
    for number, trap in enumerate(("copy.planned", "copy.objects-put")):
        world.trap = trap
        world.backups.copy(world.ctx(), made[1], "offsite")
        task = world.claim_next()
        assert task is not None
        assert world.run_one(task) == "killed"
        with world.db.write() as session:
            row = session.get_one(models.Manifest, task.resource_id)
            row.source_identity, row.copy_step = row.copy_step, None
            assert row.source_identity == ("begun", "placed")[number]
        # It has begun: removals take turns with it, and sweeps leave it alone.
        assert sum(one.orphans for one in world.sweep("offsite").volumes) == 0
        if number == 0:
            world.backups.remove_copy(world.ctx(), made[1], "offsite")
        world.work()
    assert world.copy_status(made[1]) == "available"
    assert [world.restored(one) for one in made] == held
    world.is_clean()


@pytest.mark.parametrize(("trap", "step"), [("copy.planned", "begun"), ("copy.objects-put", "placed")])
def test_processes_of_the_release_before_see_a_copy_that_is_being_made(
    new_world: Callable[..., CopyWorld], trap: str, step: str
) -> None:
    """Their removals and sweeps read the column that was there before: they must wait, too."""
    world = new_world()
    _, made, _ = chain(world, 1)
    world.trap = trap
    world.backups.copy(world.ctx(), made[0], "offsite")
    task = world.claim_next()
    assert task is not None
    assert world.run_one(task) == "killed"
    row = world.row(models.Manifest, task.resource_id)
    assert (row.copied, row.state, row.source_identity) == (True, "writing", step)


@pytest.mark.parametrize("what", ["/manifest", "/map", "/p0000"])
def test_what_is_damaged_of_a_base_is_read_from_a_copy(
    new_world: Callable[..., CopyWorld], what: str
) -> None:
    """An incremental backup shares it then, instead of storing it anew."""
    world = new_world()
    volume, made, held = chain(world, 2)
    for backup in made:
        world.copy(backup)
    before = world.held(world.inner)
    key = str(world.row(models.Backup, made[1]).service_metadata)
    if what != "/manifest":
        # Of the last segment, which the second one shares.
        key = [one for one in sorted(before) if f"/{made[0]}/" in one and one.endswith(what)][-1]
        manifest_id = str(world.row(models.Backup, made[1]).manifest_id)
        assert world.outcomes.damaged_objects.record("main", BOX, key, "it is missing", manifest_id)
    world.damage("main", key, None)
    world.provider.volumes[volume][-4096:] = bytes(4096)
    third = world.back_up(volume, incremental=True)
    assert world.held(world.inner)[key] == before[key]
    row = world.row(models.Backup, third)
    assert row.stored_bytes < world.row(models.Backup, made[0]).stored_bytes / 2
    assert world.row(models.Manifest, row.manifest_id).base_id is not None
    assert world.rows(models.DamagedObject) == []
    assert [world.restored(one, "main") for one in made] == held
    assert world.restored(third, "main") == bytes(world.provider.volumes[volume])
    world.is_clean()


def test_a_copy_does_not_become_the_backup_while_another_one_is_made(world: CopyWorld) -> None:
    """Its worker was chosen by the store that the backup is in."""
    (_volume, (backup,), _held) = chain(world, 1)
    world.copy(backup)
    other = models.BackupCopy(
        id=str(uuid.uuid4()),
        backup_id=backup,
        store="third",
        container=BOX,
        status=lifecycle.COPYING,
        created_at=datetime(2026, 1, 1),
    )
    with world.db.write() as session:
        session.add(other)
    with pytest.raises(InvalidBackup, match="copied to the store third"):
        world.backups.promote_copy(world.ctx(), backup, "offsite", WIRE)


def test_a_copy_becomes_the_backup(world: CopyWorld) -> None:
    """A store is moved: everything is copied, the copies become the backups, and the old store is emptied."""
    volume, made, held = chain(world, 2)
    for backup in made:
        world.copy(backup)
        world.backups.promote_copy(world.ctx(), backup, "offsite", "other.wire")
    assert [(one.store, one.service) for one in world.rows(models.Backup)] == [("offsite", "other.wire")] * 2
    assert world.backups.copies(world.ctx(), made[0])[0].store == "main"
    world.is_clean()
    # The next one goes where its parent is, and shares with it.
    before = set(world.held(world.offsite))
    world.provider.volumes[volume][:8192] = content(50, 1)[:8192]
    held.append(bytes(world.provider.volumes[volume]))
    made.append(world.back_up(volume, incremental=True))
    assert not [key for key in set(world.held(world.offsite)) - before if "/00000002/" in key]
    for backup in made[:2]:
        world.backups.remove_copy(world.ctx(), backup, "main")
    world.work()
    assert world.held(world.inner) == {}
    world.is_clean()
    assert world.restore_to_volume(made[2]) == held[2]
    world.backups.delete(world.ctx(), made[0])
    world.work()
    assert [world.restored(one) for one in made[1:]] == held[1:]
    world.is_clean()
    with pytest.raises(InvalidBackup, match="no complete copy in the store main"):
        world.backups.promote_copy(world.ctx(), made[1], "main", WIRE)
    for backup in made[1:]:
        world.backups.delete(world.ctx(), backup)
    world.work()
    assert world.held(world.offsite) == {}
    assert world.rows(models.DataKey) == []
    world.is_clean()


def rebuild(world: CopyWorld, store: str) -> list[entering.Entered]:
    return rebuilt(world, world.stores.container(store, BOX))


@pytest.mark.parametrize("known", [True, False])
def test_a_rebuild_of_a_second_store_finds_copies(new_world: Callable[..., CopyWorld], known: bool) -> None:
    """Of backups that the catalogue has, and of those that it has from the first store."""
    world = new_world()
    _, made, held = chain(world)
    for backup in made:
        world.copy(backup)
    lost = (
        [models.BackupCopy, models.Manifest] if known else [models.BackupCopy, models.Backup, models.Manifest]
    )
    with world.db.write() as session:
        for model in lost:
            where = (model.store == "offsite",) if known else ()
            for row in session.scalars(select(model).where(*where).order_by(model.id)).all():
                if model is models.Manifest:
                    row.base_id = None
            session.flush()
            for row in session.scalars(select(model).where(*where)).all():
                session.delete(row)
            session.flush()
    if not known:
        assert {one.result for one in rebuild(world, "main")} == {entering.ENTERED}
    found = rebuild(world, "offsite")
    assert [(one.is_copy, one.is_other) for one in found] == [(True, False)] * 3
    assert {one.result for one in rebuild(world, "offsite")} == {entering.KNOWN}
    assert len(world.rows(models.Backup)) == 3
    assert [world.copy_status(one) for one in made] == ["available"] * 3
    world.is_clean()
    world.damage("main", objects_of(world, made[0], "/map")[2], None)
    assert world.restore_to_volume(made[2])[: len(held[2])] == held[2]
    for backup in (made[1], made[0], made[2]):
        world.backups.delete(world.ctx(), backup)
        world.work()
        world.is_clean()
    assert world.held(world.offsite) == {}


def test_a_copy_that_is_found_while_its_backup_is_deleted_goes_too(
    world: CopyWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The database had lost it, and a rebuild enters it between the steps of the deletion."""
    _, (backup,), _ = chain(world, 1)
    world.copy(backup)
    with world.db.write() as session:
        for model in (models.BackupCopy, models.Manifest):
            for row in session.scalars(select(model).where(model.store == "offsite")).all():
                session.delete(row)
            session.flush()
    found: list[entering.Entered] = []

    def reach(name: str, _detail: object = "") -> None:
        if name == "delete.planned":
            found.extend(rebuild(world, "offsite"))

    monkeypatch.setattr(crash_points, "reach", reach)
    world.backups.delete(world.ctx(), backup)
    world.work()
    assert [(one.result, one.is_copy) for one in found] == [(entering.ENTERED, True)]
    assert world.held(world.offsite) == {}
    world.is_clean()


def objects_of(world: CopyWorld, backup: str, last: str) -> list[str]:
    return sorted(key for key in world.held(world.offsite) if f"/{backup}/" in key and key.endswith(last))


@BOTH
def test_a_restore_reads_what_is_damaged_from_the_other_store(world: CopyWorld) -> None:
    """Each store has damage of its own; both are whole afterwards, as far as they were read."""
    _, made, held = chain(world, 2)
    for backup in made:
        assert world.copy(backup) == "available"
    packs, maps = objects_of(world, made[0], "/p0000"), objects_of(world, made[0], "/map")
    assert len(packs) == len(maps) == 3
    for store, key, at in (
        ("main", packs[1], 200),
        ("main", packs[2], None),
        ("main", maps[1], None),
        ("main", objects_of(world, made[1], "/manifest")[0], 170),
        ("offsite", maps[0], 30),
        ("offsite", packs[0], None),
    ):
        world.damage(store, key, at)
    assert world.restore_to_volume(made[1]) == held[1]
    assert world.restored(made[1], "main") == held[1]
    assert world.outcomes.damaged_objects.keys("main", BOX) == frozenset()
    # Of what was not read there nobody knows yet.
    found = {one.place.store: (one.damaged, one.left) for one in world.repair(made[0])}
    assert found == {"main": (0, 0), "offsite": (2, 0)}
    assert [world.restored(one) for one in made] == held
    world.is_clean()


@pytest.mark.parametrize("away", ["main", "offsite"])
def test_a_restore_needs_one_store_only(world: CopyWorld, away: str) -> None:
    _, (backup,), (data,) = chain(world, 1)
    world.copy(backup)
    world.stores.away.add(away)
    assert world.restore_to_volume(backup) == data


def test_a_restore_needs_no_store_that_refuses_to_be_read(world: CopyWorld) -> None:
    """Its credentials were revoked: that is no damage, and no outage that ends."""
    _, (backup,), (data,) = chain(world, 1)
    world.copy(backup)
    refused = PermissionDenied("access denied", store="main", container=BOX)
    fault = world.faulty.fail("any", lambda: refused, times=None)
    assert world.restore_to_volume(backup) == data
    assert fault.struck
    assert world.outcomes.damaged_objects.keys("main", BOX) == frozenset()


def test_what_is_removed_while_it_is_read_is_not_put_again(
    world: CopyWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A restore that began before the copy was removed goes on with the backup itself."""
    _, (backup,), (data,) = chain(world, 1)
    world.copy(backup)
    world.conf.enabled_stores = ["offsite", "main"]
    _, volume, _ = world.backups.restore(world.ctx(), backup)
    task = world.claim_next()
    assert task is not None

    def reach(name: str, _detail: object = "") -> None:
        if name == "restore.opened":
            world.backups.remove_copy(world.ctx(), backup, "offsite")
            assert world.work() == [("manifest.release", "done")]
            assert world.held(world.offsite) == {}

    monkeypatch.setattr(crash_points, "reach", reach)
    assert world.run_one(task) == "done"
    assert bytes(world.provider.volumes[volume]) == data
    assert world.held(world.offsite) == {}
    world.is_clean()


@BOTH
def test_what_is_damaged_in_every_store_stays_so(world: CopyWorld) -> None:
    _, (backup,), _ = chain(world, 1)
    world.copy(backup)
    packs = objects_of(world, backup, "/p0000")
    for store in ("main", "offsite"):
        world.damage(store, packs[0], 200)
    world.damage("main", packs[1], None)
    _, volume, _ = world.backups.restore(world.ctx(), backup)
    world.work()
    assert world.volume_status(volume) == "error"
    assert packs[0] in (world.row(models.Backup, backup).fail_reason or "")
    found = {one.place.store: (one.damaged, one.left) for one in world.repair(backup)}
    assert found["offsite"] == (1, 1)
    assert found["main"][1] == 1
    # The other one is whole again, and what is not is known.
    assert packs[1] in world.held(world.inner)
    for store in ("main", "offsite"):
        assert world.outcomes.damaged_objects.keys(store, BOX) == {packs[0]}


@BOTH
def test_a_repair_puts_nothing_over_good_blocks_of_other_backups(world: CopyWorld) -> None:
    """The other store's pack is whole for this backup, and not for the one before."""
    _, made, held = chain(world, 2)
    for backup in made:
        world.copy(backup)
    # The first two blocks of this pack were rewritten: the second backup does not use them.
    pack = objects_of(world, made[0], "/p0000")[0]
    world.damage("offsite", pack, 200)
    world.damage("main", pack, 9000 + 4096)
    assert world.restored(made[1]) == held[1]
    _, volume, _ = world.backups.restore(world.ctx(), made[1])
    world.work()
    # Read from the other store, and nothing was put over what is still good here.
    assert bytes(world.provider.volumes[volume]) == held[1]
    main, offsite = world.held(world.inner), world.held(world.offsite)
    assert main[pack] != offsite[pack]


def test_a_rule_makes_copies_by_itself(new_world: Callable[..., CopyWorld]) -> None:
    world = new_world(MemoryKeys())
    world.conf.placement_rules = ["gold"]
    setattr(world.conf, "placement:gold", rule("main", projects=["p1"], copies=["offsite"]))
    _, made, held = grow(world, 2)
    assert [world.copy_status(one) for one in made] == ["available"] * 2
    assert [world.restored(one) for one in made] == held
    [newer] = world.rows(models.Manifest, models.Manifest.copied, models.Manifest.backup_id == made[1])
    assert not newer.detached
    # A request sent this one to the store of the copies.
    volume = world.filled_volume(content(3))
    backup = world.back_up(volume, container="offsite:")
    assert world.copy_status(backup) == ""
    world.is_clean()


def test_a_failed_copy_is_reported_once_and_made_by_the_next_backup(
    new_world: Callable[..., CopyWorld],
) -> None:
    world = new_world()
    Outbox(world.db, send=lambda *_: None)
    world.conf.placement_rules = ["gold"]
    setattr(world.conf, "placement:gold", rule("main", projects=["p1"], copies=["offsite"]))
    volume = world.filled_volume(content(1))
    lost = None

    def reach(name: str, _detail: object = "") -> None:
        nonlocal lost
        if name == "copy.begun" and lost is None:
            lost = next(key for key in world.held(world.inner) if key.endswith("/p0000"))
            world.kept = world.held(world.inner)[lost]  # type: ignore[attr-defined]
            world.damage("main", lost, None)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(crash_points, "reach", reach)
        first = world.back_up(volume)
    assert lost is not None
    assert world.copy_status(first) == "error"

    def told() -> list[tuple[str, str, str]]:
        found = world.rows(models.Message)
        return [(one.action_id, one.detail_id, one.resource_uuid) for one in found]

    assert told() == [(Action.COPY_BACKUP.value, Detail.COPY_BACKUP.value, first)]
    # It fails again with the next backup of the volume, which nobody is told again.
    second = world.back_up(volume, incremental=True)
    assert (world.copy_status(first), world.copy_status(second)) == ("error", "available")
    assert len(told()) == 1
    inner: Any = world.inner
    inner.put(BOX, lost, Body.from_bytes(world.kept))  # type: ignore[attr-defined]
    other = world.back_up(world.filled_volume(content(2)))
    assert world.copy_status(first) == "error"
    world.back_up(volume, incremental=True)
    assert world.copy_status(first) == "available"
    assert world.restored(first) == content(1)
    assert world.copy_status(other) == "available"
    world.is_clean()
    events = [
        (one.event, one.payload["backup_id"], one.payload["copy"]["status"])
        for one in world.rows(models.OutboxEvent)
        if one.event.startswith("backup.copy") and one.payload["backup_id"] == first
    ]
    begun, failed, done = (
        ("backup.copy.start", first, "copying"),
        ("backup.copy.end", first, "error"),
        ("backup.copy.end", first, "available"),
    )
    assert events == [begun, failed, begun, failed, begun, done]


def test_what_cannot_be_copied(new_world: Callable[..., CopyWorld]) -> None:
    world = new_world()
    _, (backup,), _ = chain(world, 1)
    with pytest.raises(InvalidInput, match="no store nowhere"):
        world.backups.copy(world.ctx(), backup, "nowhere")
    with pytest.raises(InvalidInput, match="in the store main"):
        world.backups.copy(world.ctx(), backup, "main")
    with pytest.raises(errors.BackupNotFound):
        world.backups.copy(world.ctx("other"), backup, "offsite")
    with pytest.raises(InvalidBackup, match="no copy in the store offsite"):
        world.backups.remove_copy(world.ctx(), backup, "offsite")
    world.backups.copy(world.ctx(), backup, "offsite")
    with pytest.raises(InvalidBackup, match="has a copy"):
        world.backups.copy(world.ctx(), backup, "offsite")
    # Not begun yet: nothing is left to be removed.
    world.backups.remove_copy(world.ctx(), backup, "offsite")
    assert world.tasks.pending() == 0
    world.backups.delete(world.ctx(), backup)
    with pytest.raises(InvalidBackup, match="must be available"):
        world.backups.copy(world.ctx(), backup, "offsite")
    world.work()
    world.is_clean()


def test_a_store_under_another_name_gets_no_copy(world: CopyWorld) -> None:
    """Its removal would remove the backup."""
    _, (backup,), (data,) = chain(world, 1)
    place = world.inner
    world.offsite.contents = place.contents
    before = world.held(place)
    assert world.copy(backup) == "error"
    [copy] = world.backups.copies(world.ctx(), backup)
    assert "under another name" in str(copy.fail_reason)
    world.backups.remove_copy(world.ctx(), backup, "offsite")
    world.work()
    assert world.tasks.pending() == 0
    # The data key is there, too.
    assert world.held(place) == before
    assert world.restored(backup, "main") == data


def test_a_copy_that_the_database_forgot_is_made_again(world: CopyWorld) -> None:
    _, (backup,), (data,) = chain(world, 1)
    world.offsite.contents[BOX] = world.held(world.inner)
    assert world.copy(backup) == "available"
    assert world.restored(backup) == data
    world.is_clean()


def test_a_copy_is_cancelled_with_its_backup(new_world: Callable[..., CopyWorld]) -> None:
    world = new_world()
    _, (backup,), _ = chain(world, 1)
    world.trap = "copy.objects-put"
    world.backups.copy(world.ctx(), backup, "offsite")
    task = world.claim_next()
    assert task is not None
    assert world.run_one(task) == "killed"
    world.backups.force_delete(world.ctx(), backup)
    world.work()
    assert world.status(backup) is None
    assert world.held(world.offsite) == {}
    world.is_clean()
    assert purge.run(world.db, world.row(models.Backup, backup).deleted_at.replace(year=2100))["backups"] == 1


def test_the_worker_has_both_stores(new_world: Callable[..., CopyWorld]) -> None:
    world = new_world()
    _, (backup,), _ = chain(world, 1)
    world.backups.copy(world.ctx(), backup, "offsite")
    [task] = world.rows(models.Task)
    assert (task.kind, task.store, task.from_store, task.backend) == ("backup.copy", "offsite", "main", None)


def test_data_keys_stay_as_long_as_a_copy_needs_them(new_world: Callable[..., CopyWorld]) -> None:
    """The record of a data key belongs to the container that still needs it."""
    world = new_world(MemoryKeys())
    _, (backup,), (data,) = chain(world, 1)
    world.copy(backup)
    [row] = world.rows(models.DataKey)
    data_key = world.data_keys._catalogue.data_key(row.id)
    assert data_key is not None
    assert world.data_keys._catalogue.containers_of(data_key) == [("main", BOX), ("offsite", BOX)]
    manifest_id = world.row(models.Backup, backup).manifest_id
    dropped = world.data_keys._catalogue.drop_data_keys(manifest_id)
    assert [one.id for one in dropped or ()] == [row.id]
    [moved] = world.rows(models.DataKey)
    assert (moved.store, moved.container) == ("offsite", BOX)
    assert world.restored(backup) == data

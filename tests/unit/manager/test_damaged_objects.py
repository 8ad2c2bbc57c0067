"""Marks of damaged objects, on each database."""

from __future__ import annotations

import base64
import json
import uuid
from dataclasses import replace
from datetime import datetime, timedelta

import pytest
from sqlalchemy import update
from sqlalchemy.orm import Session

from backupfw.cmd import catalogue, meters
from backupfw.db import locks, models
from backupfw.db.digest import object_digest
from backupfw.db.locks import lock
from backupfw.db.session import Database
from backupfw.manager.outcomes import damaged_objects
from backupfw.manager.outcomes.damaged_objects import DAMAGED, FULL, OK, QUICK
from backupfw.manager.queue import tasks
from tests.unit.manager.support import World
from tests.unit.manager.test_waited_locks import server_db, when_committed_first

__all__ = ["server_db"]

LATE = datetime(2100, 1, 1)


@pytest.fixture
def world(any_db: Database) -> World:
    return World(database=any_db)


class Pair:
    """The manifests of two backups of one volume."""

    def __init__(self, world: World) -> None:
        self.outcomes = world.outcomes
        self.volume = world.volume()
        made = [world.backup(self.volume), world.backup(self.volume)]
        self.first, self.second = [world.row(models.Backup, one.id).manifest_id for one in made]
        row = world.row(models.Manifest, self.first)
        self.place = (row.store, row.container)

    def found(self, key: str, manifest_id: str) -> None:
        assert self.outcomes.damaged_objects.record(*self.place, key, "wrong", manifest_id)

    def of(self, manifest_id: str) -> set[str]:
        return {one.key for one in self.outcomes.damaged_objects.of(manifest_id)}

    def whole(self, manifest_id: str, *named: str, begun: datetime | None = None) -> None:
        if begun is None:
            with self.outcomes._db.read() as session:
                begun = self.outcomes._db.now(session)
        self.outcomes.damaged_objects.record_verification(manifest_id, begun, FULL, OK, named)


def test_an_object_leaves_the_list_with_its_last_mark(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (damaged_objects, locks):
        monkeypatch.setattr(module, "_BATCH", 10)
    pair = Pair(world)
    outcomes, first, second = pair.outcomes, pair.first, pair.second
    keys = [f"key/{number}" for number in range(25)]
    for key in keys:
        pair.found(key, first)
    (sharer,) = outcomes.damaged_objects.sharers(first)
    assert (sharer.manifest_id, sharer.marked) == (second, frozenset())
    outcomes.damaged_objects.mark(*pair.place, second, [*keys, "not listed"])
    # Again: nothing is lost or doubled.
    outcomes.damaged_objects.mark(*pair.place, second, keys[:3])
    assert outcomes.damaged_objects.sharers(first)[0].marked == set(keys)
    assert pair.of(second) == set(keys)
    outcomes.damaged_objects.record_verification(second, LATE, QUICK, OK, keys)
    outcomes.damaged_objects.record_verification(second, LATE, FULL, DAMAGED, keys)
    assert pair.of(second) == set(keys)
    pair.whole(second, *keys)
    assert pair.of(second) == set()
    # What the other one is marked for is kept.
    assert outcomes.damaged_objects.keys(*pair.place) == pair.of(first) == set(keys)
    pair.whole(first, *keys)
    assert outcomes.damaged_objects.keys(*pair.place) == frozenset()


def test_what_was_found_while_a_backup_was_read_is_kept(world: World) -> None:
    """It may have been damaged after it was read."""
    pair = Pair(world)
    pair.found("old", pair.first)
    with world.db.read() as session:
        begun = world.db.now(session)
    pair.found("new", pair.first)
    pair.whole(pair.first, "old", "new", begun=begun)
    assert pair.of(pair.first) == {"new"}
    assert pair.outcomes.damaged_objects.keys(*pair.place) == {"new"}


def test_an_object_without_a_mark_leaves_the_list_when_it_is_found_whole(world: World) -> None:
    """So are those that were found before there were marks."""
    pair = Pair(world)
    for key in ("mine", "another's"):
        pair.found(key, pair.second)
    with world.db.write() as session:
        damaged_objects.forget_marks(session, pair.second)
    pair.whole(pair.first, "mine")
    assert pair.outcomes.damaged_objects.keys(*pair.place) == {"another's"}


def test_a_backup_that_is_gone_has_no_mark(world: World) -> None:
    outcomes = world.outcomes
    volume = world.volume()
    made = world.backup(volume)
    manifest = world.row(models.Backup, made.id).manifest_id
    assert outcomes.damaged_objects.record("main", "c", "key", "wrong", manifest)
    world.backups.delete(world.ctx(), made.id)
    task = world.claim(tasks.BACKUP_DELETE)
    plan = outcomes.deleting.start(task)
    assert plan is not None
    # Its objects are being deleted, and are no damage.
    assert not outcomes.damaged_objects.record("main", "c", "other", "gone", manifest)
    outcomes.damaged_objects.mark("main", "c", manifest, ["key"])
    outcomes.deleting.finish(task, plan)
    assert world.rows(models.DamageMark) == []
    assert outcomes.damaged_objects.keys("main", "c") == {"key"}


def test_marks_go_with_the_row_of_their_object_or_manifest(world: World) -> None:
    pair = Pair(world)
    for key in ("one", "two"):
        pair.found(key, pair.first)
    with world.db.write() as session:
        session.delete(session.get_one(models.DamagedObject, object_digest(*pair.place, "one")))
    assert pair.of(pair.first) == {"two"}
    with world.db.write() as session:
        session.execute(update(models.Backup).values(manifest_id=None))
        session.delete(session.get_one(models.Manifest, pair.first))
    assert world.rows(models.DamageMark) == []


@pytest.mark.parametrize("base_lost", [False, True])
def test_an_increment_that_is_being_made_is_marked_for_what_its_base_names(
    world: World, base_lost: bool
) -> None:
    pair = Pair(world)
    other = world.backups.create(world.ctx(), volume_id=pair.volume, incremental=True)
    task = world.claim(tasks.BACKUP_CREATE)
    plan = world.outcomes.creating.start(task)
    manifest = plan.manifest_id
    assert plan.backup.id == other.id
    pair.found("key", pair.first)
    sharers = {one.manifest_id: one.key for one in pair.outcomes.damaged_objects.sharers(pair.first)}
    assert sharers == dict.fromkeys((pair.second, manifest), world.row(models.Manifest, pair.second).key)
    pair.outcomes.damaged_objects.mark(*pair.place, manifest, ["key"])
    world.outcomes.creating.bind_source(task, "source", "full backup")
    world.outcomes.creating.finish(task, replace(world.result(plan), base_lost=base_lost))
    # One that shares nothing with its base after all is whole.
    assert pair.of(manifest) == (set() if base_lost else {"key"})


def test_a_full_backup_that_is_being_made_shares_nothing(world: World) -> None:
    pair = Pair(world)
    world.backups.create(world.ctx(), volume_id=pair.volume)
    world.outcomes.creating.start(world.claim(tasks.BACKUP_CREATE))
    assert [one.manifest_id for one in pair.outcomes.damaged_objects.sharers(pair.first)] == [pair.second]


def test_an_imported_backup_is_marked_for_damage_that_is_known(world: World) -> None:
    pair = Pair(world)
    pair.found("key", pair.second)
    facts = world.facts(world.row(models.Manifest, pair.first), damaged=frozenset({"key", "not listed"}))
    exported = world.row(models.Manifest, pair.first).backup_id
    service, url = world.backups.export_record(world.ctx(), exported)
    record = world.backups.import_record(
        world.ctx(admin=True), backup_service=service, backup_url=_renamed(url)
    )
    world.outcomes.importing.finish(world.claim(tasks.BACKUP_IMPORT), facts)
    assert world.status(record.id) == "available"
    assert pair.of(pair.first) == {"key"}


def _renamed(url: str) -> str:
    record = {**json.loads(base64.b64decode(url)), "id": str(uuid.uuid4())}
    return base64.b64encode(json.dumps(record).encode()).decode()


def test_what_was_verified_is_read_back_on_each_database(world: World) -> None:
    pair = Pair(world)
    first, second = (world.row(models.Manifest, one).backup_id for one in (pair.first, pair.second))
    with world.db.read() as session:
        begun = world.db.now(session)
    assert catalogue.to_verify(world.db)[1] == [first, second]
    pair.found("key", pair.first)
    at = pair.outcomes.damaged_objects.record_verification(pair.first, begun, FULL, DAMAGED)
    assert catalogue.to_verify(world.db)[1] == [second, first]
    for older_than in (begun, at - timedelta(microseconds=1), timedelta(days=1)):
        assert catalogue.to_verify(world.db, older_than=older_than)[1] == [second]
    assert catalogue.to_verify(world.db, older_than=at)[1] == [second, first]
    assert catalogue.was_verified(world.db, first, at, quick=False)
    assert not catalogue.was_verified(world.db, second, begun, quick=False)
    (one,) = catalogue.backups(world.db, damaged=True)
    assert (one.id, one.verified_at, one.verified_result, one.damaged_objects) == (first, at, "damaged", 1)
    assert [one.id for one in catalogue.backups(world.db)] == [first, second]
    lines = meters.Meters(world.db).text().decode().splitlines()
    assert {"backupfw_unverified_backups 1.0", "backupfw_damaged_backups 1.0"} <= set(lines)
    assert any(line.startswith("backupfw_oldest_verification_age_seconds") for line in lines)


@pytest.mark.server
def test_an_object_stays_that_gets_a_mark_while_its_last_one_goes(server_db: Database) -> None:
    world = World(database=server_db)
    pair = Pair(world)
    pair.found("key", pair.first)
    digest = object_digest(*pair.place, "key")

    def marked(session: Session) -> None:
        assert lock(session, models.Manifest, models.Manifest.id == pair.second)
        damaged_objects.mark(session, pair.second, [digest])

    when_committed_first(server_db, lambda: pair.whole(pair.first, "key"), marked)
    assert pair.of(pair.first) == set()
    assert pair.of(pair.second) == {"key"}


@pytest.mark.server
def test_damage_that_is_found_again_while_its_mark_goes_stays(server_db: Database) -> None:
    world = World(database=server_db)
    pair = Pair(world)
    pair.found("key", pair.first)
    with server_db.read() as session:
        begun = server_db.now(session)

    def again(session: Session) -> None:
        row = models.DamagedObject
        found = {"found_at": server_db.now(session), "reason": "again"}
        session.execute(update(row).values(**found))

    when_committed_first(server_db, lambda: pair.whole(pair.first, "key", begun=begun), again)
    assert pair.of(pair.first) == {"key"}


@pytest.mark.server
def test_nothing_is_marked_that_is_released_meanwhile(server_db: Database) -> None:
    world = World(database=server_db)
    pair = Pair(world)
    row = models.Manifest
    pair.found("key", pair.first)

    def released(session: Session) -> None:
        session.execute(update(row).where(row.id == pair.second).values(state="released"))

    results: list[bool] = []

    def record() -> None:
        results.append(pair.outcomes.damaged_objects.record(*pair.place, "other", "missing", pair.second))

    when_committed_first(server_db, record, released)
    assert results == [False]
    assert pair.outcomes.damaged_objects.keys(*pair.place) == {"key"}

"""Backups of Cinder's format in the service: imported, restored, deleted, and never shared with."""

from __future__ import annotations

import base64
import hashlib
import json
import random
import uuid
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select, update

from backupfw.chunkstore.container import Container
from backupfw.chunkstore.memory import MemoryStore
from backupfw.db import models
from backupfw.db.session import now
from backupfw.engine.cinder_format import names
from backupfw.engine.cinder_format.chain import Chain, Place
from backupfw.errors import InvalidBackup, InvalidInput
from backupfw.manager.messages import Detail
from backupfw.manager.operators import audit, links, purge
from backupfw.manager.records import decode, of_manifest
from backupfw.worker import links as worker_links
from tests.format.cinder_samples import SAMPLES, Sample, Writer, sample
from tests.unit.engine.fakes import FakeControl
from tests.unit.manager.support import WIRE, World, check_consistent
from tests.unit.worker.world import WorkerWorld

DATA = random.Random(1).randbytes(10 * (32 << 10))
OWNER = "22220000222200002222000022220000"


@pytest.fixture
def world(tmp_path: Path) -> Iterator[WorkerWorld]:
    found = WorkerWorld(tmp_path)
    yield found
    check_consistent(found)
    assert audit.run(found.db, 60.0) == []
    found.close()


def fill(world: WorkerWorld, contents: dict[str, dict[str, bytes]]) -> dict[str, dict[str, bytes]]:
    """Put objects into the store; returns the containers, live."""
    store = world.faulty.inner
    assert isinstance(store, MemoryStore)
    for name, objects in contents.items():
        store.contents.setdefault(name, {}).update(objects)
    return store.contents


def begin(world: WorkerWorld, record: str, project: str = OWNER, **who: Any) -> str:
    ctx = world.ctx(project, **who)
    return world.backups.import_record(ctx, backup_service=WIRE, backup_url=record).id


def imported(world: WorkerWorld, record: str, project: str = OWNER, **who: Any) -> models.Backup:
    return world.wait_backup(begin(world, record, project, **who), "available")


def refused(world: WorkerWorld, record: str, project: str = OWNER, **who: Any) -> str:
    return str(world.wait_backup(begin(world, record, project, **who), "error").fail_reason)


def restored(world: WorkerWorld, backup_id: str, project: str = OWNER, used: bytes | None = None) -> bytes:
    """Restore a backup to a new volume, or to one that has these bytes."""
    ctx = world.ctx(project)
    target = None
    if used is not None:
        target = world.volume(project, length=len(used))
        world.provider.volumes[target] = bytearray(used)
    _, volume, _ = world.backups.restore(ctx, backup_id, volume_id=target)
    world.wait(lambda: world.row(models.Volume, volume).status == "available", "the restore")
    return bytes(world.provider.volumes[volume])


def delete(world: WorkerWorld, backup_id: str, project: str = OWNER) -> None:
    world.backups.delete(world.ctx(project), backup_id)
    world.wait_backup(backup_id, None)


def records(found: Sample) -> list[str]:
    return [one["export"]["backup_url"] for one in found.backups]


@pytest.mark.parametrize(
    "name", [SAMPLES[1], *(pytest.param(name, marks=pytest.mark.check) for name in SAMPLES[::2])]
)
def test_a_chain_of_cinders_is_imported_restored_and_deleted(world: WorkerWorld, name: str) -> None:
    found = sample(name)
    live = fill(world, found.copy())
    with world.worker():
        full, middle, newest = (imported(world, record) for record in records(found))
        for row, expected in zip((full, middle, newest), found.backups, strict=True):
            told = expected["record_decoded"]
            assert row.id == expected["backup_id"]
            assert row.parent_id == expected["parent_id"]
            assert row.is_incremental == (expected["parent_id"] is not None)
            for column in ("container", "service_metadata", "object_count", "display_name", "volume_id"):
                assert getattr(row, column) == told[column], column
            assert row.length == expected["bytes"]
            for used in (None, b"\xaa" * expected["bytes"]):
                data = restored(world, row.id, used=used)
                assert hashlib.sha256(data[: expected["bytes"]]).hexdigest() == expected["sha256_of_volume"]
        # An export says what Cinder's did.
        _, url = world.backups.export_record(world.ctx(OWNER), newest.id)
        again, before = decode(url), decode(records(found)[2])
        for field in ("container", "service_metadata", "parent_id", "size", "volume_id", "data_timestamp"):
            assert getattr(again, field) == getattr(before, field), field
        for row in (full, middle):
            for remove in (world.backups.delete, world.backups.force_delete):
                with pytest.raises(InvalidBackup, match="Incremental backups exist"):
                    remove(world.ctx(OWNER), row.id)
        kept = {key for objects in live.values() for key in objects}
        for number in (2, 1, 0):
            _, prefix = found.places(number)[0]
            delete(world, found.backups[number]["backup_id"])
            kept = {key for key in kept if not names.belongs(prefix, key)}
            assert {key for objects in live.values() for key in objects} == kept
        assert kept == set()
        # Its data was deleted: as with ours, it does not come back.
        assert "deleted" in refused(world, records(found)[0])


@pytest.mark.parametrize("name", SAMPLES[1:])
def test_parents_are_found_without_their_records(world: WorkerWorld, name: str) -> None:
    found = sample(name)
    live = fill(world, found.copy())
    with world.worker():
        newest = imported(world, records(found)[2])
        expected = found.backups[2]
        data = restored(world, newest.id)[: expected["bytes"]]
        assert hashlib.sha256(data).hexdigest() == expected["sha256_of_volume"]
        assert audit.run(world.db, 60.0) == []
        # What is imported later becomes what it needs.
        middle = imported(world, records(found)[1])
        with pytest.raises(InvalidBackup, match="Incremental backups exist"):
            world.backups.delete(world.ctx(OWNER), middle.id)
        delete(world, newest.id)
        before = {key for objects in live.values() for key in objects}
        delete(world, middle.id)
        gone = before - {key for objects in live.values() for key in objects}
        _, prefix = found.places(1)[0]
        assert gone == {key for key in before if names.belongs(prefix, key)}
    # The full one was never imported: nothing of it is known any more, and all of it is there.
    with world.db.read() as session:
        states = session.scalars(select(models.Manifest.state)).all()
    assert sorted(states) == ["gone", "gone"]


def _chain(world: WorkerWorld, *states: bytes) -> tuple[Writer, list[str]]:
    writer = Writer()
    made: list[str] = []
    for state in states:
        made.append(writer.write(state, made[-1] if made else None))
    fill(world, {"box": writer.objects})
    return writer, made


def test_an_incremental_after_a_backup_of_cinders_is_a_full_one_and_then_shares_with_ours(
    world: WorkerWorld,
) -> None:
    volume = world.filled_volume(DATA)
    writer = Writer(volume=volume)
    full = writer.write(DATA)
    fill(world, {"box": writer.objects})
    with world.worker():
        theirs = imported(world, writer.record(full), "p1")
        ours = world.backups.create(world.ctx(), volume_id=volume, incremental=True)
        row = world.wait_backup(ours.id, "available")
        assert (row.parent_id, row.is_incremental) == (None, False)
        assert restored(world, ours.id, "p1") == DATA
        # Newer than ours is another of theirs.
        newer = writer.write(b"x" * (32 << 10) + DATA[32 << 10 :], full)
        fill(world, {"box": writer.objects})
        stamp = (datetime.now() + timedelta(seconds=-1)).strftime("%Y-%m-%dT%H:%M:%SZ")
        imported(world, writer.record(newer, data_timestamp=stamp), "p1")
        again = world.backups.create(world.ctx(), volume_id=volume, incremental=True)
        row = world.wait_backup(again.id, "available")
        assert (row.parent_id, row.is_incremental) == (ours.id, True)
        before = dict(fill(world, {})["box"])
        for one in (again.id, ours.id):
            delete(world, one, "p1")
        assert fill(world, {})["box"] == before
        assert restored(world, theirs.id, "p1") == DATA


@pytest.mark.parametrize("name", ["posix", "beside"])
def test_a_child_that_is_not_entered_keeps_its_parent(world: WorkerWorld, name: str) -> None:
    """Also where each backup has a place of its own, which the driver for files gives them."""
    if name == "posix":
        found = sample("posix-zlib")
        fill(world, found.copy())
        owner, record, child = OWNER, records(found)[0], records(found)[1]
    else:
        writer, (full, newer) = _chain(world, DATA, DATA[::-1])
        owner, record, child = "p1", writer.record(full), writer.record(newer)
    before = {key for objects in fill(world, {}).values() for key in objects}
    with world.worker():
        parent = imported(world, record, owner)
        for remove in (world.backups.delete, world.backups.force_delete):
            remove(world.ctx(owner), parent.id)
            row = world.wait_backup(parent.id, "available")
            assert decode(child).id in str(row.fail_reason)
            assert "not known here" in str(row.fail_reason)
        assert {key for objects in fill(world, {}).values() for key in objects} == before
        with world.db.read() as session:
            told = session.scalars(select(models.Message.detail_id)).all()
        assert told == [Detail.NEEDED.value] * 2
        # Once it is known, the classic rule holds.
        entered = imported(world, child, owner)
        with pytest.raises(InvalidBackup, match="Incremental backups exist"):
            world.backups.delete(world.ctx(owner), parent.id)
        if name == "posix":
            # Which in its turn has one that is not entered.
            world.backups.delete(world.ctx(owner), entered.id)
            assert world.wait_backup(entered.id, "available").fail_reason
            return
        delete(world, entered.id, owner)
        delete(world, parent.id, owner)
    assert {key for objects in fill(world, {}).values() for key in objects} == set()


def test_the_search_for_children_is_bounded(world: WorkerWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    writer, (full, _) = _chain(world, DATA, DATA[::-1])
    monkeypatch.setattr(worker_links, "MOST_LISTED", 2)
    with world.worker():
        parent = imported(world, writer.record(full), "p1")
        delete(world, parent.id, "p1")


def test_a_duplicate_keeps_the_data(world: WorkerWorld) -> None:
    writer, (full, newer) = _chain(world, DATA, DATA[::-1])
    with world.worker():
        first = imported(world, writer.record(full), "p1")
        second = imported(world, writer.record(full, id=str(uuid.uuid4())), "p1")
        child = imported(world, writer.record(newer), "p1")
        # The data stays for the other one.
        delete(world, first.id, "p1")
        with pytest.raises(InvalidBackup, match="Incremental backups exist"):
            world.backups.delete(world.ctx(), second.id)
        assert restored(world, child.id, "p1") == DATA[::-1]
        assert restored(world, second.id, "p1") == DATA


def test_whose_backup_it_is(world: WorkerWorld) -> None:
    writer, (full,) = _chain(world, DATA)
    with world.worker():
        reason = refused(world, writer.record(full, id=str(uuid.uuid4())), "p2")
        assert reason == "The backup's data belongs to another project."
        imported(world, writer.record(full), "p2", admin=True)
        writer.edit(full, lambda found: found.update(volume_meta=None))
        fill(world, {"box": writer.objects})
        # Nobody knows whose it is: only an administrator may have it.
        assert "another project" in refused(world, writer.record(full, id=str(uuid.uuid4())), "p1")


def test_what_cannot_be_imported(world: WorkerWorld) -> None:
    writer, (full, newer) = _chain(world, DATA, DATA[::-1])
    live = fill(world, {})
    with world.worker():
        removed = live["box"].pop(f"{newer}-00001")
        assert "missing or damaged" in refused(world, writer.record(newer), "p1")
        live["box"][f"{newer}-00001"] = removed
        parent = live["box"].pop(f"{full}_metadata")
        record = writer.record(newer, id=str(uuid.uuid4()))
        assert "needs its parent" in refused(world, record, "p1")
        live["box"][f"{full}_metadata"] = parent
        record = writer.record(newer, id=str(uuid.uuid4()), container="../box")
        assert "no data that a store could have" in refused(world, record, "p1")
        record = writer.record(newer, id=str(uuid.uuid4()), service_metadata="volume_x")
        assert "No enabled store has the data" in refused(world, record, "p1")
        live["box"][f"{newer}_metadata"] = b"{}"
        assert "missing or damaged" in refused(world, writer.record(newer, id=str(uuid.uuid4())), "p1")


def test_a_failed_import_does_not_count_as_known(world: WorkerWorld) -> None:
    """A scan would say that the backup is known, and nobody would look for it."""
    writer, (full,) = _chain(world, DATA)
    live = fill(world, {})
    removed = live["box"].pop(f"{full}-00001")
    with world.worker():
        backup = begin(world, writer.record(full), "p1")
        world.wait_backup(backup, "error")
        live["box"][f"{full}-00001"] = removed
        chain = Chain.of([Place(Container(world.store, "box"), full)], FakeControl())
        facts = worker_links.facts(chain, WIRE, "p1", FakeControl())
        chain.close()
        record = of_manifest(backup, 1, {})
        with pytest.raises(InvalidInput, match="is in error"):
            links.enter(world.db, record, facts)
        delete(world, backup, "p1")
        assert links.enter(world.db, record, facts)
        assert not links.enter(world.db, record, facts)
        assert restored(world, backup, "p1") == DATA


def test_damage_is_remembered(world: WorkerWorld) -> None:
    writer, (full, newer) = _chain(world, DATA, b"x" * (32 << 10) + DATA[32 << 10 :])
    live = fill(world, {})
    with world.worker():
        imported(world, writer.record(full), "p1")
        row = imported(world, writer.record(newer), "p1")
        live["box"][f"{full}-00002"] = b"?"
        _, volume, _ = world.backups.restore(world.ctx(), row.id)
        world.wait(lambda: world.row(models.Volume, volume).status == "error", "the restore to fail")
        world.wait_idle()
    found = world.outcomes.damaged_objects.of(str(world.row(models.Backup, row.id).manifest_id))
    assert [one.key for one in found] == [f"{full}-00002"]
    assert purge.run(world.db, datetime.now() + timedelta(days=1))["damaged objects"] == 0


def test_links_are_scrubbed_one_by_one(world: WorkerWorld) -> None:
    """Each as a restore reads it; what is damaged is told to the owners of those that need it."""
    found = sample(SAMPLES[1])
    live = fill(world, found.copy())
    world.conf["store:main"].scrub_days = 30
    with world.worker():
        backups = [imported(world, record) for record in records(found)]

    def scrub() -> None:
        with world.db.write() as session:
            old = now(session) - timedelta(days=40)
            values = {"created_at": old, "fully_verified_at": None, "scrub_after": None}
            session.execute(update(models.Manifest).values(values))
        tools = world.tools
        looks = replace(tools, queue_scrubs=lambda: world.outcomes.scrubbing.queue_due(["main"]))
        world.tools = looks
        with world.worker(scrub_seconds=0.01):
            manifests = models.Manifest
            world.wait(
                lambda: None not in [one.fully_verified_at for one in world.rows(manifests)], "the scrubs"
            )
            world.wait_idle()
        world.tools = tools

    scrub()
    rows = [world.row(models.Backup, one.id) for one in backups]
    assert [(one.verified_how, one.verified_result) for one in rows] == [("full", "ok")] * 3
    # The newest data object is one that only the newest backup has.
    container, prefix = found.places(2)[0]
    key = next(
        key for key in sorted(live[container]) if names.split(key) is not None and key.startswith(prefix)
    )
    good = live[container].pop(key)
    scrub()
    rows = [world.row(models.Backup, one.id) for one in backups]
    assert [one.verified_result for one in rows] == ["ok", "ok", "damaged"]
    assert [one.resource_uuid for one in world.rows(models.Message)] == [backups[2].id]
    live[container][key] = good
    scrub()
    assert world.row(models.Backup, backups[2].id).verified_result == "ok"
    assert world.rows(models.DamagedObject) == []


def test_a_purge_forgets_what_was_deleted(world: WorkerWorld) -> None:
    writer, (full, newer) = _chain(world, DATA, DATA[::-1])
    with world.worker():
        rows = [imported(world, writer.record(prefix), "p1") for prefix in (full, newer)]
        for row in reversed(rows):
            delete(world, row.id, "p1")
    purge.run(world.db, datetime.now() + timedelta(days=1))
    with world.db.read() as session:
        # One of each container stays.
        assert session.scalar(select(func.count()).select_from(models.Manifest)) == 1


def test_a_record_of_ours_still_needs_a_manifest_of_ours(world: World) -> None:
    assert isinstance(world, WorkerWorld)
    with world.worker():
        made = world.backups.create(world.ctx(), volume_id=world.filled_volume(DATA))
        world.wait_backup(made.id, "available")
        _, url = world.backups.export_record(world.ctx(), made.id)
        record = {**json.loads(base64.b64decode(url)), "id": str(uuid.uuid4())}
        record["service_metadata"] = record["service_metadata"].replace("/manifest", "/00000000/map")
        text = base64.b64encode(json.dumps(record).encode()).decode()
        assert "No enabled store has the data" in refused(world, text, "p1")


def test_a_parent_whose_child_is_imported_meanwhile_stays_until_the_child_goes(world: WorkerWorld) -> None:
    world.conf.backup.delete_retry_seconds = 0.1
    writer, (full, newer) = _chain(world, DATA, DATA[::-1])
    with world.worker():
        parent = imported(world, writer.record(full), "p1")
    child = begin(world, writer.record(newer), "p1")
    # No child is known yet.
    world.backups.delete(world.ctx(), parent.id)
    with world.worker(slots=1):
        world.wait_backup(child, "available")
        world.wait_backup(parent.id, "error_deleting")
        assert restored(world, child, "p1") == DATA[::-1]
        assert f"{full}_metadata" in fill(world, {})["box"]
        delete(world, child, "p1")
        world.wait_backup(parent.id, None)
    assert fill(world, {})["box"] == {}


def test_a_child_whose_parent_is_deleted_meanwhile_is_refused(
    world: WorkerWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The store has too much to find the child.
    monkeypatch.setattr(worker_links, "MOST_LISTED", 0)
    writer, (full, newer) = _chain(world, DATA, DATA[::-1])
    with world.worker():
        parent = imported(world, writer.record(full), "p1")
    world.backups.delete(world.ctx(), parent.id)
    child = begin(world, writer.record(newer), "p1")
    with world.worker(slots=1):
        world.wait_backup(parent.id, None)
        reason = world.wait_backup(child, "error").fail_reason
    assert "needs its parent" in str(reason)

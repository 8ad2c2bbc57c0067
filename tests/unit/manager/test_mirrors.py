"""Volumes of a foreign catalogue: the rules for our own volumes hold for them, by what the catalogue says."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from datetime import datetime
from typing import Any, ClassVar

import pytest

from backupfw.db import models
from backupfw.db.session import Database
from backupfw.errors import (
    InvalidBackup,
    InvalidInput,
    InvalidSnapshot,
    InvalidVolume,
    QuotaExceeded,
    ServiceUnavailable,
    SnapshotNotFound,
    VolumeNotFound,
)
from backupfw.manager.operators import audit, purge
from backupfw.manager.outcomes.expiry import Expiry
from backupfw.manager.outcomes.restoring import RestoredVolume
from backupfw.manager.rules import quota
from backupfw.manager.usecases.backups import BackupManager
from backupfw.manager.usecases.mirrors import Mirrors
from backupfw.manager.usecases.snapshots import SnapshotManager
from backupfw.manager.usecases.volumes import VolumeManager
from backupfw.volume.catalogue import Caller, Catalogue, ForeignSnapshot, ForeignVolume
from backupfw.worker.handlers.base import volume_ref
from tests.unit.manager.support import World


class Foreign(Catalogue):
    """A catalogue in memory; a caller sees the volumes of his project."""

    lists: ClassVar[bool] = True

    def __init__(self, world: World) -> None:
        self._world = world
        self.there: dict[str, ForeignVolume] = {}
        self.snapshots: dict[str, ForeignSnapshot] = {}
        self.asked: list[str] = []
        self.away = False
        self.room = True
        #: The volume of each request; and whether the answers to requests for one are lost.
        self.requests: dict[str, str] = {}
        self.forgetful = False

    def add(self, project: str = "p1", status: str = "available", **fields: Any) -> str:
        made = ForeignVolume(str(uuid.uuid4()), project, status, fields.pop("size", 1), **fields)
        self.there[made.id] = made
        return made.id

    def add_snapshot(self, volume_id: str, status: str = "available") -> str:
        of = self.there[volume_id]
        made = ForeignSnapshot(
            str(uuid.uuid4()), volume_id, of.project_id, status, of.size, datetime(2026, 1, 1, 12)
        )
        self.snapshots[made.id] = made
        return made.id

    def _ask(self, what: str) -> None:
        self.asked.append(what)
        if self.away:
            raise ServiceUnavailable("away")
        # Another connection can write, so no transaction of ours is open.
        self._world.db.run(lambda session: quota.lock_project(session, "other"))

    def volume(self, caller: Caller, volume_id: str) -> ForeignVolume:
        self._ask(volume_id)
        found = self.there.get(volume_id)
        if found is None or found.project_id != caller.project_id:
            raise VolumeNotFound(volume_id)
        return found

    def volumes(self, project_id: str) -> Iterable[ForeignVolume]:
        self._ask("list")
        return [one for one in self.there.values() if one.project_id == project_id]

    def snapshot(self, caller: Caller, snapshot_id: str) -> ForeignSnapshot:
        self._ask(snapshot_id)
        found = self.snapshots.get(snapshot_id)
        if found is None or found.project_id != caller.project_id:
            raise SnapshotNotFound(snapshot_id)
        return found

    def create_volume(
        self,
        caller: Caller,
        *,
        size: int,
        name: str,
        volume_type: str | None,
        availability_zone: str | None,
        metadata: Mapping[str, str],
        request: str,
        copy_of: str | None = None,
    ) -> ForeignVolume:
        self._ask("create")
        if (found := self.there.get(self.requests.get(request, ""))) is not None:
            return found
        if not self.room:
            raise QuotaExceeded("volumes", "no room")
        if copy_of is not None:
            if copy_of not in self.there:
                raise InvalidVolume("no copy")
            key = self.there[copy_of].encryption_key_id and f"copy-of-{copy_of}"[:36]
            made = self.add(caller.project_id, "creating", encryption_key_id=key)
        else:
            made = self.add(
                caller.project_id,
                "creating",
                size=size,
                name=name,
                volume_type=volume_type,
                availability_zone=availability_zone,
                metadata=metadata,
            )
        self.requests[request] = made
        if self.forgetful:
            raise ServiceUnavailable("the answer is lost")
        return self.there[made]

    def spoil_volume(self, volume_id: str, owner: str) -> None:
        self._ask("spoil")
        assert self.there[volume_id].project_id == owner
        self.change(volume_id, status="error")

    def delete_volume(self, caller: Caller, volume_id: str) -> None:
        self._ask("delete")
        self.there.pop(volume_id, None)

    def change(self, volume_id: str, **fields: Any) -> None:
        self.there[volume_id] = replace(self.there[volume_id], **fields)


@pytest.fixture
def world() -> World:
    made = World()
    made.conf.volumes.enabled = ["local", "cinder"]
    return made


@pytest.fixture
def foreign(world: World) -> Foreign:
    return with_catalogue(world)


def with_catalogue(world: World) -> Foreign:
    made = Foreign(world)
    world.backups = BackupManager(
        world.db, world.conf, world._wake, mirrors=Mirrors(world.db, world.conf, {"cinder": made})
    )
    return made


def mirror(world: World, volume_id: str) -> models.Volume:
    row = world.row(models.Volume, volume_id)
    assert isinstance(row, models.Volume)
    return row


def test_a_backup_begins_by_what_the_catalogue_says(world: World, foreign: Foreign) -> None:
    volume = foreign.add(
        size=3, name="db", volume_type="gold", bootable=True, image_metadata={"os": "x"}, metadata={"a": "b"}
    )
    backup = world.backups.create(world.ctx(), volume_id=volume)
    assert (backup.volume_id, backup.size, backup.length) == (volume, 3, 3 << 30)
    row = mirror(world, volume)
    assert (row.status, row.backend, row.location, row.adopted) == ("backing-up", "cinder", volume, True)
    assert row.host is None
    task = world.claim()
    plan = world.outcomes.creating.start(task)
    assert dict(plan.volume.metadata) == {"a": "b"}
    assert plan.volume.bootable
    world.outcomes.creating.bind_source(task, "source", "full")
    world.outcomes.creating.finish(task, world.result(plan))
    assert world.volume_status(volume) == "available"
    assert world.row(models.Backup, backup.id).volume_record == {
        "volume_type": "gold",
        "bootable": True,
        "image_metadata": {"os": "x"},
    }


def test_the_status_of_the_moment_counts(world: World, foreign: Foreign) -> None:
    volume = foreign.add()
    world.backups.create(world.ctx(), volume_id=volume)
    with pytest.raises(InvalidVolume, match="backing-up"):
        world.backups.create(world.ctx(), volume_id=volume)
    world.run_create()
    foreign.change(volume, status="in-use")
    with pytest.raises(InvalidVolume, match="force"):
        world.backups.create(world.ctx(), volume_id=volume)
    world.backups.create(world.ctx(), volume_id=volume, force=True)
    world.run_create()
    foreign.change(volume, status="error", size=5)
    with pytest.raises(InvalidVolume, match='"error"'):
        world.backups.create(world.ctx(), volume_id=volume, force=True)
    assert mirror(world, volume).size == 5


def test_it_is_asked_as_the_caller(world: World, foreign: Foreign) -> None:
    volume = foreign.add("p2")
    world.backups.create(world.ctx("p2"), volume_id=volume)
    with pytest.raises(VolumeNotFound):
        world.backups.create(world.ctx("p1"), volume_id=volume, force=True)
    # A transfer there changes whose it is here.
    foreign.change(volume, project_id="p1")
    with pytest.raises(VolumeNotFound):
        world.backups.create(world.ctx("p2"), volume_id=volume)
    with pytest.raises(InvalidVolume, match="backing-up"):
        world.backups.create(world.ctx("p1"), volume_id=volume)
    world.run_create()
    world.backups.create(world.ctx("p1"), volume_id=volume)
    foreign.away = True
    with pytest.raises(ServiceUnavailable):
        world.backups.create(world.ctx("p1"), volume_id=volume)


def test_a_task_goes_on_with_the_volume_as_it_began(world: World, foreign: Foreign) -> None:
    """Its provider compares it with what is there then: another project's bytes are not the task's."""
    volume = foreign.add("p2", size=1)
    world.backups.create(world.ctx("p2"), volume_id=volume)
    foreign.change(volume, project_id="p1", size=2)
    with pytest.raises(InvalidVolume, match="backing-up"):
        world.backups.create(world.ctx("p1"), volume_id=volume)
    task = world.claim()
    plan = world.outcomes.creating.start(task)
    assert (plan.volume.project_id, plan.volume.size) == ("p2", 1)
    assert volume_ref(plan.volume).project_id == "p2"


@pytest.mark.parametrize("status", ["backing-up", "restoring-backup", "creating", "deleting", "extending"])
def test_what_the_catalogue_itself_does_with_a_volume_passes(
    world: World, foreign: Foreign, status: str
) -> None:
    volume = foreign.add(status=status)
    snapshot = foreign.add_snapshot(volume, status)
    with pytest.raises(InvalidVolume, match=status):
        world.backups.create(world.ctx(), volume_id=volume)
    with pytest.raises(InvalidSnapshot, match=status):
        world.backups.create(world.ctx(), volume_id=volume, snapshot_id=snapshot)
    assert audit.run(world.db, 60) == []
    foreign.change(volume, status="available")
    foreign.snapshots[snapshot] = replace(foreign.snapshots[snapshot], status="available")
    world.backups.create(world.ctx(), volume_id=volume, snapshot_id=snapshot)
    world.backups.create(world.ctx(), volume_id=volume)
    assert audit.run(world.db, 60) == []


def test_a_catalogue_cannot_take_volumes_that_are_not_its_own(world: World, foreign: Foreign) -> None:
    ours, theirs = world.volume(), foreign.add()
    snapshot = world.snapshot(ours)
    foreign.there[theirs] = ForeignVolume(ours, "p1", "available", 9)
    with pytest.raises(VolumeNotFound):
        world.backups.create(world.ctx(), volume_id=theirs)
    foreign.there[theirs] = ForeignVolume(theirs, "p1", "available", 1)
    foreign.snapshots[snapshot] = ForeignSnapshot(
        snapshot, theirs, "p1", "available", 1, datetime(2026, 1, 1)
    )
    with pytest.raises(SnapshotNotFound):
        world.backups.create(world.ctx(), volume_id=theirs, snapshot_id=snapshot)
    assert mirror(world, ours).mirrored_at is None
    assert world.row(models.Snapshot, snapshot).volume_id == ours


def test_a_back_end_can_be_renamed(world: World, foreign: Foreign) -> None:
    volume = foreign.add()
    a_backup(world, volume)
    world.backups = BackupManager(
        world.db, world.conf, world._wake, mirrors=Mirrors(world.db, world.conf, {"renamed": foreign})
    )
    world.backups.create(world.ctx(), volume_id=volume)
    assert mirror(world, volume).backend == "renamed"


def test_texts_that_no_database_takes_are_left_out(any_db: Database) -> None:
    world = World(database=any_db)
    world.conf.volumes.enabled = ["local", "cinder"]
    foreign = with_catalogue(world)
    wrong, long = "a\0b", "x" * 300
    pairs = {"good": "one", wrong: "x", "nul": wrong, "surrogate": "\ud800", long: "x", "long": long}
    volume = foreign.add(
        name=wrong,
        description="\ud800",
        volume_type=long,
        availability_zone=wrong,
        user_id=wrong,
        metadata=pairs,
        image_metadata=pairs,
    )
    snapshot = foreign.add_snapshot(volume)
    foreign.snapshots[snapshot] = replace(foreign.snapshots[snapshot], name=wrong)
    world.backups.create(world.ctx(), volume_id=volume)
    world.backups.create(world.ctx(), volume_id=volume, snapshot_id=snapshot)
    plan = world.outcomes.creating.start(world.claim())
    assert plan.volume.display_name is None
    assert dict(plan.volume.metadata) == dict(plan.volume.image_metadata) == {"good": "one"}
    assert plan.volume.availability_zone is None
    assert plan.volume.volume_type == "x" * 255


def test_it_is_not_asked_about_our_own_volumes_and_no_volumes(world: World, foreign: Foreign) -> None:
    world.backups.create(world.ctx(), volume_id=world.volume())
    for name in ("../admin", "x", ""):
        with pytest.raises(VolumeNotFound):
            world.backups.create(world.ctx(), volume_id=name)
    assert foreign.asked == []


def test_a_snapshot_is_backed_up(world: World, foreign: Foreign) -> None:
    volume = foreign.add(status="error")
    other = foreign.add()
    snapshot = foreign.add_snapshot(volume)
    backup = world.backups.create(world.ctx(), volume_id=volume, snapshot_id=snapshot)
    assert backup.snapshot_id == snapshot
    assert backup.data_timestamp == datetime(2026, 1, 1, 12)
    assert world.row(models.Snapshot, snapshot).status == "backing-up"
    world.run_create()
    with pytest.raises(InvalidVolume, match="does not match"):
        world.backups.create(world.ctx(), volume_id=other, snapshot_id=snapshot)
    with pytest.raises(SnapshotNotFound):
        world.backups.create(world.ctx(), volume_id=volume, snapshot_id=str(uuid.uuid4()))
    foreign.snapshots[snapshot] = replace(foreign.snapshots[snapshot], status="error")
    with pytest.raises(InvalidSnapshot):
        world.backups.create(world.ctx(), volume_id=volume, snapshot_id=snapshot)


def test_nobody_sees_a_mirror_as_a_volume_of_ours(world: World, foreign: Foreign) -> None:
    volume = foreign.add(size=7, volume_type="gold")
    snapshot = foreign.add_snapshot(volume)
    world.backups.create(world.ctx(), volume_id=volume, snapshot_id=snapshot)
    volumes = VolumeManager(world.db, world.conf, world._wake, {"cinder"})
    snapshots = SnapshotManager(world.db, world.conf, world._wake)
    assert volumes.list(world.ctx()).items == []
    assert snapshots.list(world.ctx()).items == []
    assert volumes.totals(world.ctx()).count == 0
    calls: list[Callable[[], object]] = [
        lambda: volumes.get(world.ctx(), volume),
        lambda: volumes.delete(world.ctx(), volume),
        lambda: volumes.extend(world.ctx(), volume, new_size=9),
        lambda: volumes.forget(world.ctx(), volume),
        lambda: volumes.metadata.replace(world.ctx(), volume, {}),
        lambda: volumes.attachments.attach(world.ctx(), volume),
        lambda: snapshots.create(world.ctx(), volume_id=volume),
        lambda: volumes.create(world.ctx(), size=7, source_volid=volume),
    ]
    for call in calls:
        with pytest.raises(VolumeNotFound):
            call()
    with pytest.raises(SnapshotNotFound):
        snapshots.get(world.ctx(), snapshot)
    with world.db.read() as session:
        used = quota.usage_of(session, "p1", ["volumes", "snapshots", "gigabytes", "volumes_gold"])
    assert set(used.values()) == {0}
    world.conf.volumes.default = "cinder"
    with pytest.raises(InvalidInput, match="made in the service that has them"):
        volumes.create(world.ctx(), size=1)


def a_backup(world: World, volume_id: str) -> str:
    backup = world.backups.create(world.ctx(), volume_id=volume_id).id
    world.run_create()
    return backup


def test_a_restore_to_an_existing_volume(world: World, foreign: Foreign) -> None:
    backup = a_backup(world, foreign.add(size=2))
    target, small, used = foreign.add(size=2), foreign.add(size=1), foreign.add(size=2, status="in-use")
    with pytest.raises(InvalidVolume, match="too small"):
        world.backups.restore(world.ctx(), backup, volume_id=small)
    with pytest.raises(InvalidVolume, match="must be available"):
        world.backups.restore(world.ctx(), backup, volume_id=used)
    with pytest.raises(VolumeNotFound):
        world.backups.restore(world.ctx(), backup, volume_id=foreign.add("p2", size=2))
    assert world.backups.restore(world.ctx(), backup, volume_id=target)[1] == target
    assert world.volume_status(target) == "restoring-backup"
    with pytest.raises(InvalidVolume, match="restoring-backup"):
        world.backups.create(world.ctx(), volume_id=target)
    world.run_restore(RestoredVolume(name="other", metadata={"a": "b"}))
    assert world.volume_status(target) == "available"


def test_a_new_volume_is_made_there_for_a_restore(world: World, foreign: Foreign) -> None:
    volume = foreign.add(size=2, volume_type="gold", availability_zone="az1")
    backup = a_backup(world, volume)
    foreign.there.clear()
    _, target, name = world.backups.restore(world.ctx(), backup)
    made = foreign.there[target]
    assert (made.size, made.volume_type, made.availability_zone) == (2, "gold", "az1")
    assert made.name == name == f"restore_backup_{backup}"
    assert made.metadata == {"src_backup_id": backup}
    assert mirror(world, target).status == "restoring-backup"
    # While another restore runs, nothing is made.
    asked = len(foreign.asked)
    with pytest.raises(InvalidBackup):
        world.backups.restore(world.ctx(), backup)
    assert len(foreign.asked) == asked
    world.run_restore()
    foreign.room = False
    with pytest.raises(QuotaExceeded):
        world.backups.restore(world.ctx(), backup)
    assert world.status(backup) == "available"


def test_a_lost_answer_makes_no_second_volume(world: World, foreign: Foreign) -> None:
    backup = a_backup(world, foreign.add())
    there = set(foreign.there)
    foreign.forgetful = True
    for _ in range(2):
        with pytest.raises(ServiceUnavailable):
            world.backups.restore(world.ctx(), backup)
        foreign.away = True
    foreign.away = foreign.forgetful = False
    (lost,) = set(foreign.there) - there
    assert world.backups.restore(world.ctx(), backup)[1] == lost
    world.run_restore()
    # It has its bytes now: nobody gets it as a new one.
    assert world.backups.restore(world.ctx(), backup)[1] != lost
    assert len(foreign.there) == len(there) + 2


def test_who_comes_second_does_not_delete_the_volume_of_the_first(
    world: World, foreign: Foreign, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two requests for the same restore, at the same moment, get the same volume."""
    backup = a_backup(world, foreign.add())
    write, first = Mirrors._write, []

    def overtaken(self: Mirrors, *arguments: Any) -> None:
        write(self, *arguments)
        if not first:
            first.append(None)
            first.append(world.backups.restore(world.ctx(), backup)[1])

    monkeypatch.setattr(Mirrors, "_write", overtaken)
    with pytest.raises(InvalidBackup):
        world.backups.restore(world.ctx(), backup)
    assert first[1] in foreign.there
    assert "delete" not in foreign.asked


def test_a_volume_gets_only_bytes_that_its_key_opens(world: World, foreign: Foreign) -> None:
    volume = foreign.add(encryption_key_id="k1")
    backup = a_backup(world, volume)
    clear, other = foreign.add(), foreign.add(encryption_key_id="k2")
    clear_backup = a_backup(world, clear)
    for of, target, reason in (
        (backup, clear, "of an encrypted volume"),
        (backup, other, "another key"),
        (clear_backup, other, "is encrypted"),
    ):
        with pytest.raises(InvalidVolume, match=reason):
            world.backups.restore(world.ctx(), of, volume_id=target)
    with pytest.raises(InvalidVolume, match="of an encrypted volume"):
        VolumeManager(world.db, world.conf, lambda: None).create(world.ctx(), size=1, backup_id=backup)
    world.backups.restore(world.ctx(), backup, volume_id=volume)
    world.run_restore()
    # A new one is a copy; of a volume that is not encrypted any more, it is of no use.
    _, made, _ = world.backups.restore(world.ctx(), backup)
    assert mirror(world, made).encryption_key_id == f"copy-of-{volume}"[:36]
    world.run_restore()
    there = set(foreign.there)
    foreign.change(volume, encryption_key_id=None)
    with pytest.raises(InvalidVolume, match="of an encrypted volume"):
        world.backups.restore(world.ctx(), backup)
    del foreign.there[volume]
    with pytest.raises(InvalidVolume, match="no copy"):
        world.backups.restore(world.ctx(), backup)
    assert set(foreign.there) == there - {volume}
    assert world.status(backup) == "available"


def test_an_encrypted_volume_is_longer_by_its_header(world: World, foreign: Foreign) -> None:
    volume = foreign.add(encryption_key_id="k1")
    world.backups.create(world.ctx(), volume_id=volume)
    task = world.claim()
    for gib, size in ((1, 1), (2, 2)):
        world.outcomes.creating.start(task)
        plan = world.outcomes.creating.follow_volume(task, (gib << 30) + 4096, None)
        assert (plan.volume.size, plan.volume.length) == (size, (gib << 30) + 4096)


def test_a_volume_made_for_a_restore_that_cannot_begin_is_deleted(
    world: World, foreign: Foreign, monkeypatch: pytest.MonkeyPatch
) -> None:
    backup = a_backup(world, foreign.add())
    there = set(foreign.there)

    def fail(*_: object, **__: object) -> None:
        raise OSError("the disk is full")

    monkeypatch.setattr("backupfw.manager.usecases.backups.begin_restore", fail)
    with pytest.raises(OSError, match="full"):
        world.backups.restore(world.ctx(), backup)
    assert set(foreign.there) == there
    assert foreign.asked[-1] == "delete"


@pytest.mark.parametrize("how", ["waited", "cancelled", "away"])
def test_a_volume_that_no_worker_restored_to_shows_it(world: World, foreign: Foreign, how: str) -> None:
    """It would be available, and empty."""
    volume = foreign.add()
    backup = a_backup(world, volume)
    expiry = Expiry(world.db, world.conf, lambda volume: foreign.spoil_volume(volume.id, volume.project_id))
    _, made, _ = world.backups.restore(world.ctx(), backup)
    if how == "cancelled":
        world.backups.cancel(world.ctx(), backup)
    foreign.change(made, status="available")
    world.age(seconds=world.conf.backup.service_wait + 3600)
    foreign.away = how == "away"
    assert expiry.expire() == 1
    assert foreign.there[made].status == ("available" if how == "away" else "error")
    assert world.status(backup) == "available"
    # An existing volume that nobody has begun to write is as good as before.
    foreign.away = False
    world.backups.restore(world.ctx(), backup, volume_id=volume)
    world.age(seconds=world.conf.backup.service_wait + 3600)
    assert expiry.expire() == 1
    assert foreign.there[volume].status == "available"
    world.backups.restore(world.ctx(), backup, volume_id=volume)
    world.claim()
    world.age(seconds=world.conf.backup.service_wait + 3600)
    assert expiry.expire() == 1
    assert foreign.there[volume].status == "error"


def test_a_mirror_without_a_backup_is_purged(world: World, foreign: Foreign) -> None:
    volume = foreign.add()
    snapshot = foreign.add_snapshot(volume)
    backup = world.backups.create(world.ctx(), volume_id=volume, snapshot_id=snapshot).id
    world.run_create()
    later = datetime(2100, 1, 1)
    assert purge.run(world.db, later)["volumes"] == 0
    assert audit.run(world.db, 60) == []
    world.backups.delete(world.ctx(), backup)
    world.run_delete()
    world.run_releases()
    found = purge.run(world.db, later)
    assert (found["snapshots"], found["volumes"]) == (1, 1)
    foreign.there[volume] = replace(foreign.there[volume], name="again")
    world.backups.create(world.ctx(), volume_id=volume)
    assert mirror(world, volume).display_name == "again"
    assert purge.run(world.db, datetime(2000, 1, 1))["volumes"] == 0

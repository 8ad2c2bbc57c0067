"""The rules of backup and restore for volumes and snapshots, as tables, with their exact texts."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from backupfw.db import models
from backupfw.errors import (
    BackupfwError,
    BackupNotFound,
    InvalidSnapshot,
    InvalidVolume,
    QuotaExceeded,
    SnapshotNotFound,
    VolumeNotFound,
)
from backupfw.manager.rules import volume_rules
from backupfw.manager.rules.volume_rules import GIB
from tests.unit.manager.catalogue import ADMIN, ALICE, BOB, Catalogue, make_conf, make_database

STATUSES = [
    "creating", "available", "in-use", "backing-up", "restoring-backup", "extending", "deleting", "error",
    "error_restoring", "error_extending", "error_deleting",
]  # fmt: skip


@pytest.fixture
def world() -> Iterator[Catalogue]:
    db = make_database()
    yield Catalogue(db, make_conf())
    db.close()


def begin_backup(
    world: Catalogue, volume: str, *, force: bool = False, snapshot_id: str | None = None
) -> int:
    """Begin a backup as Alice; returns the size of what is backed up."""
    with world.db.write() as session:
        return volume_rules.begin_backup(session, volume, ALICE, force=force, snapshot_id=snapshot_id).size


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("status", STATUSES)
def test_which_volumes_can_be_backed_up(world: Catalogue, status: str, force: bool) -> None:
    volume = world.volume(status=status)
    if status == "available" or (status == "in-use" and force):
        begin_backup(world, volume, force=force)
        assert world.status(models.Volume, volume) == "backing-up"
        with world.db.write() as session:
            volume_rules.end_backup(session, volume)
        after = world.volumes.get(ALICE, volume)
        assert (after.status, after.previous_status) == (status, None)
        return
    with pytest.raises(InvalidVolume) as caught:
        begin_backup(world, volume, force=force)
    if status == "in-use":
        assert str(caught.value) == "Backing up an in-use volume must use the force flag."
    else:
        assert str(caught.value) == (
            "Volume to be backed up must be available or in-use, "
            f'but the current status is "{status}".'
        )  # fmt: skip
    assert world.status(models.Volume, volume) == status


def test_a_backup_that_ends_after_a_reset_changes_nothing(world: Catalogue) -> None:
    volume = world.volume(status="error")
    with world.db.write() as session:
        volume_rules.end_backup(session, volume)
        volume_rules.end_restore(session, volume, ok=True, new=False)
    assert world.status(models.Volume, volume) == "error"


@pytest.mark.parametrize(
    "status", ["creating", "available", "backing-up", "deleting", "error", "error_deleting"]
)
def test_which_snapshots_can_be_backed_up(world: Catalogue, status: str) -> None:
    volume = world.volume(size=1)
    snapshot = world.snapshot(volume, status=status)
    # The volume's own status does not matter.
    world.set(models.Volume, volume, status="error", size=2)
    if status == "available":
        assert begin_backup(world, volume, snapshot_id=snapshot) == 1
        assert world.status(models.Snapshot, snapshot) == "backing-up"
        with world.db.write() as session:
            volume_rules.end_backup(session, volume, snapshot)
        assert world.status(models.Snapshot, snapshot) == "available"
    else:
        with pytest.raises(InvalidSnapshot) as caught:
            begin_backup(world, volume, snapshot_id=snapshot)
        assert str(caught.value) == (
            f'Snapshot to be backed up must be available, but the current status is "{status}".'
        )
    assert world.status(models.Volume, volume) == "error"


def test_a_snapshot_must_be_the_volumes(world: Catalogue) -> None:
    one, other = world.volume(), world.volume()
    snapshot = world.snapshot(other)
    with pytest.raises(InvalidVolume) as caught:
        begin_backup(world, one, snapshot_id=snapshot)
    assert str(caught.value) == f"Volume {one} does not match with snapshot.volume_id {other}."


@pytest.mark.parametrize("status", STATUSES)
def test_which_volumes_can_be_restored_to(world: Catalogue, status: str) -> None:
    volume = world.volume(size=2, status=status)
    with world.db.write() as session:
        if status == "available":
            assert volume_rules.begin_restore(session, volume, 2, ALICE).id == volume
        else:
            with pytest.raises(InvalidVolume, match=r"^Volume to be restored to must be available$"):
                volume_rules.begin_restore(session, volume, 2, ALICE)
    assert world.status(models.Volume, volume) == ("restoring-backup" if status == "available" else status)


def test_a_target_must_be_large_enough(world: Catalogue) -> None:
    volume = world.volume(size=2)
    with world.db.write() as session, pytest.raises(InvalidVolume) as caught:
        volume_rules.begin_restore(session, volume, 3)
    assert str(caught.value) == "volume size 2 is too small to restore backup of size 3."
    assert world.status(models.Volume, volume) == "available"


@pytest.mark.parametrize(
    ("ok", "new", "status"),
    [
        (True, False, "available"),
        (True, True, "available"),
        (False, False, "error_restoring"),
        (False, True, "error"),
    ],
)
def test_where_a_restore_leaves_its_target(world: Catalogue, ok: bool, new: bool, status: str) -> None:
    volume = world.volume()
    with world.db.write() as session:
        volume_rules.begin_restore(session, volume, 1)
        volume_rules.end_restore(session, volume, ok=ok, new=new)
    assert world.status(models.Volume, volume) == status


@pytest.mark.parametrize(("ok", "status"), [(True, "available"), (False, "error")])
def test_a_volume_made_for_a_restore_is_creating_until_its_end(
    world: Catalogue, ok: bool, status: str
) -> None:
    volume = world.volume(status="creating")
    with world.db.write() as session:
        volume_rules.end_restore(session, volume, ok=ok, new=True)
    assert world.status(models.Volume, volume) == status


@pytest.mark.parametrize("bad", ["", "x", "\0" * 36, "é" * 36, "n" * 36, "a" * 4000])
def test_what_is_no_id_is_not_found(world: Catalogue, bad: str) -> None:
    with world.db.read() as session:
        with pytest.raises(VolumeNotFound):
            volume_rules.find_volume(session, ADMIN, bad)
        with pytest.raises(SnapshotNotFound):
            volume_rules.find_snapshot(session, ADMIN, bad)
        with pytest.raises(BackupNotFound):
            volume_rules.find_backup(session, ADMIN, bad)


def test_other_projects_resources_are_not_there(world: Catalogue) -> None:
    volume = world.volume()
    snapshot = world.snapshot(volume)
    backup = world.backup()
    hidden = world.snapshot(volume, temporary=True)
    gone = world.volume(deleted=True)
    with world.db.write() as session:
        for ctx in (ALICE, ADMIN):
            assert volume_rules.find_volume(session, ctx, volume).id == volume
            assert volume_rules.find_snapshot(session, ctx, snapshot, lock=True).id == snapshot
            assert volume_rules.find_backup(session, ctx, backup).id == backup
            with pytest.raises(SnapshotNotFound):
                volume_rules.find_snapshot(session, ctx, hidden)
            with pytest.raises(VolumeNotFound):
                volume_rules.find_volume(session, ctx, gone)
            with pytest.raises(VolumeNotFound):
                volume_rules.begin_restore(session, gone, 1)
        for find in (
            lambda: volume_rules.find_volume(session, BOB, volume),
            lambda: volume_rules.begin_backup(session, volume, BOB, force=True),
            lambda: volume_rules.begin_restore(session, volume, 1, BOB),
        ):
            with pytest.raises(VolumeNotFound, match=f"^Volume {volume} could not be found.$"):
                find()
        with pytest.raises(SnapshotNotFound, match=f"^Snapshot {snapshot} could not be found.$"):
            volume_rules.find_snapshot(session, BOB, snapshot)
        with pytest.raises(BackupNotFound, match=f"^Backup {backup} could not be found.$"):
            volume_rules.find_backup(session, BOB, backup)


def test_a_locked_row_is_read_anew(world: Catalogue) -> None:
    volume = world.volume()
    with world.db.write() as session:
        before = volume_rules.find_volume(session, ALICE, volume)
        session.connection().exec_driver_sql("UPDATE volumes SET status = 'error'")
        assert before.status == "available"
        assert volume_rules.find_volume(session, ALICE, volume, lock=True).status == "error"


def test_a_new_volume_needs_room_and_leaves_nothing_without(world: Catalogue) -> None:
    world.quotas.update("blue", {"gigabytes": 3})
    with world.db.write() as session:
        row = volume_rules.new_volume(
            session, world.conf, ALICE, status="restoring-backup", size=3, length=2 * GIB + 1, name="n",
            metadata={"a": "b"}, volume_id=str(uuid.uuid4()),
        )  # fmt: skip
        volume = row.id
    made = world.volumes.get(ALICE, volume)
    assert (made.size, made.length, made.metadata, made.user_id) == (3, 2 * GIB + 1, {"a": "b"}, "alice")
    with world.db.write() as session, pytest.raises(QuotaExceeded):
        volume_rules.new_volume(
            session, world.conf, ALICE, status="creating", size=1, volume_id=str(uuid.uuid4())
        )
    assert len(world.volumes.list(ALICE).items) == 1


@pytest.mark.parametrize(("length", "size"), [(1, 1), (GIB, 1), (GIB + 1, 2), (64 << 40, 64 << 10)])
def test_gigabytes_are_rounded_up(length: int, size: int) -> None:
    assert volume_rules.gigabytes(length) == size


def test_of_racing_backups_and_restores_one_wins(tmp_path: Path) -> None:
    db = make_database(tmp_path)
    world = Catalogue(db, make_conf())
    volume = world.volume()
    for _turn in range(10):
        start = threading.Barrier(4)

        def one(number: int, start: threading.Barrier = start) -> bool:
            start.wait()
            try:
                with db.write() as session:
                    if number % 2:
                        volume_rules.begin_backup(session, volume, ALICE, force=True)
                    else:
                        volume_rules.begin_restore(session, volume, 1, ALICE)
            except BackupfwError:
                return False
            return True

        with ThreadPoolExecutor(4) as pool:
            assert sum(pool.map(one, range(4))) == 1
        world.set(models.Volume, volume, status="available", previous_status=None)
    db.close()

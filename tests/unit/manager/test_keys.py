"""Project keys and data keys: one current key, data keys that follow it, and a destruction that is final."""

from __future__ import annotations

import secrets
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import update

from backupfw.db import models
from backupfw.db.session import Database
from backupfw.errors import AttemptInVain
from backupfw.manager import rows
from backupfw.manager.rules import project_keys
from backupfw.manager.usecases.keys import KeyManager
from tests.unit.manager.support import World, check_consistent


@pytest.fixture
def world(any_db: Database) -> World:
    return World(database=any_db)


@pytest.fixture
def keys(world: World) -> KeyManager:
    return KeyManager(world.db)


def data_key(project_key_id: str, volume_id: str = "v1", project: str = "p1", **other: str) -> rows.DataKey:
    values = {"installation_id": "i", "store": "main", "container": "box", "algorithm": "aes-256-gcm"}
    return rows.DataKey(
        id=secrets.token_hex(16),
        mac_id=secrets.token_hex(16),
        project_id=project,
        volume_id=volume_id,
        project_key_id=project_key_id,
        wrapped=secrets.token_bytes(113),
        **(values | other),
    )


def encrypt(world: World, backup_id: str, key: rows.DataKey) -> None:
    """Let the manifest of a backup have a data key, as its first claim records it."""
    with world.db.write() as session:
        manifest_id = session.get_one(models.Backup, backup_id).manifest_id
        session.execute(
            update(models.Manifest).where(models.Manifest.id == manifest_id).values(key_id=key.id)
        )


def states(keys: KeyManager, project: str = "p1") -> list[tuple[str, str]]:
    return [(key.key_id, key.state) for key in keys.list(project)]


def test_a_project_has_one_current_key(keys: KeyManager) -> None:
    assert keys.current("p1") is None
    assert keys.add_project_key("p1", "k1") == "k1"
    assert keys.add_project_key("p1", "k1") == "k1", "repeated after a lost answer"
    assert keys.add_project_key("p1", "late") == "k1"
    assert keys.add_project_key("p2", "k2") == "k2"
    assert keys.current("p1") == "k1"
    assert keys.add_project_key("p1", "k3", replaces="k1") == "k3"
    assert keys.add_project_key("p1", "k3", replaces="k1") == "k3", "repeated after a lost answer"
    assert keys.add_project_key("p1", "k4", replaces="k1") == "k3"
    assert states(keys) == [("k1", "retired"), ("k3", "current")]
    assert [key.project_id for key in keys.list()] == ["p1", "p1", "p2"]


def test_of_many_first_keys_one_wins(keys: KeyManager) -> None:
    both = threading.Barrier(6)

    def add(number: int) -> str:
        both.wait(30)
        return keys.add_project_key("p1", f"k{number}")

    with ThreadPoolExecutor(6) as pool:
        won = set(pool.map(add, range(6)))
    assert won == {keys.current("p1")}
    assert len(keys.list("p1")) == 1


def test_the_newest_data_key_of_a_place(keys: KeyManager) -> None:
    keys.add_project_key("p1", "k1")
    first, second = data_key("k1"), data_key("k1")
    for key in (first, second, second):
        keys.add_data_key(key)
    for other in (
        data_key("k1", "v2"),
        data_key("k1", project="p2"),
        data_key("k1", store="offsite"),
        data_key("k1", container="other"),
    ):
        keys.add_data_key(other)
    found = keys.newest_data_key("main", "box", "p1", "v1")
    assert found is not None
    assert (found.id, found.wrapped) == (second.id, second.wrapped)
    assert found.created_at is not None
    assert keys.data_key(first.id) is not None
    assert keys.data_key("0" * 32) is None
    assert keys.newest_data_key("main", "box", "p1", "v9") is None
    assert second.wrapped.hex() not in repr(second)


def test_data_keys_follow_the_current_key(keys: KeyManager) -> None:
    keys.add_project_key("p1", "k1")
    keys.add_project_key("p2", "k2")
    mine, other = [data_key("k1") for _ in range(5)], data_key("k2", project="p2")
    for key in (*mine, other):
        keys.add_data_key(key)
    assert keys.outdated(None) == []
    keys.add_project_key("p1", "k3", replaces="k1")
    ids = sorted(key.id for key in mine)
    assert [(each.data_key.id, each.current) for each in keys.outdated("p1")] == [(key, "k3") for key in ids]
    assert [each.data_key.id for each in keys.outdated(None, after=ids[1], limit=2)] == ids[2:4]
    assert keys.outdated("p2") == []
    assert keys.rewrapped(ids[0], "k1", "k3", b"new")
    assert keys.rewrapped(ids[0], "k1", "k3", b"again"), "it is recorded already"
    found = keys.data_key(ids[0])
    assert found is not None
    assert (found.project_key_id, found.wrapped) == ("k3", b"new")
    assert not keys.rewrapped(ids[0], "k1", "k9", b"other")
    assert [each.data_key.id for each in keys.outdated("p1")] == ids[1:]
    assert [(key.key_id, key.data_keys) for key in keys.list("p1")] == [("k1", 4), ("k3", 1)]


def test_a_destruction_ends_every_encrypted_backup_of_the_project(world: World, keys: KeyManager) -> None:
    keys.add_project_key("p1", "k1")
    keys.add_project_key("p1", "k3", replaces="k1")
    keys.add_project_key("p2", "k2")
    old, new, theirs = data_key("k1"), data_key("k3"), data_key("k2", project="p2")
    for key in (old, new, theirs):
        keys.add_data_key(key)
    volume, other_volume = world.volume(), world.volume("p2")
    sealed, also, plain = (world.backup(volume).id for _ in range(3))
    other = world.backup(other_volume, "p2").id
    for backup_id, key in ((sealed, old), (also, new), (other, theirs)):
        encrypt(world, backup_id, key)
    target = world.volume(size=2)
    world.backups.restore(world.ctx(), also, volume_id=target)
    assert keys.encrypted_backups("p1") == 2
    assert [(key.key_id, key.backups) for key in keys.list("p1")] == [("k1", 1), ("k3", 1)]
    found = keys.begin_destruction(world.ctx("p1", admin=True), "p1")
    assert (list(found.key_ids), found.backups) == (["k1", "k3"], 2)
    for backup_id in (sealed, also):
        backup = world.backups.get(world.ctx(), backup_id)
        assert (backup.status, backup.fail_reason) == ("error", "The key of the backup's data was destroyed.")
    assert world.backups.get(world.ctx(), plain).status == "available"
    assert world.backups.get(world.ctx("p2"), other).status == "available"
    with world.db.read() as session:
        assert session.get_one(models.Volume, target).status == "error_restoring"
    assert states(keys) == [("k1", "destroying"), ("k3", "destroying")]
    assert keys.current("p1") is None
    assert keys.newest_data_key("main", "box", "p1", "v1") is None
    # Again, as after a key store that did not answer.
    again = keys.begin_destruction(world.ctx("p1", admin=True), "p1")
    assert (list(again.key_ids), again.backups) == (["k1", "k3"], 0)
    keys.end_destruction(again.key_ids)
    assert [(key.state, key.destroyed_at is not None) for key in keys.list("p1")] == [("destroyed", True)] * 2
    assert keys.outdated(None) == []
    check_consistent(world)


def test_the_next_key_after_a_destruction(world: World, keys: KeyManager) -> None:
    keys.add_project_key("p1", "k1")
    keys.add_data_key(data_key("k1"))
    keys.end_destruction(keys.begin_destruction(world.ctx("p1"), "p1").key_ids)
    assert keys.add_project_key("p1", "k2") == "k2"
    fresh = data_key("k2")
    keys.add_data_key(fresh)
    found = keys.newest_data_key("main", "box", "p1", "v1")
    assert found is not None
    assert found.id == fresh.id
    assert keys.outdated("p1") == []
    assert states(keys) == [("k1", "destroyed"), ("k2", "current")]


def test_a_backup_without_key_cannot_be_made_available_and_can_be_deleted(
    world: World, keys: KeyManager
) -> None:
    keys.add_project_key("p1", "k1")
    key = data_key("k1")
    keys.add_data_key(key)
    backup = world.backup(world.volume())
    encrypt(world, backup.id, key)
    admin = world.ctx(admin=True)
    assert world.backups.reset_status(admin, backup.id, "available").status == "available"
    keys.begin_destruction(admin, "p1")
    after = world.backups.reset_status(admin, backup.id, "available")
    assert (after.status, after.fail_reason) == ("error", "The key of the backup's data was destroyed.")
    world.backups.delete(world.ctx(), backup.id)
    assert keys.encrypted_backups("p1") == 0
    # A deletion goes on.
    assert keys.begin_destruction(admin, "p1").backups == 0
    assert world.backups.get(world.ctx(), backup.id).status == "deleting"


def test_a_backup_that_begins_sees_the_destruction_or_is_seen(world: World, keys: KeyManager) -> None:
    keys.add_project_key("p1", "k1")
    key = data_key("k1")
    keys.add_data_key(key)
    backup = world.backup(world.volume())
    holds, began = threading.Event(), threading.Event()

    def begin() -> None:
        with world.db.write() as session:
            project_keys.require_usable(session, key.id)
            holds.set()
            began.wait(1)
            manifest_id = session.get_one(models.Backup, backup.id).manifest_id
            session.get_one(models.Manifest, manifest_id).key_id = key.id

    with ThreadPoolExecutor(2) as pool:
        beginning = pool.submit(begin)
        assert holds.wait(30)
        destroying = pool.submit(keys.begin_destruction, world.ctx(), "p1")
        assert not destroying.done()
        began.set()
        beginning.result()
        assert destroying.result().backups == 1
    with pytest.raises(AttemptInVain, match="was destroyed meanwhile"), world.db.write() as session:
        project_keys.require_usable(session, key.id)
    with pytest.raises(AttemptInVain), world.db.write() as session:
        project_keys.require_usable(session, "0" * 32)

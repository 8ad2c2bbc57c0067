"""Encrypted backups through managers, worker and engine: keys made, lost, destroyed and away."""

from __future__ import annotations

import base64
import json
import random
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import delete, func, select, update

from backupfw.db import models
from backupfw.engine.format import keys
from backupfw.engine.format.manifest import ManifestReader
from backupfw.engine.format.sealing import CHACHA20_POLY1305
from backupfw.keys.base import KeyStore
from backupfw.keys.errors import KeyStoreUnavailable, ProjectKeyMissing
from backupfw.keys.wrapping import new_key, unwrap, wrap
from backupfw.manager.outcomes.making import KeyPlace
from backupfw.manager.usecases.keys import KeyManager
from backupfw.worker.data_keys import KeyStoreDown
from tests.unit.manager.support import check_consistent
from tests.unit.worker.world import SEGMENT, WorkerWorld

MARK = b"the plaintext that nobody may see"
DATA = (MARK * 64 + random.Random(1).randbytes(3 * SEGMENT))[: 3 * SEGMENT]


class MemoryKeys(KeyStore):
    """A key store that can be away, and forgets."""

    def __init__(self, options: object = None) -> None:
        del options
        self.keys: dict[str, bytes] = {}
        self.away = False

    def check(self) -> None:
        if self.away:
            raise KeyStoreUnavailable("it does not answer")

    def _key(self, key_id: str) -> bytes:
        self.check()
        if key_id not in self.keys:
            raise ProjectKeyMissing(key_id)
        return self.keys[key_id]

    def create(self, project_id: str) -> str:
        self.check()
        key_id = f"{project_id}-{uuid.uuid4().hex}"
        self.keys[key_id] = new_key()
        return key_id

    def wrap(self, key_id: str, secret: bytes, context: bytes) -> bytes:
        return wrap(self._key(key_id), key_id, secret, context)

    def unwrap(self, key_id: str, wrapped: bytes, context: bytes) -> bytes:
        return unwrap(self._key(key_id), key_id, wrapped, context)

    def destroy(self, key_id: str) -> None:
        self.check()
        self.keys.pop(key_id, None)


@pytest.fixture
def key_store() -> MemoryKeys:
    return MemoryKeys()


@pytest.fixture
def world(tmp_path: Path, key_store: MemoryKeys) -> Iterator[WorkerWorld]:
    world = WorkerWorld(tmp_path, key_store, max_attempts=6)
    world.conf["store:main"].encryption = "project"
    yield world
    world.store.close()
    check_consistent(world)
    world.db.close()


def back_up(world: WorkerWorld, volume: str, *, incremental: bool = False) -> models.Backup:
    made = world.backups.create(world.ctx(), volume_id=volume, incremental=incremental)
    return world.wait_backup(made.id, "available")


def restored(world: WorkerWorld, backup_id: str) -> bytes:
    _, target, _ = world.backups.restore(world.ctx(), backup_id)
    world.wait(lambda: world.volume_status(target) == "available", "the restore")
    world.wait_backup(backup_id, "available")
    return bytes(world.provider.volumes[target])


def manifest(world: WorkerWorld, row: models.Backup) -> models.Manifest:
    assert row.manifest_id is not None
    return world.row(models.Manifest, row.manifest_id)


def data_keys(world: WorkerWorld) -> int:
    with world.db.read() as session:
        return session.scalar(select(func.count(models.DataKey.id))) or 0


def stored(world: WorkerWorld) -> dict[str, bytes]:
    return world.faulty.inner.contents["volumebackups"]  # type: ignore[attr-defined, no-any-return]


def test_a_chain_is_encrypted_shares_and_leaves_nothing(world: WorkerWorld, key_store: MemoryKeys) -> None:
    volume = world.filled_volume(DATA)
    with world.worker():
        first = back_up(world, volume)
        world.provider.volumes[volume][-1] ^= 1
        second = back_up(world, volume, incremental=True)
        assert restored(world, first.id) == DATA
        assert restored(world, second.id) == bytes(world.provider.volumes[volume])
    one, two = manifest(world, first), manifest(world, second)
    assert (one.hash_mode, one.key_id) == (two.hash_mode, two.key_id) == ("blake3-keyed", two.key_id)
    assert two.base_id == one.id
    assert second.stored_bytes is not None
    assert first.stored_bytes is not None
    assert second.stored_bytes < first.stored_bytes / 2
    for key, data in stored(world).items():
        assert MARK not in data, key
        assert b"display" not in data
    kept = [key for key in stored(world) if keys.is_data_key(key)]
    assert [key.rsplit("/", 1)[1] for key in kept] == [one.key_id]
    assert len(key_store.keys) == 1
    with world.worker():
        world.backups.delete(world.ctx(), first.id)
        world.wait_backup(first.id, None)
        assert set(kept) <= world.objects()
        assert restored(world, second.id) == bytes(world.provider.volumes[volume])
        world.backups.delete(world.ctx(), second.id)
        world.wait_backup(second.id, None)
    assert world.objects() == set()
    assert data_keys(world) == 0


def test_what_was_not_encrypted_is_not_shared_with_and_still_restores(world: WorkerWorld) -> None:
    volume = world.filled_volume(DATA)
    world.conf["store:main"].encryption = "off"
    with world.worker():
        first = back_up(world, volume)
        world.conf["store:main"].encryption = "project"
        second = back_up(world, volume, incremental=True)
        world.conf["store:main"].encryption = "off"
        third = back_up(world, volume, incremental=True)
        for row in (first, second, third):
            assert restored(world, row.id) == DATA
    assert [manifest(world, row).base_id for row in (second, third)] == [None, None]
    assert manifest(world, third).key_id is None


def test_a_new_project_key_brings_a_new_data_key_that_shares(
    world: WorkerWorld, key_store: MemoryKeys
) -> None:
    volume, catalogue = world.filled_volume(DATA), KeyManager(world.db)
    with world.worker():
        first = back_up(world, volume)
        project = first.project_id
        old = catalogue.current(project)
        catalogue.add_project_key(project, key_store.rotate(project), old)
        second = back_up(world, volume, incremental=True)
        one, two = manifest(world, first), manifest(world, second)
        assert one.key_id != two.key_id
        assert (two.mac_id, two.base_id) == (one.mac_id, one.id)
        assert restored(world, second.id) == DATA
        # An algorithm can be changed, too.
        world.data_keys._algorithm = CHACHA20_POLY1305
        third = back_up(world, volume, incremental=True)
        assert manifest(world, third).base_id == two.id
        assert restored(world, third.id) == DATA


def test_the_store_and_the_key_store_are_enough(world: WorkerWorld, key_store: MemoryKeys) -> None:
    """The database has lost its data keys, and the record of the backup is imported again."""
    volume = world.filled_volume(DATA)
    with world.worker():
        first = back_up(world, volume)
        service, url = world.backups.export_record(world.ctx(), first.id)
        record = json.loads(base64.b64decode(url))

        def imported(status: str) -> models.Backup:
            text = json.dumps(record | {"id": str(uuid.uuid4())}).encode()
            made = world.backups.import_record(
                world.ctx(), backup_service=service, backup_url=base64.b64encode(text).decode()
            )
            return world.wait_backup(made.id, status)

        with world.db.write() as session:
            session.execute(delete(models.DataKey))
        assert restored(world, first.id) == DATA
        assert restored(world, imported("available").id) == DATA
        # Without the key, an import says which one is missing.
        key_store.keys.clear()
        assert str(manifest(world, first).key_id) in str(imported("error").fail_reason)


def forget(world: WorkerWorld, *models_: type[models.Base]) -> None:
    """Empty tables, as if the database had never known what was in them."""
    with world.db.write() as session:
        for model in models_:
            session.execute(delete(model))


def exported(world: WorkerWorld, row: models.Backup) -> dict[str, str]:
    service, url = world.backups.export_record(world.ctx(), row.id)
    return {"backup_service": service, "backup_url": url}


def test_an_imported_backup_is_shared_with_and_its_data_keys_are_wrapped_again(
    world: WorkerWorld, key_store: MemoryKeys
) -> None:
    volume, catalogue = world.filled_volume(DATA), KeyManager(world.db)
    with world.worker():
        first = back_up(world, volume)
        project = first.project_id
        catalogue.add_project_key(project, key_store.rotate(project), catalogue.current(project))
        second = back_up(world, volume, incremental=True)
        both = {manifest(world, first).key_id, manifest(world, second).key_id}
        assert len(both) == 2
        record, older = exported(world, second), exported(world, first)
        mac_id = manifest(world, second).mac_id
    with world.db.write() as session:
        # A database that knows the volume only.
        session.execute(update(models.Backup).values(manifest_id=None, deleted=True, status="deleted"))
    forget(world, models.Task, models.Manifest, models.DataKey, models.ProjectKey)
    with world.worker():
        world.backups.import_record(world.ctx(), **record)
        imported = world.wait_backup(second.id, "available")
        # What the second shares with the first needs the first one's data key.
        assert catalogue.current(project) is None
        assert {key.key_id for key in catalogue.list(project)} == set(key_store.keys)
        assert data_keys(world) == 2
        world.provider.volumes[volume][-1] ^= 1
        third = back_up(world, volume, incremental=True)
        assert (manifest(world, third).mac_id, manifest(world, third).base_id) == (
            mac_id,
            imported.manifest_id,
        )
        assert third.stored_bytes is not None
        assert first.stored_bytes is not None
        assert third.stored_bytes < first.stored_bytes / 2
        assert {one.data_key.id for one in catalogue.outdated(project)} == both
        assert restored(world, third.id) == bytes(world.provider.volumes[volume])
        for row in (second, third):
            world.backups.delete(world.ctx(), row.id)
            world.wait_backup(row.id, None)
        # The database does not know the first one, which needs its data key.
        world.backups.import_record(world.ctx(), **older)
        world.wait_backup(first.id, "available")
        assert restored(world, first.id) == DATA
        world.backups.delete(world.ctx(), first.id)
        world.wait_backup(first.id, None)
    assert data_keys(world) == 0
    assert world.objects() == set()


def test_data_keys_are_removed_by_whoever_goes_on_after_a_kill(
    world: WorkerWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume, struck = world.filled_volume(DATA), []

    def strike(point: str, *_: object) -> None:
        if point == "keys.dropped" and not struck:
            struck.append(data_keys(world))
            raise KeyStoreUnavailable("anything that ends the attempt")

    with world.worker():
        row = back_up(world, volume)
        monkeypatch.setattr("backupfw.crash_points.reach", strike)
        world.backups.delete(world.ctx(), row.id)
        world.wait_backup(row.id, None)
    assert struck == [0]
    assert world.objects() == set()


def test_an_import_is_refused_while_the_keys_of_its_project_are_destroyed(world: WorkerWorld) -> None:
    volume, catalogue = world.filled_volume(DATA), KeyManager(world.db)
    with world.worker():
        record = json.loads(base64.b64decode(exported(world, back_up(world, volume))["backup_url"]))
        catalogue.begin_destruction(world.ctx(admin=True), record["project_id"])
        text = base64.b64encode(json.dumps(record | {"id": str(uuid.uuid4())}).encode()).decode()
        made = world.backups.import_record(world.ctx(), backup_service=record["service"], backup_url=text)
        row = world.wait_backup(made.id, "error")
    assert "the keys of its project were destroyed" in str(row.fail_reason)


def test_a_key_store_that_is_away_costs_only_time(world: WorkerWorld, key_store: MemoryKeys) -> None:
    volume = world.filled_volume(DATA)
    with world.worker():
        old = back_up(world, volume)
        other = back_up(world, volume)
        key_store.away = True
        made = world.backups.create(world.ctx(), volume_id=volume, incremental=True)
        # Deletions go on.
        world.backups.delete(world.ctx(), other.id)
        world.wait_backup(other.id, None)
        _, target, _ = world.backups.restore(world.ctx(), old.id)
        assert world.status(made.id) == "creating"
        key_store.away = False
        world.wait_backup(made.id, "available")
        world.wait(lambda: world.volume_status(target) == "available", "the restore")
        assert bytes(world.provider.volumes[target]) == DATA


def test_a_key_store_that_stays_away_ends_the_task(world: WorkerWorld, key_store: MemoryKeys) -> None:
    volume = world.filled_volume(DATA)
    key_store.away = True
    with world.worker(store_wait=0.2):
        made = world.backups.create(world.ctx(), volume_id=volume)
        row = world.wait_backup(made.id, "error")
    assert row.fail_reason == "The key store of this service does not answer."
    assert world.objects() == set()


def test_a_destroyed_key_leaves_errors_that_can_be_deleted(world: WorkerWorld, key_store: MemoryKeys) -> None:
    volume, catalogue = world.filled_volume(DATA), KeyManager(world.db)
    with world.worker():
        first = back_up(world, volume)
        gone = catalogue.begin_destruction(world.ctx(admin=True), first.project_id)
        for key_id in gone.key_ids:
            key_store.destroy(key_id)
        catalogue.end_destruction(gone.key_ids)
        assert gone.backups == 1
        row = world.wait_backup(first.id, "error")
        assert "destroyed" in str(row.fail_reason)
        # The next backup has a new key and shares nothing.
        second = back_up(world, volume)
        assert manifest(world, second).mac_id != manifest(world, first).mac_id
        assert restored(world, second.id) == DATA
        for row in (first, second):
            world.backups.delete(world.ctx(), row.id)
            world.wait_backup(row.id, None)
    assert world.objects() == set()


def test_a_manifest_that_is_suddenly_not_encrypted_is_not_restored(world: WorkerWorld) -> None:
    """Who can write to the store may put a manifest without encryption in the place of one that has it."""
    volume = world.filled_volume(DATA)
    with world.worker():
        row = back_up(world, volume)
        world.conf["store:main"].encryption = "off"
        forged = back_up(world, volume)
        key = manifest(world, forged).key
        with world.db.write() as session:
            other = models.Manifest
            session.execute(update(other).where(other.id == forged.manifest_id).values(key=None))
            session.execute(update(other).where(other.id == row.manifest_id).values(key=key))
        _, target, _ = world.backups.restore(world.ctx(), row.id)
        world.wait(lambda: str(world.volume_status(target)).startswith("error"), "the refusal")


def test_an_import_refuses_data_that_is_not_encrypted_as_its_record_says(world: WorkerWorld) -> None:
    """The database is lost, and somebody who can write to the store has put another manifest there."""
    volume = world.filled_volume(DATA)
    with world.worker():
        ours, other = back_up(world, volume), back_up(world, world.filled_volume(DATA))
        world.conf["store:main"].encryption = "off"
        plain = back_up(world, volume)
        records = {row.id: exported(world, row) for row in (ours, other, plain)}
    by_id = {name: json.loads(base64.b64decode(one["backup_url"])) for name, one in records.items()}
    key_id, mac_id = manifest(world, ours).key_id, manifest(world, ours).mac_id
    named = by_id[ours.id]["driver_info"].pop("encryption")
    assert named == {"data_key": key_id, "mac": mac_id}
    assert "encryption" not in by_id[plain.id]["driver_info"]
    with world.worker():

        def imported(of: models.Backup, encryption: object, status: str) -> str:
            record = {**by_id[of.id], "id": str(uuid.uuid4())}
            record["driver_info"] = {**record["driver_info"], "encryption": encryption}
            text = base64.b64encode(json.dumps(record).encode()).decode()
            made = world.backups.import_record(
                world.ctx(), backup_service=records[of.id]["backup_service"], backup_url=text
            )
            return str(world.wait_backup(made.id, status).fail_reason)

        imported(ours, named, "available")
        # As a record of an earlier release.
        imported(ours, None, "available")
        reason = imported(plain, named, "error")
        assert f"encrypted with data key {key_id}; what the store has is not encrypted" in reason
        reason = imported(other, named, "error")
        assert f"what the store has is encrypted with data key {manifest(world, other).key_id}" in reason
        reason = imported(ours, {**named, "mac": "0" * 32}, "error")
        assert "Somebody has replaced it." in reason


def test_no_key_store_makes_no_encrypted_backup(tmp_path: Path) -> None:
    world = WorkerWorld(tmp_path, None)
    world.conf["store:main"].encryption = "project"
    volume = world.filled_volume(DATA)
    with world.worker():
        made = world.backups.create(world.ctx(), volume_id=volume)
        row = world.wait_backup(made.id, "error")
    assert "configuration is wrong" in str(row.fail_reason)
    assert world.objects() == set()
    world.close()


def test_a_manifest_says_with_which_key_it_is_encrypted(world: WorkerWorld) -> None:
    volume = world.filled_volume(DATA)
    with world.worker():
        row = manifest(world, back_up(world, volume))
        container = world.tools.stores.container("main", "volumebackups")
        assert row.key is not None
        head = ManifestReader(container, row.key).head
        assert (head.key_id, head.mac_id) == (row.key_id, row.mac_id)
        # Each backup looks whether its data key is in the store.
        place = next(key for key in stored(world) if keys.is_data_key(key))
        del stored(world)[place]
        back_up(world, volume, incremental=True)
        assert place in stored(world)


def test_a_key_store_that_answers_another_thread_meanwhile_is_still_down_here(
    world: WorkerWorld, key_store: MemoryKeys, monkeypatch: pytest.MonkeyPatch
) -> None:
    def answered() -> float:
        world.data_keys._down_since = None
        return 100.0

    monkeypatch.setattr("backupfw.worker.data_keys.time.monotonic", answered)
    key_store.away = True
    container = world.tools.stores.container("main", "volumebackups")
    place = KeyPlace("i", "p1", "v", "main", "volumebackups", held=False)
    with pytest.raises(KeyStoreDown) as caught:
        world.data_keys.for_new(place, container)
    assert caught.value.seconds == 0

"""The lineage on the real tables, in SQLite."""

from __future__ import annotations

import random
import uuid
from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any

import pytest
from sqlalchemy import delete, func, select, update

from backupfw.db.models import Backup, Base, Manifest
from backupfw.db.session import Database
from backupfw.manager.lineage import manifests
from tests.unit.manager.lineage_simulation import World

NOW = datetime(2030, 1, 1)
VOLUME = str(uuid.UUID(int=7))


def manifest(manifest_id: str, base_id: str | None = None, state: str = "live", **columns: Any) -> Manifest:
    values: dict[str, Any] = {
        "store": "main",
        "container": "box",
        "key": None if state == "writing" else f"k/{manifest_id}",
        "installation_id": "inst",
        "project_id": "p",
        "volume_id": VOLUME,
        "backup_id": manifest_id,
        "block_size": 65536,
        "segment_size": 1 << 28,
        "hash_mode": "blake3",
        "created_at": NOW,
    }
    return Manifest(id=manifest_id, base_id=base_id, state=state, **(values | columns))


def backup(backup_id: str, manifest_id: str, deleted: bool = False) -> Backup:
    return Backup(
        id=backup_id,
        project_id="p",
        volume_id=VOLUME,
        status="available",
        manifest_id=manifest_id,
        created_at=NOW,
        deleted=deleted,
    )


@pytest.fixture
def db() -> Iterator[Database]:
    database = Database("sqlite://")
    Base.metadata.create_all(database.engine)
    yield database
    database.close()


def fill(db: Database, *rows: Manifest | Backup) -> None:
    with db.write() as session:
        for row in rows:
            session.add(row)
            session.flush()


def found(db: Database, manifest_id: str) -> list[str]:
    with db.write() as session:
        return [row.id for row in manifests.relatives(session, manifest_id)]


def states(db: Database) -> dict[str, tuple[str, str | None, bool]]:
    with db.read() as session:
        rows = session.execute(select(Manifest.id, Manifest.state, Manifest.base_id, Manifest.in_tree))
        return {row.id: (row.state, row.base_id, row.in_tree) for row in rows}


def test_relatives_cross_a_gone_fork(db: Database) -> None:
    fill(
        db,
        manifest("g", None, "gone"),
        manifest("x", "g", "released"),
        manifest("y", "g"),
        manifest("z", "y"),
        manifest("v", "x"),
    )
    assert found(db, "x") == ["v", "y"]
    with db.write() as session:
        assert [row.key for row in manifests.relatives(session, "x")] == ["k/v", "k/y"]


def test_a_tree_does_not_reach_into_other_volumes_containers_stores_or_installations(db: Database) -> None:
    fill(
        db,
        manifest("x", None, "released", detached=True),
        manifest("volume", volume_id="other"),
        manifest("container", container="other"),
        manifest("store", store="other"),
        manifest("installation", installation_id="other"),
        manifest("mine"),
    )
    assert found(db, "x") == ["mine"]
    with db.read() as session:
        assert sorted(manifests.volume_keys(session, "x")) == ["k/mine", "k/x"]


def test_a_held_manifest_has_no_relatives_to_ask_for(db: Database) -> None:
    fill(db, manifest("a"))
    with db.write() as session:
        with pytest.raises(ValueError, match="live"):
            manifests.relatives(session, "a")
        with pytest.raises(ValueError, match="live"):
            manifests.mark_gone(session, "a")
        with pytest.raises(LookupError):
            manifests.relatives(session, "nobody")


def test_gone_links_are_joined_and_their_rows_stay(db: Database) -> None:
    fill(db, manifest("a"), manifest("x", "a", "released"), manifest("b", "x"))
    with db.write() as session:
        assert manifests.mark_gone(session, "x")
    assert states(db) == {"a": ("live", None, True), "x": ("gone", None, False), "b": ("live", "a", True)}
    with db.write() as session:
        assert not manifests.mark_gone(session, "x")
    assert found(db, "x") == []


def test_two_orphans_of_a_gone_base_stay_neighbours(db: Database) -> None:
    fill(db, manifest("x", None, "released"), manifest("b", "x"), manifest("c", "x"))
    with db.write() as session:
        manifests.mark_gone(session, "x")
        assert manifests.release_if_unused(session, "c")
    assert found(db, "c") == ["b"]


def test_a_manifest_is_released_when_nothing_holds_it_any_more(db: Database) -> None:
    fill(db, manifest("m"), backup("one", "m"), backup("duplicate", "m"))

    def drop(backup_id: str) -> bool:
        with db.write() as session:
            session.execute(update(Backup).where(Backup.id == backup_id).values(deleted=True))
            return manifests.release_if_unused(session, "m")

    assert not drop("one")
    assert drop("duplicate")
    assert states(db)["m"][0] == "released"
    assert not drop("duplicate"), "released twice"
    with db.write() as session:
        assert not manifests.take(session, "m"), "a child of a released manifest"


def test_a_child_being_made_holds_its_base(db: Database) -> None:
    fill(db, manifest("m"))
    with db.write() as session:
        assert manifests.take(session, "m")
        session.add(manifest("child", "m", "writing"))
    with db.write() as session:
        assert not manifests.release_if_unused(session, "m")
        assert manifests.abandon(session, "child")
        assert not manifests.abandon(session, "child")
        assert manifests.release_if_unused(session, "m")


def test_changes_of_the_same_session_that_are_not_flushed_count(db: Database) -> None:
    fill(db, manifest("m"))
    with db.write() as session:
        session.add(backup("new", "m"))
        assert not manifests.release_if_unused(session, "m")


def test_what_a_sweep_asks(db: Database) -> None:
    fill(
        db,
        manifest("live"),
        manifest("writing", "live", "writing"),
        manifest("released", None, "released"),
        manifest("gone", None, "gone", in_tree=False),
        manifest("elsewhere", volume_id="other"),
        manifest("another", container="other"),
    )
    moving = backup("moving", "live")
    moving.status = "deleting"
    fill(db, backup("still", "live"), moving)
    with db.read() as session:
        rows = manifests.volume_rows(
            session, store="main", container="box", installation_id="inst", volume_id=VOLUME
        )
    assert rows.live == {"k/live"}
    assert rows.known == {"k/live", "k/released", "k/gone"}
    assert rows.transient == {"writing", "released", "moving"}


class OnTables:
    """The rule as it is stored; every step is its own transaction, as tasks make them."""

    def __init__(self, db: Database) -> None:
        self.db = db

    def add(self, manifest_id: int, base: int | None, detached: bool) -> None:
        with self.db.write() as session:
            if base is not None:
                assert manifests.take(session, str(base))
            session.add(manifest(str(manifest_id), None if base is None else str(base), detached=detached))

    def release(self, manifest_id: int) -> None:
        with self.db.write() as session:
            assert manifests.release_if_unused(session, str(manifest_id))

    def relatives(self, manifest_id: int) -> Sequence[int]:
        return [int(one) for one in found(self.db, str(manifest_id))]

    def gone(self, manifest_id: int) -> None:
        with self.db.write() as session:
            assert manifests.mark_gone(session, str(manifest_id))

    def forget(self, manifests: Sequence[int]) -> None:
        ids = [str(one) for one in manifests]
        with self.db.write() as session:
            session.execute(update(Manifest).where(Manifest.base_id.in_(ids)).values(base_id=None))
            session.execute(delete(Manifest).where(Manifest.id.in_(ids)))

    def in_tree(self) -> int:
        with self.db.read() as session:
            return session.scalar(select(func.count()).where(Manifest.in_tree)) or 0


@pytest.mark.parametrize("disasters", [False, True])
def test_random_histories_on_the_tables(db: Database, disasters: bool) -> None:
    for seed in range(8):
        with db.write() as session:
            session.execute(update(Manifest).values(base_id=None))
            session.execute(delete(Manifest))
        World(OnTables(db), random.Random(seed), disasters=disasters).play(70)


@pytest.mark.soak
def test_many_random_histories_on_the_tables(db: Database) -> None:
    for seed in range(1000, 2000):
        with db.write() as session:
            session.execute(update(Manifest).values(base_id=None))
            session.execute(delete(Manifest))
        World(OnTables(db), random.Random(seed), disasters=seed % 3 == 0).play(120)

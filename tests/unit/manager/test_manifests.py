"""The lineage on the real tables, in SQLite."""

from __future__ import annotations

import random
import uuid
from collections.abc import Iterator, Sequence
from datetime import datetime

import pytest
from sqlalchemy import delete, func, select, update

from backupfw.db.models import Backup, Manifest
from backupfw.db.session import Database
from backupfw.manager.lineage import manifests
from tests.unit.manager.lineage_rows import (
    ELSEWHERE,
    NOW,
    VOLUME,
    announced,
    backup,
    elsewhere,
    fill,
    given_up,
    manifest,
    tables,
    volume_rows,
)
from tests.unit.manager.lineage_simulation import World


@pytest.fixture
def db() -> Iterator[Database]:
    yield from tables()


def found(db: Database, manifest_id: str) -> list[str]:
    with db.write() as session:
        return sorted(row.id for row in manifests.relatives(session, manifest_id))


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
        assert {row.key for row in manifests.relatives(session, "x")} == {"k/v", "k/y"}


def test_relatives_are_read_anew(db: Database) -> None:
    fill(db, manifest("x", None, "released"), manifest("w", "x", "writing"))
    with db.write() as session:
        known = session.get_one(Manifest, "w")
        assert known.key is None
        session.execute(
            update(Manifest).where(Manifest.id == "w").values(state="live", key="new"),
            execution_options={"synchronize_session": False},
        )
        (row,) = manifests.relatives(session, "x")
        assert (row.state, row.key) == ("live", "new")


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
        session.add(manifest("another", "m", "writing"))
    with db.write() as session:
        assert not manifests.release_if_unused(session, "m")
        assert manifests.abandon(session, "child")
        assert not manifests.abandon(session, "child")
    assert states(db)["another"][0] == "writing"
    with db.write() as session:
        assert manifests.is_base_of_running(session, "m")
        assert not manifests.release_if_unused(session, "m")
        assert manifests.abandon(session, "another")
        assert not manifests.is_base_of_running(session, "m")
        assert manifests.release_if_unused(session, "m")


def test_children_of_another_manifest_do_not_hold_this_one(db: Database) -> None:
    fill(db, manifest("m"), manifest("n"), manifest("child", "n", "writing"))
    with db.write() as session:
        assert not manifests.take(session, "nobody")
        assert manifests.take(session, "n")
        assert session.get_one(Manifest, "n").touched != 0
        assert session.get_one(Manifest, "m").touched == 0
        assert manifests.is_base_of_running(session, "n")
        assert not manifests.is_base_of_running(session, "m")
        assert manifests.release_if_unused(session, "m")


def test_changes_of_the_same_session_that_are_not_flushed_count(db: Database) -> None:
    fill(db, manifest("m"))
    with db.write() as session:
        session.add(backup("new", "m"))
        assert not manifests.release_if_unused(session, "m")


def is_unneeded(db: Database, key: str) -> bool:
    with db.read() as session:
        return manifests.is_unneeded(session, key)


def test_a_manifest_under_a_key_that_was_given_up_is_not_needed(db: Database) -> None:
    fill(
        db,
        given_up("given-up", "b"),
        announced("open", "b"),
        # It was committed once: the row has its length.
        given_up("committed", "b", length=1),
        # Removals that do not read what this backup's attempts put.
        manifest("other-backup", None, "released", backup_id="other"),
        manifest("other-volume", None, "released", backup_id="b", volume_id="other"),
        manifest("live", backup_id="b"),
    )
    assert is_unneeded(db, "given-up")
    for key in ("open", "committed", "nobody's"):
        assert not is_unneeded(db, key), key


def test_it_is_needed_until_the_removal_of_its_backup_has_read_it(db: Database) -> None:
    fill(db, given_up("given-up", "b"), manifest("released", None, "released", backup_id="b"))
    assert not is_unneeded(db, "given-up")
    with db.write() as session:
        manifests.mark_gone(session, "released")
    assert is_unneeded(db, "given-up")


@pytest.mark.parametrize(
    ("status", "needed"),
    [
        ("error", True),
        ("deleting", True),
        ("error_deleting", True),
        ("creating", False),
        ("available", False),
    ],
)
def test_it_is_needed_while_its_backup_is_there_and_will_be_removed(
    db: Database, status: str, needed: bool
) -> None:
    mine, other, deleted = backup("b", "m"), backup("other", "m"), backup("deleted", "m", deleted=True)
    for row in (mine, other, deleted):
        row.status = status
    fill(db, given_up("given-up", "b"), given_up("of-deleted", "deleted"), given_up("of-nobody", "nobody"))
    fill(db, manifest("m"), mine, other, deleted)
    assert is_unneeded(db, "given-up") is not needed
    assert is_unneeded(db, "of-deleted")
    assert is_unneeded(db, "of-nobody")


def test_what_a_sweep_asks(db: Database) -> None:
    fill(
        db,
        manifest("live"),
        manifest("writing", "live", "writing"),
        manifest("released", None, "released"),
        manifest("gone", None, "gone", in_tree=False),
        *elsewhere("live"),
        *elsewhere("writing", "writing"),
        announced("open", "still"),
        announced("of-nobody", "nobody"),
        announced("of-deleted", "deleted"),
        given_up("given-up", "still"),
    )
    fill(db, backup("still", "live"), backup("deleted", "live", deleted=True))
    rows = volume_rows(db)
    assert rows.live == {"k/live"}
    assert rows.known == {"k/live", "k/released", "k/gone", "given-up"}
    assert rows.announced == {"open"}
    assert rows.transient == {"writing", "released"}


@pytest.mark.parametrize(
    ("status", "moves"),
    [
        ("creating", True),
        ("restoring", True),
        ("deleting", True),
        ("error_deleting", True),
        ("available", False),
        ("error", False),
    ],
)
def test_the_objects_of_a_backup_on_which_a_task_works_can_change(
    db: Database, status: str, moves: bool
) -> None:
    for name, changes in {"one": {}, "deleted": {"deleted": True}, "other": {"volume_id": "other"}}.items():
        row = backup(name, "m")
        row.status = status
        for column, value in changes.items():
            setattr(row, column, value)
        fill(db, *([] if name != "one" else [manifest("m")]), row)
    assert volume_rows(db).transient == ({"one"} if moves else set())


def test_the_live_manifests_of_a_volume_and_who_names_them(db: Database) -> None:
    fill(
        db,
        manifest("a"),
        manifest("b", "a"),
        manifest("w", "a", "writing"),
        manifest("r", "a", "released"),
        *elsewhere("live"),
        backup("2", "a"),
        backup("1", "a"),
        backup("3", "a", deleted=True),
        backup("4", "r"),
        *(backup(f"of-{name}", f"live-{name}") for name in ELSEWHERE),
    )
    with db.read() as session:
        assert manifests.live_backups(session, "r") == {"k/a": ["1", "2"], "k/b": []}
        with pytest.raises(LookupError):
            manifests.live_backups(session, "nobody")


def test_the_keys_of_live_manifests_whose_lineage_is_unknown(db: Database) -> None:
    fill(
        db,
        manifest("d", detached=True),
        manifest("c", detached=True),
        manifest("known"),
        manifest("r", None, "released", detached=True),
        *elsewhere("d", detached=True),
    )
    with db.read() as session:
        assert manifests.keys_that_may_name(session, "known") == ["k/c", "k/d"]


@pytest.mark.parametrize("state", ["live", "gone"])
def test_after_a_rebuild_any_manifest_may_name_what_its_backup_has_again(db: Database, state: str) -> None:
    """A copy of the database showed a backup as being made, and a rebuild found what was committed since."""
    made_before = {"backup_id": "x", "length": 100}
    fill(
        db,
        manifest("x1", None, state, **made_before),
        manifest("upon-it", "x1"),
        manifest("other"),
        manifest("x2", None, "writing", backup_id="x"),
        # A key that was given up is no manifest.
        given_up("given-up", "y"),
        manifest("y", None, "writing", backup_id="y"),
    )
    with db.read() as session:
        known = {"live": ["k/x1"], "gone": []}[state]
        assert manifests.keys_that_may_name(session, "x2") == ["k/other", "k/upon-it", *known]
        assert manifests.keys_that_may_name(session, "y") == []


def test_the_keys_that_the_database_knows_of_a_volume(db: Database) -> None:
    fill(
        db,
        manifest("live"),
        manifest("writing", None, "writing"),
        manifest("gone", None, "gone", in_tree=False),
        announced("open", "b"),
        given_up("given-up", "b"),
        *elsewhere("live"),
    )
    with db.read() as session:
        assert manifests.volume_keys(session, "live") == {"k/live", "k/gone", "given-up"}


def test_an_announced_key_has_a_row_beside_that_of_its_manifest(db: Database) -> None:
    columns = {
        "epoch": 3,
        "key_id": "key",
        "mac_id": "mac",
        "hash_mode": "h",
        "block_size": 512,
        "segment_size": 1024,
    }
    times = {"created_at": NOW, "updated_at": datetime(2031, 1, 1)}
    fill(db, manifest("m", None, "writing", detached=True, touched=2, **columns, **times))
    with db.write() as session:
        row = session.get_one(Manifest, "m")
        manifests.announce(session, row, "the/key", "digest")
    with db.read() as session:
        found = session.scalars(select(Manifest).where(Manifest.state == "announced")).one()
        values = {column.key: getattr(found, column.key) for column in Manifest.__table__.columns}
    assert uuid.UUID(values.pop("id"))
    assert values == {
        "store": "main",
        "container": "box",
        "key": "the/key",
        "key_digest": "digest",
        "installation_id": "inst",
        "project_id": "p",
        "volume_id": VOLUME,
        "backup_id": "m",
        "base_id": None,
        # No relative of anything: it is a key, not a manifest.
        "in_tree": False,
        "detached": False,
        "copied": False,
        "copy_step": None,
        "state": "announced",
        **columns,
        "source_identity": None,
        "locked_until": None,
        "fully_verified_at": None,
        "scrub_task_id": None,
        "scrub_after": None,
        "length": None,
        "touched": 0,
        # Both are the moment of the announcement, on the clock of the manifest's row.
        "created_at": datetime(2031, 1, 1),
        "updated_at": datetime(2031, 1, 1),
    }
    assert states(db)["m"] == ("writing", None, True)


def test_which_keys_are_open_and_which_were_given_up(db: Database) -> None:
    fill(
        db,
        announced("open-2", "b"),
        announced("open-1", "b"),
        announced("of-c", "c"),
        given_up("given-up-2", "b"),
        given_up("given-up-1", "b"),
        given_up("given-up-of-c", "c"),
        manifest("live", backup_id="b", key_digest="live"),
        # This one was whole once.
        manifest("gone", None, "gone", backup_id="b", key_digest="gone", length=100),
    )
    digests = ("open-1", "given-up-1", "live", "gone", "unknown")
    with db.read() as session:
        assert [name for name in digests if manifests.is_announced(session, name)] == ["open-1"]
        assert [name for name in digests if manifests.is_given_up(session, name)] == ["given-up-1"]
        assert manifests.announced_keys(session, "b") == ["open-1", "open-2"]
        assert manifests.given_up_keys(session, "b") == ["given-up-1", "given-up-2"]


def test_only_open_keys_are_given_up(db: Database) -> None:
    fill(
        db, announced("one", "b"), announced("two", "b"), announced("of-c", "c"), manifest("m", backup_id="b")
    )
    with db.write() as session:
        manifests.give_up(session, Manifest.backup_id == "b", Manifest.key != "two")
        assert manifests.announced_keys(session, "b") == ["two"]
        assert manifests.announced_keys(session, "c") == ["of-c"]
        assert manifests.given_up_keys(session, "b") == ["one"]
        row = session.scalars(select(Manifest).where(Manifest.key == "one")).one()
        assert row.updated_at is not None
    assert states(db)["m"][0] == "live"


def test_a_key_is_open_for_nobody_when_its_backup_is_deleted(db: Database) -> None:
    fill(
        db,
        manifest("m"),
        announced("of-there", "there"),
        announced("of-deleted", "deleted"),
        announced("of-nobody", "nobody"),
        manifest("live-of-nobody", backup_id="nobody"),
        backup("there", "m"),
        backup("deleted", "m", deleted=True),
    )
    with db.read() as session:
        found = session.scalars(select(Manifest.key).where(manifests.announced_for_nobody()))
        assert sorted(filter(None, found)) == ["of-deleted", "of-nobody"]


def test_a_key_is_open_beside_the_manifest_that_was_committed_for_its_backup(db: Database) -> None:
    fill(
        db,
        manifest("b"),
        announced("open-2", "b"),
        announced("open-1", "b"),
        given_up("given-up", "b"),
        announced("elsewhere", "b", container="other"),
        announced("in-another-store", "b", store="other"),
        # These can be committed yet, or belong to nothing that is live.
        manifest("writing", None, "writing", backup_id="w"),
        announced("of-w", "w"),
        manifest("released", None, "released", backup_id="r"),
        announced("of-r", "r"),
        manifest("live-in-another-volume", backup_id="v", volume_id="other"),
        announced("of-v", "v"),
        announced("of-nobody", "nobody"),
    )
    with db.read() as session:
        assert manifests.announced_beside_live(session, "main", "box") == ["open-1", "open-2"]


def test_a_manifest_is_committed_under_its_announced_key(db: Database) -> None:
    fill(
        db,
        manifest("m", None, "writing", backup_id="b"),
        announced("key", "b"),
        announced("other", "b"),
        given_up("lost", "b"),
    )
    with db.write() as session:
        row = session.get_one(Manifest, "m")
        assert not manifests.commit(session, row, "lost", "lost", 7)
        assert (row.state, row.key, row.key_digest, row.length) == ("writing", None, None, None)
        assert manifests.commit(session, row, "key", "key", 7)
    with db.read() as session:
        row = session.get_one(Manifest, "m")
        assert (row.state, row.key, row.key_digest, row.length) == ("live", "key", "key", 7)
        assert manifests.announced_keys(session, "b") == ["other"]
        assert manifests.given_up_keys(session, "b") == ["lost"]


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
    for seed in range(4):
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

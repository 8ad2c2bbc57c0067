"""Copies, links of Cinder's format, and locks in the store, as the lineage treats them, in SQLite."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import delete, select, update

from backupfw.db.models import Backup, BackupCopy, DataKey, Installation, Manifest, Sweep, Task
from backupfw.db.session import Database, now
from backupfw.errors import StillLocked, TakesTurns
from backupfw.manager.lineage import manifests
from backupfw.manager.lineage.manifests import CINDER
from tests.unit.manager.lineage_rows import (
    ELSEWHERE,
    NOW,
    PLACE,
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

HOUR = timedelta(hours=1)


@pytest.fixture
def db() -> Iterator[Database]:
    yield from tables()


def link(link_id: str, base_id: str | None = None, state: str = "live", **columns: Any) -> Manifest:
    return manifest(link_id, base_id, state, **{"installation_id": CINDER, "in_tree": False} | columns)


def a_copy(manifest_id: str, step: str | None = None, state: str = "writing", **columns: Any) -> Manifest:
    return manifest(manifest_id, None, state, copied=True, copy_step=step, **columns)


def a_backups_copy(backup_id: str, manifest_id: str | None, status: str = "available") -> BackupCopy:
    return BackupCopy(
        id=f"copy-{backup_id}",
        backup_id=backup_id,
        store="main",
        container="box",
        status=status,
        manifest_id=manifest_id,
        created_at=NOW,
    )


def from_now(db: Database, after: timedelta) -> datetime:
    with db.read() as session:
        return now(session) + after


def known(db: Database) -> dict[str, str]:
    with db.read() as session:
        return {row.id: row.state for row in session.scalars(select(Manifest))}


def released(db: Database, manifest_id: str, **options: bool) -> bool:
    with db.write() as session:
        return manifests.release_if_unused(session, manifest_id, **options)


# ---- links -------------------------------------------------------------------------------------------


def test_a_link_names_those_that_it_needs_newest_first(db: Database) -> None:
    fill(
        db,
        link("full", container="first"),
        link("one", "full"),
        link("two", "one"),
        manifest("ours"),
        manifest("upon-ours", "ours"),
    )
    with db.read() as session:
        found = manifests.links(session, session.get_one(Manifest, "two"))
        assert found == (("box", "k/two"), ("box", "k/one"), ("first", "k/full"))
        assert manifests.links(session, session.get_one(Manifest, "upon-ours")) == ()


def test_only_links_that_are_not_gone_need_a_link(db: Database) -> None:
    fill(
        db,
        link("full"),
        link("one", "full"),
        link("gone", "one", "gone"),
        manifest("ours"),
        manifest("upon-ours", "ours"),
        manifest("upon-one", "one"),
    )
    with db.read() as session:
        ids = session.scalars(select(Manifest.id)).all()
        needed = {one for one in ids if manifests.is_needed_link(session, one)}
    assert needed == {"full"}


def test_a_link_is_found_by_the_backup_that_cinder_made(db: Database) -> None:
    earlier, later = datetime(2020, 1, 1), datetime(2021, 1, 1)
    fill(
        db,
        link("later", backup_id="b", created_at=later),
        link("earlier", backup_id="b", created_at=earlier),
        link("of-another-store", backup_id="b", store="other", created_at=datetime(2019, 1, 1)),
        link("gone", None, "gone", backup_id="b", created_at=datetime(2019, 1, 1)),
        link("of-c", backup_id="c", created_at=datetime(2019, 1, 1)),
        manifest("ours", backup_id="b", created_at=datetime(2019, 1, 1)),
    )
    with db.read() as session:
        found = manifests.find_link(session, "main", "b")
        assert found is not None
        assert found.id == "earlier"
        assert manifests.find_link(session, "main", "nobody's") is None


def dropped(db: Database, manifest_id: str | None) -> tuple[str | None, set[str]]:
    """Drop links from this one on; return where that ended, and which are left."""
    with db.write() as session:
        ended = manifests.drop_links(session, manifest_id)
    return ended, set(known(db))


def test_links_that_nothing_needs_are_dropped_up_to_the_first_that_is_needed(db: Database) -> None:
    fill(
        db,
        link("full"),
        link("one", "full"),
        link("two", "one"),
        link("three", "two"),
        link("beside", "one"),
        backup("deleted", "three", deleted=True),
        backup("other", "beside"),
    )
    # The link "beside" needs "one".
    assert dropped(db, "three") == (None, {"full", "one", "beside"})
    with db.read() as session:
        assert session.get_one(Backup, "deleted").manifest_id is None
        assert session.get_one(Backup, "other").manifest_id == "beside"
    assert dropped(db, None) == (None, {"full", "one", "beside"})
    assert dropped(db, "three") == (None, {"full", "one", "beside"})


def test_a_link_that_a_backup_names_stays(db: Database) -> None:
    fill(db, link("full"), link("one", "full"), backup("b", "one"))
    assert dropped(db, "one") == (None, {"full", "one"})


def test_a_link_that_is_not_live_stays_for_its_release(db: Database) -> None:
    fill(db, link("full"), link("one", "full", "released"))
    assert dropped(db, "one") == (None, {"full", "one"})


def test_links_are_dropped_up_to_one_that_was_converted(db: Database) -> None:
    fill(db, link("full", copied=True), link("one", "full"), backup("b", "full"))
    assert dropped(db, "one") == ("full", {"full"})


def test_what_another_session_changed_counts_when_links_are_dropped(db: Database) -> None:
    fill(db, link("full"), link("one", "full"))
    with db.write() as session:
        # The session knows a row as long as somebody does.
        row = session.get_one(Manifest, "one")
        assert row.state == "live"
        session.execute(
            update(Manifest).where(Manifest.id == "one").values(state="released"),
            execution_options={"synchronize_session": False},
        )
        assert manifests.drop_links(session, "one") is None
        assert row.state == "released"
    assert known(db) == {"full": "live", "one": "released"}


def test_a_link_that_another_session_dropped_is_none_any_more(db: Database) -> None:
    fill(db, link("full"), link("one", "full"))
    with db.write() as session:
        row = session.get_one(Manifest, "one")
        session.execute(
            delete(Manifest).where(Manifest.id == "one"), execution_options={"synchronize_session": False}
        )
        assert row.state == "live"
        assert manifests.drop_links(session, "one") is None
    # What it needed is for that other session.
    assert set(known(db)) == {"full"}


def test_a_link_that_another_needs_is_not_released(db: Database) -> None:
    fill(db, link("full"), link("one", "full"))
    assert not released(db, "full")
    assert released(db, "one")
    # Its objects are being deleted: until they are gone it is needed.
    assert not released(db, "full")
    with db.write() as session:
        assert manifests.mark_gone(session, "one")
        assert session.get_one(Manifest, "one").base_id is None
    assert released(db, "full")


# ---- locks in the store ------------------------------------------------------------------------------


def test_a_locked_manifest_is_not_released_before_its_lock_ends(db: Database) -> None:
    until = from_now(db, HOUR)
    fill(db, manifest("locked", locked_until=until), manifest("free", locked_until=from_now(db, -HOUR)))
    with pytest.raises(StillLocked) as refused:
        released(db, "locked")
    assert refused.value.until == until
    assert 3500 < refused.value.seconds <= 3600
    assert known(db)["locked"] == "live"
    with db.read() as session:
        assert manifests.locked_until(session, "locked") == until
        assert manifests.locked_until(session, "free") is None
        assert manifests.locked_until(session, "nobody") is None
        manifests.refuse_while_locked(session, "free")
    assert released(db, "locked", even_locked=True)
    assert released(db, "free")


def test_a_lock_is_asked_for_only_when_no_record_names_the_manifest(db: Database) -> None:
    fill(db, manifest("locked", locked_until=from_now(db, HOUR)), backup("b", "locked"))
    assert not released(db, "locked")


def test_all_are_locked_until_the_first_lock_ends() -> None:
    first, second = datetime(2030, 1, 1), datetime(2031, 1, 1)
    assert manifests.earliest(second, first) == first
    assert manifests.earliest(second, None) is None


# ---- copies ------------------------------------------------------------------------------------------


def test_a_copy_holds_its_manifest(db: Database) -> None:
    fill(db, manifest("own"), manifest("copy"), manifest("other"), backup("b", "own"))
    fill(db, a_backups_copy("b", "copy"))
    assert not released(db, "copy")
    assert released(db, "other")


def test_the_backups_of_a_manifest_are_those_of_its_copies_too(db: Database) -> None:
    fill(db, manifest("own", store="far"), manifest("copy"), backup("b", "own"), backup("c", "copy"))
    fill(db, a_backups_copy("b", "copy"))
    with db.read() as session:
        assert manifests.live_backups(session, "copy") == {"k/copy": ["b", "c"]}
        assert manifests.live_backups(session, "own") == {"k/own": ["b"]}


def begins(db: Database, manifest_id: str) -> bool:
    with db.write() as session:
        return manifests.begin_copy(session, session.get_one(Manifest, manifest_id))


def steps(db: Database, manifest_id: str) -> tuple[str | None, str | None]:
    with db.read() as session:
        row = session.get_one(Manifest, manifest_id)
        return row.copy_step, row.source_identity


def test_a_copy_begins_and_has_its_place_later(db: Database) -> None:
    fill(db, a_copy("copy"), *elsewhere("released", "released"))
    with db.read() as session:
        row = session.get_one(Manifest, "copy")
        assert not manifests.has_begun(row)
        assert not manifests.may_have_objects(row)
    assert not begins(db, "copy")
    # The processes of an older release read the other column.
    assert steps(db, "copy") == ("begun", "begun")
    with db.write() as session:
        row = session.get_one(Manifest, "copy")
        assert manifests.has_begun(row)
        assert not manifests.may_have_objects(row)
        manifests.place_copy(session, row, None, detached=False)
        assert manifests.may_have_objects(row)
    assert steps(db, "copy") == ("placed", "placed")
    assert begins(db, "copy")


def test_what_an_older_release_says_of_a_copy_counts(db: Database) -> None:
    fill(db, a_copy("begun", source_identity="begun"), a_copy("placed", source_identity="placed"))
    fill(db, manifest("released", None, "released"))
    assert not begins(db, "begun")
    assert begins(db, "placed")
    with db.read() as session:
        assert manifests.has_begun(session.get_one(Manifest, "begun"))
        assert manifests.may_have_objects(session.get_one(Manifest, "placed"))
        copying = select(Manifest.id).where(manifests.is_copying()).order_by(Manifest.id)
        assert list(session.scalars(copying)) == ["begun", "placed"]
        placed = select(Manifest.id).where(manifests.is_placed())
        assert list(session.scalars(placed)) == ["placed"]


def test_only_a_copy_that_has_begun_and_has_not_ended_is_being_made(db: Database) -> None:
    fill(
        db,
        a_copy("begun", "begun"),
        a_copy("not-begun"),
        a_copy("live", "placed", "live"),
        manifest("no-copy", None, "writing", copy_step="begun"),
    )
    with db.read() as session:
        assert list(session.scalars(select(Manifest.id).where(manifests.is_copying()))) == ["begun"]


def test_a_backup_that_is_made_has_begun_when_its_blocks_have_a_size(db: Database) -> None:
    fill(db, manifest("waits", None, "writing", block_size=0), manifest("begun", None, "writing"))
    with db.read() as session:
        assert not manifests.has_begun(session.get_one(Manifest, "waits"))
        assert manifests.has_begun(session.get_one(Manifest, "begun"))


def test_a_backup_may_have_objects_when_its_key_or_its_source_is_known(db: Database) -> None:
    fill(
        db,
        manifest("live"),
        manifest("writing", None, "writing", source_identity="a disk"),
        manifest("waits", None, "writing"),
    )
    with db.read() as session:
        rows = session.scalars(select(Manifest)).all()
        having = [row.id for row in rows if manifests.may_have_objects(row)]
    assert sorted(having) == ["live", "writing"]


def test_a_manifest_that_was_found_counts_as_a_copy(db: Database) -> None:
    fill(db, manifest("found"))
    with db.write() as session:
        manifests.count_as_copy(session.get_one(Manifest, "found"))
    assert steps(db, "found") == ("placed", "placed")
    assert volume_rows(db).copies == {"found"}


def test_a_copy_waits_for_the_removals_of_its_own_tree(db: Database) -> None:
    fill(db, a_copy("copy"), *elsewhere("released", "released"), manifest("gone", None, "gone"))
    fill(db, manifest("of-the-volume", None, "released"))
    with pytest.raises(TakesTurns):
        begins(db, "copy")
    assert steps(db, "copy") == (None, None)
    with db.write() as session:
        manifests.mark_gone(session, "of-the-volume")
    assert not begins(db, "copy")
    assert steps(db, "copy") == ("begun", "begun")


def removal(resource_id: str, *, locked: bool = True, **columns: Any) -> dict[str, Any]:
    """Return the columns of a task that removes something."""
    values = {"kind": "manifest.release", "state": "queued", "project_id": "p", "payload": {}}
    return {"resource_id": resource_id, "locked": locked, "created_at": NOW} | values | columns


@pytest.mark.parametrize(
    ("tasks", "waits"),
    [
        ([], True),
        ([removal("m")], False),
        ([removal("b", kind="backup.delete")], False),
        ([removal("m", locked=False)], True),
        ([removal("m", state="running")], True),
        ([removal("m", kind="backup.restore")], True),
        ([removal("nobody")], True),
        ([removal("of-another", kind="backup.delete")], True),
        ([removal("m"), removal("b", kind="backup.delete", locked=False)], True),
        ([removal("m"), removal("m", kind="backup.restore", locked=False)], False),
        ([removal("m"), removal("of-another", kind="backup.delete", locked=False)], False),
    ],
)
def test_a_copy_does_not_wait_for_a_removal_that_waits_for_a_lock(
    db: Database, tasks: list[dict[str, Any]], waits: bool
) -> None:
    fill(db, a_copy("copy"), manifest("m", None, "released"), backup("b", "m"), backup("of-another", "copy"))
    fill(db, *(Task(**columns) for columns in tasks))
    if waits:
        with pytest.raises(TakesTurns):
            begins(db, "copy")
    else:
        assert not begins(db, "copy")
        assert steps(db, "copy") == ("begun", "begun")


def test_a_removal_waits_for_the_copies_of_its_own_tree(db: Database) -> None:
    fill(
        db,
        manifest("m", None, "released"),
        a_copy("waits"),
        a_copy("complete", "placed", "live"),
        *(a_copy(f"copy-{name}", "begun", **{name: value}) for name, value in ELSEWHERE.items()),
    )
    with db.write() as session:
        manifests.refuse_while_copying(session, "m")
    fill(db, a_copy("copy", "begun"))
    with db.write() as session, pytest.raises(TakesTurns):
        manifests.refuse_while_copying(session, "m")
    with db.write() as session, pytest.raises(LookupError):
        manifests.refuse_while_copying(session, "nobody")


def hold_back(db: Database, sweep_id: str, **place: str) -> None:
    with db.write() as session:
        manifests.hold_copies_back(session, sweep_id, **PLACE | place)


def let_begin(db: Database, sweep_id: str, volume_id: str = VOLUME) -> None:
    with db.write() as session:
        manifests.let_copies_begin(session, sweep_id, volume_id)


def test_no_copy_begins_while_a_sweep_deletes_there(db: Database) -> None:
    fill(db, Installation(id=1, uuid="inst", created_at=NOW), a_copy("copy"))
    for number, other in enumerate(({"store": "far"}, {"container": "other"}, {"volume_id": "other"})):
        hold_back(db, f"elsewhere-{number}", **other)
    hold_back(db, "here")
    with pytest.raises(TakesTurns):
        begins(db, "copy")
    assert steps(db, "copy") == (None, None)
    let_begin(db, "another")
    let_begin(db, "here", "other")
    with pytest.raises(TakesTurns):
        begins(db, "copy")
    let_begin(db, "here")
    assert not begins(db, "copy")
    assert steps(db, "copy") == ("begun", "begun")
    # One that has begun goes on: the sweep sees it.
    hold_back(db, "here")
    assert not begins(db, "copy")


def test_a_sweep_that_died_holds_copies_back_for_an_hour(db: Database) -> None:
    fill(db, a_copy("copy"), Sweep(id="dead", until=from_now(db, -HOUR / 60), **PLACE))
    before = from_now(db, HOUR)
    hold_back(db, "here")
    with db.read() as session:
        # The dead one's row goes with the next.
        (found,) = session.scalars(select(Sweep))
        assert (found.id, found.volume_id, found.store, found.container) == ("here", VOLUME, "main", "box")
        assert before <= found.until <= now(session) + HOUR
    with db.write() as session:
        session.execute(update(Sweep).values(until=now(session) - HOUR / 60))
    assert not begins(db, "copy")
    assert steps(db, "copy") == ("begun", "begun")


def test_a_sweep_says_for_each_request_that_it_goes_on(db: Database) -> None:
    hold_back(db, "here")
    with db.write() as session:
        session.execute(update(Sweep).values(until=now(session) + HOUR / 60))
    hold_back(db, "here")
    with db.read() as session:
        (until,) = session.scalars(select(Sweep.until))
        assert until > now(session) + HOUR / 2


def placed(db: Database, manifest_id: str, base: str | None, *, detached: bool = False) -> tuple[Any, ...]:
    with db.write() as session:
        manifests.place_copy(session, session.get_one(Manifest, manifest_id), base, detached=detached)
    with db.read() as session:
        row = session.get_one(Manifest, manifest_id)
        return row.base_id, row.detached


def test_a_copy_has_the_place_of_what_it_copies(db: Database) -> None:
    fill(
        db,
        manifest("base", key_digest="base"),
        manifest("released", None, "released", key_digest="released"),
        *(
            manifest(f"base-{name}", key_digest=f"base-{name}", **{name: value})
            for name, value in ELSEWHERE.items()
        ),
        a_copy("copy", "begun"),
    )
    assert placed(db, "copy", "base") == ("base", False)
    with db.read() as session:
        # A release of the base at the same moment is seen.
        assert session.get_one(Manifest, "base").touched != 0
    assert placed(db, "copy", "base", detached=True) == (None, True)
    assert placed(db, "copy", None) == (None, False)
    for unknown in ("nothing", "released", *(f"base-{name}" for name in ELSEWHERE)):
        assert placed(db, "copy", unknown) == (None, True), unknown


def test_the_key_of_a_copy_that_is_gone_is_free(db: Database) -> None:
    fill(
        db,
        a_copy("gone", "placed", "gone", key_digest="gone", length=1),
        a_copy("other", "placed", "gone", key_digest="other", length=1),
        a_copy("live", "placed", "live", key_digest="live", length=1),
        given_up("given-up", "b"),
    )
    with db.write() as session:
        for digest in ("gone", "live", "given-up"):
            manifests.free_key(session, digest)
    with db.read() as session:
        keys = {row.id: (row.key, row.key_digest) for row in session.scalars(select(Manifest))}
    assert keys == {
        "gone": (None, None),
        "other": ("k/other", "other"),
        "live": ("k/live", "live"),
        "id-given-up": ("given-up", "given-up"),
    }


# ---- what callers ask --------------------------------------------------------------------------------


def data_key(key_id: str, **columns: Any) -> DataKey:
    values = {
        "id": key_id,
        "mac_id": f"mac-{key_id}",
        "project_id": "p",
        "installation_id": "inst",
        "algorithm": "a",
        "project_key_id": "k",
        "wrapped": b"",
        "created_at": NOW,
    }
    return DataKey(**PLACE | values | columns)


def test_a_sweep_asks_for_copies(db: Database) -> None:
    fill(
        db,
        a_copy("waits"),
        a_copy("complete", "placed", "live"),
        a_copy("gone", "placed", "gone"),
        *(a_copy(f"copy-{name}", "begun", **{name: value}) for name, value in ELSEWHERE.items()),
        manifest("no-copy", copy_step="begun"),
    )
    rows = volume_rows(db)
    assert not rows.copying
    assert rows.copies == {"complete", "gone"}
    fill(db, a_copy("copy", "begun"))
    rows = volume_rows(db)
    assert rows.copying
    assert rows.copies == {"complete", "copy", "gone"}


def test_a_sweep_asks_for_the_keys_of_digests(db: Database) -> None:
    fill(
        db,
        manifest("live", mac_id="live"),
        manifest("writing", None, "writing", mac_id="writing"),
        manifest("gone", None, "gone", mac_id="gone"),
        manifest("clear"),
        *elsewhere("live", mac_id="elsewhere"),
        data_key("1"),
        *(data_key(name, **{name: value}) for name, value in ELSEWHERE.items()),
    )
    assert volume_rows(db).mac_ids == {"live", "writing", "mac-1"}


def test_the_objects_of_a_copy_that_ends_can_go(db: Database) -> None:
    fill(
        db,
        manifest("own", backup_id="b", store="far"),
        a_copy("ends", "placed", "released", backup_id="b"),
        manifest("released", None, "released", backup_id="c"),
    )
    moving, also_moving = backup("b", "own"), backup("d", "own")
    moving.status = also_moving.status = "deleting"
    fill(db, moving, also_moving)
    assert volume_rows(db).transient == {"b", "c", "d"}
    assert volume_rows(db, ending="ends").transient == {"c", "d"}


def test_open_keys_can_be_asked_for_by_a_condition(db: Database) -> None:
    fill(db, announced("one", "b"), announced("two", "b"))
    with db.read() as session:
        assert manifests.announced_keys(session, "b", Manifest.key_digest != "one") == ["two"]


@pytest.mark.parametrize("place", ["volume_id", "store", "container", "installation_id", "backup_id"])
def test_a_manifest_of_another_place_or_backup_says_nothing_of_what_may_name_objects(
    db: Database, place: str
) -> None:
    """As if the database had been restored: see ``keys_that_may_name``."""
    fill(
        db,
        manifest("other"),
        manifest("again", None, "writing", backup_id="b"),
        manifest("known", length=1, **{"backup_id": "b"} | {place: "other"}),
    )
    with db.read() as session:
        assert manifests.keys_that_may_name(session, "again") == []


def test_a_manifest_itself_says_nothing_of_what_may_name_its_objects(db: Database) -> None:
    fill(db, manifest("other"), manifest("itself", None, "released", backup_id="b", length=1))
    with db.read() as session:
        assert manifests.keys_that_may_name(session, "itself") == []


def test_what_is_being_made_of_the_same_backup_says_nothing_of_it(db: Database) -> None:
    """A copy knows its length before it is complete."""
    fill(
        db,
        manifest("other"),
        manifest("again", None, "writing", backup_id="b"),
        a_copy("copy", "begun", backup_id="b", length=1),
    )
    with db.read() as session:
        assert manifests.keys_that_may_name(session, "again") == []


@pytest.mark.parametrize("state", ["live", "released", "gone"])
def test_another_manifest_of_the_backup_says_that_any_may_name_its_objects(db: Database, state: str) -> None:
    fill(
        db,
        manifest("other"),
        manifest("again", None, "writing", backup_id="b"),
        manifest("known", None, state, backup_id="b", length=1, in_tree=False),
    )
    with db.read() as session:
        assert manifests.keys_that_may_name(session, "again") == ["k/other"]


def test_what_is_asked_of_no_manifest_is_an_error(db: Database) -> None:
    with db.write() as session:
        for ask in (
            manifests.volume_keys,
            manifests.live_backups,
            manifests.keys_that_may_name,
            manifests.mark_gone,
        ):
            with pytest.raises(LookupError, match="nobody"):
                ask(session, "nobody")


def test_the_place_of_a_manifest_is_read_anew(db: Database) -> None:
    fill(db, manifest("m"), manifest("other", store="far"))
    with db.write() as session:
        row = session.get_one(Manifest, "m")
        session.execute(
            update(Manifest).where(Manifest.id == "m").values(store="far"),
            execution_options={"synchronize_session": False},
        )
        assert row.store == "main"
        assert manifests.volume_keys(session, "m") == {"k/m", "k/other"}


def test_a_manifest_that_is_gone_is_marked_at_a_moment(db: Database) -> None:
    fill(db, manifest("m", None, "released"))
    before = from_now(db, timedelta())
    with db.write() as session:
        assert manifests.mark_gone(session, "m")
    with db.read() as session:
        moment = session.get_one(Manifest, "m").updated_at
        assert moment is not None
        assert moment >= before

"""The sweep: what it finds, and what it must leave alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from backupfw.chunkstore.errors import Unavailable
from backupfw.engine import sweep
from backupfw.engine.format import keys
from backupfw.engine.format.key_object import WrappedKey
from backupfw.engine.format.sealing import DataKey, Sealing
from backupfw.errors import TaskCancelled
from tests.unit.engine.removal_world import PREFIX, VOLUME_PREFIX, Control, Watched, World, names


@dataclass
class Rows:
    live: set[str] = field(default_factory=set)
    known: set[str] = field(default_factory=set)
    announced: set[str] = field(default_factory=set)
    transient: set[str] = field(default_factory=set)
    mac_ids: set[str] = field(default_factory=set)
    copying: bool = False
    copies: frozenset[str] = frozenset()


class Database:
    """Rows by volume, and what happens just before they are read."""

    def __init__(self, store: Watched, **volumes: Rows) -> None:
        self.store = store
        self.volumes = volumes
        self.before: Callable[[], None] = lambda: None

    def volume(self, project: str, volume: str) -> Rows:
        assert project == "p"
        self.before()
        self.store.calls.append(("rows", volume))
        return self.volumes.get(volume, Rows())

    def deleting(self, project: str, volume: str) -> Rows:
        return self.volume(project, volume)

    def deleted(self, project: str, volume: str) -> None:
        self.store.calls.append(("deleted", volume))


def live(*manifests: tuple[str, object]) -> Rows:
    found = {key for key, _ in manifests}
    return Rows(live=set(found), known=set(found))


@pytest.fixture(params=[True, False], ids=["sorted listing", "unsorted listing"])
def world(request: pytest.FixtureRequest) -> World:
    return World(Watched(bulk=7, sorted_listing=request.param))


def run(world: World, database: Database, prefix: str = PREFIX, dry_run: bool = False) -> sweep.SweepReport:
    return sweep.run(prefix, world.container, database, Control(), dry_run=dry_run)


def test_orphans_go_and_named_objects_stay(world: World) -> None:
    full = world.backup("a", {0: 2, 1: 1})
    child = world.backup("b", {1: 1}, full[1][:1])
    orphans = world.backup("c", {0: 1, 9: 2}, put_manifest=False)
    database = Database(world.store, v=Rows(live={child[0]}, known={full[0], child[0]}))
    dry = run(world, database, dry_run=True)
    assert set(world.objects) == names(full) | names(child) | names(orphans) - {orphans[0]}
    report = run(world, database)
    # a is gone, but its manifest and one segment had stayed behind.
    assert set(world.objects) == names(child)
    assert report.volumes == dry.volumes
    assert dry.dry_run
    assert report.orphans == 5 + 3
    assert report.orphan_bytes == dry.orphan_bytes > 70
    assert report.volumes[0].stopped is None
    assert run(world, database).orphans == 0


def test_each_volume_by_itself(world: World) -> None:
    one = world.backup("a", {0: 1}, volume="one")
    two = world.backup("a", {0: 1}, volume="two")
    world.backup("x", {0: 1}, volume="one", put_manifest=False)
    world.backup("x", {0: 1}, volume="two", put_manifest=False)
    world.backup("x", {0: 1}, volume="three", put_manifest=False)
    database = Database(world.store, one=live(one), two=live(two))
    world.flip(one[0])
    report = run(world, database)
    assert [(volume.volume, volume.orphans) for volume in report.volumes] == [
        ("one", 0),
        ("three", 2),
        ("two", 2),
    ]
    assert report.volumes[0].stopped is not None
    assert one[0] in report.volumes[0].stopped
    assert set(world.objects) > names(one) | names(two)
    assert len(world.objects) == len(names(one)) + len(names(two)) + 2


def test_a_prefix_of_one_volume(world: World) -> None:
    world.backup("x", {0: 1}, put_manifest=False)
    other = world.backup("x", {0: 1}, volume="v2")
    run(world, Database(world.store), VOLUME_PREFIX)
    assert set(world.objects) == names(other)


@pytest.mark.parametrize("prefix", ["", "/", "inst", "inst/p/v/a/"])
def test_other_prefixes_are_refused(world: World, prefix: str) -> None:
    with pytest.raises(ValueError, match="no prefix"):
        run(world, Database(world.store), prefix)


def test_only_our_installations_and_only_what_parses(world: World) -> None:
    world.backup("f", {0: 1}, installation="other", put_manifest=False)
    world.backup("f", {0: 1}, installation="inst2", put_manifest=False)
    world.put("inst/p/v/a/readme")
    world.put("inst/p/v/a/1.1-0123456789abcdef/00000000/p0000.tmp")
    world.put("inst/notes")
    before = set(world.objects)
    assert run(world, Database(world.store)).volumes == ()
    assert set(world.objects) == before


def test_backups_in_a_transient_state_are_skipped(world: World) -> None:
    world.backup("w", {0: 2}, put_manifest=False)
    before = set(world.objects)
    database = Database(world.store, v=Rows(transient={"w"}))
    report = run(world, database)
    assert report.volumes[0].skipped == 3
    assert report.orphans == 0
    assert set(world.objects) == before


def test_a_valid_unknown_manifest_is_reported_with_all_it_names(world: World) -> None:
    gone = world.backup("a", {0: 2, 1: 1})
    unknown = world.backup("u", {1: 1}, gone[1][:1])
    report = run(world, Database(world.store, v=Rows(known={gone[0]})))
    assert report.volumes[0].unknown_manifests == (unknown[0],)
    assert set(world.objects) == names(unknown)
    report = run(world, Database(world.store, v=Rows(known={gone[0]}, announced={unknown[0]})))
    assert report.volumes[0].unknown_manifests == ()
    assert set(world.objects) == names(unknown)


def test_a_manifest_that_a_lost_attempt_put_late_is_an_orphan(world: World) -> None:
    kept = world.backup("a", {0: 2}, attempt=2)
    late = world.backup("a", {1: 1}, kept[1], attempt=1)
    # Announced before it was put.
    rows = Rows(live={kept[0]}, known={kept[0], late[0]})
    report = run(world, Database(world.store, v=rows))
    assert report.volumes[0].unknown_manifests == ()
    assert set(world.objects) == names(kept)


def put_data_key(world: World, number: int, mac_id: str) -> str:
    key = keys.data_key_key(VOLUME_PREFIX, f"{number:032x}")
    world.put(key, WrappedKey(key, mac_id, "aes-256-gcm", "project's", b"wrapped").encode())
    return key


def test_data_keys_that_nothing_needs_are_orphans(world: World) -> None:
    """A worker was killed after it had removed the rows of the data keys, or another one wrote again."""
    kept = world.backup("a", {0: 1})
    mine, other = put_data_key(world, 1, "mine"), put_data_key(world, 2, "other")
    damaged = put_data_key(world, 3, "other")
    world.flip(damaged)
    rows = live(kept)
    rows.mac_ids = {"mine"}
    dry = run(world, Database(world.store, v=rows), dry_run=True)
    assert (dry.volumes[0].objects, dry.orphans) == (6, 1)
    assert run(world, Database(world.store, v=rows)).orphans == 1
    # It may be the one that the backup needs.
    assert set(world.objects) == names(kept) | {mine, damaged}
    assert other not in world.objects
    # Without anything that is encrypted, none is needed.
    assert run(world, Database(world.store, v=live(kept))).orphans == 2
    assert set(world.objects) == names(kept)


def test_a_volume_that_has_nothing_but_a_data_key(world: World) -> None:
    put_data_key(world, 1, "mine")
    assert run(world, Database(world.store, v=Rows(mac_ids={"mine"}))).orphans == 0
    assert run(world, Database(world.store)).orphans == 1
    assert not world.objects


@pytest.mark.parametrize("lost", ["row", "manifest", "readable"])
def test_the_data_keys_of_a_manifest_that_the_database_does_not_know_stay(world: World, lost: str) -> None:
    """The database is an older copy."""
    data_key = DataKey("1" * 32, "2" * 32, "aes-256-gcm", bytes(32), bytes(32))
    unknown = world.backup("u", {0: 1}, sealing=Sealing(data_key))
    needed = put_data_key(world, int("1" * 32, 16), data_key.mac_id)
    shared = put_data_key(world, 2, data_key.mac_id)
    other = put_data_key(world, 3, "other")
    if lost == "manifest":
        del world.objects[unknown[0]]
    elif lost == "readable":
        world.flip(unknown[0])
    report = run(world, Database(world.store, v=Rows()))
    if lost == "row":
        assert set(world.objects) == names(unknown) | {needed, shared}
    elif lost == "manifest":
        assert not world.objects
    else:
        assert report.volumes[0].stopped is not None
        assert {needed, shared, other} <= set(world.objects)


def test_a_data_key_of_a_backup_that_began_after_the_listing_stays(world: World) -> None:
    """It is recorded before it is put, and all that was listed is judged by what is recorded later."""
    database = Database(world.store, v=Rows())
    old = put_data_key(world, 1, "old")

    def begin() -> None:
        database.volumes["v"] = Rows(mac_ids={"new"}, transient={"n"})
        put_data_key(world, 2, "new")

    database.before = begin
    run(world, database)
    assert old not in world.objects
    assert len(world.objects) == 1


def test_an_unknown_manifest_whose_import_is_under_way_keeps_what_it_names(world: World) -> None:
    gone = world.backup("a", {0: 2, 1: 1})
    unknown = world.backup("u", {1: 1}, gone[1][:1])
    report = run(world, Database(world.store, v=Rows(known={gone[0]}, transient={"u"})))
    assert report.volumes[0].unknown_manifests == ()
    assert set(world.objects) == names(unknown)


@pytest.mark.parametrize("which", ["live", "unknown"])
def test_an_unreadable_manifest_stops_its_volume(world: World, which: str) -> None:
    kept = world.backup("a", {0: 1})
    world.backup("x", {5: 1}, put_manifest=False)
    world.flip(kept[0])
    before = set(world.objects)
    database = Database(world.store, v=live(kept) if which == "live" else Rows())
    report = run(world, database)
    assert report.volumes[0].stopped is not None
    assert report.orphans == 0
    assert set(world.objects) == before


def test_a_live_manifest_that_is_missing_stops_its_volume(world: World) -> None:
    kept = world.backup("a", {0: 1})
    del world.objects[kept[0]]
    before = set(world.objects)
    report = run(world, Database(world.store, v=live(kept)))
    assert report.volumes[0].stopped is not None
    assert set(world.objects) == before


def test_a_live_manifest_that_the_listing_hides_counts(world: World) -> None:
    # Fault 4: the listing lags behind.
    kept = world.backup("a", {0: 1})
    world.store.hidden = {kept[0]}
    run(world, Database(world.store, v=live(kept)))
    assert set(world.objects) == names(kept)


def test_more_than_a_page(world: World) -> None:
    # Fault 5: only the first 1000 keys of a listing were seen.
    kept = world.backup("a", dict.fromkeys(range(600), 1))
    world.backup("x", dict.fromkeys(range(1500), 1), put_manifest=False)
    report = run(world, Database(world.store, v=live(kept)))
    assert report.orphans == 3000
    assert set(world.objects) == names(kept)


def test_rows_are_read_after_the_listing_and_before_the_manifests(world: World) -> None:
    kept = world.backup("a", {0: 1})
    world.backup("x", {0: 1}, put_manifest=False)
    database = Database(world.store, v=live(kept))
    run(world, database)
    order = [call for call, _ in world.store.calls]
    assert order.index("list") < order.index("rows") < order.index("get") < order.index("delete")


def test_a_backup_that_ends_between_the_listing_and_the_rows(world: World) -> None:
    # Its objects were listed without a manifest; when the rows are read it is live.
    world.backup("w", {0: 2}, put_manifest=False)
    database = Database(world.store, v=Rows())

    def commit() -> None:
        key, _ = world.backup("w", {0: 2})
        database.volumes["v"] = Rows(live={key}, known={key})

    database.before = commit
    assert run(world, database).orphans == 0
    assert len(world.objects) == 4


def test_a_backup_that_begins_after_the_rows_were_read(world: World) -> None:
    world.backup("x", {0: 1}, put_manifest=False)
    database = Database(world.store, v=Rows())
    started: list[set[str]] = []

    def begin() -> None:
        if not started:
            started.append(names(world.backup("n", {0: 1}, put_manifest=False)))

    database.before = begin
    assert run(world, database).orphans == 2
    assert len(world.objects) == 2
    assert set(world.objects) < started[0]


def test_errors_of_the_store_are_not_swallowed(world: World) -> None:
    world.backup("x", {0: 1}, put_manifest=False)
    for call in ("list", "delete"):
        world.store.fail = {call: Unavailable("no")}
        with pytest.raises(Unavailable):
            run(world, Database(world.store))


def test_it_can_be_stopped(world: World) -> None:
    world.backup("x", {0: 1}, put_manifest=False)
    with pytest.raises(TaskCancelled):
        sweep.run(PREFIX, world.container, Database(world.store), Control(1, TaskCancelled("stop")))

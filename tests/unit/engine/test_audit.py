"""The audit of a store: what is there too much, too little or of another size."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field

import pytest

from backupfw.engine import audit
from backupfw.engine.format import keys
from backupfw.engine.format.key_object import WrappedKey
from backupfw.engine.format.sealing import DataKey, Sealing
from tests.unit.engine.removal_world import PREFIX, VOLUME_PREFIX, Control, Watched, World


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

    def __init__(self, **rows: Rows) -> None:
        self.rows = rows
        self.before: Callable[[], None] = lambda: None

    def volume(self, project: str, volume: str) -> Rows:
        self.before()
        return self.rows.get(volume, Rows())

    def volumes(self) -> Collection[tuple[str, str]]:
        return {("p", volume) for volume, rows in self.rows.items() if rows.live}


def live(*manifests: tuple[str, object]) -> Rows:
    found = {key for key, _ in manifests}
    return Rows(live=set(found), known=set(found))


@pytest.fixture(params=[True, False], ids=["sorted listing", "unsorted listing"])
def world(request: pytest.FixtureRequest) -> World:
    return World(Watched(sorted_listing=request.param))


def found(world: World, database: Database) -> list[tuple[str, str]]:
    report = audit.run(PREFIX, world.container, database, Control())
    return [(one.kind, one.key) for one in report.discrepancies]


def test_exactly_what_is_named(world: World) -> None:
    full = world.backup("a", {0: 2, 1: 1})
    child = world.backup("b", {1: 1}, full[1])
    other = world.backup("a", {3: 1}, volume="w")
    database = Database(v=live(full, child), w=live(other))
    report = audit.run(PREFIX, world.container, database, Control())
    assert report == audit.AuditReport(2, len(world.objects), ())


def test_orphans_missing_and_wrong_sizes(world: World) -> None:
    full = world.backup("a", {0: 2, 1: 1})
    orphan = world.backup("c", {0: 1}, put_manifest=False)[1][0].object_keys()
    lost, short = full[1][0].map_key, full[1][1].pack_keys()[0]
    del world.objects[lost]
    world.put(short, b"short")
    assert sorted(found(world, Database(v=live(full)))) == sorted(
        [(audit.MISSING, lost), (audit.SIZE, short), *((audit.ORPHAN, key) for key in orphan)]
    )


def test_what_is_being_worked_on_is_left_out(world: World) -> None:
    full = world.backup("a", {0: 1})
    writing = world.backup("c", {0: 1}, put_manifest=False)
    late = world.backup("d", {0: 1})
    rows = live(full)
    rows.transient = {"c", "d"}
    assert found(world, Database(v=rows)) == []
    rows.transient = set()
    assert {kind for kind, _ in found(world, Database(v=rows))} == {audit.ORPHAN, audit.UNKNOWN}
    assert writing[0] not in world.objects
    assert late[0] in world.objects


def test_an_unknown_manifest_excuses_what_it_names(world: World) -> None:
    full = world.backup("a", {0: 1})
    unknown = world.backup("s", {0: 2}, full[1])
    assert found(world, Database(v=live(full))) == [(audit.UNKNOWN, unknown[0])]
    announced = live(full)
    announced.announced = {unknown[0]}
    assert found(world, Database(v=announced)) == []


def test_a_second_manifest_of_a_known_backup_is_an_orphan(world: World) -> None:
    full = world.backup("a", {0: 1})
    second = world.backup("a", {}, attempt=2)
    rows = live(full)
    # Announced by an attempt that did not commit it.
    rows.known.add(second[0])
    assert found(world, Database(v=rows)) == [(audit.ORPHAN, second[0])]


def test_data_keys_too_many_and_too_few(world: World) -> None:
    data_key = DataKey("1" * 32, "2" * 32, "aes-256-gcm", bytes(32), bytes(32))
    full = world.backup("a", {0: 1}, sealing=Sealing(data_key))
    places = [keys.data_key_key(VOLUME_PREFIX, key_id) for key_id in (data_key.id, "3" * 32)]
    for place, mac_id in zip(places, (data_key.mac_id, "other"), strict=True):
        world.put(place, WrappedKey(place, mac_id, "aes-256-gcm", "project's", b"wrapped").encode())
    rows = live(full)
    rows.mac_ids = {data_key.mac_id}
    assert found(world, Database(v=rows)) == [(audit.ORPHAN, places[1])]
    del world.objects[places[0]]
    assert found(world, Database(v=rows)) == [(audit.MISSING, places[0]), (audit.ORPHAN, places[1])]
    # One that the database does not know needs its own.
    assert set(found(world, Database())) == {(audit.UNKNOWN, full[0]), (audit.ORPHAN, places[1])}


def test_an_unreadable_manifest_is_the_only_finding(world: World) -> None:
    full = world.backup("a", {0: 1})
    world.flip(full[0])
    # Whether its objects are orphans is not known.
    assert found(world, Database(v=live(full))) == [(audit.UNREADABLE, full[0])]


def test_a_volume_without_a_single_object(world: World) -> None:
    full = world.backup("a", {0: 1})
    world.objects.clear()
    assert found(world, Database(v=live(full))) == [(audit.UNREADABLE, full[0])]


def test_what_does_not_parse_and_what_is_not_ours(world: World) -> None:
    world.put(f"{PREFIX}notes.txt")
    world.put("somebody/else")
    assert found(world, Database()) == [(audit.STRANGE, f"{PREFIX}notes.txt")]


def test_a_lagging_listing_loses_nothing(world: World) -> None:
    full = world.backup("a", {0: 1})
    assert isinstance(world.store, Watched)
    world.store.hidden = {full[1][0].map_key}
    assert found(world, Database(v=live(full))) == []


def test_a_delete_between_listing_and_rows(world: World) -> None:
    full = world.backup("a", {0: 1})
    database = Database(v=Rows(known={full[0]}))
    database.before = world.objects.clear
    # The listing showed objects of a backup that was gone when the rows were read.
    assert found(world, database) == []


def test_findings_are_bounded(world: World) -> None:
    for number in range(audit.MOST):
        world.backup(f"o{number}", {0: 1}, put_manifest=False)
    assert len(found(world, Database())) == audit.MOST


def test_findings_of_all_volumes_together_are_bounded(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit, "MOST_OF_ALL", 3)
    for volume in ("u", "v", "w"):
        world.backup("a", {0: 1}, volume=volume)
        world.backup("b", {0: 1}, volume=volume, put_manifest=False)
    report = audit.run(PREFIX, world.container, Database(), Control())
    orphans = 2 * 3
    assert (len(report.discrepancies), report.more) == (3, 3 + orphans - 3)
    assert report.unknown == 3

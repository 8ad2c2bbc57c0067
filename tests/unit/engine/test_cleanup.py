"""Clean-up of what lost attempts left."""

from __future__ import annotations

import pytest

from backupfw.chunkstore.errors import PermissionDenied, Unavailable
from backupfw.engine import candidates, cleanup
from backupfw.engine.format import keys
from backupfw.engine.format.entries import SegmentEntry
from backupfw.engine.ports import KnownManifests
from backupfw.errors import Damaged, TaskCancelled
from tests.unit.engine.removal_world import Control, Watched, World, names

BACKUP = "inst/p/v/a/"


def run(
    world: World, keep: str | None, recorded: list[SegmentEntry] | None = None, control: Control | None = None
) -> int:
    result = cleanup.leftovers(
        BACKUP,
        keep,
        KnownManifests(keys=world.objects),
        recorded or [],
        world.container,
        control or Control(),
    )
    return result.objects_deleted


@pytest.fixture(params=[True, False], ids=["sorted listing", "unsorted listing"])
def world(request: pytest.FixtureRequest) -> World:
    return World(Watched(bulk=7, sorted_listing=request.param))


def test_only_what_the_committed_manifest_names_stays(world: World) -> None:
    # Attempt 1 finished segments 0 and 5, attempt 2 went on; both left more than that.
    first = world.backup("a", {0: 2, 5: 1, 6: 4}, attempt=1, put_manifest=False)
    second = world.backup("a", {7: 1}, first[1][:2], attempt=2)
    world.backup("a", {8: 1}, attempt=2, epoch=0)
    stale = world.backup("a", {9: 1}, attempt=1, epoch=3)
    other = world.backup("ab", {0: 1})
    assert stale[0] in world.objects
    deleted = run(world, second[0])
    assert set(world.objects) == names(second) | names(other)
    assert deleted == 5 + 3 + 3
    assert run(world, second[0]) == 0


def test_objects_of_other_backups_stay_although_the_journal_names_them(world: World) -> None:
    base = world.backup("b", {0: 2, 1: 1})
    recorded = world.backup("a", {1: 1}, base[1], put_manifest=False)
    assert run(world, None, recorded[1]) == 2
    assert set(world.objects) == names(base)


def test_without_a_manifest_everything_below_the_prefix_goes(world: World) -> None:
    world.backup("a", {0: 2}, attempt=1)
    world.backup("a", {1: 2}, attempt=12, epoch=2, put_manifest=False)
    other = world.backup("a1", {0: 1})
    world.put(BACKUP + "not ours.txt")
    run(world, None)
    assert set(world.objects) == names(other) | {BACKUP + "not ours.txt"}


def test_what_a_lagging_listing_hides_is_found_in_the_journal(world: World) -> None:
    # Fault 4: a listing that lags behind must not matter.
    recorded = world.backup("a", {0: 2, 1: 1}, put_manifest=False)
    world.store.hidden = set(world.objects)
    run(world, None, recorded[1])
    assert world.objects == {}


def test_later_attempts_are_not_touched(world: World) -> None:
    committed = world.backup("a", {0: 1}, attempt=9)
    later = world.backup("a", {1: 1}, attempt=10, put_manifest=False)
    world.backup("a", {1: 1}, attempt=8, put_manifest=False)
    run(world, committed[0])
    assert set(world.objects) == names(committed) | set(later[1][0].object_keys())


def test_a_damaged_manifest_deletes_nothing(world: World) -> None:
    world.backup("a", {3: 1}, attempt=1, put_manifest=False)
    committed = world.backup("a", {0: 1}, attempt=2)
    world.flip(committed[0])
    before = dict(world.objects)
    with pytest.raises(Damaged):
        run(world, committed[0])
    assert world.objects == before


def test_a_failing_listing_is_an_error(world: World) -> None:
    # Fault 3: it was swallowed, and everything stayed.
    world.backup("a", {0: 1})
    world.store.fail["list"] = PermissionDenied("no")
    with pytest.raises(PermissionDenied):
        run(world, None)


def test_more_than_a_page_of_leftovers(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    # Fault 5: only the first 1000 keys of a listing were seen.  Sorting spills to disk on the way.
    monkeypatch.setattr(candidates, "RUN_LENGTH", 100)
    monkeypatch.setattr(candidates, "RUNS_AT_ONCE", 4)
    committed = world.backup("a", dict.fromkeys(range(300), 2), attempt=2)
    world.backup("a", dict.fromkeys(range(900), 1), attempt=1, put_manifest=False)
    assert run(world, committed[0]) == 1800
    assert set(world.objects) == names(committed)


def test_killed_anywhere_and_run_again(world: World) -> None:
    committed = world.backup("a", {0: 1}, attempt=2)
    kills = 0
    for stop in range(12):
        world.backup("a", dict.fromkeys(range(9), 2), attempt=1, put_manifest=False)
        try:
            run(world, committed[0], control=Control(stop, TaskCancelled("stop")))
        except TaskCancelled:
            kills += 1
        run(world, committed[0])
        assert set(world.objects) == names(committed)
    assert kills > 3


def test_a_container_that_is_not_there_has_no_leftovers(world: World) -> None:
    """If nothing can have been put there; else it is away, and what was left with it."""
    world.store.contents.clear()
    done = cleanup.leftovers(BACKUP, None, KnownManifests(), (), world.container, Control(), required=False)
    assert done.objects_deleted == 0
    with pytest.raises(Unavailable):
        cleanup.leftovers(BACKUP, None, KnownManifests(), (), world.container, Control())


@pytest.mark.parametrize("prefix", ["inst/p/v/", "inst/p/v/a", "inst/p/v/a/0.1-", "inst//v/a/", ""])
def test_other_prefixes_are_refused(world: World, prefix: str) -> None:
    with pytest.raises(ValueError, match="no backup's prefix"):
        cleanup.leftovers(prefix, None, KnownManifests(), [], world.container, Control())


def test_a_manifest_of_another_backup_is_refused(world: World) -> None:
    other = world.backup("b", {0: 1})
    for wrong in (other[0], "inst/p/v/a/manifest", keys.map_key(other[0].removesuffix("/manifest"), 1)):
        with pytest.raises(ValueError, match="no manifest below"):
            run(world, wrong)


def test_a_manifest_committed_after_the_copy_of_the_database_stays_with_all_it_names(world: World) -> None:
    """The backup is made again by a database from before its commit, or it is deleted."""
    first = world.backup("a", {0: 2, 1: 1}, attempt=1)
    later = world.backup("b", {2: 1}, first[1])
    lost = world.backup("a", {5: 1}, attempt=1, epoch=2, put_manifest=False)
    again = world.backup("a", {7: 1}, attempt=2)
    for keep in (again[0], None):
        known = KnownManifests(keys={again[0]})
        cleanup.leftovers(BACKUP, keep, known, (), world.container, Control())
        assert names(first) | names(later) <= set(world.objects)
        assert not set(lost[1][0].object_keys()) & set(world.objects)
    assert not names(again) & set(world.objects)


def test_an_unknown_manifest_that_cannot_be_read_keeps_everything(world: World) -> None:
    world.backup("a", {0: 2}, put_manifest=False)
    world.flip(world.backup("b", {2: 1})[0])
    before = dict(world.objects)
    with pytest.raises(Damaged):
        cleanup.leftovers(BACKUP, None, KnownManifests(), (), world.container, Control())
    assert world.objects == before

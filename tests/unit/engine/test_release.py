"""Release: what it deletes, in which order, and what it never does."""

from __future__ import annotations

import math
import random

import pytest

from backupfw.chunkstore.errors import ChunkStoreError, DeleteFailed, PermissionDenied, Unavailable
from backupfw.engine import candidates, cleanup, release, removal
from backupfw.engine.format import keys
from backupfw.engine.format.entries import SegmentEntry
from backupfw.engine.format.manifest import ManifestReader
from backupfw.engine.ports import KnownManifests
from backupfw.errors import Damaged, TaskCancelled, UnsupportedFormat
from tests.unit.engine.removal_world import PREFIX, VOLUME_PREFIX, Control, Watched, World, names


def run(world: World, key: str, *relatives: str, control: Control | None = None) -> release.ReleaseResult:
    return release.run(
        key, KnownManifests(relatives, world.objects), PREFIX, world.container, control or Control()
    )


def test_without_relatives_everything_named_goes() -> None:
    world = World()
    full = world.backup("a", {0: 2, 7: 1, 4000: 3})
    result = run(world, full[0])
    assert world.objects == {}
    assert result.objects_deleted == 3 + 6 + 1
    assert result.bytes_deleted > 90
    assert result.complete


def test_what_a_relative_names_stays() -> None:
    world = World()
    full = world.backup("a", {0: 2, 1: 1, 2: 3})
    # Segment 0 shared as it is, segment 2 partly (the map is new), segment 1 not at all.
    kept = [entry for entry in full[1] if entry.index != 1]
    child = world.backup("b", {2: 1}, kept)
    before = set(world.objects)
    result = run(world, full[0], child[0])
    assert set(world.objects) == names(child)
    assert before - set(world.objects) == names(full) - names(child)
    assert result.objects_deleted == len(names(full) - names(child))


def test_inherited_objects_go_with_the_last_one_that_names_them() -> None:
    world = World()
    full = world.backup("a", {0: 2, 1: 1})
    child = world.backup("b", {1: 1}, full[1])
    run(world, full[0], child[0])
    run(world, child[0])
    assert world.objects == {}


def test_relatives_longer_and_shorter_than_the_released_one() -> None:
    world = World()
    middle = world.backup("m", {5: 1, 6: 1})
    before = world.backup("s", {0: 1}, [middle[1][0]])
    after = world.backup("l", {900: 1}, [middle[1][1]])
    run(world, middle[0], before[0], after[0])
    assert set(world.objects) == names(before) | names(after)


def test_more_relatives_than_are_read_at_once() -> None:
    world = World()
    full = world.backup("a", dict.fromkeys(range(40), 1))
    children = [
        world.backup(f"c{index}", {}, [full[1][index]]) for index in range(3 * candidates.READERS_AT_ONCE + 1)
    ]
    run(world, full[0], *(child[0] for child in children))
    assert set(world.objects) == set().union(*(names(child) for child in children))


def test_a_second_run_finds_all_done() -> None:
    world = World()
    full = world.backup("a", {0: 1})
    run(world, full[0])
    world.store.calls.clear()
    assert run(world, full[0]) == release.ReleaseResult(0, 0)
    assert world.store.count("delete") == 0


def test_objects_that_are_missing_already_count_as_deleted() -> None:
    world = World()
    full = world.backup("a", {0: 5})
    del world.objects[full[1][0].map_key]
    run(world, full[0])
    assert world.objects == {}


@pytest.mark.parametrize("bulk", [1, 7, 1000])
def test_killed_anywhere_and_run_again(bulk: int) -> None:
    kills = 0
    for stop in range(40):
        world = World(Watched(bulk))
        full = world.backup("a", dict.fromkeys(range(6), 2))
        child = world.backup("b", {1: 1}, full[1][2:4])
        try:
            run(world, full[0], child[0], control=Control(stop, TaskCancelled("stop")))
        except TaskCancelled:
            kills += 1
            assert full[0] in world.objects, "the manifest goes last"
        assert names(child) <= set(world.objects)
        run(world, full[0], child[0])
        assert set(world.objects) == names(child)
    assert kills > 3


def flaws(world: World, key: str) -> list[int]:
    """Return positions all over the object."""
    size = len(world.objects[key])
    return sorted({*range(0, size, max(1, size // 60)), size - 1})


def test_a_flipped_byte_anywhere_in_a_relative_stops_everything() -> None:
    world = World()
    full = world.backup("a", {0: 1, 1: 1})
    child = world.backup("b", {0: 1}, full[1][1:])
    for at in flaws(world, child[0]):
        world.flip(child[0], at)
        before = dict(world.objects)
        with pytest.raises((Damaged, UnsupportedFormat)):
            run(world, full[0], child[0])
        assert world.objects == before, at
        world.flip(child[0], at)
    run(world, full[0], child[0])
    assert set(world.objects) == names(child)


def test_a_relative_cut_short_or_missing_stops_everything() -> None:
    world = World()
    full = world.backup("a", {0: 1, 1: 1})
    child = world.backup("b", {0: 1}, full[1][1:])
    whole = world.objects[child[0]]
    before = set(world.objects)
    world.objects[child[0]] = whole[: len(whole) // 2]
    with pytest.raises(Damaged):
        run(world, full[0], child[0])
    assert set(world.objects) == before
    del world.objects[child[0]]
    with pytest.raises(Damaged, match="missing"):
        run(world, full[0], child[0])
    assert set(world.objects) == before - {child[0]}


def test_a_late_page_of_a_relative_counts_although_every_shared_segment_was_before_it() -> None:
    # Page 1 of the relative is fine and names nothing of ours; the damage is pages later.
    world = World()
    full = world.backup("a", {0: 1})
    child = world.backup("b", dict.fromkeys(range(5000), 1))
    pages = world.objects[child[0]].split(b"PAGE")
    assert len(pages) > 5
    world.flip(child[0], len(world.objects[child[0]]) - len(pages[-1]) - len(pages[-2]) - 60)
    with pytest.raises(Damaged):
        run(world, full[0], child[0])
    assert names(full) <= set(world.objects)


def test_a_store_that_does_not_answer_is_no_damage() -> None:
    world = World()
    full = world.backup("a", {0: 1})
    world.store.fail["get"] = Unavailable("gone fishing")
    with pytest.raises(Unavailable):
        run(world, full[0])
    assert world.store.count("delete") == world.store.count("list") == 0


def test_a_damaged_manifest_of_our_own_takes_the_backups_own_objects_along() -> None:
    world = World()
    full = world.backup("a", {0: 2, 1: 2, 2: 1})
    other = world.backup("ab", {0: 1})  # its prefix begins alike
    # An earlier attempt's pack lies under the backup's prefix too.
    early = keys.Origin("inst", "p", "v", "a", 0, 0, "f" * 16)
    world.put(keys.pack_key(str(early), 1, 0))
    child = world.backup("b", {0: 1}, full[1][1:2])
    world.flip(full[0])
    result = run(world, full[0], child[0])
    assert set(world.objects) == names(child) | names(other)
    assert not result.complete


def test_a_damaged_manifest_and_a_damaged_relative_delete_nothing() -> None:
    world = World()
    full = world.backup("a", {0: 2, 1: 2})
    child = world.backup("b", {0: 1}, full[1][1:2])
    world.flip(full[0])
    world.flip(child[0])
    before = dict(world.objects)
    with pytest.raises(Damaged):
        run(world, full[0], child[0])
    assert world.objects == before


def test_a_listing_that_fails_is_not_swallowed() -> None:
    # The only listing of a release: its own manifest is damaged.  (Fault 3: errors of the listing
    # were swallowed, the record went, every object stayed.)
    world = World()
    full = world.backup("a", {0: 2})
    world.flip(full[0])
    world.store.fail["list"] = PermissionDenied("no")
    before = dict(world.objects)
    with pytest.raises(PermissionDenied):
        run(world, full[0])
    assert world.objects == before


def test_a_listing_that_lags_or_fails_loses_nothing_and_leaves_nothing() -> None:
    world = World()
    full = world.backup("a", dict.fromkeys(range(1500), 1))
    world.store.fail["list"] = PermissionDenied("no")
    with pytest.raises(PermissionDenied):
        run(world, full[0])
    assert names(full) == set(world.objects)
    del world.store.fail["list"]
    world.store.hidden = set(world.objects)
    run(world, full[0])
    assert world.objects == {}


@pytest.mark.parametrize("sorted_listing", [True, False])
def test_what_a_manifest_unknown_to_the_database_names_stays(sorted_listing: bool) -> None:
    """A database that was rolled back knows no child that was made since."""
    world = World(Watched(sorted_listing=sorted_listing))
    full = world.backup("a", {0: 2, 1: 1, 2: 3})
    child = world.backup("b", {2: 1}, full[1][1:])
    elsewhere = world.backup("c", {0: 1}, volume="w")
    release.run(full[0], KnownManifests(keys={full[0]}), PREFIX, world.container, Control())
    assert set(world.objects) == names(child) | names(elsewhere)


def test_an_unknown_manifest_that_cannot_be_read_stops_everything() -> None:
    world = World()
    full = world.backup("a", {0: 2})
    unrelated = world.backup("b", {5: 1})
    world.flip(unrelated[0])
    before = dict(world.objects)
    with pytest.raises(Damaged) as caught:
        release.run(full[0], KnownManifests(), PREFIX, world.container, Control())
    assert caught.value.key == unrelated[0]
    assert world.objects == before
    # It went after all: it names nothing any more.
    world.store.hidden = set()
    del world.objects[unrelated[0]]
    release.run(full[0], KnownManifests(), PREFIX, world.container, Control())
    assert not names(full) & set(world.objects)


@pytest.mark.parametrize("leftovers", [False, True])
def test_an_unknown_manifest_that_goes_at_any_moment_names_nothing(leftovers: bool) -> None:
    """Somebody deletes it meanwhile, by the same rules; what the other unknown ones name stays."""

    class Fleeting(Watched):
        """Loses ``key`` at one of its reads."""

        key = ""
        reads = -1

        def get(
            self, container: str, key: str, offset: int | None = None, length: int | None = None
        ) -> bytes:
            if key == self.key:
                if not self.reads:
                    self.contents[container].pop(key, None)
                self.reads -= 1
            return super().get(container, key, offset, length)

    moments = 0
    while True:
        store = Fleeting()
        world = World(store)
        full = world.backup("a", {0: 2, 1: 1, 2: 3}, put_manifest=not leftovers)
        # More than are read side by side, and the one that goes in the middle.
        others = [world.backup(f"b{number}", {9: 1}, full[1][1:2]) for number in range(12)]
        gone = world.backup("b5x", {2: 1}, full[1][2:])
        store.key, store.reads = gone[0], moments
        if leftovers:
            cleanup.leftovers(f"{VOLUME_PREFIX}a/", None, KnownManifests(), (), world.container, Control())
        else:
            release.run(full[0], KnownManifests(), PREFIX, world.container, Control())
        kept = set.union(*(names(one) for one in others))
        if store.reads >= 0:
            # It was read less often than that, and is there.
            assert set(world.objects) == kept | names(gone)
            break
        assert set(world.objects) == kept | names(gone) - names(full) - {gone[0]}
        moments += 1
    assert moments > 1


def test_an_object_that_cannot_be_deleted_keeps_the_manifest_and_is_named() -> None:
    class Stubborn(Watched):
        def delete(self, container: str, keys: list[str]) -> None:  # type: ignore[override]
            bad = [key for key in keys if key.endswith("/p0001")]
            super().delete(container, [key for key in keys if key not in bad])
            if bad:
                raise DeleteFailed({key: PermissionDenied("locked", key=key) for key in bad})

    world = World(Stubborn(bulk=4))
    full = world.backup("a", dict.fromkeys(range(10), 3))
    with pytest.raises(DeleteFailed) as caught:
        run(world, full[0])
    assert len(caught.value.errors) == 10
    assert not caught.value.temporary
    # Everything else is gone, and the manifest is there for the next run.
    assert set(world.objects) == {full[0], *caught.value.errors}


def test_a_store_that_fails_in_the_middle_of_deleting() -> None:
    world = World(Watched(bulk=1))
    full = world.backup("a", dict.fromkeys(range(50), 1))
    world.store.fail["delete"] = Unavailable("overloaded")
    with pytest.raises(ChunkStoreError):
        run(world, full[0])
    assert full[0] in world.objects
    assert world.store.count("delete") < 50, "it does not go on asking a store that does not answer"
    world.store.fail.clear()
    run(world, full[0])
    assert world.objects == {}


def test_objects_of_another_installation_are_never_deleted() -> None:
    world = World()
    foreign = world.backup("f", {0: 1}, installation="other")
    ours = world.backup("a", {1: 1}, foreign[1])
    run(world, ours[0])
    assert set(world.objects) == names(foreign)
    with pytest.raises(ValueError, match="no manifest of installation"):
        run(world, foreign[0])


@pytest.mark.parametrize("prefix", ["inst", "inst/p/v/", "", "/"])
def test_a_wrong_prefix_is_refused(prefix: str) -> None:
    world = World()
    full = world.backup("a", {0: 1})
    with pytest.raises(ValueError, match="installation"):
        release.run(full[0], KnownManifests(), prefix, world.container, Control())
    with pytest.raises(ValueError, match="relative of itself"):
        run(world, full[0], full[0])
    assert names(full) == set(world.objects)


@pytest.mark.parametrize("bulk", [1, 100, 1000])
def test_the_number_of_requests(bulk: int) -> None:
    world = World(Watched(bulk))
    full = world.backup("a", dict.fromkeys(range(2500), 3))
    changed = dict.fromkeys(range(0, 2500, 10), 1)
    child = world.backup("b", changed, [entry for entry in full[1] if entry.index < 1])
    sibling = world.backup("c", {9000: 1}, [entry for entry in full[1] if entry.index == 1])
    pages = sum(1 + len(world.objects[one[0]]) // (1 << 20) for one in (full, child, sibling))
    world.store.calls.clear()
    result = run(world, full[0], child[0], sibling[0])
    deleted = result.objects_deleted
    assert deleted == 10_000 - 4 - 4 + 1 + 1, "the map of segment 0 is b's own"
    assert world.store.count("delete") == math.ceil((deleted - 1) / bulk) + 1
    # Of 10 000 objects of one attempt a listing begins, and goes on behind them.
    assert world.store.count("list") <= 3
    assert world.store.count("get") <= pages + 2 * 3


def test_large_relatives_that_share_no_origin_are_not_read_through(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(candidates, "SMALL_MANIFEST_BYTES", 100)
    world = World()
    full = world.backup("a", {0: 1})
    child = world.backup("b", {1: 1}, full[1])
    unrelated = world.backup("c", {0: 1})
    read: list[str] = []
    segments = ManifestReader.segments

    def noted(self: ManifestReader) -> object:
        read.append(self.key)
        return segments(self)

    monkeypatch.setattr(ManifestReader, "segments", noted)
    run(world, full[0], child[0], unrelated[0])
    assert read == [full[0], child[0]]
    assert set(world.objects) == names(child) | names(unrelated)


def test_progress_is_reported_in_bytes() -> None:
    world = World(Watched(bulk=2))
    full = world.backup("a", {0: 3})
    control = Control()
    run(world, full[0], control=control)
    assert control.told == [(20, 40), (40, 40)]


def test_unknown_manifests_are_found_by_listing() -> None:
    world = World()
    known = world.backup("a", {0: 1})
    unknown = world.backup("b", {0: 1})
    world.backup("c", {0: 1}, volume="v2")
    world.put(VOLUME_PREFIX + "strange/manifest")
    found = removal.unknown_manifests(
        VOLUME_PREFIX, KnownManifests(keys={known[0]}), world.container, Control()
    )
    assert found == [unknown[0]]
    world.store.fail["list"] = Unavailable("no")
    with pytest.raises(Unavailable):
        removal.unknown_manifests(VOLUME_PREFIX, KnownManifests(), world.container, Control())


@pytest.mark.parametrize("seed", range(12))
def test_a_look_says_what_a_release_deletes(seed: int) -> None:
    """Over a random history with deletions: every object counts as own or shared, and a look is true."""
    rng = random.Random(seed)
    world = World()
    live: dict[str, tuple[str, list[SegmentEntry]]] = {}
    for number in range(12):
        if len(live) > 2 and rng.random() < 0.4:
            key = rng.choice(sorted(live))
            gone, mine = live.pop(key), sorted(live)
            before = dict(world.objects)
            found = release.look(
                key, KnownManifests(mine, [*world.objects]), PREFIX, world.container, Control()
            )
            assert world.objects == before
            others = {one: names(gone) & names(live[one]) for one in mine}
            shared = set().union(*others.values())
            sizes = {one: len(world.objects[one]) for one in names(gone)}
            figures = {one: (len(same), sum(sizes[name] for name in same)) for one, same in others.items()}
            assert found.shared_with == {one: much for one, much in figures.items() if much[0]}
            assert found.shared == (len(shared), sum(sizes[name] for name in shared))
            result = run(world, key, *mine)
            assert found.own == (result.objects_deleted, result.bytes_deleted)
            freed = sum(map(len, before.values())) - sum(map(len, world.objects.values()))
            assert found.own[1] == freed
        base = live[rng.choice(sorted(live))][1] if live and rng.random() < 0.8 else []
        own = {rng.randrange(8): rng.randrange(1, 4) for _ in range(rng.randrange(4))}
        kept = [entry for entry in base if rng.random() < 0.8]
        made = world.backup(f"b{number}", own, kept)
        live[made[0]] = made


def test_a_look_counts_as_shared_what_an_unknown_manifest_names() -> None:
    world = World()
    full = world.backup("a", {0: 2, 1: 1})
    world.backup("b", {}, full[1][:1])
    found = release.look(full[0], KnownManifests((), [full[0]]), PREFIX, world.container, Control())
    assert (found.shared[0], found.own[0]) == (3, 3)
    assert found.shared_with == {}

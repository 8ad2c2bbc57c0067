"""How many requests the data path makes: counted above the layers, where one call is one request."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from backupfw.chunkstore.container import Container
from backupfw.chunkstore.layers.metrics import NullRecorder
from backupfw.chunkstore.layers.stack import stack
from backupfw.chunkstore.memory import MemoryStore
from backupfw.engine import backup, release, restore
from backupfw.engine.ports import KnownManifests
from tests.unit.engine.fakes import (
    BLOCK,
    SEGMENT,
    FakeControl,
    MemoryJournal,
    MemoryPoint,
    MemoryTarget,
    make_job,
)
from tests.unit.engine.removal_world import PREFIX, Control, Watched, World
from tests.unit.engine.test_data_path import content

SEGMENTS = 12
#: Reads of one manifest of a few pages: its end, its header, its pages.
MANIFEST_READS = 3


class Requests(NullRecorder):
    """Counts calls by operation."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()

    def operation(self, store: str, operation: str, *_: Any, **__: Any) -> None:
        self.counts[operation] += 1


class Site:
    """A volume, a store with all layers, and the requests since the last look."""

    def __init__(self) -> None:
        self.requests = Requests()
        self.box = Container(stack(MemoryStore("mem"), metrics=self.requests), "box")
        self.box.ensure()
        self.data = content(SEGMENTS * SEGMENT, zero=0.2)
        # Segments that are all zero have no map.
        self.data[2 * SEGMENT : 4 * SEGMENT] = bytes(2 * SEGMENT)
        self.take()

    def take(self) -> Counter[str]:
        counts, self.requests.counts = self.requests.counts, Counter()
        return counts

    def back_up(self, number: int, base: str | None = None) -> backup.BackupResult:
        job = make_job(number, len(self.data), base)
        return backup.run(job, MemoryPoint(self.data), self.box, MemoryJournal(), FakeControl())


def test_a_full_backup_makes_one_request_per_object() -> None:
    site = Site()
    result = site.back_up(0)
    assert site.take() == {"put": result.object_count}


def test_an_incremental_reads_one_map_per_segment_of_its_base() -> None:
    site = Site()
    base = site.back_up(0).manifest_key
    for segment in (0, 2, 7):
        site.data[segment * SEGMENT + 2 * BLOCK] ^= 1
    site.take()
    result = site.back_up(1, base)
    counts = site.take()
    assert set(counts) == {"put", "get"}
    assert counts["put"] == result.object_count
    assert counts["get"] <= SEGMENTS - 2 + 2 * MANIFEST_READS


def test_a_restore_lists_nothing() -> None:
    site = Site()
    base = site.back_up(0).manifest_key
    site.data[5 * SEGMENT] ^= 1
    key = site.back_up(1, base).manifest_key
    site.take()
    target = MemoryTarget(len(site.data), b"x")
    done = restore.run(key, site.box, target, FakeControl())
    assert target.data == site.data
    counts = site.take()
    assert set(counts) == {"get"}
    assert done.requests <= 4 * done.packs
    assert counts["get"] <= done.requests + SEGMENTS - 2 + MANIFEST_READS


@pytest.mark.parametrize("bulk", [1, 100, 1000])
def test_deleting_10000_objects_costs_no_more_than_bulk_requests_and_pages(bulk: int) -> None:
    world = World(Watched(bulk))
    doomed = world.backup("doomed", dict.fromkeys(range(5000), 1))
    relative = world.backup("relative", dict.fromkeys(range(5000), 1))
    # To find unknown manifests: the objects of an attempt are not listed through.
    listings = 3
    pages = -(-len(world.objects[relative[0]]) >> 20) + -(-len(world.objects[doomed[0]]) >> 20)
    world.store.calls.clear()
    done = release.run(
        doomed[0], KnownManifests([relative[0]], world.objects), PREFIX, world.container, Control()
    )
    assert done.objects_deleted == 10_001
    assert world.store.count("list") == listings
    assert world.store.count("delete") == 10_000 // bulk + 1
    assert len(world.store.calls) <= 10_000 // bulk + 1 + pages + 2 * MANIFEST_READS + listings

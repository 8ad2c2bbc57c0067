"""Manifests by somebody who can write into the bucket: what they may not name, and not cost."""

from __future__ import annotations

import random
import tracemalloc
from collections.abc import Callable
from dataclasses import replace

import pytest

from backupfw.engine import release, restore
from backupfw.engine.format import keys
from backupfw.engine.format.entries import MapRef, SegmentEntry, encode_origins
from backupfw.engine.format.geometry import Geometry
from backupfw.engine.format.manifest import ManifestHead, ManifestReader, ManifestWriter
from backupfw.engine.ports import KnownManifests
from backupfw.errors import Damaged, UnsupportedFormat
from tests.fuzz.forge import pages, sealed
from tests.unit.engine.fakes import CountingTarget, FakeControl
from tests.unit.engine.removal_world import PREFIX, Control, World, names

READERS: dict[str, Callable[[World, str], object]] = {
    "segments": lambda world, key: list(ManifestReader(world.container, key).segments()),
    "origins": lambda world, key: ManifestReader(world.container, key).origins(),
    "restore": lambda world, key: restore.run(
        key, world.container, CountingTarget(1 << 40, reads_zero=True), FakeControl()
    ),
}


@pytest.mark.parametrize("who", ["project", "volume", "installation"])
def test_a_manifest_names_nothing_beyond_its_own_volume(who: str) -> None:
    world = World()
    victim = replace(keys.Origin("inst", "p", "v", "a", 1, 1, "0123456789abcdef"), **{who: "victim"})
    entry = SegmentEntry(0, MapRef(str(victim), bytes(32), 10), 1, 1, ())
    world.put(keys.map_key(str(victim), 0))
    thief = keys.Origin("inst", "p", "v", "thief", 1, 1, "0123456789abcdef")
    with ManifestWriter(ManifestHead(thief, Geometry(4096, 512, 4096))) as writer:
        writer.add(entry)
        writer.put(world.container)
    key = writer.head.key
    for read in (READERS["segments"], READERS["origins"], READERS["restore"]):
        with pytest.raises(Damaged, match="not its volume's"):
            read(world, key)
    # A release of it takes only what lies below its own backup.
    done = release.run(key, KnownManifests(), PREFIX, world.container, Control())
    assert not done.complete
    assert set(world.objects) == {keys.map_key(str(victim), 0)}


@pytest.mark.check
def test_origins_without_end_take_no_memory() -> None:
    """A manifest of 3 MiB with five million origins took 877 MiB."""
    world = World()
    key = world.backup("a", {0: 1})[0]
    head = pages(world.objects[key])[0]
    count, size = 0, 60_000
    content = [head]
    for page in range(8):
        table = [f"inst/p/v/b/0.0-{page * size + number:016x}" for number in range(size)]
        content.append((3, encode_origins(table)))
        count += size
    world.objects[key] = sealed(key, content, (0, 0, 0), count)
    for name in ("segments", "origins"):
        tracemalloc.start()
        with pytest.raises(Damaged):
            READERS[name](world, key)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 64 << 20, name


@pytest.mark.parametrize("seed", range(150))
def test_changed_bytes_under_right_checksums(seed: int) -> None:
    rng = random.Random(seed)
    world = World()
    base = world.backup("a", {0: 2, 3: 1})
    key, _ = child = world.backup("b", {0: 1, 9: 2}, base[1])
    reader = ManifestReader(world.container, key)
    totals = (reader.totals.segments, reader.totals.data_bytes, reader.totals.referenced_bytes)
    content = pages(world.objects[key])
    number = rng.randrange(len(content))
    payload = bytearray(content[number][1])
    for _ in range(rng.choice([1, 1, 2, 8])):
        payload[rng.randrange(len(payload))] = rng.randrange(256)
    content[number] = (content[number][0], bytes(payload))
    world.objects[key] = sealed(key, content, totals, len(reader.origins()))
    kept = names(base)
    for name in ("segments", "origins"):
        try:
            READERS[name](world, key)
        except (Damaged, UnsupportedFormat):
            continue
    assert kept <= set(world.objects)
    assert child

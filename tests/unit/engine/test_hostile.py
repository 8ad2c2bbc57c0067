"""Manifests by somebody who can write into the bucket: what they may not name, and not cost."""

from __future__ import annotations

import random
import struct
import tracemalloc
from collections.abc import Callable
from dataclasses import replace

import pytest
import zstandard
from blake3 import blake3

from backupfw.engine import release, restore
from backupfw.engine.format import keys, manifest
from backupfw.engine.format.entries import MapRef, SegmentEntry, encode_origins
from backupfw.engine.format.geometry import Geometry
from backupfw.engine.format.manifest import ManifestHead, ManifestReader, ManifestWriter
from backupfw.engine.ports import KnownManifests
from backupfw.errors import Damaged, UnsupportedFormat
from tests.unit.engine.fakes import FakeControl, MemoryTarget
from tests.unit.engine.removal_world import PREFIX, Control, World, names

PAGE = struct.Struct("<4sBBHIII")
READERS: dict[str, Callable[[World, str], object]] = {
    "segments": lambda world, key: list(ManifestReader(world.container, key).segments()),
    "origins": lambda world, key: ManifestReader(world.container, key).origins(),
    "restore": lambda world, key: restore.run(key, world.container, MemoryTarget(1 << 28), FakeControl()),
}


def pages(data: bytes) -> list[tuple[int, bytes]]:
    """Return kind and payload of all pages but the end."""
    at, found = manifest.HEADER_BYTES, []
    while at < len(data):
        _, kind, codec, _, _, stored, raw = PAGE.unpack_from(data, at)
        payload = data[at + PAGE.size : at + PAGE.size + stored]
        found.append((kind, zstandard.decompress(payload, raw) if codec else payload))
        at += PAGE.size + stored + 32
    return found[:-1]


def sealed(key: str, content: list[tuple[int, bytes]], totals: tuple[int, int, int], origins: int) -> bytes:
    """Return a manifest of these pages whose checksums are right."""
    binding, chain, body, offset = blake3(key.encode()).digest(), blake3(), bytearray(), 0
    for number, (kind, payload) in enumerate([*content, (4, b"")]):
        if kind == 4:
            payload = struct.pack("<IQI32s", number + 1, totals[0], origins, chain.digest())
        if kind >= 3 and not offset:
            offset = manifest.HEADER_BYTES + len(body)
        stored = zstandard.ZstdCompressor(level=1).compress(payload)
        page = PAGE.pack(b"PAGE", kind, 1, 0, number, len(stored), len(payload)) + stored
        checksum = blake3(binding + page).digest()
        chain.update(checksum)
        body += page + checksum
    header = struct.pack(
        "<8sHHIIIQQQQQ32s24x",
        b"BFWmanif", 1, manifest.HEADER_BYTES, 0, 0, len(content) + 1,
        manifest.HEADER_BYTES + len(body), offset, *totals, binding,
    )  # fmt: skip
    return header + blake3(header).digest() + bytes(body)


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


def test_origins_without_end_take_no_memory() -> None:
    """A manifest of 3 MiB with five million origins took 877 MiB."""
    world = World()
    key = world.backup("a", {0: 1})[0]
    head = pages(world.objects[key])[0]
    count, size = 0, 60_000
    content = [head]
    for page in range(24):
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

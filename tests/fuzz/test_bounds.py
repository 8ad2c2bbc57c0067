"""Each bound of what is read: what is just within it is read, what is one beyond is not; and bombs burst."""

from __future__ import annotations

import base64
import ctypes
import gc
import json
import os
import struct
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import zstandard
from blake3 import blake3

from backupfw import naming
from backupfw.chunkstore.container import Container
from backupfw.chunkstore.memory import MemoryStore
from backupfw.engine import audit, backup, release, restore, sweep, verify
from backupfw.engine.format import binary, geometry, keys, manifest, pack, segment_map
from backupfw.engine.format.binary import BadBytes, decompress, parse_json
from backupfw.engine.format.entries import (
    MAX_MAP_BYTES,
    MAX_PACK_BYTES,
    MapRef,
    PackRef,
    SegmentEntry,
    decode_entry,
    encode_entry,
)
from backupfw.engine.format.geometry import Geometry
from backupfw.engine.format.manifest import ManifestHead, ManifestReader, ManifestWriter
from backupfw.engine.format.sealing import CLEAR, SEAL_BYTES, TAG_BYTES, Sealing
from backupfw.engine.format.segment_map import PackInfo, SegmentMap, _most_bytes, read_map
from backupfw.engine.ports import Checkpoint, KnownManifests
from backupfw.engine.segment_restore import BlockDecoder
from backupfw.errors import Damaged, InvalidInput
from backupfw.manager import records
from backupfw.manager.rules import found_manifests
from tests.fuzz import forge
from tests.fuzz.readers import MAY_RAISE, READERS, Case, Control, Rows
from tests.fuzz.test_stored_bytes import DATA, KEY, OTHERS, golden
from tests.unit.engine.fakes import (
    CountingTarget,
    Keyring,
    MemoryJournal,
    MemoryPoint,
    make_job,
    memory_container,
    objects_of,
)
from tests.unit.manager.test_records import FOREIGN

ORIGIN = keys.Origin("i", "p", "v", "b", 0, 1, "0" * 16)
ENTRY = SegmentEntry(0, MapRef(str(ORIGIN), bytes(32), 1), 1, 1, (PackRef(str(ORIGIN), 0, 1),))


def manifest_of(entries: Sequence[SegmentEntry], cut: Geometry) -> ManifestReader:
    box = memory_container()
    with ManifestWriter(ManifestHead(ORIGIN, cut)) as writer:
        for entry in entries:
            writer.add(entry)
        writer.put(box)
    return ManifestReader(box, writer.head.key)


@pytest.mark.parametrize("who", ["installation", "project", "volume"])
@pytest.mark.parametrize("reader", READERS)
def test_no_reader_takes_or_deletes_what_is_not_its_volumes(reader: str, who: str) -> None:
    """A manifest names objects of somebody else, who has a backup of them; they are right for both."""
    backup = golden()
    origin = keys.parse_origin(KEY.rpartition("/")[0])
    assert origin is not None
    victim = str(replace(origin, **{who: "victim"}))
    first, *rest = backup.entries()
    stolen = replace(
        first,
        map=replace(first.map, origin=victim),
        packs=tuple(replace(one, origin=victim, number=at) for at, one in enumerate(first.packs)),
    )
    theirs = dict(
        zip(stolen.object_keys(), (backup.objects[key] for key in first.object_keys()), strict=True)
    )
    # The map names packs by their whole keys.
    found = SegmentMap.parse(theirs[stolen.map_key])
    found.packs = [replace(one, key=key) for one, key in zip(found.packs, stolen.pack_keys(), strict=True)]
    theirs[stolen.map_key] = found.encode()
    digest = blake3(theirs[stolen.map_key]).digest()
    stolen = replace(stolen, map=MapRef(victim, digest, len(theirs[stolen.map_key])))
    backup.objects.update(theirs)
    owner = keys.parse_origin(victim)
    assert owner is not None
    box = memory_container({"box": backup.objects})
    with ManifestWriter(ManifestHead(owner, ManifestReader(box, KEY).head.geometry)) as writer:
        writer.add(stolen)
        writer.put(box)
    theirs[writer.head.key] = backup.objects[writer.head.key]
    case = Case(backup.objects, KEY, [*OTHERS, writer.head.key], DATA)
    backup.put_entries([stolen, *rest])
    container = memory_container({"box": dict(backup.objects)})
    if MAY_RAISE[reader] and reader not in ("verify", "release"):
        with pytest.raises(Damaged, match="not its volume's"):
            READERS[reader](case, container)
    else:
        # These tell of it in their own way, and go on without it.
        with suppress(Damaged):
            READERS[reader](case, container)
    left = objects_of(container)
    assert {key: left.get(key) for key in theirs} == theirs
    assert not {key for key, _, _ in container.gets} & set(stolen.object_keys())


@pytest.mark.parametrize(("length", "taken"), [(1 << 50, True), ((1 << 50) + 1, False), (1 << 62, False)])
def test_an_import_of_a_volume_beyond_a_pebibyte_is_refused(length: int, taken: bool) -> None:
    reader = manifest_of([], Geometry(length, 64 << 10, 1 << 30))
    box = reader.container
    case = Case(objects_of(box), reader.key, [], b"")
    if taken:
        READERS["import"](case, box)
    else:
        with pytest.raises(InvalidInput, match="longer than 1024 TiB"):
            READERS["import"](case, box)
    assert found_manifests.MAX_LENGTH == 1 << 50


def test_the_most_values_of_json() -> None:
    most = binary.MAX_JSON_VALUES
    # Two marks begin the object and the list.
    assert len(parse_json(b'{"a":[' + b"0," * (most - 2) + b"0]}")["a"]) == most - 1
    for text in (b'{"a":[' + b"0," * (most - 1) + b"0]}", b'{"a":"' + b"," * most + b'"}'):
        with pytest.raises(BadBytes, match="more values"):
            parse_json(text)


def test_the_most_parts_of_a_record() -> None:
    def text(parts: int) -> str:
        value = {**FOREIGN, "driver_info": {}, "metadata": {}, "more": [[]] * (parts - 4)}
        return base64.b64encode(json.dumps(value).encode()).decode()

    assert records.decode(text(records.MAX_PARTS)).id == FOREIGN["id"]
    with pytest.raises(InvalidInput, match="parse"):
        records.decode(text(records.MAX_PARTS + 1))


def test_the_longest_record() -> None:
    record = base64.b64encode(json.dumps(FOREIGN).encode()).decode()
    assert records.decode(record.ljust(records.MAX_CHARACTERS)).id == FOREIGN["id"]
    with pytest.raises(InvalidInput, match="decode"):
        records.decode(record.ljust(records.MAX_CHARACTERS + 1))


def test_the_longest_map_and_pack_of_an_entry() -> None:
    for length, size in ((MAX_MAP_BYTES, MAX_PACK_BYTES), (MAX_MAP_BYTES + 1, 1), (1, MAX_PACK_BYTES + 1)):
        entry = replace(
            ENTRY, map=replace(ENTRY.map, length=length), packs=(replace(ENTRY.packs[0], size=size),)
        )
        data = encode_entry(entry)
        if (length, size) == (MAX_MAP_BYTES, MAX_PACK_BYTES):
            assert decode_entry(data, "i/p/v/") == entry
        else:
            with pytest.raises(BadBytes, match="longer than any"):
                decode_entry(data, "i/p/v/")


@pytest.mark.parametrize("sealing", [CLEAR, Keyring().sealing], ids=["clear", "encrypted"])
def test_a_map_is_not_read_beyond_what_its_segment_can_need(sealing: Sealing) -> None:
    cut = Geometry(8 * 512, 512, 8 * 512)
    most = _most_bytes(8, 1, sealed=sealing is not CLEAR)
    for length, why in ((most, "bytes have changed"), (most + 1, "longer than the segment's map can be")):
        box = memory_container({"box": {ENTRY.map_key: bytes(length)}})
        with pytest.raises(Damaged, match=why):
            read_map(box, replace(ENTRY, map=replace(ENTRY.map, length=length)), cut, sealing)
        # What is found wrong is read twice.
        assert box.gets == ([(ENTRY.map_key, 0, length)] * 2 if length == most else [])


def test_a_map_of_no_bytes_is_asked_for_by_its_first_byte() -> None:
    """No store has ranges of no bytes."""
    box = memory_container({"box": {ENTRY.map_key: b""}})
    with pytest.raises(Damaged, match="shorter than promised"):
        read_map(box, replace(ENTRY, map=replace(ENTRY.map, length=0)), Geometry(8 * 512, 512, 8 * 512))
    assert box.gets == [(ENTRY.map_key, 0, 1)]


@pytest.mark.parametrize(("blocks", "packs"), [(1, 1), (7, 1), (7, 3)])
def test_the_most_bytes_of_a_map_are_those_of_one_with_the_longest_keys(blocks: int, packs: int) -> None:
    found = SegmentMap(0, 512, blocks * 512)
    found.packs = [PackInfo("k" * naming.MAX_KEY_BYTES, 1000, 900)] * packs
    most = len(forge.unpacked_map(found.encode()))
    assert _most_bytes(blocks, packs) == most
    assert _most_bytes(blocks, packs, sealed=True) == most + SEAL_BYTES + TAG_BYTES


@pytest.mark.parametrize("beyond", [0, 1])
def test_the_longest_map(beyond: int, monkeypatch: pytest.MonkeyPatch) -> None:
    found = SegmentMap(0, 512, 512)
    found.packs = [PackInfo("k", 1000, 900)]
    packed = found.encode()
    plain = forge.unpacked_map(packed)
    assert len(packed) < len(plain) - 100
    # As it is stored, and as it is unpacked: without header and checksum.
    for data, longest in ((plain, len(plain)), (packed, len(plain) - 100)):
        monkeypatch.setattr(segment_map, "MAX_MAP_BYTES", longest - beyond)
        if beyond:
            with pytest.raises(BadBytes, match="length"):
                SegmentMap.parse(data)
        else:
            assert SegmentMap.parse(data).packs == found.packs


@pytest.mark.parametrize("beyond", [0, 1])
def test_the_most_packs_of_a_segment(beyond: int) -> None:
    packs = tuple(PackRef(str(ORIGIN), number, 1) for number in range(8 + beyond))
    reader = manifest_of([replace(ENTRY, packs=packs)], Geometry(8 * 512, 512, 8 * 512))
    if beyond:
        with pytest.raises(Damaged, match="more packs than blocks"):
            list(reader.segments())
    else:
        assert [entry.packs for entry in reader.segments()] == [packs]


@pytest.mark.parametrize("beyond", [0, 1])
def test_the_most_origins_of_a_manifest(beyond: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifest, "MAX_ORIGINS", 8)
    names = [str(replace(ORIGIN, token=f"{number:016x}")) for number in range(8 + beyond)]
    packs = tuple(PackRef(name, 0, 1) for name in names)
    reader = manifest_of(
        [replace(ENTRY, map=replace(ENTRY.map, origin=names[0]), packs=packs)],
        Geometry(1 << 20, 512, 1 << 20),
    )
    reads: list[Callable[[], Any]] = [lambda: list(reader.segments()), reader.origins]
    for read in reads:
        if beyond:
            with pytest.raises(Damaged, match="more origins than any"):
                read()
        else:
            assert read()


def test_a_table_has_no_origin_that_is_not_needed() -> None:
    """Else a page of few bytes costs the time of 60 000 origins, and the next one again."""
    data = encode_entry(ENTRY)
    more = forge.encode_origins([str(ORIGIN), str(replace(ORIGIN, attempt=2))])
    with pytest.raises(BadBytes, match="no entry names"):
        decode_entry(more + data[2 + 2 + len(str(ORIGIN)) :], "i/p/v/")


@pytest.mark.parametrize("beyond", [0, 1])
def test_the_most_rows_of_a_footer(beyond: int) -> None:
    count = geometry.MAX_BLOCKS_PER_SEGMENT + beyond
    header = struct.pack("<8sHHIIIIII56s32s4x", pack.MAGIC, 1, 128, 0, 0, 512, 3, 0, 0, b"", b"")
    footer = struct.pack("<I32sIIB", 0, bytes(32), 128, 0, 1) * count
    tail = struct.pack("<II32s8s", count, len(footer), blake3(header + footer).digest(), pack.TAIL_MAGIC)
    if beyond:
        with pytest.raises(BadBytes, match="more blocks than any segment"):
            pack.Pack.parse(header + footer + tail, 3, 0, 512).rows(None)
    else:
        assert len(pack.Pack.parse(header + footer + tail, 3, 0, 512).rows(None)) == count


# -- the most memory


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(f"{name}:"))


def peak(work: Callable[[], object]) -> int:
    """Return by how many bytes a process grows while it works, at most; what it raises fails the test."""
    reading, writing = os.pipe()
    if not (child := os.fork()):
        # What earlier tests left would be given back in mid-work, and taken off what this grows by.
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)
        # The mark of the highest is set back.
        Path("/proc/self/clear_refs").write_text("5")
        before = _status("VmRSS")
        answer = b""
        try:
            work()
        except Exception as error:
            answer = repr(error).encode()[:2000]
        os.write(writing, answer or str(_status("VmHWM") - before).encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as answered:
        said = answered.read()
    os.waitpid(child, 0)
    assert said.isdigit(), said
    return int(said)


#: What one manifest costs each reader at the most: 37 MiB for a pass (docs/format.md), and what pages need.
MOST_MEMORY = 70 << 20


def fullest(backup: str) -> tuple[str, bytes]:
    """Return a manifest with as many origins as one may have, each as long as it may be."""
    made = keys.Origin("1" * 36, "2" * 32, "3" * 36, backup, 0, 1, "0" * 16)
    long = "x" * (keys.MAX_ORIGIN_TAIL - len("/0.0-") - 16)
    names = [f"{keys.volume_prefix_of(str(made))}{long}/0.0-{n:016x}" for n in range(manifest.MAX_ORIGINS)]
    assert keys.parse_origin(names[0]) is not None
    assert len(names[0]) - len(keys.volume_prefix_of(names[0])) == keys.MAX_ORIGIN_TAIL
    parts = [names[at : at + 16000] for at in range(0, len(names), 16000)]
    entries = [
        SegmentEntry(at, MapRef(part[0], bytes(32), 100), 1, 1, tuple(PackRef(name, 0, 100) for name in part))
        for at, part in enumerate(parts)
    ]
    head = ManifestHead(made, Geometry(1 << 45, 512, 512 << 16))
    content = [
        (forge.HEAD, binary.dump_json(head.to_json())),
        *((forge.SEGMENTS, forge.encode_entries([entry])) for entry in entries),
        *((forge.ORIGINS, forge.encode_origins(part)) for part in parts),
    ]
    totals = (len(entries), len(entries), 100 * (len(entries) + len(names)))
    return head.key, forge.sealed(head.key, content, totals, len(names))


def _fullest_verify(key: str, _other: str, box: Container) -> None:
    report = verify.run(key, box, Control(), lambda *_: None, quick=True)
    assert report.damaged == report.objects - 1 > manifest.MAX_ORIGINS


def _fullest_import(key: str, _other: str, box: Container) -> None:
    found = verify.look(key, (), box, Control())
    assert found.damaged > manifest.MAX_ORIGINS


def _fullest_restore(key: str, _other: str, box: Container) -> None:
    # It goes on behind the last segment.
    restore.run(key, box, CountingTarget(1 << 45, reads_zero=True), Control(), Checkpoint(1 << 20))


def _fullest_release(key: str, other: str, box: Container) -> None:
    done = release.run(key, KnownManifests([other], [key, other]), key.split("/")[0] + "/", box, Control())
    assert done.objects_deleted == 1, "the other names all of it"


def _fullest_sweep(key: str, other: str, box: Container) -> None:
    known = {key, other}
    (report,) = sweep.run(key.split("/")[0] + "/", box, Rows(known, known), Control(), dry_run=True).volumes
    assert report.stopped is None


def _fullest_audit(key: str, other: str, box: Container) -> None:
    known = {key, other}
    report = audit.run(key.split("/")[0] + "/", box, Rows(known, known), Control())
    assert len(report.discrepancies) == audit.MOST


def _fullest_base(key: str, _other: str, box: Container) -> None:
    origin = ManifestReader(box, key).head.origin
    job = make_job(
        9,
        4096,
        key,
        installation=origin.installation,
        project=origin.project,
        volume=origin.volume,
        geometry=Geometry(4096, 512, 512 << 16),
    )
    made = backup.run(job, MemoryPoint(bytes(4095) + b"x"), box, MemoryJournal(), Control())
    assert "so many origins" in (made.base_problem or "")


FULLEST: dict[str, Callable[[str, str, Container], None]] = {
    "import": _fullest_import,
    "restore": _fullest_restore,
    "verify": _fullest_verify,
    "release": _fullest_release,
    "sweep": _fullest_sweep,
    "audit": _fullest_audit,
    "base": _fullest_base,
}
#: What comes on top: a second manifest read beside the first (up to eight are), the origins of what is
#: released, candidates being sorted, or segments of 16 000 packs each that the streams have in hand.
MORE_MEMORY = {
    "sweep": MOST_MEMORY,
    "release": MOST_MEMORY,
    "audit": 48 << 20,
    "import": 20 << 20,
    "verify": 20 << 20,
}


@pytest.fixture(scope="module")
def fullest_two() -> dict[str, bytes]:
    return dict(fullest(f"{number:036d}") for number in range(2))


@pytest.mark.check
@pytest.mark.parametrize("reader", FULLEST)
def test_each_readers_memory_at_the_most_origins(reader: str, fullest_two: dict[str, bytes]) -> None:
    key, other = sorted(fullest_two)
    box = Container(MemoryStore("mem", contents={"box": dict(fullest_two)}), "box")
    took = peak(lambda: FULLEST[reader](key, other, box))
    assert took < MOST_MEMORY + MORE_MEMORY.get(reader, 0)


# -- bombs


def bombs() -> dict[str, bytes]:
    """Return frames of half a GiB of zeros that say, or do not say, that they hold 4096 bytes."""
    size = 512 << 20
    frame = zstandard.compress(bytes(size))
    assert frame.count(struct.pack("<I", size), 0, 16) == 1
    unsaid = zstandard.ZstdCompressor(write_content_size=False).compressobj()
    head, rest = frame[:16].replace(struct.pack("<I", size), struct.pack("<I", 4096)), frame[16:]
    return {
        "says so": frame,
        "says 4096": head + rest,
        "says 4096, cut": head + rest[: len(rest) // 2],
        "says nothing": unsaid.compress(bytes(size)) + unsaid.flush(),
        "two frames": zstandard.compress(bytes(4096)) + frame,
    }


def burst(work: Callable[[], object]) -> int:
    """Return what :func:`peak` does of something that ends in BadBytes."""

    def bad() -> None:
        with suppress(BadBytes):
            work()

    return peak(bad)


@pytest.mark.check
def test_bombs_take_no_memory() -> None:
    found = SegmentMap(0, 4096, 4096)
    found.codecs[0] = pack.ZSTD
    found.digests[:] = blake3(bytes(4096)).digest()
    assert peak(lambda: bytearray(b"x") * (64 << 20)) > 60 << 20
    decode = BlockDecoder(CLEAR).decode
    for name, bomb in bombs().items():
        assert burst(lambda bomb=bomb: decompress(bomb, 4096)) < 8 << 20, name  # type: ignore[misc]
        assert burst(lambda bomb=bomb: decode(found, 0, memoryview(bomb), None)) < 8 << 20, name  # type: ignore[misc]
        with pytest.raises(BadBytes):
            decompress(bomb, 4096)


@pytest.mark.check
def test_a_map_that_is_a_bomb_takes_no_memory() -> None:
    header = struct.pack(
        "<8sHHIIIIQIIIII12x", b"BFWsegmp", 1, 68, 0, 0, 512, 0, 512, 1, 0xFFFFFFFF, 1, 64 << 20, 0
    )
    stored = zstandard.compress(bytes(64 << 20))
    header = header[:-16] + struct.pack("<I12x", len(stored))
    data = header + stored
    data += blake3(data).digest()
    with pytest.raises(BadBytes, match="more packs than"):
        SegmentMap.parse(data)
    assert burst(lambda: SegmentMap.parse(data)) < 8 << 20

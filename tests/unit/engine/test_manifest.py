"""Manifests: what is written is read; anything else is refused, in the right words."""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import zstandard
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st

from backupfw.engine.format import keys, manifest
from backupfw.engine.format.binary import BadBytes, dump_json
from backupfw.engine.format.entries import (
    MAX_PACK_BYTES,
    MapRef,
    PackRef,
    SegmentEntry,
    decode_entries,
    decode_entry,
    encode_entries,
    encode_entry,
)
from backupfw.engine.format.geometry import MAX_LENGTH, Geometry
from backupfw.engine.format.manifest import (
    ManifestHead,
    ManifestReader,
    ManifestTotals,
    ManifestWriter,
    PointNote,
    SourceTotals,
)
from backupfw.engine.format.sealing import Seal
from backupfw.errors import Damaged, UnsupportedFormat
from backupfw.volume.base import MAX_TOKEN
from tests.fuzz import forge
from tests.unit.engine.fakes import FaultyContainer, memory_container, objects_of

ORIGINS = [str(keys.Origin("i", "p", "v", f"b{number}", 0, 1, f"{number:016x}")) for number in range(4)]

packs = st.builds(PackRef, st.sampled_from(ORIGINS), st.integers(0, 0xFFFF), st.integers(0, MAX_PACK_BYTES))
entries = st.builds(
    SegmentEntry,
    st.integers(0, 999),
    st.builds(
        MapRef, st.sampled_from(ORIGINS), st.binary(min_size=32, max_size=32), st.integers(0, 64 << 20)
    ),
    st.one_of(st.integers(0, 1 << 28), st.integers(0, 2**63)),
    st.integers(0, 2**63),
    st.lists(packs, max_size=5, unique_by=lambda one: (one.origin, one.number)).map(tuple),
)


def head(number: int = 0, **changes: Any) -> ManifestHead:
    origin = keys.Origin("i", "p", "v", f"b{number}", 0, 1, f"{number:016x}")
    return ManifestHead(origin, Geometry(1000 << 28), record={"id": f"b{number}", "name": "ü"}, **changes)


def entry(index: int, origin: int = 0, packs: int = 1) -> SegmentEntry:
    refs = tuple(PackRef(ORIGINS[(origin + number) % 4], number, 1000 + number) for number in range(packs))
    map_ref = MapRef(ORIGINS[origin], blake3(bytes([index % 256])).digest(), 500)
    return SegmentEntry(index, map_ref, 1 << 20, 900, refs)


def write(box: FaultyContainer, content: list[SegmentEntry], about: ManifestHead | None = None) -> str:
    with ManifestWriter(about or head()) as writer:
        for item in content:
            writer.add(item)
        writer.put(box)
    return writer.head.key


def read_all(box: FaultyContainer, key: str) -> list[SegmentEntry]:
    return list(ManifestReader(box, key).segments())


@given(st.lists(entries, max_size=20, unique_by=lambda item: item.index))
def test_a_manifest_reads_as_it_was_written(content: list[SegmentEntry]) -> None:
    content.sort(key=lambda item: item.index)
    box = memory_container()
    about = head(base=keys.manifest_key(ORIGINS[1]))
    small = [item for item in content if item.data_bytes <= 1 << 28 and item.used_bytes < 1 << 50]
    about = replace(about, source=SourceTotals(len(small), sum(item.data_bytes for item in small)))
    key = write(box, small, about)
    reader = ManifestReader(box, key)
    assert reader.head == about
    assert list(reader.segments()) == small
    assert list(reader.segments()) == small  # a second pass
    assert reader.origins() == sorted({name for item in small for name in item.origins()})
    assert reader.totals.segments == len(small)
    assert reader.totals.data_bytes == sum(item.data_bytes for item in small)
    assert reader.totals.manifest_bytes == len(objects_of(box)[key])


@given(entries)
def test_a_journal_entry_round_trips(item: SegmentEntry) -> None:
    assert decode_entry(encode_entry(item), "i/p/v/") == item
    assert decode_entry(encode_entry(None), "i/p/v/") is None


@given(st.lists(entries, min_size=1, max_size=3, unique_by=lambda item: item.index), st.data())
def test_changed_entry_bytes_never_raise_anything_but_bad_bytes(
    content: list[SegmentEntry], data: st.DataObject
) -> None:
    content.sort(key=lambda item: item.index)
    block = bytearray(encode_entries(content))
    at = data.draw(st.integers(0, len(block) - 1))
    block[at] ^= data.draw(st.integers(1, 255))
    cut = data.draw(st.integers(0, len(block)))
    for hostile in (bytes(block), bytes(block[:cut])):
        with contextlib.suppress(BadBytes):
            list(decode_entries(hostile, "i/p/v/"))


def test_many_segments_take_several_pages_and_few_requests() -> None:
    box = memory_container()
    content = [entry(index, index % 4, 5) for index in range(0, 30_000, 3)]
    about = ManifestHead(head().origin, Geometry(30_000 << 28))
    key = write(box, content, about)
    box.gets.clear()
    assert read_all(box, key) == content
    size = len(objects_of(box)[key])
    assert len(box.gets) <= 2 + -(-size // (1 << 20))
    box.gets.clear()
    reader = ManifestReader(box, key)
    assert reader.origins() == sorted(ORIGINS)
    assert len(box.gets) == 3  # header, head page, the end


def test_every_flipped_byte_is_found() -> None:
    box = memory_container()
    key = write(box, [entry(index, index % 4, 3) for index in range(5)])
    data = objects_of(box)[key]
    for at in range(len(data)):
        changed = bytearray(data)
        changed[at] ^= 1 << (at % 8)
        objects_of(box)[key] = bytes(changed)
        with pytest.raises(Damaged) as caught:
            read_all(box, key)
        assert (caught.value.store, caught.value.container, caught.value.key) == ("mem", "box", key)


def test_every_truncation_is_found() -> None:
    box = memory_container()
    key = write(box, [entry(index, index % 4, 3) for index in range(5)])
    data = objects_of(box)[key]
    for size in range(len(data)):
        objects_of(box)[key] = data[:size]
        with pytest.raises(Damaged):
            read_all(box, key)


def test_a_missing_manifest_is_damage() -> None:
    with pytest.raises(Damaged, match="missing"):
        ManifestReader(memory_container(), head().key)


def pages_of(data: bytes) -> list[bytes]:
    pages, at = [], manifest.HEADER_BYTES
    while at < len(data):
        stored = manifest._PAGE.unpack_from(data, at)[5]
        size = manifest._PAGE.size + stored + 32
        pages.append(data[at : at + size])
        at += size
    return pages


def test_swapped_doubled_and_dropped_pages_are_found() -> None:
    box = memory_container()
    about = ManifestHead(head().origin, Geometry(5000 << 28))
    key = write(box, [entry(index) for index in range(3000)], about)
    data = objects_of(box)[key]
    pages = pages_of(data)
    assert len(pages) == 6  # head, three of segments, origins, end
    # The reserved field.
    assert {page[6:8] for page in pages} == {bytes(2)}
    for order in (
        [0, 2, 1, 3, 4, 5],
        [0, 1, 1, 3, 4, 5],
        [0, 1, 3, 4, 5],
        [0, 1, 2, 3, 5],
        [1, 0, 2, 3, 4, 5],
    ):
        objects_of(box)[key] = data[: manifest.HEADER_BYTES] + b"".join(pages[place] for place in order)
        with pytest.raises(Damaged):
            read_all(box, key)


def test_pages_of_another_manifest_are_refused() -> None:
    box = memory_container()
    key = write(box, [entry(1), entry(2)], head(0))
    other = write(box, [entry(1), entry(3)], head(1))
    mine, theirs = objects_of(box)[key], objects_of(box)[other]
    pages, foreign = pages_of(mine), pages_of(theirs)
    pages[1] = foreign[1]
    objects_of(box)[key] = mine[: manifest.HEADER_BYTES] + b"".join(pages)
    with pytest.raises(Damaged):
        read_all(box, key)
    # And as a whole under another key.
    objects_of(box)[key] = theirs
    with pytest.raises(Damaged, match="another key"):
        ManifestReader(box, key)


def test_the_same_page_of_an_older_state_is_refused() -> None:
    """Two manifests under one key cannot be made by us; a store that mixes versions could."""
    box, old = memory_container(), memory_container()
    key = write(box, [entry(1), entry(2)])
    write(old, [entry(1), entry(3)])
    mine, theirs = objects_of(box)[key], objects_of(old)[key]
    pages, foreign = pages_of(mine), pages_of(theirs)
    pages[1] = foreign[1]
    objects_of(box)[key] = mine[: manifest.HEADER_BYTES] + b"".join(pages)
    with pytest.raises(Damaged):
        read_all(box, key)


def rehead(data: bytes, /, **changes: int) -> bytes:
    """Return the manifest with other fields in its header, checksum made right."""
    names = ["magic", "version", "length", "features", "flags", "pages", "total", "origins_offset"]
    names += ["segments", "data", "referenced", "binding"]
    fields = dict(zip(names, manifest._HEADER.unpack_from(data), strict=True)) | changes
    header = manifest._HEADER.pack(*fields.values())
    return header + blake3(header).digest() + data[manifest.HEADER_BYTES :]


@pytest.mark.parametrize(
    "changes", [{"version": 2}, {"features": 1}, {"features": 1 << 31}, {"flags": 1 << 5}]
)
def test_a_newer_version_or_feature_is_refused_as_such(changes: dict[str, int]) -> None:
    box = memory_container()
    key = write(box, [entry(1)])
    objects_of(box)[key] = rehead(objects_of(box)[key], **changes)
    with pytest.raises(UnsupportedFormat):
        ManifestReader(box, key)


@pytest.mark.parametrize("length", [16 + 32, manifest.HEADER_BYTES - 1, 4096])
def test_a_newer_version_may_have_another_header(length: int) -> None:
    """Its first bytes and its checksum are where they are now: it is no damage."""
    box = memory_container()
    key = write(box, [entry(1)])
    header = struct.pack("<8sHHI", manifest.MAGIC, 3, length, 0).ljust(length - 32, b"\1")
    objects_of(box)[key] = header + blake3(header).digest() + bytes(8192)
    with pytest.raises(UnsupportedFormat, match=f"object {key} has format version 3"):
        ManifestReader(box, key)
    # No more than the header was read.
    assert all(offset == 0 and size and size <= 4096 for _, offset, size in box.gets)
    objects_of(box)[key] = header + bytes(8192)
    with pytest.raises(Damaged, match="header has changed"):
        ManifestReader(box, key)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"origins_offset": manifest.HEADER_BYTES}, "numbers are wrong"),
        ({"origins_offset": 1000, "total": 1000}, "numbers are wrong"),
        ({"total": MAX_LENGTH + 1}, "numbers are wrong"),
        ({"referenced": MAX_LENGTH + 1}, "numbers are wrong"),
        ({"referenced": MAX_LENGTH}, "sums do not match"),
    ],
)
def test_a_headers_numbers_are_within_their_bounds(changes: dict[str, int], why: str) -> None:
    box = memory_container()
    key = write(box, [entry(1)])
    objects_of(box)[key] = rehead(objects_of(box)[key], **changes)
    with pytest.raises(Damaged, match=why):
        read_all(box, key)


@pytest.mark.parametrize(
    "changes",
    [
        {"total": 1 << 62},
        {"total": 0},
        {"pages": 3},
        {"segments": 7},
        {"data": 1},
        {"referenced": 1},
        {"origins_offset": 1 << 40},
        {"origins_offset": 200},
    ],
)
def test_wrong_figures_under_a_right_checksum_are_found(changes: dict[str, int]) -> None:
    box = memory_container()
    key = write(box, [entry(1)])
    objects_of(box)[key] = rehead(objects_of(box)[key], **changes)
    with pytest.raises(Damaged):
        read_all(box, key)


@pytest.mark.parametrize(
    ("changes", "whole"), [({}, True), ({"segments": 2}, False), ({"data": 4097}, False)]
)
def test_a_header_names_no_more_than_the_volume_has(changes: dict[str, int], whole: bool) -> None:
    box = memory_container()
    full = replace(entry(0), data_bytes=4096)
    key = write(box, [full], ManifestHead(head().origin, Geometry(4096, 512, 4096)))
    objects_of(box)[key] = rehead(objects_of(box)[key], **changes)
    if whole:
        assert read_all(box, key) == [full]
    else:
        with pytest.raises(Damaged, match="more than the volume has"):
            ManifestReader(box, key)


def forge_page(
    payload: bytes, stored: bytes, codec: int, number: int, kind: int, key: str, magic: bytes = b"PAGE"
) -> bytes:
    binding = blake3(key.encode()).digest()
    page = struct.pack("<4sBBHIII", magic, kind, codec, 0, number, len(stored), len(payload)) + stored
    return page + blake3(binding + page).digest()


def put_page(box: FaultyContainer, key: str, data: bytes, page: bytes) -> None:
    """Put the manifest with a forged first page."""
    data = rehead(data, total=len(data) + len(page))
    objects_of(box)[key] = data[: manifest.HEADER_BYTES] + page + data[manifest.HEADER_BYTES :]


@pytest.mark.parametrize(
    "head_json",
    [
        b"[" * 100_000,
        b"{}",
        b'"text"',
        b"\xff",
        b'{"epoch": ' + b"9" * 5000 + b"}",
    ],
)
def test_a_hostile_head_page_is_damage(head_json: bytes) -> None:
    box = memory_container()
    key = write(box, [])
    data = objects_of(box)[key]
    page = forge_page(head_json, head_json, 0, 0, 1, key)
    put_page(box, key, data, page)
    with pytest.raises(Damaged, match=r"JSON|field"):
        ManifestReader(box, key)


def test_a_bomb_is_not_unpacked() -> None:
    box = memory_container()
    key = write(box, [])
    data = objects_of(box)[key]
    bomb = zstandard.ZstdCompressor().compress(bytes(64 << 20))
    page = forge_page(bytes(100), bomb, 1, 0, 1, key)
    put_page(box, key, data, page)
    with pytest.raises(Damaged, match="length"):
        ManifestReader(box, key)


def test_the_writer_refuses_what_no_manifest_may_hold() -> None:
    with pytest.raises(ValueError, match="block size"):
        ManifestWriter(ManifestHead(head().origin, Geometry(1, 1000, 4000)))
    with ManifestWriter(head()) as writer:
        with pytest.raises(ValueError, match="bounds"):
            writer.add(entry(-1))
        writer.add(entry(5))
        with pytest.raises(ValueError, match="order"):
            writer.add(entry(5))
        with pytest.raises(ValueError, match="bounds"):
            writer.add(entry(1000))
    with pytest.raises(ValueError, match="too large"):
        ManifestWriter(ManifestHead(head().origin, Geometry(1), record={"x": "y" * (5 << 20)}))


def test_a_page_may_have_exactly_the_largest_size(monkeypatch: pytest.MonkeyPatch) -> None:
    size = len(dump_json(head().to_json()))
    box = memory_container()
    monkeypatch.setattr(manifest, "MAX_PAGE_BYTES", size)
    key = write(box, [])
    assert ManifestReader(box, key).head == head()
    monkeypatch.setattr(manifest, "MAX_PAGE_BYTES", size - 1)
    with pytest.raises(ValueError, match="too large"):
        write(box, [])
    with pytest.raises(Damaged, match="header has changed"):
        ManifestReader(box, key)
    # As it is, not packed.
    text = dump_json(head().to_json())
    put_page(box, key, objects_of(box)[key], forge_page(text, text, 0, 0, 1, key))
    with pytest.raises(Damaged, match="header has changed"):
        ManifestReader(box, key)
    monkeypatch.setattr(manifest, "MAX_PAGE_BYTES", size)
    assert ManifestReader(box, key).head == head()


@pytest.mark.parametrize(("request_number", "at"), [(0, 40), (1, 4), (1, 40), (1, -1)])
def test_a_header_or_page_that_came_wrong_is_read_once_more(
    request_number: int, at: int, caplog: pytest.LogCaptureFixture
) -> None:
    box = memory_container()
    content = [entry(index) for index in range(5)]
    key = write(box, content)
    right = objects_of(box)[key]
    wrong = bytearray(right)
    # The first request is for the header, the second for the pages: the second page of them, or the end.
    begin = manifest.HEADER_BYTES + len(pages_of(right)[0]) if request_number else 0
    wrong[begin + at if at >= 0 else at] ^= 1

    def answer(*_: object) -> None:
        objects_of(box)[key] = bytes(wrong) if len(box.gets) == request_number else right

    box.before_get = answer
    assert read_all(box, key) == content
    assert len(box.gets) == 3
    # The log says which object, and in which way.
    (said,) = caplog.messages
    assert key in said
    assert "changed" in said or "out of order" in said


def test_a_page_of_entries_is_closed_when_it_has_enough_entries_or_packs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(manifest, "_ENTRIES_PER_PAGE", 3)
    monkeypatch.setattr(manifest, "_PACKS_PER_PAGE", 4)
    box = memory_container()
    content = [entry(index, 0, packs) for index, packs in enumerate((3, 1, 1, 1, 1, 3, 1, 5, 1))]
    key = write(box, content)
    pages = [payload for kind, payload in forge.pages(objects_of(box)[key]) if kind == forge.SEGMENTS]
    assert [len(list(decode_entries(page, "i/p/v/"))) for page in pages] == [2, 3, 2, 1, 1]
    assert read_all(box, key) == content


def test_a_manifest_has_the_sums_of_its_entries() -> None:
    box = memory_container()
    with ManifestWriter(head()) as writer:
        for index, packs in ((1, 1), (7, 3)):
            writer.add(entry(index, 0, packs))
        totals = writer.put(box)
    # Maps of 500 bytes; packs of 1000, and of 1000 to 1002.
    assert totals == ManifestTotals(
        2, 2 << 20, 500 + 1000 + 500 + 3003, len(objects_of(box)[writer.head.key])
    )
    assert ManifestReader(box, writer.head.key).totals == totals


HEAD = {
    "installation": "i",
    "project": "p",
    "volume": "v",
    "backup": "b",
    "epoch": 2,
    "attempt": 3,
    "token": "0" * 16,
    "length": 1 << 30,
    "block_size": 4096,
    "segment_size": 1 << 20,
    "hash_mode": "blake3",
    "key_id": None,
    "base": "the/base",
    "record": {"id": "b"},
    "source": {"segments": 5, "data_bytes": 6},
}
_KEY = "0f" * 16
_SEAL = _KEY + "11" * 32 + "00" * 8 + "22" * 32
#: An encrypted one's: the record is elsewhere.
SEALED_HEAD = {name: value for name, value in HEAD.items() if name != "record"} | {
    "hash_mode": "blake3-keyed",
    "key_id": _KEY,
    "mac_id": "3f" * 16,
    "seal": _SEAL,
}


def test_the_fields_of_a_head() -> None:
    about = ManifestHead(
        keys.Origin("i", "p", "v", "b", 2, 3, "0" * 16),
        Geometry(1 << 30, 4096, 1 << 20),
        base="the/base",
        record={"id": "b"},
        source=SourceTotals(5, 6),
    )
    assert about.to_json() == HEAD
    assert ManifestHead.from_json(HEAD | {"of a later version": 1}) == about
    few = {name: value for name, value in HEAD.items() if name not in ("key_id", "base", "source")}
    for value in (few, few | {"key_id": None, "base": None, "source": None}):
        plain = ManifestHead.from_json(value)
        assert plain == replace(about, base=None, source=None)
        assert plain.to_json() == few | {"key_id": None, "base": None}
    seal = Seal(_KEY, bytes.fromhex("22" * 32), bytes.fromhex("11" * 32))
    sealed = replace(about, mac_id="3f" * 16, seal=seal, record={})
    assert sealed.to_json() == SEALED_HEAD
    assert ManifestHead.from_json(SEALED_HEAD) == sealed


@pytest.mark.parametrize("name", sorted(SEALED_HEAD.keys() | HEAD))
def test_each_field_of_a_head_has_its_type(name: str) -> None:
    good = SEALED_HEAD if name in SEALED_HEAD else HEAD
    for wrong in (None, True, 1.5, [], "1" if isinstance(good[name], int) else 1):
        optional = name in ("key_id", "mac_id", "seal", "base", "source")
        if wrong is None and optional:
            continue
        with pytest.raises(BadBytes, match=f"field {name} .* wrong type"):
            ManifestHead.from_json(good | {name: wrong})
    if isinstance(good[name], str):
        for no_text in ("a\0b", "\ud800"):
            with pytest.raises(BadBytes, match=f"field {name} .* no text"):
                ManifestHead.from_json(good | {name: no_text})


@pytest.mark.parametrize(
    "wrong", ["", "0", _SEAL[:-2], _SEAL + "00", "x" + _SEAL[1:], _SEAL.replace("0f", "0F")]
)
def test_a_seal_has_one_spelling(wrong: str) -> None:
    with pytest.raises(BadBytes, match="no seal"):
        ManifestHead.from_json(SEALED_HEAD | {"seal": wrong})


@pytest.mark.parametrize("name", ["segments", "data_bytes"])
def test_the_numbers_of_a_source_are_numbers(name: str) -> None:
    for wrong in ({}, {name: "1"}):
        source = {
            key: value for key, value in {"segments": 5, "data_bytes": 6}.items() if key != name
        } | wrong
        with pytest.raises(BadBytes, match=f"field {name} "):
            ManifestHead.from_json(HEAD | {"source": source})


@pytest.mark.parametrize(
    "changes",
    [
        {"key_id": "k"},
        {"hash_mode": "blake4"},
        {"mac_id": "3f" * 16},
        {"seal": _SEAL},
        {"hash_mode": "blake3-keyed"},
    ],
)
def test_a_key_or_a_hash_mode_of_a_later_release_is_refused_as_such(changes: dict[str, str]) -> None:
    with pytest.raises(UnsupportedFormat):
        ManifestHead.from_json(HEAD | changes)
    with pytest.raises(UnsupportedFormat):
        ManifestHead.from_json(SEALED_HEAD | {name: HEAD.get(name) for name in changes})


@pytest.mark.parametrize("changes", [{"segments": 1}, {"data_bytes": 1 << 19}])
def test_other_segments_than_the_source_had_are_damage(changes: dict[str, int]) -> None:
    box = memory_container()
    key = write(box, [entry(1), entry(2)], head(source=replace(SourceTotals(2, 2 << 20), **changes)))
    with pytest.raises(Damaged, match="other segments than the volume had"):
        ManifestReader(box, key)


# -- forged pages under right checksums


def forged(content: Sequence[SegmentEntry], origins: Sequence[str] | None = None, **more: Any) -> str:
    """Put a manifest of one page per entry and return why it is damaged, or nothing."""
    named = sorted({name for item in content for name in item.origins()}) if origins is None else origins
    referenced = sum(item.map.length + sum(one.size for one in item.packs) for item in content)
    totals = (len(content), sum(item.data_bytes for item in content), referenced)
    pages = [
        (forge.HEAD, dump_json(head().to_json())),
        *((forge.SEGMENTS, encode_entries([item])) for item in content),
        (forge.ORIGINS, forge.encode_origins(named)),
    ]
    data = forge.sealed(head().key, pages, totals, len(named), **more)
    box = memory_container({"box": {head().key: data}})
    try:
        assert read_all(box, head().key) == content
    except Damaged as error:
        return str(error)
    return ""


@pytest.mark.parametrize("changes", [{"backup": "b1"}, {"token": "1" * 16}, {"epoch": 1}])
def test_a_head_of_another_attempt_is_damage(changes: dict[str, Any]) -> None:
    pages = [(forge.HEAD, dump_json(head().to_json() | changes)), (forge.ORIGINS, forge.encode_origins([]))]
    data = forge.sealed(head().key, pages, (0, 0, 0), 0)
    with pytest.raises(Damaged, match="another key"):
        ManifestReader(memory_container({"box": {head().key: data}}), head().key)


def test_a_head_of_no_attempt_is_damage() -> None:
    """It names the key under which it is, and that is no key of the format."""
    about = replace(head(), origin=replace(head().origin, token="x"))
    pages = [(forge.HEAD, dump_json(about.to_json())), (forge.ORIGINS, forge.encode_origins([]))]
    data = forge.sealed(about.key, pages, (0, 0, 0), 0)
    with pytest.raises(Damaged, match="another key"):
        ManifestReader(memory_container({"box": {about.key: data}}), about.key)


def test_a_manifest_that_is_longer_than_its_header_says_is_damage() -> None:
    box = memory_container()
    key = write(box, [entry(index, index % 4, 3) for index in range(5)])
    data = objects_of(box)[key]
    for total in range(manifest.HEADER_BYTES + 1, len(data)):
        objects_of(box)[key] = rehead(data, total=total)
        with pytest.raises(Damaged):
            read_all(box, key)


@pytest.mark.parametrize(("codec", "shorter"), [(0, 1), (2, 0)])
def test_a_page_that_is_packed_in_an_unknown_way_is_damage(codec: int, shorter: int) -> None:
    box = memory_container()
    key = write(box, [])
    text = dump_json(head().to_json())
    put_page(box, key, objects_of(box)[key], forge_page(text[shorter:], text, codec, 0, 1, key))
    with pytest.raises(Damaged, match="unknown way"):
        ManifestReader(box, key)


def test_what_is_no_page_under_a_right_checksum_is_damage() -> None:
    box = memory_container()
    key = write(box, [])
    text = dump_json(head().to_json())
    put_page(box, key, objects_of(box)[key], forge_page(text, text, 0, 0, 1, key, b"page"))
    with pytest.raises(Damaged, match="header has changed"):
        ManifestReader(box, key)


def test_forged_pages_that_fit_are_read() -> None:
    assert forged([entry(1), entry(2, 1)]) == ""


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ([entry(2), entry(1)], "out of order"),
        ([entry(1), entry(1)], "out of order"),
        ([entry(1000)], "out of bounds"),
        ([replace(entry(1000, packs=0), data_bytes=0)], "out of bounds"),
        ([replace(entry(1), data_bytes=(256 << 20) + 1)], "more data than bytes"),
        ([replace(entry(999, packs=2), data_bytes=256 << 20)], ""),
    ],
)
def test_entries_of_no_volume_are_damage(content: list[SegmentEntry], why: str) -> None:
    found = forged(content)
    assert why in found
    assert bool(found) == bool(why)


@pytest.mark.parametrize(
    "names", [(0, 0), (1, 0), (0, 2), (0,), (0, 1, 2), ()], ids=lambda names: "-".join(map(str, names))
)
def test_origins_that_are_not_those_of_the_entries_are_damage(names: tuple[int, ...]) -> None:
    # The entries name the first two.
    assert forged([entry(1), entry(2, 1)], [ORIGINS[name] for name in names]) != ""


@pytest.mark.parametrize("names", [(0, 0), (1, 0)])
def test_origins_are_read_in_order(names: tuple[int, ...]) -> None:
    listed = [ORIGINS[name] for name in names]
    pages = [(forge.HEAD, dump_json(head().to_json())), (forge.ORIGINS, forge.encode_origins(listed))]
    data = forge.sealed(head().key, pages, (0, 0, 0), len(listed))
    with pytest.raises(Damaged, match="out of order"):
        ManifestReader(memory_container({"box": {head().key: data}}), head().key).origins()


@pytest.mark.parametrize(
    "more",
    [
        {"numbers": [0, 2, 3, 4]},
        {"numbers": [0, 1, 2, 4]},
        {"numbers": [1, 2, 3, 4]},
        {"count": 3},
        {"count": 5},
        {"segments": 0},
        {"segments": 2},
    ],
)
def test_pages_with_other_numbers_are_damage(more: dict[str, Any]) -> None:
    assert forged([entry(1)], numbers=[0, 1, 2, 3]) == ""
    assert forged([entry(1)], **more) != ""


def test_the_number_of_origins_is_that_of_the_end() -> None:
    for said in (0, 1, 2):
        pages = [
            (forge.HEAD, dump_json(head().to_json())),
            (forge.ORIGINS, forge.encode_origins(ORIGINS[:1])),
        ]
        data = forge.sealed(head().key, pages, (0, 0, 0), said)
        reader = ManifestReader(memory_container({"box": {head().key: data}}), head().key)
        if said == 1:
            assert reader.origins() == ORIGINS[:1]
        else:
            with pytest.raises(Damaged, match="not what its end says"):
                reader.origins()


# -- what the next backup has to know of the point

MOST = "t" * MAX_TOKEN


@pytest.mark.parametrize(
    ("token", "trusted", "noted"),
    [
        (None, 0, None),
        (None, 3, PointNote(None, 3)),
        ("", 0, PointNote("", 0)),
        (MOST, 1, PointNote(MOST, 1)),
        # What no token can be counts as none.
        (MOST + "t", 0, None),
        (MOST + "t", 2, PointNote(None, 2)),
        ("a\0b", 2, PointNote(None, 2)),
        ("\ud800", 0, None),
        (7, 0, None),
    ],
)
def test_a_point_is_noted(token: Any, trusted: int, noted: PointNote | None) -> None:
    assert PointNote.of(token, trusted) == noted


@pytest.mark.parametrize(
    ("value", "read"),
    [
        ({"token": None, "trusted": 0}, PointNote(None, 0)),
        ({"trusted": 3}, PointNote(None, 3)),
        ({"token": MOST, "trusted": (1 << 31) - 1}, PointNote(MOST, (1 << 31) - 1)),
        ({"token": "t", "trusted": 1 << 31}, None),
        ({"token": "t", "trusted": -1}, None),
        ({"token": "t", "trusted": True}, None),
        ({"token": "t", "trusted": 1.0}, None),
        ({"token": "t", "trusted": None}, None),
        ({"token": "t"}, None),
        ({"token": MOST + "t", "trusted": 1}, None),
        ({"token": "a\0b", "trusted": 1}, None),
        ({"token": 7, "trusted": 1}, None),
        ("t", None),
        (None, None),
    ],
)
def test_a_note_that_is_none_is_not_read(value: object, read: PointNote | None) -> None:
    assert PointNote.from_json(value) == read


# -- entries


def test_wrong_entries_are_bad_bytes() -> None:
    good = entry(1, packs=2)
    twice = replace(good, packs=(good.packs[0], replace(good.packs[0], size=7)))
    data = encode_entries([good])
    for wrong, why in (
        (encode_entries([entry(1), entry(1)]), "order"),
        (encode_entries([entry(2), entry(1)]), "order"),
        (encode_entries([twice]), "twice"),
        (data + b"\0", "longer"),
        (data.replace(b"i/p/v/", b"i/p/w/", 1), "volume's"),
        (data.replace(b"/0.1-", b"/0x1-", 1), "of this format"),
    ):
        with pytest.raises(BadBytes, match=why):
            list(decode_entries(wrong, "i/p/v/"))
    # A number of the table beyond its end: the map's, then a pack's.
    table = len(forge.encode_origins(ORIGINS[:2]))
    for at in (table + 4 + 4, len(data) - 8):
        wrong_number = bytearray(data)
        struct.pack_into("<H", wrong_number, at, 2)
        with pytest.raises(BadBytes, match="no origin of its table"):
            list(decode_entries(bytes(wrong_number), "i/p/v/"))


def test_a_journals_bytes_are_of_one_entry() -> None:
    for content in ([], [entry(1), entry(2)]):
        with pytest.raises(BadBytes, match="exactly one"):
            decode_entry(encode_entries(content), "i/p/v/")

"""Segment maps and packs: round trips, and bytes that are not what they should be."""

from __future__ import annotations

import contextlib
import struct

import pytest
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st

from backupfw.engine.format import keys, pack
from backupfw.engine.format.binary import BadBytes
from backupfw.engine.format.pack import RAW, ZSTD, Pack, PackBuffer, check_tail
from backupfw.engine.format.sealing import SEAL_BYTES
from backupfw.engine.format.segment_map import PackInfo, SegmentMap
from backupfw.errors import UnsupportedFormat
from tests.fuzz import forge

ORIGIN = "i/p/v/b/0.1-0123456789abcdef"


def make_map(blocks: int = 6, last: int = 100) -> SegmentMap:
    """Two packs, a zero block, raw and compressed ones, a short last block."""
    found = SegmentMap(3, 4096, (blocks - 1) * 4096 + last)
    found.packs = [PackInfo(keys.pack_key(ORIGIN, 3, number), 100_000, 90_000) for number in range(2)]
    at = pack.HEADER_BYTES
    for block in range(blocks):
        if block == 1:
            continue
        found.codecs[block] = ZSTD if block in (3, 7) else RAW
        found.stored[block] = 77 if block in (3, 7) else found.block_length(block)
        found.pack[block] = block % 2
        found.offset[block] = at
        found.digests[32 * block : 32 * block + 32] = blake3(bytes([block])).digest()
        at += found.stored[block]
    return found


def same(one: SegmentMap, two: SegmentMap) -> bool:
    return all(getattr(one, name) == getattr(two, name) for name in SegmentMap.__slots__)


@pytest.mark.parametrize("blocks", [2, 3, 6, 16])
@pytest.mark.parametrize("last", [1, 100, 4096])
def test_a_segment_map_parses_as_it_was_encoded(blocks: int, last: int) -> None:
    found = make_map(blocks, last)
    if blocks < 4:
        found.packs.pop()
    parsed = SegmentMap.parse(found.encode())
    assert same(parsed, found)
    assert parsed.problem() is None
    zero = 1
    assert parsed.data_bytes() == found.length - zero * (4096 if blocks > 2 else last)
    assert parsed.used_bytes() == sum(found.stored)


def test_every_flipped_byte_is_found() -> None:
    data = make_map().encode()
    for at in range(len(data)):
        changed = bytearray(data)
        changed[at] ^= 1 << (at % 8)
        with pytest.raises(BadBytes):
            SegmentMap.parse(bytes(changed))
    for size in range(len(data)):
        with pytest.raises(BadBytes):
            SegmentMap.parse(data[:size])


@given(st.data())
def test_hostile_maps_under_a_right_checksum_raise_only_what_they_should(data: st.DataObject) -> None:
    body = bytearray(make_map().encode()[:-32])
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(body) - 1))
        body[at] = data.draw(st.integers(0, 255))
    body = body[: data.draw(st.integers(len(body) - 40, len(body)))]
    with contextlib.suppress(BadBytes, UnsupportedFormat):
        SegmentMap.parse(bytes(body) + blake3(body).digest()).problem()


def reseal(data: bytes, layout: str, offset: int, value: int) -> bytes:
    body = bytearray(data[:-32])
    struct.pack_into(layout, body, offset, value)
    return bytes(body) + blake3(body).digest()


def test_a_newer_version_feature_or_codec_is_refused_as_such() -> None:
    data = make_map().encode()
    for layout, offset, value in (("<H", 8, 2), ("<I", 12, 1), ("<I", 16, 1)):
        with pytest.raises(UnsupportedFormat, match="a segment map has format version"):
            SegmentMap.parse(reseal(data, layout, offset, value))
    found = make_map()
    found.codecs[0] = 9
    with pytest.raises(UnsupportedFormat):
        SegmentMap.parse(found.encode())


@pytest.mark.parametrize(
    ("field", "block", "value", "problem"),
    [
        ("offset", 0, pack.HEADER_BYTES - 1, "block 0 lies outside of its pack"),
        ("offset", 0, 100_000 - pack.TAIL_BYTES - 4095, "block 0 lies outside of its pack"),
        ("offset", 0, 100_000 - pack.TAIL_BYTES - 4096, None),
        ("stored", 0, 4095, "block 0 has an impossible length"),
        ("stored", 3, 4096, "block 3 has an impossible length"),
        ("stored", 3, 4095, None),
        ("stored", 3, 0, "block 3 lies outside of its pack"),
        ("stored", 1, 5, "a zero block has bytes"),
        ("offset", 1, 5, "a zero block has bytes"),
        ("pack", 1, 1, "a zero block has bytes"),
        ("stored", 5, 99, "block 5 has an impossible length"),
    ],
)
def test_impossible_blocks_are_named(field: str, block: int, value: int, problem: str | None) -> None:
    found = make_map()
    getattr(found, field)[block] = value
    assert SegmentMap.parse(found.encode()).problem() == problem


def test_a_pack_that_no_block_is_in_is_a_problem() -> None:
    found = make_map()
    found.packs.append(PackInfo(keys.pack_key(ORIGIN, 3, 9), 1000, 900))
    assert SegmentMap.parse(found.encode()).problem() == "its table has a pack that no block is in"


def test_a_block_of_no_pack_and_one_of_too_many_bytes_are_refused() -> None:
    found = make_map()
    found.pack[0] = 2
    with pytest.raises(BadBytes, match="names no pack"):
        SegmentMap.parse(found.encode())
    found = make_map()
    found.stored[0] = 4097
    with pytest.raises(BadBytes, match="more bytes than it has"):
        SegmentMap.parse(found.encode())


def test_numbers_beyond_the_half_of_their_bits_stay_what_they_are() -> None:
    blocks = (1 << 15) + 2
    found = SegmentMap(0, 512, blocks * 512)
    found.packs = [PackInfo(keys.pack_key(ORIGIN, 0, number), (1 << 32) - 1, 512) for number in range(blocks)]
    for block in range(blocks):
        found.codecs[block], found.stored[block], found.pack[block] = RAW, 512, block
        found.offset[block] = 3 << 30
    parsed = SegmentMap.parse(found.encode())
    assert same(parsed, found)
    assert parsed.problem() is None


#: Where the fields of a map's header are.
BLOCK_SIZE, LENGTH, BLOCKS, CODEC, RAW_LENGTH, STORED = 20, 28, 36, 44, 48, 52


@pytest.mark.parametrize(
    ("layout", "offset", "value", "problem"),
    [
        ("<Q", 0, 0, "not a segment map"),
        ("<H", 10, 67, "header"),
        ("<H", 10, 69, "header"),
        ("<I", BLOCK_SIZE, 0, "header"),
        ("<I", BLOCK_SIZE, 4000, "header"),
        ("<I", BLOCK_SIZE, 8192, "header"),
        ("<Q", LENGTH, 0, "header"),
        ("<Q", LENGTH, 1 << 40, "header"),
        ("<I", BLOCKS, 5, "header"),
        ("<I", BLOCKS, 7, "header"),
        ("<I", CODEC, 2, "unknown way"),
        ("<I", RAW_LENGTH, 1 << 20, "lengths"),
        ("<I", STORED, 1, "lengths"),
    ],
)
def test_a_header_under_a_right_checksum_that_is_of_no_map_is_refused(
    layout: str, offset: int, value: int, problem: str
) -> None:
    # The last of six blocks has 100 bytes, so that 4000 are of six blocks, too.
    with pytest.raises(BadBytes, match=problem):
        SegmentMap.parse(reseal(make_map().encode(), layout, offset, value))


def test_bytes_behind_the_payload_are_refused() -> None:
    body = make_map().encode()[:-32] + b"\0"
    with pytest.raises(BadBytes, match="lengths"):
        SegmentMap.parse(body + blake3(body).digest())


def test_what_is_shorter_than_any_map_is_refused_under_a_right_checksum_too() -> None:
    data = make_map().encode()
    for size in range(len(data) - 32):
        with pytest.raises(BadBytes):
            SegmentMap.parse(data[:size] + blake3(data[:size]).digest())


def test_a_map_that_does_not_compress_is_stored_as_it_is() -> None:
    found = SegmentMap(0, 512, 512 * 8)
    found.packs = [PackInfo(keys.pack_key(ORIGIN, 0, 0), 100_000, 90_000)]
    packed = found.encode()
    plain = forge.unpacked_map(packed)
    assert same(SegmentMap.parse(plain), SegmentMap.parse(packed))
    for change in (-1, 1):
        with pytest.raises(BadBytes, match="unknown way"):
            SegmentMap.parse(reseal(plain, "<I", RAW_LENGTH, len(plain) - 100 + change))
    # One block: it has little but its digest, which looks like chance.
    alone = SegmentMap(0, 512, 512)
    alone.digests[:] = blake3(b"x").digest()
    assert struct.unpack_from("<III", alone.encode(), CODEC) == (0, 43, 43)
    assert same(SegmentMap.parse(alone.encode()), alone)
    # The places of encryption are there, and empty.
    (length,) = struct.unpack_from("<H", plain, 68)
    assert plain[68 + 10 : 68 + 10 + 56 + 32] == bytes(56 + 32)
    assert plain[68 + 98 : 68 + 98 + length].decode() == found.packs[0].key
    with pytest.raises(BadBytes, match="names an encrypted pack"):
        SegmentMap.parse(reseal(plain, "<B", 68 + 10, ord("X")))


@pytest.mark.parametrize("key", ["nonsense", keys.map_key(ORIGIN, 3)])
def test_a_pack_has_a_packs_key(key: str) -> None:
    with pytest.raises(BadBytes):
        PackInfo(key, 1000, 900).ref()


def make_pack() -> bytes:
    buffer = PackBuffer(8192, 4096, 16)
    for index in range(3):
        block = bytes([index + 1]) * 1000
        place = buffer.add(index, blake3(block).digest(), block, RAW, 1000)
        assert place == (pack.HEADER_BYTES + 1000 * index, 1000)
    data = bytes(buffer.finish(7, 2))
    assert buffer.empty
    buffer.close()
    return data


def test_a_pack_says_what_is_in_it() -> None:
    data = make_pack()
    rows = Pack.parse(data, 7, 2, 4096).rows(None)
    assert [(row.index, row.offset, row.length, row.codec) for row in rows] == [
        (index, pack.HEADER_BYTES + 1000 * index, 1000, RAW) for index in range(3)
    ]
    for row in rows:
        assert blake3(data[row.offset : row.offset + row.length]).digest() == row.digest
    check_tail(data[-pack.TAIL_BYTES :])
    # The places of encryption are there, and empty.
    assert pack._HEADER.unpack(data[: pack.HEADER_BYTES])[8] == bytes(SEAL_BYTES)


def test_every_flipped_byte_outside_of_the_blocks_is_found() -> None:
    data = make_pack()
    inside = range(pack.HEADER_BYTES, pack.HEADER_BYTES + 3000)
    for at in range(len(data)):
        if at in inside:
            continue  # the map's digests guard these
        changed = bytearray(data)
        changed[at] ^= 1 << (at % 8)
        with pytest.raises(BadBytes):
            Pack.parse(bytes(changed), 7, 2, 4096).rows(None)
    for size in range(len(data)):
        with pytest.raises(BadBytes):
            Pack.parse(data[:size], 7, 2, 4096).rows(None)


def reseal_pack(layout: str, at: int, value: int) -> bytes:
    data = bytearray(make_pack())
    struct.pack_into(layout, data, at, value)
    count, length, _, magic = pack._TAIL.unpack(data[-pack.TAIL_BYTES :])
    footer = data[-pack.TAIL_BYTES - length : -pack.TAIL_BYTES]
    checksum = blake3(data[: pack.HEADER_BYTES] + footer).digest()
    data[-pack.TAIL_BYTES :] = pack._TAIL.pack(count, length, checksum, magic)
    return bytes(data)


def test_a_footer_does_not_reach_into_the_header() -> None:
    buffer = PackBuffer(8192, 4096, 16)
    data = bytes(buffer.finish(7, 2))
    buffer.close()
    # As if the end of the header were a row.
    header, rows = data[: pack.HEADER_BYTES], data[pack.HEADER_BYTES - pack._ROW.size : pack.HEADER_BYTES]
    checksum = blake3(header).update(rows).digest()
    with pytest.raises(BadBytes, match="end has changed"):
        Pack.parse(header + pack._TAIL.pack(1, len(rows), checksum, pack.TAIL_MAGIC), 7, 2, 4096)


@pytest.mark.parametrize(("layout", "at"), [("<H", 8), ("<I", 12), ("<I", 16)])
def test_a_newer_version_or_feature_of_a_pack_is_refused_as_such(layout: str, at: int) -> None:
    with pytest.raises(UnsupportedFormat, match="a pack has format version"):
        Pack.parse(reseal_pack(layout, at, 2), 7, 2, 4096).rows(None)


@pytest.mark.parametrize(("layout", "at", "value"), [("<Q", 0, 0), ("<H", 10, 127), ("<H", 10, 129)])
def test_another_header_is_not_that_of_a_pack(layout: str, at: int, value: int) -> None:
    with pytest.raises(BadBytes, match="not a pack"):
        Pack.parse(reseal_pack(layout, at, value), 7, 2, 4096).rows(None)


def test_the_shortest_pack_has_no_blocks() -> None:
    buffer = PackBuffer(8192, 4096, 16)
    data = bytes(buffer.finish(7, 2))
    buffer.close()
    assert len(data) == pack.HEADER_BYTES + pack.TAIL_BYTES
    assert Pack.parse(data, 7, 2, 4096).rows(None) == []


def test_a_pack_of_another_place_is_refused() -> None:
    data = make_pack()
    for segment, number, block_size in ((8, 2, 4096), (7, 3, 4096), (7, 2, 8192)):
        with pytest.raises(BadBytes, match="another place"):
            Pack.parse(data, segment, number, block_size).rows(None)


def test_a_cut_or_longer_pack_shows_at_its_end() -> None:
    data = make_pack()
    for end in (data[-pack.TAIL_BYTES - 1 : -1], data[-pack.TAIL_BYTES + 1 :] + b"\0", b""):
        with pytest.raises(BadBytes):
            check_tail(end)


def test_a_full_pack_exceeds_its_target_by_less_than_a_block() -> None:
    buffer = PackBuffer(8192, 4096, 16)
    count = 0
    while not buffer.full:
        buffer.add(count, bytes(32), bytes(4000), RAW, 4000)
        count += 1
    assert 8192 <= buffer.data_bytes < 8192 + 4096
    buffer.finish(0, 0)
    assert buffer.data_bytes == 0
    assert not buffer.full
    buffer.close()


def test_the_largest_pack_there_can_be_has_room() -> None:
    buffer = PackBuffer(8192, 4096, 3)
    for index, length in enumerate((4096, 4095, 4096)):
        assert not buffer.full
        buffer.add(index, bytes(32), bytes(length), RAW, length)
    assert len(Pack.parse(bytes(buffer.finish(0, 0)), 0, 0, 4096).rows(None)) == 3
    buffer.close()

"""Stored bytes taken apart and put together again, so that changed ones come under right checksums."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, fields, replace

import zstandard
from blake3 import blake3

from backupfw.engine.format import entries, keys, manifest, pack
from backupfw.engine.format.binary import BadBytes, dump_json, parse_json
from backupfw.engine.format.entries import MapRef, SegmentEntry, encode_entries, encode_origins
from backupfw.engine.format.segment_map import SegmentMap
from backupfw.errors import UnsupportedFormat

HEAD, SEGMENTS, ORIGINS, END = 1, 2, 3, 4
_PAGE = struct.Struct("<4sBBHIII")
_HEADER = struct.Struct("<8sHHIIIQQQQQ32s24x")

#: Kind and payload of a page.
Page = tuple[int, bytes]


def pages(data: bytes) -> list[Page]:
    """Return kind and payload of all pages of a manifest but the end."""
    at, found = manifest.HEADER_BYTES, []
    while at < len(data):
        _, kind, codec, _, _, stored, raw = _PAGE.unpack_from(data, at)
        payload = data[at + _PAGE.size : at + _PAGE.size + stored]
        found.append((kind, zstandard.decompress(payload, raw) if codec else payload))
        at += _PAGE.size + stored + 32
    return found[:-1]


def sealed(
    key: str,
    content: Sequence[Page],
    totals: tuple[int, int, int],
    origins: int,
    header: bytes | None = None,
    *,
    numbers: Sequence[int] | None = None,
    **end: int,
) -> bytes:
    """Return a manifest of these pages whose checksums are right.

    :param totals: segments, data bytes and referenced bytes.
    :param origins: how many its end says it names.
    :param header: stands in the place of the right one, without its checksum.
    :param numbers: those of the pages, the end page's among them; from 0 if None.
    :param end: ``count`` or ``segments``: what the end page has in the place of the right number of pages or
        segments; the header has the former, too.
    """
    binding, chain, body, offset = blake3(key.encode()).digest(), blake3(), bytearray(), 0
    numbers = range(len(content) + 1) if numbers is None else numbers
    count = end.get("count", numbers[-1] + 1)
    for number, (kind, payload) in zip(numbers, [*content, (END, b"")], strict=True):
        if kind == END:
            payload = struct.pack("<IQI32s", count, end.get("segments", totals[0]), origins, chain.digest())
        if kind >= ORIGINS and not offset:
            offset = manifest.HEADER_BYTES + len(body)
        stored = zstandard.ZstdCompressor(level=1).compress(payload)
        page = _PAGE.pack(b"PAGE", kind, 1, 0, number, len(stored), len(payload)) + stored
        checksum = blake3(binding + page).digest()
        chain.update(checksum)
        body += page + checksum
    if header is None:
        total = manifest.HEADER_BYTES + len(body)
        header = _HEADER.pack(
            b"BFWmanif", 1, manifest.HEADER_BYTES, 0, 0, count, total, offset, *totals, binding
        )
    return header + blake3(header).digest() + bytes(body)


@dataclass
class Backup:
    """One backup's objects in a dictionary of them, to be changed in place, its checksums kept right.

    :ivar objects: all objects of a container.
    :ivar key: the manifest's key.
    """

    objects: dict[str, bytes]
    key: str

    def __post_init__(self) -> None:
        self.content = pages(self.objects[self.key])
        self.prefix = keys.volume_prefix_of(self.key)

    def entries(self) -> list[SegmentEntry]:
        """Return all entries."""
        return [
            entry
            for kind, payload in self.content
            if kind == SEGMENTS
            for entry in entries.decode_entries(payload, self.prefix)
        ]

    def put_page(self, kind: int, payload: bytes) -> None:
        """Put a manifest whose first page of a kind has another payload; everything else fits it."""
        place = next(number for number, page in enumerate(self.content) if page[0] == kind)
        content = [*self.content[:place], (kind, payload), *self.content[place + 1 :]]
        if kind != HEAD:
            # What the source held is compared at once; leave that to changes of the head.
            head = parse_json(content[0][1])
            content[0] = (HEAD, dump_json({name: head[name] for name in head if name != "source"}))
        self._seal(content, fit_origins=kind != ORIGINS)

    def put_header(self, header: bytes) -> None:
        """Put the manifest with another header (without checksum)."""
        found = self.entries()
        self.objects[self.key] = sealed(self.key, self.content, _sums(found), len(_origins(found)), header)

    def header(self) -> bytes:
        """Return the header without its checksum."""
        return self.objects[self.key][: manifest.HEADER_BYTES - 32]

    def move(self, place: dict[str, object]) -> None:
        """Put the manifest of an empty volume whose attempt is another one, as fields of the head name it.

        Where they make no key, nothing is put.
        """
        head = parse_json(self.content[0][1])
        head = {name: head[name] for name in head if name != "source"} | place
        with suppress(TypeError, ValueError, AttributeError, KeyError):
            origin = keys.Origin(**{field.name: head[field.name] for field in fields(keys.Origin)})
            if keys.parse(keys.manifest_key(str(origin))) is not None:
                self.key = keys.manifest_key(str(origin))
                self.objects[self.key] = sealed(self.key, [(HEAD, dump_json(head))], (0, 0, 0), 0)

    def put_map(self, entry: SegmentEntry, body: bytes) -> None:
        """Put another map, without its checksum, in the place of an entry's; the manifest fits it."""
        data = body + blake3(body).digest()
        self.objects[entry.map_key] = data
        fitting = replace(entry, map=MapRef(entry.map.origin, blake3(data).digest(), len(data)))
        with suppress(BadBytes, UnsupportedFormat):
            found = SegmentMap.parse(data)
            packs = tuple(info.ref() for info in found.packs)
            fitting = replace(
                fitting, packs=packs, data_bytes=found.data_bytes(), used_bytes=found.used_bytes()
            )
        with suppress(struct.error):
            self.put_entries([fitting if one.index == entry.index else one for one in self.entries()])

    def put_entries(self, found: Sequence[SegmentEntry]) -> None:
        """Put the manifest with other entries."""
        self.put_page(SEGMENTS, encode_entries(found))

    def put_pack(self, entry: SegmentEntry, place: int, header: bytes, blocks: bytes, footer: bytes) -> None:
        """Put other bytes in the place of an entry's pack; its tail, the map and the manifest fit them."""
        tail = struct.pack(
            "<II32s8s",
            len(footer) // 45,
            len(footer),
            blake3(header + footer).digest(),
            pack.TAIL_MAGIC,
        )
        data = header + blocks + footer + tail
        found = SegmentMap.parse(self.objects[entry.map_key])
        found.packs[place] = replace(found.packs[place], size=len(data))
        self.objects[found.packs[place].key] = data
        self.put_map(entry, found.encode()[:-32])

    def pack_parts(self, entry: SegmentEntry, place: int) -> tuple[bytes, bytes, bytes]:
        """Return header, blocks and footer of an entry's pack."""
        data = self.objects[entry.pack_keys()[place]]
        (length,) = struct.unpack_from("<I", data, len(data) - pack.TAIL_BYTES + 4)
        end = len(data) - pack.TAIL_BYTES - length
        return data[: pack.HEADER_BYTES], data[pack.HEADER_BYTES : end], data[end : -pack.TAIL_BYTES]

    def _seal(self, content: list[Page], fit_origins: bool) -> None:
        found: list[SegmentEntry] = []
        with suppress(BadBytes):
            for kind, payload in content:
                if kind == SEGMENTS:
                    for entry in entries.decode_entries(payload, self.prefix):
                        found.append(entry)
        names = _origins(found)
        if fit_origins:
            content = [page for page in content if page[0] != ORIGINS]
            content += [(ORIGINS, encode_origins(names[at : at + 1000])) for at in range(0, len(names), 1000)]
        self.objects[self.key] = sealed(self.key, content, _sums(found), len(names))


def unpacked_map(data: bytes) -> bytes:
    """Return a segment map with its payload as it is, as one is stored that cannot be compressed."""
    header, payload = bytearray(data[:68]), zstandard.decompress(data[68:-32])
    struct.pack_into("<III", header, 44, 0, len(payload), len(payload))
    body = bytes(header) + payload
    return body + blake3(body).digest()


def _origins(found: Sequence[SegmentEntry]) -> list[str]:
    return sorted(set().union(*(entry.origins() for entry in found)))


def _sums(found: Sequence[SegmentEntry]) -> tuple[int, int, int]:
    referenced = sum(entry.map.length + sum(one.size for one in entry.packs) for entry in found)
    most = (1 << 64) - 1
    return len(found), min(most, sum(entry.data_bytes for entry in found)), min(most, referenced)

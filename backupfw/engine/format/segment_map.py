"""The segment map: for every block of a segment its digest and where its bytes are.

Complete in itself: a restore of the segment needs this object and the packs it names.  Columns, not
rows, so that parsing is a few C calls and each column packs well.  ``docs/format.md`` has the bytes.
"""

from __future__ import annotations

import itertools
import struct
from array import array
from dataclasses import dataclass

import zstandard

from backupfw import naming
from backupfw.chunkstore.container import Container
from backupfw.engine import objects
from backupfw.engine.format import keys, pack
from backupfw.engine.format.binary import (
    DIGEST_BYTES,
    BadBytes,
    Cursor,
    column,
    column_bytes,
    decompress,
    digest,
)
from backupfw.engine.format.entries import MAX_MAP_BYTES, PackRef, SegmentEntry
from backupfw.engine.format.geometry import Geometry
from backupfw.engine.format.sealing import (
    CLEAR,
    SEAL_BYTES,
    TAG_BYTES,
    ObjectCipher,
    Seal,
    Sealing,
    is_sealed,
    marks,
)
from backupfw.errors import UnsupportedFormat

MAGIC = b"BFWsegmp"

# magic, version, header length, features, flags, block size, segment, segment length, blocks, packs,
# payload codec, payload length, stored length.  If the payload is encrypted, the object's seal follows.
_HEADER = struct.Struct("<8sHHIIIIQIIIII12x")
_PACK = struct.Struct(f"<HII{SEAL_BYTES}s")
_RAW, _ZSTD = 0, 1


@dataclass(frozen=True, slots=True)
class PackInfo:
    """A pack in a map's table.

    :ivar key: its absolute key.
    :ivar size: the object's bytes.
    :ivar data: bytes of its blocks, those no map uses any more included.
    :ivar seal: how it is encrypted; None: it is not.
    """

    key: str
    size: int
    data: int
    seal: Seal | None = None

    def ref(self) -> PackRef:
        """Return the pack as manifests name it."""
        parsed = keys.parse(self.key)
        if parsed is None or parsed.kind != "pack":
            raise BadBytes("it names a pack by a key that is none")
        return PackRef(parsed.origin, parsed.number, self.size)


class SegmentMap:
    """One segment's map; columns are indexed by block.

    :ivar index: the segment's index.
    :ivar block_size: bytes of a block.
    :ivar length: bytes of the segment.
    :ivar packs: the pack table.
    :ivar codecs: one byte per block; :data:`pack.ZERO` for a block of zeros.
    :ivar pack: index into ``packs``.
    :ivar offset: offset of the stored bytes in the pack object.
    :ivar stored: their length.
    :ivar digests: 32 bytes per block, of the block's plain bytes.
    """

    __slots__ = ("block_size", "codecs", "digests", "index", "length", "offset", "pack", "packs", "stored")

    def __init__(self, index: int, block_size: int, length: int) -> None:
        blocks = -(-length // block_size)
        self.index = index
        self.block_size = block_size
        self.length = length
        self.packs: list[PackInfo] = []
        self.codecs = bytearray(blocks)
        self.pack: array[int] = array("H", bytes(2 * blocks))
        self.offset: array[int] = array("I", bytes(4 * blocks))
        self.stored: array[int] = array("I", bytes(4 * blocks))
        self.digests = bytearray(DIGEST_BYTES * blocks)

    @property
    def blocks(self) -> int:
        """How many blocks the segment has."""
        return len(self.codecs)

    def block_length(self, block: int) -> int:
        """Return the bytes of a block: the last may be short."""
        return min(self.block_size, self.length - block * self.block_size)

    def data_blocks(self) -> list[int]:
        """Return the blocks that are not zero, ascending."""
        return list(itertools.compress(range(self.blocks), self.codecs))

    def data_bytes(self) -> int:
        """Return the bytes of the blocks that are not zero."""
        blocks = self.blocks
        total = (blocks - self.codecs.count(pack.ZERO)) * self.block_size
        if blocks and self.codecs[-1] != pack.ZERO:
            total -= self.block_size - self.block_length(blocks - 1)
        return total

    def used_bytes(self) -> int:
        """Return the bytes its blocks take in the packs."""
        return sum(self.stored)

    def encode(self, cipher: ObjectCipher | None = None) -> bytes:
        """Return the object's bytes.

        :param cipher: of the object; None: it is not encrypted.
        """
        table = bytearray()
        for info in self.packs:
            key = info.key.encode("ascii")
            seal = b"" if info.seal is None else info.seal.encode()
            table += _PACK.pack(len(key), info.size, info.data, seal) + key
        payload = b"".join(
            (
                table,
                self.codecs,
                column_bytes(self.pack),
                column_bytes(self.offset),
                column_bytes(self.stored),
                self.digests,
            )
        )
        codec, stored = _RAW, payload
        packed = zstandard.ZstdCompressor(level=3).compress(payload)
        if len(packed) < len(payload):
            codec, stored = _ZSTD, packed
        version, features, flags = marks(cipher is not None)
        header = _HEADER.pack(
            MAGIC,
            version,
            _HEADER.size if cipher is None else _HEADER.size + SEAL_BYTES,
            features,
            flags,
            self.block_size,
            self.index,
            self.length,
            self.blocks,
            len(self.packs),
            codec,
            len(payload),
            len(stored) if cipher is None else len(stored) + TAG_BYTES,
        )
        if cipher is not None:
            header += cipher.seal.encode()
            stored = cipher.encrypt(len(header), stored, header)
        data = header + stored
        return data + digest(data)

    @classmethod
    def parse(cls, data: bytes, key: str = "", sealing: Sealing = CLEAR) -> SegmentMap:
        """Undo :meth:`encode`.

        The checks are those that cost nothing per block; :meth:`problem` has the others.

        :param key: the object's key.
        :param sealing: how the manifest that names it says that it is encrypted.
        :raises BadBytes: it is no map, or its bytes have changed.
        :raises UnsupportedFormat: its version or features are not known here.
        :raises DataKeyMissing: its data key cannot be found.
        """
        if len(data) < _HEADER.size + DIGEST_BYTES or len(data) > MAX_MAP_BYTES:
            raise BadBytes("it has the length of no map")
        if digest(memoryview(data)[:-DIGEST_BYTES]) != data[-DIGEST_BYTES:]:
            raise BadBytes("its bytes have changed")
        fields = _HEADER.unpack_from(data)
        magic, version, header, features, flags, block_size, index, length = fields[:8]
        blocks, packs, codec, raw, stored = fields[8:]
        if magic != MAGIC:
            raise BadBytes("it is not a segment map")
        sealed = is_sealed("a segment map", version, features, flags)
        if not block_size or header != _HEADER.size + (SEAL_BYTES if sealed else 0):
            raise BadBytes("its header is not that of a segment")
        # The bounds of every geometry hold for the segment, as if it were a volume of its own.
        geometry = Geometry(length, block_size, -(-length // block_size) * block_size)
        if geometry.problem() or blocks != geometry.blocks(0):
            raise BadBytes("its header is not that of a segment")
        if packs > min(blocks, keys.MAX_PACKS):
            raise BadBytes("it names more packs than it has blocks")
        # The payload has nothing of what encryption adds.
        too_long = raw > min(MAX_MAP_BYTES, _most_bytes(blocks, packs))
        if too_long or header + stored + DIGEST_BYTES != len(data):
            raise BadBytes("its lengths are wrong")
        payload: bytes | memoryview = memoryview(data)[header : header + stored]
        cipher = sealing.open(Seal.decode(data[_HEADER.size : header]) if sealed else None, key)
        if cipher is not None:
            payload = cipher.decrypt(header, payload, data[:header])
            stored -= TAG_BYTES
        if codec == _ZSTD:
            payload = decompress(payload, raw)
        elif codec != _RAW or raw != stored:
            raise BadBytes("it is packed in an unknown way")
        return cls._columns(Cursor(payload), cls(index, block_size, length), packs, sealed)

    @classmethod
    def _columns(cls, cursor: Cursor, found: SegmentMap, packs: int, sealed: bool) -> SegmentMap:
        blocks = found.blocks
        for _ in range(packs):
            key_length, size, data_bytes, seal = cursor.unpack(_PACK)
            if not sealed and seal.strip(b"\0"):
                raise BadBytes("it names an encrypted pack, and is not encrypted")
            found.packs.append(
                PackInfo(cursor.text(key_length), size, data_bytes, Seal.decode(seal) if sealed else None)
            )
        found.codecs = bytearray(cursor.take(blocks))
        found.pack = column("H", cursor.take(2 * blocks))
        found.offset = column("I", cursor.take(4 * blocks))
        found.stored = column("I", cursor.take(4 * blocks))
        found.digests = bytearray(cursor.take(DIGEST_BYTES * blocks))
        cursor.end()
        known = sum(found.codecs.count(codec) for codec in (pack.ZERO, pack.RAW, pack.ZSTD))
        if known != blocks:
            raise UnsupportedFormat("a segment map names a codec that this release does not know")
        if max(found.stored) > found.block_size + (TAG_BYTES if sealed else 0):
            raise BadBytes("a block is stored in more bytes than it has")
        if known != found.codecs.count(pack.ZERO) and max(found.pack) >= packs:
            raise BadBytes("a block names no pack of the table")
        return found

    def problem(self) -> str | None:
        """Look at every block and say what is impossible about one, or None."""
        used: set[int] = set()
        last = self.blocks - 1
        data = self.data_blocks()
        for values in (self.pack, self.offset, self.stored):
            # No value is negative, so if the sums are equal, the values of all other blocks are zero.
            if sum(values) != sum(values[block] for block in data):
                return "a zero block has bytes"
        for block in data:
            codec, stored = self.codecs[block], self.stored[block]
            info = self.packs[self.pack[block]]
            used.add(self.pack[block])
            offset = self.offset[block]
            if offset < pack.HEADER_BYTES or offset + stored > info.size - pack.TAIL_BYTES or not stored:
                return f"block {block} lies outside of its pack"
            full = self.block_size if block != last else self.block_length(block)
            full += TAG_BYTES if info.seal is not None else 0
            if stored != full if codec == pack.RAW else stored >= full:
                return f"block {block} has an impossible length"
        if len(used) != len(self.packs):
            return "its table has a pack that no block is in"
        return None


def _most_bytes(blocks: int, packs: int, *, sealed: bool = False) -> int:
    """Return what a map of so many blocks and packs takes at most, packed or not."""
    columns = blocks * (1 + 2 + 4 + 4 + DIGEST_BYTES)
    head = _HEADER.size + (SEAL_BYTES + TAG_BYTES if sealed else 0)
    return head + columns + packs * (_PACK.size + naming.MAX_KEY_BYTES) + DIGEST_BYTES


def read_map(
    container: Container, entry: SegmentEntry, geometry: Geometry, sealing: Sealing = CLEAR
) -> SegmentMap:
    """Get the map that a manifest's entry names and check it against the entry.  Thread-safe.

    :param geometry: the manifest's.
    :param sealing: the manifest's.
    :raises DataKeyMissing: its data key cannot be found.
    :raises Damaged: it is missing, has changed, or does not match its entry.
    :raises UnsupportedFormat: it needs something this release does not know.
    """

    def check(data: bytes) -> SegmentMap:
        if digest(data) != entry.map.digest:
            raise BadBytes("its bytes have changed")
        found = SegmentMap.parse(data, key, sealing)
        if (found.index, found.block_size) != (entry.index, geometry.block_size):
            raise BadBytes("it belongs to another segment")
        if found.length != geometry.segment_length(entry.index):
            raise BadBytes("its segment has another length")
        # Keys are compared as text: equal keys parse alike, and parsing them costs more.
        named = list(zip(entry.pack_keys(), (ref.size for ref in entry.packs), strict=True))
        if named != [(info.key, info.size) for info in found.packs]:
            raise BadBytes("its packs are not those that its manifest names")
        if (found.data_bytes(), found.used_bytes()) != (entry.data_bytes, entry.used_bytes):
            raise BadBytes("its sums are not those that its manifest names")
        return found

    key = entry.map_key
    sealed = sealing.mac_id is not None
    if entry.map.length > _most_bytes(geometry.blocks(entry.index), len(entry.packs), sealed=sealed):
        raise objects.damaged(container, key, "it would be longer than the segment's map can be")
    try:
        # A range, so that the entry bounds the memory whatever the object has become.
        return objects.read_checked(container, key, 0, max(1, entry.map.length), check)
    except BadBytes as error:
        raise objects.damaged(container, key, str(error)) from error

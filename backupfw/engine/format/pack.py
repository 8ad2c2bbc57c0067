"""The pack: one object with compressed blocks of ONE segment, self-describing.

::

    header    128 bytes
    blocks    one after the other, no gaps
    footer    per block: u32 index in the segment, 32 digest, u32 offset, u32 length, u8 codec
    tail      u32 blocks, u32 footer length, 32 BLAKE3 of header and footer, 8 magic

A restore needs none of it (the map says it all); verify checks it, and a lost map could be made again
from the packs.
"""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass

from blake3 import blake3

from backupfw.engine.format.binary import DIGEST_BYTES, BadBytes, digest
from backupfw.engine.format.geometry import MAX_BLOCKS_PER_SEGMENT
from backupfw.errors import UnsupportedFormat

MAGIC = b"BFWpack\n"
TAIL_MAGIC = b"BFWpkend"
VERSION = 1
KNOWN_FEATURES = 0

#: Codecs of a block.
ZERO, RAW, ZSTD = 0, 1, 2

# magic, version, header length, features, flags, block size, segment, number, key id room, salt room.
_HEADER = struct.Struct("<8sHHIIIIII56s32s4x")
HEADER_BYTES = _HEADER.size
_ROW = struct.Struct("<I32sIIB")
_TAIL = struct.Struct("<II32s8s")
TAIL_BYTES = _TAIL.size


@dataclass(frozen=True, slots=True)
class PackRow:
    """One block as a pack's footer describes it."""

    index: int
    digest: bytes
    offset: int
    length: int
    codec: int


class PackBuffer:
    """Collects the blocks of one pack after another.  Not thread-safe; one per stream.

    :param target: bytes of blocks after which a pack is full.
    :param block_size: bytes; a pack exceeds the target by less than this.
    :param blocks: most blocks a segment has.
    """

    def __init__(self, target: int, block_size: int, blocks: int) -> None:
        self._target = target
        self._block_size = block_size
        room = HEADER_BYTES + target + block_size + blocks * _ROW.size + TAIL_BYTES
        # Anonymous memory: what is never written to never becomes resident.
        self._memory = mmap.mmap(-1, room)
        self._view = memoryview(self._memory)
        self._rows = bytearray()
        self._count = 0
        self._end = HEADER_BYTES

    @property
    def empty(self) -> bool:
        """Whether no block was added since the last :meth:`finish`."""
        return self._count == 0

    @property
    def full(self) -> bool:
        """Whether the pack has reached its target."""
        return self._end - HEADER_BYTES >= self._target

    @property
    def data_bytes(self) -> int:
        """Bytes of the blocks added so far."""
        return self._end - HEADER_BYTES

    def add(self, index: int, block_digest: bytes, data: bytes | memoryview, codec: int) -> int:
        """Append a block and return its offset in the object; the caller looks at :attr:`full` first."""
        offset = self._end
        end = offset + len(data)
        self._view[offset:end] = data
        self._rows += _ROW.pack(index, block_digest, offset, len(data), codec)
        self._count += 1
        self._end = end
        return offset

    def finish(self, segment: int, number: int) -> memoryview:
        """Write header, footer and tail; return the object's bytes, valid until the next ``add``."""
        header = _HEADER.pack(
            MAGIC, VERSION, HEADER_BYTES, 0, 0, self._block_size, segment, number, 0, b"", b""
        )
        view = self._view
        view[:HEADER_BYTES] = header
        end = self._end + len(self._rows)
        view[self._end : end] = self._rows
        tail = _TAIL.pack(self._count, len(self._rows), digest(header + self._rows), TAIL_MAGIC)
        view[end : end + TAIL_BYTES] = tail
        self.discard()
        return view[: end + TAIL_BYTES]

    def discard(self) -> None:
        """Forget the blocks added so far."""
        self._rows = bytearray()
        self._count = 0
        self._end = HEADER_BYTES

    def close(self) -> None:
        """Give the memory back; views returned earlier become invalid."""
        self._view.release()
        self._memory.close()


def parse_pack(data: bytes | memoryview, segment: int, number: int, block_size: int) -> list[PackRow]:
    """Check header, footer and tail of a whole pack and return its rows.  Blocks are not verified.

    :param segment: the segment its key names.
    :param number: the number its key has.
    :param block_size: what its manifest says.
    :raises BadBytes: it is not this pack, or its bytes have changed.
    :raises UnsupportedFormat: its version or features are not known here.
    """
    view = memoryview(data)
    if len(view) < HEADER_BYTES + TAIL_BYTES:
        raise BadBytes("it is shorter than any pack")
    header = bytes(view[:HEADER_BYTES])
    count, footer_length, checksum, magic = _TAIL.unpack(view[-TAIL_BYTES:])
    footer_start = len(view) - TAIL_BYTES - footer_length
    if magic != TAIL_MAGIC or footer_start < HEADER_BYTES or footer_length != count * _ROW.size:
        raise BadBytes("its end has changed")
    # A row takes about six times its bytes in memory.
    if count > MAX_BLOCKS_PER_SEGMENT:
        raise BadBytes("its footer names more blocks than any segment has")
    footer = bytes(view[footer_start:-TAIL_BYTES])
    if blake3(header).update(footer).digest() != checksum:
        raise BadBytes("its header or footer has changed")
    fields = _HEADER.unpack(header)
    if fields[0] != MAGIC or fields[2] != HEADER_BYTES:
        raise BadBytes("it is not a pack")
    if fields[1] != VERSION or fields[3] & ~KNOWN_FEATURES or fields[4]:
        raise UnsupportedFormat(f"a pack has format version {fields[1]}, features {fields[3]:#x}")
    if fields[5:8] != (block_size, segment, number):
        raise BadBytes("it was written for another place")
    rows = [PackRow(*row) for row in _ROW.iter_unpack(footer)]
    for row in rows:
        if not HEADER_BYTES <= row.offset <= row.offset + row.length <= footer_start:
            raise BadBytes("a block lies outside of its blocks")
    return rows


def check_tail(data: bytes) -> None:
    """Check that the last :data:`TAIL_BYTES` bytes of an object are those of a pack of that size.

    :raises BadBytes: they are not: it was cut, or is longer than promised.
    """
    if len(data) != TAIL_BYTES or _TAIL.unpack(data)[3] != TAIL_MAGIC:
        raise BadBytes("its end has changed")


assert HEADER_BYTES == 128
assert _TAIL.size == 8 + DIGEST_BYTES + 8

"""The pack: one object with compressed blocks of ONE segment, self-describing.

::

    header    128 bytes
    blocks    one after the other, no gaps; each encrypted by itself
    footer    per block: u32 index in the segment, 32 digest, u32 offset, u32 length, u8 codec; encrypted
    tail      u32 blocks, u32 footer length, 32 BLAKE3 of header and footer, 8 magic

A restore needs none of it (the map says it all); verify checks it, and a lost map could be made again
from the packs.
"""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass

from blake3 import blake3

from backupfw.engine.format.binary import DIGEST_BYTES, BadBytes
from backupfw.engine.format.geometry import MAX_BLOCKS_PER_SEGMENT
from backupfw.engine.format.sealing import SEAL_BYTES, TAG_BYTES, ObjectCipher, Seal, is_sealed, marks

MAGIC = b"BFWpack\n"
TAIL_MAGIC = b"BFWpkend"
#: Codecs of a block.
ZERO, RAW, ZSTD = 0, 1, 2

# magic, version, header length, features, flags, block size, segment, number, seal.
_HEADER = struct.Struct(f"<8sHHIIIII4x{SEAL_BYTES}s4x")
HEADER_BYTES = _HEADER.size
_ROW = struct.Struct("<I32sIIB")
# What an encrypted block is bound to: index in the segment, plain length, codec.
_BLOCK = struct.Struct("<IIB")
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

    The caller calls :meth:`begin` before the first block of each pack.

    :param target: bytes of blocks after which a pack is full.
    :param block_size: bytes; a pack exceeds the target by less than this.
    :param blocks: most blocks a segment has.
    """

    def __init__(self, target: int, block_size: int, blocks: int) -> None:
        self._target = target
        self._block_size = block_size
        room = HEADER_BYTES + target + block_size + blocks * _ROW.size + TAIL_BYTES + 2 * TAG_BYTES
        # Anonymous memory: what is never written to never becomes resident.
        self._memory = mmap.mmap(-1, room)
        self._view = memoryview(self._memory)
        self.begin(None)

    @property
    def empty(self) -> bool:
        """Whether no block was added since the last :meth:`finish`."""
        return self._count == 0

    @property
    def full(self) -> bool:
        """Whether the pack has reached its target."""
        return self._end - HEADER_BYTES >= self._target

    @property
    def seal(self) -> Seal | None:
        """How the pack is encrypted; None: it is not."""
        return None if self._cipher is None else self._cipher.seal

    @property
    def data_bytes(self) -> int:
        """Bytes of the blocks added so far."""
        return self._end - HEADER_BYTES

    def begin(self, cipher: ObjectCipher | None) -> None:
        """Begin a pack; the blocks of one that was not finished are forgotten.

        :param cipher: of the object that it becomes; None: it is not encrypted.
        """
        self._cipher = cipher
        self._rows = bytearray()
        self._count = 0
        self._end = HEADER_BYTES

    def add(
        self, index: int, block_digest: bytes, data: bytes | memoryview, codec: int, plain: int
    ) -> tuple[int, int]:
        """Append a block; the caller looks at :attr:`full` first.

        :param data: the block, compressed as ``codec`` says.
        :param plain: its plain length in bytes.
        :returns: the offset in the object, and the bytes that it takes there.
        """
        offset = self._end
        if self._cipher is None:
            size = len(data)
            self._view[offset : offset + size] = data
        else:
            size = self._cipher.encrypt_into(
                offset, data, _BLOCK.pack(index, plain, codec), self._view[offset:]
            )
        self._rows += _ROW.pack(index, block_digest, offset, size, codec)
        self._count += 1
        self._end = offset + size
        return offset, size

    def finish(self, segment: int, number: int) -> memoryview:
        """Write header, footer and tail; return the object's bytes, valid until the next ``begin``."""
        cipher, seal, view = self._cipher, self.seal, self._view
        version, features, flags = marks(cipher is not None)
        header = _HEADER.pack(
            MAGIC,
            version,
            HEADER_BYTES,
            features,
            flags,
            self._block_size,
            segment,
            number,
            b"" if seal is None else seal.encode(),
        )
        view[:HEADER_BYTES] = header
        footer: bytes | bytearray = self._rows
        if cipher is not None:
            footer = cipher.encrypt(self._end, self._rows, header)
        end = self._end + len(footer)
        view[self._end : end] = footer
        tail = _TAIL.pack(self._count, len(footer), blake3(header).update(footer).digest(), TAIL_MAGIC)
        view[end : end + TAIL_BYTES] = tail
        self.begin(None)
        return view[: end + TAIL_BYTES]

    def close(self) -> None:
        """Give the memory back; views returned earlier become invalid."""
        self._view.release()
        self._memory.close()


@dataclass(frozen=True, slots=True)
class Pack:
    """A whole pack, its header and tail checked.

    :ivar seal: how it is encrypted; None: it is not.
    """

    seal: Seal | None
    _header: bytes
    _footer: bytes
    _footer_start: int

    @classmethod
    def parse(cls, data: bytes | memoryview, segment: int, number: int, block_size: int) -> Pack:
        """Check header, footer and tail of a pack.  Blocks are not verified.

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
        if (
            magic != TAIL_MAGIC
            or footer_start < HEADER_BYTES
            or footer_length not in (count * _ROW.size, count * _ROW.size + TAG_BYTES)
        ):
            raise BadBytes("its end has changed")
        # A row takes about six times its bytes in memory.
        if count > MAX_BLOCKS_PER_SEGMENT:
            raise BadBytes("its footer names more blocks than any segment has")
        footer = bytes(view[footer_start:-TAIL_BYTES])
        if blake3(header).update(footer).digest() != checksum:
            raise BadBytes("its header or footer has changed")
        magic, version, length, features, flags, *place, seal = _HEADER.unpack(header)
        if magic != MAGIC or length != HEADER_BYTES:
            raise BadBytes("it is not a pack")
        sealed = is_sealed("a pack", version, features, flags)
        if tuple(place) != (block_size, segment, number):
            raise BadBytes("it was written for another place")
        if footer_length != count * _ROW.size + (TAG_BYTES if sealed else 0):
            raise BadBytes("its end has changed")
        return cls(Seal.decode(seal) if sealed else None, header, footer, footer_start)

    def rows(self, cipher: ObjectCipher | None) -> list[PackRow]:
        """Return what its footer says of each block.

        :param cipher: of the object; None: it is not encrypted.
        :raises BadBytes: the footer is not what was encrypted, or a block lies outside.
        """
        footer = self._footer
        if cipher is not None:
            footer = cipher.decrypt(self._footer_start, footer, self._header)
        rows = [PackRow(*row) for row in _ROW.iter_unpack(footer)]
        for row in rows:
            if not HEADER_BYTES <= row.offset <= row.offset + row.length <= self._footer_start:
                raise BadBytes("a block lies outside of its blocks")
        return rows


def open_block(
    cipher: ObjectCipher, offset: int, index: int, plain: int, codec: int, stored: bytes | memoryview
) -> bytes:
    """Decrypt a block.

    :param offset: where it lies in the pack.
    :param index: the block's index in the segment.
    :param plain: its plain length in bytes.
    :raises BadBytes: these are not the bytes of this block.
    """
    return cipher.decrypt(offset, stored, _BLOCK.pack(index, plain, codec))


def check_tail(data: bytes) -> None:
    """Check that the last :data:`TAIL_BYTES` bytes of an object are those of a pack of that size.

    :raises BadBytes: they are not: it was cut, or is longer than promised.
    """
    if len(data) != TAIL_BYTES or _TAIL.unpack(data)[3] != TAIL_MAGIC:
        raise BadBytes("its end has changed")


assert HEADER_BYTES == 128
assert _TAIL.size == 8 + DIGEST_BYTES + 8

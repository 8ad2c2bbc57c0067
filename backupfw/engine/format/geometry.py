"""How a volume is cut: into segments, those into blocks; the last of each may be short."""

from __future__ import annotations

from dataclasses import dataclass

from backupfw.engine.format import keys

KIB = 1 << 10
MIB = 1 << 20

#: Bounds that keep a reader's memory small whatever a manifest says.
MIN_BLOCK_SIZE = 512
MAX_BLOCK_SIZE = 4 * MIB
MAX_BLOCKS_PER_SEGMENT = 1 << 16
MAX_SEGMENT_SIZE = 1 << 30
MAX_LENGTH = (1 << 63) - 1


@dataclass(frozen=True, slots=True)
class Geometry:
    """The cut of one volume.

    :ivar length: bytes of the volume, at least 0.
    :ivar block_size: bytes of a block: a power of two.
    :ivar segment_size: bytes of a segment: a multiple of the block size.
    """

    length: int
    block_size: int = 64 * KIB
    segment_size: int = 256 * MIB

    def problem(self) -> str | None:
        """Say which rule the numbers break, or None."""
        block, segment = self.block_size, self.segment_size
        if not MIN_BLOCK_SIZE <= block <= MAX_BLOCK_SIZE or block & (block - 1):
            return f"the block size {block} is not a power of two from {MIN_BLOCK_SIZE} to {MAX_BLOCK_SIZE}"
        if segment < block or segment % block or segment > MAX_SEGMENT_SIZE:
            return f"the segment size {segment} is not a multiple of the block size in bounds"
        if segment // block > MAX_BLOCKS_PER_SEGMENT:
            return f"a segment has more than {MAX_BLOCKS_PER_SEGMENT} blocks"
        if not 0 <= self.length <= MAX_LENGTH or self.segments > keys.MAX_SEGMENTS:
            return f"the length {self.length} is out of bounds"
        return None

    @property
    def segments(self) -> int:
        """How many segments the volume has."""
        return -(-self.length // self.segment_size)

    def segment_length(self, index: int) -> int:
        """Return the bytes of a segment."""
        return min(self.segment_size, self.length - index * self.segment_size)

    def blocks(self, index: int) -> int:
        """Return the number of blocks of a segment."""
        return -(-self.segment_length(index) // self.block_size)

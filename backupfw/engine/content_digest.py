"""The digest of a volume's content, taken by a target that keeps nothing else: a restore to nowhere.

A restore writes in any order, from several threads, and leaves zeros out.  So the digest is a sum: each piece
of 32 KiB that is not all zero counts by itself, with its place (``docs/format.md`` has the definition).  It
needs no second pass, next to no memory, and no time for zeros.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass

from blake3 import blake3

from backupfw.volume.base import BlockTarget

#: Bytes of a piece; the volume's last one may be shorter.
PIECE_BYTES = 32 << 10
#: Bytes of each number that is summed up: with so many, nobody finds other pieces with the same sum.
_NUMBER_BYTES = 512
_MODULUS = 1 << (8 * _NUMBER_BYTES)
_ZEROS = bytes(PIECE_BYTES)


@dataclass(slots=True)
class _Part:
    """A piece that has not come as a whole yet: its bytes, and how many of them are settled."""

    content: bytearray
    settled: int = 0


class DigestTarget(BlockTarget):
    """Takes what a restore writes, each byte at most once, and adds it up.  Thread-safe.

    Pieces that come in parts wait for the rest; memory is that of what the restore works on at a time, and of
    nothing where blocks are not smaller than a piece.

    :param length: of the volume, bytes.
    """

    reads_zero = True
    takes_once = True

    def __init__(self, length: int) -> None:
        self.length = length
        self._lock = threading.Lock()
        self._sum = 0
        self._parts: dict[int, _Part] = {}

    def write(self, offset: int, buffers: Sequence[bytes | memoryview]) -> None:
        """Add the buffers."""
        for buffer in buffers:
            data = memoryview(buffer)
            if offset + len(data) > self.length:
                raise OSError("past the end")
            total = 0
            while data:
                piece, skip = divmod(offset, PIECE_BYTES)
                part = data[: PIECE_BYTES - skip]
                if len(part) == self._length_of(piece):
                    total += _number(piece, part)
                else:
                    self._keep(piece, skip, part)
                offset += len(part)
                data = data[len(part) :]
            with self._lock:
                self._sum = (self._sum + total) % _MODULUS

    def zero(self, offset: int, length: int) -> None:
        """Zeros count nothing, and everything else reads as zeros anyhow."""

    def flush(self) -> None:
        """Nothing is kept."""

    def release_cache(self, offset: int, length: int) -> None:
        """The restore has written all that it will write there: the rest of a piece is zeros."""
        end = min(offset + length, self.length)
        with self._lock:
            for piece, part in list(self._parts.items()):
                first = piece * PIECE_BYTES
                part.settled += max(0, min(end, first + len(part.content)) - max(offset, first))
                if part.settled >= len(part.content):
                    self._settle(piece)

    def close(self) -> None:
        """Nothing is open."""

    def digest(self) -> str:
        """Return the digest as hexadecimal text; nothing may be written after that."""
        with self._lock:
            for piece in list(self._parts):
                self._settle(piece)
            total = self._sum.to_bytes(_NUMBER_BYTES, "little")
        return blake3(self.length.to_bytes(8, "little") + total).hexdigest()

    def _length_of(self, piece: int) -> int:
        return min(PIECE_BYTES, self.length - piece * PIECE_BYTES)

    def _keep(self, piece: int, skip: int, data: memoryview) -> None:
        with self._lock:
            part = self._parts.setdefault(piece, _Part(bytearray(self._length_of(piece))))
            part.content[skip : skip + len(data)] = data

    def _settle(self, piece: int) -> None:
        content = self._parts.pop(piece).content
        self._sum = (self._sum + _number(piece, content)) % _MODULUS


def _number(piece: int, content: memoryview | bytearray) -> int:
    """Return what a piece counts for."""
    # As bytes, which compare much faster than a view does.
    if bytes(content) == _ZEROS[: len(content)]:
        return 0
    found = blake3(piece.to_bytes(8, "little"))
    found.update(content)
    return int.from_bytes(found.digest(length=_NUMBER_BYTES), "little")

"""Bodies on their way to the server: digests first, then a file that is sent."""

from __future__ import annotations

import base64
import hashlib
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO

from blake3 import blake3

from backupfw.chunkstore.base import PIECE_BYTES, Body

if TYPE_CHECKING:
    from types import TracebackType


@dataclass(frozen=True, slots=True)
class Digests:
    """What is sent along with a body.

    :ivar md5: MD5, base64 (Content-MD5).
    :ivar md5_hex: the same as an ETag shows it.
    :ivar crc32: CRC-32, base64; empty when it was not asked for.
    """

    md5: str
    md5_hex: str
    crc32: str


class WrongBody(Exception):
    """The body's bytes are not what it declares."""


def digest(body: Body, with_crc32: bool) -> Digests:
    """Read a body once, compare it with what it declares and return what the server shall compare.

    :raises WrongBody: length or checksum differ.
    :raises OSError: the source cannot be read.
    """
    declared = blake3()
    # It finds damage on the way and is no protection against attackers: say so, for hosts that forbid MD5.
    md5 = hashlib.md5(usedforsecurity=False)
    crc32 = length = 0
    for piece in body.pieces():
        length += len(piece)
        if length > body.length:
            raise WrongBody(f"the body has more than the {body.length} bytes declared")
        declared.update(piece)
        md5.update(piece)
        if with_crc32:
            crc32 = zlib.crc32(piece, crc32)
    if length != body.length:
        raise WrongBody(f"the body has {length} bytes, {body.length} were declared")
    if declared.digest() != body.checksum:
        raise WrongBody("the body's bytes do not match the declared checksum")
    return Digests(
        md5=base64.b64encode(md5.digest()).decode(),
        md5_hex=md5.hexdigest(),
        crc32=base64.b64encode(crc32.to_bytes(4, "big")).decode() if with_crc32 else "",
    )


class BodyFile:
    """A body as the SDK reads it: a seekable file of exactly the declared length.

    Buffers are not copied.  Reads return up to :data:`PIECE_BYTES` even when fewer are asked for: the
    HTTP library asks for 16 KiB at a time, and each would cost a system call.
    """

    def __init__(self, body: Body) -> None:
        self._length = body.length
        self._position = 0
        self._buffer = body.buffer()
        self._file: BinaryIO | None = body.open() if self._buffer is None else None

    def __enter__(self) -> BodyFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()

    def __len__(self) -> int:
        return self._length

    def tell(self) -> int:
        """Return the position in bytes."""
        return self._position

    def seek(self, offset: int, whence: int = 0) -> int:
        """Move; returns the new position."""
        base = (0, self._position, self._length)[whence]
        self._position = min(max(0, base + offset), self._length)
        if self._file is not None:
            self._file.seek(self._position)
        return self._position

    def read(self, size: int | None = -1) -> bytes | memoryview:
        """Return the next bytes, none at the end.

        :raises OSError: the source is shorter than it was.
        """
        left = self._length - self._position
        if size is not None and size >= 0:
            left = min(left, max(size, PIECE_BYTES)) if size else 0
        if not left:
            return b""
        data: bytes | memoryview
        if self._buffer is not None:
            data = self._buffer[self._position : self._position + left]
        else:
            assert self._file is not None
            data = self._file.read(left)
        if not data:
            # Without an error the request would not end: the server waits for the announced length.
            raise OSError(5, "the body has become shorter")
        self._position += len(data)
        return data

"""Reading data objects by ranges, decompressed without ever asking for more than is wanted."""

from __future__ import annotations

import bz2
import hashlib
import zlib
from typing import Any, Protocol

import zstandard

from backupfw.chunkstore.container import Container
from backupfw.engine import objects
from backupfw.engine.format.binary import BadBytes

#: Bytes of a range that is read, and of what a decompressor is given at a time.
RANGE_BYTES, INPUT_BYTES = 8 << 20, 256 << 10
#: Largest window of a zstd frame: that of the level 21.
MAX_WINDOW = 1 << 26

#: How a data object is compressed, by what ``_metadata`` says (in lower case); the number is kept beside it.
NONE, ZLIB, BZ2, ZSTD = range(4)
CODECS = {
    "none": NONE,
    "off": NONE,
    "no": NONE,
    "zlib": ZLIB,
    "gzip": ZLIB,
    "bz2": BZ2,
    "bzip2": BZ2,
    "zstd": ZSTD,
}


class _Stored:
    """The stored bytes of an object, from its beginning: a file that can only be read."""

    def __init__(self, container: Container, key: str, size: int) -> None:
        self._container = container
        self._key = key
        self._size = size
        self._fetched = 0
        self._data = memoryview(b"")

    def read(self, most: int = -1) -> bytes:
        """Return some bytes; none at the end."""
        if not self._data and self._fetched < self._size:
            length = min(RANGE_BYTES, self._size - self._fetched)
            self._data = memoryview(b"")
            self._data = memoryview(objects.read(self._container, self._key, self._fetched, length))
            self._fetched += length
        most = INPUT_BYTES if most < 0 else most
        taken, self._data = self._data[:most], self._data[most:]
        return bytes(taken)


class _Decoder(Protocol):
    def read(self, most: int, /) -> bytes:
        """Return at most so many bytes; none at the end."""


class _Inflate:
    """One zlib stream."""

    def __init__(self, stored: _Stored) -> None:
        self._stored = stored
        self._inflate = zlib.decompressobj()
        self._input = b""

    def read(self, most: int, /) -> bytes:
        """See :class:`_Decoder`."""
        while not self._inflate.eof:
            data = self._input or self._stored.read()
            found = self._inflate.decompress(data, most)
            self._input = self._inflate.unconsumed_tail
            if found:
                return found
            if not data:
                raise BadBytes("its compressed bytes end too early")
        return b""


class _Bunzip:
    """One bzip2 stream."""

    def __init__(self, stored: _Stored) -> None:
        self._stored = stored
        self._bunzip = bz2.BZ2Decompressor()

    def read(self, most: int, /) -> bytes:
        """See :class:`_Decoder`."""
        while not self._bunzip.eof:
            data = self._stored.read() if self._bunzip.needs_input else b""
            if self._bunzip.needs_input and not data:
                raise BadBytes("its compressed bytes end too early")
            if found := self._bunzip.decompress(data, most):
                return found
        return b""


def _unzstd(stored: _Stored) -> Any:
    """Return a reader of one frame; whether that declares its content's size does not matter."""
    reader = zstandard.ZstdDecompressor(max_window_size=MAX_WINDOW)
    source: Any = stored
    return reader.stream_reader(source, read_size=INPUT_BYTES, read_across_frames=False)


class ObjectReader:
    """The plain bytes of a data object, in order.  Not thread-safe.

    :param size: stored bytes, as the listing says.
    :param length: plain bytes, as ``_metadata`` says; nothing beyond them is decompressed.
    :param md5: of the plain bytes; None: it is not known.
    """

    def __init__(
        self, container: Container, key: str, size: int, codec: int, length: int, md5: bytes | None
    ) -> None:
        stored = _Stored(container, key, size)
        makers: dict[int, Any] = {NONE: lambda: stored, ZLIB: lambda: _Inflate(stored)}
        makers |= {BZ2: lambda: _Bunzip(stored), ZSTD: lambda: _unzstd(stored)}
        self._decoder: _Decoder = makers[codec]()
        self._left = length
        self._expected = md5
        self._md5 = hashlib.md5(usedforsecurity=False)

    def read(self, most: int) -> bytes:
        """Return some bytes, at most so many and at least one.

        :raises BadBytes: it ends before, or what is stored cannot be decompressed.
        :raises Damaged: it cannot be read.
        """
        data = self._decoded(min(most, self._left)) if self._left else b""
        if not data:
            raise BadBytes(f"it ends {self._left} bytes too early")
        self._left -= len(data)
        self._md5.update(data)
        return data

    def skip(self, length: int) -> None:
        """Pass over bytes; errors as of :meth:`read`."""
        while length:
            length -= len(self.read(min(length, 1 << 20)))

    def finish(self) -> None:
        """Read the rest, and compare length and MD5.

        :raises BadBytes: they are not what was stated; errors as of :meth:`read`, too.
        """
        self.skip(self._left)
        if self._decoded(1):
            raise BadBytes("it is longer than its metadata says")
        if self._expected is not None and self._md5.digest() != self._expected:
            raise BadBytes("its bytes do not match the MD5 in its metadata")

    def _decoded(self, most: int) -> bytes:
        try:
            return bytes(self._decoder.read(most))
        except (zlib.error, zstandard.ZstdError, OSError, ValueError, EOFError) as error:
            if isinstance(error, BadBytes):
                raise
            raise BadBytes(f"it cannot be decompressed: {error}") from error

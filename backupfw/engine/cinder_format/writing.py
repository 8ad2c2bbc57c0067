"""Writing backups in Cinder's format: data objects as they come, then the hashes, the metadata last."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import lru_cache
from typing import Any

import zstandard

from backupfw.chunkstore.base import Body
from backupfw.chunkstore.container import Container
from backupfw.engine.cinder_format import names
from backupfw.engine.cinder_format.metadata import VERSION

#: Bytes of a chunk and of a block: Cinder's defaults for object stores.  An incremental backup that Cinder
#: makes needs the same block; chunks may differ, so those of files are no larger here.
CHUNK_BYTES, BLOCK_BYTES = 52_428_800, 32_768
_HASH_BYTES = 32

#: By the word in the metadata; a zstd frame says its content's size, which Cinder's reader needs.
COMPRESSION: Mapping[str, Callable[[bytes | memoryview], bytes]] = {
    "zlib": lambda data: zlib.compress(data),
    "zstd": lambda data: zstandard.ZstdCompressor().compress(data),
    "none": bytes,
}


class BlockHashes:
    """The SHA-256 of each block of a volume, as the link has it that was written last; a temporary file."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile(prefix="backupfw-export-")  # noqa: SIM115

    def close(self) -> None:
        """Give up the file."""
        self._file.close()

    def copy(self) -> BlockHashes:
        """Return the same hashes in a file of its own."""
        made = BlockHashes()
        self._file.seek(0)
        shutil.copyfileobj(self._file, made._file)
        return made

    def replace(self, first: int, hashes: bytes) -> bytes:
        """Set the hashes of some blocks; return those that were there, fewer behind the end.

        :param first: number of the first block.
        :param hashes: joined.
        """
        self._file.seek(first * _HASH_BYTES)
        before = self._file.read(len(hashes))
        self._file.seek(first * _HASH_BYTES)
        self._file.write(hashes)
        return before

    def cut(self, length: int) -> None:
        """Forget the blocks behind the end of a volume of so many bytes."""
        self._file.truncate(-(-length // BLOCK_BYTES) * _HASH_BYTES)

    def __iter__(self) -> Iterator[str]:
        """Yield them in order, in hexadecimal."""
        self._file.seek(0)
        while piece := self._file.read(_HASH_BYTES << 15):
            for at in range(0, len(piece), _HASH_BYTES):
                yield piece[at : at + _HASH_BYTES].hex()


class LinkWriter:
    """Writes one link.  Of one thread; memory: a chunk and its compressed form.

    :param container: where to; it is there.
    :param prefix: of all objects; nothing lies there.
    :param head: the members that both JSON objects have: ids of backup and volume, names, time.
    :param compression: one of :data:`COMPRESSION`.
    :param hashes: of the parent's blocks; they become this link's.
    :param parent_id: the parent's backup: only blocks that differ are written.  None: it is a full one.
    """

    def __init__(
        self,
        container: Container,
        prefix: str,
        head: Mapping[str, Any],
        compression: str,
        hashes: BlockHashes,
        parent_id: str | None = None,
    ) -> None:
        self._container = container
        self._prefix = prefix
        self._head = {**head, "version": VERSION}
        self._compression = compression
        self._hashes = hashes
        self._parent_id = parent_id
        self.object_count = 0
        # An item for each object: of a large volume they are many.
        self._objects = tempfile.TemporaryFile(prefix="backupfw-export-")  # noqa: SIM115

    def close(self) -> None:
        """Give up the temporary file."""
        self._objects.close()

    def add(self, offset: int, data: memoryview) -> None:
        """Write a range of the volume: whole blocks, within one chunk.

        A full backup is given all chunks in order, because Cinder restores zeros only if they are there.  An
        incremental one is given what may differ from its parent; what does not is left out.

        :raises ChunkStoreError: the store does not take it.
        """
        zero = _is_zero(data)
        hashes = self._hashes_of_zeros(len(data)) if zero else _hashes_of(data)
        before = self._hashes.replace(offset // BLOCK_BYTES, hashes)
        if self._parent_id is None:
            self._write(offset, data, zero)
            return
        for first, last in _differing(before, hashes):
            begin, end = first * BLOCK_BYTES, min(last * BLOCK_BYTES, len(data))
            self._write(offset + begin, data[begin:end], zero)

    def finish(self, length: int, volume_meta: Mapping[str, Any]) -> None:
        """Write the list of hashes and the metadata; the backup is complete then.

        :param length: bytes of the volume.
        :raises ChunkStoreError: the store does not take them.
        """
        self._hashes.cut(length)
        head = {**self._head, "chunk_size": BLOCK_BYTES}
        self._put(names.hashes_key(self._prefix), head, "sha256s", (f'"{one}"' for one in self._hashes))
        head = {**self._head, "parent_id": self._parent_id, "volume_meta": json.dumps(volume_meta)}
        self._objects.seek(0)
        items = (line.decode().rstrip("\n") for line in self._objects)
        self._put(names.metadata_key(self._prefix), head, "objects", items)

    def _write(self, offset: int, data: memoryview, zero: bool) -> None:
        md5, stored, word = self._packed_zeros(len(data)) if zero else self._packed(data)
        self.object_count += 1
        key = names.object_key(self._prefix, self.object_count)
        self._container.put(key, Body.from_bytes(stored))
        about = {"offset": offset, "length": len(data), "compression": word, "md5": md5}
        self._objects.write(f"{json.dumps({key: about})}\n".encode())

    def _packed(self, data: memoryview) -> tuple[str, bytes, str]:
        md5 = hashlib.md5(data, usedforsecurity=False).hexdigest()
        stored, word = COMPRESSION[self._compression](data), self._compression
        if len(stored) >= len(data):
            stored, word = bytes(data), "none"
        return md5, stored, word

    # Much of a sparse volume is zeros.

    @lru_cache(maxsize=2)  # noqa: B019  (a writer lives as long as its backup)
    def _packed_zeros(self, length: int) -> tuple[str, bytes, str]:
        return self._packed(memoryview(bytes(length)))

    @lru_cache(maxsize=2)  # noqa: B019
    def _hashes_of_zeros(self, length: int) -> bytes:
        return _hashes_of(memoryview(bytes(length)))

    def _put(self, key: str, head: Mapping[str, Any], name: str, items: Iterable[str]) -> None:
        with tempfile.TemporaryFile(prefix="backupfw-export-") as file:
            file.write(json.dumps(head, indent=2).removesuffix("\n}").encode())
            file.write(f',\n  "{name}": ['.encode())
            for number, item in enumerate(items):
                file.write(f"{',' if number else ''}\n    {item}".encode())
            file.write(b"\n  ]\n}")
            file.flush()
            self._container.put(key, Body.from_file(file))


def _hashes_of(data: memoryview) -> bytes:
    return b"".join(
        hashlib.sha256(data[at : at + BLOCK_BYTES]).digest() for at in range(0, len(data), BLOCK_BYTES)
    )


def _differing(before: bytes, after: bytes) -> Iterator[tuple[int, int]]:
    """Yield (first, past the last) of each run of blocks whose hashes differ."""
    start = None
    for at in range(0, len(after), _HASH_BYTES):
        number = at // _HASH_BYTES
        differs = before[at : at + _HASH_BYTES] != after[at : at + _HASH_BYTES]
        if differs and start is None:
            start = number
        elif not differs and start is not None:
            yield start, number
            start = None
    if start is not None:
        yield start, len(after) // _HASH_BYTES


def _is_zero(chunk: memoryview) -> bool:
    # Bytes are compared by one call of C, a view is not.
    return bytes(chunk) == bytes(len(chunk))

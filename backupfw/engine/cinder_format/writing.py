"""Writing a full backup in Cinder's format: chunks as they come, then the hashes, the metadata last."""

from __future__ import annotations

import hashlib
import json
import tempfile
import zlib
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import zstandard

from backupfw.chunkstore.base import Body
from backupfw.chunkstore.container import Container
from backupfw.engine.cinder_format import names
from backupfw.engine.cinder_format.metadata import VERSION

#: Bytes of a chunk and of a block: Cinder's defaults for object stores.  An incremental backup that Cinder
#: makes needs the same block; chunks may differ, so those of files are no larger here.
CHUNK_BYTES, BLOCK_BYTES = 52_428_800, 32_768

#: By the word in the metadata; a zstd frame says its content's size, which Cinder's reader needs.
COMPRESSION: Mapping[str, Callable[[bytes | memoryview], bytes]] = {
    "zlib": lambda data: zlib.compress(data),
    "zstd": lambda data: zstandard.ZstdCompressor().compress(data),
    "none": bytes,
}


class LinkWriter:
    """Writes one full backup.  Of one thread; memory: a chunk and its compressed form.

    :param container: where to; it is there.
    :param prefix: of all objects; nothing lies there.
    :param head: the members that both JSON objects have: ids of backup and volume, names, time.
    :param compression: one of :data:`COMPRESSION`.
    """

    def __init__(self, container: Container, prefix: str, head: Mapping[str, Any], compression: str) -> None:
        self._container = container
        self._prefix = prefix
        self._head = {**head, "version": VERSION}
        self._compression = compression
        self._offset = 0
        self.object_count = 0
        # An item for each chunk, and one for each block: of a large volume they are many.
        self._objects = tempfile.TemporaryFile(prefix="backupfw-export-")  # noqa: SIM115
        self._hashes = tempfile.TemporaryFile(prefix="backupfw-export-")  # noqa: SIM115

    def close(self) -> None:
        """Give up the temporary files."""
        self._objects.close()
        self._hashes.close()

    def add(self, chunk: memoryview) -> None:
        """Write the next chunk; only the last may have less than :data:`CHUNK_BYTES`.

        :raises ChunkStoreError: the store does not take it.
        """
        sums, md5, stored, word = self._zeros(len(chunk)) if _is_zero(chunk) else self._packed(chunk)
        self.object_count += 1
        key = names.object_key(self._prefix, self.object_count)
        self._container.put(key, Body.from_bytes(stored))
        about = {"offset": self._offset, "length": len(chunk), "compression": word, "md5": md5}
        _item(self._objects, json.dumps({key: about}))
        for one in sums:
            _item(self._hashes, f'"{one}"')
        self._offset += len(chunk)

    def finish(self, parent_id: str | None, volume_meta: Mapping[str, Any]) -> None:
        """Write the list of hashes and the metadata; the backup is complete then.

        :raises ChunkStoreError: the store does not take them.
        """
        self._put(
            names.hashes_key(self._prefix),
            {**self._head, "chunk_size": BLOCK_BYTES},
            "sha256s",
            self._hashes,
        )
        head = {**self._head, "parent_id": parent_id, "volume_meta": json.dumps(volume_meta)}
        self._put(names.metadata_key(self._prefix), head, "objects", self._objects)

    def _packed(self, chunk: memoryview) -> tuple[list[str], str, bytes, str]:
        blocks = range(0, len(chunk), BLOCK_BYTES)
        sums = [hashlib.sha256(chunk[at : at + BLOCK_BYTES]).hexdigest() for at in blocks]
        md5 = hashlib.md5(chunk, usedforsecurity=False).hexdigest()
        stored, word = COMPRESSION[self._compression](chunk), self._compression
        if len(stored) >= len(chunk):
            stored, word = bytes(chunk), "none"
        return sums, md5, stored, word

    @cache  # noqa: B019  (a writer lives as long as its backup)
    def _zeros(self, length: int) -> tuple[list[str], str, bytes, str]:
        """The same for zeros, much of a sparse volume: Cinder restores them only if they are there."""
        return self._packed(memoryview(bytes(length)))

    def _put(self, key: str, head: Mapping[str, Any], name: str, items: Any) -> None:
        with tempfile.TemporaryFile(prefix="backupfw-export-") as file:
            file.write(json.dumps(head, indent=2).removesuffix("\n}").encode())
            file.write(f',\n  "{name}": ['.encode())
            items.seek(0)
            # Each item begins with a comma.
            items.read(1)
            while piece := items.read(1 << 20):
                file.write(piece)
            file.write(b"\n  ]\n}")
            file.flush()
            self._container.put(key, Body.from_file(file))


def _item(file: Any, text: str) -> None:
    file.write(f",\n    {text}".encode())


def _is_zero(chunk: memoryview) -> bool:
    # Bytes are compared by one call of C, a view is not.
    return bytes(chunk) == bytes(len(chunk))

"""Compares what the store answers with what was promised.

What it does not do: hash a body before it is put.  Drivers must refuse a body that is not what it
declares (G5, shown by the conformance suite), and hashing twice more would only cost time.
"""

from __future__ import annotations

from collections.abc import Iterator

from backupfw.chunkstore.base import Body, ChunkStore, ObjectInfo
from backupfw.chunkstore.errors import IntegrityError
from backupfw.chunkstore.layers.base import Layer


class IntegrityLayer(Layer):
    """Turns answers that cannot be right into IntegrityError, naming store, container and key.

    Looked at: the length of a range; in listings that every key has the prefix (a sweep deletes what
    is listed), and that a store that declares its listing sorted lists so (a retried listing goes on
    after the last key).  The errors are temporary, because a second answer may be right.

    :param verify_puts: read every object back after it was put and compare length and checksum.
    """

    def __init__(self, inner: ChunkStore, verify_puts: bool = False) -> None:
        super().__init__(inner)
        self._verify_puts = verify_puts

    def put(self, container: str, key: str, body: Body, *, if_absent: bool = False) -> None:
        """Put, and read back where that is asked for."""
        self.inner.put(container, key, body, if_absent=if_absent)
        if self._verify_puts:
            problem = Body(self.inner.get(container, key), body.length, body.checksum).problem()
            if problem:
                raise self._error(f"read back after the put: {problem}", container, key)

    def get(self, container: str, key: str, offset: int | None = None, length: int | None = None) -> bytes:
        """Get; a range has exactly the length asked for."""
        data = self.inner.get(container, key, offset, length)
        if length is not None and len(data) != length:
            raise self._error(f"{length} bytes were asked for, {len(data)} came", container, key)
        return data

    def list(self, container: str, prefix: str = "", start_after: str = "") -> Iterator[ObjectInfo]:
        """List; every key has the prefix and comes after the one before, where that is declared."""
        is_sorted = self.capabilities.sorted_listing
        last = start_after
        for info in self.inner.list(container, prefix, start_after):
            if not info.key.startswith(prefix):
                raise self._error(f"listed under the prefix {prefix}", container, info.key)
            # Text compares by code points, which is the order of UTF-8 bytes.
            if is_sorted and info.key <= last:
                raise self._error("listed out of order", container, info.key)
            last = info.key
            yield info

    def _error(self, reason: str, container: str, key: str) -> IntegrityError:
        return IntegrityError(reason, store=self.name, container=container, key=key, temporary=True)

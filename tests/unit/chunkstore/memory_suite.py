"""The suite adopted for the memory store, as a base for everything that stands around one."""

from __future__ import annotations

from typing import ClassVar

import pytest

from backupfw.chunkstore.base import ChunkStore
from backupfw.chunkstore.memory import Contents, MemoryStore
from backupfw.testing.chunkstore import ChunkStoreTests


class MemorySuite(ChunkStoreTests):
    """Reaches the objects through the dictionary the store keeps them in."""

    secrets = ()
    local = True
    lock_seconds = 0.3
    declared: ClassVar[dict[str, str]] = {"full_store": "memory has no bound of its own"}

    @pytest.fixture(scope="class")
    @classmethod
    def server(cls) -> Contents:
        return {}

    def open_store(self, server: Contents) -> ChunkStore:
        return self.wrap(MemoryStore("memory", None, server))

    def wrap(self, store: ChunkStore) -> ChunkStore:
        return store

    def raw_put(self, server: Contents, container: str, key: str, data: bytes) -> None:
        server[container][key] = data

    def raw_get(self, server: Contents, container: str, key: str) -> bytes | None:
        return server[container].get(key)

    def raw_keys(self, server: Contents, container: str) -> set[str]:
        return set(server[container])

    def remove_container(self, server: Contents, container: str) -> None:
        del server[container]

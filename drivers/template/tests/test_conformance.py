"""The conformance suite on the driver, bare and as the service uses it."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from backupfw_template.store import TemplateStore
from shelf import Shelf

from backupfw.chunkstore.base import ChunkStore
from backupfw.chunkstore.layers.stack import stack
from backupfw.chunkstore.options import option_values
from backupfw.testing.chunkstore import ChunkStoreTests


class TestTemplateStore(ChunkStoreTests):
    secrets = ("a-very-secret-password", "a-wrong-password")

    # Made once for all tests of the class.  Here is where you start your server, or find it.
    @pytest.fixture(scope="class")
    @classmethod
    def server(cls) -> Iterator[Shelf]:
        shelf = Shelf("tester", "a-very-secret-password")
        yield shelf
        shelf.stop()

    # ---- the driver ------------------------------------------------------------------------------

    def open_at(self, endpoint: str, password: str = "a-very-secret-password") -> ChunkStore:
        values = {"endpoint": endpoint, "user": "tester", "password": password}
        return TemplateStore("test", option_values(TemplateStore.options(), **values))

    def open_store(self, server: Shelf) -> ChunkStore:
        return self.open_at(server.endpoint)

    def open_unreachable(self, server: Shelf) -> ChunkStore:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            return self.open_at(f"http://127.0.0.1:{probe.getsockname()[1]}")

    def open_refused(self, server: Shelf) -> ChunkStore:
        return self.open_at(server.endpoint, "a-wrong-password")

    def open_through(self, server: Shelf, host: str, port: int) -> ChunkStore:
        return self.open_at(f"http://{host}:{port}")

    # ---- the server, without the driver ----------------------------------------------------------

    def raw_put(self, server: Shelf, container: str, key: str, data: bytes) -> None:
        with server.lock:
            server.objects[container][key] = data

    def raw_get(self, server: Shelf, container: str, key: str) -> bytes | None:
        with server.lock:
            return server.objects[container].get(key)

    def raw_keys(self, server: Shelf, container: str) -> set[str]:
        with server.lock:
            return set(server.objects[container])

    def remove_container(self, server: Shelf, container: str) -> None:
        with server.lock:
            del server.objects[container]

    # ---- what can happen to it -------------------------------------------------------------------

    def server_address(self, server: Shelf) -> tuple[str, int]:
        return "127.0.0.1", server.port

    def restart_server(self, server: Shelf) -> None:
        server.restart()

    def expire_token(self, server: Shelf, store: ChunkStore) -> None:
        server.expire_tokens()

    @contextmanager
    def full_store(self, server: Shelf, container: str) -> Iterator[ChunkStore]:
        server.capacity[container] = 1 << 20
        store = self.open_store(server)
        yield store
        store.close()
        del server.capacity[container]


class TestTemplateStoreUnderLayers(TestTemplateStore):
    # Once more, with everything that the service puts around a driver.
    listing_keys = 2600
    largest = 8 << 20
    model_examples = 5

    def open_store(self, server: Shelf) -> ChunkStore:
        return stack(super().open_store(server))

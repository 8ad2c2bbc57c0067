"""The conformance suite on the GCS driver, against two servers that speak the JSON API.

Neither server keeps all guarantees of the real service.  What one breaks is declared here, by name, as an
expected failure that must go on failing (``deviates``); the other server shows that guarantee.
"""

from __future__ import annotations

import json
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import pytest
from backupfw_gcs.store import GcsStore

from backupfw.chunkstore.base import ChunkStore
from backupfw.chunkstore.layers.stack import stack
from backupfw.chunkstore.options import option_values
from backupfw.testing.chunkstore import ChunkStoreTests
from tests.servers.gcs import GcsServer, emulator_missing, fake_gcs, fake_gcs_missing, gcs_emulator
from tests.servers.process import free_port

pytestmark = pytest.mark.server


def deviates(reason: str) -> Callable[[Any], Any]:
    """Mark a guarantee that the server (not the driver) breaks; strict: noticed when it no longer does."""
    return pytest.mark.xfail(strict=True, reason=reason)


class Raw:
    """The server without the driver and without Google's client: plain HTTP, one connection per call."""

    def __init__(self, endpoint: str) -> None:
        self.endpoint = endpoint

    def call(self, method: str, path: str, data: bytes | None = None, content_type: str = "") -> bytes | None:
        """Return the answer's body, None where the answer is 404."""
        headers = {"Content-Type": content_type} if content_type else {}
        request = urllib.request.Request(self.endpoint + path, data=data, method=method, headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                found: bytes = answer.read()
                return found
        except urllib.error.HTTPError as error:
            if error.code == 404:
                return None
            raise

    def put(self, container: str, key: str, data: bytes) -> None:
        name = urllib.parse.quote(key, safe="")
        path = f"/upload/storage/v1/b/{container}/o?uploadType=media&name={name}"
        assert self.call("POST", path, data, "application/octet-stream") is not None

    def get(self, container: str, key: str) -> bytes | None:
        name = urllib.parse.quote(key, safe="")
        return self.call("GET", f"/download/storage/v1/b/{container}/o/{name}?alt=media")

    def keys(self, container: str) -> set[str]:
        found: set[str] = set()
        token = ""
        while True:
            query = urllib.parse.urlencode({"maxResults": 1000, "pageToken": token} if token else {})
            answer = self.call("GET", f"/storage/v1/b/{container}/o?{query}")
            page = json.loads(answer) if answer is not None else {}
            found |= {item["name"] for item in page.get("items") or ()}
            token = page.get("nextPageToken", "")
            if not token:
                return found

    def remove(self, container: str) -> None:
        for key in self.keys(container):
            name = urllib.parse.quote(key, safe="")
            self.call("DELETE", f"/storage/v1/b/{container}/o/{name}")
        self.call("DELETE", f"/storage/v1/b/{container}")


class GcsSuite(ChunkStoreTests):
    secrets = ()
    bulk_delete: ClassVar[int] = 100

    def open_store(self, server: GcsServer) -> ChunkStore:
        return self.wrap(self.open_at(server.endpoint))

    def open_at(self, endpoint: str, **values: object) -> ChunkStore:
        chosen = {"anonymous": True, "project": "test", "bulk_delete": self.bulk_delete, **values}
        return GcsStore("gcs", option_values(GcsStore.options(), endpoint=endpoint, **chosen))

    def wrap(self, store: ChunkStore) -> ChunkStore:
        return store

    def raw_put(self, server: GcsServer, container: str, key: str, data: bytes) -> None:
        Raw(server.endpoint).put(container, key, data)

    def raw_get(self, server: GcsServer, container: str, key: str) -> bytes | None:
        return Raw(server.endpoint).get(container, key)

    def raw_keys(self, server: GcsServer, container: str) -> set[str]:
        return Raw(server.endpoint).keys(container)

    def remove_container(self, server: GcsServer, container: str) -> None:
        Raw(server.endpoint).remove(container)

    def open_unreachable(self, server: GcsServer) -> ChunkStore:
        return self.wrap(self.open_at(f"http://127.0.0.1:{free_port()}"))

    def open_refused(self, server: GcsServer) -> ChunkStore:
        pytest.skip("later")


@pytest.mark.skipif(fake_gcs_missing() is not None, reason=str(fake_gcs_missing()))
class FakeGcsSuite(GcsSuite):
    @pytest.fixture(scope="class")
    @classmethod
    def server(cls, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GcsServer]:
        with fake_gcs(tmp_path_factory.mktemp("fake-gcs")) as server:
            yield server


class TestFakeGcs(FakeGcsSuite):
    """Preconditions, pages, offsets, batches."""


class TestFakeGcsUnderLayers(FakeGcsSuite):
    listing_keys = 1200
    largest = 8 << 20
    model_examples = 5

    def wrap(self, store: ChunkStore) -> ChunkStore:
        return stack(store)


@pytest.mark.skipif(emulator_missing() is not None, reason=str(emulator_missing()))
class TestEmulator(GcsSuite):
    """Checksums refused by the server; slower."""

    listing_keys = 600
    largest = 8 << 20
    model_examples = 4

    @pytest.fixture(scope="class")
    @classmethod
    def server(cls, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GcsServer]:
        with gcs_emulator(tmp_path_factory.mktemp("emulator")) as server:
            yield server

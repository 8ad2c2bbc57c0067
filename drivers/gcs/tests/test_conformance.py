"""The conformance suite on the GCS driver, against two servers that speak the JSON API.

Neither server keeps all guarantees of the real service.  What one breaks is declared here, by name, as an
expected failure that must go on failing (``deviates``); the other server shows that guarantee.
"""

from __future__ import annotations

import json
import logging
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
from backupfw_gcs.store import GcsStore

from backupfw.chunkstore.base import ChunkStore
from backupfw.chunkstore.layers.limit import LimitLayer, Limits
from backupfw.chunkstore.layers.options import layer_options
from backupfw.chunkstore.layers.stack import stack
from backupfw.chunkstore.options import option_values
from backupfw.testing.chunkstore import Adoption, ChunkStoreTests
from backupfw.testing.suite.conduct import ConductTests
from backupfw.testing.suite.deleting import DeletingTests
from backupfw.testing.suite.wire import WireTests
from tests.servers.gcs import GcsServer, emulator_missing, fake_gcs, fake_gcs_missing, gcs_emulator
from tests.servers.gcs_gate import Account, Gate, gcs_gate
from tests.servers.ports import free_port

pytestmark = pytest.mark.server

ACCOUNT = Account("backup")
#: Uses the known account's name with a key of its own.
OUTSIDER = Account("backup")


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
        # Not uploadType=media: the emulator takes no empty object that way.
        properties = json.dumps({"name": key}).encode()
        parts = (
            (b"application/json; charset=UTF-8", properties),
            (b"application/octet-stream", data),
        )
        body = b"".join(b"--raw-raw\r\nContent-Type: %s\r\n\r\n%s\r\n" % part for part in parts)
        path = f"/upload/storage/v1/b/{container}/o?uploadType=multipart"
        content_type = 'multipart/related; boundary="raw-raw"'
        assert self.call("POST", path, body + b"--raw-raw--", content_type) is not None

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


@dataclass(frozen=True)
class World:
    """A server, and a gate with token server before it.

    :ivar directory: for key files.
    """

    server: GcsServer
    gate: Gate
    directory: Path

    @property
    def raw(self) -> Raw:
        """The server without the driver."""
        return Raw(self.server.endpoint)


@contextmanager
def world(server: GcsServer, directory: Path) -> Iterator[World]:
    """Put a gate before a server."""
    with gcs_gate(server.port) as gate:
        gate.admit(ACCOUNT)
        ACCOUNT.write(directory / "account.json", gate)
        OUTSIDER.write(directory / "outsider.json", gate)
        yield World(server, gate, directory)


class GcsAdoption(Adoption):
    """The pieces that the suite asks for; credentials are looked at by the gate."""

    #: Keys per batch; the largest is shown with the faster server.
    bulk_delete: ClassVar[int] = 100
    declared: ClassVar[dict[str, str]] = {
        "expire_token": "nobody signs in at this server itself",
        "full_store": "the server knows no quotas",
    }
    secrets = (*ACCOUNT.private_pem.splitlines()[1:-1], *OUTSIDER.private_pem.splitlines()[1:-1])

    def open_store(self, server: World) -> ChunkStore:
        store = self.open_at(
            server.server.endpoint, anonymous=True, project="test", bulk_delete_size=self.bulk_delete
        )
        return self.wrap(store)

    def open_at(self, endpoint: str, **values: object) -> ChunkStore:
        return GcsStore("gcs", option_values(GcsStore.options(), endpoint=endpoint, **values))

    def wrap(self, store: ChunkStore) -> ChunkStore:
        return store

    def server_address(self, server: World) -> tuple[str, int]:
        return "127.0.0.1", server.server.port

    def open_through(self, server: World, host: str, port: int) -> ChunkStore:
        return self.open_at(f"http://{host}:{port}", anonymous=True, project="test")

    def raw_put(self, server: World, container: str, key: str, data: bytes) -> None:
        server.raw.put(container, key, data)

    def raw_get(self, server: World, container: str, key: str) -> bytes | None:
        return server.raw.get(container, key)

    def raw_keys(self, server: World, container: str) -> set[str]:
        return server.raw.keys(container)

    def open_unreachable(self, server: World) -> ChunkStore:
        return self.open_at(f"http://127.0.0.1:{free_port()}", anonymous=True, project="test")

    def open_refused(self, server: World) -> ChunkStore:
        path = str(server.directory / "outsider.json")
        return self.open_at(server.gate.endpoint, service_account_file=path)


@pytest.mark.skipif(fake_gcs_missing() is not None, reason=str(fake_gcs_missing()))
class FakeGcsAdoption(GcsAdoption):
    @pytest.fixture(scope="class")
    @classmethod
    def server(cls, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
        directory = tmp_path_factory.mktemp("fake-gcs")
        with fake_gcs(directory) as server, world(server, directory) as made:
            yield made


class TestFakeGcs(FakeGcsAdoption, ChunkStoreTests):
    """Preconditions, pages and offsets of listings, batches."""

    # Three pages; the server takes ever longer for each object; test_store.py lists more.
    listing_keys = 2100
    model_examples = 8

    @pytest.fixture(scope="class")
    @classmethod
    def mortal_server(cls, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
        """Another one: what it has is lost when it ends."""
        directory = tmp_path_factory.mktemp("mortal")
        with fake_gcs(directory) as server, world(server, directory) as made:
            yield made

    def restart_server(self, server: World) -> None:
        server.server.restart()

    @pytest.mark.parametrize("size", [0, 1, 100_000])
    def test_g9_range_past_the_end(self, server: World, container: str, size: int) -> None:
        # The server closes the connection behind this refusal and does not say so: the next request may be
        # lost, which the layer that repeats is there for.  No other test gets such a connection.
        with closing(self.open_store(server)) as own:
            repeating = stack(own, option_values(layer_options(), retry_base_pause=0.01))
            super().test_g9_range_past_the_end(repeating, container, size)


class TestFakeGcsWithAccountUnderLayers(FakeGcsAdoption, DeletingTests, ConductTests, WireTests):
    """A service account's tokens, and all layers.

    What else the suite has, TestFakeGcs proves: once its token is there, a request is the same.
    """

    declared: ClassVar[dict[str, str]] = {"full_store": "the server knows no quotas"}

    def server_address(self, server: World) -> tuple[str, int]:
        return "127.0.0.1", server.gate.port

    def open_through(self, server: World, host: str, port: int) -> ChunkStore:
        # Without the layers, whose retries would hide the faults.
        path = str(server.directory / "account.json")
        return self.open_at(f"http://{host}:{port}", service_account_file=path)

    def expire_token(self, server: World, store: ChunkStore) -> None:
        server.gate.revoke()

    def open_store(self, server: World) -> ChunkStore:
        path = str(server.directory / "account.json")
        return self.wrap(self.open_at(server.gate.endpoint, service_account_file=path))

    def wrap(self, store: ChunkStore) -> ChunkStore:
        options = option_values(layer_options(), retry_base_pause=0.01, retry_tries=2)
        return stack(store, options)

    def test_g15_secrets_stay_secret(
        self, server: World, container: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        super().test_g15_secrets_stay_secret(server, container, caplog)
        assert server.gate.tokens
        for record in caplog.records:
            # Not only the text: handlers may write what else a record holds.
            text = str(record.__dict__)
            assert not [token for token in server.gate.tokens if token in text]
            assert not [secret for secret in self.secrets if secret in text]
        assert logging.getLogger().level == logging.DEBUG


@pytest.mark.skipif(emulator_missing() is not None, reason=str(emulator_missing()))
class TestEmulator(GcsAdoption, ChunkStoreTests):
    """Checksums refused by the server; whole listings in one page.

    It serves one connection at a time and lets five wait, so the store is used by five at once; that the
    driver stands sixteen is shown with the other server.
    """

    listing_keys = 240
    declared: ClassVar[dict[str, str]] = {
        **GcsAdoption.declared,
        "open_through": "it serves one connection at a time, which a fault would keep from the others",
        "restart_server": "it serves one connection at a time, which a held one would keep",
    }
    bulk_delete = 20
    largest = 8 << 20
    model_examples = 3

    def wrap(self, store: ChunkStore) -> ChunkStore:
        return LimitLayer(store, Limits(concurrency=5))

    @deviates("gcp-storage-emulator ignores ifGenerationMatch: it replaces the object")
    def test_g7_if_absent(self, server: World, store: ChunkStore, container: str) -> None:
        super().test_g7_if_absent(server, store, container)

    @pytest.fixture(scope="class")
    @classmethod
    def server(cls, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
        directory = tmp_path_factory.mktemp("emulator")
        with gcs_emulator(directory) as server, world(server, directory) as made:
            yield made

"""The conformance suite on real servers: Swift with tempauth, Swift behind Keystone, radosgw."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar
from urllib.parse import urlsplit

import pytest
import requests
from backupfw_swift.store import SwiftStore

from backupfw.chunkstore.base import ChunkStore
from backupfw.chunkstore.layers.retry import RetryLayer
from backupfw.chunkstore.options import option_values
from backupfw.testing.chunkstore import Adoption, ChunkStoreTests
from backupfw.testing.suite.conduct import ConductTests
from backupfw.testing.suite.deleting import DeletingTests
from backupfw.testing.suite.wire import WireTests
from tests.servers.ceph import Ceph, ceph, ceph_missing
from tests.servers.keystone import Keystone, User, keystone_missing
from tests.servers.ports import free_port
from tests.servers.swift import PAGE, Swift, swift, swift_missing
from tests.servers.swift_accounts import (
    Account,
    gateway_account,
    keystone_account,
    tempauth_account,
)
from tests.waiting import wait_until


def open_store(options: dict[str, Any]) -> SwiftStore:
    """Open the driver, impatient as tests are; bulk deletes are small, so that tests go beyond one."""
    values = {"connect_timeout": 5, "read_timeout": 30, "bulk_delete_size": 60, **options}
    return SwiftStore("swift", option_values(SwiftStore.options(), **values))


class SwiftAdoption(Adoption):
    """The pieces that the suite asks for."""

    secrets = ("very-secret", "not-the-password")
    # Three pages, the last not full.
    listing_keys = 2 * PAGE + 120
    model_examples = 4

    def open_store(self, server: Account) -> ChunkStore:
        return open_store(server.options)

    def open_unreachable(self, server: Account) -> ChunkStore:
        return open_store({**server.options, "auth_url": f"http://127.0.0.1:{free_port()}/auth/v1.0"})

    def open_refused(self, server: Account) -> ChunkStore:
        return open_store({**server.options, **server.refused})

    def raw_put(self, server: Account, container: str, key: str, data: bytes) -> None:
        assert server.request("PUT", f"/{container}/{key}", data=data).status_code == 201

    def raw_get(self, server: Account, container: str, key: str) -> bytes | None:
        answer = server.request("GET", f"/{container}/{key}")
        if answer.status_code == 404:
            return None
        assert answer.ok
        return answer.content

    def raw_keys(self, server: Account, container: str) -> set[str]:
        found: set[str] = set()
        marker = ""
        while True:
            answer = server.request("GET", f"/{container}", params={"format": "json", "marker": marker})
            assert answer.ok
            page = [entry["name"] for entry in answer.json()] if answer.content else []
            if not page:
                return found
            found.update(page)
            marker = page[-1]

    def server_address(self, server: Account) -> tuple[str, int]:
        assert server.request("HEAD", "").ok
        address = urlsplit(server.url)
        assert address.hostname
        assert address.port
        return address.hostname, address.port


class SwiftSuite(SwiftAdoption, ChunkStoreTests):
    # A cluster of one replica answers 503 to a read that meets a replacement, where others ask the next
    # replica; what takes care of that is the layer that tries again.

    def test_g6_readers_see_old_or_new(self, store: ChunkStore, container: str) -> None:
        super().test_g6_readers_see_old_or_new(RetryLayer(store), container)

    def test_g13_one_key(self, store: ChunkStore, container: str) -> None:
        super().test_g13_one_key(RetryLayer(store), container)


@pytest.mark.server
@pytest.mark.skipif(swift_missing() is not None, reason=str(swift_missing()))
class TestTempauth(SwiftSuite):
    """Swift's own authentication."""

    @pytest.fixture(scope="class")
    @classmethod
    def server(cls) -> Iterator[Account]:
        with swift() as cluster:
            cls.cluster = cluster
            yield tempauth_account(cluster)

    cluster: ClassVar[Swift]

    def open_through(self, server: Account, host: str, port: int) -> ChunkStore:
        # The server makes the account's URL of the address that it was asked at.
        return open_store({**server.options, "auth_url": f"http://{host}:{port}/auth/v1.0"})

    def restart_server(self, server: Account) -> None:
        self.cluster.restart_proxy()

    def expire_token(self, server: Account, store: ChunkStore) -> None:
        self.cluster.expire_tokens()

    @contextmanager
    def full_store(self, server: Account, container: str) -> Iterator[ChunkStore]:
        header = {"X-Container-Meta-Quota-Bytes": str(1 << 20)}
        assert server.request("POST", f"/{container}", headers=header).ok
        store = self.open_store(server)
        yield store
        store.close()


@pytest.mark.server
@pytest.mark.skipif(swift_missing() is not None, reason=str(swift_missing()))
@pytest.mark.skipif(keystone_missing() is not None, reason=str(keystone_missing()))
class TestKeystone(SwiftAdoption, DeletingTests, ConductTests, WireTests):
    """Behind Keystone, whose tokens end within the suite; without bulk deletes.

    What else the suite has, TestTempauth proves: once its token is there, a request is the same.
    """

    @pytest.fixture(scope="class")
    @classmethod
    def server(cls, keystone_cluster: Swift, identity: Keystone, user: User) -> Account:
        cls.cluster, cls.identity = keystone_cluster, identity
        return keystone_account(keystone_cluster, identity, user)

    cluster: ClassVar[Swift]
    identity: ClassVar[Keystone]
    declared: ClassVar[dict[str, str]] = {"full_store": "a quota is the cluster's, not Keystone's"}

    def open_through(self, server: Account, host: str, port: int) -> ChunkStore:
        # The catalogue names the cluster's own address.
        return open_store(
            {**server.options, "storage_url": f"http://{host}:{port}{urlsplit(server.url).path}"}
        )

    def restart_server(self, server: Account) -> None:
        self.cluster.restart_proxy()

    def expire_token(self, server: Account, store: ChunkStore) -> None:
        assert isinstance(store, SwiftStore)
        assert server.request("HEAD", "").ok
        token = store._tokens.current().token
        self.identity.revoke(token)
        # The cluster believes in it for a second more.
        headers = {"X-Auth-Token": token}
        wait_until(
            "the token to be refused",
            lambda: requests.head(server.url, headers=headers, timeout=30).status_code == 401,
            pause=0.1,
        )


@pytest.mark.server
@pytest.mark.skipif(ceph_missing() is not None, reason=str(ceph_missing()))
class TestGateway(SwiftSuite):
    """The Swift API of radosgw."""

    listing_keys = 3000
    largest = 16 << 20

    @pytest.fixture(scope="class")
    @classmethod
    def server(cls, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Account]:
        with ceph(tmp_path_factory.mktemp("ceph")) as cluster:
            cls.cluster = cluster
            yield gateway_account(cluster)

    cluster: ClassVar[Ceph]
    declared: ClassVar[dict[str, str]] = {"expire_token": "the gateway's tokens cannot be revoked"}

    def open_through(self, server: Account, host: str, port: int) -> ChunkStore:
        return open_store({**server.options, "auth_url": f"http://{host}:{port}/auth/v1.0"})

    def restart_server(self, server: Account) -> None:
        self.cluster.restart_gateway()

    @contextmanager
    def full_store(self, server: Account, container: str) -> Iterator[ChunkStore]:
        store = self.open_store(server)
        with self.cluster.quota(container, 1 << 20):
            yield store
        store.close()

"""The conformance suite on real servers: Swift with tempauth, Swift behind Keystone, radosgw.

The suite reaches the objects by plain HTTP with a token of its own, not by the driver's code.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

import pytest
import requests
from backupfw_swift.store import SwiftStore

from backupfw.chunkstore.base import ChunkStore
from backupfw.chunkstore.options import option_values
from backupfw.testing.chunkstore import ChunkStoreTests
from tests.servers.keystone import Keystone, User
from tests.servers.process import free_port
from tests.servers.swift import PAGE, swift, swift_missing


@dataclass
class Account:
    """An account on some server, reached without the driver.

    :ivar options: the driver's options for it.
    :ivar refused: what differs for a user whom the server refuses.
    """

    options: dict[str, Any]
    refused: dict[str, Any]
    session: requests.Session = field(default_factory=requests.Session)
    url: str = ""

    def sign_in(self) -> None:
        """Get a token and the account's URL."""
        if self.options["auth"] == "v1":
            answer = requests.get(
                self.options["auth_url"],
                headers={"X-Auth-User": self.options["username"], "X-Auth-Key": self.options["password"]},
                timeout=30,
            )
            self.url = answer.headers["X-Storage-Url"]
            self.session.headers["X-Auth-Token"] = answer.headers["X-Auth-Token"]
            return
        raise NotImplementedError

    def request(self, method: str, path: str, **more: Any) -> requests.Response:
        """Send a request; a token that has expired is renewed."""
        if not self.url:
            self.sign_in()
        for _ in range(2):
            answer = self.session.request(method, self.url + quote(path), timeout=60, **more)
            if answer.status_code != 401:
                break
            self.sign_in()
        return answer


class KeystoneAccount(Account):
    """An account of a Keystone project."""

    keystone: Keystone
    user: User

    def sign_in(self) -> None:
        token = self.keystone.token(self.user.name, self.user.password, self.user.project)
        self.session.headers["X-Auth-Token"] = token
        self.url = self.options["storage_url"]


def open_store(options: dict[str, Any], **more: Any) -> SwiftStore:
    """Open the driver, impatient as tests are; bulk deletes are small, so that tests go beyond one."""
    values = {"connect_timeout": 5, "read_timeout": 30, "bulk_delete_size": 60, **options, **more}
    return SwiftStore("swift", option_values(SwiftStore.options(), **values))


class SwiftSuite(ChunkStoreTests):
    # Three pages, the last not full.
    listing_keys = 2 * PAGE + 120
    largest = 64 << 20
    model_examples = 4
    unreachable_seconds = 20.0

    def open_store(self, server: Account) -> ChunkStore:
        return self.wrap(open_store(server.options))

    def wrap(self, store: ChunkStore) -> ChunkStore:
        return store

    def open_unreachable(self, server: Account) -> ChunkStore:
        nowhere = f"http://127.0.0.1:{free_port()}/auth/v1.0"
        return self.wrap(open_store({**server.options, "auth_url": nowhere}))

    def open_refused(self, server: Account) -> ChunkStore:
        return self.wrap(open_store({**server.options, **server.refused}))

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


def tempauth_account(cluster: Any) -> Account:
    """The account of the cluster's own user."""
    options = {
        "auth": "v1",
        "auth_url": cluster.auth_url,
        "username": cluster.user,
        "password": cluster.key,
    }
    return Account(options, {"password": "not-the-password"})


@pytest.mark.server
@pytest.mark.skipif(swift_missing() is not None, reason=str(swift_missing()))
class TestTempauth(SwiftSuite):
    """Swift's own authentication; bulk deletes."""

    secrets = ("very-secret-key-of-the-tester", "not-the-password")

    @pytest.fixture(scope="class")
    @classmethod
    def server(cls) -> Iterator[Account]:
        with swift() as cluster:
            yield tempauth_account(cluster)

"""What the driver promises beyond the conformance suite, on real servers."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from backupfw_swift.store import SwiftStore

from backupfw.chunkstore.base import Body
from backupfw.chunkstore.errors import (
    ChunkStoreError,
    IntegrityError,
    InvalidName,
    NoSpace,
    PermissionDenied,
    Unavailable,
)
from backupfw.chunkstore.layers.retry import RetryLayer, RetryPolicy
from backupfw.chunkstore.options import option_values
from tests.servers.keystone import Keystone, User, keystone_missing
from tests.servers.ports import free_port
from tests.servers.swift import Swift, swift, swift_missing
from tests.servers.swift_accounts import keystone_account, tempauth_account
from tests.servers.tls import tls_missing, tls_proxy

pytestmark = [
    pytest.mark.server,
    pytest.mark.skipif(swift_missing() is not None, reason=str(swift_missing())),
]

X = Body.from_bytes(b"some bytes")
#: Of tempauth's tokens, seconds.
SHORT = 4


def opened(options: dict[str, Any], **more: Any) -> SwiftStore:
    values = {"connect_timeout": 5, "read_timeout": 30, **options, **more}
    return SwiftStore("main", option_values(SwiftStore.options(), **values))


def transfer(store: SwiftStore, container: str, seconds: float, meanwhile: Callable[[], None]) -> int:
    """Put and get objects from 6 threads; any error fails.  Returns their number."""
    end = time.monotonic() + seconds

    def work(number: int) -> int:
        turn = 0
        while time.monotonic() < end:
            data = b"%d %d" % (number, turn) * 1000
            store.put(container, f"{number}/{turn}", Body.from_bytes(data))
            assert store.get(container, f"{number}/{turn}") == data
            turn += 1
        return turn

    with ThreadPoolExecutor(6) as pool:
        running = [pool.submit(work, number) for number in range(6)]
        meanwhile()
        return sum(each.result() for each in running)


class TestTempauth:
    @pytest.fixture(scope="class")
    @classmethod
    def cluster(cls) -> Iterator[Swift]:
        with swift(token_life=SHORT) as cluster:
            yield cluster

    @pytest.fixture
    def store(self, cluster: Swift) -> Iterator[SwiftStore]:
        store = opened(tempauth_account(cluster).options)
        store.ensure_container("c")
        yield store
        store.close()

    def test_tokens_end_in_mid_transfer(self, store: SwiftStore) -> None:
        # Never renewed before: each one is used until it is refused.
        store._tokens._renew_before = 0
        tokens = set()

        def watch() -> None:
            end = time.monotonic() + 2.5 * SHORT
            while time.monotonic() < end:
                tokens.add(store._tokens.current().token)
                time.sleep(0.1)

        assert transfer(store, "c", 2.5 * SHORT, watch) > 10
        assert len(tokens) >= 2

    def test_a_quota_is_no_space(self, cluster: Swift, store: SwiftStore) -> None:
        account = tempauth_account(cluster)
        assert account.request("PUT", "/small", headers={"X-Container-Meta-Quota-Bytes": "20"}).ok
        store.put("small", "one", X)
        with pytest.raises(NoSpace) as caught:
            store.put("small", "two", Body.from_bytes(bytes(100)))
        assert not caught.value.temporary
        assert [info.key for info in store.list("small")] == ["one"]

    def test_storage_policy(self, cluster: Swift) -> None:
        account = tempauth_account(cluster)
        silver = opened(account.options, storage_policy="silver")
        gold = opened(account.options, storage_policy="gold")
        silver.ensure_container("policy")
        gold.ensure_container("policy")
        assert account.request("HEAD", "/policy").headers["X-Storage-Policy"] == "silver"
        silver.put("policy", "key", X)
        assert gold.get("policy", "key") == b"some bytes"
        lead = opened(account.options, storage_policy="lead")
        with pytest.raises(InvalidName, match="lead"):
            lead.ensure_container("leaden")
        report = lead.check()
        assert not report.ok
        assert any("gold, silver" in item.detail for item in report.items if not item.ok)

    def test_access_lists_are_enough(self, cluster: Swift) -> None:
        account = tempauth_account(cluster)
        outsider = {"username": cluster.outsider, "password": cluster.outsider_key}
        store = opened({**account.options, **outsider})
        report = store.check()
        assert not report.ok
        assert [item.name for item in report.items if not item.ok] == ["container"]
        lists = {"X-Container-Read": f"{cluster.outsider},.rlistings", "X-Container-Write": cluster.outsider}
        assert account.request("PUT", "/lent", headers=lists).ok
        store.ensure_container("lent")
        store.put("lent", "a", X)
        store.put("lent", "b", X)
        assert store.get("lent", "a") == b"some bytes"
        assert [info.key for info in store.list("lent")] == ["a", "b"]
        store.delete("lent", ["a", "b"])
        assert list(store.list("lent")) == []
        assert opened({**account.options, **outsider}, check_container="lent").check().ok
        assert list(store.list("lent")) == []
        assert not opened({**account.options, **outsider}, check_container="missing").check().ok
        with pytest.raises(PermissionDenied):
            store.get("c", "key")

    def test_damage_on_the_servers_disk(self, cluster: Swift, store: SwiftStore) -> None:
        before = set(cluster.base.glob("srv/d1/objects*/**/*.data"))
        store.put("c", "damaged", Body.from_bytes(b"some bytes" * 1000))
        (path,) = set(cluster.base.glob("srv/d1/objects*/**/*.data")) - before
        with open(path, "r+b") as file:
            file.seek(5000)
            file.write(b"?")
        with pytest.raises(IntegrityError):
            store.get("c", "damaged")

    def test_a_server_that_comes_back(self, cluster: Swift, store: SwiftStore) -> None:
        store.put("c", "key", X)
        cluster.stop("object")
        try:
            for use in (lambda: store.put("c", "new", X), lambda: store.get("c", "key")):
                with pytest.raises(Unavailable) as caught:
                    use()
                assert caught.value.temporary
            patient = RetryLayer(store, RetryPolicy(tries=1000, base=0.5, cap=0.5))
            with ThreadPoolExecutor(1) as pool:
                putting = pool.submit(patient.put, "c", "new", X)
                time.sleep(0.5)
                assert not putting.done()
                cluster.start("object")
                putting.result()
        finally:
            if "object" not in cluster.servers:
                cluster.start("object")
        assert store.get("c", "new") == b"some bytes"

    def test_a_container_that_keeps_versions_is_reported(self, cluster: Swift, store: SwiftStore) -> None:
        account = tempauth_account(cluster)
        assert [(item.name, item.warning) for item in store.inspect("c")] == [("versions", False)]
        assert account.request("PUT", "/versioned", headers={"X-Versions-Enabled": "true"}).ok
        (told,) = store.inspect("versioned")
        assert told.warning
        assert "deletes free nothing" in told.detail
        (unknown,) = store.inspect("there-is-none")
        assert unknown.warning

    @pytest.mark.skipif(tls_missing() is not None, reason=str(tls_missing()))
    def test_tls(self, cluster: Swift, tmp_path: Path) -> None:
        with tls_proxy(tmp_path, cluster.port) as proxy:
            options = {
                **tempauth_account(cluster).options,
                "auth_url": f"{proxy.endpoint}/auth/v1.0",
                "storage_url": f"{proxy.endpoint}/v1/AUTH_test",
            }
            assert opened(options, cacert=str(proxy.ca)).check().ok
            assert opened(options, insecure=True).check().ok
            for more, reason in (({}, "cacert"), ({"cacert": str(tmp_path / "none")}, "cannot be read")):
                with pytest.raises(ChunkStoreError, match=reason) as caught:
                    opened(options, **more).get("c", "key")
                assert not caught.value.temporary
            # The storage alone is trusted no more than the authentication.
            half = {**options, "auth_url": tempauth_account(cluster).options["auth_url"]}
            with pytest.raises(ChunkStoreError, match="cacert") as caught:
                opened(half).put("c", "key", X)
            assert not caught.value.temporary


@pytest.mark.skipif(keystone_missing() is not None, reason=str(keystone_missing()))
class TestKeystone:
    @pytest.fixture(scope="class")
    @classmethod
    def options(cls, keystone_cluster: Swift, identity: Keystone, user: User) -> dict[str, Any]:
        nowhere = f"http://127.0.0.1:{free_port()}/v1/AUTH_%(project_id)s"
        identity.add_endpoints("object-store", {"public": nowhere}, region="RegionTwo")
        return keystone_account(keystone_cluster, identity, user).options

    def test_renewed_before_the_end_in_mid_transfer(self, options: dict[str, Any]) -> None:
        store = opened(options)
        store.ensure_container("c")
        first = store._tokens.current()
        assert first.lifetime == 20

        def never(refused: object) -> Any:
            raise AssertionError("a token was used until it was refused")

        store._tokens.after = never  # type: ignore[method-assign]
        assert transfer(store, "c", first.lifetime / 4 + 2, lambda: None) > 10
        assert store._tokens.current() is not first

    def test_revoked_in_mid_transfer(self, options: dict[str, Any], identity: Keystone) -> None:
        store = opened(options, token_renew_before=0)
        store.ensure_container("c")
        first = store._tokens.current()

        def revoke() -> None:
            identity.revoke(first.token)

        assert transfer(store, "c", 5, revoke) > 10
        assert store._tokens.current() is not first

    def test_ids_instead_of_names(self, options: dict[str, Any], user: User) -> None:
        ids = {"user_id": user.id, "project_id": user.project_id, "password": user.password}
        assert opened({"auth_url": options["auth_url"], **ids}).check().ok
        slash = options["auth_url"].removesuffix("/v3") + "/"
        domains = {"user_domain_id": "default", "project_domain_id": "default"}
        assert opened({**options, "auth_url": slash, **domains}).check().ok

    def test_application_credentials(self, options: dict[str, Any], identity: Keystone, user: User) -> None:
        found, secret = identity.add_application_credential(user, "for-backups")
        base = {"auth": "application_credential", "auth_url": options["auth_url"]}
        by_id = {**base, "application_credential_id": found, "application_credential_secret": secret}
        by_name = {
            **base,
            "username": user.name,
            "application_credential_name": "for-backups",
            "application_credential_secret": secret,
        }
        for values in (by_id, by_name):
            assert opened(values).check().ok
        refused = opened({**by_id, "application_credential_secret": "not-the-secret"})
        with pytest.raises(PermissionDenied) as caught:
            refused.get("c", "key")
        assert secret not in repr(caught.value)
        assert not refused.check().ok

    def test_nothing_secret_is_logged(
        self, options: dict[str, Any], identity: Keystone, user: User, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.DEBUG)
        found, secret = identity.add_application_credential(user, "for-logs")
        with_credential = {
            "auth": "application_credential",
            "auth_url": options["auth_url"],
            "application_credential_id": found,
            "application_credential_secret": secret,
        }
        hidden = [user.password, secret]
        for values in (options, with_credential):
            store = opened(values)
            assert store.check().ok
            hidden.append(store._tokens.current().token[:20])
            store.close()
        text = "\n".join(record.getMessage() for record in caplog.records)
        assert {"urllib3.connectionpool", "keystoneauth.identity.v3.base"} <= {
            record.name for record in caplog.records
        }
        assert [each for each in hidden if each in text] == []

    def test_catalogue(self, options: dict[str, Any]) -> None:
        for values in ({"region_name": "RegionOne"}, {"interface": "internal"}):
            assert opened(options, **values).check().ok
        with pytest.raises(Unavailable):
            opened(options, region_name="RegionTwo").get("c", "key")
        for values in (
            {"region_name": "RegionThree"},
            {"interface": "admin"},
            {"region_name": "RegionTwo", "interface": "internal"},
            {"service_type": "object-stores"},
        ):
            store = opened(options, **values)
            with pytest.raises(ChunkStoreError, match="catalogue") as caught:
                store.put("c", "key", X)
            assert not caught.value.temporary
            assert not store.check().ok

    def test_a_reader_may_not_write(self, options: dict[str, Any], identity: Keystone, user: User) -> None:
        reader = identity.add_user("reader", "backups", "reader", user.project_id)
        store = opened({**options, "username": reader.name, "password": reader.password})
        with pytest.raises(PermissionDenied):
            store.put("c", "key", X)
        report = store.check()
        assert [item.name for item in report.items if not item.ok] == ["container"]

    def test_a_wrong_place(self, options: dict[str, Any]) -> None:
        url = options["auth_url"].removesuffix("/v3")
        with pytest.raises(ChunkStoreError, match="no Keystone") as caught:
            opened({**options, "auth_url": f"{url}/nothing/here"}).get("c", "key")
        assert not caught.value.temporary

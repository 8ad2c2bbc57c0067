"""The main job over the API of a served instance, on Swift: tempauth, Keystone with short tokens, radosgw."""

from __future__ import annotations

import random
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from tests.integration.content import MIB, change_image, same_content, write_image
from tests.integration.service import Service, running
from tests.servers.ceph import ceph, ceph_missing
from tests.servers.keystone import keystone, keystone_missing
from tests.servers.swift import swift, swift_missing
from tests.servers.swift_accounts import (
    Account,
    gateway_account,
    keystone_account,
    publish,
    tempauth_account,
)
from tests.servers.tls import tls_missing, tls_proxy

pytest.importorskip("backupfw_swift", reason="not installed: backupfw-swift")

LENGTH = 24 * MIB + 512 * 7
CONTAINER = "volumebackups"
#: Of Keystone's tokens, seconds: renewed after a quarter of it with the options' defaults.
TOKEN_LIFE = 15


@contextmanager
def _tempauth(_: Path) -> Iterator[Account]:
    with swift() as cluster:
        yield tempauth_account(cluster)


@contextmanager
def _keystone(directory: Path) -> Iterator[Account]:
    with keystone(directory, token_life=TOKEN_LIFE) as identity, swift(identity) as cluster:
        publish(cluster, identity)
        yield keystone_account(cluster, identity, identity.add_user("backup", "backups", "member"))


@contextmanager
def _gateway(directory: Path) -> Iterator[Account]:
    with ceph(directory) as cluster:
        yield gateway_account(cluster)


@contextmanager
def _over_tls(directory: Path) -> Iterator[Account]:
    with swift() as cluster, tls_proxy(directory, cluster.port) as proxy:
        account = tempauth_account(cluster)
        account.options |= {
            "auth_url": f"{proxy.endpoint}/auth/v1.0",
            # The cluster itself names its address without TLS.
            "storage_url": f"{proxy.endpoint}/v1/AUTH_test",
            "cacert": proxy.ca,
        }
        yield account


SERVERS: dict[str, tuple[Callable[[Path], object], tuple[Callable[[], str | None], ...]]] = {
    "tempauth": (_tempauth, (swift_missing,)),
    "tls": (_over_tls, (swift_missing, tls_missing)),
    "keystone": (_keystone, (swift_missing, keystone_missing)),
    "radosgw": (_gateway, (ceph_missing,)),
}


@pytest.fixture(params=list(SERVERS))
def account(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Account]:
    make, missing = SERVERS[request.param]
    reasons = [reason for reason in (each() for each in missing) if reason]
    if reasons:
        pytest.skip("; ".join(reasons))
    directory = tmp_path / "server"
    directory.mkdir()
    with ExitStack() as stack:
        yield stack.enter_context(make(directory))  # type: ignore[arg-type]


def stored_keys(account: Account) -> list[str]:
    answer = account.request("GET", f"/{CONTAINER}", params={"format": "json"})
    assert answer.ok
    return [entry["name"] for entry in answer.json()] if answer.content else []


@pytest.fixture
def service(account: Account, tmp_path: Path) -> Iterator[Service]:
    options = {
        # Nobody went back to an older database here.
        "store:main": {"driver": "swift", "listing_lag_seconds": 0, **account.options},
        "backup": {"segment_size": 4 * MIB, "pack_size": MIB},
    }
    with running(tmp_path / "state", options) as service:
        yield service


@pytest.mark.server
def test_full_incremental_delete_restore_verify(service: Service, account: Account, tmp_path: Path) -> None:
    client = service.client(f"p{uuid.uuid4().hex[:8]}")
    image, dirty = tmp_path / "image.raw", tmp_path / "dirty.raw"
    write_image(image, LENGTH)
    write_image(dirty, LENGTH, seed=2)
    volume = client.adopt(image)
    full = client.backup(volume)
    assert stored_keys(account)
    before = len(stored_keys(account))
    change_image(image, 5)
    incremental = client.backup(volume, incremental=True)
    assert client.expect(200, "GET", f"/backups/{incremental}")["backup"]["is_incremental"]
    # Far fewer than the full one's: what did not change is shared.
    assert len(stored_keys(account)) - before < before
    client.delete_backup(full)
    assert same_content(image, client.volume_path(client.restore(incremental)), LENGTH)
    client.restore(incremental, client.adopt(dirty))
    assert same_content(image, dirty, LENGTH)
    assert service.command("backup", "verify", incremental).returncode == 0
    client.delete_backup(incremental)
    client.wait("the store to be empty", lambda: not [key for key in stored_keys(account) if volume in key])
    assert "very-secret" not in service.log_tail(100_000)


@pytest.mark.server
@pytest.mark.parametrize("account", ["keystone"], indirect=True)
def test_tokens_that_expire_in_mid_backup(account: Account, tmp_path: Path) -> None:
    """Two slow backups that outlive their first token: one renews it in time, one when it is refused."""
    store = {
        "driver": "swift",
        "listing_lag_seconds": 0,
        **account.options,
        "max_bytes_per_second": 160 << 10,
    }
    options: dict[str, dict[str, object]] = {
        "DEFAULT": {"enabled_stores": "main, late"},
        "store:main": store,
        "store:late": {**store, "token_renew_before": 0},
        "backup": {"segment_size": MIB, "pack_size": MIB // 4},
    }
    image = tmp_path / "image.raw"
    image.write_bytes(random.Random(5).randbytes(3 * MIB))
    with running(tmp_path / "state", options) as service:
        client = service.client()
        backups = []
        for container in ("main:", "late:"):
            copy = tmp_path / f"{container[:-1]}.raw"
            shutil.copyfile(image, copy)
            backups.append(client.backup(client.adopt(copy), wait=False, container=container))
        for backup in backups:
            client.wait_status("backup", backup, "available")
            shown = client.expect(200, "GET", f"/backups/{backup}")["backup"]
            begun, ended = (datetime.fromisoformat(shown[name]) for name in ("created_at", "updated_at"))
            assert ended - begun > timedelta(seconds=TOKEN_LIFE), "it was to outlive a token"
    del store["max_bytes_per_second"], options["store:late"]["max_bytes_per_second"]
    with running(tmp_path / "state", options) as service:
        client = service.client()
        for backup in backups:
            assert same_content(image, client.volume_path(client.restore(backup)), 3 * MIB)

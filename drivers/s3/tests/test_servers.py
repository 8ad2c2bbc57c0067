"""What real servers do beyond the conformance suite: TLS, encryption, quotas, policies, many objects."""

from __future__ import annotations

import base64
import datetime
import io
import json
import secrets
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import botocore.auth
import pytest
from backupfw_s3.store import S3Store
from botocore.exceptions import ClientError

from backupfw.chunkstore.base import Body
from backupfw.chunkstore.errors import (
    ChunkStoreError,
    DeleteFailed,
    IntegrityError,
    NoSpace,
    NotSupported,
    PermissionDenied,
    Retained,
)
from backupfw.chunkstore.layers.stack import stack
from backupfw.chunkstore.options import option_values
from backupfw.testing import operator
from backupfw.testing.operator import Verdict
from backupfw.worker.reasons import user_reason
from tests.servers.ceph import Ceph
from tests.servers.seaweedfs import SeaweedFS
from tests.servers.tls import TlsProxy

pytestmark = pytest.mark.server

KEY = base64.b64encode(bytes(range(32))).decode()
OTHER_KEY = base64.b64encode(bytes(range(1, 33))).decode()


def open_store(server: Any, **options: object) -> S3Store:
    values = {
        "endpoint": server.endpoint,
        "access_key_id": server.access_key,
        "secret_access_key": server.secret_key,
        "region": "us-east-1",
        **options,
    }
    return S3Store("main", option_values(S3Store.options(), **values))


@pytest.fixture(params=["ceph", "seaweedfs"])
def server(request: pytest.FixtureRequest) -> Any:
    return request.getfixturevalue(f"{request.param}_server")


@pytest.fixture
def container(server: Any) -> str:
    return new_container(server)


def new_container(server: Any) -> str:
    name = f"backupfw-test-{secrets.token_hex(8)}"
    open_store(server).ensure_container(name)
    return name


def put(store: S3Store, container: str, key: str, data: bytes) -> None:
    store.put(container, key, Body.from_bytes(data))


# ---- what the servers compare ------------------------------------------------------------------------


class Tampering:
    """Flips a bit of every body on its way, after it was signed."""

    def __init__(self, store: S3Store) -> None:
        store.client.meta.events.register("before-send.s3.PutObject", self)

    def __call__(self, request: Any, **_: object) -> None:
        request.body.seek(0)
        data = bytearray()
        while piece := request.body.read():
            data += piece
        data[len(data) // 2] ^= 1
        request.body = io.BytesIO(bytes(data))


@pytest.mark.parametrize("signing", ["auto", "never"])
@pytest.mark.parametrize("mode", ["when_required", "when_supported"])
def test_damage_on_the_way_up_is_refused(server: Any, container: str, signing: str, mode: str) -> None:
    store = open_store(server, payload_signing=signing, checksum_mode=mode, etag_is_md5=False)
    tampering = Tampering(store)
    with pytest.raises(IntegrityError) as caught:
        put(store, container, "key", b"data" * 1000)
    assert caught.value.temporary
    assert list(store.list(container)) == []
    store.client.meta.events.unregister("before-send.s3.PutObject", tampering)
    put(store, container, "key", b"data" * 1000)
    assert store.get(container, "key") == b"data" * 1000


@pytest.mark.parametrize("mode", ["when_required", "when_supported"])
def test_checksum_modes(server: Any, container: str, mode: str) -> None:
    store = open_store(server, checksum_mode=mode)
    data = secrets.token_bytes(300_000)
    put(store, container, "key", data)
    assert store.get(container, "key") == data
    assert store.get(container, "key", 1000, 5000) == data[1000:6000]
    store.delete(container, ["key"])
    assert list(store.list(container)) == []


def test_the_old_signature(server: Any) -> None:
    store = open_store(server, signature="v2", sorted_listing=False)
    container = f"backupfw-test-{secrets.token_hex(8)}"
    store.ensure_container(container)
    put(store, container, "a key/\u00e9", b"data")
    assert store.get(container, "a key/\u00e9", 1, 2) == b"at"
    store.delete(container, ["a key/\u00e9"])
    assert list(store.list(container)) == []
    assert store.check().ok


def test_stored_damage_is_found(server: Any, container: str) -> None:
    """Somebody replaces the bytes and keeps the metadata."""
    store = open_store(server)
    put(store, container, "key", b"good bytes")
    fields = store.client.head_object(Bucket=container, Key="key")["Metadata"]
    store.client.put_object(Bucket=container, Key="key", Body=b"evil bytes", Metadata=fields)
    with pytest.raises(IntegrityError) as caught:
        store.get(container, "key")
    assert (caught.value.store, caught.value.container, caught.value.key) == ("main", container, "key")


# ---- check -------------------------------------------------------------------------------------------


def test_check_finds_out_what_the_server_is(ceph_server: Ceph, seaweedfs_server: SeaweedFS) -> None:
    def verdicts(server: Any, **options: object) -> dict[str, tuple[bool, str]]:
        return {item.name: (item.ok, item.detail) for item in open_store(server, **options).check().items}

    found = verdicts(ceph_server)
    assert all(ok for ok, _ in found.values()), found
    assert "conditional_put = yes" in found["conditional-put"][1]
    assert verdicts(ceph_server, conditional_put="yes")["conditional-put"] == (True, "as declared")
    ok, detail = verdicts(seaweedfs_server)["order"]
    assert not ok
    assert "sorted_listing = false" in detail
    found = verdicts(seaweedfs_server, sorted_listing=False)
    assert all(ok for ok, _ in found.values()), found


def test_check_in_a_bucket_that_is_there(server: Any, container: str) -> None:
    store = open_store(server, check_bucket=container, sorted_listing=False)
    put(store, container, "mine", b"x")
    before = list(store.list_containers())
    assert store.check().ok
    assert [info.key for info in store.list(container)] == ["mine"]
    assert list(store.list_containers()) == before
    missing = open_store(server, check_bucket="backupfw-there-is-none").check()
    assert [(item.name, item.ok) for item in missing.items] == [("container", False)]


# ---- permissions and quotas --------------------------------------------------------------------------


def test_wrong_credentials(server: Any, container: str) -> None:
    for changes in (
        {"secret_access_key": "wrong"},
        {"access_key_id": "AKIDNOBODY0000000001", "secret_access_key": "wrong"},
    ):
        with pytest.raises(PermissionDenied) as caught:
            open_store(server, **changes).get(container, "key")
        assert not caught.value.temporary


def test_a_reader_may_not_write(seaweedfs_server: SeaweedFS) -> None:
    container = new_container(seaweedfs_server)
    put(open_store(seaweedfs_server), container, "key", b"data")
    reader = open_store(
        seaweedfs_server,
        access_key_id=seaweedfs_server.reader_key,
        secret_access_key=seaweedfs_server.reader_secret,
        check_bucket=container,
    )
    assert reader.get(container, "key") == b"data"
    with pytest.raises(PermissionDenied, match="s3:PutObject"):
        put(reader, container, "other", b"data")
    report = reader.check()
    (write,) = [item for item in report.items if item.name == "write"]
    assert not write.ok
    assert "s3:PutObject" in write.detail


def test_a_bulk_delete_that_fails_in_part(ceph_server: Ceph) -> None:
    container = new_container(ceph_server)
    store = open_store(ceph_server)
    for key in ("free/1", "kept/1", "kept/2", "free/2"):
        put(store, container, key, b"x")
    denial = {
        "Effect": "Deny",
        "Principal": "*",
        "Action": ["s3:DeleteObject"],
        "Resource": [f"arn:aws:s3:::{container}/kept/*"],
    }
    policy = json.dumps({"Version": "2012-10-17", "Statement": [denial]})
    store.client.put_bucket_policy(Bucket=container, Policy=policy)
    for one_by_one in (False, True):
        other = open_store(ceph_server, bulk_delete_size=1 if one_by_one else 1000)
        with pytest.raises(DeleteFailed) as caught:
            other.delete(container, ["free/1", "kept/1", "missing", "kept/2", "free/2"])
        assert set(caught.value.errors) == {"kept/1", "kept/2"}
        assert {type(error) for error in caught.value.errors.values()} == {PermissionDenied}
        assert not caught.value.temporary
        assert [info.key for info in store.list(container)] == ["kept/1", "kept/2"]


@pytest.fixture(scope="module")
def other_user(ceph_server: Ceph) -> dict[str, str]:
    """Credentials of a second user of Ceph, with 20 kB and one bucket."""
    ceph_server.admin(
        "user", "create", "--uid=other", "--display-name=Other", "--max-buckets=1",
        "--access-key=AKIDOTHER00000000001", "--secret-key=other-secret",
    )  # fmt: skip
    ceph_server.admin("quota", "set", "--quota-scope=user", "--uid=other", "--max-size=20000")
    ceph_server.admin("quota", "enable", "--quota-scope=user", "--uid=other")
    return {"access_key_id": "AKIDOTHER00000000001", "secret_access_key": "other-secret"}


def test_quota_and_somebody_elses_bucket(ceph_server: Ceph, other_user: dict[str, str]) -> None:
    store = open_store(ceph_server, **other_user)
    mine = f"backupfw-other-{secrets.token_hex(8)}"
    store.ensure_container(mine)

    def fill() -> None:
        for number in range(10):
            put(store, mine, f"key{number}", b"x" * 9000)

    with pytest.raises(NoSpace) as caught:
        fill()
    assert not caught.value.temporary
    with pytest.raises(NoSpace):
        store.ensure_container(f"backupfw-other-{secrets.token_hex(8)}")
    theirs = new_container(ceph_server)
    for use in (
        lambda: store.ensure_container(theirs),
        lambda: put(store, theirs, "key", b"x"),
        lambda: store.get(theirs, "key"),
        lambda: list(store.list(theirs)),
    ):
        with pytest.raises(PermissionDenied):
            use()
    assert list(store.list_containers()) == [mine]


# ---- TLS and encryption ------------------------------------------------------------------------------


def over_tls(ceph_server: Ceph, ceph_tls: TlsProxy, **options: object) -> S3Store:
    return open_store(ceph_server, endpoint=ceph_tls.endpoint, **options)


@pytest.mark.filterwarnings("ignore:Unverified HTTPS request")
def test_tls(ceph_server: Ceph, ceph_tls: TlsProxy) -> None:
    container = new_container(ceph_server)
    data = secrets.token_bytes(3 << 20)
    for options in ({"ca_bundle": str(ceph_tls.ca)}, {"verify": False}):
        store = over_tls(ceph_server, ceph_tls, **options)
        put(store, container, "key", data)
        assert store.get(container, "key") == data
        assert store.get(container, "key", 1 << 20, 100) == data[1 << 20 : (1 << 20) + 100]
        store.delete(container, ["key"])
    with pytest.raises(ChunkStoreError, match="ca_bundle") as caught:
        over_tls(ceph_server, ceph_tls).get(container, "key")
    # To ask again is no use.
    assert not caught.value.temporary
    assert type(caught.value) is ChunkStoreError


@pytest.mark.parametrize("kind", ["missing", "folder", "no certificates"])
def test_a_ca_bundle_that_cannot_be_read(
    ceph_server: Ceph, ceph_tls: TlsProxy, tmp_path: Path, kind: str
) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "no certificates").write_text("not one")
    with pytest.raises(ChunkStoreError, match="ca_bundle cannot be read") as caught:
        over_tls(ceph_server, ceph_tls, ca_bundle=str(tmp_path / kind)).get("bucket", "key")
    assert not caught.value.temporary
    assert caught.value.for_user == "The service cannot read the certificates that it needs for the store."


def test_newer_checksums_over_tls_are_no_trailers(ceph_server: Ceph, ceph_tls: TlsProxy) -> None:
    container = new_container(ceph_server)
    store = over_tls(ceph_server, ceph_tls, ca_bundle=str(ceph_tls.ca), checksum_mode="when_supported")
    sent: list[dict[str, str]] = []
    store.client.meta.events.register(
        "before-send.s3.PutObject", lambda request, **_: sent.append(dict(request.headers))
    )
    put(store, container, "key", b"data" * 10_000)
    assert store.get(container, "key") == b"data" * 10_000
    (headers,) = ({name.lower(): value for name, value in each.items()} for each in sent)
    assert "x-amz-checksum-crc32" in headers
    assert "x-amz-trailer" not in headers
    assert headers.get("content-encoding") is None
    Tampering(store)
    with pytest.raises(IntegrityError):
        put(store, container, "key", b"data" * 10_000)


def test_keys_of_the_customer(ceph_server: Ceph, ceph_tls: TlsProxy) -> None:
    container = new_container(ceph_server)
    common = {"ca_bundle": str(ceph_tls.ca), "server_encryption": "sse-c", "check_bucket": container}
    store = over_tls(ceph_server, ceph_tls, customer_key=KEY, **common)
    data = secrets.token_bytes(200_000)
    put(store, container, "key", data)
    assert store.get(container, "key") == data
    assert store.get(container, "key", 100_000, 7) == data[100_000:100_007]
    for other in (
        over_tls(ceph_server, ceph_tls, customer_key=OTHER_KEY, **common),
        over_tls(ceph_server, ceph_tls, ca_bundle=str(ceph_tls.ca)),
    ):
        with pytest.raises(ChunkStoreError) as caught:
            other.get(container, "key")
        assert not caught.value.temporary
        assert KEY not in str(caught.value)
        assert OTHER_KEY not in str(caught.value)
    store.delete(container, ["key"])
    assert store.check().ok


def test_keys_of_the_servers(ceph_server: Ceph, seaweedfs_server: SeaweedFS) -> None:
    for server, options in (
        (ceph_server, {"server_encryption": "sse-kms", "kms_key_id": "testkey-1"}),
        (seaweedfs_server, {"server_encryption": "sse-s3"}),
    ):
        container = new_container(server)
        store = open_store(server, **options)
        put(store, container, "key", b"data" * 5000)
        kind = store.client.head_object(Bucket=container, Key="key")["ServerSideEncryption"]
        assert kind == {"sse-kms": "aws:kms", "sse-s3": "AES256"}[str(options["server_encryption"])]
        assert store.get(container, "key") == b"data" * 5000


# ---- clocks ------------------------------------------------------------------------------------------


def test_a_clock_that_is_wrong_is_reported(server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Signed by the SDK as on a host whose clock is two hours late; the server is real."""
    store = open_store(server)

    def late() -> datetime.datetime:
        return datetime.datetime.now(datetime.UTC) - datetime.timedelta(hours=2)

    monkeypatch.setattr(botocore.auth, "get_current_datetime", lambda **_: late().replace(tzinfo=None))
    with pytest.raises(PermissionDenied, match=r"clocks .* differ too much: the store's shows") as caught:
        store.get("bucket", "key")
    assert caught.value.temporary
    assert "needs s3:" not in str(caught.value)
    assert caught.value.for_user == "The clocks of the service and the store differ too much."


# ---- versions and locks ------------------------------------------------------------------------------


def versions(store: S3Store, container: str) -> int:
    answer = store.client.list_object_versions(Bucket=container)
    return len(answer.get("Versions", ())) + len(answer.get("DeleteMarkers", ()))


def versioned(server: Any, status: str = "Enabled") -> str:
    container = new_container(server)
    open_store(server).client.put_bucket_versioning(
        Bucket=container, VersioningConfiguration={"Status": status}
    )
    return container


def verdicts(server: Any, container: str, **options: object) -> dict[str, Verdict]:
    options.setdefault("sorted_listing", isinstance(server, Ceph))
    with closing(stack(open_store(server, **options))) as store:
        return {f"{one.guarantee} {one.title}": one for one in operator.check(store, container)}


def test_a_versioned_bucket_is_reported_and_left_clean(server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also without delete_versions the check's own objects go, versions and markers."""
    monkeypatch.setattr(operator, "LISTED", 30)
    container = versioned(server)
    found = verdicts(server, container, check_bucket=container)
    assert [one.line for one in found.values() if not one.ok] == []
    told = found["check versions"]
    assert told.warning
    assert "deletes free nothing" in told.detail
    assert "delete_versions = true" in told.detail
    assert "warning" in told.line
    assert versions(open_store(server), container) == 0
    found = verdicts(server, container, check_bucket=container, delete_versions=True)
    assert [one.line for one in found.values() if not one.ok or one.warning] == []
    assert versions(open_store(server), container) == 0
    for container, warns in ((new_container(server), False), (versioned(server, "Suspended"), True)):
        items = open_store(server).inspect(container)
        assert [item.warning for item in items if item.name == "versions"] == [warns]


@pytest.mark.parametrize("bulk", [1000, 2, 1])
def test_deletes_of_all_versions(server: Any, bulk: int) -> None:
    container = versioned(server)
    plain = open_store(server, sorted_listing=False)
    keys = ["a/one", "a/two & more", "a/\u00e9", "b"]
    for _ in range(3):
        for key in [*keys, "a/one/below", "a/onf", "c"]:
            put(plain, container, key, b"x" * 100)
    plain.delete(container, ["a/two & more"])
    store = open_store(server, sorted_listing=False, bulk_delete_size=bulk, delete_versions=True)
    store.delete(container, [*keys, "missing"])
    assert {info.key for info in store.list(container)} == {"a/one/below", "a/onf", "c"}
    assert versions(store, container) == 9
    store.delete(container, keys)
    store.delete(container, ["a/one/below", "a/onf", "c"])
    assert versions(store, container) == 0
    store.delete(f"backupfw-there-is-none-{secrets.token_hex(4)}", ["a"])


def test_deletes_by_version_where_there_are_none(server: Any, container: str) -> None:
    store = open_store(server, sorted_listing=False, delete_versions=True)
    for key in ("a", "a/b", "b"):
        put(store, container, key, b"x")
    store.delete(container, ["a", "b", "missing"])
    assert [info.key for info in store.list(container)] == ["a/b"]


def test_many_keys_by_version_cost_few_listings(server: Any) -> None:
    """Neighbours share listings; keys far apart are looked up each on its own, not by what lies between."""
    container = versioned(server)
    store = open_store(server, sorted_listing=isinstance(server, Ceph), delete_versions=True)
    keys = [f"run/{number:04}" for number in range(1200)]
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda key: put(store, container, key, b"x"), keys))
    asked: list[str] = []
    store.client.meta.events.register(
        "before-send.s3.ListObjectVersions", lambda request, **_: asked.append(request.url)
    )
    store.delete(container, [keys[0], keys[-1]])
    assert len(asked) <= 2 + 2
    asked.clear()
    store.delete(container, keys)
    assert len(asked) <= 4
    assert versions(store, container) == 0


def test_locked_versions_are_reported(server: Any) -> None:
    container = f"backupfw-test-{secrets.token_hex(8)}"
    store = open_store(server, sorted_listing=False, delete_versions=True)
    store.client.create_bucket(Bucket=container, ObjectLockEnabledForBucket=True)
    until = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=2)
    for key in ("free", "locked", "locked too"):
        put(store, container, key, b"x")
    for key in ("locked", "locked too"):
        store.client.put_object_retention(
            Bucket=container, Key=key, Retention={"Mode": "GOVERNANCE", "RetainUntilDate": until}
        )
    for bulk in (1000, 1):
        other = open_store(server, sorted_listing=False, delete_versions=True, bulk_delete_size=bulk)
        with pytest.raises(DeleteFailed, match=f"object lock keeps it until {until:%Y-%m-%d}") as caught:
            other.delete(container, ["free", "locked", "locked too"])
        assert set(caught.value.errors) == {"locked", "locked too"}
        assert {type(error) for error in caught.value.errors.values()} == {Retained}
        # Nobody tries again at once.
        assert not caught.value.temporary
    assert [info.key for info in store.list(container)] == ["locked", "locked too"]
    assert "lock or retention ends" in user_reason(caught.value, "req-1")
    store.client.put_object_lock_configuration(
        Bucket=container,
        ObjectLockConfiguration={
            "ObjectLockEnabled": "Enabled",
            "Rule": {"DefaultRetention": {"Mode": "GOVERNANCE", "Days": 3}},
        },
    )
    told = {item.name: item for item in store.inspect(container)}["object-lock"]
    assert told.warning
    assert "locked for 3 days (GOVERNANCE)" in told.detail
    for one in store.client.list_object_versions(Bucket=container)["Versions"]:
        store.client.delete_object(
            Bucket=container, Key=one["Key"], VersionId=one["VersionId"], BypassGovernanceRetention=True
        )
    store.client.delete_bucket(Bucket=container)


def locking(server: Any, **options: object) -> S3Store:
    """A store as [store:NAME] with lock_days makes it."""
    values = {
        "endpoint": server.endpoint,
        "access_key_id": server.access_key,
        "secret_access_key": server.secret_key,
        "region": "us-east-1",
        "sorted_listing": isinstance(server, Ceph),
        "delete_versions": True,
        **options,
    }
    made = option_values(S3Store.options(), **values)
    made.lock_days = 30
    return S3Store("main", made)


def in_seconds(seconds: float) -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=seconds)


@pytest.mark.check
def test_nobody_removes_what_is_locked(server: Any) -> None:
    """Whoever has the service's credentials tries all that these servers know."""
    store = locking(server)
    container = f"backupfw-test-{secrets.token_hex(8)}"
    store.ensure_container(container)
    store.put(container, "key", Body.from_bytes(b"mine").locked(in_seconds(3600)))
    client = store.client
    (version,) = client.list_object_versions(Bucket=container)["Versions"]
    this = {"Bucket": container, "Key": "key", "VersionId": version["VersionId"]}
    earlier = {"Mode": "COMPLIANCE", "RetainUntilDate": in_seconds(1)}
    for attack in (
        lambda: client.delete_object(**this),
        lambda: client.delete_object(**this, BypassGovernanceRetention=True),
        lambda: client.put_object_retention(**this, Retention=earlier),
        lambda: client.put_object_retention(**this, Retention=earlier, BypassGovernanceRetention=True),
        lambda: client.put_object_retention(**this, Retention={**earlier, "Mode": "GOVERNANCE"}),
        lambda: client.put_bucket_versioning(
            Bucket=container, VersioningConfiguration={"Status": "Suspended"}
        ),
        lambda: client.delete_bucket(Bucket=container),
    ):
        with pytest.raises(ClientError):
            attack()
    for bypass in (False, True):
        answer = client.delete_objects(
            Bucket=container,
            Delete={"Objects": [{"Key": "key", "VersionId": version["VersionId"]}]},
            BypassGovernanceRetention=bypass,
        )
        assert [one["Code"] for one in answer["Errors"]] == ["AccessDenied"]
    with pytest.raises(DeleteFailed):
        store.delete(container, ["key"])
    assert store.get(container, "key") == b"mine"
    assert client.get_object(**this)["Body"].read() == b"mine"
    with pytest.raises(Retained):
        store.erase(container, "")


@pytest.mark.check
def test_a_lock_ends(server: Any) -> None:
    store = locking(server)
    container = f"backupfw-test-{secrets.token_hex(8)}"
    store.ensure_container(container)
    until = in_seconds(3)
    store.put(container, "key", Body.from_bytes(b"mine").locked(until))
    time.sleep(max(0.0, (until - in_seconds(-2)).total_seconds()))
    store.delete(container, ["key"])
    assert versions(store, container) == 0
    store.client.delete_bucket(Bucket=container)


@pytest.mark.check
def test_what_somebody_hid_or_overwrote_is_brought_back(server: Any) -> None:
    """Also where he has locked what he put on top."""
    store = locking(server)
    container = f"backupfw-test-{secrets.token_hex(8)}"
    store.ensure_container(container)
    end = in_seconds(3600)
    kept = ["a/hidden", "a/over", "a/locked over", "a/twice", "a/same", "b/not wanted"]
    for key in kept:
        store.put(container, key, Body.from_bytes(key.encode()).locked(end))
    store.put(container, "a/deleted before", Body.from_bytes(b"x"))
    store.client.delete_object(Bucket=container, Key="a/deleted before")
    time.sleep(1.5)
    before = in_seconds(0)
    time.sleep(1.5)
    store.put(container, "a/since", Body.from_bytes(b"x"))
    for key in ("a/hidden", "a/twice", "b/not wanted"):
        store.client.delete_object(Bucket=container, Key=key)
    for key in ("a/over", "a/twice"):
        put(store, container, key, b"theirs")
    store.client.delete_object(Bucket=container, Key="a/twice")
    store.put(container, "a/locked over", Body.from_bytes(b"theirs").locked(end))

    def wanted(key: str) -> bool:
        return key.startswith("a/")

    changed = {"a/hidden", "a/over", "a/locked over", "a/twice"}
    assert set(store.bring_back(container, before, wanted, dry_run=True)) == changed
    assert store.get(container, "a/over") == b"theirs"
    assert set(store.bring_back(container, before, wanted)) == changed
    for key in kept[:-1]:
        assert store.get(container, key) == key.encode()
        told = store.locked_until(container, key)
        assert told is not None
        assert told >= end - datetime.timedelta(seconds=1)
    assert {info.key for info in store.list(container)} == {*kept[:-1], "a/since"}
    assert set(store.bring_back(container, before, wanted)) <= {"a/locked over"}


@pytest.mark.check
def test_the_check_proves_locks(server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operator, "LISTED", 30)
    monkeypatch.setattr(operator, "LOCKED", 3.0)

    def verdicts_of(store: S3Store, container: str) -> dict[str, Verdict]:
        with closing(stack(store)) as stacked:
            return {one.title: one for one in operator.check(stacked, container, locks=True)}

    container = f"backupfw-test-{secrets.token_hex(8)}"
    found = verdicts_of(locking(server), container)
    assert [one.line for one in found.values() if not one.ok or one.warning] == []
    assert "cannot be deleted with these credentials" in found["locked objects stay"].detail
    assert "COMPLIANCE" in found["object-lock"].detail
    assert versions(locking(server), container) == 0
    # A bucket that was made without locks, e.g. before the option was set.
    found = verdicts_of(locking(server, delete_versions=False), new_container(server))
    assert not found["locked objects stay"].ok
    assert "made with object lock" in found["locked objects stay"].detail
    assert found["object-lock"].warning


def test_a_lock_keeps_the_mode_that_it_has(server: Any) -> None:
    """The option was changed: what is locked in the other mode is renewed in that one."""
    container = f"backupfw-test-{secrets.token_hex(8)}"
    weak = locking(server, lock_mode="governance")
    weak.ensure_container(container)
    weak.put(container, "key", Body.from_bytes(b"x").locked(in_seconds(60)))
    until = in_seconds(120)
    store = locking(server)
    store.lock(container, "key", until)
    told = store.locked_until(container, "key")
    assert told is not None
    assert told >= until
    assert store.client.head_object(Bucket=container, Key="key")["ObjectLockMode"] == "GOVERNANCE"
    (one,) = store.client.list_object_versions(Bucket=container)["Versions"]
    store.client.delete_object(
        Bucket=container, Key="key", VersionId=one["VersionId"], BypassGovernanceRetention=True
    )


def test_a_bucket_without_locks_says_so(server: Any, container: str) -> None:
    store = locking(server)
    put(store, container, "key", b"x")
    assert store.locked_until(container, "key") is None
    for use in (
        lambda: store.lock(container, "key", in_seconds(60)),
        lambda: store.put(container, "other", Body.from_bytes(b"x").locked(in_seconds(60))),
    ):
        with pytest.raises(NotSupported, match="made with object lock") as caught:
            use()
        assert not caught.value.temporary


# ---- many objects ------------------------------------------------------------------------------------


def test_more_than_a_page(server: Any, container: str) -> None:
    """Listings and bulk deletes beyond the protocol's thousand."""
    store = open_store(server, sorted_listing=False)
    keys = [f"a & b/<{number}>/\u00e9+%20" for number in range(1100)]
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda key: put(store, container, key, b"x"), keys))
    assert {info.key for info in store.list(container, "a & b/")} == set(keys)
    requests: list[str] = []
    for operation in ("DeleteObjects", "DeleteObject"):
        store.client.meta.events.register(
            f"before-send.s3.{operation}", lambda request, **_: requests.append(request.method)
        )
    store.delete(container, keys)
    assert requests == ["POST"] * 2
    assert list(store.list(container)) == []

"""What the GCS driver promises beyond the conformance suite: faults, tokens, permissions, requests."""

from __future__ import annotations

import json
import secrets
import socket
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import requests
from backupfw_gcs.store import GcsStore

from backupfw.chunkstore.base import Body, ChunkStore
from backupfw.chunkstore.errors import (
    AlreadyExists,
    ChunkStoreError,
    DeleteFailed,
    IntegrityError,
    NotFound,
    PermissionDenied,
    Retained,
    Unavailable,
)
from backupfw.chunkstore.layers.options import layer_options
from backupfw.chunkstore.layers.stack import stack
from backupfw.chunkstore.options import option_values
from backupfw.testing.chunkstore import pattern
from tests.servers.gcs import GcsServer, fake_gcs, fake_gcs_missing
from tests.servers.gcs_gate import Account, Answer, Gate, google_error
from tests.servers.tls import tls_missing, tls_proxy

pytestmark = pytest.mark.server

X = Body.from_bytes(b"x")


def make(endpoint: str, **values: object) -> GcsStore:
    return GcsStore("main", option_values(GcsStore.options(), endpoint=endpoint, **values))


def anonymous(endpoint: str, **values: object) -> GcsStore:
    return make(endpoint, **{"anonymous": True, "project": "test", **values})


def container_name() -> str:
    return f"test-{secrets.token_hex(8)}"


@pytest.fixture
def open_as(gate: Gate, tmp_path: Path) -> Iterator[Callable[..., GcsStore]]:
    """Open stores through the gate; they are closed in the end."""
    stores = []

    def open_store(account: Account, **values: object) -> GcsStore:
        path = account.write(tmp_path / f"{secrets.token_hex(4)}.json", gate)
        stores.append(make(gate.endpoint, service_account_file=str(path), **values))
        return stores[-1]

    yield open_store
    for store in stores:
        store.close()


@pytest.fixture
def store(open_as: Callable[..., GcsStore], account: Account) -> GcsStore:
    return open_as(account)


@pytest.fixture
def container(store: GcsStore) -> str:
    name = container_name()
    store.ensure_container(name)
    return name


def layered(store: ChunkStore) -> ChunkStore:
    return stack(store, option_values(layer_options(), retry_base_pause=0.001, retry_tries=4))


class TestBytesOnTheWay:
    @pytest.mark.parametrize("size", [1000, 3_000_000])
    def test_changed_on_the_way_up(self, gate: Gate, store: GcsStore, container: str, size: int) -> None:
        # This server takes any bytes: the driver compares what it says it stored, and takes it away again.
        gate.fail("POST /upload", "flip up")
        with pytest.raises(IntegrityError) as caught:
            store.put(container, "key", Body.from_bytes(pattern(size)))
        assert caught.value.temporary
        assert (caught.value.container, caught.value.key) == (container, "key")
        assert list(store.list(container)) == []

    def test_changed_on_the_way_up_refused(
        self, emulator_gate: Gate, account: Account, tmp_path: Path
    ) -> None:
        # This one compares, as the real service does: the old object stays.
        path = account.write(tmp_path / "account.json", emulator_gate)
        store = make(emulator_gate.endpoint, service_account_file=str(path))
        name = container_name()
        store.ensure_container(name)
        store.put(name, "key", X)
        emulator_gate.fail("POST /upload", "flip up")
        with pytest.raises(IntegrityError, match="400") as caught:
            store.put(name, "key", Body.from_bytes(pattern(100_000)))
        assert caught.value.temporary
        assert store.get(name, "key") == b"x"
        emulator_gate.fail("POST /upload", "flip up")
        layered(store).put(name, "key", Body.from_bytes(pattern(100_000)))
        assert store.get(name, "key") == pattern(100_000)
        store.close()

    def test_changed_on_the_way_down(self, gate: Gate, store: GcsStore, container: str) -> None:
        store.put(container, "key", Body.from_bytes(pattern(100_000)))
        gate.fail("GET /download", "flip down")
        with pytest.raises(IntegrityError) as caught:
            store.get(container, "key")
        assert caught.value.temporary
        assert caught.value.key == "key"
        gate.fail("GET /download", "flip down", "flip down")
        assert layered(store).get(container, "key") == pattern(100_000)

    @pytest.mark.parametrize("whole", [True, False])
    def test_cut_on_the_way_down(self, gate: Gate, store: GcsStore, container: str, whole: bool) -> None:
        store.put(container, "key", Body.from_bytes(pattern(100_000)))
        where = () if whole else (1000, 50_000)
        gate.fail("GET /download", "cut")
        with pytest.raises((Unavailable, IntegrityError)) as caught:
            store.get(container, "key", *where)
        assert caught.value.temporary
        gate.fail("GET /download", "cut")
        expected = pattern(100_000) if whole else pattern(100_000)[1000:51_000]
        assert layered(store).get(container, "key", *where) == expected

    def test_no_checksum_stated(self, gate: Gate, store: GcsStore, container: str) -> None:
        gate.fail("GET /download", Answer(200, {"x": 1}))
        with pytest.raises(IntegrityError, match="CRC32C"):
            store.get(container, "key")

    def test_a_range_that_is_ignored(self, gate: Gate, store: GcsStore, container: str) -> None:
        gate.fail("GET /download", Answer(200, {"x": 1}))
        with pytest.raises(ChunkStoreError, match="range"):
            store.get(container, "key", 1, 2)

    def test_a_body_that_changes_between_looking_and_sending(self, store: GcsStore, container: str) -> None:
        class Shrinking(Body):
            reads = 0

            def pieces(self) -> Iterator[memoryview]:
                self.reads += 1
                yield memoryview(b"x" * (10 if self.reads == 1 else 5))

        sound = Body.from_bytes(b"x" * 10)
        with pytest.raises(ChunkStoreError, match="changed") as caught:
            store.put(container, "key", Shrinking(b"", 10, sound.checksum))
        assert not caught.value.temporary
        assert list(store.list(container)) == []
        # The connection that was left in the middle is not used again.
        store.put(container, "key", X)
        assert store.get(container, "key") == b"x"

    def test_a_lost_answer_of_a_conditional_put(self, gate: Gate, store: GcsStore, container: str) -> None:
        gate.fail("POST /upload", "lose answer")
        layered(store).put(container, "key", X, if_absent=True)
        assert store.get(container, "key") == b"x"
        with pytest.raises(AlreadyExists):
            store.put(container, "key", Body.from_bytes(b"y"), if_absent=True)

    def test_one_winner(self, store: GcsStore, container: str) -> None:
        def put(number: int) -> bool:
            try:
                store.put(container, "key", Body.from_bytes(b"%d" % number), if_absent=True)
            except AlreadyExists:
                return False
            return True

        with ThreadPoolExecutor(8) as pool:
            won = list(pool.map(put, range(8)))
        assert won.count(True) == 1
        assert store.get(container, "key") == b"%d" % won.index(True)


class TestTokens:
    def test_a_revoked_token_is_renewed(
        self, gate: Gate, store: GcsStore, container: str, tmp_path: Path
    ) -> None:
        store.put(container, "key", X)
        given = len(gate.tokens)
        data = pattern(3_000_000)
        (tmp_path / "body").write_bytes(data)
        uses: list[Callable[[], object]] = [
            lambda: store.put(container, "large", Body.from_bytes(data)),
            lambda: store.get(container, "large") == data or pytest.fail("other bytes"),
            lambda: store.get(container, "large", 5, 5),
            lambda: list(store.list(container)),
            lambda: store.delete(container, ["key"]),
            lambda: store.ensure_container(container),
            lambda: list(store.list_containers()),
        ]
        for use in uses:
            gate.revoke()
            use()
        with open(tmp_path / "body", "rb") as file:
            gate.revoke()
            store.put(container, "file", Body.from_file(file))
        assert store.get(container, "file") == data
        assert len(gate.tokens) == given + len(uses) + 1
        assert gate.refused[401] == len(uses) + 1

    def test_many_threads_share_a_token(self, gate: Gate, store: GcsStore, container: str) -> None:
        with ThreadPoolExecutor(16) as pool:
            list(pool.map(lambda n: store.put(container, f"{n}", X), range(200)))
        assert len(gate.tokens) == 1

    def test_token_server_down(self, gate: Gate, open_as: Callable[..., GcsStore], account: Account) -> None:
        store = open_as(account)
        gate.fail("POST /token", "drop", "drop", "drop", "drop")
        with pytest.raises(Unavailable) as caught:
            store.get("some-container", "key")
        assert caught.value.temporary

    def test_a_file_that_is_no_key(self, gate: Gate, tmp_path: Path) -> None:
        path = tmp_path / "wrong.json"
        for content in ("", "{}", "[]", '{"type": "service_account", "private_key": "secret-text"}'):
            path.write_text(content)
            store = make(gate.endpoint, service_account_file=str(path))
            with pytest.raises(PermissionDenied) as caught:
                store.get("some-container", "key")
            assert "secret-text" not in str(caught.value)
            assert caught.value.__cause__ is None
        path.unlink()
        store = make(gate.endpoint, service_account_file=str(path))
        with pytest.raises(PermissionDenied, match="cannot be read"):
            store.get("some-container", "key")
        report = store.check()
        assert [(item.name, item.ok) for item in report.items] == [("credentials", False)]

    def test_ambient_credentials(
        self, gate: Gate, account: Account, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = account.write(tmp_path / "ambient.json", gate)
        monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(path))
        store = make(gate.endpoint)
        name = container_name()
        store.ensure_container(name)
        assert name in list(store.list_containers())
        assert len(gate.tokens) == 1
        store.close()


class TestPermissions:
    def test_what_is_missing_is_named(
        self, store: GcsStore, container: str, open_as: Callable[..., GcsStore], reader: Account
    ) -> None:
        store.put(container, "key", X)
        weak = open_as(reader)
        assert weak.get(container, "key") == b"x"
        for use, permission in (
            (lambda: weak.put(container, "new", X), "storage.objects.create"),
            (lambda: weak.ensure_container(container_name()), "storage.buckets.create"),
        ):
            with pytest.raises(PermissionDenied, match=permission) as caught:
                use()
            assert not caught.value.temporary
        for bulk in (100, 1):
            with pytest.raises((PermissionDenied, DeleteFailed), match=r"storage\.objects\.delete"):
                open_as(reader, bulk_delete_size=bulk).delete(container, ["key"])
        assert store.get(container, "key") == b"x"

    def test_check_names_what_is_missing(
        self, container: str, open_as: Callable[..., GcsStore], reader: Account
    ) -> None:
        items = {item.name: item for item in open_as(reader).check().items}
        assert items["credentials"].ok
        assert not items["container"].ok
        assert "storage.buckets.create" in items["container"].detail
        assert "check_bucket" in items["container"].detail
        assert items["containers"].ok
        items = {item.name: item for item in open_as(reader, check_bucket=container).check().items}
        assert items["container"].ok
        assert not items["write"].ok
        assert "storage.objects.create" in items["write"].detail

    def test_check_in_a_container(
        self, open_as: Callable[..., GcsStore], account: Account, container: str
    ) -> None:
        store = open_as(account, check_bucket=container)
        before = list(store.list_containers())
        assert store.check().ok
        assert list(store.list_containers()) == before
        assert list(store.list(container)) == []

    def test_a_bucket_of_somebody_else(self, gate: Gate, store: GcsStore) -> None:
        name = container_name()
        refused = Answer(403, google_error(403, "no access", "forbidden"))
        gate.fail(f"GET /storage/v1/b/{name}/o", refused)
        with pytest.raises(PermissionDenied, match=r"storage\.objects\.list"):
            store.ensure_container(name)
        # Hidden from us until we wanted to make it.
        gate.fail(
            f"GET /storage/v1/b/{name}/o", Answer(404, google_error(404, "Not Found", "notFound")), refused
        )
        gate.fail("POST /storage/v1/b", Answer(409, google_error(409, "taken", "conflict")))
        with pytest.raises(PermissionDenied, match="another customer"):
            store.ensure_container(name)

    def test_a_bucket_made_by_somebody_meanwhile(self, gate: Gate, store: GcsStore, container: str) -> None:
        gate.fail(f"GET /storage/v1/b/{container}/o", Answer(404, google_error(404, "Not Found")))
        store.ensure_container(container)

    def test_no_project(self, fake: GcsServer) -> None:
        store = make(fake.endpoint, anonymous=True)
        with pytest.raises(ChunkStoreError, match="option project"):
            store.ensure_container(container_name())
        with pytest.raises(ChunkStoreError, match="option project"):
            list(store.list_containers())
        store.close()


class TestRequests:
    def test_one_request_each(self, gate: Gate, store: GcsStore, container: str) -> None:
        gate.seen.clear()
        for size in (0, 100, 9 << 20):
            store.put(container, f"{size}", Body.from_bytes(pattern(size)))
        assert len(gate.seen) == 3
        store.get(container, "100")
        store.get(container, "100", 10, 10)
        assert len(gate.seen) == 5
        list(store.list(container))
        assert len(gate.seen) == 6
        store.delete(container, ["0", "100", f"{9 << 20}", "missing"])
        assert len(gate.seen) == 7

    def test_batches(self, gate: Gate, store: GcsStore, container: str) -> None:
        store.put(container, "250", X)
        gate.seen.clear()
        store.delete(container, [f"{number}" for number in range(301)])
        assert gate.seen == [("POST", "/batch/storage/v1")] * 4
        assert list(store.list(container)) == []

    @pytest.mark.parametrize("status", [429, 500, 502, 503, 504, 408])
    def test_nothing_is_tried_twice(self, gate: Gate, store: GcsStore, container: str, status: int) -> None:
        store.put(container, "key", X)
        uses: list[tuple[str, Callable[[], object]]] = [
            ("POST /upload", lambda: store.put(container, "new", X)),
            ("GET /download", lambda: store.get(container, "key")),
            ("GET /download", lambda: store.get(container, "key", 0, 1)),
            (f"GET /storage/v1/b/{container}/o", lambda: list(store.list(container))),
            ("POST /batch", lambda: store.delete(container, ["key"])),
            (f"GET /storage/v1/b/{container}/o", lambda: store.ensure_container(container)),
            ("GET /storage/v1/b?", lambda: list(store.list_containers())),
        ]
        for part, use in uses:
            gate.fail(part, Answer(status, google_error(status, "later"), {"Retry-After": "7"}))
            with pytest.raises(Unavailable) as caught:
                use()
            assert caught.value.temporary
            assert caught.value.retry_after == 7
            use()  # the fault was used up by exactly one request
            store.put(container, "key", X)

    @pytest.mark.parametrize("fault", ["drop", "lose answer", "cut"])
    def test_broken_connections(self, gate: Gate, store: GcsStore, container: str, fault: Any) -> None:
        store.put(container, "key", X)
        for part, use in (
            ("POST /upload", lambda: store.put(container, "key", X)),
            ("GET /download", lambda: store.get(container, "key")),
            (f"GET /storage/v1/b/{container}/o", lambda: list(store.list(container))),
            ("POST /batch", lambda: store.delete(container, ["other"])),
        ):
            # One byte cannot be cut in half: nothing of it comes.
            gate.fail(part, fault)
            with pytest.raises((Unavailable, IntegrityError)) as caught:
                use()
            assert caught.value.temporary, part

    def test_a_server_that_hangs(self, fake: GcsServer) -> None:
        with socket.create_server(("127.0.0.1", 0)) as silent:
            store = anonymous(f"http://127.0.0.1:{silent.getsockname()[1]}", read_timeout=0.3)
            start = time.monotonic()
            with pytest.raises(Unavailable, match="in time"):
                store.get("some-container", "key")
            assert time.monotonic() - start < 20
            store.close()

    def test_some_keys_of_a_batch_fail(self, gate: Gate, store: GcsStore, container: str) -> None:
        parts = (
            "--B\r\nContent-Type: application/http\r\nContent-ID: <response-1>\r\n\r\n"
            "HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nRetry-After: 3\r\n\r\n"
            f"{json.dumps(google_error(503, 'later'))}\r\n"
            "--B\r\nContent-Type: application/http\r\nContent-ID: <response-0>\r\n\r\n"
            "HTTP/1.1 204 No Content\r\n\r\n\r\n"
            "--B\r\nContent-Type: application/http\r\nContent-ID: <response-3>\r\n\r\n"
            "HTTP/1.1 403 Forbidden\r\nContent-Type: application/json\r\n\r\n"
            f"{json.dumps(google_error(403, 'Retained until later', 'retentionPolicyNotMet'))}\r\n"
            "--B\r\nContent-Type: application/http\r\nContent-ID: <response-4>\r\n\r\n"
            "HTTP/1.1 404 Not Found\r\n\r\n\r\n--B--\r\n"
        )
        gate.fail("POST /batch", Answer(200, parts, {"Content-Type": "multipart/mixed; boundary=B"}))
        with pytest.raises(DeleteFailed) as caught:
            store.delete(container, ["a", "b", "c", "d", "e"])
        errors = caught.value.errors
        assert {key: type(error) for key, error in errors.items()} == {
            "b": Unavailable,
            "c": Unavailable,  # not mentioned at all
            "d": Retained,
        }
        assert errors["b"].retry_after == 3
        assert "Retained" in errors["d"].reason
        assert {key: (error.container, error.key) for key, error in errors.items()} == {
            key: (container, key) for key in "bcd"
        }
        assert not caught.value.temporary

    def test_an_answer_that_is_no_batch(self, gate: Gate, store: GcsStore, container: str) -> None:
        store.put(container, "key", X)
        gate.fail("POST /batch", Answer(200, {}))
        with pytest.raises(Unavailable, match="understood"):
            store.delete(container, ["key"])
        assert store.get(container, "key") == b"x"

    def test_single_deletes(self, gate: Gate, open_as: Callable[..., GcsStore], account: Account) -> None:
        store = open_as(account, bulk_delete_size=1)
        name = container_name()
        store.ensure_container(name)
        for key in ("a", "b", "c"):
            store.put(name, key, X)
        assert store.capabilities.bulk_delete == 1
        gate.fail(f"DELETE /storage/v1/b/{name}/o/b", Answer(500, google_error(500, "no")))
        with pytest.raises(DeleteFailed) as caught:
            store.delete(name, ["a", "b", "missing", "c"])
        assert set(caught.value.errors) == {"b"}
        assert caught.value.temporary
        assert [info.key for info in store.list(name)] == ["b"]

    def test_a_bucket_is_made_as_configured(
        self, fake: GcsServer, gate: Gate, open_as: Callable[..., GcsStore], account: Account
    ) -> None:
        store = open_as(account, storage_class="nearline", location="EUROPE-WEST3")
        name = container_name()
        store.ensure_container(name)
        made = json.loads(gate.last_json)
        assert made["location"] == "EUROPE-WEST3"
        assert made["storageClass"] == "NEARLINE"
        assert made["iamConfiguration"]["uniformBucketLevelAccess"]["enabled"]
        assert made["iamConfiguration"]["publicAccessPrevention"] == "enforced"
        store.put(name, "key", X)
        with urllib.request.urlopen(f"{fake.endpoint}/storage/v1/b/{name}/o/key") as answer:
            assert json.loads(answer.read())["storageClass"] == "NEARLINE"


@pytest.mark.parametrize(
    "page",
    [
        {"items": [{"name": "a"}]},
        {"items": [{"size": "1"}]},
        {"items": [{"name": "a", "size": "many"}]},
        {"items": ["a"]},
        {"items": {"name": "a"}},
        "[]",
        "<html>",
    ],
    ids=str,
)
def test_a_page_that_is_none_is_an_error_and_no_short_listing(
    gate: Gate, store: GcsStore, container: str, page: Any
) -> None:
    gate.fail(f"GET /storage/v1/b/{container}/o", Answer(200, page))
    with pytest.raises(Unavailable, match="cannot be understood"):
        list(store.list(container))


def test_pages_go_on_until_none_follows(gate: Gate, store: GcsStore, container: str) -> None:
    part = f"GET /storage/v1/b/{container}/o"
    first = {"items": [{"name": "a", "size": "1"}], "nextPageToken": "x+/="}
    gate.fail(f"{part}?prefix", Answer(200, first))
    gate.fail("pageToken=x%2B%2F%3D", Answer(200, {"nextPageToken": "y"}))
    gate.fail("pageToken=y", Answer(200, {"items": [{"name": "b", "size": "2"}]}))
    assert [(info.key, info.size) for info in store.list(container, "p")] == [("a", 1), ("b", 2)]


def test_a_page_that_names_itself_as_the_next_is_an_error(
    gate: Gate, store: GcsStore, container: str
) -> None:
    page = Answer(200, {"items": [{"name": "a", "size": "1"}], "nextPageToken": "x"})
    gate.fail(f"GET /storage/v1/b/{container}/o", page, page)
    with pytest.raises(Unavailable):
        list(store.list(container))


@pytest.mark.skipif(fake_gcs_missing() is not None, reason=str(fake_gcs_missing()))
@pytest.mark.parametrize("count", [4000, pytest.param(12_000, marks=pytest.mark.soak)])
def test_a_long_listing(tmp_path: Path, count: int) -> None:
    """The server reads the objects from files at its start, for each of them slower; puts take longer."""
    folder = tmp_path / "seed" / "crowd-container"
    folder.mkdir(parents=True)
    keys = sorted(f"{number % 13:02}-{number:05}" for number in range(count))
    for key in keys:
        (folder / key).write_bytes(b"xx")
    (tmp_path / "server").mkdir()
    with fake_gcs(tmp_path / "server", seed=tmp_path / "seed") as server:
        store = anonymous(server.endpoint)
        found = list(store.list("crowd-container"))
        assert len(found) == len(keys)
        assert [info.key for info in found] == keys
        assert {info.size for info in found} == {2}
        middle = keys[count // 2]
        assert [info.key for info in store.list("crowd-container", "", middle)] == keys[count // 2 + 1 :]
        assert [info.key for info in store.list("crowd-container", "07-")] == [
            key for key in keys if key.startswith("07-")
        ]
        store.close()


@pytest.mark.skipif(tls_missing() is not None, reason=str(tls_missing()))
class TestTls:
    @pytest.fixture(scope="class")
    @classmethod
    def tls(cls, tmp_path_factory: pytest.TempPathFactory, fake: GcsServer) -> Iterator[Any]:
        with tls_proxy(tmp_path_factory.mktemp("tls"), fake.port) as proxy:
            yield proxy

    def test_a_trusted_authority(self, tls: Any) -> None:
        store = anonymous(tls.endpoint, ca_bundle=str(tls.ca))
        name = container_name()
        store.ensure_container(name)
        data = pattern(5_000_000)
        store.put(name, "key", Body.from_bytes(data))
        assert store.get(name, "key") == data
        assert store.get(name, "key", 1_000_000, 10) == data[1_000_000:1_000_010]
        store.delete(name, ["key"])
        assert store.check().ok
        store.close()

    def test_an_unknown_authority(self, tls: Any) -> None:
        store = anonymous(tls.endpoint)
        with pytest.raises(ChunkStoreError, match="certificate") as caught:
            store.get("some-container", "key")
        assert not caught.value.temporary
        store.close()

    @pytest.mark.parametrize("kind", ["missing", "no certificates"])
    def test_a_ca_bundle_that_cannot_be_read(self, tls: Any, tmp_path: Path, kind: str) -> None:
        (tmp_path / "no certificates").write_text("not one")
        store = anonymous(tls.endpoint, ca_bundle=str(tmp_path / kind))
        for use in (lambda: store.get("bucket", "key"), lambda: list(store.list("bucket"))):
            with pytest.raises(ChunkStoreError, match="ca_bundle cannot be read") as caught:
                use()
            assert not caught.value.temporary
            assert "cannot read the certificates" in caught.value.for_user
        store.close()

    def test_the_environments_authority(self, tls: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tls.ca))
        store = anonymous(tls.endpoint)
        with pytest.raises(NotFound):
            store.get(container_name(), "key")
        store.close()


class TestProxy:
    def test_requests_go_through_it(
        self, fake: GcsServer, gate: Gate, account: Account, tmp_path: Path
    ) -> None:
        # A plain HTTP proxy is asked for the absolute address; the gate's port stands in for one.
        path = account.write(tmp_path / "account.json", gate)
        store = make(
            "http://storage.invalid", proxy=gate.endpoint, service_account_file=str(path), connect_timeout=5
        )
        gate.fail("http://storage.invalid/", Answer(404, google_error(404, "Not Found")))
        with pytest.raises(NotFound):
            store.get("some-container", "key")
        store.close()

    def test_its_password_is_not_shown(self, fake: GcsServer) -> None:
        store = anonymous("http://storage.invalid", proxy="http://user:hidden-word@127.0.0.1:1")
        with pytest.raises(Unavailable) as caught:
            store.get("some-container", "key")
        assert "hidden-word" not in str(caught.value)
        assert "hidden-word" not in str(store.check())
        store.close()


class TestSettings:
    """What buckets do to deletes.  fake-gcs-server has versioning only; the rest the gate answers."""

    def test_a_versioned_bucket(self, fake: GcsServer) -> None:
        store = anonymous(fake.endpoint)
        plain, versioned = container_name(), container_name()
        store.ensure_container(plain)
        made = requests.post(
            f"{fake.endpoint}/storage/v1/b?project=test",
            json={"name": versioned, "versioning": {"enabled": True}},
            timeout=30,
        )
        assert made.ok
        told = {item.name: item for item in store.inspect(versioned)}
        assert told["versions"].warning
        assert "deletes free nothing" in told["versions"].detail
        assert not any(item.warning for item in store.inspect(plain))
        store.close()

    @pytest.mark.parametrize(
        ("settings", "name", "text"),
        [
            ({"softDeletePolicy": {"retentionDurationSeconds": "604800"}}, "soft-delete", "for 7 days more"),
            ({"retentionPolicy": {"retentionPeriod": "86400"}}, "retention", "for 1 days after"),
            ({"defaultEventBasedHold": True}, "retention", "until somebody releases"),
        ],
    )
    def test_settings_that_keep_objects(
        self, gate: Gate, store: GcsStore, settings: dict[str, object], name: str, text: str
    ) -> None:
        gate.fail("GET /storage/v1/b/", Answer(200, dict(settings)))
        (told,) = [item for item in store.inspect("bucket") if item.warning]
        assert told.name == name
        assert text in told.detail

    def test_settings_that_may_not_be_asked_for(self, gate: Gate, store: GcsStore) -> None:
        gate.fail("GET /storage/v1/b/", Answer(403, google_error(403, "no", "forbidden")))
        (told,) = store.inspect("bucket")
        assert told.warning
        assert "storage.buckets.get" in told.detail

    @pytest.mark.parametrize("reason", ["retentionPolicyNotMet", "objectUnderActiveHold"])
    def test_an_object_that_is_kept(
        self, gate: Gate, open_as: Callable[..., GcsStore], account: Account, container: str, reason: str
    ) -> None:
        store = open_as(account, bulk_delete_size=1)
        gate.fail("DELETE /storage/v1/b/", Answer(403, google_error(403, "kept", reason)))
        with pytest.raises(DeleteFailed) as caught:
            store.delete(container, ["key"])
        assert {type(error) for error in caught.value.errors.values()} == {Retained}
        assert not caught.value.temporary
        assert "needs storage" not in str(caught.value)

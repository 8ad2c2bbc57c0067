"""Faults on the way to real servers: connections that are cut, hang, or change a bit."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, Literal

import pytest
from backupfw_s3.store import S3Store

from backupfw.chunkstore.base import Body, ChunkStore
from backupfw.chunkstore.errors import ChunkStoreError, IntegrityError, Unavailable
from backupfw.chunkstore.layers.stack import stack
from backupfw.chunkstore.options import option_values
from backupfw.testing.proxy import FaultProxy

pytestmark = pytest.mark.server

SIZE = 1 << 20
#: Past the head of every request and answer.
INSIDE = 200_000


@pytest.fixture(params=["ceph", "seaweedfs"], scope="module")
def server(request: pytest.FixtureRequest) -> Any:
    return request.getfixturevalue(f"{request.param}_server")


@pytest.fixture(scope="module")
def line(server: Any) -> Iterator[FaultProxy]:
    with FaultProxy("127.0.0.1", server.port) as running:
        yield running


@pytest.fixture
def store(server: Any, line: FaultProxy) -> Iterator[S3Store]:
    """A store at the other end of the wire."""
    values = {
        "endpoint": line.endpoint,
        "access_key_id": server.access_key,
        "secret_access_key": server.secret_key,
        "region": "us-east-1",
        "sorted_listing": False,
        "read_timeout": 2.0,
    }
    store = S3Store("main", option_values(S3Store.options(), **values))
    yield store
    line.heal()
    store.close()


@pytest.fixture
def container(store: S3Store) -> str:
    name = f"backupfw-test-{secrets.token_hex(8)}"
    store.ensure_container(name)
    return name


def layered(store: ChunkStore) -> ChunkStore:
    return stack(store, SimpleNamespace(retry_base_pause=0.01))


@pytest.mark.parametrize("kind", ["reset", "flip"])
def test_a_put_through_a_bad_wire(
    line: FaultProxy, store: S3Store, container: str, kind: Literal["reset", "flip"]
) -> None:
    data = secrets.token_bytes(SIZE)
    fault = line.fault("up", kind, INSIDE)
    with pytest.raises(ChunkStoreError) as caught:
        store.put(container, "key", Body.from_bytes(data))
    assert fault.struck == 1
    assert type(caught.value) is (Unavailable if kind == "reset" else IntegrityError)
    assert caught.value.temporary
    line.heal()
    assert list(store.list(container)) == []
    fault = line.fault("up", kind, INSIDE)
    layered(store).put(container, "key", Body.from_bytes(data))
    assert fault.struck == 1
    line.heal()
    assert store.get(container, "key") == data


@pytest.mark.parametrize("kind", ["reset", "flip"])
def test_a_get_through_a_bad_wire(
    line: FaultProxy, store: S3Store, container: str, kind: Literal["reset", "flip"]
) -> None:
    data = secrets.token_bytes(SIZE)
    store.put(container, "key", Body.from_bytes(data))
    fault = line.fault("down", kind, INSIDE)
    with pytest.raises(ChunkStoreError) as caught:
        store.get(container, "key")
    assert fault.struck == 1
    assert type(caught.value) is (Unavailable if kind == "reset" else IntegrityError)
    assert caught.value.temporary
    fault = line.fault("down", kind, INSIDE)
    assert layered(store).get(container, "key") == data
    assert fault.struck == 1


def test_a_range_that_is_cut(line: FaultProxy, store: S3Store, container: str) -> None:
    data = secrets.token_bytes(SIZE)
    store.put(container, "key", Body.from_bytes(data))
    line.fault("down", "reset", INSIDE)
    with pytest.raises(Unavailable):
        store.get(container, "key", 1000, SIZE - 1000)
    line.heal()
    assert store.get(container, "key", 1000, SIZE - 1000) == data[1000:]


@pytest.mark.parametrize("direction", ["up", "down"])
def test_a_wire_that_hangs(
    line: FaultProxy, store: S3Store, container: str, direction: Literal["up", "down"]
) -> None:
    fault = line.fault(direction, "hole", 0, times=None)
    with pytest.raises(Unavailable) as caught:
        store.get(container, "key")
    assert fault.struck
    assert caught.value.temporary


def test_a_listing_and_a_delete_that_are_cut(line: FaultProxy, store: S3Store, container: str) -> None:
    keys = [f"key{number:03}" for number in range(60)]
    for key in keys:
        store.put(container, key, Body.from_bytes(b"x"))
    line.fault("down", "reset", 700)
    with pytest.raises(Unavailable):
        list(store.list(container))
    line.heal()
    assert sorted(info.key for info in store.list(container)) == keys
    line.fault("down", "reset", 300, times=2)
    layered(store).delete(container, keys)
    line.heal()
    assert list(store.list(container)) == []

"""The main job through a served instance whose store speaks Google Cloud Storage's API."""

from __future__ import annotations

import json
import urllib.request
import uuid
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.integration.content import MIB, change_image, same_content, write_image
from tests.integration.service import Client, Service, running
from tests.servers.gcs import GcsServer, emulator_missing, fake_gcs, fake_gcs_missing, gcs_emulator
from tests.servers.gcs_gate import Account, Gate, gcs_gate
from tests.servers.tls import tls_missing, tls_proxy

pytestmark = pytest.mark.server

LENGTH = 24 * MIB + 512 * 7
#: Name -> how to run the server, what is missing for it, and what the store needs to be told of it.
SERVERS: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "fake": (fake_gcs, fake_gcs_missing, {}),
    "fake-tls": (fake_gcs, lambda: fake_gcs_missing() or tls_missing(), {}),
    # One connection at a time, five wait.
    "emulator": (gcs_emulator, emulator_missing, {"max_concurrency": 5}),
}
CONTAINER = "backups-of-tests"


@pytest.fixture(scope="module", params=sorted(SERVERS))
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def server(kind: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GcsServer]:
    start, missing, _ = SERVERS[kind]
    if lacking := missing():
        pytest.skip(lacking)
    with start(tmp_path_factory.mktemp(kind)) as running_server:
        yield running_server


@pytest.fixture(scope="module")
def gate(server: GcsServer) -> Iterator[Gate]:
    with gcs_gate(server.port) as gate:
        yield gate


@pytest.fixture(scope="module")
def service(kind: str, gate: Gate, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    directory = tmp_path_factory.mktemp("main")
    with ExitStack() as stack:
        way = {"endpoint": gate.endpoint}
        if kind.endswith("-tls"):
            proxy = stack.enter_context(tls_proxy(tmp_path_factory.mktemp("tls"), gate.port))
            way = {"endpoint": proxy.endpoint, "ca_bundle": str(proxy.ca)}
        yield stack.enter_context(running(directory / "state", _options(kind, gate, directory, way)))


def _options(kind: str, gate: Gate, directory: Path, way: dict[str, str]) -> dict[str, dict[str, Any]]:
    return {
        "DEFAULT": {"enabled_stores": "main"},
        "store:main": {
            "driver": "gcs",
            **way,
            "service_account_file": gate.admit(Account("backup")).write(directory / "account.json", gate),
            "retry_base_pause": 0.05,
            **SERVERS[kind][2],
        },
        "backup": {"segment_size": 4 * MIB, "pack_size": MIB},
    }


@pytest.fixture
def client(service: Service) -> Client:
    return service.client(f"p{uuid.uuid4().hex[:8]}")


def keys(server: GcsServer) -> list[str]:
    """All keys of the container, seen without the driver."""
    url = f"{server.endpoint}/storage/v1/b/{CONTAINER}/o?maxResults=1000"
    with urllib.request.urlopen(url, timeout=30) as answer:
        page = json.loads(answer.read())
    assert not page.get("nextPageToken")
    return [str(item["name"]) for item in page.get("items") or ()]


def test_main_job(
    kind: str, server: GcsServer, gate: Gate, service: Service, client: Client, tmp_path: Path
) -> None:
    """Full, incremental, delete the full, restore to a new and to a dirty volume, verify, delete.

    Tokens are taken back all the time, and some requests and answers are lost or damaged.
    """
    image, dirty = tmp_path / "image.raw", tmp_path / "dirty.raw"
    write_image(image, LENGTH)
    write_image(dirty, LENGTH, seed=2)
    volume = client.adopt(image)
    gate.fail("POST /upload", "drop", "lose answer", "drop")
    # The other server takes wrong bytes for a moment, which only the write's own comparison ends.
    gate.fail("POST /upload", *(["flip up"] if kind == "emulator" else []))
    full = client.backup(volume, container=CONTAINER)
    gate.revoke()
    change_image(image, 5)
    gate.fail("GET /download", "cut", "drop")
    incremental = client.backup(volume, incremental=True, container=CONTAINER)
    shown = client.expect(200, "GET", f"/backups/{incremental}")["backup"]
    assert shown["container"] == CONTAINER
    assert shown["is_incremental"]
    assert shown["object_count"] > 0
    gate.revoke()
    gate.fail("POST /batch", "drop", "lose answer")
    client.delete_backup(full)
    gate.fail("GET /download", "cut", "drop")
    assert same_content(image, client.volume_path(client.restore(incremental)), LENGTH)
    gate.revoke()
    client.restore(incremental, client.adopt(dirty))
    assert same_content(image, dirty, LENGTH)
    assert service.command("backup", "verify", incremental).returncode == 0
    assert [key for key in keys(server) if volume in key]
    client.delete_backup(incremental)
    assert [key for key in keys(server) if volume in key] == []
    assert gate.refused[401]


# Not on the emulator: the eleven hundred objects of the check take it minutes.
@pytest.mark.parametrize("kind", ["fake"], indirect=True, scope="module")
def test_store_check(service: Service) -> None:
    assert service.command("store", "check", "main").stdout.rstrip().endswith("store main: ok")


def test_a_container_that_the_store_cannot_have(client: Client, tmp_path: Path) -> None:
    image = tmp_path / "image.raw"
    write_image(image, MIB)
    volume = client.adopt(image)
    body = {"backup": {"volume_id": volume, "container": "No_Bucket"}}
    refused = client.expect(400, "POST", "/backups", body)["badRequest"]["message"]
    assert "container name" in refused
    assert client.status("volume", volume) == "available"

"""The main job through a served instance whose store is a real S3 server."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.config import Config

from tests.integration.content import MIB, change_image, same_content, write_image
from tests.integration.service import Client, Service, running
from tests.servers.ceph import ceph, ceph_missing
from tests.servers.seaweedfs import seaweedfs, seaweedfs_missing

pytestmark = pytest.mark.server

LENGTH = 24 * MIB + 512 * 7
#: Name -> how to run the server, what is missing for it, and what the store needs to be told of it.
SERVERS: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "ceph": (ceph, ceph_missing, {}),
    "seaweedfs": (seaweedfs, seaweedfs_missing, {"sorted_listing": "false"}),
}


@pytest.fixture(scope="module", params=sorted(SERVERS))
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def server(kind: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    start, missing, _ = SERVERS[kind]
    if lacking := missing():
        pytest.skip(lacking)
    with start(tmp_path_factory.mktemp(kind)) as running_server:
        yield running_server


@pytest.fixture(scope="module")
def service(kind: str, server: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    options = {
        "DEFAULT": {"enabled_stores": "main"},
        "store:main": {
            "driver": "s3",
            "endpoint": server.endpoint,
            "region": "us-east-1",
            "access_key_id": server.access_key,
            "secret_access_key": server.secret_key,
            **SERVERS[kind][2],
        },
        "backup": {"segment_size": 4 * MIB, "pack_size": MIB},
    }
    with running(tmp_path_factory.mktemp("main") / "state", options) as service:
        yield service


@pytest.fixture
def client(service: Service) -> Client:
    return service.client(f"p{uuid.uuid4().hex[:8]}")


def keys(server: Any, container: str) -> list[str]:
    """All keys of a container, seen without the driver."""
    client = boto3.session.Session().client(
        "s3",
        endpoint_url=server.endpoint,
        aws_access_key_id=server.access_key,
        aws_secret_access_key=server.secret_key,
        region_name="us-east-1",
        config=Config(s3={"addressing_style": "path"}),
    )
    pages = client.get_paginator("list_objects_v2").paginate(Bucket=container)
    return [entry["Key"] for page in pages for entry in page.get("Contents", ())]


def test_main_job(server: Any, service: Service, client: Client, tmp_path: Path) -> None:
    """Full, incremental, delete the full, restore to a new and to a dirty volume, verify, delete."""
    image, dirty = tmp_path / "image.raw", tmp_path / "dirty.raw"
    write_image(image, LENGTH)
    write_image(dirty, LENGTH, seed=2)
    volume = client.adopt(image)
    container = "backups-of-tests"
    full = client.backup(volume, container=container)
    change_image(image, 5)
    incremental = client.backup(volume, incremental=True, container=container)
    shown = client.expect(200, "GET", f"/backups/{incremental}")["backup"]
    assert shown["container"] == container
    assert shown["is_incremental"]
    assert shown["object_count"] > 0
    client.delete_backup(full)
    assert same_content(image, client.volume_path(client.restore(incremental)), LENGTH)
    client.restore(incremental, client.adopt(dirty))
    assert same_content(image, dirty, LENGTH)
    assert service.command("backup", "verify", incremental).returncode == 0
    assert [key for key in keys(server, container) if volume in key]
    client.delete_backup(incremental)
    assert [key for key in keys(server, container) if volume in key] == []


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

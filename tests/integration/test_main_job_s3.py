"""The main job through a served instance whose store is a real S3 server."""

from __future__ import annotations

import json
import os
import random
import signal
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError

from tests.files import files_below
from tests.integration.content import MIB, change_image, same_content, write_image
from tests.integration.damaged_objects import flipped, refuses
from tests.integration.service import Client, Service, running
from tests.servers.ceph import ceph, ceph_missing
from tests.servers.seaweedfs import seaweedfs, seaweedfs_missing
from tests.servers.tls import tls_missing, tls_proxy

pytestmark = pytest.mark.server

LENGTH = 8 * MIB + 512 * 7
CONTAINER = "backups-of-tests"


@contextmanager
def _ceph(directory: Path) -> Iterator[tuple[Any, dict[str, Any]]]:
    with ceph(directory) as server:
        yield server, {}


@contextmanager
def _over_tls(directory: Path) -> Iterator[tuple[Any, dict[str, Any]]]:
    (directory / "tls").mkdir()
    (directory / "ceph").mkdir()
    with ceph(directory / "ceph") as server, tls_proxy(directory / "tls", server.port) as proxy:
        yield server, {"endpoint": proxy.endpoint, "ca_bundle": proxy.ca}


@contextmanager
def _seaweedfs(directory: Path) -> Iterator[tuple[Any, dict[str, Any]]]:
    with seaweedfs(directory) as server:
        yield server, {"sorted_listing": "false"}


#: Name -> how to run the server (yields it, and what the store needs to be told of it), what is missing.
SERVERS: dict[str, tuple[Any, tuple[Callable[[], str | None], ...]]] = {
    "ceph": (_ceph, (ceph_missing,)),
    "ceph-tls": (_over_tls, (ceph_missing, tls_missing)),
    "seaweedfs": (_seaweedfs, (seaweedfs_missing,)),
}


@pytest.fixture(scope="module", params=sorted(SERVERS))
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def site(kind: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, dict[str, Any]]]:
    start, missing = SERVERS[kind]
    if reasons := [reason for reason in (each() for each in missing) if reason]:
        pytest.skip("; ".join(reasons))
    with start(tmp_path_factory.mktemp(kind)) as found:
        yield found


@pytest.fixture(scope="module")
def server(site: tuple[Any, dict[str, Any]]) -> Any:
    return site[0]


def options_for(server: Any, **more: Any) -> dict[str, dict[str, Any]]:
    return {
        "DEFAULT": {"enabled_stores": "main"},
        "store:main": {
            "driver": "s3",
            "endpoint": server.endpoint,
            "region": "us-east-1",
            "access_key_id": server.access_key,
            "secret_access_key": server.secret_key,
            "container": CONTAINER,
            **more,
        },
        "backup": {"segment_size": 4 * MIB, "pack_size": MIB},
    }


@pytest.fixture(scope="module")
def service(site: tuple[Any, dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    server, more = site
    with running(tmp_path_factory.mktemp("main") / "state", options_for(server, **more)) as service:
        yield service


@pytest.fixture
def client(service: Service) -> Client:
    return service.client(f"p{uuid.uuid4().hex[:8]}")


def without_driver(server: Any) -> Any:
    """A client of the server that has nothing to do with the driver."""
    return boto3.session.Session().client(
        "s3",
        endpoint_url=server.endpoint,
        aws_access_key_id=server.access_key,
        aws_secret_access_key=server.secret_key,
        region_name="us-east-1",
        config=Config(s3={"addressing_style": "path"}),
    )


def keys(server: Any) -> list[str]:
    """All keys of the container."""
    pages = without_driver(server).get_paginator("list_objects_v2").paginate(Bucket=CONTAINER)
    return [entry["Key"] for page in pages for entry in page.get("Contents", ())]


# The way to the server is no matter here.
@pytest.mark.parametrize("kind", ["ceph", "seaweedfs"], indirect=True, scope="module")
def test_copies(server: Any, site: tuple[Any, dict[str, Any]], tmp_path: Path) -> None:
    """From a directory to the server: what is encrypted stays so, and the copies go with the backups."""
    image = tmp_path / "image.raw"
    write_image(image, LENGTH)
    options = {
        **options_for(server, **site[1]),
        "DEFAULT": {"enabled_stores": "disk, main", "default_store": "disk"},
        "keys": {"driver": "file", "directory": tmp_path / "keys"},
        "store:disk": {"driver": "posix", "path": tmp_path / "disk", "encryption": "project"},
    }
    with running(tmp_path / "state", options) as service:
        client = service.client()
        volume = client.adopt(image)
        full = client.backup(volume)
        change_image(image, 5)
        incremental = client.backup(volume, incremental=True)
        for backup in (full, incremental):
            service.command("backup", "copy", backup, "--to", "main")
        put = [key for key in keys(server) if volume in key]
        there = [path for path in files_below(tmp_path / "disk") if volume in str(path)]
        assert len(put) == len(there)
        service.command("audit")
        service.command("backup", "copy", full, "--remove", "main")
        client.delete_backup(full)
        service.command("backup", "verify", incremental)
        client.delete_backup(incremental)
        client.wait("the copies to go", lambda: not any(volume in key for key in keys(server)))
        service.command("audit")


@pytest.mark.check
@pytest.mark.parametrize("kind", ["ceph", "seaweedfs"], indirect=True)
def test_locked(server: Any, site: tuple[Any, dict[str, Any]], tmp_path: Path) -> None:
    """Nothing that backups and copies need can be deleted; a deletion waits visibly, and is taken back."""
    box, copies = f"locked-{uuid.uuid4().hex[:8]}", f"copies-{uuid.uuid4().hex[:8]}"
    options = options_for(server, **site[1], container=box, lock_days=2, delete_versions="true")
    options["DEFAULT"] = {"enabled_stores": "main, offsite"}
    options["store:offsite"] = {**options["store:main"], "container": copies, "lock_mode": "governance"}
    image = tmp_path / "image.raw"
    write_image(image, LENGTH)
    s3 = without_driver(server)

    def versions(bucket: str) -> list[dict[str, str]]:
        pages = s3.get_paginator("list_object_versions").paginate(Bucket=bucket)
        return [
            {"Key": one["Key"], "VersionId": one["VersionId"]}
            for page in pages
            for one in page.get("Versions", ())
            if "/" in one["Key"]
        ]

    with running(tmp_path / "state", options) as service:
        client = service.client()
        volume = client.adopt(image)
        full = client.backup(volume)
        change_image(image, 5)
        incremental = client.backup(volume, incremental=True)
        for backup in (full, incremental):
            service.command("backup", "copy", backup, "--to", "offsite")
        assert len(versions(box)) == len(versions(copies)) > 10
        # The service's own credentials delete nothing.
        for bucket in (box, copies):
            for one in versions(bucket):
                with pytest.raises(ClientError, match=r"AccessDenied"):
                    s3.delete_object(Bucket=bucket, **one)
        client.expect(202, "DELETE", f"/backups/{full}")
        client.wait("the deletion to wait", lambda: progress_of(client, full)["phase"] == "waiting-for-lock")
        assert progress_of(client, full)["waits_until"]
        shown = client.expect(200, "GET", f"/backups/{full}")["backup"]
        assert shown["status"] == "deleting"
        assert "locked" in shown["fail_reason"]
        # The volume goes on; nothing is wrong, and there is nothing to sweep.
        change_image(image, 9)
        third = client.backup(volume, incremental=True)
        service.command("backup", "copy", third, "--to", "offsite")
        before = versions(box)
        assert ", 0 orphans" in service.command("sweep").stdout
        service.command("audit")
        assert versions(box) == before
        client.expect(202, "POST", f"/backups/{full}/action", {"os-reset_status": {"status": "available"}})
        client.wait_status("backup", full, "available")
        assert same_content(image, client.volume_path(client.restore(third)), LENGTH)
        service.command("backup", "repair", full)
        service.command("audit")


def progress_of(client: Client, backup: str) -> dict[str, Any]:
    return dict(client.expect(200, "GET", f"/backups/{backup}/progress")["progress"])


def test_main_job(server: Any, service: Service, client: Client, tmp_path: Path) -> None:
    """Full, incremental, delete the full, restore to a new and to a dirty volume, verify, delete."""
    image, dirty = tmp_path / "image.raw", tmp_path / "dirty.raw"
    write_image(image, LENGTH)
    write_image(dirty, LENGTH, seed=2)
    volume = client.adopt(image)
    full = client.backup(volume)
    change_image(image, 5)
    incremental = client.backup(volume, incremental=True)
    shown = client.expect(200, "GET", f"/backups/{incremental}")["backup"]
    assert shown["container"] == CONTAINER
    assert shown["is_incremental"]
    assert shown["object_count"] > 0
    client.delete_backup(full)
    assert same_content(image, client.volume_path(client.restore(incremental)), LENGTH)
    client.restore(incremental, client.adopt(dirty))
    assert same_content(image, dirty, LENGTH)
    assert service.command("backup", "verify", incremental).returncode == 0
    assert [key for key in keys(server) if volume in key]
    client.delete_backup(incremental)
    assert [key for key in keys(server) if volume in key] == []


def test_another_database_finds_the_backups_in_the_store(
    site: tuple[Any, dict[str, Any]], service: Service, client: Client, tmp_path: Path
) -> None:
    server, more = site
    image = tmp_path / "image.raw"
    write_image(image, LENGTH)
    full = client.backup(client.adopt(image))
    other = Service(tmp_path / "other", options_for(server, **more))
    assert other.command("db", "sync").returncode == 0
    words = (
        "catalogue",
        "rebuild",
        "--store",
        "main",
        "--project",
        client.base.rstrip("/").rpartition("/")[2],
    )
    assert other.command(*words).stdout.splitlines()[-1] == "1 backup: 1 entered"
    assert other.command(*words).stdout.splitlines()[-1] == "1 backup: 1 known already"
    restored = tmp_path / "restored.raw"
    assert other.command("backup", "restore", full, "--to", str(restored)).returncode == 0
    assert same_content(image, restored, LENGTH)
    client.delete_backup(full)


# Once is enough: it proves the server, not the way to it.
@pytest.mark.parametrize("kind", ["ceph", "seaweedfs"], indirect=True, scope="module")
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


@pytest.mark.parametrize("kind", ["seaweedfs"], indirect=True, scope="module")
def test_a_flipped_bit_is_named_and_never_restored(
    server: Any, service: Service, client: Client, tmp_path: Path
) -> None:
    image = tmp_path / "image.raw"
    write_image(image, 6 * MIB)
    backup = client.backup(client.adopt(image))
    s3 = without_driver(server)
    for end in ("/p0000", "/map", "/manifest"):
        key = min(key for key in keys(server) if backup in key and key.endswith(end))
        whole = s3.get_object(Bucket=CONTAINER, Key=key)["Body"].read()
        s3.put_object(Bucket=CONTAINER, Key=key, Body=flipped(whole))
        refuses(client, backup, key)
        s3.put_object(Bucket=CONTAINER, Key=key, Body=whole)
    assert service.command("backup", "verify", backup).returncode == 0
    assert same_content(image, client.volume_path(client.restore(backup)), 6 * MIB)
    client.delete_backup(backup)


ROTATING = """#!/bin/sh
# Hands out what stands in the file "current", for a few minutes at a time.
cat "$0.current" | sed "s/EXPIRES/$(date -u -d '+5 minutes' +%Y-%m-%dT%H:%M:%SZ)/"
echo >> "$0.asked"
"""


@pytest.mark.parametrize("kind", ["ceph"], indirect=True, scope="module")
def test_credentials_that_end_in_mid_backup(
    server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Keys from the SDK's own chain: it asks for new ones before the old ones end; the backup goes on."""
    program = tmp_path / "credentials"
    program.write_text(ROTATING)
    program.chmod(0o755)
    (tmp_path / "aws").write_text(f"[profile rotating]\ncredential_process = {program}\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "aws"))

    def hand_out(access: str, secret: str) -> None:
        new = tmp_path / "new"
        new.write_text(
            json.dumps(
                {
                    "Version": 1,
                    "AccessKeyId": access,
                    "SecretAccessKey": secret,
                    "Expiration": "EXPIRES",
                }
            )
        )
        new.rename(f"{program}.current")

    def asked() -> int:
        log = Path(f"{program}.asked")
        return len(log.read_text().splitlines()) if log.exists() else 0

    def add_key(access: str) -> None:
        server.admin(
            "key", "create", "--uid=tester", "--key-type=s3", f"--access-key={access}", "--secret-key=secret"
        )

    old, new = (f"AKID{uuid.uuid4().hex[:16].upper()}" for _ in range(2))
    add_key(old)
    add_key(new)
    hand_out(old, "secret")
    options = options_for(server, profile="rotating", max_requests_per_second=4)
    del options["store:main"]["access_key_id"], options["store:main"]["secret_access_key"]
    image = tmp_path / "image.raw"
    # Some more requests than have to come before the old key ends.
    image.write_bytes(random.Random(3).randbytes(24 * MIB))
    # Else it is the first backup that makes it, and until then it cannot be listed.
    without_driver(server).create_bucket(Bucket=CONTAINER)
    with running(tmp_path / "state", options) as service:
        client = service.client()
        volume = client.adopt(image)
        backup = client.backup(volume, wait=False)
        client.wait("the first objects", lambda: [key for key in keys(server) if backup in key])
        hand_out(new, "secret")
        # Whatever was signed with the old key has arrived when so many requests more were signed.
        before = asked()
        client.wait("requests with the new key", lambda: asked() >= before + 6)
        # The tool may take longer than the rest of the backup.
        os.kill(service.pid, signal.SIGSTOP)
        try:
            server.admin("key", "rm", "--uid=tester", "--key-type=s3", f"--access-key={old}")
        finally:
            os.kill(service.pid, signal.SIGCONT)
        assert client.status("backup", backup) == "creating", "the old key was to end in mid-backup"
        client.wait_status("backup", backup, "available")
        assert service.command("backup", "verify", backup).returncode == 0

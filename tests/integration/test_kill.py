"""kill -9 of the embedded service in the middle of its work: nothing transient stays, nothing is lost."""

from __future__ import annotations

import base64
import json
import random
import time
import uuid
from pathlib import Path

import pytest

from tests.files import files_below
from tests.integration.content import MIB, change_image, same_content, write_image
from tests.integration.service import Service

LENGTH = 48 * MIB
#: The kill lands elsewhere with each.  faults/test_kill_at_crash_points.py kills a worker at every step.
SEEDS = [0, *(pytest.param(seed, marks=pytest.mark.soak) for seed in range(1, 20))]

# Small segments and a slow store stretch every operation, so that a kill lands inside it.
SLOW = {
    "backup": {"segment_size": 4 * MIB, "pack_size": MIB, "lease_seconds": 5},
    "store:main": {"max_bytes_per_second": 24 * MIB, "max_requests_per_second": 60},
}


@pytest.fixture
def service(tmp_path: Path):
    service = Service(tmp_path / "state", SLOW).start()
    yield service
    service.stop()


def assert_clean(service: Service) -> None:
    """No transient status, and the store holds exactly what manifests name."""
    client = service.client()
    for kind in ("backup", "volume"):
        for item in client.expect(200, "GET", f"/{kind}s/detail")[f"{kind}s"]:
            assert item["status"] in ("available", "error"), item
    report = service.command("sweep", "--dry-run")
    assert "0 orphans" in report.stdout, report.stdout


@pytest.mark.parametrize("seed", SEEDS)
def test_kill_in_a_backup(service: Service, tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    image = tmp_path / "image.raw"
    write_image(image, LENGTH, seed)
    client = service.client()
    volume = client.adopt(image)
    full = client.backup(volume, wait=False)
    for _ in range(2):
        time.sleep(rng.uniform(0.05, 0.8))
        service.kill()
        service.start()
        client = service.client()
    client.wait_status("backup", full, "available")
    assert client.status("volume", volume) == "available"

    change_image(image, seed)
    incremental = client.backup(volume, wait=False, incremental=True)
    time.sleep(rng.uniform(0.0, 0.4))
    service.kill()
    client = service.start().client()
    client.wait_status("backup", incremental, "available")
    client.delete_backup(full)
    target = client.restore(incremental)
    assert same_content(image, client.volume_path(target), LENGTH)
    assert_clean(service)


@pytest.mark.parametrize("seed", SEEDS)
def test_kill_in_a_restore(service: Service, tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    image, dirty = tmp_path / "image.raw", tmp_path / "dirty.raw"
    write_image(image, LENGTH, seed)
    write_image(dirty, LENGTH, seed + 100)
    client = service.client()
    backup = client.backup(client.adopt(image))
    target = client.adopt(dirty)
    client.restore(backup, target, wait=False)
    fresh = None
    for _ in range(2):
        time.sleep(rng.uniform(0.05, 0.8))
        service.kill()
        client = service.start().client()
        if fresh is None and client.status("backup", backup) == "available":
            fresh = client.restore(backup, wait=False)
    client.wait_status("volume", target, "available")
    client.wait_status("backup", backup, "available")
    assert same_content(image, dirty, LENGTH)
    if fresh is not None:
        client.wait_status("volume", fresh, "available")
        assert same_content(image, client.volume_path(fresh), LENGTH)
    assert_clean(service)


@pytest.mark.parametrize("seed", SEEDS)
def test_kill_in_a_delete(service: Service, tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    image = tmp_path / "image.raw"
    write_image(image, LENGTH, seed)
    client = service.client()
    volume = client.adopt(image)
    full = client.backup(volume)
    change_image(image, seed)
    incremental = client.backup(volume, incremental=True)
    client.expect(202, "DELETE", f"/backups/{full}")
    for _ in range(2):
        time.sleep(rng.uniform(0.0, 0.3))
        service.kill()
        client = service.start().client()
    client.wait_status("backup", full, None)
    assert same_content(image, client.volume_path(client.restore(incremental)), LENGTH)
    assert_clean(service)
    client.delete_backup(incremental)
    assert files_below(service.state / "store") == []


@pytest.mark.parametrize("seed", SEEDS)
def test_kill_in_a_backup_of_a_volume_in_use(service: Service, tmp_path: Path, seed: int) -> None:
    """The temporary snapshot outlives the kill, is read on, and goes in the end."""
    rng = random.Random(seed)
    image = tmp_path / "image.raw"
    write_image(image, LENGTH, seed)
    client = service.client()
    volume = client.adopt(image)
    body = {"os-attach": {"instance_uuid": "0" * 8 + "-0000-4000-8000-" + "0" * 12, "mountpoint": "/dev/vdb"}}
    client.expect(202, "POST", f"/volumes/{volume}/action", body)
    backup = client.backup(volume, wait=False, force=True)
    for _ in range(2):
        time.sleep(rng.uniform(0.05, 0.8))
        service.kill()
        client = service.start().client()
    client.wait_status("backup", backup, "available")
    assert client.status("volume", volume) == "in-use"
    client.wait("the temporary snapshot to go", lambda: not files_below(service.state, "*snap*.img"))
    assert same_content(image, client.volume_path(client.restore(backup)), LENGTH)


@pytest.mark.parametrize("seed", SEEDS)
def test_kill_in_an_import(service: Service, tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    image = tmp_path / "image.raw"
    write_image(image, LENGTH, seed)
    client = service.client()
    backup = client.backup(client.adopt(image))
    exported = client.expect(200, "GET", f"/backups/{backup}/export_record")["backup-record"]
    record = json.loads(base64.b64decode(exported["backup_url"]))
    record["id"] = duplicate = str(uuid.UUID(int=seed + 1))
    exported["backup_url"] = base64.b64encode(json.dumps(record).encode()).decode()
    client.expect(201, "POST", "/backups/import_record", {"backup-record": exported})
    time.sleep(rng.uniform(0.0, 0.2))
    service.kill()
    client = service.start().client()
    client.wait_status("backup", duplicate, "available")
    client.delete_backup(backup)
    assert same_content(image, client.volume_path(client.restore(duplicate)), LENGTH)
    assert_clean(service)

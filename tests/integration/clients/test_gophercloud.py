"""gophercloud, as Debian has it, against a served instance behind Keystone, and one without."""

from __future__ import annotations

import base64
import json
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.clients.content import GIB, fill
from tests.integration.clients.gophercloud import Gophercloud, Refused, started
from tests.integration.clients.table import Shown, client_error
from tests.integration.clients.world import World
from tests.integration.content import change_image, same_content
from tests.integration.service import Client, running
from tests.servers.keystone import User

pytestmark = pytest.mark.server


@pytest.fixture(scope="module", params=["3", "2"])
def version(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def client(version: str) -> str:
    """The table's name for it."""
    return f"gophercloud v{version}"


@pytest.fixture(scope="module")
def go(gopher: Path, world: World, admin: User, version: str) -> Iterator[Gophercloud]:
    with started(gopher, rc(world, admin), version) as go:
        yield go


@pytest.fixture(scope="module")
def api(world: World, admin: User) -> Client:
    """Looks at what the calls did, and waits."""
    return world.client(admin)


def rc(world: World, user: User) -> dict[str, str]:
    """An RC file's variables, with those that this client asks for besides."""
    return {**world.variables(user), "OS_PROJECT_ID": user.project_id, "OS_DOMAIN_ID": "default"}


def refusal(go: Gophercloud, function: str, resource_id: str = "", at: str = "") -> int:
    """The status a call is refused with."""
    with pytest.raises(Refused) as refused:
        go(function, resource_id, at)
    return refused.value.code


def test_versions(
    go: Gophercloud, world: World, admin: User, version: str, client: str, shows: Shown
) -> None:
    assert go("endpoint") == f"{world.url}/v{version}/{admin.project_id}/"
    found = {each["id"]: each for each in go("apiversions.List", f"{world.url}/")}
    assert found["v3.0"]["status"] == "CURRENT"
    assert found.keys() == {"v2.0", "v3.0"}
    shows(client, "discovery of versions")


def test_a_volume_from_backup_to_restore(
    go: Gophercloud, api: Client, version: str, client: str, shows: Shown
) -> None:
    kind = f"v{version}/volumes"
    name = f"go-{version}"
    made = go(f"{kind}.Create", size=1, name=name, metadata={"color": "blue"})
    api.wait_status("volume", made["id"], "available")
    source = api.volume_path(made["id"])
    fill(source, seed=11)

    first = go("backups.Create", volume_id=made["id"], name=f"{name}-full", description="one")
    api.wait_status("backup", first["id"], "available")
    shown = go("backups.Get", first["id"])
    assert (shown["name"], shown["description"], shown["volume_id"]) == (f"{name}-full", "one", made["id"])
    assert (shown["status"], shown["size"], shown["is_incremental"]) == ("available", 1, False)
    shows(client, "create a backup: full", "show by id")
    change_image(source, 12)
    second = go("backups.Create", volume_id=made["id"], name=f"{name}-second", incremental=True)
    api.wait_status("backup", second["id"], "available")
    assert go("backups.Get", second["id"])["is_incremental"]
    assert go("backups.Get", first["id"])["has_dependent_backups"]
    shows(client, "… incremental")

    chosen = go("backups.List", VolumeID=made["id"], Name=f"{name}-second", Status="available")
    assert [each["id"] for each in chosen] == [second["id"]]
    shows(client, "list, with filters")
    by_pages = go("backups.List", VolumeID=made["id"], Limit=1)
    assert [each["id"] for each in by_pages] == [second["id"], first["id"]]
    shows(client, "… by pages")

    restored = go("backups.RestoreFromBackup", second["id"], name=f"{name}-new")
    assert (restored["backup_id"], restored["volume_name"]) == (second["id"], f"{name}-new")
    api.wait_status("volume", restored["volume_id"], "available")
    target = api.volume_path(restored["volume_id"])
    assert same_content(source, target, GIB)
    told = go(f"{kind}.Get", restored["volume_id"])
    assert (told["name"], told["metadata"]["color"]) == (f"{name}-new", "blue")
    shows(client, "restore to a new volume")
    fill(target, seed=13)
    api.wait_status("backup", second["id"], "available")
    go("backups.RestoreFromBackup", second["id"], volume_id=restored["volume_id"])
    api.wait_status("volume", restored["volume_id"], "available")
    api.wait_status("backup", second["id"], "available")
    assert same_content(source, target, GIB)
    shows(client, "restore over a volume")

    for backup in (second["id"], first["id"]):
        go("backups.Delete", backup)
        api.wait_status("backup", backup, None)
        assert refusal(go, "backups.Get", backup) == 404
    shows(client, "delete")
    listed = go(f"{kind}.List", Name=name)
    assert [each["id"] for each in listed] == [made["id"]]
    for volume in (made["id"], restored["volume_id"]):
        go(f"{kind}.Delete", volume)
        api.wait_status("volume", volume, None)
    shows(client, "volumes: create, show, list, delete")


def test_what_a_later_microversion_has(go: Gophercloud, api: Client, version: str, shows: Shown) -> None:
    if version == "2":
        pytest.skip("declared: version 2 has no microversions")
    client = f"gophercloud v{version}"
    volume = api.create_volume(name="of-go")
    fill(api.volume_path(volume), seed=14)
    made = go("backups.Create", at="3.43", volume_id=volume, metadata={"a": "b"})
    api.wait_status("backup", made["id"], "available")
    assert go("backups.Get", made["id"], at="3.43")["metadata"] == {"a": "b"}
    assert api.expect(200, "GET", f"/backups/{made['id']}/metadata") == {"metadata": {"a": "b"}}
    shows(client, "… with metadata")
    elsewhere = go("backups.Create", at="3.51", volume_id=volume, availability_zone="nova")
    api.wait_status("backup", elsewhere["id"], "available")
    assert go("backups.Get", elsewhere["id"], at="3.51")["availability_zone"] == "nova"
    shows(client, "… in an availability zone")
    # It leaves out the word around what it changes: docs/clients.md.
    assert refusal(go, "backups.Update", made["id"], at="3.43") == 400
    shows(client, "name, description, metadata afterwards", says=client_error(5))
    copy = go("v3/volumes.Create", at="3.47", size=1, backup_id=made["id"])
    api.wait_status("volume", copy["id"], "available")
    assert same_content(api.volume_path(volume), api.volume_path(copy["id"]), GIB)
    shows(client, "a new volume from a backup (3.47)")


def test_a_snapshot_and_its_backup(
    go: Gophercloud, api: Client, version: str, client: str, shows: Shown
) -> None:
    kind = f"v{version}/snapshots"
    volume = api.create_volume(name="snapped-by-go")
    snapshot = go(f"{kind}.Create", volume_id=volume, name=f"snapshot-{version}")
    api.wait_status("snapshot", snapshot["id"], "available")
    listed = go(f"{kind}.List", VolumeID=volume)
    assert [each["id"] for each in listed] == [snapshot["id"]]
    backup = go("backups.Create", volume_id=volume, snapshot_id=snapshot["id"])
    api.wait_status("backup", backup["id"], "available")
    assert go("backups.Get", backup["id"])["snapshot_id"] == snapshot["id"]
    shows(client, "… of a snapshot")
    go(f"{kind}.Delete", snapshot["id"])
    api.wait_status("snapshot", snapshot["id"], None)
    shows(client, "snapshots: create, list, delete")


def test_a_record_brings_a_backup_back(go: Gophercloud, api: Client, client: str, shows: Shown) -> None:
    volume = api.create_volume()
    fill(api.volume_path(volume), seed=15)
    backup = api.backup(volume, name="for-a-record")
    record = go("backups.Export", backup)
    shown = api.expect(200, "GET", f"/backups/{backup}/export_record")["backup-record"]
    assert record == shown
    shows(client, "export a record")
    duplicate = str(uuid.uuid4())
    url = base64.b64encode(
        json.dumps({**json.loads(base64.b64decode(record["backup_url"])), "id": duplicate}).encode()
    )
    imported = go("backups.Import", backup_service=record["backup_service"], backup_url=url.decode())
    assert imported["id"] == duplicate
    api.wait_status("backup", duplicate, "available")
    assert same_content(api.volume_path(volume), api.volume_path(api.restore(duplicate)), GIB)
    shows(client, "import a record")


def test_what_is_around(
    go: Gophercloud, api: Client, world: World, version: str, client: str, shows: Shown
) -> None:
    volume = api.create_volume()
    go(f"v{version}/volumes.Update", volume, name="renamed", metadata={"a": "b"})
    told = api.expect(200, "GET", f"/volumes/{volume}")["volume"]
    assert (told["name"], told["metadata"]) == ("renamed", {"a": "b"})
    go("volumeactions.ExtendSize", volume, new_size=2)
    api.wait_status("volume", volume, "available")
    assert api.expect(200, "GET", f"/volumes/{volume}")["volume"]["size"] == 2
    shows(client, "volumes: change")

    project = world.keystone.add_project(f"quota-of-go-{version}")
    changed = go("quotasets.Update", project, backups=7, backup_gigabytes=70)
    assert (changed["backups"], changed["backup_gigabytes"]) == (7, 70)
    assert go("quotasets.GetUsage", project)["backups"]["limit"] == 7
    assert api.expect(200, "GET", f"/os-quota-sets/{project}")["quota_set"]["backups"] == 7
    go("quotasets.Delete", project)
    assert go("quotasets.Get", project)["backups"] == -1
    shows(client, "quotas")
    (service,) = go("services.List", Binary="cinder-backup")
    assert (service["binary"], service["status"], service["state"]) == ("cinder-backup", "enabled", "up")
    shows(client, "services")


def test_a_member_may_not_export(
    gopher: Path, world: World, member: User, api: Client, version: str, client: str, shows: Shown
) -> None:
    backup = api.backup(api.create_volume())
    with started(gopher, rc(world, member), version) as go:
        assert go("backups.Get", backup)["id"] == backup
        assert refusal(go, "backups.Export", backup) == 403
    shows(client, "refusal: members do what administrators may")


@pytest.mark.parametrize("alone", ["2", "3"])
def test_without_keystone(gopher: Path, tmp_path: Path, alone: str) -> None:
    with running(tmp_path / "state") as service:
        endpoint = f"http://127.0.0.1:{service.port}/v{alone}"
        with started(gopher, {}, alone, endpoint) as go:
            api = service.client("gophers")
            made = go("backups.Create", volume_id=api.create_volume(), name="without-keystone")
            api.wait_status("backup", made["id"], "available")
            assert [each["name"] for each in go("backups.List")] == ["without-keystone"]

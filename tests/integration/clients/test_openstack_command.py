"""python-openstackclient against a served instance behind Keystone."""

from __future__ import annotations

import pytest

from tests.integration.clients.commands import Commands
from tests.integration.clients.conftest import Typing
from tests.integration.clients.content import GIB, fill
from tests.integration.clients.table import Shown, client_error
from tests.integration.clients.world import World
from tests.integration.content import change_image, same_content
from tests.integration.service import Client
from tests.servers.keystone import User

pytestmark = pytest.mark.server

#: The table's names for it.
V3, V2 = "openstack v3", "openstack v2"


@pytest.fixture(scope="module", params=["3.71", "2"])
def version(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def client(version: str) -> str:
    """The table's name for it."""
    return V2 if version == "2" else V3


@pytest.fixture(scope="module")
def os(typing: Typing, admin: User, version: str) -> Commands:
    return typing(admin, OS_VOLUME_API_VERSION=version)


@pytest.fixture(scope="module")
def api(world: World, admin: User) -> Client:
    """Looks at what the commands did, and waits."""
    return world.client(admin)


def test_a_volume_from_backup_to_restore(
    os: Commands, api: Client, version: str, client: str, shows: Shown
) -> None:
    name = f"disk-{version}"
    made = os.openstack("volume", "create", "--size", "1", "--property", "color=blue", name)
    api.wait_status("volume", made["id"], "available")
    fill(api.volume_path(made["id"]), seed=1)

    full = os.openstack("volume", "backup", "create", "--name", f"{name}-full", name)
    assert full["name"] == f"{name}-full"
    api.wait_status("backup", full["id"], "available")
    shows(client, "create a backup: full")
    change_image(api.volume_path(made["id"]), 5)
    words = ("volume", "backup", "create", "--name", f"{name}-second", "--description", "what changed")
    second = os.openstack(*words, "--incremental", name)
    api.wait_status("backup", second["id"], "available")

    assert api.expect(200, "GET", f"/backups/{second['id']}")["backup"]["is_incremental"]
    shows(client, "… incremental")
    listed = os.openstack("volume", "backup", "list", "--long", "--volume", name)
    assert [row["Name"] for row in listed] == [f"{name}-second", f"{name}-full"]
    assert [row["Incremental"] for row in listed] == [True, False]
    assert {row["Volume"] for row in listed} == {made["id"]}
    by_name = os.openstack("volume", "backup", "list", "--name", f"{name}-full", "--status", "available")
    assert [row["ID"] for row in by_name] == [full["id"]]
    shows(client, "list, with filters")
    page = os.openstack("volume", "backup", "list", "--limit", "1", "--marker", second["id"])
    assert page[0]["ID"] == full["id"]
    shows(client, "… by pages")
    shown = os.openstack("volume", "backup", "show", f"{name}-second")
    assert (shown["id"], shown["status"], shown["size"]) == (second["id"], "available", 1)
    assert (shown["description"], shown["is_incremental"]) == ("what changed", True)
    assert os.openstack("volume", "backup", "show", full["id"])["name"] == f"{name}-full"
    shows(client, "show by id", "show by name")

    # Onto a volume that is full of other bytes.
    target = os.openstack("volume", "create", "--size", "1", f"{name}-target")
    api.wait_status("volume", target["id"], "available")
    fill(api.volume_path(target["id"]), seed=9)
    os.run("openstack", "volume", "backup", "restore", "--force", second["id"], f"{name}-target")
    api.wait_status("backup", second["id"], "available")
    api.wait_status("volume", target["id"], "available")
    assert same_content(api.volume_path(made["id"]), api.volume_path(target["id"]), GIB)
    shows(client, "restore over a volume")
    # To a new one.
    restored = os.openstack("volume", "backup", "restore", second["id"], f"{name}-new")
    api.wait_status("volume", restored["volume_id"], "available")
    assert same_content(api.volume_path(made["id"]), api.volume_path(restored["volume_id"]), GIB)
    shown = os.openstack("volume", "show", restored["volume_id"])
    assert shown["name"] == f"{name}-new"
    assert shown["properties"]["color"] == "blue"
    shows(client, "restore to a new volume")

    os.run("openstack", "volume", "backup", "delete", f"{name}-full", f"{name}-second")
    api.wait_status("backup", full["id"], None)
    api.wait_status("backup", second["id"], None)
    shows(client, "delete")
    volumes = (name, f"{name}-target", restored["volume_id"])
    os.run("openstack", "volume", "delete", *volumes)
    for volume in (made["id"], target["id"], restored["volume_id"]):
        api.wait_status("volume", volume, None)
    assert not [row for row in os.openstack("volume", "list") if row["ID"] in (made["id"], target["id"])]
    shows(client, "volumes: create, show, list, delete")


def test_an_export_record(os: Commands, api: Client, client: str, shows: Shown) -> None:
    backup = api.backup(api.create_volume())
    record = os.openstack("volume", "backup", "record", "export", backup)
    shown = api.expect(200, "GET", f"/backups/{backup}/export_record")["backup-record"]
    assert (
        record["Backup_service" if "Backup_service" in record else "backup_service"]
        == shown["backup_service"]
    )
    shows(client, "export a record")
    # The client posts the import to another call's address, in each of its versions: docs/clients.md.
    done = os.run("openstack", "volume", "backup", "record", "import", *shown.values(), check=False)
    assert done.returncode != 0
    assert "404" in done.stderr
    shows(client, "import a record", says=client_error(1))


def test_what_an_administrator_resets(os: Commands, api: Client, client: str, shows: Shown) -> None:
    backup = api.backup(api.create_volume())
    os.run("openstack", "volume", "backup", "set", "--state", "error", backup)
    assert api.status("backup", backup) == "error"
    shows(client, "reset the status")
    os.run("openstack", "volume", "backup", "delete", "--force", backup)
    api.wait_status("backup", backup, None)
    shows(client, "force delete")


def test_the_service_and_its_versions(os: Commands, world: World, client: str, shows: Shown) -> None:
    (row,) = os.openstack("volume", "service", "list", "--service", "cinder-backup")
    assert (row["Binary"], row["Status"], row["State"]) == ("cinder-backup", "enabled", "up")
    shows(client, "services")
    versions = os.openstack("versions", "show", "--service", "block-storage")
    mine = [row for row in versions if row["Region Name"] == world.region]
    told = {row["Version"]: (row["Status"], row["Min Microversion"], row["Max Microversion"]) for row in mine}
    assert told["3.0"] == ("CURRENT", "3.0", "3.71")
    assert told["2.0"][0] in ("SUPPORTED", "DEPRECATED")
    shows(client, "discovery of versions")


def test_limits_and_quotas(os: Commands, api: Client, world: World, client: str, shows: Shown) -> None:
    limits = {row["Name"]: row["Value"] for row in os.openstack("limits", "show", "--absolute")}
    absolute = api.expect(200, "GET", "/limits")["limits"]["absolute"]
    assert limits["max_total_backups"] == absolute["maxTotalBackups"]
    assert limits["total_backup_gigabytes_used"] == absolute["totalBackupGigabytesUsed"]
    shows(client, "limits")
    project = world.keystone.add_project(f"quota-of-{client}")
    os.run("openstack", "quota", "set", "--backups", "7", project)
    assert api.expect(200, "GET", f"/os-quota-sets/{project}")["quota_set"]["backups"] == 7
    shown = {row["Resource"]: row["Limit"] for row in os.openstack("quota", "show", "--volume", project)}
    assert shown["backups"] == 7
    shows(client, "quotas")


def test_a_snapshot_and_its_backup(
    os: Commands, api: Client, version: str, client: str, shows: Shown
) -> None:
    name = f"snapshot-{version}"
    volume = api.create_volume(name=f"snapped-{version}")
    made = os.openstack("volume", "snapshot", "create", "--volume", volume, name)
    api.wait_status("snapshot", made["id"], "available")
    assert made["id"] in [row["ID"] for row in os.openstack("volume", "snapshot", "list")]
    words = ("volume", "backup", "create", "--name", name)
    backup = os.openstack(*words, "--snapshot", name, volume)
    api.wait_status("backup", backup["id"], "available")
    assert os.openstack("volume", "backup", "show", backup["id"])["snapshot_id"] == made["id"]
    shows(client, "… of a snapshot")
    os.run("openstack", "volume", "snapshot", "delete", name)
    api.wait_status("snapshot", made["id"], None)
    shows(client, "snapshots: create, list, delete")


def test_a_volume_is_named_and_changed(typing: Typing, admin: User, api: Client, shows: Shown) -> None:
    volume = api.create_volume(name="plain")
    # The client's version 2 of the command asks for nothing at all: docs/clients.md.
    old = typing(admin, OS_VOLUME_API_VERSION="2")
    old.run("openstack", "volume", "set", "--name", "named", volume)
    assert api.expect(200, "GET", f"/volumes/{volume}")["volume"]["name"] == "plain"
    shows(V2, "volumes: change", says=client_error(3))
    os = typing(admin, OS_VOLUME_API_VERSION="3.71")
    os.run("openstack", "volume", "set", "--name", "named", "--property", "a=b", volume)
    os.run("openstack", "volume", "set", "--size", "2", volume)
    api.wait_status("volume", volume, "available")
    shown = os.openstack("volume", "show", "named")
    assert (shown["id"], shown["size"], shown["properties"]) == (volume, 2, {"a": "b"})
    shows(V3, "volumes: change")


def test_names_descriptions_and_properties_of_backups(
    typing: Typing, admin: User, api: Client, shows: Shown
) -> None:
    os = typing(admin, OS_VOLUME_API_VERSION="3.71")
    volume = api.create_volume()
    made = os.openstack("volume", "backup", "create", "--name", "old", "--property", "a=1", volume)
    api.wait_status("backup", made["id"], "available")
    assert api.expect(200, "GET", f"/backups/{made['id']}/metadata") == {"metadata": {"a": "1"}}
    shows(V3, "… with metadata")
    words = ("volume", "backup", "set", "--name", "new", "--description", "now", "--property", "b=2")
    os.run("openstack", *words, made["id"])
    shown = os.openstack("volume", "backup", "show", "new")
    assert (shown["name"], shown["description"]) == ("new", "now")
    assert shown["metadata"] == {"a": "1", "b": "2"}
    assert (shown["project_id"], shown["user_id"]) == (admin.project_id, admin.id)
    shows(V3, "name, description, metadata afterwards")
    # The client asks to delete each key that was to be kept, and the service does not: docs/clients.md.
    done = os.run("openstack", "volume", "backup", "unset", "--property", "a", made["id"], check=False)
    assert done.returncode != 0
    assert os.openstack("volume", "backup", "show", made["id"])["metadata"] == {"a": "1", "b": "2"}
    shows(V3, "remove one key of metadata", says=client_error(2))
    # What does remove one.
    os.run("openstack", "volume", "backup", "set", "--no-property", "--property", "b=2", made["id"])
    assert os.openstack("volume", "backup", "show", made["id"])["metadata"] == {"b": "2"}


def test_a_new_volume_from_a_backup(typing: Typing, admin: User, api: Client, shows: Shown) -> None:
    os = typing(admin, OS_VOLUME_API_VERSION="3.71")
    volume = api.create_volume()
    fill(api.volume_path(volume), seed=21)
    words = ("volume", "backup", "create", "--availability-zone", "nova", "--name", "in-a-zone")
    backup = os.openstack(*words, volume)
    api.wait_status("backup", backup["id"], "available")
    assert api.expect(200, "GET", f"/backups/{backup['id']}")["backup"]["availability_zone"] == "nova"
    shows(V3, "… in an availability zone")
    made = os.openstack("volume", "create", "--backup", "in-a-zone", "--size", "1", "from-a-backup")
    api.wait_status("volume", made["id"], "available")
    assert same_content(api.volume_path(volume), api.volume_path(made["id"]), GIB)
    shows(V3, "a new volume from a backup (3.47)")


def test_a_member_is_no_administrator(
    typing: Typing, member: User, api: Client, version: str, client: str, shows: Shown
) -> None:
    os = typing(member, OS_VOLUME_API_VERSION=version)
    name = f"of-the-project-{version}"
    backup = api.backup(api.create_volume(name=name), name=name)
    assert os.openstack("volume", "backup", "show", name)["id"] == backup
    for words in (("record", "export"), ("set", "--state", "error"), ("delete", "--force")):
        done = os.run("openstack", "volume", "backup", *words, backup, check=False)
        assert done.returncode != 0
        assert "403" in done.stderr
    assert api.status("backup", backup) == "available"
    shows(client, "refusal: members do what administrators may")


def test_messages_name_what_failed(typing: Typing, admin: User, api: Client, shows: Shown) -> None:
    os = typing(admin, OS_VOLUME_API_VERSION="3.71")
    volume = api.create_volume()
    words = ("volume", "backup", "create", "--availability-zone", "nowhere", volume)
    made = os.openstack(*words)
    api.wait_status("backup", made["id"], "error")
    told = os.openstack("volume", "message", "list")
    (mine,) = [row for row in told if row["Resource UUID"] == made["id"]]
    assert mine["Resource Type"] == "VOLUME_BACKUP"
    shows(V3, "messages of failed operations")

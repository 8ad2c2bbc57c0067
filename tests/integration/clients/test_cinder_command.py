"""python-cinderclient, which knows version 3 only, against a served instance behind Keystone."""

from __future__ import annotations

import base64
import json
import uuid
from pathlib import Path

import pytest

from tests.integration.clients.commands import Commands
from tests.integration.clients.conftest import Typing
from tests.integration.clients.content import GIB, fill
from tests.integration.clients.table import Shown
from tests.integration.clients.world import World
from tests.integration.content import change_image, same_content
from tests.integration.service import Client
from tests.servers.keystone import User

pytestmark = pytest.mark.server

#: The table's name for it.
CINDER = "cinder v3"


@pytest.fixture(scope="module")
def cinder(typing: Typing, admin: User) -> Commands:
    return typing(admin, OS_VOLUME_API_VERSION="3.71")


@pytest.fixture(scope="module")
def api(world: World, admin: User) -> Client:
    """Looks at what the commands did, and waits."""
    return world.client(admin)


def test_a_volume_from_backup_to_restore(cinder: Commands, api: Client, shows: Shown) -> None:
    made = cinder.cinder_shows("create", "--name", "of-cinder", "1")
    api.wait_status("volume", made["id"], "available")
    source = api.volume_path(made["id"])
    fill(source, seed=3)
    words = ("backup-create", "--name", "cinder-full", "--metadata", "a=b", "--")
    full = cinder.cinder_shows(*words, "of-cinder")
    api.wait_status("backup", full["id"], "available")
    change_image(source, 5)
    second = cinder.cinder_shows("backup-create", "--name", "cinder-second", "--incremental", made["id"])
    api.wait_status("backup", second["id"], "available")
    assert api.expect(200, "GET", f"/backups/{second['id']}")["backup"]["is_incremental"]
    shows(CINDER, "create a backup: full", "… incremental")

    listed = cinder.run(
        "cinder", "backup-list", "--volume-id", made["id"], "--with-count", "--limit", "1"
    ).stdout
    assert "Backup in total: 2" in listed
    shows(CINDER, "… with a count")
    (page,) = cinder.cinder(
        "backup-list", "--limit", "1", "--marker", second["id"], "--volume-id", made["id"]
    )
    assert page["ID"] == full["id"]
    shows(CINDER, "… by pages")
    listed = cinder.cinder("backup-list", "--sort", "name:asc", "--filters", "name~=cinder-")
    assert [row["Name"] for row in listed] == ["cinder-full", "cinder-second"]
    shows(CINDER, "list, with filters")
    assert api.expect(200, "GET", f"/backups/{full['id']}/metadata") == {"metadata": {"a": "b"}}
    shows(CINDER, "… with metadata")
    shown = cinder.cinder_shows("backup-show", "cinder-full")
    assert (shown["id"], shown["status"], shown["has_dependent_backups"]) == (full["id"], "available", "True")
    assert cinder.cinder_shows("backup-show", second["id"])["name"] == "cinder-second"
    shows(CINDER, "show by id", "show by name")
    cinder.run("cinder", "backup-update", "--name", "cinder-new", "--metadata", "c=d", "--", full["id"])
    body = api.expect(200, "GET", f"/backups/{full['id']}/metadata")
    assert (api.expect(200, "GET", f"/backups/{full['id']}")["backup"]["name"], body) == (
        "cinder-new",
        {"metadata": {"c": "d"}},
    )
    shows(CINDER, "name, description, metadata afterwards")

    restored = cinder.cinder_shows("backup-restore", "--name", "cinder-restored", "cinder-second")
    api.wait_status("backup", second["id"], "available")
    typed = cinder.cinder_shows("backup-restore", "--volume-type", "__DEFAULT__", second["id"])
    for answer in (restored, typed):
        api.wait_status("volume", answer["volume_id"], "available")
        assert same_content(source, api.volume_path(answer["volume_id"]), GIB)
    assert typed["volume_name"] == f"restore_backup_{second['id']}"
    shows(CINDER, "restore to a new volume", "a new volume from a backup (3.47)")
    fill(api.volume_path(restored["volume_id"]), seed=4)
    api.wait_status("backup", second["id"], "available")
    cinder.run("cinder", "backup-restore", "--volume", "cinder-restored", second["id"])
    api.wait_status("volume", restored["volume_id"], "available")
    api.wait_status("backup", second["id"], "available")
    assert same_content(source, api.volume_path(restored["volume_id"]), GIB)
    shows(CINDER, "restore over a volume")

    cinder.run("cinder", "backup-delete", "cinder-new", second["id"])
    api.wait_status("backup", full["id"], None)
    api.wait_status("backup", second["id"], None)
    shows(CINDER, "delete")
    volumes = {row["ID"]: row["Name"] for row in cinder.cinder("list")}
    assert (volumes[made["id"]], volumes[restored["volume_id"]]) == ("of-cinder", "cinder-restored")
    cinder.run("cinder", "rename", made["id"], "renamed-by-cinder", "--description", "d")
    cinder.run("cinder", "metadata", made["id"], "set", "e=f")
    cinder.run("cinder", "extend", made["id"], "2")
    api.wait_status("volume", made["id"], "available")
    shown = cinder.cinder_shows("show", made["id"])
    told = api.expect(200, "GET", f"/volumes/{made['id']}")["volume"]
    assert (told["name"], told["description"], told["size"]) == ("renamed-by-cinder", "d", 2)
    assert told["metadata"] == {"e": "f"}
    assert (shown["name"], shown["size"]) == ("renamed-by-cinder", "2")
    shows(CINDER, "volumes: change")
    cinder.run("cinder", "delete", "renamed-by-cinder")
    api.wait_status("volume", made["id"], None)
    shows(CINDER, "volumes: create, show, list, delete")


def test_a_snapshot_and_its_backup(cinder: Commands, api: Client, shows: Shown) -> None:
    volume = api.create_volume()
    made = cinder.cinder_shows("snapshot-create", "--name", "of-cinder", volume)
    api.wait_status("snapshot", made["id"], "available")
    (row,) = cinder.cinder("snapshot-list", "--volume-id", volume)
    assert (row["ID"], row["Name"]) == (made["id"], "of-cinder")
    backup = cinder.cinder_shows("backup-create", "--snapshot-id", made["id"], volume)
    api.wait_status("backup", backup["id"], "available")
    assert api.expect(200, "GET", f"/backups/{backup['id']}")["backup"]["snapshot_id"] == made["id"]
    shows(CINDER, "… of a snapshot")
    cinder.run("cinder", "snapshot-delete", "of-cinder")
    api.wait_status("snapshot", made["id"], None)
    shows(CINDER, "snapshots: create, list, delete")


def test_zones(cinder: Commands, api: Client, shows: Shown) -> None:
    words = ("backup-create", "--name", "for-another-zone", "--availability-zone", "nova")
    backup = cinder.cinder_shows(*words, api.create_volume())["id"]
    api.wait_status("backup", backup, "available")
    assert api.expect(200, "GET", f"/backups/{backup}")["backup"]["availability_zone"] == "nova"
    shows(CINDER, "… in an availability zone")
    words = ("backup-restore", "--availability-zone", "elsewhere", "for-another-zone")
    made = cinder.cinder_shows(*words)
    api.wait_status("volume", made["volume_id"], "available")
    assert cinder.cinder_shows("show", made["volume_id"])["availability_zone"] == "elsewhere"
    (zone,) = cinder.cinder("availability-zone-list")
    assert zone == {"Name": "nova", "Status": "available"}
    assert api.status("backup", backup) == "available"


def test_a_record_brings_a_backup_to_another_service(cinder: Commands, api: Client, shows: Shown) -> None:
    volume = api.create_volume()
    fill(api.volume_path(volume), seed=6)
    backup = api.backup(volume)
    done = cinder.run("cinder", "backup-export", backup).stdout
    # The command folds the record over several rows of its table.
    cells = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in done.splitlines() if "|" in line
    ]
    url = "".join(value for _name, value in cells[cells.index(["backup_service", cells[1][1]]) + 1 :])
    shown = api.expect(200, "GET", f"/backups/{backup}/export_record")["backup-record"]
    assert (cells[1][1], url) == (shown["backup_service"], shown["backup_url"])
    shows(CINDER, "export a record")
    duplicate = str(uuid.uuid4())
    record = {**json.loads(base64.b64decode(url)), "id": duplicate}
    text = base64.b64encode(json.dumps(record).encode()).decode()
    imported = cinder.cinder_shows("backup-import", shown["backup_service"], text)
    assert imported["id"] == duplicate
    api.wait_status("backup", duplicate, "available")
    api.delete_backup(backup)
    assert same_content(api.volume_path(volume), api.volume_path(api.restore(duplicate)), GIB)
    shows(CINDER, "import a record")


def test_what_an_administrator_resets(cinder: Commands, api: Client, shows: Shown) -> None:
    backup = api.backup(api.create_volume())
    cinder.run("cinder", "backup-reset-state", "--state", "error", backup)
    assert api.status("backup", backup) == "error"
    cinder.run("cinder", "backup-reset-state", backup)
    assert api.status("backup", backup) == "available"
    shows(CINDER, "reset the status")
    cinder.run("cinder", "backup-delete", "--force", backup)
    api.wait_status("backup", backup, None)
    shows(CINDER, "force delete")


def test_a_member_is_no_administrator(typing: Typing, member: User, api: Client, shows: Shown) -> None:
    cinder = typing(member, OS_VOLUME_API_VERSION="3.71")
    backup = api.backup(api.create_volume())
    done = cinder.run("cinder", "backup-export", backup, check=False)
    assert done.returncode != 0
    assert "HTTP 403" in done.stderr
    shows(CINDER, "refusal: members do what administrators may")


def test_limits_services_and_messages(cinder: Commands, api: Client, world: World, shows: Shown) -> None:
    project = world.keystone.add_project("with-a-quota")
    cinder.run("cinder", "quota-update", "--backups", "7", project)
    assert cinder.cinder_shows("quota-show", project)["backups"] == "7"
    assert api.expect(200, "GET", f"/os-quota-sets/{project}")["quota_set"]["backups"] == 7
    usage = {row["Type"]: row for row in cinder.cinder("quota-usage", project)}
    assert (usage["backups"]["In_use"], usage["backups"]["Limit"]) == ("0", "7")
    cinder.run("cinder", "quota-delete", project)
    assert cinder.cinder_shows("quota-show", project) == cinder.cinder_shows("quota-defaults", project)
    shows(CINDER, "quotas")
    limits = {row["Name"]: row["Value"] for row in cinder.cinder("absolute-limits")}
    absolute = api.expect(200, "GET", "/limits")["limits"]["absolute"]
    assert limits == {name: str(value) for name, value in absolute.items()}
    shows(CINDER, "limits")
    (row,) = cinder.cinder("service-list", "--binary", "cinder-backup")
    assert (row["Status"], row["State"]) == ("enabled", "up")
    shows(CINDER, "services")
    volume = api.create_volume()
    words = ("backup-create", "--availability-zone", "nowhere", volume)
    lost = cinder.cinder_shows(*words)
    api.wait_status("backup", lost["id"], "error")
    (told,) = cinder.cinder("message-list", "--resource_uuid", lost["id"])
    assert told["Resource Type"] == "VOLUME_BACKUP"
    shows(CINDER, "messages of failed operations")
    (filters,) = cinder.cinder("list-filters", "--resource", "backup")
    assert "name" in filters["Filters"]
    assert {row["Id"] for row in cinder.cinder("version-list")} >= {"v3.0"}
    shows(CINDER, "discovery of versions")


def test_it_has_no_type_none(clients: Path) -> None:
    """Its own ``--os-endpoint`` and keystoneauth's are in each other's way: docs/clients.md.

    What does without Keystone is among README's lines.
    """
    variables = {"OS_AUTH_TYPE": "none", "OS_ENDPOINT": "http://127.0.0.1:8776/v3/demo"}
    done = Commands(variables, clients).run("cinder", "backup-list", check=False)
    assert done.returncode != 0
    assert "conflicting option" in done.stderr

"""The backups API: every operation, and what each refuses."""

from __future__ import annotations

import base64
import datetime
import json
import re
import uuid
from typing import Any

import pytest

from backupfw.db import models
from tests.functional.cloud import NOBODY, SERVICE, Client, Cloud, message, record

SUMMARY = {"id", "name", "links"}
DETAIL = SUMMARY | {
    "status",
    "size",
    "object_count",
    "availability_zone",
    "container",
    "created_at",
    "updated_at",
    "description",
    "fail_reason",
    "volume_id",
    "is_incremental",
    "has_dependent_backups",
    "snapshot_id",
    "data_timestamp",
}
TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}")


def links(backup_id: str, project: str = "demo") -> list[dict[str, str]]:
    return [
        {"rel": "self", "href": f"http://localhost/v2/{project}/backups/{backup_id}"},
        {"rel": "bookmark", "href": f"http://localhost/{project}/backups/{backup_id}"},
    ]


# Create


def test_a_backup_is_created_and_becomes_available(cloud: Cloud, member: Client) -> None:
    volume = cloud.volume()
    body = {
        "backup": {
            "volume_id": volume,
            "container": None,
            "name": "  b1 ",
            "description": " first ",
            "incremental": False,
            "force": False,
            "snapshot_id": None,
        }
    }
    backup = member.post("/backups", body).json["backup"]
    assert backup == {"id": backup["id"], "name": "b1", "links": links(backup["id"])}
    shown = member.get(f"/backups/{backup['id']}").json
    assert set(shown) == {"backup"}
    shown = shown["backup"]
    assert set(shown) == DETAIL
    assert shown["status"] == "creating"
    assert shown["description"] == "first"
    assert shown["object_count"] == 0
    assert shown["size"] == 1
    assert shown["container"] == "volumebackups"
    assert shown["availability_zone"] == "nova"
    assert shown["fail_reason"] is None
    assert shown["is_incremental"] is False
    assert shown["has_dependent_backups"] is False
    assert shown["snapshot_id"] is None
    for key in ("created_at", "updated_at", "data_timestamp"):
        assert TIME.fullmatch(shown[key]), key
    assert shown["data_timestamp"] == shown["created_at"]
    assert member.get(f"/volumes/{volume}").json["volume"]["status"] == "backing-up"
    cloud.settle()
    assert member.get(f"/backups/{backup['id']}").json["backup"]["status"] == "available"
    assert member.get(f"/volumes/{volume}").json["volume"]["status"] == "available"


def test_create_with_a_name_only_of_blanks_and_one_of_full_length(cloud: Cloud, member: Client) -> None:
    volume = cloud.volume()
    for name, kept in (("   ", ""), ("ä" * 255, "ä" * 255), ("\U0001f600", "\U0001f600"), (None, None)):
        backup = cloud.backup(volume, name=name)
        assert member.get(f"/backups/{backup}").json["backup"]["name"] == kept


def test_create_in_a_container(cloud: Cloud, member: Client) -> None:
    backup = cloud.backup(cloud.volume(), container="mine")
    assert member.get(f"/backups/{backup}").json["backup"]["container"] == "mine"


@pytest.mark.parametrize("container", ["../x", "a/b", ".", "a\tb"])
def test_create_in_a_container_that_is_none(cloud: Cloud, member: Client, container: str) -> None:
    body = {"backup": {"volume_id": cloud.volume(), "container": container}}
    assert message(member.post("/backups", body, 400)).startswith("Invalid input received: ")
    assert cloud.count(models.Backup) == 0


@pytest.mark.parametrize("word", [True, "1", "yes", "On", "TRUE", "t"])
def test_force_by_any_word(cloud: Cloud, member: Client, word: object) -> None:
    volume = cloud.volume()
    attach(member, volume)
    member.post("/backups", {"backup": {"volume_id": volume, "force": word}})


def attach(client: Client, volume: str) -> None:
    client.post(f"/volumes/{volume}/action", {"os-attach": {"mountpoint": "/dev/vdb", "host_name": "h"}})


def test_create_of_a_volume_in_use(cloud: Cloud, member: Client) -> None:
    volume = cloud.volume()
    attach(member, volume)
    refused = member.post("/backups", {"backup": {"volume_id": volume}}, 400)
    assert message(refused) == "Invalid volume: Backing up an in-use volume must use the force flag."
    cloud.backup(volume, force=True)
    assert member.get(f"/volumes/{volume}").json["volume"]["status"] == "in-use"


@pytest.mark.parametrize("status", ["creating", "backing-up", "error", "deleting", "restoring-backup"])
def test_create_of_a_volume_in_a_wrong_state(cloud: Cloud, member: Client, status: str) -> None:
    volume = cloud.volume()
    cloud.set_status(models.Volume, volume, status)
    refused = member.post("/backups", {"backup": {"volume_id": volume, "force": True}}, 400)
    assert message(refused) == (
        "Invalid volume: Volume to be backed up must be available or in-use, "
        f'but the current status is "{status}".'
    )


def test_create_from_a_snapshot(cloud: Cloud, member: Client) -> None:
    volume = cloud.volume()
    snapshot = cloud.snapshot(volume)
    cloud.set_status(models.Volume, volume, "error")
    backup = cloud.backup(volume, snapshot_id=snapshot)
    shown = member.get(f"/backups/{backup}").json["backup"]
    assert shown["snapshot_id"] == snapshot
    assert shown["data_timestamp"] == member.get(f"/snapshots/{snapshot}").json["snapshot"]["created_at"]


def test_create_from_a_snapshot_of_another_volume(cloud: Cloud, member: Client) -> None:
    volume, other = cloud.volume(), cloud.volume()
    snapshot = cloud.snapshot(other)
    refused = member.post("/backups", {"backup": {"volume_id": volume, "snapshot_id": snapshot}}, 400)
    assert message(refused) == (
        f"Invalid volume: Volume {volume} does not match with snapshot.volume_id {other}."
    )


def test_create_from_a_snapshot_in_a_wrong_state(cloud: Cloud, member: Client) -> None:
    volume = cloud.volume()
    snapshot = cloud.snapshot(volume)
    cloud.set_status(models.Snapshot, snapshot, "error")
    refused = member.post("/backups", {"backup": {"volume_id": volume, "snapshot_id": snapshot}}, 400)
    assert message(refused) == (
        'Invalid snapshot: Snapshot to be backed up must be available, but the current status is "error".'
    )


def test_create_of_what_is_not_there(cloud: Cloud, member: Client) -> None:
    refused = member.post("/backups", {"backup": {"volume_id": NOBODY}}, 404)
    assert message(refused) == f"Volume {NOBODY} could not be found."
    volume = cloud.volume()
    refused = member.post("/backups", {"backup": {"volume_id": volume, "snapshot_id": NOBODY}}, 404)
    assert message(refused) == f"Snapshot {NOBODY} could not be found."
    theirs = cloud.volume("other")
    refused = member.post("/backups", {"backup": {"volume_id": theirs}}, 404)
    assert message(refused) == f"Volume {theirs} could not be found."


def test_an_incremental_backup_needs_a_parent(cloud: Cloud, member: Client) -> None:
    volume = cloud.volume()
    body = {"backup": {"volume_id": volume, "incremental": "true"}}
    refused = member.post("/backups", body, 400)
    assert message(refused) == "Invalid backup: No backups available to do an incremental backup."
    full = cloud.backup(volume)
    child = cloud.backup(volume, incremental=True)
    assert member.get(f"/backups/{child}").json["backup"]["is_incremental"] is True
    assert member.get(f"/backups/{full}").json["backup"]["has_dependent_backups"] is True
    assert member.get(f"/backups/{child}").json["backup"]["has_dependent_backups"] is False


def test_incremental_parents_are_the_projects_own(cloud: Cloud, member: Client) -> None:
    volume = cloud.volume()
    full = cloud.backup(volume)
    outsider = cloud.client("ops", "admin")
    body = {"backup": {"volume_id": volume, "incremental": True}}
    refused = outsider.post("/backups", body, 400)
    assert message(refused) == "Invalid backup: No backups available to do an incremental backup."
    outsider.post("/backups", {"backup": {"volume_id": volume}})
    cloud.settle()
    outsider.post("/backups", body)
    cloud.settle()
    assert member.get(f"/backups/{full}").json["backup"]["has_dependent_backups"] is False


INVALID_CREATES: list[tuple[Any, str]] = [
    (None, "None is not of type 'object'"),
    ([], "[] is not of type 'object'"),
    ("backup", "'backup' is not of type 'object'"),
    (7, "7 is not of type 'object'"),
    ({}, "'backup' is a required property"),
    ({"backup": None}, "None is not of type 'object'"),
    ({"backup": []}, "[] is not of type 'object'"),
    ({"backup": {}}, "'volume_id' is a required property"),
    ({"backup": {"volume_id": NOBODY}, "more": 1}, "('more' was unexpected)"),
    ({"backup": {"volume_id": NOBODY, "more": 1}}, "('more' was unexpected)"),
    ({"backup": {"volume_id": NOBODY, "metadata": {}}}, "('metadata' was unexpected)"),
    ({"backup": {"volume_id": NOBODY, "availability_zone": "nova"}}, "('availability_zone' was unexpected)"),
    ({"backup": {"volume_id": None}}, "field/attribute volume_id"),
    ({"backup": {"volume_id": 1}}, "field/attribute volume_id"),
    ({"backup": {"volume_id": "name"}}, "field/attribute volume_id"),
    ({"backup": {"volume_id": NOBODY, "snapshot_id": ""}}, "field/attribute snapshot_id"),
    ({"backup": {"volume_id": NOBODY, "snapshot_id": 5}}, "field/attribute snapshot_id"),
    ({"backup": {"volume_id": NOBODY, "name": "n" * 256}}, "is too long"),
    ({"backup": {"volume_id": NOBODY, "name": 5}}, "field/attribute name"),
    ({"backup": {"volume_id": NOBODY, "container": "c" * 256}}, "field/attribute container"),
    ({"backup": {"volume_id": NOBODY, "container": {}}}, "field/attribute container"),
    ({"backup": {"volume_id": NOBODY, "description": "d" * 256}}, "field/attribute description"),
    ({"backup": {"volume_id": NOBODY, "description": "a\nb"}}, "field/attribute description"),
    ({"backup": {"volume_id": NOBODY, "description": "\U0001f600"}}, "field/attribute description"),
    ({"backup": {"volume_id": NOBODY, "force": 1}}, "field/attribute force"),
    ({"backup": {"volume_id": NOBODY, "force": None}}, "field/attribute force"),
    ({"backup": {"volume_id": NOBODY, "force": "maybe"}}, "field/attribute force"),
    ({"backup": {"volume_id": NOBODY, "incremental": 0}}, "field/attribute incremental"),
    ({"backup": {"volume_id": NOBODY, "incremental": "tRUE"}}, "field/attribute incremental"),
]


@pytest.mark.parametrize(("body", "text"), INVALID_CREATES)
def test_an_invalid_create_is_refused(shared: Cloud, body: Any, text: str) -> None:
    assert text in message(shared.client().post("/backups", body, 400))


def test_a_backup_beyond_the_quota_is_refused(cloud: Cloud, member: Client) -> None:
    cloud.conf.set_override("backups", 1, "quota")
    volume = cloud.volume()
    cloud.backup(volume)
    refused = member.post("/backups", {"backup": {"volume_id": volume}}, 413)
    assert message(refused) == "BackupLimitExceeded: Maximum number of backups allowed (1) exceeded"
    assert member.get(f"/volumes/{volume}").json["volume"]["status"] == "available"
    cloud.start_worker()
    refused = cloud.client(roles="admin").post("/backups/import_record", record(), 413)
    assert message(refused) == "BackupLimitExceeded: Maximum number of backups allowed (1) exceeded"


def test_gigabytes_beyond_the_quota_are_refused(cloud: Cloud, member: Client) -> None:
    cloud.conf.set_override("backup_gigabytes", 2, "quota")
    volume = cloud.volume(size=3)
    refused = member.post("/backups", {"backup": {"volume_id": volume}}, 413)
    assert message(refused).startswith(
        "VolumeBackupSizeExceedsAvailableQuota: Requested backup exceeds allowed Backup gigabytes quota"
    )


# Show, delete


@pytest.mark.parametrize(
    "name",
    [
        NOBODY,
        "a-name",
        "detail2",
        "name.json",
        "%C3%BC",
        "%00",
        "%ff",
        "a" * 5000,
        NOBODY + ".json",
        NOBODY + "%0a",
        "%2e%2e",
    ],
)
def test_what_is_not_there(shared: Cloud, name: str) -> None:
    client = shared.client()
    client.get(f"/backups/{name}", 404)
    client.delete(f"/backups/{name}", 404)
    client.post(f"/backups/{name}/restore", {"restore": {}}, 404)
    client.get(f"/backups/{name}/export_record", 404)
    admin = shared.client(roles="admin")
    admin.get(f"/backups/{name}/export_record", 404)
    admin.post(f"/backups/{name}/action", {"os-force_delete": {}}, 404)
    admin.post(f"/backups/{name}/action", {"os-reset_status": {"status": "error"}}, 404)


def test_not_found_says_what(shared: Cloud) -> None:
    assert message(shared.client().get(f"/backups/{NOBODY}", 404)) == f"Backup {NOBODY} could not be found."


def test_ids_are_taken_in_any_case_and_with_a_slash(cloud: Cloud, member: Client) -> None:
    backup = cloud.backup(cloud.volume())
    assert member.get(f"/backups/{backup.upper()}/").json["backup"]["id"] == backup


def test_ids_in_bodies_are_taken_in_every_spelling(cloud: Cloud, member: Client) -> None:
    volume = cloud.volume()
    for text in (volume.upper(), volume.replace("-", ""), f"{{{volume}}}", f"urn:uuid:{volume}"):
        backup = member.post("/backups", {"backup": {"volume_id": text}}).json["backup"]["id"]
        assert member.get(f"/backups/{backup}").json["backup"]["volume_id"] == volume
        cloud.settle()
        answer = member.post(f"/backups/{backup}/restore", {"restore": {"volume_id": text}})
        assert answer.json["restore"]["volume_id"] == volume
        cloud.settle()
    snapshot = member.post("/snapshots", {"snapshot": {"volume_id": volume.upper()}}).json["snapshot"]
    assert snapshot["volume_id"] == volume
    cloud.settle()
    body: dict[str, Any] = {"backup": {"volume_id": volume, "snapshot_id": snapshot["id"].upper()}}
    backup = member.post("/backups", body).json["backup"]["id"]
    assert member.get(f"/backups/{backup}").json["backup"]["snapshot_id"] == snapshot["id"]
    cloud.settle()
    for field, source in (("snapshot_id", snapshot["id"]), ("source_volid", volume)):
        made = member.post("/volumes", {"volume": {field: source.upper()}}).json["volume"]
        assert made[field] == source


def test_another_projects_backup_is_not_there_but_for_administrators(cloud: Cloud) -> None:
    backup = cloud.backup(cloud.volume())
    outsider = cloud.client("other")
    outsider.get(f"/backups/{backup}", 404)
    outsider.delete(f"/backups/{backup}", 404)
    outsider.post(f"/backups/{backup}/restore", {"restore": {}}, 404)
    outsider.get(f"/backups/{backup}/export_record", 404)
    outsider.post(f"/backups/{backup}/action", {"os-force_delete": {}}, 404)
    admin = cloud.client("other", "admin")
    assert admin.get(f"/backups/{backup}").json["backup"]["links"] == links(backup, "other")
    admin.delete(f"/backups/{backup}")


def test_a_deleted_backup_is_gone(cloud: Cloud, member: Client) -> None:
    backup = cloud.backup(cloud.volume())
    assert member.delete(f"/backups/{backup}").body == b""
    assert member.get(f"/backups/{backup}").json["backup"]["status"] == "deleting"
    refused = member.delete(f"/backups/{backup}", 400)
    assert message(refused) == "Invalid backup: Backup status must be available or error"
    cloud.settle()
    member.get(f"/backups/{backup}", 404)
    member.delete(f"/backups/{backup}", 404)


@pytest.mark.parametrize("status", ["creating", "restoring", "deleting", "error_deleting"])
def test_delete_in_a_wrong_state(cloud: Cloud, member: Client, status: str) -> None:
    backup = cloud.backup(cloud.volume())
    cloud.set_status(models.Backup, backup, status)
    refused = member.delete(f"/backups/{backup}", 400)
    assert message(refused) == "Invalid backup: Backup status must be available or error"


def test_delete_of_a_parent(cloud: Cloud, member: Client) -> None:
    volume = cloud.volume()
    full = cloud.backup(volume)
    cloud.backup(volume, incremental=True)
    cloud.conf.set_override("refuse_delete_of_parents", True, "backup")
    refused = "Invalid backup: Incremental backups exist for this backup."
    assert message(member.delete(f"/backups/{full}", 400)) == refused
    admin = cloud.client("ops", "admin")
    force: dict[str, Any] = {"os-force_delete": {}}
    assert message(admin.post(f"/backups/{full}/action", force, 400)) == refused
    cloud.conf.set_override("refuse_delete_of_parents", False, "backup")
    member.delete(f"/backups/{full}")


# Restore


def test_restore_to_a_new_volume(cloud: Cloud, member: Client) -> None:
    backup = cloud.backup(cloud.volume(size=2))
    answer = member.post(f"/backups/{backup}/restore", {"restore": {}}).json
    assert set(answer) == {"restore"}
    restore = answer["restore"]
    assert restore == {
        "backup_id": backup,
        "volume_id": restore["volume_id"],
        "volume_name": f"restore_backup_{backup}",
    }
    volume = member.get(f"/volumes/{restore['volume_id']}").json["volume"]
    assert (volume["status"], volume["size"]) == ("restoring-backup", 2)
    assert volume["metadata"]["src_backup_id"] == backup
    assert member.get(f"/backups/{backup}").json["backup"]["status"] == "restoring"
    refused = member.post(f"/backups/{backup}/restore", {"restore": {}}, 400)
    assert message(refused) == "Invalid backup: Backup status must be available"


def test_restore_to_a_named_volume(cloud: Cloud, member: Client) -> None:
    backup = cloud.backup(cloud.volume())
    body = {"restore": {"volume_id": None, "name": " back "}}
    assert member.post(f"/backups/{backup}/restore", body).json["restore"]["volume_name"] == "back"


def test_restore_to_an_existing_volume(cloud: Cloud, member: Client) -> None:
    backup = cloud.backup(cloud.volume())
    target = cloud.volume(size=2, name="old")
    body = {"restore": {"volume_id": target, "name": "ignored"}}
    restore = member.post(f"/backups/{backup}/restore", body).json["restore"]
    assert restore == {"backup_id": backup, "volume_id": target, "volume_name": "old"}
    assert member.get(f"/volumes/{target}").json["volume"]["status"] == "restoring-backup"


def test_restore_to_a_volume_without_a_name(cloud: Cloud, member: Client) -> None:
    backup, target = cloud.backup(cloud.volume()), cloud.volume()
    restore = member.post(f"/backups/{backup}/restore", {"restore": {"volume_id": target}}).json["restore"]
    assert restore["volume_name"] == ""


def test_a_restore_to_a_wrong_volume_is_refused(cloud: Cloud, member: Client) -> None:
    backup = cloud.backup(cloud.volume(size=2))
    path = f"/backups/{backup}/restore"
    missing = member.post(path, {"restore": {"volume_id": NOBODY}}, 404)
    assert message(missing) == f"Volume {NOBODY} could not be found."
    member.post(path, {"restore": {"volume_id": cloud.volume("other", 2)}}, 404)
    small = member.post(path, {"restore": {"volume_id": cloud.volume(size=1)}}, 400)
    assert message(small) == ("Invalid volume: volume size 1 is too small to restore backup of size 2.")
    used = cloud.volume(size=2)
    attach(member, used)
    busy = member.post(path, {"restore": {"volume_id": used}}, 400)
    assert message(busy).startswith("Invalid volume: Volume to be restored to must be available")
    cloud.conf.set_override("volumes", 0, "quota")
    # Without the name that the making of a volume is refused with.
    assert message(member.post(path, {"restore": {}}, 413)).startswith(
        "Maximum number of volumes allowed (0)"
    )
    assert member.get(f"/backups/{backup}").json["backup"]["status"] == "available"


@pytest.mark.parametrize("status", ["creating", "error", "deleting", "error_deleting"])
def test_restore_in_a_wrong_state(cloud: Cloud, member: Client, status: str) -> None:
    backup = cloud.backup(cloud.volume())
    cloud.set_status(models.Backup, backup, status)
    refused = member.post(f"/backups/{backup}/restore", {"restore": {}}, 400)
    assert message(refused) == "Invalid backup: Backup status must be available"


INVALID_RESTORES: list[Any] = [
    None,
    [],
    {},
    {"restore": None},
    {"restore": []},
    {"restore": {"x": 1}},
    {"restore": {}, "x": 1},
    {"restore": {"volume_id": "name"}},
    {"restore": {"volume_id": 1}},
    {"restore": {"name": "n" * 256}},
    {"restore": {"name": 1}},
]


@pytest.mark.parametrize("body", INVALID_RESTORES)
def test_invalid_restores_come_before_existence(shared: Cloud, body: Any) -> None:
    shared.client().post(f"/backups/{NOBODY}/restore", body, 400)


# Export and import


def test_export_and_import_of_a_duplicate(cloud: Cloud, admin: Client) -> None:
    cloud.start_worker()
    backup = cloud.backup(cloud.volume(), name="original")
    exported = admin.get(f"/backups/{backup}/export_record").json
    assert set(exported) == {"backup-record"}
    body = exported["backup-record"]
    assert set(body) == {"backup_service", "backup_url"}
    assert body["backup_service"] == SERVICE
    fields = json.loads(base64.b64decode(body["backup_url"]))
    assert fields["id"] == backup
    duplicate = str(uuid.uuid4())
    fields.update({"id": duplicate})
    body["backup_url"] = base64.b64encode(json.dumps(fields).encode()).decode()
    imported = admin.post("/backups/import_record", {"backup-record": body}, 201).json
    assert imported == {"backup": {"id": duplicate, "name": None, "links": links(duplicate)}}
    shown = admin.get(f"/backups/{duplicate}").json["backup"]
    assert shown["status"] == "creating"
    assert shown["volume_id"] == "00000000-0000-0000-0000-000000000000"
    assert duplicate in [item["id"] for item in admin.get("/backups").json["backups"]]


def test_import_with_the_id_in_the_path(cloud: Cloud, admin: Client) -> None:
    cloud.start_worker()
    wanted = str(uuid.uuid4())
    admin.post(f"/backups/{NOBODY}/import_record", record(id=wanted), 400)
    admin.post("/backups/a-name/import_record", record(id=wanted), 400)
    answer = admin.post(f"/backups/{wanted.upper()}/import_record", record(id=wanted), 201)
    assert answer.json["backup"]["id"] == wanted


def test_import_of_a_living_and_of_a_deleted_id(cloud: Cloud, admin: Client) -> None:
    cloud.start_worker()
    backup = cloud.backup(cloud.volume())
    refused = admin.post("/backups/import_record", record(id=backup), 400)
    assert message(refused) == "Invalid backup: Backup already exists in database."
    admin.delete(f"/backups/{backup}")
    cloud.settle()
    admin.get(f"/backups/{backup}", 404)
    admin.post("/backups/import_record", record(id=backup), 201)
    admin.get(f"/backups/{backup}")


def test_import_without_a_worker(cloud: Cloud, admin: Client) -> None:
    refused = admin.post("/backups/import_record", record(), 503)
    assert message(refused) == "Service cinder-backup could not be found."


def test_import_of_an_unknown_service_is_taken(cloud: Cloud, admin: Client) -> None:
    cloud.start_worker()
    body = record()
    body["backup-record"]["backup_service"] = "nobody.knows.this"
    admin.post("/backups/import_record", body, 201)


def _url(text: bytes) -> dict[str, Any]:
    return {"backup-record": {"backup_service": SERVICE, "backup_url": base64.b64encode(text).decode()}}


INVALID_IMPORTS: list[tuple[Any, str]] = [
    (None, "None is not of type 'object'"),
    ({}, "'backup-record' is a required property"),
    ({"backup-record": None}, "None is not of type 'object'"),
    ({"backup-record": {}}, "is a required property"),
    ({"backup-record": {"backup_service": SERVICE}}, "'backup_url' is a required property"),
    ({"backup-record": {"backup_url": "e30="}}, "'backup_service' is a required property"),
    ({"backup-record": {"backup_service": SERVICE, "backup_url": ""}}, "field/attribute backup_url"),
    ({"backup-record": {"backup_service": SERVICE, "backup_url": "*"}}, "field/attribute backup_url"),
    ({"backup-record": {"backup_service": SERVICE, "backup_url": None}}, "field/attribute backup_url"),
    (
        {"backup-record": {"backup_service": "s" * 256, "backup_url": "e30="}},
        "field/attribute backup_service",
    ),
    ({"backup-record": {"backup_service": 1, "backup_url": "e30="}}, "field/attribute backup_service"),
    ({"backup-record": {"backup_service": SERVICE, "backup_url": "e30=", "x": 1}}, "('x' was unexpected)"),
    (_url(b"\xff"), "Invalid input received: Can't decode backup record."),
    (_url(b"not json"), "Invalid input received: Can't parse backup record."),
    (_url(b"[]"), "Invalid input received: Can't parse backup record."),
    (_url(b"[" * 50_000), "Invalid input received: Can't parse backup record."),
    (_url(b'{"id": NaN}'), "Invalid input received: Can't parse backup record."),
    (record(id=...), "Invalid input received: "),
    (record(size=...), "Invalid input received: "),
    (record(id="x"), "Invalid input received: "),
    (record(id=5), "Invalid input received: "),
    (record(size="1"), "Invalid input received: "),
    (record(size=-1), "Invalid input received: "),
    (record(size=10**30), "Invalid input received: "),
    (record(display_name="n" * 256), "Invalid input received: "),
    (record(container=["x"]), "Invalid input received: "),
    (record(display_name="\x00"), "Invalid input received: "),
    (record(service_metadata="\ud800"), "Invalid input received: "),
]


@pytest.mark.parametrize(("body", "text"), INVALID_IMPORTS)
def test_an_invalid_import_is_refused(shared: Cloud, body: Any, text: str) -> None:
    assert text in message(shared.client(roles="admin").post("/backups/import_record", body, 400))


@pytest.mark.parametrize("status", ["creating", "error", "restoring", "deleting", "error_deleting"])
def test_export_in_a_wrong_state(cloud: Cloud, admin: Client, status: str) -> None:
    backup = cloud.backup(cloud.volume())
    cloud.set_status(models.Backup, backup, status)
    refused = admin.get(f"/backups/{backup}/export_record", 400)
    assert message(refused) == f"Invalid backup: Backup status must be available and not {status}."


# Actions


@pytest.mark.parametrize("value", [None, {}, [], "x", 1])
def test_force_delete_takes_any_value(cloud: Cloud, admin: Client, value: object) -> None:
    backup = cloud.backup(cloud.volume())
    assert admin.post(f"/backups/{backup}/action", {"os-force_delete": value}).body == b""
    cloud.settle()
    admin.get(f"/backups/{backup}", 404)


@pytest.mark.parametrize("status", ["creating", "restoring", "error_deleting", "error", "deleting"])
def test_force_delete_in_any_state(cloud: Cloud, admin: Client, status: str) -> None:
    backup = cloud.backup(cloud.volume())
    cloud.set_status(models.Backup, backup, status)
    admin.post(f"/backups/{backup}/action", {"os-force_delete": {}})
    assert admin.get(f"/backups/{backup}").json["backup"]["status"] == "deleting"


def test_force_delete_while_creating_frees_the_volume(cloud: Cloud, admin: Client) -> None:
    volume = cloud.volume()
    backup = admin.post("/backups", {"backup": {"volume_id": volume}}).json["backup"]["id"]
    admin.post(f"/backups/{backup}/action", {"os-force_delete": None})
    assert admin.get(f"/volumes/{volume}").json["volume"]["status"] == "available"


def test_a_reset_gives_a_backup_the_status(cloud: Cloud, admin: Client) -> None:
    backup = cloud.backup(cloud.volume())
    path = f"/backups/{backup}/action"
    for word, status in (("ERROR", "error"), ("Available", "available"), ("error", "error")):
        assert admin.post(path, {"os-reset_status": {"status": word}}).body == b""
        assert admin.get(f"/backups/{backup}").json["backup"]["status"] == status


def test_reset_of_a_running_backup(cloud: Cloud, admin: Client) -> None:
    volume = cloud.volume()
    backup = admin.post("/backups", {"backup": {"volume_id": volume}}).json["backup"]["id"]
    admin.post(f"/backups/{backup}/action", {"os-reset_status": {"status": "available"}})
    shown = admin.get(f"/backups/{backup}").json["backup"]
    assert shown["status"] == "error"
    assert shown["fail_reason"]
    assert admin.get(f"/volumes/{volume}").json["volume"]["status"] == "available"


INVALID_ACTIONS: list[tuple[Any, str]] = [
    (None, "Malformed request body"),
    ([], "Malformed request body"),
    ({}, "Malformed request body"),
    ({"os-force_delete": {}, "os-reset_status": {"status": "error"}}, "Malformed request body"),
    ({"os-nothing": {}}, "There is no such action: os-nothing"),
    ({"": {}}, "There is no such action: "),
    ({"os-reset_status": None}, "None is not of type 'object'"),
    ({"os-reset_status": {}}, "'status' is a required property"),
    ({"os-reset_status": {"status": "creating"}}, "field/attribute status"),
    ({"os-reset_status": {"status": None}}, "field/attribute status"),
    ({"os-reset_status": {"status": "error", "x": 1}}, "('x' was unexpected)"),
]


@pytest.mark.parametrize(("body", "text"), INVALID_ACTIONS)
def test_invalid_actions_come_before_existence(shared: Cloud, body: Any, text: str) -> None:
    assert text in message(shared.client(roles="admin").post(f"/backups/{NOBODY}/action", body, 400))


# Policy


OFFSITE = {"store": "offsite"}


def test_what_each_role_may(cloud: Cloud) -> None:
    volume = cloud.volume()
    backup = cloud.backup(volume)
    cloud.start_worker()
    create = {"backup": {"volume_id": volume}}
    calls: list[tuple[str, str, Any, str, str]] = [
        ("GET", "/backups", None, "reader", "backup:get_all"),
        ("GET", "/backups/detail", None, "reader", "backup:get_all"),
        ("GET", f"/backups/{backup}", None, "reader", "backup:get"),
        ("POST", "/backups", create, "member", "backup:create"),
        ("POST", f"/backups/{backup}/restore", {"restore": {}}, "member", "backup:restore"),
        ("POST", f"/backups/{backup}/action", {"os-backupfw-cancel": {}}, "member", "backup:cancel"),
        ("POST", f"/backups/{backup}/action", {"os-backupfw-verify": {}}, "member", "backup:verify"),
        ("GET", f"/backups/{backup}/copies", None, "reader", "backup:get_copies"),
        ("POST", f"/backups/{backup}/action", {"os-backupfw-copy": OFFSITE}, "member", "backup:copy"),
        ("POST", f"/backups/{backup}/action", {"os-backupfw-remove_copy": OFFSITE}, "member", "backup:copy"),
        ("GET", f"/backups/{backup}/export_record", None, "admin", "backup:export-import"),
        ("POST", "/backups/import_record", record(), "admin", "backup:backup-import"),
        (
            "POST",
            f"/backups/{backup}/action",
            {"os-reset_status": {"status": "error"}},
            "admin",
            "volume_extension:backup_admin_actions:reset_status",
        ),
        ("DELETE", f"/backups/{backup}", None, "member", "backup:delete"),
        (
            "POST",
            f"/backups/{backup}/action",
            {"os-force_delete": {}},
            "admin",
            "volume_extension:backup_admin_actions:force_delete",
        ),
    ]
    levels = ["outsider", "reader", "member", "admin"]
    for method, path, body, level, rule in calls:
        for role in levels:
            client = cloud.client(roles=role)
            if levels.index(role) < levels.index(level):
                refused = client.call(method, path, body, 403)
                assert message(refused) == f"Policy doesn't allow {rule} to be performed."
    for method, path, body, level, _ in calls:
        cloud.set_status(models.Backup, backup, "available")
        assert cloud.client(roles=level).call(method, path, body).status_int < 300, (method, path)
        cloud.set_status(models.Volume, volume, "available")


# What later versions have


def test_what_v2_does_not_have(cloud: Cloud, member: Client) -> None:
    backup = cloud.backup(cloud.volume())
    member.put(f"/backups/{backup}", {"backup": {"name": "x"}}, 404)
    member.get(f"/backups/{backup}/metadata", 404)
    shown = member.get("/backups/detail?with_count=True").json
    assert set(shown) == {"backups"}
    assert set(shown["backups"][0]) == DETAIL
    member.get("/backups?sort_key=name", 400)


# Listings


@pytest.fixture
def five(cloud: Cloud) -> list[str]:
    """Five backups, newest first."""
    volume = cloud.volume()
    made = [cloud.backup(volume, name=f"b{number}") for number in range(5)]
    start = datetime.datetime(2026, 1, 1)
    for number, backup in enumerate(made):
        cloud.set_created(models.Backup, backup, start + datetime.timedelta(minutes=number))
    return made[::-1]


def ids(answer: Any) -> list[str]:
    return [item["id"] for item in answer.json["backups"]]


def test_a_listing_shows_summary_or_detail(member: Client, five: list[str]) -> None:
    plain = member.get("/backups")
    assert set(plain.json) == {"backups"}
    assert ids(plain) == five
    assert all(set(item) == SUMMARY for item in plain.json["backups"])
    detail = member.get("/backups/detail")
    assert ids(detail) == five
    assert all(set(item) == DETAIL for item in detail.json["backups"])
    assert ids(member.get("/backups/")) == five


@pytest.mark.parametrize("path", ["/backups", "/backups/detail"])
def test_pages_by_their_links(cloud: Cloud, member: Client, five: list[str], path: str) -> None:
    seen: list[str] = []
    answer = member.get(path + "?limit=2&sort_key=created_at&sort_dir=desc&x=%C3%A4")
    while True:
        seen += ids(answer)
        if "backups_links" not in answer.json:
            break
        (link,) = answer.json["backups_links"]
        assert link["rel"] == "next"
        assert link["href"].startswith(f"http://localhost/v2/demo{path}?")
        answer = member.get(link["href"].removeprefix("http://localhost/v2/demo"))
    assert seen == five


def test_a_page_that_is_just_full_has_a_link(member: Client, five: list[str]) -> None:
    answer = member.get("/backups?limit=5")
    assert "backups_links" in answer.json
    assert ids(member.get(f"/backups?limit=5&marker={five[-1]}")) == []
    assert set(member.get("/backups?limit=6").json) == {"backups"}


def test_limit_marker_and_offset(member: Client, five: list[str]) -> None:
    assert member.get("/backups?limit=0").json == {"backups": []}
    assert ids(member.get("/backups?limit=2&offset=1")) == five[1:3]
    assert ids(member.get(f"/backups?marker={five[1]}&limit=2")) == five[2:4]
    assert ids(member.get(f"/backups?marker={five[1]}&offset=1")) == five[3:]
    assert ids(member.get("/backups?limit=99999999999999999999")) == five
    missing = member.get(f"/backups?marker={NOBODY}", 404)
    assert NOBODY in message(missing)
    member.get("/backups?marker=name", 404)
    member.get("/backups?marker=" + "x" * 3000, 404)


def test_a_page_has_at_most_the_configured_items(cloud: Cloud, templates: Any, tmp_path: Any) -> None:
    short = Cloud(tmp_path, templates, osapi_max_limit=2)
    try:
        volume = short.volume()
        for _ in range(3):
            short.backup(volume)
        for text in ("", "?limit=3", "?limit=1000"):
            answer = short.client().get("/backups" + text)
            assert len(answer.json["backups"]) == 2
            assert "backups_links" in answer.json
    finally:
        short.close()


def test_a_listing_is_sorted_as_asked(cloud: Cloud, member: Client, five: list[str]) -> None:
    assert ids(member.get("/backups?sort_dir=asc")) == five[::-1]
    assert ids(member.get("/backups?sort=created_at:asc")) == five[::-1]
    assert ids(member.get("/backups?sort_key=id&sort_dir=asc")) == sorted(five)
    assert ids(member.get("/backups?sort=size,created_at:asc")) == five[::-1]
    assert ids(member.get("/backups?sort=display_name:asc&limit=2")) == five[:2:-1]
    for key in [
        "id",
        "created_at",
        "updated_at",
        "status",
        "size",
        "volume_id",
        "snapshot_id",
        "container",
        "availability_zone",
        "object_count",
        "data_timestamp",
        "display_name",
        "display_description",
        "fail_reason",
        "service",
        "host",
        "project_id",
        "user_id",
        "parent_id",
    ]:
        for word in ("asc", "desc"):
            everything = ids(member.get(f"/backups?sort={key}:{word}"))
            assert sorted(everything) == sorted(five), key
            paged = ids(member.get(f"/backups?sort={key}:{word}&limit=2"))
            paged += ids(member.get(f"/backups?sort={key}:{word}&marker={paged[-1]}"))
            assert paged == everything, key


INVALID_QUERIES: list[tuple[str, str]] = [
    ("limit=x", "limit param must be an integer"),
    ("limit=", "limit param must be an integer"),
    ("limit=1.0", "limit param must be an integer"),
    ("limit=-1", "limit param must be positive"),
    ("offset=-1", "offset"),
    ("offset=x", "offset"),
    ("offset=2147483648", "offset"),
    ("sort_key=nothing", "Sort key"),
    ("sort_key=name", "Sort key"),
    ("sort_key=deleted", "Sort key"),
    ("sort_key=metadata", "Sort key"),
    ("sort_dir=up", "sort direction"),
    ("sort=size:up", "sort direction"),
    ("sort=size&sort_key=id", "sort_key"),
    ("sort_key=id&sort_dir=asc,desc", "exceeds"),
    ("all_tenants=maybe", "all_tenants"),
    ("name=%00", "Malformed query"),
    ("name=%ff", "Malformed query"),
    ("%ff=1", "Malformed query"),
]


@pytest.mark.parametrize(("text", "words"), INVALID_QUERIES)
@pytest.mark.parametrize("path", ["/backups", "/backups/detail"])
def test_an_invalid_query_is_refused(shared: Cloud, path: str, text: str, words: str) -> None:
    for roles in ("member", "admin"):
        assert words in message(shared.client(roles=roles).get(f"{path}?{text}", 400))


def test_a_listing_shows_what_the_filters_match(cloud: Cloud, member: Client, five: list[str]) -> None:
    other = cloud.backup(cloud.volume(), name="ä b")
    cloud.set_status(models.Backup, other, "error")
    assert ids(member.get("/backups?name=%C3%A4%20b")) == [other]
    assert ids(member.get("/backups?name=b1&status=available")) == [five[3]]
    assert ids(member.get("/backups/detail?status=error")) == [other]
    assert ids(member.get("/backups?status=available,error")) == []
    volume = member.get(f"/backups/{other}").json["backup"]["volume_id"]
    assert ids(member.get(f"/backups?volume_id={volume}")) == [other]
    assert ids(member.get("/backups?name=nobody")) == []
    # Of a member everything else is dropped; of an administrator it is heard.
    assert len(ids(member.get("/backups?project_id=x&nonsense=y&name~=b"))) == 6
    admin = cloud.client(roles="admin")
    assert ids(admin.get("/backups?nonsense=y")) == []
    assert ids(admin.get("/backups?name~=b")) == []
    assert len(ids(admin.get("/backups?project_id=demo"))) == 6
    assert len(ids(admin.get("/backups?size=1"))) == 6
    for text in ("size=x", "size=" + "9" * 50, "created_at=x", "is_incremental=x", "object_count=3.0"):
        assert ids(admin.get(f"/backups?{text}")) == []


def test_only_administrators_see_all_projects(cloud: Cloud, member: Client) -> None:
    mine = cloud.backup(cloud.volume())
    theirs = cloud.backup(cloud.volume("other"), "other")
    admin = cloud.client(roles="admin")
    assert ids(admin.get("/backups")) == [mine]
    for word in ("1", "True", ""):
        assert set(ids(admin.get(f"/backups?all_tenants={word}"))) == {mine, theirs}
        assert ids(member.get(f"/backups?all_tenants={word}")) == [mine]
    assert ids(admin.get("/backups?all_tenants=False")) == [mine]
    assert ids(admin.get("/backups/detail?all_tenants=1&project_id=other")) == [theirs]
    member.get(f"/backups?marker={theirs}", 404)
    admin.get(f"/backups?marker={theirs}&all_tenants=1")

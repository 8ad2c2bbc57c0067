"""Volumes, snapshots and services under v3, below and at the microversions that changed them."""

from __future__ import annotations

import uuid
from typing import Any

import pytest

from backupfw.db import models
from tests.functional.cloud import NOBODY, Client, Cloud, message


def keys_added(client: Client, path: str, version: str | None) -> set[str]:
    """Return the keys that one thing has at a version and not in v2; show and detail must agree."""
    (collection,) = {"volumes", "snapshots"} & set(path.split("/"))
    shown = client.at(version).get(path).json[collection[:-1]]
    (listed,) = client.at(version).get(f"/{collection}/detail").json[collection]
    assert shown == listed
    old = client.get(path).json[collection[:-1]]
    assert {**shown, "links": None} == {**shown, **old, "links": None}
    return set(shown) - set(old)


#: Version, what everybody sees more, what administrators see more.
VOLUME_KEYS: list[tuple[str, set[str], set[str]]] = [
    ("3.13", {"group_id"}, set()),
    ("3.21", set(), {"provider_id"}),
    ("3.48", {"shared_targets", "service_uuid"}, set()),
    ("3.61", set(), {"cluster_name"}),
    ("3.63", {"volume_type_id"}, set()),
    ("3.65", {"consumes_quota"}, set()),
]


def before(version: str) -> str:
    """Return the microversion before one."""
    return f"3.{int(version.removeprefix('3.')) - 1}"


def test_a_volume_shows_the_keys_of_the_version(cloud: Cloud, member: Client, admin: Client) -> None:
    path = f"/volumes/{cloud.volume(volume_type='__DEFAULT__')}"
    for_all: set[str] = set()
    for_admin: set[str] = set()
    for version, all_see, admin_sees in VOLUME_KEYS:
        assert keys_added(member, path, before(version)) == for_all
        assert keys_added(admin, path, before(version)) == for_all | for_admin
        for_all |= all_see
        for_admin |= admin_sees
        assert keys_added(member, path, version) == for_all
        assert keys_added(admin, path, version) == for_all | for_admin
    assert keys_added(member, path, None) == set()
    shown = admin.at("latest").get(path).json["volume"]
    assert shown["consumes_quota"] is True
    assert shown["shared_targets"] is False
    assert all(shown[key] is None for key in ("group_id", "provider_id", "service_uuid", "cluster_name"))
    (kind,) = member.at("latest").get("/types?is_public=None").json["volume_types"]
    assert shown["volume_type_id"] == kind["id"]
    made = member.at("latest").post("/volumes", {"volume": {"size": 1}}).json["volume"]
    assert made["volume_type_id"] == kind["id"]
    changed = member.at("latest").put(path, {"volume": {"name": "x"}}).json["volume"]
    shown = member.at("latest").get(path).json["volume"]
    assert set(made) == set(shown) - {"os-vol-tenant-attr:tenant_id"}
    assert set(changed) == set(made) - {"volume_type_id", "consumes_quota"}


def test_a_snapshot_shows_the_keys_of_the_version(cloud: Cloud, member: Client) -> None:
    path = f"/snapshots/{cloud.snapshot(cloud.volume())}"
    seen: set[str] = set()
    for version, key in (("3.14", "group_snapshot_id"), ("3.41", "user_id"), ("3.65", "consumes_quota")):
        assert keys_added(member, path, before(version)) == seen
        seen.add(key)
        assert keys_added(member, path, version) == seen
    shown = member.at("latest").get(path).json["snapshot"]
    assert (shown["group_snapshot_id"], shown["user_id"], shown["consumes_quota"]) == (None, "alice", True)


# 3.12, 3.36: summary


def test_the_summary_counts_the_projects_volumes(cloud: Cloud, member: Client, admin: Client) -> None:
    for client in (member, member.at(None), member.at("3.11")):
        assert message(client.get("/volumes/summary", 404)) == "Volume summary could not be found."
    empty = {"volume-summary": {"total_count": 0, "total_size": 0}}
    assert member.at("3.12").get("/volumes/summary").json == empty
    cloud.volume(size=2, name="a", metadata={"tier": "gold", "x": "1"})
    cloud.volume(size=3, metadata={"tier": "silver"})
    cloud.volume(size=3, metadata={"tier": "gold"})
    cloud.volume("other", size=5)
    totals: dict[str, Any] = {"total_count": 3, "total_size": 8}
    assert member.at("3.35").get("/volumes/summary").json == {"volume-summary": totals}
    totals["metadata"] = {"tier": ["gold", "silver"], "x": ["1"]}
    assert member.at("3.36").get("/volumes/summary").json == {"volume-summary": totals}
    for query, count, size in (
        ("name=a", 1, 2),
        ("all_tenants=1", 3, 8),
        ("metadata={'tier': 'gold'}", 2, 5),
        ("status=error", 0, 0),
        ("limit=1", 3, 8),
    ):
        found = member.at("3.12").get(f"/volumes/summary?{query}").json["volume-summary"]
        assert found == {"total_count": count, "total_size": size}, query
    every = admin.at("3.12").get("/volumes/summary?all_tenants=1").json["volume-summary"]
    assert every == {"total_count": 4, "total_size": 13}
    member.at("3.31").get("/volumes/summary?nothing=1", 400)
    cloud.client(roles="none").at("3.12").get("/volumes/summary", 403)


# 3.23: delete with force


def test_an_administrator_deletes_in_any_status_from_3_23_on(
    cloud: Cloud, member: Client, admin: Client
) -> None:
    volume = cloud.volume()
    cloud.snapshot(volume)
    cloud.set_status(models.Volume, volume, "creating")
    path = f"/volumes/{volume}?cascade=True&force=True"
    for client in (admin, admin.at("3.22")):
        assert message(client.delete(path, 400)).startswith("Invalid volume: Volume status must be ")
    refused = member.at("3.23").delete(path, 403)
    assert message(refused) == "Policy doesn't allow volume:force_delete to be performed."
    for query in ("cascade=True&force=False", "force=maybe", "force=True"):  # the last: it has a snapshot
        admin.at("3.23").delete(f"/volumes/{volume}?{query}", 400)
    admin.at("3.23").delete(path)
    cloud.settle()
    admin.at("3.23").get(f"/volumes/{volume}", 404)


@pytest.mark.parametrize("version", [None, "3.23", "latest"])
def test_delete_as_clients_send_it(cloud: Cloud, member: Client, version: str | None) -> None:
    member.at(version).delete(f"/volumes/{cloud.volume()}?cascade=False&force=False")


# 3.47: a volume from a backup

#: What clients send a null for when it is not wanted.
NULLS = (
    *("availability_zone", "backup_id", "consistencygroup_id", "description", "group_id", "imageRef"),
    *("metadata", "name", "snapshot_id", "source_volid", "volume_type"),
)


def create(client: Client, status: int = 202, **values: Any) -> Any:
    """Ask for a volume as clients do."""
    return client.post("/volumes", {"volume": {**dict.fromkeys(NULLS), **values}}, status)


def test_a_volume_is_made_from_a_backup_from_3_47_on(cloud: Cloud, member: Client) -> None:
    backup = cloud.backup(cloud.volume(size=2))
    for old in (member, member.at(None), member.at("3.46")):
        made = create(old, size=1, backup_id=backup).json["volume"]
        assert made["metadata"] == {}
        assert member.get(f"/backups/{backup}").json["backup"]["status"] == "available"
    cloud.settle()
    client = member.at("3.47")
    made = create(client, size=3, backup_id=backup, name="new", metadata={"k": "v"}).json["volume"]
    # A client that waits knows no other status for a volume that is being made.
    assert (made["status"], made["size"], made["name"]) == ("creating", 3, "new")
    assert client.get(f"/volumes/{made['id']}").json["volume"]["status"] == "creating"
    assert client.get(f"/backups/{backup}").json["backup"]["status"] == "restoring"
    refused = create(client, 400, size=2, backup_id=backup)
    assert message(refused) == "Invalid backup: Backup status must be available"
    cloud.settle()
    shown = client.get(f"/volumes/{made['id']}").json["volume"]
    assert shown["status"] == "available"
    assert shown["metadata"] == {"k": "v", "src_backup_id": backup}
    assert client.get(f"/backups/{backup}").json["backup"]["status"] == "available"


def test_a_volume_from_a_backup_has_its_size_unless_one_is_given(cloud: Cloud, member: Client) -> None:
    backup = cloud.backup(cloud.volume(size=2))
    client = member.at("3.47")
    refused = create(client, 400, size=1, backup_id=backup)
    assert message(refused).startswith("Invalid input received: Volume size 1GB cannot be smaller than the")
    assert create(client, backup_id=backup).json["volume"]["size"] == 2


def test_a_volume_from_a_backup_that_cannot_be(cloud: Cloud, member: Client) -> None:
    volume = cloud.volume()
    backup = cloud.backup(volume)
    client = member.at("3.47")
    create(client, 400, size=1, backup_id="x")
    gone = create(client, 404, size=1, backup_id=NOBODY)
    assert message(gone) == f"Backup {NOBODY} could not be found."
    create(cloud.client("other").at("3.47"), 404, size=1, backup_id=backup)
    create(client, 400, size=1, backup_id=backup, source_volid=volume)
    create(cloud.client(roles="reader").at("3.47"), 403, size=1, backup_id=backup)
    # Published tests send this key by mistake; unknown keys are ignored.
    client.post("/volumes", {"volume": {"size": 1, "'backup_id": backup}})
    create(client, size=1, backup_id=None)


# 3.66: snapshots of volumes in use


def test_snapshot_of_a_volume_in_use(cloud: Cloud, member: Client) -> None:
    volume = cloud.volume()
    attach = {"os-attach": {"mountpoint": "/dev/vdb", "host_name": "h"}}
    member.post(f"/volumes/{volume}/action", attach)

    def ask(client: Client, status: int, **force: Any) -> None:
        client.post("/snapshots", {"snapshot": {"volume_id": volume, "metadata": None, **force}}, status)
        cloud.settle()

    for old in (member, member.at(None), member.at("3.65")):
        ask(old, 400)
        ask(old, 400, force=False)
        ask(old, 202, force=True)
    ask(member.at("3.66"), 202)
    ask(member.at("3.66"), 202, force="yes")
    ask(member.at("3.66"), 400, force=False)


# What is around


def test_services_have_no_cluster(cloud: Cloud, admin: Client) -> None:
    cloud.start_worker()
    (old,) = admin.at("3.6").get("/os-services").json["services"]
    (new,) = admin.at("3.7").get("/os-services?binary=cinder-backup").json["services"]
    assert new == {**old, "cluster": None}
    assert admin.at("latest").get("/os-services?binary=cinder-volume").json == {"services": []}


@pytest.mark.parametrize("version", [None, "3.39", "latest"])
def test_small_answers_are_served_in_every_version(
    cloud: Cloud, member: Client, admin: Client, version: str | None
) -> None:
    client = member.at(version)
    for path in (
        "/limits",
        "/os-quota-sets/demo?usage=False",
        "/os-quota-sets/demo?usage=True",
        "/os-quota-sets/demo/defaults",
        "/os-availability-zone",
        "/types?is_public=None",
        "/types/default",
        "/extensions",
        "/snapshots/detail?all_tenants=1&name=x",
        "/volumes/detail?all_tenants=1&name=x",
    ):
        assert client.get(path).json == member.get(path).json
    limits = "/limits?tenant_id=other"
    assert admin.at(version).get(limits).json == admin.get(limits).json
    sets = "/os-quota-sets/other"
    assert admin.at(version).put(sets, {"quota_set": {"backups": 3}}).json["quota_set"]["backups"] == 3
    admin.at(version).delete(sets, 200)
    admin.at(version).get("/os-quota-class-sets/default")


@pytest.mark.parametrize("version", [None, "latest"])
def test_what_a_backup_service_does_not_have(
    cloud: Cloud, member: Client, admin: Client, version: str | None
) -> None:
    volume = cloud.volume()
    client = member.at(version)
    refused = create(client, 400, size=1, imageRef=str(uuid.uuid4()))
    assert message(refused) == "Invalid image identifier or unable to access requested image."
    create(client, 400, size=1, consistencygroup_id=NOBODY)
    if version is not None:
        assert "groups are not supported" in message(create(client, 400, size=1, group_id=NOBODY))
    for action in ("os-volume_upload_image", "os-migrate_volume", "os-reserve"):
        refused = admin.at(version).post(f"/volumes/{volume}/action", {action: {}}, 400)
        assert message(refused) == f"There is no such action: {action}."
    for path in ("/attachments", "/clusters", "/scheduler-stats"):
        admin.at(version).get(path, 404)
        admin.at(version).post(path, {"x": {}}, 404)


@pytest.mark.parametrize(
    ("path", "key", "since"),
    [
        ("/groups", "groups", "3.13"),
        ("/group_snapshots", "group_snapshots", "3.14"),
    ],
)
def test_lists_of_what_there_is_none_of(
    admin: Client, shared: Cloud, path: str, key: str, since: str | None
) -> None:
    """Clients that show volumes ask for them, and take a 404 for a failure of all."""
    for listing in (path, f"{path}/detail?all_tenants=1&name=x"):
        for version in (since, "latest"):
            assert shared.client(roles="reader").at(version).get(listing).json == {key: []}
        if since is not None:
            admin.at(f"3.{int(since.partition('.')[2]) - 1}").get(listing, 404)
    admin.at("latest").get(f"{path}/{NOBODY}", 404)
    admin.at("latest").post(path, {key: {}}, 404)

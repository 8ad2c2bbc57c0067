"""Volumes and snapshots: the part of the API that clients need around a backup."""

from __future__ import annotations

from typing import Any

import pytest

from backupfw.db import models
from tests.functional.cloud import NOBODY, Client, Cloud, message

CREATED = {
    "id",
    "name",
    "links",
    "status",
    "size",
    "availability_zone",
    "created_at",
    "updated_at",
    "attachments",
    "description",
    "volume_type",
    "snapshot_id",
    "source_volid",
    "metadata",
    "user_id",
    "bootable",
    "encrypted",
    "multiattach",
    "replication_status",
    "consistencygroup_id",
}
SHOWN = CREATED | {"os-vol-tenant-attr:tenant_id"}


# Volumes


def test_create_from_a_snapshot_and_from_a_volume(cloud: Cloud, member: Client) -> None:
    volume = cloud.volume(size=2)
    snapshot = cloud.snapshot(volume)
    for body, size in (
        ({"snapshot_id": snapshot}, 2),
        ({"source_volid": volume, "size": None}, 2),
        ({"snapshot_id": snapshot, "size": 3}, 3),
    ):
        made = member.post("/volumes", {"volume": body}).json["volume"]
        assert made["size"] == size
        assert body.get("snapshot_id") == made["snapshot_id"]
        assert body.get("source_volid") == made["source_volid"]
        cloud.settle()


INVALID_VOLUMES: list[Any] = [
    None,
    [],
    {},
    {"volume": None},
    {"volume": []},
    {"volume": {}},
    {"volume": {"size": 0}},
    {"volume": {"size": -1}},
    {"volume": {"size": "x"}},
    {"volume": {"size": 1.5}},
    {"volume": {"size": True}},
    {"volume": {"size": []}},
    {"volume": {"size": 10**30}},
    {"volume": {"size": "9" * 30}},
    {"volume": {"size": 2**31}},
    {"volume": {"size": 1, "name": "n" * 256}},
    {"volume": {"size": 1, "name": 5}},
    {"volume": {"size": 1, "description": "d" * 256}},
    {"volume": {"size": 1, "metadata": {"k": None}}},
    {"volume": {"size": 1, "metadata": {"k" * 256: "v"}}},
    {"volume": {"size": 1, "metadata": []}},
    {"volume": {"size": 1, "snapshot_id": "x"}},
    {"volume": {"size": 1, "source_volid": "x"}},
    {"volume": {"size": 1, "imageRef": NOBODY}},
    {"volume": {"size": 1, "consistencygroup_id": NOBODY}},
    {"volume": {"size": 1, "multiattach": True}},
    {"volume": {"size": 1, "snapshot_id": NOBODY, "source_volid": NOBODY}},
]


@pytest.mark.parametrize("body", INVALID_VOLUMES)
def test_an_invalid_volume_is_refused(shared: Cloud, body: Any) -> None:
    shared.client().post("/volumes", body, 400)


def test_a_volume_beyond_the_quota_is_413(cloud: Cloud, member: Client) -> None:
    cloud.conf.set_override("volumes", 1, "quota")
    cloud.volume()
    member.post("/volumes", {"volume": {"size": 1}}, 413)
    cloud.conf.set_override("volumes", -1, "quota")
    cloud.conf.set_override("gigabytes", 2, "quota")
    member.post("/volumes", {"volume": {"size": 2}}, 413)
    member.post("/volumes", {"volume": {"size": 1}})


def test_a_listing_shows_the_projects_volumes(cloud: Cloud, member: Client) -> None:
    first = cloud.volume(name="a", metadata={"k": "v"})
    second = cloud.volume(name="b")
    cloud.volume("other")
    plain = member.get("/volumes").json
    assert set(plain) == {"volumes"}
    assert all(set(item) == {"id", "name", "links"} for item in plain["volumes"])
    assert {item["id"] for item in plain["volumes"]} == {first, second}
    detail = member.get("/volumes/detail").json
    assert all(set(item) == SHOWN for item in detail["volumes"])
    for text, found in (
        ("name=a", {first}),
        ("status=available", {first, second}),
        ("bootable=true", set()),
        ("availability_zone=nova", {first, second}),
        ("metadata=%7B%27k%27%3A%20%27v%27%7D", {first}),
        ("metadata=nonsense", set()),
        ("nonsense=1", {first, second}),
    ):
        answer = member.get(f"/volumes?{text}")
        assert {item["id"] for item in answer.json["volumes"]} == found, text
    page = member.get("/volumes?limit=1&sort=name:asc").json
    assert [item["id"] for item in page["volumes"]] == [first]
    link = page["volumes_links"][0]["href"].removeprefix("http://localhost/v2/demo")
    assert [item["id"] for item in member.get(link).json["volumes"]] == [second]
    admin = cloud.client(roles="admin")
    assert len(admin.get("/volumes/detail?all_tenants=1").json["volumes"]) == 3
    assert len(admin.get("/volumes?all_tenants=1&project_id=other").json["volumes"]) == 1


def test_a_volume_can_be_renamed(cloud: Cloud, member: Client) -> None:
    body: Any
    volume = cloud.volume(name="a", description="d", metadata={"k": "v"})
    path = f"/volumes/{volume}"
    changed = member.put(path, {"volume": {"name": " b "}}).json["volume"]
    assert set(changed) == CREATED
    assert (changed["name"], changed["description"], changed["metadata"]) == ("b", "d", {"k": "v"})
    changed = member.put(path, {"volume": {"display_description": None, "metadata": {}}}).json["volume"]
    assert (changed["name"], changed["description"], changed["metadata"]) == ("b", None, {})
    for body in (None, {}, {"volume": {}}, {"volume": {"size": 2}}, {"volume": {"name": "n" * 256}}):
        member.put(path, body, 400)
    member.put(f"/volumes/{NOBODY}", {"volume": {"name": "x"}}, 404)


@pytest.mark.parametrize("name", [NOBODY, "a-name", "x.json", "%00", "%ff", "v" * 3000])
def test_what_is_not_there(shared: Cloud, name: str) -> None:
    admin = shared.client(roles="admin")
    for kind in ("volumes", "snapshots"):
        admin.get(f"/{kind}/{name}", 404)
        admin.delete(f"/{kind}/{name}", 404)
        admin.post(f"/{kind}/{name}/action", {"os-force_delete": {}}, 404)
        admin.get(f"/{kind}/{name}/metadata", 404)
        admin.delete(f"/{kind}/{name}/metadata/k", 404)


def test_an_available_volume_can_be_extended(cloud: Cloud, member: Client) -> None:
    volume = cloud.volume()
    path = f"/volumes/{volume}/action"
    for size in (0, 1, -5, "x", None, 10**20, 2**31, 1.5):
        member.post(path, {"os-extend": {"new_size": size}}, 400)
    member.post(path, {"os-extend": {"new_size": "2"}})
    assert member.get(f"/volumes/{volume}").json["volume"]["status"] == "extending"
    cloud.settle()
    assert member.get(f"/volumes/{volume}").json["volume"]["size"] == 2
    cloud.conf.set_override("gigabytes", 3, "quota")
    member.post(path, {"os-extend": {"new_size": 4}}, 413)


@pytest.mark.parametrize(
    "body",
    [
        None,
        {},
        {"os-retype": {}},
        {"os-attach": None},
        {"os-attach": {}},
        {"os-attach": {"mountpoint": "/dev/vdb"}},
        {"os-attach": {"mountpoint": "", "host_name": "h"}},
        {"os-attach": {"mountpoint": "/dev/vdb", "host_name": "h" * 256}},
        {"os-attach": {"mountpoint": "/dev/vdb", "instance_uuid": "x"}},
        {"os-attach": {"mountpoint": "/dev/vdb", "host_name": "h", "mode": "x"}},
        {"os-extend": {}},
        {"os-extend": None},
        {"os-detach": {"attachment_id": "x"}},
    ],
)
def test_an_invalid_action_is_refused(cloud: Cloud, member: Client, body: Any) -> None:
    member.post(f"/volumes/{cloud.volume()}/action", body, 400)


# Metadata, of volumes and snapshots alike


@pytest.mark.parametrize("kind", ["volumes", "snapshots"])
def test_metadata_can_be_added_replaced_and_removed(cloud: Cloud, member: Client, kind: str) -> None:
    body: Any
    owner = cloud.volume()
    if kind == "snapshots":
        owner = cloud.snapshot(owner)
    path = f"/{kind}/{owner}/metadata"
    assert member.get(path).json == {"metadata": {}}
    assert member.post(path, {"metadata": {"a": "1", "b": "2"}}, 200).json == {
        "metadata": {"a": "1", "b": "2"}
    }
    assert member.post(path, {"metadata": {"b": "3"}}, 200).json == {"metadata": {"a": "1", "b": "3"}}
    assert member.put(path, {"metadata": {"c": "4"}}).json == {"metadata": {"c": "4"}}
    assert member.get(path + "/c").json == {"meta": {"c": "4"}}
    assert member.put(path + "/c", {"meta": {"c": "5"}}).json == {"meta": {"c": "5"}}
    assert member.put(path + "/d", {"meta": {"d": "6"}}).json == {"meta": {"d": "6"}}
    assert member.delete(path + "/c", 200).body == b""
    assert member.get(path).json == {"metadata": {"d": "6"}}
    for key in ("c", "%00", "x.json", "k" * 300, "%C3%A4"):
        member.get(f"{path}/{key}", 404)
        member.delete(f"{path}/{key}", 404)
    member.put(path + "/d", {"meta": {"e": "6"}}, 400)
    for body in (None, {}, {"meta": {}}, {"meta": {"d": "1", "e": "2"}}, {"meta": {"d": 1}}):
        member.put(path + "/d", body, 400)
    for body in (None, {}, {"metadata": None}, {"metadata": {"k": 1}}, {"metadata": {"": "v"}}):
        member.post(path, body, 400)
        member.put(path, body, 400)
    reader = cloud.client(roles="reader")
    reader.get(path)
    reader.post(path, {"metadata": {}}, 403)
    reader.delete(path + "/d", 403)


# Snapshots


@pytest.mark.parametrize(
    "body",
    [
        None,
        {},
        {"snapshot": None},
        {"snapshot": {}},
        {"snapshot": {"volume_id": "x"}},
        {"snapshot": {"volume_id": NOBODY, "name": "n" * 256}},
        {"snapshot": {"volume_id": NOBODY, "force": 1}},
        {"snapshot": {"volume_id": NOBODY, "metadata": {"k": 1}}},
    ],
)
def test_an_invalid_snapshot_is_refused(shared: Cloud, body: Any) -> None:
    shared.client().post("/snapshots", body, 400)


def test_a_wrong_request_about_a_snapshot_is_refused(cloud: Cloud, member: Client, admin: Client) -> None:
    body: Any
    missing = member.post("/snapshots", {"snapshot": {"volume_id": NOBODY}}, 404)
    assert message(missing) == f"Volume {NOBODY} could not be found."
    volume = cloud.volume()
    snapshot = cloud.snapshot(volume)
    cloud.conf.set_override("snapshots", 1, "quota")
    member.post("/snapshots", {"snapshot": {"volume_id": volume}}, 413)
    path = f"/snapshots/{snapshot}"
    for body in (None, {}, {"snapshot": {}}, {"snapshot": {"size": 1}}):
        member.put(path, body, 400)
    member.post(path + "/action", {"os-reset_status": {"status": "error"}}, 403)
    member.post(path + "/action", {"os-force_delete": None}, 403)
    admin.post(path + "/action", {"os-reset_status": {"status": "nonsense"}}, 400)
    admin.post(path + "/action", {"os-reset_status": {"status": "error"}})
    assert admin.get(path).json["snapshot"]["status"] == "error"
    cloud.set_status(models.Snapshot, snapshot, "backing-up")
    member.delete(path, 400)

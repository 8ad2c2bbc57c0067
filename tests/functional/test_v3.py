"""v3: its frame, and each microversion below and at the version that brought it."""

from __future__ import annotations

import json
import uuid
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select, update

from backupfw.db import models
from backupfw.errors import ConfigError
from tests.functional.cloud import Client, Cloud, check_frame, message

# The frame


@pytest.mark.parametrize("version", [None, "3.0", "3.8", "3.71", "latest"])
def test_the_answer_says_its_version(shared: Cloud, version: str | None) -> None:
    client = shared.client().at(version)
    assert client.get("/backups").json == {"backups": []}
    client.get("/backups/nothing", 404)
    client.get("/nowhere", 404)
    client.call("POST", "/backups", {}, 400)
    client.call("POST", "/backups", status=415, raw=b"x", headers={"Content-Type": "text/plain"})
    shared.client(roles="none").at(version).get("/backups", 403)
    Client(shared.app, "demo", "bob:other", version, "/v3/demo").get("/backups", 400)
    Client(shared.app, "demo", "b" * 300 + ":demo", version, "/v3/demo").get("/backups", 401)


@pytest.mark.parametrize("path", ["/v3/", "/v3", "/v3/demo/backups", "/v3/backups", "/v3/demo/nowhere"])
def test_a_version_that_is_not_served(shared: Cloud, path: str) -> None:
    answer = shared.app.get(path, headers={"OpenStack-API-Version": "volume 3.999"}, status=406)
    check_frame(answer)
    assert answer.json == {
        "computeFault": {
            "code": 406,
            "message": "Version 3.999 is not supported by the API. Minimum is 3.0 and maximum is 3.71.",
        }
    }
    assert answer.headers["Vary"] == "OpenStack-API-Version"


@pytest.mark.parametrize("header", ["compute 2.90", "volume", "volume 3", "3.5", "volume 3.05", "x", ""])
def test_a_header_that_names_no_version(shared: Cloud, header: str) -> None:
    answer = shared.app.get("/v3/demo/backups", headers={"OpenStack-API-Version": header}, status=400)
    check_frame(answer)
    assert answer.headers["Vary"] == "OpenStack-API-Version"


def test_a_header_for_several_services(shared: Cloud) -> None:
    headers = {"OpenStack-API-Version": "compute 2.90, volume 3.43"}
    answer = shared.app.get("/v3/demo/backups", headers=headers, status=200)
    assert answer.headers["OpenStack-API-Version"] == "volume 3.43"


def test_v2_does_not_look_at_the_header(shared: Cloud) -> None:
    shared.client().call("GET", "/backups", status=200, headers={"OpenStack-API-Version": "volume 3.999"})


def test_links_are_v3(cloud: Cloud, member: Client) -> None:
    backup = cloud.backup(cloud.volume())
    shown = member.at(None).get(f"/backups/{backup}").json["backup"]
    assert shown["links"] == [
        {"rel": "self", "href": f"http://localhost/v3/demo/backups/{backup}"},
        {"rel": "bookmark", "href": f"http://localhost/demo/backups/{backup}"},
    ]
    old = member.get(f"/backups/{backup}").json["backup"]
    assert {**shown, "links": None} == {**old, "links": None}


# 3.67: no project in the path


@pytest.mark.parametrize("version", [None, "3.66", "3.67", "latest"])
def test_a_path_needs_no_project(cloud: Cloud, member: Client, version: str | None) -> None:
    backup = cloud.backup(cloud.volume())
    client = member.at(version).without_project()
    (shown,) = client.get("/backups?limit=1").json["backups"]
    assert shown["links"] == [
        {"rel": "self", "href": f"http://localhost/v3/backups/{backup}"},
        {"rel": "bookmark", "href": f"http://localhost/backups/{backup}"},
    ]
    (link,) = client.get("/backups/detail?limit=1").json["backups_links"]
    assert link["href"] == f"http://localhost/v3/backups/detail?limit=1&marker={backup}"
    client.get(f"/backups/{backup}")
    # It is the token's project that counts.
    outsider = cloud.client("other").at(version).without_project()
    assert outsider.get("/backups").json == {"backups": []}
    outsider.get(f"/backups/{backup}", 404)
    client.delete(f"/backups/{backup}")
    assert cloud.count(models.Task) == 1


def test_without_a_project_anywhere(shared: Cloud) -> None:
    for token in (None, "bob"):
        refused = Client(shared.app, "", token, base="/v3").get("/backups", 401)
        assert message(refused) == "Neither the path nor the token (user:project) names a project"


def test_v2_needs_the_project(shared: Cloud) -> None:
    Client(shared.app, "", None, base="/v2").get("/backups", 404)
    Client(shared.app, "", "bob:demo", base="/v2").get("/backups", 400)


# 3.9: update


def test_a_backup_can_be_changed_from_3_9_on(cloud: Cloud, member: Client) -> None:
    backup = cloud.backup(cloud.volume(), name="old", description="was")
    body = {"backup": {"name": "  new "}}
    for too_old in (member, member.at(None), member.at("3.8")):
        too_old.put(f"/backups/{backup}", body, 404)
    changed = member.at("3.9").put(f"/backups/{backup}", body).json["backup"]
    assert set(changed) == {"id", "name", "links"}
    assert changed["name"] == "new"
    shown = member.get(f"/backups/{backup}").json["backup"]
    assert (shown["name"], shown["description"]) == ("new", "was")
    member.at("3.9").put(f"/backups/{backup}", {"backup": {"name": None, "description": " now "}})
    shown = member.get(f"/backups/{backup}").json["backup"]
    assert (shown["name"], shown["description"]) == (None, "now")
    assert member.at("3.9").put(f"/backups/{backup}", {"backup": {}}).json["backup"]["name"] is None


@pytest.mark.parametrize(
    ("version", "body", "text"),
    [
        ("3.9", None, "None is not of type 'object'"),
        ("3.9", {}, "'backup' is a required property"),
        ("3.9", {"backup": None}, "Invalid input for field/attribute backup. Value: None. "),
        ("3.9", {"backup": {"name": "x" * 256}}, "Invalid input for field/attribute name. Value: x"),
        ("3.9", {"backup": {"description": "a\nb"}}, "Invalid input for field/attribute description. "),
        ("3.9", {"backup": {"volume_id": "x"}}, "Invalid input for field/attribute backup. Value: {"),
        ("3.42", {"backup": {"metadata": {}}}, "Additional properties are not allowed ('metadata' was"),
        ("3.43", {"backup": {"metadata": None}}, "Invalid input for field/attribute metadata. Value: None. "),
        ("3.43", {"backup": {"metadata": {"k": 1}}}, "Invalid input for field/attribute k. Value: 1. "),
        ("3.43", {"backup": {"metadata": {"": "v"}}}, "'' does not match any of the regexes"),
    ],
)
def test_update_with_a_wrong_body(shared: Cloud, version: str, body: object, text: str) -> None:
    client = shared.client().at(version)
    assert text in message(client.put(f"/backups/{uuid.uuid4()}", body, 400))


def test_update_of_what_is_not_there_or_not_allowed(cloud: Cloud, member: Client) -> None:
    backup = cloud.backup(cloud.volume())
    body = {"backup": {"name": "x"}}
    for path in (str(uuid.uuid4()), "name"):
        refused = member.at("3.9").put(f"/backups/{path}", body, 404)
        assert message(refused) == f"Backup {path} could not be found."
    cloud.client("other").at("3.9").put(f"/backups/{backup}", body, 404)
    refused = cloud.client(roles="reader").at("3.9").put(f"/backups/{backup}", body, 403)
    assert message(refused) == "Policy doesn't allow backup:update to be performed."


# 3.18, 3.56: whose it is; 3.64: its key

OWNER = {"os-backup-project-attr:project_id"}


@pytest.mark.parametrize(
    ("version", "added"),
    [
        (None, set()),
        ("3.17", set()),
        ("3.18", OWNER),
        ("3.42", OWNER),
        ("3.43", OWNER | {"metadata"}),
        ("3.55", OWNER | {"metadata"}),
        ("3.56", OWNER | {"metadata", "user_id"}),
        ("3.63", OWNER | {"metadata", "user_id"}),
        ("3.64", OWNER | {"metadata", "user_id", "encryption_key_id"}),
        ("latest", OWNER | {"metadata", "user_id", "encryption_key_id"}),
    ],
)
def test_what_is_shown(
    cloud: Cloud, member: Client, admin: Client, version: str | None, added: set[str]
) -> None:
    backup = cloud.backup(cloud.volume())
    (old,) = member.get("/backups/detail").json["backups"]
    key = str(uuid.uuid4())
    for has_key in (False, True):
        if has_key:
            with cloud.db.write() as session:
                session.execute(update(models.Backup).values(encryption_key_id=key))
        seen = added if has_key else added - {"encryption_key_id"}
        for client, keys in ((admin, seen), (member, seen - OWNER - {"user_id"})):
            (listed,) = client.at(version).get("/backups/detail").json["backups"]
            shown = client.at(version).get(f"/backups/{backup}").json["backup"]
            assert shown == listed
            assert set(shown) == set(old) | keys
            assert shown.get("user_id", "alice") == "alice"
            assert shown.get("os-backup-project-attr:project_id", "demo") == "demo"
            assert shown.get("metadata", {}) == {}
            assert shown.get("encryption_key_id", key) == key
            (plain,) = client.at(version).get("/backups").json["backups"]
            assert set(plain) == {"id", "name", "links"}


# 3.31, 3.34: filters


@pytest.fixture
def named(cloud: Cloud) -> Cloud:
    """An installation with the backups ``alpha`` and ``beta`` of one volume."""
    volume = cloud.volume()
    cloud.backup(volume, name="alpha")
    cloud.backup(volume, name="beta")
    return cloud


def names(client: Client, query: str) -> list[str]:
    return sorted(item["name"] for item in client.get(f"/backups?{query}").json["backups"])


@pytest.mark.parametrize(
    "query", ["container=volumebackups", "nothing=x", "project_id=demo", "with_count=1", "name~=a"]
)
def test_filters_of_a_member(named: Cloud, query: str) -> None:
    client = named.client()
    for old in (client, client.at(None), client.at("3.30")):
        assert names(old, query) == ["alpha", "beta"]
    refused = client.at("3.31").get(f"/backups?{query}&name=alpha", 400)
    assert message(refused) == f"Invalid filters {query.partition('=')[0]} are found in query options."
    if not query.startswith("with_count"):
        client.at("latest").get(f"/backups/detail?{query}", 400)


def test_several_unknown_filters_are_named_together(shared: Cloud) -> None:
    refused = shared.client().at("3.31").get("/backups?b=1&name=x&a=1", 400)
    assert message(refused) == "Invalid filters b,a are found in query options."


@pytest.mark.parametrize("version", [None, "3.30", "3.31", "latest"])
def test_filters_that_everybody_has(named: Cloud, version: str | None) -> None:
    client = named.client().at(version)
    assert names(client, "name=beta") == ["beta"]
    assert names(client, "status=available&name=alpha") == ["alpha"]
    assert names(client, f"volume_id={uuid.uuid4()}") == []
    # Not an unknown filter: clients send it always, and a member's is dropped.
    assert names(named.client("other").at(version), "all_tenants=1") == []
    assert names(client, "all_tenants=True&name=alpha&limit=5&offset=0&sort=created_at:asc") == ["alpha"]


@pytest.mark.parametrize("version", [None, "3.31", "latest"])
def test_filters_of_an_administrator(named: Cloud, admin: Client, version: str | None) -> None:
    client = admin.at(version)
    assert names(client, "container=volumebackups&name=alpha") == ["alpha"]
    assert names(client, "project_id=demo&all_tenants=1") == ["alpha", "beta"]
    assert names(client, "project_id=other&all_tenants=1") == []
    assert names(client, "nothing=x") == []


def test_parts_of_names_are_found_from_3_34_on(named: Cloud, admin: Client) -> None:
    assert names(admin.at("3.33"), "name~=lph") == []
    assert names(admin.at("3.34"), "name~=lph") == ["alpha"]
    assert names(admin.at("3.34"), "status~=vail&name~=b") == ["beta"]
    assert names(admin.at("3.34"), "name~=%25") == []
    named.client().at("3.34").get("/backups?name~=a", 400)


def test_filters_as_the_operator_chose(tmp_path: Path, templates: Path) -> None:
    chosen = {"backup": ["name~", "size"], "volume": []}
    path = tmp_path / "filters.json"
    path.write_text(json.dumps(chosen))
    cloud = Cloud(tmp_path, templates, resource_filters_file=str(path))
    volume = cloud.volume()
    cloud.backup(volume, name="alpha")
    cloud.backup(volume, name="beta")
    client = cloud.client()
    assert names(client.at("3.34"), "name~=et") == ["beta"]
    assert names(client.at("3.34"), "size=1&name~=a&name~=lp") == ["alpha"]
    assert names(client.at("3.31"), "size=2") == []
    # A part can be asked for from 3.34 on, whatever the file says.
    client.at("3.33").get("/backups?name~=et", 400)
    client.at("3.34").get("/backups?name=beta", 400)
    # Before 3.31 the file does not count.
    assert names(client.at("3.30"), "name=beta&size=2") == ["beta"]
    client.at("3.31").get("/volumes?name=x", 400)
    client.at("3.31").get("/snapshots?status=x", 400)
    client.at("3.30").get("/volumes?name=x")
    told = client.at("3.33").get("/resource_filters").json["resource_filters"]
    assert told == [
        {"resource": "backup", "filters": ["name~", "size"]},
        {"resource": "volume", "filters": []},
    ]
    cloud.close()


@pytest.mark.parametrize("text", [None, "{", "[]", '{"backup": "name"}', '{"backup": [1]}'])
def test_a_file_of_filters_that_is_none(tmp_path: Path, templates: Path, text: str | None) -> None:
    path = tmp_path / "filters.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigError, match="resource_filters_file"):
        Cloud(tmp_path, templates, resource_filters_file=str(path))


def test_the_filters_are_listed_from_3_33_on(shared: Cloud) -> None:
    client = shared.client(roles="reader")
    for too_old in (client, client.at(None), client.at("3.32")):
        too_old.get("/resource_filters", 404)
    entries = client.at("3.33").get("/resource_filters").json["resource_filters"]
    assert {"resource": "backup", "filters": ["name", "status", "volume_id"]} in entries
    assert {entry["resource"] for entry in entries} >= {"volume", "snapshot", "message"}
    one = client.at("3.33").get("/resource_filters?resource=backup").json["resource_filters"]
    assert one == [{"resource": "backup", "filters": ["name", "status", "volume_id"]}]
    assert client.at("3.33").get("/resource_filters?resource=x").json == {"resource_filters": []}


# 3.37: sort by name


@pytest.mark.parametrize("sort", ["sort_key=name&sort_dir=asc", "sort=name:asc", "sort=name:asc,size:desc"])
def test_backups_are_sorted_by_name_from_3_37_on(named: Cloud, sort: str) -> None:
    client = named.client()
    for too_old in (client, client.at(None), client.at("3.36")):
        refused = too_old.get(f"/backups?{sort}", 400)
        assert message(refused) == "Invalid input received: Sort key supplied is invalid: name"
    for turned in (sort, sort.replace("asc", "desc")):
        listed = client.at("3.37").get(f"/backups?{turned}").json["backups"]
        expected = ["alpha", "beta"] if turned is sort else ["beta", "alpha"]
        assert [item["name"] for item in listed] == expected
    client.at("3.37").get("/backups?sort_key=location", 400)


# 3.43: metadata


def test_metadata_are_kept_from_3_43_on(cloud: Cloud, member: Client) -> None:
    volume = cloud.volume()
    body = {"backup": {"volume_id": volume, "metadata": {"k": "v", "a b": ""}}}
    for too_old in (member, member.at(None), member.at("3.42")):
        refused = message(too_old.post("/backups", body, 400))
        assert "Additional properties are not allowed ('metadata' was unexpected)" in refused
    made = member.at("3.43").post("/backups", body).json["backup"]
    assert set(made) == {"id", "name", "links"}
    path = f"/backups/{made['id']}"
    assert member.at("3.43").get(path).json["backup"]["metadata"] == {"k": "v", "a b": ""}
    assert "metadata" not in member.at("3.42").get(path).json["backup"]
    changed = member.at("3.43").put(path, {"backup": {"metadata": {"other": "x"}}}).json["backup"]
    assert set(changed) == {"id", "name", "links"}
    assert member.at("3.43").get(path).json["backup"]["metadata"] == {"other": "x"}
    member.at("3.43").put(path, {"backup": {"name": "x"}})
    assert member.at("3.43").get(path).json["backup"]["metadata"] == {"other": "x"}
    member.at("3.43").put(path, {"backup": {"metadata": {}}})
    assert member.at("3.43").get(path).json["backup"]["metadata"] == {}
    cloud.settle()
    member.at("3.43").post("/backups", {"backup": {"volume_id": volume, "metadata": None}})


@pytest.mark.parametrize(
    "metadata", [[], "x", {"k": None}, {"k": "v" * 256}, {"k" * 256: "v"}, {"k\n": "v"}, {"k=": "v"}]
)
def test_metadata_that_is_none(shared: Cloud, metadata: object) -> None:
    client = shared.client().at("3.43")
    client.post("/backups", {"backup": {"volume_id": str(uuid.uuid4()), "metadata": metadata}}, 400)


def test_metadata_have_calls_of_their_own_in_every_version(cloud: Cloud, member: Client) -> None:
    backup = cloud.backup(cloud.volume())
    path = f"/backups/{backup}/metadata"
    # Clients send no microversion with these.
    for client in (member.at(None), member.at("latest")):
        client.post(path, {"metadata": {"a": "1", "b": "2"}}, 200)
        answer = client.post(path, {"metadata": {"b": "3"}}, 200)
        assert answer.json == client.get(path).json == {"metadata": {"a": "1", "b": "3"}}
        client.post(path, {"metadata": None}, 400)
        client.post(path, {}, 400)
        for call in (("DELETE", path), ("DELETE", path + "/a"), ("GET", path + "/a"), ("PUT", path)):
            client.call(*call, None if call[0] != "PUT" else {"metadata": {}}, 404)
    reader = cloud.client(roles="reader").at(None)
    reader.get(path)
    reader.post(path, {"metadata": {}}, 403)
    cloud.client("other").at(None).get(path, 404)
    cloud.client("other").at(None).post(path, {"metadata": {}}, 404)


# 3.45: with_count


@pytest.mark.parametrize("path", ["/backups", "/backups/detail", "/volumes", "/volumes/detail", "/snapshots"])
def test_a_listing_has_a_count_from_3_45_on(named: Cloud, path: str) -> None:
    client = named.client()
    key = path.split("/")[1]
    for query in ("with_count=True", "with_count=True&limit=1", "with_count=1&limit=0"):
        assert "count" not in client.at("3.30").get(f"{path}?{query}").json
        answer = client.at("3.45").get(f"{path}?{query}").json
        assert answer["count"] == {"backups": 2, "volumes": 1, "snapshots": 0}[key]
    assert "count" not in client.at("3.45").get(f"{path}?with_count=False").json
    assert "count" not in client.at("3.45").get(path).json
    refused = client.at("3.45").get(f"{path}?with_count=maybe", 400)
    assert message(refused) == "Invalid input received: with_count must be a boolean, not 'maybe'"
    client.at("3.44").get(f"{path}?with_count=True", 400)


def test_the_count_is_of_what_the_filters_leave(named: Cloud, admin: Client) -> None:
    named.backup(named.volume("other"), "other")
    count = "/backups?with_count=True"
    assert named.client().at("3.45").get(count + "&name=beta").json["count"] == 1
    assert named.client().at("3.45").get(count + "&all_tenants=1").json["count"] == 2
    assert admin.at("3.45").get(count + "&all_tenants=1&limit=1").json["count"] == 3


# 3.51: availability zone


def test_a_zone_can_be_asked_for_from_3_51_on(cloud: Cloud, member: Client) -> None:
    volume = cloud.volume()
    body: dict[str, Any] = {"backup": {"volume_id": volume, "availability_zone": "nowhere"}}
    for too_old in (member, member.at(None), member.at("3.50")):
        too_old.post("/backups", body, 400)
    made = member.at("3.51").post("/backups", body).json["backup"]["id"]
    assert member.get(f"/backups/{made}").json["backup"]["availability_zone"] == "nowhere"
    cloud.settle()
    for zone in (None, ""):
        body["backup"]["availability_zone"] = zone
        made = member.at("3.51").post("/backups", body).json["backup"]["id"]
        assert member.get(f"/backups/{made}").json["backup"]["availability_zone"] == "nova"
        with cloud.db.read() as session:
            # Any worker will do.
            assert session.scalars(select(models.Task.zone)).all() == [None]
        cloud.settle()
    body["backup"]["availability_zone"] = "x" * 256
    member.at("3.51").post("/backups", body, 400)

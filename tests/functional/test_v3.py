"""v3: its frame, and each microversion below and at the version that brought it."""

from __future__ import annotations

import pytest

from backupfw.db import models
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
def test_without_a_project(cloud: Cloud, member: Client, version: str | None) -> None:
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
    stranger = cloud.client("other").at(version).without_project()
    assert stranger.get("/backups").json == {"backups": []}
    stranger.get(f"/backups/{backup}", 404)
    client.delete(f"/backups/{backup}")
    assert cloud.count(models.Task) == 1


def test_without_a_project_anywhere(shared: Cloud) -> None:
    for token in (None, "bob"):
        refused = Client(shared.app, "", token, base="/v3").get("/backups", 401)
        assert message(refused) == "Neither the path nor the token (user:project) names a project"


def test_v2_needs_the_project(shared: Cloud) -> None:
    Client(shared.app, "", None, base="/v2").get("/backups", 404)
    Client(shared.app, "", "bob:demo", base="/v2").get("/backups", 400)

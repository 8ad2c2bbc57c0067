"""What is around the resources: versions, limits, quotas, services, the frame of every answer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from backupfw.api.app import Settings, make_app
from backupfw.db import models
from backupfw.errors import ConfigError
from tests.functional.cloud import NOBODY, Client, Cloud, check_frame, message

# Versions


def test_the_root_lists_all_versions(shared: Cloud) -> None:
    answer = shared.app.get("/", status=300)
    check_frame(answer)
    old, new = answer.json["versions"]
    for entry in (old, new):
        assert set(entry) == {"id", "status", "version", "min_version", "updated", "links", "media-types"}
    # Clients index both keys of every entry.
    assert (old["id"], old["status"], old["version"], old["min_version"]) == ("v2.0", "SUPPORTED", "", "")
    assert (new["id"], new["status"], new["version"], new["min_version"]) == (
        "v3.0",
        "CURRENT",
        "3.71",
        "3.0",
    )
    assert old["links"] == [{"rel": "self", "href": "http://localhost/v2/"}]
    assert new["links"] == [{"rel": "self", "href": "http://localhost/v3/"}]
    for path, entry in (("/v2", old), ("/v2/", old), ("/v3", new), ("/v3/", new)):
        for headers in ({}, {"X-Auth-Token": "bob:demo"}):
            answer = shared.app.get(path, headers=headers, status=200)
            check_frame(answer)
            assert answer.json == {"versions": [entry]}
            assert answer.headers.get("OpenStack-API-Version") == (None if entry is old else "volume 3.0")


@pytest.mark.parametrize("path", ["/v1/", "/v2x", "/nowhere", "//", "/v2//backups", "/v2/demo", "/v2/demo/"])
def test_a_path_to_nowhere_is_404(shared: Cloud, path: str) -> None:
    answer = shared.app.get(path, expect_errors=True)
    check_frame(answer)
    assert answer.status_int == (300 if path == "//" else 404)


def test_links_follow_the_host_and_the_mount_point(cloud: Cloud) -> None:
    extra = {"HTTP_HOST": "example.org:99", "SCRIPT_NAME": "/volume", "HTTP_X_FORWARDED_HOST": "evil"}
    answer = cloud.app.get("/", extra_environ=extra, status=300)
    assert answer.json["versions"][0]["links"][0]["href"] == "http://example.org:99/volume/v2/"


@pytest.mark.parametrize(
    ("api", "expected"),
    [
        ({"public_endpoint": "https://backup.example.org/x/"}, "https://backup.example.org/x/v2/"),
        ({"enable_proxy_headers_parsing": True}, "https://front/v2/"),
        ({}, "http://localhost/v2/"),
    ],
)
def test_links_follow_the_configuration(
    tmp_path: Path, templates: Path, api: dict[str, Any], expected: str
) -> None:
    cloud = Cloud(tmp_path, templates, **api)
    headers = {"X-Forwarded-Host": "front", "X-Forwarded-Proto": "https"}
    answer = cloud.app.get("/", headers=headers, status=300)
    assert answer.json["versions"][0]["links"][0]["href"] == expected
    cloud.close()


# Who asks


def test_a_token_decides_the_status(cloud: Cloud) -> None:
    volume = cloud.volume()
    for token, status in (
        (None, 200),
        ("notused", 200),
        ("bob:demo", 200),
        ("bob:demo:reader", 200),
        ("bob:demo:nothing", 403),
        ("bob:other", 400),
        (":", 400),
        ("b" * 300 + ":demo", 401),
    ):
        answer = Client(cloud.app, "demo", token).get(f"/volumes/{volume}", status)
        if status == 400:
            assert message(answer) == "Malformed request url"


def test_roles_of_tokens_without_roles(tmp_path: Path, templates: Path) -> None:
    cloud = Cloud(tmp_path, templates, noauth_roles=["admin"])
    for token in (None, "notused", "bob:demo", "bob:demo:"):
        Client(cloud.app, "demo", token).get("/os-services")
    Client(cloud.app, "demo", "bob:demo:member").get("/os-services", 403)
    cloud.close()


def test_an_unknown_auth_strategy(cloud: Cloud) -> None:
    with pytest.raises(ConfigError, match="auth_strategy"):
        make_app(cloud.managers, Settings(auth_strategy="magic"))


@pytest.mark.parametrize("project", ["%00", "a%0Ab", "p" * 256])
def test_projects_that_cannot_be(shared: Cloud, project: str) -> None:
    answer = Client(shared.app, project, None).get("/backups", 400)
    assert message(answer) == "Malformed request url"


@pytest.mark.parametrize("path", ["/a%0Ab/backups", "//backups", "/demo/backups/%FF"])
def test_paths_that_cannot_be_say_their_version(shared: Cloud, path: str) -> None:
    for version in (None, "3.71"):
        Client(shared.app, "demo", None, version, "/v3").call("GET", path)
    Client(shared.app, "demo", None, "3.72", "/v3").call("GET", path, None, 406)


@pytest.mark.parametrize("project", ["%C3%A4%20x", "a.b", "0123456789abcdef0123456789abcdef", "~"])
def test_projects_of_any_spelling(shared: Cloud, project: str) -> None:
    Client(shared.app, project, None).get("/backups")


# Methods, bodies, headers


@pytest.mark.parametrize("method", ["PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "BREW"])
def test_methods_that_are_not_routed(shared: Cloud, method: str) -> None:
    answer = shared.client().call(method, "/backups", None, 404)
    assert message(answer) == "The resource could not be found."


def test_head_is_get_without_a_body(shared: Cloud) -> None:
    client = shared.client()
    assert client.call("HEAD", "/backups", None, 200).body == b""
    assert client.call("HEAD", f"/backups/{NOBODY}", None, 404).body == b""
    shared.app.head("/", status=300)


@pytest.mark.parametrize(
    ("raw", "content_type", "status", "text"),
    [
        (b"", "application/json", 400, "None is not of type 'object'"),
        (b"  ", "application/json", 400, "None is not of type 'object'"),
        (b"{", "application/json", 400, "Malformed request body"),
        (b"[" * 100_000, "application/json", 400, "Malformed request body"),
        (b"\xff\xfe", "application/json", 400, "Malformed request body"),
        (b'{"backup": {"name": "\\ud800"}}', "application/json", 400, "field/attribute backup.name"),
        (b'{"backup": {"name": "\\u0000"}}', "application/json", 400, "field/attribute backup.name"),
        (b'{"backup": {"name": "\xed\xa0\x80"}}', "application/json", 400, "Malformed request body"),
        (b"NaN", "application/json", 400, "Malformed request body"),
        (b"{}", "text/plain", 415, "Unsupported Content-Type"),
        (b"{}", "application/xml", 415, "Unsupported Content-Type"),
        (b"a=b", "application/x-www-form-urlencoded", 415, "Unsupported Content-Type"),
        (b"--x\r\n", "multipart/form-data; boundary=x", 415, "Unsupported Content-Type"),
        (b"x" * (1 << 20) + b"x", "application/json", 413, "Request is too large."),
        (
            '{"backup": {"volume_id": "ä"}}'.encode("utf-16"),
            "application/json",
            400,
            "field/attribute volume_id",
        ),
    ],
)
@pytest.mark.parametrize("path", ["/backups", f"/backups/{NOBODY}/restore", "/backups/import_record"])
def test_a_wrong_body_is_refused_with_its_status(
    shared: Cloud, path: str, raw: bytes, content_type: str, status: int, text: str
) -> None:
    client = shared.client(roles="admin")
    answer = client.call("POST", path, None, status, raw=raw, headers={"Content-Type": content_type})
    if path == "/backups" or "field" not in text:
        assert text in message(answer)


@pytest.mark.parametrize(
    "accept", ["text/html", "application/xml", "image/png;q=1", "*/*", "", ";;;", "application/json"]
)
def test_answers_are_json_whatever_is_accepted(shared: Cloud, accept: str) -> None:
    shared.client().call("GET", "/backups", None, 200, headers={"Accept": accept})
    shared.client().call("GET", f"/backups/{NOBODY}.html", None, 404, headers={"Accept": accept})


def test_parameters_never_become_arguments(shared: Cloud) -> None:
    client = shared.client()
    client.get("/backups?request=1&response=2&self=3&call=4&remainder=5")
    client.post("/backups?backup_id=x", {"request": 1, "response": 2}, 400)


def test_an_unexpected_error_says_nothing(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("postgresql://user:secret@host")

    monkeypatch.setattr(cloud.managers.backups, "list", fail)
    answer = cloud.client().get("/backups", 500)
    assert "secret" not in answer.text
    assert answer.headers["x-openstack-request-id"]


def test_the_request_id_reaches_the_task(cloud: Cloud, member: Client) -> None:
    volume = cloud.volume()
    answer = member.post("/backups", {"backup": {"volume_id": volume}})
    with cloud.db.read() as session:
        (task,) = session.query(models.Task).all()
        assert task.request_id == answer.headers["x-openstack-request-id"]


# Limits, quotas, services, and the rest


@pytest.mark.parametrize("name", ["project_id", "tenant_id"])
def test_limits_of_another_project(cloud: Cloud, name: str) -> None:
    cloud.backup(cloud.volume())

    def used(client: Client) -> Any:
        return client.get(f"/limits?{name}=demo").json["limits"]["absolute"]["totalBackupsUsed"]

    assert used(cloud.client("other").at("3.39")) == 0
    admin = cloud.client("other", "admin")
    assert [used(client) for client in (admin, admin.at(None), admin.at("3.38"))] == [0, 0, 0]
    assert used(admin.at("3.39")) == 1


INVALID_QUOTAS: list[Any] = [
    None,
    {},
    {"quota_set": None},
    {"quota_set": {}},
    {"quota_set": {"nonsense": 1}},
    {"quota_set": {"backups": -2}},
    {"quota_set": {"backups": 2**31}},
    {"quota_set": {"backups": "x"}},
    {"quota_set": {"backups": None}},
    {"quota_set": {"backups": 1.5}},
    {"quota_set": {"backups": True}},
    {"quota_set": {"forceful": "x"}},
]


@pytest.mark.parametrize("body", INVALID_QUOTAS)
def test_invalid_quotas_are_refused(shared: Cloud, body: Any) -> None:
    admin = shared.client(roles="admin")
    admin.put("/os-quota-sets/demo", body, 400)
    if isinstance(body, dict) and body:
        admin.put("/os-quota-class-sets/default", {"quota_class_set": body["quota_set"]}, 400)


@pytest.mark.parametrize("project", ["%00", "p" * 256, "a%0Ab"])
def test_quotas_of_projects_that_cannot_be(shared: Cloud, project: str) -> None:
    admin = shared.client(roles="admin")
    admin.get(f"/os-quota-sets/{project}", 400)
    admin.put(f"/os-quota-sets/{project}", {"quota_set": {"backups": 1}}, 400)
    admin.get(f"/os-quota-class-sets/{project}", 400)

"""``auth_strategy = keystone``: a served instance behind a real Keystone."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.integration.service import Client, Service, running
from tests.servers.keystone import Keystone, User
from tests.waiting import wait_until

pytestmark = pytest.mark.server

#: How long the service may remember a token, seconds: long enough to see that it does.
REMEMBERS = 3
ROLES = ("reader", "member", "admin")


@dataclass
class World:
    """A served instance, and people of two projects."""

    service: Service
    keystone: Keystone
    users: dict[str, User]
    outsider: User

    def client(self, role: str, version: str = "v3") -> Client:
        """Somebody of the first project, with a new token."""
        user = self.users[role]
        return self.at(f"/{version}/{user.project_id}", self.token_of(user))

    def token_of(self, user: User) -> str:
        """A new token for a user's project."""
        return self.keystone.token(user.name, user.password, user.project)

    def at(self, path: str, token: str) -> Client:
        """Anybody, anywhere."""
        return Client(f"http://127.0.0.1:{self.service.port}{path}", token, self.service)

    def raw(self, path: str, **headers: str) -> tuple[int, Any, Any]:
        """Send a GET with these headers only (``_`` for ``-``); returns status, headers and body."""
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        request = urllib.request.Request(f"http://127.0.0.1:{self.service.port}{path}", headers=sent)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.status, answer.headers, json.loads(answer.read())
        except urllib.error.HTTPError as error:
            return error.code, error.headers, json.loads(error.read())


def options(keystone: Keystone, **more: Any) -> dict[str, dict[str, Any]]:
    """The configuration of a service that asks Keystone."""
    service = keystone.service
    section = {
        "auth_type": "password",
        "auth_url": keystone.url,
        "username": service.name,
        "password": service.password,
        "project_name": service.project,
        "user_domain_id": "default",
        "project_domain_id": "default",
        "token_cache_time": REMEMBERS,
        "http_request_max_retries": 0,
        **more,
    }
    return {"api": {"auth_strategy": "keystone"}, "keystone_authtoken": section}


@pytest.fixture(scope="module")
def world(identity: Keystone, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    first = identity.add_user("reader-of-blue", "blue", "reader")
    users = {"reader": first}
    for role in ROLES[1:]:
        users[role] = identity.add_user(f"{role}-of-blue", "blue", role, first.project_id)
    outsider = identity.add_user("member-of-red", "red", "member")
    wanted = {**options(identity), "console": {"enabled": "true"}}
    with running(tmp_path_factory.mktemp("service") / "state", wanted) as service:
        yield World(service, identity, users, outsider)


@pytest.fixture(scope="module")
def backup(world: World) -> str:
    """An available backup of the first project."""
    member = world.client("member")
    return member.backup(member.create_volume())


def test_without_a_token_only_version_documents(world: World) -> None:
    for path, status in (("/", 300), ("/v2/", 200), ("/v3/", 200)):
        got, _, body = world.raw(path)
        assert got == status
        assert body["versions"]
    for headers in ({}, {"X_Auth_Token": "bogus"}, {"X_Auth_Token": "gAAAA" + "b" * 180}):
        status, said, body = world.raw("/v3/backups", **headers)
        assert status == 401
        assert body["error"]["code"] == 401
        assert set(body["error"]) == {"code", "title", "message"}
        assert said["WWW-Authenticate"] == f'Keystone uri="{world.keystone.url}"'
        assert said["x-openstack-request-id"].startswith("req-")


def test_the_console_asks_keystone(world: World, backup: str) -> None:
    """Name and password make a token that only the session has; its end is the session's."""
    base, member = f"http://127.0.0.1:{world.service.port}/console", world.users["member"]
    browser = requests.Session()
    browser.headers["Sec-Fetch-Site"] = "same-origin"
    form = {
        "name": member.name, "password": "wrong", "user_domain": "Default", "project": member.project,
        "project_domain": "Default",
    }  # fmt: skip
    assert browser.post(f"{base}/login", form).status_code == 403
    assert (
        browser.post(f"{base}/login", {**form, "password": member.password, "project": "red"}).status_code
        == 403
    )
    answer = browser.post(f"{base}/login", {**form, "password": member.password})
    assert answer.status_code == 200
    assert answer.url == f"{base}/health"
    assert member.name in answer.text
    assert member.password not in answer.text
    # What it may do is the roles' to say.
    assert browser.get(f"{base}/now/{backup}/cancel").status_code == 200
    reader = world.users["reader"]
    stranger = requests.Session()
    stranger.headers["Sec-Fetch-Site"] = "same-origin"
    stranger.post(f"{base}/login", {**form, "name": reader.name, "password": reader.password})
    assert stranger.get(f"{base}/now").status_code == 200
    assert stranger.get(f"{base}/now/{backup}/cancel").status_code == 403
    log = (world.service.state.parent / "state.log").read_text()
    assert member.password not in log
    kept = b"".join(path.read_bytes() for path in world.service.state.glob("backupfw.sqlite*"))
    assert member.password.encode() not in kept
    assert b"gAAAA" not in kept, "no token is kept in the clear"


def test_claims_in_headers_are_not_believed(world: World) -> None:
    claims = {
        "X_Identity_Status": "Confirmed",
        "X_Project_Id": world.outsider.project_id,
        "X_User_Id": world.outsider.id,
        "X_Roles": "admin",
        "OpenStack_System_Scope": "all",
    }
    path = f"/v3/{world.outsider.project_id}/os-services"
    assert world.raw(path, **claims)[0] == 401
    assert world.raw(path, X_Auth_Token=world.token_of(world.outsider), **claims)[0] == 403


@pytest.mark.parametrize("version", ["v2", "v3"])
def test_the_project_in_the_path_is_the_tokens(world: World, version: str) -> None:
    token = world.token_of(world.users["admin"])
    status, body = world.at(f"/{version}/{world.outsider.project_id}", token).request("GET", "/backups")
    assert (status, body["badRequest"]["message"]) == (400, "Malformed request url")
    world.at(f"/{version}/{world.users['admin'].project_id}", token).expect(200, "GET", "/backups")


def test_a_path_without_a_project_means_the_tokens(world: World, backup: str) -> None:
    mine = world.at("/v3", world.token_of(world.users["reader"])).expect(200, "GET", "/backups")
    assert backup in [item["id"] for item in mine["backups"]]
    theirs = world.at("/v3", world.token_of(world.outsider)).expect(200, "GET", "/backups")
    assert theirs == {"backups": []}


#: Every call of the backups API that leaves the backup as it is: needed role, method, path, body.
CALLS = {
    "backup:get_all": ("reader", "GET", "/backups", None),
    "backup:get_all detail": ("reader", "GET", "/backups/detail", None),
    "backup:get": ("reader", "GET", "/backups/{id}", None),
    # Bodies that the rules of the manager refuse: what counts is whether the policy lets them come so far.
    "backup:create": ("member", "POST", "/backups", {"backup": {"volume_id": "{nobody}"}}),
    "backup:restore": ("member", "POST", "/backups/{id}/restore", {"restore": {"volume_id": "{nobody}"}}),
    "backup:export-import": ("admin", "GET", "/backups/{id}/export_record", None),
    "backup:backup-import": (
        "admin", "POST", "/backups/import_record",
        {"backup-record": {"backup_service": "x", "backup_url": "eA=="}},
    ),
    "volume_extension:backup_admin_actions:reset_status": (
        "admin", "POST", "/backups/{id}/action", {"os-reset_status": {"status": "available"}},
    ),
}  # fmt: skip
NOBODY = "11111111-2222-4333-8444-555555555555"
#: Destructive ones, for the roles that may not.
REFUSED = {
    "backup:delete": ("DELETE", "/backups/{id}", None, ("reader",)),
    "volume_extension:backup_admin_actions:force_delete": (
        "POST", "/backups/{id}/action", {"os-force_delete": {}}, ("reader", "member"),
    ),
}  # fmt: skip


def _filled(value: Any, backup: str) -> Any:
    return json.loads(json.dumps(value).replace("{id}", backup).replace("{nobody}", NOBODY))


@pytest.mark.parametrize("role", ROLES)
def test_what_each_role_may_do(world: World, backup: str, role: str) -> None:
    client = world.client(role)
    for name, (needed, method, path, body) in CALLS.items():
        status, answer = client.request(method, _filled(path, backup), _filled(body, backup))
        if ROLES.index(role) < ROLES.index(needed):
            rule = name.split(" ")[0]
            said = f"Policy doesn't allow {rule} to be performed."
            assert (status, answer) == (403, {"forbidden": {"code": 403, "message": said}}), name
        else:
            assert status in (200, 202, 400, 404), (name, status, answer)
    for name, (method, path, body, refused) in REFUSED.items():
        if role in refused:
            assert client.request(method, _filled(path, backup), _filled(body, backup))[0] == 403, name


@pytest.mark.parametrize("role", ROLES)
def test_rules_of_later_versions(world: World, backup: str, role: str) -> None:
    user = world.users[role]
    url = f"http://127.0.0.1:{world.service.port}/v3/{user.project_id}/backups/{backup}"
    headers = {"X-Auth-Token": world.token_of(user), "OpenStack-API-Version": "volume 3.56"}
    # backup:update
    answer = requests.put(url, json={"backup": {"description": role}}, headers=headers, timeout=60)
    assert answer.status_code == (403 if role == "reader" else 200), answer.text
    # backup:backup_project_attribute
    shown = requests.get(url, headers=headers, timeout=60).json()["backup"]
    owner = {key: shown.get(key) for key in ("os-backup-project-attr:project_id", "user_id")}
    if role == "admin":
        maker = world.users["member"]
        assert list(owner.values()) == [maker.project_id, maker.id]
    else:
        assert list(owner.values()) == [None, None]


def test_members_delete_and_administrators_force_it(world: World) -> None:
    member, admin = world.client("member"), world.client("admin")
    volume = member.create_volume()
    member.delete_backup(member.backup(volume))
    last = member.backup(volume)
    admin.expect(202, "POST", f"/backups/{last}/action", {"os-force_delete": {}})
    member.wait_status("backup", last, None)


def test_another_projects_backup_is_not_there(world: World, backup: str) -> None:
    outsider = world.at(f"/v3/{world.outsider.project_id}", world.token_of(world.outsider))
    for method, path, body in (
        ("GET", "/backups/{id}", None),
        ("DELETE", "/backups/{id}", None),
        ("POST", "/backups/{id}/restore", {"restore": {}}),
        ("GET", "/backups/{id}/export_record", None),
        ("POST", "/backups/{id}/action", {"os-force_delete": {}}),
        ("POST", "/backups/{id}/action", {"os-reset_status": {"status": "error"}}),
    ):
        status, answer = outsider.request(method, _filled(path, backup), body)
        message = f"Backup {backup} could not be found."
        assert (status, answer) == (404, {"itemNotFound": {"code": 404, "message": message}}), (method, path)
    # An administrator of another project sees it.
    other = world.keystone.add_user("admin-of-green", "green", "admin")
    admin = world.at(f"/v3/{other.project_id}", world.token_of(other))
    admin.expect(200, "GET", f"/backups/{backup}")
    listed = admin.expect(200, "GET", "/backups?all_tenants=1")["backups"]
    assert backup in [item["id"] for item in listed]
    assert admin.expect(200, "GET", "/backups") == {"backups": []}


def test_nothing_is_kept_for_a_project_that_there_is_not(world: World, identity: Keystone) -> None:
    user = identity.service
    role = identity.request("GET", "/roles?name=admin")["roles"][0]["id"]
    identity.request("PUT", f"/projects/{user.project_id}/users/{user.id}/roles/{role}")
    admin = world.client("admin")
    body = {"volume_type": {"name": "secret", "os-volume-type-access:is_public": False}}
    kind = admin.expect(200, "POST", "/types", body)["volume_type"]["id"]
    there = identity.add_project("to-be-limited")
    for project in (NOBODY, there):
        good = project == there
        answers = (
            admin.expect(
                200 if good else 400, "PUT", f"/os-quota-sets/{project}", {"quota_set": {"backups": 3}}
            ),
            admin.expect(
                202 if good else 400,
                "POST",
                f"/types/{kind}/action",
                {"addProjectAccess": {"project": project}},
            ),
        )
        for answer in answers if not good else ():
            assert answer["badRequest"]["message"] == f"Project ID {NOBODY} is not a valid project."
    # Nothing that is typed leads elsewhere in Keystone.
    admin.expect(
        400, "POST", f"/types/{kind}/action", {"addProjectAccess": {"project": f"../projects/{there}"}}
    )
    # What there was of one that is gone can be looked at and removed.
    admin.expect(200, "GET", f"/os-quota-sets/{NOBODY}")
    admin.expect(200, "DELETE", f"/os-quota-sets/{NOBODY}")


def test_the_system_has_its_own_scope(world: World, backup: str) -> None:
    people = {}
    for role in ("reader", "admin"):
        user = world.keystone.add_user(f"system-{role}", f"none-{role}", "reader")
        world.keystone.grant_system_role(user, role)
        people[role] = world.at("/v3", world.keystone.token(user.name, user.password, None))
    for role, client in people.items():
        listed = client.expect(200, "GET", "/backups?all_tenants=1")["backups"]
        assert backup in [item["id"] for item in listed], role
        client.expect(200, "GET", f"/backups/{backup}")
        client.expect(200, "GET", "/os-services")
        # What is made belongs to a project.
        body = {"backup": {"volume_id": NOBODY}}
        assert client.request("POST", "/backups", body)[0] == 403, role
    reset = {"os-reset_status": {"status": "available"}}
    assert people["reader"].request("POST", f"/backups/{backup}/action", reset)[0] == 403
    people["admin"].expect(202, "POST", f"/backups/{backup}/action", reset)
    # With a project in the path it is not the token's.
    inside = world.at(f"/v3/{world.users['admin'].project_id}", people["admin"].token)
    assert inside.request("GET", "/backups")[0] == 400


def test_a_token_without_scope_is_good_for_nothing_here(world: World) -> None:
    token = world.keystone.unscoped_token(world.users["admin"])
    status, answer = world.at("/v3", token).request("GET", "/backups")
    assert (status, list(answer)) == (403, ["forbidden"])


def test_application_credentials(world: World, backup: str) -> None:
    user = world.users["member"]
    token = world.keystone.credential_token(world.keystone.add_application_credential(user, "all"))
    world.at(f"/v3/{user.project_id}", token).expect(200, "GET", f"/backups/{backup}")
    world.keystone.add_endpoints("block-storage", {"public": "http://127.0.0.1/v3"})
    rule = {"service": "block-storage", "method": "GET", "path": "/v3/*/backups"}
    narrow = world.keystone.add_application_credential(user, "one call", access_rules=[rule])
    client = world.at(f"/v3/{user.project_id}", world.keystone.credential_token(narrow))
    client.expect(200, "GET", "/backups")
    assert client.request("GET", f"/backups/{backup}")[0] == 401


def test_a_revoked_token_ends_when_it_is_forgotten(world: World) -> None:
    client = world.client("reader")
    client.expect(200, "GET", "/backups")
    world.keystone.revoke(client.token)
    status = client.wait("the token to be refused", lambda: client.request("GET", "/backups")[0] != 200)
    assert status
    assert client.request("GET", "/backups")[0] == 401


def test_service_tokens(world: World, backup: str) -> None:
    path = f"/v3/{world.users['reader'].project_id}/backups/{backup}"
    service = world.keystone.service
    passed_on = {"X_Service_Token": world.token_of(service)}
    fresh = world.token_of(world.users["reader"])
    assert world.raw(path, X_Auth_Token=fresh, **passed_on)[0] == 200
    # A service token alone is nobody's, and one without the role is none.
    assert world.raw(path, **passed_on)[0] == 401
    assert world.raw(path, X_Auth_Token=fresh, X_Service_Token=world.token_of(world.outsider))[0] == 401
    # The scope of a service's token is not the user's.
    world.keystone.grant_system_role(service, "service")
    system = world.keystone.token(service.name, service.password, None)
    listing = f"/v3/{world.outsider.project_id}/backups?all_tenants=1"
    theirs = world.token_of(world.outsider)
    status, _, body = world.raw(listing, X_Auth_Token=theirs, X_Service_Token=system)
    assert (status, body) == (200, {"backups": []})


def _restart(keystone: Keystone, token_life: int) -> None:
    keystone.stop()
    keystone.configure(token_life)
    keystone.start()


def test_an_expired_token_passes_in_the_hands_of_a_service(world: World, backup: str) -> None:
    path = f"/v3/{world.users['reader'].project_id}/backups/{backup}"
    _restart(world.keystone, 1)
    try:
        expired = world.token_of(world.users["reader"])
    finally:
        _restart(world.keystone, 3600)
    wait_until("the token to expire", lambda: world.raw(path, X_Auth_Token=expired)[0] == 401, pause=0.1)
    passed_on = world.token_of(world.keystone.service)
    assert world.raw(path, X_Auth_Token=expired, X_Service_Token=passed_on)[0] == 200
    assert world.raw(path, X_Auth_Token=expired, X_Service_Token=fresh_of(world))[0] == 401
    assert world.raw(path, X_Auth_Token=expired)[0] == 401


def fresh_of(world: World) -> str:
    """A token that is valid but no service's."""
    return world.token_of(world.users["admin"])


def test_without_keystone_remembered_tokens_pass_and_others_get_503(world: World, tmp_path: Path) -> None:
    new = world.client("reader")
    with running(tmp_path / "state", options(world.keystone, token_cache_time=3600)) as service:
        known = Client(f"http://127.0.0.1:{service.port}/v3", world.token_of(world.users["reader"]), service)
        known.expect(200, "GET", "/backups")
        world.keystone.stop()
        try:
            # More often than there are threads: they share what was validated once.
            for _ in range(40):
                known.expect(200, "GET", "/backups")
            status, answer = new.request("GET", "/backups")
            assert (status, list(answer)) == (503, ["serviceUnavailable"])
            assert world.raw("/")[0] == 300
            assert world.raw("/v3/backups")[0] == 401
        finally:
            world.keystone.start()
    new.expect(200, "GET", "/backups")

"""Replays of clients that cannot run here: their calls in their order, as raw HTTP.

Version 2 of gophercloud and the Terraform provider for OpenStack need a newer Go than Debian 12 has, and
Horizon's overview a compute service.  What they send and what they insist on is taken from
their sources (docs/clients.md); these tests say nothing about what those programs do with the answers beyond
the checks that stand here.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
import requests

from tests.integration.clients.table import REPLAYED, Shown
from tests.integration.service import Service, running
from tests.waiting import PATIENCE, wait_until

#: A project that Keystone could have made.
PROJECT = uuid.UUID(int=7).hex
GOPHERCLOUD_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{1,6}")


class Caller:
    """Sends requests in one project, at a microversion where there is one."""

    def __init__(self, root: str, version: str = "v3") -> None:
        self.root = root
        self.base = f"{root}/{version}/{PROJECT}"

    def send(
        self, status: int, method: str, path: str, body: Any = None, microversion: str | None = None
    ) -> Any:
        """Send a request that must answer ``status``; a path may be a whole URL.  Returns the body."""
        headers = {"X-Auth-Token": f"tester:{PROJECT}:admin", "Accept": "application/json"}
        if microversion is not None:
            headers["OpenStack-API-Version"] = f"volume {microversion}"
        url = path if path.startswith("http") else self.base + path
        answer = requests.request(method, url, json=body, headers=headers, timeout=PATIENCE)
        assert answer.status_code == status, f"{method} {url}: {answer.status_code} {answer.text}"
        if microversion is not None:
            # Clients with a microversion insist on the echo.
            assert answer.headers["OpenStack-API-Version"] == f"volume {microversion}"
        return answer.json() if answer.content else None

    def poll(self, path: str, wanted: str, pending: set[str], microversion: str | None = None) -> Any:
        """Ask until the status is the wanted one; any other than those pending is an error."""
        kind = path.split("/")[1].removesuffix("s")

        def reached() -> Any:
            found = self.send(200, "GET", path, microversion=microversion)[kind]
            assert found["status"] in pending | {wanted}, found
            return found if found["status"] == wanted else None

        return wait_until(path, reached, pause=0.1)

    def gone(self, path: str) -> None:
        """Ask until it is 404."""
        headers = {"X-Auth-Token": f"tester:{PROJECT}:admin"}
        url = self.base + path
        wait_until(
            path, lambda: requests.get(url, headers=headers, timeout=PATIENCE).status_code == 404, pause=0.1
        )


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with running(tmp_path_factory.mktemp("replays") / "state") as service:
        yield service


@pytest.fixture(params=["v2", "v3"])
def gophercloud(service: Service, request: pytest.FixtureRequest) -> Caller:
    return Caller(f"http://127.0.0.1:{service.port}", request.param)


@pytest.fixture
def caller(service: Service) -> Caller:
    return Caller(f"http://127.0.0.1:{service.port}")


def test_gophercloud_finds_the_endpoint(service: Service, caller: Caller) -> None:
    for path, status in (("/", 300), ("/v2/", 200), ("/v3/", 200)):
        for entry in caller.send(status, "GET", caller.root + path)["versions"]:
            assert re.fullmatch(r"v\d+\.\d+", entry["id"])
            assert entry["status"] in ("CURRENT", "SUPPORTED", "DEPRECATED")


def test_gophercloud_backups(gophercloud: Caller, shows: Shown) -> None:
    """The package's acceptance tests: create, list, restore, export, import, reset, force delete."""
    call = gophercloud.send
    volume = call(202, "POST", "/volumes", {"volume": {"size": 1, "name": "ACPTTEST"}})["volume"]["id"]
    gophercloud.poll(f"/volumes/{volume}", "available", {"creating"})
    made = []
    for name in ("ACPTTEST-1", "ACPTTEST-2"):
        body = {"backup": {"volume_id": volume, "name": name}}
        made.append(call(202, "POST", "/backups", body)["backup"]["id"])
        shown = gophercloud.poll(f"/backups/{made[-1]}", "available", {"creating"})
        for key in ("created_at", "updated_at", "data_timestamp"):
            assert GOPHERCLOUD_TIME.fullmatch(shown[key]), key

    # All pages: the address of the next one is used as it stands.
    seen, url = [], f"/backups/detail?limit=1&volume_id={volume}"
    while url:
        page = call(200, "GET", url)
        seen += [item["id"] for item in page["backups"]]
        following = [link["href"] for link in page.get("backups_links", []) if link["rel"] == "next"]
        url = following[0] if following else ""
    assert seen == made[::-1]

    body = {"restore": {"name": "ACPTTEST-restored"}}
    restored = call(202, "POST", f"/backups/{made[0]}/restore", body)["restore"]
    assert (restored["backup_id"], restored["volume_name"]) == (made[0], "ACPTTEST-restored")
    gophercloud.poll(f"/volumes/{restored['volume_id']}", "available", {"restoring-backup"})
    gophercloud.poll(f"/backups/{made[0]}", "available", {"restoring"})

    record = call(200, "GET", f"/backups/{made[1]}/export_record")["backup-record"]
    call(202, "DELETE", f"/backups/{made[1]}")
    gophercloud.gone(f"/backups/{made[1]}")
    imported = call(201, "POST", "/backups/import_record", {"backup-record": record})["backup"]
    assert imported["id"] == made[1]

    for status in ("error", "available"):
        call(202, "POST", f"/backups/{made[0]}/action", {"os-reset_status": {"status": status}})
        gophercloud.poll(f"/backups/{made[0]}", status, set())
    # It sends what it changes without the word "backup" around it, and only version 3 has the call.
    expected = 400 if "/v3/" in gophercloud.base else 404
    microversion = "3.9" if expected == 400 else None
    call(expected, "PUT", f"/backups/{made[0]}", {"name": "renamed"}, microversion)
    for backup in made:
        call(202, "POST", f"/backups/{backup}/action", {"os-force_delete": {}})
        gophercloud.gone(f"/backups/{backup}")
    client = f"gophercloud {gophercloud.base.split('/')[-2]}"
    shows(client, "reset the status", "force delete", says=REPLAYED)
    call(202, "DELETE", f"/volumes/{volume}")
    gophercloud.gone(f"/volumes/{volume}")


def test_terraform_makes_a_volume_from_a_backup(caller: Caller, shows: Shown) -> None:
    """``openstack_blockstorage_volume_v3`` with ``backup_id``; the provider has no resource for backups."""
    call = caller.send
    source = call(202, "POST", "/volumes", {"volume": {"size": 1}})["volume"]["id"]
    caller.poll(f"/volumes/{source}", "available", {"creating"})
    backup = call(202, "POST", "/backups", {"backup": {"volume_id": source}})["backup"]["id"]
    caller.poll(f"/backups/{backup}", "available", {"creating"})
    wanted = {"size": 1, "name": "tf", "backup_id": backup, "metadata": {"by": "terraform"}}
    volume = call(202, "POST", "/volumes", {"volume": wanted}, "3.47")["volume"]["id"]
    # The provider takes any other status for a failure.
    shown = caller.poll(f"/volumes/{volume}", "available", {"creating", "downloading"})
    assert shown["name"] == "tf"
    assert shown["metadata"]["by"] == "terraform"
    shows("Terraform", "a new volume from a backup (3.47)", says=REPLAYED)
    changed = {"name": "tf2", "description": "d", "metadata": {"by": "tf"}}
    assert call(200, "PUT", f"/volumes/{volume}", {"volume": changed})["volume"]["name"] == "tf2"
    call(202, "POST", f"/volumes/{volume}/action", {"os-extend": {"new_size": 2}})
    caller.poll(f"/volumes/{volume}", "available", {"extending"})
    call(202, "DELETE", f"/volumes/{volume}")
    caller.gone(f"/volumes/{volume}")
    shows("Terraform", "volumes: change", "volumes: create, show, list, delete", says=REPLAYED)


def test_terraform_quotas_and_data_sources(caller: Caller, shows: Shown) -> None:
    call = caller.send
    path = f"/os-quota-sets/{uuid.UUID(int=8).hex}"
    before = call(200, "GET", path)["quota_set"]
    changed = {**before, "backups": 3, "backup_gigabytes": 30}
    changed.pop("id")
    call(200, "PUT", path, {"quota_set": {"backups": 3, "backup_gigabytes": 30}})
    after = call(200, "GET", path)["quota_set"]
    assert {key: after[key] for key in changed} == changed
    shows("Terraform", "quotas", says=REPLAYED)
    assert call(200, "GET", "/os-availability-zone")["availabilityZoneInfo"]
    assert call(200, "GET", "/volumes/detail?name=none") == {"volumes": []}
    assert call(200, "GET", "/snapshots?name=none") == {"snapshots": []}


def test_horizon_asks_for_limits(caller: Caller, shows: Shown) -> None:
    """The overview, which wants servers beside it."""
    volume = caller.send(202, "POST", "/volumes", {"volume": {"size": 1}}, "3.0")["volume"]["id"]
    caller.poll(f"/volumes/{volume}", "available", {"creating"})
    for microversion in ("3.43", "3.50", "3.55"):
        path = f"/limits?tenant_id={PROJECT}"
        absolute = caller.send(200, "GET", path, microversion=microversion)["limits"]["absolute"]
        assert absolute["totalVolumesUsed"] >= 1
    shows("Horizon", "limits", says=REPLAYED)

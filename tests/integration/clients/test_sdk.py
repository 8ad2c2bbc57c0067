"""openstacksdk and keystoneauth's discovery, in an interpreter of their own."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.clients.commands import Commands
from tests.integration.clients.conftest import Typing
from tests.integration.clients.content import GIB, fill
from tests.integration.clients.table import Shown, client_error
from tests.integration.clients.world import World
from tests.integration.content import same_content
from tests.integration.service import Client, Service, running
from tests.servers.keystone import User

pytestmark = pytest.mark.server

SCRIPT = str(Path(__file__).with_name("sdk_script.py"))

#: What keystoneauth finds for a service type and the newest version a caller can use.
DISCOVERY = """
import json, sys
from keystoneauth1 import session, adapter
from keystoneauth1.identity import v3
import os
auth = v3.Password(auth_url=os.environ["OS_AUTH_URL"], username=os.environ["OS_USERNAME"],
    password=os.environ["OS_PASSWORD"], project_name=os.environ["OS_PROJECT_NAME"],
    user_domain_id="default", project_domain_id="default")
made = session.Session(auth=auth)
found = {}
for kind in ("block-storage", "volumev3"):
    where = adapter.Adapter(made, service_type=kind, region_name=os.environ["OS_REGION_NAME"],
                            min_version="3", max_version="3.latest")
    data = where.get_endpoint_data()
    found[kind] = [data.url, list(data.api_version), list(data.min_microversion), list(data.max_microversion)]
print(json.dumps(found))
"""

#: Only what an administrator may.
ADMIN = {"export a record", "reset the status", "force delete", "services", "quotas"}
#: Only what came with a microversion.
LATER = {
    "… with metadata",
    "… in an availability zone",
    "name, description, metadata afterwards",
    "a new volume from a backup (3.47)",
}
#: Everything the script shows.
ALL = (
    ADMIN
    | LATER
    | {
        "discovery of versions",
        "create a backup: full",
        "… incremental",
        "… of a snapshot",
        "list, with filters",
        "… by pages",
        "show by id",
        "show by name",
        "restore to a new volume",
        "restore over a volume",
        "delete",
        "volumes: create, show, list, delete",
        "volumes: change",
        "snapshots: create, list, delete",
        "limits",
    }
)


def run_script(commands: Commands, api: Client, version: str, *arguments: str) -> dict[str, Any]:
    """Run the script on a volume, and compare what it restored; returns what it says it has shown."""
    source = api.create_volume()
    fill(api.volume_path(source), seed=31)
    done = json.loads(commands.run("python", SCRIPT, version, source, *arguments).stdout)
    for volume in done["same"]:
        assert same_content(api.volume_path(source), api.volume_path(volume), GIB)
        api.expect(202, "DELETE", f"/volumes/{volume}")
    assert len(done["same"]) == (3 if version == "3" else 2)
    found: dict[str, Any] = done
    return found


@pytest.mark.parametrize("version", ["2", "3"])
def test_a_script(typing: Typing, world: World, admin: User, version: str, shows: Shown) -> None:
    told = run_script(typing(admin), world.client(admin), version)
    client = f"SDK v{version}"
    assert set(told["done"]) == (ALL if version == "3" else ALL - LATER)
    shows(client, *told["done"])
    assert "import a record" in told["refused"]
    shows(client, "import a record", says=client_error(1))
    if version == "3":
        assert "remove one key of metadata" in told["refused"]
        shows(client, "remove one key of metadata", says="not served (2)")


@pytest.mark.parametrize("version", ["2", "3"])
def test_a_member_may_not_export(
    typing: Typing, world: World, member: User, version: str, shows: Shown
) -> None:
    told = run_script(typing(member), world.client(member), version)
    assert set(told["done"]) == (ALL if version == "3" else ALL - LATER) - ADMIN
    assert "export a record" in told["refused"]
    shows(f"SDK v{version}", "refusal: members do what administrators may")


def test_discovery(typing: Typing, world: World, member: User) -> None:
    done = typing(member).run("python", "-c", DISCOVERY)
    for url, version, least, most in json.loads(done.stdout).values():
        assert url == f"{world.url}/v3/{member.project_id}"
        assert (version, least, most) == ([3, 0], [3, 0], [3, 71])


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """An embedded instance as ``backupfw serve`` makes it, without Keystone."""
    with running(tmp_path_factory.mktemp("alone") / "state") as service:
        yield service


def test_a_script_without_keystone(alone: Service, clients: Path) -> None:
    """Version 2 differs by its path only, here as there."""
    endpoint = f"http://127.0.0.1:{alone.port}/v3/demo"
    told = run_script(Commands({}, clients), alone.client("demo"), "3", endpoint)
    assert set(told["done"]) == ALL - {"quotas"}

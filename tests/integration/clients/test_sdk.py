"""openstacksdk and keystoneauth's discovery, in an interpreter of their own."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.clients.commands import Commands
from tests.integration.clients.conftest import Typing
from tests.integration.clients.world import World
from tests.integration.service import Service, running
from tests.servers.keystone import User

pytestmark = pytest.mark.server

SCRIPT = str(Path(__file__).with_name("sdk_script.py"))
STEPS = ["create", "list", "metadata", "restore", "export", "around", "delete"]

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


def steps(version: str, exported: str = "export") -> list[str]:
    skipped = {"metadata"} if version == "2" else set()
    return [exported if step == "export" else step for step in STEPS if step not in skipped]


def run_script(commands: Commands, *arguments: str) -> list[str]:
    """Run the script; returns what it says it has done."""
    done: list[str] = json.loads(commands.run("python", SCRIPT, *arguments).stdout)["done"]
    return done


@pytest.mark.parametrize("version", ["2", "3"])
def test_a_script(typing: Typing, admin: User, version: str) -> None:
    assert run_script(typing(admin), version) == steps(version)


def test_a_member_may_not_export(typing: Typing, member: User) -> None:
    assert run_script(typing(member), "3") == steps("3", "export refused")


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


@pytest.mark.parametrize("version", ["2", "3"])
def test_a_script_without_keystone(alone: Service, clients: Path, version: str) -> None:
    endpoint = f"http://127.0.0.1:{alone.port}/v{version}/demo"
    assert run_script(Commands({}, clients), version, endpoint) == steps(version)

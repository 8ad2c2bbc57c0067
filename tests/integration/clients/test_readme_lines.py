"""The client lines of README, each typed as it stands there."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.clients.commands import PATIENCE, Commands
from tests.integration.clients.world import World
from tests.integration.service import TRANSIENT, Client, Service, running
from tests.servers.keystone import ADMIN_PASSWORD, REGION, User
from tests.servers.programs import ROOT

pytestmark = pytest.mark.server

PORT = "127.0.0.1:8776"


def blocks(language: str = "") -> list[str]:
    """The fenced blocks of the section about clients, in one language."""
    page = (ROOT / "README.md").read_text()
    _, _, rest = page.partition("## A backup with the openstack client\n")
    section = rest.partition("\n## ")[0]
    found = re.findall(r"^```(\w*)\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)
    return [text for written_in, text in found if written_in == language]


(CINDER,) = [block for block in blocks() if "OS_AUTH_TYPE=noauth" in block]
WITHOUT_KEYSTONE = [block for block in blocks() if "OS_AUTH_TYPE=none" in block]
(CATALOGUE,) = [block for block in blocks() if "openstack endpoint create" in block]


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """What ``make serve`` starts, on another port."""
    with running(tmp_path_factory.mktemp("readme") / "state") as service:
        yield service


def settle(api: Client) -> None:
    """Wait until nothing changes any more, as somebody does who types."""

    def settled() -> bool:
        kinds = ("backups", "volumes")
        listed = [api.expect(200, "GET", f"/{kind}/detail")[kind] for kind in kinds]
        assert not [each for each in (*listed[0], *listed[1]) if each["status"].startswith("error")]
        waiting = TRANSIENT | {"backing-up", "restoring-backup"}
        return not [each for each in (*listed[0], *listed[1]) if each["status"] in waiting]

    api.wait("everything to be done", settled)


def type_lines(commands: Commands, lines: list[str], api: Client | None = None) -> str:
    """Type lines into a shell, one after the other; returns what they printed."""
    before, said = "", ""
    for line in filter(None, lines):
        if not line.startswith(("openstack", "cinder")):
            before += line + "\n"
            continue
        done = subprocess.run(
            ["bash", "-ec", before + line],
            env=commands.environment,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )
        assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
        said += done.stdout
        if api is not None:
            settle(api)
    return said


@pytest.mark.parametrize("block", WITHOUT_KEYSTONE, ids=["v3", "v2"])
def test_without_keystone(service: Service, clients: Path, block: str) -> None:
    assert PORT in block
    lines = block.replace(PORT, f"127.0.0.1:{service.port}").splitlines()
    api = service.client("demo")
    said = type_lines(Commands({}, clients), lines, api)
    made = re.findall(r"--name (\S+)", block)
    deleted = re.findall(r"backup delete (\S+)", block)
    there = {item["name"] for item in api.expect(200, "GET", "/backups")["backups"]}
    assert set(made) - set(deleted) <= there
    assert not there & set(deleted)
    assert all(name in said for name in made)


def test_cinder_without_keystone(service: Service, clients: Path) -> None:
    api = service.client("demo")
    backup = api.backup(api.create_volume(), name="seen-by-cinder")
    assert PORT in CINDER
    lines = CINDER.replace(PORT, f"127.0.0.1:{service.port}").splitlines()
    assert "seen-by-cinder" in type_lines(Commands({}, clients), lines)
    limits = api.expect(200, "GET", "/os-quota-sets/demo")["quota_set"]
    assert (limits["backups"], limits["volumes"]) == (500, -1)
    api.delete_backup(backup)


def test_from_python(service: Service, clients: Path) -> None:
    api = service.client("demo")
    backup = api.backup(api.create_volume(), name="seen-from-python")
    (script,) = blocks("python")
    assert PORT in script
    done = Commands({}, clients).run("python", "-c", script.replace(PORT, f"127.0.0.1:{service.port}"))
    assert "seen-from-python available" in done.stdout
    api.delete_backup(backup)


def test_the_entries_in_the_catalogue(world: World, clients: Path, member: User) -> None:
    region = "RegionOfReadme"
    administrator = {
        **world.variables(User("", "admin", ADMIN_PASSWORD, "admin", "")),
        "OS_REGION_NAME": REGION,
    }
    world.keystone.add_endpoints("identity", {"public": world.keystone.url.removesuffix("/v3")}, region)
    lines = CATALOGUE.replace("http://backup.example.org:8776", world.url).replace(REGION, region)
    type_lines(Commands(administrator, clients), lines.splitlines())
    for version, base in (("3.71", "v3"), ("2", "v2")):
        user = Commands(
            {**world.variables(member), "OS_REGION_NAME": region, "OS_VOLUME_API_VERSION": version}, clients
        )
        done = user.run("openstack", "--debug", "volume", "backup", "list")
        assert f"{world.url}/{base}/{member.project_id}/backups/detail" in done.stderr

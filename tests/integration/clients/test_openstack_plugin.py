"""The commands of ``clients/python-backupfwclient`` as somebody types them, on a whole service."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.clients.commands import Commands
from tests.integration.clients.world import World
from tests.integration.service import Client, Service, running
from tests.servers.keystone import User

#: The command of the environment that has the checkout's parts.
OPENSTACK = str(Path(sys.executable).with_name("openstack"))


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service with two stores, without Keystone."""
    folder = tmp_path_factory.mktemp("plugin")
    options = {
        "DEFAULT": {"enabled_stores": "main, offsite"},
        "store:main": {"driver": "posix", "path": folder / "main"},
        "store:offsite": {"driver": "posix", "path": folder / "offsite"},
    }
    with running(folder / "state", options) as service:
        yield service


def test_a_backup_is_waited_for_copied_and_cancelled(service: Service, tmp_path: Path) -> None:
    api: Client = service.client()
    api.create_volume(name="disk")
    endpoint = f"http://127.0.0.1:{service.port}/v3/demo"
    variables = {"OS_AUTH_TYPE": "none", "OS_ENDPOINT": endpoint, "OS_VOLUME_API_VERSION": "3"}
    typed = Commands(variables, tmp_path)

    typed.run(OPENSTACK, "volume", "backup", "create", "--name", "monday", "disk")
    done = typed.run(
        OPENSTACK, "volume", "backup", "progress", "--wait", "monday", "-f", "value", "-c", "status"
    )
    assert (done.stdout, done.stderr) == ("available\n", "")
    (backup,) = api.expect(200, "GET", "/backups")["backups"]

    done = typed.run(OPENSTACK, "volume", "backup", "copy", "create", "--wait", "monday", "offsite")
    assert "available" in done.stdout
    found = api.expect(200, "GET", f"/backups/{backup['id']}/copies")["copies"]
    assert [(copy["store"], copy["status"]) for copy in found] == [("offsite", "available")]
    typed.run(OPENSTACK, "volume", "backup", "copy", "delete", "monday", "offsite")
    done = typed.run(OPENSTACK, "volume", "backup", "copy", "list", "monday", "-f", "json")
    assert done.stdout.strip() == "[]"

    # Nothing runs any more: a refusal, without a stack.
    done = typed.run(OPENSTACK, "volume", "backup", "cancel", "monday", check=False)
    assert done.returncode == 1
    assert "its status is available. (HTTP 400)\n1 of 1 backups not cancelled.\n" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.server
def test_behind_keystone(world: World, admin: User, member: User, tmp_path: Path) -> None:
    api = world.client(member)
    backup = api.backup(api.create_volume(), name="of-a-member")
    typed = Commands(world.variables(member), tmp_path)
    done = typed.run(OPENSTACK, "volume", "backup", "progress", "of-a-member", "-f", "value", "-c", "phase")
    assert done.stdout == "idle\n"
    reader = world.keystone.add_user("reader-with-plugin", admin.project, "reader", admin.project_id)
    typed = Commands(world.variables(reader), tmp_path)
    done = typed.run(OPENSTACK, "volume", "backup", "cancel", backup, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert "(HTTP 403)" in done.stderr

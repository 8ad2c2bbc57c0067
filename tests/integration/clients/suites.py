"""Runs the tests that the clients come with, unmodified, and reads their results."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from tests.integration.clients.commands import imported_client
from tests.integration.clients.results import Result
from tests.integration.clients.world import World
from tests.servers.keystone import User
from tests.servers.programs import find_program, missing_programs

#: How long one suite may take, seconds.
PATIENCE = 900.0
RUNNER = str(Path(__file__).with_name("suite_runner.py"))
#: Asks a fork server for what it is called for, as which it has the same directory, variables and standard
#: files.  It imports next to nothing, or it would be as slow.
STAND_IN = """\
#!{python} -IS
import json, os, socket, sys
with socket.socket(socket.AF_UNIX) as link:
    link.connect({address!r})
    asked = json.dumps([sys.argv, os.getcwd(), dict(os.environ), False]).encode()
    socket.send_fds(link, [len(asked).to_bytes(8, "big")], [0, 1, 2])
    link.sendall(asked)
    with link.makefile() as lines:
        lines.readline()
        sys.exit(int(lines.readline()))
"""


def suites_missing() -> str | None:
    """Say what is missing to run them, or None."""
    names = missing_programs("openstack", "cinder", "oslo_debug_helper", environment="suites")
    return f"not installed: {', '.join(names)} (tests/servers/install.sh suites)" if names else None


class Suites:
    """The suites, configured for an instance as their authors describe it.

    :param directory: for configuration.
    :param admin: who is called ``devstack-admin`` there; the suites' other names are the member's.
    """

    def __init__(self, directory: Path, world: World, admin: User, member: User) -> None:
        self._directory = directory
        self._python = str(Path(find_program("openstack", "suites") or "").with_name("python"))
        bin_directory = directory / "bin"
        bin_directory.mkdir()
        clouds = {
            name: _cloud(world, user)
            for name, user in (
                ("devstack", member),
                ("devstack-alt", member),
                ("devstack-admin", admin),
                ("devstack-system-admin", admin),
            )
        }
        # JSON is YAML.
        (directory / "clouds.yaml").write_text(json.dumps({"clouds": clouds}))
        kept = {name: value for name, value in os.environ.items() if not name.startswith("OS_")}
        self._environment = {
            **kept,
            **world.variables(admin),
            "HOME": str(directory),
            "PATH": os.pathsep.join(
                (str(bin_directory), str(Path(self._python).parent), kept.get("PATH", ""))
            ),
            "OS_CINDERCLIENT_EXEC_DIR": str(bin_directory),
            "OS_VOLUME_API_VERSION": "3.71",
            "OS_CLOUD": "devstack-admin",
            # For slow machines; of one test, seconds.
            "OS_TEST_TIMEOUT": "300",
        }

    def _run(self, *words: str) -> list[str]:
        done = subprocess.run(
            [self._python, "-P", RUNNER, *words],
            cwd=self._directory,
            env=self._environment,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )
        assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
        return done.stdout.splitlines()

    def names(self, package: str) -> set[str]:
        """The ids of all tests below a package."""
        return set(self._run("list", package))

    def run(self, package: str, ids: Iterable[str]) -> dict[str, Result]:
        """Run tests of a package; returns their results by id."""
        chosen = self._directory / f"chosen-{package}"
        chosen.write_text("\n".join(ids))
        told: list[dict[str, Any]] = [json.loads(line) for line in self._run("run", package, str(chosen))]
        return {each["id"]: Result(each["status"], each["why"].strip()) for each in told}

    @contextmanager
    def quick_commands(self) -> Iterator[None]:
        """Serve the clients' commands without the time their imports take."""
        with ExitStack() as stack:
            for name in ("openstack", "cinder"):
                python = Path(self._python)
                server = imported_client(python.with_name(name), self._environment, self._directory)
                stack.callback(server.close)
                script = self._directory / "bin" / name
                script.write_text(STAND_IN.format(python=python, address=server.address))
                script.chmod(0o755)
            yield


def _cloud(world: World, user: User) -> dict[str, Any]:
    """An entry of ``clouds.yaml``."""
    return {
        "region_name": world.region,
        "auth": {
            "auth_url": world.keystone.url,
            "username": user.name,
            "password": user.password,
            "project_name": user.project,
            "user_domain_id": "default",
            "project_domain_id": "default",
        },
    }

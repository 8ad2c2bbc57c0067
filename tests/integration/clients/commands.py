"""Runs clients as processes, from the environment that install.sh made for them."""

from __future__ import annotations

import atexit
import json
import os
import subprocess
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from tests.servers.forked import ForkServer
from tests.servers.programs import find_program, missing_programs, servers_directory

#: How long one command may take, seconds.
PATIENCE = 120.0
#: What the clients' scripts call, and what that imports.
IMPORTED = {
    "openstack": ("openstackclient.shell:main", "openstackclient.volume.*", "openstack.block_storage.*"),
    "cinder": ("cinderclient.shell:main", "cinderclient.v3.*"),
}


def clients_missing() -> str | None:
    """Say what is missing to run them, or None."""
    names = missing_programs("openstack", "cinder", environment="clients")
    return f"not installed: {', '.join(names)} (tests/servers/install.sh clients)" if names else None


def imported_client(
    program: Path, environment: Mapping[str, str], directory: Path | None = None
) -> ForkServer:
    """Import a client; where it looks for its configuration is settled then."""
    python = program.with_name("python")
    return ForkServer(python, *IMPORTED[program.name], environment=environment, directory=directory)


@cache
def _imported(program: Path, home: str) -> ForkServer:
    server = imported_client(program, {**os.environ, "HOME": home})
    atexit.register(server.close)
    return server


class Commands:
    """What somebody types, with these variables exported.

    :param home: holds the clients' files, so that nobody's settings count.
    """

    def __init__(self, variables: Mapping[str, str], home: Path) -> None:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("OS_")}
        bin_directory = servers_directory() / "clients" / "bin"
        kept["PATH"] = f"{bin_directory}{os.pathsep}{kept.get('PATH', '')}"
        self.environment = {**kept, "HOME": str(home), **variables}

    def run(self, program: str, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run one of the programs; it must succeed unless ``check`` is false."""
        found = find_program(program, "clients") or program
        if program in IMPORTED:
            server = _imported(Path(found), self.environment["HOME"])
            done = server.run([str(found), *words], self.environment, PATIENCE)
        else:
            done = subprocess.run(
                [found, *words], env=self.environment, capture_output=True, text=True, timeout=PATIENCE
            )
        assert not check or done.returncode == 0, f"{words}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    def openstack(self, *words: str) -> Any:
        """Run a command of python-openstackclient that shows something; returns what it shows."""
        return json.loads(self.run("openstack", *words, "-f", "json").stdout)

    def cinder(self, *words: str) -> list[dict[str, str]]:
        """Run a command of python-cinderclient that prints a table; returns its rows."""
        return rows(self.run("cinder", *words).stdout)

    def cinder_shows(self, *words: str) -> dict[str, str]:
        """Run a command of python-cinderclient that shows one thing; returns its properties."""
        return {row["Property"]: row["Value"] for row in self.cinder(*words)}


def rows(text: str) -> list[dict[str, str]]:
    """Read a table: lines of cells between bars, the first with the names of the columns."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [dict(zip(cells[0], row, strict=True)) for row in cells[1:]]

"""Builds and runs gophercloud/main.go: the library's own calls, with its own view of the answers."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.integration.clients import lines
from tests.servers.programs import missing_programs, servers_directory

#: Where Debian's packages put the sources of Go libraries.
SOURCES = Path("/usr/share/gocode")
PACKAGE = SOURCES / "src/github.com/gophercloud/gophercloud"
PROGRAM = Path(__file__).with_name("gophercloud")
#: How long a build without a cache may take, seconds.
PATIENCE = 300.0


def gophercloud_missing() -> str | None:
    """Say what is missing to build it, or None."""
    names = missing_programs("go") + ([] if PACKAGE.is_dir() else [PACKAGE.name])
    return f"not installed: {', '.join(names)} (tests/servers/install.sh gophercloud)" if names else None


def build(directory: Path) -> Path:
    """Build the program into a directory; nothing but the system's sources goes into it."""
    binary = directory / "gophercloud"
    go = {
        "GO111MODULE": "off",
        "GOPATH": str(SOURCES),
        "GOFLAGS": "",
        "CGO_ENABLED": "0",
        # Stays, so that only the first build takes its seconds.
        "GOCACHE": str(servers_directory().resolve() / "gophercloud"),
    }
    done = subprocess.run(
        ["go", "build", "-o", str(binary), "."],
        cwd=PROGRAM,
        env={**os.environ, **go},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode == 0, done.stderr
    return binary


class Refused(Exception):
    """The library returned an error.

    :ivar code: the HTTP status; 0 for an error of another kind.
    """

    def __init__(self, what: str, code: int) -> None:
        super().__init__(what)
        self.code = code


class Gophercloud:
    """The running program."""

    def __init__(self, program: lines.Program) -> None:
        self._program = program

    def __call__(self, function: str, resource_id: str = "", at: str = "", **options: Any) -> Any:
        """Call a function of the library; returns what it made of the answer.

        :param at: the microversion.
        :param options: the fields of the library's options, by their names in JSON (or in Go).
        :raises Refused: the library returned an error.
        """
        answer = self._program.ask({"do": function, "id": resource_id, "at": at, "opts": options})
        if "error" in answer:
            raise Refused(answer["error"], answer["code"])
        return answer["is"]


@contextmanager
def started(binary: Path, variables: Mapping[str, str], *arguments: str) -> Iterator[Gophercloud]:
    """Start the program with an RC file's variables; it ends with the block."""
    with lines.started([str(binary), *arguments], variables) as program:
        yield Gophercloud(program)

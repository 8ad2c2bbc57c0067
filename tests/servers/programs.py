"""Finds the servers' programs: on PATH, in the system's places, or where ``install.sh`` put them."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

#: The checkout.
ROOT = Path(__file__).resolve().parents[2]


def servers_directory() -> Path:
    """Where servers that come as Python packages are installed, one environment each."""
    return Path(os.environ.get("BACKUPFW_SERVERS") or ROOT / ".servers")


def find_program(name: str, environment: str | None = None) -> str | None:
    """Return a program's path, None if it is not installed.

    :param name: the program, e.g. ``radosgw``.
    :param environment: the virtual environment below :func:`servers_directory` that has it, if it is
        not a system package.
    """
    places = [os.environ.get("PATH", ""), "/usr/sbin", "/sbin"]
    if environment is not None:
        places.insert(0, str(servers_directory() / environment / "bin"))
    return shutil.which(name, path=os.pathsep.join(places))


def missing_programs(*names: str, environment: str | None = None) -> list[str]:
    """Return those of ``names`` that are not installed."""
    return [name for name in names if find_program(name, environment) is None]

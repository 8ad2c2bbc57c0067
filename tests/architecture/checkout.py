"""What the checkout holds: the metadata of core, the drivers and the client."""

from __future__ import annotations

import configparser
import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
CORE = ROOT / "backupfw"


def setup_cfg() -> configparser.ConfigParser:
    """Core's setup.cfg."""
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    return parser


def lines(text: str) -> list[str]:
    """The non-empty lines of a multi-line value."""
    return [line.strip() for line in text.splitlines() if line.strip()]


#: Folders of drivers to copy; they are not installed.
TEMPLATES = ("template", "template-volume")


def driver_projects() -> dict[str, dict[str, Any]]:
    """The pyproject.toml of every driver distribution, by folder; templates are none."""
    found = sorted((ROOT / "drivers").glob("*/pyproject.toml"))
    return {
        path.parent.name: tomllib.loads(path.read_text())
        for path in found
        if path.parent.name not in TEMPLATES
    }


def parts() -> dict[str, dict[str, Any]]:
    """The pyproject.toml of every distribution beside core, drivers and client, by its path."""
    clients = sorted((ROOT / "clients").glob("*/pyproject.toml"))
    return {
        **{f"drivers/{folder}": project for folder, project in driver_projects().items()},
        **{f"clients/{path.parent.name}": tomllib.loads(path.read_text()) for path in clients},
    }


def driver_entry_points() -> dict[str, str]:
    """Name to ``module:class`` of all drivers of stores in the checkout."""
    return _entry_points("backupfw.chunkstore")


def provider_entry_points() -> dict[str, str]:
    """Name to ``module:class`` of all volume providers in the checkout, but for core's own."""
    return _entry_points("backupfw.volume")


def key_store_entry_points() -> dict[str, str]:
    """Name to ``module:class`` of all key stores in the checkout, but for core's own."""
    return _entry_points("backupfw.keys")


def _entry_points(group: str) -> dict[str, str]:
    points: dict[str, str] = {}
    for project in driver_projects().values():
        points.update(project["project"]["entry-points"].get(group, {}))
    return points

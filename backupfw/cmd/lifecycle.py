"""``backupfw lifecycle``: the diagrams of all states, drawn from the tables the code runs on."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from backupfw.cmd.configure import add_command


def add_parser(commands: Any) -> None:
    """Add the subcommand."""
    add_command(commands, "lifecycle", run, "Print the states of backups, volumes and snapshots (Mermaid).")


def run(_args: argparse.Namespace) -> int:
    """Print the diagrams."""
    from backupfw.manager.lineage import lifecycle

    sys.stdout.write(lifecycle.mermaid())
    return 0

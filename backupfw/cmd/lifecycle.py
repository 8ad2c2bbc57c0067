"""``backupfw lifecycle``: the diagrams of all states, drawn from the tables the code runs on."""

from __future__ import annotations

import argparse

from backupfw.cmd import base


class Lifecycle(base.Command):
    """Print the states of backups, volumes and snapshots (Mermaid)."""

    def take_action(self, parsed_args: argparse.Namespace) -> None:  # noqa: ARG002
        """Print the diagrams."""
        from backupfw.manager.lineage import lifecycle

        self.app.stdout.write(lifecycle.mermaid())

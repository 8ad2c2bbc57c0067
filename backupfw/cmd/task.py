"""``backupfw task``: what workers still have to do, and the clean-ups that will never succeed."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from backupfw.cmd import base

if TYPE_CHECKING:
    from backupfw.manager.outcomes.clean_ups import Left


class List(base.Lister):
    """List what workers do or will do, clean-ups that no user sees included, the oldest first."""

    columns = ("id", "kind", "resource_id", "project_id", "requires", "waits_for", "until", "since", "reason")

    def records(self, args: argparse.Namespace) -> Iterator[Mapping[str, Any]]:
        """Yield a record for each."""
        from backupfw.cmd import database
        from backupfw.manager.outcomes import clean_ups
        from backupfw.manager.queue.claims import Limits

        conf, db = self.database(args)
        return (database.plain(one) for one in clean_ups.unfinished(db, conf, Limits.of(conf)))


class Drop(base.Command):
    """Give up a clean-up whose store or volume back end is gone for good, and say what stays there.

    A clean-up is the deletion of a backup, or the removal of what no user sees: objects, a temporary
    snapshot, what a volume's storage keeps for backups.  It is repeated until it succeeds.
    """

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add the command's arguments."""
        parser.add_argument("id", metavar="ID", help="the task's id, from 'backupfw task list'")

    def take_action(self, parsed_args: argparse.Namespace) -> None:
        """Give it up."""
        from backupfw.manager.outcomes import clean_ups

        if not re.fullmatch("[0-9]{1,18}", parsed_args.id, re.ASCII):
            self.refuse(f"{parsed_args.id!r} is no id of a task")
        conf, db = self.database(parsed_args)
        print(_stays(clean_ups.give_up(db, conf, int(parsed_args.id))))


def _stays(left: Left) -> str:
    """Say what stays behind, and how to remove it."""
    from backupfw.engine.format import keys

    if left.backend is not None and left.backups:
        return (
            f"Volume {left.task.resource_id}, in the volume back end {left.backend} at {left.place}:"
            " snapshots, bitmaps and temporary volumes stay whose names have the id of one of these backups."
            f" Remove them by the storage's own means.\n{chr(10).join(left.backups)}"
        )
    if left.backend is not None:
        return f"In the volume back end {left.backend}, {left.place} stays, if it is there."
    if left.manifest is None:
        return "Nothing stays."
    prefix = keys.backup_prefix(*left.manifest.maker)
    return (
        f"In the container {left.manifest.container} of the store {left.manifest.store}, the objects below"
        f" {prefix} stay. Later backups of the volume may need some of them."
        " If the store comes back, 'backupfw sweep' removes the others; if no backup in it is needed, remove"
        " them all by the store's own means."
    )

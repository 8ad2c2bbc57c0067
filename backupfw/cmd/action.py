"""``backupfw action list``: who had what done to backups, volumes, snapshots and backup policies."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from typing import Any

from backupfw.cmd import base, usecases
from backupfw.cmd.verify import number

#: How many records are read at a time.
_PAGE = 1000


class List(base.Lister):
    """List who had what done to backups, volumes, snapshots and backup policies, the newest first.

    What a backup policy did has its id, and no user.  Records go after [DEFAULT] action_ttl seconds.
    """

    columns = (
        *("id", "created_at", "kind", "project_id", "user_id", "policy_id", "resource_id"),
        *("resource_name", "volume_id", "detail", "request_id"),
    )
    short = ("created_at", "kind", "resource_id", "resource_name", "user_id", "policy_id", "detail")

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add the command's arguments."""
        parser.add_argument("--project", metavar="P", type=usecases.text, help="only of this project")
        parser.add_argument(
            "--about",
            metavar="ID",
            type=usecases.text,
            help="only about this backup, snapshot or policy, or about this volume and what is of it; also if"
            " it is gone",
        )
        parser.add_argument("--limit", metavar="N", type=number, help="only the newest N")

    def records(self, args: argparse.Namespace) -> Iterator[Mapping[str, Any]]:
        """Return them page by page."""
        from backupfw.cmd import database
        from backupfw.manager.actions import ActionManager

        conf, db = self.database(args)
        manager, left, before = ActionManager(db, conf), args.limit, None
        while left is None or left > 0:
            wanted = _PAGE if left is None else min(_PAGE, left)
            found = manager.list(
                base.operator(), limit=wanted, project_id=args.project, about=args.about, before=before
            )
            yield from map(database.plain, found)
            if len(found) < wanted:
                return
            left, before = None if left is None else left - wanted, found[-1].id

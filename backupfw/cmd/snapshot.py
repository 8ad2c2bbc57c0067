"""``backupfw snapshot``: snapshots of volumes."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from typing import Any

from backupfw.cmd import base, usecases, waiting


class Create(usecases.Queueing):
    """Make a snapshot of a volume and print its id."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add the command's arguments."""
        parser.add_argument("volume", metavar="VOLUME", help="the volume's id or name")
        usecases.add_project(parser)
        parser.add_argument("--name", metavar="N", type=usecases.text, help="display name")
        parser.add_argument("--description", metavar="TEXT", type=usecases.text, help="what it is for")
        parser.add_argument("--force", action="store_true", help="also of a volume that somebody uses")
        super().add_arguments(parser)

    def take_action(self, parsed_args: argparse.Namespace) -> None:
        """Make it."""
        from backupfw.db import models
        from backupfw.manager.lineage import lifecycle

        args = parsed_args
        cases = self.use_cases(args)
        volume = cases.find(models.Volume, args.volume, args.project)
        made = cases.snapshots.create(
            base.operator(),
            volume_id=volume,
            name=args.name,
            description=args.description,
            force=args.force,
        )
        print(made.id, flush=True)
        operation = waiting.Operation(
            f"making snapshot {made.id}", models.Snapshot, made.id, (lifecycle.AVAILABLE,)
        )
        waiting.follow(cases.conf, cases.db, operation, wait=args.wait)


class List(base.Lister):
    """List snapshots, oldest first."""

    columns = ("id", "name", "project_id", "volume_id", "status", "size", "created_at")

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add the command's arguments."""
        parser.add_argument("--volume", metavar="ID", help="only those of this volume (id or name)")
        parser.add_argument("--project", metavar="ID", type=usecases.text, help="only those of this project")

    def records(self, args: argparse.Namespace) -> Iterator[Mapping[str, Any]]:
        """Return them page by page."""
        from backupfw.db import models

        cases = usecases.UseCases(*self.database(args))
        volume = None
        if args.volume is not None:
            volume = cases.find(models.Volume, args.volume, project_id=args.project)
        found = usecases.pages(cases.snapshots.list, {"volume_id": volume, "project_id": args.project})
        return map(usecases.described, found)


class Show(base.ShowOne):
    """Show a snapshot."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add the command's arguments."""
        parser.add_argument("id", metavar="ID", help="the snapshot's id or name")
        usecases.add_project(parser)

    def record(self, args: argparse.Namespace) -> Mapping[str, Any]:
        """Return it."""
        from backupfw.db import models

        cases = usecases.UseCases(*self.database(args))
        snapshot = cases.find(models.Snapshot, args.id, args.project)
        return usecases.described(cases.snapshots.get(base.operator(), snapshot))


class Delete(usecases.Deleting):
    """Delete snapshots."""

    def take_action(self, parsed_args: argparse.Namespace) -> int:
        """Delete them."""
        from backupfw.db import models

        return self.delete(self.use_cases(parsed_args), parsed_args, models.Snapshot, "snapshot")

    def begin(self, cases: usecases.UseCases, args: argparse.Namespace, resource_id: str) -> None:  # noqa: ARG002
        """Begin the deletion of one."""
        cases.snapshots.delete(base.operator(), resource_id)

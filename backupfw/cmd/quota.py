"""``backupfw quota``: what a project may have."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from backupfw.cmd import base, usecases


def _limit(text: str) -> tuple[str, int]:
    resource, equals, limit = text.partition("=")
    try:
        if not resource or not equals:
            raise ValueError
        return resource, int(limit)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not RESOURCE=NUMBER") from None


class Show(base.Lister):
    """Show a project's limits and what it has; -1 is no limit."""

    columns = ("resource", "limit", "in_use")

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add the command's arguments."""
        parser.add_argument("project", metavar="PROJECT", type=usecases.project, help="the project's id")

    def records(self, args: argparse.Namespace) -> Iterator[Mapping[str, Any]]:
        """Return a record for each limit."""
        from backupfw.manager.rules.quota import QuotaManager

        conf, db = self.database(args)
        for resource, found in QuotaManager(db, conf).show(args.project, usage=True, everything=True).items():
            assert isinstance(found, dict)
            yield {"resource": resource, **found}


class Set(base.Command):
    """Set limits of a project; the others stay as they are."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add the command's arguments."""
        parser.add_argument("project", metavar="PROJECT", type=usecases.project, help="the project's id")
        parser.add_argument(
            "limits",
            metavar="RESOURCE=LIMIT",
            nargs="+",
            type=_limit,
            help="e.g. backups=20 or backup_gigabytes=1000; -1 is no limit;"
            " 'backupfw quota show' has the names",
        )
        parser.add_argument(
            "--force",
            action="store_true",
            help="also below what is used: nothing more is granted until enough was deleted",
        )

    def take_action(self, parsed_args: argparse.Namespace) -> None:
        """Set them."""
        from backupfw.manager.rules.quota import QuotaManager

        limits = dict(parsed_args.limits)
        twice = [name for name, times in Counter(name for name, _ in parsed_args.limits).items() if times > 1]
        if twice:
            self.refuse(f"more than one limit is given for {', '.join(twice)}")
        conf, db = self.database(parsed_args)
        QuotaManager(db, conf).update(parsed_args.project, limits, force=parsed_args.force)

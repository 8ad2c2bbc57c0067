"""``backupfw db sync``, ``db version``, ``db check`` and ``db purge``."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from typing import TYPE_CHECKING, Any

from backupfw.cmd import base
from backupfw.cmd.progress import counted

if TYPE_CHECKING:
    from oslo_config import cfg

    from backupfw.db.session import Database


class _Database(base.AnyCommand):
    """A command for a database that may not fit this release."""

    def connect(self, args: argparse.Namespace, make: bool = False) -> tuple[cfg.ConfigOpts, Database]:
        """Connect until the command is over; nothing is migrated."""
        from backupfw.cmd import database
        from backupfw.cmd.configure import load_conf

        conf = load_conf(args)
        return conf, self.open(closing(database.connect(conf, make)))


class Sync(_Database, base.ShowOne):
    """Make the tables, or migrate them to what this release needs, and print the version."""

    default_format = "value"

    def record(self, args: argparse.Namespace) -> Mapping[str, Any]:
        """Migrate, and return the version."""
        from backupfw.db import migrate

        conf, db = self.connect(args, make=True)
        migrate.sync(db, conf.installation_id)
        return {"version": migrate.version(db)}


class Version(_Database, base.ShowOne):
    """Print the database's version, 'none' for an empty one."""

    default_format = "value"

    def record(self, args: argparse.Namespace) -> Mapping[str, Any]:
        """Return it."""
        from backupfw.db import migrate

        _conf, db = self.connect(args)
        return {"version": migrate.version(db) or "none"}


class Check(_Database, base.Verdicts):
    """Say whether the database fits this release; exit status 1 if not."""

    columns = ("result", "version")

    def records(self, args: argparse.Namespace) -> Iterable[Mapping[str, Any]]:
        """Compare the versions.

        :raises ConfigError: the database does not fit.
        """
        from backupfw.db import migrate

        _conf, db = self.connect(args)
        migrate.check(db)
        version = migrate.version(db)
        return [{"result": "ok", "version": version, "line": f"ok: version {version}"}]


class Purge(base.Lister):
    """Remove rows of resources that were deleted long ago, if nothing needs them, and print how many."""

    columns = ("resource", "rows")
    default_format = "text"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add the command's arguments."""
        parser.add_argument(
            "--before",
            metavar="DATE",
            type=base.moment,
            required=True,
            help="those deleted before this day or time (ISO 8601, UTC), e.g. 2026-01-31",
        )
        parser.add_argument(
            "--dry-run", action="store_true", help="remove nothing, only say how many rows would be removed"
        )

    def records(self, args: argparse.Namespace) -> Iterator[Mapping[str, Any]]:
        """Remove or count them, and return how many of what."""
        from backupfw.manager.operators import purge

        _conf, db = self.database(args)
        found = purge.run(db, args.before, dry_run=args.dry_run)
        return ({"resource": noun, "rows": count} for noun, count in found.items())

    def lines(self, args: argparse.Namespace, records: Iterator[Mapping[str, Any]]) -> Iterable[str]:
        """Return one line."""
        counts = ", ".join(counted(one["rows"], one["resource"].removesuffix("s")) for one in records)
        return [f"{counts} {'would be removed' if args.dry_run else 'removed'}"]

"""``backupfw db sync``, ``db version``, ``db check`` and ``db purge``."""

from __future__ import annotations

import argparse
import contextlib
from datetime import UTC, datetime
from typing import Any

from backupfw.cmd.configure import add_command, add_group, load_conf


def add_parser(commands: Any) -> None:
    """Add the subcommands."""
    group = add_group(commands, "db", "Make, migrate and look at the database.")
    add_command(group, "sync", sync, "Make the tables, or migrate them to what this release needs.")
    add_command(group, "version", version, "Print the database's version.")
    add_command(group, "check", check, "Say whether the database fits this release; exit status 1 if not.")
    purge_parser = add_command(
        group, "purge", purge, "Remove the rows of what was deleted long ago and is needed no more."
    )
    purge_parser.add_argument(
        "--before",
        metavar="DATE",
        type=_moment,
        required=True,
        help="those deleted before this day or time (ISO 8601, UTC), e.g. 2026-01-31",
    )
    purge_parser.add_argument("--dry-run", action="store_true", help="only say how many there are")


def _moment(text: str) -> datetime:
    """Return a day or time as naive UTC; for argparse."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no date, e.g. 2026-01-31") from None
    return moment if moment.tzinfo is None else moment.astimezone(UTC).replace(tzinfo=None)


def sync(args: argparse.Namespace) -> int:
    """Migrate, and print the version that came out."""
    from backupfw.cmd import database
    from backupfw.db import migrate

    conf = load_conf(args)
    with contextlib.closing(database.connect(conf, make=True)) as db:
        migrate.sync(db, conf.installation_id)
        print(migrate.version(db))
    return 0


def version(args: argparse.Namespace) -> int:
    """Print the version, ``none`` for an empty database."""
    from backupfw.cmd import database
    from backupfw.db import migrate

    with contextlib.closing(database.connect(load_conf(args))) as db:
        print(migrate.version(db) or "none")
    return 0


def check(args: argparse.Namespace) -> int:
    """Compare the database's version with this release's."""
    from backupfw.cmd import database
    from backupfw.db import migrate

    with contextlib.closing(database.connect(load_conf(args))) as db:
        migrate.check(db)
        print(f"ok: version {migrate.version(db)}")
    return 0


def purge(args: argparse.Namespace) -> int:
    """Remove old rows, or count them, and print how many of what."""
    from backupfw.cmd import database
    from backupfw.manager.operators import purge as manager

    with database.opened(load_conf(args)) as db:
        found = manager.run(db, args.before, dry_run=args.dry_run)
    counts = ", ".join(f"{count} {noun}" for noun, count in found.items())
    print(counts if args.dry_run else f"{counts} removed")
    return 0

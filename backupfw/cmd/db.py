"""``backupfw db sync``, ``db version`` and ``db check``."""

from __future__ import annotations

import argparse
import contextlib
from typing import Any

from backupfw.cmd.configure import add_command, add_group, load_conf


def add_parser(commands: Any) -> None:
    """Add the subcommands."""
    group = add_group(commands, "db", "Make, migrate and look at the database.")
    add_command(group, "sync", sync, "Make the tables, or migrate them to what this release needs.")
    add_command(group, "version", version, "Print the database's version.")
    add_command(group, "check", check, "Say whether the database fits this release; exit status 1 if not.")


def sync(args: argparse.Namespace) -> int:
    """Migrate, and print the version that came out."""
    from backupfw.cmd import database
    from backupfw.db import migrate

    conf = load_conf(args)
    with contextlib.closing(database.connect(conf)) as db:
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

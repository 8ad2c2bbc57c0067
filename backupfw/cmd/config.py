"""``backupfw config check``: say what is wrong with a configuration before a service runs on it."""

from __future__ import annotations

import argparse
import contextlib
import sys
from typing import TYPE_CHECKING, Any

from backupfw.cmd.configure import add_command, add_group, load
from backupfw.conf import api
from backupfw.conf.stores import group_of

if TYPE_CHECKING:
    from oslo_config import cfg


def add_parser(commands: Any) -> None:
    """Add the subcommands."""
    group = add_group(commands, "config", "Look at the configuration.")
    check_parser = add_command(
        group, "check", check, "Load every option, say what is wrong or 'ok'; opens nothing by itself."
    )
    check_parser.add_argument(
        "--connect",
        action="store_true",
        help="also connect: ask the database for its version and let every store prove that it can be"
        " written, read, listed and deleted",
    )


def check(args: argparse.Namespace) -> int:
    """Check the configuration; with ``--connect`` the database and the stores too."""
    loaded = load(args)
    conf = loaded.conf
    api.check_listen(conf)
    from backupfw.api import app
    from backupfw.cmd import database
    from backupfw.dispatch import transport

    app.check(conf)
    database.check(conf)
    if conf.transport_url:
        transport.open_transport(conf).cleanup()
    for section in loaded.unused_sections:
        print(f"backupfw: warning: section [{section}] is read by nothing", file=sys.stderr)
    files = ", ".join(loaded.files) or "no file"
    profile = f", embedded profile in {conf.state_dir}" if loaded.embedded else ""
    print(f"configuration ok: {files}{profile}")
    for store in conf.enabled_stores:
        default = " (default)" if store == conf.default_store else ""
        print(f"store {store}{default}: driver {conf[group_of(store)].driver}")
    return _connect(conf) if args.connect else 0


def _connect(conf: cfg.ConfigOpts) -> int:
    from backupfw.cmd import database, store
    from backupfw.db import migrate

    if database.is_made(conf):
        with contextlib.closing(database.connect(conf)) as db:
            found, wanted = migrate.version(db), migrate.head()
            good = found == wanted
            todo = "" if good else "; see docs/operating.md, 'Stop, crash, upgrade'"
            print(f"database {db.backend}: version {found or 'none'}, this release needs {wanted}{todo}")
            if lax := db.lax_settings():
                print(
                    f"backupfw: warning: the database may lose commits in a crash ({', '.join(lax)}); see"
                    " docs/operating.md, 'Commits must be durable'",
                    file=sys.stderr,
                )
    else:
        good = True
        print("database sqlite: none yet, the first start makes it")
    for name in conf.enabled_stores:
        good = store.check_one(conf, name) and good
    return 0 if good else 1

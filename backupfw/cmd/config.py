"""``backupfw config check``: say what is wrong with a configuration before a service runs on it."""

from __future__ import annotations

import argparse
import contextlib
import sys
from typing import TYPE_CHECKING

from backupfw.cmd import base

if TYPE_CHECKING:
    from oslo_config import cfg


class Check(base.Command):
    """Load every option, say what is wrong or 'ok'; opens nothing by itself."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add how far it goes."""
        parser.add_argument(
            "--connect",
            action="store_true",
            help="also connect: ask the database for its version and let every store prove that it can be"
            " written, read, listed and deleted",
        )

    def take_action(self, parsed_args: argparse.Namespace) -> int:
        """Check the configuration; with ``--connect`` the database and the stores too."""
        conf = check(parsed_args)
        return 0 if not parsed_args.connect or connect(conf) else 1


def check(args: argparse.Namespace) -> cfg.ConfigOpts:
    """Load the configuration and print what it is.

    :raises ConfigError: something is wrong with it.
    """
    from backupfw.api import app
    from backupfw.cmd import database
    from backupfw.cmd.configure import load
    from backupfw.conf import api
    from backupfw.conf.stores import group_of
    from backupfw.dispatch import transport

    loaded = load(args)
    conf = loaded.conf
    api.check_listen(conf)
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
    return conf


def connect(conf: cfg.ConfigOpts) -> bool:
    """Print what the database and each store answer; returns whether all is well."""
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
    return good

"""``backupfw config check``: say what is wrong with a configuration before a service runs on it."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Iterator, Mapping
from itertools import chain
from typing import TYPE_CHECKING, Any

from backupfw.cmd import base
from backupfw.errors import BackupfwError

if TYPE_CHECKING:
    from oslo_config import cfg

    from backupfw.conf.load import Loaded


class Check(base.Verdicts):
    """Load every option, say what is wrong or 'ok'; opens nothing by itself.

    The exit status is 1 when something is wrong.
    """

    columns = ("check", "subject", "result", "detail")

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add the command's arguments."""
        parser.add_argument(
            "--connect",
            action="store_true",
            help="also connect: ask the database for its version and let every store, every volume back end"
            " and the key store prove that it can be used",
        )

    def records(self, args: argparse.Namespace) -> Iterator[Mapping[str, Any]]:
        """Check the configuration; with ``--connect`` the database, stores, volumes and keys, too."""
        loaded = check(args)
        found = chain(described(loaded), _leaving_no_directory(loaded.conf) if args.connect else ())
        return self.reported(found)


def check(args: argparse.Namespace) -> Loaded:
    """Load the configuration, and warn of sections that nothing reads.

    :raises ConfigError: something is wrong with it.
    """
    from backupfw.api import app
    from backupfw.cmd import database
    from backupfw.cmd.configure import load
    from backupfw.conf import api
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
    return loaded


def described(loaded: Loaded) -> Iterator[Mapping[str, Any]]:
    """Yield what a configuration is, each with its ``line`` for people."""
    from backupfw.conf import keys, volumes
    from backupfw.conf.stores import group_of

    conf = loaded.conf
    files = ", ".join(loaded.files) or "no file"
    profile = f"embedded profile in {conf.state_dir}" if loaded.embedded else ""
    line = f"configuration ok: {files}{profile and f', {profile}'}"
    yield {"check": "configuration", "subject": files, "result": "ok", "detail": profile, "line": line}
    for store in conf.enabled_stores:
        default = "default" if store == conf.default_store else ""
        driver = f"driver {conf[group_of(store)].driver}"
        line = f"store {store}{default and f' ({default})'}: {driver}"
        yield {"check": f"store {store}", "subject": driver, "result": "ok", "detail": default, "line": line}
    for backend in conf.volumes.enabled:
        default = "default" if backend == volumes.default_backend(conf) else ""
        driver = f"driver {conf[volumes.group_of(backend)].driver}"
        subject = f"volume back end {backend}"
        line = f"{subject}{default and f' ({default})'}: {driver}"
        yield {"check": subject, "subject": driver, "result": "ok", "detail": default, "line": line}
    if keys.is_set_up(conf):
        driver = f"driver {conf[keys.GROUP].driver}"
        line = f"key store: {driver}"
        yield {"check": "key store", "subject": driver, "result": "ok", "detail": "", "line": line}


def _leaving_no_directory(conf: cfg.ConfigOpts) -> Iterator[Mapping[str, Any]]:
    """Yield what :func:`connected` does, and make no state directory, which may be one that is misspelt."""
    is_new = conf.state_dir is not None and not os.path.exists(conf.state_dir)
    try:
        yield from connected(conf)
    finally:
        if is_new:
            # A store and a back end in it that were asked have made their directories.
            for folder, _, _ in os.walk(conf.state_dir, topdown=False):
                with contextlib.suppress(OSError):
                    os.rmdir(folder)


def connected(conf: cfg.ConfigOpts) -> Iterator[Mapping[str, Any]]:
    """Yield the answers of database, stores, back ends and key store, each with its ``line`` for people."""
    from backupfw.cmd import database, store, volume
    from backupfw.conf import keys
    from backupfw.db import migrate

    backend, good, detail = "sqlite", True, "none yet, the first start makes it"
    if database.is_made(conf):
        with contextlib.closing(database.connect(conf)) as db:
            found, wanted = migrate.version(db), migrate.head()
            backend, good = db.backend, found == wanted
            todo = "" if good else "; see docs/operating.md, 'Stop, crash, upgrade'"
            detail = f"version {found or 'none'}, this release needs {wanted}{todo}"
            if lax := db.lax_settings():
                print(
                    f"backupfw: warning: the database may lose commits in a crash ({', '.join(lax)}); see"
                    " docs/operating.md, 'Commits must be durable'",
                    file=sys.stderr,
                )
    result, line = "ok" if good else "failed", f"database {backend}: {detail}"
    yield {"check": "database", "subject": backend, "result": result, "detail": detail, "line": line}
    for name in conf.enabled_stores:
        with_subject = (
            {**one, "subject": f"{one['guarantee']} {one['title']}"} for one in store.verdicts(conf, name)
        )
        yield from _of_one(f"store {name}", with_subject)
    for name in conf.volumes.enabled:
        with_subject = ({**one, "subject": one["check"]} for one in volume.verdicts(conf, name))
        yield from _of_one(f"volume back end {name}", with_subject)
    if keys.is_set_up(conf):
        yield from _of_one("key store", _of_keys(conf))


def _of_keys(conf: cfg.ConfigOpts) -> Iterator[Mapping[str, Any]]:
    """Yield the verdict on the key store."""
    from backupfw.worker.keys import open_keys

    with contextlib.closing(open_keys(conf)) as key_store:
        key_store.check()
    yield {"subject": "all", "result": "ok", "detail": "", "line": "key store: ok"}


def _of_one(check: str, verdicts: Iterator[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    """Yield the verdicts on a store, back end or key store; that it cannot be used is one that failed."""
    try:
        for one in verdicts:
            yield {**one, "check": check}
    except (BackupfwError, OSError) as error:
        detail = str(error)
        line = f"{check}: NOT ok: {detail}"
        yield {"check": check, "subject": "all", "result": "failed", "detail": detail, "line": line}

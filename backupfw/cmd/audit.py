"""``backupfw audit``: do the database and the stores say the same?"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from backupfw.chunkstore.errors import ChunkStoreError
from backupfw.cmd import store as store_command
from backupfw.cmd.configure import add_command, load_conf
from backupfw.cmd.progress import Progress, counted
from backupfw.errors import StorageChanged

if TYPE_CHECKING:
    from oslo_config import cfg

    from backupfw.cmd.catalogue import UnknownManifests
    from backupfw.db.session import Database
    from backupfw.manager.operators.audit import Finding


def add_parser(commands: Any) -> None:
    """Add the subcommand."""
    parser = add_command(
        commands,
        "audit",
        run,
        "Compare the database with itself, with this host's volumes and with the stores; changes nothing.",
    )
    parser.add_argument(
        "--store", metavar="NAME", action="append", help="only this store; any number of times"
    )
    parser.add_argument(
        "--no-stores", action="store_true", help="look at the database only: not at stores and volumes"
    )
    parser.add_argument("--json", action="store_true", help="print the findings as one JSON document")


def _volumes(db: Database, conf: cfg.ConfigOpts) -> Iterator[Finding]:
    """Compare every volume of this host with its storage."""
    from backupfw.cmd import catalogue
    from backupfw.manager.operators.audit import Finding
    from backupfw.volume.loader import load_provider
    from backupfw.worker.handlers.base import volume_ref

    provider = load_provider(conf.volumes.provider)(conf.volumes)
    for volume in catalogue.volumes_of(db, conf.host):
        try:
            storage = provider.look(volume_ref(volume))
        except StorageChanged as error:
            yield Finding("volume", f"volume {volume.id}", f"its storage {error.problem}. {error.hint}")
        except OSError as error:
            yield Finding("volume", f"volume {volume.id}", f"could not be looked at: {error}")
        else:
            if storage.length > volume.length:
                yield Finding(
                    "volume",
                    f"volume {volume.id}",
                    f"has {storage.length} bytes, the catalogue says {volume.length}: the next backup of it"
                    " takes all of it and corrects the catalogue",
                )


def _stores(
    db: Database, conf: cfg.ConfigOpts, wanted: list[str] | None, told: UnknownManifests
) -> Iterator[Finding]:
    """Compare every container with the manifests in it."""
    from backupfw.cmd import catalogue
    from backupfw.cmd.terminal_control import TerminalControl
    from backupfw.engine import audit
    from backupfw.engine.format import keys
    from backupfw.manager.operators.audit import Finding
    from backupfw.manager.outcomes.backups import BackupTasks
    from backupfw.worker.stores import Stores

    installation = BackupTasks(db, conf).installation_id()
    if wanted is None:
        for name in catalogue.stores_not_enabled(db, conf):
            yield Finding("store", f"store {name}", "holds backups, but is not enabled here: not looked at")
    stores = Stores(conf)
    try:
        for store, container in catalogue.containers(db, conf, wanted):
            place = f"container {container} of store {store}"
            progress = Progress(f"auditing {place}", unit="objects")
            try:
                opened = stores.container(store, container)
                store_command.report_settings(opened)
                report = audit.run(
                    keys.installation_prefix(installation),
                    opened,
                    catalogue.DatabaseCatalogue(db, store, container, installation),
                    TerminalControl(progress),
                )
            except ChunkStoreError as error:
                yield Finding("store", place, f"could not be looked at: {error}")
                continue
            finally:
                progress.abandon()
            told.add(report.unknown, report.foreign)
            for one in report.discrepancies:
                problem = f"{one.kind}: {one.problem}" if one.problem else one.kind
                yield Finding("store", f"{store}/{container}/{one.key}", problem)
    finally:
        stores.close()


def run(args: argparse.Namespace) -> int:
    """Print what is wrong, a line each; exit status 1 when anything is.

    A manifest of this installation that the database does not know is wrong; that another installation
    shares the container is not.
    """
    from backupfw.cmd import catalogue, database
    from backupfw.manager.operators import audit

    told = catalogue.UnknownManifests()
    conf = load_conf(args)
    for name in args.store or ():
        store_command.require_enabled(conf, name)
    with database.opened(conf) as db:
        found = audit.run(db, conf.backup.lease_seconds)
        if not args.no_stores:
            found += sorted(_volumes(db, conf))
            found += sorted(_stores(db, conf, args.store, told))
    if args.json:
        rows = [{"check": one.check, "subject": one.subject, "problem": one.problem} for one in found]
        unknown = {"unknown_manifests": told.ours, "foreign_manifests": dict(sorted(told.foreign.items()))}
        print(json.dumps({"findings": rows, **unknown}, indent=2))
    else:
        for one in found:
            print(f"{one.check}: {one.subject}: {one.problem}")
        for line in told.lines():
            print(line)
        print(counted(len(found), "finding") if found else "nothing wrong")
    return 1 if found else 0

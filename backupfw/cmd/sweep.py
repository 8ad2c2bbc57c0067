"""``backupfw sweep``: find, and delete, objects of ours that nothing names."""

from __future__ import annotations

import argparse
import contextlib
from typing import TYPE_CHECKING, Any

from backupfw.chunkstore import errors
from backupfw.cmd import store as store_command
from backupfw.cmd.configure import add_command, load_conf
from backupfw.cmd.progress import Progress, counted, human_size

if TYPE_CHECKING:
    from oslo_config import cfg

    from backupfw.chunkstore.container import Container
    from backupfw.db.session import Database
    from backupfw.engine.sweep import SweepReport, VolumeReport


def add_parser(commands: Any) -> None:
    """Add the subcommand."""
    parser = add_command(
        commands, "sweep", run, "Delete objects of this installation that no backup needs; safe at any time."
    )
    parser.add_argument("--dry-run", action="store_true", help="only say what would be deleted")
    parser.add_argument(
        "--store", metavar="NAME", action="append", help="only this store; any number of times"
    )


def _details(volume: VolumeReport) -> list[str]:
    where = f"volume {volume.volume} of project {volume.project}"
    lines = []
    if volume.orphans:
        lines.append(f"{where}: {counted(volume.orphans, 'orphan')}, {human_size(volume.orphan_bytes)}")
    if volume.skipped:
        lines.append(
            f"{where}: {counted(volume.skipped, 'object')} left alone, the backup is being worked on"
        )
    lines += [
        f"{where}: manifest unknown to the database, left alone: {key}" for key in volume.unknown_manifests
    ]
    if volume.stopped is not None:
        lines.append(f"{where}: NOT swept: {volume.stopped}")
    return lines


def _removed(db: Database, conf: cfg.ConfigOpts, container: Container) -> bool:
    """Remove a container in which nothing is and nothing comes; returns whether that was done."""
    from backupfw.cmd import catalogue

    if not conf.backup.create_containers:
        # Then somebody else made it, and has to make the next.
        return False
    place = (container.store.name, container.name)
    if catalogue.is_in_use(db, conf, *place) or not container.remove_container():
        return False
    if catalogue.is_in_use(db, conf, *place):
        # A backup was begun meanwhile, and may have looked before.
        container.ensure()
        return False
    return True


def run(args: argparse.Namespace) -> int:
    """Sweep every container of every enabled store; exit status 1 when a volume could not be swept.

    Manifests that the database does not know are told and left alone; to judge them is the audit's.
    """
    from backupfw.cmd import catalogue, database
    from backupfw.cmd.terminal_control import TerminalControl
    from backupfw.engine import sweep
    from backupfw.engine.format import keys
    from backupfw.manager.outcomes.backups import BackupTasks
    from backupfw.worker.stores import Stores

    conf = load_conf(args)
    for name in args.store or ():
        store_command.require_enabled(conf, name)
    reports: list[SweepReport] = []
    told = catalogue.UnknownManifests()
    stores = Stores(conf)
    with database.opened(conf) as db:
        installation = BackupTasks(db, conf).installation_id()
        try:
            for store, container in catalogue.containers(db, conf, args.store):
                progress = Progress(f"sweeping container {container} of store {store}", unit="objects")
                try:
                    opened = stores.container(store, container)
                    store_command.report_settings(opened)
                    if not args.dry_run:
                        with contextlib.suppress(errors.Unavailable):
                            catalogue.give_up_announced(db, opened)
                    report = sweep.run(
                        keys.installation_prefix(installation),
                        opened,
                        catalogue.DatabaseCatalogue(db, store, container, installation),
                        TerminalControl(progress),
                        dry_run=args.dry_run,
                    )
                except errors.NotFound:
                    # Nothing was ever stored there.
                    continue
                finally:
                    progress.abandon()
                reports.append(report)
                if not args.dry_run and _removed(db, conf, opened):
                    print(f"container {container} of store {store}: empty, removed")
                told.add(sum(len(one.unknown_manifests) for one in report.volumes), report.foreign)
                for volume in report.volumes:
                    for line in _details(volume):
                        print(line)
        finally:
            stores.close()
    volumes = [volume for report in reports for volume in report.volumes]
    orphans = sum(report.orphans for report in reports)
    size = human_size(sum(report.orphan_bytes for report in reports))
    print(
        f"{counted(len(volumes), 'volume')}, {counted(sum(volume.objects for volume in volumes), 'object')},"
        f" {counted(orphans, 'orphan')} ({size}){'' if args.dry_run or not orphans else ' deleted'}"
    )
    for line in told.lines():
        print(line)
    return 1 if any(volume.stopped is not None for volume in volumes) else 0

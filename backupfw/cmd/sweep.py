"""``backupfw sweep``: find, and delete, objects of ours that nothing names."""

from __future__ import annotations

import argparse
import contextlib
from typing import TYPE_CHECKING

from backupfw.cmd import base, store
from backupfw.cmd.configure import load_conf
from backupfw.cmd.progress import counted, human_size

if TYPE_CHECKING:
    from oslo_config import cfg

    from backupfw.chunkstore.container import Container
    from backupfw.db.session import Database
    from backupfw.engine.sweep import VolumeReport


class Sweep(base.Command):
    """Delete objects of this installation that no backup needs; safe at any time."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add what is swept."""
        parser.add_argument("--dry-run", action="store_true", help="only say what would be deleted")
        parser.add_argument(
            "--store", metavar="NAME", action="append", help="only this store; any number of times"
        )

    def take_action(self, parsed_args: argparse.Namespace) -> int:
        """Sweep; exit status 1 when a volume could not be swept."""
        from backupfw.cmd import database

        conf = load_conf(parsed_args)
        for name in parsed_args.store or ():
            store.require_enabled(conf, name)
        db = self.open(database.opened(conf))
        return 0 if sweep(conf, db, parsed_args.store, dry_run=parsed_args.dry_run) else 1


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
    """Remove a container that is empty and that no backup uses; returns whether that was done."""
    from backupfw.cmd import catalogue

    if not conf.backup.create_containers:
        # An operator made the container, and would have to make the next one.
        return False
    place = (container.store.name, container.name)
    if catalogue.is_in_use(db, conf, *place) or not container.remove_container():
        return False
    if catalogue.is_in_use(db, conf, *place):
        # A backup was begun meanwhile; it may have found the container before we removed it.
        container.ensure()
        return False
    return True


def sweep(conf: cfg.ConfigOpts, db: Database, stores: list[str] | None = None, *, dry_run: bool) -> bool:
    """Sweep every container of every enabled store, and print what was found.

    Manifests that the database does not know are reported and left alone: the audit judges them.

    :param stores: only these; None for all.
    :param dry_run: delete nothing.
    :returns: whether every volume could be swept.
    """
    from backupfw.chunkstore import errors
    from backupfw.cmd import catalogue
    from backupfw.engine import sweep as engine

    volumes: list[VolumeReport] = []
    unknown = catalogue.UnknownManifests()
    with store.places(conf, db, stores) as places:
        for place in places:
            try:
                with place.looked_at("sweeping") as (container, control):
                    if not dry_run:
                        with contextlib.suppress(errors.Unavailable):
                            catalogue.give_up_announced(db, container)
                    report = engine.run(place.prefix, container, place.catalogue, control, dry_run=dry_run)
            except errors.NotFound:
                # Nothing was ever stored there.
                continue
            if not dry_run and _removed(db, conf, container):
                print(f"{place}: empty, removed")
            volumes += report.volumes
            unknown.add(sum(len(one.unknown_manifests) for one in report.volumes), report.foreign)
            for line in (line for volume in report.volumes for line in _details(volume)):
                print(line)
    orphans = sum(volume.orphans for volume in volumes)
    size = human_size(sum(volume.orphan_bytes for volume in volumes))
    print(
        f"{counted(len(volumes), 'volume')}, {counted(sum(volume.objects for volume in volumes), 'object')},"
        f" {counted(orphans, 'orphan')} ({size}){'' if dry_run or not orphans else ' deleted'}"
    )
    for line in unknown.lines():
        print(line)
    return all(volume.stopped is None for volume in volumes)

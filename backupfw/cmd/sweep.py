"""``backupfw sweep``: find, and delete, objects of ours that nothing names."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from backupfw.amounts import human_size
from backupfw.cmd import store
from backupfw.cmd.progress import counted

if TYPE_CHECKING:
    from oslo_config import cfg

    from backupfw.chunkstore.container import Container
    from backupfw.cmd.catalogue import UnknownManifests
    from backupfw.cmd.store import Place
    from backupfw.db.session import Database
    from backupfw.engine.sweep import VolumeReport


class Sweep(store.OfStores):
    """Delete objects of this installation that no backup needs; safe at any time.

    The exit status is 1 when a volume could not be swept.
    """

    columns = (
        "store",
        "container",
        "project_id",
        "volume_id",
        "result",
        "objects",
        "orphans",
        "orphan_bytes",
        "skipped_objects",
        "locked_objects",
        "locked_until",
        "unknown_manifests",
        "problem",
    )
    default_format = "text"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add the command's arguments."""
        parser.add_argument("--dry-run", action="store_true", help="only say what would be deleted")
        super().add_arguments(parser)

    def records(self, args: argparse.Namespace) -> Iterator[Mapping[str, Any]]:
        """Yield a record for each volume, and for each container that was empty and is removed."""
        from backupfw.cmd import catalogue

        self._unknown = catalogue.UnknownManifests()
        conf, db = self.database(args)
        return self.reported(sweep(conf, db, self._unknown, args.store, dry_run=args.dry_run))

    def lines(self, args: argparse.Namespace, records: Iterator[Mapping[str, Any]]) -> Iterable[str]:
        """Yield what people want to know of each, and the sums."""
        volumes = objects = orphans = locked = size = 0
        for one in records:
            yield from one["lines"]
            volumes += one["volume_id"] is not None
            objects += one["objects"]
            orphans += one["orphans"]
            locked += one["locked_objects"]
            size += one["orphan_bytes"]
        deleted = "" if args.dry_run or not orphans else " deleted"
        if locked:
            deleted += f", but {locked} that are locked"
        yield (
            f"{counted(volumes, 'volume')}, {counted(objects, 'object')},"
            f" {counted(orphans, 'orphan')} ({human_size(size)}){deleted}"
        )
        yield from self._unknown.lines()


def _details(volume: VolumeReport) -> list[str]:
    where = f"volume {volume.volume} of project {volume.project}"
    lines = []
    if volume.orphans:
        lines.append(f"{where}: {counted(volume.orphans, 'orphan')}, {human_size(volume.orphan_bytes)}")
    if volume.locked_until is not None:
        lines.append(
            f"{where}: {counted(volume.locked, 'orphan')} locked until"
            f" {volume.locked_until:%Y-%m-%d %H:%M} UTC, left to a sweep after that"
        )
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


def _record(place: Place, volume: VolumeReport) -> dict[str, Any]:
    return {
        "store": place.store,
        "container": place.container,
        "project_id": volume.project,
        "volume_id": volume.volume,
        "result": "ok" if volume.stopped is None else "failed",
        "objects": volume.objects,
        "orphans": volume.orphans,
        "orphan_bytes": volume.orphan_bytes,
        "skipped_objects": volume.skipped,
        "locked_objects": volume.locked,
        "locked_until": None if volume.locked_until is None else f"{volume.locked_until:%Y-%m-%dT%H:%M:%SZ}",
        "unknown_manifests": list(volume.unknown_manifests),
        "problem": volume.stopped,
        "lines": _details(volume),
    }


def _removed(db: Database, conf: cfg.ConfigOpts, container: Container) -> bool:
    """Remove a container that is empty and that no backup uses; returns whether that was done."""
    from backupfw.cmd import catalogue
    from backupfw.db.installation import database_id, installation_id
    from backupfw.engine.holder import Holder

    if not conf.backup.create_containers:
        # Only an operator can make the container again.
        return False
    place = (container.store.name, container.name)
    if catalogue.is_in_use(db, conf, *place):
        return False
    with db.read() as session:
        holder = Holder(installation_id(session), database_id(session))
    holder.give_up(container)
    if not container.remove_container():
        return False
    if catalogue.is_in_use(db, conf, *place):
        # A backup was begun meanwhile; it may have found the container before we removed it.
        container.ensure()
        return False
    return True


def sweep(
    conf: cfg.ConfigOpts,
    db: Database,
    unknown: UnknownManifests,
    stores: list[str] | None = None,
    *,
    dry_run: bool,
) -> Iterator[Mapping[str, Any]]:
    """Sweep every container of every enabled store, and yield what was found.

    Manifests that the database does not know are counted and left alone: the audit judges them.

    :param unknown: counts them.
    :param stores: only these; None for all.
    :param dry_run: delete nothing.
    :returns: records with the columns of :class:`Sweep`, and the ``lines`` for people; ``result`` is ``ok``,
        ``failed`` or, of a container, ``removed``.
    """
    from backupfw.chunkstore import errors
    from backupfw.cmd import catalogue
    from backupfw.engine import removal
    from backupfw.engine import sweep as engine
    from backupfw.engine.sweep import VolumeReport

    with store.places(conf, db, stores) as places:
        for place in places:
            try:
                with place.looked_at("sweeping") as (container, control):
                    if not dry_run:
                        removal.settle(container, control)
                        with contextlib.suppress(errors.Unavailable):
                            catalogue.give_up_announced(db, container)
                    report = engine.run(place.prefix, container, place.catalogue, control, dry_run=dry_run)
            except errors.NotFound:
                # Nothing was ever stored there.
                continue
            if not dry_run and _removed(db, conf, container):
                nothing = _record(place, VolumeReport("", "", 0))
                removed = {"result": "removed", "lines": [f"{place}: empty, removed"]}
                yield {**nothing, "project_id": None, "volume_id": None, **removed}
            unknown.add(sum(len(one.unknown_manifests) for one in report.volumes), report.foreign)
            yield from (_record(place, volume) for volume in report.volumes)

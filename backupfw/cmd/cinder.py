"""``backupfw cinder``: backups in the format of Cinder's own backup service, found, written and converted."""

from __future__ import annotations

import argparse
import contextlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from backupfw.cmd import base, usecases, waiting
from backupfw.cmd.progress import Progress, counted
from backupfw.errors import InvalidInput

if TYPE_CHECKING:
    from oslo_config import cfg

    from backupfw.db.session import Database
    from backupfw.worker.data_keys import DataKeys
    from backupfw.worker.links import FoundLink
    from backupfw.worker.stores import Stores

ENTERED, COPY, KNOWN, FAILED = "entered", "copy", "known", "failed"
_WORDS: Mapping[str, str] = {
    ENTERED: "entered",
    COPY: "entered as copies of what was converted",
    KNOWN: "known already",
    FAILED: "NOT entered",
}


class Scan(base.Lister):
    """Enter the backups that Cinder wrote into a store, from the store's objects alone.

    Nothing of a Cinder is needed, neither its database nor records. What the catalogue has already stays as
    it is, so the command can be repeated, and continues after a kill. The owner of a backup is the project
    that --project-of names for its volume, else --project, else the one that the catalogue names for the
    volume, else the one that the volume's description in the store names: whoever can write there can write
    any. What a backup was converted from is entered as its copy again, after a rebuild. The exit status is 1
    when a backup could not be entered.
    """

    columns = (
        "project_id",
        "volume_id",
        "backup_id",
        "parent_id",
        "result",
        "problem",
        "size",
        "container",
        "key",
    )
    short = ("project_id", "volume_id", "backup_id", "result", "problem")
    default_format = "text"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add the command's arguments."""
        parser.add_argument("--store", metavar="NAME", required=True, help="the store's name")
        parser.add_argument(
            "--container",
            metavar="C",
            action="append",
            help="only this one (default: all of the store)",
        )
        parser.add_argument(
            "--project-of",
            metavar="VOLUME=P",
            type=_owner,
            action="append",
            default=[],
            help="whose the backups of a volume are; any number of times",
        )
        parser.add_argument(
            "--project",
            metavar="P",
            type=usecases.project,
            help="whose all other backups are, whatever their description says",
        )
        parser.add_argument("--dry-run", action="store_true", help="only say what would be entered")

    def records(self, args: argparse.Namespace) -> Iterator[Mapping[str, Any]]:
        """Yield a record for each backup, parents before their children."""
        from backupfw.cmd import store

        conf, db = self.database(args)
        store.require_enabled(conf, args.store)
        for one in _scan(conf, db, args):
            if one["result"] == FAILED:
                self.status = 1
            yield one

    def lines(self, args: argparse.Namespace, records: Iterator[Mapping[str, Any]]) -> Iterable[str]:
        """Yield what could not be entered, and the sums."""
        counts: Counter[str] = Counter()
        for one in records:
            counts[one["result"]] += 1
            if one["result"] == FAILED:
                yield f"backup {one['backup_id'] or one['key']}: NOT entered: {one['problem']}"
        would = "would be " if args.dry_run else ""
        parts = (f"{counts[result]} {would}{words}" for result, words in _WORDS.items() if counts[result])
        yield f"{counted(counts.total(), 'backup')}: {', '.join(parts) or 'nothing to enter'}"


class Export(base.Command):
    """Write a backup in Cinder's format, and print the record with which Cinder imports it.

    What is written is a full backup, whatever the backup is here; with --chain it is the backup and those
    that it was made upon, a full one and incremental ones, whose records are printed as a list, oldest first.
    Cinder restores them and makes incremental backups upon them. No service need run. The backups stay as
    they are, and know nothing of what was written.
    """

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add the command's arguments."""
        parser.add_argument("id", metavar="BACKUP", help="the backup's id or name")
        parser.add_argument(
            "--to", metavar="STORE", required=True, help="the store where Cinder looks for it"
        )
        parser.add_argument(
            "--container", metavar="C", type=usecases.text, help="the container (default: the store's)"
        )
        parser.add_argument(
            "--chain",
            action="store_true",
            help="its parents, too: the oldest as a full backup, the others with what changed",
        )
        parser.add_argument(
            "--compression",
            choices=("zlib", "zstd", "none"),
            default="zlib",
            help="how the data is compressed (default: zlib, which every Cinder reads)",
        )
        parser.add_argument(
            "--decrypt",
            action="store_true",
            help="also a backup that is encrypted here: Cinder's format has no encryption",
        )

    def take_action(self, parsed_args: argparse.Namespace) -> None:
        """Write it."""
        from backupfw.cmd import catalogue, cinder_export, store
        from backupfw.db import models

        args = parsed_args
        conf, db = self.database(args)
        store.require_enabled(conf, args.to)
        backup = catalogue.find_id(db, models.Backup, args.id)
        chosen = catalogue.with_parents(db, backup) if args.chain else [backup]
        made = cinder_export.export(
            conf,
            db,
            chosen,
            args.to,
            args.container,
            compression=args.compression,
            decrypt=args.decrypt,
            progress=Progress(f"exporting {backup}"),
        )
        found = [{"backup-record": one} for one in made]
        print(json.dumps(found if args.chain else found[0], indent=2))


class Convert(usecases.Queueing):
    """Convert backups of Cinder's format into backups of this service's own format, in another store.

    A worker does it, oldest first, and verifies all that it reads. A converted backup keeps its id and all
    that users see of it, and shares with its parent. What Cinder wrote stays in its store as a copy, until
    the backup is deleted or 'backupfw backup copy --remove STORE' removes it. The command can be repeated
    at any time: it goes on with what is left.
    """

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add the command's arguments."""
        parser.add_argument("id", metavar="ID", nargs="?", help="the backup's id or name; parents go first")
        parser.add_argument("--all", action="store_true", help="all, or those of the project")
        parser.add_argument("--volume", metavar="ID", type=usecases.text, help="all of this volume")
        parser.add_argument(
            "--to", metavar="STORE", type=usecases.text, help="the store (default: that of a new backup)"
        )
        parser.add_argument("--dry-run", action="store_true", help="only say what would be converted")
        usecases.add_project(parser)
        super().add_arguments(parser)

    def take_action(self, parsed_args: argparse.Namespace) -> int:
        """Convert them, and go on where one cannot be converted."""
        from backupfw.cmd import catalogue
        from backupfw.db import models

        args = parsed_args
        if sum((args.id is not None, args.all, args.volume is not None)) != 1:
            self.refuse("one of ID, --all and --volume")
        cases = self.use_cases(args)
        one = None if args.id is None else cases.find(models.Backup, args.id, args.project)
        chosen = catalogue.to_convert(cases.db, args.volume, args.project, backup_id=one)
        if one is not None and not chosen:
            raise InvalidInput(f"Backup {one} is not of Cinder's format, or not available.")
        if args.dry_run:
            for backup in chosen:
                print(f"backup {backup.id} of volume {backup.volume_id}: {backup.size} GiB")
            print(f"{counted(len(chosen), 'backup')} would be converted")
            return 0
        failed: list[str] = []
        begun = []
        for backup in chosen:
            with usecases.failure_reported(failed, backup.id):
                begun.append(self._begin(cases, args, backup.id))
        for backup_id, operation in begun:
            with usecases.failure_reported(failed, backup_id):
                waiting.follow(cases.conf, cases.db, operation, wait=args.wait)
        done = "converted" if args.wait else "queued"
        print(f"{counted(len(chosen) - len(failed), 'backup')} {done}, {len(failed)} not")
        return 1 if failed else 0

    @staticmethod
    def _begin(
        cases: usecases.UseCases, args: argparse.Namespace, backup: str
    ) -> tuple[str, waiting.Operation]:
        from backupfw.db import models
        from backupfw.manager.lineage import lifecycle

        copy = cases.backups.convert(base.operator(), backup, args.to)
        return backup, waiting.Operation(
            f"converting backup {backup} into store {copy.store}",
            models.BackupCopy,
            copy.id,
            (lifecycle.AVAILABLE,),
            task_of=copy.manifest_id,
            cancel=f"backupfw backup copy {backup} --remove {copy.store}",
        )


def _owner(text: str) -> tuple[str, str]:
    volume, equals, project = text.partition("=")
    if not equals or not volume:
        raise argparse.ArgumentTypeError(f"{text!a} is not VOLUME=PROJECT")
    return volume.lower(), usecases.project(project)


def _scan(conf: cfg.ConfigOpts, db: Database, args: argparse.Namespace) -> Iterator[Mapping[str, Any]]:
    from backupfw.conf.stores import default_container
    from backupfw.manager.usecases.keys import KeyManager
    from backupfw.worker import links
    from backupfw.worker.data_keys import DataKeys
    from backupfw.worker.stores import Stores

    progress = Progress(f"reading store {args.store}", unit="backups")
    control = progress.control()
    with (
        contextlib.closing(Stores(conf)) as stores,
        contextlib.closing(DataKeys.of(conf, KeyManager(db))) as data_keys,
    ):
        try:
            any_container = stores.container(args.store, default_container(conf, args.store))
            containers = args.container or list(any_container.store.list_containers())
            found: dict[str, FoundLink] = {}
            for name in containers:
                for one in links.find(stores.container(args.store, name), control):
                    if isinstance(one, str):
                        yield _record(one, name, result=FAILED, problem="Its metadata cannot be read.")
                        continue
                    if one.backup_id in found:
                        problem = "Another link says that it is of the same backup."
                        yield _found(one, result=FAILED, problem=problem)
                        continue
                    found[one.backup_id] = one
                    progress.update(len(found))
            service = stores.wire_names[args.store]
            is_origin = partial(_is_origin, db, stores, data_keys)
            for one in links.parents_first(found):
                control.check()
                yield _enter(db, one, found, service, args, control, is_origin)
        finally:
            progress.abandon()


def _enter(
    db: Database,
    one: FoundLink,
    found: Mapping[str, FoundLink],
    service: str,
    args: argparse.Namespace,
    control: Any,
    is_origin: Callable[[FoundLink], bool],
) -> Mapping[str, Any]:
    from backupfw.chunkstore.errors import ChunkStoreError
    from backupfw.errors import EngineError, InvalidInput
    from backupfw.keys.errors import KeyStoreError
    from backupfw.manager.operators import links as rows
    from backupfw.worker import links

    place = one.place
    owner = (
        dict(args.project_of).get(one.volume_id)
        or args.project
        or rows.owner_of_volume(db, one.volume_id)
        or one.owner
    )
    if rows.is_known(db, args.store, place.container.name, place.prefix):
        return _found(one, owner, result=KNOWN)
    if owner is None:
        return _found(one, result=FAILED, problem="Nothing says whose it is; give --project-of or --project.")
    try:
        chain = links.read_chain(place, lambda parent: _place_of(found, parent), None, control)
        with contextlib.closing(chain):
            facts = links.facts(chain, service, owner, control)
            record = links.record(chain.links[0], facts)
        result = KNOWN
        if args.dry_run or rows.enter(db, record, facts):
            result = ENTERED
        elif is_origin(one) and rows.enter_origin(db, facts):
            result = COPY
    except (InvalidInput, EngineError) as error:
        return _found(one, owner, result=FAILED, problem=str(error))
    except (ChunkStoreError, KeyStoreError) as error:
        return _found(one, owner, result=FAILED, problem=f"It could not be read now: {error}")
    return _found(one, owner, result=result, size=facts.size)


def _is_origin(db: Database, stores: Stores, data_keys: DataKeys, one: FoundLink) -> bool:
    """Return whether the backup of a link's id was converted from it, as that backup's manifest says.

    An export has that id, too, and is Cinder's: it must not go with the backup.

    :raises EngineError, ChunkStoreError, KeyStoreError: the manifest cannot be read.
    """
    from backupfw.cmd import catalogue
    from backupfw.engine.format.manifest import read_head
    from backupfw.errors import BackupNotFound, InvalidBackup
    from backupfw.worker import stored

    try:
        manifest = catalogue.manifest_of(db, one.backup_id)
    except (BackupNotFound, InvalidBackup):
        return False
    if manifest.links:
        return False
    container = stores.container(manifest.store, manifest.container)
    head = read_head(container, manifest.key, data_keys.finder(container, manifest.key))
    return head.record.get("converted") == stored.origin_of(one.place.container.name, one.place.prefix)


def _place_of(found: Mapping[str, FoundLink], backup_id: str) -> Any:
    return found[backup_id].place if backup_id in found else None


def _found(one: FoundLink, owner: str | None = None, **values: Any) -> dict[str, Any]:
    ids = {"volume_id": one.volume_id, "backup_id": one.backup_id, "parent_id": one.parent_id}
    return _record(one.place.prefix, one.place.container.name, project_id=owner, **ids, **values)


def _record(key: str, container: str, **values: Any) -> dict[str, Any]:
    return {**dict.fromkeys(Scan.columns), "key": key, "container": container, **values}

"""``backupfw backup``: backups made, restored, looked at and deleted; ``verify`` has a module of its own."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from backupfw.cmd import base, usecases, waiting
from backupfw.cmd.progress import Progress, counted
from backupfw.errors import InvalidInput

if TYPE_CHECKING:
    from oslo_config.cfg import ConfigOpts
    from sqlalchemy.orm import Session

    from backupfw.db.models import Manifest
    from backupfw.db.session import Database
    from backupfw.manager.rows import BackupCopy

#: What is shown of a copy.
_COPY_COLUMNS = ("store", "container", "status", "fail_reason", "created_at", "updated_at")


class List(base.Lister):
    """List backups with what their verifications found, oldest first."""

    columns = (
        "id",
        "name",
        "project_id",
        "volume_id",
        "status",
        "size",
        "is_incremental",
        "created_at",
        "verified_at",
        "verified_how",
        "verified_result",
        "fully_verified_at",
        "damaged_objects",
    )
    short = ("id", "name", "status", "size", "created_at", "damaged_objects")
    scripts_read_text = True
    json_text = "print one JSON object per line"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add the command's arguments."""
        parser.add_argument("--volume", metavar="ID", help="only those of this volume (id or name)")
        parser.add_argument("--project", metavar="ID", type=usecases.text, help="only those of this project")
        parser.add_argument(
            "--damaged",
            action="store_true",
            help="only those whose data is damaged: objects are missing or have wrong bytes",
        )

    def records(self, args: argparse.Namespace) -> Iterator[Mapping[str, Any]]:
        """Return them page by page."""
        from backupfw.cmd import catalogue, database

        _conf, db = self.database(args)
        volume = None if args.volume is None else catalogue.find_backed_up(db, args.volume, args.project)
        return map(database.plain, catalogue.backups(db, volume, args.project, damaged=args.damaged))

    def lines(self, args: argparse.Namespace, records: Iterator[Mapping[str, Any]]) -> Iterable[str]:
        """Return a line for each backup."""
        return (json.dumps(one, sort_keys=True) if args.json else _line(one) for one in records)


class Show(base.ShowOne):
    """Print all that is known of a backup, with figures the API does not show."""

    default_format = "json"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add the command's arguments."""
        parser.add_argument("id", metavar="ID", help="the backup's id or name")
        usecases.add_project(parser)

    def record(self, args: argparse.Namespace) -> Mapping[str, Any]:
        """Return it."""
        from backupfw.cmd import catalogue
        from backupfw.db import models

        conf, db = self.database(args)
        return record(conf, db, catalogue.find_id(db, models.Backup, args.id, args.project))


class Create(usecases.Queueing):
    """Back up a volume, or one of its snapshots, and print the backup's id."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add the command's arguments."""
        parser.add_argument("volume", metavar="VOLUME", help="the volume's id or name")
        parser.add_argument("--snapshot", metavar="ID", help="back up this snapshot of it (id or name)")
        parser.add_argument(
            "--incremental", action="store_true", help="store only what changed since its newest backup"
        )
        parser.add_argument("--force", action="store_true", help="also of a volume that somebody uses")
        parser.add_argument("--name", metavar="N", type=usecases.text, help="display name")
        parser.add_argument("--description", metavar="TEXT", type=usecases.text, help="what it is for")
        parser.add_argument(
            "--container",
            metavar="[STORE:]NAME",
            type=usecases.text,
            help="where to (default: the service's)",
        )
        parser.add_argument(
            "--project",
            metavar="P",
            type=usecases.project,
            help="whose it is (default: the volume's); a name is looked up in this project only",
        )
        super().add_arguments(parser)

    def take_action(self, parsed_args: argparse.Namespace) -> None:
        """Make it."""
        from backupfw.db import models
        from backupfw.manager.lineage import lifecycle

        args = parsed_args
        cases = self.use_cases(args)
        volume = cases.find(models.Volume, args.volume, project_id=args.project)
        snapshot = None
        if args.snapshot is not None:
            snapshot = cases.find(models.Snapshot, args.snapshot, volume_id=volume)
        made = cases.backups.create(
            base.operator(args.project or cases.backups.project_of_volume(base.operator(), volume)),
            volume_id=volume,
            snapshot_id=snapshot,
            incremental=args.incremental,
            force=args.force,
            name=args.name,
            description=args.description,
            container=args.container,
        )
        print(made.id, flush=True)
        operation = waiting.Operation(
            f"making backup {made.id}",
            models.Backup,
            made.id,
            (lifecycle.AVAILABLE,),
            cancel=f"backupfw backup cancel {made.id}",
        )
        waiting.follow(cases.conf, cases.db, operation, wait=args.wait)


class Import(usecases.Queueing):
    """Import the backups that export records describe, and print their ids.

    Records of Cinder's own backup service can be imported, too. Their backups are read where they are; the
    parents that they need are found in the store.
    """

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add the command's arguments."""
        parser.add_argument(
            "file",
            metavar="FILE",
            help="a record as JSON, with backup_service and backup_url (or backup_metadata), or a list of"
            " records; - reads the standard input",
        )
        parser.add_argument(
            "--project",
            metavar="P",
            type=usecases.project,
            help="whose the backups are to be (default: what each record says)",
        )
        super().add_arguments(parser)

    def take_action(self, parsed_args: argparse.Namespace) -> int:
        """Import them; where one fails the others are imported all the same."""
        from backupfw.db import models
        from backupfw.manager import records
        from backupfw.manager.lineage import lifecycle

        args = parsed_args
        todo = _read_records(args.file)
        cases = self.use_cases(args)
        failed: list[str] = []
        begun: list[str] = []
        for number, (service, url) in enumerate(todo, 1):
            with usecases.failure_reported(failed, str(number)):
                owner = args.project or records.decode(url).project_id
                if owner is None:
                    raise InvalidInput(f"Record {number} does not say whose the backup is; give --project.")
                made = cases.backups.import_record(
                    base.operator(owner), backup_service=service, backup_url=url
                )
                print(made.id, flush=True)
                begun.append(made.id)
        for one in begun:
            operation = waiting.Operation(
                f"importing backup {one}", models.Backup, one, (lifecycle.AVAILABLE,)
            )
            with usecases.failure_reported(failed, one):
                waiting.follow(cases.conf, cases.db, operation, wait=args.wait)
        return 1 if failed else 0


def _read_records(path: str) -> list[tuple[str, str]]:
    """Return ``backup_service`` and ``backup_url`` of the records in a file.

    :raises InvalidInput: it cannot be read, or has something else.
    """
    try:
        if path == "-":
            text = sys.stdin.read()
        else:
            with open(path, encoding="utf-8") as file:
                text = file.read()
        found = json.loads(text)
    except OSError as error:
        raise InvalidInput(f"{path} cannot be read: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        raise InvalidInput(f"{path} is not JSON.") from error
    read: list[tuple[str, str]] = []
    for number, one in enumerate(found if isinstance(found, list) else [found], 1):
        record = one.get("backup-record", one) if isinstance(one, dict) else {}
        service = record.get("backup_service") if isinstance(record, dict) else None
        url = record.get("backup_url", record.get("backup_metadata")) if isinstance(record, dict) else None
        if not isinstance(service, str) or not isinstance(url, str):
            raise InvalidInput(f"Record {number} of {path} has no backup_service, or no backup_url.")
        read.append((service, url))
    return read


class Restore(usecases.Queueing):
    """Restore a backup to a new volume, an existing one or a file, and print the volume's id or the path.

    --to FILE works from the database and the store alone, with no service running: the file is an image of
    the volume, raw and sparse or qcow2, and has its name when all of it is verified and written.
    """

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add the command's arguments."""
        parser.add_argument("id", metavar="BACKUP", help="the backup's id or name")
        where = parser.add_mutually_exclusive_group()
        where.add_argument("--volume", metavar="ID", help="write over this volume (id or name)")
        where.add_argument("--name", metavar="N", type=usecases.text, help="a new volume's display name")
        where.add_argument("--to", metavar="FILE", help="write an image file; no service need run")
        parser.add_argument(
            "--disk-format",
            choices=("raw", "qcow2"),
            help="format of FILE (default: qcow2 if its name ends in .qcow2, else raw)",
        )
        parser.add_argument("--overwrite", action="store_true", help="replace FILE if it is there")
        parser.add_argument(
            "--project",
            metavar="P",
            type=usecases.project,
            help="whose a new volume is (default: the backup's); names are looked up in this project only",
        )
        super().add_arguments(parser)

    def take_action(self, parsed_args: argparse.Namespace) -> None:
        """Restore it."""
        from backupfw.db import models

        args = parsed_args
        if args.overwrite and args.to is None:
            self.refuse("--overwrite goes with --to FILE")
        if args.disk_format is not None and args.to is None:
            self.refuse("--disk-format goes with --to FILE")
        if args.to is not None and not args.wait:
            self.refuse("--to FILE works without a worker: --no-wait does not go with it")
        if args.to is not None:
            from backupfw.cmd import catalogue, restore_file

            # No worker is to be woken: there may be no message bus.
            conf, db = self.database(args)
            backup = catalogue.find_id(db, models.Backup, args.id, by_name={"project_id": args.project})
            progress = Progress(f"restoring {backup}")
            format_ = args.disk_format or ("qcow2" if args.to.endswith(".qcow2") else "raw")
            restore_file.restore(
                conf, db, backup, args.to, progress, overwrite=args.overwrite, disk_format=format_
            )
            print(args.to)
        else:
            cases = self.use_cases(args)
            self._to_volume(cases, args, cases.find(models.Backup, args.id, project_id=args.project))

    def _to_volume(self, cases: usecases.UseCases, args: argparse.Namespace, backup: str) -> None:
        from backupfw.db import models
        from backupfw.manager.lineage import lifecycle

        volume, owner = None, args.project or cases.backups.get(base.operator(), backup).project_id
        if args.volume is not None:
            # Not in all projects: a volume of that name that is another project's would be overwritten.
            volume = cases.find(models.Volume, args.volume, project_id=owner)
            owner = cases.backups.project_of_volume(base.operator(), volume)
        _, target, _ = cases.backups.restore(base.operator(owner), backup, volume_id=volume, name=args.name)
        print(target, flush=True)
        operation = waiting.Operation(
            f"restoring backup {backup} to volume {target}",
            models.Volume,
            target,
            (lifecycle.AVAILABLE,),
            task_of=backup,
            cancel=f"backupfw backup cancel {backup}",
        )
        waiting.follow(cases.conf, cases.db, operation, wait=args.wait)


class Delete(usecases.Deleting):
    """Delete backups; those made from them stay whole."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add the command's arguments."""
        parser.add_argument(
            "--force", action="store_true", help="whatever their status is; what runs on them is cancelled"
        )
        super().add_arguments(parser)

    def take_action(self, parsed_args: argparse.Namespace) -> int:
        """Delete them."""
        from backupfw.db import models

        return self.delete(self.use_cases(parsed_args), parsed_args, models.Backup, "backup")

    def begin(self, cases: usecases.UseCases, args: argparse.Namespace, resource_id: str) -> None:
        """Begin the deletion of one."""
        begin = cases.backups.force_delete if args.force else cases.backups.delete
        begin(base.operator(), resource_id)


class Cancel(base.Command):
    """Cancel a backup that is being made, or the restore of one, whether it waits or runs.

    A backup that was being made ends in error.  A backup that was being restored is available again, and the
    volume that it was written to is in error.  If there is neither, its verification by workers is cancelled,
    which leaves it as it is.
    """

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add the command's arguments."""
        parser.add_argument("id", metavar="ID", help="the backup's id or name")
        usecases.add_project(parser)
        parser.add_argument("--verification", action="store_true", help="only its verification by workers")

    def take_action(self, parsed_args: argparse.Namespace) -> None:
        """Cancel it."""
        from backupfw.db import models

        cases = self.open(usecases.opened(*self.database(parsed_args)))
        after = cases.backups.cancel(
            base.operator(),
            cases.find(models.Backup, parsed_args.id, parsed_args.project),
            verification=parsed_args.verification,
        )
        print(
            f"backup {after.id} is {after.status}" + (f": {after.fail_reason}" if after.fail_reason else "")
        )


class Copy(usecases.Queueing):
    """Copy backups to another store, beside the one that they are in; remove such copies, or swap them.

    A copy has the same objects, so what is encrypted stays so.  The backup can be used meanwhile, and is
    deleted with all its copies.
    """

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add the command's arguments."""
        parser.add_argument("id", metavar="ID", nargs="?", help="the backup's id or name")
        parser.add_argument("--all", action="store_true", help="of all backups for which that can be done")
        parser.add_argument(
            "--from", dest="source", metavar="STORE", type=usecases.text, help="of those that are in this one"
        )
        what = parser.add_mutually_exclusive_group(required=True)
        what.add_argument("--to", metavar="STORE", type=usecases.text, help="copy to this store")
        what.add_argument("--remove", metavar="STORE", type=usecases.text, help="remove the copy there")
        what.add_argument(
            "--promote",
            metavar="STORE",
            type=usecases.text,
            help="let the copy there be the backup's own, and what was its own be a copy",
        )
        usecases.add_project(parser)
        super().add_arguments(parser)

    def take_action(self, parsed_args: argparse.Namespace) -> int:
        """Do it, and go on where it cannot be done for one of several."""
        from backupfw.cmd import catalogue
        from backupfw.db import models

        args = parsed_args
        if (args.id is None) is not args.all:
            self.refuse("either ID or --all")
        if args.source is not None and not args.all:
            self.refuse("--from goes with --all")
        cases = self.use_cases(args)
        if args.id is not None:
            ids = [cases.find(models.Backup, args.id, args.project)]
        else:
            if unknown := {args.source, args.to, args.promote} - {None, *cases.conf.enabled_stores}:
                self.refuse(f"there is no store {', '.join(sorted(unknown))} that is enabled")
            absent, present = args.to, args.remove or args.promote
            ids = catalogue.to_copy(cases.db, args.source, args.project, absent=absent, present=present)
        failed: list[str] = []
        begun = []
        for one in ids:
            with usecases.failure_reported(failed, one):
                begun += self._begin(cases, args, one)
        for operation in begun:
            with usecases.failure_reported(failed, operation.resource_id):
                waiting.follow(cases.conf, cases.db, operation, wait=args.wait)
        if args.all:
            print(f"{counted(len(ids) - len(failed), 'backup')} done, {len(failed)} not")
        return 1 if failed else 0

    @staticmethod
    def _begin(cases: usecases.UseCases, args: argparse.Namespace, backup: str) -> list[waiting.Operation]:
        from backupfw.chunkstore.loader import load_driver
        from backupfw.conf.stores import group_of
        from backupfw.db import models
        from backupfw.errors import InvalidInput
        from backupfw.manager.lineage import lifecycle

        if args.remove is not None:
            cases.backups.remove_copy(base.operator(), backup, args.remove)
            return []
        if args.promote is not None:
            if args.promote not in cases.conf.enabled_stores:
                raise InvalidInput(f"There is no store {args.promote} that is enabled.")
            service = load_driver(cases.conf[group_of(args.promote)].driver).wire_name
            cases.backups.promote_copy(base.operator(), backup, args.promote, service)
            return []
        copy = cases.backups.copy(base.operator(), backup, args.to)
        return [
            waiting.Operation(
                f"copying backup {backup} to store {args.to}",
                models.BackupCopy,
                copy.id,
                (lifecycle.AVAILABLE,),
                task_of=copy.manifest_id,
                cancel=f"backupfw backup copy {backup} --remove {args.to}",
            )
        ]


class Repair(base.Command):
    """Verify a backup in every store that has it, and put what is damaged or missing again from another one.

    No service need run.  The exit status is 1 if something is damaged in every store.
    """

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add the command's arguments."""
        parser.add_argument("id", metavar="ID", help="the backup's id or name")
        usecases.add_project(parser)

    def take_action(self, parsed_args: argparse.Namespace) -> int:
        """Repair it."""
        from contextlib import closing

        from backupfw.cmd import catalogue
        from backupfw.db import models
        from backupfw.manager.outcomes.backups import BackupTasks
        from backupfw.manager.usecases.keys import KeyManager
        from backupfw.worker.copies import Copies
        from backupfw.worker.data_keys import DataKeys
        from backupfw.worker.stores import Stores

        conf, db = self.database(parsed_args)
        backup = catalogue.find_id(db, models.Backup, parsed_args.id, parsed_args.project)
        manifest = catalogue.manifest_of(db, backup)
        places = catalogue.places_of(db, conf, backup)
        stores = self.open(closing(Stores(conf)))
        data_keys = self.open(closing(DataKeys.of(conf, KeyManager(db))))
        if manifest.links:
            raise InvalidInput("A backup of Cinder's format has no copies from which it could be repaired.")
        copies = Copies(BackupTasks(db, conf), stores, data_keys, manifest.key, places, conf.backup.streams)
        progress = Progress(f"repairing {backup}")
        try:
            found = copies.repair(progress.control(), encrypted=manifest.encrypted)
        finally:
            progress.abandon()
        for one in found:
            left = f", {counted(one.left, 'object')} still DAMAGED" if one.left else ""
            print(f"store {one.place.store}: {counted(one.damaged - one.left, 'object')} repaired{left}")
        return 1 if any(one.left for one in found) else 0


def record(conf: ConfigOpts, db: Database, backup_id: str) -> Mapping[str, Any]:
    """Return all that is known of a backup, by the names of its parts.

    :raises BackupNotFound: there is none.
    """
    from backupfw.cmd import database
    from backupfw.manager.outcomes.backups import BackupTasks
    from backupfw.manager.usecases.backups import BackupManager

    manager = BackupManager(db, conf)
    row = manager.get(base.operator(), backup_id)
    known = {
        **usecases.described(row),
        "damaged_objects": []
        if row.manifest_id is None
        else [database.plain(one) for one in BackupTasks(db, conf).damaged_objects.of(row.manifest_id)],
        **_manifest(db, row.manifest_id),
        "copies": [_copy(db, one) for one in manager.copies(base.operator(), backup_id)],
        "holdings": None if row.manifest_id is None else _holdings(conf, db, row.id, row.manifest_id),
    }
    # What the backup stored when it was made is not what it holds now.
    known["put_bytes"] = known.pop("stored_bytes")
    return dict(sorted(known.items()))


def _copy(db: Database, copy: BackupCopy) -> dict[str, Any]:
    from backupfw.db import models

    found = usecases.described(copy)
    with db.read() as session:
        manifest = session.get(models.Manifest, copy.manifest_id) if copy.manifest_id else None
        proof = None if manifest is None else manifest.fully_verified_at
    return {
        **{name: found[name] for name in _COPY_COLUMNS},
        "fully_verified_at": None if proof is None else f"{proof.isoformat()}Z",
    }


def _manifest(db: Database, manifest_id: str | None) -> dict[str, Any]:
    """Say where a backup's manifest is, and with which key its data is encrypted."""
    from backupfw.db import models

    known: dict[str, Any] = {"manifest": None, "encryption": None}
    if manifest_id is None:
        return known
    with db.read() as session:
        manifest = session.get(models.Manifest, manifest_id)
        if manifest is None:
            return known
        known["manifest"] = manifest.key
        if manifest.key_id is not None:
            data_key = session.get(models.DataKey, manifest.key_id)
            known["encryption"] = {
                "data_key": manifest.key_id,
                "project_key": None if data_key is None else data_key.project_key_id,
                "algorithm": None if data_key is None else data_key.algorithm,
            }
    return known


def _line(backup: Mapping[str, Any]) -> str:
    verified = "never verified"
    if backup["verified_at"] is not None:
        at = f"{backup['verified_at'][:19]}Z"
        verified = f"{backup['verified_how']} verification of {at}: {backup['verified_result']}"
    damaged = backup["damaged_objects"]
    damage = f", DAMAGED, {counted(damaged, 'object')}" if damaged else ""
    return f"{backup['id']} of volume {backup['volume_id']}: {backup['status']}, {verified}{damage}"


def _holdings(conf: ConfigOpts, db: Database, backup_id: str, manifest_id: str) -> dict[str, Any] | None:
    """Say what of the store is this backup's own, what it shares, and what deleting it would free now.

    :return: None while its manifest is not in use; only the reason if the store does not tell.
    """
    from backupfw.chunkstore.container import Container
    from backupfw.chunkstore.errors import ChunkStoreError
    from backupfw.cmd import store
    from backupfw.db import models
    from backupfw.db.installation import installation_id
    from backupfw.engine import release
    from backupfw.engine.format.keys import installation_prefix
    from backupfw.engine.ports import KnownManifests
    from backupfw.errors import Damaged, UnsupportedFormat
    from backupfw.manager.lineage import manifests

    with db.snapshot() as session:
        manifest = session.get(models.Manifest, manifest_id)
        if manifest is None:
            return None
        live = manifests.live_backups(session, manifest_id)
        known = frozenset(manifests.volume_keys(session, manifest_id))
        if manifest.installation_id == manifests.CINDER:
            # What is only this backup's is what its deletion removes; the parents' is no less theirs.
            return _link_holdings(session, manifest, backup_id)
        ours = manifest.installation_id == installation_id(session)
        in_use = manifests.is_base_of_running(session, manifest_id)
    key = manifest.key
    if key is None or key not in live:
        return None
    duplicates = [one for one in live.pop(key) if one != backup_id]
    progress = Progress(f"reading the manifests of volume {manifest.volume_id}")
    try:
        with store.opened(conf, manifest.store) as opened:
            found = release.look(
                key,
                KnownManifests(tuple(live), known),
                installation_prefix(manifest.installation_id),
                Container(opened, manifest.container),
                progress.control(),
            )
    except (ChunkStoreError, Damaged, UnsupportedFormat) as error:
        return {"problem": str(error)}
    finally:
        progress.abandon()
    shared_with = [
        {"manifest": other, "backups": live[other], **_figures(much)}
        for other, much in found.shared_with.items()
    ]
    # A release waits for all backups with this manifest; objects of another installation are never deleted.
    stays = bool(duplicates) or in_use or not ours
    return {
        "own": _figures(found.own),
        "shared": _figures(found.shared),
        "shared_with": shared_with,
        "same_manifest": duplicates,
        "deleting_frees": _figures((0, 0) if stays else found.own),
    }


def _link_holdings(session: Session, manifest: Manifest, backup_id: str) -> dict[str, Any] | None:
    """Say the same of a backup of Cinder's format, which the database knows; None while it is not in use."""
    from sqlalchemy import select

    from backupfw.db import models
    from backupfw.manager.lineage import lifecycle, manifests

    backup = session.get(models.Backup, backup_id)
    if backup is None or manifest.state != lifecycle.LIVE:
        return None
    row = models.Backup
    same = select(row.id).where(row.manifest_id == manifest.id, row.id != backup_id, row.deleted.is_(False))
    duplicates = list(session.scalars(same.order_by(row.id)))
    own = (backup.object_count, backup.stored_bytes)
    stays = bool(duplicates) or manifests.is_needed_link(session, manifest.id)
    return {
        "own": _figures(own),
        "shared": _figures((0, 0)),
        "shared_with": [],
        "same_manifest": duplicates,
        "deleting_frees": _figures((0, 0) if stays else own),
    }


def _figures(much: tuple[int, int]) -> dict[str, int]:
    return {"objects": much[0], "bytes": much[1]}

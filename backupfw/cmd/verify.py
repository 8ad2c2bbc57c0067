"""``backupfw backup verify``: read everything that backups are made of, and record what was found."""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections import Counter
from contextlib import closing, suppress
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from backupfw import moments
from backupfw.amounts import human_size
from backupfw.cmd import base, usecases
from backupfw.cmd.progress import Progress, counted
from backupfw.errors import BackupNotFound, EngineError, InvalidBackup, InvalidInput

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from oslo_config import cfg

    from backupfw.db.session import Database
    from backupfw.worker.damaged_objects import FoundDamaged
    from backupfw.worker.data_keys import DataKeys
    from backupfw.worker.stores import Stores

#: Longest age that may be asked for, days.
_MAX_DAYS = 36500
#: The result of a backup that could not be verified.
NOT_VERIFIED = "not verified"
#: The result of a backup that workers will verify.
BEGUN = "begun"


class Verify(base.Lister):
    """Read backups' objects and compare every block.

    What is found is recorded at each backup; damage is remembered, so that the next incremental stores it
    anew.  The exit status is 1 when anything is damaged or could not be verified.
    """

    columns = (
        "id",
        "result",
        "how",
        "verified_at",
        "objects",
        "blocks",
        "bytes",
        "damaged_objects",
        "problem",
    )
    default_format = "text"
    json_text = "print one JSON object per line and backup"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add the command's arguments."""
        which = parser.add_mutually_exclusive_group()
        which.add_argument("id", metavar="ID", nargs="?", help="the backup's id or name")
        which.add_argument(
            "--all", action="store_true", help="all backups; those verified longest ago come first"
        )
        which.add_argument("--volume", metavar="ID", help="all backups of this volume (id or name)")
        parser.add_argument(
            "--project",
            metavar="P",
            type=usecases.text,
            help="all backups of this project; with ID or --volume only what is this project's",
        )
        parser.add_argument(
            "--older-than",
            metavar="DAYS",
            type=age,
            help="only backups that were not verified for so long, or since a moment like"
            " 2026-01-31T20:00:00Z; a run that ended early goes on where it was",
        )
        parser.add_argument(
            "--sample", metavar="N", type=number, help="only N of them, chosen at random anew each time"
        )
        parser.add_argument(
            "--quick", action="store_true", help="read maps whole and only the end of each pack"
        )
        parser.add_argument(
            "--by-service",
            action="store_true",
            help="let workers verify the backup, in its own store and in those of its copies; do not wait",
        )

    def records(self, args: argparse.Namespace) -> Iterator[Mapping[str, Any]]:
        """Verify one backup or many, and return a record of each when it is done."""
        from backupfw.cmd import catalogue
        from backupfw.db import models
        from backupfw.manager.usecases.keys import KeyManager
        from backupfw.worker.data_keys import DataKeys
        from backupfw.worker.stores import Stores

        one = args.id is not None
        many = args.all or args.volume is not None or args.older_than is not None
        if one == many and (one or args.project is None):
            self.refuse("name one backup, or at least one of --all, --volume, --project and --older-than")
        if args.all and args.project is not None:
            self.refuse("--all and --project do not go together")
        if one and args.sample is not None:
            self.refuse("--sample chooses among several backups")
        if args.by_service and (not one or args.quick):
            self.refuse("--by-service verifies the one backup that is named, in full")
        conf, db = self.database(args)
        if args.by_service:
            backup_id = catalogue.find_id(db, models.Backup, args.id, args.project)
            asked = self.open(usecases.opened(conf, db)).backups.verify(base.operator(), backup_id)
            return iter([{**dict.fromkeys(self.columns), "id": backup_id, "result": BEGUN, "stores": asked}])
        stores = self.open(closing(Stores(conf)))
        told = _print_damaged if self.is_text(args) and not args.json else None
        data_keys = self.open(closing(DataKeys.of(conf, KeyManager(db))))
        verifier = Verifier(conf, db, stores, data_keys, quick=args.quick, told=told)
        if one:
            return self._judged(verifier.one(catalogue.find_id(db, models.Backup, args.id, args.project)))
        return self._judged(_many(args, db, verifier))

    def _judged(self, records: Iterator[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
        for record in records:
            if record["result"] != "ok":
                self.status = 1
            yield record

    def lines(self, args: argparse.Namespace, records: Iterator[Mapping[str, Any]]) -> Iterable[base.Line]:
        """Yield the verdict on each backup, and the sums."""
        if args.json:
            yield from map(as_json, records)
            return
        counts = Counter[str]()
        for one in records:
            counts[one["result"]] += 1
            yield _verdict(one)
        if args.id is None:
            good, damaged, failed = (counts[result] for result in ("ok", "damaged", NOT_VERIFIED))
            yield f"{counted(counts.total(), 'backup')}: {good} ok, {damaged} damaged, {failed} not verified"


def number(text: str) -> int:
    """Return a number from 1 that an argument has."""
    if not text.isascii() or not text.isdigit() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1")
    return int(text)


def age(text: str) -> timedelta | datetime:
    """Return the age in days, or the moment, that an argument has."""
    with suppress(ValueError):
        if 0 <= (days := float(text)) <= _MAX_DAYS:
            return timedelta(days=days)
    with suppress(ValueError):
        return moments.parse(text, zoned=True)
    raise argparse.ArgumentTypeError(
        f"{text!r} is neither a number of days from 0 to {_MAX_DAYS} nor a moment like 2026-01-31T20:00:00Z"
    )


def _many(args: argparse.Namespace, db: Database, verifier: Verifier) -> Iterator[Mapping[str, Any]]:
    from backupfw.chunkstore.errors import ChunkStoreError
    from backupfw.cmd import catalogue
    from backupfw.keys.errors import KeyStoreError

    of = args.volume or args.project
    volume = None if args.volume is None else catalogue.find_backed_up(db, args.volume, args.project)
    if of is not None and not catalogue.backups_exist(db, volume, args.project):
        # A misspelt id must be an error: an empty result would look as if all were well.
        raise InvalidInput(f"There is no backup of {of}.")
    begun, ids = catalogue.to_verify(db, volume, args.project, older_than=args.older_than, quick=args.quick)
    if args.sample is not None:
        ids = random.sample(ids, min(args.sample, len(ids)))
        print(f"{counted(len(ids), 'backup')} to verify, chosen at random", file=sys.stderr)
    elif args.older_than is None:
        print(
            f"{counted(len(ids), 'backup')} to verify; if this ends early, the same with --older-than"
            f" {begun:%Y-%m-%dT%H:%M:%SZ} does the rest",
            file=sys.stderr,
        )
    for backup_id in ids:
        # Another run may have verified it, or another backup with the same manifest was verified just now.
        if catalogue.was_verified(db, backup_id, begun, quick=args.quick):
            continue
        # It does not matter if the backup was deleted meanwhile.
        with suppress(BackupNotFound, InvalidBackup):
            try:
                yield from verifier.one(backup_id)
            except (ChunkStoreError, EngineError, InvalidInput, KeyStoreError) as error:
                # There is no result, so nothing is recorded, and the next run begins with this backup.
                nothing = dict.fromkeys(Verify.columns)
                yield {**nothing, "id": backup_id, "result": NOT_VERIFIED, "problem": str(error)}


class Verifier:
    """Verifies one backup after the other.

    :param data_keys: finds the keys of backups that are encrypted.
    :param told: called with key and reason as soon as an object is found damaged.
    """

    def __init__(
        self,
        conf: cfg.ConfigOpts,
        db: Database,
        stores: Stores,
        data_keys: DataKeys,
        *,
        quick: bool,
        told: Callable[[str, str], None] | None = None,
    ) -> None:
        from backupfw.manager.outcomes.backups import BackupTasks
        from backupfw.manager.queue import outbox

        self._conf = conf
        self._db = db
        self._stores = stores
        self._tasks = BackupTasks(db, conf)
        self._data_keys = data_keys
        self._quick = quick
        self._told = told
        self._alerted: set[str] = set()
        outbox.keep(db, conf)

    def one(self, backup_id: str) -> Iterator[Mapping[str, Any]]:
        """Verify a backup, and yield what was found: a record, which is complete until the next is asked for.

        :raises BackupNotFound: there is no such backup.
        :raises InvalidBackup: it has no manifest to verify, or was deleted meanwhile.
        :raises ChunkStoreError, EngineError, InvalidInput, KeyStoreError: it could not be verified; what is
            recorded is the damage found so far.
        """
        from backupfw.cmd import catalogue
        from backupfw.engine import verify as engine
        from backupfw.engine.format import keys
        from backupfw.manager.outcomes import damaged_objects
        from backupfw.worker import stored
        from backupfw.worker.damaged_objects import FoundDamaged, mark_sharers

        manifest = catalogue.manifest_of(self._db, backup_id)
        with self._db.read() as session:
            begun = self._db.now(session)
        whole: set[str] = set()

        def damaged(container: str, bad: str, reason: str) -> None:
            if not self._tasks.damaged_objects.record(manifest.store, container, bad, reason, manifest.id):
                raise InvalidBackup(f"backup {backup_id} was deleted meanwhile")
            found.add(bad, reason)
            if self._told is not None:
                self._told(bad, reason)

        progress = Progress(f"verifying {backup_id}")
        control = progress.control()
        with closing(FoundDamaged()) as found:
            try:
                opened = self._stores.container(manifest.store, manifest.container)
                with stored.opened(self._stores, self._data_keys, manifest, control) as data:
                    report = data.verify(
                        control, damaged, quick=self._quick, streams=self._conf.backup.streams
                    )
                for part in found.parts():
                    mark_sharers(self._tasks, opened, manifest.id, part, control)
                    self._tasks.damaged_objects.alert(manifest.store, manifest.container, part, self._alerted)
                if report.ok and not self._quick and not manifest.links:
                    prefix = keys.volume_prefix_of(manifest.key)
                    listed = self._tasks.damaged_objects.keys(manifest.store, manifest.container, prefix)
                    whole = engine.named(manifest.key, listed, opened, control)
            except BaseException:
                progress.abandon()
                raise
            how = damaged_objects.QUICK if self._quick else damaged_objects.FULL
            result = damaged_objects.OK if report.ok else damaged_objects.DAMAGED
            # This is the last step, so that after a killed run the backup is verified again.
            moment = self._tasks.damaged_objects.record_verification(manifest.id, begun, how, result, whole)
            progress.finish(human_size(report.bytes))
            yield {
                "id": backup_id,
                "result": result,
                "how": how,
                "verified_at": f"{moment.isoformat()}Z",
                "objects": report.objects,
                "blocks": report.blocks,
                "bytes": report.bytes,
                "damaged_objects": report.damaged,
                "problem": None,
                "damaged": found,
            }


def _print_damaged(key: str, reason: str) -> None:
    print(f"damaged: {key}: {reason}", flush=True)


def as_json(record: Mapping[str, Any]) -> Iterator[str]:
    """Return a record as one line of JSON, in parts; the keys of damaged objects are in it."""
    values = {name: value for name, value in record.items() if value is not None}
    values.pop("damaged_objects", None)
    damaged: FoundDamaged | None = values.pop("damaged", None)
    text = json.dumps(values, sort_keys=True)
    if damaged is None:
        yield text
        return
    yield f'{text.removesuffix("}")}, "damaged": ['
    for number, line in enumerate(damaged.lines()):
        yield line if number == 0 else f", {line}"
    yield "]}"


def _verdict(record: Mapping[str, Any]) -> str:
    who, damaged = f"backup {record['id']}", record["damaged_objects"]
    if record["result"] == BEGUN:
        return (
            f"{who}: workers verify it in {' and '.join(record['stores'])}; backupfw task list shows how far"
        )
    if record["result"] == NOT_VERIFIED:
        return f"{who}: NOT verified: {record['problem']}"
    verdict = f"DAMAGED, {counted(damaged, 'object')}" if damaged else "ok"
    return (
        f"{who}: {verdict} ({counted(record['objects'], 'object')}, {counted(record['blocks'], 'block')},"
        f" {human_size(record['bytes'])} read)"
    )

"""``backupfw restore-test``: restore backups to nowhere, and record what their volumes' content was."""

from __future__ import annotations

import argparse
import random
from collections import Counter
from contextlib import closing
from typing import TYPE_CHECKING, Any

from backupfw.amounts import human_size
from backupfw.cmd import base, usecases
from backupfw.cmd.progress import Progress, counted
from backupfw.cmd.verify import age, number
from backupfw.errors import BackupNotFound, Damaged, EngineError, InvalidBackup, InvalidInput

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from oslo_config import cfg

    from backupfw.db.session import Database
    from backupfw.worker.data_keys import DataKeys
    from backupfw.worker.stored import Stored
    from backupfw.worker.stores import Stores

#: The result of a backup that could not be tested.
NOT_TESTED = "not tested"


class RestoreTest(base.Lister):
    """Restore backups to nowhere: read and verify every block, and take the digest of the whole volume.

    The digest is recorded at the first test; one that differs later is a failure.  No service need run.  The
    exit status is 1 when a test failed or could not be made.
    """

    columns = ("id", "result", "tested_at", "bytes", "digest", "problem")
    default_format = "text"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add the command's arguments."""
        parser.add_argument("id", metavar="ID", nargs="?", help="the backup's id or name")
        parser.add_argument(
            "--all", action="store_true", help="all backups; those tested longest ago come first"
        )
        usecases.add_project(parser)
        parser.add_argument("--newest", action="store_true", help="of each volume only the newest backup")
        parser.add_argument(
            "--older-than",
            metavar="DAYS",
            type=age,
            help="only backups that were not tested for so long, or since a moment like"
            " 2026-01-31T20:00:00Z; a run that ended early goes on where it was",
        )
        parser.add_argument(
            "--sample", metavar="N", type=number, help="only N of them, chosen at random anew each time"
        )

    def records(self, args: argparse.Namespace) -> Iterator[Mapping[str, Any]]:
        """Test one backup or many, and return a record of each when it is done."""
        from backupfw.cmd import catalogue
        from backupfw.db import models
        from backupfw.manager.usecases.keys import KeyManager
        from backupfw.worker.data_keys import DataKeys
        from backupfw.worker.stores import Stores

        chosen = args.newest or args.older_than is not None or args.sample is not None
        if args.id is not None and (args.all or chosen):
            self.refuse("with ID, only --project can be given")
        if args.id is None and not (args.all or chosen or args.project is not None):
            self.refuse(
                "name a backup, or at least one of --all, --project, --newest, --older-than and --sample"
            )
        conf, db = self.database(args)
        if args.id is not None:
            ids = [catalogue.find_id(db, models.Backup, args.id, args.project)]
        else:
            if args.project is not None and not catalogue.backups_exist(db, None, args.project):
                # A misspelt id must be an error: an empty result would look as if all were well.
                raise InvalidInput(f"There is no backup of {args.project}.")
            ids = catalogue.to_restore_test(db, args.project, older_than=args.older_than, newest=args.newest)
            if args.sample is not None:
                ids = random.sample(ids, min(args.sample, len(ids)))
        stores = self.open(closing(Stores(conf)))
        data_keys = self.open(closing(DataKeys.of(conf, KeyManager(db))))
        return self._tested(conf, db, stores, data_keys, ids, one=args.id is not None)

    def _tested(
        self,
        conf: cfg.ConfigOpts,
        db: Database,
        stores: Stores,
        data_keys: DataKeys,
        ids: Iterable[str],
        *,
        one: bool,
    ) -> Iterator[Mapping[str, Any]]:
        from backupfw.chunkstore.errors import ChunkStoreError
        from backupfw.keys.errors import KeyStoreError

        tester = Tester(conf, db, stores, data_keys)
        for backup_id in ids:
            try:
                record = tester.test(backup_id)
            except (BackupNotFound, InvalidBackup):
                if one:
                    raise
                # It was deleted meanwhile.
                continue
            except (ChunkStoreError, EngineError, InvalidInput, KeyStoreError) as error:
                # There is no result, so nothing is recorded, and the next run begins with this backup.
                nothing = dict.fromkeys(self.columns)
                record = {**nothing, "id": backup_id, "result": NOT_TESTED, "problem": str(error)}
            if record["result"] != "ok":
                self.status = 1
            yield record

    def lines(self, args: argparse.Namespace, records: Iterator[Mapping[str, Any]]) -> Iterable[base.Line]:
        """Yield the result of each, and the sums."""
        counts = Counter[str]()
        for record in records:
            counts[record["result"]] += 1
            yield _line(record)
        if args.id is None:
            good, failed, left = (counts[result] for result in ("ok", "failed", NOT_TESTED))
            yield f"{counted(counts.total(), 'backup')}: {good} ok, {failed} failed, {left} not tested"


class Tester:
    """Tests one backup after the other."""

    def __init__(self, conf: cfg.ConfigOpts, db: Database, stores: Stores, data_keys: DataKeys) -> None:
        from backupfw.manager.outcomes.backups import BackupTasks
        from backupfw.manager.queue import outbox

        self._conf = conf
        self._db = db
        self._stores = stores
        self._data_keys = data_keys
        self._restoring = BackupTasks(db, conf).restoring
        outbox.keep(db, conf)

    def test(self, backup_id: str) -> Mapping[str, Any]:
        """Restore a backup to nowhere, record the result and return it.

        :raises BackupNotFound, InvalidBackup: there is no such backup, it has no data, or it was deleted
            meanwhile.
        :raises ChunkStoreError, EngineError, InvalidInput, KeyStoreError: it could not be tested.
        """
        from backupfw.cmd import catalogue, restore_file
        from backupfw.engine.content_digest import DigestTarget

        progress = Progress(f"restoring {backup_id} to nowhere")
        control = progress.control()

        def work(data: Stored) -> DigestTarget:
            length, _record = data.describe()
            # A new one for each place: what was written before an error does not count.
            target = DigestTarget(length)
            data.restore(target, control, streams=self._conf.backup.streams)
            return target

        digest = problem = size = None
        try:
            manifest = catalogue.manifest_of(self._db, backup_id)
            target = restore_file.read(
                self._conf, self._db, backup_id, manifest, self._stores, self._data_keys, control, work
            )
        except Damaged as error:
            progress.abandon()
            problem = str(error)
        except BaseException:
            progress.abandon()
            raise
        else:
            digest, size = target.digest(), target.length
            progress.finish(human_size(size))
        tested = self._restoring.record_test(backup_id, digest)
        if problem is None and not tested.ok:
            problem = f"the digest was {tested.first} at the first test"
        return {
            "id": backup_id,
            "result": "ok" if tested.ok else "failed",
            "tested_at": f"{tested.at.isoformat()}Z",
            "bytes": size,
            "digest": digest,
            "problem": problem,
        }


def _line(record: Mapping[str, Any]) -> str:
    who = f"backup {record['id']}"
    if record["result"] == "ok":
        return f"{who}: ok ({human_size(record['bytes'])}, digest {record['digest']})"
    verdict = "FAILED" if record["result"] == "failed" else "NOT tested"
    return f"{who}: {verdict}: {record['problem']}"

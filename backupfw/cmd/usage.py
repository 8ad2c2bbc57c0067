"""``backupfw usage``: what backups take in the stores, counted from their manifests.

An object that several backups name is stored once.  So the use of a backup, a volume, a project or a store is
counted object by object: *own* objects are named by no other one, *shared* objects by others, too.  Each
manifest is read once.  The counts are kept in a temporary database, so memory does not depend on the number
of backups.
"""

from __future__ import annotations

import argparse
import sqlite3
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from itertools import groupby
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from backupfw.cmd import base

if TYPE_CHECKING:
    from oslo_config import cfg

    from backupfw.chunkstore.base import ObjectInfo
    from backupfw.chunkstore.container import Container
    from backupfw.cmd.catalogue import Holding
    from backupfw.cmd.progress import Progress
    from backupfw.db.session import Database
    from backupfw.engine.candidates import Candidate
    from backupfw.engine.format.manifest import ManifestReader
    from backupfw.engine.ports import Control
    from backupfw.worker.stores import Stores

#: What backups can be counted by, and how a group of them is found.
GROUPS: Mapping[str, Callable[[Holding], str]] = {
    "project": attrgetter("project_id"),
    "store": attrgetter("store"),
    "volume": attrgetter("volume_id"),
    "backup": attrgetter("backup_id"),
}
#: The names that users gave, for groups that are found by an id of the service's.
NAMES: Mapping[str, Callable[[Holding], str | None]] = {
    "volume": attrgetter("volume_name"),
    "backup": attrgetter("backup_name"),
}
#: What is said of a group, after its id and name.
COLUMNS = (
    "backups",
    "gigabytes",
    "own_objects",
    "own_bytes",
    "shared_objects",
    "shared_bytes",
    "deleting_frees_bytes",
)

#: Bytes of the temporary database that are kept in memory.
_CACHE_BYTES = 64 << 20
#: The group of what is named by manifests that the database does not know.
_NOBODY = 0

_SCHEMA = """
CREATE TABLE holdings (volume_id, manifest_id, backup_id, project_id, store, container, key,
    installation_id, size, stays, is_copy, backup_name, volume_name,
    PRIMARY KEY (volume_id, manifest_id, backup_id)) WITHOUT ROWID;
CREATE TABLE groups (id INTEGER PRIMARY KEY, key TEXT NOT NULL UNIQUE, name TEXT,
    backups INTEGER NOT NULL DEFAULT 0, gigabytes INTEGER NOT NULL DEFAULT 0,
    own_objects INTEGER NOT NULL DEFAULT 0, own_bytes INTEGER NOT NULL DEFAULT 0,
    shared_objects INTEGER NOT NULL DEFAULT 0, shared_bytes INTEGER NOT NULL DEFAULT 0,
    deleting_frees_bytes INTEGER NOT NULL DEFAULT 0);
CREATE TABLE named (object BLOB, owner INTEGER, size INTEGER NOT NULL, stays INTEGER NOT NULL,
    PRIMARY KEY (object, owner)) WITHOUT ROWID;
"""
_HOLDING = "INSERT INTO holdings VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
_NEXT_HOLDINGS = """
SELECT * FROM holdings WHERE (volume_id, manifest_id, backup_id) > (?, ?, ?)
    ORDER BY volume_id, manifest_id, backup_id LIMIT 1000
"""
_COUNT = """
INSERT INTO groups (key, name, backups, gigabytes) VALUES (:key, :name, :count, :size)
    ON CONFLICT (key) DO UPDATE SET backups = backups + :count, gigabytes = gigabytes + :size
"""
_NAME = """
INSERT INTO named VALUES (?, ?, ?, ?)
    ON CONFLICT (object, owner) DO UPDATE SET stays = max(stays, excluded.stays)
"""
#: Adds what was read of a volume to its groups; objects lie in the order of the primary key.
_ADD = """
WITH counted AS (SELECT owner, size, stays, COUNT(*) OVER (PARTITION BY object) AS owners FROM named),
    summed AS (
        SELECT owner, SUM(owners = 1) AS own_objects, SUM((owners = 1) * size) AS own_bytes,
            SUM(owners > 1) AS shared_objects, SUM((owners > 1) * size) AS shared_bytes,
            SUM((owners = 1 AND NOT stays) * size) AS deleting_frees_bytes
        FROM counted GROUP BY owner)
UPDATE groups SET own_objects = groups.own_objects + summed.own_objects,
    own_bytes = groups.own_bytes + summed.own_bytes,
    shared_objects = groups.shared_objects + summed.shared_objects,
    shared_bytes = groups.shared_bytes + summed.shared_bytes,
    deleting_frees_bytes = groups.deleting_frees_bytes + summed.deleting_frees_bytes
FROM summed WHERE summed.owner = groups.id
"""


class Count:
    """Counts what groups of backups take.  Not thread-safe; :meth:`close` it.

    :param by: a key of :data:`GROUPS`.
    """

    def __init__(
        self, conf: cfg.ConfigOpts, db: Database, stores: Stores, by: str, progress: Progress
    ) -> None:
        from backupfw.manager.outcomes.backups import BackupTasks

        self._db = db
        self._stores = stores
        self._group = GROUPS[by]
        self._name = NAMES.get(by)
        self._counts_copies = by == "store"
        #: A volume's groups are ready as soon as all its backups were read.
        self._by_volume = by in ("volume", "backup")
        self._progress = progress
        self._control: Control = progress.control()
        self._installation = BackupTasks(db, conf).installation_id()
        # A database without a name: a temporary file, deleted when the connection is closed.
        self._scratch = sqlite3.connect("", isolation_level=None)
        self._scratch.row_factory = sqlite3.Row
        self._scratch.execute(f"PRAGMA cache_size = -{_CACHE_BYTES >> 10}")
        self._scratch.executescript(_SCHEMA)
        #: What could not be counted, for people.
        self.problems: list[str] = []
        self._read = 0

    def close(self) -> None:
        """Drop what was counted."""
        self._scratch.close()

    def rows(self, volume: str | None = None) -> Iterator[dict[str, Any]]:
        """Yield the groups: each with its ``key``, its ``name`` and :data:`COLUMNS`.

        The bytes of a volume whose manifests could not all be read are missing, and :attr:`problems` says so.

        :param volume: only this volume's backups.
        """
        from backupfw.cmd import catalogue

        # All rows are read before any manifest: to read those may take hours, too long for a transaction.
        with self._scratch:
            self._scratch.execute("BEGIN")
            found = catalogue.holdings(self._db, self._installation, volume)
            self._scratch.executemany(_HOLDING, found)
        for volume_id, holdings in groupby(self._holdings(), attrgetter("volume_id")):
            self._volume(volume_id, holdings)
            if self._by_volume:
                yield from self._counted_rows()
        yield from self._counted_rows()

    def _holdings(self) -> Iterator[Holding]:
        """Yield what was read of the database, by volume and manifest."""
        from backupfw.cmd.catalogue import Holding

        after: tuple[str, ...] = ("", "", "")
        while page := self._scratch.execute(_NEXT_HOLDINGS, after).fetchall():
            yield from map(Holding._make, page)
            after = tuple(page[-1])[:3]

    def _counted_rows(self) -> Iterator[dict[str, Any]]:
        for row in self._scratch.execute("SELECT * FROM groups ORDER BY key"):
            yield {name: row[name] for name in ("key", "name", *COLUMNS)}
        self._scratch.execute("DELETE FROM groups")

    def _volume(self, volume_id: str, holdings: Iterator[Holding]) -> None:
        from backupfw.chunkstore.errors import ChunkStoreError
        from backupfw.cmd import catalogue
        from backupfw.errors import Damaged, InvalidInput, UnsupportedFormat

        places: dict[tuple[str, str], str] = {}
        problem: str | None = None
        self._scratch.execute("BEGIN")
        for _, same in groupby(holdings, attrgetter("manifest_id")):
            backups = list(same)
            manifest = backups[0]
            self._scratch.execute("SAVEPOINT manifest")
            owners = {self._counted(backup) for backup in backups}
            try:
                if problem is None:
                    container = self._stores.container(manifest.store, manifest.container)
                    self._note(container, self._named(container, manifest), owners, manifest.stays)
                    if manifest.installation_id == self._installation:
                        places[manifest.store, manifest.container] = manifest.key
            except (ChunkStoreError, Damaged, UnsupportedFormat, InvalidInput) as error:
                if catalogue.is_live(self._db, manifest.manifest_id):
                    problem = str(error)
                else:
                    # It was deleted meanwhile.
                    self._scratch.execute("ROLLBACK TO manifest")
            self._scratch.execute("RELEASE manifest")
        try:
            for place, key in places.items() if problem is None else ():
                self._unknown(self._stores.container(*place), volume_id, key)
        except (ChunkStoreError, Damaged, UnsupportedFormat) as error:
            problem = str(error)
        if problem is None:
            self._scratch.execute(_ADD)
        else:
            self.problems.append(f"volume {volume_id}: NOT counted: {problem}")
        self._scratch.execute("DELETE FROM named")
        self._scratch.execute("COMMIT")

    def _counted(self, backup: Holding) -> int:
        # A copy is the same backup in another store.
        count = int(self._counts_copies or not backup.is_copy)
        values = {
            "key": self._group(backup),
            "name": self._name and self._name(backup),
            "count": count,
            "size": backup.size * count,
        }
        self._scratch.execute(_COUNT, values)
        (owner,) = self._scratch.execute("SELECT id FROM groups WHERE key = :key", values).fetchone()
        return int(owner)

    def _named(self, container: Container, manifest: Holding) -> Iterator[Candidate | ObjectInfo]:
        """Return what a manifest of the database names; a link of Cinder's format names what lies there."""
        from backupfw.engine.cinder_format import names
        from backupfw.manager.lineage.manifests import CINDER

        if manifest.installation_id == CINDER:
            return (one for one in container.list(manifest.key) if names.belongs(manifest.key, one.key))
        return self._of_manifest(container, manifest.key)

    def _of_manifest(self, container: Container, key: str) -> Iterator[Candidate]:
        from backupfw.engine.candidates import Candidate, of_entry
        from backupfw.engine.format.manifest import ManifestReader

        reader: ManifestReader = ManifestReader(container, key)
        for entry in reader.segments():
            yield from of_entry(entry)
        yield Candidate(-1, key, reader.totals.manifest_bytes)

    def _note(
        self,
        container: Container,
        named: Iterator[Candidate | ObjectInfo],
        owners: Collection[int],
        stays: bool,
    ) -> None:
        """Note what a manifest names, for each group that names it."""
        from backupfw.db.digest import object_digest

        place = (container.store.name, container.name)

        def noted() -> Iterator[tuple[bytes, int, int, bool]]:
            for number, one in enumerate(named):
                if number % 1000 == 0:
                    self._control.check()
                # Sixteen bytes distinguish any number of objects.
                digest = bytes.fromhex(object_digest(*place, one.key)[:32])
                for owner in owners:
                    yield digest, owner, one.size, stays

        self._scratch.executemany(_NAME, noted())
        self._read += 1
        self._progress.update(self._read)

    def _unknown(self, container: Container, volume_id: str, key: str) -> None:
        """Note what manifests name that the database does not know: no deletion frees that."""
        from backupfw.engine import objects
        from backupfw.engine.format import keys
        from backupfw.engine.listing import manifest_keys
        from backupfw.errors import Damaged
        from backupfw.manager.lineage import manifests

        listed = list(manifest_keys(container, keys.volume_prefix_of(key), self._control))
        with self._db.read() as session:
            known = manifests.volume_rows(
                session,
                store=container.store.name,
                container=container.name,
                installation_id=self._installation,
                volume_id=volume_id,
            ).known
        for unknown in listed:
            if unknown in known:
                continue
            try:
                self._note(container, self._of_manifest(container, unknown), [_NOBODY], stays=True)
            except Damaged as error:
                # One that went since it was listed names nothing any more.
                if error.key != unknown or not objects.is_missing(container, unknown):
                    raise


class Usage(base.Lister):
    """Show what backups take in the stores: own and shared bytes, and what deleting them would free.

    Every manifest is read, those of copies in other stores, too.  Own is what only the backups of a row name,
    shared is what those of other rows name, too.  A copy counts as a backup in the row of its store only.
    """

    columns = ("project", *COLUMNS)

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add the command's arguments."""
        parser.add_argument(
            "--by", choices=tuple(GROUPS), default="project", help="a row for each (default: %(default)s)"
        )
        parser.add_argument("--volume", metavar="ID", help="only this volume's backups (id or name)")

    def take_action(self, parsed_args: argparse.Namespace) -> tuple[Sequence[str], Iterable[Any]]:
        """Return columns, of which the first is called after what is counted by, and rows."""
        self.columns = (parsed_args.by, *(["name"] if parsed_args.by in NAMES else []), *COLUMNS)
        return super().take_action(parsed_args)

    def records(self, args: argparse.Namespace) -> Iterable[Mapping[str, Any]]:
        """Return a record for each group, as they are counted."""
        from backupfw.cmd import catalogue
        from backupfw.cmd.progress import Progress
        from backupfw.worker.stores import Stores

        conf, db = self.database(args)
        volume = None if args.volume is None else catalogue.find_backed_up(db, args.volume)
        progress = Progress("reading manifests", unit="manifests")
        stores = self.open(closing(Stores(conf)))
        count = self.open(closing(Count(conf, db, stores, args.by, progress)))
        return self._counted(count, args.by, volume, progress)

    def _counted(
        self, count: Count, by: str, volume: str | None, progress: Progress
    ) -> Iterator[Mapping[str, Any]]:
        try:
            for row in count.rows(volume):
                yield {by: row.pop("key"), **row}
        finally:
            progress.abandon()
        for problem in count.problems:
            print(f"backupfw: {problem}", file=sys.stderr)
            self.status = 1

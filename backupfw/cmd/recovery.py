"""``backupfw catalogue rebuild``: enter the backups that a store has into a database that lost them."""

from __future__ import annotations

import argparse
import contextlib
import time
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from backupfw.cmd import base, usecases
from backupfw.cmd.configure import load_conf
from backupfw.cmd.progress import Control, Progress, counted
from backupfw.errors import ConfigError

if TYPE_CHECKING:
    from oslo_config import cfg

    from backupfw.chunkstore.container import Container
    from backupfw.db.session import Database
    from backupfw.engine.holder import Holder
    from backupfw.engine.recovery import FoundManifest, FoundVolume
    from backupfw.manager.operators.recovery import Found

#: The results, beside those of :mod:`backupfw.manager.operators.recovery`.
DAMAGED, SEALED, MADE_AGAIN, COPY = "damaged", "sealed", "made again", "copy"
UNFINISHED, FAILED = "unfinished", "failed"
#: How people are told the number of each.
_WORDS: Mapping[str, str] = {
    "entered": "entered",
    MADE_AGAIN: "entered as second ones of their backups",
    COPY: "entered as copies",
    SEALED: "entered without what their keys hide",
    DAMAGED: "entered in error",
    "described": "completed with what their keys hide",
    "known": "known already",
    FAILED: "NOT entered",
}


class Rebuild(base.Lister):
    """Enter the backups of a store into the catalogue, from the store's objects alone.

    What the catalogue has already stays as it is, so the command can be repeated, and continues after a kill.
    Backups of this installation become its own again; those of another one become read-only references,
    unless it is taken over.  The exit status is 1 when a backup is damaged or could not be entered.
    """

    columns = (
        "project_id",
        "volume_id",
        "backup_id",
        "result",
        "status",
        "problem",
        "objects",
        "installation_id",
        "key",
    )
    short = ("project_id", "volume_id", "backup_id", "result", "status", "problem")
    default_format = "text"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add the command's arguments."""
        parser.add_argument("--store", metavar="NAME", required=True, help="the store's name")
        parser.add_argument("--container", metavar="C", help="the container (default: the store's)")
        parser.add_argument(
            "--project", metavar="P", type=usecases.project, help="only this project's backups"
        )
        parser.add_argument("--dry-run", action="store_true", help="only say what would be entered")
        parser.add_argument(
            "--take-over",
            metavar="INSTALLATION",
            help="make this installation's data ours, and look at nothing else; its database is lost, and no"
            " service of it runs",
        )

    def records(self, args: argparse.Namespace) -> Iterator[Mapping[str, Any]]:
        """Yield a record for each manifest and for each unfinished attempt, as they are found."""
        from backupfw.cmd import store
        from backupfw.conf.stores import default_container

        conf = load_conf(args)
        store.require_enabled(conf, args.store)
        wanted = args.take_over
        if wanted is not None and conf.installation_id not in (None, wanted):
            raise ConfigError(
                f"[DEFAULT] installation_id is {conf.installation_id}; remove it to take over {wanted}"
            )
        _conf, db = self.database(args)
        run = Run(conf, db, args.store, args.container or default_container(conf, args.store))
        for one in run.records(wanted, args.project, args.dry_run):
            if one["result"] in (FAILED, DAMAGED):
                self.status = 1
            yield one

    def lines(self, args: argparse.Namespace, records: Iterator[Mapping[str, Any]]) -> Iterable[str]:
        """Yield what people want to know of some, and the sums."""
        counts: Counter[str] = Counter()
        left = 0
        for one in records:
            counts[one["result"]] += 1
            left += one["objects"] if one["result"] == UNFINISHED else 0
            if line := _line(one):
                yield line
        attempts = counts.pop(UNFINISHED, 0)
        would = "would be " if args.dry_run else ""
        parts = (f"{counts[result]} {would}{words}" for result, words in _WORDS.items() if counts[result])
        yield f"{counted(sum(counts.values()), 'backup')}: {', '.join(parts) or 'nothing to enter'}"
        if attempts:
            yield (
                f"{counted(attempts, 'unfinished attempt')} with {counted(left, 'object')}: 'backupfw sweep'"
                " removes what is of this installation"
            )


def _line(one: Mapping[str, Any]) -> str | None:
    where = f"backup {one['backup_id']} of volume {one['volume_id']} of project {one['project_id']}"
    result = one["result"]
    if result == UNFINISHED:
        return f"{where}: an attempt left {counted(one['objects'], 'object')}, not entered: {one['key']}"
    if result == MADE_AGAIN:
        kind = "another manifest of a backup that the catalogue has"
        return f"{where}: {kind}, entered under this id: {one['key']}"
    if result in (DAMAGED, SEALED):
        return (
            f"{where}: {'in error' if result == DAMAGED else 'entered without its texts'}: {one['problem']}"
        )
    if result == FAILED:
        return f"{where}: NOT entered: {one['problem']}"
    return None


class Run:
    """One run of the command on one container."""

    def __init__(self, conf: cfg.ConfigOpts, db: Database, store: str, container: str) -> None:
        self._conf = conf
        self._db = db
        self._store = store
        self._container = container

    def records(
        self, take_over: str | None, project: str | None, dry_run: bool
    ) -> Iterator[Mapping[str, Any]]:
        """Enter what is found, and yield the command's records."""
        from backupfw.db.installation import database_id, installation_id
        from backupfw.engine import recovery as engine
        from backupfw.engine import removal
        from backupfw.engine.format import keys
        from backupfw.engine.holder import Holder
        from backupfw.manager.operators import recovery
        from backupfw.manager.usecases.keys import KeyManager
        from backupfw.worker.data_keys import DataKeys
        from backupfw.worker.stores import Stores

        key_manager = KeyManager(self._db)
        with self._db.read() as session:
            own, database = take_over or installation_id(session), database_id(session)
            recovery.refuse_take_over(session, own)
        progress = Progress(f"reading container {self._container} of store {self._store}", unit="manifests")
        with (
            contextlib.closing(Stores(self._conf)) as stores,
            contextlib.closing(DataKeys.of(self._conf, key_manager)) as data_keys,
        ):
            container = stores.container(self._store, self._container)
            control = progress.control()
            try:
                removal.settle(container, control)
                if take_over is not None:
                    holder = Holder(take_over, database)
                    _wait(holder, take_over, container, control)
                    if not dry_run:
                        holder.take(container)
                        recovery.take_over(self._db, take_over)
                self._stores, self._service = stores, stores.wire_names[self._store]
                self._other_places: set[tuple[str, str]] = set()
                self._data_keys, self._key_manager, self._own = data_keys, key_manager, own
                prefix = "" if take_over is None else keys.installation_prefix(take_over)
                find_key = partial(data_keys.finder, container)
                done = 0
                for volume in engine.run(prefix, container, control, find_key):
                    done += len(volume.manifests)
                    progress.update(done)
                    yield from self._volume(volume, container, project, dry_run)
            finally:
                progress.abandon()

    def _volume(
        self, volume: FoundVolume, container: Container, project: str | None, dry_run: bool
    ) -> Iterator[Mapping[str, Any]]:
        """Enter what was found of one volume."""
        from backupfw import naming
        from backupfw.cmd.catalogue import DatabaseCatalogue
        from backupfw.manager.operators import recovery

        installation, owner, volume_id = map(naming.key_part_text, volume.prefix.split("/")[:3])
        if project not in (None, owner):
            return
        rows = DatabaseCatalogue(self._db, self._store, self._container, installation).volume(
            owner, volume_id
        )
        sealed = recovery.undescribed(self._db, self._store, self._container, volume_id)
        todo: list[Found] = []
        by_key: dict[str, FoundManifest] = {}
        for one in volume.manifests:
            is_known = one.key in rows.live or one.key in rows.known or one.key in rows.announced
            if (is_known and one.key not in sealed) or _parts(one.key)["backup_id"] in rows.transient:
                yield _record(one.key, "known")
                continue
            found = self._found(one, container)
            if isinstance(found, str):
                yield _record(one.key, FAILED, problem=found)
                continue
            todo.append(found)
            by_key[one.key] = one
        if todo and not dry_run:
            self._require_own_place(volume_id, by_key, container)
        if installation == self._own and not dry_run:
            self._keep_data_keys(volume, container)
        record_of = partial(self._texts, by_key=by_key, container=container)
        for entered in recovery.enter(self._db, todo, record_of, self._own, dry_run=dry_run):
            yield _entered(entered, by_key[entered.found.facts.key])
        for attempt in volume.unfinished:
            if _parts(attempt.origin)["backup_id"] not in rows.transient:
                yield _record(attempt.origin, UNFINISHED, objects=attempt.objects)

    def _require_own_place(self, volume_id: str, keys: Collection[str], container: Container) -> None:
        """Make sure that what is entered is not there already, in the same place under another name.

        Entered as a copy, its removal would remove the backup.

        :raises InvalidInput: it is.
        """
        from backupfw.chunkstore.errors import ChunkStoreError
        from backupfw.engine.copying import are_one_place
        from backupfw.errors import InvalidInput
        from backupfw.manager.operators import recovery

        others = recovery.elsewhere(self._db, self._store, self._container, volume_id, keys)
        for (store, name), key in others.items():
            if (store, name) in self._other_places or store not in self._stores.wire_names:
                continue
            self._other_places.add((store, name))
            # A place that does not answer now is not this one.
            with contextlib.suppress(ChunkStoreError):
                if are_one_place(key, self._stores.container(store, name), container):
                    raise InvalidInput(
                        f"Container {self._container} of store {self._store} is container {name} of store"
                        f" {store}, under another name: its backups are entered already."
                    )

    def _found(self, one: FoundManifest, container: Container) -> Found | str:
        """Return what can be entered of a manifest, or why it cannot."""
        from backupfw.engine.format import keys
        from backupfw.errors import InvalidInput
        from backupfw.manager.operators import recovery
        from backupfw.worker.handlers.backup_import import manifest_facts, unreadable_facts

        origin = keys.parse_origin(keys.origin_of(one.key))
        assert origin is not None
        try:
            if one.head is None:
                if not one.is_damaged:
                    return one.problem or "It cannot be read."
                facts = unreadable_facts(origin, container, self._service)
                return recovery.Found(facts, origin.attempt, f"Its manifest is damaged: {one.problem}.")
            recovery.check_length(one.head.geometry.length)
            facts = manifest_facts(
                one.head, container, self._service, one.object_count, one.stored_bytes, one.referenced_bytes
            )
        except InvalidInput as error:
            return str(error)
        problem = f"{one.missing} of the backup's objects are missing or damaged." if one.missing else None
        return recovery.Found(facts, origin.attempt, problem, one.is_sealed, one.base, one.detached)

    def _texts(
        self, found: Found, by_key: Mapping[str, FoundManifest], container: Container
    ) -> Mapping[str, Any]:
        """Return what a manifest says of its backup, as people wrote it."""
        from backupfw.engine.format.manifest import read_head

        one = by_key[found.facts.key]
        if one.head is None:
            return {}
        record = one.head.record
        if one.is_long:
            record = read_head(container, one.key, self._data_keys.finder(container, one.key)).record
        texts = record.get("backup")
        return texts if isinstance(texts, dict) else {}

    def _keep_data_keys(self, volume: FoundVolume, container: Container) -> None:
        """Record the data keys of a volume's backups, so that later ones share with them."""
        from backupfw.errors import DataKeyMissing

        # Those of one lineage have the same key of the digests.
        lineages = {one.head.mac_id: one.head for one in volume.manifests if one.head is not None}
        for mac_id, head in lineages.items():
            if mac_id is not None:
                # The reader of the manifest has reported what is missing.
                with contextlib.suppress(DataKeyMissing):
                    self._key_manager.add_found(self._data_keys.of_lineage(container, head))


def _wait(holder: Holder, installation: str, container: Container, control: Control) -> None:
    """Wait until it is sure that no other service has the installation.

    :raises Conflict: one has.
    """
    progress = Progress(f"watching whether a service of installation {installation} works here")

    def sleep(seconds: float) -> None:
        time.sleep(seconds)
        progress.beat()

    try:
        holder.wait(container, control, sleep)
    finally:
        progress.abandon()


def _parts(key: str) -> dict[str, str]:
    """Return whose an object is, by its key."""
    from backupfw import naming

    names = ("installation_id", "project_id", "volume_id", "backup_id")
    return dict(zip(names, map(naming.key_part_text, key.split("/")[:4]), strict=True))


def _record(key: str, result: str, **values: Any) -> dict[str, Any]:
    return {
        **_parts(key),
        "result": result,
        "status": None,
        "problem": None,
        "objects": 0,
        "key": key,
        **values,
    }


def _entered(entered: Any, one: FoundManifest) -> dict[str, Any]:
    found = entered.found
    result, problem = entered.result, found.problem
    if result == "entered":
        if problem is not None:
            result = DAMAGED
        elif found.is_sealed:
            result, problem = SEALED, one.problem
        elif entered.is_copy and not entered.is_other:
            result = COPY
        elif entered.is_other:
            result = MADE_AGAIN
    status = None if result == "known" else "error" if found.problem is not None else "available"
    return _record(
        one.key,
        result,
        backup_id=entered.backup_id,
        status=status,
        problem=problem,
        objects=found.facts.object_count,
    )

"""The data keys of backups: found where they are kept, unwrapped by the key store, and made when needed."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import TYPE_CHECKING

from oslo_log import log

from backupfw import crash_points
from backupfw.chunkstore.base import Body
from backupfw.chunkstore.errors import ChunkStoreError
from backupfw.conf import keys as conf_keys
from backupfw.engine import objects, removal
from backupfw.engine.candidates import Candidate, in_order
from backupfw.engine.format import keys
from backupfw.engine.format.binary import BadBytes
from backupfw.engine.format.key_object import WrappedKey, read_key, secret_of
from backupfw.engine.format.manifest import read_head
from backupfw.engine.format.sealing import DataKey, FindKey
from backupfw.engine.ports import Control, KnownManifests
from backupfw.errors import ConfigError, Damaged, DataKeyMissing, UnsupportedFormat
from backupfw.keys.errors import KeyStoreUnavailable, ProjectKeyMissing, UnwrapRefused
from backupfw.manager import rows
from backupfw.manager.usecases.keys import KeyManager
from backupfw.worker.keys import open_keys

if TYPE_CHECKING:
    from datetime import datetime

    from oslo_config import cfg

    from backupfw.chunkstore.container import Container
    from backupfw.engine.format.manifest import ManifestHead
    from backupfw.keys.base import KeyStore
    from backupfw.manager.outcomes.deleting import ReleasePlan
    from backupfw.manager.outcomes.making import KeyPlace

LOG = log.getLogger(__name__)


class KeyStoreDown(KeyStoreUnavailable):
    """The key store does not answer, and has not answered for some time.

    :param error: what it was.
    :param seconds: how long that is.
    """

    def __init__(self, error: KeyStoreUnavailable, seconds: float) -> None:
        super().__init__(error.reason, key_id=error.key_id)
        self.seconds = seconds


def stored_key(row: rows.DataKey) -> WrappedKey:
    """Return a data key of the database as it is kept in the store."""
    object_key = keys.data_key_key(_prefix(row), row.id)
    return WrappedKey(object_key, row.mac_id, row.algorithm, row.project_key_id, row.wrapped)


def put_as_recorded(catalogue: KeyManager, container: Container, key_id: str) -> None:
    """Put a wrapped data key as the database has it, and again if another project key wraps it meanwhile.

    So the store never keeps an older wrapping, whose project key may be destroyed.

    :raises ChunkStoreError: the store does not do it.
    """
    put = None
    while (row := catalogue.data_key(key_id)) is not None and row != put:
        stored = stored_key(row)
        _put(container, stored)
        put = row


def _put(container: Container, wrapped: WrappedKey) -> None:
    """Put a wrapped data key, locked at least as long as what it replaces: backups rely on that lock.

    Somebody who may delete the new wrapping brings the older one back, whose project key may be destroyed.
    """
    until = None
    with suppress(ChunkStoreError):
        until = container.locked_until(wrapped.object_key)
    container.locking_anew(until).put(wrapped.object_key, Body.from_bytes(wrapped.encode()))


def _prefix(row: rows.DataKey) -> str:
    return keys.volume_prefix(row.installation_id, row.project_id, row.volume_id)


class DataKeys:
    """Finds and makes data keys.  Thread-safe; one per process, and :meth:`close` when nothing uses it.

    :param algorithm: of new data keys.
    """

    def __init__(self, catalogue: KeyManager, key_store: KeyStore | None, algorithm: str) -> None:
        self._catalogue = catalogue
        self._key_store = key_store
        self._algorithm = algorithm
        self._down_since: float | None = None

    @classmethod
    def of(cls, conf: cfg.ConfigOpts, catalogue: KeyManager) -> DataKeys:
        """Return those of a configuration, which may have no key store.

        :raises ConfigError: the key store cannot be loaded, or refuses its options.
        """
        key_store = open_keys(conf) if conf_keys.is_set_up(conf) else None
        return cls(catalogue, key_store, conf[conf_keys.GROUP].algorithm)

    def close(self) -> None:
        """Close the key store."""
        if self._key_store is not None:
            self._key_store.close()

    def finder(self, container: Container, manifest_key: str) -> FindKey:
        """Return what finds the data keys of a manifest and of all that it shares with, for one operation.

        What it returns is thread-safe, and raises DataKeyMissing, KeyStoreDown, ChunkStoreError, Damaged or
        UnsupportedFormat.

        :param container: where the manifest is.
        :param manifest_key: its key, or the prefix of its volume.
        """
        prefix = keys.volume_prefix_of(manifest_key)
        found: dict[str, DataKey] = {}

        def find(key_id: str) -> DataKey:
            if key_id not in found:
                found[key_id] = self._find(container, prefix, key_id)
            return found[key_id]

        return find

    def for_new(self, place: KeyPlace, container: Container) -> DataKey:
        """Return the data key of a new backup: the newest of its volume, or a new one.

        A new one is made if there was none, if the algorithm has changed, or if the project's key is younger.
        It makes the same digests as the one before, unless that cannot be used any more.  It is only in the
        database yet: see :meth:`keep`.

        :raises KeyStoreError: the key store does not do it.
        :raises ChunkStoreError: the store does not answer.
        """
        project_key_id, since = self._project_key(place.project_id)
        newest = self._catalogue.newest_data_key(
            place.store, place.container, place.project_id, place.volume_id
        )
        before = None
        if newest is not None:
            with suppress(DataKeyMissing):
                before = self._find(container, _prefix(newest), newest.id)
                assert newest.created_at is not None
                if before.algorithm == self._algorithm and newest.created_at >= since:
                    return before
        made = DataKey.new(self._algorithm, before)
        row = rows.DataKey(
            id=made.id,
            mac_id=made.mac_id,
            project_id=place.project_id,
            volume_id=place.volume_id,
            installation_id=place.installation_id,
            store=place.store,
            container=place.container,
            algorithm=made.algorithm,
            project_key_id=project_key_id,
            wrapped=b"",
        )
        with self._asking() as key_store:
            wrapped = key_store.wrap(project_key_id, secret_of(made), stored_key(row).context)
        self._catalogue.add_data_key(replace(row, wrapped=wrapped))
        crash_points.reach("key.recorded")
        return made

    def of_lineage(self, container: Container, head: ManifestHead) -> tuple[rows.DataKey, ...]:
        """Return the data keys that a stored manifest and all that it shares with need, for the database.

        :param head: what the manifest says.
        :raises KeyStoreDown: the key store does not answer.
        :raises ChunkStoreError: the store does not answer.
        """
        origin = head.origin
        prefix = keys.volume_prefix(origin.installation, origin.project, origin.volume)
        found = []
        for one in container.list(keys.data_keys_prefix(prefix)) if head.key_id is not None else ():
            # A key of other backups, or that nobody can unwrap, is none of theirs.
            with suppress(Damaged, DataKeyMissing, UnsupportedFormat):
                wrapped = read_key(container, one.key)
                if wrapped.mac_id == head.mac_id:
                    self._unwrapped(wrapped, container)
                    found.append(
                        rows.DataKey(
                            id=wrapped.id,
                            mac_id=wrapped.mac_id,
                            project_id=origin.project,
                            volume_id=origin.volume,
                            installation_id=origin.installation,
                            store=container.store.name,
                            container=container.name,
                            algorithm=wrapped.algorithm,
                            project_key_id=wrapped.project_key_id,
                            wrapped=wrapped.wrapped,
                        )
                    )
        return tuple(found)

    def keep(self, container: Container, key_id: str) -> None:
        """Make sure that a data key is in the store, beside the backups that need it.

        Called when the manifest's row names the data key, so that nobody removes it any more; and before
        anything is stored that needs it.

        :raises ChunkStoreError: the store does not do it.
        """
        row = self._catalogue.data_key(key_id)
        if row is None:
            return
        if objects.is_missing(container, stored_key(row).object_key):
            put_as_recorded(self._catalogue, container, key_id)
            crash_points.reach("key.put")

    def mend(self, container: Container, manifest_key: str, needed: Collection[str]) -> dict[str, str]:
        """Read the data keys of a volume in a container; what is missing or damaged is put as it is recorded.

        :param manifest_key: the key of one of its manifests.
        :param needed: ids of data keys that must be there.
        :returns: what was wrong, by the object's key.
        :raises ChunkStoreError: the store does not answer.
        """
        prefix = keys.volume_prefix_of(manifest_key)
        listed = [
            one.key for one in container.list(keys.data_keys_prefix(prefix)) if keys.is_data_key(one.key)
        ]
        wrong = {}
        for object_key in dict.fromkeys((*listed, *(keys.data_key_key(prefix, one) for one in needed))):
            key_id = object_key.rpartition("/")[2]
            try:
                read_key(container, object_key)
            except (Damaged, DataKeyMissing) as error:
                if self._catalogue.data_key(key_id) is not None:
                    wrong[object_key] = str(error)
                    put_as_recorded(self._catalogue, container, key_id)
            except UnsupportedFormat as error:
                LOG.warning("%s in store %s cannot be verified: %s", object_key, container.store.name, error)
        return wrong

    def copy(self, source: Container, target: Container, manifest_key: str) -> None:
        """Put the data keys that a manifest and all that it shares with need into another container.

        They are copied as they are wrapped; ``backupfw keys rewrap`` wraps them again in both, because the
        manifest's row in the target is there already.

        :raises DataKeyMissing: its own data key is not in the source.
        :raises Damaged: it cannot be read.
        :raises ChunkStoreError: a store does not do it.
        """
        head = read_head(source, manifest_key)
        if head.key_id is None:
            return
        prefix = keys.volume_prefix_of(manifest_key)
        own = keys.data_key_key(prefix, head.key_id)
        others = [one.key for one in source.list(keys.data_keys_prefix(prefix)) if keys.is_data_key(one.key)]
        for object_key in dict.fromkeys((own, *others)):
            try:
                found = read_key(source, object_key)
            except (Damaged, DataKeyMissing, UnsupportedFormat):
                if object_key == own:
                    raise
                # A key that nobody can read is none that this backup needs.
                continue
            if found.mac_id == head.mac_id:
                self._put_copy(source, target, found)
        crash_points.reach("key.put")

    @staticmethod
    def _put_copy(source: Container, target: Container, found: WrappedKey) -> None:
        while True:
            _put(target, found)
            # It may have been wrapped again meanwhile.
            now = read_key(source, found.object_key)
            if now == found:
                return
            found = now

    def forget(self, plan: ReleasePlan, container: Container, control: Control) -> None:
        """Remove the data keys of a volume when its last encrypted manifest in a container is going.

        They stay if the store has a manifest that the database does not know: it may need one.  It can be run
        again after a kill: the objects are listed, because their rows may be gone.

        :param plan: how the manifest was removed.
        :raises ListingBehind: a listing proves nothing yet.
        :raises ChunkStoreError: the store does not do it; data keys may stay there.
        """
        if not self._catalogue.is_last_encrypted(plan.manifest_id):
            return
        removal.check_settled(container)
        prefix = keys.volume_prefix(plan.installation_id, plan.project_id, plan.volume_id)
        if removal.unknown_manifests(prefix, KnownManifests((), plan.known_keys), container, control):
            return
        # Listed before the database decides: a backup that begins records its manifest before it puts a key.
        listed = [
            Candidate(-1, one.key, one.size)
            for one in container.list(keys.data_keys_prefix(prefix))
            if keys.is_data_key(one.key)
        ]
        dropped = self._catalogue.drop_data_keys(plan.manifest_id)
        if dropped is None:
            return
        crash_points.reach("keys.dropped")
        unlisted = [Candidate(-1, stored_key(row).object_key, 0) for row in dropped]
        with in_order(listed + unlisted) as gone:
            removal.delete_all(removal.Doomed(gone), container, control)

    def _project_key(self, project_id: str) -> tuple[str, datetime]:
        """Return the current key of a project and since when it is that, made if there is none."""
        while (current := self._catalogue.current_since(project_id)) is None:
            with self._asking() as key_store:
                made = key_store.create(project_id)
            crash_points.reach("key.made")
            if self._catalogue.add_project_key(project_id, made) != made:
                with self._asking() as key_store:
                    key_store.destroy(made)
        return current

    def _find(self, container: Container, prefix: str, key_id: str) -> DataKey:
        """Return a data key: as the database has it, else as the store has it."""
        row = self._catalogue.data_key(key_id)
        if row is not None:
            # An older copy of the database may name a project key that is no more.
            with suppress(DataKeyMissing):
                return self._unwrapped(stored_key(row), container)
        return self._unwrapped(read_key(container, keys.data_key_key(prefix, key_id)), container)

    def _unwrapped(self, wrapped: WrappedKey, container: Container) -> DataKey:
        if self._key_store is None:
            raise DataKeyMissing(wrapped.id, "this service has no key store")
        try:
            with self._asking() as key_store:
                secret = key_store.unwrap(wrapped.project_key_id, wrapped.wrapped, wrapped.context)
        except (ProjectKeyMissing, UnwrapRefused) as error:
            raise DataKeyMissing(wrapped.id, str(error)) from error
        try:
            return wrapped.unwrapped(secret)
        except BadBytes as error:
            raise objects.damaged(container, wrapped.object_key, str(error)) from error

    @contextmanager
    def _asking(self) -> Iterator[KeyStore]:
        """Lend the key store, and note since when it does not answer.

        :raises KeyStoreDown: it does not.
        :raises ConfigError: there is none.
        """
        if self._key_store is None:
            raise ConfigError("section [keys], option driver: needs a value, because backups are encrypted")
        try:
            yield self._key_store
        except KeyStoreUnavailable as error:
            # Another thread may get an answer meanwhile, and set it to None.
            since = self._down_since or time.monotonic()
            self._down_since = since
            raise KeyStoreDown(error, time.monotonic() - since) from error
        self._down_since = None

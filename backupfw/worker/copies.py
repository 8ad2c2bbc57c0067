"""Reading a backup that is in several stores: what is damaged in one is read from another, and repaired.

The objects of a backup have the same keys in every container, so an object that is missing or wrong in one is
put there again as it is in another: by the engine that makes copies, which puts what a container lacks.  What
is put over an object was verified with the backup's keys, because the object may be damaged in part only.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self, TypeVar

from oslo_log import log

from backupfw import moments
from backupfw.chunkstore.errors import ChunkStoreError
from backupfw.engine import copying, verify
from backupfw.engine.format import keys
from backupfw.errors import Damaged, InvalidBackup, InvalidInput
from backupfw.worker import stored
from backupfw.worker.damaged_objects import mark_sharers
from backupfw.worker.reasons import may_pass

if TYPE_CHECKING:
    from backupfw.chunkstore.container import Container
    from backupfw.engine.ports import Control
    from backupfw.manager.outcomes.backups import BackupTasks
    from backupfw.manager.rows import Place
    from backupfw.worker.data_keys import DataKeys
    from backupfw.worker.stored import Found, Stored
    from backupfw.worker.stores import Stores

LOG = log.getLogger(__name__)

T = TypeVar("T")


class _Silent:
    """A control without progress: a repair is no part of what is being done."""

    def __init__(self, control: Control) -> None:
        self.check = control.check
        self.may_write = control.may_write

    def progress(self, done: int, total: int) -> None:
        """Do nothing."""


@dataclass(frozen=True, slots=True)
class Repaired:
    """What a repair did in one place.

    :ivar damaged: how many objects were missing or damaged.
    :ivar left: how many of them still are, because no other place has them whole.
    """

    place: Place
    damaged: int
    left: int


class Opened:
    """The data of a backup in its places, each opened once; a context manager.

    :param found: the backup in its own store.
    """

    def __init__(self, stores: Stores, data_keys: DataKeys, found: Found, control: Control) -> None:
        self._stores = stores
        self._data_keys = data_keys
        self._found = found
        self._control = control
        self._stack = ExitStack()
        self._known: dict[Place, Stored] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stack.close()

    def at(self, place: Place) -> Stored:
        """Return the data in a place.

        :raises ChunkStoreError: the store cannot be opened.
        """
        if place not in self._known:
            found = _At(self._found, place)
            opened = stored.opened(self._stores, self._data_keys, found, self._control)
            self._known[place] = self._stack.enter_context(opened)
        return self._known[place]


class _At:
    """A backup in one of its places."""

    def __init__(self, found: Found, place: Place) -> None:
        self.store, self.container = place.store, place.container
        self.key, self.links, self.encrypted = found.key, found.links, found.encrypted


class Copies:
    """The places of one backup.  Not thread-safe.

    :param key: of its manifest, in all places.
    :param places: in the order in which they are read.
    :param streams: segments that a repair works on at once.
    """

    def __init__(
        self,
        backups: BackupTasks,
        stores: Stores,
        data_keys: DataKeys,
        key: str,
        places: Sequence[Place],
        streams: int,
    ) -> None:
        self._listed = backups.damaged_objects
        self._backups = backups
        self._stores = stores
        self._data_keys = data_keys
        self._key = key
        self._places = places
        self._streams = streams

    def read(self, work: Callable[[Place], T], control: Control) -> T:
        """Do something that reads the backup, in the first place where that succeeds.

        An object that is found damaged is recorded, put again from another place, and ``work`` is called
        again.  If that cannot be done, or the store does not answer, or refuses to, the next place is read.

        :param work: is called any number of times.
        :raises Damaged: an object is damaged in every place.
        :raises ChunkStoreError: a store cannot be read, and no other place has the backup whole.
        """
        errors: list[Exception] = []
        for place in self._places:
            try:
                return self._mended(place, work, control)
            except (Damaged, ChunkStoreError, InvalidInput) as error:
                if isinstance(error, ChunkStoreError) and error.store not in ("", place.store):
                    # Of the store that is written, which no other place changes.
                    raise
                LOG.warning("The backup cannot be read from store %s: %s", place.store, error)
                errors.append(error)
        # One that may pass first: the task is tried again.
        raise next((one for one in errors if may_pass(one)), errors[0])

    def _mended(self, place: Place, work: Callable[[Place], T], control: Control) -> T:
        repaired: set[str] = set()
        while True:
            try:
                return work(place)
            except Damaged as error:
                container = self._stores.container(place.store, place.container)
                if not self._record(place, container, error, control):
                    # It is being removed there, or was: what is missing is not to come back.
                    raise
                # A data key is none of the objects that a manifest names.  And an object that is damaged
                # again at once is not put without end.
                if keys.parse(error.key) is None or error.key in repaired:
                    raise
                if not self.put_again(place, container, {error.key}, control):
                    raise
                repaired.add(error.key)

    def mend(self, place: Place, control: Control) -> None:
        """Put again what is known to be damaged of the backup in one place, and its manifest if it is.

        What no other place has whole stays as it is; nothing but the manifest is read to find damage.

        :raises UnsupportedFormat: it is of a version not known here.
        :raises ChunkStoreError: the place's store does not answer.
        """
        container = self._stores.container(place.store, place.container)
        listed = self._listed.keys(place.store, place.container, keys.volume_prefix_of(self._key))
        try:
            damaged = verify.named(self._key, {*listed, self._key}, container, control)
            damaged -= {self._key} - listed
        except Damaged as error:
            self._record(place, container, error, control)
            damaged = {error.key}
        if damaged:
            self.put_again(place, container, damaged, control)

    def repair(self, control: Control, *, encrypted: bool) -> list[Repaired]:
        """Verify the backup in every place, and repair each from the others.

        :param encrypted: the database says that it is encrypted.
        :returns: what was found, place by place.
        :raises InvalidBackup: the backup was deleted meanwhile.
        :raises ChunkStoreError: a store does not answer; what was repaired stays so.
        """
        return [self._repaired(place, control, encrypted) for place in self._places]

    def _repaired(self, place: Place, control: Control, encrypted: bool) -> Repaired:
        container = self._stores.container(place.store, place.container)

        def look() -> set[str]:
            found: set[str] = set()

            def damaged(key: str, reason: str) -> None:
                found.add(key)
                if not self._listed.record(place.store, place.container, key, reason, place.manifest_id):
                    raise InvalidBackup("The backup was deleted meanwhile.")

            verify.run(
                self._key,
                container,
                control,
                damaged,
                streams=self._streams,
                find_key=self._data_keys.finder(container, self._key),
                encrypted=encrypted,
            )
            if found:
                mark_sharers(self._backups, container, place.manifest_id, found, control)
            return found

        found = look()
        seen = set(found)
        # More than once, because a manifest that cannot be read hides all else.
        while found:
            self.put_again(place, container, found, control)
            before, found = found, look()
            seen |= found
            if found >= before:
                break
        return Repaired(place, len(seen), len(found))

    def _record(self, place: Place, container: Container, error: Damaged, control: Control) -> bool:
        """Put an object on the list: the next incremental stores its blocks anew.

        One of Cinder's format may be in another container of the store.

        :returns: False: nothing was recorded, because the backup is being removed in this place.
        """
        if not self._listed.record(place.store, error.container, error.key, error.reason, place.manifest_id):
            return False
        mark_sharers(self._backups, container, place.manifest_id, {error.key}, control)
        return True

    def put_again(
        self,
        place: Place,
        container: Container,
        damaged: set[str],
        control: Control,
    ) -> bool:
        """Put what is damaged in one place as others have it, and what is missing there; whether all was put.

        :param container: of the place.
        :param damaged: keys of objects that are on the list.

        A place that has not all of it may have some: then each object is looked for by itself.
        """
        if self._put_from_one(place, container, damaged, None, control):
            return True
        put = [
            self._put_from_one(place, container, {key}, frozenset((key,)), control) for key in sorted(damaged)
        ]
        return all(put)

    def _put_from_one(
        self,
        place: Place,
        container: Container,
        damaged: set[str],
        only: Collection[str] | None,
        control: Control,
    ) -> bool:
        until = None if place.locked_until is None else moments.aware(place.locked_until)
        for other in self._places:
            if other == place:
                continue
            try:
                source = self._stores.container(other.store, other.container)
                copying.run(
                    self._key,
                    source,
                    # Also if the rule is shorter now than when the manifest was locked.
                    container.locking_anew(until),
                    _Silent(control),
                    damaged=damaged,
                    only=only,
                    streams=self._streams,
                    find_key=self._data_keys.finder(source, self._key),
                    # What it names may be locked no longer.
                    manifest_until=until,
                )
            except Damaged as error:
                if (error.store, error.container) == (other.store, other.container):
                    self._record(other, source, error, control)
            except (ChunkStoreError, InvalidInput) as error:
                LOG.warning("Store %s is not repaired from %s: %s", place.store, other.store, error)
            else:
                self._listed.repaired(place.store, place.container, damaged)
                LOG.warning("What was damaged in store %s was put again from %s", place.store, other.store)
                return True
        return False

"""The reference store: objects in a dictionary.  Driver authors read this one first.

It keeps every guarantee of :mod:`backupfw.chunkstore.base` in the plainest way and is the model the
conformance suite compares other stores with.  For tests and trials: its objects end with the process.
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, ClassVar

from backupfw.chunkstore.base import Body, Capabilities, CheckReport, ChunkStore, ObjectInfo
from backupfw.chunkstore.checks import round_trip
from backupfw.chunkstore.errors import (
    AlreadyExists,
    ChunkStoreError,
    DeleteFailed,
    IntegrityError,
    NotFound,
    RangeError,
    Retained,
)

#: Container name -> key -> bytes.
Contents = dict[str, dict[str, bytes]]
#: Container name, key -> until when the object is locked.
Locks = dict[tuple[str, str], datetime]


def _now() -> datetime:
    return datetime.now(UTC)


class MemoryStore(ChunkStore):
    """A store in memory.  Every method is atomic under one lock.

    :param contents: what the store holds; given to several instances it is shared by them, and whoever
        holds it sees and changes the objects without the driver.  None makes an own, empty one.
    :param locks: the same for the locks of objects.
    :param now: the clock that ends locks, with a time zone.
    """

    wire_name = "backupfw.chunkstore.memory.MemoryStore"
    # No call can hang, so no thread has to watch it.
    layer_defaults: ClassVar[Mapping[str, object]] = {"operation_timeout": 0.0}
    object_lock = True

    # One lock for all instances, because instances may share contents.
    _lock = threading.Lock()

    def __init__(
        self,
        name: str,
        options: Any = None,
        contents: Contents | None = None,
        locks: Locks | None = None,
        now: Callable[[], datetime] = _now,
    ) -> None:
        super().__init__(name, options)
        self.contents: Contents = {} if contents is None else contents
        self.locks: Locks = {} if locks is None else locks
        self._now = now
        self._closed = False

    @property
    def capabilities(self) -> Capabilities:
        """Everything, and ranges are never cheaper to join."""
        return Capabilities(if_absent=True, bulk_delete=1000, join_gap=0)

    def put(self, container: str, key: str, body: Body, *, if_absent: bool = False) -> None:
        """Store the body (see :meth:`ChunkStore.put`)."""
        # Everything that can fail comes before the one assignment that makes the object visible (G4).
        data = body.to_bytes()
        problem = Body(data, body.length, body.checksum).problem()
        if problem:
            raise IntegrityError(problem, store=self.name, container=container, key=key)
        with self._lock:
            objects = self._objects(container)
            if if_absent and key in objects:
                raise AlreadyExists("an object is there", store=self.name, container=container, key=key)
            objects[key] = data
            if body.locked_until is not None:
                self._lock_key(container, key, body.locked_until)

    def get(self, container: str, key: str, offset: int | None = None, length: int | None = None) -> bytes:
        """Return the object or a range of it (see :meth:`ChunkStore.get`)."""
        with self._lock:
            data = self._objects(container).get(key)
        if data is None:
            raise NotFound("no such object", store=self.name, container=container, key=key)
        if offset is None or length is None:
            return data
        if offset + length > len(data):
            raise RangeError(
                f"bytes {offset}+{length} of {len(data)}", store=self.name, container=container, key=key
            )
        return data[offset : offset + length]

    def list(self, container: str, prefix: str = "", start_after: str = "") -> Iterator[ObjectInfo]:
        """Yield the objects as they were at the first step (see :meth:`ChunkStore.list`)."""
        with self._lock:
            found = [
                ObjectInfo(key, len(data))
                for key, data in self._objects(container).items()
                if key.startswith(prefix) and key > start_after
            ]
        # Python compares text by code points, which is the order of UTF-8 bytes.
        yield from sorted(found, key=lambda info: info.key)

    def delete(self, container: str, keys: Sequence[str]) -> None:
        """Delete the keys (see :meth:`ChunkStore.delete`)."""
        with self._lock:
            self._require_open()
            objects = self.contents.get(container, {})
            kept: dict[str, ChunkStoreError] = {}
            for key in keys:
                if key in objects and (until := self._end_of_lock(container, key)) is not None:
                    reason = f"it is locked until {until:%Y-%m-%d %H:%M} UTC"
                    where = {"store": self.name, "container": container, "key": key}
                    kept[key] = Retained(reason, until=until, **where)
                    continue
                objects.pop(key, None)
        if kept:
            raise DeleteFailed(kept, store=self.name, container=container)

    def lock(self, container: str, key: str, until: datetime) -> None:
        """Lock an object (see :meth:`ChunkStore.lock`)."""
        with self._lock:
            self._require(container, key)
            self._lock_key(container, key, until)

    def locked_until(self, container: str, key: str) -> datetime | None:
        """Return when the lock ends (see :meth:`ChunkStore.locked_until`)."""
        with self._lock:
            self._require(container, key)
            return self._end_of_lock(container, key)

    def _lock_key(self, container: str, key: str, until: datetime) -> None:
        self.locks[container, key] = max(until, self.locks.get((container, key), until))

    def _end_of_lock(self, container: str, key: str) -> datetime | None:
        until = self.locks.get((container, key))
        return until if until is not None and until > self._now() else None

    def _require(self, container: str, key: str) -> None:
        if key not in self._objects(container):
            raise NotFound("no such object", store=self.name, container=container, key=key)

    def ensure_container(self, container: str) -> None:
        """Make the container unless it is there."""
        with self._lock:
            self._require_open()
            self.contents.setdefault(container, {})

    def list_containers(self) -> Iterator[str]:
        """Yield the containers' names, sorted."""
        with self._lock:
            self._require_open()
            names = sorted(self.contents)
        yield from names

    def check(self) -> CheckReport:
        """Try a round trip in a container that is forgotten afterwards."""
        container = f"backupfw-check-{secrets.token_hex(8)}"
        with self._lock:
            self.contents[container] = {}
        try:
            return CheckReport(round_trip(self, container))
        finally:
            with self._lock:
                del self.contents[container]

    def close(self) -> None:
        """Refuse every further call; other instances keep the contents."""
        self._closed = True

    def _require_open(self) -> None:
        if self._closed:
            raise ChunkStoreError("the store is closed", store=self.name)

    def _objects(self, container: str) -> dict[str, bytes]:
        self._require_open()
        objects = self.contents.get(container)
        if objects is None:
            raise NotFound("no such container", store=self.name, container=container)
        return objects

"""The driver boundary: what a chunk store promises.  The only thing a driver needs to read.

A chunk store keeps immutable objects (bytes under a key) in containers.  The guarantees, each with
the test of the conformance suite that shows it (``backupfw.testing.chunkstore``):

G1   put then get returns the same bytes, 0 bytes included.
G2   get of a missing key or container raises NotFound, never returns None or nothing.
G3   delete of a missing key succeeds; so does deleting twice.
G4   a failed put leaves nothing visible under a new key and the old object under an old one.
G5   put is atomic and verified end to end: bytes that differ from the declared length or checksum
     are refused with IntegrityError.
G6   put over an existing key replaces it atomically: a reader sees the old bytes or the new ones.
G7   with ``if_absent`` (capability) put over an existing key raises AlreadyExists, changing nothing.
G8   a whole get is verified against what the store says of the object; a short one is an error.
G9   a range reaching past the end raises RangeError, never short data.
G10  list is complete (pages are hidden) and lazy, sorted by key's UTF-8 bytes or declared unsorted;
     the prefix is a raw string, not a folder.  It may lag behind puts and deletes only where
     ``Capabilities.listing_lag`` says so.
G11  delete takes any number of keys; those that remain are named in DeleteFailed.  A delete that did not
     reach the store raises Unavailable, or DeleteFailed that names every key with it.
G12  keys and container names were validated by core before; a driver stores them as they are.
G13  one instance may be used from many threads at once.
G14  ensure_container is idempotent; a container that is there already, with objects, stays as it is.
     remove_container never removes one that holds an object.
G15  credentials never stand in repr, log lines or errors.
G16  memory of a call is bounded by the object's (or range's) size.
G17  drivers never retry; errors say whether they are temporary.
G18  close is idempotent; using a closed store raises ChunkStoreError, it does not hang.
G19  what succeeds is silent: nothing on standard output and error, no log line at WARNING or above, and
     no library's logger has a lower level than the service gave it.
G20  where the class says ``object_lock``: an object that was put with ``Body.locked_until``, or was locked
     later, stays until then.  Delete and erase raise Retained for it, or DeleteFailed with Retained, with the
     date.  ``lock`` never makes a lock end earlier.

No guarantee but G20 depends on a clock, and that one on the store's.  Bodies and answers are
``bytes``-like, no streaming: objects of the backup format are a few MiB, only a manifest can be larger, and
it is put from a file.
"""

from __future__ import annotations

import abc
import io
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any, BinaryIO, ClassVar

from blake3 import blake3

from backupfw.chunkstore.errors import NotSupported

if TYPE_CHECKING:
    from oslo_config import cfg

#: Version of this contract.  The loader refuses a driver whose ``API_VERSION`` differs.
API_VERSION = 1

#: Buffers are sent and hashed in pieces of at most this many bytes.
PIECE_BYTES = 1 << 20


class Body:
    """The bytes of one object to put: of declared length and checksum, readable any number of times.

    Thread-safe.  A layer that retries opens it again; a driver reads it with :meth:`open`,
    :meth:`pieces` or :meth:`to_bytes`, and calls :meth:`problem` (or checks while sending) so that a
    source that changed or was cut is refused.

    The bytes may change while a put still runs: a put given up by a time limit goes on in its thread,
    and its caller uses the buffer again.  So a driver publishes only bytes it has verified itself: it
    checks and stores one copy (a piece at a time is enough), or sends a checksum computed in the pass
    that verified the bytes and the server refuses what does not match it.  Reading the body once to
    check it and once more to store it, with nothing that compares the two, is not enough.

    :ivar length: bytes, as declared by the producer.
    :ivar checksum: BLAKE3 of the bytes (32 bytes), as declared by the producer.
    :ivar locked_until: until when nobody may delete the object, with a time zone; None: no lock.  It is only
        set for a store whose class says ``object_lock`` (G20).
    """

    def __init__(
        self,
        source: bytes | bytearray | memoryview | BinaryIO,
        length: int,
        checksum: bytes,
        locked_until: datetime | None = None,
    ) -> None:
        self._source = source
        self.length = length
        self.checksum = checksum
        self.locked_until = locked_until

    @classmethod
    def from_bytes(cls, data: bytes | bytearray | memoryview) -> Body:
        """Declare ``data`` as it is now; the caller must not change it while it waits for the put."""
        return cls(data, len(data), blake3(data).digest())

    @classmethod
    def from_file(cls, file: BinaryIO) -> Body:
        """Declare the whole content of a seekable file with a descriptor (read once for the checksum)."""
        hasher = blake3()
        length = 0
        while piece := os.pread(file.fileno(), PIECE_BYTES, length):
            hasher.update(piece)
            length += len(piece)
        return cls(file, length, hasher.digest())

    def locked(self, until: datetime | None) -> Body:
        """Return the same body with a lock (see the class)."""
        return Body(self._source, self.length, self.checksum, until)

    def pieces(self) -> Iterator[memoryview]:
        """Yield the actual bytes, from the start, in pieces of at most :data:`PIECE_BYTES`."""
        view = self.buffer()
        if view is not None:
            for start in range(0, len(view), PIECE_BYTES):
                yield view[start : start + PIECE_BYTES]
            return
        source: Any = self._source
        offset = 0
        while piece := os.pread(source.fileno(), PIECE_BYTES, offset):
            yield memoryview(piece)
            offset += len(piece)

    def open(self) -> BinaryIO:
        """Return a new seekable binary file at position 0 over the actual bytes; the caller closes it."""
        if isinstance(self._source, (bytes, bytearray, memoryview)):
            return io.BytesIO(self._source)
        # A descriptor of its own keeps positions apart when several threads read.
        return open(f"/proc/self/fd/{self._source.fileno()}", "rb")

    def buffer(self) -> memoryview | None:
        """Return the actual bytes without copying them, or None when they are in a file."""
        if isinstance(self._source, (bytes, bytearray, memoryview)):
            return memoryview(self._source).cast("B")
        return None

    def to_bytes(self) -> bytes:
        """Return the actual bytes at once (costs their size in memory unless they are bytes already)."""
        if isinstance(self._source, bytes):
            return self._source
        return b"".join(self.pieces())

    def problem(self) -> str | None:
        """Read the actual bytes and say how they differ from what was declared, or None.

        Says nothing of what a later read yields (see the class).
        """
        hasher = blake3()
        length = 0
        for piece in self.pieces():
            hasher.update(piece)
            length += len(piece)
        if length != self.length:
            return f"the body has {length} bytes, {self.length} were declared"
        if hasher.digest() != self.checksum:
            return "the body's bytes do not match the declared checksum"
        return None


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """One entry of a listing.

    :ivar key: the object's key.
    :ivar size: its length in bytes.
    """

    key: str
    size: int


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a store can do beyond the guarantees, as a small record.

    :ivar if_absent: put can be made conditional on the key being absent (never relied upon for
        correctness: some stores let several racing writers win).
    :ivar bulk_delete: how many keys one delete request takes; 1 where there is no bulk request.  May fall
        to 1 while the store is open, when the server turns out to have none.
    :ivar listing_lag: listings may miss recent puts and show recent deletes.
    :ivar sorted_listing: listings come sorted by the key's UTF-8 bytes.
    :ivar join_gap: two ranges of one object that lie at most this many bytes apart are cheaper to read
        as one (latency times bandwidth of the store).
    """

    if_absent: bool = False
    bulk_delete: int = 1
    listing_lag: bool = False
    sorted_listing: bool = True
    join_gap: int = 1 << 20


@dataclass(frozen=True, slots=True)
class CheckItem:
    """One thing that :meth:`ChunkStore.check` looked at.

    :ivar name: what was tried, e.g. ``write``.
    :ivar ok: whether it worked.
    :ivar detail: what is missing, for the operator.
    :ivar warning: it works, but has an effect that few people want; the detail says which.
    """

    name: str
    ok: bool
    detail: str = ""
    warning: bool = False


@dataclass(frozen=True, slots=True)
class CheckReport:
    """The outcome of :meth:`ChunkStore.check`."""

    items: tuple[CheckItem, ...] = field(default=())

    @property
    def ok(self) -> bool:
        """Whether everything that was tried worked."""
        return all(item.ok for item in self.items)


class ChunkStore(abc.ABC):
    """A store of objects in containers; the module's docstring lists what it promises.

    A driver is a subclass named by an entry point of group ``backupfw.chunkstore``; the entry point's
    name is what deployers write as ``driver = …``.  All methods may be called from any thread.

    :param name: the configured store's name, for error messages.
    :param options: values of :meth:`options`, by name (oslo.config's group or any object with those
        attributes).
    """

    #: The contract version this driver was written for.
    API_VERSION: ClassVar[int] = API_VERSION
    #: ``backup_service`` in export records, e.g. ``cinder.backup.drivers.posix.PosixBackupDriver``.
    wire_name: ClassVar[str]
    #: Regular expression a container name must match as a whole in this store, beside core's rule.
    container_pattern: ClassVar[str] = r".+"
    #: Regular expression a key must match as a whole in this store, beside core's rule: for stores that
    #: cannot hold every key.  It must take backupfw's own keys, which consist of ``A-Z a-z 0-9 . _ - /``.
    key_pattern: ClassVar[str] = r".+"
    #: Defaults of layer options that fit this store better than the general ones, e.g. no timeout thread
    #: for a local directory: option name -> value.  What the deployer sets wins.
    layer_defaults: ClassVar[Mapping[str, object]] = {}
    #: Whether objects can be locked (G20): only then a store may have ``lock_days``, which core adds to the
    #: options that the driver gets, so that new containers can be made for locks.  A driver that says so has
    #: :meth:`lock` and :meth:`locked_until`; all others need not know of locks.
    object_lock: ClassVar[bool] = False

    def __init__(self, name: str, options: Any) -> None:  # noqa: ARG002  (for drivers that have any)
        self.name = name

    @classmethod
    def options(cls) -> Sequence[cfg.Opt]:
        """Return the driver's options; core registers them in ``[store:NAME]``."""
        return ()

    @property
    @abc.abstractmethod
    def capabilities(self) -> Capabilities:
        """What this store can do beyond the guarantees; constant but for a ``bulk_delete`` that falls."""

    @abc.abstractmethod
    def put(self, container: str, key: str, body: Body, *, if_absent: bool = False) -> None:
        """Store ``body`` under ``key`` (G1, G4, G5, G6, G7).

        :raises NotFound: the container is not there.
        :raises IntegrityError: the bytes are not what the body declares.
        :raises AlreadyExists: ``if_absent`` and the key is there.
        :raises NoSpace: the store is full.
        """

    @abc.abstractmethod
    def get(self, container: str, key: str, offset: int | None = None, length: int | None = None) -> bytes:
        """Return the whole object, or ``length`` bytes from ``offset`` (G2, G8, G9).

        Offset and length are given both or neither; ``length`` is at least 1.

        :raises NotFound: the object or container is not there.
        :raises RangeError: ``offset + length`` is past the object's end.
        """

    @abc.abstractmethod
    def list(self, container: str, prefix: str = "", start_after: str = "") -> Iterator[ObjectInfo]:
        """Yield every object whose key starts with ``prefix`` (G10).

        Objects put or deleted while the listing runs may or may not show.  Errors may come from the
        call or from the iterator.

        :param start_after: yield only keys that sort after this one: the retry layer goes on there after a
            fault in mid-listing.  Only given to stores that declare ``sorted_listing``.  If a server can
            continue only at its own markers, the driver reads from the beginning of the prefix again, and
            leaves out what does not sort after this key.

        :raises NotFound: the container is not there.
        """

    @abc.abstractmethod
    def delete(self, container: str, keys: Sequence[str]) -> None:
        """Delete all ``keys``; missing ones count as deleted (G3, G11).

        :raises DeleteFailed: some keys remain, or may remain, each with its error; all others are gone.
        :raises Unavailable: the store was not reached, so every key may remain.  DeleteFailed with this
            error for every key says the same.
        :raises NotFound: never; a missing container has no objects.
        """

    def erase(self, container: str, prefix: str) -> None:
        """Delete everything whose key begins with ``prefix``, older versions too where the store keeps them.

        Checks use it to delete the objects that they made.  The default is for stores without versions.

        :raises ChunkStoreError: something may remain, e.g. because these credentials may not delete
            versions.
        """
        self.delete(container, [info.key for info in self.list(container, prefix)])

    def lock(self, container: str, key: str, until: datetime) -> None:  # noqa: ARG002
        """Keep an object that is there until a moment, at least (G20).

        Succeeds if it is locked as long already.  Called for all that a new backup shares with older ones, so
        it should cost one request.

        :param until: with a time zone.
        :raises NotFound: the object or container is not there.
        :raises NotSupported: this store, or this container, has no locks.
        """
        raise NotSupported("the store has no locks", store=self.name, container=container, key=key)

    def locked_until(self, container: str, key: str) -> datetime | None:
        """Return until when an object is locked, with a time zone; None if it is not, or not any more.

        :raises NotFound: the object or container is not there.
        :raises NotSupported: as :meth:`lock`.
        """
        raise NotSupported("the store has no locks", store=self.name, container=container, key=key)

    def bring_back(
        self,
        container: str,
        before: datetime,  # noqa: ARG002
        wanted: Callable[[str], bool],  # noqa: ARG002
        *,
        dry_run: bool = False,  # noqa: ARG002
    ) -> Iterator[str]:
        """Bring back objects as they were at a moment, if the store keeps older versions; yield their keys.

        An object that was deleted or overwritten since is as before; one that was not there, or has not
        changed, is left alone.

        :param before: with a time zone.
        :param wanted: says whether an object with this key is to be brought back.
        :param dry_run: change nothing.
        :raises NotSupported: the store keeps no older versions.
        """
        raise NotSupported("the store keeps no older versions", store=self.name, container=container)

    def inspect(self, container: str) -> Sequence[CheckItem]:  # noqa: ARG002
        """Look at settings of a container that change what deletes do: versions, locks, retention.

        Such settings are made outside of backupfw.  An item with ``warning`` says what will happen and what
        can be done about it.  Never raises a ChunkStoreError.  The default is for stores without such
        settings.
        """
        return ()

    @abc.abstractmethod
    def ensure_container(self, container: str) -> None:
        """Make the container unless it is there (G14)."""

    def remove_container(self, container: str) -> bool:  # noqa: ARG002
        """Remove a container that is empty, where containers are names and no more, e.g. directories.

        The default is for stores whose containers have settings and owners: they stay.

        :returns: whether it was removed; False for one that holds anything, is not there, or stays.
        """
        return False

    @abc.abstractmethod
    def list_containers(self) -> Iterator[str]:
        """Yield the names of all containers of this store, sorted."""

    @abc.abstractmethod
    def check(self) -> CheckReport:
        """Prove that the store can be written, read, listed and deleted with these credentials.

        It leaves nothing behind, and never raises a ChunkStoreError: the report says what failed.  The
        settings of a container are not its subject, but that of :meth:`inspect`.
        """

    @abc.abstractmethod
    def close(self) -> None:
        """Give up connections and threads (G18)."""

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name}>"

"""The interface of volume providers, which read and write the blocks of volumes.

A provider makes, deletes, extends, snapshots, opens and fences volumes.  It has no statuses: the
catalogue has them (the ``volumes`` and ``snapshots`` rows of our database, or a foreign one:
:mod:`backupfw.volume.catalogue`).  Every operation is idempotent and named by ids,
because a task that was killed runs it again.

A backup reads a :class:`Point`: a volume or snapshot as it is at one moment.  A point may have a *token*,
which the backup's manifest keeps; the point of the next backup says what is the same as in the point with
that token, and the backup reads only the rest.  What a provider keeps in its storage for this (a
snapshot, a bitmap) is named by the point's id, and :meth:`VolumeProvider.keep_points` says which of it stays.

Every provider guarantees the following, as far as its :class:`Capabilities` go.  Each has tests of its name
in the conformance suite (``backupfw.testing.volume``):

* V1  A point reads any range, and never less of it than asked for.
* V2  Points and targets have the real length of the storage, any number of bytes.
* V3  A live point is the volume at one moment; another state has another identity, the same state the same.
* V4  Extents have neither gaps nor overlaps, and what is ``ZERO`` reads as zeros.
* V5  What is ``SAME`` did not change, whatever happened; nothing behind the old end is ``SAME``.
* V6  What is empty is ``ZERO``, and what is far from all changes is ``SAME``: not all is ``DATA``.
* V7  A token holds after every restart, and no other one does.
* V8  The same id leads to the same point, and is in the name of all that is kept for it.
* V9  ``close`` keeps what it shall keep, and nothing else; the first call decides.
* V10 ``keep_points`` keeps what is needed and removes everything else that is its own, and nothing more.
* V11 ``create`` and ``delete`` can be repeated; a new volume is zeros, a copy has the bytes of its source.
* V12 ``extend`` can be repeated, adds zeros, and never shrinks.
* V13 A snapshot never changes; its calls can be repeated.
* V14 Adopted storage is used as it is, and never deleted.
* V15 A target writes and zeros what it is told, durably after ``flush``.
* V16 A later attempt keeps every earlier writer out, even a frozen one.
* V17 Storage that is gone, shorter or another one is never used.
* V18 Whatever is killed or cancelled can be repeated, and leaves nothing that the next call does not remove.
* V19 Threads and processes may use the same volume at once.
* V20 No secret is shown, success is silent, and nothing open is left behind.

A provider is an entry point of group ``backupfw.volume``.  Providers are called by workers only; calls
may block for as long as the work takes and must call ``tick`` (where they get one) at least once a
second so that a cancelled task ends: it raises when the task must stop.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Self

from backupfw.errors import OperationNotSupported

if TYPE_CHECKING:
    from oslo_config import cfg

    from backupfw.volume.catalogue import Catalogue

#: Version of this contract; the loader refuses a provider with another one.
API_VERSION = 2

#: Longest token of a point, in characters.
MAX_TOKEN = 1024

#: Called by long operations; raises TaskStopped when the task must end.
Tick = Callable[[], None]


def no_tick() -> None:
    """Do nothing: for callers that cannot be cancelled."""


@dataclass(frozen=True, slots=True)
class Encryption:
    """What a foreign catalogue has encrypted the bytes of a volume with; this service has no such key.

    :ivar key_id: of the key in the catalogue's key manager.
    :ivar header: SHA-256, in hex, of the first :data:`HEADER` bytes, if they are a header of LUKS: a key
        that opens a volume with the same header opens these bytes, too.  None: they are not.
    """

    key_id: str
    header: str | None = None


#: How many bytes of an encrypted volume tell its key, and what they begin with: a header of LUKS has the
#: salts of all its passphrases in them, or a checksum of the rest that has them.
HEADER = 4096
LUKS = b"LUKS\xba\xbe"


@dataclass(frozen=True, slots=True)
class VolumeRef:
    """A volume as its provider knows it.

    :ivar id: the volume's UUID.
    :ivar length: bytes; for a volume that does not exist yet, its future length.
    :ivar location: what the provider's ``create`` or ``adopt`` returned (a path for ``local``);
        None for a volume that does not exist yet.
    :ivar adopted: the storage does not belong to the service: it is never deleted with the volume.
    :ivar storage_id: see :class:`Storage`; None if it was never recorded.
    :ivar project_id: whose it was when the operation was asked for; None: nobody knows.  Where volumes can
        get another owner without this service (in a foreign catalogue), the provider compares it after it
        has made a point or attached the volume, and raises StorageChanged if it differs: nobody reads or
        writes the bytes of another project.
    :ivar encryption: what the bytes are encrypted with that are read, as it was when the operation was asked
        for, or that will be written; None: they are not encrypted.  A provider whose catalogue encrypts
        volumes compares it, too, and raises InvalidVolume rather than make a backup or a volume that no key
        opens.
    """

    id: str
    length: int
    location: str | None = None
    adopted: bool = False
    storage_id: str | None = None
    project_id: str | None = None
    encryption: Encryption | None = None


@dataclass(frozen=True, slots=True)
class Storage:
    """The storage of a volume, as its provider found it.

    :ivar location: recorded in the catalogue, to find the storage again.
    :ivar length: its real length in bytes.
    :ivar storage_id: distinguishes this storage from any other at the same location, as text of at most 255
        characters; None if the provider cannot, or finds the storage by the volume's id.
    """

    location: str
    length: int
    storage_id: str | None = None


@dataclass(frozen=True, slots=True)
class SnapshotRef:
    """A snapshot as its provider knows it; fields as in :class:`VolumeRef`."""

    id: str
    volume: VolumeRef
    length: int
    location: str | None = None


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a provider can do; the service does the rest in another way, or refuses it.

    :ivar allocation: extents of kind ``ZERO`` say where a volume is empty.  Else all of it is read.
    :ivar changes: points have tokens, and extents of kind ``SAME`` say what did not change.  Else an
        incremental backup reads the whole volume.
    :ivar live: a point of a volume to which a program writes is that volume at one moment.  Else the
        service makes a temporary snapshot of such a volume (:meth:`VolumeProvider.create_snapshot`), and
        reads that.
    :ivar snapshots: ``create_snapshot`` works.
    :ivar writes: ``open_target`` works: a restore can write into an existing volume.
    :ivar fences: ``open_target`` keeps every earlier writer out, even a frozen one.  Else only the end of
        the earlier attempt's lease does.
    """

    allocation: bool = False
    changes: bool = False
    live: bool = False
    snapshots: bool = False
    writes: bool = False
    fences: bool = False


@dataclass(frozen=True, slots=True)
class Needed:
    """Which points of a volume are needed, by point id; a point may be in both.

    A provider removes the :meth:`unneeded` ones of those that it finds.

    :ivar compared: what a comparison with them needs stays, and nothing more: their backups are committed.
        It is one, but for a backup that is being made from an older one.
    :ivar read: all that is needed to open them again stays: their backups are being made.
    :ivar known: those that this service ever made; others stay.  They belong to another service with the same
        storage: one that has adopted it, too, or the original of a copied database.  None: all are known.
    """

    compared: frozenset[str] = frozenset()
    read: frozenset[str] = frozenset()
    known: frozenset[str] | None = None

    def unneeded(self, found: Iterable[str]) -> frozenset[str]:
        """Return which of these points can be removed."""
        mine = frozenset(found) if self.known is None else self.known.intersection(found)
        return mine - self.compared - self.read


class Kind(Enum):
    """What a point says about a range of its bytes."""

    #: Unknown or changed: it has to be read.
    DATA = "data"
    #: It reads as zeros.
    ZERO = "zero"
    #: It has the bytes of the point that it was compared with (which may be zeros).
    SAME = "same"


class Extent(NamedTuple):
    """A range of bytes of one kind; never empty."""

    offset: int
    length: int
    kind: Kind

    @property
    def end(self) -> int:
        """The offset behind it."""
        return self.offset + self.length


@dataclass(frozen=True, slots=True)
class Restored:
    """What belongs to the bytes of a volume that was restored.

    :ivar metadata: the volume's own; the target keeps its other keys.
    :ivar image_metadata: what is known of the image that the bytes were made of.
    """

    bootable: bool = False
    metadata: Mapping[str, str] = field(default_factory=dict)
    image_metadata: Mapping[str, str] = field(default_factory=dict)


class Point(abc.ABC):
    """A volume or snapshot as it is at one moment, open for reading.

    ``extents`` and ``read_into`` may be called from many threads.
    """

    #: Its real length in bytes: more than in the catalogue if the volume was extended outside the service.
    length: int
    #: See :class:`Storage`.
    storage_id: str | None = None
    #: The source identity: it changes whenever the bytes may have changed.  A resumed backup that finds
    #: another identity begins a new epoch.
    identity: str
    #: What a later point can be compared with: text of at most :data:`MAX_TOKEN` characters that names
    #: this state of this storage, and no other one ever.  It is in the manifest, so it must hold no secret.
    #: None: no point can be compared with this one.
    token: str | None = None

    def compare(self, since: str) -> str | None:  # noqa: ARG002
        """Get ready to say what is the same as in the point with the token ``since``.

        It is called once, before the first call of :meth:`extents` with that token.  The token comes from a
        manifest, and may be of any provider and storage, damaged, or made up: a provider refuses each token
        that it cannot prove to be of an earlier point of this same storage which it can still compare with.

        :returns: None: it can.  Otherwise the reason why not, for users: a few words that begin with a small
            letter, without a host, path or endpoint; the backup reads everything then.
        """
        return "this kind of volume does not record changes"

    def extents(self, start: int, end: int, since: str | None = None) -> Iterator[Extent]:  # noqa: ARG002
        """Say what there is within ``start … end``: extents in ascending order, without gaps.

        The first begins at ``start``, the last ends at ``end``, each begins where the one before ends.
        Two neighbours may be of the same kind.  An extent must never be wrong: ``ZERO`` and ``SAME`` are said
        only of bytes for which that is certain, everything else is ``DATA``.  Finding the next extent must
        not take longer because a ``ZERO`` or ``SAME`` one is long.

        :param start: 0 or more.
        :param end: more than ``start``, at most :attr:`length`.
        :param since: a token for which :meth:`compare` has returned None; None: no extent is ``SAME``.
            Bytes behind the end of the point with that token are never ``SAME``.
        """
        yield Extent(start, end - start, Kind.DATA)

    @abc.abstractmethod
    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill ``buffer`` from ``offset``, never less: SourceMoved if the point ended early, or OSError."""

    def check_still(self) -> None:  # noqa: B027  (optional)
        """Raise if the point is known to have changed since it was opened.

        It is called often while the point is read, and once at the end, so it must be cheap.

        :raises SourceMoved: it has changed, so the bytes that were read may be of two states.
        """

    def release_cache(self, offset: int, length: int) -> None:  # noqa: B027  (optional)
        """Let the host drop this range from its page cache."""

    @abc.abstractmethod
    def close(self, keep: bool = False) -> None:
        """End the reading; idempotent: the first call decides.

        :param keep: True: the backup made of it was committed, or another attempt will read it again: what
            the storage keeps under the point's id stays, until :meth:`VolumeProvider.keep_points` decides.
            False: that goes now.  Without effect on a point of a snapshot of the catalogue.
        """

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


class BlockTarget(abc.ABC):
    """An opened volume to write to.  ``write`` and ``zero`` may be called from many threads."""

    #: Its real length in bytes, at least that in the catalogue.
    length: int
    #: See :class:`Storage`.
    storage_id: str | None = None
    #: Whether all bytes that were not written since the volume was made are known to read as zeros.
    reads_zero: bool
    #: Whether each byte must be written at most once.
    takes_once: bool = False

    @abc.abstractmethod
    def write(self, offset: int, buffers: Sequence[bytes | memoryview]) -> None:
        """Write the buffers one after the other from ``offset``, all of them, or raise OSError."""

    def write_runs(self, runs: Sequence[tuple[int, Sequence[bytes | memoryview]]]) -> None:
        """Write several runs, each as :meth:`write` does; a target may do this faster."""
        for offset, buffers in runs:
            self.write(offset, buffers)

    @abc.abstractmethod
    def zero(self, offset: int, length: int) -> None:
        """Make the range read as zeros: as a hole if the storage can, else by writing zeros."""

    def read_into(self, offset: int, buffer: memoryview) -> None:  # noqa: ARG002
        """Fill ``buffer`` from ``offset``; needed only where a catalogue encrypts volumes."""
        raise OperationNotSupported("This target cannot be read.")

    @abc.abstractmethod
    def flush(self) -> None:
        """Return when everything written so far is durable (fdatasync)."""

    def release_cache(self, offset: int, length: int) -> None:  # noqa: B027  (optional)
        """Let the host drop this (flushed) range from its page cache."""

    @abc.abstractmethod
    def close(self) -> None:
        """Release the target (and its fence); idempotent."""


class VolumeProvider(abc.ABC):
    """Makes and opens volumes.  Thread-safe.

    Every method that opens a volume compares its storage with the reference, and raises
    :class:`~backupfw.errors.StorageChanged` if it is gone, shorter, of another kind or another storage.
    Longer storage is used as it is: points and targets have its real length.

    :param options: values of :meth:`options` by name.
    """

    API_VERSION: ClassVar[int] = API_VERSION

    def __init__(self, options: Any) -> None:  # noqa: B027  (optional)
        pass

    @property
    @abc.abstractmethod
    def capabilities(self) -> Capabilities:
        """What this provider can do, with the options that it has."""

    @classmethod
    def options(cls) -> Sequence[cfg.Opt]:
        """Return the provider's options; core registers them in ``[volumes:NAME]``."""
        return ()

    @classmethod
    def catalogue(cls, options: Any) -> Catalogue | None:  # noqa: ARG003
        """Return the foreign catalogue of the provider's volumes; None: they are the service's own.

        The API's process calls it, which opens no volumes.

        :param options: values of :meth:`options` by name.
        """
        return None

    @abc.abstractmethod
    def create(self, volume: VolumeRef, source: SnapshotRef | VolumeRef | None, tick: Tick = no_tick) -> str:
        """Make the volume as a copy of ``source`` (then zeros), or of zeros; return its location.

        A call repeats the unfinished work of an earlier, killed call, and keeps its finished work.
        ``source`` must not change meanwhile.
        """

    @abc.abstractmethod
    def adopt(
        self,
        path: str,
        *,
        own: Sequence[str] = (),
        to_copy: bool = False,
        any_format: bool = False,
        in_use: bool = False,
    ) -> Storage:
        """Check existing storage that shall become a volume, or be copied to one.

        :param own: files and directories of the service, which must not become volumes, nor anything in them.
        :param to_copy: it need only be readable.
        :param any_format: accept its bytes as those of the disk, whatever their format.
        :param in_use: it may be in use now.
        :raises InvalidInput: this provider cannot use it; the message says why.
        """

    def adoptable(self) -> Iterator[Storage]:
        """Yield the storage that :meth:`adopt` would take, also what is a volume already.

        ``location`` is what ``adopt`` is given.

        :raises OperationNotSupported: this provider cannot list it.
        """
        raise OperationNotSupported("This volume provider does not list what can be adopted.")

    @abc.abstractmethod
    def look(self, volume: VolumeRef) -> Storage:
        """Return a volume's storage, compared as by an open; changes nothing.

        :raises StorageChanged: it differs from the reference.
        """

    def where(self, ref: VolumeRef | SnapshotRef) -> str:
        """Return where an operator finds the bytes."""
        return ref.location or ""

    @abc.abstractmethod
    def delete(self, volume: VolumeRef) -> None:
        """Delete the volume's storage, with what it keeps for points; missing storage counts as deleted.

        The storage of an adopted volume stays; what it keeps for points goes by :meth:`keep_points`.
        """

    @abc.abstractmethod
    def extend(self, volume: VolumeRef, length: int) -> None:
        """Extend the volume to ``length`` bytes; the new part reads as zeros, except in an adopted volume."""

    @abc.abstractmethod
    def create_snapshot(self, snapshot: SnapshotRef, in_use: bool, tick: Tick = no_tick) -> str:
        """Make a snapshot of the volume as it is at one moment; return its location.

        ``in_use``: a program may write.  Then the snapshot is atomic (reflink, or the storage's own), or a
        copy that is proven consistent.  It never mixes two states.  A snapshot that an earlier call finished
        stays; to get a newer one, delete it first.  A new one that is atomic is taken in
        :func:`backupfw.volume.taking.taking_point`.

        :raises SourceMoved: no atomic snapshot can be made here, and the volume changed during every try.
        """

    @abc.abstractmethod
    def delete_snapshot(self, snapshot: SnapshotRef) -> None:
        """Delete the snapshot's storage; missing storage counts as deleted."""

    @abc.abstractmethod
    def open_point(self, ref: VolumeRef | SnapshotRef, point_id: str, tick: Tick = no_tick) -> Point:
        """Open a volume or snapshot for reading, as it is at one moment (and attach it, if that is needed).

        If the storage must keep something for that, or for later comparisons (a snapshot, a copy, an
        attachment, a bitmap), its name contains ``point_id``, so that it is found again: a call with the
        id of a point that an earlier, killed call began or made goes on with that point, in the same state
        and with the same identity and token, as long as the storage has it.  A new state is taken in
        :func:`backupfw.volume.taking.taking_point`.

        :param point_id: the id of the backup that is made.
        :raises SourceMoved: another program uses the volume, and this provider's points are not ``live``:
            a snapshot of the volume can be made.
        """

    def keep_points(self, volume: VolumeRef, needed: Callable[[], Needed]) -> None:  # noqa: B027  (optional)
        """Keep the points of a volume that are needed, and remove what the storage keeps for all others.

        The service calls it after each backup, whatever its end, after the deletion of one, and after that of
        the volume, until it succeeds; also for a volume that is gone.  So it removes what killed attempts
        left, too.  Idempotent.  Things that do not have a name of this provider are never touched.

        :param needed: says what is needed at that moment.  First find what the storage keeps, then call it,
            once: in this order, the point of a backup that begins meanwhile is never removed.  With
            nothing kept, it need not be called.
        :raises OSError: something that is not needed could not be removed, but all else was: the call is
            repeated after a while.
        """

    @property
    def keeps_points(self) -> bool:
        """Whether the storage may keep something for points, so that :meth:`keep_points` has to be called."""
        return type(self).keep_points is not VolumeProvider.keep_points

    @abc.abstractmethod
    def open_target(self, volume: VolumeRef, attempt: int) -> AbstractContextManager[BlockTarget]:
        """Open for writing and fence out every earlier writer.

        :param attempt: grows with every attempt to write this volume, over all tasks (made of the task's id
            and its attempt number); a writer with a lower number can no longer write when this returns.
        :raises TargetError: an earlier writer may still be alive and cannot be fenced out (temporary:
            the task is tried again later).  The end of the ``with`` block may raise an error, too: somebody
            else had the volume meanwhile.
        """

    def end_restore(self, volume: VolumeRef, source: Restored | None) -> None:  # noqa: B027  (optional)
        """Tell a foreign catalogue how a restore to its volume ended; idempotent.

        :param source: the volume whose bytes it has now; None: the restore failed, so nobody shall take the
            volume for a good one.
        """

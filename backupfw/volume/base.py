"""The interface of volume providers, which read and write the blocks of volumes.

A provider makes, deletes, extends, snapshots, opens and fences volumes.  It has no statuses: the
catalogue has them (the ``volumes`` and ``snapshots`` rows of our database for the ``local`` provider; a
Block Storage service for a provider written later).  Every operation is idempotent and named by ids,
because a task that was killed runs it again.

A provider is an entry point of group ``backupfw.volume``.  Providers are called by workers only; calls
may block for as long as the work takes and must call ``tick`` (where they get one) at least once a
second so that a cancelled task ends: it raises when the task must stop.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from oslo_config import cfg

#: Version of this contract; the loader refuses a provider with another one.
API_VERSION = 1

#: Called by long operations; raises TaskStopped when the task must end.
Tick = Callable[[], None]


def no_tick() -> None:
    """Do nothing: for callers that cannot be cancelled."""


@dataclass(frozen=True, slots=True)
class VolumeRef:
    """A volume as its provider knows it.

    :ivar id: the volume's UUID.
    :ivar length: bytes; for a volume that does not exist yet, its future length.
    :ivar location: what the provider's ``create`` or ``adopt`` returned (a path for ``local``);
        None for a volume that does not exist yet.
    :ivar adopted: the storage does not belong to the service: it is never deleted with the volume.
    :ivar storage_id: see :class:`Storage`; None if it was never recorded.
    """

    id: str
    length: int
    location: str | None = None
    adopted: bool = False
    storage_id: str | None = None


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


class BlockSource(abc.ABC):
    """An opened volume or snapshot to read from.  ``read_into`` may be called from many threads."""

    #: Its real length in bytes: more than in the catalogue if the volume was extended outside the service.
    length: int
    #: See :class:`Storage`.
    storage_id: str | None = None
    #: The source identity: it changes whenever the bytes may have changed.  A resumed backup that finds
    #: another identity begins a new epoch.
    identity: str

    @abc.abstractmethod
    def data_extents(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        """Yield ``(offset, length)`` of ranges that may be non-zero within ``start … end``, ascending.

        All other bytes read as zeros.  A source that does not know its holes yields the whole range.
        Finding the next range must not read the hole before it.
        """

    @abc.abstractmethod
    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill ``buffer`` from ``offset``, never less: SourceMoved if the source ended early, or OSError."""

    def check_still(self) -> None:  # noqa: B027  (optional)
        """Raise if the source is known to have changed since it was opened.

        It is called often while the source is read, and once at the end, so it must be cheap.

        :raises SourceMoved: it has changed, so the bytes that were read may be of two states.
        """

    def changed_extents(self, since_identity: str) -> Iterator[tuple[int, int]] | None:  # noqa: ARG002
        """Yield the ranges that may have changed since the source with that identity; None: unknown."""
        return None

    def release_cache(self, offset: int, length: int) -> None:  # noqa: B027  (optional)
        """Let the host drop this range from its page cache."""

    @abc.abstractmethod
    def close(self) -> None:
        """Release the source; idempotent."""


class BlockTarget(abc.ABC):
    """An opened volume to write to.  ``write`` and ``zero`` may be called from many threads."""

    #: Its real length in bytes, at least that in the catalogue.
    length: int
    #: See :class:`Storage`.
    storage_id: str | None = None
    #: Whether all bytes that were not written since the volume was made are known to read as zeros.
    reads_zero: bool

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
    Longer storage is used as it is: sources and targets have its real length.

    :param options: values of :meth:`options` by name.
    """

    API_VERSION: ClassVar[int] = API_VERSION

    def __init__(self, options: Any) -> None:  # noqa: B027  (optional)
        pass

    @classmethod
    def options(cls) -> Sequence[cfg.Opt]:
        """Return the provider's options; core registers them in ``[volumes]``."""
        return ()

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
        """Delete the volume's storage (not an adopted one's); missing storage counts as deleted."""

    @abc.abstractmethod
    def extend(self, volume: VolumeRef, length: int) -> None:
        """Extend the volume to ``length`` bytes; the new part reads as zeros, except in an adopted volume."""

    @abc.abstractmethod
    def create_snapshot(self, snapshot: SnapshotRef, in_use: bool, tick: Tick = no_tick) -> str:
        """Make a snapshot of the volume as it is at one moment; return its location.

        ``in_use``: a program may write.  Then the snapshot is atomic (reflink, or the storage's own), or a
        copy that is proven consistent.  It never mixes two states.  A snapshot that an earlier call finished
        stays; to get a newer one, delete it first.

        :raises SourceMoved: no atomic snapshot can be made here, and the volume changed during every try.
        """

    @abc.abstractmethod
    def delete_snapshot(self, snapshot: SnapshotRef) -> None:
        """Delete the snapshot's storage; missing storage counts as deleted."""

    @abc.abstractmethod
    def open_source(self, ref: VolumeRef | SnapshotRef) -> AbstractContextManager[BlockSource]:
        """Open for reading (and attach it, if that is needed).

        :raises SourceMoved: another program uses the volume; a snapshot of a volume in use can be made.
        """

    @abc.abstractmethod
    def open_target(self, volume: VolumeRef, attempt: int) -> AbstractContextManager[BlockTarget]:
        """Open for writing and fence out every earlier writer.

        :param attempt: grows with every attempt to write this volume, over all tasks (made of the task's id
            and its attempt number); a writer with a lower number can no longer write when this returns.
        :raises TargetError: an earlier writer may still be alive and cannot be fenced out (temporary:
            the task is tried again later).
        """

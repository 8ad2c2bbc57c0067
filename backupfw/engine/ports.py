"""What the engine needs from its caller, and the work it is given."""

from __future__ import annotations

from collections.abc import Callable, Collection, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Protocol

from backupfw.engine.format import keys
from backupfw.engine.format.geometry import MIB, Geometry
from backupfw.engine.format.sealing import CLEAR, Sealing
from backupfw.errors import ChangeMissed

#: Bounds of a job's pack size, in bytes; a pack exceeds it by less than a block, and its footer.
MIN_PACK_SIZE = 4 << 10
MAX_PACK_SIZE = 128 * MIB


class Control(Protocol):
    """The running task, as the engine sees it.  Every method is called from several threads at once."""

    def check(self) -> None:
        """Raise TaskStopped when the task must end.  Called about once per MiB: it must be cheap."""

    def may_write(self) -> None:
        """Raise TaskLost unless the target may still be written; called before every batch of writes."""

    def progress(self, done: int, total: int) -> None:
        """Take the number of bytes of ``total`` that are done; called about once a second at most."""


class Journal(Protocol):
    """Keeps the finished segments of a running backup.

    ``record`` is called from the threads of all streams, ``finished`` from the caller's own.
    """

    def finished(self) -> Iterator[tuple[int, bytes]]:
        """Yield ``(segment, entry)`` of every recorded segment, ascending, each once.

        ``record`` may be called while an iteration runs; that iteration may or may not yield the new entry.
        The method may be called again, and must not hold all entries in memory.
        """

    def record(self, entries: Sequence[tuple[int, bytes]]) -> None:
        """Keep the entries durably; one for a segment that has one already replaces it.

        :raises TaskLost: the attempt is not ours any more, and none of the entries was kept.
        :raises OutcomeUnknown: the attempt is not ours any more; the next one may go on from the entries.
        """

    def announce(self, key: str) -> None:
        """Keep durably that a manifest is about to be put under ``key``.

        So the database can distinguish a manifest that an attempt put and could not commit from one that it
        never knew.

        :raises TaskLost: the attempt is not ours any more.
        """

    def distrust(self, error: ChangeMissed) -> None:
        """Keep durably that the point said wrongly what is the same, also if the attempt is not ours now."""

    def is_unneeded(self, key: str) -> bool:
        """Say whether the key that was announced is given up, and nobody needs what lies there.

        Called from any thread, also after the attempt's end.  If that cannot be found out, the answer is no.
        """


@dataclass(frozen=True, slots=True)
class KnownManifests:
    """What the database knows of a volume's manifests in one container; read before any listing.

    This order is safe: a manifest that the database gets between the two is unknown here, and so it is read.

    :ivar asked: keys of the manifests that may name the objects in question; each is read.
    :ivar keys: keys of all manifests, in any state, and the keys that lost attempts announced.  A manifest
        that is here and not in ``asked`` names none of the objects in question, or may be deleted with
        them.
    """

    asked: Collection[str] = ()
    keys: Container[str] = frozenset()


@dataclass(frozen=True, slots=True)
class LockPlan:
    """Which locks an attempt makes, and which ones it finds.

    :ivar until: what the attempt puts is locked until then, and what its manifest names at least as long.
    :ivar own: what earlier attempts put for the same backup is locked at least until then; None: not known.
    :ivar others: what the manifest shares with its base, likewise.
    """

    until: datetime
    own: datetime | None
    others: datetime | None

    def later(self, until: datetime) -> LockPlan:
        """Return the plan for an attempt that took so long that even what it put needs a longer lock."""
        return LockPlan(until, None, None)

    def needs(self, key: str, own_prefix: str) -> bool:
        """Return whether an object that the manifest names must be locked longer than it is.

        :param own_prefix: of all that was put for the backup.
        """
        known = self.own if key.startswith(own_prefix) else self.others
        return known is None or known < self.until


@dataclass(frozen=True, slots=True)
class BackupJob:
    """One attempt of one backup.

    :ivar installation: installation id, first part of every key.
    :ivar project: project id.
    :ivar volume: volume id.
    :ivar backup: backup id.
    :ivar epoch: counts the fresh starts of this backup.
    :ivar attempt: the task's attempt number.
    :ivar token: 16 hexadecimal digits, random, drawn for this attempt.
    :ivar geometry: length of the source, block and segment size.
    :ivar base: key of the manifest to share with, or None.
    :ivar record: the backup's record and the volume's metadata, for the manifest; JSON values.
    :ivar damaged: keys of objects known to be damaged; nothing is shared with them.
    :ivar pack_size: bytes of blocks after which a pack is closed.
    :ivar compression_level: zstd's level.
    :ivar sealing: how the backup is encrypted.
    :ivar streams: segments worked on at the same time; each takes about ``pack_size`` + 2 MiB.
    :ivar since: the token in the base's manifest, if the point can be compared with it: what the point says
        is the same is not read.  None: everything is compared with the base.
    :ivar verify_unchanged: the share, from 0 to 1, that is read of what the point says is the same as in the
        base, or zero.
    :ivar read_all: nothing that the point says is believed, not even what is zero.
    :ivar lock: which locks are made; None: none.
    """

    installation: str
    project: str
    volume: str
    backup: str
    epoch: int
    attempt: int
    token: str
    geometry: Geometry
    base: str | None = None
    record: Mapping[str, Any] = field(default_factory=dict)
    damaged: Container[str] = frozenset()
    pack_size: int = 32 * MIB
    compression_level: int = 1
    sealing: Sealing = CLEAR
    streams: int = 2
    since: str | None = None
    verify_unchanged: float = 0.0
    read_all: bool = False
    lock: LockPlan | None = None

    def problem(self) -> str | None:
        """Say which bound the job's numbers break, or None."""
        if problem := self.geometry.problem():
            return problem
        if not MIN_PACK_SIZE <= self.pack_size <= MAX_PACK_SIZE:
            return f"the pack size {self.pack_size} is not within {MIN_PACK_SIZE} and {MAX_PACK_SIZE}"
        if self.pack_size * keys.MAX_PACKS < self.geometry.segment_size:
            return "a segment may need more packs than there are numbers"
        return None

    @property
    def origin(self) -> keys.Origin:
        """Where this attempt puts its objects."""
        return keys.Origin(
            self.installation, self.project, self.volume, self.backup, self.epoch, self.attempt, self.token
        )

    @property
    def prefix(self) -> str:
        """The key prefix of everything this backup puts, in any attempt."""
        return keys.backup_prefix(self.installation, self.project, self.volume, self.backup)

    @property
    def epoch_prefix(self) -> str:
        """The key prefix of everything this backup puts in its epoch: of one state of its source."""
        return keys.epoch_prefix(self.installation, self.project, self.volume, self.backup, self.epoch)


@dataclass(frozen=True, slots=True)
class BackupResult:
    """What a finished backup is.

    :ivar manifest_key: the manifest's key.
    :ivar object_count: objects of this backup, over all its attempts, that its manifest names, and the
        manifest.
    :ivar stored_bytes: their sizes.
    :ivar referenced_bytes: sizes of everything the manifest names, and its own.
    :ivar data_bytes: bytes of the volume's blocks that are not zero.
    :ivar segments: segments that are not all zero.
    :ivar changed_segments: those of them whose map this attempt put.
    :ivar read_bytes: bytes this attempt read from the source, blocks read twice counted twice.
    :ivar sampled_bytes: those of them that were read only to check what the point said.
    :ivar stored_raw_bytes: plain bytes of the blocks this attempt stored, its maps and the manifest.
    :ivar repacked_bytes: plain bytes among them that had not changed (fragmentation rule).
    :ivar trusted: how many backups in a row, up to this one, left out what a point said was the same.
    :ivar base_problem: why the base was not used, None if it was or there was none.
    :ivar locked_until: until when everything that the manifest names is locked at least; None: it is not.
    """

    manifest_key: str
    object_count: int
    stored_bytes: int
    referenced_bytes: int
    data_bytes: int
    segments: int
    changed_segments: int
    read_bytes: int
    sampled_bytes: int
    stored_raw_bytes: int
    repacked_bytes: int
    trusted: int = 0
    base_problem: str | None = None
    locked_until: datetime | None = None


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Where a restore begins, and what is called with its progress.

    :ivar start: segments below this one are durable in the target already.
    :ivar save: called with the lowest segment that is not; everything below has been flushed.
    """

    start: int = 0
    save: Callable[[int], None] = lambda _segment: None


@dataclass(frozen=True, slots=True)
class RestoreResult:
    """What a finished restore did.

    :ivar length: bytes of the backup, from the target's start.
    :ivar written_bytes: bytes written, zeros excepted.
    :ivar zeroed_bytes: bytes of the target that were zeroed.
    :ivar needed_bytes: stored bytes of the blocks written.
    :ivar fetched_bytes: bytes read from packs.
    :ivar requests: ranged reads of packs.
    :ivar packs: packs read from.
    :ivar map_bytes: bytes of maps and manifest read.
    """

    length: int
    written_bytes: int = 0
    zeroed_bytes: int = 0
    needed_bytes: int = 0
    fetched_bytes: int = 0
    requests: int = 0
    packs: int = 0
    map_bytes: int = 0


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """What a verification looked at.

    :ivar objects: objects looked at, the manifest included.
    :ivar blocks: blocks verified (none in a quick verification).
    :ivar bytes: bytes read from the store.
    :ivar damaged: objects found damaged or missing.
    """

    objects: int = 0
    blocks: int = 0
    bytes: int = 0
    damaged: int = 0

    @property
    def ok(self) -> bool:
        """Whether nothing was found."""
        return self.damaged == 0

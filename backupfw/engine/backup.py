"""Makes a backup: point -> blocks -> packs -> maps -> manifest.  Unchanged data is shared with a base.

The calling thread walks through the segments in ascending order, and reads the base's manifest and the
journal beside them.  Streams (threads) work on the segments.  A stream records a segment for which it sent
data before it begins the next one, so a killed process loses at most one segment per stream.  Order of
writing: the packs of a segment, its map, its journal entry, and at the end the manifest; before that, what it
names is locked long enough (:mod:`backupfw.engine.locking`).  Memory: one pack
and two MiB per stream, and one page of each manifest; it does not grow with the volume.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Generic, TypeVar

from backupfw.chunkstore.base import Body
from backupfw.chunkstore.cancellation import cancelled_by, undoing_if
from backupfw.chunkstore.container import Container
from backupfw.chunkstore.errors import ChunkStoreError
from backupfw.engine import locking
from backupfw.engine.extents import (
    Checking,
    Found,
    Sampler,
    Says,
    SaysNothing,
    block_extents,
    common_length,
    segments,
)
from backupfw.engine.format import keys
from backupfw.engine.format.binary import BadBytes, digest
from backupfw.engine.format.entries import SegmentEntry, decode_entry, encode_entry
from backupfw.engine.format.geometry import Geometry
from backupfw.engine.format.manifest import (
    MAX_ORIGINS,
    ManifestHead,
    ManifestReader,
    ManifestTotals,
    ManifestWriter,
    PointNote,
    SourceTotals,
)
from backupfw.engine.pool import Halt, Meter, Streams
from backupfw.engine.ports import BackupJob, BackupResult, Control, Journal
from backupfw.engine.segment_backup import SegmentDone, SegmentTask, SegmentWriter
from backupfw.errors import (
    ChangeMissed,
    Damaged,
    DataKeyMissing,
    JournalLost,
    OutcomeUnknown,
    TaskLost,
    UnsupportedFormat,
)
from backupfw.volume.base import Kind, Point

#: Segments for which no object was put are recorded in batches: of this many, or after this many seconds.
#: Without their entries, the next attempt only has to read the source again.
JOURNAL_SEGMENTS = 16
JOURNAL_SECONDS = 5.0
#: Segments that were not even read are recorded when there are so many of them.
JOURNAL_UNREAD = 512

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _Base:
    """A base that may be shared with, or the reason why there is none."""

    reader: ManifestReader | None = None
    problem: str | None = None

    @property
    def geometry(self) -> Geometry | None:
        return None if self.reader is None else self.reader.head.geometry

    def entries(self) -> Iterator[SegmentEntry]:
        return iter(()) if self.reader is None else self.reader.segments()


def run(
    job: BackupJob,
    point: Point,
    container: Container,
    journal: Journal,
    control: Control,
    opened: ManifestReader | None = None,
) -> BackupResult:
    """Make one backup, or finish one that an earlier attempt began.

    The point must not change until this returns.  On any error the manifest is not put, and finished
    segments are recorded in the journal if that is still possible.  A call with another token and the same
    journal continues from there, if the point has the same identity and ``job.since`` is the same.

    :param opened: the job's base, if the caller has opened it already.
    :raises TaskStopped: the control said so.
    :raises DataKeyMissing: a data key cannot be found; errors of the key store pass through, too.
    :raises SourceMoved: the source changed while it was read.
    :raises SourceUnreadable: the source could not be read.
    :raises ChangeMissed: the point said that something is the same as in the base, or zero, and it is not.
        What was finished must not be used any more: the caller begins a new epoch, without ``job.since``, and
        with ``job.read_all``.
    :raises JournalLost: the journal does not hold all segments that this attempt finished or took over; the
        next call does the missing ones.
    :raises ChunkStoreError: the store could not be read or written.
    """
    if problem := job.problem():
        raise ValueError(problem)
    if point.length != job.geometry.length:
        raise ValueError("the source has another length than the job")
    container = container.locking(None if job.lock is None else job.lock.until)
    base = _open_base(job, container, control, opened)
    look = _Look(job, point, base, control.check)
    halt = Halt(control)
    meter = Meter(control, look.total())
    unnamed = _UnnamedKeys(container)
    recorder = _Recorder(journal, unnamed)
    streams = Streams(
        lambda: SegmentWriter(job, base.geometry, point, unnamed, recorder.record, halt.check, meter.add),
        job.streams,
        halt,
    )
    tally = _Tally()
    changed = read = sampled = raw = repacked = 0
    tasks = _tasks(look, base, journal)
    try:
        with contextlib.closing(streams.run(tasks)) as results:
            for done in results:
                changed += done.changed
                read += done.read_bytes
                sampled += done.sampled_bytes
                raw += done.raw_bytes
                repacked += done.repacked_bytes
                tally.add(done.index, done.entry)
                recorder.gather(done)
                point.check_still()
        # All that the manifest says of the source was read before this check.
        point.check_still()
    except TaskLost:
        # Another attempt has the task now, and may have cleaned up already.
        unnamed.remove()
        raise
    except ChangeMissed as error:
        try:
            # If the source moved, the storage was not wrong.
            point.check_still()
            journal.distrust(error)
        finally:
            # Nothing that was finished is used any more; and another attempt may have the task now.
            unnamed.remove()
        raise
    except Exception:
        # Try to record what is finished, for the next attempt.  The first error is the one to raise.
        with contextlib.suppress(Exception):
            recorder.flush()
        raise
    recorder.flush()
    control.check()
    head = ManifestHead(
        origin=job.origin,
        geometry=job.geometry,
        base=job.base if base.problem is None else None,
        record=job.record,
        source=SourceTotals(tally.segments, tally.data_bytes),
        point=PointNote.of(point.token, look.trusted),
    )
    objects, stored, totals, locked_until = _commit(job, head, container, journal, tally, control)
    meter.finish()
    return BackupResult(
        manifest_key=keys.manifest_key(str(job.origin)),
        object_count=objects,
        stored_bytes=stored,
        referenced_bytes=totals.referenced_bytes + totals.manifest_bytes,
        data_bytes=totals.data_bytes,
        segments=totals.segments,
        changed_segments=changed,
        read_bytes=read,
        sampled_bytes=sampled,
        stored_raw_bytes=raw + totals.manifest_bytes,
        repacked_bytes=repacked,
        trusted=look.trusted,
        base_problem=base.problem,
        locked_until=locked_until,
    )


class _Tally:
    """The finished segments as one number: two tallies are equal if their entries are, in any order.

    It is kept beside the journal, because a database may lose what it confirmed.  The number is the sum of
    the digests of all entries, modulo 2^256.  All-zero segments have no entry.
    """

    def __init__(self) -> None:
        self.segments = 0
        self.data_bytes = 0
        self._sum = 0

    def add(self, index: int, entry: SegmentEntry | None) -> None:
        """Take a segment in."""
        if entry is None:
            return
        self.segments += 1
        self.data_bytes += entry.data_bytes
        said = digest(index.to_bytes(8, "little") + encode_entry(entry))
        self._sum = (self._sum + int.from_bytes(said, "little")) % (1 << 256)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Tally) and (self.segments, self._sum) == (other.segments, other._sum)

    __hash__ = None  # type: ignore[assignment]


class _UnnamedKeys(Container):
    """The container, and the keys that were put and are in no journal entry yet.

    Only this attempt knows these keys: the next attempt sees only what the journal has.
    """

    def __init__(self, container: Container) -> None:
        super().__init__(container.store, container.name)
        self._inner = container
        self._lock = threading.Lock()
        self._keys: set[str] = set()

    def put(self, key: str, body: Body) -> None:
        """Put, noting the key first."""
        with self._lock:
            self._keys.add(key)
        self._inner.put(key, body)

    def get(self, key: str, offset: int | None = None, length: int | None = None) -> bytes:
        """Get."""
        return self._inner.get(key, offset, length)

    def hand_over(self, keys: Iterable[str]) -> set[str]:
        """Forget keys that the journal may have from now on; returns those that were noted."""
        with self._lock:
            mine = self._keys.intersection(keys)
            self._keys -= mine
            return mine

    def take_back(self, keys: Iterable[str]) -> None:
        """Note keys again: the journal does not have them after all."""
        with self._lock:
            self._keys.update(keys)

    def remove(self) -> None:
        """Delete the objects under the noted keys; a sweep finds those that cannot be deleted now."""
        with self._lock:
            keys, self._keys = sorted(self._keys), set()
        if keys:
            with contextlib.suppress(ChunkStoreError), cancelled_by(lambda: None):
                self._inner.delete(keys)


class _Recorder:
    """Records finished segments in the journal, so that the next attempt need not do them again.

    Streams call :meth:`record` for each segment for which they put objects.  The calling thread gathers the
    other segments and records them in batches: without their entries, the next attempt only reads them again.

    :param unnamed: the container; what is recorded names its keys.
    """

    def __init__(self, journal: Journal, unnamed: _UnnamedKeys) -> None:
        self._journal = journal
        self._unnamed = unnamed
        self._gathered: list[SegmentDone] = []
        self._read = 0
        self._since = time.monotonic()

    def record(self, *segments: SegmentDone) -> None:
        """Record segments; from then on the next attempt may name their objects.  Thread-safe."""
        # Before the write, because an error does not prove that the journal was not written.
        handed = self._unnamed.hand_over(
            key for done in segments if done.entry is not None for key in done.entry.object_keys()
        )
        try:
            self._journal.record([(done.index, encode_entry(done.entry)) for done in segments])
        except OutcomeUnknown:
            raise
        except TaskLost:
            self._unnamed.take_back(handed)
            raise

    def gather(self, done: SegmentDone) -> None:
        """Take note of a segment; record all that has gathered when it is time."""
        if done.recorded:
            return
        self._gathered.append(done)
        self._read += done.read_bytes > 0
        if (
            self._read >= JOURNAL_SEGMENTS
            or len(self._gathered) >= JOURNAL_UNREAD
            or time.monotonic() - self._since >= JOURNAL_SECONDS
        ):
            self.flush()

    def flush(self) -> None:
        """Record all that has gathered."""
        if self._gathered:
            self.record(*self._gathered)
            self._gathered = []
        self._read = 0
        self._since = time.monotonic()


def _open_base(
    job: BackupJob, container: Container, control: Control, opened: ManifestReader | None
) -> _Base:
    """Open the base and read it once as a whole: nothing is shared with one that is not whole."""
    if job.base is None:
        return _Base()
    if job.base in job.damaged:
        return _Base(problem="the base's manifest is known to be damaged")
    try:
        reader = opened or ManifestReader(container, job.base)
        head = reader.head
        mine = (
            job.installation,
            job.project,
            job.volume,
            job.geometry.block_size,
            job.geometry.segment_size,
        )
        its = (
            head.origin.installation,
            head.origin.project,
            head.origin.volume,
            head.geometry.block_size,
            head.geometry.segment_size,
        )
        if mine != its:
            return _Base(problem="the base has another owner or geometry")
        if head.mac_id != job.sealing.mac_id:
            return _Base(problem="the base is encrypted with another key, or only one of them is encrypted")
        if opened is None:
            reader.unseal(job.sealing.find)
        for number, _ in enumerate(reader.segments()):
            if number % 1024 == 0:
                control.check()
        # The other half is for the origins of this backup's own attempts.
        if len(reader.origins()) > MAX_ORIGINS // 2:
            return _Base(problem="the base names so many origins that sharing with it has to end")
    except (Damaged, UnsupportedFormat, DataKeyMissing) as error:
        return _Base(problem=str(error))
    return _Base(reader)


class _Look:
    """What the point says, compared with the base if that is possible.

    :ivar since: the token that it is compared with; None: it is not.
    :ivar trusted: how many backups in a row, up to this one, left out what a point said was the same.
    """

    def __init__(self, job: BackupJob, point: Point, base: _Base, check: Callable[[], None]) -> None:
        self._point: Says = SaysNothing() if job.read_all else Checking(point, check)
        self.geometry = job.geometry
        self.since: str | None = None
        self.trusted = 0
        self._same_until = 0
        if base.reader is not None and job.since is not None:
            head = base.reader.head
            if head.point is None or head.point.token != job.since:
                raise ValueError("the job's token is not that of its base")
            self.since = job.since
            # What is all checked is not only believed.
            self.trusted = 0 if job.verify_unchanged >= 1 else head.point.trusted + 1
            self._same_until = common_length(job.geometry, head.geometry)
        self._share = job.verify_unchanged
        # Every attempt that may go on with this one's segments chooses the same: a wrong answer that this one
        # found and could not report any more is found again.
        self._sampler = Sampler(job.verify_unchanged, job.geometry.block_size, job.epoch_prefix)

    def total(self) -> int:
        """Return the bytes that will be visited, about as many of them sampled as there will be."""
        if not self.geometry.length:
            return 0
        total = dict.fromkeys(Kind, 0)
        found = block_extents(
            self._point, self.geometry, 0, self.geometry.length, self.since, self._same_until
        )
        for extent in found:
            total[extent.kind] += extent.length
        share = 0.0 if self.since is None else self._share
        return total[Kind.DATA] + int((total[Kind.SAME] + total[Kind.ZERO]) * share)

    def is_zero(self, start: int, end: int) -> bool:
        """Return whether the point knows that there are zeros only."""
        return all(extent.kind is Kind.ZERO for extent in self._point.extents(start, end))

    def segments(self) -> Iterator[Found]:
        """See :func:`backupfw.engine.extents.segments`."""
        return segments(self._point, self.geometry, self._sampler, self.since, self._same_until)


def _tasks(look: _Look, base: _Base, journal: Journal) -> Iterator[SegmentTask]:
    """Yield one task for each segment that may hold data or is recorded, ascending."""
    finished = _Peek(_finished(journal, look.geometry), lambda item: item[0])
    entries = _Peek(base.entries(), lambda entry: entry.index)
    said = _Peek(look.segments(), lambda item: item.segment)
    while True:
        both = (said.next_index(), finished.next_index())
        index = min((one for one in both if one is not None), default=None)
        if index is None:
            return
        found, recorded, entry = said.at(index), finished.at(index), entries.at(index)
        _, extents, sample = found or Found(index, (), ())
        if entry is None:
            # The base has zeros there: those that the point knows are right.
            sample = tuple(
                part for part in sample if part.kind is Kind.ZERO or not look.is_zero(part.offset, part.end)
            )
        # What was a segment of zeros, and is the same, takes no step.
        if (
            any(extent.kind is not Kind.SAME for extent in extents)
            or sample
            or entry is not None
            or recorded is not None
        ):
            yield SegmentTask(index, extents, entry, None if recorded is None else recorded[1], sample)
        said.at(index + 1)
        finished.at(index + 1)


def _finished(journal: Journal, geometry: Geometry) -> Iterator[tuple[int, bytes]]:
    """Yield the journal's entries of the volume's segments, each once; other rows are ignored.

    :raises JournalLost: they do not ascend.
    """
    last = -1
    for index, data in journal.finished():
        if not 0 <= index < geometry.segments:
            continue
        if index <= last:
            raise JournalLost(f"the journal has segment {index} after segment {last}")
        last = index
        yield index, data


class _Peek(Generic[T]):
    """Walks a sorted stream alongside ascending indexes."""

    def __init__(self, items: Iterator[T], index: Callable[[T], int]) -> None:
        self._items = items
        self._index = index
        self._head = next(items, None)

    def next_index(self) -> int | None:
        """Return the index of the item at the front."""
        return None if self._head is None else self._index(self._head)

    def at(self, index: int) -> T | None:
        """Drop what lies below ``index`` and return the item there, if there is one."""
        while self._head is not None and self._index(self._head) < index:
            self._head = next(self._items, None)
        if self._head is not None and self._index(self._head) == index:
            return self._head
        return None


def _commit(
    job: BackupJob,
    head: ManifestHead,
    container: Container,
    journal: Journal,
    tally: _Tally,
    control: Control,
) -> tuple[int, int, ManifestTotals, datetime | None]:
    """Put the manifest; return the objects of this backup, their bytes, the manifest's totals, and its lock.

    The manifest is written from the journal, after a check that the journal has what the attempt did.
    """
    recorded = _Tally()
    objects, stored = 1, 0
    locks = _Locks(job, container, control)
    with ManifestWriter(head, job.sealing) as writer, locks:
        for number, (index, data) in enumerate(_finished(journal, job.geometry)):
            if number % 1024 == 0:
                control.check()
            entry = _recorded_entry(data, keys.volume_prefix_of(job.prefix))
            recorded.add(index, entry)
            if entry is None:
                continue
            if entry.index != index:
                raise JournalLost(f"the journal has segment {entry.index} in the place of {index}")
            writer.add(entry)
            locks.renew(entry)
            if entry.map.origin.startswith(job.prefix):
                objects += 1
                stored += entry.map.length
            for pack in entry.packs:
                if pack.origin.startswith(job.prefix):
                    objects += 1
                    stored += pack.size
        if recorded != tally:
            raise JournalLost(
                f"the journal has {recorded.segments} segments with data; this attempt has finished"
                f" {tally.segments}, and they are not the same"
            )
        locks.finish()
        journal.announce(head.key)
        # The next attempt may commit it although this one never hears that it was put.
        with undoing_if(lambda: journal.is_unneeded(head.key)):
            totals = writer.put(container.locking(locks.until))
    return objects, stored + totals.manifest_bytes, totals, locks.until


class _Locks:
    """Renews the locks of what a manifest names, where they are too short; a context manager.

    :ivar until: how long all of it is locked, when it has finished; None: not at all.
    """

    def __init__(self, job: BackupJob, container: Container, control: Control) -> None:
        self._job = job
        self._container = container
        self._control = control
        self._plan = job.lock
        self._put_now = f"{job.origin}/"
        rule = container.rule
        if self._plan is not None and rule is not None and not rule.is_enough(self._plan.until):
            # The attempt took longer than the rule's slack: what it put itself is renewed, too.
            self._plan = self._plan.later(rule.new())
            self._put_now = ""
        self.until = None if self._plan is None else self._plan.until
        self._stack = contextlib.ExitStack()
        self._lock: Callable[[str], None] | None = None

    def __enter__(self) -> _Locks:
        if self.until is not None:
            self._lock = self._stack.enter_context(
                locking.renewing(self._container, self.until, self._control)
            )
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.__exit__(*error)

    def renew(self, entry: SegmentEntry) -> None:
        """Lock what one segment names."""
        if self._lock is None or self._plan is None:
            return
        for key in entry.object_keys():
            put_now = self._put_now and key.startswith(self._put_now)
            if not put_now and self._plan.needs(key, self._job.prefix):
                self._lock(key)

    def finish(self) -> None:
        """Lock the data keys, and wait until all is locked."""
        if self._lock is not None and self._job.sealing.mac_id is not None:
            for key in locking.data_keys(self._container, keys.volume_prefix_of(self._job.prefix)):
                self._lock(key)
        self._stack.close()


def _recorded_entry(data: bytes, volume_prefix: str) -> SegmentEntry | None:
    try:
        return decode_entry(data, volume_prefix)
    except BadBytes as error:
        raise JournalLost(f"the journal has an entry that cannot be read: {error}") from error

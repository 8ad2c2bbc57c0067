"""Restoring: manifest -> maps -> packs -> blocks, every one verified before it is written.

The calling thread reads the manifest as a stream and keeps the checkpoint.  Streams (threads) restore the
segments, and visit each pack once.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import Protocol, TypeVar

from backupfw import crash_points
from backupfw.chunkstore.container import Container
from backupfw.engine.format.manifest import ManifestReader
from backupfw.engine.format.sealing import FindKey, no_keys
from backupfw.engine.pool import Halt, Meter, Streams
from backupfw.engine.ports import Checkpoint, Control, RestoreResult
from backupfw.engine.segment_restore import RestoreDone, RestoreTask, SegmentReader, target_error
from backupfw.errors import TargetError
from backupfw.volume.base import BlockTarget

#: The target is flushed and the checkpoint saved whenever all segments below a further one are done.  If one
#: stream falls far behind the others, the target is flushed after this many tasks.
FLUSH_TASKS = 8


def run(
    manifest_key: str,
    container: Container,
    target: BlockTarget,
    control: Control,
    checkpoint: Checkpoint | None = None,
    *,
    streams: int = 2,
    find_key: FindKey = no_keys,
    encrypted: bool = False,
    only: Iterable[tuple[int, int]] | None = None,
) -> RestoreResult:
    """Write a backup's bytes to a target, from its start; bytes past the backup's length stay.

    When this returns, all of it is durable in the target.  A target that does not read as zeros gets
    zeros where the backup has them.  Every block is verified before it is written; on an error the
    target's content is undefined above the last checkpoint.

    :param manifest_key: key of the backup's manifest.
    :param checkpoint: where to begin, and what is called with the progress.
    :param streams: segments worked on at the same time; each takes about 14 MiB with defaults.
    :param find_key: finds the data keys of a backup that is encrypted.
    :param encrypted: it is known to be encrypted: a manifest that is not counts as damaged.
    :param only: ranges of the volume, ascending, each of whole blocks of one segment: nothing else is
        restored, to a target that reads as zeros; None: everything is.
    :raises DataKeyMissing: one of them cannot be found; errors of the key store pass through, too.
    :raises TaskStopped: the control said so.
    :raises Damaged: an object is missing, or its bytes are wrong; names store, container and key.
    :raises UnsupportedFormat: the backup needs something this release does not know.
    :raises TargetError: the target is too small or refuses writes.
    :raises ChunkStoreError: the store could not be read.
    """
    point = checkpoint or Checkpoint()
    reader = ManifestReader(container, manifest_key, find_key, encrypted=encrypted)
    geometry, sealing = reader.head.geometry, reader.sealing
    if target.length < geometry.length:
        raise TargetError("The volume is smaller than the backup.")
    halt = Halt(control)
    meter = Meter(control, reader.totals.data_bytes)
    dirty = not target.reads_zero
    pool = Streams(
        lambda: SegmentReader(geometry, sealing, container, target, dirty, halt, meter.add), streams, halt
    )
    progress = Progress(target, geometry.segment_size, point)
    counts = RestoreDone(RestoreTask(0, 0))
    chosen = None if only is None else _BySegment(only, geometry.segment_size)
    tasks = progress.watch(_tasks(reader, point.start, dirty, meter, chosen))
    with contextlib.closing(pool.run(tasks)) as results:
        for done in results:
            _add(counts, done)
            control.check()
            progress.finished(done.task)
    progress.save(geometry.segments)
    meter.finish()
    return RestoreResult(
        length=geometry.length,
        written_bytes=counts.written_bytes,
        zeroed_bytes=counts.zeroed_bytes,
        needed_bytes=counts.needed_bytes,
        fetched_bytes=counts.fetched_bytes,
        requests=counts.requests,
        packs=counts.packs,
        map_bytes=counts.map_bytes + reader.totals.manifest_bytes,
    )


class _BySegment:
    """Ranges of the volume, asked for by ascending segments."""

    def __init__(self, ranges: Iterable[tuple[int, int]], segment_size: int) -> None:
        self._groups = groupby(ranges, key=lambda one: one[0] // segment_size)
        self._next = self._group()

    def _group(self) -> tuple[int, list[tuple[int, int]]] | None:
        found = next(self._groups, None)
        return None if found is None else (found[0], list(found[1]))

    def at(self, segment: int) -> list[tuple[int, int]]:
        """Return the ranges of a segment."""
        while self._next is not None and self._next[0] < segment:
            self._next = self._group()
        return self._next[1] if self._next is not None and self._next[0] == segment else []


def _tasks(
    reader: ManifestReader, start: int, dirty: bool, meter: Meter, chosen: _BySegment | None = None
) -> Iterator[RestoreTask]:
    """Yield what is to be done from segment ``start`` on, ascending."""
    position = start
    for entry in reader.segments():
        if entry.index < start:
            meter.add(entry.data_bytes)
            continue
        if dirty and entry.index > position:
            yield RestoreTask(position, entry.index)
        if chosen is None:
            yield RestoreTask(entry.index, entry.index + 1, entry)
        elif only := chosen.at(entry.index):
            yield RestoreTask(entry.index, entry.index + 1, entry, only)
        position = entry.index + 1
    if dirty and position < reader.head.geometry.segments:
        yield RestoreTask(position, reader.head.geometry.segments)


def _add(total: RestoreDone, done: RestoreDone) -> None:
    for name in (
        "written_bytes",
        "zeroed_bytes",
        "needed_bytes",
        "fetched_bytes",
        "requests",
        "packs",
        "map_bytes",
    ):
        setattr(total, name, getattr(total, name) + getattr(done, name))


class _Task(Protocol):
    """What is done of the volume: from ``first`` up to ``end``."""

    @property
    def first(self) -> int: ...

    @property
    def end(self) -> int: ...


_SomeTask = TypeVar("_SomeTask", bound=_Task)


class Progress:
    """Knows which tasks are under way and saves the checkpoint, always after a flush.

    :param segment_size: bytes of what tasks and checkpoints count.
    """

    def __init__(self, target: BlockTarget, segment_size: int, checkpoint: Checkpoint) -> None:
        self._target = target
        self._segment_size = segment_size
        self._checkpoint = checkpoint
        self._open: list[_Task] = []
        self._next = checkpoint.start
        self._saved = checkpoint.start
        self._written: list[_Task] = []

    def watch(self, tasks: Iterator[_SomeTask]) -> Iterator[_SomeTask]:
        """Pass the tasks on, noting that they are under way."""
        for task in tasks:
            self._open.append(task)
            self._next = task.end
            yield task

    def finished(self, task: _Task) -> None:
        """Note that a task is done; flush and save when it is time."""
        self._open.remove(task)
        self._written.append(task)
        # Tasks are handed out in order: below the first that is under way all are done.
        segment = self._open[0].first if self._open else self._next
        if segment > self._saved or len(self._written) >= FLUSH_TASKS:
            self.save(segment)

    def save(self, segment: int) -> None:
        """Make everything written durable, then save that all below ``segment`` is."""
        try:
            self._target.flush()
        except OSError as error:
            raise target_error(error) from error
        for task in self._written:
            length = (task.end - task.first) * self._segment_size
            self._target.release_cache(task.first * self._segment_size, length)
        self._written.clear()
        self._saved = segment
        crash_points.reach("restore.flushed", segment)
        self._checkpoint.save(segment)
        crash_points.reach("restore.checkpointed", segment)

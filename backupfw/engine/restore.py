"""Restoring: manifest -> maps -> packs -> blocks, every one verified before it is written.

The calling thread reads the manifest as a stream and keeps the checkpoint.  Streams (threads) restore the
segments, and visit each pack once.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
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
    tasks = progress.watch(_tasks(reader, point.start, dirty, meter))
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


def _tasks(reader: ManifestReader, start: int, dirty: bool, meter: Meter) -> Iterator[RestoreTask]:
    """Yield what is to be done from segment ``start`` on, ascending."""
    position = start
    for entry in reader.segments():
        if entry.index < start:
            meter.add(entry.data_bytes)
            continue
        if dirty and entry.index > position:
            yield RestoreTask(position, entry.index)
        yield RestoreTask(entry.index, entry.index + 1, entry)
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

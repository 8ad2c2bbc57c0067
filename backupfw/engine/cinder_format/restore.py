"""Restoring a chain: each range is written once, by the newest link that has it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from oslo_log import log

from backupfw import crash_points
from backupfw.chunkstore.errors import IntegrityError
from backupfw.engine.cinder_format.chain import Chain, Task
from backupfw.engine.cinder_format.reading import TaskReader, Zeros
from backupfw.engine.pool import Halt, Meter, Streams
from backupfw.engine.ports import Checkpoint, Control
from backupfw.engine.restore import Progress
from backupfw.engine.segment_restore import ZERO_BYTES, target_error
from backupfw.errors import Damaged, TargetError
from backupfw.volume.base import BlockTarget

LOG = log.getLogger(__name__)

#: A run of zeros at least so long, at a multiple of it, is not written.
_GRAIN = 32 << 10
_ZEROS = bytes(_GRAIN)


def run(
    chain: Chain,
    target: BlockTarget,
    control: Control,
    checkpoint: Checkpoint | None = None,
    *,
    streams: int = 2,
) -> int:
    """Write a backup's bytes to a target, from its start; bytes past the backup's length stay.

    When this returns, all of it is durable in the target, which has zeros where the backup has them.  A block
    with a hash is verified before it is written; on an error the target's content is undefined above the last
    checkpoint.

    :param chain: all its links; the caller closes it.
    :param checkpoint: where to begin, in bytes, and what is called with the progress.
    :param streams: tasks worked on at the same time; each takes about 10 MiB for each link that it reads.
    :returns: bytes of the volume.
    :raises Damaged: an object is missing, or its bytes are wrong; names store, container and key.
    :raises InvalidInput: the volume is cut into more parts than any that is made.
    :raises TargetError: the target is too small or refuses writes.
    :raises ChunkStoreError: the store could not be read.
    :raises TaskStopped: the control said so.
    """
    point = checkpoint or Checkpoint()
    length = chain.length
    if target.length < length:
        raise TargetError("The volume is smaller than the backup.")
    halt = Halt(control)
    meter = Meter(control, length)
    meter.add(point.start)
    progress = Progress(target, 1, point)
    pool = Streams(lambda: _Writer(target, halt, meter), streams, halt)
    with contextlib.closing(pool.run(progress.watch(chain.tasks(point.start)))) as results:
        for done in results:
            control.check()
            progress.finished(done)
    progress.save(length)
    meter.finish()
    return length


class _Writer:
    """One stream.  Not thread-safe."""

    def __init__(self, target: BlockTarget, halt: Halt, meter: Meter) -> None:
        self._target = target
        self._halt = halt
        self._meter = meter
        self._reader = TaskReader(halt)

    def close(self) -> None:
        """Nothing to give up."""

    def work(self, task: Task) -> Task:
        """Write one task; the bytes are not yet flushed."""
        try:
            self._write(task)
        except Damaged as error:
            # It may have changed on the way.
            LOG.warning("%s; reading it once more", error)
            if self._target.takes_once:
                for _ in self._reader.windows(task):
                    pass
                raise IntegrityError(
                    "its bytes have changed on the way",
                    store=error.store,
                    container=error.container,
                    key=error.key,
                    temporary=True,
                ) from error
            self._write(task, again=True)
        self._meter.add(task.end - task.first)
        return task

    def _write(self, task: Task, *, again: bool = False) -> None:
        # Bytes that nobody could compare before the end of their object are in the target already.
        dirty = again or not self._target.reads_zero
        for position, window in self._reader.windows(task):
            self._halt.may_write()
            crash_points.reach("restore.writing", position)
            try:
                if isinstance(window, Zeros):
                    self._zero(position, window.length, dirty)
                    continue
                for start, end, is_zero in _runs(window):
                    if is_zero:
                        self._zero(position + start, end - start, dirty)
                    else:
                        self._target.write(position + start, [window[start:end]])
            except OSError as error:
                raise target_error(error) from error

    def _zero(self, start: int, length: int, dirty: bool) -> None:
        """Zero a range of a target that may have something there (``dirty``), in pieces."""
        end = start + length if dirty else start
        while start < end:
            self._halt.check()
            self._halt.may_write()
            piece = min(ZERO_BYTES, end - start)
            self._target.zero(start, piece)
            start += piece


def _runs(window: memoryview) -> Iterator[tuple[int, int, bool]]:
    """Yield start, end and whether it is zero of each run of a window."""
    start, last = 0, False
    for at in range(0, len(window), _GRAIN):
        # Bytes are compared by one call of C, a view is not.
        grain = bytes(window[at : at + _GRAIN])
        is_zero = grain == _ZEROS[: len(grain)]
        if at and is_zero != last:
            yield start, at, last
            start = at
        last = is_zero
    yield start, len(window), last

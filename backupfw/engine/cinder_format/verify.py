"""Verifying a chain: everything that a restore would read is read, and each damaged object reported."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Sequence

from backupfw.engine.cinder_format.chain import Chain, Place, Task, missing
from backupfw.engine.cinder_format.reading import TaskReader
from backupfw.engine.pool import Halt, Meter, Streams
from backupfw.engine.ports import Control, VerifyReport
from backupfw.errors import Damaged

#: Called with the container and the key of a damaged object and what is wrong with it.
OnDamaged = Callable[[str, str, str], None]


def run(
    places: Sequence[Place],
    control: Control,
    on_damaged: OnDamaged,
    *,
    quick: bool = False,
    streams: int = 2,
) -> VerifyReport:
    """Look at everything that a restore of a backup reads; objects that newer links replace are not read.

    :param places: of its links, the backup's own first.
    :param on_damaged: called once per damaged object while the work goes on, by one thread at a time; what it
        raises ends the work.
    :param quick: the metadata of all links is read, and the other objects are only looked for.
    :returns: counts; ``ok`` says whether all is well.
    :raises UnsupportedFormat, InvalidInput, ChunkStoreError, TaskStopped: as a restore.
    """
    found = _Found(on_damaged)
    try:
        with contextlib.closing(Chain.of(places, control)) as chain:
            _verify(chain, control, found, quick, streams)
    except Damaged as error:
        # Data objects are reported where they are read; this is metadata, or the list of hashes.
        found.report(error)
    return VerifyReport(found.objects, found.blocks, found.bytes, found.damaged)


def look(chain: Chain, control: Control) -> VerifyReport:
    """Verify a chain quickly, for an import.

    :raises Damaged: objects of one link overlap.
    :raises InvalidInput, ChunkStoreError, TaskStopped: as :func:`run`.
    """
    found = _Found(lambda *_: None)
    _verify(chain, control, found, quick=True, streams=1)
    return VerifyReport(found.objects, found.blocks, found.bytes, found.damaged)


def _verify(chain: Chain, control: Control, found: _Found, quick: bool, streams: int) -> None:
    found.objects += len(chain.links)
    halt = Halt(control)
    meter = Meter(control, chain.length)
    pool = Streams(lambda: _Verifier(halt, meter, found, quick), streams, halt)
    with contextlib.closing(pool.run(chain.tasks(with_hashes=not quick))) as results:
        for _ in results:
            control.check()
    meter.finish()


class _Found:
    """Counts.  Thread-safe."""

    def __init__(self, on_damaged: OnDamaged) -> None:
        self.objects = self.blocks = self.bytes = self.damaged = 0
        self._on_damaged = on_damaged
        self._lock = threading.Lock()
        self._reported: set[tuple[str, str]] = set()

    def report(self, error: Damaged) -> None:
        """Report an object, once."""
        with self._lock:
            if (error.container, error.key) not in self._reported:
                self._reported.add((error.container, error.key))
                self.damaged += 1
                self._on_damaged(error.container, error.key, error.reason)

    def add(self, objects: int, blocks: int, size: int) -> None:
        """Count what a task has."""
        with self._lock:
            self.objects += objects
            self.blocks += blocks
            self.bytes += size


class _Verifier:
    """One stream.  Not thread-safe."""

    def __init__(self, halt: Halt, meter: Meter, found: _Found, quick: bool) -> None:
        self._reader = TaskReader(halt)
        self._halt = halt
        self._meter = meter
        self._found = found
        self._quick = quick

    def close(self) -> None:
        """Nothing to give up."""

    def work(self, task: Task) -> None:
        """Look at one task."""
        sources = {part.source.key: part.source for part in task.parts if part.source is not None}
        bad: set[str] = set()
        for key, source in sources.items():
            if source.size is None:
                self._halt.check()
                error = missing(source.container, key)
                if not isinstance(error, Damaged):
                    raise error
                self._found.report(error)
                bad.add(key)
        blocks = 0
        if not self._quick:
            blocks = -(-(task.end - task.first) // task.block_size)
            self._read(task, bad)
        size = 0 if self._quick else sum(one.size or 0 for one in sources.values())
        self._found.add(len(sources), blocks, size)
        self._meter.add(task.end - task.first)

    def _read(self, task: Task, bad: set[str]) -> None:
        """Read a task until nothing is wrong but what was reported."""
        again = ""
        while True:
            try:
                for _ in self._reader.windows(task, bad):
                    pass
                return
            except Damaged as error:
                # It may have changed on the way: two reads must find it wrong.
                if error.key == again or error.key in bad:
                    self._found.report(error)
                    if error.key in bad or not any(
                        part.source is not None and part.source.key == error.key for part in task.parts
                    ):
                        return
                    bad.add(error.key)
                again = error.key

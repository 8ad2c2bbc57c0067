"""A chain as a point, from which a backup of our own format is made.

A point is read by several streams, each at another place, and a block may be read again; a chain, and its
list of hashes, can only be walked from the start.  So a thread restores the chain to a temporary file, a
little ahead of the reader, and what was read is given back.  Only what was compared with the hashes of its
blocks and the MD5 of its objects can be read.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
import threading
from collections.abc import Callable, Sequence
from contextvars import copy_context

from backupfw.chunkstore.cancellation import cancelled_by
from backupfw.engine.cinder_format import restore
from backupfw.engine.cinder_format.chain import Chain, Place
from backupfw.engine.cinder_format.metadata import Head
from backupfw.engine.ports import Checkpoint, Control
from backupfw.errors import EngineError, TaskStopped
from backupfw.volume.base import Point
from backupfw.volume.local.descriptor import Descriptor
from backupfw.volume.local.target import LocalTarget

#: How far the restore may be ahead of what was asked for, bytes: the temporary file has about so many, and
#: the segments that are being read.
AHEAD_BYTES = 1 << 30
#: Seconds after which a reader that waits looks whether it must end.
_LOOK_SECONDS = 0.5


class BehindStart(EngineError):
    """A part of the volume is read that was not to be: a new point must begin at the volume's start."""


class ChainPoint(Point):
    """The volume as a backup of Cinder's format has it.  ``read_into`` raises what a restore does, too.

    :param places: of the links, newest first.
    :param control: of the task; only asked whether it must end.
    :param start: bytes of the volume that need not be read.
    :param streams: threads that restore.
    :raises Damaged: the metadata of a link is missing or wrong.
    :raises ChunkStoreError: the store could not be read.
    """

    #: What the newest link says.
    head: Head

    def __init__(
        self, places: Sequence[Place], control: Control, *, start: int = 0, streams: int = 2
    ) -> None:
        self._places = places
        self._control = control
        self._streams = streams
        self._changed = threading.Condition()
        self._known: list[tuple[int, Head]] = []
        self._start = self._ready = self._asked = start
        self._error: BaseException | None = None
        self._closed = False
        self._file = tempfile.TemporaryFile(prefix="backupfw-convert-")  # noqa: SIM115
        self._target: LocalTarget | None = None
        self._thread = threading.Thread(
            target=copy_context().run, args=(self._restore,), name="chain", daemon=True
        )
        self._thread.start()
        try:
            self._wait(lambda: bool(self._known))
        except BaseException:
            self.close()
            raise
        self.length, self.head = self._known[0]
        names = "\n".join(f"{place.container.name}/{place.prefix}" for place in places)
        # Links never change, so their names say what the bytes are.
        self.identity = f"chain {hashlib.sha256(names.encode()).hexdigest()}"

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """See :meth:`Point.read_into`.

        :raises BehindStart: the range begins before the point's ``start``.
        """
        if offset < self._start:
            raise BehindStart(f"byte {offset} was not to be read")
        end = offset + len(buffer)
        with self._changed:
            self._asked = max(self._asked, end)
            self._changed.notify_all()
        self._wait(lambda: self._ready >= end)
        assert self._target is not None
        self._target.read_into(offset, buffer)

    def check_still(self) -> None:
        """Raise what ended the restore."""
        self._wait(lambda: True)

    def release_cache(self, offset: int, length: int) -> None:
        """Give the space of a range back: it is not read again."""
        assert self._target is not None
        self._target.zero(offset, length)

    def close(self, keep: bool = False) -> None:
        """See :meth:`Point.close`."""
        del keep
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join()
        if self._target is not None:
            self._target.close()
        self._file.close()

    def _wait(self, is_true: Callable[[], bool]) -> None:
        with self._changed:
            while True:
                if self._error is not None:
                    raise self._error
                if is_true():
                    return
                self._changed.wait(_LOOK_SECONDS)
                self._control.check()

    def _restore(self) -> None:
        try:
            with contextlib.closing(Chain.of(self._places, self)) as chain, cancelled_by(self.check):
                self._file.truncate(chain.length)
                self._target = _Spool(
                    Descriptor(os.dup(self._file.fileno())), chain.length, reads_zero=True, is_device=False
                )
                with self._changed:
                    self._known.append((chain.length, chain.head))
                    self._changed.notify_all()
                start = min(self._start, chain.length)
                restore.run(
                    chain, self._target, self, Checkpoint(start, self._restored), streams=self._streams
                )
        except BaseException as error:  # noqa: BLE001  (raised to whoever reads)
            with self._changed:
                self._error = error
                self._changed.notify_all()

    def _restored(self, position: int) -> None:
        """Let what was restored be read, and wait for the reader."""
        with self._changed:
            self._ready = position
            self._changed.notify_all()
            while not self._closed and self._ready > self._asked + AHEAD_BYTES:
                self._changed.wait(_LOOK_SECONDS)
                self._control.check()

    # The control of the restore.

    def check(self) -> None:
        """Raise when the restore must end."""
        if self._closed:
            raise TaskStopped("The chain is not read any more.")
        self._control.check()

    def may_write(self) -> None:
        """The temporary file is nobody else's."""

    def progress(self, done: int, total: int) -> None:
        """Do nothing: the reader reports."""


class _Spool(LocalTarget):
    """The temporary file: nothing of it outlives the process."""

    def flush(self) -> None:
        """Do nothing."""

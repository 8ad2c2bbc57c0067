"""A machine that writes into a volume all the time: whoever reads it must see it as of one moment."""

from __future__ import annotations

import itertools
import threading
from types import TracebackType
from typing import Self

from backupfw.testing.volume.adoption import Subject
from backupfw.volume.base import Point

#: Places that are written in turn.
_SLOTS = 23
#: How many writes there are before anything is read, and while it is.
_WRITES = 2 * _SLOTS


class Writer:
    """Writes ascending numbers, each to the next of some places, in a ``with`` block.

    :ivar done: the last number that was written.
    """

    def __init__(self, volume: Subject) -> None:
        self._volume = volume
        self._size = volume.disk.length // _SLOTS
        self._begun = self.done = 0
        self._stop = threading.Event()
        self._failed: list[BaseException] = []
        self._thread = threading.Thread(target=self._write)

    def __enter__(self) -> Self:
        self._thread.start()
        self.go_on()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        assert not self._failed, self._failed

    def go_on(self) -> None:
        """Return when everything was written twice more."""
        until = self.done + _WRITES
        while self.done < until and self._thread.is_alive():
            self._stop.wait(0.001)

    def moment(self, point: Point) -> int:
        """Return the number of the last write that a point has; fail if it has not all before it."""
        found = []
        for slot in range(_SLOTS):
            data = bytearray(8)
            point.read_into(slot * self._size + 7, memoryview(data))
            found.append(int.from_bytes(data, "big"))
        moment = max(found)
        assert moment <= self._begun
        assert found == [moment - (moment - slot) % _SLOTS for slot in range(_SLOTS)], "it is of two moments"
        return moment

    def _write(self) -> None:
        suite, volume = self._volume.suite, self._volume
        try:
            for number in itertools.count(1):
                if self._stop.is_set():
                    return
                self._begun = number
                offset = number % _SLOTS * self._size + 7
                suite.raw_write(volume.server, volume.ref, offset, number.to_bytes(8, "big"))
                self.done = number
        except BaseException as error:
            self._failed.append(error)

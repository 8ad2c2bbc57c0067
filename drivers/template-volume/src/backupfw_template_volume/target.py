"""A target: a disk on the array, open for writing with a pass that only the latest writer has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from backupfw.errors import TargetError
from backupfw.volume.base import BlockTarget
from backupfw_template_volume.array import Array, Missing, Refused


class TemplateTarget(BlockTarget):
    """Writes to a disk.

    :param disk: the array's description of the disk.
    :param name: the disk's name.
    :param writer: the pass; the array refuses it when there is a later one.
    """

    def __init__(self, array: Array, disk: Any, name: str, writer: str, *, reads_zero: bool) -> None:
        self._array = array
        self._name = name
        self._writer = writer
        self._closed = False
        self.length = disk["length"]
        self.storage_id = disk["serial"]
        self.reads_zero = reads_zero

    def write(self, offset: int, buffers: Sequence[bytes | memoryview]) -> None:
        """Send the bytes; the array has them durably when it answers."""
        self._change("bytes", offset, sum(map(len, buffers)), b"".join(buffers))

    def zero(self, offset: int, length: int) -> None:
        """Let the array make it zeros."""
        self._change("zeros", offset, length, None)

    def flush(self) -> None:
        """Nothing is held back here."""

    def close(self) -> None:
        """Write no more.  The pass stays good, for nobody, until the next writer gets one."""
        self._closed = True

    def _change(self, what: str, offset: int, length: int, body: bytes | None) -> None:
        if offset + length > self.length:
            raise ValueError(f"{length} bytes at {offset} are not within {self.length}")
        if self._closed:
            raise ValueError("the target is closed")
        query: Mapping[str, str | int] = {"offset": offset, "length": length, "pass": self._writer}
        try:
            self._array.call("PUT", self._name, what, query, body)
        except Refused as error:
            raise TargetError("A later attempt writes to this volume.") from error
        except Missing as error:
            raise TargetError("The volume is gone.") from error

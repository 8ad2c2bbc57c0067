"""A point and a target of an export."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from backupfw.errors import SourceUnreadable
from backupfw.volume.base import BlockTarget, Extent, Kind, Point
from backupfw.volume.nbd.client import ALLOCATION, ZERO, Client, ServerLost


class NbdPoint(Point):
    """An export that is read.  Thread-safe.

    :param client: connected; owned by this object.
    :param identity: see :class:`Point`, as ``storage_id``.
    """

    def __init__(self, client: Client, identity: str, *, storage_id: str | None = None) -> None:
        self.client = client
        self.length = client.length
        self.identity = identity
        self.storage_id = storage_id

    def extents(self, start: int, end: int, since: str | None = None) -> Iterator[Extent]:  # noqa: ARG002
        """Say what reads as zeros, where the server knows it."""
        if ALLOCATION not in self.client.contexts:
            yield Extent(start, end - start, Kind.DATA)
            return
        for status in self.status(ALLOCATION, start, end):
            yield Extent(status[0], status[1], Kind.ZERO if status[2] & ZERO else Kind.DATA)

    def status(self, context: str, start: int, end: int) -> Iterator[tuple[int, int, int]]:
        """Say what a context has for a range; see :meth:`Client.status`."""
        try:
            yield from self.client.status(context, start, end)
        except ServerLost as error:
            raise _lost(error) from error

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill ``buffer`` from ``offset``."""
        try:
            self.client.read_into(offset, buffer)
        except ServerLost as error:
            raise _lost(error) from error

    def close(self, keep: bool = False) -> None:  # noqa: ARG002
        """End the connections."""
        self.client.close()


class NbdTarget(BlockTarget):
    """An export that is written.  Thread-safe.

    :param client: connected; owned by this object.
    """

    def __init__(self, client: Client, *, storage_id: str | None = None) -> None:
        self.client = client
        self.length = client.length
        self.storage_id = storage_id
        self.reads_zero = False

    def write(self, offset: int, buffers: Sequence[bytes | memoryview]) -> None:
        """Write all buffers, one after the other, from ``offset``."""
        # One request is faster than many; the copy costs less.
        data = buffers[0] if len(buffers) == 1 else b"".join(buffers)
        self.client.write(offset, data)

    def zero(self, offset: int, length: int) -> None:
        """Zero the range, as a hole where the server can."""
        self.client.zero(offset, length)

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill ``buffer`` from ``offset``."""
        self.client.read_into(offset, buffer)

    def flush(self) -> None:
        """Return when everything written so far is durable."""
        self.client.flush()

    def close(self) -> None:
        """End the connections."""
        self.client.close()


def _lost(error: ServerLost) -> SourceUnreadable:
    found = SourceUnreadable(f"The volume could not be read: {error.strerror}.")
    # The server, or the way to it, may be back soon.
    found.may_pass = True
    return found

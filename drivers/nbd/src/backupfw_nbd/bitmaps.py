"""A point of which QEMU's dirty bitmaps know what changed since earlier ones."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from backupfw.volume.base import Extent, Kind
from backupfw.volume.nbd.blocks import NbdPoint
from backupfw.volume.nbd.client import DIRTY, Client


@dataclass(frozen=True, slots=True)
class Since:
    """What is known of an earlier point.

    :ivar context: has what was written since then.
    :ivar length: of the volume at that time, bytes.
    """

    context: str
    length: int


class BitmapPoint(NbdPoint):
    """An export that is read.  Thread-safe.

    :param client: connected, with the bitmaps' contexts; owned by this object.
    :param token: see :class:`Point`, as ``storage_id`` and ``identity``.
    :param earlier: the points that it can be compared with, by token.
    """

    def __init__(
        self,
        client: Client,
        identity: str,
        *,
        token: str | None,
        earlier: Mapping[str, Since],
        storage_id: str | None = None,
    ) -> None:
        super().__init__(client, identity, storage_id=storage_id)
        self.token = token
        self._earlier = earlier

    def compare(self, since: str) -> str | None:
        """Accept the token of a point whose bitmap is shown with this one."""
        found = self._earlier.get(since)
        if found is None or found.context not in self.client.contexts:
            return "no dirty bitmap that began then is shown"
        return None

    def extents(self, start: int, end: int, since: str | None = None) -> Iterator[Extent]:
        """Say what is allocated, and what changed by the bitmap."""
        known = start
        if since is not None:
            earlier = self._earlier[since]
            known = min(end, max(start, earlier.length))
            for offset, length, flags in self.status(earlier.context, start, known):
                if flags & DIRTY:
                    yield from super().extents(offset, offset + length)
                else:
                    yield Extent(offset, length, Kind.SAME)
        if known < end:
            yield from super().extents(known, end)

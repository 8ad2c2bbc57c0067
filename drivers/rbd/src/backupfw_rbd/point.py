"""Reads a snapshot of an image."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from backupfw.errors import SourceMoved
from backupfw.volume.base import Extent, Kind, Point
from backupfw_rbd import changes
from backupfw_rbd.cluster import Opened, bindings, translated

# Most bytes of one request: what librbd reads is copied once, so that many are there twice.
_MOST = 8 << 20

_FORMAT = "rbd1"


@dataclass(frozen=True, slots=True)
class Token:
    """The state of an image in one of its snapshots."""

    storage_id: str
    snapshot_id: int

    def __str__(self) -> str:
        return f"{_FORMAT}:{self.storage_id}:{self.snapshot_id}"

    @classmethod
    def parse(cls, text: str) -> Token | None:
        """Read the text; None: it is none."""
        parts = text.split(":")
        if len(parts) != 3 or parts[0] != _FORMAT or not (parts[2].isascii() and parts[2].isdigit()):
            return None
        return cls(parts[1], int(parts[2]))


class RbdPoint(Point):
    """A snapshot of an image, open for reading.  Thread-safe.

    :param opened: the snapshot, open; owned by this object.
    :param snapshot_id: Ceph's number of the snapshot.
    :param storage_id: see :class:`Point`.
    :param discard: removes the snapshot; None: it is not this point's own.
    :param open_at: opens another snapshot of the image, by its name.
    :param problem: says why the library's differences cannot be relied on, or None.
    """

    def __init__(
        self,
        opened: Opened,
        snapshot_id: int,
        *,
        storage_id: str | None,
        discard: Callable[[], None] | None,
        open_at: Callable[[str], Opened],
        problem: Callable[[], str | None],
    ) -> None:
        self._opened = opened
        self._snapshot_id = snapshot_id
        self._discard = discard
        self._open_at = open_at
        self._problem = problem
        self._lock = threading.Lock()
        self._allocated: changes.Known | None = None
        self._changed: dict[str, changes.Known] = {}
        # Whether bytes were read since the snapshot was last seen.
        self._unproven = False
        self.storage_id = storage_id
        self.token = self.identity = str(Token(opened.storage_id, snapshot_id))
        with opened as image, translated(f"opening {opened.place}"):
            self.length = image.size()

    def compare(self, since: str) -> str | None:
        """Compute what changed since an earlier snapshot of this image that is still there."""
        token = Token.parse(since)
        if token is None:
            return "it is of another kind of storage"
        if token.storage_id != self._opened.storage_id:
            return "it is of another image"
        if token.snapshot_id > self._snapshot_id:
            return "it is of a later point"
        if (problem := self._problem()) is not None:
            return problem
        base = self._name_of(token.snapshot_id)
        if base is None:
            return "its snapshot was removed"
        here = self._known()
        if token.snapshot_id == self._snapshot_id:
            found = changes.Known((), (), Kind.SAME)
        else:
            with (
                closing(self._open_at(base)) as opened,
                opened as earlier,
                self._opened as image,
                translated(f"comparing {self._opened.place} with {base}"),
            ):
                found = changes.changed(image, earlier, base, here)
            # Of a snapshot that is removed meanwhile, Ceph says anything.
            if self._name_of(token.snapshot_id) is None:
                return "its snapshot was removed"
        self.check_still()
        self._changed[since] = found
        return None

    def extents(self, start: int, end: int, since: str | None = None) -> Iterator[Extent]:
        """Say what there is, or what changed."""
        known = self._known() if since is None else self._changed[since]
        return known.extents(start, end)

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill ``buffer`` from ``offset``."""
        view = buffer.cast("B")
        if offset < 0 or offset + len(view) > self.length:
            raise ValueError(f"{len(view)} bytes at {offset} are not within {self.length}")
        self._unproven = True
        with self._opened as image, translated(f"reading {self._opened.place}"):
            while view:
                data = image.read(offset, min(len(view), _MOST))
                if not data:
                    raise SourceMoved("The volume became shorter while it was read.")
                view[: len(data)] = data
                offset += len(data)
                view = view[len(data) :]

    def check_still(self) -> None:
        """Look whether the snapshot is there.

        Of one that was removed, Ceph returns zeros or newer bytes, without an error.  Ids of snapshots are
        not used twice, so all that was read before is right if the snapshot is still there.
        """
        with self._lock:
            if not self._unproven:
                return
            # Set first: what is read meanwhile is to be proven by the next call.
            self._unproven = False
            try:
                there = self._snapshot_id in self._opened.snapshot_ids()
            except BaseException:
                self._unproven = True
                raise
            if not there:
                self._unproven = True
                lost = SourceMoved("The snapshot that was read was removed.")
                # The next attempt takes a new one, if the image is still there.
                lost.may_pass = True
                raise lost

    def close(self, keep: bool = False) -> None:
        """Close the snapshot, and remove it if it is not kept."""
        discard, self._discard = self._discard, None
        self._opened.close()
        if discard is not None and not keep:
            discard()

    def _known(self) -> changes.Known:
        with self._lock:
            if self._allocated is None:
                with self._opened as image, translated(f"looking through {self._opened.place}"):
                    self._allocated = changes.allocated(image)
                self._unproven = True
            return self._allocated

    def _name_of(self, snapshot_id: int) -> str | None:
        """Return the name of a snapshot that was there when the point was opened, if it is still there."""
        if snapshot_id not in self._opened.snapshot_ids():
            return None
        with self._opened as image, translated(f"looking at {self._opened.place}"):
            found = (one["name"] for one in snapshots(image) if one["id"] == snapshot_id)
            return next(found, None)


def snapshots(image: Any) -> list[dict[str, Any]]:
    """Return the snapshots that users and programs made; not those of mirroring, groups and the trash."""
    _, rbd = bindings()
    return [one for one in image.list_snaps() if one["namespace"] == rbd.RBD_SNAP_NAMESPACE_TYPE_USER]


def trashed(image: Any) -> dict[int, str]:
    """Return the ids of the snapshots that are in the trash, and the names that they had.

    Ceph moves a snapshot there before it removes it, so a client that is killed in between leaves one.
    """
    _, rbd = bindings()
    return {
        one["id"]: one["trash"]["original_name"]
        for one in image.list_snaps()
        if one["namespace"] == rbd.RBD_SNAP_NAMESPACE_TYPE_TRASH
    }

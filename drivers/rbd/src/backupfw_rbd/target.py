"""Writes an image: one writer, which nobody else and no earlier writer can disturb.

A writer announces itself in the image's metadata: which attempt it is, and under which address the cluster
knows it.  Then it takes Ceph's exclusive lock, in the mode that no other client can ask it to give up.  A
later attempt has the cluster block the client of each earlier one: whatever that still sends is refused.
Other programs that have the image open are waited for, and never blocked.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from backupfw.errors import TargetError
from backupfw.volume.base import BlockTarget
from backupfw_rbd.cluster import Opened, bindings, metadata_of, translated

#: What the keys of writers in an image's metadata begin with; their addresses follow.
WRITER = "backupfw.writer."

# Most bytes that are joined for one request.
_MOST = 8 << 20
# Most bytes that are zeroed by one request, so that it ends in time.
_MOST_ZEROS = 1 << 30
# Seconds for which a writer is blocked: longer than its host may sleep. Ceph's default is an hour, and a
# client that wakes up later sends again what it was about to write, without asking for the lock.
_BLOCKED = 365 * 86400
# Seconds between two looks at an image that is in use.
_POLL = 0.5


def take_over(opened: Opened, attempt: int, wait: float) -> None:
    """Make an image that is open for writing this attempt's own.

    :param wait: seconds that other clients get to leave it.
    :raises TargetError: another client has it open, or a later attempt writes.
    """
    give_up = time.monotonic() + wait
    with opened as image, translated(f"taking over {opened.place}"):
        image.metadata_set(WRITER + opened.address, str(attempt))
    try:
        blocked: set[str] = set()
        while True:
            with opened as image, translated(f"taking over {opened.place}"):
                for address in _earlier(opened, image, attempt):
                    _block(opened, image, address)
                    blocked.add(address)
                if not _others(opened, image) - blocked and _locked(image):
                    # Whoever opened it meanwhile cannot write, but would not see what is written.
                    if not _others(opened, image) - blocked:
                        return
                    image.lock_release()
            if time.monotonic() >= give_up:
                raise TargetError("Another program has the image open.")
            time.sleep(_POLL)
    except BaseException:
        give_up_image(opened)
        raise


def give_up_image(opened: Opened) -> None:
    """Undo :func:`take_over`; a client that is blocked cannot, and need not."""
    _, rbd = bindings()
    with suppress(OSError, rbd.Error), opened as image:
        image.metadata_remove(WRITER + opened.address)
        if image.is_exclusive_lock_owner():
            image.lock_release()


def _others(opened: Opened, image: Any) -> set[str]:
    """Return the addresses of the other clients that have an image open for writing."""
    return {one["addr"] for one in image.watchers_list()} - {opened.address}


def _earlier(opened: Opened, image: Any, attempt: int) -> list[str]:
    """Return the addresses of the writers that announced themselves before, alive or not.

    :raises TargetError: one of them is a later attempt.
    """
    found = []
    for key, value in metadata_of(image).items():
        address = key.removeprefix(WRITER)
        if not key.startswith(WRITER) or address == opened.address:
            continue
        if value.isdecimal() and int(value) >= attempt and address in _others(opened, image):
            raise TargetError("A later attempt writes to the volume.")
        found.append(address)
    return found


def _block(opened: Opened, image: Any, address: str) -> None:
    """Let the cluster refuse whatever a client still sends, and forget the writer."""
    _, rbd = bindings()
    opened.cluster.blocklist_add(address, _BLOCKED)
    opened.cluster.wait_for_latest_osdmap()
    with suppress(rbd.ImageNotFound, rbd.ImageBusy):
        for owner in image.lock_get_owners():
            if owner["owner"] == address:
                image.lock_break(owner["mode"], address)
    with suppress(KeyError, rbd.ImageNotFound):
        image.metadata_remove(WRITER + address)


def _locked(image: Any) -> bool:
    _, rbd = bindings()
    try:
        image.lock_acquire(rbd.RBD_LOCK_MODE_EXCLUSIVE)
    except (rbd.ReadOnlyImage, rbd.ImageBusy, rbd.Timeout):
        return False
    return True


class RbdTarget(BlockTarget):
    """An image that this writer alone can write.  Thread-safe.

    :param opened: owned by this object; :func:`take_over` was called.
    :param reads_zero, storage_id: see :class:`BlockTarget`.
    """

    def __init__(self, opened: Opened, reads_zero: bool, storage_id: str | None) -> None:
        self._opened = opened
        self.reads_zero = reads_zero
        self.storage_id = storage_id
        with opened as image, translated(f"opening {opened.place}"):
            self.length = image.size()

    def write(self, offset: int, buffers: Sequence[bytes | memoryview]) -> None:
        """Write the buffers, joined to requests of some size."""
        size = sum(memoryview(buffer).nbytes for buffer in buffers)
        self._need(offset, size)
        with self._opened as image, translated(f"writing {self._opened.place}"):
            gathered: list[bytes | memoryview] = []
            count = 0
            for buffer in buffers:
                view = memoryview(buffer).cast("B")
                while view:
                    part = view[: _MOST - count]
                    gathered.append(part)
                    count += len(part)
                    view = view[len(part) :]
                    if count == _MOST:
                        image.write(b"".join(gathered), offset)
                        offset, count, gathered = offset + count, 0, []
            if gathered:
                image.write(b"".join(gathered), offset)

    def zero(self, offset: int, length: int) -> None:
        """Free whole objects, and write zeros where that would show older bytes or a parent's."""
        self._need(offset, length)
        with self._opened as image, translated(f"zeroing {self._opened.place}"):
            while length:
                count = min(length, _MOST_ZEROS)
                image.write_zeroes(offset, count)
                offset, length = offset + count, length - count

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill ``buffer`` from ``offset``."""
        self._need(offset, len(buffer))
        with self._opened as image, translated(f"reading {self._opened.place}"):
            buffer[:] = image.read(offset, len(buffer))

    def flush(self) -> None:
        """Return when everything written so far is in the cluster."""
        with self._opened as image, translated(f"flushing {self._opened.place}"):
            image.flush()

    def close(self) -> None:
        """Give the image up."""
        give_up_image(self._opened)
        self._opened.close()

    def _need(self, offset: int, length: int) -> None:
        if offset < 0 or length < 0 or offset + length > self.length:
            raise ValueError(f"{length} bytes at {offset} are not within {self.length}")

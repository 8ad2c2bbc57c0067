"""The provider: volumes are disks of an array that takes snapshots and knows what changed between them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, nullcontext, suppress
from typing import TYPE_CHECKING, Any

from backupfw.errors import InvalidInput, InvalidVolume, StorageChanged, TargetError
from backupfw.volume.base import (
    BlockTarget,
    Capabilities,
    Kind,
    Needed,
    Point,
    SnapshotRef,
    Storage,
    Tick,
    VolumeProvider,
    VolumeRef,
    no_tick,
)
from backupfw.volume.taking import taking_point
from backupfw_template_volume import options
from backupfw_template_volume.array import Array, Missing, Refused
from backupfw_template_volume.point import TemplatePoint
from backupfw_template_volume.target import TemplateTarget

if TYPE_CHECKING:
    from oslo_config import cfg

#: What the names of the snapshots of points begin with: nobody else's do.
POINT = "backupfw-point-"
#: The same for snapshots of the catalogue.
SNAPSHOT = "backupfw-snapshot-"


class TemplateProvider(VolumeProvider):
    """Volumes on an array.  Thread-safe.

    :param options: values of :meth:`options` by name.
    """

    API_VERSION = 2

    def __init__(self, options: Any) -> None:
        super().__init__(options)
        self._array = Array(options.endpoint, options.key, options.timeout)

    @property
    def capabilities(self) -> Capabilities:
        """The array can do everything."""
        return Capabilities(
            allocation=True, changes=True, live=True, snapshots=True, writes=True, fences=True
        )

    @classmethod
    def options(cls) -> Sequence[cfg.Opt]:
        """Return the provider's options."""
        return options.options()

    # ---- making, extending and deleting ----------------------------------------------------------

    def create(self, volume: VolumeRef, source: SnapshotRef | VolumeRef | None, tick: Tick = no_tick) -> str:
        """Make a disk: the array does it at once, or finds it made."""
        tick()
        name = _disk(volume)
        copied = None
        if source is not None:
            disk = self._found(source)
            length, copied = disk["length"], _disk(source)
            if isinstance(source, SnapshotRef):
                length, copied = source.length, f"{copied}@{SNAPSHOT}{source.id}"
            if length > volume.length:
                raise InvalidVolume("The volume is smaller than what it shall be made from.")
        self._array.call("PUT", name, query={"length": volume.length, "from": copied})
        return name

    def adopt(
        self,
        path: str,
        *,
        own: Sequence[str] = (),  # noqa: ARG002  (they are paths, and no disks)
        to_copy: bool = False,  # noqa: ARG002
        any_format: bool = False,  # noqa: ARG002
        in_use: bool = False,  # noqa: ARG002
    ) -> Storage:
        """Look at a disk that somebody else made."""
        if not path or "@" in path or len(path) > 255:
            raise InvalidInput("This is no name of a disk.")
        try:
            disk = self._array.ask("GET", path)
        except Missing as error:
            raise InvalidInput("The array has no disk of this name.") from error
        return Storage(path, disk["length"], disk["serial"])

    def adoptable(self) -> Iterator[Storage]:
        """Yield all disks of the array."""
        for name in self._array.ask("GET", ""):
            # One that is deleted meanwhile is none.
            with suppress(InvalidInput):
                yield self.adopt(name)

    def look(self, volume: VolumeRef) -> Storage:
        """Look at the disk."""
        disk = self._found(volume)
        return Storage(_disk(volume), disk["length"], _recorded(volume, disk))

    def delete(self, volume: VolumeRef) -> None:
        """Delete the disk, and the snapshots of its points before it."""
        if volume.adopted:
            return
        self.keep_points(volume, Needed)
        with suppress(Missing):
            self._array.call("DELETE", _disk(volume))

    def extend(self, volume: VolumeRef, length: int) -> None:
        """Let the array extend the disk; it never shrinks one."""
        self._found(volume)
        self._array.call("PUT", _disk(volume), "length", {"length": length})

    # ---- snapshots -------------------------------------------------------------------------------

    def create_snapshot(self, snapshot: SnapshotRef, in_use: bool, tick: Tick = no_tick) -> str:  # noqa: ARG002
        """Let the array take a snapshot, which is atomic, or find it taken."""
        tick()
        self._take(self._found(snapshot.volume), _disk(snapshot.volume), SNAPSHOT + snapshot.id)
        return f"{_disk(snapshot.volume)}@{SNAPSHOT}{snapshot.id}"

    def delete_snapshot(self, snapshot: SnapshotRef) -> None:
        """Delete the snapshot."""
        self._remove(_disk(snapshot.volume), SNAPSHOT + snapshot.id)

    # ---- opening ---------------------------------------------------------------------------------

    def open_point(self, ref: VolumeRef | SnapshotRef, point_id: str, tick: Tick = no_tick) -> Point:
        """Read a snapshot: that of the catalogue, or one that is taken now, or was by an earlier call."""
        tick()
        disk, name = self._found(ref), _disk(ref)
        if isinstance(ref, SnapshotRef):
            return TemplatePoint(self._array, disk, name, SNAPSHOT + ref.id, POINT, None)
        snapshot = POINT + point_id
        self._take(disk, name, snapshot)

        def remove() -> None:
            self._remove(name, snapshot)

        try:
            tick()
            return TemplatePoint(self._array, self._found(ref), name, snapshot, POINT, remove)
        except BaseException:
            remove()
            raise

    def keep_points(self, volume: VolumeRef, needed: Callable[[], Needed]) -> None:
        """Remove the snapshots of points that are not needed."""
        name = _disk(volume)
        try:
            disk = self._array.ask("GET", name)
        except Missing:
            return
        # First look, then ask: the point of a backup that begins in between is not among these.
        there = {each.removeprefix(POINT) for each in disk["snapshots"] if each.startswith(POINT)}
        if there:
            for point_id in needed().unneeded(there):
                self._remove(name, POINT + point_id)

    def open_target(self, volume: VolumeRef, attempt: int) -> AbstractContextManager[BlockTarget]:
        """Get a pass from the array: it takes no bytes of earlier writers any more."""
        disk, name = self._found(volume), _disk(volume)
        try:
            writer = self._array.ask("PUT", name, "writer", {"attempt": attempt})
        except Refused as error:
            raise TargetError("A later attempt writes to this volume.") from error
        first = self._array.ask("GET", name, "map", {"start": 0, "end": disk["length"]})[0]
        empty = first[1] == disk["length"] and Kind(first[2]) is Kind.ZERO
        return closing(TemplateTarget(self._array, disk, name, writer, reads_zero=empty))

    # ---- helpers ---------------------------------------------------------------------------------

    def _take(self, disk: Any, name: str, snapshot: str) -> None:
        """Let the array take a snapshot; programs may be told to wait while it takes a new one."""
        with nullcontext() if snapshot in disk["snapshots"] else taking_point():
            self._array.call("PUT", f"{name}@{snapshot}")

    def _found(self, ref: VolumeRef | SnapshotRef) -> Any:
        """Return the array's description of a reference's disk.

        :raises StorageChanged: it is not what the catalogue says.
        """
        volume = ref.volume if isinstance(ref, SnapshotRef) else ref
        name, hint = _disk(volume), f"it is disk {_disk(volume)} of the array"
        try:
            disk = self._array.ask("GET", name)
        except Missing as error:
            raise StorageChanged(f"volume {volume.id}", "is gone", hint) from error
        if volume.storage_id is not None and volume.storage_id != disk["serial"]:
            raise StorageChanged(f"volume {volume.id}", "is another one than was adopted", hint)
        if isinstance(ref, SnapshotRef):
            if SNAPSHOT + ref.id not in disk["snapshots"]:
                raise StorageChanged(f"snapshot {ref.id}", "is gone", hint)
        elif disk["length"] < volume.length:
            problem = f"is shorter than it should be: it has {disk['length']} of {volume.length} bytes"
            raise StorageChanged(f"volume {volume.id}", problem, hint)
        return disk

    def _remove(self, disk: str, snapshot: str) -> None:
        with suppress(Missing):
            self._array.call("DELETE", f"{disk}@{snapshot}")


def _disk(ref: VolumeRef | SnapshotRef) -> str:
    """Return the name of a reference's disk; ours is found by the volume's id."""
    volume = ref.volume if isinstance(ref, SnapshotRef) else ref
    return (volume.location or "") if volume.adopted else f"backupfw-volume-{volume.id}"


def _recorded(volume: VolumeRef, disk: Any) -> str | None:
    """Return the storage id for the catalogue; ours is identified by its name."""
    return disk["serial"] if volume.adopted else None

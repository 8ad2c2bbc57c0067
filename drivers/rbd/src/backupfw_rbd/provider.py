"""The provider ``rbd``: images of Ceph, through librbd."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, closing
from typing import TYPE_CHECKING, Any, ClassVar

from backupfw.errors import InvalidInput, InvalidVolume
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
from backupfw_rbd.cluster import bindings
from backupfw_rbd.images import Images
from backupfw_rbd.options import connection, pools, rbd_options
from backupfw_rbd.places import OWN, Place

if TYPE_CHECKING:
    from oslo_config import cfg

# Bytes that a copy moves at once.
_PIECE = 4 << 20


class RbdProvider(VolumeProvider):
    """Volumes that are images of one Ceph cluster.  Thread-safe."""

    API_VERSION: ClassVar[int] = 2

    def __init__(self, options: Any) -> None:
        """Take the options' values; the cluster is asked later.

        :raises ConfigError: one of them cannot be, or librbd's bindings are not installed.
        """
        super().__init__(options)
        self._pools = pools(options)
        reached = connection(options)
        bindings()
        self._images = Images(reached, float(options.fence_wait))

    @property
    def capabilities(self) -> Capabilities:
        """It can do everything."""
        return Capabilities(
            allocation=True, changes=True, live=True, snapshots=True, writes=True, fences=True
        )

    @classmethod
    def options(cls) -> Sequence[cfg.Opt]:
        """Return the provider's options."""
        return rbd_options()

    # -- making, extending and deleting

    def create(self, volume: VolumeRef, source: SnapshotRef | VolumeRef | None, tick: Tick = no_tick) -> str:
        """Make an image; a copy gets its name when it is complete."""
        place = self._own_place(volume)
        if source is None:
            self._images.create(place, volume.length)
        elif not self._images.exists(place):
            self._copy(place, volume, source, tick)
        tick()
        return str(place)

    def adopt(
        self,
        path: str,
        *,
        own: Sequence[str] = (),  # noqa: ARG002
        to_copy: bool = False,
        any_format: bool = False,  # noqa: ARG002
        in_use: bool = False,
    ) -> Storage:
        """Look at an image, or at a snapshot of one, which is never written then."""
        place = Place.parse(path)
        if (place.pool, place.namespace) not in self._pools:
            raise InvalidInput(f"{path} is in a pool or namespace that this back end does not have.")
        return self._images.adopt(place, in_use=in_use, to_copy=to_copy)

    def adoptable(self) -> Iterator[Storage]:
        """Yield the images of all pools that can be adopted."""
        for pool, namespace in self._pools:
            yield from self._images.listed(pool, namespace)

    def look(self, volume: VolumeRef) -> Storage:
        """Look at the volume's image."""
        found = self._images.look(self._place(volume), volume)
        return Storage(found.location, found.length, found.storage_id if volume.adopted else None)

    def where(self, ref: VolumeRef | SnapshotRef) -> str:
        """Return the path of the image or snapshot."""
        return str(self._place(ref))

    def delete(self, volume: VolumeRef) -> None:
        """Delete the volume's image and what a killed copy left of it; an adopted one is left alone."""
        if not volume.adopted:
            place = self._place(volume)
            self._drop_part(_part_of(place), volume.id)
            self._images.delete(place, volume.id)

    def extend(self, volume: VolumeRef, length: int) -> None:
        """Make the volume's image longer."""
        self._images.extend(self._place(volume), volume, length)

    # -- snapshots

    def create_snapshot(
        self,
        snapshot: SnapshotRef,
        in_use: bool,  # noqa: ARG002  (it is always of one moment)
        tick: Tick = no_tick,
    ) -> str:
        """Take a snapshot of the volume's image."""
        place = self._place(snapshot)
        if self._place(snapshot.volume).snapshot is not None:
            raise InvalidVolume(f"Volume {snapshot.volume.id} is a snapshot itself.")
        self._images.create_snapshot(place, snapshot)
        tick()
        return str(place)

    def delete_snapshot(self, snapshot: SnapshotRef) -> None:
        """Remove the snapshot from the volume's image."""
        self._images.delete_snapshot(self._place(snapshot))

    # -- opening

    def open_point(
        self,
        ref: VolumeRef | SnapshotRef,
        point_id: str,
        tick: Tick = no_tick,  # noqa: ARG002  (it takes no longer than the timeouts say)
    ) -> Point:
        """Open a snapshot: of the catalogue, or the point's own, which is taken unless it is there."""
        return self._images.open_point(self._place(ref), ref, point_id)

    def keep_points(self, volume: VolumeRef, needed: Callable[[], Needed]) -> None:
        """Remove the snapshots of points that are not needed."""
        self._images.keep_points(self._place(volume), volume, needed)

    def open_target(self, volume: VolumeRef, attempt: int) -> AbstractContextManager[BlockTarget]:
        """Lock the volume's image; one of ours that is too short gets its full length."""
        # A damaged target is allowed, because a restore overwrites all of it.
        least = None if volume.adopted else volume.length
        return self._images.open_target(self._place(volume), volume, attempt, least=least)

    # -- helpers

    def _own_place(self, volume: VolumeRef) -> Place:
        """Return where a volume's image is, or will be made."""
        if volume.location is not None:
            return self._configured(Place.parse(volume.location))
        pool, namespace = self._pools[0]
        return Place(pool, f"{OWN}{volume.id}", namespace)

    def _place(self, ref: VolumeRef | SnapshotRef) -> Place:
        if isinstance(ref, VolumeRef):
            return self._own_place(ref)
        # Not by the snapshot's location: the image may have been adopted again, under another name.
        return self._own_place(ref.volume).at(f"{OWN}{ref.id}")

    def _configured(self, place: Place) -> Place:
        """Return a place that the database names, if this back end has it.

        The database may be a copy, and name images of the original service.
        """
        if (place.pool, place.namespace) not in self._pools:
            raise InvalidVolume(f"The pool of {place} is not one of this back end's.")
        return place

    def _copy(self, place: Place, volume: VolumeRef, source: SnapshotRef | VolumeRef, tick: Tick) -> None:
        part, origin = _part_of(place), self._place(source)
        self._drop_part(part, volume.id)
        self._images.create(part, volume.length)
        if isinstance(source, VolumeRef):
            # Before the point is made there, so that it is found by whoever deletes the copy.
            self._images.note_source(part, origin, source)
        with closing(self._images.open_point(origin, source, volume.id)) as point:
            if point.length > volume.length:
                raise InvalidVolume("The volume is smaller than what it shall be made from.")
            made = VolumeRef(volume.id, volume.length, str(part))
            buffer = memoryview(bytearray(_PIECE))
            with self._images.open_target(part, made, 1) as target:
                for extent in point.extents(0, point.length):
                    if extent.kind is not Kind.DATA:
                        continue
                    for offset in range(extent.offset, extent.end, _PIECE):
                        tick()
                        piece = buffer[: min(_PIECE, extent.end - offset)]
                        point.read_into(offset, piece)
                        target.write(offset, [piece])
                target.flush()
            point.check_still()
        self._images.forget_source(part, volume.id)
        self._images.rename(part, place.image)

    def _drop_part(self, part: Place, volume_id: str) -> None:
        """Delete what there is of a copy, and its point at the source."""
        self._images.forget_source(part, volume_id)
        self._images.delete(part, volume_id)


def _part_of(place: Place) -> Place:
    """Return where a copy is while it is made."""
    return Place(place.pool, f"{place.image}.part", place.namespace)

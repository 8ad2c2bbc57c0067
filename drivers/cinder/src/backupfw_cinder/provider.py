"""The provider ``cinder``: volumes of an OpenStack Block Storage service."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar

from backupfw_rbd.provider import RbdProvider

from backupfw.errors import InvalidInput, StorageChanged
from backupfw.volume.base import (
    BlockTarget,
    Capabilities,
    Needed,
    Point,
    Restored,
    SnapshotRef,
    Storage,
    Tick,
    VolumeProvider,
    VolumeRef,
    no_tick,
)
from backupfw.volume.catalogue import Catalogue
from backupfw_cinder.attached import Attached, HeldPoint
from backupfw_cinder.catalogue import CinderCatalogue
from backupfw_cinder.client import Client
from backupfw_cinder.host import Host
from backupfw_cinder.options import cinder_options, rbd_values
from backupfw_cinder.temporary import Temporary
from backupfw_cinder.volumes import Volumes

if TYPE_CHECKING:
    from oslo_config import cfg

_ELSEWHERE = "Volumes and snapshots of this back end are made in the Block Storage service."


class CinderProvider(VolumeProvider):
    """Volumes of one Block Storage service.  Thread-safe.

    The service makes, deletes and describes the volumes.  Those that are images of Ceph are read and written
    there, through the provider ``rbd``; the service shows nothing of a backup.  All others are attached to
    this host, and read and written as by the provider ``local``: a backup reads a temporary volume.

    :param options: values of the options by name.
    :raises ConfigError: one of them cannot be.
    """

    API_VERSION: ClassVar[int] = 2

    def __init__(self, options: Any) -> None:
        super().__init__(options)
        client, host = Client(options), Host(options)
        self._volumes = Volumes(client, host)
        self._temporary = Temporary(client, self._volumes)
        self._attached = Attached(self._volumes, host)
        values = rbd_values(options)
        self._rbd = None if values is None else RbdProvider(values)
        self._pools = () if values is None else tuple(values.pools)

    @property
    def capabilities(self) -> Capabilities:
        """With Ceph, it can do all that the provider ``rbd`` can, but for what the service does itself."""
        if self._rbd is None:
            return Capabilities(allocation=True, live=True, writes=True, fences=True)
        return replace(self._rbd.capabilities, snapshots=False)

    @classmethod
    def options(cls) -> Sequence[cfg.Opt]:
        """Return the provider's options."""
        return cinder_options()

    @classmethod
    def catalogue(cls, options: Any) -> Catalogue:
        """Return what the service says of its volumes."""
        client = Client(options)
        return CinderCatalogue(client, Volumes(client, Host(options)))

    def create(self, volume: VolumeRef, source: SnapshotRef | VolumeRef | None, tick: Tick = no_tick) -> str:
        """Refuse it."""
        del volume, source, tick
        raise InvalidInput(_ELSEWHERE)

    def adopt(self, path: str, **judging: Any) -> Storage:
        """Refuse it."""
        del path, judging
        raise InvalidInput("Volumes of this back end are backed up by their ids, without being adopted.")

    def look(self, volume: VolumeRef) -> Storage:
        """Return the volume's real length: of its image, else as the service says."""
        found = self._volumes.get(volume.id)
        if (in_ceph := self._in_ceph(volume, found)) is not None:
            rbd, image = in_ceph
            return Storage(volume.id, rbd.look(image).length)
        length = int(found["size"]) << 30
        if length < volume.length:
            hint = f"The Block Storage service says {found['size']} GiB."
            raise StorageChanged(f"volume {volume.id}", "is shorter than it should be", hint)
        return Storage(volume.id, length)

    def where(self, ref: VolumeRef | SnapshotRef) -> str:
        """Return the id by which an operator finds the volume or snapshot."""
        return ref.id

    def delete(self, volume: VolumeRef) -> None:
        """Do nothing: the volume is the service's."""

    def extend(self, volume: VolumeRef, length: int) -> None:
        """Refuse it."""
        del volume, length
        raise InvalidInput(_ELSEWHERE)

    def create_snapshot(self, snapshot: SnapshotRef, in_use: bool, tick: Tick = no_tick) -> str:
        """Refuse it."""
        del snapshot, in_use, tick
        raise InvalidInput(_ELSEWHERE)

    def delete_snapshot(self, snapshot: SnapshotRef) -> None:
        """Do nothing: the snapshot is the service's."""

    def open_point(self, ref: VolumeRef | SnapshotRef, point_id: str, tick: Tick = no_tick) -> Point:
        """Open a point of the volume's image, or the image's snapshot that the service has made.

        Of a volume that is not in Ceph, a volume is made for the point, and attached.
        """
        volume = ref.volume if isinstance(ref, SnapshotRef) else ref
        point = self._point(ref, volume, point_id, tick)
        try:
            # The point holds still, so its bytes are those of the owner that the volume still has.
            self._volumes.check_owner(volume)
            self._volumes.check_key(volume)
        except BaseException:
            point.close()
            raise
        return point

    def _point(self, ref: VolumeRef | SnapshotRef, volume: VolumeRef, point_id: str, tick: Tick) -> Point:
        in_ceph = self._in_ceph(volume, self._volumes.get(volume.id))
        if in_ceph is None:
            return self._held_point(ref, point_id, tick)
        rbd, image = in_ceph
        if isinstance(ref, SnapshotRef):
            image = replace(image, length=ref.length, location=f"{image.location}@snapshot-{ref.id}")
        point = rbd.open_point(image, point_id, tick)
        # The image may become another one: the service moves a volume to another pool, or retypes it.
        point.storage_id = None
        return point

    def _held_point(self, ref: VolumeRef | SnapshotRef, point_id: str, tick: Tick) -> Point:
        held = self._temporary.hold(ref, point_id, tick)
        volume_id = ref.volume.id if isinstance(ref, SnapshotRef) else ref.id
        with ExitStack() as stack:
            # All attachments of this volume are ours, and the last attempt has it.
            self._volumes.detach_all(held["id"])
            _, local, reference = self._attached.open(VolumeRef(held["id"], ref.length), 0, stack)
            inner = local.open_point(reference, point_id, tick)
            stack.callback(inner.close)
            return HeldPoint(
                inner,
                f"snapshot/{held['snapshot_id']}",
                stack.pop_all(),
                lambda: self._temporary.remove(volume_id, (point_id,)),
            )

    def keep_points(self, volume: VolumeRef, needed: Callable[[], Needed]) -> None:
        """Remove the points that are not needed: of the volume's image, and temporary volumes."""
        # Both ways: the service may have moved the volume.
        held = self._temporary.points(volume.id)
        asked = cache(needed)
        rbd = self._rbd
        images: list[VolumeRef] = []
        try:
            found = self._volumes.get(volume.id)
            if rbd is not None and self._volumes.in_ceph(found) is not False:
                images = self._images(rbd, volume, found)
        except StorageChanged:
            # A volume that is gone has no image.
            pass
        for image in images:
            assert rbd is not None
            rbd.keep_points(image, asked)
        if held:
            # Nothing is compared with a temporary volume.
            self._temporary.remove(volume.id, replace(asked(), compared=frozenset()).unneeded(held))

    @contextmanager
    def open_target(self, volume: VolumeRef, attempt: int) -> Iterator[BlockTarget]:
        """Attach the volume, so that nobody else can have it, and open its image or device."""
        in_ceph = self._in_ceph(volume, self._volumes.made(volume.id))
        with ExitStack() as stack:
            if in_ceph is None:
                attachment, local, reference = self._attached.open(volume, attempt, stack)
                target = stack.enter_context(local.open_target(reference, attempt))
            else:
                attachment = self._volumes.attach(volume, attempt)
                stack.callback(self._volumes.detach, attachment.id)
                rbd, image = in_ceph
                target = stack.enter_context(rbd.open_target(image, attempt))
            self._volumes.check_bytes(volume, target)
            target.storage_id = None
            yield target
            self._volumes.check_alone(attachment)

    def end_restore(self, volume: VolumeRef, source: Restored | None) -> None:
        """Give the volume what belongs to its bytes; or let it be in error."""
        if source is None:
            self._volumes.spoil(volume.id, volume.project_id)
        else:
            self._volumes.describe(volume, source)

    def _in_ceph(self, volume: VolumeRef, found: dict[str, Any]) -> tuple[RbdProvider, VolumeRef] | None:
        """Return the provider of a volume's image, and the volume as that knows it; None: it has no image.

        :param found: the volume as the service describes it.
        :raises StorageChanged: its image is in no pool of this back end, or in several.
        """
        in_ceph = self._volumes.in_ceph(found)
        rbd = self._rbd
        if in_ceph and rbd is None:
            raise StorageChanged(
                f"volume {volume.id}", "is in Ceph, which this back end does not use", "Set rbd_pools."
            )
        if in_ceph is False or rbd is None:
            return None
        images = self._images(rbd, volume, found)
        if len(images) > 1:
            raise StorageChanged(
                f"volume {volume.id}",
                "is in several pools of this back end",
                f"The service moves it, or has left one of {', '.join(str(one.location) for one in images)}.",
            )
        if images:
            return rbd, images[0]
        if in_ceph is None:
            return None
        raise StorageChanged(
            f"volume {volume.id}",
            "is in no pool of this back end",
            f"It is in none of the pools {', '.join(self._pools)} (option rbd_pools).",
        )

    def _images(self, rbd: RbdProvider, volume: VolumeRef, found: dict[str, Any]) -> list[VolumeRef]:
        """Return the images that have the volume's name, in all pools, as the provider of images knows them.

        There are two while the service moves a volume, or if it could not delete the old one.
        """
        # A volume that was migrated keeps the name of its new image.
        image = f"volume-{found.get('os-vol-mig-status-attr:name_id') or volume.id}"
        places = []
        for place in (f"rbd:{pool}/{image}" for pool in self._pools):
            wanted = VolumeRef(volume.id, volume.length, place, adopted=True)
            try:
                rbd.look(wanted)
            except StorageChanged as error:
                if error.problem != "is gone":
                    raise
            else:
                places.append(wanted)
        return places

"""The provider ``cinder``: volumes of an OpenStack Block Storage service."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

from backupfw_rbd.provider import RbdProvider

from backupfw.errors import ConfigError, InvalidInput, InvalidVolume, StorageChanged
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
from backupfw_cinder.catalogue import CinderCatalogue
from backupfw_cinder.client import Client
from backupfw_cinder.options import cinder_options, rbd_values
from backupfw_cinder.volumes import Volumes

if TYPE_CHECKING:
    from oslo_config import cfg

_ELSEWHERE = "Volumes and snapshots of this back end are made in the Block Storage service."


class CinderProvider(VolumeProvider):
    """Volumes of one Block Storage service.  Thread-safe.

    The service makes, deletes and describes the volumes.  Those that are images of Ceph are read and written
    there, through the provider ``rbd``; the service shows nothing of a backup.

    :param options: values of the options by name.
    :raises ConfigError: one of them cannot be.
    """

    API_VERSION: ClassVar[int] = 2

    def __init__(self, options: Any) -> None:
        super().__init__(options)
        self._volumes = Volumes(Client(options))
        values = rbd_values(options)
        if values is None:
            raise ConfigError("option rbd_pools: needs a value; only volumes in Ceph can be backed up")
        self._rbd = RbdProvider(values)
        self._pools = tuple(values.pools)
        self._lock = threading.Lock()
        self._places: dict[str, str] = {}

    @property
    def capabilities(self) -> Capabilities:
        """It can do all that the provider ``rbd`` can, but for what the service does itself."""
        return replace(self._rbd.capabilities, snapshots=False)

    @classmethod
    def options(cls) -> Sequence[cfg.Opt]:
        """Return the provider's options."""
        return cinder_options()

    @classmethod
    def catalogue(cls, options: Any) -> Catalogue:
        """Return what the service says of its volumes."""
        return CinderCatalogue(Client(options))

    def create(self, volume: VolumeRef, source: SnapshotRef | VolumeRef | None, tick: Tick = no_tick) -> str:
        """Refuse it."""
        del volume, source, tick
        raise InvalidInput(_ELSEWHERE)

    def adopt(self, path: str, **judging: Any) -> Storage:
        """Refuse it."""
        del path, judging
        raise InvalidInput("Volumes of this back end are backed up by their ids, without being adopted.")

    def look(self, volume: VolumeRef) -> Storage:
        """Return the volume's image."""
        found = self._rbd.look(self._image(volume))
        return Storage(volume.id, found.length)

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
        """Open a point of the volume's image, or the image's snapshot that the service has made."""
        volume = ref.volume if isinstance(ref, SnapshotRef) else ref
        image = self._image(volume)
        if isinstance(ref, SnapshotRef):
            image = replace(image, length=ref.length, location=f"{image.location}@snapshot-{ref.id}")
        point = self._rbd.open_point(image, point_id, tick)
        # The image may become another one: the service moves a volume to another pool, or retypes it.
        point.storage_id = None
        return point

    def keep_points(self, volume: VolumeRef, needed: Callable[[], Needed]) -> None:
        """Remove the points of the volume's image that are not needed; a volume that is gone has none."""
        try:
            image = self._image(volume)
        except StorageChanged:
            return
        self._rbd.keep_points(image, needed)

    @contextmanager
    def open_target(self, volume: VolumeRef, attempt: int) -> Iterator[BlockTarget]:
        """Attach the volume, so that nobody else can have it, and open its image."""
        attachment = self._volumes.attach(volume.id, attempt)
        try:
            with self._rbd.open_target(self._image(volume), attempt) as target:
                target.storage_id = None
                yield target
        finally:
            self._volumes.detach(attachment)

    def end_restore(self, volume: VolumeRef, source: Restored | None) -> None:
        """Give the volume what belongs to its bytes; or let it be in error."""
        if source is None:
            self._volumes.spoil(volume.id)
        else:
            self._volumes.describe(volume.id, source)

    def _image(self, volume: VolumeRef) -> VolumeRef:
        """Return a volume as the provider ``rbd`` knows it.

        :raises StorageChanged: the service does not have it (any more), or its image is in no pool.
        :raises InvalidVolume: it is encrypted.
        """
        found = self._volumes.get(volume.id)
        if found.get("encrypted"):
            raise InvalidVolume(
                f"Volume {volume.id} is encrypted; this service does not back up such volumes."
            )
        # A volume that was migrated keeps the name of its new image.
        image = f"volume-{found.get('os-vol-mig-status-attr:name_id') or volume.id}"
        with self._lock:
            known = self._places.get(image)
        for place in (known,) if known else (f"rbd:{pool}/{image}" for pool in self._pools):
            wanted = VolumeRef(volume.id, volume.length, place, adopted=True)
            try:
                self._rbd.look(wanted)
            except StorageChanged as error:
                if error.problem != "is gone":
                    raise
                continue
            with self._lock:
                self._places[image] = place
            return wanted
        with self._lock:
            self._places.pop(image, None)
        raise StorageChanged(
            f"volume {volume.id}",
            "is in no pool of this back end",
            f"{image} is in none of the pools {', '.join(self._pools)} (option rbd_pools).",
        )

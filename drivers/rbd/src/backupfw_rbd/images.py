"""Images of a cluster as volumes: what the provider ``rbd`` does, for any image and any connection.

A provider that knows where the images are by other means (a Block Storage service) uses it, too.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager, suppress
from functools import partial
from typing import Any
from weakref import WeakValueDictionary

from backupfw.errors import InvalidInput, InvalidVolume, SourceMoved, StorageChanged
from backupfw.volume.base import BlockTarget, Needed, Point, SnapshotRef, Storage, VolumeRef
from backupfw.volume.taking import taking_point
from backupfw_rbd import changes
from backupfw_rbd.cluster import (
    Connection,
    Opened,
    bindings,
    library_version,
    metadata_of,
    pool_of,
    translated,
    version_problem,
)
from backupfw_rbd.places import Place, name_problem, point_name, point_of, same_point
from backupfw_rbd.point import RbdPoint, snapshots, trashed
from backupfw_rbd.target import RbdTarget, give_up_image, take_over

LOG = logging.getLogger(__name__)

# Seconds between two tries of what waits for another client to go.
_POLL = 1.0
# After half a minute Ceph forgets a client that died (osd_client_watch_timeout).
_FORGOTTEN = 45.0
#: How often a point is made again whose snapshot goes at once.
_TRIES = 3
#: The key of the metadata of an unfinished copy that says what it is copied from.
_SOURCE = "backupfw.source"


class Images:
    """The images that a connection reaches.  Thread-safe.

    Where a method takes a reference and a place, the image at the place must be that of the reference: not
    shorter and, if the reference has a storage id, that one.  Otherwise it raises StorageChanged.

    :param connection: how the cluster is reached.
    :param wait: seconds that a restore waits until other clients have left an image; a deletion waits at
        least until Ceph has forgotten a client that died.
    """

    def __init__(self, connection: Connection, wait: float = 45.0) -> None:
        self._connection = connection
        self._wait = wait
        self._changing = threading.Lock()
        self._locks: WeakValueDictionary[Place, threading.Lock] = WeakValueDictionary()

    # -- looking

    def adopt(self, place: Place, *, in_use: bool = False, to_copy: bool = False) -> Storage:
        """Check an image, or a snapshot of one, that shall become a volume; see :meth:`VolumeProvider.adopt`.

        :raises InvalidInput: it cannot be used; the message says why.
        """
        try:
            opened = Opened(self._connection, place)
        except FileNotFoundError as error:
            raise InvalidInput(f"{place} does not exist.") from error
        except OSError as error:
            raise InvalidInput(f"{place} cannot be opened: {error.strerror}.") from error
        with closing(opened), opened as image, translated(f"looking at {place}"):
            if image.old_format():
                raise InvalidInput(f"{place} has the format of images 1, which is not supported.")
            if place.snapshot is None and not to_copy:
                if not _is_primary(image):
                    raise InvalidInput(
                        f"{place} is the mirror of an image and cannot be written: adopt a snapshot of it."
                    )
                if not in_use and (count := len(list(image.watchers_list()))):
                    raise InvalidInput(
                        f"{place} is open in {count} other programs. If it may stay so, adopt it with"
                        " --in-use."
                    )
            return Storage(str(place), image.size(), _storage_id(opened))

    def look(self, place: Place, volume: VolumeRef) -> Storage:
        """Return a volume's storage."""
        with (
            closing(self._open(place, volume)) as opened,
            opened as image,
            translated(f"looking at {place}"),
        ):
            return Storage(str(place), image.size(), _storage_id(opened))

    def listed(self, pool: str, namespace: str) -> Iterator[Storage]:
        """Yield the images of a pool and namespace that can become volumes, by name.

        :raises OSError: the pool cannot be listed.
        """
        _, rbd = bindings()
        with self._connection.connected() as cluster, pool_of(cluster, pool, namespace) as io:
            with translated(f"listing the pool {pool}"):
                names = sorted(rbd.RBD().list(io))
            for name in names:
                # What is deleted or has an unsupported format meanwhile is no candidate.
                if name_problem(name) is not None:
                    continue
                with suppress(InvalidInput):
                    yield self.adopt(Place(pool, name, namespace), in_use=True)

    # -- points

    def open_point(self, place: Place, ref: VolumeRef | SnapshotRef, point_id: str) -> Point:
        """Open a volume's image as it is now, or as it was when the point was made; or a snapshot.

        :param place: of the image, or of a snapshot of it.
        """
        if place.snapshot is not None:
            return self._point(place, ref, None)
        if isinstance(ref, SnapshotRef):
            raise InvalidInput(f"Snapshot {ref.id} has no place.")
        problem: StorageChanged | None = None
        for number in range(_TRIES):
            if number:
                # What a client had sent before it was killed may be carried out later.
                time.sleep(_POLL)
            name = self._made(place, ref, point_id)
            try:
                return self._point(place.at(name), ref, partial(self._remove_point, place, ref, name))
            except StorageChanged as error:
                # Only the snapshot may be gone: a client that was killed had begun to remove it.
                self.look(place, ref)
                problem = error
        raise SourceMoved("The new snapshot was removed.") from problem

    def keep_points(self, place: Place, volume: VolumeRef, needed: Callable[[], Needed]) -> None:
        """Remove the snapshots of a volume's points that are not needed.

        :raises OSError: one of them cannot be removed; the others are.
        """
        if place.snapshot is not None:
            return
        try:
            opened = Opened(self._connection, place)
        except FileNotFoundError:
            return
        with closing(opened), opened as image, translated(f"looking at {place}"):
            points = _points(image, volume.id)
        if not points:
            return
        unneeded = needed().unneeded(points.values())
        problem: OSError | None = None
        for name, point in points.items():
            if point in unneeded:
                try:
                    self._remove_snapshot(place.at(name))
                except OSError as error:
                    problem = error
        if problem is not None:
            raise problem

    def _made(self, place: Place, volume: VolumeRef, point_id: str) -> str:
        """Return the name of the snapshot of a point, which is made unless an earlier call has done it."""

        def first(image: Any) -> str | None:
            mine = [one for one in snapshots(image) if point_of(one["name"], volume.id) == point_id]
            # Two calls at the same time may have made two: both take the first of them.
            return min(mine, key=lambda one: int(one["id"]))["name"] if mine else None

        with closing(self._open(place, volume)) as opened, opened as image, translated(f"looking at {place}"):
            name = first(image)
        if name is None:
            with (
                self._alone(place),
                closing(self._open(place, volume, write=True)) as opened,
                opened as image,
                translated(f"taking a snapshot of {place}"),
            ):
                with taking_point():
                    image.create_snap(point_name(point_id, volume.id))
                name = first(image)
        if name is None:
            raise SourceMoved("The new snapshot was removed.")
        return name

    def _point(
        self, place: Place, ref: VolumeRef | SnapshotRef, discard: Callable[[], None] | None
    ) -> RbdPoint:
        opened = self._open(place, ref)
        try:
            with opened as image, translated(f"looking at {place}"):
                number = next(one["id"] for one in image.list_snaps() if one["name"] == place.snapshot)
                if not changes.has_object_map(image):
                    LOG.warning(
                        "%s has no valid object map, so it takes longer to find out what it holds and what"
                        " changed ('rbd feature enable' object-map fast-diff, 'rbd object-map rebuild')",
                        place,
                    )
            storage_id = None
            if isinstance(ref, VolumeRef) and ref.adopted:
                storage_id = opened.storage_id if discard is not None else _storage_id(opened)
            return RbdPoint(
                opened,
                number,
                storage_id=storage_id,
                discard=discard,
                open_at=lambda name: Opened(self._connection, place.at(name)),
                problem=lambda: version_problem(library_version(self._connection)),
            )
        except BaseException:
            opened.close()
            raise

    def _remove_point(self, place: Place, volume: VolumeRef, name: str) -> None:
        """Remove the snapshot of a point; an error is only logged: :meth:`keep_points` tries it again."""
        try:
            self._remove_snapshot(place.at(name))
        except OSError as error:
            LOG.warning("A snapshot of volume %s stays: %s", volume.id, error)

    # -- snapshots

    def create_snapshot(self, place: Place, snapshot: SnapshotRef) -> None:
        """Take a snapshot of a volume's image, unless it is there; ``place`` names it."""
        image_place = place.at(None)
        with (
            closing(self._open(image_place, snapshot.volume)) as opened,
            opened as image,
            translated(f"looking at {image_place}"),
        ):
            if any(one["name"] == place.snapshot for one in snapshots(image)):
                return
        with (
            self._alone(image_place),
            closing(self._open(image_place, snapshot.volume, write=True)) as opened,
            opened as image,
            translated(f"taking the snapshot {place}"),
            suppress(bindings()[1].ImageExists),
        ):
            image.create_snap(place.snapshot)

    def delete_snapshot(self, place: Place) -> None:
        """Remove a snapshot; one that is gone, perhaps with its image, counts as removed.

        :raises OSError: it cannot be removed.
        """
        self._remove_snapshot(place)

    def _remove_snapshot(self, place: Place) -> None:
        _, rbd = bindings()
        with (
            suppress(FileNotFoundError),
            self._alone(place.at(None)),
            closing(Opened(self._connection, place.at(None), write=True)) as opened,
            opened as image,
            translated(f"removing the snapshot {place}"),
        ):
            with suppress(rbd.ImageNotFound):
                image.remove_snap(place.snapshot)
            for number, name in trashed(image).items():
                # That of an earlier attempt may be half removed.
                if name == place.snapshot or same_point(name, place.snapshot):
                    with suppress(rbd.ImageNotFound):
                        image.remove_snap_by_id(number)

    # -- writing

    def open_target(
        self, place: Place, volume: VolumeRef, attempt: int, *, least: int | None = None
    ) -> AbstractContextManager[BlockTarget]:
        """Open a volume's image for writing; see :meth:`VolumeProvider.open_target`.

        :param least: the image is made so long if it is shorter, whatever the reference says.
        :raises InvalidVolume: it is a snapshot, or has no exclusive lock.
        """
        _, rbd = bindings()
        if place.snapshot is not None:
            raise InvalidVolume(f"Volume {volume.id} is a snapshot, which cannot be written.")
        opened = self._open(place, volume, write=True, least=0 if least is not None else None)
        try:
            with opened as image, translated(f"looking at {place}"):
                if not image.features() & rbd.RBD_FEATURE_EXCLUSIVE_LOCK:
                    raise InvalidVolume(
                        f"The storage of volume {volume.id} cannot keep other writers out: it lacks the"
                        " feature exclusive-lock."
                    )
                if not _is_primary(image):
                    raise InvalidVolume(f"Volume {volume.id} is a mirror, which cannot be written.")
            take_over(opened, attempt, self._wait)
            try:
                with opened as image, translated(f"looking at {place}"):
                    if least is not None and image.size() < least:
                        image.resize(least)
                    empty = not volume.adopted and _is_empty(image)
                return closing(RbdTarget(opened, empty, opened.storage_id if volume.adopted else None))
            except BaseException:
                give_up_image(opened)
                raise
        except BaseException:
            opened.close()
            raise

    def create(self, place: Place, length: int) -> None:
        """Make an image of zeros, unless it is there.

        :raises OSError: it cannot be made.
        """
        _, rbd = bindings()
        features = (
            rbd.RBD_FEATURE_LAYERING
            | rbd.RBD_FEATURE_EXCLUSIVE_LOCK
            | rbd.RBD_FEATURE_OBJECT_MAP
            | rbd.RBD_FEATURE_FAST_DIFF
            | rbd.RBD_FEATURE_DEEP_FLATTEN
        )
        with (
            self._connection.connected() as cluster,
            pool_of(cluster, place.pool, place.namespace) as io,
            translated(f"making {place}"),
        ):
            try:
                rbd.RBD().create(io, place.image, length, old_format=False, features=features)
            except rbd.ImageExists:
                if not self.exists(place):
                    # A killed call left a part of it.
                    rbd.RBD().remove(io, place.image)
                    rbd.RBD().create(io, place.image, length, old_format=False, features=features)

    def exists(self, place: Place) -> bool:
        """Return whether an image is there."""
        try:
            Opened(self._connection, place).close()
        except FileNotFoundError:
            return False
        return True

    def note_source(self, place: Place, source: Place, volume: VolumeRef) -> None:
        """Keep at an image, durably, what it is copied from, for :meth:`forget_source`."""
        with (
            closing(Opened(self._connection, place, write=True)) as opened,
            opened as image,
            translated(f"noting the source of {place}"),
        ):
            image.metadata_set(_SOURCE, f"{volume.id} {source}")

    def forget_source(self, place: Place, point_id: str) -> None:
        """Remove the point that a copy has at its source, and the note of it, if they are there.

        :param place: of the copy.
        """
        with (
            suppress(FileNotFoundError),
            closing(Opened(self._connection, place, write=True)) as opened,
            opened as copy,
            translated(f"looking at {place}"),
        ):
            noted = metadata_of(copy).get(_SOURCE)
            if noted is None:
                return
            volume_id, _, path = noted.partition(" ")
            source = Place.parse(path)
            with suppress(FileNotFoundError):
                with closing(Opened(self._connection, source)) as original, original as image:
                    points = _points(image, volume_id)
                for name, point in points.items():
                    if point == point_id:
                        self._remove_snapshot(source.at(name))
            copy.metadata_remove(_SOURCE)

    def rename(self, place: Place, name: str) -> None:
        """Give an image another name.

        :raises OSError: it cannot be.
        """
        _, rbd = bindings()
        with (
            self._connection.connected() as cluster,
            pool_of(cluster, place.pool, place.namespace) as io,
            translated(f"renaming {place}"),
        ):
            rbd.RBD().rename(io, place.image, name)

    def extend(self, place: Place, volume: VolumeRef, length: int) -> None:
        """Make a volume's image longer."""
        if place.snapshot is not None:
            raise InvalidVolume(f"Volume {volume.id} is a snapshot, which cannot be extended.")
        with (
            self._alone(place),
            closing(self._open(place, volume, write=True)) as opened,
            opened as image,
            translated(f"extending {place}"),
        ):
            if image.size() < length:
                image.resize(length)

    def delete(self, place: Place, volume_id: str) -> None:
        """Delete an image with the snapshots of a volume's points; one that is gone counts as deleted.

        :raises OSError: it cannot be deleted: it has other snapshots, or another client has it open.
        """
        _, rbd = bindings()
        with suppress(FileNotFoundError):
            with (
                closing(Opened(self._connection, place)) as opened,
                opened as image,
                translated(f"looking at {place}"),
            ):
                names = _points(image, volume_id)
            for name in names:
                self._remove_snapshot(place.at(name))
        give_up = time.monotonic() + max(self._wait, _FORGOTTEN)
        while True:
            with (
                self._connection.connected() as cluster,
                pool_of(cluster, place.pool, place.namespace) as io,
                translated(f"deleting {place}"),
            ):
                try:
                    rbd.RBD().remove(io, place.image)
                    return
                except rbd.ImageNotFound:
                    return
                except rbd.ImageBusy:
                    if time.monotonic() >= give_up:
                        raise
            time.sleep(_POLL)

    # -- helpers

    @contextmanager
    def _alone(self, place: Place) -> Iterator[None]:
        """Let one thread of this process at a time change an image's snapshots or length.

        Each change takes Ceph's exclusive lock.  When two clients of one process ask each other for it while
        one of them is closed, librbd ends the process (seen with 16.2.15).
        """
        with self._changing:
            lock = self._locks.setdefault(place, threading.Lock())
        with lock:
            yield

    def _open(
        self,
        place: Place,
        ref: VolumeRef | SnapshotRef,
        *,
        write: bool = False,
        least: int | None = None,
    ) -> Opened:
        """Open an image, if it agrees with a reference.

        :param least: the least length in bytes; the reference's unless given.
        :raises StorageChanged: it does not agree.
        """
        volume = ref if isinstance(ref, VolumeRef) else ref.volume
        problem: str | None = None
        try:
            opened = Opened(self._connection, place, write=write)
        except FileNotFoundError:
            problem = "is gone"
        else:
            with opened as image, translated(f"looking at {place}"):
                length = image.size()
            if volume.storage_id not in (None, opened.storage_id, _storage_id(opened)):
                problem = "is another one than was adopted: it was replaced"
            elif length < (ref.length if least is None else least):
                problem = f"is shorter than it should be: it has {length} of {ref.length} bytes"
            if problem is None:
                return opened
            opened.close()
        hint = f"It is {place}."
        if isinstance(ref, VolumeRef) and ref.adopted:
            hint += (
                " Put back what was there; or, if what is there now is the volume, run"
                f" 'backupfw volume adopt --again {ref.id}' (with its path, if that is another one now)."
            )
        raise StorageChanged(
            f"{'volume' if isinstance(ref, VolumeRef) else 'snapshot'} {ref.id}", problem, hint
        )


def _points(image: Any, volume_id: str) -> dict[str, str]:
    """Return the points of a volume by the names of their snapshots, those that are half removed too."""
    names = [*(one["name"] for one in snapshots(image)), *trashed(image).values()]
    return {name: point for name in names if (point := point_of(name, volume_id)) is not None}


def _storage_id(opened: Opened) -> str:
    """Return the storage id of an open image, or of a snapshot of it, which is another storage."""
    if opened.place.snapshot is None:
        return opened.storage_id
    with opened as image, translated(f"looking at {opened.place}"):
        found = (one["id"] for one in image.list_snaps() if one["name"] == opened.place.snapshot)
        return f"{opened.storage_id}@{next(found)}"


def _is_primary(image: Any) -> bool:
    """Return whether an image is written here, and not the copy that mirroring makes."""
    _, rbd = bindings()
    mirror = image.mirror_image_get_info()
    return mirror["state"] != rbd.RBD_MIRROR_IMAGE_ENABLED or bool(mirror["primary"])


def _is_empty(image: Any) -> bool:
    """Return whether it is known, without long questions, that an image of ours is all zeros."""
    return changes.has_object_map(image) and not changes.allocated(image).data

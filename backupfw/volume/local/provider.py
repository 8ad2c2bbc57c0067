"""The ``local`` provider: image files in a directory of ours, and adopted images and block devices."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from oslo_log import log

from backupfw.errors import (
    InvalidVolume,
    OperationNotSupported,
    SourceMoved,
    StorageChanged,
    TargetError,
)
from backupfw.volume.base import (
    BlockTarget,
    Capabilities,
    Point,
    SnapshotRef,
    Storage,
    Tick,
    VolumeProvider,
    VolumeRef,
    no_tick,
)
from backupfw.volume.local import files, linux
from backupfw.volume.local.adopt import adopted
from backupfw.volume.local.descriptor import Descriptor
from backupfw.volume.local.fence import Fence
from backupfw.volume.local.holes import next_extent
from backupfw.volume.local.image import (
    ImagePoint,
    ImageTarget,
    copy_still_point,
    image_length,
    resize,
)
from backupfw.volume.local.image_chain import Chain
from backupfw.volume.local.mirror import mirror
from backupfw.volume.local.opening import Busy, Opened, Unusable, open_storage
from backupfw.volume.local.options import backing_directories, directories, local_options
from backupfw.volume.local.point import LocalPoint
from backupfw.volume.local.qemu import ImageServer, Locked
from backupfw.volume.local.still_copy import Stamp, still_copy
from backupfw.volume.local.storage_id import RAW, StorageId
from backupfw.volume.local.target import LocalTarget
from backupfw.volume.taking import is_awaited, taking_point

if TYPE_CHECKING:
    from oslo_config import cfg

LOG = log.getLogger(__name__)
_USED = "volume {} is used by another program, such as a running machine"

T = TypeVar("T")

#: The errors of FICLONE if blocks cannot be shared.
_NO_CLONE = linux.NOT_SUPPORTED | {errno.EXDEV}


class LocalProvider(VolumeProvider):
    """Volumes on this host's file systems and block devices.  Thread-safe."""

    API_VERSION: ClassVar[int] = 2

    def __init__(self, options: Any) -> None:
        """Take the options' values.

        :raises ConfigError: a directory is missing or cannot be used.
        """
        super().__init__(options)
        self._directories = directories(options)
        self._volumes_dir = self._directories[0]
        self._backing_dirs = backing_directories(options)
        self._tries = int(options.snapshot_tries)
        self._settle = float(options.snapshot_settle)
        self._allow_devices = bool(options.allow_devices)
        self._fence = Fence(
            os.path.join(self._volumes_dir, ".fence"), float(options.fence_wait), bool(options.fence_kill)
        )
        # A device does not show whether it was written meanwhile, so each run uses a new random number.
        self._run = secrets.token_hex(8)

    @property
    def capabilities(self) -> Capabilities:
        """It knows holes, makes snapshots, writes and fences."""
        return Capabilities(allocation=True, snapshots=True, writes=True, fences=True)

    @classmethod
    def options(cls) -> Sequence[cfg.Opt]:
        """Return the provider's options."""
        return local_options()

    # -- making, extending and deleting

    def create(self, volume: VolumeRef, source: SnapshotRef | VolumeRef | None, tick: Tick = no_tick) -> str:
        """Make the image file: sparse, or sharing the source's blocks, or as a sparse copy."""
        name = files.volume_name(volume.id)
        if os.path.lexists(os.path.join(self._volumes_dir, name)):
            return name
        with contextlib.ExitStack() as stack:
            # Opened first, so that an unusable source leaves no file.
            if source is not None and _format(source) != RAW:
                point = stack.enter_context(self.open_point(source, volume.id))
                fill, length = partial(copy_still_point, point), point.length
            elif source is not None:
                opened = stack.enter_context(self._opened(source, exclusive=True))
                fill, length = partial(_fill, opened), opened.length
            else:
                fill, length = None, 0
            if length > volume.length:
                raise InvalidVolume("The volume is smaller than what it shall be made from.")
            fd = stack.enter_context(files.new_file(self._volumes_dir, name))
            if fill is not None:
                fill(fd, tick)
            os.ftruncate(fd, volume.length)
            tick()
        return name

    def adopt(
        self,
        path: str,
        *,
        own: Sequence[str] = (),
        to_copy: bool = False,
        any_format: bool = False,
        in_use: bool = False,
    ) -> Storage:
        """Look at a raw image file or block device; its path may be relative."""
        return adopted(
            os.path.join(os.getcwd(), path),
            (*self._directories, *own),
            allow_devices=self._allow_devices,
            to_copy=to_copy,
            any_format=any_format,
            in_use=in_use,
            backing_dirs=self._backing_dirs,
        )

    def look(self, volume: VolumeRef) -> Storage:
        """Look at the volume's image file or block device."""
        with self._opened(volume) as opened:
            length = opened.length
            if _format(volume) != RAW:
                # A machine may use it: only its length is asked.
                length = self._of_image(volume, lambda: self._image_length(volume, opened, share=True))
            return Storage(volume.location or "", length, _recorded(volume, opened))

    def where(self, ref: VolumeRef | SnapshotRef) -> str:
        """Return the path of the image file or block device."""
        return self._path(ref)

    def delete(self, volume: VolumeRef) -> None:
        """Remove the volume's image file; an adopted volume's storage is left alone."""
        if not volume.adopted:
            self._remove(volume, files.volume_name(volume.id), (self._volumes_dir,))

    def extend(self, volume: VolumeRef, length: int) -> None:
        """Lengthen the image file.

        A block device cannot be extended here: it must be long enough already.  The bytes of an adopted image
        or device behind the volume's old length stay as they are.

        :raises OperationNotSupported: the block device is shorter.
        """
        with self._opened(volume, write=True) as opened:
            if _format(volume) != RAW:
                self._of_image(volume, lambda: self._extend_image(volume, opened, length))
                return
            if opened.length >= length:
                return
            if opened.is_device:
                raise OperationNotSupported(
                    "A block device cannot be extended by this service; extend the device first."
                )
            os.ftruncate(opened.fd, length)
            os.fsync(opened.fd)

    # -- snapshots

    def create_snapshot(self, snapshot: SnapshotRef, in_use: bool, tick: Tick = no_tick) -> str:
        """Share the image's blocks if the file system can; else make a copy, proven consistent if in use.

        The file is in the first of ``volumes_dir`` and ``snapshot_dirs`` that can share blocks with
        the image, else in ``volumes_dir``.
        """
        name = files.snapshot_name(snapshot.id)
        for directory in self._directories:
            if os.path.lexists(os.path.join(directory, name)):
                return self._location(directory, name)
        if _format(snapshot.volume) != RAW:
            # QEMU's lock, and the times of the files, prove that nobody wrote meanwhile.
            with (
                self.open_point(snapshot.volume, snapshot.id) as point,
                files.new_file(self._volumes_dir, name) as fd,
            ):
                copy_still_point(point, fd, tick, length=snapshot.length)
                os.fchmod(fd, 0o400)
            return self._location(self._volumes_dir, name)
        with self._opened(snapshot.volume) as opened:
            for directory in self._directories:
                with contextlib.suppress(_CannotClone), files.new_file(directory, name) as fd:
                    _clone(fd, opened, snapshot.length)
                    if is_awaited():
                        # This file system can, so now for good: nobody waits where it cannot.
                        with taking_point():
                            _clone(fd, opened, snapshot.length)
                    os.fchmod(fd, 0o400)
                    tick()
                    return self._location(directory, name)
            with files.new_file(self._volumes_dir, name) as fd:
                self._copy_still(fd, opened, snapshot, in_use, tick)
                os.fchmod(fd, 0o400)
                tick()
        return self._location(self._volumes_dir, name)

    def delete_snapshot(self, snapshot: SnapshotRef) -> None:
        """Remove the snapshot's file."""
        self._remove(snapshot, files.snapshot_name(snapshot.id), self._directories)

    # -- opening

    def open_point(
        self,
        ref: VolumeRef | SnapshotRef,
        point_id: str,  # noqa: ARG002
        tick: Tick = no_tick,  # noqa: ARG002
    ) -> Point:
        """Open for reading; a block device exclusively, so that it cannot be mounted meanwhile."""
        try:
            opened = self._open(ref, exclusive=True)
        except Busy as error:
            raise _in_use(ref) from error
        try:
            if isinstance(ref, VolumeRef) and _format(ref) != RAW:
                return self._of_image(ref, lambda: self._image_point(ref, opened))
            is_volume = isinstance(ref, VolumeRef)
            stamp = None
            if is_volume and not opened.is_device:
                # Write all pages back: only then a store to one of them through a mapping changes the file's
                # times.  A network file system gets the times of this host's writes by that, too.
                with contextlib.suppress(OSError):
                    os.fsync(opened.fd)
                stamp = Stamp.of(opened.fd)
            length = opened.length if is_volume else ref.length
            return LocalPoint(
                opened.fd,
                length,
                self._identity(opened, ref, length),
                storage_id=_recorded(ref, opened) if isinstance(ref, VolumeRef) else None,
                stamp=stamp,
            )
        except BaseException:
            os.close(opened.fd)
            raise

    def open_target(self, volume: VolumeRef, attempt: int) -> AbstractContextManager[BlockTarget]:
        """Open for writing; an image file of ours that is too short gets its full length."""
        # A damaged target is allowed, because a restore overwrites all of it.
        least = 0 if not volume.adopted else volume.length
        fenced = self._fence.open(
            lambda write, exclusive: self._open(
                volume, write=write, exclusive=exclusive, least=least, certain=True
            ),
            attempt,
        )
        try:
            if _format(volume) != RAW:
                return closing(self._of_image(volume, lambda: self._image_target(volume, fenced)))
            with fenced as fd:
                opened = Opened.of(fd)
                if opened.length < volume.length:
                    os.ftruncate(fd, volume.length)
                    os.fsync(fd)
                length = max(opened.length, volume.length)
                reads_zero = not opened.is_device and not volume.adopted and _is_all_hole(fd, length)
            return closing(
                LocalTarget(
                    fenced, length, reads_zero, opened.is_device, storage_id=_recorded(volume, opened)
                )
            )
        except BaseException:
            fenced.close()
            raise

    # -- images that are not raw

    def _image_length(self, volume: VolumeRef, opened: Opened, *, share: bool = False) -> int:
        place = (_format(volume), self._path(volume), self._backing_dirs)
        return self._long_enough(volume, image_length(opened.fd, *place, share=share))

    def _extend_image(self, volume: VolumeRef, opened: Opened, length: int) -> None:
        if self._image_length(volume, opened) < length:
            chain = Chain(opened.fd, _format(volume), self._path(volume), self._backing_dirs)
            with closing(chain):
                resize(chain, length)

    def _image_point(self, volume: VolumeRef, opened: Opened) -> Point:
        """Open an image for reading; the file belongs to the point then."""
        chain = Chain(opened.fd, _format(volume), self._path(volume), self._backing_dirs)
        try:
            point = ImagePoint(
                chain,
                lambda: os.close(opened.fd),
                f"image/{volume.id}",
                storage_id=_recorded(volume, opened),
            )
        except BaseException:
            chain.close()
            raise
        try:
            self._long_enough(volume, point.length)
        except BaseException:
            point.keep_file()
            point.close()
            raise
        return point

    def _image_target(self, volume: VolumeRef, fenced: Descriptor) -> ImageTarget:
        with fenced as fd:
            chain = Chain(fd, _format(volume), self._path(volume), self._backing_dirs, write=True)
            try:
                recorded = _recorded(volume, Opened.of(fd))
                target = ImageTarget(fenced, ImageServer(chain, write=True), chain, storage_id=recorded)
            except BaseException as error:
                chain.close()
                if isinstance(error, Locked):
                    raise TargetError(f"The image of {_USED.format(volume.id)}.") from error
                raise
        try:
            self._long_enough(volume, target.length)
            if not target.client.can_flush:
                raise TargetError("The image's program cannot make written data durable.")
        except BaseException:
            target.close()
            raise
        return target

    def _long_enough(self, volume: VolumeRef, length: int) -> int:
        if length < volume.length:
            raise Unusable(_shorter(length, volume.length))
        return length

    def _of_image(self, volume: VolumeRef, work: Callable[[], T]) -> T:
        """Do something with an image; what is wrong with it is said as of every other storage.

        :raises StorageChanged: it does not agree with the reference, or must not be used.
        :raises SourceMoved: another program uses it.
        """
        try:
            return work()
        except Unusable as error:
            raise self._changed(volume, str(error)) from error
        except Locked as error:
            raise SourceMoved(f"The image of {_USED.format(volume.id)}.") from error

    # -- helpers

    def _open(
        self,
        ref: VolumeRef | SnapshotRef,
        *,
        write: bool = False,
        exclusive: bool = False,
        least: int | None = None,
        certain: bool = False,
    ) -> Opened:
        """Open the storage of a reference, if it agrees with the reference.

        :param least: the least length in bytes; the catalogue's unless given.
        :param certain: it will be overwritten, so its identity must be certain.
        :raises StorageChanged: it does not agree.
        :raises Busy: see :func:`open_storage`.
        """
        path = self._path(ref)
        try:
            opened = open_storage(path, write=write, exclusive=exclusive)
            problem = _problem(opened, ref, ref.length if least is None else least, certain)
            if problem is None:
                return opened
            os.close(opened.fd)
        except Unusable as error:
            problem = str(error)
        raise self._changed(ref, problem)

    def _changed(self, ref: VolumeRef | SnapshotRef, problem: str) -> StorageChanged:
        volume = ref if isinstance(ref, VolumeRef) else None
        path = self._path(ref)
        what = f"{'snapshot' if volume is None else 'volume'} {ref.id}"
        hint = f"It is {path}."
        if (former := _left_behind(ref, path)) is not None:
            hint += (
                f" The database names {former}, which is in no directory of this configuration, so it is not"
                " used. If it belongs to this service and no other, move it to volumes_dir."
            )
        if volume is not None and volume.adopted:
            hint += (
                " Put back what was there; or, if what is there now is the volume, run"
                f" 'backupfw volume adopt --again {ref.id}' (with its path, if that is another one now)."
            )
        return StorageChanged(what, problem, hint)

    @contextmanager
    def _opened(
        self, ref: VolumeRef | SnapshotRef, *, write: bool = False, exclusive: bool = False
    ) -> Iterator[Opened]:
        try:
            opened = self._open(ref, write=write, exclusive=exclusive)
        except Busy as error:
            raise _in_use(ref) from error
        try:
            yield opened
        finally:
            os.close(opened.fd)

    def _path(self, ref: VolumeRef | SnapshotRef) -> str:
        """Return the path of a reference's storage; ours is found by its name in the present directories.

        Never elsewhere: the database may be a copy, and name files of the original service by their paths.
        """
        if isinstance(ref, VolumeRef):
            if ref.adopted:
                return ref.location or ""
            name, places = files.volume_name(ref.id), self._directories[:1]
        else:
            name, places = files.snapshot_name(ref.id), self._directories
        for directory in places:
            path = os.path.join(directory, name)
            if os.path.lexists(path):
                return path
        return os.path.join(self._volumes_dir, name)

    def _location(self, directory: str, name: str) -> str:
        """Return a location for the catalogue: a name in ``volumes_dir``, which may move; else a path."""
        return name if directory == self._volumes_dir else os.path.join(directory, name)

    def _copy_still(self, fd: int, opened: Opened, snapshot: SnapshotRef, in_use: bool, tick: Tick) -> None:
        if not in_use and self._copied_alone(fd, opened, snapshot, tick):
            return
        os.ftruncate(fd, 0)
        os.ftruncate(fd, snapshot.length)
        still_copy(opened.fd, fd, snapshot.length, self._tries, self._settle, tick)

    def _copied_alone(self, fd: int, opened: Opened, snapshot: SnapshotRef, tick: Tick) -> bool:
        """Copy a source that should have no writer; False: it has one."""
        if not opened.is_device:
            before = Stamp.of(opened.fd)
            _copy(fd, opened.fd, snapshot.length, tick)
            return Stamp.of(opened.fd) == before
        try:
            alone = self._open(snapshot.volume, exclusive=True)
        except Busy:
            return False
        try:
            _copy(fd, alone.fd, snapshot.length, tick)
        finally:
            os.close(alone.fd)
        return True

    def _remove(self, ref: VolumeRef | SnapshotRef, name: str, places: Sequence[str]) -> None:
        if (former := _left_behind(ref, self._path(ref))) is not None:
            LOG.warning("%s is in no directory of this configuration, so it is not removed", former)
        for directory in places:
            files.remove(directory, name)

    def _identity(self, opened: Opened, ref: VolumeRef | SnapshotRef, length: int) -> str:
        status = os.fstat(opened.fd)
        if opened.is_device:
            number = f"{os.major(status.st_rdev)}:{os.minor(status.st_rdev)}"
            return f"device/{ref.id}/{length}/{number}/{self._run}"
        kind = "volume" if isinstance(ref, VolumeRef) else "snapshot"
        # No device number: it can change at a reboot, and adds nothing to the rest.
        times = f"{status.st_mtime_ns}/{status.st_ctime_ns}"
        return f"{kind}/{ref.id}/{length}/{status.st_ino}/{times}"


class _CannotClone(Exception):
    """The file system cannot share blocks between these two."""


def _problem(opened: Opened, ref: VolumeRef | SnapshotRef, least: int, certain: bool) -> str | None:
    """Return how a storage differs from its reference; None: it agrees."""
    if isinstance(ref, VolumeRef) and ref.adopted:
        recorded = StorageId.parse(ref.storage_id or "")
        if recorded is not None and recorded.is_another(opened.storage_id):
            return "is another one than was adopted: it was replaced"
        if recorded is not None and certain and not recorded.is_same(opened.storage_id):
            return "is a device without a name of its own, which may be another one by now"
    elif opened.is_device:
        return "is a block device, where an image file of the service should be"
    # The length of another image than a raw one is not that of its file.
    if opened.length < least and _format(ref) == RAW:
        return _shorter(opened.length, least)
    return None


def _shorter(length: int, least: int) -> str:
    return f"is shorter than it should be: it has {length} of {least} bytes"


def _format(ref: VolumeRef | SnapshotRef) -> str:
    """Return the format of a reference's storage, as it was adopted."""
    if not isinstance(ref, VolumeRef) or not ref.adopted:
        return RAW
    recorded = StorageId.parse(ref.storage_id or "")
    return RAW if recorded is None else recorded.format


def _left_behind(ref: VolumeRef | SnapshotRef, path: str) -> str | None:
    """Return the existing file that the database names for a reference of ours that is not there; else None.

    It is in a directory of an earlier configuration, or it is the original's, and the database is a copy.

    :param path: where the reference's file should be.
    """
    if (isinstance(ref, VolumeRef) and ref.adopted) or ref.location is None or os.path.lexists(path):
        return None
    return ref.location if os.path.isabs(ref.location) and os.path.lexists(ref.location) else None


def _in_use(ref: VolumeRef | SnapshotRef) -> SourceMoved:
    return SourceMoved(f"The device of volume {ref.id} is mounted or held by another program.")


def _recorded(volume: VolumeRef, opened: Opened) -> str | None:
    """Return the storage id of an adopted volume for the catalogue; ours is identified by its name."""
    return str(replace(opened.storage_id, format=_format(volume))) if volume.adopted else None


def _fill(source: Opened, fd: int, tick: Tick) -> None:
    """Make an empty file equal to an image or device that should have no writer now.

    :raises SourceMoved: it was written during the copy.
    """
    try:
        _clone(fd, source, source.length)
    except _CannotClone:
        before = Stamp.of(source.fd)
        _copy(fd, source.fd, source.length, tick)
        if not source.is_device and Stamp.of(source.fd) != before:
            raise SourceMoved("The source changed while it was copied.") from None


def _clone(fd: int, source: Opened, length: int) -> None:
    """Make an empty file share the first ``length`` bytes of another, as they are at this moment."""
    if source.is_device:
        raise _CannotClone
    try:
        linux.clone_file(fd, source.fd)
    except OSError as error:
        if error.errno in _NO_CLONE:
            raise _CannotClone from error
        raise
    # Cuts the bytes behind the volume's length.
    os.ftruncate(fd, length)


def _copy(fd: int, source: int, length: int, tick: Tick) -> None:
    os.ftruncate(fd, length)
    mirror(source, fd, length, tick, fresh=True)


def _is_all_hole(fd: int, length: int) -> bool:
    return os.fstat(fd).st_blocks == 0 and next_extent(fd, 0, length) is None

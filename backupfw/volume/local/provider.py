"""The ``local`` provider: image files in a directory of ours, and adopted images and block devices."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
from collections.abc import Sequence
from contextlib import AbstractContextManager, closing
from typing import TYPE_CHECKING, Any, ClassVar

from backupfw.errors import InvalidVolume, OperationNotSupported, TargetError
from backupfw.volume.base import (
    BlockSource,
    BlockTarget,
    SnapshotRef,
    Tick,
    VolumeProvider,
    VolumeRef,
    no_tick,
)
from backupfw.volume.local import files, linux
from backupfw.volume.local.adopt import adopted
from backupfw.volume.local.fence import Fence
from backupfw.volume.local.holes import next_extent
from backupfw.volume.local.mirror import mirror
from backupfw.volume.local.options import directories, local_options
from backupfw.volume.local.source import LocalSource
from backupfw.volume.local.still_copy import Stamp, still_copy
from backupfw.volume.local.target import LocalTarget

if TYPE_CHECKING:
    from oslo_config import cfg

#: What FICLONE answers where blocks cannot be shared.
_NO_CLONE = linux.NOT_SUPPORTED | {errno.EXDEV}


class LocalProvider(VolumeProvider):
    """Volumes on this host's file systems and block devices.  Thread-safe."""

    API_VERSION: ClassVar[int] = 1

    def __init__(self, options: Any) -> None:
        """Take the options' values.

        :raises ConfigError: a directory is missing or cannot be used.
        """
        super().__init__(options)
        self._directories = directories(options)
        self._volumes_dir = self._directories[0]
        self._tries = int(options.snapshot_tries)
        self._settle = float(options.snapshot_settle)
        self._allow_devices = bool(options.allow_devices)
        self._fence = Fence(
            os.path.join(self._volumes_dir, ".fence"), float(options.fence_wait), bool(options.fence_kill)
        )
        # A device does not say whether it was written while we did not look: each run distrusts it anew.
        self._run = secrets.token_hex(8)

    @classmethod
    def options(cls) -> Sequence[cfg.Opt]:
        """Return the provider's options."""
        return local_options()

    # -- making, growing and deleting

    def create(self, volume: VolumeRef, source: SnapshotRef | VolumeRef | None, tick: Tick = no_tick) -> str:
        """Make the image file: sparse, or sharing the source's blocks, or as a sparse copy."""
        if source is not None and source.length > volume.length:
            raise InvalidVolume("The volume is smaller than what it shall be made from.")
        name = files.volume_name(volume.id)
        path = os.path.join(self._volumes_dir, name)
        if not os.path.lexists(path):
            with files.new_file(self._volumes_dir, name) as fd:
                if source is not None:
                    self._fill(fd, self._path(source), source.length, tick)
                os.ftruncate(fd, volume.length)
                tick()
        return path

    def adopt(self, path: str) -> tuple[str, int]:
        """Look at a raw image file or block device."""
        return adopted(path, self._directories, self._allow_devices)

    def delete(self, volume: VolumeRef) -> None:
        """Remove the volume's image file; an adopted volume's storage is left alone."""
        if not volume.adopted:
            self._remove(files.volume_name(volume.id), volume.location, (self._volumes_dir,))

    def extend(self, volume: VolumeRef, length: int) -> None:
        """Lengthen the image file.

        A block device cannot be grown from here: it must be long enough already.  What an adopted image
        or device holds past the volume's old length stays as it is.

        :raises OperationNotSupported: the block device is shorter.
        """
        fd = os.open(self._path(volume), os.O_RDWR | os.O_CLOEXEC)
        try:
            if _is_device(fd):
                if linux.device_length(fd) < length:
                    raise OperationNotSupported(
                        "A block device cannot be extended by this service; extend the device first."
                    )
            elif os.fstat(fd).st_size < length:
                os.ftruncate(fd, length)
                os.fsync(fd)
        finally:
            os.close(fd)

    # -- snapshots

    def create_snapshot(self, snapshot: SnapshotRef, in_use: bool, tick: Tick = no_tick) -> str:
        """Share the image's blocks where the file system can; else make a copy, proven still if in use.

        The file lies in the first of ``volumes_dir`` and ``snapshot_dirs`` that can share blocks with
        the image, else in ``volumes_dir``.
        """
        name = files.snapshot_name(snapshot.id)
        for directory in self._directories:
            path = os.path.join(directory, name)
            if os.path.lexists(path):
                return path
        volume_path = self._path(snapshot.volume)
        for directory in self._directories:
            with contextlib.suppress(_CannotClone), files.new_file(directory, name) as fd:
                _clone(fd, volume_path, snapshot.length)
                os.fchmod(fd, 0o400)
                tick()
                return os.path.join(directory, name)
        with files.new_file(self._volumes_dir, name) as fd:
            self._copy_still(fd, volume_path, snapshot.length, in_use, tick)
            os.fchmod(fd, 0o400)
            tick()
        return os.path.join(self._volumes_dir, name)

    def delete_snapshot(self, snapshot: SnapshotRef) -> None:
        """Remove the snapshot's file."""
        self._remove(files.snapshot_name(snapshot.id), snapshot.location, self._directories)

    # -- opening

    def open_source(self, ref: VolumeRef | SnapshotRef) -> AbstractContextManager[BlockSource]:
        """Open for reading.

        :raises OSError: it is missing, or shorter than it should be.
        """
        fd = _open_whole(self._path(ref), ref.length)
        try:
            return closing(LocalSource(fd, ref.length, self._identity(fd, ref)))
        except BaseException:
            os.close(fd)
            raise

    def open_target(self, volume: VolumeRef, attempt: int) -> AbstractContextManager[BlockTarget]:
        """Open for writing; an image file that is too short gets its full length."""
        descriptor = self._fence.open(self._path(volume), attempt)
        try:
            with descriptor as fd:
                is_device = _is_device(fd)
                if _actual_length(fd) < volume.length:
                    if is_device:
                        raise TargetError("The block device is shorter than the volume.")
                    os.ftruncate(fd, volume.length)
                    os.fsync(fd)
                reads_zero = not is_device and not volume.adopted and _is_all_hole(fd, volume.length)
            return closing(LocalTarget(descriptor, volume.length, reads_zero, is_device))
        except BaseException:
            descriptor.close()
            raise

    # -- helpers

    def _path(self, ref: VolumeRef | SnapshotRef) -> str:
        if ref.location is not None:
            return ref.location
        name = files.volume_name(ref.id) if isinstance(ref, VolumeRef) else files.snapshot_name(ref.id)
        return os.path.join(self._volumes_dir, name)

    def _fill(self, fd: int, path: str, length: int, tick: Tick) -> None:
        """Make an empty file equal to the first ``length`` bytes of ``path``, which is not written now."""
        try:
            _clone(fd, path, length)
        except _CannotClone:
            _copy(fd, path, length, tick)

    def _copy_still(self, fd: int, path: str, length: int, in_use: bool, tick: Tick) -> None:
        if not in_use:
            before = _stamp(path, length)
            _copy(fd, path, length, tick)
            if before == _stamp(path, length):
                return
            # Somebody writes who should not: prove it like a volume in use.
            os.ftruncate(fd, 0)
        os.ftruncate(fd, length)
        still_copy(path, fd, length, self._tries, self._settle, tick)

    def _remove(self, name: str, location: str | None, places: Sequence[str]) -> None:
        for directory in places:
            files.remove(directory, name)
        # A place that was configured once; only a file of exactly our name is ever removed.
        if location is not None and os.path.basename(location) == name:
            files.remove(os.path.dirname(location), name)

    def _identity(self, fd: int, ref: VolumeRef | SnapshotRef) -> str:
        status = os.fstat(fd)
        if stat.S_ISBLK(status.st_mode):
            number = f"{os.major(status.st_rdev)}:{os.minor(status.st_rdev)}"
            return f"device/{ref.id}/{ref.length}/{number}/{self._run}"
        kind = "volume" if isinstance(ref, VolumeRef) else "snapshot"
        # No device number: it may change with a reboot, and tells nothing beside the rest.
        times = f"{status.st_mtime_ns}/{status.st_ctime_ns}"
        return f"{kind}/{ref.id}/{ref.length}/{status.st_ino}/{times}"


class _CannotClone(Exception):
    """The file system cannot share blocks between these two."""


def _clone(fd: int, path: str, length: int) -> None:
    """Make an empty file share the first ``length`` bytes of ``path``, as they are at this moment."""
    source = _open_whole(path, length)
    try:
        if _is_device(source):
            raise _CannotClone
        linux.clone_file(fd, source)
    except OSError as error:
        if error.errno in _NO_CLONE:
            raise _CannotClone from error
        raise
    finally:
        os.close(source)
    # Cuts what lies past the volume's length.
    os.ftruncate(fd, length)


def _copy(fd: int, path: str, length: int, tick: Tick) -> None:
    os.ftruncate(fd, length)
    source = _open_whole(path, length)
    try:
        mirror(source, fd, length, tick, fresh=True)
    finally:
        os.close(source)


def _open_whole(path: str, length: int) -> int:
    """Open for reading; what lost its end is an error, not a volume that ends in zeros."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if _actual_length(fd) < length:
            raise OSError(errno.EIO, "the storage is shorter than the volume")
    except BaseException:
        os.close(fd)
        raise
    return fd


def _stamp(path: str, length: int) -> Stamp | None:
    """Return the stamp of an image file; None for a device, which has none."""
    fd = _open_whole(path, length)
    try:
        return None if _is_device(fd) else Stamp.of(fd)
    finally:
        os.close(fd)


def _is_device(fd: int) -> bool:
    return stat.S_ISBLK(os.fstat(fd).st_mode)


def _actual_length(fd: int) -> int:
    return linux.device_length(fd) if _is_device(fd) else os.fstat(fd).st_size


def _is_all_hole(fd: int, length: int) -> bool:
    return os.fstat(fd).st_blocks == 0 and next_extent(fd, 0, length) is None

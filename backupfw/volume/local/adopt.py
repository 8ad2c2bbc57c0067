"""Checks storage that shall become a volume, or be copied to one."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from backupfw.errors import ConfigError, InvalidInput
from backupfw.volume.base import Storage
from backupfw.volume.local import linux
from backupfw.volume.local.formats import image_format, not_raw
from backupfw.volume.local.image import image_length
from backupfw.volume.local.opening import Busy, Opened, Unusable, is_device_name, open_storage
from backupfw.volume.local.qemu import Locked
from backupfw.volume.local.storage_id import RAW

# As many links as the kernel follows.
_MAX_LINKS = 40


def adopted(
    path: str,
    own: Sequence[str],
    *,
    allow_devices: bool = True,
    to_copy: bool = False,
    any_format: bool = False,
    in_use: bool = False,
    backing_dirs: Sequence[str] = (),
) -> Storage:
    """Return the storage; its location is the one to record.

    :param path: absolute; links are followed once, now, but only to the first name below /dev, because the
        kernel can give its own name of a disk to another disk after a reboot.
    :param own: files and directories of the service; everything in them, under any name, is refused.
    :param to_copy, any_format, in_use: see :meth:`VolumeProvider.adopt`.
    :param backing_dirs: real paths of directories that may have backing files of images.
    :raises InvalidInput: it cannot be used; the message says why.
    """
    if not os.path.isabs(path) or "\0" in path:
        raise InvalidInput(f"{path!r} is not an absolute path.")
    path = path.rstrip("/") or "/"
    location = _location(path)
    try:
        opened = open_storage(location, write=not to_copy, exclusive=not in_use)
    except Busy as error:
        raise InvalidInput(
            f"{path} is mounted or held by another program. If it may stay so, adopt it with --in-use."
        ) from error
    except Unusable as error:
        # ``Unusable`` says "is gone", but a new path may be misspelt.
        problem = "does not exist" if isinstance(error.__cause__, FileNotFoundError) else error
        raise InvalidInput(f"{path} {problem}.") from error
    except OSError as error:
        raise InvalidInput(f"{path} cannot be opened: {error.strerror}.") from error
    try:
        _judge(path, location, opened, own, allow_devices, to_copy)
        format_ = RAW if any_format else _format(path, opened)
        length = opened.length
        if format_ != RAW:
            length = _image_length(path, location, opened, format_, backing_dirs, in_use)
        return Storage(location, length, str(replace(opened.storage_id, format=format_)))
    finally:
        os.close(opened.fd)


def _judge(
    path: str,
    location: str,
    opened: Opened,
    own: Sequence[str],
    allow_devices: bool,
    to_copy: bool,
) -> None:
    if opened.is_device and not allow_devices:
        raise InvalidInput("Block devices may not become volumes here (option allow_devices).")
    if not opened.is_device and _is_own(location, os.fstat(opened.fd), own):
        raise InvalidInput(f"{path} belongs to this service: it is one of its own files.")
    if opened.is_device and not to_copy and linux.device_is_read_only(opened.fd):
        raise InvalidInput(f"{path} is a read-only device.")
    if opened.length == 0:
        raise InvalidInput(f"{path} is empty.")


def _format(path: str, opened: Opened) -> str:
    """Return the format by which a file is read from now on: this is the only time that it is looked for."""
    format_ = None if opened.is_device else image_format(opened.fd, opened.length)
    if format_ is not None:
        return format_
    if (found := not_raw(opened.fd, opened.length)) is not None:
        raise InvalidInput(f"{path} is a {found}. If these bytes are the disk itself, say so with --as-raw.")
    return RAW


def _image_length(
    path: str, location: str, opened: Opened, format_: str, backing_dirs: Sequence[str], in_use: bool
) -> int:
    try:
        length = image_length(opened.fd, format_, location, backing_dirs, share=in_use)
    except Unusable as error:
        raise InvalidInput(f"{path} {error}.") from error
    except Locked as error:
        raise InvalidInput(
            f"{path} is held by another program, such as a running machine. If it may stay so, adopt it with"
            " --in-use; it can be backed up when the program has ended."
        ) from error
    except ConfigError as error:
        raise InvalidInput(f"{path} is a {format_} image: {error}.") from error
    if length == 0:
        raise InvalidInput(f"{path} is an image of no length.")
    return length


def _location(path: str) -> str:
    """Follow links, to the first name of a block device below /dev: those after it may not last."""
    name = path
    for _ in range(_MAX_LINKS):
        name = os.path.join(os.path.realpath(os.path.dirname(name)), os.path.basename(name))
        try:
            if is_device_name(name) and stat.S_ISBLK(os.stat(name).st_mode):
                return name
            name = os.path.join(os.path.dirname(name), Path(name).readlink())
        except OSError:
            # Not a link, or a link to nothing.
            break
    return os.path.realpath(path)


def _is_own(location: str, status: os.stat_result, own: Sequence[str]) -> bool:
    """Return whether a file is one of ours: it is among them, or is another name of one of them."""
    for place in own:
        real = os.path.realpath(place)
        if os.path.commonpath((location, real)) == real:
            return True
    # Only a file with several names can be in one of our directories under another name.
    if status.st_nlink == 1:
        return False
    return any(os.path.samestat(status, found) for place in own for found in _files(os.path.realpath(place)))


def _files(place: str) -> Iterator[os.stat_result]:
    if not os.path.isdir(place):
        if os.path.exists(place):
            yield os.stat(place)
        return
    for folder, _, names in os.walk(place):
        for name in names:
            try:
                yield os.lstat(os.path.join(folder, name))
            except FileNotFoundError:
                continue

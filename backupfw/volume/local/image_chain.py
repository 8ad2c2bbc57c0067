"""Which files an image of another format than raw consists of, read from its header; nothing is guessed.

An image can name other files: a backing file, a data file, extents.  Whoever can write to an image could name
any file of the host there, and read it in a backup.  So a header is judged before QEMU sees the image: only
backing files are used, only in directories that the operator named, and only with a declared format.  QEMU
then gets every file of the chain as an open descriptor (see ``qemu.py``).
"""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from backupfw.volume.local.opening import Unusable, open_storage
from backupfw.volume.local.still_copy import Stamp

#: Formats of images, as they are called here and by qemu-img, and QEMU's driver of each.
DRIVERS = {"qcow2": "qcow2", "vmdk": "vmdk", "vhd": "vpc", "vhdx": "vhdx"}
#: Formats that a backing file may have.
_BACKING_FORMATS = frozenset({"raw", "qcow2"})
#: Longest chain of backing files.
_MAX_LAYERS = 64

_QCOW2_HEADER = struct.Struct(">4sIQIIQI")
_BACKING_FORMAT = 0xE2792ACA
_QCOW2_CORRUPT, _QCOW2_DATA_FILE = 1 << 1, 1 << 2
_VMDK_TYPES = frozenset({"monolithicSparse", "streamOptimized"})
_MAX_DESCRIPTOR = 1 << 20
# QEMU looks for a parent in so many bytes, whatever length the header says.
_LEAST_DESCRIPTOR = 20 * 512
_VHD_DYNAMIC, _VHD_FIXED = 3, 2


@dataclass(frozen=True, slots=True)
class Layer:
    """An open file of an image.

    :ivar format: ``raw``, or one of :data:`DRIVERS`.
    """

    fd: int
    format: str


class Chain:
    """The files of an image, from the image itself down; they stay open until :meth:`close`.

    :param fd: the image, open; it is not closed with the chain.
    :param location: its path.
    :param backing_dirs: real paths of directories that may have backing files.
    :param write: it will be written.
    :raises Unusable: it is no image of this format, or one that is not used.
    """

    def __init__(
        self, fd: int, format_: str, location: str, backing_dirs: Sequence[str], *, write: bool = False
    ) -> None:
        self.layers = [Layer(fd, format_)]
        try:
            while (backing := _backing(self.layers[-1], write and len(self.layers) == 1)) is not None:
                if len(self.layers) == _MAX_LAYERS:
                    raise Unusable(f"has more than {_MAX_LAYERS} backing files")
                name, its_format = backing
                location = _allowed(name, os.path.dirname(location), backing_dirs)
                self.layers.append(Layer(_opened(location), its_format))
        except BaseException:
            self.close()
            raise

    def stamps(self) -> list[Stamp]:
        """Return what shows a write to any of the files."""
        return [Stamp.of(layer.fd) for layer in self.layers]

    def close(self) -> None:
        """Close the backing files."""
        for layer in self.layers[1:]:
            with suppress(OSError):
                os.close(layer.fd)
        del self.layers[1:]


def _opened(location: str) -> int:
    try:
        opened = open_storage(location)
    except Unusable as error:
        raise Unusable(f"has a backing file that {error}") from error
    if opened.is_device:
        os.close(opened.fd)
        raise Unusable("has a block device as its backing file")
    return opened.fd


def _allowed(name: str, directory: str, backing_dirs: Sequence[str]) -> str:
    """Return the real path of a backing file."""
    first = name.split("/", 1)[0]
    if not name or "\0" in name or ":" in first:
        raise Unusable("has a backing file that is no plain file")
    location = os.path.realpath(os.path.join(directory, name))
    if not any(location.startswith(allowed.rstrip("/") + "/") for allowed in backing_dirs):
        raise Unusable("has a backing file, which is in none of the directories of the option backing_dirs")
    return location


def _backing(layer: Layer, write: bool) -> tuple[str, str] | None:
    """Judge a file's header; return name and format of its backing file, or None: it has none."""
    if layer.format == "qcow2":
        return _qcow2(layer.fd)
    if layer.format == "vmdk":
        _vmdk(layer.fd, write)
    elif layer.format == "vhd":
        _vhd(layer.fd)
    elif layer.format == "vhdx" and os.pread(layer.fd, 8, 0) != b"vhdxfile":
        raise Unusable("is no valid vhdx image")
    return None


def _qcow2(fd: int) -> tuple[str, str] | None:
    start = os.pread(fd, 1 << 16, 0)
    if len(start) < 104 or start[:4] != b"QFI\xfb":
        raise Unusable("is no valid qcow2 image")
    _, version, offset, size, _, _, encryption = _QCOW2_HEADER.unpack_from(start)
    if version not in (2, 3):
        raise Unusable(f"is a qcow2 image of version {version}, which is not used: convert it")
    features, extensions = 0, 72
    if version == 3:
        features, extensions = struct.unpack_from(">Q", start, 72)[0], struct.unpack_from(">I", start, 100)[0]
    if features & _QCOW2_DATA_FILE:
        raise Unusable("is a qcow2 image with a data file of its own, which is not used: convert it")
    if features & _QCOW2_CORRUPT:
        raise Unusable("is a qcow2 image that QEMU marked as damaged: repair it (qemu-img check -r)")
    if encryption:
        raise Unusable("is an encrypted qcow2 image, which is not used: convert it")
    if offset == 0:
        return None
    name = os.fsdecode(os.pread(fd, size, offset)) if size <= 1023 else ""
    declared = _qcow2_extension(start, extensions)
    if declared not in _BACKING_FORMATS:
        raise Unusable("has a backing file whose format is not declared as raw or qcow2")
    return name, declared


def _qcow2_extension(start: bytes, position: int) -> str | None:
    """Return the declared format of the backing file."""
    while position + 8 <= len(start):
        kind, size = struct.unpack_from(">II", start, position)
        if kind == 0:
            return None
        if kind == _BACKING_FORMAT:
            return start[position + 8 : position + 8 + size].decode("ascii", "replace")
        position += 8 + -(-size // 8) * 8
    return None


def _vmdk(fd: int, write: bool) -> None:
    start = os.pread(fd, 512, 0)
    if len(start) < 512 or start[:4] != b"KDMV":
        raise Unusable("is a vmdk image of several files, which is not used: convert it")
    (capacity,) = struct.unpack_from("<Q", start, 12)
    offset, size = struct.unpack_from("<QQ", start, 28)
    text = ""
    if offset and size * 512 <= _MAX_DESCRIPTOR:
        length = max(size * 512, _LEAST_DESCRIPTOR)
        text = os.pread(fd, length, offset * 512).split(b"\0", 1)[0].decode("latin-1")
    kind = re.search(r'^\s*createType\s*=\s*"([^"]*)"', text, re.MULTILINE)
    parent = re.search(r"^\s*parentCID\s*=\s*(\w+)", text, re.MULTILINE)
    if capacity == 0 or kind is None or kind[1] not in _VMDK_TYPES:
        raise Unusable("is a vmdk image of several files, which is not used: convert it")
    if "parentFileNameHint" in text or (parent is not None and parent[1].lower() != "ffffffff"):
        raise Unusable("is a vmdk image that depends on another one, which is not used: convert it")
    if write and kind[1] == "streamOptimized":
        raise Unusable("is a stream-optimized vmdk image, which can only be read")


def _vhd(fd: int) -> None:
    footer = os.pread(fd, 512, 0)
    if footer[:8] != b"conectix":
        footer = os.pread(fd, 512, max(0, os.fstat(fd).st_size - 512))
    if len(footer) < 512 or footer[:8] != b"conectix":
        raise Unusable("is no valid vhd image")
    if struct.unpack_from(">I", footer, 60)[0] not in (_VHD_DYNAMIC, _VHD_FIXED):
        raise Unusable("is a vhd image that depends on another one, which is not used: convert it")

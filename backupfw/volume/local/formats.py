"""Recognises images and archives that are not a disk's bytes themselves, by their first and last bytes."""

from __future__ import annotations

import os

#: ``(offset, magic bytes, what it is)``.  LUKS and file systems are not here: they are a disk's bytes.
_AT_START = (
    (0, b"QFI\xfb", "qcow2 image"),
    (0, b"QED\0", "qed image"),
    (0, b"KDMV", "vmdk image"),
    (0, b"COWD", "vmdk image"),
    (0, b"# Disk Descrip", "vmdk image"),
    (0, b"vhdxfile", "vhdx image"),
    (0, b"conectix", "vhd image"),
    (0x40, b"\x7f\x10\xda\xbe", "vdi image"),
    (0, b"<<< ", "vdi image"),
    (0, b"WithoutFreeSpace", "parallels image"),
    (0, b"WithouFreSpacExt", "parallels image"),
    (0, b"Bochs Virtual HD Image", "bochs image"),
    (0, b"#!/bin/sh\n#V2.0 Format\n", "cloop image"),
    (0, b"\x1f\x8b\x08", "gzip file"),
    (0, b"\xfd7zXZ\0", "xz file"),
    (0, b"\x28\xb5\x2f\xfd", "zstd file"),
    (0, b"BZh", "bzip2 file"),
    (0, b"\x04\x22\x4d\x18", "lz4 file"),
    (0, b"\x89LZO\0\r\n\x1a\n", "lzop file"),
    (0, b"LZIP", "lzip file"),
    (0, b"PK\x03\x04", "zip archive"),
    (0, b"7z\xbc\xaf\x27\x1c", "7z archive"),
    (0, b"Rar!\x1a\x07", "rar archive"),
    (257, b"ustar", "tar archive (an ova is one)"),
    (0, b"MSWIM\0\0\0", "wim image"),
    (60, b"encrcdsa", "dmg image"),
)
#: ``(offset from the end, magic bytes, what it is)``: footers.
_AT_END = (
    # The footer of versions before 2004 is a byte shorter.
    (-512, b"conectix", "vhd image of fixed size"),
    (-511, b"conectix", "vhd image of fixed size"),
    (-512, b"koly", "dmg image"),
)

#: The formats of :data:`image_chain.DRIVERS`, which are read through QEMU, by what is said of their bytes.
_DISKS = {
    "qcow2 image": "qcow2",
    "vmdk image": "vmdk",
    "vhdx image": "vhdx",
    "vhd image": "vhd",
    "vhd image of fixed size": "vhd",
}

_UNPACK = "unpack it first"
_CONVERT = "convert it first (qemu-img convert -O raw)"


def image_format(fd: int, length: int) -> str | None:
    """Return the format of an image that is read through QEMU; None: it is none, or nothing is known of it.

    :param length: bytes.
    """
    return _DISKS.get(_recognised(fd, length) or "")


def not_raw(fd: int, length: int) -> str | None:
    """Say what an image is, and what to do, if it is not raw; None: it may be.

    :param length: bytes.
    """
    what = _recognised(fd, length)
    return None if what is None else _advice(what)


def _recognised(fd: int, length: int) -> str | None:
    start = os.pread(fd, 512, 0)
    for offset, magic, what in _AT_START:
        if start[offset : offset + len(magic)] == magic:
            return what
    for offset, magic, what in _AT_END:
        if length >= -offset and os.pread(fd, len(magic), length + offset) == magic:
            return what
    return None


def _advice(what: str) -> str:
    return f"{what}; {_CONVERT if 'image' in what else _UNPACK}"

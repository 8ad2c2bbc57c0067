"""Storage ids: distinguish an image file or block device from any other at the same path."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass, replace

from blake3 import blake3

from backupfw.volume.local import linux

#: The format of an image whose bytes are those of the disk.
RAW = "raw"
_UNKNOWN = "-"
#: The kernel's directory of block devices by number, and the file with the id of its present run.
_DEVICES = "/sys/dev/block"
_BOOT = "/proc/sys/kernel/random/boot_id"
#: Files of the kernel with a name that stays with a device, the best first, and the prefix of that name here:
#: of mapped devices, disks, arrays, cards and virtual disks, and the file below a loop device.
_NAMES = (
    ("dm/uuid", ""),
    ("wwid", ""),
    ("device/wwid", ""),
    ("md/uuid", "md:"),
    ("device/cid", "cid:"),
    ("serial", "serial:"),
    ("device/serial", "serial:"),
    ("loop/backing_file", "loop:"),
)
#: Longest name that is kept as it is.
_LONGEST = 160


@dataclass(frozen=True, slots=True)
class StorageId:
    """The kind of a storage, and its marks.  As text: ``file 4711 1700000000123456789 fs:5a3c``; an adopted
    image of another format than raw has that as a fifth word: what a volume was adopted as, it stays.

    After the deletion of a file another file can get its inode number, and a device number can change at each
    boot or mount.  So a file is identified by its inode number and birth time, or by its place if the file
    system has no birth time.  A device is identified by its own name, or, if it has none, by its number,
    which has no meaning after a restart of the host, or once the device went away.

    :ivar kind: ``file`` or ``device``.
    :ivar number: a file's inode number; of a device unknown.
    :ivar name: a file's time of birth in ns, a device's own name; unknown where there is none.
    :ivar place: a device's number, and where the device has no name the boot and the kernel's count of disks;
        a file system's own id (of ext4 from its UUID, so it stays), because the number of the device below it
        may change.
    :ivar format: of the image; no part of a comparison.
    """

    kind: str
    number: str
    name: str
    place: str
    format: str = RAW

    @classmethod
    def of(cls, fd: int) -> StorageId:
        """Look at an open file or block device."""
        status = os.fstat(fd)
        if stat.S_ISBLK(status.st_mode):
            return cls.of_device(status.st_rdev)
        place = f"fs:{os.fstatvfs(fd).f_fsid:x}"
        born = linux.birth_time(fd)
        return cls("file", str(status.st_ino), _UNKNOWN if born is None else str(born), place)

    @classmethod
    def of_device(cls, device: int) -> StorageId:
        """Look at a block device by its number."""
        name, number = _device_name(device), _numbers(device)
        return cls("device", _UNKNOWN, name, number if name != _UNKNOWN else f"{number}@{_run_of(device)}")

    @classmethod
    def parse(cls, text: str) -> StorageId | None:
        """Read the text form; None: it is not one."""
        parts = text.split(" ")
        return cls(*parts) if len(parts) in (4, 5) else None

    def __str__(self) -> str:
        words = (self.kind, self.number, self.name, self.place)
        return " ".join(words if self.format == RAW else (*words, self.format))

    def is_same(self, other: StorageId) -> bool:
        """Return whether both are certainly of one storage; needed before an overwrite."""
        return self._compared(other) is True

    def is_another(self, other: StorageId) -> bool:
        """Return whether both are certainly of different storages."""
        return self._compared(other) is False

    def _compared(self, other: StorageId) -> bool | None:
        """Whether both are of one storage; None: not known."""
        if (self.kind, self.number) != (other.kind, other.number):
            return False
        if _UNKNOWN not in (self.name, other.name):
            return self.name == other.name
        if self.kind == "file":
            return self.place == other.place
        return True if replace(self, format=other.format) == other and "@" in self.place else None


def _numbers(device: int) -> str:
    return f"{os.major(device)}:{os.minor(device)}"


def _run_of(device: int) -> str:
    """Return what tells a device from others that have or had its number.

    That is the boot, and since Linux 5.15 the number of the disk in the order in which the kernel met disks:
    a device number is given again as soon as a device is unmapped (Ceph's /dev/rbd0) or pulled out.
    """
    folder = os.path.join(_DEVICES, _numbers(device))
    order = _text(os.path.join(folder, "diskseq")) or _text(os.path.join(folder, "..", "diskseq"))
    return "/".join((_text(_BOOT)[:8] or "?", *([order] if order else [])))


def _device_name(device: int) -> str:
    folder = os.path.join(_DEVICES, _numbers(device))
    if name := _own_name(folder):
        return name
    # A partition: a part of the disk above it, as long as it begins at the same place.
    if (number := _text(os.path.join(folder, "partition"))) and (disk := _own_name(f"{folder}/..")):
        return f"{disk}-part{number}@{_text(os.path.join(folder, 'start'))}"
    return _UNKNOWN


def _own_name(folder: str) -> str:
    for path, kind in _NAMES:
        if text := _text(os.path.join(folder, path)):
            if len(text) > _LONGEST:
                text = blake3(text.encode()).hexdigest()
            if kind == "loop:" and (offset := _text(os.path.join(folder, "loop/offset"))) not in ("", "0"):
                text += f"+{offset}"
            return kind + text
    return ""


def _text(path: str) -> str:
    """Return what a file of the kernel says, as one word; empty: it says nothing, or is not there."""
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            return "_".join(file.read(8192).split())
    except OSError:
        return ""

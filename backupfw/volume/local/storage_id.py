"""What tells an image file or block device from any other that may come to the same path."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass

from backupfw.volume.local import linux

_UNKNOWN = "-"
#: Where the kernel shows a name that stays with a device, best first: of a mapped one, of a disk.
_NAMES = ("dm/uuid", "wwid", "device/wwid")


@dataclass(frozen=True, slots=True)
class StorageId:
    """The kind of a storage, and its marks.  As text: ``file 4711 1700000000123456789 fs:5a3c``.

    A file's inode number may be given to another file once it is deleted, and a device number may change
    with each boot or mount.  So a file is known by its inode number and the time it was born, and only where
    the file system keeps no such time by where it lies.

    :ivar kind: ``file`` or ``device``.
    :ivar number: a file's inode number; of a device unknown.
    :ivar name: a file's time of birth in ns, a device's own name; unknown where there is none.
    :ivar place: a device's number; a file system's own id (of ext4 from its UUID, so it stays), because the
        number of the device below it may change.
    """

    kind: str
    number: str
    name: str
    place: str

    @classmethod
    def of(cls, fd: int) -> StorageId:
        """Look at an open file or block device."""
        status = os.fstat(fd)
        if stat.S_ISBLK(status.st_mode):
            return cls("device", _UNKNOWN, _device_name(status.st_rdev), _numbers(status.st_rdev))
        place = f"fs:{os.fstatvfs(fd).f_fsid:x}"
        born = linux.birth_time(fd)
        return cls("file", str(status.st_ino), _UNKNOWN if born is None else str(born), place)

    @classmethod
    def parse(cls, text: str) -> StorageId | None:
        """Read the text form; None: it is none of ours."""
        parts = text.split(" ")
        return cls(*parts) if len(parts) == 4 else None

    def __str__(self) -> str:
        return f"{self.kind} {self.number} {self.name} {self.place}"

    def is_same(self, other: StorageId) -> bool:
        """Say whether both are of one storage."""
        if (self.kind, self.number) != (other.kind, other.number):
            return False
        if _UNKNOWN not in (self.name, other.name):
            return self.name == other.name
        # A device without a name of its own is where it was adopted, whatever its number is today.
        return self.kind == "device" or self.place == other.place


def _numbers(device: int) -> str:
    return f"{os.major(device)}:{os.minor(device)}"


def _device_name(device: int) -> str:
    folder = f"/sys/dev/block/{_numbers(device)}"
    for name in _NAMES:
        try:
            with open(os.path.join(folder, name), encoding="ascii", errors="replace") as file:
                text = "_".join(file.read(200).split())
        except OSError:
            continue
        if text:
            return text
    return _UNKNOWN

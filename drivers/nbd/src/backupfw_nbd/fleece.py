"""What is made in a QEMU process for a point, and how it goes again.

For each point of a disk there is a dirty bitmap ``backupfw-<point id>-<random>-<length>``, which begins at
exactly the moment of the point.  While the point can be read, there are also, named by its id, a backup job
(it copies what the machine is about to overwrite to a temporary overlay), the overlay, and an export of it
over NBD.

*Begin*: one transaction makes the new bitmap, freezes all earlier ones and starts the job.  So what an
earlier bitmap has at that moment is what changed between its point and the new one; the export shows them.

*End*: job, export and overlay go.  Then, in one transaction, the new bitmap is merged into each frozen one,
and all of them record again.  So between two points every bitmap has what changed since its own point:
nothing is ever lost, whether the backup succeeded or not.  It does not matter who does this: what a killed
process left is recognised by its names, and ended by the next call.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import secrets
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from backupfw.errors import ConfigError, SourceUnreadable
from backupfw.volume.taking import taking_point
from backupfw_nbd.qmp import Monitor, QmpError

PREFIX = "backupfw-"
#: What one bit of a bitmap stands for, bytes.
GRANULARITY = 64 << 10
_BITMAP = re.compile(r"backupfw-([0-9A-Za-z-]{1,64})-[0-9a-f]{8}-([0-9]{1,20})")
_OVERLAY = re.compile(r"backupfw-([0-9A-Za-z-]{1,64})\.on-(.*)\.qcow2")
_ID = re.compile(r"[0-9A-Za-z][0-9A-Za-z-]{0,63}")
# Seconds for the end of a cancelled job.
_JOB_END = 30.0


@dataclass(frozen=True, slots=True)
class Disk:
    """A disk of a machine, as its monitor shows it.

    :ivar length: bytes.
    :ivar file: the name of its file, as QEMU knows it.
    :ivar lasting: whether bitmaps stay when the machine is off: qcow2 can hold them.
    :ivar bitmaps: ours: name -> whether it records.
    :ivar broken: ours that QEMU cannot use any more.
    :ivar busy: ours that are exported.
    """

    node: str
    length: int
    file: str
    lasting: bool
    bitmaps: dict[str, bool]
    broken: frozenset[str]
    busy: frozenset[str]


@dataclass(frozen=True, slots=True)
class Begun:
    """A point that can be read.

    :ivar export: the export's name.
    :ivar bitmap: begins at its moment; no other point has one of this name.
    :ivar earlier: bitmaps that are exported: what changed since their points.
    """

    export: str
    bitmap: str
    earlier: frozenset[str]


def point_of(bitmap: str) -> str | None:
    """Return the id of the point that a bitmap began at; None: it is not ours."""
    match = _BITMAP.fullmatch(bitmap)
    return None if match is None else match[1]


def length_of(bitmap: str) -> int:
    """Return the length of the disk at the point that a bitmap began at."""
    match = _BITMAP.fullmatch(bitmap)
    return 0 if match is None else int(match[2])


class Fleece:
    """The points of one disk.  Not thread-safe: whoever has the monitor is alone.

    :param monitor: owned by the caller.
    :param node: the disk's node in QEMU.
    :param scratch: directory of overlays and sockets, which QEMU can write to as well.
    :param socket: where the machine's NBD server listens.
    """

    def __init__(self, monitor: Monitor, node: str, scratch: str, socket: str) -> None:
        self._qmp = monitor
        self._node = node
        self._scratch = scratch
        self._socket = socket

    def disk(self) -> Disk | None:
        """Look at the disk; None: the machine has none of this name."""
        for found in self._qmp.run("query-named-block-nodes", flat=True):
            if found.get("node-name") == self._node:
                ours = {
                    bitmap["name"]: bitmap
                    for bitmap in found.get("dirty-bitmaps", [])
                    if point_of(bitmap.get("name", "")) is not None
                }
                broken = {name for name, bitmap in ours.items() if bitmap.get("inconsistent")}
                return Disk(
                    self._node,
                    int(found["image"]["virtual-size"]),
                    str(found.get("file", "")),
                    found.get("drv") == "qcow2",
                    {name: bool(bitmap["recording"]) for name, bitmap in ours.items() if name not in broken},
                    frozenset(broken),
                    frozenset(name for name, bitmap in ours.items() if bitmap.get("busy")),
                )
        return None

    def begin(self, disk: Disk, point_id: str) -> Begun:
        """Make a point, or find the one that an earlier call made.

        :raises SourceUnreadable: QEMU refuses it.
        """
        if not _ID.fullmatch(point_id):
            raise SourceUnreadable(f"{point_id!r} cannot be the id of a point.")
        if (begun := self._found(disk, point_id)) is not None:
            return begun
        # What is left of others: there is one point of a disk at a time that can be read.
        self.end()
        disk = self._looked()
        self._check_top()
        # An earlier point of this id is lost, and with it what its bitmap is good for.
        with _refusals():
            self._remove(disk, lambda name, now: name in now.broken or point_of(name) == point_id)
        disk = self._looked()
        names = _Names(point_id)
        bitmap = f"{PREFIX}{point_id}-{secrets.token_hex(4)}-{disk.length}"
        try:
            self._add_overlay(disk, names)
            node = disk.node
            new = {
                "node": node,
                "name": bitmap,
                "granularity": GRANULARITY,
                "persistent": disk.lasting,
            }
            job = {"job-id": names.long, "device": node, "target": names.node, "sync": "none"}
            with taking_point():
                self._qmp.transaction(
                    [
                        ("block-dirty-bitmap-add", new),
                        *(
                            ("block-dirty-bitmap-disable", {"node": node, "name": name})
                            for name in disk.bitmaps
                        ),
                        ("blockdev-backup", job),
                    ]
                )
            self._export(names, sorted(disk.bitmaps))
        except QmpError as error:
            self.end()
            with contextlib.suppress(QmpError):
                self._remove(self._looked(), lambda name, _: name == bitmap)
            raise _refused(error) from error
        return Begun(names.long, bitmap, frozenset(disk.bitmaps))

    def end(self, *, but: frozenset[str] = frozenset()) -> None:
        """Remove what lets points of this disk be read; their bitmaps go on.  Idempotent.

        :param but: points that shall stay readable; their ids.
        :raises SourceUnreadable: QEMU refuses it.
        """
        with _refusals():
            kept = {_Names(point_id) for point_id in but}
            ended = False
            for names in self._readable():
                if names not in kept or names.long not in self._jobs():
                    self._end_one(names)
                    ended = True
            if ended and not self._exports():
                with contextlib.suppress(QmpError):
                    self._qmp.run("nbd-server-stop")
            if not self._readable():
                self._thaw()
                self._remove_files()

    def keep(self, known: frozenset[str], compared: frozenset[str], read: frozenset[str]) -> None:
        """Keep what is needed, and what began meanwhile; remove everything else of ours.

        :param known: the bitmaps that were there before it was decided what is needed.
        :param compared: points that are compared with.
        :param read: points that are read.
        :raises SourceUnreadable: QEMU refuses it.
        """
        bitmaps = self._looked().bitmaps
        new = frozenset(one for name in bitmaps if name not in known and (one := point_of(name)) is not None)
        self.end(but=read | new)
        needed = compared | read | new
        with _refusals():
            self._remove(
                self._looked(),
                # One that is shown in an export cannot go now.
                lambda name, disk: (
                    name not in disk.busy and (name in disk.broken or point_of(name) not in needed)
                ),
            )

    def forget(self, begun: Begun) -> None:
        """Remove everything of a point, if it still is that point.

        :raises SourceUnreadable: QEMU refuses it.
        """
        if begun.bitmap in self._looked().bitmaps:
            self.end()
            with _refusals():
                self._remove(self._looked(), lambda name, _: name == begun.bitmap)

    # -- parts

    def _looked(self) -> Disk:
        disk = self.disk()
        if disk is None:
            raise SourceUnreadable("The machine has no such disk any more.")
        return disk

    def _found(self, disk: Disk, point_id: str) -> Begun | None:
        """Return a point that is there, whole."""
        names = _Names(point_id)
        ours = [name for name in disk.bitmaps if point_of(name) == point_id]
        if len(ours) != 1 or names.long not in self._exports():
            return None
        if names.long not in self._jobs():
            return None
        frozen = frozenset(name for name, records in disk.bitmaps.items() if not records)
        return Begun(names.long, ours[0], frozen)

    def _check_top(self) -> None:
        """Refuse a disk that the machine does not write to directly: bitmaps would not see its writes."""
        tops = {device.get("inserted", {}).get("node-name") for device in self._qmp.run("query-block")}
        if self._node not in tops:
            raise SourceUnreadable(
                "The machine does not write to this disk directly: it is not attached, or has a snapshot."
            )

    def _readable(self) -> list[_Names]:
        """Return what there is of points of this disk that can be read, or nearly could."""
        disk = self.disk()
        mine = set() if disk is None else {point_of(name) for name in (*disk.bitmaps, *disk.broken)}
        known = {*self._jobs(), *self._exports()}
        ids = {name.removeprefix(PREFIX) for name in known if name.startswith(PREFIX)} & mine
        for node in self._qmp.run("query-named-block-nodes", flat=True):
            match = _OVERLAY.fullmatch(os.path.basename(str(node.get("file", ""))))
            if match is not None and match[2] == self._node:
                ids.add(match[1])
        return [_Names(point_id) for point_id in sorted(filter(None, ids))]

    def _jobs(self) -> set[str]:
        return {str(job["device"]) for job in self._qmp.run("query-block-jobs")}

    def _exports(self) -> list[str]:
        return [str(one["id"]) for one in self._qmp.run("query-block-exports") if one["type"] == "nbd"]

    def _add_overlay(self, disk: Disk, names: _Names) -> None:
        path = os.path.join(self._scratch, f"{names.long}.on-{disk.node}.qcow2")
        try:
            _make_overlay(path, disk.length)
            self._qmp.run(
                "blockdev-add",
                **{
                    "driver": "qcow2",
                    "node-name": names.node,
                    "file": {"driver": "file", "filename": path, "node-name": names.file},
                    "backing": disk.node,
                    "discard": "unmap",
                },
            )
        finally:
            # QEMU has it open; without a name nothing can be left of it.
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)

    def _remove_files(self) -> None:
        """Remove overlays that killed calls left under their names."""
        for entry in os.listdir(self._scratch):
            match = _OVERLAY.fullmatch(entry)
            if match is not None and match[2] == self._node:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(os.path.join(self._scratch, entry))

    def _export(self, names: _Names, bitmaps: list[str]) -> None:
        if any(not one.startswith(PREFIX) for one in self._exports()):
            raise QmpError("another program uses the NBD server of this machine")
        if not self._exports():
            # It may be one that a killed call started.
            with contextlib.suppress(QmpError):
                self._qmp.run("nbd-server-stop")
            self._qmp.run(
                "nbd-server-start",
                **{"addr": {"type": "unix", "data": {"path": self._socket}}, "max-connections": 64},
            )
        self._qmp.run(
            "block-export-add",
            **{
                "type": "nbd",
                "id": names.long,
                "node-name": names.node,
                "name": names.long,
                "writable": False,
                "bitmaps": bitmaps,
            },
        )

    def _end_one(self, names: _Names) -> None:
        if names.long in self._exports():
            self._qmp.run("block-export-del", id=names.long, mode="hard")
            self._wait(lambda: names.long not in self._exports())
        if names.long in self._jobs():
            self._qmp.run("block-job-cancel", device=names.long, force=True)
            self._wait(lambda: names.long not in self._jobs())
        for node in (names.node, names.file):
            if any(
                one.get("node-name") == node for one in self._qmp.run("query-named-block-nodes", flat=True)
            ):
                self._qmp.run("blockdev-del", **{"node-name": node})

    def _wait(self, is_done: Callable[[], bool]) -> None:
        give_up = time.monotonic() + _JOB_END
        while not is_done():
            if time.monotonic() > give_up:
                raise QmpError("a job or export does not end")
            time.sleep(0.01)

    def _thaw(self) -> None:
        """Let frozen bitmaps record again, with all that changed since they were frozen."""
        disk = self._looked()
        frozen = [name for name, records in disk.bitmaps.items() if not records]
        recording = [name for name, records in disk.bitmaps.items() if records]
        if not frozen:
            return
        node = disk.node
        if len(recording) != 1:
            # Somebody else changed them: what changed meanwhile is not known.
            self._remove(disk, lambda name, _: name in frozen)
            return
        actions: list[tuple[str, dict[str, Any]]] = []
        for name in frozen:
            actions.append(("block-dirty-bitmap-enable", {"node": node, "name": name}))
            merged = {"node": node, "target": name, "bitmaps": recording}
            actions.append(("block-dirty-bitmap-merge", merged))
        self._qmp.transaction(actions)

    def _remove(self, disk: Disk, which: Callable[[str, Disk], bool]) -> None:
        for name in (*disk.bitmaps, *disk.broken):
            if which(name, disk):
                self._qmp.run("block-dirty-bitmap-remove", node=disk.node, name=name)


class _Names:
    """The names of what is made for a point; a node's must be short."""

    def __init__(self, point_id: str) -> None:
        self.long = PREFIX + point_id
        short = hashlib.sha256(point_id.encode()).hexdigest()[:16]
        self.node = PREFIX + short
        self.file = f"{PREFIX}{short}-f"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Names) and self.long == other.long

    def __hash__(self) -> int:
        return hash(self.long)


@contextlib.contextmanager
def _refusals() -> Iterator[None]:
    try:
        yield
    except QmpError as error:
        raise _refused(error) from error


def _make_overlay(path: str, length: int) -> None:
    """Make the file of an overlay, with room for the whole disk: in a full one, the machine's writes fail."""
    # QEMU's tables take less than a thousandth.
    room = length + length // 1000 + (1 << 20)
    for command, package in (
        (["qemu-img", "create", "-q", "-f", "qcow2", path, str(length)], "qemu-utils"),
        (["fallocate", "--keep-size", "--length", str(room), path], "util-linux"),
    ):
        try:
            subprocess.run(command, check=True, capture_output=True, text=True)  # noqa: S603
        except FileNotFoundError as error:
            raise ConfigError(f"{command[0]} is needed: install the package {package}") from error
        except subprocess.CalledProcessError as error:
            failed = SourceUnreadable(
                "The temporary overlay of the disk could not be made: it needs as much room as the disk is"
                " long, in a file system that can reserve it."
            )
            failed.may_pass = True
            failed.add_note(error.stderr)
            raise failed from error


def _refused(error: QmpError) -> SourceUnreadable:
    refused = SourceUnreadable("QEMU could not show the disk as it is at one moment.")
    refused.may_pass = True
    # Its text may name a path: it is for the log.
    refused.add_note(str(error))
    return refused

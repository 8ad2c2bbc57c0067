"""A point: a snapshot on the array, open for reading."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from backupfw.errors import SourceMoved
from backupfw.volume.base import Extent, Kind, Point
from backupfw_template_volume.array import Array, Missing

#: ``DISK'S SERIAL/POINT'S ID/SNAPSHOT'S SERIAL``: the last one tells it from another of the same name.
_TOKEN = re.compile(r"([0-9a-f]{16})/([0-9A-Za-z-]+)/([0-9a-f]{16})")


class TemplatePoint(Point):
    """Reads a snapshot.

    :param disk: the array's description of the disk.
    :param name: the disk's name.
    :param snapshot: the snapshot's name.
    :param prefix: what the names of snapshots of points begin with.
    :param remove: removes the snapshot; None for a snapshot of the catalogue, which stays.
    """

    def __init__(
        self,
        array: Array,
        disk: Any,
        name: str,
        snapshot: str,
        prefix: str,
        remove: Callable[[], None] | None,
    ) -> None:
        self._array = array
        self._name = name
        self._snapshot = snapshot
        self._prefix = prefix
        self._remove = remove
        self._closed = False
        #: By token, the snapshot's name.
        self._compared: dict[str, str] = {}
        described = disk["snapshots"][snapshot]
        self._number: int = described["number"]
        self._serial: str = disk["serial"]
        self.length = described["length"]
        self.storage_id = disk["serial"]
        self.identity = f"{self._serial}/{described['serial']}"
        if remove is not None:
            self.token = f"{self._serial}/{snapshot.removeprefix(prefix)}/{described['serial']}"

    def compare(self, since: str) -> str | None:
        """Look for the snapshot of the earlier point."""
        parts = _TOKEN.fullmatch(since)
        if parts is None or since != "/".join(parts.groups()):
            return "its token is not one of this kind of volume"
        if parts[1] != self._serial:
            return "it was another volume"
        snapshot = self._prefix + parts[2]
        try:
            there = self._array.ask("GET", self._name)["snapshots"].get(snapshot)
        except Missing:
            there = None
        if there is None or there["serial"] != parts[3]:
            return "its snapshot is gone"
        if there["number"] > self._number:
            return "it was made later"
        self._compared[since] = snapshot
        return None

    def extents(self, start: int, end: int, since: str | None = None) -> Iterator[Extent]:
        """Ask the array, page by page."""
        earlier = None if since is None else self._compared[since]
        while start < end:
            for offset, length, kind in json.loads(
                self._read("map", {"start": start, "end": end, "since": earlier})
            ):
                yield Extent(offset, length, Kind(kind))
                start = offset + length

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Read from the snapshot."""
        if offset + len(buffer) > self.length:
            raise ValueError(f"{len(buffer)} bytes at {offset} are not within {self.length}")
        data = self._read("bytes", {"offset": offset, "length": len(buffer)})
        if len(data) != len(buffer):
            raise OSError(f"{len(data)} bytes came instead of {len(buffer)}")
        buffer[:] = data

    def close(self, keep: bool = False) -> None:
        """Remove the snapshot, unless it shall be kept."""
        if not self._closed:
            self._closed = True
            if self._remove is not None and not keep:
                self._remove()

    def _read(self, what: str, query: Mapping[str, str | int | None]) -> bytes:
        if self._closed:
            raise ValueError("the point is closed")
        try:
            return self._array.call("GET", f"{self._name}@{self._snapshot}", what, query)
        except Missing as error:
            raise SourceMoved("The snapshot that was read is gone.") from error

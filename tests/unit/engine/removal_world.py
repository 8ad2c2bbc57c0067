"""A store with manifests made by hand, for the tests of what removes objects."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from backupfw.chunkstore.base import Body, Capabilities, ObjectInfo
from backupfw.chunkstore.container import Container
from backupfw.chunkstore.memory import MemoryStore
from backupfw.engine.format import keys
from backupfw.engine.format.entries import MapRef, PackRef, SegmentEntry
from backupfw.engine.format.geometry import Geometry
from backupfw.engine.format.manifest import ManifestHead, ManifestWriter
from backupfw.engine.format.sealing import CLEAR, Sealing

INSTALLATION = "inst"
PREFIX = "inst/"
VOLUME_PREFIX = "inst/p/v/"


class Watched(MemoryStore):
    """The memory store, with every request written down, a bulk size to set, and faults on demand."""

    def __init__(self, bulk: int = 1000, sorted_listing: bool = True) -> None:
        super().__init__("main")
        self.bulk = bulk
        self.sorted = sorted_listing
        self.calls: list[tuple[str, Any]] = []
        self.fail: dict[str, BaseException] = {}
        self.hidden: set[str] = set()

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(bulk_delete=self.bulk, sorted_listing=self.sorted, listing_lag=bool(self.hidden))

    def _note(self, call: str, what: Any) -> None:
        self.calls.append((call, what))
        if call in self.fail:
            raise self.fail[call]

    def get(self, container: str, key: str, offset: int | None = None, length: int | None = None) -> bytes:
        self._note("get", key)
        return super().get(container, key, offset, length)

    def list(self, container: str, prefix: str = "", start_after: str = "") -> Iterator[ObjectInfo]:
        self._note("list", prefix)
        found = [one for one in super().list(container, prefix, start_after) if one.key not in self.hidden]
        # Reversed is as unsorted as can be.
        yield from (found if self.sorted else reversed(found))

    def delete(self, container: str, keys: Sequence[str]) -> None:
        assert len(keys) <= self.bulk
        self._note("delete", tuple(keys))
        super().delete(container, keys)

    def count(self, call: str) -> int:
        return sum(1 for one, _ in self.calls if one == call)


class Control:
    """Never stops, unless told to after some checks."""

    def __init__(self, stop_after: int | None = None, error: BaseException | None = None) -> None:
        self.left = stop_after
        self.error = error
        self.told: list[tuple[int, int]] = []

    def check(self) -> None:
        if self.left is not None:
            self.left -= 1
            if self.left < 0 and self.error is not None:
                raise self.error

    def may_write(self) -> None:
        self.check()

    def progress(self, done: int, total: int) -> None:
        self.told.append((done, total))


class World:
    """One container and the manifests in it."""

    def __init__(self, store: Watched | None = None) -> None:
        self.store = store or Watched()
        self.container = Container(self.store, "box")
        self.container.ensure()

    @property
    def objects(self) -> dict[str, bytes]:
        return self.store.contents["box"]

    def put(self, key: str, data: bytes = b"x" * 10) -> None:
        self.container.put(key, Body.from_bytes(data))

    def backup(
        self,
        name: str,
        own: Mapping[int, int],
        shared: Sequence[SegmentEntry] = (),
        *,
        attempt: int = 1,
        epoch: int = 1,
        segments: int = 1 << 16,
        installation: str = INSTALLATION,
        volume: str = "v",
        put_manifest: bool = True,
        sealing: Sealing = CLEAR,
    ) -> tuple[str, list[SegmentEntry]]:
        """Put a backup: ``own`` says how many packs it has for which segment; the rest is shared.

        A segment in both has a new map that names its own packs and those shared.
        """
        origin = keys.Origin(installation, "p", volume, name, epoch, attempt, "0123456789abcdef")
        entries: dict[int, SegmentEntry] = {entry.index: entry for entry in shared}
        for index, packs in own.items():
            fresh = tuple(PackRef(str(origin), number, 10) for number in range(packs))
            older = entries[index].packs if index in entries else ()
            entries[index] = SegmentEntry(index, MapRef(str(origin), bytes(32), 10), 1, 1, fresh + older)
            self.put(keys.map_key(str(origin), index))
            for number in range(packs):
                self.put(keys.pack_key(str(origin), index, number))
        ordered = [entries[index] for index in sorted(entries)]
        head = ManifestHead(origin, Geometry(segments << 16, 512, 1 << 16))
        if put_manifest:
            with ManifestWriter(head, sealing) as writer:
                for entry in ordered:
                    writer.add(entry)
                writer.put(self.container)
        return head.key, ordered

    def flip(self, key: str, at: int = -40) -> None:
        data = bytearray(self.objects[key])
        data[at] ^= 1
        self.objects[key] = bytes(data)


def names(manifest: tuple[str, Sequence[SegmentEntry]]) -> set[str]:
    """Return all keys that a manifest made by :meth:`World.backup` names, and its own."""
    key, entries = manifest
    return {key}.union(*(entry.object_keys() for entry in entries))

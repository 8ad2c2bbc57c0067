"""Sources, targets and ports for tests of the data path: in memory, or generated."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from blake3 import blake3

from backupfw.chunkstore.container import Container
from backupfw.chunkstore.memory import Contents, MemoryStore
from backupfw.engine.format.geometry import Geometry
from backupfw.engine.format.sealing import AES_256_GCM, DataKey, ObjectCipher, Sealing
from backupfw.engine.ports import BackupJob
from backupfw.errors import ChangeMissed, DataKeyMissing, TaskCancelled, TaskLost
from backupfw.volume.base import BlockTarget, Extent, Kind, Point

KIB = 1 << 10
#: A geometry small enough that a test volume has several segments.
BLOCK = 4 * KIB
SEGMENT = 64 * KIB


def without_gaps(data: Iterable[tuple[int, int]], start: int, end: int) -> Iterator[Extent]:
    """Return ``start … end`` as extents: the ranges ``(offset, length)`` are data, all else zeros."""
    for offset, length in data:
        first, last = max(offset, start), min(offset + length, end)
        if first < last:
            if first > start:
                yield Extent(start, first - start, Kind.ZERO)
            yield Extent(first, last - first, Kind.DATA)
            start = last
    if start < end:
        yield Extent(start, end - start, Kind.ZERO)


class MemoryPoint(Point):
    """Bytes to read.

    :param data: the volume; the caller may change a bytearray between backups.
    :param extents: ``(offset, length)`` of what may hold data, ascending; None: all of it.
    :param token: its own.
    :param earlier: by token, the bytes of the points that it can be compared with.
    :param grain: bytes in which it knows what changed.
    :param lies: these offsets it says are the same, whatever has changed there.
    :param zero_lies: these offsets it says are zero, whatever is there.
    """

    def __init__(
        self,
        data: bytes | bytearray,
        extents: Sequence[tuple[int, int]] | None = None,
        identity: str = "s",
        *,
        token: str | None = None,
        earlier: Mapping[str, bytes] | None = None,
        grain: int = 1 << 10,
        lies: Sequence[range] = (),
        zero_lies: Sequence[range] = (),
    ) -> None:
        self.data = data
        self.length = len(data)
        self.identity = identity
        self.data_ranges = [(0, len(data))] if extents is None else list(extents)
        self.token = token
        self.earlier = {} if earlier is None else earlier
        self.grain = grain
        self.lies = lies
        self.zero_lies = zero_lies
        self.reads: list[tuple[int, int]] = []
        self.released: list[tuple[int, int]] = []

    def compare(self, since: str) -> str | None:
        return None if since in self.earlier else "its snapshot is gone"

    def extents(self, start: int, end: int, since: str | None = None) -> Iterator[Extent]:
        if since is None:
            ranges = self.data_ranges
            if self.zero_lies:
                grains = range(0, self.length, self.grain)
                ranges = [(at, self.grain) for at in grains if not any(at in lie for lie in self.zero_lies)]
            yield from without_gaps(ranges, start, end)
            return
        was = self.earlier[since]
        while start < end:
            last = min(start - start % self.grain + self.grain, end)
            kind = Kind.DATA
            if any(start in lie for lie in self.zero_lies):
                yield Extent(start, last - start, Kind.ZERO)
                start = last
                continue
            same = last <= len(was) and was[start:last] == self.data[start:last]
            if same or any(start in lie for lie in self.lies):
                kind = Kind.SAME
            elif not any(self.data[start:last]):
                kind = Kind.ZERO
            yield Extent(start, last - start, kind)
            start = last

    @property
    def read_bytes(self) -> int:
        """How much was read."""
        return sum(length for _, length in self.reads)

    def read_into(self, offset: int, buffer: memoryview) -> None:
        if offset + len(buffer) > self.length:
            raise OSError("short source")
        self.reads.append((offset, len(buffer)))
        buffer[:] = self.data[offset : offset + len(buffer)]

    def release_cache(self, offset: int, length: int) -> None:
        self.released.append((offset, length))

    def close(self, keep: bool = False) -> None:
        pass


class GeneratedPoint(Point):
    """A dense source of any length whose blocks are made when they are read: cheap and reproducible.

    :param length: bytes.
    :param segments: only these segments (and the holes' absence) hold data; None: all of them.
    :param segment_size: bytes of a segment, for ``segments``.
    :param data_per_segment: bytes of data at the start of each such segment.
    :param stamp: makes other content.
    """

    def __init__(
        self,
        length: int,
        *,
        segments: Sequence[int] | None = None,
        segment_size: int = 256 << 20,
        data_per_segment: int | None = None,
        stamp: int = 0,
    ) -> None:
        self.length = length
        self.identity = f"generated-{stamp}"
        self._segments = segments
        self._segment_size = segment_size
        self._data = segment_size if data_per_segment is None else data_per_segment
        self._piece = blake3(stamp.to_bytes(8, "little")).digest(length=1 << 20)

    def extents(self, start: int, end: int, since: str | None = None) -> Iterator[Extent]:
        size = self._segment_size
        indexes = range(start // size, -(-end // size)) if self._segments is None else self._segments
        return without_gaps(((index * size, self._data) for index in indexes), start, end)

    def read_into(self, offset: int, buffer: memoryview) -> None:
        # Each 4 KiB begins with its own offset, so no two blocks of the volume are equal.
        size = len(buffer)
        buffer[:] = (self._piece * -(-size // len(self._piece)))[:size]
        for at in range(0, size - 8, 4096):
            buffer[at : at + 8] = (offset + at + 1).to_bytes(8, "little")

    def close(self, keep: bool = False) -> None:
        pass


class MemoryTarget(BlockTarget):
    """Bytes to write to; counts calls, and knows what was flushed."""

    def __init__(self, length: int, fill: bytes | None = None) -> None:
        self.data = bytearray(length) if fill is None else bytearray((fill * length)[:length])
        self.length = length
        self.reads_zero = fill is None
        self.flushed = bytes(self.data)
        self.writes: list[tuple[int, int]] = []
        self.zeros: list[tuple[int, int]] = []
        self.released: list[tuple[int, int]] = []
        self._lock = threading.Lock()

    def write(self, offset: int, buffers: Sequence[bytes | memoryview]) -> None:
        data = b"".join(buffers)
        if offset + len(data) > self.length:
            raise OSError("past the end")
        with self._lock:
            self.data[offset : offset + len(data)] = data
            self.writes.append((offset, len(data)))

    def zero(self, offset: int, length: int) -> None:
        if offset + length > self.length:
            raise OSError("past the end")
        with self._lock:
            self.data[offset : offset + length] = bytes(length)
            self.zeros.append((offset, length))

    def flush(self) -> None:
        with self._lock:
            self.flushed = bytes(self.data)

    def release_cache(self, offset: int, length: int) -> None:
        self.released.append((offset, length))

    def close(self) -> None:
        pass


class CountingTarget(BlockTarget):
    """A target of any length that keeps nothing but sums."""

    def __init__(self, length: int, *, reads_zero: bool) -> None:
        self.length = length
        self.reads_zero = reads_zero
        self.calls = self.zeroed = self.written = 0

    def write(self, offset: int, buffers: Sequence[bytes | memoryview]) -> None:
        self.calls += 1
        self.written += sum(map(len, buffers))

    def zero(self, offset: int, length: int) -> None:
        self.calls += 1
        self.zeroed += length

    def flush(self) -> None:
        pass

    def close(self) -> None:
        pass


class FakeControl:
    """A control that stops on demand.

    :param stop_after: checks until the task is cancelled.
    :param lose_after: batches of writes until the target is lost.
    """

    def __init__(self, stop_after: int | None = None, lose_after: int | None = None) -> None:
        self._checks = itertools.count()
        self._writes = itertools.count()
        self._stop_after = stop_after
        self._lose_after = lose_after
        self.reports: list[tuple[int, int]] = []

    def check(self) -> None:
        if self._stop_after is not None and next(self._checks) >= self._stop_after:
            raise TaskCancelled("stopped")

    def may_write(self) -> None:
        if self._lose_after is not None and next(self._writes) >= self._lose_after:
            raise TaskLost("lost")

    def progress(self, done: int, total: int) -> None:
        self.reports.append((done, total))


class MemoryJournal:
    """A journal in a dictionary."""

    def __init__(self) -> None:
        self.entries: dict[int, bytes] = {}
        self.records = 0
        self.missed: list[ChangeMissed] = []

    def finished(self) -> Iterator[tuple[int, bytes]]:
        return iter(sorted(self.entries.items()))

    def record(self, entries: Sequence[tuple[int, bytes]]) -> None:
        self.records += 1
        self.entries.update(entries)

    def announce(self, key: str) -> None:
        """Nobody asks here."""

    def distrust(self, error: ChangeMissed) -> None:
        self.missed.append(error)

    def is_unneeded(self, key: str) -> bool:
        """It was not given up."""
        return False


class FaultyContainer(Container):
    """A container whose puts and gets can be made to fail.

    :ivar before_put: called with the key before each put; may raise.
    :ivar before_get: called with (key, offset, length) before each get; may raise.
    """

    def __init__(self, container: Container) -> None:
        super().__init__(container.store, container.name)
        self.before_put: Callable[[str], None] = lambda _key: None
        self.before_get: Callable[[str, int | None, int | None], None] = lambda *_: None
        self.puts: list[str] = []
        self.gets: list[tuple[str, int | None, int | None]] = []

    def put(self, key: str, body: Any) -> None:
        self.before_put(key)
        super().put(key, body)
        self.puts.append(key)

    def get(self, key: str, offset: int | None = None, length: int | None = None) -> bytes:
        self.before_get(key, offset, length)
        self.gets.append((key, offset, length))
        return super().get(key, offset, length)


def memory_container(contents: Contents | None = None) -> FaultyContainer:
    """Return a container of a memory store."""
    container = Container(MemoryStore("mem", contents=contents), "box")
    container.ensure()
    return FaultyContainer(container)


def objects_of(container: Container) -> dict[str, bytes]:
    """Return the objects behind a memory container, live."""
    store = container.store
    assert isinstance(store, MemoryStore)
    return store.contents[container.name]


def make_job(number: int, length: int, base: str | None = None, **changes: Any) -> BackupJob:
    """Return a small job; ``number`` names the backup and makes its token."""
    values: dict[str, Any] = {
        "installation": "inst",
        "project": "proj",
        "volume": "vol",
        "backup": f"backup{number}",
        "epoch": 0,
        "attempt": 1,
        "token": f"{number:016x}",
        "geometry": Geometry(length, BLOCK, SEGMENT),
        "base": base,
        "record": {"id": f"backup{number}"},
        "pack_size": 16 * KIB,
        "streams": 2,
    }
    return BackupJob(**{**values, **changes})


class Keyring:
    """The data keys of one lineage.

    :param algorithm: of all of them.
    """

    def __init__(self, algorithm: str = AES_256_GCM) -> None:
        self.current = DataKey.new(algorithm)
        self.keys = {self.current.id: self.current}

    def rotate(self) -> None:
        """Let new objects have another data key."""
        self.current = DataKey.new(self.current.algorithm, self.current)
        self.keys[self.current.id] = self.current

    def find(self, key_id: str) -> DataKey:
        """Return a data key."""
        if key_id not in self.keys:
            raise DataKeyMissing(key_id)
        return self.keys[key_id]

    @property
    def sealing(self) -> Sealing:
        """How a new backup is encrypted."""
        return Sealing(self.current, self.find)


class WatchedCipher(ObjectCipher):
    """Fails when a cipher key encrypts twice with one nonce.

    The commitment stands for the cipher key: both are derived together.
    """

    used: set[tuple[bytes, int]]

    def _use(self, offset: int) -> None:
        use = (self.seal.commitment, offset)
        assert use not in self.used, "a nonce is used twice"
        self.used.add(use)

    def encrypt_into(self, offset: int, data: bytes | memoryview, context: bytes, room: memoryview) -> int:
        self._use(offset)
        return super().encrypt_into(offset, data, context, room)

    def encrypt(self, offset: int, data: bytes | bytearray, context: bytes) -> bytes:
        self._use(offset)
        return super().encrypt(offset, data, context)

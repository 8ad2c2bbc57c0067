"""One case of the memory measurements; prints its seconds and its peak as JSON."""

from __future__ import annotations

import importlib
import itertools
import json
import os
import secrets
import sys
import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from backupfw.chunkstore.container import Container
from backupfw.engine import backup, release, restore, sweep, verify
from backupfw.engine.format import keys
from backupfw.engine.ports import KnownManifests
from backupfw.volume.base import BlockTarget, Extent, Kind, Point
from benchmarks import world

BLOCK = 64 << 10
SEGMENT = 256 << 20
#: Segments of the large volume whose every block is there and does not compress.
WHOLE_SEGMENTS = 3
#: What the service has loaded beside the engine.
MODULES = ("pecan", "sqlalchemy", "oslo_db", "oslo_config", "oslo_log", "jsonschema", "alembic", "waitress")


class LargePoint(Point):
    """A volume that is made when it is read: one block in each segment, the first ones whole.

    :param length: bytes.
    :param changed: segments whose first block is another one.
    """

    def __init__(self, length: int, changed: Collection[int] = frozenset()) -> None:
        self.length = length
        self.identity = "generated"
        self._changed = frozenset(changed)
        self._noise = secrets.token_bytes(1 << 20)

    def extents(self, start: int, end: int, since: str | None = None) -> Iterator[Extent]:
        """Yield the extents, without looking at what lies before."""
        for index in range(start // SEGMENT, -(-end // SEGMENT)):
            size = SEGMENT if index < WHOLE_SEGMENTS else BLOCK
            cuts = (index * SEGMENT, index * SEGMENT + size, (index + 1) * SEGMENT)
            for (low, high), kind in zip(itertools.pairwise(cuts), (Kind.DATA, Kind.ZERO), strict=True):
                first, last = max(low, start), min(high, end)
                if first < last:
                    yield Extent(first, last - first, kind)

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Make the bytes: noise in the whole segments, a number elsewhere."""
        index = offset // SEGMENT
        if index < WHOLE_SEGMENTS:
            buffer[:] = self._noise[: len(buffer)]
            for at in range(0, len(buffer), BLOCK):
                buffer[at : at + 8] = (offset + at + 1).to_bytes(8, "little")
        else:
            buffer[:] = bytes(len(buffer))
            buffer[:8] = (index + 1).to_bytes(8, "little")
        if index in self._changed and offset % SEGMENT == 0:
            buffer[8:16] = b"changed!"

    def close(self, keep: bool = False) -> None:
        """Nothing to release."""


class NoTarget(BlockTarget):
    """Takes everything and keeps nothing."""

    def __init__(self, length: int) -> None:
        self.length = length
        self.reads_zero = True

    def write(self, offset: int, buffers: Sequence[bytes | memoryview]) -> None:
        """Forget it."""

    def zero(self, offset: int, length: int) -> None:
        """Forget it."""

    def flush(self) -> None:
        """Nothing to do."""

    def close(self) -> None:
        """Nothing to release."""


@dataclass
class Rows:
    """The rows of the one volume, as a sweep reads them."""

    live: Collection[str]
    known: Collection[str]
    announced: Collection[str] = ()
    transient: Collection[str] = ()
    mac_ids: Collection[str] = ()
    copying: bool = False
    copies: Collection[str] = ()

    def volume(self, project: str, volume: str) -> Rows:
        """Return the rows."""
        return self

    deleting = volume

    def deleted(self, project: str, volume: str) -> None:
        """Note nothing: nobody copies here."""


def peak_mib() -> float:
    """Return the highest resident size of this process so far."""
    with open("/proc/self/status") as file:
        for line in file:
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    raise RuntimeError("no VmHWM")


def timed_backup(box: Container, source: Point, name: str, base: str | None) -> tuple[float, str]:
    """Back up and return the seconds and the manifest's key."""
    begin = time.perf_counter()
    job = world.make_job(name, source.length, base)
    result = backup.run(job, source, box, world.SqliteJournal(), world.QuietControl())
    return time.perf_counter() - begin, result.manifest_key


def image_case(directory: str, path: str) -> dict[str, float]:
    """Back up an image, again as an incremental, and restore it."""
    box = world.posix_container(os.path.join(directory, f"store-{secrets.token_hex(4)}"))
    source = world.open_point(path)
    full, key = timed_backup(box, source, "full", None)
    incremental, key = timed_backup(box, source, "incremental", key)
    target_path = os.path.join(directory, "target")
    target = world.open_target(target_path, source.length)
    begin = time.perf_counter()
    restore.run(key, box, target, world.QuietControl())
    seconds = time.perf_counter() - begin
    target.close()
    os.unlink(target_path)
    return {"backup": full, "incremental": incremental, "restore": seconds}


def large_case(directory: str, segments: str) -> dict[str, float]:
    """Do everything to a volume of that many segments."""
    length = int(segments) * SEGMENT
    control = world.QuietControl()
    box = world.container_of(world.TableStore(os.path.join(directory, "table")))
    result = {}
    result["backup"], first = timed_backup(box, LargePoint(length), "full", None)
    changed = range(0, int(segments), 100)
    result["incremental"], second = timed_backup(box, LargePoint(length, changed), "incremental", first)
    begin = time.perf_counter()
    restore.run(second, box, NoTarget(length), control)
    result["restore"] = time.perf_counter() - begin
    begin = time.perf_counter()
    if not verify.run(second, box, control, lambda *_: None, quick=True).ok:
        raise ValueError("damage was found")
    result["verify"] = time.perf_counter() - begin
    begin = time.perf_counter()
    prefix = keys.installation_prefix("bench")
    release.run(first, KnownManifests([second]), prefix, box, control)
    result["delete"] = time.perf_counter() - begin
    begin = time.perf_counter()
    report = sweep.run(prefix, box, Rows([second], [second]), control)
    if report.orphans:
        raise ValueError("the delete left orphans")
    result["sweep"] = time.perf_counter() - begin
    return result


def main() -> None:
    """Run the case that the command line names."""
    name, directory, *arguments = sys.argv[1:]
    for module in MODULES:
        importlib.import_module(module)
    result: dict[str, float] = {}
    if name == "image":
        result = image_case(directory, *arguments)
    elif name == "large":
        result = large_case(directory, *arguments)
    print(json.dumps({**result, "peak_mib": peak_mib()}))


if __name__ == "__main__":
    main()

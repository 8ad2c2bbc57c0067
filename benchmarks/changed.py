"""Incremental backups of a large volume whose storage knows what changed."""

from __future__ import annotations

import bisect
import os
import random
import time
from collections.abc import Iterator

from backupfw.chunkstore.container import Container
from backupfw.engine import backup
from backupfw.engine.ports import BackupResult
from backupfw.volume.base import Extent, Kind, Point
from benchmarks import world
from benchmarks.table import Table

LENGTH = 1 << 40
OBJECT = 4 << 20
BLOCK = 64 << 10
ALLOCATED, CHANGED = 200, 100
#: Percent, as [backup] verify_unchanged is by default.
SAMPLED = 1


class ObjectPoint(Point):
    """A volume of objects, some of them there; it is known which of them changed since the point before.

    :param number: counts the points; the token is made of it.
    :param allocated: the objects that are there, each with the number of the point that changed it last.
    """

    length = LENGTH

    def __init__(self, number: int, allocated: dict[int, int]) -> None:
        self.token = self.identity = f"point-{number}"
        self._number = number
        self._allocated = dict(allocated)
        self._all = sorted(allocated)
        self._changed = sorted(index for index in allocated if allocated[index] == number)
        self._noise = random.Random(1).randbytes(OBJECT)

    def compare(self, since: str) -> str | None:
        """It can be compared with the point before."""
        return None if since == f"point-{self._number - 1}" else "it is another point"

    def extents(self, start: int, end: int, since: str | None = None) -> Iterator[Extent]:
        """Say where objects are, or where they changed."""
        rest, objects = (Kind.ZERO, self._all) if since is None else (Kind.SAME, self._changed)
        for index in objects[bisect.bisect_left(objects, start // OBJECT) :]:
            first, last = max(index * OBJECT, start), min((index + 1) * OBJECT, end)
            if first >= last:
                break
            if first > start:
                yield Extent(start, first - start, rest)
            yield Extent(first, last - first, Kind.DATA)
            start = last
        if start < end:
            yield Extent(start, end - start, rest)

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Make the bytes: noise, and in each block its offset and the last change of its object."""
        index, at = divmod(offset, OBJECT)
        buffer[:] = self._noise[at : at + len(buffer)]
        for block in range(0, len(buffer), BLOCK):
            stamp = offset + block << 16 | self._allocated[index] + 1
            buffer[block : block + 16] = stamp.to_bytes(16, "little")

    def close(self, keep: bool = False) -> None:
        """Nothing to release."""


def run(table: Table, directory: str, rounds: int) -> None:
    """Measure and print."""
    box = world.posix_container(os.path.join(directory, "store"))
    rng = random.Random(5)
    allocated = dict.fromkeys(rng.sample(range(LENGTH // OBJECT), ALLOCATED), 0)
    table.head(f"Changed blocks: 1 TiB, {ALLOCATED} objects of 4 MiB, of which {CHANGED} or none change")
    _, result = _back_up(box, ObjectPoint(0, allocated), None, None)
    kept = {CHANGED: 0.0, 0: 0.0}
    for number in range(1, 2 * max(1, rounds) + 1):
        count = CHANGED if number % 2 else 0
        for index in rng.sample(sorted(allocated), count):
            allocated[index] = number
        seconds, result = _back_up(
            box, ObjectPoint(number, allocated), result.manifest_key, f"point-{number - 1}"
        )
        kept[count] = seconds if not kept[count] else min(seconds, kept[count])
        most = 1.1 * (count + ALLOCATED * SAMPLED / 100) * OBJECT
        if number <= 2:
            table.row(
                f"Read, {count} objects changed",
                f"{result.read_bytes / (1 << 20):.1f} MiB",
                f"about {most / (1 << 20):.1f} MiB",
                None if not count else result.read_bytes <= most,
            )
    table.row(f"{CHANGED} objects changed", f"{kept[CHANGED]:.2f} s", "at most 10 s", kept[CHANGED] <= 10)
    table.row("Nothing changed", f"{kept[0]:.2f} s", "at most 2 s", kept[0] <= 2)


def _back_up(
    box: Container, point: ObjectPoint, base: str | None, since: str | None
) -> tuple[float, BackupResult]:
    job = world.make_job(
        f"b{time.monotonic_ns()}", point.length, base, since=since, verify_unchanged=SAMPLED / 100
    )
    begin = time.perf_counter()
    result = backup.run(job, point, box, world.SqliteJournal(), world.QuietControl())
    return time.perf_counter() - begin, result

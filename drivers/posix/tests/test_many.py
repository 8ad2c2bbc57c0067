"""A million objects: the fan-out of a backup's keys keeps every step as short as with a few."""

from __future__ import annotations

import os
import statistics
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from backupfw_posix.names import location
from backupfw_posix.store import PosixStore

from backupfw.chunkstore.base import Body
from backupfw.chunkstore.options import option_values

pytestmark = pytest.mark.soak

VOLUMES, BACKUPS, SEGMENTS, OBJECTS = 50, 20, 250, 4
#: The largest number of links to one file that every usual file system takes.
_LINKS = 30_000


def prefix(volume: int, backup: int) -> str:
    return f"installation/project/volume{volume:03}/backup{backup:03}/1.1-0123456789abcdef"


def keys(volumes: int) -> Iterator[str]:
    """As the backup format has them: some packs and a map for each segment."""
    names = ("map", *(f"p{number:04}" for number in range(OBJECTS - 1)))
    for volume in range(volumes):
        for backup in range(BACKUPS):
            for segment in range(SEGMENTS):
                for name in names:
                    yield f"{prefix(volume, backup)}/{segment:08x}/{name}"


def fill(root: Path, volumes: int) -> int:
    """Make the objects as links to a few files, behind the driver's back; returns their number."""
    made, count, source = "", 0, root / "source"
    for key in keys(volumes):
        directories, name = location(key)
        below = os.path.join(os.fsencode(root / "box"), *directories)
        if below != made:
            os.makedirs(below, exist_ok=True)
            made = below
        if count % _LINKS == 0:
            source = root / f"source{count}"
            source.write_bytes(b"x")
        os.link(source, os.path.join(below, name))
        count += 1
    return count


def opened(root: Path) -> PosixStore:
    return PosixStore("many", option_values(PosixStore.options(), path=str(root), fsync="false"))


def milliseconds(action: Callable[[int], object]) -> float:
    """The median time of an action that gets numbers."""
    times = []
    for number in range(200):
        begun = time.perf_counter()
        action(number)
        times.append(time.perf_counter() - begun)
    return statistics.median(times) * 1000


def measured(store: PosixStore) -> dict[str, float]:
    """Medians of each operation beside what is there; leaves it as it was."""
    at = prefix(0, 0)
    body = Body.from_bytes(b"new")
    return {
        "put": milliseconds(lambda n: store.put("box", f"{at}/{n:08x}/p9999", body)),
        "get": milliseconds(lambda n: store.get("box", f"{at}/{n:08x}/p9999")),
        "list a segment": milliseconds(lambda n: list(store.list("box", f"{at}/{n:08x}/"))),
        "delete": milliseconds(lambda n: store.delete("box", [f"{at}/{n:08x}/p9999"])),
    }


def test_a_million_objects(tmp_path: Path, record_property: Callable[[str, object], None]) -> None:
    few, many = tmp_path / "few", tmp_path / "many"
    assert fill(few, 1) == BACKUPS * SEGMENTS * OBJECTS
    assert fill(many, VOLUMES) == 1_000_000
    small, store = opened(few), opened(many)
    beside_few, beside_many = measured(small), measured(store)
    for name, value in beside_many.items():
        record_property(name, f"{value:.3f} ms beside a million, {beside_few[name]:.3f} ms beside 20000")
        print(f"{name}: {value:.3f} ms beside a million objects, {beside_few[name]:.3f} ms beside 20000")
    # Complete, in order, and in little memory: no key is kept once it was yielded.
    tracemalloc.start()
    expected = keys(VOLUMES)
    for info in store.list("box"):
        assert info.key == next(expected)
    assert next(expected, None) is None
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 8 << 20
    # No directory grows with the number of objects.
    widest = max(len(names) + len(files) for _, names, files in os.walk(many / "box"))
    assert widest == max(VOLUMES, BACKUPS, SEGMENTS, OBJECTS)
    store.close()
    small.close()

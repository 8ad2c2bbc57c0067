"""Peak memory: each case in a process of its own that has loaded what the service loads."""

from __future__ import annotations

import json
import os
import subprocess
import sys

from benchmarks import image
from benchmarks.table import Table

LIMIT_MIB = 256
#: A dense volume of 64 TiB has so many segments.
SEGMENTS_64_TIB = (64 << 40) // (256 << 20)


def case(name: str, directory: str, *arguments: str) -> dict[str, float]:
    """Run one case of ``memory_case`` and return what it reports."""
    command = [sys.executable, "-m", "benchmarks.memory_case", name, directory, *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    result: dict[str, float] = json.loads(done.stdout)
    return result


def run(table: Table, directory: str, size: int, rounds: int) -> None:
    """Measure images and print."""
    table.head(f"Memory and sparse volumes (peak of the process, at most {LIMIT_MIB} MiB)")
    _row(table, "Nothing but the service's modules loaded", case("nothing", directory))
    seconds: dict[str, dict[str, list[float]]] = {}
    dense_name = "1 GiB" if size == 1 << 30 else f"{size >> 20} MiB"
    images = {dense_name: size, "4 TiB sparse": 4 << 40}
    for virtual in images.values():
        image.make_mixed(_path(directory, virtual), size, virtual_length=virtual)
    # In turns: what a page of memory costs changes from minute to minute.
    for number in range(rounds):
        for name, virtual in images.items():
            result = case("image", directory, _path(directory, virtual))
            for part in ("backup", "incremental", "restore"):
                seconds.setdefault(part, {}).setdefault(name, []).append(result[part])
            if number == 0:
                _row(table, f"{name}: backup, incremental, restore", result)
    for virtual in images.values():
        os.unlink(_path(directory, virtual))
    for part, times in seconds.items():
        dense, sparse = (min(values) for values in times.values())
        ratio = sparse / dense
        table.row(f"4 TiB sparse: {part}, time / dense one's", f"{ratio:.2f}", "at most 1.50", ratio <= 1.5)


def _path(directory: str, virtual: int) -> str:
    return os.path.join(directory, f"image-{virtual}")


def run_large(table: Table, directory: str, segments: int) -> None:
    """Measure the large volume and print."""
    table.head(f"A dense volume of {segments * 256 / (1 << 20):.4g} TiB: {segments} segments in the manifest")
    result = case("large", directory, str(segments))
    for part in ("backup", "incremental", "restore", "verify", "delete", "sweep"):
        table.row(f"{part}: seconds, a sample of the content", f"{result[part]:.0f} s")
    _row(table, "Peak of all of them", result)


def _row(table: Table, what: str, result: dict[str, float]) -> None:
    peak = result["peak_mib"]
    table.row(what, f"{peak:.0f} MiB", f"at most {LIMIT_MIB} MiB", peak <= LIMIT_MIB)

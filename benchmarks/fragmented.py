"""What many small changes cost: stored bytes per written byte, objects, and the restore afterwards."""

from __future__ import annotations

import os
import random
import statistics

from backupfw.chunkstore.container import Container
from benchmarks import image, timed, world
from benchmarks.table import Table

PAGE = 4 << 10
INCREMENTALS = 30
PACK = 32 << 20
SEGMENT = 256 << 20


def run(table: Table, directory: str, size: int, rounds: int) -> None:
    """Measure and print."""
    path = os.path.join(directory, "image")
    image.make_mixed(path, size, seed=11)
    box = world.posix_container(os.path.join(directory, "store"))
    table.head(f"Small changes: {size >> 20} MiB, 1 % of the 4 KiB pages rewritten at random, each time")
    base = timed.back_up(box, path)[1].manifest_key
    _lonely(table, box, path, base)
    base = timed.back_up(box, path)[1].manifest_key
    ratios = []
    for number in range(INCREMENTALS):
        written = image.rewrite(path, PAGE, 0.01, seed=number)
        _, result = timed.back_up(box, path, base)
        base = result.manifest_key
        ratios.append(result.stored_raw_bytes / written)
        if number == 0:
            most = result.stored_raw_bytes / PACK + 2 * result.changed_segments + 2
            table.row(
                "First incremental: stored / written, before compression",
                f"{ratios[0]:.1f}",
                "at most 20",
                ratios[0] <= 20,
            )
            value = f"{result.object_count} of {most:.1f}"
            table.row("First incremental: objects", value, "at most", result.object_count <= most)
    table.row(f"Mean of {INCREMENTALS}: stored / written", f"{sum(ratios) / len(ratios):.1f}")
    fresh = timed.back_up(box, path)[1].manifest_key
    times: dict[str, list[tuple[float, float]]] = {base: [], fresh: []}
    results = {}
    target = os.path.join(directory, "target")
    # In turns, each the first as often as the other, and the middle of many: what disturbs a single
    # restore of half a second must not decide.
    for number in range(2 * max(rounds, 8)):
        for key in (base, fresh) if number % 2 else (fresh, base):
            seconds, busy, results[key] = timed.restore_to(target, box, key, size)
            times[key].append((seconds, busy))
    worn = results[base]
    slower, busier = (
        statistics.median(one[which] / two[which] for one, two in zip(times[base], times[fresh], strict=True))
        for which in (0, 1)
    )
    fetched = worn.fetched_bytes / worn.needed_bytes
    requests = worn.requests / worn.packs
    table.row(
        f"Restore after {INCREMENTALS}: time / full backup's", f"{slower:.2f}", "at most 1.15", slower <= 1.15
    )
    table.row(f"Restore after {INCREMENTALS}: processor time / full backup's", f"{busier:.2f}")
    table.row(
        f"Restore after {INCREMENTALS}: fetched / needed", f"{fetched:.2f}", "at most 1.30", fetched <= 1.3
    )
    value = f"{requests:.1f} ({worn.packs} packs)"
    table.row(f"Restore after {INCREMENTALS}: requests per pack", value, "at most 4", requests <= 4)


def _lonely(table: Table, box: Container, path: str, base: str) -> None:
    """Rewrite one page of each segment."""
    size = os.path.getsize(path)
    written = 0
    with open(path, "r+b") as file:
        for start in range(0, size, SEGMENT):
            at = start + random.Random(start).randrange(min(SEGMENT, size - start) // PAGE) * PAGE
            os.pwrite(file.fileno(), random.Random(at).randbytes(PAGE), at)
            written += PAGE
    _, result = timed.back_up(box, path, base)
    per = result.stored_raw_bytes / result.changed_segments
    table.row("One lonely page per segment: stored per segment", f"{per / 1024:.0f} KiB")
    table.row("One lonely page per segment: stored / written", f"{result.stored_raw_bytes / written:.0f}")

"""Full backup, restore and incremental beside their bare loops, on a mixed image of 1 GiB."""

from __future__ import annotations

import os
import random
import shutil
import time
from collections.abc import Callable

from backupfw.chunkstore.container import Container
from backupfw.engine import backup, restore
from benchmarks import bare, image, world
from benchmarks.table import Table, rate

THREADS = 2
#: Least share of the bare loop's speed.
AIM = 0.75


def compare(rounds: int, plain: Callable[[], float], ours: Callable[[], float]) -> tuple[float, float]:
    """Return the best time of each, measured in turn: what disturbs one disturbs the other."""
    first, second = [], []
    for _ in range(rounds):
        first.append(plain())
        second.append(ours())
    return min(first), min(second)


def run(table: Table, directory: str, size: int, rounds: int) -> None:
    """Measure and print."""
    path = os.path.join(directory, "image")
    image.make_mixed(path, size)
    scratch = os.path.join(directory, "bare")
    target_path = os.path.join(directory, "target")
    stores: list[str] = []
    made: list[str] = []

    def new_store() -> Container:
        # The space of the store before is given back first, or pages never touched would be measured.
        for old in stores:
            shutil.rmtree(old, ignore_errors=True)
        stores[:] = [os.path.join(directory, f"store-{time.monotonic_ns()}")]
        return world.posix_container(stores[0])

    box = new_store()

    def back_up(base: str | None = None) -> float:
        source = world.open_point(path)
        job = world.make_job(f"b{time.monotonic_ns()}", size, base, streams=THREADS)
        begin = time.perf_counter()
        result = backup.run(job, source, box, world.SqliteJournal(), world.QuietControl())
        seconds = time.perf_counter() - begin
        source.close()
        made.append(result.manifest_key)
        return seconds

    def full() -> float:
        nonlocal box
        box = new_store()
        return back_up()

    def back() -> float:
        target = world.open_target(target_path, size)
        begin = time.perf_counter()
        restore.run(made[-1], box, target, world.QuietControl(), streams=THREADS)
        seconds = time.perf_counter() - begin
        target.close()
        return seconds

    table.head(f"Throughput: mixed image of {size >> 20} MiB, {THREADS} threads, best of {rounds}")
    table.row("BLAKE3 alone, 64 KiB blocks, one thread", f"{bare.hashing_rate() / 1e6:.0f} MB/s")
    for name, sample in (
        ("text-like", image.text(random.Random(1), 32 << 20)),
        ("random", random.Random(1).randbytes(32 << 20)),
    ):
        packing, unpacking = bare.zstd_rates(sample)
        table.row(f"zstd -1 alone, {name}, one thread", f"{packing / 1e6:.0f} / {unpacking / 1e6:.0f} MB/s")
    plain, ours = compare(rounds, lambda: bare.backup(path, scratch, THREADS), full)
    _rows(table, "Full backup", size, plain, ours)
    bare.prepare_restore(path, scratch, THREADS)
    plain, ours = compare(rounds, lambda: bare.restore(scratch, target_path, size, THREADS), back)
    _rows(table, "Restore", size, plain, ours)
    _same(path, target_path)
    base = made[-1]
    blocks = size // bare.BLOCK
    changed = frozenset(random.Random(9).sample(range(blocks), blocks // 100))
    with open(path, "r+b") as file:
        for number, block in enumerate(sorted(changed)):
            os.pwrite(file.fileno(), random.Random(number).randbytes(bare.BLOCK), block * bare.BLOCK)
    plain, ours = compare(
        rounds, lambda: bare.backup(path, scratch, THREADS, changed=changed), lambda: back_up(base)
    )
    _rows(table, "Incremental, 1 % of the blocks changed", size, plain, ours)
    back()
    _same(path, target_path)


def _rows(table: Table, name: str, size: int, plain: float, ours: float) -> None:
    table.row(f"{name}: bare loop", rate(size, plain))
    share = plain / ours
    value = f"{rate(size, ours)} = {share:.0%}"
    table.row(f"{name}: engine and POSIX store", value, f"at least {AIM:.0%}", share >= AIM)


def _same(one: str, two: str) -> None:
    with open(one, "rb") as first, open(two, "rb") as second:
        while data := first.read(8 << 20):
            if second.read(8 << 20) != data:
                raise ValueError("the restored image differs")

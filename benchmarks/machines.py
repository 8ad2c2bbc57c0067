"""Incremental backups of a running machine's disk, by its dirty bitmaps."""

from __future__ import annotations

import os
import random
import tempfile
import time
from pathlib import Path

from backupfw_nbd.machines import QemuProvider

from backupfw.chunkstore.container import Container
from backupfw.chunkstore.options import option_values
from backupfw.engine import backup
from backupfw.engine.ports import BackupResult
from backupfw.volume.base import Point, VolumeRef
from benchmarks import world
from benchmarks.table import Table
from tests.servers.qemu import machine, qemu_missing

LENGTH = 10 << 30
GRAIN = 64 << 10
CHANGED = 100
#: What is written before the first backup.
WRITTEN = 512 << 20
#: Percent, as [backup] verify_unchanged is by default.
SAMPLED = 1


def run(table: Table, directory: str, rounds: int) -> None:
    """Measure and print."""
    table.head(f"A running machine over NBD: a disk of 10 GiB, {CHANGED} ranges of 64 KiB change")
    if missing := qemu_missing():
        table.row("Read", missing, "")
        return
    box = world.posix_container(os.path.join(directory, "store"))
    noise = random.Random(3)
    # Not in memory: the room of an overlay is reserved.
    with tempfile.TemporaryDirectory() as place, machine(Path(place)) as vm:
        node = vm.add_disk(LENGTH)
        for offset in range(0, WRITTEN, 16 << 20):
            vm.write(node, offset * (LENGTH // WRITTEN), noise.randbytes(16 << 20))
        provider = QemuProvider(option_values(QemuProvider.options(), scratch_dir=str(vm.scratch)))
        found = provider.adopt(vm.location(node))
        volume = VolumeRef("disk", found.length, found.location, True, found.storage_id)
        with provider.open_point(volume, "p0") as point:
            since = point.token
            _, result = _back_up(box, point, None, None)
            point.close(keep=True)
        known, seconds, reads, samples = [], [], [], []
        for number in range(1, max(1, rounds) + 1):
            for index in noise.sample(range(LENGTH // GRAIN), CHANGED):
                vm.write(node, index * GRAIN, noise.randbytes(GRAIN))
            begin = time.perf_counter()
            with provider.open_point(volume, f"p{number}") as point:
                assert since is not None
                assert point.compare(since) is None
                known.append(time.perf_counter() - begin)
                took, result = _back_up(box, point, result.manifest_key, since)
                since = point.token
                point.close(keep=True)
            seconds.append(took)
            samples.append(result.sampled_bytes)
            reads.append(result.read_bytes - result.sampled_bytes)
    most = 1.1 * CHANGED * GRAIN
    table.row("Read, without the sample", _mib(max(reads)), f"at most {_mib(most)}", max(reads) <= most)
    table.row("Sample, mean", _mib(sum(samples) / len(samples)), f"about {_mib(WRITTEN * SAMPLED / 100)}")
    table.row("Point made, and what changed is known", f"{min(known):.2f} s", "")
    table.row("Incremental backup", f"{min(seconds):.2f} s", "")


def _mib(size: float) -> str:
    return f"{size / (1 << 20):.1f} MiB"


def _back_up(box: Container, point: Point, base: str | None, since: str | None) -> tuple[float, BackupResult]:
    job = world.make_job(
        f"b{time.monotonic_ns()}", point.length, base, since=since, verify_unchanged=SAMPLED / 100
    )
    begin = time.perf_counter()
    result = backup.run(job, point, box, world.SqliteJournal(), world.QuietControl())
    return time.perf_counter() - begin, result

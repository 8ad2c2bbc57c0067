"""Full backup, restore and incremental with encryption, beside the same without, on a mixed image."""

from __future__ import annotations

import os
import random
import shutil
from dataclasses import dataclass, field

from backupfw.chunkstore.container import Container
from backupfw.engine.format.sealing import AES_256_GCM, CLEAR, DataKey, Sealing
from benchmarks import bare, image, timed, world
from benchmarks.table import Table, rate

#: Least share of the speed without encryption, and most bytes stored beside those without.
AIM, INCREMENTAL_AIM, MOST_STORED = 0.92, 0.95, 1.002


@dataclass
class Side:
    """One of the two that are compared."""

    folder: str
    sealing: Sealing
    box: Container = field(init=False)
    base: str | None = None
    stored: int = 0
    times: dict[str, list[float]] = field(default_factory=dict)

    def full(self, path: str) -> None:
        """Back up to an empty store."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.box = world.posix_container(self.folder)
        seconds, result = timed.back_up(self.box, path, None, self.sealing)
        self.base, self.stored = result.manifest_key, result.stored_bytes
        self.times.setdefault("full", []).append(seconds)

    def incremental(self, path: str) -> None:
        """Back up what changed since the full backup."""
        seconds, _ = timed.back_up(self.box, path, self.base, self.sealing)
        self.times.setdefault("incremental", []).append(seconds)

    def restore(self, target: str, size: int) -> None:
        """Restore the full backup."""
        assert self.base is not None
        seconds, _, _ = timed.restore_to(target, self.box, self.base, size, self.sealing.find)
        self.times.setdefault("restore", []).append(seconds)


def run(table: Table, directory: str, size: int, rounds: int) -> None:
    """Measure and print."""
    path = os.path.join(directory, "image")
    image.make_mixed(path, size)
    clear = Side(os.path.join(directory, "clear"), CLEAR)
    sealed = Side(os.path.join(directory, "sealed"), Sealing(DataKey.new(AES_256_GCM)))
    # In turn: what disturbs one disturbs the other.
    for _ in range(rounds):
        for side in (clear, sealed):
            side.full(path)
    for _ in range(rounds):
        for side in (clear, sealed):
            side.restore(os.path.join(directory, "target"), size)
    blocks = size // bare.BLOCK
    with open(path, "r+b") as file:
        for number, block in enumerate(random.Random(9).sample(range(blocks), blocks // 100)):
            os.pwrite(file.fileno(), random.Random(number).randbytes(bare.BLOCK), block * bare.BLOCK)
    for _ in range(rounds):
        for side in (clear, sealed):
            side.incremental(path)
    table.head(f"Encryption: mixed image of {size >> 20} MiB, {timed.STREAMS} threads, best of {rounds}")
    for what, name, aim in (
        ("full", "Full backup", AIM),
        ("restore", "Restore", AIM),
        ("incremental", "Incremental, 1 % of the blocks changed", INCREMENTAL_AIM),
    ):
        plain, ours = min(clear.times[what]), min(sealed.times[what])
        share = plain / ours
        table.row(f"{name}: without", rate(size, plain))
        value = f"{rate(size, ours)} = {share:.0%}"
        table.row(f"{name}: {AES_256_GCM}", value, f"at least {aim:.0%}", share >= aim)
    more = sealed.stored / clear.stored
    table.row("Bytes stored", f"{more:.4f} x", f"at most {MOST_STORED} x", more <= MOST_STORED)

"""The engine's work on an image file, timed."""

from __future__ import annotations

import time

from backupfw.chunkstore.container import Container
from backupfw.engine import backup, restore
from backupfw.engine.format.sealing import CLEAR, FindKey, Sealing, no_keys
from backupfw.engine.ports import BackupResult, RestoreResult
from benchmarks import world

STREAMS = 2


def back_up(
    box: Container, path: str, base: str | None = None, sealing: Sealing = CLEAR
) -> tuple[float, BackupResult]:
    """Back an image up; returns the seconds it took, and the result."""
    source = world.open_point(path)
    job = world.make_job(f"b{time.monotonic_ns()}", source.length, base, streams=STREAMS, sealing=sealing)
    begin = time.perf_counter()
    result = backup.run(job, source, box, world.SqliteJournal(), world.QuietControl())
    seconds = time.perf_counter() - begin
    source.close()
    return seconds, result


def restore_to(
    path: str, box: Container, key: str, size: int, find_key: FindKey = no_keys
) -> tuple[float, float, RestoreResult]:
    """Restore to a new file; returns the seconds it took, the processor's seconds, and the result."""
    target = world.open_target(path, size)
    begin, busy = time.perf_counter(), time.process_time()
    result = restore.run(key, box, target, world.QuietControl(), streams=STREAMS, find_key=find_key)
    seconds, busy = time.perf_counter() - begin, time.process_time() - busy
    target.close()
    return seconds, busy, result

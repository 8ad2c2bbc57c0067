"""``kill -9`` of a worker in mid-task: how soon another one has the task, and what is moved again."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from benchmarks.site import LEASE, SEGMENT, Site
from benchmarks.table import Table
from tests.servers.databases import PostgreSQL

#: Segments of the volume.
SEGMENTS = 24
#: Segments worked on at the same time, the default of ``[backup] streams``.
STREAMS = 2
#: A segment of random bytes, with the frames of its packs and with its map.
WHOLE = SEGMENT + SEGMENT // 16


def run(table: Table, directory: Path, server: PostgreSQL, rounds: int) -> None:
    """Measure backups and restores."""
    table.head(f"kill -9 of a worker, {SEGMENTS} segments, {STREAMS} streams, lease {LEASE:.0f} s")
    site = Site(directory / "killed", server.create_database())
    assert site.conf.backup.streams == STREAMS
    waits, again, backup_id = _backups(site, min(rounds, 3))
    _rows(table, "backup", waits, "sent", again, f"at most {STREAMS}", again <= STREAMS * WHOLE)
    waits, again = _restores(site, min(rounds, 3), backup_id)
    _rows(table, "restore", waits, "fetched", again)
    site.db.close()


def _rows(
    table: Table,
    task: str,
    waits: list[float],
    moved: str,
    again: int,
    aim: str = "",
    reached: bool | None = None,
) -> None:
    longest = max(waits)
    table.row(
        f"{task}: until another worker has it, the longest",
        f"{longest:.1f} s",
        "at most 2 leases",
        longest <= 2 * LEASE,
    )
    table.row(f"{task}: {moved} again, the most", f"{again / SEGMENT:.1f} segments", aim, reached)


def _backups(site: Site, rounds: int) -> tuple[list[float], int, str]:
    """Return the waits, the most bytes sent again, and the last backup."""
    waits, most, backup_id = [], 0, ""
    for number in range(rounds):
        before = site.moved("put")
        doomed = site.start(f"b{number}")
        backup_id = site.backups.create(site.ctx, volume_id=site.volume(SEGMENTS * SEGMENT)).id
        site.wait_moved("put", before + _part(number, rounds))
        waits.append(_kill(site, doomed, backup_id, f"c{number}"))
        needed = int(site.value(f"SELECT stored_bytes FROM backups WHERE id = '{backup_id}'"))
        assert needed > SEGMENTS * SEGMENT
        most = max(most, site.moved("put") - before - needed)
    return waits, most, backup_id


def _restores(site: Site, rounds: int, backup_id: str) -> tuple[list[float], int]:
    """Return the waits and the most bytes fetched again."""
    before = site.moved("got")
    worker = site.start("r")
    site.backups.restore(site.ctx, backup_id)
    site.wait_idle()
    site.kill(worker)
    needed = site.moved("got") - before
    waits, most = [], 0
    for number in range(rounds):
        before = site.moved("got")
        doomed = site.start(f"r{number}")
        site.backups.restore(site.ctx, backup_id)
        site.wait_moved("got", before + _part(number, rounds))
        waits.append(_kill(site, doomed, backup_id, f"s{number}"))
        most = max(most, site.moved("got") - before - needed)
    return waits, most


def _part(number: int, rounds: int) -> int:
    """Return the bytes after which the worker is killed: another part of the volume in each round."""
    return SEGMENTS * SEGMENT * (2 * number + 1) // (2 * rounds + 1)


def _kill(site: Site, doomed: Any, backup_id: str, name: str) -> float:
    """Kill the worker that has the task; return how long it took until another one had it.

    That one lives already and ends the task; then it is killed, too.
    """
    other = site.start(name)
    site.kill(doomed)
    start = time.perf_counter()
    site.wait(f"SELECT attempt FROM tasks WHERE resource_id = '{backup_id}'", 2)
    waited = time.perf_counter() - start
    site.wait_idle()
    assert site.value(f"SELECT status FROM backups WHERE id = '{backup_id}'") == "available"
    assert site.value(f"SELECT fail_reason FROM backups WHERE id = '{backup_id}'") is None
    site.kill(other)
    return waited

"""Claims with a long queue, many small backups on many workers, and take-overs after ``kill -9``."""

from __future__ import annotations

import statistics
import time
import uuid
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from sqlalchemy import insert, text

from backupfw.db import migrate, models
from backupfw.db.session import Database, now
from backupfw.manager.queue import claims, tasks
from backupfw.manager.queue.claims import Limits, Reach
from backupfw.manager.queue.tasks import Tasks
from benchmarks import take_over
from benchmarks.site import LATENCY, Site
from benchmarks.table import Table
from tests.servers.databases import MariaDB, PostgreSQL

#: Tasks that wait while claims are measured.
QUEUED = 10_000


def run(table: Table, directory: str, backups: int, rounds: int) -> None:
    """Measure all three on PostgreSQL, and claims on MariaDB, too."""
    with closing(MariaDB(_made(Path(directory) / "mariadb"))) as mariadb:
        mariadb.start()
        _claims(table, "MariaDB", mariadb.create_database())
    with closing(PostgreSQL(_made(Path(directory) / "postgresql"))) as server:
        server.start()
        _claims(table, "PostgreSQL", server.create_database())
        _many(table, Path(directory), server, backups)
        take_over.run(table, Path(directory), server, rounds)


def _made(path: Path) -> Path:
    path.mkdir()
    path.parent.chmod(0o755)
    return path


# Claims.


def _claims(table: Table, server: str, url: str) -> None:
    table.head(f"Claims with {QUEUED} queued tasks, {server}")
    db = Database(url)
    migrate.sync(db)
    with db.write() as session:
        moment = now(session)
        rows = [
            {
                "kind": tasks.VOLUME_CREATE,
                "resource_id": str(uuid.uuid4()),
                "project_id": "big" if number % 100 else f"small{number}",
                "payload": {},
                "state": claims.QUEUED,
                "queue_position": number // 2,
                "created_at": moment,
                "updated_at": moment,
                "store": "main",
            }
            for number in range(QUEUED)
        ]
        session.execute(insert(models.Task), rows)
    with db.engine.connect() as connection:
        connection.execute(text("ANALYZE tasks" if db.backend == "postgresql" else "ANALYZE TABLE tasks"))
        connection.commit()
    reach = Reach("host", "cinder-backup", "nova", frozenset({"main"}), frozenset({"local"}))
    limits = Limits()
    queue = Tasks(db, 3, lambda: limits)

    def claim() -> None:
        assert queue.claim("host/1", 600, reach=reach) is not None

    taken = _median(claim, 50)
    table.row("a claim", f"{taken * 1e3:.1f} ms", "at most 50 ms", taken <= 0.05)
    # One project is at its limit, and nearly all that waits is its own.
    limits = Limits(project=1)
    taken = _median(claim, 50)
    table.row(
        "a claim past one project at its limit", f"{taken * 1e3:.1f} ms", "at most 100 ms", taken <= 0.1
    )
    elsewhere = Reach("host", "cinder-backup", "nova", frozenset({"tape"}), frozenset({"local"}))
    taken = _median(lambda: queue.claim("host/1", 600, reach=elsewhere), 20)
    table.row(
        "a look of a worker that can serve none", f"{taken * 1e3:.1f} ms", "at most 100 ms", taken <= 0.1
    )
    db.close()


def _median(action: Callable[[], object], count: int) -> float:
    times = []
    for _ in range(count):
        start = time.perf_counter()
        action()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def _many(table: Table, directory: Path, server: PostgreSQL, count: int) -> None:
    table.head(f"{count} backups of 1 MiB, {LATENCY * 1e3:.0f} ms at the store, 2 tasks per worker")
    rates = {}
    for workers in (1, 4):
        # The lone worker's rate does not depend on how many wait.
        number = count if workers > 1 else max(count // 5, 20)
        site = Site(directory / f"many{workers}", server.create_database())
        for _ in range(number):
            site.backups.create(site.ctx, volume_id=site.volume(1 << 20))
        start = time.perf_counter()
        processes = [site.start(f"w{index}") for index in range(workers)]
        site.wait_idle()
        rates[workers] = number / (time.perf_counter() - start)
        with site.db.read() as session:
            done = session.scalar(text("SELECT count(*) FROM backups WHERE status = 'available'"))
        assert done == number, f"{done} of {number}"
        for process in processes:
            site.kill(process)
        site.db.close()
        table.row(f"{workers} worker(s)", f"{rates[workers]:.1f} backups/s")
    gain = rates[4] / rates[1]
    table.row("4 workers against 1", f"{gain:.2f} times", "at least 3 times", gain >= 3)

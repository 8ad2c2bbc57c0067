"""Claims with a long queue, many small backups on many workers, and take-overs after kill -9."""

from __future__ import annotations

import multiprocessing
import os
import signal
import statistics
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sqlalchemy import insert, text

from backupfw.cmd import configure, database, service
from backupfw.conf import load
from backupfw.context import RequestContext
from backupfw.db import migrate, models
from backupfw.db.session import Database, now
from backupfw.manager import tasks
from backupfw.manager.backups import BackupManager
from backupfw.manager.claims import Limits, Reach
from backupfw.manager.tasks import Tasks
from backupfw.testing.faults import SlowStore
from backupfw.worker import stores
from benchmarks.table import Table
from tests.servers.databases import PostgreSQL

#: Tasks that wait while claims are measured.
QUEUED = 10_000
#: Seconds that every call to the store takes longer, and seconds of a lease.
LATENCY = 0.05
LEASE = 3.0
PATIENCE = 900.0

_fork = multiprocessing.get_context("fork")


def run(table: Table, directory: str, backups: int, rounds: int) -> None:
    """Measure all three on PostgreSQL."""
    server = PostgreSQL(_made(Path(directory) / "postgresql"))
    try:
        server.start()
        _claims(table, server.create_database())
        _many(table, Path(directory), server, backups)
        _take_over(table, Path(directory), server, rounds)
    finally:
        server.close()


def _made(path: Path) -> Path:
    path.mkdir()
    path.parent.chmod(0o755)
    return path


# Claims.


def _claims(table: Table, url: str) -> None:
    table.head(f"Claims with {QUEUED} queued tasks, PostgreSQL")
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
                "state": tasks.QUEUED,
                "turn": number // 2,
                "created_at": moment,
                "updated_at": moment,
                "store": "main",
            }
            for number in range(QUEUED)
        ]
        session.execute(insert(models.Task), rows)
    with db.engine.connect() as connection:
        connection.execute(text("ANALYZE tasks"))
        connection.commit()
    reach = Reach("host", "cinder-backup", "nova", frozenset({"main"}))
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
    elsewhere = Reach("host", "cinder-backup", "nova", frozenset({"tape"}))
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


# Backups.


class _Site:
    """One database, one store with latency, and worker processes."""

    def __init__(self, directory: Path, url: str) -> None:
        directory.mkdir()
        self.directory = directory
        file = directory / "backupfw.conf"
        file.write_text(
            f"[DEFAULT]\nstate_dir = {directory}\n[database]\nconnection = {url}\n"
            f"[store:main]\ndriver = posix\npath = {directory}/store\n"
            f"[volumes]\nvolumes_dir = {directory}/volumes\nshared = true\n"
            f"[quota]\nbackups = -1\nbackup_gigabytes = -1\nvolumes = -1\ngigabytes = -1\n"
            f"[backup]\nworkers = 2\nlease_seconds = {LEASE}\npoll_seconds = 0.5\n"
            "segment_size = 1 MiB\npack_size = 256 KiB\n"
        )
        self.conf: Any = load.load(configure.plug_ins(), config_files=[str(file)]).conf
        self.db = database.connect(self.conf)
        migrate.sync(self.db)
        self.backups = BackupManager(self.db, self.conf)
        self.ctx = RequestContext(project_id="bench", user_id="bench")

    def volume(self, length: int) -> str:
        """Enter a volume with random content."""
        volume_id = str(uuid.uuid4())
        image = self.directory / f"{volume_id}.img"
        image.write_bytes(os.urandom(length))
        with self.db.write() as session:
            session.add(
                models.Volume(
                    id=volume_id, project_id="bench", user_id="bench", status="available", size=1,
                    length=length, location=str(image), created_at=now(session), adopted=True,
                )
            )  # fmt: skip
        return volume_id

    def start(self, name: str) -> Any:
        """Start a worker process and return it."""
        ready = _fork.Event()
        process = _fork.Process(target=_work, args=(self.conf, name, ready), daemon=True)
        process.start()
        assert ready.wait(60)
        return process

    def wait(self, query: str, wanted: int) -> None:
        """Poll until a count is what is wanted."""
        end = time.monotonic() + PATIENCE
        while True:
            with self.db.read() as session:
                if session.scalar(text(query)) == wanted:
                    return
            assert time.monotonic() < end, query
            time.sleep(0.02)


def _work(conf: Any, name: str, ready: Any) -> None:
    conf.set_override("host", name)
    opened = stores.open_store

    def slow(*arguments: Any, **named: Any) -> Any:
        return SlowStore(opened(*arguments, **named), latency=LATENCY)

    stores.open_store = slow  # type: ignore[assignment]
    with service.running_worker(conf):
        ready.set()
        signal.pause()


def _many(table: Table, directory: Path, server: PostgreSQL, count: int) -> None:
    table.head(f"{count} backups of 1 MiB, {LATENCY * 1e3:.0f} ms at the store, 2 tasks per worker")
    rates = {}
    for workers in (1, 4):
        # The lone worker's rate does not depend on how many wait.
        number = count if workers > 1 else max(count // 5, 20)
        site = _Site(directory / f"many{workers}", server.create_database())
        for _ in range(number):
            site.backups.create(site.ctx, volume_id=site.volume(1 << 20))
        start = time.perf_counter()
        processes = [site.start(f"w{index}") for index in range(workers)]
        site.wait("SELECT count(*) FROM tasks", 0)
        rates[workers] = number / (time.perf_counter() - start)
        with site.db.read() as session:
            done = session.scalar(text("SELECT count(*) FROM backups WHERE status = 'available'"))
        assert done == number, f"{done} of {number}"
        for process in processes:
            process.kill()
        site.db.close()
        table.row(f"{workers} worker(s)", f"{rates[workers]:.1f} backups/s")
    gain = rates[4] / rates[1]
    table.row("4 workers against 1", f"{gain:.2f} times", "at least 3 times", gain >= 3)


def _take_over(table: Table, directory: Path, server: PostgreSQL, rounds: int) -> None:
    table.head(f"kill -9 of a worker in a backup, lease {LEASE:.0f} s")
    site = _Site(directory / "killed", server.create_database())
    times = []
    for number in range(rounds):
        doomed = site.start(f"d{number}")
        backup = site.backups.create(site.ctx, volume_id=site.volume(24 << 20))
        site.wait("SELECT count(*) FROM segments", 4)
        doomed.kill()
        start = time.perf_counter()
        other = site.start(f"o{number}")
        site.wait(f"SELECT attempt FROM tasks WHERE resource_id = '{backup.id}'", 2)
        times.append(time.perf_counter() - start)
        site.wait("SELECT count(*) FROM tasks", 0)
        other.kill()
    site.db.close()
    most = max(times)
    table.row(
        "until another worker has it, the longest", f"{most:.1f} s", "at most 2 leases", most <= 2 * LEASE
    )

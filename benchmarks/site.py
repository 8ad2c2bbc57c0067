"""One database, one store with latency, and worker processes that can be killed."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
import uuid
from pathlib import Path
from typing import Any, Literal
from unittest.mock import patch

from sqlalchemy import text

from backupfw.chunkstore.base import Body, ChunkStore
from backupfw.chunkstore.layers.base import Layer
from backupfw.chunkstore.loader import open_store
from backupfw.cmd import configure, database, service
from backupfw.conf import load
from backupfw.context import RequestContext
from backupfw.db import migrate, models
from backupfw.db.session import now
from backupfw.manager.usecases.backups import BackupManager
from backupfw.testing.faults import SlowStore
from backupfw.worker import stores

#: Seconds that every call to the store takes longer, and seconds of a lease.
LATENCY = 0.05
LEASE = 3.0
#: Bytes of a segment and of a pack.
SEGMENT = 1 << 20
PACK = 256 << 10
#: How long anything may take.
PATIENCE = 900.0

#: What was measured is in this process already; a new interpreter would only add its start.
_fork = multiprocessing.get_context("fork")


class Site:
    """A database with one store, for workers of their own processes.

    :param directory: made for it; everything but the database is there.
    """

    def __init__(self, directory: Path, url: str) -> None:
        directory.mkdir()
        self.directory = directory
        file = directory / "backupfw.conf"
        file.write_text(
            f"[DEFAULT]\nstate_dir = {directory}\n[database]\nconnection = {url}\n"
            f"[store:main]\ndriver = posix\npath = {directory}/store\n"
            f"[volumes:local]\nvolumes_dir = {directory}/volumes\nshared = true\n"
            f"[quota]\nbackups = -1\nbackup_gigabytes = -1\nvolumes = -1\ngigabytes = -1\n"
            f"[backup]\nworkers = 2\nlease_seconds = {LEASE}\npoll_seconds = 0.5\n"
            f"segment_size = {SEGMENT}\npack_size = {PACK}\n"
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
        process = _fork.Process(target=_work, args=(self.conf, name, self.directory, ready), daemon=True)
        process.start()
        assert ready.wait(60)
        return process

    def kill(self, process: Any) -> None:
        """End a worker by ``kill -9``."""
        process.kill()
        process.join()

    def value(self, query: str) -> Any:
        """Return what a query answers; None: no row."""
        with self.db.read() as session:
            return session.scalar(text(query))

    def wait(self, query: str, least: int) -> None:
        """Poll until a number is at least so large.  It may grow by more than one between two looks."""
        end = time.monotonic() + PATIENCE
        while (self.value(query) or 0) < least:
            assert time.monotonic() < end, query
            time.sleep(0.02)

    def wait_idle(self) -> None:
        """Poll until no task is left."""
        self.wait("SELECT CASE WHEN count(*) = 0 THEN 1 ELSE 0 END FROM tasks", 1)

    def wait_moved(self, direction: Literal["put", "got"], least: int) -> None:
        """Poll until the workers have moved so many bytes."""
        end = time.monotonic() + PATIENCE
        while self.moved(direction) < least:
            assert time.monotonic() < end, direction
            time.sleep(0.02)

    def moved(self, direction: Literal["put", "got"]) -> int:
        """Return the bytes that all workers put, or got, since the site was made; killed ones' too."""
        file = self.directory / direction
        return sum(map(int, file.read_text().split())) if file.exists() else 0


class _MovedBytes(Layer):
    """Writes down what is moved, where a kill takes nothing back: before a put, after a get."""

    def __init__(self, inner: ChunkStore, directory: Path) -> None:
        super().__init__(inner)
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        self._files = {name: os.open(directory / name, flags, 0o644) for name in ("put", "got")}

    def put(self, container: str, key: str, body: Body, *, if_absent: bool = False) -> None:
        """Put, counted."""
        os.write(self._files["put"], b"%d\n" % body.length)
        self.inner.put(container, key, body, if_absent=if_absent)

    def get(self, container: str, key: str, offset: int | None = None, length: int | None = None) -> bytes:
        """Get, counted."""
        data = self.inner.get(container, key, offset, length)
        os.write(self._files["got"], b"%d\n" % len(data))
        return data

    def close(self) -> None:
        """Close the files and the inner store."""
        for file in self._files.values():
            os.close(file)
        self.inner.close()


def _work(conf: Any, name: str, directory: Path, ready: Any) -> None:
    conf.set_override("host", name)

    def slow(*arguments: Any, **named: Any) -> ChunkStore:
        return _MovedBytes(SlowStore(open_store(*arguments, **named), latency=LATENCY), directory)

    with patch.object(stores, "open_store", slow), service.running_worker(conf):
        ready.set()
        signal.pause()

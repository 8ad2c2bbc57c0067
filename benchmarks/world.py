"""Where a benchmark runs: a directory in memory, a store in it, volumes that are files."""

from __future__ import annotations

import os
import secrets
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any

from backupfw.chunkstore.base import Body, Capabilities, CheckReport, ChunkStore, ObjectInfo
from backupfw.chunkstore.container import Container
from backupfw.chunkstore.errors import NotFound, RangeError
from backupfw.chunkstore.layers.metrics import Recorder
from backupfw.chunkstore.loader import load_driver, open_store
from backupfw.engine.format.geometry import Geometry
from backupfw.engine.ports import BackupJob
from backupfw.errors import ChangeMissed
from backupfw.volume.local.descriptor import Descriptor
from backupfw.volume.local.point import LocalPoint
from backupfw.volume.local.target import LocalTarget


class QuietControl:
    """A control that never stops anything."""

    def check(self) -> None:
        """Go on."""

    def may_write(self) -> None:
        """Go on."""

    def progress(self, done: int, total: int) -> None:
        """Hear nothing."""


class SqliteJournal:
    """A journal in a table, as the service keeps it: memory does not grow with the volume."""

    def __init__(self, path: str = "") -> None:
        # An empty name is a temporary file.
        self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        self._lock = threading.Lock()
        self._db.execute("CREATE TABLE IF NOT EXISTS segments (seg INTEGER PRIMARY KEY, entry BLOB)")

    def finished(self) -> Iterator[tuple[int, bytes]]:
        """Yield the entries in pages."""
        last = -1
        while rows := self._page(last):
            yield from rows
            last = rows[-1][0]

    def _page(self, last: int) -> list[tuple[int, bytes]]:
        with self._lock:
            return self._db.execute(
                "SELECT seg, entry FROM segments WHERE seg > ? ORDER BY seg LIMIT 1000", (last,)
            ).fetchall()

    def record(self, entries: Sequence[tuple[int, bytes]]) -> None:
        """Keep the entries."""
        with self._lock:
            self._db.execute("BEGIN")
            self._db.executemany("INSERT OR REPLACE INTO segments VALUES (?, ?)", entries)
            self._db.execute("COMMIT")

    def announce(self, key: str) -> None:
        """Nobody asks here."""

    def distrust(self, error: ChangeMissed) -> None:
        """Nothing is wrong here."""
        raise error

    def is_unneeded(self, key: str) -> bool:
        """It was not given up."""
        return False


def open_point(path: str) -> LocalPoint:
    """Open an image for reading."""
    return LocalPoint(os.open(path, os.O_RDONLY), os.path.getsize(path), path)


def open_target(path: str, length: int, *, fresh: bool = True) -> LocalTarget:
    """Open an image for writing; a fresh one is made new and sparse."""
    if fresh and os.path.exists(path):
        os.unlink(path)
    fd = os.open(path, os.O_RDWR | os.O_CREAT)
    os.ftruncate(fd, length)
    return LocalTarget(Descriptor(fd), length, fresh, False)


def make_job(name: str, length: int, base: str | None = None, **changes: Any) -> BackupJob:
    """Return a job with the product's defaults."""
    return BackupJob(
        installation="bench",
        project="bench",
        volume="volume",
        backup=name,
        epoch=0,
        attempt=1,
        token=secrets.token_hex(8),
        geometry=Geometry(length),
        base=base,
        record={"id": name},
        **changes,
    )


def container_of(store: ChunkStore) -> Container:
    """Return the benchmark's container, made."""
    container = Container(store, "bench")
    container.ensure()
    return container


def posix_container(directory: str) -> Container:
    """Open the POSIX driver with all layers and its defaults."""
    return store_container("posix", path=directory)


def store_container(driver: str, metrics: Recorder | None = None, **changes: Any) -> Container:
    """Open a driver with all layers and its defaults, but for what is given."""
    options = {opt.dest: opt.default for opt in load_driver(driver).options()}
    return container_of(
        open_store("bench", driver, SimpleNamespace(**{**options, **changes}), metrics=metrics)
    )


#: Objects up to this size are read and written as a whole.
_SMALL = 1 << 20


class TableStore(ChunkStore):
    """Objects as rows of a table, outside of this process's memory; many small ones are cheap.

    :param path: the database's file.
    """

    wire_name = "benchmarks.TableStore"

    def __init__(self, path: str) -> None:
        super().__init__("table", None)
        self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        self._db.execute("PRAGMA synchronous=OFF")
        self._db.execute("PRAGMA journal_mode=OFF")
        self._db.execute(
            "CREATE TABLE IF NOT EXISTS objects (id INTEGER PRIMARY KEY, key TEXT UNIQUE, data BLOB)"
        )
        self._lock = threading.Lock()

    @property
    def capabilities(self) -> Capabilities:
        """As a store in the network has them."""
        return Capabilities(bulk_delete=1000)

    def put(self, container: str, key: str, body: Body, *, if_absent: bool = False) -> None:
        """Store the body."""
        with self._lock:
            if body.length <= _SMALL:
                query = "INSERT OR REPLACE INTO objects (key, data) VALUES (?, ?)"
                self._db.execute(query, (key, body.to_bytes()))
                return
            query = "INSERT OR REPLACE INTO objects (key, data) VALUES (?, zeroblob(?))"
            row = self._db.execute(query, (key, body.length)).lastrowid or 0
            # In pieces, so that the memory measured is the engine's and not this store's.
            with self._db.blobopen("objects", "data", row) as blob:
                for piece in body.pieces():
                    blob.write(piece)

    def get(self, container: str, key: str, offset: int | None = None, length: int | None = None) -> bytes:
        """Return an object or a range of it."""
        with self._lock:
            row = self._db.execute("SELECT id, length(data) FROM objects WHERE key = ?", (key,)).fetchone()
            if row is None:
                raise NotFound("no such object", key=key)
            start = offset or 0
            wanted = row[1] - start if length is None else length
            if start + wanted > row[1]:
                raise RangeError("the range ends behind the object", key=key)
            if row[1] <= _SMALL:
                (data,) = self._db.execute("SELECT data FROM objects WHERE id = ?", row[:1]).fetchone()
                return bytes(data[start : start + wanted])
            # Only for large objects: each blobopen leaves a weak reference in the connection for ever.
            with self._db.blobopen("objects", "data", row[0], readonly=True) as blob:
                blob.seek(start)
                return blob.read(wanted)

    def list(self, container: str, prefix: str = "", start_after: str = "") -> Iterator[ObjectInfo]:
        """Yield what is there, a page at a time."""
        query = "SELECT key, length(data) FROM objects WHERE key > ? AND key < ? ORDER BY key LIMIT 1000"
        # No object has a prefix that ends in a slash as its key, so nothing is left out.
        last = max(start_after, prefix)
        while True:
            with self._lock:
                rows = self._db.execute(query, (last, prefix + "\U0010ffff")).fetchall()
            if not rows:
                return
            for key, size in rows:
                yield ObjectInfo(key, size)
            last = rows[-1][0]

    def delete(self, container: str, keys: Sequence[str]) -> None:
        """Delete all keys."""
        with self._lock:
            self._db.executemany("DELETE FROM objects WHERE key = ?", [(key,) for key in keys])

    def ensure_container(self, container: str) -> None:
        """There is one only."""

    def list_containers(self) -> Iterator[str]:
        """Yield the one."""
        yield "bench"

    def check(self) -> CheckReport:
        """Nothing to look at."""
        return CheckReport()

    def close(self) -> None:
        """Close the database."""
        self._db.close()

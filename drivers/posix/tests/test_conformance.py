"""The conformance suite on the POSIX driver, bare and under all layers.

The suite reaches the objects by the form that the README tells, not by the driver's code.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from backupfw_posix.store import PosixStore

from backupfw.chunkstore.base import ChunkStore
from backupfw.chunkstore.layers.stack import stack
from backupfw.chunkstore.options import option_values
from backupfw.testing.chunkstore import ChunkStoreTests


def raw_path(root: Path, container: str, key: str) -> Path:
    """Say where an object is, from what the README tells."""
    path = root / container
    parts = key.split("/")
    for number, part in enumerate(parts):
        while len(part.encode()) >= 240:
            piece = part.encode()[:240].decode("utf-8", "ignore")
            path = path / f"{piece}.c"
            part = part[len(piece) :]
        path = path / (part + (".o" if number == len(parts) - 1 else ".d"))
    return path


def raw_keys(root: Path, container: str) -> set[str]:
    """Find all objects by walking."""
    found = set()
    base = root / container
    for folder, _, files in os.walk(base):
        inside = Path(folder).relative_to(base)
        if inside.parts[:1] == (".tmp",):
            continue
        above = "".join(part[:-2] + ("" if part.endswith(".c") else "/") for part in inside.parts)
        found |= {above + name[:-2] for name in files}
    return found


class PosixSuite(ChunkStoreTests):
    secrets = ()
    local = True
    fsync = False

    @pytest.fixture(scope="class")
    @classmethod
    def server(cls, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
        # In memory where nothing is synced anyway, else on the disk the tests run on.
        memory = Path("/dev/shm")
        if not cls.fsync and os.access(memory, os.W_OK):
            root = Path(tempfile.mkdtemp(prefix="backupfw-posix-", dir=memory))
        else:
            root = tmp_path_factory.mktemp("root")
        yield root
        shutil.rmtree(root)

    def open_store(self, server: Path) -> ChunkStore:
        options = option_values(PosixStore.options(), path=str(server), fsync=self.fsync)
        return self.wrap(PosixStore("posix", options))

    def wrap(self, store: ChunkStore) -> ChunkStore:
        return store

    def raw_put(self, server: Path, container: str, key: str, data: bytes) -> None:
        path = raw_path(server, container, key)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)

    def raw_get(self, server: Path, container: str, key: str) -> bytes | None:
        path = raw_path(server, container, key)
        return path.read_bytes() if path.exists() else None

    def raw_keys(self, server: Path, container: str) -> set[str]:
        return raw_keys(server, container)

    @contextmanager
    def full_store(self, server: Path, container: str) -> Iterator[ChunkStore]:
        root = Path(tempfile.mkdtemp())
        # Only root can make a file system that is full; others see the driver's own bound.
        mounts, most = os.geteuid() == 0, 0
        if mounts:
            subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(root)], check=True)
        else:
            most = 1 << 62
        try:
            options = option_values(
                PosixStore.options(), path=str(root), fsync=self.fsync, min_free_bytes=most
            )
            store = self.wrap(PosixStore("posix", options))
            store.ensure_container(container)
            yield store
            store.close()
            assert list((root / container / ".tmp").glob("*")) == []
        finally:
            if mounts:
                subprocess.run(["umount", str(root)], check=True)
            shutil.rmtree(root)

    def remove_container(self, server: Path, container: str) -> None:
        # Deletes leave no directory, failed puts and checks no file behind.
        left = [path for path in (server / container).rglob("*") if path.is_dir() and not any(path.iterdir())]
        assert [path for path in left if path.name != ".tmp"] == []
        assert list((server / container / ".tmp").glob("*")) == []
        shutil.rmtree(server / container)


class TestPosixStore(PosixSuite):
    # The driver reads a directory as a whole: more names are more of the same.
    listing_keys = 4000


class TestPosixStoreSynced(PosixSuite):
    """With fsync; fewer and smaller objects, the disk's speed is not what is tested."""

    fsync = True
    listing_keys = 400
    largest = 4 << 20
    model_examples = 3


class TestPosixStoreUnderLayers(PosixSuite):
    listing_keys = 2500

    def wrap(self, store: ChunkStore) -> ChunkStore:
        return stack(store)

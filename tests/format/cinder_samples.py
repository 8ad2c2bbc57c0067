"""Backups that Cinder's own drivers wrote (``cinder/``), and a writer of the same layout that shares no code.

Each ``EXPECT.json`` says with what a sample was made and what it must restore to.
"""

from __future__ import annotations

import base64
import bz2
import hashlib
import json
import uuid
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import zstandard

HERE = Path(__file__).with_name("cinder")
SAMPLES = ("posix-none", "posix-zlib", "s3-zstd")

#: By the word in the metadata.
COMPRESS: Mapping[str, Callable[[bytes], bytes]] = {
    "none": bytes,
    "zlib": zlib.compress,
    "bz2": bz2.compress,
    "zstd": lambda data: zstandard.ZstdCompressor().compress(data),
}


@dataclass(frozen=True)
class Sample:
    """Backups of one volume, oldest first.

    :ivar contents: containers of a store, as ours are, with their objects.
    :ivar backups: what ``EXPECT.json`` says of each.
    """

    contents: dict[str, dict[str, bytes]]
    backups: list[dict[str, Any]]

    def places(self, number: int) -> list[tuple[str, str]]:
        """Return container and prefix of a backup's links, its own first."""
        by_id = {one["backup_id"]: one for one in self.backups}
        found = []
        one: dict[str, Any] | None = self.backups[number]
        while one is not None:
            found.append(place(one["container"], one["service_metadata"]))
            one = by_id.get(one["parent_id"])
        return found

    def copy(self) -> dict[str, dict[str, bytes]]:
        """Return the contents, to be changed."""
        return {name: dict(objects) for name, objects in self.contents.items()}


def place(container: str, prefix: str) -> tuple[str, str]:
    """Return the container and the prefix as our stores have them: a container is no path."""
    name, *below = container.split("/")
    return name, "/".join([*below, prefix])


@cache
def sample(name: str) -> Sample:
    """Read a sample."""
    contents: dict[str, dict[str, bytes]] = {}
    for path in sorted((HERE / name).rglob("*")):
        if path.is_file() and path.name != "EXPECT.json":
            container, key = str(path.relative_to(HERE / name)).split("/", 1)
            contents.setdefault(container, {})[key] = path.read_bytes()
    return Sample(contents, json.loads((HERE / name / "EXPECT.json").read_text())["backups"])


@dataclass
class Writer:
    """Writes chains as Cinder does, into one container.

    :ivar objects: what was written.
    """

    chunk: int = 128 << 10
    block: int = 32 << 10
    compression: str = "zlib"
    volume: str = "11111111-1111-4111-8111-111111111111"
    objects: dict[str, bytes] = field(default_factory=dict)
    _hashes: dict[str, list[str]] = field(default_factory=dict)
    _ids: dict[str, str] = field(default_factory=dict)

    def write(self, data: bytes, parent: str | None = None, *, hashes: bool = True) -> str:
        """Write a backup; returns its prefix.

        :param parent: the prefix of the parent.
        """
        backup_id = str(uuid.uuid4())
        prefix = f"volume_{self.volume}/20260101000000/az_nova_backup_{backup_id}"
        sums = [self._sum(data[at : at + self.block]) for at in range(0, len(data), self.block)]
        before = self._hashes[parent] if parent is not None else []
        listed = []
        for at, end in self._runs(len(data), sums, before):
            plain = data[at:end]
            stored, word = COMPRESS[self.compression](plain), self.compression
            if len(stored) >= len(plain):
                stored, word = plain, "none"
            name = f"{prefix}-{len(listed) + 1:05d}"
            self.objects[name] = stored
            md5 = hashlib.md5(plain, usedforsecurity=False).hexdigest()
            listed.append({name: {"offset": at, "length": len(plain), "compression": word, "md5": md5}})
        common = {
            "version": "1.0.0",
            "backup_id": backup_id,
            "volume_id": self.volume,
            "backup_name": "nightly",
            "backup_description": None,
            "created_at": "2026-01-01 00:00:00+00:00",
        }
        meta = {
            "version": 2,
            "volume-base-metadata": {"display_name": "disk", "project_id": "p1", "size": 1},
            "volume-metadata": {"tier": "gold"},
        }
        head = {
            **common,
            "objects": listed,
            "parent_id": self._ids.get(parent or ""),
            "volume_meta": json.dumps(meta),
        }
        if hashes:
            whole = {**common, "chunk_size": self.block, "sha256s": sums}
            self.objects[f"{prefix}_sha256file"] = self._json(whole)
        self.objects[f"{prefix}_metadata"] = self._json(head)
        self._hashes[prefix], self._ids[prefix] = sums, backup_id
        return prefix

    def edit(self, prefix: str, change: Callable[[dict[str, Any]], object]) -> None:
        """Change the metadata of a backup."""
        key = f"{prefix}_metadata"
        found = json.loads(self.objects[key])
        change(found)
        self.objects[key] = self._json(found)

    def record(self, prefix: str, project: str = "p1", **changes: Any) -> str:
        """Return the export record of a backup."""
        values = {
            "driver_info": {},
            "id": self._ids[prefix],
            "project_id": project,
            "volume_id": self.volume,
            "container": "box",
            "size": 1,
            "display_name": "nightly",
            "display_description": None,
            "service_metadata": prefix,
            "object_count": 1,
            "metadata": {},
            "created_at": "2026-01-01T00:00:00Z",
            "data_timestamp": "2026-01-01T00:00:00Z",
            **changes,
        }
        return base64.b64encode(json.dumps(values).encode()).decode()

    def _runs(self, length: int, sums: list[str], before: list[str]) -> list[tuple[int, int]]:
        """Return the ranges that are stored: whole chunks, or runs of changed blocks within one."""
        if not before:
            return [(at, min(at + self.chunk, length)) for at in range(0, length, self.chunk)]
        runs: list[tuple[int, int]] = []
        for number, one in enumerate(sums):
            at = number * self.block
            if before[number] == one:
                continue
            end = min(at + self.block, length)
            if runs and runs[-1][1] == at and at % self.chunk:
                runs[-1] = runs[-1][0], end
            else:
                runs.append((at, end))
        return runs

    @staticmethod
    def _sum(data: bytes) -> str:
        return hashlib.sha256(data).hexdigest()

    @staticmethod
    def _json(value: Any) -> bytes:
        return json.dumps(value, sort_keys=True, indent=2).encode()

"""The catalogue rebuilt from a store whose every call takes 20 ms: time, and the memory of the process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import uuid
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Any
from unittest.mock import patch

from backupfw.chunkstore.base import Body, ChunkStore
from backupfw.chunkstore.container import Container
from backupfw.chunkstore.loader import open_store
from backupfw.cmd import database
from backupfw.cmd.configure import load
from backupfw.cmd.recovery import Run
from backupfw.engine.format.entries import MapRef, PackRef, SegmentEntry
from backupfw.engine.format.geometry import MIB, Geometry
from backupfw.engine.format.keys import Origin
from backupfw.engine.format.manifest import ManifestHead, ManifestWriter
from backupfw.testing.faults import SlowStore
from backupfw.worker import stores
from benchmarks.memory import LIMIT_MIB
from benchmarks.memory_case import peak_mib
from benchmarks.table import Table

LATENCY = 0.02
#: Backups of each volume: a full one and incrementals, each upon the one before.
CHAIN = 50
#: Segments of a volume; an incremental has new data in one of them.
SEGMENTS = 16
#: What 10 000 backups may take, in seconds; fewer take their share.
AIM_SECONDS, AIM_BACKUPS = 600, 10_000

_CONTAINER = "backups"
_OLD = "00000000-0000-4000-8000-00000000000a"
_GEOMETRY = Geometry(SEGMENTS * 4 * MIB, 64 << 10, 4 * MIB)


def run(table: Table, directory: str, backups: int) -> None:
    """Measure and print."""
    table.head(f"Catalogue of {backups} backups rebuilt from a store, {LATENCY * 1000:.0f} ms for each call")
    state = Path(directory) / "state"
    _fill(state, backups)
    command = [sys.executable, "-m", "benchmarks.recovery", str(state)]
    found = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
    if found["results"] != {"entered": backups}:
        raise ValueError(f"not all were entered: {found['results']}")
    aim = AIM_SECONDS * backups / AIM_BACKUPS
    table.row("seconds", f"{found['seconds']:.0f} s", f"at most {aim:.0f} s", found["seconds"] <= aim)
    peak = found["peak_mib"]
    table.row("memory", f"{peak:.0f} MiB", f"at most {LIMIT_MIB} MiB", peak <= LIMIT_MIB)


def _conf(state: Path) -> Any:
    class Arguments:
        state_dir, config_file, debug = str(state), (), False

    return load(Arguments()).conf  # type: ignore[arg-type]


def _fill(state: Path, backups: int) -> None:
    """Put the objects of backups, and make an empty database."""
    conf = _conf(state)
    database.prepare(conf, make=True)
    with closing(stores.Stores(conf)) as opened:
        container = opened.container("main", _CONTAINER)
        container.ensure()
        for number in range(0, backups, CHAIN):
            _chain(container, str(uuid.uuid4()), min(CHAIN, backups - number))


def _chain(container: Container, volume: str, length: int) -> None:
    entries: dict[int, SegmentEntry] = {}
    base = None
    for number in range(length):
        backup = str(uuid.uuid4())
        origin = Origin(_OLD, f"project-{ord(volume[0]) % 7}", volume, backup, 1, 1, os.urandom(8).hex())
        for segment in range(SEGMENTS) if base is None else (number % SEGMENTS,):
            pack = PackRef(str(origin), 0, 300)
            entries[segment] = SegmentEntry(segment, MapRef(str(origin), bytes(32), 100), 4096, 200, (pack,))
            for key, size in zip(entries[segment].object_keys(), (100, 300), strict=True):
                container.put(key, Body.from_bytes(bytes(size)))
        texts = {"name": f"backup {number}", "created_at": "2026-01-01T00:00:00", "metadata": {"a": "b"}}
        head = ManifestHead(origin, _GEOMETRY, base=base, record={"backup": texts})
        with ManifestWriter(head) as writer:
            for _segment, entry in sorted(entries.items()):
                writer.add(entry)
            writer.put(container)
        base = head.key


def _slow(*words: Any, **more: Any) -> ChunkStore:
    return SlowStore(open_store(*words, **more), LATENCY)


def main() -> None:
    """Rebuild the catalogue of the state directory that the command line names."""
    conf = _conf(Path(sys.argv[1]))
    with patch.object(stores, "open_store", _slow), database.opened(conf) as db:
        begin = time.perf_counter()
        rebuilding = Run(conf, db, "main", _CONTAINER)
        results = Counter(one["result"] for one in rebuilding.records(_OLD, None, dry_run=False))
        seconds = time.perf_counter() - begin
    print(json.dumps({"results": results, "seconds": seconds, "peak_mib": peak_mib()}))


if __name__ == "__main__":
    main()

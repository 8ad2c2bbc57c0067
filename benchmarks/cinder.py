"""Backups of volumes of a real Cinder, beside those of an equal image in Ceph without it, through the API."""

from __future__ import annotations

import os
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks.table import Table
from tests.integration.cinder.world import World, world
from tests.servers import rbd_images
from tests.servers.ceph import ceph, ceph_missing
from tests.servers.cinder import POOL, cinder, cinder_missing
from tests.servers.directory import server_directory
from tests.servers.keystone import keystone, keystone_missing

PIECE = 16 << 20
#: The share of the bytes that changes before an incremental backup is one of so many.
CHANGED = 16
#: Seconds.
AIM = 5


def run(table: Table, directory: str, size: int, rounds: int) -> None:
    """Measure and print, if the servers are installed.

    :param size: bytes that are written to each volume.
    """
    if missing := ceph_missing() or cinder_missing() or keystone_missing():
        table.head(f"Volumes of a Cinder: {missing}")
        return
    table.head(
        f"Volumes of a Cinder, {size >> 20} MiB written, 1/{CHANGED} of it changes; beside the provider rbd"
    )
    with ExitStack() as stack:
        cluster = stack.enter_context(ceph(stack.enter_context(server_directory()), gateway=False))
        identity = stack.enter_context(keystone(Path(directory)))
        server = stack.enter_context(cinder(stack.enter_context(server_directory()), cluster, identity))
        more: dict[str, dict[str, Any]] = {
            "volumes": {"enabled": "local, cinder, rbd"},
            "volumes:rbd": {"driver": "rbd", **rbd_images.options(cluster, pools=POOL)},
            "quota": {"gigabytes": -1, "backup_gigabytes": -1, "backups": -1},
        }
        there = stack.enter_context(world(server, identity, Path(directory), more))
        direct = there.volumes.create_volume(size=-(-size >> 30), volume_type="ceph")
        adopting = ("volume", "adopt", "--backend", "rbd", "--project", there.volumes.project)
        seconds = {
            "direct": _measured(
                there,
                direct,
                there.service.command(*adopting, f"rbd:{POOL}/volume-{direct}").stdout.strip(),
                size,
                rounds,
            )
        }
        for kind in ("ceph", "files"):
            volume = there.volumes.create_volume(size=-(-size >> 30), volume_type=kind)
            seconds[kind] = _measured(there, volume, volume, size, rounds)
    for number, what in enumerate(("Full", "Incremental")):
        base = seconds["direct"][number]
        table.row(f"{what}, rbd", f"{base:.2f} s", "")
        more_seconds = seconds["ceph"][number] - base
        table.row(
            f"{what}, cinder in Ceph", f"{more_seconds:+.2f} s", f"at most {AIM} s", more_seconds <= AIM
        )
        table.row(f"{what}, cinder attached", f"{seconds['files'][number] - base:+.2f} s", "")


def _measured(there: World, written: str, volume: str, size: int, rounds: int) -> tuple[float, float]:
    """Return the shortest times of a full and of an incremental backup.

    :param written: the volume in the Cinder that is written; ``volume`` is the one that is backed up.
    """
    full, incremental = [], []
    for number in range(max(1, rounds)):
        if not number:
            _write(there, written, size)
        full.append(_backed_up(there, volume, incremental=False))
        _write(there, written, size // CHANGED)
        incremental.append(_backed_up(there, volume, incremental=True))
    return min(full), min(incremental)


def _backed_up(there: World, volume: str, *, incremental: bool) -> float:
    begin = time.perf_counter()
    there.backups.backup(volume, incremental=incremental)
    return time.perf_counter() - begin


def _write(there: World, volume: str, size: int) -> None:
    for offset in range(0, size, PIECE):
        there.server.write(volume, offset, os.urandom(min(PIECE, size - offset)))

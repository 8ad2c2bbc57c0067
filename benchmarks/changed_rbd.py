"""Full and incremental backups of a large image in Ceph, through the API."""

from __future__ import annotations

import json
import os
import random
import time
import uuid
from pathlib import Path
from typing import Any

from backupfw_rbd.provider import RbdProvider

from backupfw.chunkstore.options import option_values
from backupfw.testing.volume import adopted
from backupfw.volume.base import Needed
from benchmarks.table import Table
from tests.integration.service import Client, Service, running
from tests.servers import rbd_images
from tests.servers.ceph import Ceph, ceph_missing

LENGTH = 1 << 40
OBJECT = 4 << 20
ALLOCATED, CHANGED = 200, 100
#: Percent, as [backup] verify_unchanged is by default.
SAMPLED = 1


def run(table: Table, directory: str, rounds: int) -> None:
    """Measure and print, if Ceph is installed."""
    if missing := ceph_missing():
        table.head(f"Changed blocks in Ceph: {missing}")
        return
    table.head(
        f"Ceph, 1 TiB, {ALLOCATED} objects of 4 MiB, of which {CHANGED} or none change; through the API"
    )
    with rbd_images.running_cluster() as cluster:
        place = str(rbd_images.make_image(cluster, LENGTH, order=22))
        rng = random.Random(5)
        objects = rng.sample(range(LENGTH // OBJECT), ALLOCATED)
        _write(cluster, place, objects)
        _known(table, cluster, place, objects, rounds)
        options: dict[str, dict[str, Any]] = {
            "volumes": {"enabled": "rbd"},
            "volumes:rbd": {"driver": "rbd", **rbd_images.options(cluster, pools=rbd_images.POOL)},
            "quota": {"gigabytes": -1, "backup_gigabytes": -1, "backups": -1},
        }
        with running(Path(directory) / "state", options) as service:
            client = service.client()
            volume = service.command("volume", "adopt", place).stdout.strip()
            read = _read(service, client.backup(volume))
            most = 1.05 * ALLOCATED * OBJECT
            table.row("Read by a full backup", _mib(read), f"at most {_mib(most)}", read <= most)
            for count, limit in ((CHANGED, 10), (0, 2)):
                seconds, reads = zip(
                    *(
                        _incremental(service, client, cluster, place, volume, rng.sample(objects, count))
                        for _ in range(max(1, rounds))
                    ),
                    strict=True,
                )
                table.row(
                    f"{count} objects changed",
                    f"{min(seconds):.2f} s",
                    f"at most {limit} s",
                    min(seconds) <= limit,
                )
                most = 1.1 * (count + ALLOCATED * SAMPLED / 100) * OBJECT
                table.row(
                    f"Read, {count} objects changed",
                    _mib(max(reads)),
                    f"about {_mib(most)}",
                    None if not count else max(reads) <= most,
                )


def _known(table: Table, cluster: Ceph, place: str, objects: list[int], rounds: int) -> None:
    """Measure how long it takes to take a point and to know what changed."""
    provider = RbdProvider(option_values(RbdProvider.options(), **rbd_images.options(cluster)))
    volume = adopted(provider, place)
    point = provider.open_point(volume, str(uuid.uuid4()))
    token = point.token
    point.close(keep=True)
    assert token is not None
    _write(cluster, place, objects[:CHANGED], 4096)
    seconds = []
    for _ in range(max(1, rounds)):
        begin = time.perf_counter()
        with provider.open_point(volume, str(uuid.uuid4())) as point:
            assert point.compare(token) is None
            sum(1 for _ in point.extents(0, LENGTH, token))
        seconds.append(time.perf_counter() - begin)
    provider.keep_points(volume, Needed)
    table.row("What changed is known", f"{min(seconds):.2f} s", "at most 1 s", min(seconds) <= 1)


def _incremental(
    service: Service, client: Client, cluster: Ceph, place: str, volume: str, objects: list[int]
) -> tuple[float, int]:
    _write(cluster, place, objects)
    begin = time.perf_counter()
    backup = client.backup(volume, incremental=True)
    return time.perf_counter() - begin, _read(service, backup)


def _write(cluster: Ceph, place: str, objects: list[int], size: int = OBJECT) -> None:
    with rbd_images.image(cluster, place) as image:
        for index in objects:
            image.write(os.urandom(size), index * OBJECT)


def _read(service: Service, backup: str) -> int:
    shown = json.loads(service.command("backup", "show", backup, "--format", "json").stdout)
    return int(shown["read_bytes"])


def _mib(size: float) -> str:
    return f"{size / (1 << 20):.1f} MiB"

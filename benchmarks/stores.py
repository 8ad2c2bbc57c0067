"""Through real S3 and Swift servers on loopback: beside the bare SDK, and how many requests it takes."""

from __future__ import annotations

import os
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from backupfw.chunkstore.base import Body
from backupfw.chunkstore.container import Container
from backupfw.chunkstore.layers.metrics import NullRecorder
from backupfw.engine import release
from backupfw.engine.format import keys
from backupfw.engine.format.entries import MapRef, PackRef, SegmentEntry
from backupfw.engine.format.geometry import Geometry
from backupfw.engine.format.manifest import ManifestHead, ManifestWriter
from backupfw.engine.ports import BackupResult, KnownManifests
from backupfw.testing.proxy import FaultProxy
from benchmarks import bare, image, sdk, timed, world
from benchmarks.table import Table, rate
from tests.servers.ceph import Ceph, ceph, ceph_missing
from tests.servers.swift import Swift, swift, swift_missing

THREADS = timed.STREAMS
#: Least share of the bare loop's speed.
AIM = 0.8
#: Seconds that the far S3 server's answers come later.
LATENCY = 0.02
INCREMENTALS = 30
#: Objects of the backup that is deleted.
DOOMED = 10_000
#: Requests that do not grow with anything: reads of a manifest of a few pages, and its own put or delete.
CONSTANT = 8


class Requests(NullRecorder):
    """Counts calls by operation; above the drivers' own requests, which each of these calls is one of."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()

    def operation(self, store: str, operation: str, *_: Any, **__: Any) -> None:
        """Count a call."""
        self.counts[operation] += 1

    def take(self) -> Counter[str]:
        """Return the counts since the last call of this."""
        counts, self.counts = self.counts, Counter()
        return counts


def run(table: Table, directory: str, size: int, rounds: int) -> None:
    """Measure with each server that is installed, and print.

    :param size: bytes of the image; at least a segment for each thread is of use.
    """
    path = os.path.join(directory, "image")
    image.make_mixed(path, size, seed=5)
    if missing := ceph_missing():
        table.head(f"S3: {missing}")
    else:
        # One for each part: they keep what is deleted, too, and only in memory.
        near, far = Path(directory, "ceph"), Path(directory, "ceph-far")
        near.mkdir()
        far.mkdir()
        with ceph(near) as gateway:
            _beside_the_sdk(
                table, directory, path, rounds, "S3 (Ceph)", lambda: sdk.BareS3(gateway), _s3(gateway)
            )
            _deletion(table, _s3(gateway))
        with ceph(far) as gateway:
            _far_away(table, directory, path, rounds, gateway)
    if missing := swift_missing():
        table.head(f"Swift: {missing}")
    else:
        with swift() as cluster:
            _beside_the_sdk(
                table, directory, path, rounds, "Swift", lambda: sdk.BareSwift(cluster), _swift(cluster)
            )


#: Opens the benchmark's container in a store, with somebody who counts.
Open = Callable[[Requests], Container]


def _s3(server: Ceph, endpoint: str | None = None) -> Open:
    def make(requests: Requests) -> Container:
        return world.store_container(
            "s3",
            requests,
            endpoint=endpoint or server.endpoint,
            region="us-east-1",
            access_key_id=server.access_key,
            secret_access_key=server.secret_key,
        )

    return make


def _swift(server: Swift) -> Open:
    def make(requests: Requests) -> Container:
        return world.store_container(
            "swift",
            requests,
            auth="v1",
            auth_url=f"{server.url}/auth/v1.0",
            username=server.user,
            password=server.key,
        )

    return make


@contextmanager
def _opened(make: Open) -> Iterator[tuple[Container, Requests]]:
    requests = Requests()
    box = make(requests)
    requests.take()
    try:
        yield box, requests
    finally:
        box.store.close()


def _beside_the_sdk(
    table: Table,
    directory: str,
    path: str,
    rounds: int,
    name: str,
    connect: Callable[[], sdk.Objects],
    make: Open,
) -> None:
    size = os.path.getsize(path)
    scratch, target = os.path.join(directory, "bare"), os.path.join(directory, "target")
    clients = [connect() for _ in range(THREADS)]
    with _opened(make) as (box, requests):
        table.head(f"{name}: mixed image of {size >> 20} MiB, {THREADS} threads, median of {rounds} pairs")
        made: list[BackupResult] = []

        def plain_backup() -> float:
            return bare.backup(
                path, scratch, THREADS, put=lambda number, key, data: clients[number].put(key, data)
            )

        def our_backup() -> float:
            seconds, result = timed.back_up(box, path)
            made.append(result)
            return seconds

        _compare(table, f"{name}: full backup", size, rounds, plain_backup, our_backup)
        requests.take()
        _, result = timed.back_up(box, path)
        value = sum(requests.take().values())
        most = result.object_count + CONSTANT
        table.row(f"{name}: requests of a full backup", str(value), f"at most {most}", value <= most)
        _, after = timed.back_up(box, path, result.manifest_key)
        value = sum(requests.take().values())
        most = after.object_count + result.segments + CONSTANT
        table.row(f"{name}: requests of an incremental", str(value), f"at most {most}", value <= most)
        bare.prepare_restore(path, scratch, THREADS)
        for number in range(THREADS):
            with open(f"{scratch}.{number}", "rb") as file:
                clients[number].put(f"packed-{number}", memoryview(file.read()))

        def plain_restore() -> float:
            return bare.restore(
                scratch,
                target,
                size,
                THREADS,
                get=lambda number, offset, length: clients[number].get(f"packed-{number}", offset, length),
            )

        def our_restore() -> float:
            return timed.restore_to(target, box, result.manifest_key, size)[0]

        _compare(table, f"{name}: restore", size, rounds, plain_restore, our_restore)
        requests.take()
        timed.restore_to(target, box, result.manifest_key, size)
        listings = requests.take()["list"]
        table.row(f"{name}: listings of a restore", str(listings), "none", listings == 0)
        # All of them: a release of the next measurement would read what it finds and nobody knows.
        for done in [*made, result, after]:
            others = [after.manifest_key] if done is result else []
            release.run(
                done.manifest_key, KnownManifests(others, others), "bench/", box, world.QuietControl()
            )


def _compare(
    table: Table, name: str, size: int, rounds: int, plain: Callable[[], float], ours: Callable[[], float]
) -> None:
    """Measure the two in turns, each the first as often as the other, and print their medians."""
    pairs = []
    for number in range(rounds + 1):
        if number % 2:
            first = plain()
            second = ours()
        else:
            second = ours()
            first = plain()
        # The first pair makes connections and touches memory for the first time.
        if number:
            pairs.append((first, second))
    share = statistics.median(first / second for first, second in pairs)
    table.row(f"{name}, bare SDK", rate(size, statistics.median(first for first, _ in pairs)))
    value = f"{rate(size, statistics.median(second for _, second in pairs))} = {share:.0%}"
    table.row(f"{name}, backupfw", value, f"at least {AIM:.0%}", share >= AIM)


def _deletion(table: Table, make: Open) -> None:
    """Delete a backup of many objects beside a relative that shares none of them."""
    with _opened(make) as (box, requests):
        manifests = [_manifest(box, name) for name in ("doomed", "relative")]
        doomed = manifests[0]
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda key: box.put(key, Body.from_bytes(b"x")), doomed[1]))
        requests.take()
        begin = time.perf_counter()
        release.run(doomed[0], KnownManifests([manifests[1][0]]), "bench/", box, world.QuietControl())
        seconds = time.perf_counter() - begin
        counts = requests.take()
        bulk = box.capabilities.bulk_delete
        most = -(-DOOMED // bulk) + sum(-(-size >> 20) for _, _, size in manifests) + CONSTANT
        value = sum(counts.values())
        table.head(f"S3 (Ceph): deletion of a backup of {DOOMED} objects that nobody shares")
        table.row(
            f"Requests, {bulk} keys in a bulk ({seconds:.1f} s)", str(value), f"at most {most}", value <= most
        )
        release.run(manifests[1][0], KnownManifests(), "bench/", box, world.QuietControl())


def _manifest(box: Container, name: str) -> tuple[str, list[str], int]:
    """Put a manifest that names many objects; return its key, theirs, and its size."""
    origin = keys.Origin("bench", "bench", "volume", name, 0, 1, "0123456789abcdef")
    named: list[str] = []
    segments = DOOMED // 2
    with ManifestWriter(ManifestHead(origin, Geometry(segments * bare.SEGMENT))) as writer:
        for index in range(segments):
            packs = (PackRef(str(origin), 0, 1),)
            entry = SegmentEntry(index, MapRef(str(origin), bytes(32), 1), 1, 1, packs)
            writer.add(entry)
            named += [keys.map_key(str(origin), index), keys.pack_key(str(origin), index, 0)]
        writer.put(box)
    return f"{origin}/manifest", named, next(iter(box.list(f"{origin}/manifest"))).size


def _far_away(table: Table, directory: str, path: str, rounds: int, server: Ceph) -> None:
    """Restore after many incrementals, and a full backup of the same state, with latency."""
    size = os.path.getsize(path)
    with _opened(_s3(server)) as (box, _):
        _, last = timed.back_up(box, path)
        for number in range(INCREMENTALS):
            image.rewrite(path, 4 << 10, 0.01, seed=number)
            before = last
            _, last = timed.back_up(box, path, before.manifest_key)
            release.run(
                before.manifest_key, KnownManifests([last.manifest_key]), "bench/", box, world.QuietControl()
            )
        _, full = timed.back_up(box, path)
    with FaultProxy("127.0.0.1", server.port) as proxy:
        proxy.latency = LATENCY
        with _opened(_s3(server, proxy.endpoint)) as (box, requests):
            target = os.path.join(directory, "target")
            pairs = []
            results = {}
            for number in range(2 * rounds):
                times = {}
                for key in (
                    (last.manifest_key, full.manifest_key)
                    if number % 2
                    else (full.manifest_key, last.manifest_key)
                ):
                    times[key], _, results[key] = timed.restore_to(target, box, key, size)
                pairs.append((times[last.manifest_key], times[full.manifest_key]))
            worn = results[last.manifest_key]
            ratio = statistics.median(one / two for one, two in pairs)
            away = f"S3 (Ceph), {LATENCY * 1000:.0f} ms away"
            table.head(f"{away}: {size >> 20} MiB after {INCREMENTALS} incrementals of 1 % of the pages")
            table.row("Restore of the last", rate(size, statistics.median(one for one, _ in pairs)))
            table.row("Restore: time / full backup's", f"{ratio:.2f}", "at most 1.15", ratio <= 1.15)
            fetched, per = worn.fetched_bytes / worn.needed_bytes, worn.requests / worn.packs
            table.row("Restore: fetched / needed", f"{fetched:.2f}", "at most 1.30", fetched <= 1.3)
            table.row("Restore: requests per pack", f"{per:.1f} ({worn.packs} packs)", "at most 4", per <= 4)
            listings = requests.take()["list"]
            table.row("Restore: listings", str(listings), "none", listings == 0)

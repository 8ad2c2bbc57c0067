"""An installation on real servers, everything in it killed and started again at random.

Seconds of it: ``BACKUPFW_CHAOS_SECONDS`` (600).
"""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import pytest

from tests.integration.content import MIB
from tests.integration.faults.history import PATIENCE, History, Monkey, volume_in
from tests.integration.faults.world import SECRET, Installation, Process, installation
from tests.servers.databases import PostgreSQL, postgresql_programs
from tests.servers.directory import server_directory
from tests.servers.rabbitmq import RabbitMQ, rabbitmq, rabbitmq_missing
from tests.servers.seaweedfs import SeaweedFS, seaweedfs, seaweedfs_missing

pytestmark = [pytest.mark.chaos, pytest.mark.server]

SECONDS = float(os.environ.get("BACKUPFW_CHAOS_SECONDS", "600"))
VOLUMES = 200
HISTORIES = 20
WORKERS = ("w1", "w2", "w3")
#: The projects of the histories, and those whose backups are encrypted.
PROJECTS = ("p0", "p1", "p2", "p3")
ENCRYPTED = PROJECTS[::2]
#: Sees every outage and is never killed itself.
SURVIVOR = "survivor"
#: How much more a survivor may have in the last third of the time than in the one before: threads, and bytes.
MORE_THREADS, MORE_MEMORY = 8, 48 * MIB

Harm = Callable[[random.Random], None]


@dataclass(frozen=True)
class Servers:
    """What the installation stands on."""

    database: PostgreSQL
    broker: RabbitMQ
    store: SeaweedFS

    def harms(self) -> dict[str, Harm]:
        """What is done to them."""

        def database(rng: random.Random) -> None:
            self.database.close(rng.choice((signal.SIGQUIT, signal.SIGINT)))
            time.sleep(rng.uniform(0, 5))
            self.database.start()

        def broker(rng: random.Random) -> None:
            self.broker.stop(rng.choice((signal.SIGKILL, signal.SIGTERM)))
            time.sleep(rng.uniform(0, 5))
            self.broker.start()

        def store(rng: random.Random) -> None:
            self.store.stop()
            time.sleep(rng.uniform(0, 5))
            self.store.start()

        def hanging_store(rng: random.Random) -> None:
            self.store.freeze()
            time.sleep(rng.uniform(0, 10))
            self.store.thaw()

        return {"database": database, "broker": broker, "store": store, "hanging store": hanging_store}


@pytest.fixture
def servers() -> Iterator[Servers]:
    for missing in (rabbitmq_missing(), seaweedfs_missing()):
        if missing:
            pytest.skip(missing)
    if postgresql_programs() is None:
        pytest.skip("PostgreSQL is not installed")
    with ExitStack() as stack:
        places = [stack.enter_context(server_directory()) for _ in range(3)]
        database = PostgreSQL(places[0], durable=True)
        stack.callback(database.close)
        database.start()
        broker = stack.enter_context(rabbitmq(places[1]))
        yield Servers(database, broker, stack.enter_context(seaweedfs(places[2])))


@pytest.fixture
def installed(servers: Servers, tmp_path: Path) -> Iterator[Installation]:
    store = servers.store
    options: dict[str, dict[str, Any]] = {
        "backup": {"max_attempts": 1000, "delete_retry_seconds": 1, "workers": 4},
        "quota": dict.fromkeys(("backup_gigabytes", "gigabytes", "snapshots"), -1),
        "store:main": {
            "driver": "s3",
            "path": None,
            "endpoint": store.endpoint,
            "region": "us-east-1",
            "access_key_id": store.access_key,
            "secret_access_key": store.secret_key,
            "sorted_listing": False,
            "operation_timeout": 20,
        },
        f"placement:{SECRET}": {"projects": ", ".join(ENCRYPTED)},
    }
    with installation(tmp_path, servers.database.create_database(), servers.broker.url, options) as made:
        for name in (*WORKERS, SURVIVOR):
            made.start_worker(name)
        yield made


def revived(start: Callable[[], object]) -> None:
    """Start a process, and again, as systemd does, if it ended because its database is away."""
    end = time.monotonic() + PATIENCE
    while True:
        try:
            start()
        except AssertionError:
            assert time.monotonic() < end
            time.sleep(1)
        else:
            return


def harms_to_workers(installed: Installation) -> dict[str, Harm]:
    """What is done to all workers but one."""

    def kill(rng: random.Random) -> None:
        name = rng.choice(WORKERS)
        installed.workers[name].kill()
        revived(lambda: installed.start_worker(name))

    def stop(rng: random.Random) -> None:
        name = rng.choice(WORKERS)
        assert installed.workers[name].stop() == 0
        revived(lambda: installed.start_worker(name))

    def freeze(rng: random.Random) -> None:
        worker = installed.workers[rng.choice(WORKERS)]
        worker.signal(signal.SIGSTOP)
        time.sleep(rng.uniform(0.1, 10))
        worker.signal(signal.SIGCONT)

    return {"kill worker": kill, "stop worker": stop, "freeze worker": freeze}


def harms_to_api(installed: Installation) -> dict[str, Harm]:
    """What is done to the API."""

    def kill(_rng: random.Random) -> None:
        assert installed.api is not None
        installed.api.kill()
        revived(installed.start_api)

    def stop(_rng: random.Random) -> None:
        assert installed.api is not None
        assert installed.api.stop() == 0
        revived(installed.start_api)

    return {"kill API": kill, "stop API": stop}


def harms_to_keys(installed: Installation) -> dict[str, Harm]:
    """What is done to the keys of projects, by a command that may be killed, too."""

    def rotate(rng: random.Random) -> None:
        words = [sys.executable, "-m", "backupfw.cmd.main", "keys", "rotate"]
        words += ["--project", rng.choice(ENCRYPTED), "--config-file", str(installed.folder / "common.conf")]
        with contextlib.suppress(subprocess.TimeoutExpired):
            # Status 1: the database or the store is away, or there is no key yet.
            done = subprocess.run(words, capture_output=True, text=True, timeout=rng.uniform(1, 20))
            assert done.returncode in (0, 1), done
            assert "Traceback" not in done.stderr, done

    return {"rotate keys": rotate}


def size_of(process: Process) -> tuple[int, int]:
    """Return how many threads and bytes a process and those it started have."""
    threads = memory = 0
    for place in Path("/proc").glob("[0-9]*"):
        try:
            if os.getsid(int(place.name)) != process.pid:
                continue
            lines = dict(line.split(":", 1) for line in (place / "status").read_text().splitlines())
        except (OSError, ProcessLookupError):
            continue
        threads += int(lines.get("Threads", "0"))
        memory += int(lines.get("VmRSS", "0 kB").split()[0]) * 1024
    return threads, memory


def assert_levelled_off(sizes: Sequence[tuple[int, int]]) -> None:
    """In the last third of the time a survivor needed hardly more than in the one before."""
    third = len(sizes) // 3
    middle, last = sizes[third : 2 * third], sizes[2 * third :]
    (threads, memory), (more_threads, more_memory) = (
        (max(size[0] for size in part), max(size[1] for size in part)) for part in (middle, last)
    )
    assert more_threads <= threads + MORE_THREADS, sizes
    assert more_memory <= memory + MORE_MEMORY, sizes


def objects(store: SeaweedFS) -> list[str]:
    """Return the keys of everything of backups in the store."""
    client = boto3.client(
        "s3",
        endpoint_url=store.endpoint,
        region_name="us-east-1",
        aws_access_key_id=store.access_key,
        aws_secret_access_key=store.secret_key,
    )
    return [
        item["Key"]
        for bucket in client.list_buckets()["Buckets"]
        for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket["Name"])
        for item in page.get("Contents", ())
        # It belongs to the installation, not to a backup.
        if not item["Key"].endswith(".holder")
    ]


@contextmanager
def kept_if_it_fails(installed: Installation, servers: Servers, name: str) -> Iterator[None]:
    """Keep logs, configuration, the database and the list of all objects when the block fails."""
    try:
        yield
    except BaseException:
        kept = Path(tempfile.mkdtemp(prefix=f"{name}-"))
        for path in (*installed.folder.glob("*.log"), *installed.folder.glob("*.conf")):
            shutil.copy(path, kept)
        print(f"what is known of it is kept in {kept}")
        servers.database.dump(installed.database, kept / "database.sql")
        (kept / "objects").write_text("".join(f"{key}\n" for key in objects(servers.store)))
        raise


@pytest.mark.timeout(SECONDS + 4000)
def test_nothing_is_lost(installed: Installation, servers: Servers) -> None:
    seed = random.randrange(1 << 30)
    print(f"seed {seed}")
    with kept_if_it_fails(installed, servers, f"chaos-{seed}"):
        everything_is_killed(installed, servers, seed)


def everything_is_killed(installed: Installation, servers: Servers, seed: int) -> None:
    rng = random.Random(seed)
    volume_path = volume_in(installed.folder / "volumes")
    disks = VOLUMES // HISTORIES
    monkeys = [
        Monkey(harms_to_workers(installed), random.Random(rng.random()), (1, 8)),
        Monkey(harms_to_api(installed), random.Random(rng.random()), (5, 30)),
        Monkey(harms_to_keys(installed), random.Random(rng.random()), (5, 30)),
    ]
    to_servers = Monkey(servers.harms(), random.Random(rng.random()), (0, 0))

    def check() -> None:
        for monkey in monkeys:
            monkey.check()

    def history(number: int) -> History:
        client = installed.client(PROJECTS[number % len(PROJECTS)])
        return History(client, f"h{number}", random.Random(seed + number), volume_path, disks, check)

    with ThreadPoolExecutor(HISTORIES) as pool:
        histories = list(pool.map(history, range(HISTORIES)))
        sizes = []
        end = time.monotonic() + SECONDS
        with ExitStack() as stack:
            for monkey in monkeys:
                stack.enter_context(monkey.at_work())
            runs = [pool.submit(go_on, history, end) for history in histories]
            while not all(run.done() for run in runs):
                sizes.append(size_of(installed.workers[SURVIVOR]))
                time.sleep(rng.uniform(2, 20))
                # By the thread that outlives the others: the servers end with the one that started them.
                to_servers.strike()
            for run in runs:
                run.result()
        list(pool.map(History.settle, histories))
        # All data keys are wrapped by the keys that are current, whatever rotation was killed when.
        installed.command("keys", "rewrap")
        installed.audit()
        list(pool.map(lambda history: history.check(most=20), histories))
        installed.audit()
        list(pool.map(History.remove_all, histories))
    installed.audit()
    assert objects(servers.store) == []
    assert_levelled_off(sizes)
    done = sum((history.done for history in histories), start=Counter())
    harmed = dict(itertools.chain.from_iterable(monkey.done.items() for monkey in (*monkeys, to_servers)))
    print(f"{sum(done.values())} deeds: {dict(done)}; harms: {harmed}; survivor: {sizes[-1]} of {max(sizes)}")


def go_on(history: History, end: float) -> None:
    """Let a history go on until a moment."""
    while time.monotonic() < end:
        history.step()

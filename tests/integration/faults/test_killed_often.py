"""Many tasks of several projects while workers are killed again and again."""

from __future__ import annotations

import itertools
import os
import random
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from sqlalchemy import create_engine, text

from tests.integration.content import MIB
from tests.integration.faults.world import Installation, installation
from tests.integration.service import Client
from tests.servers.rabbitmq import RabbitMQ

pytestmark = pytest.mark.server

GIB = 1 << 30
PROJECTS = ("a", "b", "c", "d")
WORKERS = ("w1", "w2", "w3", "w4")
#: How many tasks may run at once: fewer than the workers have room for.
LIMIT = 5
PROJECT_LIMIT = 2
#: What a volume of 1 GiB has in its first bytes; the rest is a hole.
CONTENT = 2 * MIB


@pytest.fixture
def installed(fresh_database: Callable[[], str], broker: RabbitMQ, tmp_path: Path) -> Iterator[Installation]:
    options = {
        "backup": {
            "max_running": LIMIT,
            "max_running_per_project": PROJECT_LIMIT,
            # A task may be unlucky very often.
            "max_attempts": 1000,
        },
        "quota": {"gigabytes": -1, "backup_gigabytes": -1},
        # Slow, so that kills come in the middle of tasks.
        "store:main": {"max_requests_per_second": 8},
    }
    with installation(tmp_path, fresh_database(), broker.url, options) as made:
        for name in WORKERS:
            made.start_worker(name, wait=False)
        for worker in made.workers.values():
            worker.wait_ready()
        yield made


@dataclass
class Item:
    """One volume, the backup of it and the volume that is restored to."""

    client: Client
    content: bytes
    volume: str
    backup: str = ""
    restored: str = ""


class Running:
    """Looks again and again how many tasks run.

    :ivar most: at once, of all projects.
    :ivar most_of_one: of one project.
    """

    def __init__(self, database: str) -> None:
        self.most = self.most_of_one = 0
        self._engine = create_engine(database)
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        query = text(
            "SELECT project_id, count(*) FROM tasks WHERE state = 'running'"
            " AND lease_until > timezone('utc', statement_timestamp()) GROUP BY project_id"
        )
        while not self._end.wait(0.05):
            with self._engine.connect() as connection:
                counts = [count for _, count in connection.execute(query)]
            self.most = max(self.most, sum(counts))
            self.most_of_one = max(self.most_of_one, *counts, 0)

    def __enter__(self) -> Running:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()
        self._engine.dispose()


class Killer:
    """Kills a worker that is at work, starts it again, and so on; at most half of them are down.

    :ivar kills: how many it killed.
    """

    def __init__(self, installed: Installation, seed: int, patience: float) -> None:
        self.kills = 0
        self._installed = installed
        self._random = random.Random(seed)
        self._end = time.monotonic() + patience
        self._starting: deque[str] = deque()

    def until_idle(self) -> None:
        """Go on until no task is left."""
        while self._installed.rows("SELECT id FROM tasks"):
            assert time.monotonic() < self._end, self._installed.log_tail()
            self._kill_one()
            time.sleep(self._random.uniform(1, 3))
        while self._starting:
            self._wait_for_one()

    def _kill_one(self) -> None:
        owners = self._installed.rows(
            "SELECT DISTINCT owner FROM tasks WHERE state = 'running' AND owner IS NOT NULL"
        )
        hosts = {owner.partition("/")[0] for (owner,) in owners} - set(self._starting)
        if hosts:
            victim = self._random.choice(sorted(hosts))
            self._installed.workers[victim].kill()
            self._installed.start_worker(victim, wait=False)
            self._starting.append(victim)
            self.kills += 1
        if len(self._starting) >= len(WORKERS) / 2:
            self._wait_for_one()

    def _wait_for_one(self) -> None:
        self._installed.workers[self._starting.popleft()].wait_ready()


def statuses(installed: Installation, table: str) -> Counter[str]:
    """How many backups or volumes are in each status."""
    query = f"SELECT status, count(*) FROM {table} WHERE NOT deleted GROUP BY status"
    return Counter(dict(installed.rows(query)))


def usage(client: Client, project: str) -> dict[str, int]:
    """What the quota says is used."""
    shown = client.expect(200, "GET", f"/os-quota-sets/{project}?usage=True")["quota_set"]
    return {name: shown[name]["in_use"] for name in ("backups", "volumes", "backup_gigabytes", "gigabytes")}


@pytest.mark.parametrize(
    ("count", "patience"), [(16, 300), pytest.param(200, 3600, marks=pytest.mark.soak)], ids=["16", "200"]
)
def test_every_task_ends_well(installed: Installation, count: int, patience: float) -> None:
    """Volumes are made, backed up and restored; half of the backups are deleted."""
    rng = random.Random(count)
    clients = {project: installed.client(project) for project in PROJECTS}
    killer = Killer(installed, count, patience)
    items: list[Item] = []
    with Running(installed.database) as running:
        for client in itertools.islice(itertools.cycle(clients.values()), count):
            made = client.expect(202, "POST", "/volumes", {"volume": {"size": 1}})
            items.append(Item(client, rng.randbytes(CONTENT), made["volume"]["id"]))
        killer.until_idle()
        for item in items:
            with open(installed.path_of(item.volume), "r+b") as volume:
                volume.write(item.content)
        begun = time.monotonic()
        for item in items:
            item.backup = item.client.backup(item.volume, wait=False)
        killer.until_idle()
        assert statuses(installed, "backups") == {"available": count}
        backed_up, kills = time.monotonic() - begun, killer.kills
        for item in items:
            item.restored = item.client.restore(item.backup, wait=False)
        killer.until_idle()
        restored = time.monotonic() - begun
    assert statuses(installed, "backups") == {"available": count}
    assert statuses(installed, "volumes") == {"available": 2 * count}
    for item in items:
        with open(installed.path_of(item.restored), "rb") as volume:
            assert volume.read(CONTENT) == item.content
            assert os.fstat(volume.fileno()).st_size == GIB
            # Behind it is nothing but a hole, or zeros.
            assert not volume.read(MIB).strip(b"\0")
    # Before any sweep.
    installed.audit()
    for item in items[: count // 2]:
        item.client.expect(202, "DELETE", f"/backups/{item.backup}")
    killer.until_idle()
    installed.audit()
    assert statuses(installed, "backups") == {"available": count - count // 2}
    for project, client in clients.items():
        mine = [item for item in items if item.client is client]
        kept = [item for item in items[count // 2 :] if item.client is client]
        assert usage(client, project) == {
            "backups": len(kept),
            "backup_gigabytes": len(kept),
            "volumes": 2 * len(mine),
            "gigabytes": 2 * len(mine),
        }
    # How near they came to their limits, and how many were killed, depends on how fast all this went.
    assert 1 < running.most <= LIMIT
    assert 1 <= running.most_of_one <= PROJECT_LIMIT
    assert killer.kills
    print(
        f"{count} backups took {backed_up:.0f} s ({kills} kills before they were done), with their restores"
        f" {restored:.0f} s ({killer.kills} kills in all); at most {running.most} tasks ran at once"
    )

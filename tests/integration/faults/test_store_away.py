"""A store that is away for longer than every timeout, with a backup, a restore and a delete in flight."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from backupfw.testing.proxy import FaultProxy
from tests.integration.content import MIB, change_image, same_content
from tests.integration.faults.world import Installation, Subject, installation, wait
from tests.servers.rabbitmq import RabbitMQ
from tests.servers.seaweedfs import SeaweedFS, seaweedfs, seaweedfs_missing

pytestmark = pytest.mark.server

#: Seconds; each is over before the store is back.
TIMEOUTS = {"connect_timeout": 1, "read_timeout": 1, "operation_timeout": 3, "retry_seconds": 2}
LEASE = 8
DOWN = 8
AWAY = 10
#: The pause before each answer while tasks shall stay in flight.
LATENCY = 0.3
WORKERS = ("w1", "w2", "w3")


class Store:
    """An S3 server and the way to it."""

    def __init__(self, server: SeaweedFS, proxy: FaultProxy) -> None:
        self.server = server
        self.proxy = proxy

    @contextmanager
    def hanging(self) -> Iterator[None]:
        """The server takes connections and requests, and does not answer."""
        self.server.freeze()
        try:
            yield
        finally:
            self.server.thaw()
            self.proxy.heal()

    @contextmanager
    def refusing(self) -> Iterator[None]:
        """Nothing listens any more; what was under way is cut."""
        self.proxy.refuse()
        self.server.stop()
        try:
            yield
        finally:
            self.server.start()
            self.proxy.heal()


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    if missing := seaweedfs_missing():
        pytest.skip(missing)
    with (
        seaweedfs(tmp_path_factory.mktemp("seaweedfs")) as server,
        FaultProxy("127.0.0.1", server.port) as proxy,
    ):
        yield Store(server, proxy)


@pytest.fixture(scope="module")
def running(
    store: Store,
    fresh_database: Callable[[], str],
    broker: RabbitMQ,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Installation]:
    """An installation whose workers run one task each, which has one attempt."""
    options: dict[str, dict[str, Any]] = {
        "DEFAULT": {"service_down_time": DOWN},
        "store:main": {
            "driver": "s3",
            "path": None,
            "endpoint": store.proxy.endpoint,
            "region": "us-east-1",
            "access_key_id": store.server.access_key,
            "secret_access_key": store.server.secret_key,
            "sorted_listing": "false",
            "bulk_delete_size": 1,
            "retry_tries": 2,
            "retry_budget": 4,
            **TIMEOUTS,
        },
        "backup": {"workers": 1, "max_attempts": 1, "lease_seconds": LEASE, "delete_retry_seconds": 2},
    }
    folder = tmp_path_factory.mktemp("away")
    with installation(folder, fresh_database(), broker.url, options) as made:
        start_workers(made)
        yield made


def start_workers(installed: Installation, **backup_options: Any) -> None:
    for name in WORKERS:
        installed.start_worker(name, options={"backup": backup_options}, wait=False)
    for worker in installed.workers.values():
        worker.wait_ready()


class Volumes:
    """What the tests work on: a volume to back up, one with backups, one to restore to."""

    def __init__(self, installed: Installation, folder: Path) -> None:
        self.source = Subject(installed, folder, 1)
        # Many segments, so that a delete has many objects to delete.
        self.other = Subject(installed, folder, 2, 16 * MIB)
        self.dirty = Subject(installed, folder, 3, 16 * MIB)
        self.seeds = itertools.count(4)


@pytest.fixture(scope="module")
def volumes(running: Installation, tmp_path_factory: pytest.TempPathFactory) -> Volumes:
    return Volumes(running, tmp_path_factory.mktemp("volumes"))


class InFlight:
    """A backup, a restore and a delete, each in the middle of its work with the store.

    :ivar made: the backup that is being made.
    :ivar restored, target: the backup that is being restored, and to which volume.
    :ivar doomed: the backup that is being deleted; it shares data with the one that is restored.
    """

    def __init__(self, installed: Installation, store: Store, volumes: Volumes) -> None:
        self.installed = installed
        self.volumes = volumes
        self.client = client = volumes.source.client
        self.target = volumes.dirty.volume
        self.doomed = client.backup(volumes.other.volume)
        change_image(volumes.other.image, next(volumes.seeds), changes=200)
        self.restored = client.backup(volumes.other.volume, incremental=True)
        installed.traps.forget_reached()
        store.proxy.latency = LATENCY
        self.made = client.backup(volumes.source.volume, wait=False)
        client.restore(self.restored, self.target, wait=False)
        client.expect(202, "DELETE", f"/backups/{self.doomed}")
        for point in ("backup.map-put", "restore.writing", "delete.some-deleted"):
            wait(f"{point} to be reached", lambda point=point: self._reached(point), installed.log_tail)

    def _reached(self, point: str) -> bool:
        return any(line.startswith(f"{point} ") for line in self.installed.traps.reached())

    def tasks(self) -> dict[str, Any]:
        """The unfinished tasks by kind."""
        return {row.kind: row for row in self.installed.rows("SELECT * FROM tasks")}

    def fail_reason(self, backup: str) -> str | None:
        shown = self.client.expect(200, "GET", f"/backups/{backup}")["backup"]
        return None if shown["fail_reason"] is None else str(shown["fail_reason"])


@pytest.mark.parametrize("how", [Store.hanging, Store.refusing], ids=["hangs", "refuses"])
def test_tasks_wait_for_it(
    how: Callable[[Store], Any], running: Installation, store: Store, volumes: Volumes
) -> None:
    """They go on when it is back, and its absence cost none of them an attempt."""
    flight = InFlight(running, store, volumes)
    client = flight.client
    with how(store):
        end = time.monotonic() + AWAY

        def given_back() -> bool:
            tasks = flight.tasks()
            assert sorted(tasks) == ["backup.create", "backup.delete", "backup.restore"], running.log_tail()
            return all(row.state == "queued" or row.attempt > 1 for row in tasks.values())

        wait("every task to be given back", given_back, running.log_tail)
        while time.monotonic() < end:
            time.sleep(0.2)
        assert [row.failures for row in flight.tasks().values()] == [0, 0, 0]
        assert client.status("backup", flight.made) == "creating"
        assert client.status("backup", flight.restored) == "restoring"
        assert client.status("backup", flight.doomed) == "deleting"
        services = client.expect(200, "GET", "/os-services")["services"]
        assert {one["host"]: one["state"] for one in services} == dict.fromkeys(WORKERS, "up")
    client.wait_status("backup", flight.made, "available")
    client.wait_status("volume", volumes.source.volume, "available")
    client.wait_status("backup", flight.restored, "available")
    client.wait_status("volume", flight.target, "available")
    client.wait_status("backup", flight.doomed, None)
    assert same_content(volumes.other.image, running.path_of(flight.target), volumes.other.length)
    volumes.source.assert_restores(flight.made)
    volumes.other.assert_restores(flight.restored)
    running.audit()


def test_it_stays_away(running: Installation, store: Store, volumes: Volumes) -> None:
    """After ``service_wait`` the tasks end with the reason; what is asked for later succeeds."""
    for worker in running.workers.values():
        worker.kill()
    start_workers(running, service_wait=3)
    flight = InFlight(running, store, volumes)
    client = flight.client
    with store.refusing():
        client.wait_status("backup", flight.made, "error")
        client.wait_status("volume", flight.target, "error_restoring")
        client.wait_status("backup", flight.doomed, "error_deleting")
        assert client.status("backup", flight.restored) == "available"
        assert client.status("volume", volumes.source.volume) == "available"
        for backup in (flight.made, flight.restored, flight.doomed):
            assert flight.fail_reason(backup) == "The store does not answer."
        told = {row.resource_uuid for row in running.rows("SELECT resource_uuid FROM messages")}
        assert told == {flight.made, flight.restored, flight.doomed}
    # By itself.
    client.wait_status("backup", flight.doomed, None)
    volumes.source.assert_restores(client.backup(volumes.source.volume))
    volumes.other.assert_restores(flight.restored)
    assert flight.fail_reason(flight.restored) is None
    client.delete_backup(flight.made)
    client.expect(202, "DELETE", f"/volumes/{flight.target}")
    client.wait_status("volume", flight.target, None)
    running.audit()

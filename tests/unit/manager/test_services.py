"""Services: heartbeats, who is up by the database's clock, enable and disable."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest

from backupfw.db import models
from backupfw.errors import InvalidInput
from backupfw.manager.queue.services import (
    BACKUP_BINARY,
    HostNotFound,
    HostUsage,
    ServiceManager,
    ServiceNotFound,
)
from tests.unit.manager.catalogue import ADMIN, BOB, Catalogue, make_conf, make_database


@pytest.fixture
def services() -> Iterator[ServiceManager]:
    db = make_database()
    yield ServiceManager(db, make_conf())
    db.close()


def age(services: ServiceManager, seconds: float) -> None:
    with services._db.write() as session:
        for row in session.query(models.Service):
            row.reported_at -= timedelta(seconds=seconds)


def test_a_process_that_reports_is_up_until_it_is_silent(services: ServiceManager) -> None:
    assert not services.backup_workers_alive()
    services.heartbeat("one", "cinder-backup", "nova", {"main": "x.y.Driver"})
    (service,) = services.list(ADMIN)
    assert (service.host, service.binary, service.availability_zone) == ("one", "cinder-backup", "nova")
    assert service.stores == {"main": "x.y.Driver"}
    assert (service.state, service.status, service.up) == ("up", "enabled", True)
    assert services.backup_workers_alive()
    age(services, 50)
    assert services.backup_workers_alive()
    age(services, 11)
    assert not services.backup_workers_alive()
    assert services.list(ADMIN)[0].state == "down"
    services.heartbeat("one", "cinder-backup", "east", {})
    (again,) = services.list(ADMIN)
    assert (again.id, again.state, again.availability_zone) == (service.id, "up", "east")
    assert again.created_at == service.created_at


def test_processes_of_one_host_are_one_service_that_can_do_what_each_can(services: ServiceManager) -> None:
    """However their reports come: none takes back what another one said, until that one is silent."""
    for _ in range(2):
        services.heartbeat("one", "cinder-backup", "nova", {"main": "x", "tape": "y"}, process="a")
        services.heartbeat(
            "one", "cinder-backup", "nova", {"main": "x"}, {"local": True, "fast": False}, process="b"
        )
        (service,) = services.list(ADMIN)
        assert (service.stores, service.backends) == (
            {"main": "x", "tape": "y"},
            {"local": True, "fast": False},
        )
    with services._db.write() as session:
        row = session.query(models.Service).one()
        moment = row.reported_at - timedelta(seconds=61)
        row.processes = {**(row.processes or {}), "b": {**row.processes["b"], "at": moment.isoformat()}}
    services.heartbeat("one", "cinder-backup", "nova", {"main": "x", "tape": "y"}, process="a")
    (service,) = services.list(ADMIN)
    assert (service.stores, service.backends) == ({"main": "x", "tape": "y"}, {"local": False})


@pytest.mark.parametrize("shared", [False, True])
def test_a_process_of_an_older_release_has_the_back_end_local(services: ServiceManager, shared: bool) -> None:
    """Alone, and beside a process of this release: its reports say nothing of back ends."""
    services.heartbeat("one", "cinder-backup", "nova", {"main": "x"}, process="old")
    with services._db.write() as session:
        row = session.query(models.Service).one()
        row.backends, row.every_volume = None, shared
        old = {name: value for name, value in row.processes["old"].items() if name != "backends"}
        row.processes = {"old": {**old, "every_volume": shared}}
    assert services.list(ADMIN)[0].backends == {"local": shared}
    services.heartbeat("one", "cinder-backup", "nova", {"main": "x"}, {"local": False, "fast": False}, "new")
    assert services.list(ADMIN)[0].backends == {"local": shared, "fast": False}


def test_a_service_is_down_when_the_last_of_its_processes_has_left(services: ServiceManager) -> None:
    services.heartbeat("one", "cinder-backup", "nova", {"main": "x"}, process="a")
    services.heartbeat("one", "cinder-backup", "nova", {"tape": "y"}, process="b")
    services.leave("one", "cinder-backup", "a")
    (service,) = services.list(ADMIN)
    assert (service.state, service.stores) == ("up", {"tape": "y"})
    services.leave("one", "cinder-backup", "b")
    services.leave("one", "cinder-backup", "b")
    services.leave("nobody", "cinder-backup", "b")
    (service,) = services.list(ADMIN)
    assert (service.state, service.stores) == ("down", {"tape": "y"})
    assert not services.backup_workers_alive()
    services.heartbeat("one", "cinder-backup", "nova", {"main": "x"}, process="c")
    assert services.backup_workers_alive()


def test_the_time_of_silence_is_configured(services: ServiceManager) -> None:
    services.heartbeat("one", "cinder-backup")
    age(services, 11)
    services._conf.set_override("service_down_time", 10)
    assert not services.backup_workers_alive()


def test_only_workers_count_as_workers(services: ServiceManager) -> None:
    services.heartbeat("one", "cinder-api")
    assert not services.backup_workers_alive()


def test_a_disabled_worker_does_not_count(services: ServiceManager) -> None:
    services.heartbeat("one", "cinder-backup")
    off = services.set_disabled(ADMIN, "one", "cinder-backup", disabled=True, reason="repair")
    assert (off.status, off.disabled_reason, off.state) == ("disabled", "repair", "up")
    assert not services.backup_workers_alive()
    services.heartbeat("one", "cinder-backup")
    assert services.list(ADMIN)[0].disabled
    services.heartbeat("two", "cinder-backup")
    assert services.backup_workers_alive()
    on = services.set_disabled(ADMIN, "one", "cinder-backup", disabled=False)
    assert (on.status, on.disabled_reason) == ("enabled", None)


def test_unknown_services_cannot_be_changed(services: ServiceManager) -> None:
    services.heartbeat("one", "cinder-backup")
    with pytest.raises(ServiceNotFound, match=r"^Service cinder-backup could not be found\.$"):
        services.set_disabled(ADMIN, "two", "cinder-backup", disabled=True)


def test_the_list_can_be_narrowed(services: ServiceManager) -> None:
    for host in ("b", "a"):
        for binary in ("cinder-backup", "cinder-api"):
            services.heartbeat(host, binary)

    def found(**filters: str) -> list[tuple[str, str]]:
        return [(service.host, service.binary) for service in services.list(ADMIN, **filters)]

    assert found() == [(host, binary) for host in "ab" for binary in ("cinder-api", "cinder-backup")]
    assert found(host="a") == [("a", "cinder-api"), ("a", "cinder-backup")]
    assert found(binary="cinder-api") == [("a", "cinder-api"), ("b", "cinder-api")]
    assert found(host="a", binary="cinder-api") == [("a", "cinder-api")]
    assert found(host="c") == []


def test_first_reports_may_race(tmp_path: Path) -> None:
    db = make_database(tmp_path)
    services = ServiceManager(db, make_conf())
    start = threading.Barrier(8)

    def report(_number: int) -> None:
        start.wait()
        services.heartbeat("one", "cinder-backup")

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(report, range(8)))
    assert len(services.list(ADMIN)) == 1
    db.close()


def test_a_hosts_name_also_means_what_is_behind_it(services: ServiceManager) -> None:
    for host in ("node", "node@vault", "node2", "nod%"):
        services.heartbeat(host, BACKUP_BINARY)
    assert [each.host for each in services.list(ADMIN, host="node")] == ["node", "node@vault"]
    assert [each.host for each in services.list(ADMIN, host="nod%")] == ["nod%"]
    # A change is of the one that is named.
    assert services.set_frozen(ADMIN, "node", frozen=True).host == "node"
    assert [each.frozen for each in services.list(ADMIN, host="node")] == [True, False]
    with pytest.raises(InvalidInput, match="Host nowhere could not be found"):
        services.set_frozen(ADMIN, "nowhere", frozen=True)


def test_what_is_on_a_host(services: ServiceManager) -> None:
    world = Catalogue(services._db, make_conf())
    services.heartbeat("node", BACKUP_BINARY)
    assert services.usage_of_host(ADMIN, "node") == {}
    world.volume(size=5)
    first, _ = world.volume(size=2, host="node"), world.volume(BOB, size=3, host="node")
    world.snapshot(first)
    assert services.usage_of_host(ADMIN, "node") == {
        "blue": HostUsage(1, 2, 1, 2),
        "green": HostUsage(1, 3, 0, 0),
    }
    with pytest.raises(HostNotFound):
        services.usage_of_host(ADMIN, "elsewhere")

"""Servers that several suites share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

import pytest

from tests.integration.traps import Traps
from tests.servers import databases
from tests.servers.databases import MariaDB, PostgreSQL
from tests.servers.directory import server_directory
from tests.servers.keystone import Keystone, keystone, keystone_missing
from tests.servers.rabbitmq import RabbitMQ, rabbitmq, rabbitmq_missing

Server = TypeVar("Server", PostgreSQL, MariaDB)


@pytest.fixture(scope="session")
def identity(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Keystone]:
    """A Keystone for everybody: make projects and users of your own in it."""
    reason = keystone_missing()
    if reason:
        pytest.skip(reason)
    with keystone(tmp_path_factory.mktemp("keystone")) as server:
        yield server


@pytest.fixture
def traps(tmp_path: Path) -> Traps:
    return Traps(tmp_path / "crash-points")


@pytest.fixture(scope="session")
def broker() -> Iterator[RabbitMQ]:
    if missing := rabbitmq_missing():
        pytest.skip(missing)
    with server_directory() as directory, rabbitmq(directory) as running:
        yield running


@pytest.fixture(scope="session")
def postgresql() -> Iterator[PostgreSQL]:
    if databases.postgresql_programs() is None:
        pytest.skip("PostgreSQL is not installed")
    with server_directory() as directory:
        yield from _running(PostgreSQL(directory))


@pytest.fixture(scope="session")
def mariadb() -> Iterator[MariaDB]:
    if not databases.mariadb_programs():
        pytest.skip("MariaDB is not installed")
    with server_directory() as directory:
        yield from _running(MariaDB(directory))


def _running(server: Server) -> Iterator[Server]:
    try:
        server.start()
        yield server
    finally:
        server.close()


@pytest.fixture(scope="session")
def database_server(request: pytest.FixtureRequest) -> PostgreSQL | MariaDB:
    """PostgreSQL, or the server that a test's parameter names."""
    server: PostgreSQL | MariaDB = request.getfixturevalue(getattr(request, "param", "postgresql"))
    return server

"""The servers that the fault suite breaks, shared by all its tests."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.integration.faults.world import Installation, installation
from tests.servers import databases
from tests.servers.databases import PostgreSQL
from tests.servers.rabbitmq import RabbitMQ, rabbitmq, rabbitmq_missing


@contextmanager
def server_directory() -> Iterator[Path]:
    """A directory that the servers' own user can reach; below pytest's it could not, see its mode."""
    with tempfile.TemporaryDirectory(prefix="backupfw-test-") as name:
        path = Path(name)
        path.chmod(0o755)
        yield path


@pytest.fixture(scope="session")
def broker() -> Iterator[RabbitMQ]:
    if missing := rabbitmq_missing():
        pytest.skip(missing)
    with server_directory() as directory, rabbitmq(directory) as running:
        yield running


@pytest.fixture(scope="session")
def database_server() -> Iterator[PostgreSQL]:
    if databases.postgresql_programs() is None:
        pytest.skip("PostgreSQL is not installed")
    with server_directory() as directory:
        server = PostgreSQL(directory)
        try:
            server.start()
            yield server
        finally:
            server.close()


@pytest.fixture(scope="session")
def fresh_database(database_server: PostgreSQL) -> Callable[[], str]:
    """Makes an empty database each time it is called, and returns its URL."""
    return database_server.create_database


@pytest.fixture
def installed(fresh_database: Callable[[], str], broker: RabbitMQ, tmp_path: Path) -> Iterator[Installation]:
    """An installation with its API and no worker."""
    with installation(tmp_path, fresh_database(), broker.url) as made:
        yield made

"""What the fault suite breaks, beside the servers that it shares with others."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.integration.faults.world import Installation, installation
from tests.servers.databases import MariaDB, PostgreSQL
from tests.servers.rabbitmq import RabbitMQ


@pytest.fixture(scope="session")
def fresh_database(database_server: PostgreSQL | MariaDB) -> Callable[[], str]:
    """Makes an empty database each time it is called, and returns its URL."""
    return database_server.create_database


@pytest.fixture
def installed(fresh_database: Callable[[], str], broker: RabbitMQ, tmp_path: Path) -> Iterator[Installation]:
    """An installation with its API and no worker."""
    with installation(tmp_path, fresh_database(), broker.url) as made:
        yield made

"""A Galera cluster of two nodes, with writes to both."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sqlalchemy.engine import make_url

from backupfw.db.session import Database
from tests.servers.balancer import Balancer
from tests.servers.databases import Galera, galera_programs
from tests.servers.directory import server_directory


@pytest.fixture(scope="session")
def cluster() -> Iterator[Galera]:
    """Two nodes that run; whoever breaks them mends them."""
    if not galera_programs():
        pytest.skip("MariaDB or Galera is not installed")
    with server_directory() as directory:
        running = Galera(directory)
        try:
            running.start()
            yield running
        finally:
            running.close()


@pytest.fixture
def balanced_url(cluster: Galera) -> Iterator[str]:
    """An empty database, whose connections go to both nodes in turn."""
    with Balancer(cluster.ports, cluster.is_ready) as before:
        url = make_url(cluster.create_database()[0]).set(port=before.port)
        yield url.render_as_string(hide_password=False)


@pytest.fixture
def any_db(balanced_url: str) -> Iterator[Database]:
    """The name by which the races of ``tests/unit`` know their database."""
    db = Database(balanced_url, max_pool_size=20, max_overflow=50)
    yield db
    db.close()


@pytest.fixture
def nodes(cluster: Galera) -> Iterator[list[Database]]:
    """One empty database, by each node."""
    opened = [Database(url) for url in cluster.create_database()]
    yield opened
    for db in opened:
        db.close()

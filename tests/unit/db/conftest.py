"""Databases to test on: SQLite always, PostgreSQL and MariaDB where they are installed.

``BACKUPFW_TEST_POSTGRESQL_URL`` and ``BACKUPFW_TEST_MARIADB_URL`` name empty databases to use instead of
servers started here.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from backupfw.db.session import Database
from tests.servers import databases
from tests.servers.directory import server_directory
from tests.unit.tables import remove_rows, remove_tables


@pytest.fixture(scope="session")
def postgresql_url() -> Iterator[str]:
    if url := os.environ.get("BACKUPFW_TEST_POSTGRESQL_URL"):
        yield url
    elif databases.postgresql_programs() is None:
        pytest.skip("PostgreSQL is not installed")
    else:
        with server_directory() as directory, databases.postgresql(directory) as url:
            yield url


@pytest.fixture(scope="session")
def mariadb_url() -> Iterator[str]:
    if url := os.environ.get("BACKUPFW_TEST_MARIADB_URL"):
        yield url
    elif not databases.mariadb_programs():
        pytest.skip("MariaDB is not installed")
    else:
        with server_directory() as directory, databases.mariadb(directory) as url:
            yield url


#: The parameters of a fixture that gives a database of each kind.
KINDS = (
    "sqlite",
    pytest.param("postgresql", marks=pytest.mark.server),
    pytest.param("mariadb", marks=pytest.mark.server),
)


@pytest.fixture(params=KINDS)
def db(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    """An empty database of each kind."""
    with opened(request, tmp_path) as database:
        remove_tables(database)
        yield database


@pytest.fixture(params=KINDS)
def any_db(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    """A database of each kind without rows, for tests that call ``create_tables``."""
    with opened(request, tmp_path) as database:
        remove_rows(database)
        yield database


@contextmanager
def opened(request: pytest.FixtureRequest, directory: Path) -> Iterator[Database]:
    """A database of the kind that a fixture's parameter names, as the test before has left it.

    :param directory: for a SQLite file.
    """
    if request.param == "sqlite":
        url = f"sqlite:///{directory}/db"
    else:
        url = request.getfixturevalue(f"{request.param}_url")
    database = Database(url)
    yield database
    database.close()

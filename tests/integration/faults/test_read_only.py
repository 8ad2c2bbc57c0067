"""A server that takes no changes for some seconds, as MariaDB's does when another one takes over."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from oslo_db.exception import DBConnectionError

from backupfw.db.installation import ensure_installation
from backupfw.db.session import Database
from tests.integration.faults.load import Load
from tests.integration.faults.world import Installation, installation
from tests.servers.databases import MariaDB

pytestmark = pytest.mark.server

#: How long the fail-over takes, seconds.
FAIL_OVER = 3


@pytest.fixture
def installed(mariadb: MariaDB, tmp_path: Path) -> Iterator[Installation]:
    """An installation on MariaDB with a worker."""
    (tmp_path / "installed").mkdir()
    with installation(tmp_path / "installed", mariadb.create_database(), None) as made:
        made.start_worker("one")
        yield made


def assert_refused(url: str) -> None:
    """The service's user may write nothing."""
    db = Database(url)
    try:
        with pytest.raises(DBConnectionError, match="1290"), db.write() as session:
            ensure_installation(session)
    finally:
        db.close()


def test_nothing_fails_for_it(mariadb: MariaDB, installed: Installation, tmp_path: Path) -> None:
    with Load(installed, tmp_path) as load:
        for _ in range(3):
            load.go_on(1)
            mariadb.set_read_only(True)
            try:
                assert_refused(installed.database)
                time.sleep(FAIL_OVER)
            finally:
                mariadb.set_read_only(False)
        load.go_on(1)

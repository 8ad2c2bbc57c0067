"""Several processes of one host name: none takes what another one is working on."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import column, select, table

from backupfw.cmd import configure, service
from backupfw.conf import load
from backupfw.db import migrate, models
from backupfw.db.session import Database
from backupfw.manager.queue import tasks
from backupfw.manager.queue.tasks import Tasks
from tests.unit.db.conftest import db, mariadb_url, postgresql_url
from tests.waiting import wait_until

__all__ = ["db", "mariadb_url", "postgresql_url"]

HOST = "here"


@pytest.fixture
def conf(db: Database, tmp_path: Path) -> Any:
    file = tmp_path / "backupfw.conf"
    file.write_text(
        f"""[DEFAULT]
state_dir = {tmp_path}
host = {HOST}
[api]
port = 0
auth_strategy = noauth
[database]
connection = {db.engine.url.render_as_string(hide_password=False)}
[store:main]
driver = posix
path = {tmp_path}/store
[volumes:local]
volumes_dir = {tmp_path}/volumes
"""
    )
    migrate.sync(db)
    return load.load(configure.plug_ins(), config_files=[str(file)]).conf


@pytest.fixture
def running(db: Database) -> int:
    """A task that another process of this host works on, or worked on until it was killed."""
    with db.write() as session:
        number = tasks.add(
            session, tasks.VOLUME_DELETE, resource_id="v", source_id=None, project_id="p", request_id=None
        )
    assert Tasks(db).claim(f"{HOST}/other", 3600) is not None
    return number


def lease(db: Database, number: int) -> tuple[Any, ...] | None:
    with db.read() as session:
        row = session.get(models.Task, number)
        return None if row is None else (row.owner, row.attempt, row.lease_until)


@pytest.mark.parametrize("start", [service.running_worker, service.EmbeddedService])
def test_a_process_leaves_alone_what_another_of_its_host_works_on(
    db: Database, conf: Any, running: int, start: Any
) -> None:
    """Containers of one host name, too: on a database server nobody can know that it is alone."""
    if start is service.EmbeddedService and db.backend == "sqlite":
        pytest.skip("declared: servers only")
    before = lease(db, running)
    started: AbstractContextManager[Any] = start(conf)
    with started:
        # A look into the queue ends after what is done at the start, and finds nothing.
        assert Tasks(db).claim(f"{HOST}/third", 60) is None
        assert lease(db, running) == before
    assert lease(db, running) == before


@pytest.mark.parametrize("db", ["sqlite"], indirect=True)
def test_the_one_process_of_a_state_directory_goes_on_at_once(db: Database, conf: Any, running: int) -> None:
    before = lease(db, running)
    with service.EmbeddedService(conf):
        wait_until("another lease", lambda: lease(db, running) != before)


@pytest.mark.parametrize("db", ["sqlite"], indirect=True)
@pytest.mark.parametrize("start", [service.running_worker, service.api_application, service.EmbeddedService])
def test_every_process_that_serves_has_statistics_of_a_sqlite_file(
    db: Database, conf: Any, running: int, start: Any
) -> None:
    started: AbstractContextManager[Any] = start(conf)
    with started, db.read() as session:
        tables = session.scalars(select(column("tbl")).select_from(table("sqlite_stat1"))).all()
        assert "tasks" in tables

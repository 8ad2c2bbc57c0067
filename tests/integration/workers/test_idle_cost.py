"""What an idle worker costs its database: at most one statement per second, everything included."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from sqlalchemy import event

from backupfw.cmd import configure, service
from backupfw.cmd.meters import Meters
from backupfw.conf import load
from backupfw.db import migrate
from backupfw.db.session import Database
from backupfw.manager.queue.outbox import Outbox
from tests.unit.db.conftest import db, mariadb_url, postgresql_url

__all__ = ["db", "mariadb_url", "postgresql_url"]

#: Everything a worker does by the clock is done this much more often here.
FASTER = 10
SECONDS = 6.0
TRIES = 5


@pytest.mark.server
@pytest.mark.parametrize("db", ["postgresql"], indirect=True)
def test_an_idle_worker(db: Database, tmp_path: Path) -> None:
    """Polls, heartbeats, looks for expired tasks, and the pings of the connection pool."""
    file = tmp_path / "backupfw.conf"
    file.write_text(
        f"""[DEFAULT]
state_dir = {tmp_path}
[database]
connection = {db.engine.url.render_as_string(hide_password=False)}
[store:main]
driver = posix
path = {tmp_path}/store
[volumes:local]
volumes_dir = {tmp_path}/volumes
"""
    )
    conf = load.load(configure.plug_ins(), config_files=[str(file)]).conf
    # The other options are what an operator gets who sets none.
    conf.set_override("poll_seconds", conf.backup.poll_seconds / FASTER, "backup")
    conf.set_override("service_wait", conf.backup.service_wait / FASTER, "backup")
    conf.set_override("service_down_time", conf.service_down_time / FASTER)
    migrate.sync(db)
    dispatch = service.make_dispatch(conf, listens=True)
    worker = service.WorkerProcess(conf, db, dispatch, alone=False, meters=Meters(db), outbox=Outbox(db))
    count = 0

    def note(*_: object) -> None:
        nonlocal count
        count += 1

    ping = db.engine.dialect.do_ping

    def counted_ping(connection: object) -> bool:
        note()
        return ping(connection)  # type: ignore[arg-type]

    worker.start()
    event.listen(db.engine, "before_cursor_execute", note)
    db.engine.dialect.do_ping = counted_ping  # type: ignore[method-assign]
    try:
        # The start costs more, once, and it may last on a busy machine.
        for _ in range(TRIES):
            count, begin = 0, time.monotonic()
            time.sleep(SECONDS)
            seen, passed = count, time.monotonic() - begin
            if seen <= passed * FASTER:
                break
    finally:
        worker.close()
        dispatch.close()
    assert seen <= passed * FASTER, f"{seen} statements in what stands for {passed * FASTER} s"
    assert seen >= SECONDS, "the worker does not look at all"

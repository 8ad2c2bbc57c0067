"""What the console reads, and what workers record for it, on all databases."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from sqlalchemy import insert, select, update

from backupfw.context import RequestContext
from backupfw.db import models
from backupfw.db.session import Database, now
from backupfw.manager.queue import tasks
from backupfw.manager.usecases import stores
from backupfw.manager.usecases.overview import Overview
from backupfw.manager.usecases.sessions import SessionManager
from backupfw.manager.usecases.stores import StoreManager
from tests.unit.db.conftest import any_db as db
from tests.unit.manager.support import make_conf
from tests.unit.tables import create_tables

__all__ = ["db"]

ADMIN = RequestContext("demo", "root", ["admin"], is_admin=True)
USER = RequestContext("demo", "alice", ["reader"])


def _conf() -> Any:
    """Return a configuration with limits of running tasks."""
    conf = make_conf()
    conf.backup.max_running = conf.backup.max_running_per_project = 5
    for name in conf.enabled_stores:
        conf[f"store:{name}"].max_running = 5
    return conf


def _fill(db: Database) -> None:
    with db.write() as session:
        common = {"project_id": "demo", "volume_id": "v", "created_at": now(session)}
        manifest = {"id": "m", "store": "main", "container": "c", "key": "k", "key_digest": "d"}
        manifest |= {"installation_id": "i", "backup_id": "b", "state": "live", "block_size": 1}
        session.execute(
            insert(models.Manifest), [{**common, **manifest, "segment_size": 1, "hash_mode": "blake3"}]
        )
        backup = {"id": "b", "status": "available", "size": 1, "length": 7, "manifest_id": "m"}
        counts = {"object_count": 2, "stored_bytes": 1 << 40, "referenced_bytes": 1 << 41}
        session.execute(insert(models.Backup), [{**common, **backup, **counts}])
        for kind, resource in ((tasks.BACKUP_DELETE, "b"), (tasks.BACKUP_COPY, "m")):
            session.execute(
                insert(models.Task),
                [
                    {
                        "kind": kind, "resource_id": resource, "project_id": "demo", "payload": {},
                        "state": "queued", "queue_position": 1, "created_at": common["created_at"],
                    }
                ],
            )  # fmt: skip


def test_what_runs_is_read(db: Database) -> None:
    create_tables(db)
    _fill(db)
    for who in (ADMIN, USER):
        work = Overview(db, _conf()).work(who)
        assert [(one.backup_id, one.volume_id, one.waits_for) for one in work.operations] == [
            ("b", "v", "waiting-for-worker"),
            ("b", "v", "waiting-for-worker"),
        ]
        assert (work.operations[0].total, work.operations[1].total) == (None, 7)


def test_what_stores_hold_is_recorded(db: Database) -> None:
    create_tables(db)
    _fill(db)
    manager, row = StoreManager(db, _conf()), models.StoreUsage
    assert manager.record()
    assert not manager.record()
    with db.write() as session:
        session.execute(update(row).values(recorded_at=now(session) - stores.EVERY))
    assert manager.record()
    with db.read() as session:
        found = session.scalars(select(row).order_by(row.store, row.project_id)).all()
        assert [(one.store, one.project_id, one.bytes) for one in found] == [
            ("main", "", 1 << 41),
            ("main", "demo", 1 << 41),
            ("offsite", "", 0),
        ]


def test_sessions_are_found_until_they_end(db: Database) -> None:
    create_tables(db)
    manager, row = SessionManager(db), models.ConsoleSession
    manager.begin("digest", b"sealed")
    assert manager.find("digest", uses=False) == b"sealed"
    assert manager.find("other", uses=False) is None
    with db.write() as session:
        session.execute(update(row).values(used_at=now(session) - timedelta(minutes=14)))
    assert manager.find("digest", uses=True) == b"sealed"
    with db.write() as session:
        session.execute(update(row).values(used_at=now(session) - timedelta(minutes=14)))
    assert manager.find("digest", uses=True) == b"sealed", "it was prolonged"
    with db.write() as session:
        session.execute(update(row).values(used_at=now(session) - timedelta(minutes=16)))
    assert manager.find("digest", uses=True) is None

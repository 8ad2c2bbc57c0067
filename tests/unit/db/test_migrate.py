"""The migrations make the models' schema, once, on every database."""

from __future__ import annotations

import threading
import uuid

import pytest
from sqlalchemy import text

from backupfw.db import migrate, models
from backupfw.db.installation import installation_id
from backupfw.db.session import Database
from backupfw.errors import ConfigError


def test_migrated_tables_are_the_models(db: Database) -> None:
    migrate.sync(db)
    assert migrate.differences(db) == []
    migrate.check(db)


def test_a_difference_is_seen(db: Database) -> None:
    migrate.sync(db)
    with db.engine.begin() as connection:
        connection.execute(text("DROP TABLE damaged_objects"))
    assert migrate.differences(db) != []


def test_sync_is_idempotent_and_keeps_the_installation(db: Database) -> None:
    with pytest.raises(ConfigError, match="db sync"):
        migrate.check(db)
    assert migrate.version(db) is None
    first = migrate.sync(db)
    assert uuid.UUID(first)
    assert migrate.sync(db) == first
    assert migrate.sync(db, first) == first
    with db.read() as session:
        assert installation_id(session) == first
    with pytest.raises(ConfigError, match="installation_id"):
        migrate.sync(db, str(uuid.uuid4()))


def test_an_installation_can_be_named(db: Database) -> None:
    wanted = str(uuid.uuid4())
    assert migrate.sync(db, wanted) == wanted


def test_many_may_sync_at_the_same_time(db: Database) -> None:
    results: list[str] = []
    threads = [threading.Thread(target=lambda: results.append(migrate.sync(db))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 4
    assert len(set(results)) == 1


def test_a_newer_database_is_refused(db: Database) -> None:
    migrate.sync(db)
    with db.engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(ConfigError, match="newer"):
        migrate.sync(db)
    with pytest.raises(ConfigError, match="9999"):
        migrate.check(db)


def test_a_database_without_an_installation_says_what_to_run(db: Database) -> None:
    models.Base.metadata.create_all(db.engine)
    with db.read() as session, pytest.raises(ConfigError, match="db sync"):
        installation_id(session)

"""The migrations make the models' schema, once, on every database."""

from __future__ import annotations

import contextlib
import threading
import uuid
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from typing import Any
from unittest import mock

import pytest
from alembic import command
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, MetaData, Table, delete, event, select, text

from backupfw.db import installation, migrate, models
from backupfw.db.installation import installation_id
from backupfw.db.session import Database, now
from backupfw.errors import ConfigError


def test_migrated_tables_are_the_models(db: Database) -> None:
    migrate.sync(db)
    assert migrate.differences(db) == []
    migrate.check(db)


def test_a_difference_is_seen(db: Database) -> None:
    migrate.sync(db)
    with db.engine.begin() as connection:
        connection.execute(text("DROP TABLE damage_marks"))
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


def test_two_first_starts_at_once_make_one_installation(
    db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both have looked before one of them enters it."""
    migrate.sync(db)
    with db.write() as session:
        session.execute(delete(models.Installation))
    both = threading.Barrier(2)

    def looked(session: Any) -> datetime:
        # A file of SQLite lets one in after the other.
        with contextlib.suppress(threading.BrokenBarrierError):
            both.wait(5)
        return now(session)

    monkeypatch.setattr(installation, "now", looked)
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(lambda _: migrate.sync(db), range(2))
    assert first == second


def test_a_newer_database_is_refused(db: Database) -> None:
    migrate.sync(db)
    with db.engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(ConfigError, match="newer"):
        migrate.sync(db)
    with pytest.raises(ConfigError, match=r"9999.*newer"):
        migrate.check(db)


@pytest.mark.parametrize("db", [pytest.param("mariadb", marks=pytest.mark.server)], indirect=True)
def test_a_migration_that_fails_keeps_nobody_else_waiting(
    db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = Database(db.engine.url.render_as_string(hide_password=False))
    try:
        with monkeypatch.context() as failing:
            failing.setattr(command, "upgrade", mock.Mock(side_effect=RuntimeError("no room")))
            with pytest.raises(RuntimeError, match="no room"):
                migrate.sync(db)
        monkeypatch.setattr(migrate, "_LOCK_SECONDS", 0)
        migrate.sync(other)
        migrate.check(other)
        with other.engine.connect() as connection:
            connection.execute(text("SELECT GET_LOCK(:name, 0)"), {"name": migrate._MYSQL_LOCK})
            with pytest.raises(ConfigError, match="another process"):
                migrate.sync(db)
            connection.invalidate()
    finally:
        other.close()


def test_a_database_without_an_installation_says_what_to_run(db: Database) -> None:
    models.Base.metadata.create_all(db.engine)
    with db.read() as session, pytest.raises(ConfigError, match="db sync"):
        installation_id(session)


def test_words_that_volumes_carried_become_types(db: Database) -> None:
    with db.engine.begin() as connection:
        command.upgrade(migrate._config(connection), "0007")
    shown_before = "eac1f18c-1930-5607-b0ed-f79e8ce86d7d"
    words = {"a": "gold", "b": " gold", "c": None, "d": "", "e": "__DEFAULT__", "f": shown_before, "g": "tin"}
    with db.engine.begin() as connection:
        volumes = _tables(connection).tables["volumes"]
        for name, word in words.items():
            row = _row(volumes) | {"id": name, "volume_type": word, "deleted": name == "g"}
            connection.execute(volumes.insert(), row)
    migrate.sync(db)
    with db.read() as session:
        kinds = {row.name: row for row in session.scalars(select(models.VolumeType))}
        found = dict(session.execute(select(models.Volume.id, models.Volume.volume_type)).all())
    # Backups of a volume that was deleted are restored to one of its type.
    assert kinds.keys() == {"__DEFAULT__", "gold", "tin"}
    assert kinds["__DEFAULT__"].id == shown_before
    assert all(kind.is_public for kind in kinds.values())
    default = "__DEFAULT__"
    assert found == {
        "a": "gold", "b": "gold", "c": None, "d": None, "e": default, "f": default, "g": "tin",
    }  # fmt: skip


def test_what_was_there_before_back_ends_had_names_is_in_local(db: Database) -> None:
    with db.engine.begin() as connection:
        command.upgrade(migrate._config(connection), "0013")
    with db.engine.begin() as connection:
        known = _tables(connection)
        _fill(connection, known, _with_rows(connection, known))
    migrate.sync(db)
    with db.read() as session:
        assert session.scalars(select(models.Volume.backend)).all() == ["local"]
        assert session.scalars(select(models.Task.backend)).all() == [None]
        assert session.scalars(select(models.Service.backends)).all() == [None]


def test_a_storage_that_was_distrusted_still_is(db: Database) -> None:
    with db.engine.begin() as connection:
        command.upgrade(migrate._config(connection), "0015")
    with db.engine.begin() as connection:
        volumes = _tables(connection).tables["volumes"]
        connection.execute(volumes.insert(), _row(volumes))
    migrate.sync(db)
    with db.write() as session:
        volume = session.scalars(select(models.Volume)).one()
        assert volume.changes_distrusted_at == _value(volumes, "changes_distrusted_at")
        assert volume.changes_trusted_at is None
        volume.changes_trusted_at = moment = now(session)
    with db.read() as session:
        # To the microsecond: it is compared with the times of backups.
        assert session.scalars(select(models.Volume.changes_trusted_at)).one() == moment


def test_ids_of_tasks_and_events_do_not_end_with_32_bits(db: Database) -> None:
    """In a database of the release before, in which rows are."""
    with db.engine.begin() as connection:
        command.upgrade(migrate._config(connection), "0012")
    drawn = ("tasks", "notices")
    with db.engine.begin() as connection:
        known = _tables(connection)
        for name in drawn:
            connection.execute(known.tables[name].insert(), _row(known.tables[name]) | {"id": (1 << 31) - 1})
            if db.backend == "postgresql":
                connection.execute(text(f"SELECT setval('{name}_id_seq', {(1 << 31) - 1})"))
    migrate.sync(db)
    with db.engine.begin() as connection:
        for name in drawn:
            table = known.tables[name]
            row = _row(table)
            del row["id"]
            connection.execute(table.insert(), row)
            ids = connection.scalars(select(table.c.id).order_by(table.c.id)).all()
            assert ids == [(1 << 31) - 1, 1 << 31]


def test_a_manifest_that_went_before_its_time_was_noted_counts_from_the_migration(db: Database) -> None:
    with db.engine.begin() as connection:
        command.upgrade(migrate._config(connection), "0012")
    with db.engine.begin() as connection:
        manifests = _tables(connection).tables["manifests"]
        for state in ("gone", "live"):
            row = _row(manifests) | {"id": state, "state": state, "base_id": None, "key_digest": state}
            connection.execute(manifests.insert(), row)
    migrate.sync(db)
    with db.read() as session:
        found = {row.id: row.updated_at for row in session.scalars(select(models.Manifest))}
        assert found["gone"] > now(session)
    assert found["live"] == _value(manifests, "updated_at")


def test_a_verification_of_before_the_first_scrub_counts_as_a_proof(db: Database) -> None:
    with db.engine.begin() as connection:
        command.upgrade(migrate._config(connection), "0024")
    with db.engine.begin() as connection:
        known = _tables(connection).tables
        for manifest in ("verified", "other"):
            row = _row(known["manifests"]) | {"id": manifest, "base_id": None, "key_digest": manifest}
            connection.execute(known["manifests"].insert(), row)
        for number, moment in enumerate((datetime(2026, 1, 1), datetime(2026, 2, 1), None)):
            row = _row(known["backups"]) | {"id": str(number), "manifest_id": "verified"}
            connection.execute(known["backups"].insert(), row | {"fully_verified_at": moment})
    migrate.sync(db)
    with db.read() as session:
        found = {row.id: row.fully_verified_at for row in session.scalars(select(models.Manifest))}
    assert found == {"verified": datetime(2026, 2, 1), "other": None}


@pytest.mark.parametrize("db", [pytest.param("postgresql", marks=pytest.mark.server)], indirect=True)
@pytest.mark.parametrize("tables", [("tasks", "backups"), ("backups", "tasks")])
def test_a_transaction_that_runs_meanwhile_ends_no_migration(db: Database, tables: tuple[str, str]) -> None:
    """It holds one table, and asks for another one when the migration waits for it."""
    with db.engine.begin() as connection:
        command.upgrade(migrate._config(connection), "0010")
    waits = text("SELECT count(*) FROM pg_locks WHERE NOT granted AND locktype = 'relation'")
    holds, over = threading.Event(), threading.Event()

    def work(session: Any) -> None:
        session.execute(text(f"UPDATE {tables[0]} SET id = id"))
        holds.set()
        with db.engine.connect() as other:
            while not other.scalar(waits) and not over.wait(0.05):
                other.rollback()
        session.execute(text(f"UPDATE {tables[1]} SET id = id"))

    with ThreadPoolExecutor(1) as pool:
        worker = pool.submit(db.run, work)
        try:
            assert holds.wait(60)
            migrate.sync(db)
        finally:
            over.set()
        worker.result()
    assert migrate.version(db) == migrate.head()


class _Clock:
    """Stands for the module ``time``: time passes when somebody sleeps."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def monotonic(self) -> float:
        return self.seconds

    def sleep(self, seconds: float) -> None:
        self.seconds += seconds


@pytest.mark.parametrize("db", [pytest.param("mariadb", marks=pytest.mark.server)], indirect=True)
@pytest.mark.parametrize("dead", [False, True])
def test_a_holder_is_followed_that_is_dead_but_not_one_whose_cluster_waits(
    db: Database, dead: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A change of a table that takes a minute lets neither the holder's beat nor a look through."""
    clock, looks = _Clock(), 0
    monkeypatch.setattr(migrate, "time", clock)
    migrate._HOLDER.create(db.engine)
    let_go_at = 100.0
    with db.write() as session:
        session.execute(migrate._HOLDER.insert().values(id=1, holder="other", beat=7))

    def look(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        nonlocal looks
        if statement.startswith("INSERT IGNORE"):
            looks += 1
            # Not the first look: that one has nothing to compare with.
            clock.seconds += 60 if looks == 2 else 0

    def sleep(seconds: float) -> None:
        clock.seconds += seconds
        if not dead:
            with db.write() as session:
                session.execute(migrate._changed("other"))
                if clock.seconds > let_go_at:
                    session.execute(migrate._HOLDER.update().values(holder=None))

    monkeypatch.setattr(clock, "sleep", sleep)
    event.listen(db.engine, "before_cursor_execute", look)
    migrate._wait_for_holder(db, "me")
    if dead:
        assert 60 + migrate._STILL_SECONDS < clock.seconds < let_go_at
    else:
        assert clock.seconds > let_go_at


def _earlier() -> list[str]:
    """All revisions before the newest, the oldest first."""
    scripts = ScriptDirectory.from_config(migrate._config()).walk_revisions()
    return [script.revision for script in scripts][:0:-1]


def _value(table: Table, name: str, number: int = 1) -> Any:
    """A value that fits a column; the same wherever a key points to."""
    column = table.columns[name]
    python = column.type.python_type
    if column.foreign_keys or name == "id":
        return number if python is int else str(number)
    if python is datetime:
        return datetime(2026, 1, 31, 12, 30)
    if python is dict:
        return {"a": number}
    # A text that is JSON as well: MariaDB knows no other type for it.
    return {int: number, bool: False, bytes: b"%d" % number}.get(python, str(number))


def _row(table: Table, number: int = 1) -> dict[str, Any]:
    """A value for every column; no other number has the same row."""
    return {column.name: _value(table, column.name, number) for column in table.columns}


def _tables(connection: Connection) -> MetaData:
    metadata = MetaData()
    metadata.reflect(connection)
    return metadata


def _with_rows(connection: Connection, metadata: MetaData) -> set[str]:
    """Return which tables have rows: a migration has put them there, as long as nobody else writes."""
    return {table.name for table in metadata.sorted_tables if connection.execute(select(table)).first()}


def _fill(
    connection: Connection, metadata: MetaData, seeded: set[str], number: int = 1
) -> dict[str, dict[str, Any]]:
    """Put a row into every other table than those; returns them by table."""
    rows = {}
    for table in metadata.sorted_tables:
        if table.name in seeded:
            continue
        row = _row(table, number)
        for key in table.foreign_keys:
            if key.column.table.name in seeded:
                row[key.parent.name] = connection.execute(select(key.column)).scalar()
        connection.execute(table.insert(), row)
        rows[table.name] = row
    return rows


def _rows(connection: Connection, metadata: MetaData) -> dict[str, list[dict[str, Any]]]:
    """Return all rows by table, as somebody reads them who knows the tables so."""
    return {
        table.name: [dict(row) for row in connection.execute(select(table)).mappings()]
        for table in metadata.sorted_tables
        if table.name != "alembic_version"
    }


class _KilledError(BaseException):
    """The process is gone."""


@pytest.mark.parametrize("db", [pytest.param("mariadb", marks=pytest.mark.server)], indirect=True)
def test_a_migration_that_is_killed_after_any_statement_can_be_repeated(db: Database) -> None:
    """Where changes of tables are no part of a transaction: each is made, whatever becomes of the rest."""
    done: set[tuple[str, str]] = set()

    def die(_connection: Any, _cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        kind = statement.split(maxsplit=1)[0].upper()
        step = (statement, str(parameters) if kind == "UPDATE" else "")
        if kind in ("CREATE", "ALTER", "DROP", "INSERT", "UPDATE") and step not in done:
            done.add(step)
            raise _KilledError

    event.listen(db.engine, "after_cursor_execute", die)
    kills, filled = -1, 0
    while len(done) != kills:
        kills = len(done)
        with contextlib.suppress(_KilledError):
            migrate._upgrade(db)
        # With its connections the lock goes.
        db.engine.dispose()
        if not filled and migrate.version(db) == _earlier()[0]:
            filled = kills
            with db.engine.begin() as connection:
                known = _tables(connection)
                event.remove(db.engine, "after_cursor_execute", die)
                _fill(connection, known, _with_rows(connection, known))
            event.listen(db.engine, "after_cursor_execute", die)
    assert 20 < filled < kills - 20
    assert migrate.differences(db) == []
    assert migrate.version(db) == migrate.head()


@pytest.mark.check
def test_up_from_every_earlier_revision_with_data_in_it(db: Database) -> None:
    """And processes of that release, which know the tables as they were, go on reading and writing."""
    releases: list[MetaData] = []
    seeded: set[str] = set()
    written: list[dict[str, list[dict[str, Any]]]] = []
    for number, revision in enumerate(_earlier(), 1):
        with db.engine.begin() as connection:
            command.upgrade(migrate._config(connection), revision)
        assert migrate.version(db) == revision
        with db.engine.begin() as connection:
            known = _tables(connection)
            seeded |= _with_rows(connection, known) - {name for one in releases for name in one.tables}
            _fill(connection, known, seeded, number)
            written.append(_rows(connection, known))
        releases.append(known)
    assert len(written[-1]["backups"]) == len(releases)
    migrate.sync(db)
    assert migrate.differences(db) == []
    for number, (known, before) in enumerate(zip(releases, written, strict=True), len(releases) + 1):
        with db.engine.begin() as connection:
            # Every row is still there, with the values that it had.
            for name, rows in _rows(connection, known).items():
                assert [row for row in before[name] if row not in rows] == [], name
            new = _fill(connection, known, seeded, number)
            for name, rows in _rows(connection, known).items():
                assert name in seeded or new[name] in rows, name

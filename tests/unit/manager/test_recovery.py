"""What was found in a store is entered on every kind of database, once, and by one of two runs at a time."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from oslo_db.exception import DBDuplicateEntry
from sqlalchemy import select

from backupfw.db import models
from backupfw.db.installation import ensure_installation, installation_id
from backupfw.db.session import Database
from backupfw.errors import InvalidInput
from backupfw.manager.operators import recovery
from backupfw.manager.operators.recovery import ENTERED, KNOWN, Found
from backupfw.manager.rules.found_manifests import ManifestFacts
from tests.unit.tables import create_tables

OLD = "00000000-0000-4000-8000-00000000000a"
VOLUME = "00000000-0000-4000-8000-0000000000ff"


@pytest.fixture
def db(any_db: Database) -> Database:
    create_tables(any_db)
    any_db.run(ensure_installation)
    return any_db


def backup_id(number: int) -> str:
    return f"00000000-0000-4000-8000-{number:012d}"


def key(number: int, attempt: int = 1) -> str:
    return f"{OLD}/demo/{VOLUME}/{backup_id(number)}/1.{attempt}-{number:016x}/manifest"


def found(number: int, base: int | None = None, attempt: int = 1, **more: Any) -> Found:
    facts = ManifestFacts(
        store="main", service="s", container="box", key=key(number, attempt), installation_id=OLD,
        project_id="demo", volume_id=VOLUME, backup_id=backup_id(number), epoch=1, length=5 << 30,
        block_size=65536, segment_size=1 << 28, hash_mode="blake3", key_id=None, mac_id=None, object_count=3,
        stored_bytes=4, referenced_bytes=5,
    )  # fmt: skip
    values = {"base": None if base is None else key(base), "detached": False, **more}
    return Found(facts, attempt, **values)


def texts(one: Found) -> dict[str, Any]:
    number = int(one.facts.backup_id[-12:])
    parent = {"parent_id": backup_id(number - 1)} if number else {}
    return {"name": f"näme {number}", "metadata": {"ключ": "значение"}, **parent}


def enter(db: Database, *volume: Found, dry_run: bool = False) -> list[str]:
    return [one.result for one in recovery.enter(db, volume, texts, OLD, dry_run=dry_run)]


def rows(db: Database, model: Any) -> dict[str, Any]:
    with db.read() as session:
        return {row.id: row for row in session.scalars(select(model))}


def test_backups_are_entered_once(db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recovery, "BATCH", 2)
    recovery.take_over(db, OLD)
    recovery.take_over(db, OLD)
    volume = [found(0), found(1, 0), found(2, 1), found(3, problem="x" * 400), found(4, detached=True)]
    assert enter(db, *volume, dry_run=True) == [ENTERED] * 5
    assert rows(db, models.Backup) == rows(db, models.Manifest) == {}
    assert enter(db, *volume) == [ENTERED] * 5
    assert enter(db, *volume) == [KNOWN] * 5
    backups, manifests = rows(db, models.Backup), rows(db, models.Manifest)
    assert [backups[backup_id(number)].status for number in range(5)] == [
        *["available"] * 3,
        "error",
        "available",
    ]
    assert len(backups[backup_id(3)].fail_reason) == 255
    for number in (1, 2):
        backup = backups[backup_id(number)]
        assert (backup.display_name, backup.size, backup.parent_id) == (
            f"näme {number}",
            5,
            backup_id(number - 1),
        )
        base = manifests[manifests[backup.manifest_id].base_id]
        assert base.key == key(number - 1)
        assert base.touched > 0, "a release of it cannot win at the same time"
    with db.read() as session:
        pairs = session.execute(select(models.BackupMetadata.key, models.BackupMetadata.value)).all()
    assert [tuple(pair) for pair in pairs] == [("ключ", "значение")] * 5


def test_a_base_that_is_released_meanwhile_is_no_neighbour(
    db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recovery, "BATCH", 1)
    recovery.take_over(db, OLD)
    entering = recovery.enter(db, [found(0), found(1, 0)], texts, OLD)
    next(entering)
    with db.write() as session:
        session.scalars(select(models.Manifest)).one().state = "released"
    next(entering)
    (child,) = [row for row in rows(db, models.Manifest).values() if row.key == key(1)]
    assert (child.base_id, child.detached) == (None, True)


def test_a_volume_that_the_database_knows_has_no_exact_lineage(db: Database) -> None:
    recovery.take_over(db, OLD)
    assert enter(db, found(0)) == [ENTERED]
    assert enter(db, found(1, 0)) == [ENTERED]
    states = {row.key: (row.base_id, row.detached) for row in rows(db, models.Manifest).values()}
    assert states == {key(0): (None, False), key(1): (None, True)}


def test_the_later_of_two_manifests_has_the_id(db: Database) -> None:
    recovery.take_over(db, OLD)
    early, late, broken = (
        found(0, attempt=1),
        found(0, attempt=2),
        found(0, attempt=3, problem="it is damaged"),
    )
    done = list(recovery.enter(db, [early, broken, late], texts, OLD))
    ids = {one.found.attempt: one.backup_id for one in done}
    assert ids[2] == backup_id(0)
    assert len(set(ids.values())) == 3
    assert [one.is_other for one in done] == [True, True, False]


def test_two_runs_at_a_time_enter_each_once(db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recovery, "BATCH", 1)
    recovery.take_over(db, OLD)
    volume = [found(0), *(found(number, number - 1) for number in range(1, 6))]

    def one(_number: int) -> int:
        try:
            return enter(db, *volume).count(ENTERED)
        except Exception:
            return -1

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(one, range(2)))
    enter(db, *volume)
    assert enter(db, *volume) == [KNOWN] * 6
    assert set(rows(db, models.Backup)) == {backup_id(number) for number in range(6)}
    assert len(rows(db, models.Manifest)) == 6


def test_a_run_on_another_store_may_be_in_the_way_more_than_once(
    db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It enters the same backups in batches of its own, each of which may be the faster one."""
    real, tries = recovery._enter, iter(range(3))

    def enter_late(*arguments: Any) -> Any:
        if next(tries, None) is not None:
            raise DBDuplicateEntry
        return real(*arguments)

    monkeypatch.setattr(recovery, "_enter", enter_late)
    recovery.take_over(db, OLD)
    assert enter(db, found(0), found(1, 0)) == [ENTERED] * 2


def test_a_database_with_backups_of_its_own_takes_nothing_over(db: Database) -> None:
    with db.read() as session:
        own = installation_id(session)
    references = list(recovery.enter(db, [found(0)], texts, own))
    assert [one.result for one in references] == [ENTERED]
    (row,) = rows(db, models.Manifest).values()
    assert (row.in_tree, row.detached) == (False, False)
    recovery.take_over(db, OLD)
    (row,) = rows(db, models.Manifest).values()
    assert (row.in_tree, row.detached) == (True, True)
    with pytest.raises(InvalidInput, match="has backups of its own installation"):
        recovery.take_over(db, own)

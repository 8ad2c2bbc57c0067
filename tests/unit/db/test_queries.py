"""Pages: every order is total, no row is lost or doubled, NULL is the smallest, on every database."""

from __future__ import annotations

import random
import uuid
from datetime import datetime, timedelta

import pytest

from backupfw.db import models, queries
from backupfw.db.session import Database
from backupfw.errors import InvalidInput, MarkerNotFound
from tests.unit.db.conftest import any_db as db
from tests.unit.tables import create_tables

__all__ = ["db"]

START = datetime(2026, 1, 1)


def fill(db: Database, number: int, seed: int = 1) -> list[models.Backup]:
    """Enter backups with many equal and many missing values."""
    create_tables(db)
    chance = random.Random(seed)
    with db.write() as session:
        for _ in range(number):
            session.add(
                models.Backup(
                    id=str(uuid.UUID(int=chance.getrandbits(128))),
                    project_id=chance.choice(["p1", "p2"]),
                    volume_id=str(uuid.UUID(int=chance.randrange(3))),
                    status=chance.choice(["available", "error"]),
                    size=chance.randrange(3),
                    is_incremental=chance.random() < 0.5,
                    display_name=chance.choice([None, "", "a", "B", "a_b", "aXb", "ä"]),
                    data_timestamp=chance.choice([None, START, START + timedelta(microseconds=1)]),
                    created_at=START + timedelta(seconds=chance.randrange(3)),
                    deleted=chance.random() < 0.1,
                )
            )
    with db.read() as session:
        rows = [row for row in session.query(models.Backup) if not row.deleted]
        session.expunge_all()
    return rows


def names(db: Database, **arguments: object) -> list[str]:
    """Return the ids of a page."""
    values: dict[str, object] = {"project_id": None, "filters": {}, "sort": [], "limit": None, **arguments}
    with db.read() as session:
        rows, _ = queries.page(session, models.Backup, **values)  # type: ignore[arg-type]
        return [row.id for row in rows]


SORTS = [
    [],
    [("name", "asc")],
    [("name", "desc")],
    [("size", "asc"), ("name", "desc")],
    [("data_timestamp", "desc"), ("status", "asc")],
    [("is_incremental", "asc"), ("data_timestamp", "asc")],
    [("is_incremental", "desc"), ("id", "asc")],
    [("created_at", "asc")],
]


@pytest.mark.parametrize("sort", SORTS, ids=str)
def test_pages_put_together_are_the_whole(db: Database, sort: list[tuple[str, str]]) -> None:
    fill(db, 60)
    whole = names(db, sort=sort)
    assert len(whole) == len(set(whole)) > 40
    for size in (1, 7, 100):
        got: list[str] = []
        while page := names(db, sort=sort, limit=size, marker=got[-1] if got else None):
            assert len(page) <= size
            got += page
        assert got == whole, size
    assert names(db, sort=sort, offset=5) == whole[5:]
    assert names(db, sort=sort, limit=3, offset=5) == whole[5:8]
    assert names(db, sort=sort, limit=3, marker=whole[4], offset=2) == whole[7:10]


def test_the_order_is_what_was_asked_for(db: Database) -> None:
    rows = {row.id: row for row in fill(db, 60)}
    newest = [rows[name] for name in names(db)]
    assert newest == sorted(newest, key=lambda row: (row.created_at, row.id), reverse=True)
    ordered = [rows[name] for name in names(db, sort=[("data_timestamp", "asc"), ("size", "desc")])]
    assert ordered == sorted(
        sorted(
            sorted(
                sorted(ordered, key=lambda row: row.id),
                key=lambda row: row.created_at,
            ),
            key=lambda row: row.size,
            reverse=True,
        ),
        key=lambda row: row.data_timestamp or datetime.min,
    )
    texts = [rows[name].display_name for name in names(db, sort=[("name", "desc")])]
    assert None not in texts[: texts.index(None)]
    assert set(texts[texts.index(None) :]) == {None}


def test_filters_select_the_rows_that_match(db: Database) -> None:
    rows = fill(db, 60)

    def expect(filters: dict[str, str], wanted: object) -> None:
        assert set(names(db, filters=filters)) == {row.id for row in rows if wanted(row)}, filters  # type: ignore[operator]

    expect({"name": "a"}, lambda row: row.display_name == "a")
    expect({"name": ""}, lambda row: row.display_name == "")
    expect({"name~": "a_"}, lambda row: row.display_name is not None and "a_" in row.display_name)
    expect({"size": "2", "status": "error"}, lambda row: row.size == 2 and row.status == "error")
    expect({"is_incremental": "Yes"}, lambda row: row.is_incremental)
    expect({"is_incremental": "0"}, lambda row: not row.is_incremental)
    expect(
        {"data_timestamp": "2026-01-01T00:00:00.000001"}, lambda row: row.data_timestamp not in (None, START)
    )
    expect({"data_timestamp": "2026-01-01T02:00:00+02:00"}, lambda row: row.data_timestamp == START)
    for filters in (
        {"nonsense": "1"},
        {"size": "x"},
        {"size": "9" * 30},
        {"is_incremental": "perhaps"},
        {"created_at": "yesterday"},
        {"size~": "1"},
        {"deleted": "1"},
        {"location": "/"},
    ):
        assert names(db, filters=filters) == []


def test_project_count_and_marker(db: Database) -> None:
    rows = fill(db, 60)
    mine = {row.id for row in rows if row.project_id == "p1"}
    with db.read() as session:
        page, total = queries.page(
            session, models.Backup, project_id="p1", filters={}, sort=[], limit=2, with_count=True
        )
        assert (len(page), total) == (2, len(mine))
    other = next(row.id for row in rows if row.project_id == "p2")
    for marker in (other, str(uuid.uuid4())):
        with pytest.raises(MarkerNotFound):
            names(db, project_id="p1", marker=marker)
    assert names(db, limit=0) == []


def test_a_marker_that_was_deleted_meanwhile_keeps_its_place(db: Database) -> None:
    fill(db, 20)
    ids = names(db, sort=[("size", "asc")])
    with db.write() as session:
        session.get_one(models.Backup, ids[7]).deleted = True
    assert names(db, sort=[("size", "asc")], marker=ids[7]) == ids[8:]


@pytest.mark.parametrize("sort", [[("nonsense", "asc")], [("name", "up")], [("deleted", "asc")]])
def test_unknown_sort_keys_and_directions_are_refused(db: Database, sort: list[tuple[str, str]]) -> None:
    create_tables(db)
    with pytest.raises(InvalidInput):
        names(db, sort=sort)

"""What a request reads of 100 000 backups: no database walks through all of them for one or for a page."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from datetime import datetime
from typing import Any

import pytest
from sqlalchemy import Integer, String, cast, event, insert, literal, select, text, union_all
from sqlalchemy.orm import Session

from backupfw.db import models, queries
from backupfw.db import session as session_module
from backupfw.db.session import Database
from backupfw.manager import rows

ROWS = 100_000
PROJECT = "busy"


def _fill(db: Database) -> None:
    """Set-based: a number for each combination of five digits."""
    models.Base.metadata.create_all(db.engine)
    digits = [
        union_all(*(select(literal(digit * 10**place, Integer).label("n")) for digit in range(10))).subquery()
        for place in range(5)
    ]
    number: Any = sum((digit.c.n for digit in digits[1:]), digits[0].c.n)
    table = models.Backup.__table__
    moment, zero = datetime(2026, 1, 1), literal(0, Integer)
    values: dict[str, Any] = {
        "id": literal("00000000-0000-4000-8000-") + cast(number + 100_000_000_000, String(12)),
        "project_id": literal(PROJECT),
        "volume_id": literal(str(uuid.uuid4())),
        "status": literal("available"),
        "is_incremental": literal(False),
        "completed": literal(True),
        "deleted": literal(False),
        "created_at": literal(moment, table.c.created_at.type),
        **dict.fromkeys(
            ("size", "object_count", "stored_bytes", "referenced_bytes", "progress_done", "progress_total"),
            zero,
        ),
    }
    source: Any = digits[0]
    for digit in digits[1:]:
        source = source.join(digit, digit.c.n >= digits[0].c.n * 0)
    with db.write() as session:
        session.execute(insert(table).from_select(list(values), select(*values.values()).select_from(source)))
    with db.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        if db.backend == "postgresql":
            connection.execute(text("ANALYZE backups"))
        elif db.backend == "mysql":
            connection.execute(text("ANALYZE TABLE backups"))
    if db.backend == "sqlite":
        db.analyze()


def _page(**arguments: Any) -> Callable[[Session], Any]:
    wanted: dict[str, Any] = {"filters": {}, "sort": [], "limit": 100, **arguments}

    def ask(session: Session) -> None:
        found, _ = queries.page(session, models.Backup, columns=rows.listed_columns(), **wanted)
        rows.listed_backups(session, found, detail=True)

    return ask


def _plan(db: Database, session: Session, statement: str, parameters: Any) -> str:
    word = "EXPLAIN QUERY PLAN" if db.backend == "sqlite" else "EXPLAIN"
    answer = session.connection().exec_driver_sql(f"{word} {statement}", parameters)
    return "\n".join(str(dict(row)) for row in answer.mappings())


def _walks(db: Database, plan: str) -> bool:
    if db.backend == "sqlite":
        return "SCAN backups" in plan and "USING" not in plan.split("SCAN backups", 1)[1].split("'", 1)[0]
    if db.backend == "postgresql":
        return "Seq Scan on backups" in plan
    return "'table': 'backups', 'type': 'ALL'" in plan


def test_no_request_walks_through_all_backups(db: Database) -> None:
    _fill(db)
    one = f"00000000-0000-4000-8000-{100_000_050_000}"
    asked: dict[str, Callable[[Session], Any]] = {
        "show": lambda session: rows.backup_by_id(rows.fetching(session), one),
        "page of a project": _page(project_id=PROJECT),
        "page of all": _page(project_id=None),
        "page behind a marker": _page(project_id=PROJECT, marker=one),
        "page of all behind a marker": _page(project_id=None, marker=one),
    }
    for name, ask in asked.items():
        said: list[tuple[str, Any]] = []

        def hear(_c: Any, _cursor: Any, statement: str, parameters: Any, *_: Any, said: Any = said) -> None:
            if statement.startswith("SELECT"):
                said.append((statement, parameters))

        with db.read() as session:
            event.listen(db.engine, "before_cursor_execute", hear)
            try:
                ask(session)
            finally:
                event.remove(db.engine, "before_cursor_execute", hear)
            assert said
            for statement, parameters in said:
                plan = _plan(db, session, statement, parameters)
                assert not _walks(db, plan), f"{name}: {statement}\n{plan}"
                if db.backend == "sqlite" and name == "show":
                    assert "ix_backups_parent_id" in plan


@pytest.mark.parametrize("db", ["sqlite"], indirect=True)
def test_children_are_found_by_their_parent_also_before_there_are_statistics(db: Database) -> None:
    models.Base.metadata.create_all(db.engine)
    said: list[tuple[str, Any]] = []
    with db.read() as session:
        event.listen(
            db.engine,
            "before_cursor_execute",
            lambda _c, _cursor, statement, parameters, *_: said.append((statement, parameters)),
        )
        rows.backup_by_id(rows.fetching(session), str(uuid.uuid4()))
        rows.dependents_of(session, [str(uuid.uuid4()), str(uuid.uuid4())])
        for statement, parameters in list(said):
            assert "ix_backups_parent_id" in _plan(db, session, statement, parameters), statement


@pytest.mark.parametrize("db", ["sqlite"], indirect=True)
def test_sqlites_statistics_are_renewed_now_and_then(db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_module, "_WRITES_PER_ANALYSIS", 5)
    models.Base.metadata.create_all(db.engine)
    for number in range(5):
        with db.write() as session:
            session.add(models.Project(id=str(number)))
    with db.read() as session:
        figures = select(text("stat")).select_from(text("sqlite_stat1")).where(text("tbl = 'projects'"))
        assert str(session.scalar(figures)).startswith("5 ")

"""What the API's requests read of 100 000 rows: none walks through a table for one row or for a page.

Nor do a worker's claim of a task and its search for a backup's data.

A project has a thousandth of the rows.  Some requests have to read all rows of everybody, or choose to: those
of an administrator for all projects that count, filter by what is no id, or sort by something else than the
default; and the services, which have no pages.  Each of their statements reads one table, once, and only that
which is listed.
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from functools import partial
from typing import Any

import pytest
from sqlalchemy import Integer, String, case, cast, event, insert, literal, select, text, union_all

from backupfw.api.query import FILTERS
from backupfw.context import RequestContext
from backupfw.db import models
from backupfw.db import session as session_module
from backupfw.db.installation import ensure_installation
from backupfw.db.session import Database
from backupfw.manager import rows
from backupfw.manager.messages import MessageManager
from backupfw.manager.operators import purge
from backupfw.manager.policies.manager import PolicyManager
from backupfw.manager.queue import claims
from backupfw.manager.queue.services import ServiceManager
from backupfw.manager.rules import copies
from backupfw.manager.rules.quota import QuotaManager
from backupfw.manager.rules.volume_types import VolumeTypeManager
from backupfw.manager.usecases.backups import BackupManager
from backupfw.manager.usecases.overview import Overview
from backupfw.manager.usecases.snapshots import SnapshotManager
from backupfw.manager.usecases.transfers import TransferManager
from backupfw.manager.usecases.volumes import VolumeManager
from tests.unit.db.conftest import KINDS, opened
from tests.unit.manager.support import make_conf
from tests.unit.tables import remove_tables

pytestmark = pytest.mark.check

PROJECTS = 1000
PROJECT = "project-50"
#: A row of that project, in the middle.
NUMBER = 50_050

Ask = Callable[[], object]


def _id(kind: str, number: Any) -> Any:
    """The id of a row by its number: of one that is known, or as a term."""
    head = f"{kind:0<8}-0000-4000-8000-"
    if isinstance(number, int):
        return f"{head}{number + 100_000_000_000}"
    return literal(head) + cast(number + 100_000_000_000, String(12))


def _rows(number: Any, moment: Any) -> dict[type[models.Base], dict[str, Any]]:
    """What the row of a number holds in each table, beside what it must hold anyway."""

    def text_of(word: str, values: int) -> Any:
        return literal(f"{word}-") + cast(number % values, String(6))

    common = {"project_id": text_of("project", PROJECTS), "created_at": moment}
    named = {**common, "display_name": text_of("name", 97)}
    volume, snapshot, backup = (_id(kind, number) for kind in ("volume", "snapshot", "backup"))
    return {
        models.VolumeType: {
            "id": _id("type", number), "name": text_of("type", 100_000), "created_at": moment,
            "is_public": literal(True),
        },
        models.Volume: {
            **named, "id": volume, "host": text_of("host", 1000), "volume_type": text_of("type", 1000),
        },
        models.VolumeMetadata: {
            "volume_id": volume, "key": literal("key"), "value": text_of("value", 97),
        },
        models.Snapshot: {**named, "id": snapshot, "volume_id": volume},
        models.Backup: {
            **named, "id": backup, "volume_id": volume, "parent_id": _id("backup", number - number % 10),
        },
        models.Transfer: {**named, "id": _id("transfer", number), "volume_id": volume},
        models.Message: {**common, "id": _id("message", number), "resource_uuid": backup},
        models.Task: {
            **common, "id": number + 1, "resource_id": backup, "source_id": volume,
            "state": literal(claims.QUEUED), "store": literal("main"),
        },
    }  # fmt: skip


#: What a column holds that must hold something.
_ANYTHING = {int: 0, bool: False, str: "any", datetime: datetime(2026, 1, 1)}


def _fill(db: Database) -> None:
    """Set-based: a number for each combination of five digits."""
    models.Base.metadata.create_all(db.engine)
    with db.write() as session:
        ensure_installation(session)
    # An index of rows that are there is made faster than one that grows with them.  MariaDB's foreign keys
    # need theirs.
    indexes = [
        index
        for model in _rows(literal(0), literal(None))
        for index in model.__table__.indexes
        if not any(column.foreign_keys for column in index.columns)
    ]
    for index in indexes:
        index.drop(db.engine)
    digits = [
        union_all(*(select(literal(digit * 10**place, Integer).label("n")) for digit in range(10))).subquery()
        for place in range(5)
    ]
    number: Any = sum((digit.c.n for digit in digits[1:]), digits[0].c.n)
    source: Any = digits[0]
    for digit in digits[1:]:
        source = source.join(digit, digit.c.n >= digits[0].c.n * 0)
    first = datetime(2026, 1, 1)
    kind = models.Backup.created_at.type
    hours = [literal(first + timedelta(hours=n), kind) for n in range(10)]
    moment = case(*((digits[3].c.n == 1000 * n, hour) for n, hour in enumerate(hours[1:], 1)), else_=hours[0])
    for model, chosen in _rows(number, moment).items():
        needed = {
            column.name: literal(_ANYTHING.get(column.type.python_type, {}), column.type)
            for column in model.__table__.columns
            if not column.nullable and column.name not in chosen
        }
        values = {**needed, **chosen}
        made = select(*values.values()).select_from(source)
        with db.write() as session:
            session.execute(insert(model).from_select(list(values), made))
    for index in indexes:
        index.create(db.engine)
    if db.backend == "sqlite":
        db.renew_statistics()
        return
    word = "ANALYZE" if db.backend == "postgresql" else "ANALYZE TABLE"
    with db.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        for model in _rows(number, moment):
            connection.execute(text(f"{word} {model.__tablename__}"))


@pytest.fixture(scope="module", params=KINDS)
def filled(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Database]:
    """A database of each kind with a project's rows among those of others."""
    with opened(request, tmp_path_factory.mktemp("plans")) as database:
        remove_tables(database)
        _fill(database)
        yield database


def _listings(db: Database) -> dict[str, Any]:
    conf = make_conf()
    conf.message_ttl = 10**9
    return {
        "backup": BackupManager(db, conf, lambda: None),
        "volume": VolumeManager(db, conf, lambda: None),
        "snapshot": SnapshotManager(db, conf, lambda: None),
        "message": MessageManager(db, conf),
        "transfer": TransferManager(db, conf),
        "type": VolumeTypeManager(db, conf),
    }


_USER = RequestContext(PROJECT, "user")
_ADMIN = RequestContext(PROJECT, "user", is_admin=True)
#: What is asked for with a filter.
_VALUES = {
    "name": "name-50", "status": "any", "volume_id": _id("volume", NUMBER), "metadata": "{'key': 'value-50'}",
    "size": "0", "bootable": "false", "created_at": "2026-01-01T03:00:00",
    "updated_at": "2026-01-01T03:00:00", "availability_zone": "nova", "resource_uuid": _id("backup", NUMBER),
    "request_id": "req",
}  # fmt: skip


#: By what administrators may sort that no index has the order of.
_ODD = {
    "backup": ("name", "data_timestamp"),
    "volume": ("size", "bootable"),
    "snapshot": ("volume_id",),
    "message": ("event_id",),
}


def _asked(db: Database) -> dict[str, Ask]:
    """Every kind of request that shows or lists, by what it is called."""
    asked: dict[str, Ask] = {}
    for kind, manager in _listings(db).items():
        one = _id(kind, NUMBER)
        pages: dict[str, dict[str, Any]] = {
            "": {},
            "behind a marker": {"marker": one},
            "offset": {"offset": 300},
        }
        for name, arguments in pages.items():
            asked[f"{kind}s: page {name}"] = partial(manager.list, _USER, limit=100, **arguments)
            asked[f"{kind}s: page of all {name}"] = partial(
                manager.list, _ADMIN, limit=100, all_tenants=True, **arguments
            )
        asked[f"{kind}: show"] = partial(manager.get, _USER, one)
        if kind == "type":
            continue
        asked[f"{kind}s: page and count"] = partial(manager.list, _USER, limit=100, with_count=True)
        for name in FILTERS.get(kind, ("name",)):
            value = {name: _VALUES.get(name, "any")}
            asked[f"{kind}s: page with {name}"] = partial(manager.list, _USER, limit=100, filters=value)
        if kind != "message":
            asked[f"{kind}s: page with a part of the name"] = partial(
                manager.list, _USER, limit=100, filters={"name~": "me-5"}
            )
            for arguments in ({}, {"marker": one}):
                asked[f"{kind}s: page by name {arguments}"] = partial(
                    manager.list, _USER, limit=100, sort=[("name", "asc")], **arguments
                )
    listings = _listings(db)
    of_volume = {"filters": {"volume_id": _id("volume", NUMBER)}, "limit": 100, "all_tenants": True}
    asked["backups: page of a volume"] = partial(listings["backup"].list, _ADMIN, **of_volume)
    asked["snapshots: page of a volume"] = partial(listings["snapshot"].list, _ADMIN, **of_volume)
    asked["backup: progress"] = partial(listings["backup"].progress, _USER, _id("backup", NUMBER))
    asked["volumes: totals"] = partial(listings["volume"].totals, _USER)
    quotas, services = QuotaManager(db, make_conf()), ServiceManager(db, make_conf())
    asked["limits"] = partial(quotas.limits, _USER)
    asked["quota with usage"] = partial(quotas.show, PROJECT, usage=True)
    services.heartbeat("host-50", "backupfw-worker")
    asked["host: show"] = partial(services.usage_of_host, _ADMIN, "host-50")
    return asked | _asked_by_the_console(db)


def _asked_by_the_console(db: Database) -> dict[str, Ask]:
    """What it reads of volumes and backups; tasks are few, and it reads those that there are."""
    overview = Overview(db, make_conf())
    volume, backup = _id("volume", NUMBER), _id("backup", NUMBER)
    asked: dict[str, Ask] = {}
    for who, context in (("a user", _USER), ("an administrator", _ADMIN)):
        asked |= {
            f"console of {who}: volumes": partial(overview.volumes, context),
            f"console of {who}: volumes behind a marker": partial(overview.volumes, context, marker=volume),
            f"console of {who}: volume": partial(overview.volume, context, volume),
            f"console of {who}: time line": partial(overview.time_line, context, volume),
            f"console of {who}: what a deletion frees": partial(overview.frees, context, backup),
        }
    asked["console of a user: health"] = partial(_health, db, _USER)
    return asked


def _health(db: Database, context: RequestContext) -> object:
    """What the page Health reads, but for workers and stores: those it reads along tasks."""
    conf = make_conf()
    found = Overview(db, conf).health(context, age=timedelta(hours=26), installation=False)
    policies = PolicyManager(db, conf, BackupManager(db, conf, lambda: None))
    return policies.missed_or_failed(context, found.moment - timedelta(days=1), 25)


def _statements(db: Database, ask: Ask) -> list[tuple[str, Any]]:
    """What is asked of the database."""
    said: list[tuple[str, Any]] = []

    def hear(_c: Any, _cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        if statement.startswith("SELECT"):
            said.append((statement, parameters))

    event.listen(db.engine, "before_cursor_execute", hear)
    try:
        ask()
    finally:
        event.remove(db.engine, "before_cursor_execute", hear)
    return said


def _plan(db: Database, statement: str, parameters: Any) -> list[dict[str, Any]]:
    word = "EXPLAIN QUERY PLAN" if db.backend == "sqlite" else "EXPLAIN"
    with db.read() as session:
        answer = session.connection().exec_driver_sql(f"{word} {statement}", parameters)
        return [dict(row) for row in answer.mappings()]


def _walked(db: Database, plan: list[dict[str, Any]]) -> list[str]:
    """The tables that a plan reads whole, as often as it does.

    Along an index that has the order of a page is no walk.
    """
    found: list[tuple[str, str]] = []
    for row in plan:
        if db.backend == "sqlite":
            found += re.findall(r"^SCAN (\w+)(?: USING (?:COVERING )?INDEX (\w+))?", row["detail"])
        elif db.backend == "postgresql":
            found += [(table, "") for table in re.findall(r"Seq Scan on (\w+)", row["QUERY PLAN"])]
        elif row["type"] in ("ALL", "index"):
            found.append((str(row["table"]), str(row["key"])))
    tables = {model.__tablename__ for model in _rows(literal(0), literal(None))}
    bare = [(re.sub(r"_\d+$", "", table), index) for table, index in found]
    return [
        table for table, index in bare if table in tables and not index.endswith(("_listing", "_created_at"))
    ]


def test_no_request_walks_through_a_table(filled: Database) -> None:
    for name, ask in _asked(filled).items():
        statements = _statements(filled, ask)
        assert statements, name
        for statement, parameters in statements:
            plan = _plan(filled, statement, parameters)
            assert not _walked(filled, plan), (
                f"{name}: {statement}\n{json.dumps(plan, indent=1, default=str)}"
            )


def _asked_of_all(db: Database) -> dict[str, tuple[str, Ask]]:
    """Every kind of request that has to read all rows, by what it is called; with the table that it lists."""
    asked: dict[str, tuple[str, Ask]] = {}
    every: dict[str, Any] = {"limit": 100, "all_tenants": True}
    for kind, manager in _listings(db).items():
        ask, one = partial(manager.list, _ADMIN, **every), _id(kind, NUMBER)
        if kind == "type":
            continue
        table = f"{kind}s"
        asked[f"{kind}s: page of all and count"] = table, partial(ask, with_count=True)
        asked[f"{kind}s: count of a name"] = table, partial(ask, with_count=True, filters={"name": "name-50"})
        for name in FILTERS.get(kind, ("name",)):
            asked[f"{kind}s: of all with {name}"] = (
                table,
                partial(ask, filters={name: _VALUES.get(name, "any")}),
            )
        for name in _ODD.get(kind, ("project_id",)):
            asked[f"{kind}s: of all by {name}"] = table, partial(ask, sort=[(name, "asc")])
            behind = partial(ask, sort=[(name, "desc")], marker=one)
            asked[f"{kind}s: of all by {name} behind a marker"] = table, behind
    return asked


def test_who_has_to_read_all_rows_reads_one_table_once(filled: Database) -> None:
    for name, (table, ask) in _asked_of_all(filled).items():
        statements = _statements(filled, ask)
        assert statements, name
        for statement, parameters in statements:
            plan = _plan(filled, statement, parameters)
            assert _walked(filled, plan) in ([], [table]), (
                f"{name}: {statement}\n{json.dumps(plan, indent=1, default=str)}"
            )


def test_services_are_listed_in_one_statement_whatever_their_number(filled: Database) -> None:
    services = ServiceManager(filled, make_conf())
    for number in (100, 120):
        services.heartbeat(f"host-{number}", "backupfw-worker")
        ((statement, _),) = _statements(filled, partial(services.list, _ADMIN))
        assert re.findall(r"(?:FROM|JOIN) (\w+)", statement) == ["services"]


def test_a_page_begins_at_its_marker(filled: Database) -> None:
    """And not at the beginning, from which all rows before it would be passed."""
    for kind, manager in _listings(filled).items():
        for ctx in (_USER, _ADMIN):
            paging = {"limit": 10, "marker": _id(kind, NUMBER), "all_tenants": ctx.is_admin}
            statement, parameters = next(
                said
                for said in _statements(filled, partial(manager.list, ctx, **paging))
                if " ORDER BY " in said[0] and " LIMIT " in said[0]
            )
            plan = _plan(filled, statement, parameters)
            told = str(plan)
            if filled.backend == "sqlite":
                assert "created_at<?" in told, told
            elif filled.backend == "postgresql":
                assert re.search(r"Index Cond: .*created_at <=", told), told
            else:
                assert plan[0]["type"] == "range", told


def test_a_claim_reads_the_first_tasks_of_the_queue_and_no_others(filled: Database) -> None:
    reach = claims.Reach("host", "cinder-backup", "nova", frozenset({"main"}), frozenset({"local"}))

    def claim() -> None:
        with filled.write() as session:
            assert claims.next_task(session, reach, claims.Limits(), None) is not None

    statements = _statements(filled, claim)
    for statement, parameters in statements:
        plan = _plan(filled, statement, parameters)
        assert not _walked(filled, plan), f"{statement}\n{json.dumps(plan, indent=1, default=str)}"
    # Of those that are queued, along the index that has their order.
    *_, page = (said for said in statements if " ORDER BY tasks.turn" in said[0])
    assert not re.search("Sort|TEMP B-TREE|filesort", str(_plan(filled, *page)))


def test_a_backup_that_is_shown_counts_its_children_by_an_index(filled: Database) -> None:
    if filled.backend != "sqlite":
        pytest.skip("declared: servers choose among several that do")
    ask = partial(_listings(filled)["backup"].get, _USER, _id("backup", NUMBER))
    ((statement, parameters),) = _statements(filled, ask)
    assert "ix_backups_parent_id" in str(_plan(filled, statement, parameters))


@pytest.mark.parametrize("db", ["sqlite"], indirect=True)
def test_children_are_found_by_their_parent_also_before_there_are_statistics(db: Database) -> None:
    models.Base.metadata.create_all(db.engine)

    def ask() -> None:
        with db.read() as session:
            rows.backup_by_id(rows.fetching(session), str(uuid.uuid4()))
            rows.dependents_of(session, [str(uuid.uuid4()), str(uuid.uuid4())])

    for statement, parameters in _statements(db, ask):
        assert "ix_backups_parent_id" in str(_plan(db, statement, parameters)), statement


@pytest.mark.parametrize("db", ["sqlite"], indirect=True)
def test_the_places_of_a_backup_are_found_by_its_volume(db: Database) -> None:
    models.Base.metadata.create_all(db.engine)

    def ask() -> None:
        with db.read() as session:
            backup = models.Backup(id=str(uuid.uuid4()), manifest_id=str(uuid.uuid4()))
            copies.places(session, backup, ["main"])
            copies.places_of(session, backup.manifest_id or "", ["main"])

    for statement, parameters in _statements(db, ask):
        assert "SCAN" not in str(_plan(db, statement, parameters)), statement


@pytest.mark.parametrize("db", ["sqlite"], indirect=True)
def test_a_purge_reads_no_table_again_for_each_row_of_another(db: Database) -> None:
    models.Base.metadata.create_all(db.engine)
    asked = _statements(db, lambda: purge.run(db, datetime(2026, 1, 1), dry_run=True))
    assert len(asked) > 4
    for statement, parameters in asked:
        plan = _plan(db, statement, parameters)
        again = {row["id"] for row in plan if row["detail"].startswith("CORRELATED")}
        assert not [row for row in plan if row["parent"] in again and "SCAN" in row["detail"]], statement


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

"""Requests beside what they are made of: answers beside Pecan's, creates beside their transactions."""

from __future__ import annotations

import subprocess
import sys
import threading
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from oslo_config import cfg
from sqlalchemy import event, text

from backupfw.context import RequestContext
from backupfw.db.session import Database
from backupfw.manager.usecases.backups import BackupManager
from benchmarks import answers
from benchmarks.api_world import Client, api_process, at_once, empty_database, in_turn, median
from benchmarks.table import Table
from tests.servers.databases import postgresql
from tests.servers.ports import free_port
from tests.unit.manager.support import make_conf

CLIENTS = 16
#: Creates of each client, each measured time.
EACH = 12
#: Least share of the bare transactions' rate.
AIM_CREATE = 0.5
#: Least share of the rate of a Pecan application that answers "hello".
AIM_SHOW = 0.3

_VOLUME = """
INSERT INTO volumes (id, project_id, user_id, status, size, length, display_name, bootable, adopted,
    created_at, updated_at, deleted)
VALUES (:id, :project, 'user', 'available', 1, 1073741824, 'volume', :no, :no,
    '2026-01-01 00:00:00', '2026-01-01 00:00:00', :no)
"""


def _volumes(db: Database, project: str, count: int) -> list[str]:
    """Make volumes that can be backed up; returns their ids."""
    ids = [str(uuid.uuid4()) for _ in range(count)]
    with db.engine.begin() as connection:
        connection.execute(text(_VOLUME), [{"id": one, "project": project, "no": False} for one in ids])
    return ids


def _backups(db: Database, project: str) -> int:
    with db.engine.connect() as connection:
        query = text("SELECT count(*) FROM backups WHERE project_id = :project")
        return int(connection.scalar(query, {"project": project}) or 0)


@dataclass(frozen=True)
class _Transaction:
    """The statements of one create, as the database's driver was given them."""

    statements: list[tuple[str, Any]]
    volume_id: str
    backup_id: str

    def again(self, cursor: Any, volume_id: str, backup_id: str) -> None:
        """Send the statements for another volume and backup."""
        new = {self.volume_id: volume_id, self.backup_id: backup_id}
        for statement, values in self.statements:
            if isinstance(values, dict):
                cursor.execute(statement, {name: new.get(value, value) for name, value in values.items()})
            else:
                cursor.execute(statement, tuple(new.get(value, value) for value in values))
            if cursor.description is not None:
                cursor.fetchall()


def _record(db: Database, project: str) -> _Transaction:
    """Make one backup as the API does and note what its transaction sends."""
    (volume_id,) = _volumes(db, project, 1)
    sent: list[tuple[str, Any]] = []

    def note(_conn: Any, _cursor: Any, statement: str, values: Any, _context: Any, _many: bool) -> None:
        sent.append((statement, values))

    event.listen(db.engine, "before_cursor_execute", note)
    try:
        made = _manager(db).create(_context(project), volume_id=volume_id)
    finally:
        event.remove(db.engine, "before_cursor_execute", note)
    return _Transaction(sent, volume_id, made.id)


def _manager(db: Database) -> BackupManager:
    return BackupManager(db, cast(cfg.ConfigOpts, make_conf(backups=-1, backup_gigabytes=-1)))


def _context(project: str) -> RequestContext:
    return RequestContext(project, "user", frozenset({"member"}))


def _plain_creates(db: Database, project: str) -> float:
    """Make backups in as many threads by calling the use case itself; returns seconds.

    The same transactions, without HTTP, identity, policy, schema and views.
    """
    manager, volumes = _manager(db), _volumes(db, project, CLIENTS * EACH)

    def work(number: int) -> None:
        for volume_id in volumes[number::CLIENTS]:
            manager.create(_context(project), volume_id=volume_id)

    return at_once(CLIENTS, work)


def _bare_statements(db: Database, project: str, recorded: _Transaction) -> float:
    """Send just the statements from as many threads, each on a connection of its own; returns seconds."""
    volumes = _volumes(db, project, CLIENTS * EACH)
    connections = [db.engine.raw_connection() for _ in range(CLIENTS)]

    def work(number: int) -> None:
        connection = connections[number]
        cursor = connection.cursor()
        for volume_id in volumes[number::CLIENTS]:
            recorded.again(cursor, volume_id, str(uuid.uuid4()))
            connection.commit()

    try:
        return at_once(CLIENTS, work)
    finally:
        for connection in connections:
            connection.close()


def _creates(db: Database, port: int, project: str, each: int = EACH) -> tuple[float, Counter[int]]:
    """Create backups through the API; returns seconds and how often each status was answered."""
    volumes = _volumes(db, project, CLIENTS * each)
    clients = [Client(port, project) for _ in range(CLIENTS)]
    answers: Counter[int] = Counter()
    lock = threading.Lock()

    def work(number: int) -> None:
        for volume_id in volumes[number::CLIENTS]:
            status, _ = clients[number].send("POST", "/backups", {"backup": {"volume_id": volume_id}})
            with lock:
                answers[status] += 1

    try:
        return at_once(CLIENTS, work), answers
    finally:
        for client in clients:
            client.close()


@contextmanager
def _hello() -> Iterator[int]:
    """Serve :mod:`benchmarks.hello` in a process of its own; yields its port."""
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.hello", str(port)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    try:
        process.stdout.readline()
        yield port
    finally:
        process.terminate()
        process.wait(30)
        process.stdout.close()


def run(table: Table, directory: str, rounds: int) -> None:
    """Measure and print."""
    place = Path(directory)
    # PostgreSQL runs as another user.
    place.chmod(0o755)
    (place / "pg").mkdir()
    table.head("Answers: processor time of the application, beside a bare Pecan answer of the same bytes")
    answers.measure(table, place, rounds)
    table.head(f"Requests: {CLIENTS} clients at once, best of {rounds}")
    _measure(table, place, "SQLite", f"sqlite:///{place}/embedded.sqlite", rounds)
    with postgresql(place / "pg") as url:
        _measure(table, place, "PostgreSQL", url, rounds)


def _measure(table: Table, place: Path, name: str, url: str, rounds: int) -> None:
    with empty_database(url) as db:
        recorded = _record(db, "bare")
        with api_process(place, url) as port:
            plain, statements, ours = [], [], []
            for number in range(rounds):
                statements.append(_bare_statements(db, "bare", recorded))
                plain.append(_plain_creates(db, f"plain-{number}"))
                seconds, answers = _creates(db, port, f"project-{number}")
                ours.append(seconds)
                if answers != {202: CLIENTS * EACH} or _backups(db, f"project-{number}") != CLIENTS * EACH:
                    raise RuntimeError(f"creates were lost or doubled: {answers}")
            count = CLIENTS * EACH
            table.row(f"The bare statements of a create on {name}", f"{count / min(statements):.0f}/s")
            ratio = min(plain) / min(ours)
            value = f"{count / min(ours):.0f}/s = {ratio:.0%} of {count / min(plain):.0f}/s"
            what = f"POST /backups on {name} beside its transactions"
            table.row(what, value, f"at least {AIM_CREATE:.0%}", ratio >= AIM_CREATE)
            _show(table, db, name, port, rounds)
        quota = CLIENTS * EACH // 3
        with api_process(place, url, quota) as port:
            _, answers = _creates(db, port, "limited")
            exact = answers[202] == quota == _backups(db, "limited")
            table.row(
                f"… with room for {quota} of {CLIENTS * EACH}: granted", f"{answers[202]}", f"{quota}", exact
            )


def _show(table: Table, db: Database, name: str, port: int, rounds: int) -> None:
    with db.engine.connect() as connection:
        backup_id = connection.scalar(text("SELECT id FROM backups WHERE project_id = 'bare' LIMIT 1"))
    with _hello() as hello_port:
        client, other = Client(port, "bare"), Client(hello_port, "bare")
        show, hello = in_turn(
            rounds * 100,
            lambda: client.get(f"/backups/{backup_id}"),
            lambda: other.get("/", absolute=True),
        )
        client.close()
        other.close()
    ratio = median(hello) / median(show)
    value = f"{1 / median(show):.0f}/s = {ratio:.0%} of {1 / median(hello):.0f}/s"
    table.row(
        f"GET /backups/ID on {name} beside a Pecan hello",
        value,
        f"at least {AIM_SHOW:.0%}",
        ratio >= AIM_SHOW,
    )

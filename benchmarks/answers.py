"""What answers cost: processor time of the whole WSGI application, beside a bare Pecan answer."""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pecan
from sqlalchemy import text

from backupfw.api.app import make_app
from backupfw.cmd.service import make_managers
from backupfw.db import migrate
from backupfw.db.session import Database
from benchmarks.table import Table
from tests.functional.cloud import configuration

PROJECT = "costs"
#: Backups in the database.
ROWS = 1000
#: At most so many times a bare Pecan answer of the same bytes.  Mapped objects and a router of our own cost
#: 6, 19 and 130 times as much.
AIM_SHOW, AIM_100, AIM_1000 = 4, 12, 60

_BACKUPS = """
INSERT INTO backups (id, user_id, project_id, volume_id, host, availability_zone, container, store, service,
    is_incremental, completed, status, size, length, display_name, service_metadata, object_count,
    stored_bytes, referenced_bytes, progress_done, progress_total, data_timestamp, created_at, updated_at,
    deleted)
VALUES (:id, 'user', :project, :volume, 'host', 'nova', 'volumebackups', 'main', 'service',
    :no, :yes, 'available', 1, 1073741824, :name, 'key', 5,
    1000000, 2000000, 1073741824, 1073741824, :moment, :moment, :moment, :no)
"""
_METADATA = "INSERT INTO backup_metadata (backup_id, key, value) VALUES (:id, 'owner', 'accounting')"

Ask = Callable[[], bytes]


def _fill(db: Database) -> str:
    """Make the backups; returns the id of one."""
    rows = [
        {
            "id": f"00000000-0000-4000-8000-{number:012}",
            "volume": f"00000000-0000-4000-9000-{number // 10:012}",
            "project": PROJECT,
            "name": f"backup {number}",
            "moment": f"2026-01-01 00:{number // 60:02}:{number % 60:02}.000000",
            "yes": True,
            "no": False,
        }
        for number in range(ROWS)
    ]
    with db.engine.begin() as connection:
        connection.execute(text(_BACKUPS), rows)
        connection.execute(text(_METADATA), rows)
    return str(rows[0]["id"])


class _Bare:
    """A Pecan application that has its answer ready."""

    def __init__(self, body: bytes) -> None:
        self._body = body

    @pecan.expose(content_type="application/json")  # type: ignore[untyped-decorator]
    def index(self, request: Any, response: Any) -> Any:
        """Give the answer."""
        del request
        response.body = self._body
        return response


def _bare(body: bytes) -> Any:
    return pecan.Pecan(_Bare(body), use_context_locals=False)


def _asks(app: Callable[..., Iterable[bytes]], path: str) -> Ask:
    """Return what asks an application for a path with GET; it raises where the answer is no success."""
    path, _, query = path.partition("?")

    def start(status: str, headers: Any, exc_info: Any = None) -> None:
        del headers, exc_info
        if status != "200 OK":
            raise RuntimeError(f"GET {path}: {status}")

    def ask() -> bytes:
        environ = {
            "REQUEST_METHOD": "GET",
            "SCRIPT_NAME": "",
            "PATH_INFO": path,
            "QUERY_STRING": query,
            "SERVER_NAME": "localhost",
            "SERVER_PORT": "8776",
            "SERVER_PROTOCOL": "HTTP/1.1",
            "HTTP_HOST": "localhost:8776",
            "HTTP_X_AUTH_TOKEN": f"user:{PROJECT}:member",
            "HTTP_OPENSTACK_API_VERSION": "volume latest",
            "wsgi.url_scheme": "http",
            "wsgi.input": io.BytesIO(),
        }
        return b"".join(app(environ, start))

    return ask


def _costs(repeat: int, *asks: Ask) -> list[float]:
    """Ask each ``repeat`` times, in turn; returns the mean seconds of processor time of each.

    The mean, because a median would leave out what Python's collector costs.
    """
    spent = [0.0] * len(asks)
    for _ in range(repeat):
        for number, ask in enumerate(asks):
            begin = time.process_time()
            ask()
            spent[number] += time.process_time() - begin
    return [seconds / repeat for seconds in spent]


def measure(table: Table, place: Path, rounds: int) -> None:
    """Measure on SQLite and print.

    :param place: a folder for the database.
    """
    db = Database(f"sqlite:///{place}/answers.sqlite")
    try:
        migrate.sync(db, None)
        backup_id = _fill(db)
        conf = configuration(noauth_roles=["member"])
        conf.set_override("enabled_stores", [])
        conf.set_override("enabled", [], "volumes")
        app = make_app(make_managers(conf, db, lambda: None), conf)
        for what, path, repeat, aim in (
            ("GET /backups/ID", backup_id, rounds * 200, AIM_SHOW),
            ("a page of 100 details", "detail?limit=100", rounds * 20, AIM_100),
            ("a page of 1000 details", "detail?limit=1000", rounds * 6, AIM_1000),
        ):
            ask = _asks(app, f"/v3/{PROJECT}/backups/{path}")
            ours, bare = _costs(repeat, ask, _asks(_bare(ask()), "/"))
            value = f"{ours * 1e3:.2f} / {bare * 1e3:.2f} ms = {ours / bare:.1f}"
            table.row(f"Processor time of {what}", value, f"at most {aim} x bare Pecan", ours / bare <= aim)
    finally:
        db.close()

"""Listings over a million backups of a thousand projects, on PostgreSQL: a page costs the same anywhere."""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import text

from backupfw.db.session import Database
from benchmarks.api_world import Client, api_process, empty_database, execute, in_turn, median, share
from benchmarks.table import Table
from tests.servers.databases import postgresql

PROJECTS = 1000
#: Whose pages are asked for: its rows lie in the middle.
PROJECT = f"project-{PROJECTS // 2:04d}"
PAGE = 1000
#: A page elsewhere may cost so much more than the first one.
AIM_PAGE = 1.2
#: The slowest hundredth of short pages, beside the median of ``GET /``.
AIM_SHORT = 20

_ROWS = """
INSERT INTO backups (id, user_id, project_id, volume_id, host, availability_zone, container, store, service,
    is_incremental, completed, status, size, length, display_name, service_metadata, object_count,
    stored_bytes, referenced_bytes, progress_done, progress_total, data_timestamp, created_at, updated_at,
    deleted)
SELECT md5('b' || n)::uuid::text, 'user', 'project-' || lpad(((n::bigint * 7919) % :projects)::text, 4, '0'),
    md5('v' || n / 10)::uuid::text, 'host', 'nova', 'volumebackups', 'main', 'service',
    false, true, 'available', 1, 1073741824, 'backup ' || n, 'key/' || n, 5,
    1000000, 2000000, 1073741824, 1073741824, moment, moment, moment, false
FROM (SELECT n, timestamp '2026-01-01' + n * interval '7 seconds' AS moment
      FROM generate_series(1, :rows) AS n) AS made
"""


def _fill(db: Database, rows: int, projects: int) -> None:
    execute(db.engine, _ROWS, {"rows": rows, "projects": projects})
    with db.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("VACUUM ANALYZE backups"))


def _last_marker(db: Database, page: int) -> str:
    """Return the marker of the last page in the order of listings."""
    with db.engine.connect() as connection:
        found = connection.scalar(
            text("SELECT id FROM backups ORDER BY created_at, id OFFSET :page LIMIT 1"), {"page": page}
        )
    return str(found)


def run(table: Table, directory: str, rows: int, rounds: int) -> None:
    """Measure and print."""
    place = Path(directory)
    # PostgreSQL runs as another user.
    place.chmod(0o755)
    (place / "pg").mkdir()
    table.head(f"Listings: {rows} backups of {PROJECTS} projects on PostgreSQL, median of {rounds * 4}")
    with postgresql(place / "pg") as url:
        base = url.rsplit("/", 1)[0]
        with empty_database(url) as db:
            _fill(db, rows, PROJECTS)
            marker = _last_marker(db, PAGE)
            execute_outside(db, "CREATE DATABASE small")
        with empty_database(f"{base}/small") as small:
            # As many rows as the project has in the large database, all of them its own.
            execute(small.engine, _ROWS, {"rows": rows // PROJECTS, "projects": 1})
            execute(small.engine, "UPDATE backups SET project_id = :project", {"project": PROJECT})
            with small.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
                connection.execute(text("VACUUM ANALYZE backups"))
        with api_process(place, url) as port, api_process(place, f"{base}/small") as small_port:
            large_client, small_client = Client(port, PROJECT), Client(small_port, PROJECT)
            everything = f"/backups/detail?all_tenants=1&limit={PAGE}"

            def pages(client: Client, path: str, expected: int) -> None:
                if len(client.get(path)["backups"]) != expected:
                    raise RuntimeError(f"{path}: not {expected} backups")

            own = f"/backups/detail?limit={PAGE}"
            first, last, mine, alone = in_turn(
                rounds * 4,
                lambda: pages(large_client, everything, PAGE),
                lambda: pages(large_client, f"{everything}&marker={marker}", PAGE),
                lambda: pages(large_client, own, rows // PROJECTS),
                lambda: pages(small_client, own, rows // PROJECTS),
            )
            _ratio(table, f"Last page of {PAGE} by marker beside the first", last, first)
            _ratio(table, "A project's own page beside a database with that alone", mine, alone)
            short, root = in_turn(
                rounds * 60,
                lambda: pages(large_client, "/backups/detail?limit=100", 100),
                lambda: large_client.get("/", absolute=True, status=300),
            )
            ratio = share(short, 0.99) / median(root)
            value = f"{share(short, 0.99) * 1e3:.1f} ms = {ratio:.1f} x"
            aim = f"under {AIM_SHORT} x"
            table.row("p99 of a page of 100 beside p50 of GET /", value, aim, ratio < AIM_SHORT)
            large_client.close()
            small_client.close()


def execute_outside(db: Database, statement: str) -> None:
    """Run a statement that no transaction may hold."""
    with db.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text(statement))


def _ratio(table: Table, what: str, ours: list[float], beside: list[float]) -> None:
    ratio = median(ours) / median(beside)
    value = f"{median(ours) * 1e3:.0f} / {median(beside) * 1e3:.0f} ms = {ratio:.2f}"
    table.row(what, value, f"at most {AIM_PAGE}", ratio <= AIM_PAGE)

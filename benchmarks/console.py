"""The console over many backups: what a page costs the server, and what it weighs."""

from __future__ import annotations

import argparse
import http.cookies
import re
import statistics
import time
from typing import Any

import webob

from backupfw.cmd import database, service
from backupfw.cmd.configure import load
from backupfw.db.session import Database
from benchmarks.api_world import execute
from benchmarks.table import Table

#: Backups of each volume, one a day.
CHAIN = 100
TASKS = 100
#: Milliseconds at the server: of a page, and of a refresh of Now.
AIM_PAGE, AIM_REFRESH = 50, 5
#: Bytes of a page with all its files.
AIM_WEIGHT = 150_000

_NUMBERS = "WITH RECURSIVE numbers (n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM numbers WHERE n + 1 < :rows)"
_VOLUMES = f"""
INSERT INTO volumes (id, project_id, status, size, length, display_name, bootable, backend, adopted,
    keeps_points, touched, created_at, deleted)
{_NUMBERS}
SELECT printf('00000000-0000-4000-8000-%012d', n), 'project-' || (n % 10), 'available', 10, 10737418240,
    'volume ' || n, 0, 'local', 0, 0, 0, datetime('now', '-200 days') || '.000000', 0 FROM numbers
"""
_MANIFESTS = f"""
INSERT INTO manifests (id, store, container, key, key_digest, installation_id, project_id, volume_id,
    backup_id, base_id, in_tree, detached, copied, state, epoch, block_size, segment_size, hash_mode, touched,
    created_at)
{_NUMBERS}
SELECT printf('20000000-0000-4000-8000-%012d', n), 'main', 'c', 'key/' || n, printf('%064d', n),
    (SELECT uuid FROM installation), 'project-0', printf('00000000-0000-4000-8000-%012d', n / {CHAIN}),
    printf('10000000-0000-4000-8000-%012d', n),
    iif(n % {CHAIN} = 0, NULL, printf('20000000-0000-4000-8000-%012d', n - 1)),
    1, 0, 0, 'live', 1, 65536, 268435456, 'blake3', 0, datetime('now') || '.000000' FROM numbers
"""
_BACKUPS = f"""
INSERT INTO backups (id, project_id, volume_id, container, store, parent_id, is_incremental, completed,
    status, size, length, display_name, object_count, stored_bytes, referenced_bytes, progress_done,
    progress_total, data_timestamp, fully_verified_at, verified_at, verified_how, verified_result,
    manifest_id, touched, created_at, deleted)
{_NUMBERS}
SELECT printf('10000000-0000-4000-8000-%012d', n), 'project-' || ((n / {CHAIN}) % 10),
    printf('00000000-0000-4000-8000-%012d', n / {CHAIN}), 'c', 'main',
    printf('10000000-0000-4000-8000-%012d', n - 1), n % {CHAIN} > 0, 1, iif(n % 50 = 1, 'error', 'available'),
    10, 10737418240, 'nightly ' || (n % {CHAIN}), 5, 100000000, 5000000000, 0, 0, moment, moment, moment,
    'full', 'ok', printf('20000000-0000-4000-8000-%012d', n), 0, moment, 0
FROM (SELECT n, datetime('now', '-' || ({CHAIN} - n % {CHAIN}) || ' days') || '.000000' AS moment
      FROM numbers)
"""
_TASKS = f"""
INSERT INTO tasks (kind, resource_id, source_id, project_id, payload, state, cancel, progressed, owner,
    attempt, failures, lease_until, checkpoint, store, turn, store_down, progress_done, progress_total,
    progress_rate, touched, created_at, updated_at)
{_NUMBERS}
SELECT 'backup.create', printf('10000000-0000-4000-8000-%012d', n * {CHAIN}),
    printf('00000000-0000-4000-8000-%012d', n), 'project-0', '{{}}', iif(n % 2, 'running', 'queued'), 0, 0,
    'host1/1', 1, 0, iif(n % 2, datetime('now', '+1 day') || '.000000', NULL), 0, 'main', n, 0,
    5000000000, 10737418240, 100000000, 0, datetime('now') || '.000000', datetime('now') || '.000000'
FROM numbers
"""

#: Of one policy per volume; the first one has a run for each of the others.
_SETTINGS = """{"schedule": {"cron": "30 2 * * *", "timezone": "Europe/Berlin", "jitter": 900,
    "start_window": 60, "completion_window": null}, "backup": {"store": null, "incremental": true,
    "full_every": null}, "retention": {"last": null, "hourly": null, "daily": 7, "weekly": 4, "monthly": 12,
    "yearly": null, "within": null, "min_keep": 1}, "selection": {"volume_ids":
    ["00000000-0000-4000-8000-000000000000"]}}""".replace(":", "\\:")
_POLICIES = f"""
INSERT INTO backup_policies (id, project_id, display_name, enabled, settings, next_run_at, planned_at,
    touched, created_at, updated_at)
{_NUMBERS}
SELECT printf('50000000-0000-4000-8000-%012d', n), 'project-0', 'policy ' || n, 1, '{_SETTINGS}', moment,
    moment, 0, moment, moment
FROM (SELECT n, datetime('now', '-' || n || ' minutes') || '.000000' AS moment FROM numbers)
"""
_RUNS = f"""
INSERT INTO policy_runs (id, policy_id, project_id, volume_id, scheduled_at, begin_at, begin_before, status,
    reason, backup_id, tries, tidied, started_at, ended_at, created_at, touched)
{_NUMBERS}
SELECT printf('40000000-0000-4000-8000-%012d', n), '50000000-0000-4000-8000-000000000000', 'project-0',
    '00000000-0000-4000-8000-000000000000', moment, moment, moment, 'ok', NULL,
    printf('10000000-0000-4000-8000-%012d', n % {CHAIN}), 1, 1, moment, moment, moment, 0
FROM (SELECT n, datetime('now', '-' || n || ' hours') || '.000000' AS moment FROM numbers)
"""
#: Its backups are those of its volume.
_MADE = """
UPDATE backups SET policy_id = '50000000-0000-4000-8000-000000000000'
WHERE volume_id = '00000000-0000-4000-8000-000000000000'
"""
_ACTIONS = f"""
INSERT INTO actions (kind, project_id, user_id, resource_id, resource_name, volume_id, request_id, created_at)
{_NUMBERS}
SELECT iif(n % 2, 'backup.create', 'backup.delete'), 'project-' || (n % 10), 'alice',
    printf('10000000-0000-4000-8000-%012d', n), 'nightly ' || (n % {CHAIN}),
    printf('00000000-0000-4000-8000-%012d', n / {CHAIN}), 'req-' || n, datetime('now') || '.000000'
FROM numbers
"""
_USAGE = f"""
INSERT INTO store_usage (store, project_id, day, backups, objects, bytes, recorded_at)
{_NUMBERS}
SELECT 'main', '', date('now', '-' || n || ' days'), n, n, n * 1000000000, datetime('now') || '.000000'
FROM numbers
"""


def _fill(db: Database, rows: int) -> None:
    for statement, count in (
        (_VOLUMES, rows // CHAIN),
        (_MANIFESTS, rows),
        (_BACKUPS, rows),
        (_TASKS, TASKS),
        (_POLICIES, rows // CHAIN),
        (_RUNS, rows // CHAIN),
        (_MADE, 0),
        (_USAGE, 400),
        (_ACTIONS, rows),
    ):
        execute(db.engine, statement, {"rows": count})
    db.renew_statistics()


def _ask(app: Any, path: str, cookie: str = "", **more: Any) -> webob.Response:
    request = webob.Request.blank(path, base_url="http://localhost", **more)
    request.headers.update({"Cookie": cookie, "Sec-Fetch-Site": "same-origin", "Accept-Encoding": "gzip"})
    return request.get_response(app)


def run(table: Table, directory: str, rows: int, rounds: int) -> None:
    """Measure and print; the process is the API's, and the requests come without a network."""
    table.head(
        f"Console: {rows} backups of {rows // CHAIN} volumes on SQLite, {TASKS} tasks;"
        f" processor ms of {rounds * 10}"
    )
    conf = load(argparse.Namespace(config_file=[], state_dir=directory, debug=False)).conf
    database.prepare(conf, make=True, upgrade=True)
    with service.api_application(conf, "token") as api:
        _fill(api.db, rows)
        login = _ask(api.app, "/console/login", POST={"token": "token"})
        jar = http.cookies.SimpleCookie(login.headers["Set-Cookie"])
        cookie = "; ".join(f"{name}={one.value}" for name, one in jar.items())
        middle = f"volumes/00000000-0000-4000-8000-{rows // CHAIN // 2:012}"
        policy = "policies/50000000-0000-4000-8000-000000000000"
        pages = ("health", "now", "volumes", "volumes?name=99", middle, "messages", "messages/done")
        done = ("messages/done?project=project-7", f"messages/done?about={middle.rpartition('/')[2]}")
        for page in (*pages, *done, "policies", "policies/new", policy, f"{policy}/preview", "stores"):
            answer, seconds = _timed(api.app, f"/console/{page}", cookie, rounds * 10)
            _row(table, re.sub("[0-9a-f-]{36}", "ID", page), seconds, AIM_PAGE)
            files = re.findall(r'(?:href|src)="(/console/static/[^"]+)"', answer.text)
            weight = len(answer.body) + sum(len(_ask(api.app, path).body) for path in files)
            table.row("  with all its files", f"{weight / 1000:.0f} kB", "150 kB", weight <= AIM_WEIGHT)
        _, seconds = _timed(api.app, "/console/now", cookie, rounds * 10, {"HX-Request": "true"})
        _row(table, f"refresh of now, {TASKS} tasks", seconds, AIM_REFRESH)


def _timed(
    app: Any, path: str, cookie: str, count: int, headers: dict[str, str] | None = None
) -> tuple[webob.Response, list[float]]:
    seconds = []
    for _ in range(count):
        # The processor's time: nothing waits for anything here but for other processes of the machine.
        begun = time.process_time()
        answer = _ask(app, path, cookie, headers=headers or {})
        seconds.append(time.process_time() - begun)
        if answer.status_int != 200:
            raise RuntimeError(f"{path}: {answer.status}")
    return answer, seconds


def _row(table: Table, what: str, seconds: list[float], aim: float) -> None:
    middle, best = statistics.median(seconds) * 1000, min(seconds) * 1000
    table.row(what, f"{middle:.1f} (best {best:.1f})", f"{aim} ms", middle <= aim)

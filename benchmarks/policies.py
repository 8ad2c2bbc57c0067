"""Backup policies: how long it takes to plan those that are due in one minute, and to apply a retention."""

from __future__ import annotations

import time
import uuid
from contextlib import closing
from datetime import datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

from sqlalchemy import insert

from backupfw.db import models
from backupfw.db.session import Database, now
from backupfw.manager.policies import planning, retention
from backupfw.manager.policies.retention import COUNTS, Rules, Taken
from backupfw.manager.policies.settings import read
from benchmarks.table import Table

PROJECTS = 100
POLICIES = 10_000
BACKUPS = 10_000
#: Seconds.
AIM_PLAN, AIM_RETENTION = 5.0, 1.0


def run(table: Table, directory: str, rounds: int) -> None:
    """Measure and print."""
    table.head(f"{POLICIES} backup policies due in one minute, SQLite; retention of {BACKUPS} backups")
    with closing(Database(f"sqlite:///{Path(directory) / 'policies.sqlite'}")) as db:
        models.Base.metadata.create_all(db.engine)
        _fill(db)
        begin, longest, done = time.perf_counter(), 0.0, 0
        while done < POLICIES:
            started = time.perf_counter()
            done += db.run(lambda session: planning.plan(session, foreign=False))
            longest = max(longest, time.perf_counter() - started)
        seconds = time.perf_counter() - begin
    table.row("all planned", f"{seconds:.2f} s", f"at most {AIM_PLAN:.0f} s", seconds <= AIM_PLAN)
    table.row("longest transaction", f"{longest * 1000:.0f} ms")
    rules = Rules(dict.fromkeys(COUNTS, 30), timedelta(days=2), 3)
    first = datetime(2025, 1, 1)
    taken = [Taken(str(number), first + timedelta(hours=number)) for number in range(BACKUPS)]
    best = min(_seconds(rules, taken) for _ in range(rounds))
    table.row("retention", f"{best * 1000:.0f} ms", f"at most {AIM_RETENTION:.0f} s", best <= AIM_RETENTION)


def _seconds(rules: Rules, taken: list[Taken]) -> float:
    begin = time.perf_counter()
    retention.apply(rules, ZoneInfo("Europe/Berlin"), taken)
    return time.perf_counter() - begin


def _fill(db: Database) -> None:
    """Make policies whose time came a moment ago, and a volume for each project's."""
    words = read(
        {"schedule": {"cron": "30 2 * * *", "timezone": "Europe/Berlin"}, "selection": {"all": True}}
    )
    with db.write() as session:
        moment = now(session)
        session.execute(
            insert(models.BackupPolicy),
            [
                {
                    "id": str(uuid.uuid4()),
                    "project_id": f"project {number % PROJECTS}",
                    "settings": dict(words.words),
                    "next_run_at": moment - timedelta(seconds=number % 60),
                    "planned_at": moment - timedelta(days=1),
                    "created_at": moment,
                }
                for number in range(POLICIES)
            ],
        )
        session.execute(
            insert(models.Volume),
            [
                {
                    "id": str(uuid.uuid4()),
                    "project_id": f"project {number}",
                    "status": "available",
                    "size": 1,
                    "length": 1 << 30,
                    "created_at": moment,
                }
                for number in range(PROJECTS)
            ],
        )

"""What stores hold: how it is recorded, and the console's page of it."""

from __future__ import annotations

from datetime import datetime, timedelta
from threading import Thread
from typing import Any

import pytest
from sqlalchemy import insert, select, update
from sqlalchemy.orm import Session

from backupfw.console import growth
from backupfw.db import models
from backupfw.db.session import now
from backupfw.manager.usecases import stores
from backupfw.manager.usecases.stores import Held, StoreManager
from tests.functional.cloud import Cloud
from tests.functional.test_console import HOSTILE, Browser, made


def _backup(
    cloud: Cloud, number: int, base: int | None, *, project: str = "demo", state: str = "live"
) -> None:
    """Make a backup of 10 objects and 100 bytes, which names 1000, and its manifest."""
    with cloud.db.write() as session:
        moment = now(session)
        manifest = {
            "id": f"m{number}", "store": "main", "container": "c", "key": f"k{number}",
            "key_digest": f"{number:064}", "installation_id": "x", "project_id": project, "volume_id": "v",
            "backup_id": f"b{number}", "base_id": None if base is None else f"m{base}", "state": state,
            "created_at": moment, "block_size": 1, "segment_size": 1, "hash_mode": "blake3",
        }  # fmt: skip
        session.execute(insert(models.Manifest), [manifest])
        backup = {
            "id": f"b{number}", "project_id": project, "volume_id": "v", "status": "available", "size": 1,
            "length": 1, "manifest_id": f"m{number}", "object_count": 10, "stored_bytes": 100,
            "referenced_bytes": 1000, "created_at": moment,
        }  # fmt: skip
        session.execute(insert(models.Backup), [backup])


def _held(cloud: Cloud) -> dict[tuple[str, str], tuple[int, int, int]]:
    row = models.StoreUsage
    with cloud.db.read() as session:
        found = session.scalars(select(row).order_by(row.day)).all()
        return {(one.store, one.project_id): (one.backups, one.objects, one.bytes) for one in found}


def test_what_is_recorded(cloud: Cloud) -> None:
    manager = StoreManager(cloud.db, cloud.conf)
    _backup(cloud, 0, None)
    _backup(cloud, 1, 0)
    _backup(cloud, 2, None, state="gone")
    # Its base is gone, so nobody else is counted with what it shares.
    _backup(cloud, 3, 2, project="other")
    with cloud.db.write() as session:
        # A duplicate of the first one, one that is deleted, and a copy of the second one elsewhere.
        columns = {column.name for column in models.Backup.__table__.columns} - {"id"}
        first = session.get_one(models.Backup, "b0")
        values = {name: getattr(first, name) for name in columns}
        session.execute(insert(models.Backup), [{**values, "id": "b8"}])
        session.execute(insert(models.Backup), [{**values, "id": "b9", "manifest_id": "m1", "deleted": True}])
        node = session.get_one(models.Manifest, "m1")
        there = {column.name: getattr(node, column.key, None) for column in models.Manifest.__table__.columns}
        there = {name: value for name, value in there.items() if value is not None}
        there |= {"id": "m7", "store": "offsite", "key_digest": "7" * 64, "base_id": None, "copied": True}
        session.execute(insert(models.Manifest), [there])
        copy = {"id": "c1", "backup_id": "b1", "store": "offsite", "container": "c", "manifest_id": "m7"}
        copy |= {"status": "available", "created_at": first.created_at}
        session.execute(insert(models.BackupCopy), [copy])
    assert manager.record()
    assert _held(cloud) == {
        ("main", ""): (3, 30, 1000 + 100 + 1000),
        ("main", "demo"): (2, 20, 1000 + 100),
        ("main", "other"): (1, 10, 1000),
        ("offsite", ""): (1, 10, 1000),
        ("offsite", "demo"): (1, 10, 1000),
    }
    assert not manager.record(), "once an hour"
    # An hour later: what a project has no more is gone, and the day has one record.
    with cloud.db.write() as session:
        session.execute(update(models.StoreUsage).values(recorded_at=now(session) - stores.EVERY))
        session.execute(update(models.Backup).where(models.Backup.id == "b3").values(deleted=True))
    assert manager.record()
    held = _held(cloud)
    assert held["main", ""] == (2, 20, 1100)
    assert ("main", "other") not in held
    with cloud.db.read() as session:
        assert len(session.scalars(select(models.StoreUsage.day).distinct()).all()) == 1


def test_records_are_bounded(cloud: Cloud) -> None:
    manager = StoreManager(cloud.db, cloud.conf)
    _backup(cloud, 0, None)
    row = models.StoreUsage
    with cloud.db.write() as session:
        days = [now(session) - timedelta(days=number) for number in (1, 399, 401, 900)]
        numbers = {"backups": 1, "objects": 1, "bytes": 1}
        session.execute(
            insert(row),
            [
                {"store": "main", "project_id": who, "day": f"{day:%Y-%m-%d}", "recorded_at": day, **numbers}
                for day in days
                for who in ("", "demo")
            ],
        )
    assert manager.record()
    with cloud.db.read() as session:
        kept = session.execute(select(row.project_id, row.day).where(row.store == "main")).all()
    today = max(day for _, day in kept)
    assert [day for who, day in kept if who] == [today], "projects only of today"
    assert len(kept) == 2 + 2
    use = manager.uses()[0]
    assert [one.bytes for one in use.history] == [1, 1, 1000]


def test_two_workers_record_it_once(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    _backup(cloud, 0, None)
    first, second = StoreManager(cloud.db, cloud.conf), StoreManager(cloud.db, cloud.conf)
    count, left = stores._counted, [second.record]

    def meanwhile(session: Session) -> object:
        """The other one counts and records while the first has counted and not recorded."""
        found = count(session)
        if left:
            others.append(Thread(target=left.pop()))
        return found

    others: list[Thread] = []
    monkeypatch.setattr(stores, "_counted", meanwhile)
    run = cloud.db.run

    def later(work: Any) -> Any:
        if others:
            thread = others.pop()
            thread.start()
            thread.join()
        return run(work)

    monkeypatch.setattr(cloud.db, "run", later)
    assert first.record()
    assert _held(cloud)["main", "demo"] == (1, 10, 1000)
    assert not second.record()


def test_the_page(cloud: Cloud) -> None:
    app = made(cloud)
    admin = Browser(app, "root:demo:admin")
    assert admin.get("stores").text.count("Nothing was recorded yet") == 2
    for number in range(3):
        _backup(cloud, number, None, project=("demo", HOSTILE[0], "other")[number])
    with cloud.db.write() as session:
        session.execute(update(models.Backup).values(referenced_bytes=3 << 30))
        session.execute(update(models.Manifest).values(created_at=now(session) - timedelta(days=8)))
        copies = [
            {
                "id": f"c{number}", "backup_id": f"b{number}", "store": "offsite", "container": "c",
                "status": status, "created_at": now(session),
            }
            for number, status in enumerate(("copying", "error"))
        ]  # fmt: skip
        session.execute(insert(models.BackupCopy), copies)
        yesterday = now(session) - timedelta(days=1)
        record = {"store": "main", "project_id": "", "day": f"{yesterday:%Y-%m-%d}", "recorded_at": yesterday}
        session.execute(insert(models.StoreUsage), [{**record, "backups": 1, "objects": 5, "bytes": 1 << 30}])
    StoreManager(cloud.db, cloud.conf).record()
    cloud.conf.set_override("price_per_gib_month", 0.02, "store:main")
    cloud.conf.set_override("scrub_days", 7, "store:main")
    text = admin.get("stores").text
    for words in (
        "9 GiB", "30 objects", "0.18 a month", "<td>0.06</td>", "<polyline", "1 not made yet", "overdue",
        "17, of which 2 failed", "alert(1)",
    ):  # fmt: skip
        assert words in text, words
    for role in ("reader", "member"):
        browser = Browser(app, f"alice:demo:{role}")
        browser.get("stores", status=403)
        assert 'href="/console/stores"' not in browser.get("now").text


def test_a_thousand_projects(cloud: Cloud) -> None:
    with cloud.db.write() as session:
        moment = now(session)
        session.execute(
            insert(models.StoreUsage),
            [
                {
                    "store": "main", "project_id": f"{HOSTILE[number % 5]}{number}" if number else "",
                    "day": f"{moment:%Y-%m-%d}", "backups": 1, "objects": 1, "bytes": number,
                    "recorded_at": moment,
                }
                for number in range(1000)
            ],
        )  # fmt: skip
    text = Browser(made(cloud), "root:demo:admin").get("stores").text
    assert "The largest 25 of 999." in text
    assert len(text) < 40_000


def test_the_line_is_to_scale() -> None:
    def held(day: str, size: int) -> Held:
        return Held("main", "", day, 1, 1, size, datetime(2026, 1, 1))

    assert growth.drawn([]) is None
    assert growth.drawn([held("2026-01-01", 5)]) is None
    assert growth.drawn([held("2026-01-01", 0), held("2026-01-02", 0)]) is None
    line = growth.drawn([held("2026-01-01", 0), held("2026-01-03", 50), held("2026-01-05", 100)])
    assert line is not None
    assert line.points == "0.0,120.0 500.0,60.0 1000.0,0.0"
    assert (line.first, line.last, line.most) == ("2026-01-01", "2026-01-05", 100)

"""``GET /backups/{id}/progress``: what an operation does or waits for, and how far it is."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import select, update

from backupfw.db import models
from backupfw.db.session import now
from backupfw.manager.queue.services import BACKUP_BINARY
from backupfw.manager.queue.tasks import Tasks
from backupfw.manager.rows import Task
from tests.functional.cloud import NOBODY, SERVICE, Client, Cloud

IDLE = {
    "phase": "idle",
    "bytes_done": None,
    "bytes_total": None,
    "bytes_per_second": None,
    "comparison": None,
    "seconds_left": None,
    "waits_until": None,
}


def progress(client: Client, backup_id: str) -> dict[str, Any]:
    answer = client.get(f"/backups/{backup_id}/progress").json
    assert set(answer) == {"progress"}
    assert set(answer["progress"]) == set(IDLE)
    shown: dict[str, Any] = answer["progress"]
    return shown


def work(cloud: Cloud) -> None:
    """Let a worker live that can do everything."""
    cloud.managers.services.heartbeat("host", BACKUP_BINARY, "nova", {"main": SERVICE}, {"local": True})


def claim(cloud: Cloud) -> tuple[Tasks, Task]:
    tasks = Tasks(cloud.db)
    task = tasks.claim("host/w", 60)
    assert task is not None
    return tasks, task


def a_while_ago(cloud: Cloud, seconds: float) -> None:
    """Make the worker's last word this old."""
    with cloud.db.write() as session:
        session.execute(update(models.Task).values(progress_at=now(session) - timedelta(seconds=seconds)))


@pytest.mark.parametrize("version", ["v2", "3.0", "latest"])
def test_a_backup_from_its_creation_to_its_end(cloud: Cloud, version: str) -> None:
    member = cloud.client() if version == "v2" else cloud.client().at(version)
    backup_id = (
        cloud.client().post("/backups", {"backup": {"volume_id": cloud.volume()}}).json["backup"]["id"]
    )
    waiting = {**IDLE, "phase": "waiting-for-worker", "bytes_done": 0, "bytes_total": 1 << 30}
    assert progress(member, backup_id) == waiting
    work(cloud)
    assert progress(member, backup_id) == {**waiting, "phase": "queued"}
    tasks, task = claim(cloud)
    assert progress(member, backup_id) == {**waiting, "phase": "creating"}
    tasks.progress(task, 100 << 20, 1 << 30)
    assert progress(member, backup_id) == {**waiting, "phase": "creating", "bytes_done": 100 << 20}
    a_while_ago(cloud, 10)
    tasks.progress(task, 200 << 20, 1 << 30)
    shown = progress(member, backup_id)
    assert shown["bytes_done"] == 200 << 20
    assert shown["bytes_per_second"] == pytest.approx(10 << 20, rel=0.1)
    assert shown["seconds_left"] == pytest.approx(83, abs=9)
    cloud.settle()
    assert progress(member, backup_id) == IDLE


def test_an_attempt_begins_anew(cloud: Cloud, member: Client) -> None:
    work(cloud)
    backup_id = member.post("/backups", {"backup": {"volume_id": cloud.volume()}}).json["backup"]["id"]
    tasks, task = claim(cloud)
    tasks.progress(task, 1 << 20, 1 << 30)
    a_while_ago(cloud, 1)
    tasks.progress(task, 2 << 20, 1 << 30)
    assert progress(member, backup_id)["bytes_per_second"]
    tasks.retry(task, 100, "no")
    assert progress(member, backup_id)["phase"] == "waiting-for-retry"
    with cloud.db.write() as session:
        session.execute(update(models.Task).values(not_before=None))
    tasks, task = claim(cloud)
    tasks.release(task, 100, store_down=True)
    assert progress(member, backup_id)["phase"] == "waiting-for-store"
    with cloud.db.write() as session:
        session.execute(update(models.Task).values(not_before=None))
    tasks, task = claim(cloud)
    shown = progress(member, backup_id)
    assert (shown["phase"], shown["bytes_per_second"], shown["seconds_left"]) == ("creating", None, None)


def test_a_restore_and_a_delete(cloud: Cloud, member: Client) -> None:
    work(cloud)
    backup_id = cloud.backup(cloud.volume())
    member.post(f"/backups/{backup_id}/restore", {"restore": {}})
    assert progress(member, backup_id)["phase"] == "queued"
    claim(cloud)
    assert progress(member, backup_id)["phase"] == "restoring"
    cloud.settle()
    member.delete(f"/backups/{backup_id}")
    claim(cloud)
    shown = progress(member, backup_id)
    assert (shown["phase"], shown["bytes_done"], shown["bytes_total"]) == ("deleting", 0, None)


def test_what_waits_for_a_limit_and_for_another_operation(cloud: Cloud, member: Client) -> None:
    work(cloud)
    cloud.conf.set_override("max_running", 1, "backup")
    volumes = [cloud.volume(), cloud.volume()]
    first, second = (
        member.post("/backups", {"backup": {"volume_id": volume}}).json["backup"]["id"] for volume in volumes
    )
    claim(cloud)
    assert progress(member, first)["phase"] == "creating"
    assert progress(member, second)["phase"] == "waiting-for-limit"
    # Its volume is still occupied by the task that was cancelled.
    cloud.client(roles="admin").post(f"/backups/{first}/action", {"os-force_delete": {}})
    assert progress(member, first)["phase"] == "waiting-for-operation"


def test_progress_is_shown_to_readers_of_the_project(cloud: Cloud, member: Client) -> None:
    backup_id = cloud.backup(cloud.volume())
    cloud.client("other").get(f"/backups/{backup_id}/progress", 404)
    cloud.client(roles="none").get(f"/backups/{backup_id}/progress", 403)
    cloud.client(roles="reader").get(f"/backups/{backup_id}/progress")
    member.get(f"/backups/{NOBODY}/progress", 404)
    with cloud.db.read() as session:
        assert session.scalar(select(models.Task.id)) is None

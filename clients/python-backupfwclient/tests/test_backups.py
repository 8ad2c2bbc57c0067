"""``openstack volume backup progress``, ``cancel`` and ``verify``."""

from __future__ import annotations

import io
import sys
from importlib.metadata import entry_points
from typing import Any

import pytest
from backupfwclient import service
from sqlalchemy import update

from backupfw.db import models
from backupfw.db.session import now
from backupfw.manager.queue.tasks import Tasks
from tests.functional.cloud import NOBODY, Cloud

from .conftest import Outcome, Run


def begin(cloud: Cloud, **values: Any) -> str:
    """Ask for a backup that nobody makes yet; returns its id."""
    body = {"backup": {"volume_id": cloud.volume(), **values}}
    made: str = cloud.client().post("/backups", body).json["backup"]["id"]
    return made


def ends(cloud: Cloud, monkeypatch: pytest.MonkeyPatch, **values: Any) -> None:
    """End all tasks in the first pause of whoever waits, and put these values into the backups."""

    def pause(_seconds: float) -> None:
        cloud.settle()
        if values:
            with cloud.db.write() as session:
                session.execute(update(models.Backup).values(**values))

    monkeypatch.setattr(service.time, "sleep", pause)


def test_the_progress_of_a_running_backup(cloud: Cloud, run: Run) -> None:
    cloud.start_worker()
    backup = begin(cloud, name="monday")
    tasks = Tasks(cloud.db)
    assert tasks.claim("host1/w", 60) is not None
    with cloud.db.write() as session:
        values = {"progress_done": 402653184, "progress_rate": 134217728, "progress_at": now(session)}
        session.execute(update(models.Task).values(**values))
    shown = run("volume", "backup", "progress", "monday", "-f", "json")
    assert shown.status == 0, shown.err
    known = {"id": backup, "status": "creating", "phase": "creating", "bytes_done": 402653184}
    assert shown.json.items() >= known.items()
    assert list(shown.json)[2:] == list(cloud.client().get(f"/backups/{backup}/progress").json["progress"])
    # People read units.
    assert "402.7M" in run("volume", "backup", "progress", backup).out


def test_waiting_for_the_end(cloud: Cloud, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    backup = begin(cloud)
    ends(cloud, monkeypatch)
    terminal = io.StringIO()
    terminal.isatty = lambda: True  # type: ignore[method-assign]
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", terminal)
        shown = run("volume", "backup", "progress", "--wait", backup, "-f", "json")
    assert (shown.status, shown.json["status"], shown.json["phase"]) == (0, "available", "idle")
    assert "\rwaiting-for-worker: 0 of 1.1G (0 %)" in terminal.getvalue()
    # The line is gone when the table comes.
    assert terminal.getvalue().endswith(" \r")


def test_waiting_for_a_deletion(cloud: Cloud, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    backup = cloud.backup(cloud.volume())
    cloud.client().delete(f"/backups/{backup}")
    ends(cloud, monkeypatch)
    shown = run("volume", "backup", "progress", "--wait", backup, "-f", "json")
    assert (shown.status, shown.json["status"], shown.json["phase"]) == (0, "deleted", "idle")
    assert len(shown.json) == 9


def test_waiting_for_what_fails(cloud: Cloud, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    backup = begin(cloud)
    ends(cloud, monkeypatch, status="error", fail_reason="The volume could not be read.")
    done = run("volume", "backup", "progress", "--wait", backup)
    assert done.status == 1
    assert done.err.strip() == f"Backup {backup} is error: The volume could not be read."
    assert done.out == ""


def test_cancelling(cloud: Cloud, run: Run) -> None:
    over = cloud.backup(cloud.volume(), name="over")
    bodies = [{"backup": {"volume_id": cloud.volume()}} for _ in range(3)]
    first, last, other = [cloud.client().post("/backups", body).json["backup"]["id"] for body in bodies]
    done = run("volume", "backup", "cancel", first, "over", last)
    # One that is refused does not keep the others from it.
    refused, summary = done.err.splitlines()
    assert over in refused
    assert refused.endswith("its status is available. (HTTP 400)")
    assert (done.status, summary) == (1, "1 of 3 backups not cancelled.")
    assert run("volume", "backup", "cancel", other) == Outcome(0, "", "")
    for backup in (first, last, other):
        assert "cancelled" in cloud.client().get(f"/backups/{backup}").json["backup"]["fail_reason"]
    assert cloud.client().get(f"/backups/{over}").json["backup"]["status"] == "available"


def test_verifying(cloud: Cloud, run: Run) -> None:
    backup = cloud.backup(cloud.volume(), name="monday")
    assert run("volume", "backup", "verify", "monday") == Outcome(0, "", "")
    again = run("volume", "backup", "verify", backup)
    assert (again.status, "already being verified" in again.err) == (1, True)
    shown = run("volume", "backup", "progress", "monday", "-f", "json")
    assert (shown.json["status"], shown.json["phase"]) == ("available", "waiting-for-worker")
    assert run("volume", "backup", "cancel", "monday") == Outcome(0, "", "")
    assert cloud.client().get(f"/backups/{backup}").json["backup"]["status"] == "available"


@pytest.mark.parametrize(
    "words", [("progress",), ("cancel",), ("verify",), ("copy", "list"), ("copy", "create")]
)
def test_a_backup_that_is_not_there(run: Run, words: tuple[str, ...]) -> None:
    done = run("volume", "backup", *words, NOBODY, *(["offsite"] if "create" in words else []))
    assert done.status == 1
    assert f"No Backup found for {NOBODY}" in done.err
    assert "Traceback" not in done.err


def test_a_service_that_is_not_backupfw(cloud: Cloud, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    backup = cloud.backup(cloud.volume())
    real = service.Service.get
    monkeypatch.setattr(service.Service, "get", lambda self, path, key: real(self, f"{path}-of-another", key))
    for words in (("progress",), ("copy", "list")):
        done = run("volume", "backup", *words, backup)
        assert done.status == 1
        assert "not backupfw" in done.err


def test_no_command_of_openstackclient_is_shadowed() -> None:
    for group in ("openstack.volume.v2", "openstack.volume.v3"):
        theirs, ours = set(), set()
        for point in entry_points(group=group):
            (ours if point.value.startswith("backupfwclient.") else theirs).add(point.name)
        assert len(ours) == (16 if group.endswith("3") else 6)
        assert not ours & theirs
        # The command takes the longest name that it knows: none of ours begins with a whole name of theirs.
        assert not [name for name in ours if any(name.startswith(f"{other}_") for other in theirs)]

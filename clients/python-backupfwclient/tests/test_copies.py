"""``openstack volume backup copy create``, ``list`` and ``delete``."""

from __future__ import annotations

import pytest
from backupfwclient import service
from sqlalchemy import update

from backupfw.db import models
from tests.functional.cloud import Cloud

from .conftest import Run


def copies(cloud: Cloud, backup: str) -> list[tuple[str, str]]:
    """Store and status of each copy."""
    found = cloud.client().get(f"/backups/{backup}/copies").json["copies"]
    return [(copy["store"], copy["status"]) for copy in found]


def test_a_copy_from_creation_to_deletion(cloud: Cloud, run: Run) -> None:
    backup = cloud.backup(cloud.volume(), name="monday")
    made = run("volume", "backup", "copy", "create", "monday", "offsite", "-f", "json")
    assert made.status == 0, made.err
    assert (made.json["store"], made.json["status"]) == ("offsite", "copying")
    cloud.settle()
    listed = run("volume", "backup", "copy", "list", backup, "-f", "json").json
    assert [(row["Store"], row["Status"], row["Fail Reason"]) for row in listed] == [
        ("offsite", "available", None)
    ]
    assert run("volume", "backup", "copy", "delete", backup, "offsite").status == 0
    assert copies(cloud, backup) == []
    assert run("volume", "backup", "copy", "list", backup, "-f", "json").json == []


@pytest.mark.parametrize("fails", [False, True])
def test_waiting_for_a_copy(cloud: Cloud, run: Run, monkeypatch: pytest.MonkeyPatch, fails: bool) -> None:
    backup = cloud.backup(cloud.volume())

    def pause(_seconds: float) -> None:
        cloud.settle()
        if fails:
            with cloud.db.write() as session:
                values = {"status": "error", "fail_reason": "The store is full."}
                session.execute(update(models.BackupCopy).values(**values))

    monkeypatch.setattr(service.time, "sleep", pause)
    done = run("volume", "backup", "copy", "create", "--wait", backup, "offsite", "-f", "json")
    if fails:
        assert done.status == 1
        assert done.err.strip() == f"The copy of {backup} in offsite is error: The store is full."
    else:
        assert (done.status, done.json["status"]) == (0, "available")


def test_what_the_service_refuses_is_said_in_its_words(cloud: Cloud, run: Run) -> None:
    backup = cloud.backup(cloud.volume())
    body = {"os-backupfw-copy": {"store": "nowhere"}}
    answer = cloud.client().post(f"/backups/{backup}/action", body, 400).json
    done = run("volume", "backup", "copy", "create", backup, "nowhere")
    assert done.status == 1
    assert done.err.strip() == f"{answer['badRequest']['message']} (HTTP 400)"
    assert run("volume", "backup", "copy", "delete", backup, "offsite").status == 1

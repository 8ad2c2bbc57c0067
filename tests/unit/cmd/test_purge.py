"""``backupfw db purge``."""

from __future__ import annotations

import pytest

from backupfw.manager.operators import purge
from tests.unit.cmd.conftest import Run

NOTHING = "0 backups, 0 snapshots, 0 volumes, 0 manifests, 0 damaged objects"


def test_a_purge_counts_what_it_removes_and_needs_a_date(run: Run, backup_id: str) -> None:
    done = run("db", "purge", "--before", "2026-01-31", "--dry-run")
    assert (done.status, done.out) == (0, f"{NOTHING} would be removed\n")
    done = run("db", "purge", "--before", "2099-01-31T12:00:00+02:00")
    assert (done.status, done.out) == (0, f"{NOTHING} removed\n")
    assert run("db", "purge").status == 2
    done = run("db", "purge", "--before", "yesterday")
    assert done.status == 2
    assert "'yesterday' is no date" in done.err


def test_one_is_not_called_several(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run("db", "sync").status == 0
    monkeypatch.setattr(purge, "run", lambda *_, **__: {"backups": 1, "damaged objects": 2})
    assert run("db", "purge", "--before", "2026-01-31").out == "1 backup, 2 damaged objects removed\n"

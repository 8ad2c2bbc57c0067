"""``backupfw db purge``."""

from __future__ import annotations

from tests.unit.cmd.conftest import Run

NOTHING = "0 backups, 0 snapshots, 0 volumes, 0 manifests, 0 damaged objects"


def test_purge(run: Run, backup_id: str) -> None:
    done = run("db", "purge", "--before", "2026-01-31", "--dry-run")
    assert (done.status, done.out) == (0, f"{NOTHING}\n")
    done = run("db", "purge", "--before", "2099-01-31T12:00:00+02:00")
    assert (done.status, done.out) == (0, f"{NOTHING} removed\n")
    assert run("db", "purge").status == 2
    done = run("db", "purge", "--before", "yesterday")
    assert done.status == 2
    assert "'yesterday' is no date" in done.err

"""The tables of states and moves, and the one UPDATE that carries a move out."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import pytest
from sqlalchemy import update

from backupfw.db import models
from backupfw.db.session import now
from backupfw.manager.lineage import lifecycle
from backupfw.manager.lineage.lifecycle import (
    ANY,
    PREVIOUS,
    BackupMoves,
    CopyMoves,
    FailingMove,
    Move,
    SnapshotMoves,
    VolumeMoves,
)
from backupfw.manager.rules import failures
from tests.unit.manager.support import World

MACHINES = (BackupMoves, CopyMoves, VolumeMoves, SnapshotMoves)
KINDS = (models.Backup, models.BackupCopy, models.Volume, models.Snapshot)
PAGE = Path(__file__).parents[3] / "docs" / "lifecycle.md"


def _first(machine: type) -> str:
    return lifecycle.COPYING if machine is CopyMoves else lifecycle.CREATING


def _states(machine: type) -> set[str]:
    found = {_first(machine)}
    for step in lifecycle.moves(machine):
        found |= {*step.sources, step.target}
    return found - {ANY, PREVIOUS, lifecycle.DELETED}


def test_the_statuses_of_volumes_are_those_of_moves_and_of_resets() -> None:
    found = lifecycle.volume_statuses()
    assert found == _states(VolumeMoves) | {*lifecycle.RESETS[models.Volume]}
    # One that is in the moves only, one that is in the resets only, and none that is no status of a volume.
    assert {lifecycle.BACKING_UP, lifecycle.MANAGING} <= found
    assert not found & {ANY, PREVIOUS, lifecycle.DELETED, lifecycle.RESTORING}


@pytest.mark.parametrize("machine", MACHINES)
def test_every_status_can_be_reached_and_left(machine: type) -> None:
    steps = list(lifecycle.moves(machine))
    remembered = {source for step in steps if step.remember for source in step.sources}
    reached = {_first(machine)} | {step.target for step in steps} | remembered
    left = {source for step in steps for source in step.sources}
    for status in _states(machine):
        assert status in reached, status
        assert status in left or ANY in left, status
        # No transient status is the end: besides an administrator's force there is a way out.
        if status in lifecycle.TRANSIENT:
            ways = [step for step in steps if status in step.sources and step.target != status]
            assert ways, status


def test_the_page_shows_the_tables() -> None:
    assert lifecycle.mermaid() in PAGE.read_text()


def test_what_fails_is_reported() -> None:
    """A move to an error status is a failing one, which cannot be made without a message."""
    # An administrator said so; what a restore does to its target, of which the backup's move tells.
    silent = {
        BackupMoves.reset_error,
        VolumeMoves.restore_failed,
        VolumeMoves.restore_of_new_failed,
    }
    for machine in MACHINES:
        for step in lifecycle.moves(machine):
            assert not step.target.startswith("error") or isinstance(step, FailingMove) or step in silent, (
                step
            )
    table = {(failure.model, failure.step.name) for failure in failures.FAILURES.values()}
    table |= {(failures.FAILURES[kind].model, step.name) for kind, step in failures.REFUSALS.items()}
    # Of a backup that stays as it is.
    table.add((models.BackupCopy, CopyMoves.copy_failed.name))
    failing = {
        (model, step.name)
        for machine, model in zip(MACHINES, KINDS, strict=True)
        for step in lifecycle.moves(machine)
        if isinstance(step, FailingMove)
    }
    assert table == failing


def test_a_move_is_refused_from_any_other_status() -> None:
    world = World()
    for machine, model, make in (
        (VolumeMoves, models.Volume, world.volume),
        (SnapshotMoves, models.Snapshot, lambda status: world.snapshot(world.volume(), status=status)),
    ):
        for status in _states(machine):
            for step in lifecycle.moves(machine):
                row_id = make(status=status)
                with world.db.write() as session:
                    told: list[bool] = []
                    if isinstance(step, FailingMove):
                        moved = lifecycle.fail(session, model, row_id, step, lambda t=told: t.append(True))
                    else:
                        assert isinstance(step, Move)
                        moved = lifecycle.move(session, model, row_id, step)
                allowed = step.sources == (ANY,) or status in step.sources
                assert moved is allowed, (status, step)
                # Whoever asked for what failed is told, if it did.
                assert bool(told) is (allowed and isinstance(step, FailingMove))
                row = world.row(model, row_id)
                expected = {PREVIOUS: lifecycle.AVAILABLE}.get(step.target, step.target)
                assert row.status == (expected if allowed else status)
                assert row.deleted is (allowed and step.target == lifecycle.DELETED)
                assert row.previous_status == (status if allowed and step.remember else None)


def test_a_move_sees_pending_changes_and_refreshes_what_is_loaded() -> None:
    world = World()
    volume = world.volume(status="in-use")
    with world.db.write() as session:
        row = session.get_one(models.Volume, volume)
        row.display_name = "changed"
        assert lifecycle.move(session, models.Volume, volume, VolumeMoves.back_up_forced, bootable=True)
        assert (row.status, row.previous_status, row.bootable) == ("backing-up", "in-use", True)
        assert row.display_name == "changed"
        assert lifecycle.move(session, models.Volume, volume, VolumeMoves.backed_up)
        assert (row.status, row.previous_status) == ("in-use", None)


def test_a_move_notes_when_it_was_made() -> None:
    """Unless the caller says when that was."""
    world = World()
    volume = world.volume()
    before = datetime(2020, 1, 1)
    with world.db.write() as session:
        session.execute(update(models.Volume).values(updated_at=before))
        start = now(session)
        assert lifecycle.move(session, models.Volume, volume, VolumeMoves.attach)
        end = now(session)
    assert start <= world.row(models.Volume, volume).updated_at <= end
    with world.db.write() as session:
        assert lifecycle.move(session, models.Volume, volume, VolumeMoves.detach, updated_at=before)
    assert world.row(models.Volume, volume).updated_at == before


def test_what_is_deleted_does_not_move() -> None:
    world = World()
    volume = world.volume(deleted=True)
    with world.db.write() as session:
        assert not lifecycle.move(session, models.Volume, volume, VolumeMoves.force_delete)
        assert not lifecycle.move(session, models.Volume, "nowhere", VolumeMoves.force_delete)
        with pytest.raises(TypeError):
            lifecycle.move(session, models.Backup, "x", Move("x", ("creating",), PREVIOUS))

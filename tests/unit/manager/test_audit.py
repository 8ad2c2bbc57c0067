"""The audit of the database: each kind of fault, planted, is found; a world at work is clean."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import delete, event, insert, update

from backupfw.db import models
from backupfw.db.installation import installation_id
from backupfw.db.session import Database, now
from backupfw.manager.lineage.tree import Node, Tree
from backupfw.manager.operators import audit
from backupfw.manager.queue import tasks
from backupfw.manager.rules import quota
from tests.unit.manager.support import World
from tests.unit.tables import copy

LEASE = 60.0


def found(world: World) -> list[tuple[str, str]]:
    """What the audit finds: the check and the problem."""
    return [(one.check, one.problem) for one in audit.run(world.db, LEASE)]


def change(world: World, model: Any, row_id: Any, **values: Any) -> None:
    with world.db.write() as session:
        session.execute(update(model).where(model.id == row_id).values(**values))


def drop_tasks(world: World) -> None:
    with world.db.write() as session:
        session.execute(delete(models.Task))


@pytest.fixture(scope="module")
def made() -> World:
    """Two backups, one upon the other."""
    world = World()
    volume = world.volume()
    first = world.backup(volume)
    world.backup(volume, incremental=True)
    world.first = first.id  # type: ignore[attr-defined]
    world.volume_id = volume  # type: ignore[attr-defined]
    assert found(world) == []
    return world


@pytest.fixture
def world(made: Any) -> Any:
    """Return a world of the test's own with the same."""
    world: Any = World()
    copy(made.db, world.db)
    world.first, world.volume_id = made.first, made.volume_id
    return world


def test_a_world_at_work_is_clean(world: Any) -> None:
    ctx = world.ctx()
    other = world.volume()
    snapshot = world.snapshot(other)
    world.backups.create(ctx, volume_id=world.volume_id)
    world.backups.create(ctx, volume_id=other, snapshot_id=snapshot)
    world.backups.restore(ctx, world.first)
    assert found(world) == []
    creating = world.claim(tasks.BACKUP_CREATE)
    world.outcomes.creating.start(creating)
    world.outcomes.creating.begin_temp_snapshot(creating)
    assert found(world) == []
    world.run_restore()
    world.backups.delete(ctx, world.first)
    deleting = world.claim(tasks.BACKUP_DELETE)
    world.outcomes.deleting.start(deleting)
    assert found(world) == []
    world.outcomes.deleting.fail(deleting, "no")
    world.backups.force_delete(world.ctx(admin=True), creating.resource_id)
    assert found(world) == []


def test_transient_statuses_without_a_task(world: Any) -> None:
    world.backups.create(world.ctx(), volume_id=world.volume_id)
    world.backups.restore(world.ctx(), world.first)
    drop_tasks(world)
    problems = {one.subject.split()[0] + " " + one.problem for one in audit.run(world.db, LEASE)}
    assert problems == {
        "backup is creating, but no task is about it",
        "backup is restoring, but no task is about it",
        "volume is backing-up, but no task is about it",
        "volume is restoring-backup, but no task is about it",
    }


@pytest.mark.parametrize(
    ("model", "status"),
    [
        (models.Backup, "deleting"),
        (models.Backup, "error_deleting"),
        (models.Volume, "creating"),
        (models.Volume, "deleting"),
        (models.Volume, "extending"),
        (models.Snapshot, "creating"),
        (models.Snapshot, "deleting"),
        (models.Snapshot, "backing-up"),
    ],
)
def test_every_transient_status_needs_a_task(world: Any, model: Any, status: str) -> None:
    row_id = {models.Backup: world.first, models.Volume: world.volume_id}.get(model)
    change(world, model, row_id or world.snapshot(world.volume_id), status=status)
    assert ("status", f"is {status}, but no task is about it") in found(world)


def test_a_cancelled_task_leads_nowhere(world: Any) -> None:
    world.backups.create(world.ctx(), volume_id=world.volume_id)
    task = world.claim()
    change(world, models.Task, task.id, cancel=True)
    assert ("status", "is creating, but no task is about it") in found(world)


def test_a_lease_that_nobody_took_over(world: Any) -> None:
    world.backups.create(world.ctx(), volume_id=world.volume_id)
    task = world.claim()
    world.outcomes.creating.start(task)
    with world.db.read() as session:
        moment = now(session)
    change(world, models.Task, task.id, lease_until=moment - timedelta(seconds=LEASE / 2))
    assert found(world) == []
    change(world, models.Task, task.id, lease_until=moment - timedelta(seconds=LEASE * 2))
    [(check, problem)] = found(world)
    assert check == "lease"
    assert problem.endswith("s ago and nobody took it over")
    change(world, models.Task, task.id, lease_until=None)
    assert found(world) == [("lease", "is running without a lease")]


def test_a_task_that_nothing_waits_for(world: Any) -> None:
    backup = world.backups.create(world.ctx(), volume_id=world.volume_id)
    change(world, models.Backup, backup.id, status="error")
    assert ("task", "the backup is error") in found(world)
    change(world, models.Backup, backup.id, deleted=True)
    assert ("task", "the backup does not exist") in found(world)


def test_a_temporary_snapshot_that_was_left(world: Any) -> None:
    snapshot = world.snapshot(world.volume_id)
    change(world, models.Snapshot, snapshot, temporary=True)
    assert found(world) == [("snapshot", "is temporary and available, but of no task")]


def manifest_of(world: Any, backup_id: str) -> str:
    return str(world.row(models.Backup, backup_id).manifest_id)


#: What is planted, and which problem it makes.
LINEAGE: dict[str, tuple[Callable[[Any, str], None], str]] = {
    "available without a manifest": (
        lambda world, _: change(world, models.Backup, world.first, manifest_id=None),
        "is available without a manifest",
    ),
    "manifest gone": (
        lambda world, manifest: change(world, models.Manifest, manifest, state="gone"),
        "is available, but its manifest is gone",
    ),
    "another place": (
        lambda world, _: change(world, models.Backup, world.first, container="elsewhere"),
        "says another place or length than its manifest's row",
    ),
    "live and unnamed": (
        lambda world, _: change(world, models.Backup, world.first, manifest_id=None),
        "is live, but no backup names it",
    ),
    "released and forgotten": (
        lambda world, manifest: change(world, models.Manifest, manifest, state="released"),
        "is released, but no task is about it",
    ),
    "writing and forgotten": (
        lambda world, manifest: change(world, models.Manifest, manifest, state="writing"),
        "is writing, but no task is about it",
    ),
    "writing with a key": (
        lambda world, manifest: change(world, models.Manifest, manifest, state="writing"),
        "is writing and has a key",
    ),
    "live without a key": (
        lambda world, manifest: change(world, models.Manifest, manifest, key=None),
        "is live and has no key",
    ),
    "digest": (
        lambda world, manifest: change(world, models.Manifest, manifest, key_digest="0" * 64),
        "its digest is not that of its key",
    ),
    "circle": (
        lambda world, manifest: change(world, models.Manifest, manifest, base_id=manifest),
        "its line of bases never ends",
    ),
    "base elsewhere": (
        lambda world, manifest: change(world, models.Manifest, manifest, store="offsite"),
        "its base is not in its tree",
    ),
    "contraction missed": (
        lambda world, manifest: change(world, models.Manifest, manifest, state="gone"),
        "a gone one in its tree is no fork",
    ),
    "foreign in a tree": (
        lambda world, manifest: change(world, models.Manifest, manifest, installation_id="other"),
        "is of another installation, but in a tree of this one",
    ),
}


@pytest.mark.parametrize("case", LINEAGE)
def test_each_fault_of_the_lineage_is_found(world: Any, case: str) -> None:
    plant, problem = LINEAGE[case]
    plant(world, manifest_of(world, world.first))
    assert ("lineage", problem) in found(world)


@st.composite
def forests(draw: st.DrawFn) -> list[Node]:
    """Manifests of one volume; the bases of some are in a circle."""
    count = draw(st.integers(1, 8))
    return [
        Node(
            f"{number:036x}",
            draw(st.sampled_from([None, *(f"{base:036x}" for base in range(count))])),
            draw(st.sampled_from(["live", "gone", "released"])),
            draw(st.integers(0, 5)) == 0,
        )
        for number in range(count)
    ]


def endless(nodes: list[Node]) -> set[str]:
    bases = {node.id: node.base_id for node in nodes}
    found = set()
    for node in nodes:
        here: str | None = node.id
        for _ in nodes:
            here = bases[here] if here is not None else None
        if here is not None:
            found.add(node.id)
    return found


def planted(world: World, nodes: Sequence[Node]) -> None:
    """Enter these manifests, and no others."""
    with world.db.write() as session:
        same = {
            "store": "s", "container": "c", "project_id": "p", "installation_id": installation_id(session),
            "volume_id": "v", "backup_id": "b", "in_tree": True, "block_size": 1, "segment_size": 1,
            "hash_mode": "h", "touched": 0, "created_at": now(session), "updated_at": now(session),
        }  # fmt: skip
        session.execute(update(models.Manifest).values(base_id=None))
        session.execute(delete(models.Manifest))
        values = [{"id": one.id, "state": one.state, "detached": one.detached, **same} for one in nodes]
        session.execute(insert(models.Manifest), values)
        # When all bases are there.
        bases = [{"id": one.id, "base_id": one.base_id} for one in nodes]
        session.execute(update(models.Manifest), bases)


@given(nodes=forests())
@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
def test_trees_are_judged_as_the_lineage_contracts_them(any_db: Database, nodes: list[Node]) -> None:
    world = World(database=any_db)
    planted(world, nodes)
    wrong: dict[str, set[str]] = {}
    for one in audit.run(world.db, LEASE):
        wrong.setdefault(one.problem, set()).add(one.subject.removeprefix("manifest "))
    circular = endless(nodes)
    assert wrong.get("its line of bases never ends", set()) == circular
    if not circular:
        dropped = {one for one, (_base, stays) in Tree(nodes).contract().items() if not stays}
        no_forks = wrong.get("a gone one in its tree is no fork", set())
        # The removal of one may make another one superfluous.
        assert no_forks <= dropped
        assert bool(no_forks) == bool(dropped)


def test_memory_does_not_grow_with_a_tree() -> None:
    """A volume with 10 000 backups, each upon the one before."""
    ids = [f"{number:036x}" for number in range(10_000)]
    world = World()
    planted(world, [Node(one, base, "gone") for one, base in zip(ids, [None, *ids], strict=False)])
    audit.run(world.db, LEASE)
    tracemalloc.start()
    try:
        audit.run(world.db, LEASE)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2 << 20


def test_a_journal_of_a_finished_manifest(world: Any) -> None:
    manifest_id = manifest_of(world, world.first)
    with world.db.write() as session:
        session.add(models.Segment(manifest_id=manifest_id, epoch=1, seg_index=0, entry=b""))
    assert found(world) == [("lineage", "is not being written, but has a journal")]


def test_a_child_of_what_is_not_live(world: Any) -> None:
    world.backups.create(world.ctx(), volume_id=world.volume_id, incremental=True)
    task = world.claim()
    plan = world.outcomes.creating.start(task)
    change(world, models.Manifest, plan.base.id, state="released")
    assert ("lineage", "is being made from one that is released") in found(world)


def test_rows_that_count_wrongly_are_found(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    change(world, models.Backup, world.first, size=0)
    [(check, problem)] = found(world)
    assert (check, problem) == ("usage", f"counts with 0 GiB, but has {1 << 30} bytes")
    # The header of an encrypted volume does not count.
    change(world, models.Backup, world.first, size=1, length=(1 << 30) + 4096, encryption_key_id="k" * 36)
    assert "usage" not in dict(found(world))
    change(world, models.Backup, world.first, length=1 << 30, encryption_key_id=None)
    change(world, models.Backup, world.first, size=1, status="deleted")
    assert ("usage", "counts, though its status is deleted") in found(world)
    change(world, models.Backup, world.first, status="available")
    honest = quota.usage_of

    def drifted(*arguments: Any) -> dict[str, int]:
        return {**honest(*arguments), "backups": 7}

    monkeypatch.setattr(quota, "usage_of", drifted)
    assert found(world) == [("usage", "backups: 7 are counted as used, the rows are 2")]


def test_usage_of_more_projects_than_are_counted_at_a_time(
    world: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit, "PROJECTS", 2)
    for number in range(5):
        volume = world.volume(f"q{number}")
        if number % 2:
            world.snapshot(volume, f"r{number}")
    assert found(world) == []
    monkeypatch.setattr(quota, "usage_of", lambda *_: dict.fromkeys(quota.RESOURCES, 0))
    wrong = {one.subject for one in audit.run(world.db, LEASE) if one.check == "usage"}
    assert wrong == {f"project {name}" for name in ("p1", "q0", "q1", "q2", "q3", "q4", "r1", "r3")}


def test_a_database_in_which_all_is_wrong_does_not_report_all(
    world: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit, "MOST", 3)
    for _ in range(5):
        change(world, models.Snapshot, world.snapshot(world.volume_id), temporary=True)
    change(world, models.Backup, world.first, manifest_id=None)
    told = found(world)
    assert told.count(("snapshot", "is temporary and available, but of no task")) == 3
    assert ("snapshot", "beside the first 3 of this check") in told
    assert ("lineage", "is available without a manifest") in told
    assert "2 more" in {one.subject for one in audit.run(world.db, LEASE)}


def test_the_number_of_statements_does_not_depend_on_the_rows(world: Any) -> None:
    def asked() -> int:
        said: list[str] = []

        def hear(_c: Any, _cursor: Any, statement: str, *_: Any) -> None:
            said.append(statement)

        event.listen(world.db.engine, "before_cursor_execute", hear)
        try:
            audit.run(world.db, LEASE)
        finally:
            event.remove(world.db.engine, "before_cursor_execute", hear)
        return len(said)

    before = asked()
    for _ in range(5):
        volume = world.volume()
        world.backup(volume)
        world.backups.create(world.ctx(), volume_id=volume)
        world.outcomes.creating.begin_temp_snapshot(world.claim(tasks.BACKUP_CREATE))
    assert asked() == before

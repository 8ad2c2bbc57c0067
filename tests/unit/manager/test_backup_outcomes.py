"""What a worker reports: plans, epochs, commits, releases, retries."""

from __future__ import annotations

import base64
import json
import uuid
from dataclasses import replace

import pytest
from sqlalchemy import select

from backupfw import errors
from backupfw.db import models
from backupfw.manager.lineage import lifecycle
from backupfw.manager.outcomes.backups import CreatePlan
from backupfw.manager.queue import tasks, waiting
from backupfw.manager.queue.claims import Limits
from tests.unit.manager.support import World, check_consistent


@pytest.fixture
def world() -> World:
    return World()


def begin(world: World, volume: str, **arguments: object) -> tuple[str, tasks.Task, CreatePlan]:
    """Start the creation of a backup."""
    made = world.backups.create(world.ctx(), volume_id=volume, **arguments)  # type: ignore[arg-type]
    task = world.claim(tasks.BACKUP_CREATE)
    return made.id, task, world.outcomes.creating.start(task)


def test_the_first_claim_fixes_what_is_made(world: World) -> None:
    volume = world.volume()
    parent = world.backup(volume)
    backup_id, task, plan = begin(world, volume, incremental=True)
    assert plan.base is not None
    assert plan.base.key == parent.service_metadata
    assert (plan.epoch, plan.attempt, plan.block_size, plan.key_id) == (1, 1, 65536, None)
    assert plan.installation_id == world.outcomes.installation_id()
    world.outcomes.creating.bind_source(task, "one", "full backup")
    world.outcomes.creating.record_segments(task, [(2, b"b"), (0, b"a")])
    world.backup(world.volume())
    world.age(seconds=61)
    task = world.claim(tasks.BACKUP_CREATE)
    again = world.outcomes.creating.start(task)
    assert (again.base, again.epoch, again.manifest_id) == (plan.base, 1, plan.manifest_id)
    assert (again.attempt, task.failures) == (2, 0)
    assert world.outcomes.creating.bind_source(task, "one", "full backup").epoch == 1
    assert list(world.outcomes.creating.finished_segments(plan.manifest_id, 1)) == [(0, b"a"), (2, b"b")]
    done = world.outcomes.creating.finish(task, world.result(again))
    assert done.id == backup_id
    assert world.rows(models.Segment) == []
    check_consistent(world)


def test_another_source_starts_a_new_epoch(world: World) -> None:
    _, task, plan = begin(world, world.volume())
    world.outcomes.creating.bind_source(task, "one", "full backup")
    world.outcomes.creating.record_segments(task, [(0, b"a")])
    plan = world.outcomes.creating.bind_source(task, "two", "full backup")
    assert (plan.epoch, plan.source_identity) == (2, "two")
    assert list(world.outcomes.creating.finished_segments(plan.manifest_id, 1)) == []
    world.outcomes.creating.record_segments(task, [(0, b"b")])
    world.outcomes.creating.record_segments(task, [(0, b"c"), (1, b"d")])
    assert list(world.outcomes.creating.finished_segments(plan.manifest_id, 2)) == [(0, b"c"), (1, b"d")]


def test_another_geometry_starts_a_new_epoch_without_the_base(world: World) -> None:
    volume = world.volume()
    parent = world.backup(volume)
    _, task, _ = begin(world, volume, incremental=True)
    world.outcomes.creating.record_segments(task, [(0, b"a")])
    # The parent's record goes; only the child keeps its data.
    world.backups.delete(world.ctx(), parent.id)
    assert not world.run_delete()
    world.conf.backup.block_size = 4096
    world.age(seconds=61)
    task = world.claim(tasks.BACKUP_CREATE)
    again = world.outcomes.creating.start(task)
    assert (again.epoch, again.base, again.block_size) == (2, None, 4096)
    assert world.rows(models.Segment) == []
    check_consistent(world)
    assert world.run_releases() == 1
    world.outcomes.creating.finish(task, world.result(again))
    check_consistent(world)


@pytest.mark.parametrize("change", ["container", "block_size", "project", "deleted", "released"])
def test_who_cannot_be_a_base(world: World, change: str) -> None:
    volume = world.volume()
    parent = world.backup(volume)
    arguments: dict[str, object] = {"incremental": True}
    if change == "container":
        arguments["container"] = "elsewhere"
    made = world.backups.create(world.ctx(), volume_id=volume, **arguments)  # type: ignore[arg-type]
    if change == "block_size":
        world.conf.backup.block_size = 4096
    elif change == "project":
        with world.db.write() as session:
            session.get(models.Backup, parent.id).project_id = "p2"  # type: ignore[union-attr]
    elif change == "deleted":
        world.backups.delete(world.ctx(), parent.id)
        world.run_delete()
    elif change == "released":
        with world.db.write() as session:
            session.get(models.Manifest, parent.manifest_id).state = "released"  # type: ignore[union-attr]
    plan = world.outcomes.creating.start(world.claim(tasks.BACKUP_CREATE))
    assert plan.base is None
    assert world.backups.get(world.ctx(), made.id).parent_id == parent.id


def test_a_duplicate_in_another_project_shares_nothing_there(world: World) -> None:
    volume = world.volume("p2")
    world.backup(volume, "p2")
    (manifest,) = world.rows(models.Manifest)
    admin = world.ctx("p1", admin=True)
    original = world.rows(models.Backup)[0]
    _, url = world.backups.export_record(admin, original.id)
    record = json.loads(base64.b64decode(url))
    record["id"] = str(uuid.uuid4())
    world.backups.import_record(
        admin,
        backup_service=original.service,
        backup_url=base64.b64encode(json.dumps(record).encode()).decode(),
    )
    world.outcomes.importing.finish(world.claim(), world.facts(manifest))
    world.backups.create(admin, volume_id=volume, incremental=True)
    assert world.outcomes.creating.start(world.claim()).base is None


def test_a_stale_attempt_commits_nothing(world: World) -> None:
    backup_id, old, old_plan = begin(world, world.volume())
    world.age(seconds=61)
    new = world.claim(tasks.BACKUP_CREATE)
    plan = world.outcomes.creating.start(new)
    for call in (
        lambda: world.outcomes.creating.start(old),
        lambda: world.outcomes.creating.bind_source(old, "x", "full backup"),
        lambda: world.outcomes.creating.record_segments(old, [(0, b"")]),
        lambda: world.outcomes.creating.finish(old, world.result(old_plan)),
        lambda: world.outcomes.creating.fail(old, "no"),
    ):
        with pytest.raises(errors.TaskLost):
            call()
    assert world.status(backup_id) == "creating"
    done = world.outcomes.creating.finish(new, world.result(plan))
    with pytest.raises(errors.TaskLost):
        world.outcomes.creating.fail(new, "no")
    assert world.status(done.id) == "available"


def test_what_becomes_of_an_announced_key_is_decided_once(world: World) -> None:
    backup_id, task, plan = begin(world, world.volume())
    result = world.result(plan)
    world.outcomes.creating.announce_manifest(task, "k/lost")
    # The answer of the first may have been lost.
    creating = world.outcomes.creating
    for _ in range(2):
        creating.announce_manifest(task, result.key)
    assert creating.known_manifests(plan.manifest_id) == ([], set()), "what becomes of them is open"
    assert creating.start(task).announced == tuple(sorted(["k/lost", result.key]))
    assert creating.give_up_manifest(task, plan.store, plan.container, "k/lost")
    assert creating.known_manifests(plan.manifest_id) == ([], {"k/lost"})
    with pytest.raises(errors.TaskLost):
        creating.finish(task, replace(result, key="k/lost"))
    creating.finish(task, result)
    assert not creating.give_up_manifest(task, plan.store, plan.container, result.key), "it is committed"
    found = {row.key: row.state for row in world.rows(models.Manifest)}
    assert found == {"k/lost": lifecycle.GONE, result.key: lifecycle.LIVE}
    with pytest.raises(errors.TaskLost):
        world.outcomes.creating.announce_manifest(task, "k/late")
    assert world.status(backup_id) == "available"


def test_every_live_manifest_is_asked_about_a_key_that_was_given_up(world: World) -> None:
    volume = world.volume()
    living = world.row(models.Backup, world.backup(volume).id).service_metadata
    # No edge of the tree leads from it to the other; an earlier base would have.
    backup_id, task, _ = begin(world, volume)
    world.outcomes.creating.announce_manifest(task, "k/lost")
    world.outcomes.creating.give_up_announced(task, ["k/lost"])
    world.outcomes.creating.fail(task, "no")
    world.backups.delete(world.ctx(), backup_id)
    deletion = world.claim(tasks.BACKUP_DELETE)
    for _ in range(2):
        plan = world.outcomes.deleting.start(deletion)
        assert plan is not None
        assert (plan.key, plan.given_up, plan.relatives) == (None, ("k/lost",), (living,))


def test_a_failed_creation_is_cleaned_up_by_a_task_of_its_own(world: World) -> None:
    volume = world.volume()
    backup_id, task, plan = begin(world, volume)
    world.outcomes.creating.fail(task, "because")
    row = world.row(models.Backup, backup_id)
    assert (row.status, row.fail_reason, row.completed) == ("error", "because", False)
    assert world.volume_status(volume) == "available"
    check_consistent(world)
    release = world.claim(tasks.MANIFEST_RELEASE)
    found = world.outcomes.deleting.start_release(release)
    assert found is not None
    assert (found.key, found.backup_id, found.relatives) == (None, backup_id, ())
    # Meanwhile the record can go.
    world.backups.delete(world.ctx(), backup_id)
    assert not world.run_delete()
    world.outcomes.deleting.fail_release(release, "no")
    assert world.tasks.claim("host/w", 60) is None
    world.age(seconds=301)
    assert world.run_releases() == 1
    assert world.row(models.Manifest, plan.manifest_id).state == "gone"


def test_children_and_their_parent_can_be_deleted_in_any_order(world: World) -> None:
    volume = world.volume()
    parent = world.backup(volume)
    child, _ = world.backup(volume, incremental=True), world.backup(volume, incremental=True)
    world.backups.delete(world.ctx(), parent.id)
    task = world.claim()
    plan = world.outcomes.deleting.start(task)
    assert plan is not None
    assert plan.key == parent.service_metadata
    assert plan.relatives == (child.service_metadata,)
    world.outcomes.deleting.finish(task, plan)
    row = world.row(models.Backup, parent.id)
    assert (row.deleted, row.status, row.manifest_id) == (True, "deleted", None)
    assert world.row(models.Manifest, plan.manifest_id).state == "gone"
    check_consistent(world)


def test_a_child_in_the_making_keeps_its_bases_data_until_it_ends(world: World) -> None:
    for ending in ("finish", "fail", "force"):
        volume = world.volume()
        parent = world.backup(volume)
        child, task, plan = begin(world, volume, incremental=True)
        assert plan.base is not None
        world.backups.delete(world.ctx(), parent.id)
        assert not world.run_delete()
        base = world.row(models.Manifest, plan.base.id)
        assert base.state == "live"
        check_consistent(world)
        if ending == "finish":
            world.outcomes.creating.finish(task, world.result(plan))
        elif ending == "fail":
            world.outcomes.creating.fail(task, "no")
        else:
            world.backups.force_delete(world.ctx(admin=True), child)
        check_consistent(world)
        assert world.row(models.Manifest, plan.base.id).state == "released"
        if ending == "force":
            world.tasks.discard(task)
            assert world.run_delete()
        world.run_releases()
        assert world.row(models.Manifest, plan.base.id).state == "gone"
        check_consistent(world)


def test_a_failed_deletion_tries_again_by_itself(world: World) -> None:
    backup = world.backup(world.volume())
    world.backups.delete(world.ctx(), backup.id)
    task = world.claim()
    assert world.outcomes.deleting.start(task) is not None
    world.outcomes.deleting.fail(task, "no space")
    shown = world.backups.get(world.ctx(), backup.id)
    assert (shown.status, shown.fail_reason) == ("error_deleting", "no space")
    check_consistent(world)
    for pause in (300, 600):
        world.age(seconds=pause - 100)
        assert world.tasks.claim("host/w", 60) is None
        world.age(seconds=101)
        task = world.claim()
        assert world.outcomes.deleting.start(task) is not None
        assert world.status(backup.id) == "deleting"
        world.outcomes.deleting.fail(task, "no")
    # A force delete does not wait for the pause.
    world.backups.force_delete(world.ctx(admin=True), backup.id)
    check_consistent(world)
    assert world.run_delete()
    assert world.status(backup.id) is None
    assert world.tasks.pending() == 0


def test_a_task_that_no_worker_takes_ends(world: World) -> None:
    available = world.backup(world.volume())
    restored = world.backup(world.volume())
    volume, target = world.volume(), world.volume()
    made = world.backups.create(world.ctx(), volume_id=volume)
    world.backups.delete(world.ctx(), available.id)
    world.backups.restore(world.ctx(), restored.id, volume_id=target)
    world.age(seconds=700)
    assert world.expiry.expire() == 0
    # A worker that is down for less than they may wait may still come.
    world.silence(seconds=500)
    assert world.expiry.expire() == 0
    world.silence(seconds=101)
    assert world.expiry.expire() == 3
    assert world.expiry.expire() == 0
    assert world.status(made.id) == "error"
    assert world.status(available.id) == "error_deleting"
    assert world.status(restored.id) == "available"
    assert world.backups.get(world.ctx(), made.id).fail_reason == "No backup service was available."
    assert (world.volume_status(volume), world.volume_status(target)) == ("available", "error_restoring")
    check_consistent(world)
    # The deletion is still wanted: the next worker carries it out.
    world.run_delete()
    assert world.status(available.id) is None


def test_an_attempt_whose_worker_never_came_back_ends_too(world: World) -> None:
    _, task, plan = begin(world, world.volume())
    world.silence(seconds=601)
    world.age(seconds=300)
    assert world.expiry.expire() == 0
    world.age(seconds=400)
    assert world.expiry.expire() == 1
    with pytest.raises(errors.TaskLost):
        world.outcomes.creating.finish(task, world.result(plan))
    check_consistent(world)
    assert world.run_releases() == 1


@pytest.mark.parametrize(
    ("zone", "store", "host", "backend", "missing"),
    [
        ("mars", None, "gone", "local", "that can open the volume"),
        ("nova", "offsite", None, "local", "with the store offsite"),
        ("mars", "main", None, "local", "in availability zone mars and with the store main"),
        (None, "main", "gone", "local", "that can open the volume"),
        (None, "main", "gone", "fast", "with the volume back end fast"),
        (None, "main", None, "fast", "with the volume back end fast"),
        (None, "main", "gone", "slow", "that can open the volume"),
        (
            "mars",
            "main",
            None,
            "slow",
            "in availability zone mars and with the store main and with the volume back end slow",
        ),
    ],
)
def test_what_no_worker_can_serve_ends_and_says_why(
    world: World, zone: str | None, store: str | None, host: str | None, backend: str, missing: str
) -> None:
    world.services.heartbeat("other", "cinder-backup", "mars", {"tape": "x"})
    world.services.heartbeat("third", "cinder-backup", "nova", {"main": "x"}, {"local": False, "slow": False})
    volume = world.volume(host=host, backend=backend)
    made = world.backups.create(
        world.ctx(),
        volume_id=volume,
        availability_zone=zone,
        container=None if store is None else f"{store}:c",
    )
    world.age(seconds=500)
    assert world.expiry.expire() == 0
    world.age(seconds=101)
    assert world.expiry.expire() == 1
    row = world.row(models.Backup, made.id)
    assert row.status == "error"
    assert row.fail_reason == f"No backup service {missing} was available."
    (told,) = world.rows(models.Message)
    assert (told.resource_uuid, told.event_id) == (made.id, "VOLUME_VOLUME_BACKUP_013_024")
    assert world.volume_status(volume) == "available"
    check_consistent(world)


def test_a_store_that_one_process_of_a_host_has_is_waited_for(world: World) -> None:
    """Although another process of that host, which has not got it, was the last to report."""
    stores = {"main": "x", "offsite": "y"}
    world.services.heartbeat("host", "cinder-backup", "nova", stores, process="a")
    made = world.backups.create(world.ctx(), volume_id=world.volume(), container="offsite:c")
    world.services.heartbeat("host", "cinder-backup", "nova", {"main": "x"}, process="b")
    world.age(seconds=700)
    assert world.expiry.expire() == 0
    assert world.status(made.id) == "creating"


def test_what_no_single_process_of_a_host_can_serve_ends_and_says_why(world: World) -> None:
    """One process has the store, another one the volume's back end."""
    both = {"main": "x", "offsite": "y"}
    world.services.leave("host", "cinder-backup", "")
    world.services.heartbeat("host", "cinder-backup", "nova", both, process="a")
    world.services.heartbeat("host", "cinder-backup", "nova", {"main": "x"}, {"fast": False}, process="b")
    served = [
        world.backups.create(world.ctx(), volume_id=world.volume(backend=backend), container=f"{store}:c").id
        for backend, store in (("local", "offsite"), ("fast", "main"))
    ]
    volume = world.volume(backend="fast")
    made = world.backups.create(world.ctx(), volume_id=volume, container="offsite:c")
    with world.db.read() as session:
        why = {
            task.resource_id: waiting.why(session, world.conf, task, Limits())
            for task in session.scalars(select(models.Task))
        }
    assert why == {**dict.fromkeys(served, waiting.QUEUED), made.id: waiting.WAITING_FOR_WORKER}
    world.age(seconds=700)
    assert world.expiry.expire() == 1
    row = world.row(models.Backup, made.id)
    assert (row.status, row.fail_reason) == (
        "error",
        "No backup service with the store offsite and with the volume back end fast was available.",
    )
    assert [world.status(one) for one in served] == ["creating", "creating"]


def test_a_zone_that_no_worker_was_ever_in_is_not_waited_for(world: World) -> None:
    world.services.heartbeat("other", "cinder-backup", "mars", {"main": "x"})
    volume = world.volume()
    world.backups.create(world.ctx(), volume_id=world.volume(), availability_zone="mars")
    made = world.backups.create(world.ctx(), volume_id=volume, availability_zone="moon")
    assert world.expiry.expire() == 1
    row = world.row(models.Backup, made.id)
    reason = "No backup service in availability zone moon was available."
    assert (row.status, row.fail_reason) == ("error", reason)
    assert world.volume_status(volume) == "available"
    # It can be deleted by any worker.
    world.backups.delete(world.ctx(), made.id)
    world.run_delete()
    assert world.status(made.id) is None
    check_consistent(world)


def test_what_a_frozen_worker_can_serve_waits_for_it(world: World) -> None:
    made = world.backups.create(world.ctx(), volume_id=world.volume())
    world.services.set_frozen(world.ctx(admin=True), "host", frozen=True)
    world.age(seconds=700)
    assert world.expiry.expire() == 0
    world.services.set_disabled(world.ctx(admin=True), "host", "cinder-backup", disabled=True)
    assert world.expiry.expire() == 1
    assert world.status(made.id) == "error"


@pytest.mark.parametrize("given_back", [False, True])
def test_a_cancelled_task_that_no_worker_can_clean_up_after_holds_nobody_up(
    world: World, given_back: bool
) -> None:
    """Its delete needs only the store, and would wait behind it for ever."""
    world.services.heartbeat("far", "cinder-backup", "mars", {"main": "x"})
    backup_id, task, _ = begin(world, world.volume(), availability_zone="mars")
    if given_back:
        world.tasks.release(task)
    world.backups.force_delete(world.ctx(admin=True), backup_id)
    world.services.set_disabled(world.ctx(admin=True), "far", "cinder-backup", disabled=True)
    world.age(seconds=500)
    assert world.expiry.expire() == 0
    world.age(seconds=201)
    assert world.expiry.expire() == 1
    assert world.expiry.expire() == 0
    with pytest.raises(errors.TaskLost):
        world.tasks.discard(task)
    world.run_delete()
    assert world.status(backup_id) is None
    assert world.rows(models.Message) == []
    check_consistent(world)


def test_the_temporary_snapshot_of_a_volume_in_use(world: World) -> None:
    volume = world.volume(status="in-use")
    backup_id, task, plan = begin(world, volume, force=True)
    assert plan.in_use
    made = world.outcomes.creating.begin_temp_snapshot(task)
    assert world.outcomes.creating.begin_temp_snapshot(task).id == made.id
    assert world.outcomes.creating.temp_snapshot_made(task, "/t").status == "available"
    found = world.outcomes.creating.temp_snapshot(backup_id)
    assert found is not None
    snapshot, of = found
    assert (snapshot.location, snapshot.temporary, of.id) == ("/t", True, volume)
    world.outcomes.creating.forget_temp_snapshot(backup_id)
    assert world.outcomes.creating.temp_snapshot(backup_id) is None
    other = world.outcomes.creating.begin_temp_snapshot(task)
    assert other.id != made.id
    # One that is left when the task ends gets a task of its own.
    world.outcomes.creating.finish(task, world.result(plan))
    assert world.claim(tasks.SNAPSHOT_DELETE).resource_id == other.id
    assert world.row(models.Snapshot, other.id).status == "deleting"


def test_progress_is_recorded_at_the_backup(world: World) -> None:
    backup_id, task, _ = begin(world, world.volume())
    world.tasks.progress(task, 5, 10)
    row = world.row(models.Backup, backup_id)
    assert (row.progress_done, row.progress_total) == (5, 10)


def test_damage_is_listed_by_prefix(world: World) -> None:
    outcomes = world.outcomes
    manifest = world.row(models.Backup, world.backup(world.volume()).id).manifest_id
    for key in ("a_b/1", "a_b/2", "aXb/1"):
        outcomes.damaged_objects.record("main", "c", key, "gone", manifest)
    outcomes.damaged_objects.record("main", "c", "a_b/1", "r" * 300, manifest)
    assert outcomes.damaged_objects.keys("main", "c", "a_b/") == {"a_b/1", "a_b/2"}
    assert outcomes.damaged_objects.keys("main", "other") == frozenset()
    assert [len(one.reason) for one in outcomes.damaged_objects.of(manifest)] == [4, 255, 4]


def test_an_unknown_manifest_of_ours_is_detached_and_asks_for_a_listing(world: World) -> None:
    backup = world.backup(world.volume())
    admin = world.ctx(admin=True)
    _, url = world.backups.export_record(admin, backup.id)
    (manifest,) = world.rows(models.Manifest)
    # The database was lost and made anew with the same installation id.
    other = World()
    with other.db.write() as session:
        session.get(models.Installation, 1).uuid = manifest.installation_id  # type: ignore[union-attr]
    other.backups.import_record(admin, backup_service=backup.service or "", backup_url=url)
    done = other.outcomes.importing.finish(other.claim(), world.facts(manifest))
    assert (done.status, done.service_metadata) == ("available", backup.service_metadata)
    row = other.rows(models.Manifest)[0]
    assert (row.detached, row.in_tree, row.state) == (True, True, lifecycle.LIVE)
    other.backups.delete(admin, done.id)
    plan = other.outcomes.deleting.start(other.claim())
    assert plan is not None
    assert plan.known_keys == {backup.service_metadata}


def test_restores_and_creations_need_what_they_work_on(world: World) -> None:
    volume = world.volume()
    backup = world.backup(volume)
    target = world.volume()
    world.backups.restore(world.ctx(), backup.id, volume_id=target)
    restore = world.claim()
    plan = world.outcomes.restoring.start(restore)
    assert (plan.key, plan.new, plan.checkpoint, plan.attempt) == (backup.service_metadata, False, 0, 1)
    with world.db.write() as session:
        session.get(models.Volume, target).deleted = True  # type: ignore[union-attr]
    with pytest.raises(errors.VolumeNotFound):
        world.outcomes.restoring.start(restore)
    world.outcomes.restoring.fail(restore, "gone")
    assert world.status(backup.id) == "available"
    world.backups.restore(world.ctx(), backup.id)
    task = world.claim()
    new = world.outcomes.restoring.start(task)
    assert new.new
    world.outcomes.restoring.set_location(task, "/made")
    assert world.outcomes.restoring.start(task).volume.location == "/made"
    assert new.volume.location is None

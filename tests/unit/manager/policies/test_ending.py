"""What retention deletes, what nothing makes it delete, and that a preview says the same before."""

from __future__ import annotations

import functools
import random
from datetime import datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest

from backupfw.db import models
from backupfw.errors import InvalidBackup, InvalidInput
from backupfw.manager.lineage import lifecycle
from backupfw.manager.policies import ending, places, preview
from backupfw.manager.policies import runs as policy_runs
from backupfw.manager.policies import settings as policy_settings
from backupfw.manager.policies.places import Step, Stored
from tests.unit.manager.policies.support import PolicyWorld
from tests.unit.manager.support import check_audit, check_consistent


def nights(world: PolicyWorld, first: int, last: int) -> None:
    """Let the nights of January pass."""
    for day in range(first, last + 1):
        world.at(f"2026-01-{day:02}T00:00:01")
        world.night()


def days_of(world: PolicyWorld, policy: str | None) -> list[int]:
    """Return of which days a policy has available backups."""
    return [one.created_at.day for one in world.backups_of(policy) if one.status == "available"]


def test_the_last_ones_stay(world: PolicyWorld) -> None:
    world.volume()
    policy = world.policy(retention={"last": 3})
    nights(world, 2, 6)
    assert days_of(world, policy) == [4, 5, 6]
    check_consistent(world)
    check_audit(world)


def test_without_a_retention_all_stay(world: PolicyWorld) -> None:
    world.volume()
    policy = world.policy()
    nights(world, 2, 4)
    assert days_of(world, policy) == [2, 3, 4]


def test_each_volume_has_its_own(world: PolicyWorld) -> None:
    for _ in range(2):
        world.volume()
    policy = world.policy(retention={"last": 2})
    nights(world, 2, 5)
    assert days_of(world, policy) == [4, 4, 5, 5]


def test_some_are_let_go_at_a_time(world: PolicyWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between them others are planned, so that thousands of runs that end keep no policy waiting."""
    monkeypatch.setattr(policy_runs, "_ONE_BY_ONE", 2)
    for _ in range(3):
        world.volume()
    policy = world.policy(retention={"last": 1})
    world.policies.run(world.ctx(), policy)
    world.step()
    world.make()
    assert world.runs.watch()
    assert [run.tidied for run in world.runs_of(policy)].count(False) == 1
    assert not world.runs.watch()
    assert all(run.tidied for run in world.runs_of(policy))


def test_a_backup_by_hand_is_nobodys(world: PolicyWorld) -> None:
    """Also if its user says that it is the policy's: what counts is a column that no user can set."""
    volume = world.volume()
    policy = world.policy(retention={"last": 1})
    made = world.backup(volume, metadata={"backupfw:policy": policy})
    nights(world, 2, 4)
    assert days_of(world, policy) == [4]
    assert world.status(made.id) == "available"


def test_two_policies_of_one_volume_leave_each_other_alone(world: PolicyWorld) -> None:
    world.volume()
    daily, weekly = world.policy(retention={"last": 1}), world.policy(schedule={"cron": "0 1 * * *"})
    for day in range(2, 5):
        world.at(f"2026-01-{day:02}T00:00:01")
        world.night()
        world.at(f"2026-01-{day:02}T01:00:01")
        world.night()
    assert (days_of(world, daily), days_of(world, weekly)) == ([4], [2, 3, 4])


@pytest.mark.parametrize(("value", "stays"), [("true", True), ("1", True), ("False", False), ("no", False)])
def test_a_user_keeps_a_backup(world: PolicyWorld, value: str, stays: bool) -> None:
    world.volume()
    policy = world.policy(retention={"last": 2})
    nights(world, 2, 3)
    oldest = world.backups_of(policy)[0]
    world.backups.merge_metadata(world.ctx(), oldest.id, {"backupfw:keep": value})
    nights(world, 4, 5)
    # What is kept takes no other one's place.
    assert days_of(world, policy) == ([2, 4, 5] if stays else [4, 5])


def test_what_is_in_use_goes_later(world: PolicyWorld) -> None:
    world.volume()
    policy = world.policy(retention={"last": 1})
    nights(world, 2, 2)
    (oldest,) = world.backups_of(policy)
    world.backups.restore(world.ctx(), oldest.id, volume_id=world.volume("p1", status="available"))
    # The target of the restore is a volume of the project, too; what counts here is the first one.
    nights(world, 3, 3)
    assert world.status(oldest.id) == "restoring"
    world.run_restore()
    nights(world, 4, 4)
    assert world.status(oldest.id) is None


def test_what_is_being_copied_goes_later(world: PolicyWorld) -> None:
    world.volume()
    policy = world.policy(retention={"last": 1})
    nights(world, 2, 2)
    (oldest,) = world.backups_of(policy)
    world.backups.copy(world.ctx(), oldest.id, "offsite")
    nights(world, 3, 3)
    assert world.status(oldest.id) == "available"
    world.backups.remove_copy(world.ctx(), oldest.id, "offsite")
    nights(world, 4, 4)
    assert days_of(world, policy) == [4]


def test_what_is_locked_in_its_store_goes_when_the_lock_has_ended(world: PolicyWorld) -> None:
    world.volume()
    policy = world.policy(retention={"last": 1})
    nights(world, 2, 2)
    (oldest,) = world.backups_of(policy)
    with world.db.write() as session:
        session.get_one(models.Manifest, oldest.manifest_id).locked_until = datetime(2026, 1, 3, 12)
    (fate,) = world.policies.preview(world.ctx(), policy).volumes
    assert [one.reason for one in fate.backups] == ["locked in its store until 2026-01-03 12:00 UTC"]
    nights(world, 3, 3)
    assert world.status(oldest.id) == "available"
    nights(world, 4, 4)
    assert days_of(world, policy) == [4]


def damage(world: PolicyWorld, backup: models.Backup) -> None:
    with world.db.write() as session:
        session.add(
            models.DamagedObject(
                digest="d" * 64,
                store="main",
                container="c",
                key="k",
                reason="r",
                found_at=datetime(2026, 1, 1),
            )
        )
        session.flush()
        session.add(models.DamageMark(manifest_id=backup.manifest_id, digest="d" * 64))


def test_the_newest_good_one_is_not_the_newest_damaged_one(world: PolicyWorld) -> None:
    world.volume()
    policy = world.policy(retention={"last": 1})
    nights(world, 2, 3)
    (newest,) = world.backups_of(policy)
    damage(world, newest)
    nights(world, 4, 5)
    # The damaged one stays until somebody decides.
    assert days_of(world, policy) == [3, 5]


def test_a_backup_of_a_wrong_clock_lets_no_other_one_go(world: PolicyWorld) -> None:
    """It is dated in the future, so the rules would take it for the newest one until then."""
    world.volume()
    policy = world.policy(retention={"last": 1})
    nights(world, 2, 3)
    world.at("2026-01-20T00:00:01")
    world.policies.run(world.ctx(), policy)
    world.night()
    assert days_of(world, policy) == [20]
    world.at("2026-01-03T12:00:00")
    world.runs.repair_clock()
    nights(world, 4, 6)
    assert days_of(world, policy) == [6, 20]
    said = world.policies.preview(world.ctx(), policy, days=0)
    assert [one.reason for one in said.volumes[0].backups] == [
        "dated in the future: the clock was wrong",
        "last 1",
    ]
    sixth = world.backups_of(policy)[0]
    refused = refuse(world, policy, sixth)
    with world.db.write() as session, pytest.raises(InvalidBackup, match="newest good"):
        refused(session, session.get_one(models.Backup, sixth.id))
    nights(world, 20, 22)
    assert days_of(world, policy) == [22]


@pytest.mark.parametrize("retention", [{"last": 1}, {}], ids=str)
def test_a_good_backup_that_an_operator_set_to_error_stays(
    world: PolicyWorld, retention: dict[str, Any]
) -> None:
    """It is there, and can be made available again; only one that was never complete goes by itself."""
    world.volume()
    policy = world.policy(retention=retention)
    nights(world, 2, 2)
    (first,) = world.backups_of(policy)
    world.backups.reset_status(world.ctx(admin=True), first.id, "error")
    nights(world, 3, 3)
    # One that was never complete would be gone by now.
    nights(world, 12, 12)
    assert world.status(first.id) == "error"
    world.backups.reset_status(world.ctx(admin=True), first.id, "available")
    nights(world, 13, 13)
    assert days_of(world, policy) == ([13] if retention else [2, 3, 12, 13])


def test_a_failed_run_deletes_nothing(world: PolicyWorld) -> None:
    world.volume()
    policy = world.policy(retention={"last": 3})
    nights(world, 2, 4)
    world.policies.update(world.ctx(), policy, settings={"retention": {"last": 1}})
    world.conf.quota.backups = 0
    nights(world, 5, 5)
    assert days_of(world, policy) == [2, 3, 4]


def test_to_apply_it_twice_changes_nothing(world: PolicyWorld) -> None:
    world.volume()
    policy = world.policy(retention={"last": 2})
    nights(world, 2, 4)
    with world.db.write() as session:
        session.execute(models.PolicyRun.__table__.update().values(tidied=False))
    world.runs.watch()
    assert days_of(world, policy) == [3, 4]


def refuse(world: PolicyWorld, policy: str, backup: models.Backup, min_keep: int = 1) -> Any:
    """Return what is asked before a policy deletes a backup that has no copies.

    :param min_keep: of its rules.
    """
    known = world.row(models.BackupPolicy, policy)
    settings = policy_settings.read({**known.settings, "retention": {"min_keep": min_keep}})
    stored = Stored(backup.id, backup.data_timestamp, backup.store)
    return functools.partial(ending._refuse, known, settings, Step(stored, frozenset({backup.store})))


def test_a_deletion_asks_again(world: PolicyWorld) -> None:
    """Between the decision and the deletion, a user may have deleted what was to stay."""
    world.volume()
    policy = world.policy()
    nights(world, 2, 4)
    second, third, fourth = world.backups_of(policy)
    world.backups.delete(world.ctx(), fourth.id)

    def delete(backup: models.Backup, min_keep: int = 1) -> None:
        world.backups.delete(world.ctx(), backup.id, refuse(world, policy, backup, min_keep))

    with pytest.raises(InvalidBackup, match="newest good"):
        delete(third)
    with pytest.raises(InvalidBackup, match="newest good"):
        delete(second, min_keep=2)
    world.backups.merge_metadata(world.ctx(), second.id, {"backupfw:keep": "yes"})
    with pytest.raises(InvalidBackup, match="backupfw:keep"):
        delete(second)
    world.backups.merge_metadata(world.ctx(), second.id, {"backupfw:keep": "off"})
    delete(second)
    assert world.status(second.id) == "deleting"


def test_parents_that_an_operator_protects_stay(world: PolicyWorld) -> None:
    world.volume()
    world.conf.backup.refuse_delete_of_parents = True
    policy = world.policy(retention={"last": 1})
    nights(world, 2, 4)
    assert days_of(world, policy) == [2, 3, 4]
    assert all(run.tidied for run in world.runs_of(policy))


RETENTIONS: tuple[dict[str, Any], ...] = (
    {"last": 2},
    {"daily": 3, "weekly": 2},
    {"hourly": 3, "daily": 2, "min_keep": 2},
    {"within": "36h", "weekly": 1},
    {},
)


@pytest.mark.parametrize(
    ("cron", "retention"),
    list(
        zip(
            ["0 */8 * * *", "30 2 * * *", "0 */8 * * *", "0 */8 * * *", "30 2 * * *"], RETENTIONS, strict=True
        )
    ),
    ids=str,
)
def test_what_happens_is_what_the_preview_said(
    world: PolicyWorld, cron: str, retention: dict[str, Any]
) -> None:
    """Also where the clock is put forward."""
    world.at("2026-03-25T12:00:00")
    volume = world.volume()
    schedule = {"cron": cron, "timezone": "Europe/Berlin", "jitter": 600}
    policy = world.policy(schedule=schedule, retention=retention)
    for _ in range(3):
        world.later(hours=5)
        world.policies.run(world.ctx(), policy)
        world.night()
    kept = world.backups_of(policy)[0]
    world.backups.merge_metadata(world.ctx(), kept.id, {"backupfw:keep": "true"})
    said = world.policies.preview(world.ctx(), policy, days=5)
    (fate,) = said.volumes
    assert (fate.volume_id, len(fate.backups)) == (volume, len(world.backups_of(policy)))
    happened: dict[str, datetime] = {}
    runs = []
    while (next_run := world.row(models.BackupPolicy, policy).next_run_at) <= said.until:
        runs.append(next_run)
        world.at(next_run.isoformat())
        world.later(seconds=601)
        before = {one.id for one in world.backups_of(policy)}
        world.night()
        for one in before - {one.id for one in world.backups_of(policy)}:
            happened[one] = next_run
    assert runs[:10] == list(said.next_runs)[: len(runs)]
    assert {one.backup_id: one.goes_at for one in fate.backups} == {
        one.backup_id: happened.get(one.backup_id) for one in fate.backups
    }
    assert len(world.backups_of(policy)) == fate.kept
    assert [one.reason for one in fate.backups if one.backup_id == kept.id] == ["metadata backupfw:keep"]


def test_a_preview_has_bounds(world: PolicyWorld) -> None:
    volumes = [world.volume() for _ in range(3)]
    policy = world.policy(schedule={"cron": "*/5 * * * *"}, retention={"last": 2})
    said = world.policies.preview(world.ctx(), policy, days=366)
    assert said.until < datetime(2026, 1, 1, 12) + timedelta(days=3)
    assert (len(said.next_runs), len(said.volumes), said.total) == (10, 3, 3)
    one = world.policies.preview(world.ctx(), policy, days=366, volume_id=volumes[0])
    assert [each.volume_id for each in one.volumes] == [volumes[0]]
    assert one.until > said.until
    later = world.policies.preview(world.ctx(), policy, at=datetime(2027, 1, 1), days=0)
    assert later.next_runs[0] == datetime(2027, 1, 1, 0, 5)
    for at in (datetime(2025, 1, 1), datetime(2099, 1, 1)):
        with pytest.raises(InvalidInput, match=r"^at: "):
            world.policies.preview(world.ctx(), policy, at=at)


def test_a_preview_of_many_backups_ends_soon(world: PolicyWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each run judges all that are there: 2000 runs of 10 000 backups would take a minute of a processor."""
    world.volume()
    policy = world.policy(schedule={"cron": "*/5 * * * *"}, retention={"last": 10000})
    monkeypatch.setattr(preview, "MOST_JUDGED", 1000)
    judged = []

    def apply(*given: Any) -> dict[str, places.Verdict]:
        # Those that there are today, none, are judged once more at the end.
        judged.extend([len(given[-1])] if given[-1] else [])
        return places.apply(*given)

    monkeypatch.setattr(preview, "places", SimpleNamespace(apply=apply))
    said = world.policies.preview(world.ctx(), policy, days=366)
    assert 1000 <= sum(judged) < 1100
    # Runs up to the one before "until" were computed.
    assert said.until == datetime(2026, 1, 1, 12) + timedelta(minutes=5) * (len(judged) + 1)
    assert said.volumes[0].kept == len(judged)


def test_who_lets_many_backups_go_keeps_nobody_waiting(
    world: PolicyWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ending, "AT_ONCE", 2)
    monkeypatch.setattr(policy_runs, "_DELETED_AT_ONCE", 3)
    many, few = world.policy("many"), world.policy("few")
    world.volume("many")
    world.volume("few")
    nights(world, 2, 6)
    for project, policy in (("many", many), ("few", few)):
        keep = {"last": 1 if policy == many else 5}
        world.policies.update(world.ctx(project), policy, settings={"retention": keep})
    world.at("2026-01-10T00:00:01")
    world.runs.plan()
    world.runs.begin()
    world.make()
    assert world.runs.watch()
    assert days_of(world, few) == [3, 4, 5, 6, 10]
    assert len(days_of(world, many)) == 4
    while world.runs.watch():
        pass
    assert days_of(world, many) == [10]
    assert not world.rows(models.PolicyRun, models.PolicyRun.tidied.is_(False))


def test_a_retention_that_fails_keeps_no_other_from_working(
    world: PolicyWorld, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    world.volume("p1")
    world.volume("p2")
    broken, whole = (world.policy(project, retention={"last": 1}) for project in ("p1", "p2"))
    nights(world, 2, 2)
    apply = ending.let_go

    def let_go(*given: Any, **more: Any) -> int:
        if given[3].id == broken:
            raise ZeroDivisionError
        return apply(*given, **more)

    with monkeypatch.context() as patched:
        patched.setattr(ending, "let_go", let_go)
        nights(world, 3, 4)
    assert days_of(world, broken) == [2, 3, 4]
    assert days_of(world, whole) == [4]
    assert f"The retention of backup policy {broken} failed" in caplog.text
    nights(world, 5, 5)
    assert days_of(world, broken) == [5]


@pytest.mark.parametrize("what", ["deleted", "changed"])
def test_a_policy_that_is_deleted_or_changed_lets_no_more_go(
    world: PolicyWorld, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """Also while its retention works: what was decided by the old rules is not done any more."""
    world.volume()
    policy = world.policy()
    nights(world, 2, 5)
    world.policies.update(world.ctx(), policy, settings={"retention": {"last": 1}})
    delete = world.backups.delete
    calls = []

    def deletes(*given: Any) -> None:
        calls.append(given)
        if len(calls) == 2 and what == "deleted":
            world.policies.delete(world.ctx(), policy)
        elif len(calls) == 2:
            world.policies.update(world.ctx(), policy, settings={"retention": {"last": 10}})
        delete(*given)

    monkeypatch.setattr(world.backups, "delete", deletes)
    nights(world, 6, 6)
    assert days_of(world, policy) == [2, 3, 4, 6]
    if what == "changed":
        nights(world, 7, 7)
        assert days_of(world, policy) == [2, 3, 4, 6, 7]


def having_good_ones(world: PolicyWorld) -> set[tuple[str | None, str]]:
    """Return the policies and volumes that have a good backup."""
    return {
        (one.policy_id, one.volume_id)
        for one in world.rows(models.Backup)
        if one.status in ("available", "restoring")
    }


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.soak) for seed in range(1, 20))])
def test_a_random_history_ends_well(world: PolicyWorld, seed: int) -> None:
    """Whatever users do meanwhile: the audit finds nothing, and only a policy's own backups ever went."""
    draw = random.Random(seed)
    volumes = [world.volume(project) for project in ("p1", "p1", "p2")]
    for project in ("p1", "p2"):
        for _ in range(2):
            world.policy(
                project,
                schedule={"cron": draw.choice(["@daily", "0 */6 * * *", "@hourly"])},
                retention=draw.choice(RETENTIONS),
                max_concurrent=draw.choice([None, 1]),
            )
    by_hand = {world.backup(volume, world.row(models.Volume, volume).project_id).id for volume in volumes}
    kept: set[str] = set()
    deleted: set[str] = set()
    for _ in range(40):
        world.later(minutes=draw.randint(1, 300))
        act = draw.randrange(9)
        there = [one for one in world.rows(models.Backup) if one.status == "available"]
        policies = world.rows(models.BackupPolicy)
        admin = world.ctx(admin=True)
        if act == 0:
            one = draw.choice(there)
            world.backups.merge_metadata(admin, one.id, {"backupfw:keep": "true"})
            kept.add(one.id)
        elif act == 1 and len(there) > 3:
            one = draw.choice([one for one in there if one.id not in by_hand | kept] or there)
            world.backups.delete(admin, one.id)
            deleted.add(one.id)
        elif act == 2:
            world.policies.run(admin, draw.choice(policies).id)
        elif act == 3:
            world.policies.update(
                admin, draw.choice(policies).id, settings={"retention": draw.choice(RETENTIONS)}
            )
        elif act == 4:
            draw.choice([world.policies.pause, world.policies.resume])(admin, draw.choice(policies).id)
        elif act == 5:
            world.step()
            for run in world.rows(models.PolicyRun, models.PolicyRun.status == "running"):
                if draw.random() < 0.5:
                    world.backups.cancel(admin, run.backup_id)
        elif act == 6:
            world.runs = world.another_process()
            world.db.run(world.runs._take)
        elif act == 7 and len(policies) > 2:
            world.policies.delete(admin, draw.choice(policies).id)
        had = having_good_ones(world)
        world.night()
        assert had <= having_good_ones(world)
        check_consistent(world)
    check_audit(world)
    world.later(minutes=3)
    had = having_good_ones(world)
    for _ in volumes:
        world.night()
    assert had <= having_good_ones(world)
    for one in by_hand | kept:
        assert world.status(one) == "available" or one in deleted
    assert {run.status for run in world.rows(models.PolicyRun)} <= {
        "waiting", "ok", "skipped", "missed", "failed",
    }  # fmt: skip
    assert not [one for one in world.rows(models.Backup) if one.status == lifecycle.CREATING]

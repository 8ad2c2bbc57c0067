"""Copies that a policy wants of its backups, and the retention of each store."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from types import SimpleNamespace
from typing import Any

import pytest
from sqlalchemy import update

from backupfw.db import models
from backupfw.errors import InvalidInput
from backupfw.manager.lineage import lifecycle
from backupfw.manager.policies import ending
from backupfw.manager.queue import tasks
from tests.unit.manager.policies.support import PolicyWorld
from tests.unit.manager.policies.test_ending import RETENTIONS
from tests.unit.manager.support import WIRE, check_audit

OFFSITE = [{"store": "offsite"}]


def copies_of(world: PolicyWorld, backup_id: str) -> dict[str, str]:
    """Return the statuses of a backup's copies, by store."""
    row = models.BackupCopy
    return {one.store: one.status for one in world.rows(row, row.backup_id == backup_id)}


def test_each_backup_is_copied_by_a_task_of_its_own(world: PolicyWorld) -> None:
    world.volume()
    policy = world.policy(copy_to=OFFSITE)
    by_hand = world.backup(world.volume())
    for day in (2, 3):
        world.at(f"2026-01-{day:02}T00:00:01")
        world.night()
    made = world.backups_of(policy)
    assert [copies_of(world, one.id) for one in made] == [{"offsite": "copying"}] * 4
    assert copies_of(world, by_hand.id) == {}
    assert len(world.rows(models.Task, models.Task.kind == tasks.BACKUP_COPY)) == 4


def test_a_store_that_a_placement_rule_names_too_is_copied_to_once(world: PolicyWorld) -> None:
    world.conf.enabled_stores = ["main", "offsite", "vault"]
    vault = SimpleNamespace(container=None, encryption="off", scrub_days=0, scrub_bytes_per_second=0.0)
    setattr(world.conf, "store:vault", vault)
    world.conf.placement_rules = ["all"]
    rule = SimpleNamespace(
        store="main", container=None, encryption=None, copies=["offsite", "vault"],
        projects=[], availability_zones=[], volume_types=[],
    )  # fmt: skip
    setattr(world.conf, "placement:all", rule)
    world.volume()
    policy = world.policy(copy_to=OFFSITE)
    world.at("2026-01-02T00:00:01")
    world.night()
    (made,) = world.backups_of(policy)
    assert copies_of(world, made.id) == {"offsite": "copying", "vault": "copying"}


def test_the_store_of_the_backup_itself_gets_no_copy(world: PolicyWorld) -> None:
    """A placement rule sends it there, which the policy does not know."""
    world.conf.default_store = "offsite"
    world.volume()
    policy = world.policy(copy_to=OFFSITE)
    world.at("2026-01-02T00:00:01")
    world.night()
    (made,) = world.backups_of(policy)
    assert (made.store, copies_of(world, made.id)) == ("offsite", {})


def test_a_copy_that_is_finished_while_retention_works_is_seen(
    world: PolicyWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is the newest in its store, so the oldest there goes, and not only after the next run."""
    world.volume()
    policy = world.policy(retention={"last": 1}, copy_to=[{"store": "offsite", "retention": {"last": 2}}])
    for day in (2, 3):
        world.at(f"2026-01-{day:02}T00:00:01")
        world.night()
        world.copy()
        world.night()
    assert [one.created_at.day for one in world.backups_of(policy)] == [2, 3]
    let_go = ending.let_go

    def copied_meanwhile(*given: Any, **more: Any) -> int:
        gone = let_go(*given, **more)
        world.copy()
        return gone

    monkeypatch.setattr(ending, "let_go", copied_meanwhile)
    world.at("2026-01-04T00:00:01")
    world.night()
    world.night()
    assert [one.created_at.day for one in world.backups_of(policy)] == [3, 4]
    assert all(run.tidied for run in world.runs_of(policy))


def test_a_promoted_backup_does_not_move_the_next_ones(world: PolicyWorld) -> None:
    """An incremental backup is made beside its parent, but where this is a copy's store it would get none."""
    world.volume()
    policy = world.policy(copy_to=OFFSITE)
    world.at("2026-01-02T00:00:01")
    world.night()
    (first,) = world.backups_of(policy)
    world.copy()
    world.backups.promote_copy(world.ctx(), first.id, "offsite", "wire")
    world.at("2026-01-03T00:00:01")
    world.night()
    _, second = world.backups_of(policy)
    assert (second.store, second.parent_id) == ("main", first.id)
    assert copies_of(world, second.id) == {"offsite": "copying"}


def test_a_policy_of_a_release_before_copies_nowhere(world: PolicyWorld) -> None:
    world.volume()
    policy = world.policy()
    with world.db.write() as session:
        row = session.get_one(models.BackupPolicy, policy)
        row.settings = {name: value for name, value in row.settings.items() if name != "copy_to"}
    assert world.policies.get(world.ctx(), policy).settings["copy_to"] == []
    world.at("2026-01-02T00:00:01")
    world.night()
    (made,) = world.backups_of(policy)
    assert copies_of(world, made.id) == {}


def test_who_may_not_copy_makes_no_backup(world: PolicyWorld) -> None:
    world.volume()
    copying, plain = world.policy(copy_to=OFFSITE), world.policy()
    world.forbidden.add("backup:copy")
    world.at("2026-01-02T00:00:01")
    world.night()
    world.night()
    (run,) = world.runs_of(copying)
    assert (run.status, run.reason) == (
        "failed",
        "The service's rules do not allow a member of the project to copy backups (backup:copy).",
    )
    assert [run.status for run in world.runs_of(plain)] == ["ok"]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"copy_to": [{"store": "attic"}]}, r"^copy_to\[0\]\.store: there is no store attic"),
        ({"copy_to": [*OFFSITE, *OFFSITE]}, r"^copy_to\[1\]\.store: offsite is named twice"),
        (
            {"copy_to": OFFSITE, "backup": {"store": "offsite"}},
            r"^copy_to\[0\]\.store: offsite is the store of the backups themselves",
        ),
        (
            {"copy_to": [{"store": "offsite", "retention": {"within": "3m"}}]},
            r"^copy_to\[0\]\.retention\.within: '3m' is not a number of hours, days or weeks",
        ),
    ],
    ids=["unknown", "twice", "own", "rules"],
)
def test_what_is_refused(world: PolicyWorld, given: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidInput, match=said):
        world.policy(**given)


def test_what_a_change_names_must_fit_what_stays(world: PolicyWorld) -> None:
    policy = world.policy(copy_to=OFFSITE)
    with pytest.raises(InvalidInput, match=r"^copy_to\[0\]\.store: "):
        world.policies.update(world.ctx(), policy, settings={"backup": {"store": "offsite"}})
    # A store that was disabled since is looked for only where it is named anew.
    world.conf.enabled_stores = ["main"]
    world.policies.update(world.ctx(), policy, settings={"retention": {"last": 3}})
    assert world.policies.get(world.ctx(), policy).settings["copy_to"][0]["store"] == "offsite"
    world.policies.update(world.ctx(), policy, settings={"copy_to": None})
    assert world.policies.get(world.ctx(), policy).settings["copy_to"] == []


# -- retention


def offsite(**retention: Any) -> list[dict[str, Any]]:
    """Return a copy in the other store that has rules of its own."""
    return [{"store": "offsite", "retention": retention}]


def night(world: PolicyWorld) -> None:
    """Let a night pass, its copies too, and what retention does then."""
    world.night()
    world.copy()
    world.step()
    world.remove()


def nights(world: PolicyWorld, first: int, last: int) -> None:
    """Let the nights of January pass."""
    for day in range(first, last + 1):
        world.at(f"2026-01-{day:02}T00:00:01")
        night(world)


def stores_of(world: PolicyWorld, backup_id: str) -> tuple[str, ...]:
    """Return where a backup can be read, its own store first."""
    found = world.row(models.Backup, backup_id)
    copied = [store for store, status in copies_of(world, backup_id).items() if status == "available"]
    return (found.store, *sorted(copied))


def days(world: PolicyWorld, policy: str) -> dict[int, tuple[str, ...]]:
    """Return of which days a policy has available backups, and where each is."""
    there = [one for one in world.backups_of(policy) if one.status == "available"]
    return {one.created_at.day: stores_of(world, one.id) for one in there}


def places_of(world: PolicyWorld, policy: str) -> set[tuple[str, str]]:
    """Return the backups of a policy, each with the stores that have it."""
    return {(one.id, store) for one in world.backups_of(policy) for store in stores_of(world, one.id)}


BOTH = ("main", "offsite")


def test_a_copy_goes_before_its_backup(world: PolicyWorld) -> None:
    world.volume()
    policy = world.policy(retention={"last": 3}, copy_to=offsite(last=1))
    nights(world, 2, 5)
    assert days(world, policy) == {3: ("main",), 4: ("main",), 5: BOTH}
    check_audit(world)
    live = world.rows(models.Manifest, models.Manifest.state == lifecycle.LIVE)
    assert sorted(one.store for one in live) == ["main", "main", "main", "offsite"]


def test_a_copy_stays_after_its_backup_has_left_its_own_store(world: PolicyWorld) -> None:
    world.volume()
    policy = world.policy(retention={"last": 1}, copy_to=offsite(last=3))
    nights(world, 2, 5)
    assert days(world, policy) == {3: ("offsite",), 4: ("offsite",), 5: BOTH}
    check_audit(world)
    live = world.rows(models.Manifest, models.Manifest.state == lifecycle.LIVE)
    assert sorted(one.store for one in live) == ["main", "offsite", "offsite", "offsite"]
    # It is a backup like any other.
    moved = world.backups_of(policy)[0]
    world.backups.restore(world.ctx(), moved.id, volume_id=world.volume())
    assert world.status(moved.id) == "restoring"


def test_a_copy_without_rules_goes_with_its_backup(world: PolicyWorld) -> None:
    world.volume()
    policy = world.policy(retention={"last": 2}, copy_to=OFFSITE)
    nights(world, 2, 5)
    assert days(world, policy) == {4: BOTH, 5: BOTH}
    assert not world.rows(models.Manifest, models.Manifest.state == lifecycle.RELEASED)


def test_calendars_are_those_of_the_zone(world: PolicyWorld) -> None:
    """At 23:30 UTC it is the next day in Berlin, so both of a day are two days there."""
    world.volume()
    schedule = {"cron": "30 0,22 * * *", "timezone": "Europe/Berlin"}
    policy = world.policy(schedule=schedule, copy_to=offsite(daily=2))
    for text in ("02T21:30:01", "02T23:30:01", "03T21:30:01", "03T23:30:01"):
        world.at(f"2026-01-{text}")
        night(world)
    there = [(f"{one.created_at:%d %H}", stores_of(world, one.id)) for one in world.backups_of(policy)]
    assert there == [("02 21", ("main",)), ("02 23", ("main",)), ("03 21", BOTH), ("03 23", BOTH)]


def test_a_copy_that_fails_lets_no_other_one_go(world: PolicyWorld) -> None:
    """The newest good one of each store stays."""
    world.volume()
    policy = world.policy(retention={"last": 1}, copy_to=offsite(last=1))
    nights(world, 2, 2)
    for day in (3, 4):
        world.at(f"2026-01-{day:02}T00:00:01")
        world.night()
        while (task := world.tasks.claim("host/w", 60, [tasks.BACKUP_COPY])) is not None:
            world.outcomes.copying.start(task)
            world.outcomes.copying.fail(task, "no space")
            world.run_releases()
        world.step()
        world.remove()
    # That of the day between stays, too: its copy was begun again, and may be what is kept longer.
    assert days(world, policy) == {2: ("offsite",), 3: ("main",), 4: ("main",)}
    nights(world, 5, 5)
    assert days(world, policy) == {5: BOTH}


def keep(world: PolicyWorld, backup: models.Backup) -> None:
    world.backups.merge_metadata(world.ctx(), backup.id, {"backupfw:keep": "true"})


def restore(world: PolicyWorld, backup: models.Backup) -> None:
    world.backups.restore(world.ctx(), backup.id, volume_id=world.volume())


def damage(store: str) -> Callable[[PolicyWorld, models.Backup], None]:
    def mark(world: PolicyWorld, backup: models.Backup) -> None:
        manifest = backup.manifest_id
        if store != "main":
            (copy,) = world.rows(models.BackupCopy, models.BackupCopy.backup_id == backup.id)
            manifest = copy.manifest_id
        with world.db.write() as session:
            found = {"container": "c", "key": "k", "reason": "r", "found_at": datetime(2026, 1, 1)}
            session.add(models.DamagedObject(digest="d" * 64, store=store, **found))
            session.flush()
            session.add(models.DamageMark(manifest_id=manifest, digest="d" * 64))

    return mark


def lock_in(store: str) -> Callable[[PolicyWorld, models.Backup], None]:
    def until(world: PolicyWorld, backup: models.Backup) -> None:
        row = models.Manifest
        with world.db.write() as session:
            session.execute(
                update(row)
                .where(row.backup_id == backup.id, row.store == store)
                .values(locked_until=datetime(2026, 1, 20))
            )

    return until


@pytest.mark.parametrize("goes_first", ["copy", "backup"])
@pytest.mark.parametrize(
    ("act", "stays"),
    [
        (keep, {"copy": BOTH, "backup": BOTH}),
        # Whoever restores it may read it anywhere.
        (restore, {"copy": BOTH, "backup": BOTH}),
        # What is damaged in one store can be put there again from the other.
        (damage("main"), {"copy": BOTH, "backup": BOTH}),
        (damage("offsite"), {"copy": BOTH, "backup": BOTH}),
        (lock_in("main"), {"copy": ("main",), "backup": BOTH}),
        (lock_in("offsite"), {"copy": BOTH, "backup": ("offsite",)}),
    ],
    ids=["keep", "restoring", "damaged", "damaged copy", "locked", "locked copy"],
)
def test_what_holds_a_place(
    world: PolicyWorld,
    act: Callable[[PolicyWorld, models.Backup], None],
    stays: dict[str, tuple[str, ...]],
    goes_first: str,
) -> None:
    selection = {"volume_ids": [world.volume()]}
    backups, copies = (9, 1) if goes_first == "copy" else (1, 9)
    policy = world.policy(selection=selection, retention={"last": backups}, copy_to=offsite(last=copies))
    nights(world, 2, 2)
    (first,) = world.backups_of(policy)
    act(world, first)
    nights(world, 3, 3)
    assert stores_of(world, first.id) == stays[goes_first]
    last = world.backups_of(policy)[-1]
    assert stores_of(world, last.id) == BOTH


def test_a_lock_keeps_a_backup_in_its_store_alone(world: PolicyWorld) -> None:
    """It goes when the lock has ended.  A copy without rules goes at once: its objects stay until then."""
    world.volume()
    policy = world.policy(retention={"last": 1}, copy_to=offsite(last=1))
    nights(world, 2, 2)
    lock_in("offsite")(world, world.backups_of(policy)[0])
    nights(world, 3, 4)
    assert days(world, policy) == {2: ("offsite",), 4: BOTH}
    world.policies.update(world.ctx(), policy, settings={"copy_to": OFFSITE})
    lock_in("offsite")(world, world.backups_of(policy)[1])
    nights(world, 5, 5)
    assert days(world, policy) == {2: ("offsite",), 5: BOTH}
    nights(world, 21, 21)
    assert days(world, policy) == {21: BOTH}


def test_a_store_that_does_not_answer_gets_no_backup_for_itself(world: PolicyWorld) -> None:
    """Perhaps it is gone for good: its copy does not become the backup, whose own data is there."""
    world.volume()
    policy = world.policy(retention={"last": 1}, copy_to=offsite(last=3))
    nights(world, 2, 2)
    world.down.add("offsite")
    nights(world, 3, 3)
    assert days(world, policy) == {2: BOTH, 3: BOTH}
    world.down.clear()
    nights(world, 4, 4)
    assert days(world, policy) == {2: ("offsite",), 3: ("offsite",), 4: BOTH}
    assert {one.service for one in world.backups_of(policy)} == {WIRE}


def test_a_deleted_policy_leaves_backups_and_copies(world: PolicyWorld) -> None:
    world.volume()
    policy = world.policy(retention={"last": 1}, copy_to=offsite(last=2))
    nights(world, 2, 4)
    there = days(world, policy)
    assert there == {3: ("offsite",), 4: BOTH}
    world.policies.delete(world.ctx(), policy)
    nights(world, 5, 6)
    assert days(world, policy) == there


def test_a_full_quota_is_freed_only_by_what_goes_from_everywhere(world: PolicyWorld) -> None:
    """Of a backup that moves to its copy the quota counts as much as before."""
    world.volume()
    policy = world.policy(retention={"last": 1}, copy_to=offsite(last=3))
    nights(world, 2, 4)
    world.conf.quota.backups = 3
    world.at("2026-01-05T00:00:01")
    world.step()
    assert days(world, policy) == {3: ("offsite",), 4: BOTH}
    world.later(minutes=2)
    world.remove()
    night(world)
    assert days(world, policy) == {3: ("offsite",), 4: ("offsite",), 5: BOTH}


COPIES: tuple[dict[str, Any], ...] = (
    {"last": 4},
    {"within": "20h", "min_keep": 2},
    {"daily": 4, "weekly": 1},
    {},
    {"last": 2},
)


@pytest.mark.parametrize(("retention", "copies"), list(zip(RETENTIONS, COPIES, strict=True)), ids=str)
def test_what_happens_is_what_the_preview_said(
    world: PolicyWorld, retention: dict[str, Any], copies: dict[str, Any]
) -> None:
    """Of each backup in each store, also of those that are kept, locked, or being copied just then."""
    world.at("2026-03-27T12:00:00")
    volume = world.volume()
    schedule = {"cron": "0 */9 * * *", "timezone": "Europe/Berlin"}
    policy = world.policy(schedule=schedule, retention=retention, copy_to=offsite(**copies))
    for _ in range(4):
        world.later(hours=7)
        world.policies.run(world.ctx(), policy)
        night(world)
    there = world.backups_of(policy)
    keep(world, there[0])
    with world.db.write() as session:
        row = models.Manifest
        locked = row.backup_id == there[-1].id, row.store == "offsite"
        session.execute(update(row).where(*locked).values(locked_until=datetime(2026, 3, 29, 12)))
    world.later(hours=1)
    world.policies.run(world.ctx(), policy)
    world.night()
    said = world.policies.preview(world.ctx(), policy, days=2)
    (fate,) = said.volumes
    assert [one.reason for one in fate.backups[0].places][1] == "in use: it is being copied"
    happened: dict[tuple[str, str], datetime] = {}
    before = places_of(world, policy)
    # What the copy that is being made takes the place of goes when it is complete, and not later.
    world.copy()
    world.step()
    while (next_run := world.row(models.BackupPolicy, policy).next_run_at) <= said.until:
        world.at(next_run.isoformat())
        world.later(seconds=1)
        night(world)
        after = places_of(world, policy)
        happened |= dict.fromkeys(before - after, next_run)
        before = after
    assert {(one.backup_id, each.store): each.goes_at for one in fate.backups for each in one.places} == {
        (one.backup_id, each.store): happened.get((one.backup_id, each.store))
        for one in fate.backups
        for each in one.places
    }
    assert len(world.backups_of(policy)) == fate.kept
    for one in fate.backups:
        assert (world.status(one.backup_id) is None) == (one.goes_at is not None)
    # To apply it once more changes nothing.
    kept = days(world, policy)
    with world.db.write() as session:
        session.execute(update(models.PolicyRun).values(tidied=False))
    world.step()
    assert days(world, policy) == kept
    assert fate.volume_id == volume
    check_audit(world)


class Killed(BaseException):
    """The process is gone: nothing catches it."""


@pytest.mark.parametrize("before", [True, False], ids=["before", "after"])
def test_a_kill_between_two_steps_loses_nothing(
    world: PolicyWorld, monkeypatch: pytest.MonkeyPatch, before: bool
) -> None:
    """A worker dies at each step of a retention that moves, removes and deletes; others go on."""
    world.volume()
    policy = world.policy(copy_to=OFFSITE)
    nights(world, 2, 7)
    world.policies.update(
        world.ctx(), policy, settings={"retention": {"last": 2}, "copy_to": offsite(daily=1, weekly=2)}
    )
    kills = 0
    run = world.db.run

    def dies(work: Any, *given: Any) -> Any:
        # Of the use cases of backups: each is a step.
        if "BackupManager" not in work.__qualname__:
            return run(work, *given)
        nonlocal kills
        kills += 1
        if not before:
            run(work, *given)
        raise Killed

    def watched() -> bool:
        with monkeypatch.context() as patched:
            patched.setattr(world.db, "run", dies)
            try:
                world.runs.watch()
            except Killed:
                check_audit(world)
                return False
            return True

    world.at("2026-01-08T00:00:01")
    world.step()
    world.make()
    while not watched() and not before:
        world.runs = world.another_process()
    world.step()
    world.remove()
    world.copy()
    while not watched() and not before:
        world.runs = world.another_process()
    world.step()
    world.remove()
    assert kills > (0 if before else 4)
    # The 4th of January was a Sunday: the last day of its week.
    assert days(world, policy) == {4: ("offsite",), 7: ("main",), 8: BOTH}
    check_audit(world)
    live = world.rows(models.Manifest, models.Manifest.state == lifecycle.LIVE)
    assert sorted(one.store for one in live) == ["main", "main", "offsite", "offsite"]


def test_two_workers_that_decide_at_once_do_it_once(
    world: PolicyWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second one finds nothing any more where it was, and takes no place instead."""
    world.volume()
    policy = world.policy(copy_to=OFFSITE)
    nights(world, 2, 5)
    world.policies.update(
        world.ctx(), policy, settings={"retention": {"last": 1}, "copy_to": offsite(last=2)}
    )
    carry_out, late = ending._carry_out, []

    def both(*given: Any) -> int:
        late.append(given)
        return carry_out(*given)

    with monkeypatch.context() as patched:
        patched.setattr(ending, "_carry_out", both)
        nights(world, 6, 6)
    there = days(world, policy)
    assert there == {5: ("offsite",), 6: BOTH}
    assert [carry_out(*given) for given in late if given[4]] == [0] * sum(1 for given in late if given[4])
    assert days(world, policy) == there


def test_a_user_who_removes_the_copy_first_keeps_the_backup(
    world: PolicyWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between decision and deed: what was to move to the copy stays where it is."""
    world.volume()
    policy = world.policy(retention={"last": 1}, copy_to=offsite(last=9))
    nights(world, 2, 2)
    (first,) = world.backups_of(policy)
    carry_out = ending._carry_out

    def late(*given: Any) -> int:
        if given[4] and copies_of(world, first.id):
            world.backups.remove_copy(world.ctx(), first.id, "offsite")
        return carry_out(*given)

    monkeypatch.setattr(ending, "_carry_out", late)
    world.at("2026-01-03T00:00:01")
    world.night()
    assert stores_of(world, first.id) == ("main",)

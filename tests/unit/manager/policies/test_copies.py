"""Copies that a policy wants of its backups."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from backupfw.db import models
from backupfw.errors import InvalidInput
from backupfw.manager.queue import tasks
from tests.unit.manager.policies.support import PolicyWorld

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
    ],
    ids=["unknown", "twice", "own"],
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
    assert world.policies.get(world.ctx(), policy).settings["copy_to"] == OFFSITE
    world.policies.update(world.ctx(), policy, settings={"copy_to": None})
    assert world.policies.get(world.ctx(), policy).settings["copy_to"] == []

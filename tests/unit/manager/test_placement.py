"""Where new backups go: requests, rules, parents, defaults."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from backupfw import errors
from backupfw.db import models
from backupfw.manager import rows
from backupfw.manager.queue import tasks
from backupfw.manager.rules.placement import Placer, Subject
from backupfw.manager.usecases.backups import BackupManager
from tests.unit.manager.support import World


def rule(store: str, **values: Any) -> SimpleNamespace:
    """The section of a rule."""
    nothing: dict[str, Any] = {
        "container": None,
        "projects": [],
        "availability_zones": [],
        "volume_types": [],
        "copies": [],
    }
    return SimpleNamespace(store=store, **{**nothing, "encryption": None, **values})


def set_rules(world: World, **rules: SimpleNamespace) -> None:
    world.conf.placement_rules = list(rules)
    for name, values in rules.items():
        setattr(world.conf, f"placement:{name}", values)


@pytest.fixture
def world() -> World:
    return World()


def make(world: World, volume: str, project: str = "p1", **arguments: Any) -> rows.Backup:
    return world.backups.create(world.ctx(project), volume_id=volume, **arguments)


def where(backup: rows.Backup) -> tuple[str | None, str | None]:
    return backup.store, backup.container


def test_a_request_can_choose_store_and_container(world: World) -> None:
    for container, place in {
        None: ("main", "volumebackups"),
        "": ("main", "volumebackups"),
        "mine": ("main", "mine"),
        "offsite:mine": ("offsite", "mine"),
        "offsite:": ("offsite", "volumebackups"),
        "offsite:a:b": ("offsite", "a:b"),
    }.items():
        assert where(make(world, world.volume(), container=container)) == place


@pytest.mark.parametrize("container", ["nowhere:mine", "nowhere:", ":mine", "Main:mine"])
def test_a_store_that_is_not_enabled_is_refused(world: World, container: str) -> None:
    volume = world.volume()
    with pytest.raises(errors.InvalidInput, match="names no store that is enabled"):
        make(world, volume, container=container)
    assert (world.volume_status(volume), world.rows(models.Backup)) == ("available", [])


def test_a_store_has_its_own_default_container(world: World) -> None:
    world.conf["store:offsite"].container = "ours"
    assert where(make(world, world.volume(), container="offsite:")) == ("offsite", "ours")
    assert where(make(world, world.volume())) == ("main", "volumebackups")
    world.conf.default_store = "offsite"
    assert where(make(world, world.volume())) == ("offsite", "ours")


@pytest.mark.parametrize("bad", ["../up", ".", "a/b", "offsite:../up", "a\nb", "x" * 256])
def test_a_name_that_no_store_takes_is_refused(world: World, bad: str) -> None:
    volume = world.volume()
    with pytest.raises(errors.InvalidInput, match="container"):
        make(world, volume, container=bad)
    assert world.volume_status(volume) == "available"


def test_a_name_that_this_store_does_not_take_is_refused_before_anything_is_made(world: World) -> None:
    backups = BackupManager(world.db, world.conf, container_patterns={"offsite": "[a-z]+"})
    volume = world.volume()
    with pytest.raises(errors.InvalidInput, match=r"container name cannot be used: .*\[a-z\]\+"):
        backups.create(world.ctx(), volume_id=volume, container="offsite:No_Bucket")
    assert (world.volume_status(volume), world.rows(models.Backup), world.tasks.pending()) == (
        "available",
        [],
        0,
    )
    # The other store takes it.
    assert where(backups.create(world.ctx(), volume_id=volume, container="No_Bucket")) == (
        "main",
        "No_Bucket",
    )


def test_rules_are_tried_in_order(world: World) -> None:
    set_rules(
        world,
        gold=rule("offsite", container="vault", projects=["p1"], volume_types=["gold", "silver"]),
        zone=rule("offsite", availability_zones=["az2"]),
        project=rule("main", container="theirs", projects=["p2"]),
    )
    gold = {"volume_type": "gold"}
    assert where(make(world, world.volume(**gold))) == ("offsite", "vault")
    assert where(make(world, world.volume(volume_type="silver"))) == ("offsite", "vault")
    assert where(make(world, world.volume(volume_type="tin"))) == ("main", "volumebackups")
    assert where(make(world, world.volume())) == ("main", "volumebackups"), "no type at all"
    assert where(make(world, world.volume("p2", **gold), "p2")) == ("main", "theirs")
    away = {"availability_zone": "az2"}
    assert where(make(world, world.volume("p2", **away), "p2")) == ("offsite", "volumebackups")
    assert where(make(world, world.volume("p3"), "p3")) == ("main", "volumebackups")
    # Both criteria fit the first rule; order decides.
    assert where(make(world, world.volume(**gold, **away))) == ("offsite", "vault")


def test_a_zone_that_is_asked_for_wins_over_the_volumes(world: World) -> None:
    set_rules(world, zone=rule("offsite", availability_zones=["az2", "nova"]))
    assert where(make(world, world.volume(availability_zone="az1"), availability_zone="az2"))[0] == "offsite"
    assert where(make(world, world.volume(availability_zone="az2"), availability_zone="az1"))[0] == "main"
    # A volume without one is where the service is.
    assert where(make(world, world.volume()))[0] == "offsite"


def test_a_request_wins_over_a_rule(world: World) -> None:
    set_rules(world, all=rule("offsite", container="vault", projects=["p1"]))
    assert where(make(world, world.volume(), container="main:mine")) == ("main", "mine")
    assert where(make(world, world.volume(), container="main:")) == ("main", "volumebackups")
    # A container alone leaves the store to the rule.
    assert where(make(world, world.volume(), container="mine")) == ("offsite", "mine")


def test_an_incremental_follows_its_parent(world: World) -> None:
    volume = world.volume()
    world.backup(volume, container="offsite:mine")
    assert where(world.backup(volume, incremental=True)) == ("offsite", "mine")
    assert where(make(world, volume, incremental=True, container="other")) == ("offsite", "other")
    world.run_create()
    world.conf.enabled_stores = ["main"]
    assert where(make(world, volume, incremental=True)) == ("main", "volumebackups")


def test_an_incremental_follows_its_parent_when_the_default_changed(world: World) -> None:
    volume = world.volume()
    parent = world.backup(volume)
    world.conf.default_store = "offsite"
    made = make(world, volume, incremental=True)
    assert where(made) == ("main", "volumebackups")
    plan = world.outcomes.creating.start(world.claim(tasks.BACKUP_CREATE))
    assert plan.base is not None
    assert plan.base.id == parent.manifest_id
    assert where(make(world, world.volume())) == ("offsite", "volumebackups")


def test_an_incremental_whose_parent_is_in_another_store_than_the_rule_says(world: World) -> None:
    """It goes where the rule says and stores everything anew; the parent is shown all the same."""
    volume = world.volume()
    parent = world.backup(volume)
    set_rules(world, all=rule("offsite", projects=["p1"]))
    made = make(world, volume, incremental=True)
    assert where(made) == ("offsite", "volumebackups")
    assert (made.is_incremental, made.parent_id) == (True, parent.id)
    plan = world.outcomes.creating.start(task := world.claim(tasks.BACKUP_CREATE))
    assert plan.base is None
    world.outcomes.creating.finish(task, world.result(plan))
    assert world.backups.get(world.ctx(), parent.id).has_dependent_backups
    # From now on the newest backup is in the rule's store, so increments share again.
    following = make(world, volume, incremental=True)
    assert (following.parent_id, where(following)) == (made.id, ("offsite", "volumebackups"))
    assert world.outcomes.creating.start(world.claim(tasks.BACKUP_CREATE)).base is not None


def test_a_rule_of_the_parents_store_leaves_its_container(world: World) -> None:
    volume = world.volume()
    world.backup(volume, container="offsite:mine")
    set_rules(world, all=rule("offsite", container="vault", projects=["p1"]))
    assert where(make(world, volume, incremental=True)) == ("offsite", "mine")


@pytest.mark.parametrize(
    ("store", "said", "encrypts"),
    [("off", None, False), ("project", None, True), ("off", "project", True), ("project", "off", False)],
)
def test_a_rule_says_before_its_store_whether_backups_are_encrypted(
    world: World, store: str, said: str | None, encrypts: bool
) -> None:
    world.conf["store:main"].encryption = store
    world.conf.placement_rules = ["gold"]
    setattr(world.conf, "placement:gold", rule("main", projects=["p1"], encryption=said))
    placer = Placer(world.conf, {})
    assert placer.encrypts("main", Subject("p1", None, None)) is encrypts
    assert placer.encrypts("main", Subject("p2", None, None)) is (store == "project")

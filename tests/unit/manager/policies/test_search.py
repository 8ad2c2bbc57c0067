"""Policies of all volumes, or of those with metadata, where a foreign catalogue has the volumes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import pytest

from backupfw.db import models
from backupfw.errors import InvalidInput, ServiceUnavailable
from backupfw.manager.policies.manager import PolicyManager
from backupfw.manager.policies.runs import PolicyRuns
from backupfw.manager.queue.outbox import Outbox
from backupfw.manager.rows import NO_VOLUME
from backupfw.manager.usecases import mirrors
from backupfw.manager.usecases.backups import BackupManager
from backupfw.volume.catalogue import ForeignVolume
from tests.unit.manager.policies.support import PolicyWorld
from tests.unit.manager.support import check_audit
from tests.unit.manager.test_mirrors import Foreign, with_catalogue


@pytest.fixture
def foreign(world: PolicyWorld) -> Foreign:
    """Return a catalogue of volumes that nothing here has seen; it fails if a transaction of ours is open."""
    world.conf.volumes.enabled = ["local", "cinder"]
    made = with_catalogue(world)
    world.policies = PolicyManager(world.db, world.conf, world.backups)
    world.runs = world.another_process()
    return made


def of(world: PolicyWorld, policy: str) -> dict[str, str]:
    """Return the statuses of a policy's runs, by volume."""
    return {run.volume_id: run.status for run in world.runs_of(policy)}


def test_a_new_volume_is_backed_up(world: PolicyWorld, foreign: Foreign) -> None:
    mine, seen, his = world.volume(), foreign.add(), foreign.add("other")
    world.backups.project_of_volume(world.ctx(), seen)
    policy = world.policy()
    new = foreign.add()
    world.at("2026-01-02T00:00:01")
    world.night()
    assert of(world, policy) == {mine: "ok", seen: "ok", new: "ok"}
    assert his not in {one.volume_id for one in world.rows(models.Backup)}
    # What is gone there is no volume any more, although its mirror stays for its backup.
    del foreign.there[new]
    world.at("2026-01-03T00:00:01")
    world.night()
    assert sorted(run.volume_id for run in world.runs_of(policy, status="ok")).count(new) == 1
    assert world.runs_of(policy, status="skipped") == []
    check_audit(world)


def test_those_that_come_or_go_are_left_out(world: PolicyWorld, foreign: Foreign) -> None:
    for status in ("creating", "downloading", "deleting", "error_deleting"):
        foreign.add(status=status)
    used = foreign.add(status="in-use")
    policy = world.policy()
    world.at("2026-01-02T00:00:01")
    world.night()
    assert of(world, policy) == {used: "ok"}


def test_a_pause_while_the_catalogue_answers_counts(
    world: PolicyWorld, foreign: Foreign, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume, policy, volumes = foreign.add(), world.policy(), foreign.volumes

    def slow(project_id: str) -> Iterable[ForeignVolume]:
        world.policies.pause(world.ctx(), policy)
        return volumes(project_id)

    monkeypatch.setattr(foreign, "volumes", slow)
    world.at("2026-01-02T00:00:01")
    world.night()
    assert of(world, policy) == {volume: "skipped"}
    assert world.rows(models.Backup) == []


def test_by_metadata(world: PolicyWorld, foreign: Foreign) -> None:
    meant = foreign.add(metadata={"tier": "1", "more": "x"})
    foreign.add(metadata={"tier": "2"})
    foreign.add()
    policy = world.policy(selection={"metadata": {"tier": "1"}})
    named = world.policy(selection={"volume_ids": [meant]})
    world.at("2026-01-02T00:00:01")
    world.step()
    assert set(of(world, policy)) == {meant}
    assert set(of(world, named)) == {meant}


def test_the_runs_begin_where_the_jitter_says_and_the_search_at_once(
    world: PolicyWorld, foreign: Foreign
) -> None:
    volumes = {foreign.add() for _ in range(6)}
    policy = world.policy(schedule={"jitter": 3000, "cron": "*/30 * * * *"})
    world.at("2026-01-01T12:30:01")
    world.runs.plan()
    assert world.run(policy).volume_id == NO_VOLUME
    world.step()
    runs = world.runs_of(policy)
    assert {run.volume_id for run in runs} == volumes
    for run in runs:
        offset = run.begin_at - run.scheduled_at
        assert 0 <= offset.total_seconds() < 3000
        # The next run of the volume begins half an hour later.
        assert (run.begin_before - run.begin_at).total_seconds() in (1800, 3600 - offset.total_seconds())
    assert len({run.begin_at for run in runs}) > 3


def test_by_hand_there_is_no_jitter(world: PolicyWorld, foreign: Foreign) -> None:
    volume = foreign.add()
    policy = world.policy(schedule={"jitter": 3000})
    (search,) = world.policies.run(world.ctx(), policy)
    assert (search.volume_id, search.status) == (None, "waiting")
    world.night()
    assert of(world, policy) == {volume: "ok"}


def test_a_catalogue_that_is_away_is_asked_again_within_the_window(
    world: PolicyWorld, foreign: Foreign
) -> None:
    foreign.away = True
    mine, new = world.volume(), foreign.add()
    policy = world.policy()
    world.at("2026-01-02T00:00:01")
    world.night()
    (search,) = world.runs_of(policy, volume_id=NO_VOLUME)
    assert (search.status, search.reason) == ("waiting", "away")
    # Our own ones do not wait for it.
    assert world.runs_of(policy, volume_id=mine)[0].status == "ok"
    asked = len(foreign.asked)
    world.night()
    assert len(foreign.asked) == asked
    world.later(minutes=1)
    foreign.away = False
    world.night()
    assert of(world, policy) == {mine: "ok", new: "ok"}


def test_one_that_stays_away_is_a_failed_run_that_somebody_hears_of(
    world: PolicyWorld, foreign: Foreign
) -> None:
    Outbox(world.db, ways=("mail",))
    foreign.away = True
    policy = world.policy()
    world.at("2026-01-02T00:00:01")
    for minutes in (0, 1, 4, 16, 30):
        world.later(minutes=minutes)
        world.night()
    (run,) = world.policies.runs(world.ctx(), policy).items
    assert (run.volume_id, run.status, run.reason) == (None, "failed", "away")
    (told,) = [one.payload for one in world.rows(models.OutboxEvent) if one.event == "policy.run.failed"]
    assert "foreign catalogues" in str(told)
    assert NO_VOLUME not in str(told)
    world.at("2026-01-03T00:00:01")
    foreign.away = False
    new = foreign.add()
    world.night()
    assert world.runs_of(policy, status="ok")[0].volume_id == new


def test_nobody_searches_while_the_project_is_disabled_or_when_the_window_is_over(
    world: PolicyWorld, foreign: Foreign
) -> None:
    foreign.add()
    policy = world.policy()
    world.paused["p1"] = "The project is disabled."
    world.at("2026-01-02T00:00:01")
    world.night()
    world.at("2026-01-03T02:00:00")
    world.night()
    assert [(run.volume_id, run.status) for run in world.runs_of(policy)] == [
        (NO_VOLUME, "skipped"),
        (NO_VOLUME, "missed"),
    ]
    assert foreign.asked == []


def test_a_limit_of_backups_holds_no_search_up(world: PolicyWorld, foreign: Foreign) -> None:
    first, second = sorted((foreign.add(), foreign.add()))
    policy = world.policy(max_concurrent=1, schedule={"cron": "@hourly"})
    world.at("2026-01-01T13:00:01")
    world.step()
    on = {run.volume_id: run.status for run in world.runs_of(policy)}
    assert sorted(on.values()) == ["running", "waiting"]
    world.policies.run(world.ctx(), policy)
    world.policies.run(world.ctx(), policy)
    world.step()
    assert NO_VOLUME not in of(world, policy)
    assert {first, second} == set(of(world, policy))


def test_a_search_of_two_processes_plans_each_run_once(
    world: PolicyWorld, foreign: Foreign, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first one waits for the catalogue so long that another one takes the search."""
    volume = foreign.add()
    policy = world.policy()
    world.at("2026-01-02T00:00:01")
    world.runs.plan()
    listed = foreign.volumes

    def slow(project_id: str) -> object:
        monkeypatch.undo()
        world.later(minutes=3)
        world.another_process().begin()
        return listed(project_id)

    with monkeypatch.context() as patched:
        patched.setattr(foreign, "volumes", slow)
        world.runs.begin()
    assert [run.volume_id for run in world.runs_of(policy)] == [volume]


def test_a_worker_without_the_catalogue_finds_not_nothing(world: PolicyWorld, foreign: Foreign) -> None:
    """While workers get a new configuration one after the other, no volume goes without a backup."""
    volume = foreign.add()
    policy = world.policy()
    world.at("2026-01-02T00:00:01")
    world.runs.plan()
    PolicyRuns(world.db, BackupManager(world.db, world.conf)).begin()
    run = world.run(policy)
    assert (run.volume_id, run.status, run.tries) == (NO_VOLUME, "waiting", 1)
    assert "configured without" in (run.reason or "")
    world.later(minutes=1)
    world.night()
    assert of(world, policy) == {volume: "ok"}


@pytest.mark.parametrize("edited", ["deleted", "named"])
def test_a_policy_that_changes_while_the_catalogue_is_asked(
    world: PolicyWorld, foreign: Foreign, monkeypatch: pytest.MonkeyPatch, edited: str
) -> None:
    foreign.add()
    named = world.volume()
    policy = world.policy()
    world.at("2026-01-02T00:00:01")
    world.runs.plan()
    listed = foreign.volumes

    def edit(project_id: str) -> object:
        if edited == "deleted":
            world.policies.delete(world.ctx(), policy)
        else:
            world.policies.update(world.ctx(), policy, settings={"selection": {"volume_ids": [named]}})
        return listed(project_id)

    monkeypatch.setattr(foreign, "volumes", edit)
    world.step()
    assert set(of(world, policy)) == (set() if edited == "deleted" else {named})


def test_the_preview_shows_what_the_catalogue_has(world: PolicyWorld, foreign: Foreign) -> None:
    mine, new = world.volume(), foreign.add()
    gone = foreign.add()
    world.backups.project_of_volume(world.ctx(), gone)
    del foreign.there[gone]
    policy = world.policy()
    found = world.policies.preview(world.ctx(), policy)
    assert [one.volume_id for one in found.volumes] == [mine, new]
    foreign.away = True
    with pytest.raises(ServiceUnavailable):
        world.policies.preview(world.ctx(), policy)


def test_a_catalogue_that_lists_nothing_is_told_when_a_policy_is_saved(
    world: PolicyWorld, foreign: Foreign, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume = foreign.add()
    early = world.policy()
    monkeypatch.setattr(Foreign, "lists", False)
    for selection in ({"all": True}, {"metadata": {"a": "b"}}):
        with pytest.raises(InvalidInput, match="back end cinder"):
            world.policy(selection=selection)
        with pytest.raises(InvalidInput, match="back end cinder"):
            world.policies.update(world.ctx(), early, settings={"selection": selection})
    world.policy(selection={"volume_ids": [volume]})
    world.policies.update(world.ctx(), early, name="other")
    # It was saved before: its runs say it.
    world.at("2026-01-02T00:00:01")
    world.step()
    assert "back end cinder cannot be listed" in (world.runs_of(early)[0].reason or "")


def test_an_endless_list_ends(world: PolicyWorld, foreign: Foreign, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mirrors, "MOST_LISTED", 5)

    def endless(project_id: str) -> Iterator[ForeignVolume]:
        while True:
            yield ForeignVolume("no id", project_id, "available", 1)

    monkeypatch.setattr(foreign, "volumes", endless)
    policy = world.policy()
    world.at("2026-01-02T00:00:01")
    world.step()
    assert "more than 5 volumes" in (world.run(policy).reason or "")

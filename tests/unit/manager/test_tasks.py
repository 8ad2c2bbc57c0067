"""Claims, leases and fences."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from backupfw import errors
from backupfw.db import models
from backupfw.manager.queue import tasks
from backupfw.manager.rows import Task
from tests.unit.manager.support import World


@pytest.fixture
def world() -> World:
    return World()


def add(
    world: World, resource: str, source: str | None = None, kind: str = tasks.VOLUME_CREATE, **more: float
) -> int:
    with world.db.write() as session:
        return tasks.add(
            session,
            kind,
            resource_id=resource,
            source_id=source,
            project_id="p",
            request_id="req-1",
            payload={"a": [1]},
            **more,
        )


def test_a_claim_takes_the_oldest_and_only_once(world: World) -> None:
    first, second = add(world, "a"), add(world, "b")
    task = world.tasks.claim("host/1", 60)
    assert task is not None
    assert task == Task(
        id=first,
        kind=tasks.VOLUME_CREATE,
        resource_id="a",
        source_id=None,
        project_id="p",
        request_id="req-1",
        attempt=1,
        payload={"a": [1]},
    )
    other = world.tasks.claim("host/2", 60)
    assert other is not None
    assert other.id == second
    assert world.tasks.claim("host/3", 60) is None


@pytest.mark.parametrize(
    ("older", "younger", "waits"),
    [
        (("r", None), ("r", None), True),
        (("x", "s"), ("y", "s"), True),
        (("x", None), ("y", None), False),
        (("backup", "volume"), ("volume", None), True),
        (("volume", None), ("backup", "volume"), True),
        (("x", "s"), ("y", "t"), False),
    ],
)
def test_tasks_about_one_thing_run_one_after_the_other(
    world: World, older: tuple[str, str | None], younger: tuple[str, str | None], waits: bool
) -> None:
    add(world, *older)
    add(world, *younger)
    first = world.tasks.claim("host/1", 60)
    assert first is not None
    second = world.tasks.claim("host/1", 60)
    assert (second is None) is waits
    with world.db.write() as session:
        tasks.end(session, first)
    if waits:
        assert world.tasks.claim("host/1", 60) is not None


def test_nobody_waits_for_a_release_but_a_release_waits(world: World) -> None:
    add(world, "backup")
    add(world, "manifest", "backup", tasks.MANIFEST_RELEASE)
    add(world, "other", "backup")
    world.claim()
    assert world.tasks.claim("host/1", 60) is None
    world = World()
    add(world, "manifest", "backup", tasks.MANIFEST_RELEASE)
    add(world, "backup")
    assert [world.claim().resource_id for _ in range(2)] == ["manifest", "backup"]


def test_a_claim_keeps_delays_and_takes_only_its_kinds(world: World) -> None:
    add(world, "a", delay=1000)
    add(world, "b", kind=tasks.VOLUME_DELETE)
    assert world.tasks.claim("host/1", 60, [tasks.VOLUME_CREATE]) is None
    assert world.claim().resource_id == "b"
    world.age(seconds=1001)
    # What a lost worker left goes first.
    assert [world.claim().resource_id for _ in range(2)] == ["b", "a"]


def test_a_lost_lease_is_claimed_and_the_old_attempt_is_fenced_out(world: World) -> None:
    add(world, "a")
    old = world.claim()
    assert world.tasks.claim("host/2", 60) is None
    world.age(seconds=61)
    new = world.claim(owner="host/2")
    assert (new.id, new.attempt, new.failures) == (old.id, 2, 1)
    for call in (
        lambda: world.tasks.checkpoint(old, 5),
        lambda: world.tasks.progress(old, 1, 2),
        lambda: world.tasks.release(old),
        lambda: world.tasks.discard(old),
        lambda: world.db.run(lambda session: tasks.end(session, old)),
        lambda: world.db.run(lambda session: tasks.hold(session, old)),
    ):
        with pytest.raises(errors.TaskLost):
            call()
    assert world.renew(old) is None
    assert world.renew(old, "host/2") is None
    assert world.renew(new, "host/2") is False
    world.db.run(lambda session: tasks.end(session, new))
    assert world.tasks.pending() == 0


def test_renewing_keeps_a_lease(world: World) -> None:
    add(world, "a")
    task = world.claim()
    world.age(seconds=40)
    world.renew(task)
    world.age(seconds=40)
    assert world.tasks.claim("host/2", 60) is None


def test_progress_and_shutdown_do_not_count_as_failures(world: World) -> None:
    add(world, "a")
    task = world.claim()
    world.tasks.checkpoint(task, 7)
    world.age(seconds=61)
    task = world.claim()
    assert (task.failures, task.checkpoint) == (0, 7)
    world.tasks.release(task)
    task = world.claim()
    assert task.failures == 0
    assert world.tasks.abandon_all("host/w") == 1
    task = world.claim()
    assert (task.attempt, task.failures) == (4, 0)
    # A checkpoint that is no further than the last one is no progress.
    world.tasks.checkpoint(task, 7)
    assert world.tasks.retry(task, 10, "r" * 300)
    assert world.tasks.claim("host/w", 60) is None
    world.age(seconds=11)
    task = world.claim()
    assert task.failures == 1
    assert world.row(models.Task, task.id).fail_reason == "r" * 255
    world.tasks.checkpoint(task, 8)
    assert world.tasks.retry(task, 0), "an attempt with progress is never one too many"
    task = world.claim()
    assert task.failures == 1
    assert world.tasks.retry(task, 0)
    task = world.claim()
    assert not world.tasks.retry(task, 0), "the third without progress"
    assert world.row(models.Task, task.id).state == tasks.RUNNING
    world.age(seconds=61)
    assert world.tasks.given_up(world.claim())


def test_take_over_ends_the_leases_of_one_host(world: World) -> None:
    for name in ("a", "b"):
        add(world, name)
    world.claim(owner="h1/1")
    world.claim(owner="h1x/1")
    assert world.tasks.take_over("h1") == 1
    assert world.claim(owner="h1/2").resource_id == "a"
    assert world.tasks.claim("h1/2", 60) is None


def test_cancel_deletes_what_nobody_claimed_and_marks_the_rest(world: World) -> None:
    add(world, "a")
    claimed = world.claim()
    add(world, "a")
    cancelled = world.db.run(lambda session: tasks.cancel(session, "a"))
    assert [task.attempt for task in cancelled] == [1, 0]
    assert world.tasks.pending() == 1
    assert world.renew(claimed) is True
    with pytest.raises(errors.TaskCancelled):
        world.db.run(lambda session: tasks.end(session, claimed))
    with pytest.raises(errors.TaskCancelled):
        world.tasks.checkpoint(claimed, 1)
    # Its worker died: another one claims it, to clean up.
    world.age(seconds=61)
    again = world.claim()
    assert again.cancel
    world.tasks.discard(again)
    assert world.tasks.pending() == 0


def test_a_released_cancelled_task_is_cleaned_up_at_once(world: World) -> None:
    add(world, "a")
    task = world.claim()
    world.db.run(lambda session: tasks.cancel(session, "a"))
    assert world.tasks.retry(task, 1000)
    assert world.claim().cancel


def test_many_workers_never_share_a_task(tmp_path: Path) -> None:
    world = World(f"sqlite:///{tmp_path}/db")
    for number in range(40):
        add(world, f"r{number % 20}")
    taken: list[int] = []
    running: set[str] = set()
    lock = threading.Lock()
    wrong: list[str] = []

    def work(name: str) -> None:
        while world.tasks.pending():
            task = world.tasks.claim(name, 60)
            if task is None:
                continue
            with lock:
                taken.append(task.id)
                if task.resource_id in running:
                    wrong.append(task.resource_id)
                running.add(task.resource_id)
            with lock:
                running.discard(task.resource_id)
            world.db.run(lambda session, task=task: tasks.end(session, task))

    threads = [threading.Thread(target=work, args=(f"h/{number}",)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(taken) == sorted(set(taken))
    assert len(taken) == 40
    assert wrong == []

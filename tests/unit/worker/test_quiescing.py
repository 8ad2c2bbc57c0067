"""A volume is frozen exactly while its point is taken, by real commands, and thawed whatever happens."""

from __future__ import annotations

import os
import signal
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from backupfw import crash_points
from backupfw.chunkstore.errors import Unavailable
from backupfw.conf.quiesce import QuiesceCommands
from backupfw.db import models
from backupfw.errors import SourceMoved, TaskLost
from backupfw.manager.messages import Detail
from backupfw.manager.outcomes import freezing
from backupfw.manager.queue import tasks
from backupfw.manager.usecases.backups import MadeBy
from backupfw.volume.base import Capabilities, Point, SnapshotRef, Tick, VolumeRef, no_tick
from backupfw.volume.taking import taking_point
from backupfw.worker import commands, control, quiescing
from backupfw.worker.commands import CommandFailed
from tests.unit.engine.fakes import MemoryPoint
from tests.unit.worker.world import SEGMENT, MemoryProvider, OneBackend, WorkerWorld

DATA = b"x" * SEGMENT


class LiveProvider(MemoryProvider):
    """Takes points of volumes in use, and goes on with those that it has; says so in a log."""

    capabilities = Capabilities(snapshots=True, live=True)

    def __init__(self, log: Path) -> None:
        super().__init__()
        self.log = log
        self.points: dict[str, bytes] = {}
        #: Called while a point is taken.
        self.on_take: Callable[[], object] = lambda: None

    def open_point(self, ref: VolumeRef | SnapshotRef, point_id: str, tick: Tick = no_tick) -> Point:
        if point_id not in self.points:
            with taking_point():
                note(self.log, "taken")
                self.on_take()
                self.points[point_id] = bytes(self.volumes[ref.id])
        return MemoryPoint(self.points[point_id], identity=f"point {point_id}")


def note(log: Path, line: str) -> None:
    with log.open("a") as file:
        file.write(f"{line}\n")


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "log"


@pytest.fixture
def world(tmp_path: Path, log: Path) -> Iterator[WorkerWorld]:
    world = WorkerWorld(tmp_path)
    world.provider = LiveProvider(log)
    world.tools = replace(world.tools, backends=OneBackend(world.provider))  # type: ignore[arg-type]
    set_commands(world, log)
    yield world
    world.close()


def script(path: Path, body: str) -> str:
    # A name of its own: one that runs cannot be written.
    path = path.with_name(f"{path.name}-{uuid.uuid4().hex[:8]}")
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return str(path)


def set_commands(
    world: WorkerWorld,
    log: Path,
    freeze: str = "",
    thaw: str = "",
    *,
    timeout: int = 20,
    frozen_seconds: int = 60,
    name: str = "agent",
) -> None:
    """Let the two commands note that they ran, and do something besides."""
    words = ("{volume_id}", "{project_id}")
    found = QuiesceCommands(
        (script(log.with_name("freeze"), f"echo freeze $1 $2 >> {log}\n{freeze}"), *words),
        (script(log.with_name("thaw"), f"{thaw}\necho thaw $1 $2 >> {log}"), *words),
        timeout,
        frozen_seconds,
    )
    world.tools = replace(world.tools, quiesce={name: found})


def begin(world: WorkerWorld, volume: str, name: str = "agent") -> str:
    made_by = MadeBy("policy", str(uuid.uuid4()), quiesce=name)
    return world.backups.create(world.ctx(), volume_id=volume, force=True, made_by=made_by).id


def lines(log: Path) -> list[str]:
    """What was noted, without the ids."""
    return [line.split()[0] for line in log.read_text().splitlines()] if log.exists() else []


def thaws(world: WorkerWorld) -> list[models.Task]:
    return world.rows(models.Task, models.Task.kind == tasks.VOLUME_THAW)


def made(world: WorkerWorld, name: str = "agent", status: str = "available") -> models.Backup:
    """Make a backup of a new volume."""
    volume = world.volume(length=len(DATA), status=status)
    world.provider.volumes[volume] = bytearray(DATA)
    backup_id = begin(world, volume, name)
    with world.worker():
        row = world.wait_backup(backup_id, "available")
        world.wait_idle()
    return row


def said(row: models.Backup) -> tuple[bool | None, str | None]:
    return row.quiesced, row.quiesce_reason


def messages(world: WorkerWorld) -> list[str]:
    return [one.detail_id for one in world.rows(models.Message)]


def test_it_is_frozen_while_its_point_is_taken_and_not_longer(world: WorkerWorld, log: Path) -> None:
    row = made(world)
    about = f"{row.volume_id} p1"
    assert log.read_text().splitlines() == [f"freeze {about}", "taken", f"thaw {about}"]
    assert said(row) == (True, None)
    assert thaws(world) == []
    assert messages(world) == []


def test_nothing_is_frozen_unasked(world: WorkerWorld, log: Path) -> None:
    backup = world.backups.create(world.ctx(), volume_id=world.filled_volume(DATA))
    with world.worker():
        row = world.wait_backup(backup.id, "available")
    assert lines(log) == ["taken"]
    assert said(row) == (None, None)


def test_the_environment_of_the_service_is_not_the_commands(
    world: WorkerWorld, log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OS_PASSWORD", "secret")
    set_commands(world, log, freeze=f"env > {log}.env; ls -l /proc/$$/fd > {log}.fds; pwd > {log}.pwd")
    made(world)
    found = {line.partition("=")[0] for line in Path(f"{log}.env").read_text().splitlines()}
    # The shell of the script itself adds the rest.
    assert found <= {"PATH", "LANG", "PWD", "OLDPWD", "SHLVL", "_"}
    assert Path(f"{log}.pwd").read_text() == "/\n"
    assert "db.sqlite" not in Path(f"{log}.fds").read_text()


def test_a_freezing_that_fails_is_undone_and_told(world: WorkerWorld, log: Path) -> None:
    set_commands(world, log, freeze="exit 3")
    row = made(world)
    assert lines(log) == ["freeze", "thaw", "taken"]
    assert said(row) == (False, quiescing._FAILED)
    assert messages(world) == [Detail.NOT_QUIESCED.value]
    assert thaws(world) == []


def test_a_command_that_is_missing_is_told(world: WorkerWorld, log: Path) -> None:
    world.tools = replace(
        world.tools, quiesce={"agent": QuiesceCommands(("/no/such",), ("/no/such",), 5, 60)}
    )
    row = made(world)
    assert said(row) == (False, quiescing._MISSING)
    assert lines(log) == ["taken"]
    assert thaws(world) == []


@pytest.mark.parametrize("thaw", [("/no/such",), ("/bin/true", "{nothing}")])
def test_what_could_not_be_thawed_is_not_frozen(
    world: WorkerWorld, log: Path, monkeypatch: pytest.MonkeyPatch, thaw: tuple[str, ...]
) -> None:
    monkeypatch.setattr(quiescing, "values", lambda volume: {"volume_id": volume.id, "nothing": ""})
    freeze = script(log.with_name("freeze"), f"echo freeze >> {log}")
    world.tools = replace(world.tools, quiesce={"agent": QuiesceCommands((freeze,), thaw, 5, 60)})
    row = made(world)
    assert said(row) == (False, quiescing._MISSING)
    assert lines(log) == ["taken"]
    assert thaws(world) == []


def test_commands_that_this_worker_does_not_have_are_told(world: WorkerWorld, log: Path) -> None:
    row = made(world, "other")
    assert said(row) == (False, "The worker has no quiesce commands other.")
    assert lines(log) == ["taken"]


def test_a_freezing_that_hangs_is_killed_with_all_that_it_started(world: WorkerWorld, log: Path) -> None:
    # The one that hangs is neither the script itself, nor does it end by another signal.
    set_commands(world, log, freeze=f"trap '' TERM; (sleep 60; echo late >> {log}) & wait", timeout=1)
    row = made(world)
    assert said(row) == (False, quiescing._FAILED)
    assert lines(log) == ["freeze", "thaw", "taken"]
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            assert str(log) not in entry.read_text()
        except OSError:
            continue


def test_a_point_that_takes_too_long_is_thawed_before(world: WorkerWorld, log: Path) -> None:
    set_commands(world, log, frozen_seconds=1)
    live(world).on_take = lambda: world.wait(lambda: "thaw" in lines(log), "the thawing")
    row = made(world)
    assert lines(log) == ["freeze", "taken", "thaw"]
    assert said(row) == (False, quiescing._LATE.format(1))
    assert messages(world) == [Detail.NOT_QUIESCED.value]
    assert thaws(world) == []


def live(world: WorkerWorld) -> LiveProvider:
    assert isinstance(world.provider, LiveProvider)
    return world.provider


def test_a_cancelled_backup_is_thawed_although_its_storage_hangs(world: WorkerWorld, log: Path) -> None:
    reached, go_on = threading.Event(), threading.Event()

    def hang() -> None:
        reached.set()
        go_on.wait(60)

    live(world).on_take = hang
    backup_id = begin(world, world.filled_volume(DATA))
    with world.worker() as worker:
        assert reached.wait(60)
        world.backups.cancel(world.ctx(), backup_id)
        world.wait_reported(worker)
        world.wait(lambda: "thaw" in lines(log), "the thawing")
        assert not go_on.is_set()
        go_on.set()
        world.wait_backup(backup_id, "error")
        world.wait(lambda: not thaws(world), "the task that thaws")
    assert lines(log) == ["freeze", "taken", "thaw"]


def test_a_cancellation_ends_a_freezing_that_hangs(world: WorkerWorld, log: Path) -> None:
    set_commands(world, log, freeze="exec sleep 60", timeout=60)
    backup_id = begin(world, world.filled_volume(DATA))
    with world.worker() as worker:
        world.wait(lambda: lines(log) == ["freeze"], "the freezing")
        world.backups.cancel(world.ctx(), backup_id)
        world.wait_reported(worker)
        world.wait(lambda: lines(log) == ["freeze", "thaw"], "the thawing")
        world.wait(lambda: not thaws(world), "the task that thaws")
    assert world.status(backup_id) == "error"


def test_a_worker_that_stops_thaws_and_the_next_one_takes_the_point_anew(
    world: WorkerWorld, log: Path
) -> None:
    reached, go_on = threading.Event(), threading.Event()

    def hang() -> None:
        if not reached.is_set():
            reached.set()
            go_on.wait(60)
            raise OSError(5, "the worker is gone")

    live(world).on_take = hang
    backup_id = begin(world, world.filled_volume(DATA))
    with world.worker():
        assert reached.wait(60)
    assert lines(log) == ["freeze", "taken", "thaw"]
    go_on.set()
    with world.worker():
        row = world.wait_backup(backup_id, "available")
        world.wait_idle()
    assert lines(log) == ["freeze", "taken", "thaw"] * 2
    assert said(row) == (True, None)


def killed_at(monkeypatch: pytest.MonkeyPatch, point: str) -> Callable[[], bool]:
    """Let the first attempt that reaches a crash point do nothing any more; returns whether one has."""
    state = ["alive"]
    begin, thaw, end = freezing.FreezeTasks.begin, quiescing._Frozen.thaw, freezing.FreezeTasks.end

    def reach(name: str, _detail: object = "") -> None:
        if name == point and state == ["alive"]:
            state[0] = "dead"
            raise TaskLost("killed")

    def next_attempt(self: freezing.FreezeTasks, *args: Any) -> tuple[int, ...] | None:
        state[0] = "alive again" if state == ["dead"] else state[0]
        return begin(self, *args)

    def thaw_unless_dead(self: quiescing._Frozen, *, late: bool = False) -> None:
        if state == ["dead"]:
            self._done.set()
        else:
            thaw(self, late=late)

    def end_unless_dead(self: freezing.FreezeTasks, *args: Any, **more: Any) -> None:
        if state != ["dead"]:
            end(self, *args, **more)

    monkeypatch.setattr(crash_points, "reach", reach)
    monkeypatch.setattr(freezing.FreezeTasks, "begin", next_attempt)
    monkeypatch.setattr(quiescing._Frozen, "thaw", thaw_unless_dead)
    monkeypatch.setattr(freezing.FreezeTasks, "end", end_unless_dead)
    return lambda: state != ["alive"]


@pytest.mark.parametrize("point", ["quiesce.begun", "quiesce.frozen", "quiesce.taken", "quiesce.thawed"])
def test_the_attempt_after_a_kill_takes_a_point_frozen_or_says_that_it_does_not_know(
    world: WorkerWorld, log: Path, monkeypatch: pytest.MonkeyPatch, point: str
) -> None:
    dead = killed_at(monkeypatch, point)
    backup_id = begin(world, world.filled_volume(DATA))
    with world.worker(lease_seconds=1.0):
        row = world.wait_backup(backup_id, "available")
        assert dead()
        if point in ("quiesce.begun", "quiesce.frozen"):
            assert lines(log)[-3:] == ["freeze", "taken", "thaw"]
            assert lines(log).count("taken") == 1
            assert said(row) == (True, None)
            # What the killed one had queued stays until it is due.
            due_now(world)
            world.wait(lambda: not thaws(world), "the thawing")
            assert lines(log)[-2:] == ["thaw", "thaw"]
        else:
            # The point is there, and whether it was taken in time is not.
            assert lines(log).count("freeze") == lines(log).count("taken") == 1
            assert said(row) == (False, freezing.INTERRUPTED)
            assert messages(world) == [Detail.NOT_QUIESCED.value]
            # The volume is thawed at once, and not only when it must be.
            world.wait(lambda: not thaws(world), "the thawing")
            assert lines(log)[-1] == "thaw"


def due_now(world: WorkerWorld) -> None:
    """Let time pass until the volume is to be thawed in any case."""
    with world.db.write() as session:
        session.query(models.Task).filter_by(kind=tasks.VOLUME_THAW).update({"not_before": None})


def left_frozen(world: WorkerWorld, log: Path) -> models.Backup:
    """Return a backup that was cancelled when its worker was dead, which has left its volume frozen."""
    backup_id = begin(world, world.filled_volume(DATA))
    task = world.claim(tasks.BACKUP_CREATE, owner="dead/x")
    world.outcomes.creating.start(task)
    assert world.outcomes.freezing.begin(task, "agent", 100) is not None
    note(log, "freeze")
    world.backups.cancel(world.ctx(), backup_id)
    with world.db.write() as session:
        row = session.get_one(models.Task, task.id)
        row.lease_until = row.created_at
    return world.row(models.Backup, backup_id)


def test_a_command_of_a_killed_worker_that_freezes_late_is_undone(world: WorkerWorld, log: Path) -> None:
    row = left_frozen(world, log)
    backup_id = begin(world, row.volume_id)
    with world.worker():
        second = world.wait_backup(backup_id, "available")
        assert said(second) == (True, None)
        # It hung in the guest all the time.
        note(log, "freeze")
        due_now(world)
        world.wait(lambda: not thaws(world), "the thawing")
    assert lines(log) == ["freeze", "freeze", "taken", "thaw", "freeze", "thaw"]


def test_a_thawing_for_an_earlier_attempt_is_seen(world: WorkerWorld, log: Path) -> None:
    row = left_frozen(world, log)

    def thawed() -> None:
        with world.db.write() as session:
            first = session.query(models.Task).filter_by(kind=tasks.VOLUME_THAW).order_by(models.Task.id)
            first.limit(1).one().not_before = None
        world.wait(lambda: "thaw" in lines(log) and len(thaws(world)) == 1, "the other worker")

    live(world).on_take = thawed
    backup_id = begin(world, row.volume_id)
    with world.worker():
        second = world.wait_backup(backup_id, "available")
        world.wait_idle()
    assert said(second) == (False, freezing.THAWED_EARLY)
    assert lines(log) == ["freeze", "freeze", "taken", "thaw", "thaw"]
    assert thaws(world) == []


def test_another_worker_thaws_although_all_slots_are_taken(world: WorkerWorld, log: Path) -> None:
    row = left_frozen(world, log)
    world.conf.backup.max_running = 1
    go_on = threading.Event()
    live(world).on_take = lambda: go_on.wait(60)
    set_commands(world, log)
    busy = world.backups.create(world.ctx(), volume_id=world.filled_volume(DATA))
    with world.worker(slots=1):
        world.wait(lambda: "taken" in lines(log), "the slot to be taken")
        due_now(world)
        world.wait(lambda: not thaws(world), "the thawing")
        assert log.read_text().splitlines()[-1] == f"thaw {row.volume_id} p1"
        go_on.set()
        world.wait_backup(busy.id, "available")


def test_a_deletion_of_the_backup_leaves_the_thawing(world: WorkerWorld, log: Path) -> None:
    row = left_frozen(world, log)
    world.backups.force_delete(world.ctx(admin=True), row.id)
    due_now(world)
    with world.worker():
        world.wait(lambda: not thaws(world), "the thawing")
    assert lines(log)[-1] == "thaw"


def test_the_next_freezing_waits_for_a_thawing_that_runs(world: WorkerWorld, log: Path) -> None:
    row = left_frozen(world, log)
    gate = log.with_name("gate")
    set_commands(world, log, thaw=f"while [ ! -e {gate} ]; do sleep 0.05; done")
    due_now(world)
    with world.worker():
        world.wait(lambda: [one.state for one in thaws(world)] == ["running"], "the thawing")
        backup_id = begin(world, row.volume_id)
        world.wait(lambda: world.tasks.pending() == 2, "the backup")
        time.sleep(0.3)
        assert lines(log) == ["freeze"]
        gate.touch()
        second = world.wait_backup(backup_id, "available")
    assert lines(log) == ["freeze", "thaw", "freeze", "taken", "thaw"]
    assert said(second) == (True, None)


def test_a_point_does_not_count_if_another_worker_thawed_meanwhile(world: WorkerWorld, log: Path) -> None:
    def thawed() -> None:
        due_now(world)
        world.wait(lambda: "thaw" in lines(log) and not thaws(world), "the other worker")

    live(world).on_take = thawed
    backup_id = begin(world, world.filled_volume(DATA))
    with world.worker():
        row = world.wait_backup(backup_id, "available")
    assert lines(log) == ["freeze", "taken", "thaw", "thaw"]
    assert said(row) == (False, freezing.THAWED_EARLY)


def test_a_worker_that_wakes_up_late_does_not_thaw_what_others_have_frozen(
    world: WorkerWorld, log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def sleep() -> None:
        due_now(world)
        world.wait(lambda: "thaw" in lines(log) and not thaws(world), "the other worker")
        monkeypatch.setattr(quiescing, "boot_time", lambda: control.boot_time() + 20 + 60 + 15)

    live(world).on_take = sleep
    backup_id = begin(world, world.filled_volume(DATA))
    with world.worker():
        row = world.wait_backup(backup_id, "available")
    assert lines(log) == ["freeze", "taken", "thaw"]
    assert row.quiesced is False
    assert thaws(world) == []


def test_a_freezing_that_may_have_ended_late_is_undone_by_its_worker(
    world: WorkerWorld, log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = commands.run

    def sleeping(arguments: Any, seconds: float, check: Callable[[], None] = lambda: None) -> None:
        if "freeze" in arguments[0]:
            due_now(world)
            world.wait(lambda: "thaw" in lines(log) and not thaws(world), "the other worker")
            monkeypatch.setattr(quiescing, "boot_time", lambda: control.boot_time() + 20 + 60 + 15)
        run(arguments, seconds, check)

    monkeypatch.setattr(commands, "run", sleeping)
    backup_id = begin(world, world.filled_volume(DATA))
    with world.worker():
        world.wait_backup(backup_id, "available")
    assert lines(log) == ["thaw", "freeze", "taken", "thaw"]


def test_a_worker_that_wakes_up_late_has_the_volume_thawed_that_nobody_thawed(
    world: WorkerWorld, log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    later = lambda: control.boot_time() + 20 + 60 + 15  # noqa: E731
    live(world).on_take = lambda: monkeypatch.setattr(quiescing, "boot_time", later)
    backup_id = begin(world, world.filled_volume(DATA))
    with world.worker():
        world.wait_backup(backup_id, "available")
        world.wait(lambda: not thaws(world), "the thawing")
    assert lines(log) == ["freeze", "taken", "thaw"]


def test_a_thawing_that_fails_is_tried_until_it_succeeds(world: WorkerWorld, log: Path) -> None:
    gate = log.with_name("gate")
    set_commands(world, log, thaw=f"echo try >> {log}; [ -e {gate} ] || exit 1")
    backup_id = begin(world, world.filled_volume(DATA))
    with world.worker():
        row = world.wait_backup(backup_id, "available")
        # The worker's own try, and all attempts of the task.
        world.wait(lambda: lines(log).count("try") == 4 and "told" in thaws(world)[0].payload, "more tries")
        # It was frozen when it had to be.
        assert said(row) == (True, None)
        gate.touch()
        due_now(world)
        world.wait(lambda: not thaws(world), "the thawing")
    assert lines(log)[:3] == ["freeze", "taken", "try"]
    assert lines(log)[-1] == "thaw"


def test_of_a_volume_that_nobody_uses_nothing_is_frozen(world: WorkerWorld, log: Path) -> None:
    world.provider.capabilities = Capabilities(snapshots=True)  # type: ignore[misc]
    world.provider.open_point = partial(MemoryProvider.open_point, world.provider)  # type: ignore[method-assign]
    row = made(world)
    assert said(row) == (None, None)
    assert lines(log) == []
    assert messages(world) == []


def test_storage_that_copies_for_hours_is_not_frozen_meanwhile(world: WorkerWorld, log: Path) -> None:
    world.provider.capabilities = Capabilities(snapshots=True)  # type: ignore[misc]
    world.provider.open_point = partial(MemoryProvider.open_point, world.provider)  # type: ignore[method-assign]
    row = made(world, status="in-use")
    assert said(row) == (False, quiescing._NO_MOMENT)
    assert lines(log) == []
    assert messages(world) == [Detail.NOT_QUIESCED.value]


def test_a_volume_that_is_in_use_after_all(world: WorkerWorld, log: Path) -> None:
    world.provider.capabilities = Capabilities(snapshots=True)  # type: ignore[misc]
    moved = iter([True])

    def open_point(ref: VolumeRef | SnapshotRef, *arguments: Any) -> Point:
        point = MemoryProvider.open_point(world.provider, ref, *arguments)
        if isinstance(ref, VolumeRef) and next(moved):
            raise_moved = SourceMoved("somebody writes")

            def check_still() -> None:
                raise raise_moved

            point.check_still = check_still  # type: ignore[method-assign]
        return point

    world.provider.open_point = open_point  # type: ignore[method-assign]
    row = made(world)
    assert said(row) == (False, quiescing._NO_MOMENT)


def test_a_point_of_an_earlier_attempt_stays_quiesced(world: WorkerWorld, log: Path) -> None:
    world.faulty.fail("put", lambda: Unavailable("away"))
    row = made(world)
    assert lines(log) == ["freeze", "taken", "thaw"]
    assert said(row) == (True, None)


def test_a_storage_that_fails_is_frozen_anew(world: WorkerWorld, log: Path) -> None:
    tries = iter([OSError(5, "away"), None])

    def fail() -> None:
        error = next(tries)
        if error is not None:
            raise error

    live(world).on_take = fail
    row = made(world)
    assert lines(log) == ["freeze", "taken", "thaw"] * 2
    assert said(row) == (True, None)


@pytest.mark.parametrize("value", ["", "-rf", "a\nb", "a\0b"])
def test_a_value_that_could_be_something_else_is_refused(value: str) -> None:
    with pytest.raises(CommandFailed) as caught:
        commands.filled(("/bin/true", "{volume_id}"), {"volume_id": value})
    assert not caught.value.started


def test_what_a_value_has_in_braces_stays() -> None:
    values = {"location": "{volume_id} $(id);", "volume_id": "v"}
    assert commands.filled(("/bin/true", "x={location}"), values) == ["/bin/true", "x={volume_id} $(id);"]


def test_a_command_that_writes_without_end_is_killed_and_little_of_it_kept(tmp_path: Path) -> None:
    with pytest.raises(CommandFailed, match="killed"):
        commands.run([script(tmp_path / "loud", "exec yes"), "x"], 1)


def test_what_a_command_leaves_behind_is_not_waited_for(tmp_path: Path) -> None:
    begun = time.monotonic()
    commands.run([script(tmp_path / "leaves", "sleep 5 &")], 5)
    assert time.monotonic() - begun < 4


def test_a_command_dies_in_time_although_this_process_is_dead(tmp_path: Path) -> None:
    """A freezing that goes on for ever would freeze the volume after everybody has thawed it."""
    log = tmp_path / "log"
    hangs = script(tmp_path / "hangs", f"echo $$ >> {log}; sleep 60; echo late >> {log}")
    child = os.fork()
    if child == 0:
        commands.run([hangs], 1)
        os._exit(0)
    while not lines(log):
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    running = Path("/proc", lines(log)[0], "cmdline")
    end = time.monotonic() + 30
    while running.exists() and b"hangs" in running.read_bytes():
        assert time.monotonic() < end
        time.sleep(0.05)
    assert len(lines(log)) == 1

"""What is accepted and then ends, in whatever way, is logged and counted once; a failure is also reported.

Every kind of task, through the worker itself, through what ends waiting tasks and through who cancels it.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable, Iterator
from unittest.mock import patch

import pytest
from oslo_db.exception import DBConnectionError
from sqlalchemy import update
from sqlalchemy.orm import Session

from backupfw.chunkstore.errors import PermissionDenied, Unavailable
from backupfw.conf.logging import RequestFilter
from backupfw.db import models
from backupfw.errors import InvalidInput, SourceMoved, TargetError, TaskCancelled, VolumeNotFound
from backupfw.manager import messages
from backupfw.manager.messages import Detail
from backupfw.manager.queue import tasks
from backupfw.manager.queue.services import BACKUP_BINARY
from backupfw.manager.queue.tasks import Outcome
from backupfw.manager.rows import Task
from backupfw.manager.rules import failures
from backupfw.manager.usecases.snapshots import SnapshotManager
from backupfw.manager.usecases.volumes import VolumeManager
from backupfw.worker.control import TaskControl
from backupfw.worker.handlers import Handler, handler_for
from backupfw.worker.leases import boot_time
from backupfw.worker.stores import StoreDown
from backupfw.worker.worker import Worker, WorkerSettings
from tests.unit.manager.test_records import pack
from tests.unit.worker.world import WIRE, WorkerWorld

OWNER = "host/w"


@pytest.fixture
def world() -> Iterator[WorkerWorld]:
    world = WorkerWorld(None, max_attempts=2)
    world.conf.quota.per_volume_gigabytes = -1
    yield world
    world.store.close()
    world.db.close()


# How each kind of task begins: (what is asked for, whose status it is).


def volumes(world: WorkerWorld) -> VolumeManager:
    return VolumeManager(world.db, world.conf, lambda: None)


def snapshots(world: WorkerWorld) -> SnapshotManager:
    return SnapshotManager(world.db, world.conf, lambda: None)


def available_backup(world: WorkerWorld) -> str:
    made = world.backups.create(world.ctx(), volume_id=world.volume(host="host")).id
    world.run_create()
    return made


def create_backup(world: WorkerWorld) -> str:
    return world.backups.create(world.ctx(), volume_id=world.volume(host="host")).id


def import_backup(world: WorkerWorld) -> str:
    url = pack({"id": str(uuid.uuid4()), "size": 1})
    return world.backups.import_record(world.ctx(), backup_service="x", backup_url=url).id


def restore_backup(world: WorkerWorld) -> str:
    backup = available_backup(world)
    world.backups.restore(world.ctx(), backup)
    return backup


def delete_backup(world: WorkerWorld) -> str:
    backup = available_backup(world)
    world.backups.delete(world.ctx(), backup)
    return backup


def create_volume(world: WorkerWorld) -> str:
    return volumes(world).create(world.ctx(), size=1, source_volid=world.volume(host="host")).id


def delete_volume(world: WorkerWorld) -> str:
    volume = world.volume(host="host")
    volumes(world).delete(world.ctx(), volume)
    return volume


def extend_volume(world: WorkerWorld) -> str:
    volume = world.volume(host="host")
    volumes(world).extend(world.ctx(), volume, new_size=2)
    return volume


def create_snapshot(world: WorkerWorld) -> str:
    return snapshots(world).create(world.ctx(), volume_id=world.volume(host="host")).id


def delete_snapshot(world: WorkerWorld) -> str:
    snapshot = world.snapshot(world.volume(host="host"))
    snapshots(world).delete(world.ctx(), snapshot)
    return snapshot


#: Kind of task -> how it begins; type, action and detail of its message; the status it ends in.
KINDS: dict[str, tuple[Callable[[WorkerWorld], str], str, str]] = {
    tasks.BACKUP_CREATE: (create_backup, "VOLUME_VOLUME_BACKUP_013_020", "error"),
    tasks.BACKUP_IMPORT: (import_backup, "VOLUME_VOLUME_BACKUP_102_102", "error"),
    tasks.BACKUP_RESTORE: (restore_backup, "VOLUME_VOLUME_BACKUP_015_026", "available"),
    tasks.BACKUP_DELETE: (delete_backup, "VOLUME_VOLUME_BACKUP_014_025", "error_deleting"),
    tasks.VOLUME_CREATE: (create_volume, "VOLUME_VOLUME_008_012", "error"),
    tasks.VOLUME_DELETE: (delete_volume, "VOLUME_VOLUME_101_001", "error_deleting"),
    tasks.VOLUME_EXTEND: (extend_volume, "VOLUME_VOLUME_007_010", "error_extending"),
    tasks.SNAPSHOT_CREATE: (create_snapshot, "VOLUME_VOLUME_SNAPSHOT_009_013", "error"),
    tasks.SNAPSHOT_DELETE: (delete_snapshot, "VOLUME_VOLUME_SNAPSHOT_010_016", "error_deleting"),
}
#: Kinds whose messages say more exactly what was wrong with a volume.
EXACT = {tasks.BACKUP_CREATE, tasks.BACKUP_RESTORE}


# By which way it fails.


class Driver:
    """A worker whose attempts a test makes itself, one after the other."""

    def __init__(self, world: WorkerWorld) -> None:
        self._world = world
        settings = WorkerSettings("host", 1, 30.0, retry_pause=0.0, store_wait=600.0)
        self._worker = Worker(world.tools, world.dispatch, settings)

    def attempt(self, kind: str, error: Exception | None) -> None:
        """Let one attempt of the task of this kind end in this error, or well."""
        task = self._world.tasks.claim(OWNER, 60)
        assert task is not None
        assert task.kind == kind

        def run(_handler: Handler, task: Task, _control: TaskControl) -> None:
            if error is not None:
                raise error
            self._world.db.run(lambda session: tasks.end(session, task))

        with patch.object(type(handler_for(kind, self._world.tools)), "run", run):
            self._worker._run_task(task, TaskControl(boot_time() + 60))


def refused(world: WorkerWorld, kind: str) -> None:
    """An error that another attempt would not change."""
    Driver(world).attempt(kind, PermissionDenied("AKIA123"))


def unexpected(world: WorkerWorld, kind: str) -> None:
    """An error of ours."""
    Driver(world).attempt(kind, KeyError("oops"))


def again_and_again(world: WorkerWorld, kind: str) -> None:
    """An error that might pass, in every attempt there is."""
    driver = Driver(world)
    for _ in range(2):
        assert world.rows(models.Message) == []
        driver.attempt(kind, OSError(5, "no"))


def attempts_lost(world: WorkerWorld, kind: str) -> None:
    """Workers that die of it; the one that claims it next does not even begin."""
    for _ in range(2):
        assert world.tasks.claim(OWNER, 60) is not None
        with world.db.write() as session:
            session.execute(update(models.Task).values(lease_until=models.Task.created_at))
    Driver(world).attempt(kind, AssertionError("it was begun"))


def store_down(world: WorkerWorld, kind: str) -> None:
    """A store that has not answered for long."""
    Driver(world).attempt(kind, StoreDown("main", 601.0))


def store_gone(world: WorkerWorld, kind: str) -> None:
    """A store that does not answer when it is asked, again and again."""
    driver = Driver(world)
    for _ in range(2):
        driver.attempt(kind, Unavailable("no"))


def volume_gone(world: WorkerWorld, kind: str) -> None:
    """What it is about is gone."""
    Driver(world).attempt(kind, VolumeNotFound("x"))


def source_moved(world: WorkerWorld, kind: str) -> None:
    """The volume never stood still."""
    Driver(world).attempt(kind, SourceMoved("no"))


def target_refused(world: WorkerWorld, kind: str) -> None:
    """The volume could not be opened."""
    driver = Driver(world)
    for _ in range(2):
        driver.attempt(kind, TargetError("no"))


def no_worker(world: WorkerWorld, _kind: str) -> None:
    """Nobody took it."""
    world.silence(seconds=700)
    world.age(seconds=700)
    assert world.expiry.expire() == 1


def no_able_worker(world: WorkerWorld, _kind: str) -> None:
    """Nobody who lives could take it."""
    with world.db.write() as session:
        session.execute(update(models.Task).values(volume_host="gone"))
    world.age(seconds=700)
    assert world.expiry.expire() == 1


#: The way -> the detail that every kind tells then; None: each its own, or what EXACT kinds tell.
WAYS: dict[Callable[[WorkerWorld, str], None], Detail | None] = {
    refused: None,
    unexpected: None,
    attempts_lost: None,
    store_down: None,
    store_gone: None,
    again_and_again: Detail.DEVICE,
    volume_gone: Detail.VOLUME_STATE,
    source_moved: Detail.DEVICE,
    target_refused: Detail.ATTACH,
    no_worker: Detail.SERVICE_DOWN,
    no_able_worker: Detail.SCHEDULE,
}
ENDED_BY_WAITING = {no_worker, no_able_worker}


def expected_event(kind: str, way: Callable[[WorkerWorld, str], None]) -> str:
    event, detail = KINDS[kind][1], WAYS[way]
    if detail is None or (way not in ENDED_BY_WAITING and kind not in EXACT):
        return event
    if way is no_able_worker and not kind.startswith("backup"):
        detail = Detail.NO_BACKEND
    return f"{event.rpartition('_')[0]}_{detail.value}"


class Ends:
    """What is heard and logged of the ends of tasks, from now on.

    Every task is then of one request, ``req-1``.
    """

    def __init__(self, world: WorkerWorld, caplog: pytest.LogCaptureFixture) -> None:
        self.heard: list[tuple[str, Outcome]] = []
        self._caplog = caplog
        tasks.hear_ends(world.db, lambda *end: self.heard.append(end))
        caplog.handler.addFilter(RequestFilter())
        caplog.set_level(logging.INFO, "backupfw")
        caplog.clear()
        with world.db.write() as session:
            session.execute(update(models.Task).values(request_id="req-1"))

    def check(self, resource: str, kind: str, outcome: Outcome, level: int) -> None:
        """One end of one task there was; look at nothing else than that, but for begins and repetitions."""
        assert self.heard == [(kind, outcome)]
        lines = [
            record
            for record in self._caplog.records
            if ", attempt " not in record.getMessage() and "trying again" not in record.getMessage()
        ]
        assert len(lines) == 1, self._caplog.text
        assert (lines[0].levelno, lines[0].__dict__["context"].request_id) == (level, "req-1")
        assert resource in lines[0].getMessage()


def test_every_kind_is_here() -> None:
    # Copies and verifications fail by functions of their own: the backup is as good as before.
    hidden = {tasks.BACKUP_COPY, tasks.BACKUP_VERIFY}
    hidden |= {tasks.MANIFEST_RELEASE, tasks.MANIFEST_SCRUB, tasks.VOLUME_TIDY, tasks.VOLUME_THAW}
    assert set(KINDS) == set(failures.FAILURES) == tasks.KINDS - hidden


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
@pytest.mark.parametrize("kind", KINDS)
def test_a_failure_is_reported_once(
    world: WorkerWorld,
    kind: str,
    way: Callable[[WorkerWorld, str], None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """To the user by a message, to the operator by a line of the log with the request's id and a figure."""
    begin, _, status = KINDS[kind]
    resource = begin(world)
    ends = Ends(world, caplog)
    way(world, kind)
    ends.check(resource, kind, "failed", logging.ERROR)
    (told,) = world.rows(models.Message)
    assert told.event_id == expected_event(kind, way)
    assert (told.resource_uuid, told.project_id, told.message_level) == (resource, "p1", messages.ERROR)
    model = failures.FAILURES[kind].model
    row = world.row(model, resource)
    assert row.status == status
    if model is models.Backup:
        assert row.fail_reason


def test_a_refused_import_is_a_warning(world: WorkerWorld, caplog: pytest.LogCaptureFixture) -> None:
    """It is the user's input, and is told as an import."""
    backup = import_backup(world)
    ends = Ends(world, caplog)
    Driver(world).attempt(tasks.BACKUP_IMPORT, InvalidInput("More than one store has it."))
    ends.check(backup, tasks.BACKUP_IMPORT, "failed", logging.WARNING)
    assert "Traceback" not in caplog.text
    (told,) = world.rows(models.Message)
    assert messages.text(told.action_id, told.detail_id) == "import backup: The backup could not be imported."


def cancelled_while_it_runs(world: WorkerWorld, kind: str, resource: str) -> None:
    """Its worker cleans up."""
    del resource
    with world.db.write() as session:
        session.execute(update(models.Task).values(cancel=True))
    Driver(world).attempt(kind, TaskCancelled("no"))


def cancelled_before_it_began(world: WorkerWorld, kind: str, resource: str) -> None:
    """No worker has seen it."""
    del kind
    world.db.run(lambda session: tasks.cancel(session, resource))


def cancelled_and_then_no_worker(world: WorkerWorld, kind: str, resource: str) -> None:
    """Its worker has died."""
    assert world.tasks.claim(OWNER, 60) is not None
    world.db.run(lambda session: tasks.cancel(session, resource))
    no_worker(world, kind)


@pytest.mark.parametrize(
    "way", [cancelled_while_it_runs, cancelled_before_it_began, cancelled_and_then_no_worker]
)
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_cancelled_is_logged_and_not_reported(
    world: WorkerWorld,
    kind: str,
    way: Callable[[WorkerWorld, str, str], None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Whoever cancelled it knows."""
    resource = KINDS[kind][0](world)
    ends = Ends(world, caplog)
    way(world, kind, resource)
    ends.check(resource, kind, "cancelled", logging.INFO)
    assert world.rows(models.Message) == []


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_done_is_logged(world: WorkerWorld, kind: str, caplog: pytest.LogCaptureFixture) -> None:
    resource = KINDS[kind][0](world)
    ends = Ends(world, caplog)
    Driver(world).attempt(kind, None)
    ends.check(resource, kind, "done", logging.INFO)


def test_an_end_that_is_rolled_back_is_none(world: WorkerWorld, caplog: pytest.LogCaptureFixture) -> None:
    """The transaction is done again: it ends once."""
    backup = create_backup(world)
    ends = Ends(world, caplog)
    task = world.tasks.claim(OWNER, 60)
    assert task is not None
    tries = []

    def work(session: Session) -> None:
        tasks.end(session, task)
        tries.append(len(ends.heard))
        if len(tries) < 3:
            raise DBConnectionError

    world.db.run(work)
    assert tries == [0, 0, 0]
    ends.check(backup, tasks.BACKUP_CREATE, "done", logging.INFO)


def test_a_deletion_that_no_worker_takes_ends_twice(
    world: WorkerWorld, caplog: pytest.LogCaptureFixture
) -> None:
    """It failed for its user; then a worker comes and carries it out."""
    delete_backup(world)
    ends = Ends(world, caplog)
    no_worker(world, tasks.BACKUP_DELETE)
    Driver(world).attempt(tasks.BACKUP_DELETE, None)
    assert ends.heard == [(tasks.BACKUP_DELETE, "failed"), (tasks.BACKUP_DELETE, "done")]


def test_a_worker_that_left_in_order_is_waited_for_as_long_as_service_wait_says(world: WorkerWorld) -> None:
    """Not for ``service_down_time``: that is for one of which nobody knows."""
    KINDS[tasks.BACKUP_CREATE][0](world)
    world.conf.backup.service_wait = 10
    world.services.heartbeat("host", BACKUP_BINARY, "nova", {"main": WIRE}, process="one")
    with world.db.write() as session:
        for service in session.query(models.Service):
            service.processes = {"one": (service.processes or {})["one"]}
    world.age(seconds=20)
    assert world.expiry.expire() == 0
    world.services.leave("host", BACKUP_BINARY, "one")
    assert world.expiry.expire() == 0, "it may come back"
    world.silence(seconds=11)
    assert world.expiry.expire() == 1

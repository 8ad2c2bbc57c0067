"""Which task a worker gets: what it can serve, limits over all workers, and turns between projects."""

from __future__ import annotations

import contextlib
import random
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import delete, event, select, update

from backupfw.db import models
from backupfw.db.locks import lock
from backupfw.db.session import Database, now
from backupfw.errors import TaskLost
from backupfw.manager.outcomes.volumes import VolumeTasks
from backupfw.manager.queue import claims, requirements, tasks, waiting
from backupfw.manager.queue.claims import Limits, Reach
from backupfw.manager.queue.services import BACKUP_BINARY
from backupfw.manager.queue.tasks import Tasks
from backupfw.manager.rows import Task
from backupfw.manager.usecases.volumes import VolumeManager
from tests.unit.manager.support import World


def reach(host: str = "host", zone: str = "nova", *stores: str, every: bool = False) -> Reach:
    shared = frozenset(("local",) if every else ())
    return Reach(
        host, BACKUP_BINARY, zone, frozenset(stores or ("main",)), frozenset(("local", "fast")), shared
    )


@pytest.fixture
def world() -> World:
    return World()


def queue(world: World, resource: str, project: str = "p", **columns: Any) -> int:
    """Queue a task with the requirements in ``columns``."""
    with world.db.write() as session:
        number = tasks.add(
            session,
            tasks.VOLUME_CREATE,
            resource_id=resource,
            source_id=None,
            project_id=project,
            request_id=None,
        )
        row = session.get_one(models.Task, number)
        for name, value in columns.items():
            setattr(row, name, value)
    return number


def end(world: World, task: Task) -> None:
    world.db.run(lambda session: tasks.end(session, task))


@pytest.mark.parametrize(
    ("required", "worker", "taken"),
    [
        ({}, reach(), True),
        ({"zone": "nova"}, reach(), True),
        ({"zone": "mars"}, reach(), False),
        ({"store": "main"}, reach("host", "nova", "main", "tape"), True),
        ({"store": "tape"}, reach(), False),
        # A copy needs both stores.
        ({"store": "main", "from_store": "tape"}, reach("host", "nova", "main", "tape"), True),
        ({"store": "main", "from_store": "tape"}, reach(), False),
        ({"volume_host": "host"}, reach(), True),
        ({"volume_host": "other"}, reach(), False),
        ({"volume_host": "other"}, reach(every=True), True),
        ({"zone": "nova", "store": "main", "volume_host": "other"}, reach(), False),
        ({"backend": "fast"}, reach(), True),
        ({"backend": "gone"}, reach(), False),
        ({"backend": "fast", "volume_host": "host"}, reach(every=True), True),
        # Of another back end it can open its own host's volumes only.
        ({"backend": "fast", "volume_host": "other"}, reach(every=True), False),
        ({"backend": "local", "volume_host": "other"}, reach(every=True), True),
        # A kind that needs no volume, for what an attempt left in a back end.
        ({"kind": tasks.BACKUP_DELETE, "backend": "gone"}, reach(), False),
    ],
)
def test_a_worker_takes_what_it_can_serve(
    world: World, required: dict[str, str], worker: Reach, taken: bool
) -> None:
    queue(world, "other-task", zone="elsewhere")
    number = queue(world, "a", **required)
    with world.db.read() as session:
        needed = requirements.of_row(session.get_one(models.Task, number))
    assert worker.can_serve(needed) is taken
    assert (world.tasks.claim("host/1", 60, reach=worker) is not None) is taken


@pytest.mark.parametrize("kind", sorted(tasks.KINDS))
def test_a_task_of_an_older_release_about_a_volume_needs_the_back_end_local(world: World, kind: str) -> None:
    """It has no back end, as has one that needs no volume, which any worker takes."""
    about_stores = (tasks.BACKUP_COPY, tasks.BACKUP_DELETE, tasks.BACKUP_IMPORT, tasks.BACKUP_VERIFY)
    without = kind in (*about_stores, tasks.MANIFEST_RELEASE, tasks.MANIFEST_SCRUB)
    number = queue(world, "a", kind=kind, backend=None)
    bound = queue(world, "b", kind=kind, backend=None, volume_host="host")
    there = reach()
    elsewhere = replace(there, backends=frozenset(("fast",)))
    world.services.heartbeat("host", BACKUP_BINARY, "nova", {"main": "x"}, {"fast": False})

    def why(task: int) -> str | None:
        with world.db.read() as session:
            return waiting.why(session, world.conf, session.get_one(models.Task, task), Limits())

    assert why(number) == (waiting.QUEUED if without else waiting.WAITING_FOR_WORKER)
    assert why(bound) == waiting.WAITING_FOR_WORKER
    world.age(seconds=700)
    with world.db.read() as session:
        late, left = waiting.overdue(session, world.conf, models.Task.id.is_not(None))
        assert [one.id for one in late] == ([bound] if without else [number, bound])
        assert waiting.missing(late[-1], left) == (
            "No backup service with the volume back end local was available."
        )
    taken = world.tasks.claim("host/1", 60, reach=elsewhere)
    assert (taken is not None) is without
    assert world.tasks.claim("host/1", 60, reach=elsewhere) is None
    assert world.tasks.claim("host/1", 60, reach=there) is not None


def test_the_requirements_of_tasks(world: World) -> None:
    """The zone that was asked for, the backup's store, and the host and the back end of the volume."""
    volume = world.volume(host="one", backend="fast")

    def needed(kind: str) -> tuple[str | None, str | None, str | None, str | None]:
        with world.db.read() as session:
            row = session.scalars(select(models.Task).where(models.Task.kind == kind)).one()
            return row.zone, row.store, row.volume_host, row.backend

    made = world.backups.create(
        world.ctx(), volume_id=volume, availability_zone="nova", container="offsite:c"
    )
    assert needed(tasks.BACKUP_CREATE) == ("nova", "offsite", "one", "fast")
    world.run_create()
    target = world.volume(host="two")
    world.backups.restore(world.ctx(), made.id, volume_id=target)
    assert needed(tasks.BACKUP_RESTORE) == (None, "offsite", "two", "local")
    world.backups.force_delete(world.ctx(admin=True), made.id)
    assert needed(tasks.BACKUP_DELETE) == (None, "offsite", None, None)


def test_a_restore_to_a_new_volume_goes_on_where_the_volume_was_made(world: World) -> None:
    backup = world.backup(world.volume())
    _, target, _ = world.backups.restore(world.ctx(), backup.id)
    task = world.tasks.claim("two/1", 60, reach=reach("two"))
    assert task is not None
    world.outcomes.restoring.bind_target(task, "two")
    world.outcomes.restoring.set_location(task, "/v")
    world.tasks.release(task)
    assert world.row(models.Volume, target).host == "two"
    assert world.tasks.claim("one/1", 60, reach=reach("one")) is None
    assert world.tasks.claim("two/1", 60, reach=reach("two")) is not None


@pytest.mark.parametrize(("restored", "late"), [(False, False), (True, False), (True, True)])
def test_a_volume_that_is_deleted_while_it_is_made_is_deleted_where_it_is_made(
    world: World, restored: bool, late: bool
) -> None:
    """Elsewhere its storage is not there, which counts as deleted: it would stay for ever."""
    volumes = VolumeManager(world.db, world.conf, lambda: None)
    if restored:
        backup = world.backup(world.volume())
        volume = world.backups.restore(world.ctx(), backup.id)[1]
    else:
        world.conf.quota.per_volume_gigabytes = -1
        volume = volumes.create(world.ctx(), size=1).id
    task = world.tasks.claim("two/1", 60, reach=reach("two"))
    assert task is not None
    if late:
        volumes.force_delete(world.ctx(admin=True), volume)
    if restored:
        world.outcomes.restoring.bind_target(task, "two")
    else:
        VolumeTasks(world.db).start_create(task, lambda _backend: "two")
    # Here its storage is being made.
    if not late:
        volumes.force_delete(world.ctx(admin=True), volume)
    if restored:
        world.outcomes.restoring.finish(task)
    else:
        world.tasks.discard(task)
    assert world.tasks.claim("one/1", 60, reach=reach("one")) is None
    deletion = world.tasks.claim("two/1", 60, reach=reach("two"))
    assert deletion is not None
    assert (deletion.kind, deletion.resource_id) == (tasks.VOLUME_DELETE, volume)


def test_a_disabled_or_frozen_worker_takes_nothing_new(world: World) -> None:
    first, second = queue(world, "a"), queue(world, "b")
    running = world.tasks.claim("host/1", 60, reach=reach())
    assert running is not None
    assert running.id == first
    admin = world.ctx(admin=True)
    # What another service of the host is, and another host's worker, is nothing to it.
    for host, binary in (("host", "another"), ("third", BACKUP_BINARY)):
        world.services.heartbeat(host, binary, "nova", {})
        world.services.set_disabled(admin, host, binary, disabled=True, reason="x")
    free = world.tasks.claim("host/2", 60, reach=reach())
    assert free is not None
    world.tasks.release(free)
    for stop, go in (
        (
            lambda: world.services.set_disabled(admin, "host", BACKUP_BINARY, disabled=True, reason="x"),
            lambda: world.services.set_disabled(admin, "host", BACKUP_BINARY, disabled=False),
        ),
        (
            lambda: world.services.set_frozen(admin, "host", frozen=True),
            lambda: world.services.set_frozen(admin, "host", frozen=False),
        ),
    ):
        stop()
        world.services.heartbeat("host", BACKUP_BINARY, "nova", {"main": "x"})
        assert world.tasks.claim("host/1", 60, reach=reach()) is None
        assert world.renew(running, "host/1") is False
        other = world.tasks.claim("other/1", 60, reach=reach("other"))
        assert other is not None
        world.tasks.release(other)
        go()
    again = world.tasks.claim("host/1", 60, reach=reach())
    assert again is not None
    assert again.id == second


def test_a_disabled_worker_thaws_a_volume(world: World) -> None:
    thaw = queue(world, "a", kind=tasks.VOLUME_THAW)
    queue(world, "b")
    world.services.heartbeat("host", BACKUP_BINARY, "nova", {"main": "x"})
    world.services.set_disabled(world.ctx(admin=True), "host", BACKUP_BINARY, disabled=True, reason="x")
    found = world.tasks.claim("host/1", 60, reach=reach())
    assert found is not None
    assert found.id == thaw
    assert world.tasks.claim("host/1", 60, reach=reach()) is None


def test_a_late_project_of_many_tasks_does_not_wait_for_an_early_one(world: World) -> None:
    """A queues 200, some of them start, B queues 10: B's last starts before A's 60th."""
    with world.db.write() as session:
        for number in range(200):
            add(session, "A", f"a{number}")
    for _ in range(40):
        task = world.claim()
        end(world, task)
        assert task.project_id == "A"
    with world.db.write() as session:
        for number in range(10):
            add(session, "B", f"b{number}")
    order = []
    while order.count("B") < 10:
        task = world.claim()
        end(world, task)
        order.append(task.project_id)
    assert 40 + order.count("A") < 60
    # And they take turns: neither waits for two of the other.
    assert "AAA" not in "".join(order)
    assert "BBB" not in "".join(order)


def test_projects_alternate_however_many_tasks_each_has_queued(world: World) -> None:
    for number in range(4):
        queue(world, f"a{number}", "A")
    for number in range(2):
        queue(world, f"b{number}", "B")
    assert [world.claim().resource_id for _ in range(6)] == ["a0", "b0", "a1", "b1", "a2", "a3"]


def test_a_position_is_behind_the_projects_last_task_and_the_one_claimed_last(world: World) -> None:
    def position(number: int) -> int:
        with world.db.read() as session:
            return session.get_one(models.Task, number).queue_position

    assert [position(queue(world, f"a{number}", "A")) for number in range(3)] == [1, 2, 3]
    assert position(queue(world, "b0", "B")) == 1
    for _ in range(3):
        world.claim()
    # Claimed: a0, b0, a1.  The one claimed last had position 2.
    assert position(queue(world, "c0", "C")) == 3
    assert position(queue(world, "b1", "B")) == 3
    assert position(queue(world, "a3", "A")) == 4
    # Going back to an earlier position does not set the queue back.
    early = queue(world, "d0", "D", queue_position=1)
    assert world.claim().id == early
    assert position(queue(world, "e0", "E")) == 3
    # A scrub may wait for days, and nobody behind it.
    queue(world, "scrubbed", "F", kind=tasks.MANIFEST_SCRUB, queue_position=50)
    assert position(queue(world, "f0", "F")) == 3


def test_a_claim_for_some_kinds_takes_no_other(world: World) -> None:
    queue(world, "a")
    wanted = queue(world, "b", kind=tasks.BACKUP_DELETE)
    assert world.claim(tasks.BACKUP_DELETE).id == wanted
    assert world.tasks.claim("h/1", 60, [tasks.BACKUP_DELETE]) is None


@pytest.mark.parametrize(
    ("older", "newer", "waits"),
    [
        (tasks.VOLUME_CREATE, tasks.VOLUME_DELETE, True),
        (tasks.VOLUME_CREATE, tasks.VOLUME_TIDY, True),
        (tasks.VOLUME_CREATE, tasks.VOLUME_THAW, False),
        (tasks.VOLUME_TIDY, tasks.VOLUME_DELETE, False),
        # By one worker at a time.
        (tasks.VOLUME_TIDY, tasks.VOLUME_TIDY, True),
        (tasks.VOLUME_THAW, tasks.VOLUME_TIDY, False),
        (tasks.BACKUP_VERIFY, tasks.BACKUP_DELETE, False),
    ],
)
def test_a_task_waits_for_an_older_one_of_its_resource(
    world: World, older: str, newer: str, waits: bool
) -> None:
    number = queue(world, "a", kind=older)
    after = queue(world, "a", kind=newer)
    assert world.claim(older).id == number
    claimed = world.tasks.claim("h/1", 60)
    assert (None if claimed is None else claimed.id) == (None if waits else after)


@pytest.mark.parametrize("page", [1, 2])
def test_the_queue_is_read_in_order_page_by_page(
    world: World, monkeypatch: pytest.MonkeyPatch, page: int
) -> None:
    """However many tasks wait for older ones of their resource, and wherever a page ends."""
    monkeypatch.setattr(claims, "_PAGE", page)
    first = queue(world, "held", queue_position=9)
    waiting_tasks = [queue(world, "held", queue_position=place) for place in (3, 2, 2, 3, 1)]
    free = [queue(world, f"free{at}", queue_position=place) for at, place in enumerate((4, 3, 3, 5))]
    assert [world.claim().id for _ in range(5)] == [free[1], free[2], free[0], free[3], first]
    assert world.tasks.claim("h/1", 60) is None
    with world.db.write() as session:
        session.execute(delete(models.Task).where(models.Task.id == first))
    assert world.claim().id == waiting_tasks[0]


def add(session: Any, project: str, resource: str) -> None:
    tasks.add(
        session,
        tasks.VOLUME_CREATE,
        resource_id=resource,
        source_id=None,
        project_id=project,
        request_id=None,
    )


def test_a_project_that_was_idle_is_not_paid_back_in_front_of_many_tasks(world: World) -> None:
    """Neither by its old turns nor by those of tasks that sleep for a retry."""
    with world.db.write() as session:
        add(session, "C", "sleeper")
    world.tasks.retry(world.claim(), 1000)
    for number in range(50):
        queue(world, f"a{number}", "A")
    for _ in range(30):
        end(world, world.claim())
    for number in range(50):
        queue(world, f"b{number}", "B")
    order = "".join(world.claim().project_id for _ in range(30))
    assert order.count("A") >= 14
    assert order.count("B") >= 14


MAIN, TAPE, NONE = ("main", "tape", None)


@pytest.mark.parametrize(
    ("limits", "taken"),
    [
        (Limits(), [0, 1, 2, 3, 4, 5, 6]),
        (Limits(total=1), [0]),
        (Limits(total=4), [0, 1, 2, 3]),
        (Limits(project=1), [0, 1]),
        (Limits(project=2), [0, 1, 2, 3]),
        (Limits(stores={MAIN: 1}), [0, 2, 3, 4, 5]),
        # A store's count is of all projects: 0 is A's, 1 is B's.
        (Limits(stores={MAIN: 2, TAPE: 1}), [0, 1, 2, 4, 5]),
        (Limits(stores={MAIN: 0, TAPE: 2}), [0, 1, 2, 3, 4, 5, 6]),
        (Limits(total=3, project=2, stores={MAIN: 1}), [0, 2, 3]),
    ],
)
def test_what_runs_counts_against_the_limits(world: World, limits: Limits, taken: list[int]) -> None:
    world.tasks = Tasks(world.db, 3, lambda: limits)
    ids = [
        queue(world, f"r{at}", "AB"[at % 2], store=store)
        for at, store in enumerate((MAIN, MAIN, TAPE, TAPE, NONE, NONE, MAIN))
    ]
    running = []
    while (task := world.tasks.claim("h/1", 60)) is not None:
        running.append(task)
    assert [ids.index(task.id) for task in running] == taken
    assert limits.any() is bool(limits.total or limits.project or set(limits.stores.values()) - {0})
    # The place of one that ended is free again.
    end(world, running[0])
    queue(world, "next", "A", store=MAIN)
    assert world.tasks.claim("h/1", 60) is not None


@pytest.mark.parametrize("limits", [Limits(total=1), Limits(project=1)])
@pytest.mark.parametrize("kind", requirements.UNLIMITED)
def test_what_no_limit_counts_takes_no_place_and_needs_none(world: World, kind: str, limits: Limits) -> None:
    world.tasks = Tasks(world.db, 3, lambda: limits)
    running = queue(world, "a", kind=kind)
    assert world.claim(kind).id == running
    first = queue(world, "b")
    assert world.claim().id == first
    queue(world, "c")
    another = queue(world, "d", kind=kind)
    assert world.claim().id == another
    assert world.tasks.claim("h/1", 60) is None


def test_the_limits_are_those_of_the_configuration(world: World) -> None:
    world.conf.backup.max_running = 7
    world.conf.backup.max_running_per_project = 3
    world.conf["store:main"].max_running = 2
    world.conf["store:offsite"].max_running = 0
    assert Limits.of(world.conf) == Limits(7, 3, {"main": 2, "offsite": 0})


def test_two_claims_never_both_see_the_last_free_place(any_db: Database) -> None:
    """The second one waits for the first one's transaction and counts what it did."""
    world = World(database=any_db)
    limits = Limits(total=1)
    world.tasks = Tasks(any_db, 3, lambda: limits)
    for name in "abc":
        queue(world, name)
    # The first claim of all makes the row on which they take turns.
    end(world, world.claim())
    with ThreadPoolExecutor(1) as pool:
        with any_db.write() as session:
            found = claims.next_task(session, None, limits, None)
            assert found is not None
            second = pool.submit(world.tasks.claim, "h/2", 60)
            # Time for a claim that does not wait to go wrong; one that does waits longer.
            threading.Event().wait(0.5)
            found.state, found.owner, found.attempt = claims.RUNNING, "h/1", 1
            found.lease_until = now(session) + timedelta(seconds=60)
        assert second.result(60) is None


def test_a_claim_passes_by_a_row_that_another_transaction_holds(any_db: Database) -> None:
    """All other claims would wait with it, as it has the queue's lock."""
    if any_db.backend == "sqlite":
        pytest.skip("declared: servers only")
    world = World(database=any_db)
    first, second = queue(world, "a"), queue(world, "b")
    with ThreadPoolExecutor(1) as pool, any_db.write() as session:
        assert lock(session, models.Task, models.Task.id == first) == [first]
        task = pool.submit(world.tasks.claim, "h/1", 60).result(60)
    assert task is not None
    assert task.id == second
    # So does the look for tasks whose lease has ended: the one that is held counts as running.
    world.tasks = Tasks(any_db, 3, lambda: Limits(total=1))
    world.age(seconds=61)
    with ThreadPoolExecutor(1) as pool, any_db.write() as session:
        lock(session, models.Task, models.Task.id == second)
        assert pool.submit(world.tasks.claim, "h/2", 60).result(60) is None
    assert world.tasks.claim("h/2", 60) is not None


@pytest.mark.parametrize(
    "limits", [Limits(total=3), Limits(project=2), Limits(stores={"main": 2, "tape": 1})]
)
def test_the_running_never_exceed_a_limit(any_db: Database, limits: Limits) -> None:
    """Many threads, on every database: at no time do more run than may, and all run in the end."""
    world = World(database=any_db)
    world.tasks = Tasks(any_db, 3, lambda: limits)
    total = 40
    for number in range(total):
        queue(world, f"r{number}", f"p{number % 3}", store=("main", "tape")[number % 2])
    running: Counter[str] = Counter()
    seen: list[Counter[str]] = []
    lock = threading.Lock()
    left = threading.Semaphore(0)
    done: list[int] = []

    def work(seed: int) -> None:
        rng = random.Random(seed)
        while len(done) < total:
            task = world.tasks.claim(f"h/{seed}", 60)
            if task is None:
                left.acquire(timeout=0.05)
                continue
            store = ("main", "tape")[int(task.resource_id[1:]) % 2]
            with lock:
                running.update(("all", task.project_id, store))
                seen.append(running.copy())
            if rng.random() < 0.2:
                left.acquire(timeout=0.01)
            # Counted off before the row goes: what we count is at most what the database counts.
            with lock:
                running.subtract(("all", task.project_id, store))
            end(world, task)
            with lock:
                done.append(task.id)
            left.release()

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    assert sorted(done) == sorted(set(done))
    assert len(done) == total
    most = {name: max(counter[name] for counter in seen) for name in running}
    if limits.total:
        assert most["all"] <= limits.total
    if limits.project:
        assert max(most[f"p{number}"] for number in range(3)) <= limits.project
    for store, limit in limits.stores.items():
        assert most[store] <= limit


def test_a_renewal_that_is_committed_late_keeps_its_place(any_db: Database) -> None:
    """Begun while the lease lasted, committed after it ended: nobody got the place in between."""
    if any_db.backend == "sqlite":
        pytest.skip("declared: servers only")
    world = World(database=any_db)
    world.tasks = Tasks(any_db, 3, lambda: Limits(total=1))
    queue(world, "a")
    queue(world, "b")
    running = world.tasks.claim("h/1", 60)
    assert running is not None
    dialect: Any = any_db.engine.dialect
    commit = dialect.do_commit
    sent, go_on = threading.Event(), threading.Event()

    def late(connection: Any) -> None:
        if threading.current_thread().name.startswith("late"):
            sent.set()
            assert go_on.wait(60)
        commit(connection)

    with pytest.MonkeyPatch.context() as patch, ThreadPoolExecutor(1, "late") as pool:
        patch.setattr(dialect, "do_commit", late)
        with any_db.write() as session:
            session.execute(update(models.Task).values(lease_until=now(session) + timedelta(seconds=1)))
            until = session.scalar(select(models.Task.lease_until).where(models.Task.id == running.id))
            assert until is not None
        renewal = pool.submit(world.tasks.renew, "h/1", [running], 60)
        try:
            assert sent.wait(60)
            over = False
            while not over:
                with any_db.read() as session:
                    over = now(session) > until
            assert world.tasks.claim("h/2", 60) is None
        finally:
            go_on.set()
        assert renewal.result(60) == {running.id: False}
    assert world.tasks.claim("h/2", 60) is None


def test_a_sampler_never_sees_more_than_the_limit(any_db: Database) -> None:
    """With leases that are renewed at the last moment or too late, on every database."""
    world = World(database=any_db)
    limit, total = 2, 16
    world.tasks = Tasks(any_db, 1000, lambda: Limits(total=limit))
    for number in range(total):
        queue(world, f"r{number}", f"p{number % 3}")
    lease = 0.3
    over = threading.Event()
    samples: list[int] = []

    def work(seed: int) -> None:
        rng = random.Random(seed)
        owner = f"h/{seed}"
        while world.tasks.pending():
            task = world.tasks.claim(owner, lease)
            if task is None:
                over.wait(0.02)
                continue
            while rng.random() < 0.7:
                over.wait(rng.choice((0.1, 0.25, 0.295, 0.3, 0.31)))
                if task.id not in world.tasks.renew(owner, [task], lease):
                    break
            with contextlib.suppress(TaskLost):
                end(world, task)

    def sample() -> None:
        leases = select(models.Task.lease_until).where(models.Task.state == "running")
        while not over.is_set():
            with any_db.read() as session:
                found = session.scalars(leases).all()
                # What has run out by now may have gone to another before we looked.
                moment = now(session)
            samples.append(sum(until is not None and until > moment for until in found))
            # A task that runs beside too many does so for tenths of a second.
            over.wait(0.005)

    with ThreadPoolExecutor(7) as pool:
        sampler = pool.submit(sample)
        list(pool.map(work, range(6)))
        over.set()
        sampler.result()
    assert samples
    assert max(samples) <= limit


def test_a_lost_task_gives_its_place_to_others_and_is_not_renewed(world: World) -> None:
    world.tasks = Tasks(world.db, 3, lambda: Limits(total=1))
    queue(world, "a", volume_host="gone")
    lost = world.claim()
    queue(world, "b")
    assert world.tasks.claim("host/2", 60, reach=reach()) is None
    world.age(seconds=61)
    # Nobody here can take it over; the others do not wait for that.
    other = world.tasks.claim("host/2", 60, reach=reach())
    assert other is not None
    assert other.resource_id == "b"
    assert world.renew(lost) is None


def test_a_task_says_what_it_waits_for(world: World) -> None:
    limits = Limits(project=1)
    world.tasks = Tasks(world.db, 3, lambda: limits)

    def why(number: int) -> str | None:
        with world.db.read() as session:
            row = session.get_one(models.Task, number)
            return waiting.why(session, world.conf, row, limits)

    first = queue(world, "a")
    assert why(first) == "queued"
    running = world.claim()
    assert why(first) is None
    assert why(queue(world, "b")) == "waiting-for-limit"
    assert why(queue(world, "a", "q")) == "waiting-for-operation"
    assert why(queue(world, "c", "q", zone="moon")) == "waiting-for-worker"
    world.tasks.retry(running, 100)
    assert why(first) == "waiting-for-retry"
    world.services.set_frozen(world.ctx(admin=True), "host", frozen=True)
    assert why(queue(world, "d", "r")) == "waiting-for-worker"


def statements(db: Database, action: Callable[[], object]) -> int:
    count = 0

    def note(*_: object) -> None:
        nonlocal count
        count += 1

    event.listen(db.engine, "before_cursor_execute", note)
    try:
        action()
    finally:
        event.remove(db.engine, "before_cursor_execute", note)
    return count


def test_a_claim_without_a_task_costs_one_statement(any_db: Database) -> None:
    world = World(database=any_db)
    queue(world, "a", zone="moon")

    def look() -> None:
        assert world.tasks.claim("host/1", 60, reach=reach()) is None

    look()
    # SQLite's BEGIN is a statement of its own; the servers' comes with the first one.
    begin = 1 if any_db.backend == "sqlite" else 0
    assert statements(any_db, look) <= 1 + begin
    assert claims.Limits().any() is False

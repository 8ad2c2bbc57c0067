"""Several stores in one worker: opened apart, and one that is down keeps nobody from the others."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from backupfw.chunkstore.base import ChunkStore
from backupfw.chunkstore.cancellation import cancelled_by, check_cancelled
from backupfw.chunkstore.container import Container
from backupfw.chunkstore.errors import ChunkStoreError, DeleteFailed, NoSpace, PermissionDenied, Unavailable
from backupfw.chunkstore.memory import MemoryStore
from backupfw.db import models
from backupfw.errors import InvalidInput, TaskCancelled
from backupfw.manager.queue import waiting
from backupfw.manager.queue.claims import Limits
from backupfw.testing.faults import FaultyStore
from backupfw.worker import stores as module
from backupfw.worker.stores import Alarm, StoreDown, Stores
from tests.unit.manager.support import Conf, check_consistent
from tests.unit.worker.world import SEGMENT, WorkerWorld
from tests.waiting import PATIENCE, wait_until

DATA = random.Random(3).randbytes(3 * SEGMENT)


class Shop:
    """What opens stores: by name a faulty store, or what a test puts there."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(module, "FIRST_PAUSE", 0.01)
        monkeypatch.setattr(module, "open_store", self.open)
        self.faulty = {name: FaultyStore(MemoryStore(name)) for name in ("main", "offsite")}
        self.before: dict[str, Callable[[], None]] = {}
        self.opened: list[str] = []
        self.alarm(None)

    def alarm(self, alarm: Alarm | None) -> None:
        """Make the stores anew."""
        section = SimpleNamespace(container=None, driver="memory", listing_lag_seconds=60.0, lock_days=0)
        sections = {f"store:{name}": section for name in self.faulty}
        self.stores = Stores(
            Conf(enabled_stores=list(self.faulty), backup=SimpleNamespace(container="box"), **sections),  # type: ignore[arg-type]
            alarm=alarm,
        )

    def open(self, name: str, *_: Any, **__: Any) -> ChunkStore:
        self.before.get(name, lambda: None)()
        self.opened.append(name)
        return self.faulty[name]


@pytest.fixture
def shop(monkeypatch: pytest.MonkeyPatch) -> Iterator[Shop]:
    shop = Shop(monkeypatch)
    yield shop
    shop.stores.close()


def answers(stores: Stores, name: str) -> bool:
    try:
        stores.container(name, "box")
    except StoreDown:
        return False
    return True


def test_a_store_is_opened_once_and_when_it_is_needed(shop: Shop) -> None:
    assert shop.opened == []
    one, other = shop.stores.container("offsite", "a"), shop.stores.container("offsite", "b")
    assert one.store is other.store
    assert (one.name, other.name, shop.opened) == ("a", "b", ["offsite"])
    with pytest.raises(InvalidInput, match="not enabled"):
        shop.stores.container("gone", "a")


def test_one_that_cannot_be_opened_is_tried_again(shop: Shop) -> None:
    errors = iter([PermissionDenied("no")])

    def refuse() -> None:
        for error in errors:
            raise error

    shop.before["main"] = refuse
    with pytest.raises(PermissionDenied):
        shop.stores.container("main", "a")
    assert shop.stores.container("main", "a").name == "a"


def test_one_that_hangs_while_it_is_opened_holds_nobody_up(shop: Shop) -> None:
    reached, go_on = threading.Event(), threading.Event()

    def hang() -> None:
        reached.set()
        assert go_on.wait(PATIENCE)

    shop.before["main"] = hang
    thread = threading.Thread(target=shop.stores.container, args=("main", "a"))
    thread.start()
    assert reached.wait(PATIENCE)
    assert shop.stores.container("offsite", "a").name == "a"
    go_on.set()
    thread.join()


def test_one_that_is_down_refuses_at_once_until_it_answers(shop: Shop) -> None:
    shop.faulty["main"].fail("get", times=None)
    shop.stores.failed("main")
    shop.stores.failed("main")
    with pytest.raises(StoreDown, match="store main: it has not answered") as caught:
        shop.stores.container("main", "a")
    assert caught.value.seconds >= 0
    assert answers(shop.stores, "offsite")
    # So no retention of a backup policy relies on it.
    assert list(shop.stores.answering()) == ["offsite"]
    # Asked again and again, in vain.
    wait_until("three calls", lambda: len(shop.faulty["main"].calls) >= 3)
    assert not answers(shop.stores, "main")
    shop.faulty["main"].heal()
    wait_until("the store to answer", lambda: answers(shop.stores, "main"))
    assert shop.stores.answering() == shop.stores.wire_names
    asked = len(shop.faulty["main"].calls)
    assert {key.split("/")[0] for _, key in shop.faulty["main"].calls} == {"is-it-there"}
    # Nobody asks a store that answers; one that goes down again is asked again.
    shop.stores.failed("main")
    wait_until("the store to answer", lambda: answers(shop.stores, "main"))
    assert len(shop.faulty["main"].calls) == asked + 1


@pytest.mark.parametrize("error", [PermissionDenied("no"), ChunkStoreError("what?")])
def test_whatever_it_answers_the_tasks_shall_hear_it(shop: Shop, error: ChunkStoreError) -> None:
    shop.faulty["main"].fail("get", lambda: error, times=None)
    shop.stores.failed("main")
    wait_until("the store to answer", lambda: answers(shop.stores, "main"))


def test_who_must_know_now_has_it_asked_now(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FIRST_PAUSE", 3600.0)
    monkeypatch.setattr(module, "PATIENCE", PATIENCE)
    faulty = shop.faulty["main"]
    faulty.fail("get", times=None)
    assert not shop.stores.still_down("main")
    shop.stores.failed("main")
    assert shop.stores.still_down("main")
    assert len(faulty.calls) == 2
    faulty.heal()
    assert not answers(shop.stores, "main")
    assert not shop.stores.still_down("main")
    assert answers(shop.stores, "main")


def test_who_must_know_now_waits_a_moment_only(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PATIENCE", 0.05)
    monkeypatch.setattr(module, "FIRST_PAUSE", 3600.0)
    shop.faulty["main"].fail("get", times=None)
    shop.stores.failed("main")
    go_on = threading.Event()

    def hang() -> Unavailable:
        go_on.wait(PATIENCE)
        return Unavailable("gone")

    shop.faulty["main"].fail("get", hang, times=None)
    assert shop.stores.still_down("main")
    go_on.set()


def test_closing_ends_the_asking(shop: Shop) -> None:
    shop.faulty["main"].fail("get", times=None)
    shop.stores.failed("main")
    shop.stores.close()
    wait_until(
        "its thread to end", lambda: "ask-main" not in {thread.name for thread in threading.enumerate()}
    )
    shop.stores.failed("main")
    assert "ask-main" not in {thread.name for thread in threading.enumerate()}


class Moody:
    """A worker's stores of which one is down until a test says otherwise.

    :ivar seconds: how long it has been down; None: it answers.
    :ivar told: the stores that were reported as down.
    :ivar silent: whether it does not answer when it is asked.
    :ivar back: whether it answers when it is asked before a task ends.
    """

    def __init__(self, stores: Any) -> None:
        self._stores = stores
        self.wire_names = stores.wire_names
        self.seconds: float | None = None
        self.refused = 0
        self.told: list[str] = []
        self.silent = False
        self.back = False

    def container(self, store: str, container: str) -> Container:
        if self.seconds is not None:
            self.refused += 1
            raise StoreDown(store, self.seconds)
        found: Container = self._stores.container(store, container)
        return found

    def locks(self, store: str) -> bool:
        found: bool = self._stores.locks(store)
        return found

    def failed(self, store: str) -> bool:
        self.told.append(store)
        return self.silent

    def still_down(self, store: str) -> bool:
        if self.back:
            self.seconds = None
        return self.seconds is not None


@pytest.fixture
def world(tmp_path: Path) -> Iterator[WorkerWorld]:
    world = WorkerWorld(tmp_path, max_attempts=2)
    yield world
    world.store.close()
    check_consistent(world)
    world.db.close()


@pytest.fixture
def moody(world: WorkerWorld) -> Moody:
    moody = Moody(world.tools.stores)
    world.tools = replace(world.tools, stores=moody)  # type: ignore[arg-type]
    return moody


def test_a_task_waits_for_its_store_and_no_attempt_counts(world: WorkerWorld, moody: Moody) -> None:
    moody.seconds = 0.1
    with world.worker():
        made = world.backups.create(world.ctx(), volume_id=world.filled_volume(DATA))

        def waits_for() -> str | None:
            with world.db.read() as session:
                (row,) = world.rows_in(session, models.Task)
                return waiting.why(session, world.conf, row, Limits())

        world.wait(lambda: waits_for() == "waiting-for-store", "the progress to say so")
        # More often than there are attempts.
        for refused in range(1, 5):
            world.wait(lambda at_least=refused: moody.refused >= at_least, "a refusal")
            world.age(seconds=120)
        (task,) = world.rows(models.Task)
        assert task.failures == 0
        moody.seconds = None
        world.age(seconds=120)
        world.wait_backup(made.id, "available")
    assert moody.told == []


def test_a_task_ends_when_its_store_is_down_for_too_long(world: WorkerWorld, moody: Moody) -> None:
    volume = world.filled_volume(DATA)
    moody.seconds = 601
    with world.worker():
        made = world.backups.create(world.ctx(), volume_id=volume)
        assert world.wait_backup(made.id, "error").fail_reason == "The store does not answer."
        assert world.volume_status(volume) == "available"
    assert moody.refused >= 1
    # The clean-up tries again by itself, later.
    moody.seconds = None
    world.age(seconds=100_000)
    with world.worker():
        world.wait_idle()


def test_no_task_ends_for_a_store_that_is_back(world: WorkerWorld, moody: Moody) -> None:
    """This process has not asked the store since it came back."""
    moody.seconds, moody.back = 601, True
    with world.worker():
        made = world.backups.create(world.ctx(), volume_id=world.filled_volume(DATA))
        world.wait_backup(made.id, "available")
    assert moody.refused >= 1


def test_the_worker_reports_a_store_that_does_not_answer(world: WorkerWorld, moody: Moody) -> None:
    world.faulty.fail("put", lambda: Unavailable("gone", store="main"), times=1)
    with world.worker():
        made = world.backups.create(world.ctx(), volume_id=world.filled_volume(DATA))
        world.wait_backup(made.id, "available")
    assert moody.told == ["main"]


def test_each_worker_may_find_out_that_a_store_is_down(world: WorkerWorld, moody: Moody) -> None:
    """No attempt counts, however many processes there are that have not heard of it yet."""
    moody.silent = True
    # Both streams of an attempt may meet one, or more.
    world.faulty.fail("put", lambda: Unavailable("gone", store="main"), times=12)
    with world.worker():
        made = world.backups.create(world.ctx(), volume_id=world.filled_volume(DATA))
        world.wait_backup(made.id, "available")
    assert len(moody.told) > world.conf.backup.max_attempts


def test_a_store_may_go_down_half_way_through_a_delete(world: WorkerWorld, moody: Moody) -> None:
    with world.worker():
        made = world.backups.create(world.ctx(), volume_id=world.filled_volume(DATA))
        world.wait_backup(made.id, "available")
        moody.silent = True
        left = {"one": Unavailable("gone", store="main"), "another": NoSpace("full", store="main")}
        world.faulty.fail("delete", lambda: DeleteFailed(left, store="main"), times=5)
        world.backups.delete(world.ctx(), made.id)
        world.wait_backup(made.id, None)
    assert len(moody.told) > world.conf.backup.max_attempts


def test_one_that_answers_when_it_is_asked_is_not_down(shop: Shop) -> None:
    assert not shop.stores.failed("main")
    assert answers(shop.stores, "main")
    shop.faulty["main"].fail("get", times=None)
    assert shop.stores.failed("main")
    assert not answers(shop.stores, "main")


def test_asking_ends_with_the_attempt_that_asks(shop: Shop) -> None:
    def stop() -> None:
        raise TaskCancelled("enough")

    shop.before["main"] = check_cancelled
    with cancelled_by(stop), pytest.raises(TaskCancelled):
        shop.stores.failed("main")
    assert answers(shop.stores, "main")


@pytest.mark.parametrize(("after", "expected"), [(0.02, [False, True]), (3600.0, [])])
def test_who_watches_is_told_once_of_a_store_that_is_down_for_long(
    shop: Shop, after: float, expected: list[bool]
) -> None:
    told: list[bool] = []
    shop.alarm(Alarm(lambda _store, _seconds, answers: told.append(answers), after))
    shop.faulty["main"].fail("get", times=None)
    shop.stores.failed("main")
    wait_until("five calls", lambda: len(shop.faulty["main"].calls) >= 5 and told == expected[:1])
    shop.faulty["main"].heal()
    wait_until("the store to answer", lambda: answers(shop.stores, "main"))
    wait_until("the alarm", lambda: told == expected)

"""The holder object tells two databases apart, by its changes alone."""

from __future__ import annotations

import pytest

from backupfw.chunkstore.base import Body
from backupfw.chunkstore.container import Container
from backupfw.chunkstore.memory import MemoryStore
from backupfw.engine import listing
from backupfw.engine.holder import SILENT_SECONDS, Holder, holder_key
from backupfw.errors import Conflict
from tests.unit.engine.fakes import FakeControl

OLD, NEW = "a" * 32, "b" * 32


@pytest.fixture
def container() -> Container:
    found = Container(MemoryStore("main"), "box")
    found.ensure()
    return found


def read(container: Container) -> bytes:
    return container.get(holder_key("inst"))


def test_a_living_service_changes_it_and_several_processes_do_not_all(container: Container) -> None:
    one, other = Holder("inst", OLD), Holder("inst", OLD)
    one.renew(container)
    first = read(container)
    other.renew(container)
    assert read(container) == first, "another process did it"
    one.renew(container)
    second = read(container)
    assert second != first
    other.renew(container)
    assert read(container) == second


def test_who_lives_is_not_taken_over(container: Container) -> None:
    living = Holder("inst", OLD)
    living.renew(container)
    naps: list[float] = []

    def sleep(seconds: float) -> None:
        naps.append(seconds)
        if len(naps) == 20:
            living.renew(container)

    with pytest.raises(Conflict, match=r"A service of installation inst works in container box"):
        Holder("inst", NEW).wait(container, FakeControl(), sleep)
    assert sum(naps) == 20


def test_who_is_silent_is_taken_over_and_learns_it(container: Container) -> None:
    dead, new = Holder("inst", OLD), Holder("inst", NEW)
    dead.renew(container)
    naps: list[float] = []
    new.wait(container, FakeControl(), naps.append)
    assert sum(naps) == SILENT_SECONDS
    new.take(container)
    before = read(container)
    with pytest.raises(Conflict, match="taken over by another database's service"):
        dead.renew(container)
    dead.give_up(container)
    assert read(container) == before
    new.wait(container, FakeControl(), lambda _seconds: pytest.fail("it is ours"))
    new.renew(container)
    new.give_up(container)
    assert container.store.contents["box"] == {}  # type: ignore[attr-defined]


def test_nobody_there_and_something_else_there(container: Container) -> None:
    Holder("inst", NEW).wait(container, FakeControl(), lambda _seconds: pytest.fail("nobody is there"))
    for strange in (b"", b"x", b"y" * 5000):
        container.put(holder_key("inst"), Body.from_bytes(strange))
        naps: list[float] = []
        Holder("inst", NEW).wait(container, FakeControl(), naps.append)
        assert sum(naps) == SILENT_SECONDS


def test_it_is_no_object_of_a_backup(container: Container) -> None:
    Holder("inst", OLD).renew(container)
    assert list(listing.objects_by_volume(container, "inst/", FakeControl())) == []
    assert list(listing.all_by_volume(container, FakeControl())) == []
    assert listing.foreign_manifests("other/", container, FakeControl()) == {}

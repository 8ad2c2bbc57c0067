"""A bit that was turned on the way is read again; only what is wrong in the store is called damaged.

The driver's own comparison does not help here: the faults strike above it, in ranges and whole gets alike.
"""

from __future__ import annotations

import random

import pytest

from backupfw.chunkstore.container import Container
from backupfw.chunkstore.memory import MemoryStore
from backupfw.engine import restore, verify
from backupfw.engine.format.manifest import ManifestReader
from backupfw.errors import Damaged
from backupfw.testing.faults import Fault, FaultyStore
from tests.unit.engine.fakes import SEGMENT, FakeControl, FaultyContainer, MemoryTarget
from tests.unit.engine.test_data_path import content, run


class World:
    """A backup of a full and an increment, behind a wire that can turn bits."""

    def __init__(self) -> None:
        self.store = MemoryStore("shelf")
        self.wire = FaultyStore(self.store)
        self.box = FaultyContainer(Container(self.wire, "box"))
        self.box.ensure()
        self.data = content(3 * SEGMENT + 10)
        first = run(self.box, 0, self.data)
        self.data[5] ^= 1
        self.key = run(self.box, 1, self.data, first.manifest_key).manifest_key

    def restored(self) -> bytearray:
        target = MemoryTarget(len(self.data))
        restore.run(self.key, self.box, target, FakeControl(), streams=1)
        return target.data

    def verified(self, quick: bool = False) -> list[str]:
        found: list[str] = []
        verify.run(self.key, self.box, FakeControl(), lambda name, _: found.append(name), quick=quick)
        return found

    def gets(self) -> int:
        return self.wire.count("get")

    def named(self) -> dict[str, str]:
        """One object of each kind that the backup names; of packs the largest."""
        entry = next(iter(ManifestReader(self.box, self.key).segments()))
        objects = self.store.contents["box"]
        largest = max(entry.pack_keys(), key=lambda key: len(objects[key]))
        return {"manifest": self.key, "map": entry.map_key, "pack": largest}


@pytest.fixture
def world() -> World:
    return World()


def flip(skip: int, bit: int) -> Fault:
    """Turn one bit of one answer, and of the next none."""
    return Fault("get", "flip", amount=bit, skip=skip)


def test_any_answer_of_a_restore_may_have_a_turned_bit(world: World) -> None:
    before = world.gets()
    assert world.restored() == world.data
    answers = world.gets() - before
    assert answers > 5
    rng = random.Random(4)
    for number in range(answers):
        fault = flip(number, rng.randrange(1 << 30))
        world.wire.script(fault)
        equal = world.restored() == world.data
        assert equal
        assert fault.struck == 1
        world.wire.heal()


@pytest.mark.parametrize("quick", [False, True])
def test_any_answer_of_a_verify_may_have_a_turned_bit(world: World, quick: bool) -> None:
    before = world.gets()
    assert world.verified(quick) == []
    answers = world.gets() - before
    rng = random.Random(5)
    for number in range(answers):
        fault = flip(number, rng.randrange(1 << 30))
        world.wire.script(fault)
        assert world.verified(quick) == []
        assert fault.struck == 1
        world.wire.heal()


@pytest.mark.parametrize("kind", ["manifest", "map", "pack"])
def test_a_store_that_has_it_wrong_is_damaged(world: World, kind: str) -> None:
    name = world.named()[kind]
    good = world.store.contents["box"][name]
    changed = bytearray(good)
    changed[len(good) // 2] ^= 8
    world.store.contents["box"][name] = bytes(changed)
    with pytest.raises(Damaged) as caught:
        world.restored()
    assert (caught.value.store, caught.value.container, caught.value.key) == ("shelf", "box", name)
    assert world.verified() == [name]


def test_a_wire_that_is_always_wrong_returns_no_wrong_byte(world: World) -> None:
    # Nobody can tell it from a store that is.
    world.wire.script(Fault("get", "flip", times=None, amount=4321))
    with pytest.raises(Damaged):
        world.restored()


def test_the_second_reading_is_of_the_one_block(world: World) -> None:
    name = world.named()["pack"]
    world.box.gets.clear()
    world.restored()
    once = [get for get in world.box.gets if get[0] == name]
    world.wire.script(Fault("get", "flip", amount=20_000, match=lambda key: key == name))
    world.box.gets.clear()
    assert world.restored() == world.data
    again = [get for get in world.box.gets if get[0] == name]
    assert len(again) == len(once) + 1
    (extra,) = [get for get in again if get not in once]
    assert extra[2] is not None
    assert once[0][2] is not None
    assert extra[2] < once[0][2]


def test_the_log_names_what_is_read_again(world: World, caplog: pytest.LogCaptureFixture) -> None:
    name = world.named()["map"]
    world.wire.script(Fault("get", "flip", match=lambda key: key == name))
    world.restored()
    (record,) = [record for record in caplog.records if "once more" in record.getMessage()]
    assert record.getMessage().startswith(f"store shelf, container box, key {name}: ")

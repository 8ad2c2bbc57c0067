"""Backups of Cinder's format become backups of our own: two stores, one database."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from functools import cache
from typing import Any

import pytest

from backupfw import crash_points
from backupfw.chunkstore.container import Container
from backupfw.db import models
from backupfw.engine.cinder_format import point as points
from backupfw.engine.cinder_format.chain import Place
from backupfw.engine.cinder_format.point import BehindStart, ChainPoint
from backupfw.engine.format import keys
from backupfw.engine.format.manifest import read_head
from backupfw.errors import Damaged, InvalidBackup, InvalidInput, TaskStopped
from backupfw.keys.base import KeyStore
from backupfw.manager.lineage import manifests
from tests.format.cinder_samples import Writer
from tests.unit.engine.fakes import FakeControl
from tests.unit.manager.support import WIRE
from tests.unit.worker.test_copies import BOX, CopyWorld, Saved, worlds
from tests.unit.worker.test_encryption import MemoryKeys
from tests.unit.worker.world import SEGMENT

BLOCK = 32 << 10
POINTS = [name for name in crash_points.NAMES if name.startswith("backup.")]


def states(count: int) -> list[bytes]:
    """What a volume was when each backup was made: some data, zeros that come and go, and a larger volume."""
    data = bytearray(random.Random(1).randbytes(8 * BLOCK) + bytes(2 * SEGMENT) + b"end")
    made = []
    for number in range(count):
        if number:
            data[number * BLOCK : (number + 1) * BLOCK] = random.Random(number).randbytes(BLOCK)
            data[:4096] = bytes(4096) if number % 2 else b"x" * 4096
        made.append(bytes(data))
    return made


class ConvertWorld(CopyWorld):
    """Links in the store ``offsite``; what is made of them comes into ``main``."""

    def __init__(self, key_store: KeyStore | None = None) -> None:
        super().__init__(key_store)
        self.writer = Writer()

    @property
    def links(self) -> dict[str, bytes]:
        """The objects that Cinder wrote, live."""
        return self.offsite.contents.setdefault("box", {})

    def write_chain(self, data: Sequence[bytes], *, hashes: bool = True) -> list[str]:
        """Let Cinder write a chain, import it, and return the backups."""
        prefixes: list[str] = []
        for one in data:
            prefixes.append(self.writer.write(one, prefixes[-1] if prefixes else None, hashes=hashes))
        self.links.update(self.writer.objects)
        return [self.import_link(prefix, f"number {number}") for number, prefix in enumerate(prefixes)]

    def chain(self, data: list[bytes], *, hashes: bool = True) -> list[str]:
        """Do what :meth:`write_chain` does, by a copy of what was made once: in a new world."""
        saved, writer, made = written(tuple(data), hashes)
        self.load(saved)
        self.writer = deepcopy(writer)
        return list(made)

    def import_link(self, prefix: str, name: str = "one") -> str:
        stamp = f"2026-01-01T00:00:{len(self.rows(models.Backup)):02}Z"
        record = self.writer.record(
            prefix, display_name=name, created_at=stamp, data_timestamp=stamp, metadata={"of": name}
        )
        made = self.backups.import_record(self.ctx(), backup_service=WIRE, backup_url=record).id
        self.work()
        row = self.row(models.Backup, made)
        assert row.status == "available", row.fail_reason
        return made

    def convert(self, *backups: str) -> None:
        for backup in backups:
            self.backups.convert(self.ctx(), backup, "main")

    def conversions(self, backup: str) -> dict[str, str]:
        return {one.store: one.status for one in self.backups.copies(self.ctx(), backup)}


@cache
def written(data: tuple[bytes, ...], hashes: bool) -> tuple[Saved, Writer, list[str]]:
    world = ConvertWorld()
    made = world.write_chain(data, hashes=hashes)
    return world.save(), world.writer, made


@pytest.fixture
def new_world(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., ConvertWorld]]:
    yield from worlds(ConvertWorld, monkeypatch)


@pytest.fixture
def world(new_world: Callable[..., ConvertWorld]) -> ConvertWorld:
    return new_world()


@pytest.mark.parametrize("keys", [None, MemoryKeys], ids=["clear", "encrypted"])
def test_a_chain_becomes_backups_of_ours(
    new_world: Callable[..., ConvertWorld], keys: type[KeyStore] | None
) -> None:
    world = new_world(None if keys is None else keys())
    data = states(3)
    made = world.chain(data)
    before = {one: world.backups.get(world.ctx(), one) for one in made}
    theirs = dict(world.links)
    world.convert(*made)
    # They wait for each other; asked for again, nothing is changed.
    world.convert(made[1])
    world.work()
    for number, backup in enumerate(made):
        row, was = world.backups.get(world.ctx(), backup), before[backup]
        for name in ("id", "display_name", "metadata", "created_at", "data_timestamp", "parent_id", "size"):
            assert getattr(row, name) == getattr(was, name), name
        assert (row.is_incremental, row.volume_id) == (was.is_incremental, was.volume_id)
        assert (row.store, row.container, row.length) == ("main", BOX, len(data[number]))
        assert world.restore_to_volume(backup) == data[number]
        assert world.conversions(backup) == {"offsite": "available"}
        manifest = world.row(models.Manifest, row.manifest_id)
        assert (manifest.key_id is not None) == (keys is not None)
        base = None if number == 0 else world.row(models.Backup, made[number - 1]).manifest_id
        assert (manifest.base_id, manifest.detached) == (base, False)
    # Increments share: each stored its changed segments only.
    stored = [world.row(models.Backup, one).stored_bytes for one in made]
    assert stored[0] > 2 * stored[1]
    assert world.links == theirs
    world.is_clean()


def test_what_a_manifest_says_of_a_converted_backup(world: ConvertWorld) -> None:
    """So a rebuilt catalogue knows its names, and a new volume what it was."""
    (backup,) = world.chain(states(1))
    world.convert(backup)
    world.work()
    row = world.row(models.Backup, backup)
    record = read_head(Container(world.store, BOX), row.service_metadata).record
    assert record["backup"]["id"] == backup
    assert record["backup"]["metadata"] == {"of": "number 0"}
    assert record["volume"]["name"] == "disk"
    assert record["volume"]["metadata"] == {"tier": "gold"}


@pytest.mark.parametrize("order", [(0, 1, 2), (1, 2, 0), (2, 0, 1)])
def test_converted_backups_are_deleted_in_any_order(world: ConvertWorld, order: tuple[int, ...]) -> None:
    data = states(3)
    made = world.chain(data)
    world.convert(*made)
    world.work()
    for place, number in enumerate(order):
        world.backups.delete(world.ctx(), made[number])
        world.work()
        assert world.status(made[number]) is None
        for other in order[place + 1 :]:
            assert world.restore_to_volume(made[other]) == data[other]
        world.is_clean()
    # A link goes when no other needs it any more.
    assert world.links == {}
    assert world.held(world.faulty.inner) == {}  # type: ignore[arg-type]


@pytest.mark.parametrize("order", [(0, 1, 2), (1, 2, 0)])
def test_what_it_was_made_of_is_removed_in_any_order(world: ConvertWorld, order: tuple[int, ...]) -> None:
    data = states(3)
    made = world.chain(data)
    world.convert(*made)
    world.work()
    for number in order:
        world.backups.remove_copy(world.ctx(), made[number], "offsite")
        world.work()
        world.is_clean()
    assert world.links == {}
    assert [world.restore_to_volume(one) for one in made] == data


def test_a_link_stays_for_one_that_is_not_converted(world: ConvertWorld) -> None:
    """Also where the backup between them was never entered: its link is known, without a backup."""
    data = states(3)
    full = world.writer.write(data[0])
    middle = world.writer.write(data[1], full)
    newest = world.writer.write(data[2], middle)
    world.links.update(world.writer.objects)
    first, last = world.import_link(full), world.import_link(newest)
    with pytest.raises(InvalidBackup, match="Incremental backups exist"):
        world.backups.delete(world.ctx(), first)
    world.convert(first)
    world.work()
    before = dict(world.links)
    # Now it can be deleted: its data is ours.
    world.backups.delete(world.ctx(), first)
    world.work()
    assert world.links == before
    assert world.restore_to_volume(last) == data[2]
    world.backups.delete(world.ctx(), last)
    world.work()
    # What was never entered is nobody's here, and stays, with what it needs.
    assert {key for key in before if not key.startswith(newest)} == set(world.links)
    world.is_clean()


def test_a_link_stays_for_one_that_is_not_entered(world: ConvertWorld) -> None:
    """The removal of what a backup was made of cannot be refused any more: the link is forgotten instead."""
    data = states(2)
    full = world.writer.write(data[0])
    newer = world.writer.write(data[1], full)
    world.links.update(world.writer.objects)
    first = world.import_link(full)
    world.convert(first)
    world.work()
    before = dict(world.links)
    world.backups.remove_copy(world.ctx(), first, "offsite")
    world.work()
    assert world.links == before
    world.is_clean()
    last = world.import_link(newer)
    assert world.restore_to_volume(last) == data[1]
    world.convert(last)
    world.work()
    assert [world.restore_to_volume(one) for one in (first, last)] == data
    world.is_clean()


def test_a_conversion_without_its_parents_is_a_full_one(world: ConvertWorld) -> None:
    data = states(3)
    made = world.chain(data)
    world.convert(made[2])
    world.work()
    row = world.row(models.Backup, made[2])
    assert world.row(models.Manifest, row.manifest_id).base_id is None
    assert world.restore_to_volume(made[2]) == data[2]
    # The others still are Cinder's: the classic rule holds for them.
    with pytest.raises(InvalidBackup, match="Incremental backups exist"):
        world.backups.delete(world.ctx(), made[0])
    world.convert(made[0], made[1])
    world.work()
    assert [world.restore_to_volume(one) for one in made] == data
    world.is_clean()


def test_a_new_incremental_backup_is_made_upon_it(world: ConvertWorld) -> None:
    data = states(2)
    volume = world.filled_volume(data[1])
    world.writer.volume = volume
    made = world.write_chain(data)
    world.convert(*made)
    world.work()
    world.provider.volumes[volume][:100] = b"n" * 100
    new = world.back_up(volume, incremental=True)
    row = world.row(models.Backup, new)
    assert (row.parent_id, row.is_incremental) == (made[1], True)
    assert row.stored_bytes < world.row(models.Backup, made[0]).stored_bytes / 2
    for backup in made:
        world.backups.delete(world.ctx(), backup)
    world.work()
    assert world.restore_to_volume(new) == bytes(world.provider.volumes[volume])
    world.is_clean()


@pytest.mark.parametrize("point", POINTS)
def test_a_killed_conversion_goes_on(world: ConvertWorld, point: str) -> None:
    data = states(2)
    made = world.chain(data)
    world.convert(made[0])
    world.work()
    world.trap = point
    world.convert(made[1])
    world.work()
    assert world.died == 1
    assert world.conversions(made[1]) == {"offsite": "available"}
    assert [world.restore_to_volume(one) for one in made] == data
    world.is_clean()


def test_what_was_finished_is_not_made_again(world: ConvertWorld) -> None:
    """A killed worker loses the segments that were under way; the chain is read from behind the others."""
    data = random.Random(5).randbytes(20 * SEGMENT)
    (backup,) = world.chain([data])
    world.convert(backup)
    puts = 0

    def reach(name: str, _detail: object = "") -> None:
        nonlocal puts
        if name == "backup.recorded":
            puts += 1
            if puts == 15:
                world.trap = name
        CopyWorld.reach(world, name)

    world.reach = reach  # type: ignore[method-assign]
    crash_points.reach = reach
    starts: list[int] = []
    begin = ChainPoint.__init__

    def watched(self: ChainPoint, *args: Any, start: int = 0, **kwargs: Any) -> None:
        starts.append(start)
        begin(self, *args, start=start, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ChainPoint, "__init__", watched)
        world.work()
    assert world.died == 1
    assert starts[0] == 0
    assert starts[1] >= 10 * SEGMENT
    # Those that were under way, at most one for each stream, are made again.
    assert puts <= 20 + 2
    assert world.restore_to_volume(backup) == data
    world.is_clean()


def test_a_finished_segment_that_is_lost_is_read_again(world: ConvertWorld) -> None:
    data = random.Random(5).randbytes(6 * SEGMENT)
    (backup,) = world.chain([data])
    world.convert(backup)
    world.trap = "backup.manifest-put"
    task = world.claim_next()
    assert task is not None
    assert world.run_one(task) == "killed"
    # The manifest and a map are lost: the next attempt finds that out, and begins at the start.
    inner: Any = world.faulty.inner
    held = sorted(inner.contents[BOX])
    first_map = next(key for key in held if keys.parse(key).kind == "map")
    inner.delete(BOX, [first_map, *(key for key in held if keys.parse(key).kind == "manifest")])
    world.work()
    assert world.conversions(backup) == {"offsite": "available"}
    assert world.restore_to_volume(backup) == data
    world.is_clean()


@pytest.mark.parametrize("hashes", [True, False])
def test_what_is_damaged_is_not_converted(world: ConvertWorld, hashes: bool) -> None:
    data = states(2)
    made = world.chain(data, hashes=hashes)
    bad = next(key for key in world.links if key.endswith("-00002"))
    good = world.links[bad]
    world.links[bad] = good[:-1] + bytes([good[-1] ^ 1])
    world.convert(*made)
    world.work()
    assert world.conversions(made[0]) == {"main": "error"}
    [copy] = world.backups.copies(world.ctx(), made[0])
    assert "Damaged" in str(copy.fail_reason)
    assert world.row(models.Backup, made[0]).store == "offsite"
    assert world.outcomes.damaged_objects.of(world.row(models.Backup, made[0]).manifest_id)
    # The newer one reads the object, too; nothing of either is left.
    assert world.conversions(made[1]) == {"main": "error"}
    assert world.held(world.faulty.inner) == {}  # type: ignore[arg-type]
    world.is_clean()
    world.links[bad] = good
    world.convert(*made)
    world.work()
    assert [world.restore_to_volume(one) for one in made] == data
    world.is_clean()


@pytest.mark.parametrize("point", ["backup.begun", "backup.recorded", "backup.manifest-put"])
@pytest.mark.parametrize("how", ["delete", "remove"])
def test_a_conversion_that_is_not_wanted_any_more(world: ConvertWorld, point: str, how: str) -> None:
    data = states(1)
    (backup,) = world.chain(data)
    world.convert(backup)
    world.trap = point
    task = world.claim_next()
    assert task is not None
    assert world.run_one(task) == "killed"
    if how == "delete":
        world.backups.delete(world.ctx(), backup)
    else:
        world.backups.remove_copy(world.ctx(), backup, "main")
    world.work()
    assert world.held(world.faulty.inner) == {}  # type: ignore[arg-type]
    world.is_clean()
    if how == "delete":
        assert world.links == {}
        return
    assert world.conversions(backup) == {}
    world.convert(backup)
    world.work()
    assert world.restore_to_volume(backup) == data[0]
    world.is_clean()


def test_a_new_conversion_waits_for_the_removal_of_the_one_before(world: ConvertWorld) -> None:
    (backup,) = world.chain(states(1))
    world.convert(backup)
    world.trap = "backup.recorded"
    task = world.claim_next()
    assert task is not None
    assert world.run_one(task) == "killed"
    world.backups.remove_copy(world.ctx(), backup, "main")
    world.convert(backup)
    world.end_pauses()
    ended = world.work()
    assert ended[-1] == ("backup.copy", "done")
    assert world.restore_to_volume(backup) == states(1)[0]
    world.is_clean()


def test_a_backup_that_is_being_restored_changes_its_data_afterwards(world: ConvertWorld) -> None:
    """An attempt of a restore goes on from a checkpoint, which counts otherwise in another format."""
    (backup,) = world.chain(states(1))
    world.convert(backup)
    _, volume, _ = world.backups.restore(world.ctx(), backup)
    for _ in range(2):
        world.end_pauses()
        task = world.tasks.claim("host/w", 60, ["backup.copy"])
        assert task is not None
        assert world.run_one(task) == "waits"
        (manifest,) = (key for key in world.held(world.faulty.inner) if key.endswith("/manifest"))  # type: ignore[arg-type]
    assert world.row(models.Backup, backup).store == "offsite"
    world.work()
    assert bytes(world.provider.volumes[volume]) == states(1)[0]
    row = world.row(models.Backup, backup)
    # The first attempt had done all of it.
    assert (row.store, row.service_metadata) == ("main", manifest)
    world.is_clean()


def test_what_cannot_be_converted(world: ConvertWorld) -> None:
    volume = world.filled_volume(bytes(SEGMENT))
    ours = world.back_up(volume)
    with pytest.raises(InvalidInput, match="no data of Cinder's format"):
        world.convert(ours)
    (backup,) = world.write_chain(states(1))
    with pytest.raises(InvalidInput, match="into another one"):
        world.backups.convert(world.ctx(), backup, "offsite")
    world.convert(backup)
    world.work()
    with pytest.raises(InvalidBackup, match="cannot be the backup's own again"):
        world.backups.promote_copy(world.ctx(), backup, "offsite", WIRE)
    with pytest.raises(InvalidBackup, match="has a copy in the store offsite"):
        world.backups.copy(world.ctx(), backup, "offsite")


def places(world: ConvertWorld, backup: str) -> list[Place]:
    manifest_id = world.row(models.Backup, backup).manifest_id
    with world.db.read() as session:
        found = manifests.links(session, session.get_one(models.Manifest, manifest_id))
    return [Place(Container(world.offsite, name), key) for name, key in found]


def test_a_chain_is_read_at_any_place_and_bounded_ahead(
    world: ConvertWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(points, "AHEAD_BYTES", 0)
    data = states(2)
    made = world.chain(data)
    with ChainPoint(places(world, made[1]), FakeControl()) as point:
        assert point.length == len(data[1])
        for offset in (len(data[1]) - 1000, 5 * BLOCK, 0):
            buffer = bytearray(1000)
            point.read_into(offset, memoryview(buffer))
            assert buffer == data[1][offset : offset + 1000]
        point.check_still()
    # It ends although nobody has read all of it.
    with ChainPoint(places(world, made[1]), FakeControl(), start=3 * BLOCK + 5) as point:
        buffer = bytearray(1000)
        point.read_into(3 * BLOCK + 5, memoryview(buffer))
        assert buffer == data[1][3 * BLOCK + 5 :][:1000]
        with pytest.raises(BehindStart):
            point.read_into(0, memoryview(buffer))


def test_a_chain_that_is_damaged_cannot_be_read(world: ConvertWorld) -> None:
    (backup,) = world.chain(states(1), hashes=False)
    bad = next(key for key in world.links if key.endswith("-00001"))
    world.links[bad] = world.links[bad][:-1]
    with ChainPoint(places(world, backup), FakeControl()) as point, pytest.raises(Damaged):
        point.read_into(0, memoryview(bytearray(10)))
    del world.links[next(key for key in world.links if key.endswith("_metadata"))]
    with pytest.raises(Damaged, match="missing"):
        ChainPoint(places(world, backup), FakeControl())


def test_a_reader_that_must_end_does_not_wait(world: ConvertWorld) -> None:
    class Ends(FakeControl):
        ended = False

        def check(self) -> None:
            if self.ended:
                raise TaskStopped("it must end")

    (backup,) = world.chain(states(1))
    control = Ends()
    with ChainPoint(places(world, backup), control) as point:
        control.ended = True
        with pytest.raises(TaskStopped):
            # Nobody restores what is behind the end.
            point.read_into(point.length, memoryview(bytearray(1)))

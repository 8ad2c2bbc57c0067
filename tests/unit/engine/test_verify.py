"""Verify: finds every damage, names it, goes on; says nothing of what is well."""

from __future__ import annotations

import pytest

from backupfw.chunkstore.errors import Unavailable
from backupfw.engine import verify
from backupfw.engine.format.manifest import ManifestReader
from backupfw.errors import TaskCancelled
from tests.unit.engine.fakes import (
    SEGMENT,
    FakeControl,
    FaultyContainer,
    memory_container,
    objects_of,
)
from tests.unit.engine.test_data_path import check, content, run


def look(box: FaultyContainer, key: str, *, quick: bool = False) -> tuple[set[str], verify.VerifyReport]:
    found: list[str] = []
    report = verify.run(key, box, FakeControl(), lambda name, _reason: found.append(name), quick=quick)
    assert len(found) == len(set(found)) == report.damaged
    assert report.ok == (not found)
    return set(found), report


def make() -> tuple[FaultyContainer, str, bytearray]:
    box = memory_container()
    data = content(4 * SEGMENT + 10)
    first = run(box, 0, data)
    data[5] ^= 1
    return box, run(box, 1, data, first.manifest_key).manifest_key, data


def named(box: FaultyContainer, key: str) -> list[str]:
    return sorted(name for entry in ManifestReader(box, key).segments() for name in entry.object_keys())


def test_a_good_backup_verifies_with_all_its_blocks() -> None:
    box, key, data = make()
    bad, report = look(box, key)
    assert not bad
    assert report.objects == len(named(box, key)) + 1
    nonzero = sum(any(data[at : at + 4096]) for at in range(0, len(data), 4096))
    assert report.blocks == nonzero
    assert report.bytes == sum(len(objects_of(box)[name]) for name in [*named(box, key), key])
    bad, report = look(box, key, quick=True)
    assert not bad
    assert report.objects == len(named(box, key)) + 1
    assert report.blocks == 0


@pytest.mark.parametrize("quick", [False, True])
def test_each_missing_or_cut_object_is_found_alone(quick: bool) -> None:
    box, key, _ = make()
    for name in [*named(box, key), key]:
        good = objects_of(box).pop(name)
        assert look(box, key, quick=quick)[0] == {name}
        for cut in (0, 1, len(good) - 1):
            objects_of(box)[name] = good[:cut]
            assert look(box, key, quick=quick)[0] == {name}
        # Bytes after the promised ones are not read by anybody.
        objects_of(box)[name] = good + b"\0"
        assert look(box, key, quick=quick)[0] == set()
        objects_of(box)[name] = good


def test_every_flipped_byte_of_a_pack_that_is_used_is_found() -> None:
    box = memory_container()
    data = content(SEGMENT, zero=0)
    key = run(box, 0, data, pack_size=2 * SEGMENT).manifest_key
    name = next(name for name in objects_of(box) if name.endswith("/p0000"))
    good = objects_of(box)[name]
    for at in range(0, len(good), 151):
        changed = bytearray(good)
        changed[at] ^= 4
        objects_of(box)[name] = bytes(changed)
        assert look(box, key)[0] == {name}


def test_all_damage_is_found_in_one_pass_and_the_next_backup_heals_it() -> None:
    box, key, data = make()
    stored = objects_of(box)
    packs = [name for name in named(box, key) if "/p" in name[-6:]]
    maps = [name for name in named(box, key) if name.endswith("/map")]
    harmed = {packs[0], packs[-1], maps[2]}
    stored[packs[0]] = bytes(len(stored[packs[0]]))
    del stored[packs[-1]]
    stored[maps[2]] = stored[maps[2]][:-1] + b"\0"
    bad, report = look(box, key)
    assert bad == harmed
    assert report.damaged == 3
    healed = run(box, 2, data, key, damaged=bad).manifest_key
    assert not look(box, healed)[0]
    check(box, healed, data)


def test_a_damaged_manifest_is_reported_as_itself() -> None:
    box, key, _ = make()
    good = objects_of(box)[key]
    for changed in (b"", b"x" * 500, good[:-1], good[:-1] + b"\0", good[:200] + b"\0" + good[201:]):
        objects_of(box)[key] = changed
        bad, report = look(box, key)
        assert bad == {key}
        assert not report.ok


def test_a_silent_store_and_a_stop_are_no_damage() -> None:
    box, key, _ = make()

    def silent(name: str, offset: int | None, length: int | None) -> None:
        if "/p" in name[-6:]:
            raise Unavailable("no answer")

    found: list[str] = []
    with pytest.raises(TaskCancelled):
        verify.run(key, box, FakeControl(stop_after=3), lambda name, _: found.append(name))
    box.before_get = silent
    with pytest.raises(Unavailable):
        verify.run(key, box, FakeControl(), lambda name, _: found.append(name))
    assert found == []

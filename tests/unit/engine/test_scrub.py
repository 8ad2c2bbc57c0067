"""Scrubbing: random histories of a volume, in which each object is read once and each damage is found."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backupfw.engine import scrub, verify
from backupfw.engine.format import keys
from backupfw.engine.format.manifest import ManifestReader
from backupfw.engine.format.sealing import no_keys
from backupfw.engine.ports import VerifyReport
from backupfw.errors import EngineError, TaskCancelled, UnsupportedFormat
from tests.unit.engine.fakes import (
    BLOCK,
    SEGMENT,
    FakeControl,
    FaultyContainer,
    Keyring,
    memory_container,
    objects_of,
)
from tests.unit.engine.test_data_path import content, run
from tests.unit.engine.test_manifest import rehead

SEGMENTS = 4


@dataclass
class Scrubbed:
    """Everything that attempts of one scrub reported."""

    box: FaultyContainer
    found: set[str] = field(default_factory=set)
    left_out: dict[str, EngineError] = field(default_factory=dict)
    saved: int = 0

    def attempt(self, manifests: list[str], control: FakeControl | None = None) -> VerifyReport:
        found: list[str] = []

        def leave_out(key: str, error: EngineError) -> None:
            self.left_out[key] = error

        def save(segment: int) -> None:
            assert segment >= self.saved
            self.saved = segment
            self.found.update(found)

        report = scrub.run(
            dict.fromkeys(manifests, False),
            self.box,
            control or FakeControl(),
            lambda key, _reason: found.append(key),
            find_key=no_keys,
            start=self.saved,
            save=save,
            leave_out=leave_out,
            streams=2,
        )
        assert len(found) == len(set(found)) == report.damaged
        self.found.update(found)
        return report


class History:
    """Backups of a volume that changes and grows, each made upon one of those that are there."""

    def __init__(self) -> None:
        self.box = memory_container()
        self.data = content(SEGMENTS * SEGMENT)
        self.made: list[str] = []
        self.live: list[str] = []

    def back_up(self, changed: list[int], base: int | None, grows: bool) -> None:
        for at in changed:
            self.data[at * BLOCK] ^= 1 + len(self.made) % 255
        if grows:
            self.data += content(SEGMENT // 2)
        key = None if base is None or not self.live else self.live[base % len(self.live)]
        self.made.append(run(self.box, len(self.made), self.data, key).manifest_key)
        self.live.append(self.made[-1])

    def named(self, key: str) -> set[str]:
        return {name for entry in ManifestReader(self.box, key).segments() for name in entry.object_keys()}


BLOCKS = st.lists(st.integers(0, SEGMENTS * SEGMENT // BLOCK - 1), max_size=6)
STEPS = st.lists(st.tuples(BLOCKS, st.none() | st.integers(0, 9), st.booleans()), min_size=1, max_size=6)


def history(steps: list[tuple[list[int], int | None, bool]]) -> History:
    made = History()
    for changed, base, grows in steps:
        made.back_up(changed, base, grows)
    return made


def reads(box: FaultyContainer) -> Counter[str]:
    """How often each map and pack was read."""
    return Counter(key for key, *_ in box.gets if not key.endswith("/manifest"))


@settings(max_examples=30)
@given(STEPS, st.data())
def test_each_object_is_read_once_and_each_damage_is_found(
    steps: list[tuple[list[int], int | None, bool]], data: st.DataObject
) -> None:
    made = history(steps)
    for key in data.draw(st.lists(st.sampled_from(made.made), unique=True, max_size=len(made.made) - 1)):
        made.live.remove(key)
    named = {key: made.named(key) for key in made.live}
    everything = set().union(*named.values())
    made.box.gets.clear()
    scrubbed = Scrubbed(made.box)
    report = scrubbed.attempt(made.live)
    assert scrubbed.found == set()
    assert reads(made.box) == dict.fromkeys(everything, 1)
    assert report.objects == len(everything) + len(made.live)

    stored = objects_of(made.box)
    candidates = sorted(everything | set(made.live))
    gone = data.draw(st.lists(st.sampled_from(candidates), unique=True, min_size=1, max_size=4))
    for key in gone:
        stored[key] = stored[key][: len(stored[key]) // 2]
    readable = [key for key in made.live if key not in gone]
    seen = set().union(*(named[key] for key in readable)) if readable else set()
    scrubbed = Scrubbed(made.box)
    scrubbed.attempt(made.live)
    assert scrubbed.found == set(gone) & (seen | set(made.live))
    assert set(scrubbed.left_out) == set(gone) & set(made.live)


@settings(max_examples=30)
@given(STEPS, st.integers(1, 60), st.data())
def test_an_ended_scrub_goes_on_where_it_was(
    steps: list[tuple[list[int], int | None, bool]], checks: int, data: st.DataObject
) -> None:
    made = history(steps)
    packs = sorted(key for key in objects_of(made.box) if "/p" in key[-6:])
    harmed = data.draw(st.lists(st.sampled_from(packs), unique=True, max_size=3))
    for key in harmed:
        del objects_of(made.box)[key]
    scrubbed = Scrubbed(made.box)
    ended = False
    while not ended:
        made.box.gets.clear()
        before = scrubbed.saved
        try:
            scrubbed.attempt(made.live, FakeControl(stop_after=checks))
            ended = True
        except TaskCancelled:
            # Each attempt may do more than the one before, so this ends.
            checks += checks
        parsed = [keys.parse(key) for key in reads(made.box)]
        assert all(one is not None and one.segment >= before for one in parsed)
    assert scrubbed.found == set(harmed)


def test_many_versions_of_a_segment_are_read_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Then a pack is read once for each part; nothing is missed."""
    made = history([([], None, False), *(([block], -1, False) for block in range(8))])
    packs = {key for key in objects_of(made.box) if "/p" in key[-6:]}
    monkeypatch.setattr(verify, "MAPS_AT_ONCE", 3)
    made.box.gets.clear()
    assert Scrubbed(made.box).attempt(made.live).ok
    assert set(packs) <= set(reads(made.box))
    assert max(reads(made.box).values()) == 3
    for key in sorted(packs):
        good = objects_of(made.box).pop(key)
        found: list[str] = []
        scrub.run(
            dict.fromkeys(made.live, False),
            made.box,
            FakeControl(),
            lambda name, _reason, found=found: found.append(name),  # type: ignore[misc]
            find_key=no_keys,
        )
        assert found == [key]
        objects_of(made.box)[key] = good


def test_a_byte_that_changed_in_what_backups_share_is_found() -> None:
    """The block is verified with the first map that names it; the second one's share of the pack is not."""
    made = history([([], None, False), ([0], 0, False)])
    shared = sorted(made.named(made.live[0]) & made.named(made.live[1]))
    pack = next(key for key in shared if "/p" in key[-6:])
    data = bytearray(objects_of(made.box)[pack])
    data[200] ^= 8
    objects_of(made.box)[pack] = bytes(data)
    scrubbed = Scrubbed(made.box)
    scrubbed.attempt(made.live)
    assert scrubbed.found == {pack}


def test_encrypted_backups_are_verified_with_their_keys() -> None:
    made = Keyring()
    box = memory_container()
    data = content(2 * SEGMENT)
    first = run(box, 0, data, sealing=made.sealing).manifest_key
    data[3] ^= 1
    made.rotate()
    second = run(box, 1, data, first, sealing=made.sealing).manifest_key
    found: set[str] = set()

    def look(find_key: object) -> tuple[VerifyReport, dict[str, EngineError]]:
        found.clear()
        left_out: dict[str, EngineError] = {}
        report = scrub.run(
            {first: True, second: True},
            box,
            FakeControl(),
            lambda name, _reason: found.add(name),
            find_key=find_key,  # type: ignore[arg-type]
            leave_out=left_out.__setitem__,
        )
        return report, left_out

    report, left_out = look(made.find)
    assert report.ok
    assert report.blocks > 2
    assert not left_out
    pack = next(key for key in sorted(objects_of(box)) if "/p" in key[-6:])
    good = objects_of(box)[pack]
    objects_of(box)[pack] = good[:200] + bytes((good[200] ^ 1,)) + good[201:]
    assert look(made.find)[0].damaged == 1
    assert found == {pack}
    # Without the key nothing is proven, and nothing is damaged.
    report, left_out = look(no_keys)
    assert set(left_out) == {first, second}
    assert report.ok


def test_a_manifest_of_a_newer_release_is_left_out() -> None:
    made = history([([], None, False), ([0], 0, False)])
    stored = objects_of(made.box)
    stored[made.live[1]] = rehead(stored[made.live[1]], version=99)
    scrubbed = Scrubbed(made.box)
    report = scrubbed.attempt(made.live)
    assert scrubbed.found == set()
    (error,) = scrubbed.left_out.values()
    assert isinstance(error, UnsupportedFormat)
    assert report.objects == len(made.named(made.live[0])) + 2

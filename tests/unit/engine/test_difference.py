"""What changed between two backups is known without reading data, and is all that a restore of it reads."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backupfw.engine import difference, restore
from backupfw.engine.format import keys
from backupfw.engine.format.geometry import Geometry
from backupfw.engine.format.manifest import ManifestReader
from tests.unit.engine.fakes import (
    BLOCK,
    SEGMENT,
    FakeControl,
    FaultyContainer,
    MemoryTarget,
    memory_container,
)
from tests.unit.engine.test_data_path import content, run

BLOCKS = 3 * SEGMENT // BLOCK


def changed(box: FaultyContainer, older: str, newer: str) -> list[tuple[int, int]]:
    return list(difference.changed(ManifestReader(box, older), ManifestReader(box, newer), FakeControl()))


@settings(max_examples=40)
@given(
    edits=st.dictionaries(st.integers(0, BLOCKS - 1), st.sampled_from([b"", b"\0", b"x"]), max_size=12),
    lengths=st.tuples(*2 * [st.integers(1, 3 * SEGMENT)]),
    shares=st.booleans(),
)
def test_the_blocks_that_differ(edits: dict[int, bytes], lengths: tuple[int, int], shares: bool) -> None:
    box = memory_container()
    before = content(lengths[0])
    after = bytearray(before[: lengths[1]].ljust(lengths[1], b"\0"))
    for block, byte in edits.items():
        for at in range(block * BLOCK, min(block * BLOCK + BLOCK, len(after))):
            after[at] = byte[0] if byte else after[at] ^ 1
    older = run(box, 0, before).manifest_key
    newer = run(box, 1, after, older if shares else None).manifest_key
    found = changed(box, older, newer)
    blocks = [at for start, end in found for at in range(start, end, BLOCK)]
    # Each once, in order, within a segment.
    assert blocks == sorted(set(blocks))
    assert all(start // SEGMENT == (end - 1) // SEGMENT for start, end in found)
    for at in range(0, len(after), BLOCK):
        same = before[at : at + BLOCK] == after[at : at + BLOCK]
        assert (at in blocks) != same, at
    target = MemoryTarget(len(after))
    restore.run(newer, box, target, FakeControl(), only=found)
    expected = bytearray(len(after))
    for at in blocks:
        expected[at : at + BLOCK] = after[at : at + BLOCK]
    assert target.data == expected


def test_no_data_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    box = memory_container()
    data = content(3 * SEGMENT, zero=0.0)
    older = run(box, 0, data).manifest_key
    data[SEGMENT : SEGMENT + 100] = bytes(100)
    newer = run(box, 1, data, older).manifest_key
    read: list[str] = []
    get = box.get

    def watched(key: str, *arguments: Any) -> bytes:
        read.append(key)
        return get(key, *arguments)

    monkeypatch.setattr(box, "get", watched)
    assert changed(box, older, newer) == [(SEGMENT, SEGMENT + BLOCK)]
    kinds = [
        found.kind for key in read if (found := keys.parse(key)) is not None and found.kind != "manifest"
    ]
    # The maps of the segment that differs.
    assert kinds == ["map", "map"]


def test_backups_that_cannot_be_compared_differ_everywhere() -> None:
    box = memory_container()
    data = content(2 * SEGMENT + 5)
    older = run(box, 0, data).manifest_key
    newer = run(box, 1, data, geometry=Geometry(len(data), BLOCK * 2, SEGMENT)).manifest_key
    assert changed(box, older, newer) == [
        (0, SEGMENT),
        (SEGMENT, 2 * SEGMENT),
        (2 * SEGMENT, len(data)),
    ]
